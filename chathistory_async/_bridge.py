"""The way from synchronous code into asynchronous: one private event loop, in one daemon thread per process."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

from ._fork import after_fork_in_child, park
from .errors import BridgeError

P = ParamSpec("P")
T = TypeVar("T")

THREAD_NAME = "chathistory_async"
# Long enough for the connections to say goodbye to a distant endpoint; a process that exits does not wait longer.
_EXIT_SECONDS = 5.0
_EXITING = "The interpreter is exiting: no synchronous call can run any more"


class _PrivateLoop:
    """A running event loop and its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name=THREAD_NAME, daemon=True)
        try:
            self.thread.start()
        except RuntimeError:
            # From Python 3.12 on no thread can start in an exit handler.
            self.loop.close()
            raise BridgeError(_EXITING) from None

    def stop(self) -> None:
        """Cancel what runs, close what the loop owns (the clients among it) and end the thread."""
        draining = asyncio.run_coroutine_threadsafe(self._drain(), self.loop)
        try:
            draining.result(_EXIT_SECONDS)
        except concurrent.futures.TimeoutError:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(_EXIT_SECONDS)
        if not self.thread.is_alive():
            self.loop.close()

    async def _drain(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.loop.shutdown_asyncgens()


# It exists from import on: a lock made on first use would need a lock.
_lock = threading.Lock()
_private: _PrivateLoop | None = None
_exiting = False


def run(function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a coroutine function on the private loop and wait for its result in the calling thread.

    Inside a running event loop this blocks that loop; the coroutine itself runs on the private one.

    Args:
        function: the coroutine function. It is called on the private loop, so no coroutine exists where this refuses.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        BridgeError: called on the private loop's own thread, or at the interpreter's exit, or cut short by it.
    """
    loop = _started().loop
    call = _Call(function, *args, **kwargs)
    loop.call_soon_threadsafe(call.start)
    try:
        call.ended.acquire()
    except BaseException:
        # Ctrl-C ends the wait, not the coroutine: without this the write would go on behind the caller's back.
        loop.call_soon_threadsafe(call.cancel)
        raise
    try:
        return call.task.result()
    except asyncio.CancelledError:
        raise BridgeError("The call was cut short: the private event loop is shutting down") from None
    finally:
        # An error's traceback has this frame, and this the error: it would live until the next garbage collection.
        del call


class _Call(Generic[T]):
    """A call on the private loop.

    concurrent.futures has this too, with more locks and turns of the loop: the synchronous methods added 1.5 times as
    much to their asynchronous twins.

    Attributes:
        ended: released by the end of the call.
        task: what it runs in, once it has begun.
    """

    def __init__(self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> None:
        self.ended = threading.Lock()
        self.ended.acquire()
        self._coroutine_function = functools.partial(_awaited, function, *args, **kwargs)
        self.task: asyncio.Task[T]

    def start(self) -> None:
        """Begin; on the loop."""
        self.task = asyncio.create_task(self._coroutine_function())
        self.task.add_done_callback(lambda _: self.ended.release())

    def cancel(self) -> None:
        """Cut it short; on the loop."""
        self.task.cancel()


def iterate(generator: AsyncGenerator[T, None]) -> Iterator[T]:
    """Yield what an asynchronous generator yields on the private loop, which runs it only as far as it is asked to.

    Raises:
        BridgeError: as ``run`` does.
    """
    try:
        while True:
            try:
                yield run(generator.__anext__)
            except StopAsyncIteration:
                return
    finally:
        # A generator that nobody ended is ended by the interpreter's exit, or by a garbage collection, on any thread.
        with contextlib.suppress(BridgeError):
            run(generator.aclose)


async def _awaited(function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    # Called here, so that what the call itself raises ends the task, and with it the wait.
    return await function(*args, **kwargs)


def _started() -> _PrivateLoop:
    global _private
    with _lock:
        if _exiting:
            raise BridgeError(_EXITING)
        if _private is None:
            _private = _PrivateLoop()
        private = _private
    if threading.current_thread() is private.thread:
        raise BridgeError("A synchronous method was called on the library's own event loop: await its async twin")
    return private


def _stop_at_exit() -> None:
    # After this point Python freezes daemon threads, and whoever waits for one waits for ever.
    global _exiting
    with _lock:
        _exiting = True
        private = _private
    if private is not None:
        private.stop()


def _forget_in_child() -> None:
    # Another thread may have held the lock at the fork, and it does not exist here to release it.
    global _lock, _private
    _lock = threading.Lock()
    if _private is not None:
        # Its thread did not survive the fork either.
        park(_private)
        _private = None


atexit.register(_stop_at_exit)
after_fork_in_child(_forget_in_child)
