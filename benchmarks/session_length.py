"""2. Append and read-last-20 against the length of the session: time, requests, bytes and consumed capacity."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

from botocore.exceptions import ClientError
from langchain_core.messages import BaseMessage

from chathistory_async import ItemTooLargeError

from .honesty import Reader, fault_in_messages, fault_in_session, open_readers
from .measure import Row, Timed, block, interleave
from .messages import new_message, new_messages
from .recording import Recording, recording
from .setup import Setup
from .variants import SINGLE_ITEM, UPSTREAM, Key, Peer, open_peers, store

BASELINE = UPSTREAM
LENGTHS = (10, 100, 300, 1_000, 3_000, 10_000)
# A single item holds about this many of these messages. The benchmark tries how many exactly.
_SINGLE_ITEM_LENGTHS = (10, 100, 300, 1_000)
LATEST = 20
_STEP = 50


async def run(setup: Setup) -> list[Row]:
    """Measure on the engine: first the times, then through a proxy what the requests cost."""
    engine = setup.needs_engine("append and read against the session's length")
    if engine is None:
        return []
    async with AsyncExitStack() as stack:
        peers = await stack.enter_async_context(open_peers(engine))
        readers = await stack.enter_async_context(open_readers(engine))
        record = await stack.enter_async_context(recording(engine.url))
        recorded = await stack.enter_async_context(open_peers(replace(engine, url=record.url)))
        sessions = [
            _Session(key, peers[key], recorded[key], length)
            for key in peers
            for length in _lengths(key, quick=setup.quick)
        ]
        for session in sessions:
            await session.fill()
        rounds = setup.rounds(15)
        appends = await interleave({session: block(session.append, 1) for session in sessions}, rounds)
        reads = await interleave({session: block(session.read, 1) for session in sessions}, rounds)
        rows = []
        for session in sessions:
            fault = await session.fault(readers[session.key[0]])
            rows.append(await session.append_row(appends[session], record, fault))
            rows.append(await session.read_row(reads[session], record))
        if not setup.quick:
            rows += [await _longest(key, peer) for key, peer in peers.items() if key[0] == SINGLE_ITEM]
        return rows


def _lengths(key: Key, *, quick: bool) -> tuple[int, ...]:
    lengths = _SINGLE_ITEM_LENGTHS if key[0] == SINGLE_ITEM else LENGTHS
    return lengths[:2] if quick else lengths


class _Session:
    """A session of one variant that had so many messages when the measuring began."""

    def __init__(self, key: Key, peer: Peer, recorded: Peer, length: int) -> None:
        self.key = key
        self._peer = peer
        self._recorded = recorded
        self._length = length
        self._name = f"length-{length}-{key[1]}"
        self._stored = new_messages(length)
        self._read: list[BaseMessage] = []

    async def fill(self) -> None:
        """Store the messages that are there at the beginning."""
        await store(self.key, self._peer, self._name, self._stored)

    async def append(self, _: int) -> None:
        """Append one message."""
        await self._append(self._peer)

    async def read(self, _: int) -> None:
        """Read the latest messages."""
        self._read = await self._peer.read(self._name, LATEST)

    async def fault(self, reader: Reader) -> str | None:
        """Return what is wrong with what is stored."""
        return await fault_in_session(reader, self._name, self._stored)

    async def append_row(self, timed: Timed, record: Recording, fault: str | None) -> Row:
        """Return the times of appending, with what one more append costs."""
        record.restart()
        await self._append(self._recorded)
        return self._row("append", timed, record, fault)

    async def read_row(self, timed: Timed, record: Recording) -> Row:
        """Return the times of reading, with what one more read costs."""
        fault = fault_in_messages(self._read, self._stored[:-1][-LATEST:])
        record.restart()
        await self._recorded.read(self._name, LATEST)
        return self._row("read", timed, record, fault)

    async def _append(self, peer: Peer) -> None:
        message = new_message()
        self._stored.append(message)
        await peer.append(self._name, [message])

    def _row(self, operation: str, timed: Timed, record: Recording, fault: str | None) -> Row:
        layout, name = self.key
        row = timed.row(name, {"layout": layout, "operation": operation, "messages": self._length}, fault)
        row.figures |= record.figures()
        return row


async def _longest(key: Key, peer: Peer) -> Row:
    """Append to a single item until it is refused."""
    layout, name = key
    session, stored = f"until-it-fails-{name}", 0
    try:
        while True:
            await peer.append(session, new_messages(_STEP))
            stored += _STEP
    except (ClientError, ItemTooLargeError) as error:
        kept = len(await peer.read(session))
        fault = None if kept == stored else f"has {kept} of {stored} messages after {type(error).__name__}"
        return Row(
            {"layout": layout, "operation": "append until it fails"}, name, figures={"messages": stored}, wrong=fault
        )
