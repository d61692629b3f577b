"""3. Reading 10, 100 and 1,000 messages: waiting, JSON, attribute conversion and message construction, and the total.

The stages are timed by themselves, on the bytes of one answer. The total is a real call on the stub, less what bare
aiohttp takes to receive the same bytes: whatever a variant does between the bytes and the messages counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import botocore.session
import orjson
from boto3.dynamodb.types import TypeDeserializer
from botocore.parsers import create_parser
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from chathistory_async._codec.message_attribute_values import decode_message
from chathistory_async._codec.messages import decode_json, rebuild

from .honesty import fault_in_messages
from .measure import Block, Operation, Row, block, interleave
from .messages import item_collection, new_messages, session_of, single_item
from .setup import Setup
from .variants import (
    AIOBOTO3,
    FLOOR,
    ITEM_COLLECTION,
    OURS,
    SINGLE_ITEM,
    CannedRequest,
    Key,
    Peer,
    Target,
    bare_aiohttp,
    get_request,
    open_peers,
    our_options,
    query_request,
    store,
)

BASELINE = AIOBOTO3
# Ours alone stores the messages of an append in one item.
IN_TWOS = f"{ITEM_COLLECTION}, stored in twos"
LENGTHS = (10, 100, 1_000)
STAGES = ("json_ms", "conversion_ms", "construction_ms")
Step = Callable[[], object]


async def run(setup: Setup) -> list[Row]:
    """Measure whole reads on the stub, the stages of the answer by themselves, and the waiting on the engine."""
    rows = []
    for length in LENGTHS[:1] if setup.quick else LENGTHS:
        messages = new_messages(length)
        bodies = {
            SINGLE_ITEM: orjson.dumps(single_item(messages)),
            ITEM_COLLECTION: orjson.dumps(item_collection(messages)),
        }
        await setup.stub.teach("GetItem", session_of(length), bodies[SINGLE_ITEM])
        await setup.stub.teach("Query", session_of(length), bodies[ITEM_COLLECTION])
        await setup.stub.teach("Query", session_of(length, 2), orjson.dumps(item_collection(messages, per_record=2)))
        rows += await _whole_reads(setup, messages)
        rows += await _stages(setup, messages, bodies)
    if engine := setup.needs_engine("waiting for the engine while reading"):
        for length in LENGTHS[:1] if setup.quick else LENGTHS:
            rows += await _waiting(setup, engine, new_messages(length))
    return rows


async def _whole_reads(setup: Setup, messages: Sequence[BaseMessage]) -> list[Row]:
    """Time whole calls, and bare aiohttp's, which only receives the bytes."""
    session, in_twos, tables = session_of(len(messages)), session_of(len(messages), 2), setup.on_stub.tables
    reads = Reads(messages)
    setup.stub.pin(together=True)
    async with open_peers(setup.on_stub) as peers, bare_aiohttp() as http:
        get = CannedRequest(http, setup.on_stub, "get_item", get_request(tables[SINGLE_ITEM], session))
        query = CannedRequest(http, setup.on_stub, "query", query_request(tables[ITEM_COLLECTION], session))
        twos = CannedRequest(http, setup.on_stub, "query", query_request(tables[ITEM_COLLECTION], in_twos))
        blocks: dict[Key, Block] = {
            (SINGLE_ITEM, FLOOR): block(lambda _: get.send(), 1),
            (ITEM_COLLECTION, FLOOR): block(lambda _: query.send(), 1),
            (IN_TWOS, FLOOR): block(lambda _: twos.send(), 1),
        }
        blocks |= {key: block(reads.by(key, peer, session), 1) for key, peer in peers.items()}
        for name in our_options():
            blocks[IN_TWOS, name] = block(reads.by((IN_TWOS, name), peers[ITEM_COLLECTION, name], in_twos), 1)
        timed = await interleave(blocks, setup.rounds(40), reads.check)
    setup.stub.pin(together=False)
    rows = []
    for (layout, name), one in timed.items():
        row = one.row(name, _case("whole read", layout, messages), reads.faults.get((layout, name)))
        if name != FLOOR:
            row.rounds["above_floor_ms"] = _minus(one.cpu, timed[layout, FLOOR].cpu)
        rows.append(row)
    return rows


class Reads:
    """Reads sessions, and looks at what was read when the clock has stopped: to let go of it is no part of reading it.

    Attributes:
        faults: the first thing that was wrong with what a variant read, if any was.
    """

    def __init__(self, expected: Sequence[BaseMessage]) -> None:
        self.faults: dict[Key, str] = {}
        self._expected = expected
        self._found: dict[Key, list[BaseMessage]] = {}

    def by(self, key: Key, peer: Peer, session: str) -> Operation:
        """Return the operation that reads a session by this variant."""

        async def operation(_: int) -> None:
            self._found[key] = await peer.read(session)

        return operation

    def check(self) -> None:
        """Compare what was read since the last time, and forget it."""
        for key, found in self._found.items():
            if fault := fault_in_messages(found, self._expected):
                self.faults.setdefault(key, fault)
        self._found.clear()


