"""Sessions of the OpenAI Agents SDK: its protocol, its runner, and what a session of ours promises beyond them."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import pytest
from agents import (
    Agent,
    MaxTurnsExceeded,
    RunConfig,
    RunContextWrapper,
    Runner,
    RunState,
    SessionSettings,
    function_tool,
    set_tracing_disabled,
)
from agents.memory import Session
from agents.testing import ScriptedModel, assistant_message, function_call
from conftest import NewStore
from engines import SDK_THREADS
from pages import of_page
from proxy import Fault, Proxy, retries

from chathistory_async import (
    AccessDeniedError,
    ChatHistoryStore,
    ClosedError,
    EndpointError,
    FormatError,
    ItemTooLargeError,
    LayoutError,
    MessageNotStorableError,
    TableNotFoundError,
    UndecodableItemError,
)
from chathistory_async.integrations.openai_agents import FORMAT, DynamoDBSession

METHODS = ["get_items", "add_items", "pop_item", "clear_session"]
WRITES = {"PutItem", "TransactWriteItems", "UpdateItem", "BatchWriteItem"}


@pytest.fixture(scope="module", autouse=True)
def untraced() -> Iterator[None]:
    """Without this, the SDK exports each run to OpenAI, from a thread."""
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


def user(text: object) -> Any:
    return {"role": "user", "content": text}


def users(*numbers: int) -> list[Any]:
    return [user(str(number)) for number in numbers]


def texts(items: Any) -> list[str]:
    """The texts of all speakers, and the kinds of the other items."""
    said = []
    for item in items:
        content = item.get("content")
        said.append(item["type"] if content is None else content if isinstance(content, str) else content[0]["text"])
    return said


# The encrypted sessions are in the index too.
STORAGES: list[Any] = ["plain", "encrypted"]
LONG_STORAGES = [pytest.param(kind, marks=pytest.mark.stress) for kind in ("indexed", "sdk")]

PLAIN_FIRST = pytest.mark.parametrize(
    "storage", ["plain", pytest.param("encrypted", marks=pytest.mark.stress), *LONG_STORAGES], indirect=True
)


@pytest.fixture(params=STORAGES + LONG_STORAGES)
def storage(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The options of a store for sessions of this kind."""
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": dict,
        "encrypted": lambda: {"kms_key_id": request.getfixturevalue("kms_key"), "session_index": True},
        "indexed": lambda: {"session_index": True},
        "sdk": lambda: {"fast_path": False},
    }
    return kinds[request.param]()


class Open(Protocol):
    def __call__(self, **options: Any) -> DynamoDBSession: ...


@pytest.fixture
async def stores(collection_table: str) -> AsyncIterator[NewStore]:
    """Makes stores, with an index or without."""
    made: list[ChatHistoryStore] = []

    def new_store(**options: Any) -> ChatHistoryStore:
        made.append(ChatHistoryStore(collection_table, **options))
        return made[-1]

    yield new_store
    for store in made:
        await store.aclose()


@pytest.fixture
def open_session(stores: NewStore, session_id: str, storage: dict[str, Any]) -> Open:
    """Opens the test's own session, in a store of its own each time."""

    def open_session(**options: Any) -> DynamoDBSession:
        return DynamoDBSession(session_id, stores(**(storage | options)))

    return open_session


@pytest.fixture
def session(stores: NewStore, session_id: str) -> DynamoDBSession:
    return DynamoDBSession(session_id, stores())


@pytest.fixture
def through(stores: NewStore, session_id: str, proxy: Proxy) -> Open:
    """Opens it through the proxy, with few retries."""

    def through(**options: Any) -> DynamoDBSession:
        config = retries()
        return DynamoDBSession(session_id, stores(endpoint_url=proxy.url, config=config, **options))

    return through


