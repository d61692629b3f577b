"""4. The longest hold of the event loop while a long session is read and 100 other sessions are appended to.

A hold is one step of the loop: one callback, or one piece of a coroutine between two awaits. It is told in time that
passed, which is what others wait, and in the CPU time of the loop's thread, which is the code's own part of it.
Python's collections of garbage are told apart: they come when they come, and an application may move them.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
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
    """The longest of each so far, in milliseconds.

    Attributes:
        wall_ms: the time that a step took.
        cpu_ms: the thread's CPU time in a step, without collections of garbage.
        garbage_ms: the thread's CPU time in a step's collections of garbage.
    """

    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    garbage_ms: float = 0.0


@contextmanager
def longest_holds() -> Iterator[Holds]:
    """Time every step of the running loop."""
    # Debug mode would tell too, but makes every step slower.
    handle: Any = asyncio.Handle
    run, holds, garbage = handle._run, Holds(), _Garbage()

    def timed(self: Any) -> None:
        started, cpu_started, garbage.seconds = time.perf_counter(), time.thread_time(), 0.0
        run(self)
        cpu = time.thread_time() - cpu_started - garbage.seconds
        holds.wall_ms = max(holds.wall_ms, 1000 * (time.perf_counter() - started))
        holds.cpu_ms = max(holds.cpu_ms, 1000 * cpu)
        holds.garbage_ms = max(holds.garbage_ms, 1000 * garbage.seconds)

    handle._run = timed
    gc.callbacks.append(garbage.notice)
    try:
        yield holds
    finally:
        gc.callbacks.remove(garbage.notice)
        handle._run = run


class _Garbage:
    """How long this thread has collected garbage."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._thread = threading.get_ident()

    def notice(self, phase: str, _: object) -> None:
        """Hear of a collection's start and stop."""
        if threading.get_ident() == self._thread:
            self.seconds += -time.thread_time() if phase == "start" else time.thread_time()


async def run(setup: Setup) -> list[Row]:
    """Read each variant's long sessions in turn, while the same variant appends to others."""
    engine = setup.needs_engine("holds of the event loop")
    if engine is None:
        return []
    async with open_peers(engine) as peers:
        readers = [
            _Reader(key, peer, length, OTHERS // 10 if setup.quick else OTHERS)
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

    def __init__(self, key: Key, peer: Peer, length: int, others: int) -> None:
        self.key = key
        self._peer = peer
        self._session = f"held-{length}-{key[1]}"
        self._stored = new_messages(length)
        self._others: list[list[BaseMessage]] = [[] for _ in range(others)]
        self._rounds: dict[str, list[float]] = defaultdict(list)
        self._fault: str | None = None

    async def fill(self) -> None:
        """Store the long session, and begin the others."""
        await store(self.key, self._peer, self._session, self._stored)
        await asyncio.gather(*map(self._append, range(len(self._others))))

    async def read(self) -> None:
        """Read the session once while the others are in use, and note the longest hold."""
        done = asyncio.Event()
        with frozen_garbage():
            others = [asyncio.create_task(self._append_until(done, number)) for number in range(len(self._others))]
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
        self._rounds["garbage_ms"].append(holds.garbage_ms)
        self._rounds["read_ms"].append(1000 * seconds)

    async def row(self, reader: Peer) -> Row:
        """Return what was measured, once what was appended has been read back."""
        for number, messages in enumerate(self._others):
            self._fault = self._fault or await fault_in_session(reader, self._other(number), messages)
        layout, name = self.key
        case: dict[str, str | int] = {"layout": layout, "messages": len(self._stored)}
        worst = {f"worst_{name}": max(self._rounds[name]) for name in ("hold_cpu_ms", "garbage_ms")}
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
