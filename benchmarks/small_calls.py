"""1. CPU and time of an append and of a small read, 1, 16, 64 and 256 at a time."""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
from langchain_core.messages import BaseMessage

from .honesty import fault_in_messages, fault_in_numbers, fault_in_session, fault_on_stub
from .measure import Operation, Row, block, interleave
from .messages import (
    content_of,
    item_collection,
    new_message,
    new_messages,
    new_number,
    number_of,
    session_of,
    single_item,
)
from .put_peers import open_put_senders
from .setup import Setup
from .variants import AIOBOTO3, LARGE_POOL, OPERATIONS, Key, Peer, Sender, Target, open_peers, open_senders, store

BASELINE = AIOBOTO3
SHORT = 20
# How many writers write to one session at once, and how often each.
_WRITERS, _WRITES_EACH = 16, 5
# One at a time, the operations of a block take turns at as many sessions, so that none of them grows long.
_ALONE = 10
# The SDK's own. More callers than that wait for one another.
_SMALL_POOL = 10


@dataclass(frozen=True)
class _Level:
    """How many operations run at a time, how many a block has, and how many rounds of blocks there are."""

    at_once: int
    times: int
    rounds: int


async def run(setup: Setup) -> list[Row]:
    """Measure single requests, appends and reads on the stub, and the latter two on the engine."""
    short = new_messages(SHORT)
    few = short[: OPERATIONS["get_item"]]
    # The first answer to GetItem is also what langchain-community reads before each append.
    await setup.stub.teach("GetItem", session_of(len(few)), orjson.dumps(single_item(few)))
    await setup.stub.teach("GetItem", session_of(SHORT), orjson.dumps(single_item(short)))
    await setup.stub.teach("Query", session_of(SHORT), orjson.dumps(item_collection(short, newest_first=True)))
    rows = await _single_requests(setup, short)
    async with open_peers(setup.on_stub, aiodynamo=True) as peers:
        rows += await _chats(setup, setup.on_stub, peers, short)
    if engine := setup.needs_engine("appends and reads on a real engine"):
        async with open_peers(engine, aiodynamo=True) as peers:
            for key, peer in peers.items():
                await store(key, peer, _session_read_by(key), short)
            rows += await _chats(setup, engine, peers, short)
            rows += await many_writers(engine, peers)
    return rows


def _levels(setup: Setup) -> list[_Level]:
    return [
        _Level(at_once, _ALONE if at_once == 1 else 2 * at_once, setup.rounds(30 if at_once == 1 else 6))
        for at_once in ((1, 16) if setup.quick else (1, 16, 64, 256))
    ]


async def _single_requests(setup: Setup, short: Sequence[BaseMessage]) -> list[Row]:
    rows = []
    async with open_senders(setup.on_stub) as senders, open_put_senders(setup.on_stub) as put_senders:
        for level in _levels(setup):
            racers = {name: one for name, one in senders.items() if level.at_once > _SMALL_POOL or name != LARGE_POOL}
            # A crowd makes the same difference to all operations.
            for operation in OPERATIONS if level.at_once == 1 else ["put_item"]:
                also = put_senders if operation == "put_item" else {}
                rows += await _race(setup, operation, {**racers, **also}, short, level)
    return rows


async def _race(
    setup: Setup, operation: str, senders: Mapping[str, Sender], short: Sequence[BaseMessage], level: _Level
) -> list[Row]:
    sent: dict[str, list[int]] = defaultdict(list)
    answers: dict[str, object] = {}

    def sending(name: str, sender: Sender) -> Operation:
        async def send(_: int) -> None:
            number = new_number()
            sent[name].append(number)
            answers[name] = await sender.send(operation, content_of(number))

        return send

    setup.stub.pin(together=level.at_once == 1)
    blocks = {name: block(sending(name, sender), level.times, level.at_once) for name, sender in senders.items()}
    timed = await interleave(blocks, level.rounds)
    setup.stub.pin(together=False)
    seen = await setup.stub.seen()
    expected = [number_of(message) for message in short[: OPERATIONS[operation]]]
    reads = operation in ("get_item", "query")
    case: dict[str, str | int] = {"on": setup.on_stub.name, "operation": operation, "at_once": level.at_once}
    return [
        one.row(
            name,
            case,
            fault_in_numbers(_numbers_in(answers[name]), expected) if reads else fault_on_stub(seen, sent[name]),
        )
        for name, one in timed.items()
    ]


def _numbers_in(answer: object) -> list[int]:
    """Return the numbers of the messages in an answer of whatever type."""
    return [int(number) for number in re.findall(r"#(\d{8})#", repr(answer))]


