"""Work that many tasks want done and one does, for all of them, on whatever event loops and threads they run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import NamedTuple

# A synchronous call in a coroutine blocks that event loop, and nothing of what the loop does goes on. The call must not
# wait for such work for ever.
HELD_UP_SECONDS = 5.0


class _Flight(NamedTuple):
    """Work that is under way.

    Attributes:
        loop: the event loop of the task that does it.
        landed: done when that task is: True, or False where it was cancelled.
    """

    loop: asyncio.AbstractEventLoop
    landed: Future[bool]


class SingleFlight:
    """Runs one piece of work at a time."""

    def __init__(self) -> None:
        # For as long as it takes to look at the attribute.
        self._lock = threading.Lock()
        self._flight: _Flight | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work, or wait for the task that does it; where that is cancelled, one of those who wait goes on.

        One also goes on where another event loop has not done the work within HELD_UP_SECONDS.

        Raises:
            Exception: what the work raised, for all who waited for it.
        """
        held_up: _Flight | None = None
        while True:
            mine = _Flight(asyncio.get_running_loop(), Future())
            # Nobody who waits for it can cancel it from now on.
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
        """Tell whether a task does the work now."""
        return self._flight is not None

    def forget_in_child(self) -> None:
        """Forget, in a forked child, a task of the parent's."""
        self._lock = threading.Lock()
        self._flight = None


async def _landed(flight: _Flight) -> bool | None:
    """Wait for a flight, and return whether the work is done; None where the flight's loop seems to be held up."""
    landed = asyncio.wrap_future(flight.landed)
    here = flight.loop is asyncio.get_running_loop()
    try:
        # Not wait_for(), which before Python 3.12 swallows a cancellation that comes with the result.
        await asyncio.wait([landed], timeout=None if here else HELD_UP_SECONDS)
        return landed.result() if landed.done() else None
    finally:
        landed.cancel()
