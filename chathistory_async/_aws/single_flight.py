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


class _Run(NamedTuple):
    """Work that is under way.

    Attributes:
        loop: the event loop of the task that does the work.
        done: a future that is done when that task is. Its result is True, or False if the task was cancelled, or the
            work's error.
    """

    loop: asyncio.AbstractEventLoop
    done: Future[bool]


class SingleFlight:
    """Runs one piece of work at a time."""

    def __init__(self) -> None:
        # The lock is held only to read and set the attribute.
        self._lock = threading.Lock()
        self._current: _Run | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work, or wait for the task that is doing it.

        If that task is cancelled, one of the waiting tasks does the work. One of them also does the work if a task on a
        different event loop has not finished it within HELD_UP_SECONDS.

        Raises:
            Exception: the work's error. Every task that waited raises it.
        """
        held_up: _Run | None = None
        while True:
            mine = _Run(asyncio.get_running_loop(), Future())
            # From now on a waiting task cannot cancel this future.
            mine.done.set_running_or_notify_cancel()
            with self._lock:
                other = self._current
                if other is None or other is held_up:
                    self._current = mine
            if other is None or other is held_up:
                await self._do(work, mine)
                return
            is_done = await _wait_for(other)
            if is_done:
                return
            held_up = other if is_done is None else None

    async def _do(self, work: Callable[[], Awaitable[None]], run: _Run) -> None:
        try:
            await work()
        except Exception as error:
            self._end(run)
            run.done.set_exception(error)
            raise
        except BaseException:
            self._end(run)
            run.done.set_result(False)
            raise
        self._end(run)
        run.done.set_result(True)

    def _end(self, run: _Run) -> None:
        with self._lock:
            if self._current is run:
                self._current = None

    def is_running(self) -> bool:
        """Return whether a task is doing the work now."""
        return self._current is not None

    def forget_in_child(self) -> None:
        """Forget a task of the parent process. Called in a forked child."""
        self._lock = threading.Lock()
        self._current = None


async def _wait_for(run: _Run) -> bool | None:
    """Wait for a run, and return whether the work is done. Return None if the run's event loop seems to be blocked.

    Raises:
        Exception: the work's error.
    """
    future = asyncio.wrap_future(run.done)
    here = run.loop is asyncio.get_running_loop()
    try:
        # Not wait_for(), which before Python 3.12 swallows a cancellation that comes with the result.
        await asyncio.wait([future], timeout=None if here else HELD_UP_SECONDS)
        return future.result() if future.done() else None
    finally:
        future.cancel()
