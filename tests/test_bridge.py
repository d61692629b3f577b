"""The synchronous face: from plain code, threads and notebooks, inside loops, over fork, Ctrl-C and exit."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Make
from engines import SDK_THREADS
from proxy import Fault, Proxy
from samples import humans, texts

from chathistory_async import BridgeError, DynamoDBChatMessageHistory
from chathistory_async._bridge import THREAD_NAME, run

PRELUDE = """
import asyncio, atexit, os, signal, sys, threading, time, warnings
from langchain_core.messages import HumanMessage
from chathistory_async import *
from chathistory_async import _bridge
from chathistory_async._bridge import run
table, session = sys.argv[1:3]
history = DynamoDBChatMessageHistory(table, session)
def bridges():
    return [thread for thread in threading.enumerate() if thread.name == _bridge.THREAD_NAME]
"""

Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True, scope="module")
def interruptible() -> Iterator[None]:
    """Whoever starts the tests in a shell's background has them ignore SIGINT, and their children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def script(table: str, session_id: str) -> Script:
    """Runs a program on the test's session, with all warnings on and those of its resources as errors."""

    def script(code: str, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
        program = textwrap.dedent(before) + PRELUDE + textwrap.dedent(code)
        return subprocess.run(
            [
                sys.executable,
                "-W",
                "always",
                "-W",
                "error::ResourceWarning",
                *options,
                "-c",
                program,
                table,
                session_id,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return script


def clean(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a program that ended well and said nothing on standard error."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_plain_code_leaves_nothing_behind(script: Script) -> None:
    assert clean(script("history.add_user_message('hi'); print(history.messages[0].content)")) == "hi\n"


def test_fifty_threads_start_one_loop(script: Script) -> None:
    code = """
    barrier = threading.Barrier(50)
    def use():
        barrier.wait()
        history.add_user_message("x")
    threads = [threading.Thread(target=use) for _ in range(50)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(len(bridges()), len(history.messages))
    """
    assert clean(script(code)) == "1 50\n"


def test_no_thread_exists_before_the_first_synchronous_call(script: Script) -> None:
    code = """
    asyncio.run(history.aget_messages())
    print(len(bridges()))
    history.messages
    print(len(bridges()), bridges()[0].daemon)
    """
    assert clean(script(code)) == "0\n1 True\n"


async def test_works_inside_a_running_loop(make: Make) -> None:
    history = make()
    history.add_messages(humans("sync"))
    await history.aadd_messages(humans("async"))
    assert texts(history.messages) == ["sync", "async"]


def test_works_in_a_notebook(script: Script) -> None:
    """A kernel runs each cell inside its running event loop, on the main thread."""
    code = """
    import code
    async def kernel():
        cells = code.InteractiveInterpreter(globals())
        cells.runsource("history.add_user_message('cell'); print(len(history.messages))", symbol="exec")
        await asyncio.sleep(0)
        await history.aget_messages()
    asyncio.run(kernel())
    """
    assert clean(script(code)) == "1\n"


async def test_context_variables_reach_the_private_loop() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("seen")

    async def read() -> str:
        return variable.get()

    assert run(read) == "seen"


async def test_a_call_on_the_private_loop_is_refused_before_a_coroutine_exists(make: Make) -> None:
    history, called = make(), []

    async def inner() -> None:
        called.append(True)

    async def nested() -> None:
        run(inner)

    async def nested_history() -> None:
        history.add_user_message("x")

    for function in (nested, nested_history):
        with pytest.raises(BridgeError, match="own event loop: await its async twin"):
            run(function)
    assert not called


async def test_a_cancelled_coroutine_is_an_error_not_none() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(BridgeError, match="cut short"):
        run(cancelled)


def test_results_and_exceptions_pass_through() -> None:
    async def double(number: int, *, plus: int) -> int:
        return 2 * number + plus

    async def fail() -> None:
        raise LookupError("as it is")

    assert run(double, 3, plus=1) == 7
    with pytest.raises(LookupError, match="as it is"):
        run(fail)


def test_what_the_call_itself_raises_passes_through_too() -> None:
    with pytest.raises(TypeError):
        run(asyncio.sleep)  # type: ignore[arg-type]


def test_an_error_is_gone_once_it_was_handled() -> None:
    class Failure(Exception):
        pass

    async def fail() -> None:
        raise Failure

    gc.disable()
    try:
        with pytest.raises(Failure) as caught:
            run(fail)
        error = weakref.ref(caught.value)
        del caught
        # The loop lets go of it before its next turn.
        run(asyncio.sleep, 0)
        assert error() is None
    finally:
        gc.enable()


def interrupt_soon() -> None:
    def interrupt() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()


def test_ctrl_c_stops_the_write_too(through: Callable[..., DynamoDBChatMessageHistory], proxy: Proxy) -> None:
    proxy.schedule = lambda seen: Fault.ERROR_500
    history = through(attempts=10)
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        history.add_messages(humans("x"))
    time.sleep(0.1)
    sent = len(proxy.seen)
    time.sleep(1)
    assert len(proxy.seen) == sent
    proxy.script()
    history.add_messages(humans("after"))
    assert texts(history.messages)[-1] == "after"


def test_ctrl_c_ends_a_program_at_once(script: Script) -> None:
    code = """
    async def forever():
        await asyncio.sleep(3600)
    history.messages
    def interrupt():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        run(forever)
    except KeyboardInterrupt:
        print("interrupted")
    """
    assert clean(script(code)) == "interrupted\n"


class TestExit:
    def test_calls_at_exit_still_work_until_the_bridge_has_stopped(self, script: Script) -> None:
        code = "history.messages; atexit.register(lambda: print(len(history.messages)))"
        assert clean(script(code)) == "0\n"

    def test_later_calls_are_refused_instead_of_waiting_for_ever(self, script: Script) -> None:
        # What is registered before the import runs after the bridge's own handler.
        before = """
        import atexit
        @atexit.register
        def late():
            try:
                history.messages
            except BridgeError as error:
                print(error)
        """
        for code in ("", "history.messages"):
            assert "The interpreter is exiting" in clean(script(code, before=before))

    def test_a_destructor_at_shutdown_does_not_hang(self, script: Script) -> None:
        code = """
        class Late:
            def __del__(self):
                try:
                    history.messages
                except BridgeError:
                    os.write(1, b"refused")
        history.messages
        sys.modules["keeps_it_alive_until_shutdown"] = Late()
        """
        assert script(code).stdout == "refused"

    def test_a_call_in_a_daemon_thread_is_cut_short(self, script: Script) -> None:
        # After the bridge's own handler, or Python might freeze the thread before it can tell.
        before = """
        import atexit
        @atexit.register
        def wait():
            thread.join(30)
        """
        code = """
        async def forever():
            await asyncio.sleep(3600)
        def call():
            try:
                run(forever)
            except BridgeError as error:
                os.write(1, str(error).encode())
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        time.sleep(0.3)
        """
        assert "cut short" in clean(script(code, before=before))

    def test_within_seconds_whatever_runs(self, script: Script) -> None:
        code = """
        async def stubborn():
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass
        threading.Thread(target=run, args=(stubborn,), daemon=True).start()
        time.sleep(0.3)
        print("end")
        """
        assert script(code).stdout == "end\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
class TestFork:
    def test_parent_and_child_both_go_on(self, script: Script) -> None:
        code = """
        history.add_user_message("before")
        child = os.fork()
        if not child:
            history.add_user_message("child")
            sys.exit(0 if len(bridges()) == 1 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        history.add_user_message("parent")
        print([message.content for message in history.messages])
        """
        expected = "0\n['before', 'child', 'parent']\n"
        assert clean(script(code, "-W", "ignore::DeprecationWarning")) == expected

    # sys.exit() unwinds the inherited asyncio.run(), which waits for ever for executor threads that the fork left out.
    @pytest.mark.parametrize("end", ["os._exit(0)"] + ["sys.exit(0)"] * (not SDK_THREADS))
    def test_a_child_that_ends_does_not_stall_the_parents_connections(self, script: Script, end: str) -> None:
        code = """
        store = ChatHistoryStore(table, layout="single_item")
        async def main():
            other = store.session(session)
            await asyncio.gather(*(other.aget_messages() for _ in range(20)))
            history.messages
            for _ in range(3):
                child = os.fork()
                if not child:
                    history.messages
                    thread = threading.Thread(target=lambda: asyncio.run(store.session("child").aget_messages()))
                    thread.start()
                    thread.join()
                    END
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                await asyncio.wait_for(asyncio.gather(*(other.aget_messages() for _ in range(20))), 5)
                history.messages
        asyncio.run(main())
        """
        done = script(code.replace("END", end), "-W", "ignore::DeprecationWarning")
        assert clean(done) == "0\n0\n0\n"

    def test_a_lock_held_at_the_fork_does_not_hang_the_child(self, script: Script) -> None:
        code = """
        from chathistory_async import _clients
        history.messages
        clients = history._shared_clients
        held = [_bridge._lock, _clients._shared_lock, clients._lock]
        [lock.acquire() for lock in held]
        child = os.fork()
        if not child:
            signal.alarm(20)
            DynamoDBChatMessageHistory(table, session).messages
            asyncio.run(history.aget_messages())
            os._exit(0)
        [lock.release() for lock in held]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
        assert clean(script(code, "-W", "ignore::DeprecationWarning")) == "0\n"

    def test_a_forked_worker_of_multiprocessing_can_write(self, script: Script) -> None:
        code = """
        import multiprocessing
        history.add_user_message("parent")
        worker = multiprocessing.get_context("fork").Process(target=history.add_user_message, args=("worker",))
        worker.start()
        worker.join()
        print(worker.exitcode, [message.content for message in history.messages])
        """
        assert clean(script(code, "-W", "ignore::DeprecationWarning")) == "0 ['parent', 'worker']\n"


def test_the_thread_is_named() -> None:
    async def name() -> Any:
        return threading.current_thread().name

    assert run(name) == THREAD_NAME == "chathistory_async"