async def _stages(setup: Setup, messages: Sequence[BaseMessage], bodies: Mapping[str, bytes]) -> list[Row]:
    """Time what an answer's bytes go through, ours and the stock way."""
    steps = {SINGLE_ITEM: _steps_of_item(messages, bodies), ITEM_COLLECTION: _steps_of_collection(bodies)}
    blocks = {(layout, step): _stepping(one) for layout in steps for step, one in steps[layout].items()}
    timed = await interleave(blocks, setup.rounds(40))
    rows = []
    for layout in steps:
        cpu = {step: timed[layout, step].cpu for step in steps[layout]}
        walked = _minus(cpu["parse"], cpu["json"])
        stock = [_plus(cpu["json"], cpu["json of texts"]), _plus(walked, cpu["deserialize"]), cpu["messages_from_dict"]]
        texts = cpu["orjson of texts"]
        ours = [_plus(cpu["orjson"], texts), _minus(_minus(cpu["decode"], texts), cpu["rebuild"]), cpu["rebuild"]]
        for name, stages in ((AIOBOTO3, stock), (OURS, ours)):
            rows.append(Row(_case("stages", layout, messages), name, dict(zip(STAGES, stages, strict=True))))
    return rows


def _steps_of_item(messages: Sequence[BaseMessage], bodies: Mapping[str, bytes]) -> dict[str, Step]:
    body, forms = bodies[SINGLE_ITEM], [message_to_dict(message) for message in messages]
    history = orjson.loads(body)["Item"]["History"]
    return _common_steps("GetItem", body, forms) | {
        "json of texts": lambda: None,
        "orjson of texts": lambda: None,
        "deserialize": lambda: TypeDeserializer().deserialize(history),
        "decode": lambda: [decode_message(value, 0) for value in history["L"]],
    }


def _steps_of_collection(bodies: Mapping[str, bytes]) -> dict[str, Step]:
    body = bodies[ITEM_COLLECTION]
    texts = [item["History"]["S"] for item in orjson.loads(body)["Items"]]
    encoded = [text.encode() for text in texts]
    return _common_steps("Query", body, [orjson.loads(text) for text in texts]) | {
        "json of texts": lambda: [json.loads(text) for text in texts],
        "orjson of texts": lambda: [orjson.loads(text) for text in encoded],
        "deserialize": lambda: None,
        "decode": lambda: [decode_json(text, 0) for text in encoded],
    }


def _common_steps(operation: str, body: bytes, forms: list[dict[str, Any]]) -> dict[str, Step]:
    shape = botocore.session.get_session().get_service_model("dynamodb").operation_model(operation).output_shape
    parser, answer = create_parser("json"), {"body": body, "headers": {}, "status_code": 200}
    return {
        "json": lambda: json.loads(body),
        "orjson": lambda: orjson.loads(body),
        "parse": lambda: parser.parse(answer, shape),
        "messages_from_dict": lambda: messages_from_dict(forms),
        "rebuild": lambda: [rebuild(form) for form in forms],
    }


def _stepping(step: Step) -> Block:
    async def run() -> list[float]:
        started = time.perf_counter()
        step()
        return [time.perf_counter() - started]

    return run


async def _waiting(setup: Setup, engine: Target, messages: list[BaseMessage]) -> list[Row]:
    """Time whole calls on the engine: what is not this process's CPU time is waiting."""
    async with open_peers(engine) as peers:
        reads = Reads(messages)
        blocks: dict[Key, Block] = {}
        for key, peer in peers.items():
            session = f"reading-{len(messages)}-{key[1]}"
            await store(key, peer, session, messages)
            blocks[key] = block(reads.by(key, peer, session), 1)
        timed = await interleave(blocks, setup.rounds(20), reads.check)
    rows = []
    for (layout, name), one in timed.items():
        row = one.row(name, _case("on the engine", layout, messages), reads.faults.get((layout, name)))
        row.rounds["waiting_ms"] = _minus(one.wall, one.cpu)
        rows.append(row)
    return rows


def _case(measured: str, layout: str, messages: Sequence[BaseMessage]) -> dict[str, str | int]:
    return {"measured": measured, "layout": layout, "messages": len(messages)}


def _plus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [max(0.0, a - b) for a, b in zip(one, other, strict=True)]
