"""Work that many tasks want done and one does, for all of them, on whatever event loops and threads they run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future


class SingleFlight:
    """Runs one piece of work at a time."""

    def __init__(self) -> None:
        # For as long as it takes to look at the attribute.
        self._lock = threading.Lock()
        # Of the task that does the work: False where it was cancelled.
        self._flight: Future[bool] | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work, or wait for the task that does it; where that is cancelled, one of those who wait goes on.

        Raises:
            Exception: what the work raised, for all who waited for it.
        """
        while True:
            mine: Future[bool] = Future()
            # Nobody who waits for it can cancel it from now on.
            mine.set_running_or_notify_cancel()
            with self._lock:
                other = self._flight
                if other is None:
                    self._flight = mine
            if other is None:
                await self._fly(work, mine)
                return
            if await asyncio.wrap_future(other):
                return

    async def _fly(self, work: Callable[[], Awaitable[None]], flight: Future[bool]) -> None:
        try:
            await work()
        except Exception as error:
            self._flight = None
            flight.set_exception(error)
            raise
        except BaseException:
            self._flight = None
            flight.set_result(False)
            raise
        self._flight = None
        flight.set_result(True)

    def is_running(self) -> bool:
        """Tell whether a task does the work now."""
        return self._flight is not None

    def forget_in_child(self) -> None:
        """Forget, in a forked child, a task of the parent's."""
        self._lock = threading.Lock()
        self._flight = None
