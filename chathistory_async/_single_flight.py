"""Single flight: one task does a piece of work for all tasks that need it, on all event loops and threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import NamedTuple

# A synchronous call in a coroutine blocks its event loop, and with it the work that runs on that loop. If the call
# itself waits for that work, it must not wait for ever.
HELD_UP_SECONDS = 5.0


class _Flight(NamedTuple):
    """Work that is under way.

    Attributes:
        loop: the event loop of the task that does the work.
        landed: done when that task is done. Its result is True, False if the task was cancelled, or the work's error.
    """

    loop: asyncio.AbstractEventLoop
    landed: Future[bool]


class SingleFlight:
    """Runs one piece of work at a time."""

    def __init__(self) -> None:
        # The lock is held only to read and set the attribute.
        self._lock = threading.Lock()
        self._flight: _Flight | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work, or wait for the task that is doing it.

        If that task is cancelled, one of the waiting tasks does the work. One of them also does the work if a task on a
        different event loop has not finished it within HELD_UP_SECONDS.

        Raises:
            Exception: the work's error. Every task that waited raises it.
        """
        held_up: _Flight | None = None
        while True:
            mine = _Flight(asyncio.get_running_loop(), Future())
            # From now on a waiting task cannot cancel this future.
            mine.landed.set_running_or_notify_cancel()
            with self._lock:
                other = self._flight
                if other is None or other is held_up:
                    self._flight = mine
            if other is None or other is held_up:
                await self._fly(work, mine)
                return
            landed = await _landed(other)
            if landed:
                return
            held_up = other if landed is None else None

    async def _fly(self, work: Callable[[], Awaitable[None]], flight: _Flight) -> None:
        try:
            await work()
        except Exception as error:
            self._end(flight)
            flight.landed.set_exception(error)
            raise
        except BaseException:
            self._end(flight)
            flight.landed.set_result(False)
            raise
        self._end(flight)
        flight.landed.set_result(True)

    def _end(self, flight: _Flight) -> None:
        with self._lock:
            if self._flight is flight:
                self._flight = None

    def is_running(self) -> bool:
        """Return whether a task is doing the work now."""
        return self._flight is not None

    def forget_in_child(self) -> None:
        """Forget a task of the parent process. Called in a forked child."""
        self._lock = threading.Lock()
        self._flight = None


async def _landed(flight: _Flight) -> bool | None:
    """Wait for a flight, and return whether the work is done. Return None if the flight's loop seems to be blocked.

    Raises:
        Exception: the work's error.
    """
    landed = asyncio.wrap_future(flight.landed)
    here = flight.loop is asyncio.get_running_loop()
    try:
        # Not wait_for(), which before Python 3.12 swallows a cancellation that comes with the result.
        await asyncio.wait([landed], timeout=None if here else HELD_UP_SECONDS)
        return landed.result() if landed.done() else None
    finally:
        landed.cancel()
