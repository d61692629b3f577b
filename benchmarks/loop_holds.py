"""4. The longest hold of the event loop while a long session is read and 100 other sessions are appended to.

A hold is one step of the loop: one callback, or one piece of a coroutine between two awaits. It is told in time that
passed, which is what others wait, and in the CPU time of the loop's thread, which is the code's own part of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from .honesty import fault_in_messages, fault_in_session
from .measure import Row, frozen_garbage
from .messages import new_message, new_messages
from .setup import Setup
from .variants import AIOBOTO3, ITEM_COLLECTION, SINGLE_ITEM, Key, Peer, open_peers, store

BASELINE = AIOBOTO3
LENGTHS = {SINGLE_ITEM: (1_000,), ITEM_COLLECTION: (1_000, 10_000)}
OTHERS = 100
# Each of the others pauses about so long between two messages.
_PAUSE_SECONDS = 0.5


@dataclass
class Holds:
    """The longest steps so far, in milliseconds: in time that passed, and in the thread's CPU time."""

    wall_ms: float = 0.0
    cpu_ms: float = 0.0


@contextmanager
def longest_holds() -> Iterator[Holds]:
    """Time every step of the running loop."""
    # Debug mode would tell too, but makes every step slower.
    handle: Any = asyncio.Handle
    run, holds = handle._run, Holds()

    def timed(self: Any) -> None:
        started, cpu_started = time.perf_counter(), time.thread_time()
        run(self)
        holds.wall_ms = max(holds.wall_ms, 1000 * (time.perf_counter() - started))
        holds.cpu_ms = max(holds.cpu_ms, 1000 * (time.thread_time() - cpu_started))

    handle._run = timed
    try:
        yield holds
    finally:
        handle._run = run


async def run(setup: Setup) -> list[Row]:
    """Read each variant's long sessions in turn, while the same variant appends to others."""
    engine = setup.needs_engine("holds of the event loop")
    if engine is None:
        return []
    async with open_peers(engine) as peers:
        readers = [
            _Reader(key, peer, length)
            for key, peer in peers.items()
            for length in (LENGTHS[key[0]][:1] if setup.quick else LENGTHS[key[0]])
        ]
        for reader in readers:
            await reader.fill()
        for _ in range(setup.rounds(5)):
            for reader in random.sample(readers, len(readers)):
                await reader.read()
        return [await reader.row(peers[reader.key[0], AIOBOTO3]) for reader in readers]


class _Reader:
    """A variant with a long session, and with others that are in use meanwhile."""

    def __init__(self, key: Key, peer: Peer, length: int) -> None:
        self.key = key
        self._peer = peer
        self._session = f"held-{length}-{key[1]}"
        self._stored = new_messages(length)
        self._others: list[list[BaseMessage]] = [[] for _ in range(OTHERS)]
        self._rounds: dict[str, list[float]] = defaultdict(list)
        self._fault: str | None = None

    async def fill(self) -> None:
        """Store the long session, and begin the others."""
        await store(self._peer, self._session, self._stored)
        await asyncio.gather(*map(self._append, range(OTHERS)))

    async def read(self) -> None:
        """Read the session once while the others are in use, and note the longest hold."""
        done = asyncio.Event()
        # Full collections of garbage are the application's to move: they hold the loop for 36 ms whoever causes them.
        with frozen_garbage():
            others = [asyncio.create_task(self._append_until(done, number)) for number in range(OTHERS)]
            await asyncio.sleep(_PAUSE_SECONDS)
            with longest_holds() as holds:
                started = time.perf_counter()
                read = await self._peer.read(self._session)
                seconds = time.perf_counter() - started
            done.set()
            await asyncio.gather(*others)
        self._fault = self._fault or fault_in_messages(read, self._stored)
        self._rounds["hold_ms"].append(holds.wall_ms)
        self._rounds["hold_cpu_ms"].append(holds.cpu_ms)
        self._rounds["read_ms"].append(1000 * seconds)

    async def row(self, reader: Peer) -> Row:
        """Return what was measured, once what was appended has been read back."""
        for number, messages in enumerate(self._others):
            self._fault = self._fault or await fault_in_session(reader, self._other(number), messages)
        layout, name = self.key
        case: dict[str, str | int] = {"layout": layout, "messages": len(self._stored)}
        worst = {"worst_hold_cpu_ms": max(self._rounds["hold_cpu_ms"])}
        return Row(case, name, dict(self._rounds), worst, self._fault)

    async def _append_until(self, done: asyncio.Event, number: int) -> None:
        await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS))
        while not done.is_set():
            await self._append(number)
            await asyncio.sleep(random.uniform(0.5, 1.5) * _PAUSE_SECONDS)

    async def _append(self, number: int) -> None:
        message = new_message()
        self._others[number].append(message)
        await self._peer.append(self._other(number), [message])

    def _other(self, number: int) -> str:
        return f"{self._session}-other-{number}"