async def _chats(setup: Setup, target: Target, peers: Mapping[Key, Peer], short: Sequence[BaseMessage]) -> list[Row]:
    rows = []
    for level in _levels(setup):
        setup.stub.pin(together=level.at_once == 1 and target is setup.on_stub)
        rows += await _appends(setup, target, peers, level)
        rows += await _reads(target, peers, short, level)
    setup.stub.pin(together=False)
    return rows


async def _appends(setup: Setup, target: Target, peers: Mapping[Key, Peer], level: _Level) -> list[Row]:
    stored = {key: _Stored(peer, f"append-{level.at_once}-{key[1]}", level.at_once) for key, peer in peers.items()}
    blocks = {key: block(one.append, level.times, level.at_once) for key, one in stored.items()}
    timed = await interleave(blocks, level.rounds)
    seen = await setup.stub.seen() if target is setup.on_stub else None
    rows = []
    for (layout, name), one in timed.items():
        if seen is None:
            fault = await stored[layout, name].fault(peers[layout, AIOBOTO3])
        else:
            fault = fault_on_stub(seen, stored[layout, name].numbers())
        rows.append(one.row(name, _case(target, layout, "append", level.at_once), fault))
    return rows


class _Stored:
    """Stores messages through a variant, one at a time, by workers that each have sessions of their own."""

    def __init__(self, peer: Peer, prefix: str, workers: int) -> None:
        self._peer = peer
        self._prefix = prefix
        self._workers = workers
        self._turns = _ALONE if workers == 1 else 1
        self._done = [0] * workers
        self._sessions: dict[str, list[BaseMessage]] = defaultdict(list)

    async def append(self, worker: int) -> None:
        """Store the next message."""
        self._done[worker] += 1
        session = f"{self._prefix}-{worker + self._workers * (self._done[worker] % self._turns)}"
        message = new_message()
        self._sessions[session].append(message)
        await self._peer.append(session, [message])

    def numbers(self) -> list[int]:
        """Return the numbers of all messages."""
        return [number_of(message) for messages in self._sessions.values() for message in messages]

    async def fault(self, reader: Peer) -> str | None:
        """Return the first thing that is wrong with what is stored."""
        for session, messages in self._sessions.items():
            if fault := await fault_in_session(reader, session, messages):
                return fault
        return None


async def _reads(target: Target, peers: Mapping[Key, Peer], short: Sequence[BaseMessage], level: _Level) -> list[Row]:
    read: dict[Key, list[BaseMessage]] = {}

    def reading(key: Key, peer: Peer) -> Operation:
        async def operation(_: int) -> None:
            read[key] = await peer.read(_session_read_by(key), SHORT)

        return operation

    blocks = {key: block(reading(key, peer), level.times, level.at_once) for key, peer in peers.items()}
    timed = await interleave(blocks, level.rounds)
    return [
        one.row(name, _case(target, layout, "read", level.at_once), fault_in_messages(read[layout, name], short))
        for (layout, name), one in timed.items()
    ]


def _session_read_by(key: Key) -> str:
    # In an item collection each stores in a form of its own.
    return f"{session_of(SHORT)}-{key[1]}"


def _case(target: Target, layout: str, operation: str, at_once: int) -> dict[str, str | int]:
    return {"on": target.name, "layout": layout, "operation": operation, "at_once": at_once}


async def many_writers(engine: Target, peers: Mapping[Key, Peer]) -> list[Row]:
    """Let many writers append to one session at once, each awaiting its own appends, and count what was kept."""
    return [await _crowd(engine, key, peer, peers[key[0], AIOBOTO3]) for key, peer in peers.items()]


async def _crowd(engine: Target, key: Key, peer: Peer, reader: Peer) -> Row:
    layout, name = key
    session = f"one-session-{name}"
    batches = [new_messages(_WRITES_EACH) for _ in range(_WRITERS)]

    async def write(batch: Sequence[BaseMessage]) -> None:
        for message in batch:
            await peer.append(session, [message])

    started = time.perf_counter()
    await asyncio.gather(*(write(batch) for batch in batches))
    seconds = time.perf_counter() - started
    sent = [number_of(message) for batch in batches for message in batch]
    kept = [number_of(message) for message in await reader.read(session)]
    return Row(
        _case(engine, layout, "append to one session", _WRITERS),
        name,
        figures={"sent": len(sent), "kept": len(kept), "per_second": len(sent) / seconds},
        wrong=fault_in_numbers(kept, sent),
    )
