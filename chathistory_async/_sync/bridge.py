"""Runs coroutines for synchronous callers, on one private event loop in one daemon thread per process."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, ParamSpec, TypeVar

from ..errors import BridgeError
from .fork import after_fork_in_child, keep_forever

P = ParamSpec("P")
T = TypeVar("T")

THREAD_NAME = "chathistory_async"
# Enough time to close the connections to a distant endpoint. An exiting process does not wait longer.
_EXIT_SECONDS = 5.0
_EXITING = "The interpreter is exiting: no synchronous call can run any more"
# Python's error texts if a thread is needed, to resolve a host name or to use a boto3 session, and none can start any
# more.
_EXIT_TEXTS = ("cannot schedule new futures after", "at interpreter shutdown")
# On Windows Ctrl-C does not interrupt the wait for a lock. Python sees it between two waits.
_WAIT_SECONDS = 0.1 if sys.platform == "win32" else -1


class _PrivateLoop:
    """A running event loop and its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        try:
            self.thread.start()
        except RuntimeError:
            # From Python 3.12 on no thread can start in an exit handler.
            self.loop.close()
            raise BridgeError(_EXITING) from None
        except BaseException:
            # Ctrl-C ended the wait for the thread to start. No caller will use this loop, so it must stop.
            self.loop.call_soon_threadsafe(self.loop.stop)
            raise

    def stop(self) -> None:
        """Cancel the running tasks, close the loop's asynchronous generators (and so the clients), and end the thread.

        If this takes longer than _EXIT_SECONDS, leave the thread running.
        """
        draining = asyncio.run_coroutine_threadsafe(self._drain(), self.loop)
        try:
            draining.result(_EXIT_SECONDS)
        except concurrent.futures.TimeoutError:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(_EXIT_SECONDS)

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    async def _drain(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.loop.shutdown_asyncgens()


# The lock is made at import: making it on first use would need a lock. It is reentrant, because a garbage collection
# may run while a thread has the lock, and end a generator of ``iterate`` on that thread.
_lock = threading.RLock()
_private: _PrivateLoop | None = None
_exiting = False


def run(function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a coroutine function on the private loop, and wait for its result in the calling thread.

    Inside a running event loop this blocks that loop. The coroutine itself runs on the private loop.

    Args:
        function: the coroutine function. It is called on the private loop. It is not called if ``run`` itself refuses.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        BridgeError: the caller is on the private loop's own thread, the interpreter is exiting, or the exit cut the
            call short.
    """
    ended, results, errors = threading.Lock(), list[T](), list[BaseException]()
    ended.acquire()

    async def call() -> None:
        # The outcome is not read from the future of run_coroutine_threadsafe(). If Ctrl-C came while the calling thread
        # had that future's lock, the future would stay locked, and the loop would wait for ever to set its result.
        try:
            results.append(await function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # it is raised below
            errors.append(error)
        finally:
            ended.release()

    _run_to_its_end(call(), ended)
    try:
        return _outcome(results, errors)
    except asyncio.CancelledError:
        raise BridgeError("The call was cut short: the private event loop is shutting down") from None
    except Exception as error:
        if _tells_of_exit(error):
            raise BridgeError(_EXITING) from error
        raise


def _outcome(results: list[T], errors: list[BaseException]) -> T:
    if errors:
        # pop() removes the error from the list: the frames of its traceback refer to the list, and a cycle would keep
        # the error until the next garbage collection.
        raise errors.pop()
    return results.pop()


def _run_to_its_end(coroutine: Coroutine[Any, Any, None], ended: threading.Lock) -> None:
    """Run a coroutine on the private loop, and wait for the lock that it releases. If interrupted, cancel it."""
    try:
        # The exit handler takes this lock too: it cancels the coroutines submitted before, and none is submitted after.
        with _lock:
            asyncio.run_coroutine_threadsafe(coroutine, _running().loop)
        while not ended.acquire(timeout=_WAIT_SECONDS):
            pass
    except BaseException:
        # Ctrl-C ends the wait but not the coroutine: without this, a write would go on after the KeyboardInterrupt.
        _abandon(coroutine)
        raise


def _abandon(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Cancel a coroutine that has not ended. If it was not submitted, close it so that it never begins."""

    def cancel() -> None:
        for task in asyncio.all_tasks():
            if task.get_coro() is coroutine:
                task.cancel()
                return
        coroutine.close()

    private = _private
    # A closed loop raises RuntimeError. Its tasks have all ended.
    with contextlib.suppress(RuntimeError):
        if private is not None:
            # cancel() runs after the coroutine's submission, if it was submitted.
            private.loop.call_soon_threadsafe(cancel)
            return
    coroutine.close()


def _tells_of_exit(error: BaseException | None) -> bool:
    """Return whether an error, or an error in its chain of causes, is Python's refusal to start threads at exit."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _EXIT_TEXTS):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def iterate(generator: AsyncGenerator[T, None]) -> Iterator[T]:
    """Yield the items of an asynchronous generator. It runs on the private loop, one item at a time, on demand.

    Raises:
        BridgeError: as for ``run``.
    """
    try:
        while True:
            try:
                yield run(generator.__anext__)
            except StopAsyncIteration:
                return
    finally:
        # If the caller did not end this generator, the interpreter's exit or a garbage collection does, on any thread.
        with contextlib.suppress(BridgeError):
            run(generator.aclose)


def _running() -> _PrivateLoop:
    """Return the private loop, and start it first if needed. The caller has the lock."""
    global _private
    if _exiting:
        raise BridgeError(_EXITING)
    if _private is None:
        _private = _PrivateLoop()
    if threading.current_thread() is _private.thread:
        raise BridgeError("A synchronous method was called on the library's own event loop: await its async twin")
    return _private


def _stop_at_exit() -> None:
    # After this point Python freezes daemon threads, and a thread that waits for one waits for ever.
    global _exiting
    with _lock:
        _exiting = True
        private = _private
    if private is not None:
        private.stop()


def _forget_in_child() -> None:
    # Another thread may have held the lock at the fork. That thread does not exist here, and cannot release the lock.
    global _lock, _private
    _lock = threading.RLock()
    if _private is not None:
        # The loop's thread does not exist here either.
        keep_forever(_private)
        _private = None


atexit.register(_stop_at_exit)
after_fork_in_child(_forget_in_child)
