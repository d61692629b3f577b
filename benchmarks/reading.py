"""3. Reading 10, 100 and 1,000 messages: waiting, JSON, attribute conversion and message construction, and the total.

The stages are timed by themselves, on the bytes of one answer. The total is a real call on the stub, less what bare
aiohttp takes to receive the same bytes: whatever a variant does between the bytes and the messages counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import botocore.session
import orjson
from botocore.parsers import create_parser
from boto3.dynamodb.types import TypeDeserializer
from langchain_core.messages import BaseMessage, messages_from_dict

from chathistory_async._codec import decode_message, rebuild
from chathistory_async._json_codec import decode_json

from .honesty import fault_in_messages
from .measure import Row, Timed, block, interleave
from .messages import item_collection, new_messages, session_of, single_item
from .session_length import store
from .setup import Setup
from .variants import AIOBOTO3, FLOOR, ITEM_COLLECTION, SINGLE_ITEM, Key, Peer, Target, open_canned, open_peers

BASELINE = AIOBOTO3
LENGTHS = (10, 100, 1_000)
_ANSWERS: dict[str, Callable[[Sequence[BaseMessage]], dict[str, Any]]] = {
    SINGLE_ITEM: single_item,
    ITEM_COLLECTION: item_collection,
}
_OPERATIONS = {SINGLE_ITEM: "GetItem", ITEM_COLLECTION: "Query"}


async def run(setup: Setup) -> list[Row]:
    """Measure whole reads on the stub, the stages of the answer by themselves, and the waiting on the engine."""
    rows = []
    for length in LENGTHS[:2] if setup.quick else LENGTHS:
        messages = new_messages(length)
        for layout, answer in _ANSWERS.items():
            body = orjson.dumps(answer(messages))
            await setup.stub.teach(_OPERATIONS[layout], length, body)
            rows += await _stages(setup, layout, body, messages)
        rows += await _reads(setup, messages)
        if engine := setup.needs_engine(f"waiting for {length} messages"):
            rows += await _waiting(setup, engine, messages)
    return rows


async def _reads(setup: Setup, messages: Sequence[BaseMessage]) -> list[Row]:
    """Time whole calls, and bare aiohttp's, which only receives the bytes."""
    session, read = session_of(len(messages)), dict[Key, list[BaseMessage]]()

    def reading(key: Key, peer: Peer) -> Callable[[int], Awaitable[None]]:
        async def operation(_: int) -> None:
            read[key] = await peer.read(session)

        return operation

    setup.stub.pin(together=True)
    async with open_peers(setup.on_stub) as peers, open_canned(setup.on_stub) as canned:
        blocks = {key: block(reading(key, peer), 1) for key, peer in peers.items()}
        for layout in _ANSWERS:
            receive = canned.sending("get_item" if layout == SINGLE_ITEM else "query", session)
            blocks[layout, FLOOR] = block(lambda _, receive=receive: receive(), 1)
        timed = await interleave(blocks, setup.rounds(40))
    setup.stub.pin(together=False)
    rows = []
    for (layout, name), one in timed.items():
        fault = None if name == FLOOR else fault_in_messages(read[layout, name], messages)
        row = one.row(name, _case("whole read", layout, len(messages)), fault)
        if name != FLOOR:
            row.rounds["above_floor_ms"] = [
                cpu - floor for cpu, floor in zip(one.cpu, timed[layout, FLOOR].cpu, strict=True)
            ]
        rows.append(row)
    return rows