class TestProtocol:
    def test_is_that_of_the_sdk(self, session: DynamoDBSession, session_id: str) -> None:
        typed: Session = session
        assert isinstance(typed, Session)
        assert (typed.session_id, typed.session_settings) == (session_id, SessionSettings())

    @pytest.mark.parametrize("method", METHODS)
    def test_each_method_names_the_wrapper(self, method: str) -> None:
        parameter = inspect.signature(getattr(DynamoDBSession, method)).parameters["wrapper"]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY

    async def test_the_wrapper_has_no_effect(self, session: DynamoDBSession) -> None:
        wrapper = RunContextWrapper(context=None)
        await session.add_items(users(1, 2), wrapper=wrapper)
        assert await session.get_items(wrapper=wrapper) == users(1, 2)
        assert await session.pop_item(wrapper=wrapper) == user("2")
        await session.clear_session(wrapper=wrapper)
        assert await session.get_items() == []

    async def test_items_come_back_equal(self, open_session: Open) -> None:
        items: list[Any] = [
            user("hi 👩🏽‍🚀 \ud800"),
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x", "logprobs": []}]},
            {"type": "function_call", "name": "f", "arguments": '{"a": 1}', "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "e" * 9000, "status": None},
            {"type": "x", "$bytes": 2**70, "nested": [1.0, 1, True, None, {"$set": []}, 1e300]},
        ]
        await open_session().add_items(items[:2])
        await open_session().add_items(items[2:])
        back: list[Any] = await open_session().get_items()
        assert back == items
        assert [type(value) for value in back[-1]["nested"]] == [float, int, bool, type(None), dict, float]

    async def test_pop_returns_the_exact_items_in_reverse(self, open_session: Open) -> None:
        await open_session().add_items(users(1, 2, 3))
        await open_session().add_items([user("4")])
        popped = [await open_session().pop_item() for _ in range(5)]
        assert popped == [*reversed(users(1, 2, 3, 4)), None]

    async def test_clear_deletes_all_and_a_session_begins_again(self, open_session: Open) -> None:
        await open_session().clear_session()
        await open_session().add_items(users(1, 2))
        await open_session().clear_session()
        assert (await open_session().get_items(), await open_session().pop_item()) == ([], None)
        await open_session().add_items(users(3))
        assert await open_session().get_items() == users(3)

    async def test_shows_no_content(self, session: DynamoDBSession, session_id: str) -> None:
        await session.add_items([user("secret")])
        assert repr(session).startswith("<DynamoDBSession of <JsonSession table ")
        assert session_id in repr(session)
        assert "secret" not in repr(session) + str(vars(session))


class TestLimits:
    @pytest.mark.parametrize(
        ("settings", "limit", "numbers"),
        [
            (None, None, [1, 2, 3, 4, 5]),
            (None, 2, [4, 5]),
            (None, 9, [1, 2, 3, 4, 5]),
            (None, 0, []),
            (None, -1, []),
            (SessionSettings(limit=3), None, [3, 4, 5]),
            ({"limit": 3}, None, [3, 4, 5]),
            ({"limit": 3}, 1, [5]),
            ({"limit": 3}, 4, [2, 3, 4, 5]),
            ({"limit": 3}, 0, []),
            ({"limit": 0}, None, []),
            ({"limit": 0}, 2, [4, 5]),
            ({"limit": None}, None, [1, 2, 3, 4, 5]),
        ],
    )
    async def test_are_those_of_the_sdk(
        self, stores: NewStore, session_id: str, settings: Any, limit: int | None, numbers: list[int]
    ) -> None:
        session = DynamoDBSession(session_id, stores(), session_settings=settings)
        await session.add_items(users(1, 2))
        await session.add_items(users(3, 4, 5))
        assert await session.get_items(limit) == users(*numbers)

    def test_of_other_names_are_refused(self, stores: NewStore) -> None:
        with pytest.raises(TypeError, match="limitt"):
            DynamoDBSession("s", stores(), session_settings={"limitt": 1})

    async def test_of_a_run_leave_no_output_without_its_call(self, stores: NewStore, session_id: str) -> None:
        session = DynamoDBSession(session_id, stores(), session_settings={"limit": 2})
        await Runner.run(an_agent([calls("look"), says("It rains.")]), "Weather?", session=session)
        agent = an_agent([says("Again")])
        await Runner.run(agent, "And now?", session=session)
        assert texts(model_of(agent).calls[0].input) == ["It rains.", "And now?"]


class TestAppend:
    async def test_is_one_request_at_any_count(self, through: Open, session: DynamoDBSession, proxy: Proxy) -> None:
        await through().get_items()
        proxy.seen.clear()
        await through().add_items(users(*range(2000)))
        assert [operation for operation in proxy.operations() if operation in WRITES] == ["PutItem"]
        assert await session.get_items() == users(*range(2000))

    async def test_of_nothing_sends_nothing(self, through: Open, proxy: Proxy) -> None:
        await through().add_items([])
        assert proxy.seen == []

    async def test_of_what_cannot_be_stored_stores_nothing(self, open_session: Open) -> None:
        with pytest.raises(MessageNotStorableError, match=r"values\[1\]\.content cannot be stored"):
            await open_session().add_items([user("fine"), user(object())])
        with pytest.raises(ItemTooLargeError):
            await open_session().add_items([user("fine"), user(os.urandom(4_000_000).hex())])
        assert await open_session().get_items() == []

    async def test_larger_than_an_item_is_whole_or_not_there(
        self, through: Open, session: DynamoDBSession, proxy: Proxy
    ) -> None:
        large = [user(os.urandom(150_000).hex()) for _ in range(8)]
        await session.add_items(users(1))
        proxy.script(*[Fault.RESET] * 9, operation="TransactWriteItems")
        with pytest.raises(EndpointError):
            await through().add_items(large)
        assert await session.get_items() == users(1)
        proxy.script(Fault.LOST_RESPONSE, operation="TransactWriteItems")
        await through().add_items(large)
        assert await session.get_items() == [*users(1), *large]

    @pytest.mark.parametrize("fault", [Fault.LOST_RESPONSE, Fault.LATE_ERROR, Fault.RESET, Fault.ERROR_500])
    @pytest.mark.parametrize("indexed", [True, pytest.param(False, marks=pytest.mark.stress)])
    async def test_and_pop_happen_once_under_faults(
        self, through: Open, session: DynamoDBSession, proxy: Proxy, fault: Fault, indexed: bool
    ) -> None:
        mine = through(session_index=indexed)
        for number in (1, 2):
            proxy.script(fault, operation="TransactWriteItems" if indexed else "PutItem")
            await mine.add_items(users(number, number))
        proxy.script(fault, operation="TransactWriteItems" if indexed else "UpdateItem")
        assert await mine.pop_item() == user("2")
        assert await session.get_items() == users(1, 1, 2)


class TestConcurrency:
    @PLAIN_FIRST
    async def test_twenty_poppers_get_distinct_items(self, open_session: Open) -> None:
        await open_session().add_items(users(*range(15)))
        await open_session().add_items(users(*range(15, 20)))
        popped = await asyncio.gather(*(open_session().pop_item() for _ in range(20)))
        assert sorted(popped, key=str) == sorted(users(*range(20)), key=str)
        assert await open_session().get_items() == []

    async def test_more_poppers_than_items_get_none(self, session: DynamoDBSession) -> None:
        await session.add_items(users(1, 2, 3))
        popped = await asyncio.gather(*(session.pop_item() for _ in range(10)))
        assert sorted(popped, key=str) == sorted([*users(1, 2, 3), *[None] * 7], key=str)

    @PLAIN_FIRST
    async def test_writers_of_one_session_lose_nothing_and_keep_batches_together(self, open_session: Open) -> None:
        mine = open_session()
        await asyncio.gather(*(mine.add_items(users(number, -number)) for number in range(1, 21)))
        items = await mine.get_items()
        assert len(items) == 40
        assert all(items[at : at + 2] == users(number := int(texts(items)[at]), -number) for at in range(0, 40, 2))

    @pytest.mark.parametrize("number", [10, pytest.param(100, marks=pytest.mark.stress)])
    async def test_sessions_run_on_one_store(self, stores: NewStore, session_id: str, number: int) -> None:
        store = stores(session_index=True)
        await store.json_session(session_id).aget()
        others = set(threading.enumerate())

        async def converse(at: int) -> None:
            session = DynamoDBSession(f"{session_id}-{at}", store, owner=session_id)
            await Runner.run(an_agent([says(f"Hi {at}")]), f"Hello {at}", session=session)
            assert texts(await session.get_items()) == [f"Hello {at}", f"Hi {at}"]

        await asyncio.gather(*map(converse, range(number)))
        assert {thread.name for thread in set(threading.enumerate()) - others} <= SDK_THREADS
        page = await store.list_sessions(session_id, 200, format=FORMAT)
        assert [session.message_count for session in page.sessions] == [2] * number

    async def test_long_sessions_do_not_hold_the_loop(
        self,
        open_session: Open,
        long_steps: list[str],
    ) -> None:
        items = [*users(*range(1000)), *[user("a word or two " * 3000)] * 100]
        session = open_session()
        await session.get_items()
        long_steps.clear()
        await session.add_items(items)
        for _ in range(4):
            assert len(await session.get_items()) == len(items)
        assert long_steps == []


async def cancelled_after(steps: int, call: Any, times: int = 1) -> bool:
    """Cancel a call after some steps of the loop, again at each further step, and tell whether it was cancelled."""
    task = asyncio.create_task(call)
    for _ in range(steps):
        await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


class TestCancellation:
    @pytest.mark.parametrize("indexed", [False, pytest.param(True, marks=pytest.mark.stress)])
    async def test_is_raised_when_the_outcome_of_a_write_is_settled(
        self, through: Open, session: DynamoDBSession, proxy: Proxy, indexed: bool
    ) -> None:
        mine = through(session_index=indexed)
        await mine.get_items()
        proxy.schedule = lambda seen: Fault.DELAY
        stored = 0
        for steps in [*range(1, 30, 2), 50, 100, 500]:
            await cancelled_after(steps, mine.add_items(users(1, 2, 3)), times=1 + steps % 3)
            stored += 3
            assert len(await session.get_items()) == stored

    async def test_before_the_first_step_writes_nothing(self, session: DynamoDBSession) -> None:
        assert await cancelled_after(0, session.add_items(users(1)))
        assert await session.get_items() == []

    async def test_of_pop_and_clear_waits_too(self, through: Open, session: DynamoDBSession, proxy: Proxy) -> None:
        mine = through()
        await session.add_items(users(*range(20)))
        proxy.schedule = lambda seen: Fault.DELAY
        for popped in range(1, 16):
            assert await cancelled_after(popped * 3, mine.pop_item())
            assert len(await session.get_items()) == 20 - popped
        assert await cancelled_after(3, mine.clear_session(), times=3)
        assert await session.get_items() == []

    async def test_has_a_failure_of_the_write_as_its_cause(
        self, through: Open, session: DynamoDBSession, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        mine = through()
        await mine.get_items()
        proxy.schedule = lambda seen: Fault.DENIED

        async def cause() -> BaseException | None:
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await mine.add_items(users(1))
            return cancelled.value.__cause__

        writing = asyncio.create_task(cause())
        for _ in range(2):
            await asyncio.sleep(0)
        writing.cancel()
        with caplog.at_level(logging.ERROR, "asyncio"):
            assert isinstance(await writing, AccessDeniedError)
        # asyncio logs an error that nobody has retrieved.
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
        assert await session.get_items() == []

    async def test_of_all_tasks_ends_the_write_too(self, through: Open, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.DELAY
        mine = through()
        before = asyncio.all_tasks()
        task = asyncio.create_task(mine.add_items(users(1)))
        for _ in range(3):
            await asyncio.sleep(0)
        # As asyncio.run does at Ctrl-C.
        for one in asyncio.all_tasks() - before:
            one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestErrors:
    async def test_of_the_library_reach_the_caller_unchanged(self, through: Open, proxy: Proxy) -> None:
        for error, mine in [
            (TableNotFoundError, DynamoDBSession("s", ChatHistoryStore("no-such-table"))),
            (AccessDeniedError, through()),
        ]:
            proxy.schedule = lambda seen: Fault.DENIED
            for attempt in (mine.get_items(), mine.add_items(users(1)), mine.pop_item(), mine.clear_session()):
                with pytest.raises(error):
                    await attempt
            with pytest.raises(error):
                await Runner.run(an_agent([says("Hi")]), "Hello", session=mine)
            with pytest.raises(error):
                await consumed(Runner.run_streamed(an_agent([says("Hi")]), "Hello", session=mine))

    async def test_after_the_store_is_closed(self, stores: NewStore, session_id: str) -> None:
        store = stores()
        session = DynamoDBSession(session_id, store)
        await session.add_items(users(1))
        await store.aclose()
        for attempt in (session.get_items(), session.add_items(users(1)), session.pop_item(), session.clear_session()):
            with pytest.raises(ClosedError):
                await attempt

    async def test_a_session_of_another_format_is_refused(self, stores: NewStore, session_id: str) -> None:
        store = stores()
        await store.json_session(session_id, format="other").aadd([1])
        with pytest.raises(FormatError, match="format='other'"):
            await DynamoDBSession(session_id, store).get_items()

    async def test_a_damaged_item_is_not_skipped(
        self, session: DynamoDBSession, dynamodb: Any, items_in: Any, collection_table: str
    ) -> None:
        await session.add_items(users(1))
        await session.add_items(users(2))
        *_, last = [item for item in items_in(collection_table) if item["MessageId"]["S"].startswith("m#")]
        dynamodb.put_item(TableName=collection_table, Item=last | {"History": {"S": '{"role": '}})
        for limit in (None, 1):
            with pytest.raises(UndecodableItemError):
                await session.get_items(limit)

    def test_a_session_needs_an_item_collection_and_an_index_for_owners(self, stores: NewStore, table: str) -> None:
        with pytest.raises(LayoutError):
            DynamoDBSession("s", ChatHistoryStore(table, layout="single_item"))
        with pytest.raises(ValueError, match="owner needs"):
            DynamoDBSession("s", stores(), owner="alice")

    async def test_a_tenants_session_takes_its_whole_key(self, stores: NewStore, session_id: str) -> None:
        store = stores(key_parts=2)
        with pytest.raises(ValueError, match="tuple"):
            DynamoDBSession(session_id, store)
        key = {"SessionId": ("acme#1", session_id)}
        await DynamoDBSession(session_id, store, key=key).add_items(users(1))
        assert await DynamoDBSession(session_id, store, key=key).get_items() == users(1)
        other = DynamoDBSession(session_id, store, key={"SessionId": ("acme", f"1#{session_id}")})
        assert await other.get_items() == []


# The SDK calls tools that are not asynchronous in a thread.
@function_tool
async def look() -> str:
    """Look out of the window."""
    return "rain"


@function_tool(failure_error_function=None)
async def stumble() -> str:
    """Fail."""
    raise RuntimeError("stumbled")


@function_tool(needs_approval=True)
async def leave() -> str:
    """Leave the house."""
    return "left"


def says(text: str) -> Any:
    return [assistant_message(text)]


def calls(*names: str) -> Any:
    return [function_call(name, {}, call_id=f"call-{number}-{name}") for number, name in enumerate(names)]


def an_agent(script: list[Any], **options: Any) -> Agent[Any]:
    return Agent(name="Scripted", model=ScriptedModel(script), tools=[look, stumble, leave], **options)


def model_of(agent: Agent[Any]) -> ScriptedModel:
    assert isinstance(agent.model, ScriptedModel)
    return agent.model


async def consumed(streaming: Any) -> Any:
    async for _ in streaming.stream_events():
        pass
    return streaming


@pytest.fixture(params=["run", "run_streamed"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs an agent, at once or streamed."""

    async def run(agent: Agent[Any], input: Any, **options: Any) -> Any:
        if request.param == "run":
            return await Runner.run(agent, input, **options)
        return await consumed(Runner.run_streamed(agent, input, **options))

    return run


@pytest.mark.sampled
class TestRuns:
    async def test_continue_the_conversation(self, open_session: Open, run: Any) -> None:
        agent = an_agent([says("Hi"), says("Alice")])
        await run(agent, "I am Alice.", session=open_session())
        result = await run(agent, "Who am I?", session=open_session())
        assert result.final_output == "Alice"
        assert texts(model_of(agent).calls[1].input) == ["I am Alice.", "Hi", "Who am I?"]
        assert texts(await open_session().get_items()) == ["I am Alice.", "Hi", "Who am I?", "Alice"]

    async def test_store_parallel_calls_and_their_outputs(self, session: DynamoDBSession, run: Any) -> None:
        await run(an_agent([calls("look", "look"), says("Rain")]), "Weather?", session=session)
        kinds = ["function_call"] * 2 + ["function_call_output"] * 2
        assert texts(await session.get_items()) == ["Weather?", *kinds, "Rain"]

    async def test_that_fail_in_a_tool_leave_no_call_without_output(self, session: DynamoDBSession, run: Any) -> None:
        with pytest.raises(Exception, match="stumbled"):
            await run(an_agent([calls("stumble")]), "Go", session=session)
        agent = an_agent([says("Sorry")])
        await run(agent, "Again", session=session)
        [call] = model_of(agent).calls
        assert isinstance(call.input, list)
        called = {item["call_id"] for item in call.input if item.get("type") == "function_call"}
        answered = {item["call_id"] for item in call.input if item.get("type") == "function_call_output"}
        assert called == answered

    async def test_that_fail_in_the_model_can_be_made_again(self, session: DynamoDBSession, run: Any) -> None:
        with pytest.raises(RuntimeError, match="overloaded"):
            await run(an_agent([RuntimeError("overloaded")]), "Hello", session=session)
        await run(an_agent([says("Hi")]), "Hello", session=session)
        assert texts(await session.get_items()) == ["Hello", "Hello", "Hi"]

    async def test_that_reach_their_last_turn_keep_what_happened(self, session: DynamoDBSession, run: Any) -> None:
        with pytest.raises(MaxTurnsExceeded):
            await run(an_agent([calls("look"), calls("look")]), "Weather?", session=session, max_turns=1)
        assert texts(await session.get_items()) == ["Weather?", "function_call", "function_call_output"]

    @PLAIN_FIRST
    @pytest.mark.parametrize("approved", [True, False])
    async def test_wait_for_approval_and_are_resumed_elsewhere(
        self, open_session: Open, run: Any, approved: bool
    ) -> None:
        paused = await run(an_agent([calls("leave")]), "Leave!", session=open_session())
        assert len(paused.interruptions) == 1
        assert texts(await open_session().get_items()) == ["Leave!", "function_call"]
        text = paused.to_state().to_string()
        # Another process has the text of the state and the session's id.
        agent = an_agent([says("Done")])
        state = await RunState.from_string(agent, text)
        [interruption] = state.get_interruptions()
        (state.approve if approved else state.reject)(interruption)
        result = await run(agent, state, session=open_session())
        assert result.final_output == "Done"
        items: list[Any] = await open_session().get_items()
        assert texts(items) == ["Leave!", "function_call", "function_call_output", "Done"]
        assert (items[2]["output"] == "left") is approved

    async def test_hand_off_within_one_session(self, session: DynamoDBSession, run: Any) -> None:
        second = Agent[Any](name="Second", model=ScriptedModel([says("Bonjour"), says("Merci")]))
        first = an_agent([calls("transfer_to_second"), says("Welcome back")], handoffs=[second])
        result = await run(first, "French, please", session=session)
        assert result.last_agent is second
        stored = ["French, please", "function_call", "function_call_output", "Bonjour"]
        assert texts(await session.get_items()) == stored
        await run(second, "Thanks", session=session)
        await run(first, "Back", session=session)
        assert texts(model_of(first).calls[-1].input) == [*stored, "Thanks", "Merci", "Back"]

    async def test_combine_history_and_input_by_a_callback(self, session: DynamoDBSession, run: Any) -> None:
        await session.add_items(users(1, 2, 3))
        agent = an_agent([says("Hi")])
        config = RunConfig(session_input_callback=lambda history, new: history[-1:] + new)
        await run(agent, [user("4")], session=session, run_config=config)
        assert texts(model_of(agent).calls[0].input) == ["3", "4"]
        assert texts(await session.get_items()) == ["1", "2", "3", "4", "Hi"]

    async def test_of_one_session_at_once_are_all_stored(self, session: DynamoDBSession, run: Any) -> None:
        agents = [an_agent([calls("look"), says(f"Rain {number}")]) for number in range(6)]
        await asyncio.gather(*(run(agent, f"Hello {number}", session=session) for number, agent in enumerate(agents)))
        said = texts(await session.get_items())
        assert len(said) == 24
        for number in range(6):
            assert said.index(f"Hello {number}") < said.index(f"Rain {number}")

    async def test_cost_a_read_and_two_writes(self, through: Open, proxy: Proxy, run: Any) -> None:
        session = through()
        await session.get_items()
        proxy.seen.clear()
        await run(an_agent([says("Hi")]), "Hello", session=session)
        assert proxy.operations() == ["Query", "PutItem", "PutItem"]

    async def test_lose_and_double_nothing_on_a_bad_network(
        self, through: Open, session: DynamoDBSession, proxy: Proxy, run: Any
    ) -> None:
        faults = [Fault.LOST_RESPONSE, Fault.NONE, Fault.LATE_ERROR, Fault.RESET]
        proxy.schedule = lambda seen: faults[len(proxy.seen) % len(faults)]
        mine = through()
        for number in range(3):
            await run(an_agent([calls("look"), says(f"Rain {number}")]), f"Hello {number}", session=mine)
        turns = [[f"Hello {n}", "function_call", "function_call_output", f"Rain {n}"] for n in range(3)]
        assert texts(await session.get_items()) == [text for turn in turns for text in turn]


class TestSessionIndex:
    async def test_lists_counts_titles_and_purges(self, new_store: NewStore, owner: str, session_id: str) -> None:
        store = new_store()
        for number in (1, 2):
            session = DynamoDBSession(f"{session_id}-{number}", store, owner=owner)
            await Runner.run(an_agent([says("Hi")]), "Hello", session=session)
        await store.set_title(f"{session_id}-1", "Greetings")
        await store.session(f"{session_id}-3", owner=owner).aadd_messages([])
        page = await store.list_sessions(owner, format=FORMAT)
        assert {(str(one.session_id)[-1], one.title, one.message_count, one.format) for one in page.sessions} == {
            ("1", "Greetings", 2, "openai-agents"),
            ("2", None, 2, "openai-agents"),
        }
        assert (await store.purge_owner(owner)).sessions == 2
        assert await DynamoDBSession(f"{session_id}-1", store).get_items() == []

    async def test_keeps_title_and_owner_of_a_cleared_session(
        self, new_store: NewStore, owner: str, session_id: str
    ) -> None:
        store = new_store()
        session = DynamoDBSession(session_id, store, owner=owner)
        await session.add_items(users(1))
        await store.set_title(session_id, "Kept")
        await session.clear_session()
        await DynamoDBSession(session_id, store).add_items(users(2, 3))
        info = await store.get_session_info(session_id)
        assert info is not None
        assert (info.owner, info.title, info.message_count) == (owner, "Kept", 2)

    async def test_the_items_are_read_with_their_ids_as_json(self, new_store: NewStore, session_id: str) -> None:
        store = new_store()
        await DynamoDBSession(session_id, store).add_items(users(1, 2))
        page = await store.json_session(session_id, format=FORMAT).apage()
        assert [stored.value for stored in page.values] == users(1, 2)


async def test_the_page_is_true(collection_table: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"model": ScriptedModel([says("Hi")])}
    replaced = {"Chats": collection_table, 'name="Assistant"': 'name="A", model=model'}
    await of_page("agents/openai-agents.md", names, replaced)
    assert capsys.readouterr().out == "Hi\n[('first-chat', 2)]\n"
