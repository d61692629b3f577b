"""The synchronous methods: from plain code, threads and notebooks, inside loops, over fork, Ctrl-C and exit."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib.util
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
from chathistory_async._sync import bridge
from chathistory_async._sync.bridge import THREAD_NAME, iterate, run

PRELUDE = """
import asyncio, atexit, os, signal, sys, threading, time, warnings
from langchain_core.messages import HumanMessage
from chathistory_async import *
from chathistory_async._sync import bridge
from chathistory_async._sync.bridge import run
table, session = sys.argv[1:3]
history = DynamoDBChatMessageHistory(table, session)
def bridges():
    return [thread for thread in threading.enumerate() if thread.name == bridge.THREAD_NAME]
"""

Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True, scope="module")
def interruptible() -> Iterator[None]:
    """Handles SIGINT. Tests that run in a shell's background ignore it, and so do their children."""
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


def test_a_result_is_gone_once_nobody_holds_it() -> None:
    class Result:
        pass

    async def give() -> Result:
        return Result()

    gc.disable()
    try:
        result = weakref.ref(run(give))
        run(asyncio.sleep, 0)
        assert result() is None
    finally:
        gc.enable()


@pytest.fixture(params=["in one wait", "in short waits, as on Windows"])
def waits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "in one wait":
        monkeypatch.setattr(bridge, "_WAIT_SECONDS", 0.001)


@pytest.mark.usefixtures("waits")
class TestWaiting:
    def test_ends_with_the_call(self) -> None:
        async def slow(error: Exception | None) -> str:
            await asyncio.sleep(0.02)
            if error is not None:
                raise error
            return "result"

        assert run(slow, None) == "result"
        # A wait that has taken too long raises the same class.
        with pytest.raises(asyncio.TimeoutError, match="its own"):
            run(slow, asyncio.TimeoutError("its own"))

    def test_ends_with_the_generator(self) -> None:
        async def numbers() -> Any:
            for number in range(3):
                await asyncio.sleep(0.005)
                yield number

        assert list(iterate(numbers())) == [0, 1, 2]

    def test_ends_with_ctrl_c(self) -> None:
        async def forever() -> None:
            await asyncio.sleep(3600)

        interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            run(forever)
        assert run(others_on_the_private_loop) == 0


def test_on_windows_no_wait_is_without_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bridge.__file__ is not None
    spec = importlib.util.spec_from_file_location("chathistory_async._sync.bridge_on_windows", bridge.__file__)
    assert spec is not None
    assert spec.loader is not None
    on_windows = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as context:
        context.setattr(sys, "platform", "win32")
        spec.loader.exec_module(on_windows)
    assert 0 < on_windows._WAIT_SECONDS <= 0.2


def test_a_garbage_collection_amid_a_call_may_end_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    async def numbers() -> Any:
        try:
            yield 1
        finally:
            ended.append(True)

    class Cycle:
        def __init__(self) -> None:
            self.itself, self.iterator = self, iterate(numbers())
            next(self.iterator)

    async def call() -> str:
        return "result"

    running = bridge._running

    def collecting() -> Any:
        gc.collect()
        return running()

    Cycle()
    assert not ended
    monkeypatch.setattr(bridge, "_running", collecting)
    assert run(call) == "result"
    assert ended


async def others_on_the_private_loop() -> int:
    # A cancellation takes a turn to be asked for, one to arrive and one to be told.
    for _ in range(3):
        await asyncio.sleep(0)
    return len(asyncio.all_tasks()) - 1


def interrupted_at(step: int, ended: list[bool]) -> bool:
    """Make a call that Ctrl-C meets at one of the steps on its way, and tell whether it did.

    Args:
        step: which of the moments at which Python looks for signals: when a function begins, and when it has ended.
        ended: what the call adds to when it has ended by itself.
    """
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event != "c_call"
        if event != "c_call" and steps == step and not ended:
            raise KeyboardInterrupt

    async def call() -> None:
        await asyncio.sleep(0.03)
        ended.append(True)

    sys.setprofile(count)
    try:
        run(call)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


# An interrupt between making a coroutine and submitting it causes the warning.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_ctrl_c_at_any_step_of_a_call_leaves_nothing_that_runs() -> None:
    run(asyncio.sleep, 0)
    for step in range(1, 1000):
        ended: list[bool] = []
        if not interrupted_at(step, ended):
            break
        assert run(others_on_the_private_loop) == 0, step
        assert not ended
    assert ended
    assert step > 20


def test_ctrl_c_while_the_thread_starts_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    monkeypatch.setattr(bridge, "_private", None)
    with monkeypatch.context() as context:
        context.setattr(threading, "Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(asyncio.sleep, 0)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def interrupt_soon() -> None:
    def interrupt() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()


@pytest.mark.posix
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


@pytest.mark.posix
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
        # A handler that is registered before the import runs after the bridge's own handler.
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
        running = threading.Event()
        async def forever():
            running.set()
            await asyncio.sleep(3600)
        def call():
            try:
                run(forever)
            except BridgeError as error:
                os.write(1, str(error).encode())
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        running.wait()
        """
        assert "cut short" in clean(script(code, before=before))

    def test_a_call_that_is_submitted_meanwhile_is_cut_short_too(self, script: Script) -> None:
        before = """
        import atexit
        @atexit.register
        def wait():
            thread.join(30)
        """
        code = """
        history.messages
        submit, submitting = asyncio.run_coroutine_threadsafe, threading.Event()
        def slowly(coroutine, loop):
            if threading.current_thread() is thread:
                submitting.set()
                time.sleep(0.5)
            return submit(coroutine, loop)
        asyncio.run_coroutine_threadsafe = slowly
        async def forever():
            await asyncio.sleep(3600)
        def call():
            try:
                run(forever)
            except BaseException as error:
                os.write(1, repr(error).encode())
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        submitting.wait()
        """
        output = clean(script(code, before=before))
        assert "BridgeError" in output
        assert "cut short" in output

    def test_a_call_that_needs_a_thread_is_refused(self, script: Script) -> None:
        """The call is a pool worker's. The interpreter waits for it after it has stopped all starting of threads."""
        code = """
        import boto3, concurrent.futures
        with_thread = DynamoDBChatMessageHistory(table, session, boto3_session=boto3.Session())
        # With a host name, which asyncio looks up in a thread.
        elsewhere = DynamoDBChatMessageHistory(table, session, "http://localhost:1")
        def call():
            while not concurrent.futures.thread._shutdown:
                time.sleep(0.01)
            for history in (with_thread, elsewhere):
                try:
                    history.messages
                except BridgeError as error:
                    print(error)
        history.messages
        concurrent.futures.ThreadPoolExecutor(1).submit(call)
        """
        assert clean(script(code)).count("The interpreter is exiting") == 2

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


@pytest.mark.posix
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
        from chathistory_async._aws import clients as client_module
        history.messages
        clients = history._spec.settings.clients
        held = [bridge._lock, client_module._shared_lock, clients._lock]
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

    def test_a_first_call_at_the_fork_does_not_hang_the_child(self, script: Script) -> None:
        code = """
        from chathistory_async._aws import clients as client_module
        history.messages
        longest, at_it, forked = client_module.longest_call_seconds, threading.Event(), threading.Event()
        def held_up(config):
            at_it.set()
            forked.wait()
            return longest(config)
        client_module.longest_call_seconds = held_up
        other = DynamoDBChatMessageHistory(table, session, fast_path=False)
        first_call = threading.Thread(target=lambda: asyncio.run(other.aget_messages()))
        first_call.start()
        at_it.wait()
        child = os.fork()
        if not child:
            signal.alarm(20)
            forked.set()
            asyncio.run(DynamoDBChatMessageHistory(table, session, region_name="us-east-1").aget_messages())
            os._exit(0)
        forked.set()
        first_call.join()
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
