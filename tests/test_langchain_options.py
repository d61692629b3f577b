"""ChatHistoryMiddleware's options, beside other middleware, and under faults, cancellation and load."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from agents_langchain import (
    BOTH_CALLS,
    CALLS,
    Agent,
    Call,
    Flaky,
    agent_of,
    asynchronously,
    calling,
    names,
    ok,
    on_thread,
    record_of,
    script,
    synchronously,
)
from botocore.config import Config
from conftest import NewStore, turns_of_another_task
from engines import SDK_THREADS
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, PIIMiddleware, SummarizationMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.runtime import ExecutionInfo, Runtime
from proxy import Fault, Proxy, Seen

from chathistory_async import AccessDeniedError, ChatHistoryStore, ConfigurationError, LayoutError
from chathistory_async._sync.bridge import THREAD_NAME
from chathistory_async.integrations import _agent_recorder
from chathistory_async.integrations._agent_messages import Entry, sendable
from chathistory_async.integrations.langchain import ChatHistoryMiddleware, load_history, save_history

TURNS = ["one", "two", "three", "four"]

pytestmark = pytest.mark.sampled


def request_of(state: dict[str, Any]) -> ModelRequest[Any]:
    """A call of the model as langchain makes it."""
    return ModelRequest(model=script(), messages=state["messages"], state=state, runtime=Runtime())  # type: ignore[arg-type]


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Call:
    """Runs an agent, in each of the two ways."""
    return asynchronously if request.param == "async" else synchronously


@pytest.fixture(params=["checkpointer", "no checkpointer"])
def saver(request: pytest.FixtureRequest) -> InMemorySaver | None:
    return InMemorySaver() if request.param == "checkpointer" else None


@pytest.fixture(scope="module")
async def store(collection_table: str) -> AsyncIterator[ChatHistoryStore]:
    async with ChatHistoryStore(collection_table, session_index=True) as store:
        yield store


@pytest.fixture
def single(table: str) -> Iterator[ChatHistoryStore]:
    """A store of single items."""
    store = ChatHistoryStore(table, layout="single_item")
    yield store
    store.close()


class Second(ChatHistoryMiddleware):
    """Has a name of its own."""


class TestBesideOthers:
    @pytest.mark.parametrize(
        "keep", [("messages", 1), pytest.param(("messages", 2), marks=pytest.mark.stress), ("tokens", 1)]
    )
    @pytest.mark.parametrize("first", [True, False], ids=["history first", "summary first"])
    async def test_summaries(
        self, store: ChatHistoryStore, session_id: str, call: Call, keep: Any, first: bool
    ) -> None:
        model = script(calling("ok"), AIMessage("fine"), calling("ok"))
        summaries = SummarizationMiddleware(script(), trigger=("messages", 3), keep=keep)
        middleware = [ChatHistoryMiddleware(store), summaries]
        agent = agent_of(model, *(middleware if first else reversed(middleware)), checkpointer=InMemorySaver())
        for text in TURNS:
            await call(agent, text, session_id)
        assert await record_of(store, session_id) == "H AI(ok) T AI H AI(ok) T AI H AI H AI"
        assert names(model.seen[-1]).startswith("Sum")
        assert all(sendable(sent) == sent for sent in model.seen)

    async def test_summaries_without_a_checkpointer_need_the_state(
        self, store: ChatHistoryStore, session_id: str, call: Call
    ) -> None:
        model = script()
        summaries = SummarizationMiddleware(script(), trigger=("messages", 4), keep=("messages", 2))
        agent = agent_of(model, ChatHistoryMiddleware(store, load="state"), summaries)
        for text in TURNS:
            await call(agent, text, session_id)
        assert names(model.seen[-1]) == "Sum AI H"
        assert await record_of(store, session_id) == "H AI H AI H AI H AI"

    @pytest.mark.parametrize("first", [True, False], ids=["history first", "redaction first"])
    async def test_redaction_protects_what_comes_after_it(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None, first: bool
    ) -> None:
        redaction = PIIMiddleware("email", strategy="redact", apply_to_output=True)
        middleware = [ChatHistoryMiddleware(store), redaction]
        model = script(AIMessage("to b@example.com"))
        agent = agent_of(model, *(middleware if first else reversed(middleware)), checkpointer=saver)
        await call(agent, "from a@example.com", session_id)
        question, answer = await store.session(session_id).aget_messages()
        assert question.content == ("from a@example.com" if first else "from [REDACTED_EMAIL]")
        assert answer.content == "to [REDACTED_EMAIL]"

    async def test_the_documented_order(self, store: ChatHistoryStore, session_id: str, call: Call) -> None:
        model = script()
        agent = agent_of(
            model,
            PIIMiddleware("email", strategy="redact"),
            ChatHistoryMiddleware(store),
            SummarizationMiddleware(script(), trigger=("messages", 4), keep=("messages", 1)),
            checkpointer=InMemorySaver(),
        )
        for text in TURNS:
            await call(agent, f"{text} a@example.com", session_id)
        # Several new messages at once: the summary replaces some of them, after they were stored.
        many = [HumanMessage("five"), AIMessage("five"), HumanMessage("six"), AIMessage("six"), HumanMessage("seven")]
        await call(agent, {"messages": many}, session_id)
        stored = await store.session(session_id).aget_messages()
        assert names(stored) == "H AI H AI H AI H AI H AI H AI H AI"
        assert not any("example" in message.text for message in stored)

    async def test_two_of_one_class_are_refused(self, store: ChatHistoryStore) -> None:
        with pytest.raises(AssertionError, match="remove duplicate middleware instances"):
            agent_of(script(), ChatHistoryMiddleware(store), ChatHistoryMiddleware(store))

    async def test_two_of_two_classes_have_a_record_each(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
        model = script(calling("ok"))
        second = Second(store, session=lambda state, runtime: f"{session_id}-second", load="never")
        agent = agent_of(model, ChatHistoryMiddleware(store), second, checkpointer=saver)
        for text in TURNS[:2]:
            await call(agent, text, session_id)
        assert await record_of(store, f"{session_id}-second") == "H AI(ok) T AI H AI"
        assert await record_of(store, session_id) == "H AI H AI(ok) T AI H AI"
        assert names(model.seen[-1]) == "H AI H AI(ok) T AI H"


class TestLoad:
    async def test_state(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
        model = script(calling("ok"))
        agent = agent_of(model, ChatHistoryMiddleware(store, load="state"), checkpointer=saver)
        for text in TURNS[:2]:
            result = await call(agent, text, session_id)
        assert names(model.seen[-1]) == "H AI H AI(ok) T AI H"
        assert len(result["messages"]) == 8
        if saver:
            state = await agent.aget_state(on_thread(session_id))
            assert state.values["ChatHistoryMiddleware_mark"] == ["", *(message.id for message in result["messages"])]
        assert await record_of(store, session_id) == "H AI H AI(ok) T AI H AI"

    async def test_a_single_item(
        self, single: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        await single.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
        model = script(calling("ok"))
        agent = agent_of(model, ChatHistoryMiddleware(single, load="state"), checkpointer=saver)
        for text in TURNS[:2]:
            await call(agent, text, session_id)
        value = {"messages": [HumanMessage("three", id="three")]}
        for _ in range(2):
            await call(agent, value, session_id)
        assert names(model.seen[-3]) == "H AI H AI(ok) T AI H"
        assert await record_of(single, session_id) == "H AI H AI(ok) T AI H AI H AI AI"
        await single.aclose()

    async def test_a_single_item_of_langchain_community_needs_the_state(self, single: ChatHistoryStore) -> None:
        with pytest.raises(LayoutError, match='needs load="state"'):
            ChatHistoryMiddleware(single)
        ChatHistoryMiddleware(single, load="never")

    async def test_state_with_a_limit(self, store: ChatHistoryStore, session_id: str) -> None:
        model = script()
        agent = agent_of(model, ChatHistoryMiddleware(store, load="state", limit=2))
        for text in TURNS:
            await asynchronously(agent, text, session_id)
        assert names(model.seen[-1]) == "H AI H"
        assert await record_of(store, session_id) == "H AI H AI H AI H AI"

    async def test_never(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
        model = script()
        agent = agent_of(model, ChatHistoryMiddleware(store, load="never"), checkpointer=saver)
        for text in TURNS[:2]:
            await call(agent, text, session_id)
        assert names(model.seen[-1]) == ("H AI H" if saver else "H")
        assert await record_of(store, session_id) == "H AI H AI H AI"


class TestSaveAtTheEnd:
    async def test_stores_a_turn_in_one_append(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        store = store_through()
        agent = agent_of(script(), ChatHistoryMiddleware(store, save="end"), checkpointer=saver)
        await call(agent, "zero", session_id)
        agent = agent_of(script(calling("ok")), ChatHistoryMiddleware(store, save="end"), checkpointer=saver)
        proxy.seen.clear()
        await call(agent, "one", session_id)
        assert proxy.operations() == ["Query", "TransactWriteItems"]
        assert await record_of(store, session_id) == "H AI H AI(ok) T AI"

    async def test_stores_nothing_of_a_run_that_fails(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        model = script(ConnectionError("overloaded"))
        agent = agent_of(model, ChatHistoryMiddleware(store, save="end"), checkpointer=saver)
        with pytest.raises(ConnectionError):
            await call(agent, "one", session_id)
        assert await record_of(store, session_id) == ""
        if saver:
            await call(agent, None, session_id)
            assert await record_of(store, session_id) == "H AI"


# On the fast path, and by the SDK's client.
DENIED_ONCE = [Fault.DENIED] * 2


def denied(seen: Seen) -> Fault:
    return Fault.DENIED


class TestErrors:
    async def test_what_is_too_large_for_one_append_is_not_one(
        self, store: ChatHistoryStore, session_id: str, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chathistory_async._item_collection.bodies.MAX_VALUES", 60)
        many = [HumanMessage(f"{at}", id=f"{at}") for at in range(200)]
        agent = agent_of(script(), ChatHistoryMiddleware(store))
        await call(agent, {"messages": many}, session_id)
        stored = await store.session(session_id).aget_messages()
        assert [message.content for message in stored] == [*map(str, range(200)), "fine"]

    @BOTH_CALLS
    @pytest.mark.parametrize("operation", ["Query", "Write"])
    async def test_are_raised_unchanged(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call, operation: str
    ) -> None:
        store = store_through()
        agent = agent_of(script(), ChatHistoryMiddleware(store))
        await call(agent, "one", session_id)
        proxy.script(*DENIED_ONCE, operation=operation)
        with pytest.raises(AccessDeniedError, match=session_id) as caught:
            await call(agent, "two", session_id)
        assert caught.type is AccessDeniedError
        await call(agent, "three", session_id)
        assert await record_of(store, session_id) == "H AI H AI"

    async def test_of_a_read_for_a_resumed_model(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call
    ) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
        model = script(ConnectionError("overloaded"))
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=InMemorySaver())
        with pytest.raises(ConnectionError):
            await call(agent, "one", session_id)
        resumed = agent_of(model, ChatHistoryMiddleware(store), checkpointer=agent.checkpointer)
        proxy.script(*DENIED_ONCE, operation="Query")
        with pytest.raises(AccessDeniedError):
            await call(resumed, None, session_id)
        await call(resumed, None, session_id)
        assert await record_of(store, session_id) == "H AI H AI"

    async def test_no_thread_id(self, store: ChatHistoryStore, call: Call) -> None:
        agent = agent_of(script(), ChatHistoryMiddleware(store, on_error="log"))
        with pytest.raises(ValueError, match="has no thread_id"):
            await agent.ainvoke({"messages": [HumanMessage("one")]})

    @pytest.mark.parametrize(
        "option", [{"load": "beneath"}, {"save": "often"}, {"on_error": "ignore"}, {"limit": 0}], ids=str
    )
    async def test_invalid_options(self, store: ChatHistoryStore, option: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(option))):
            ChatHistoryMiddleware(store, **option)


class TestLoggedErrors:
    async def test_the_agent_goes_on_and_the_next_run_stores_it(
        self,
        store_through: NewStore,
        proxy: Proxy,
        session_id: str,
        call: Call,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        store, model = store_through(), script(calling("ok"))
        agent = agent_of(model, ChatHistoryMiddleware(store, on_error="log"), checkpointer=InMemorySaver())
        proxy.schedule = denied
        with caplog.at_level(logging.ERROR, "chathistory_async"):
            await call(agent, "secret", session_id)
        assert "The agent goes on" in caplog.text
        assert "secret" not in caplog.text
        proxy.script()
        assert await record_of(store, session_id) == ""
        await call(agent, "two", session_id)
        assert await record_of(store, session_id) == "H AI(ok) T AI H AI"

    async def test_the_next_step_stores_it(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        store = store_through()
        await call(agent_of(script(), ChatHistoryMiddleware(store)), "zero", session_id)
        agent = agent_of(script(calling("ok")), ChatHistoryMiddleware(store, on_error="log"), checkpointer=saver)
        proxy.script(*DENIED_ONCE, operation="Write")
        await call(agent, "one", session_id)
        assert await record_of(store, session_id) == "H AI H AI(ok) T AI"

    async def test_what_is_too_large_for_one_append_is_stored_in_several(
        self,
        store_through: NewStore,
        proxy: Proxy,
        session_id: str,
        call: Call,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        store, model = store_through(), script(calling("ok"))
        agent = agent_of(model, ChatHistoryMiddleware(store, on_error="log"), checkpointer=InMemorySaver())
        proxy.schedule = denied
        for text in TURNS[:3]:
            await call(agent, text, session_id)
        proxy.script()
        monkeypatch.setattr("chathistory_async._item_collection.bodies.MAX_VALUES", 3)
        await call(agent, "four", session_id)
        assert await record_of(store, session_id) == "H AI(ok) T AI H AI H AI H AI"

    async def test_a_step_that_is_too_large_alone_stays_in_the_way(
        self, store: ChatHistoryStore, session_id: str, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chathistory_async._item_collection.bodies.MAX_VALUES", 1)
        model = script(AIMessage("fine"), calling("ok"))
        agent = agent_of(model, ChatHistoryMiddleware(store, on_error="log"), checkpointer=InMemorySaver())
        for text in TURNS[:3]:
            await call(agent, text, session_id)
        assert await record_of(store, session_id) == "H AI H"
        monkeypatch.undo()
        await call(agent, "four", session_id)
        assert await record_of(store, session_id) == "H AI H AI(ok) T AI H AI H AI"

    @pytest.mark.parametrize("fault", [Fault.LOST_RESPONSE, Fault.LATE_ERROR])
    async def test_what_was_stored_after_all_is_not_stored_again(
        self,
        store_through: NewStore,
        proxy: Proxy,
        session_id: str,
        call: Call,
        saver: InMemorySaver | None,
        fault: Fault,
    ) -> None:
        store = store_through(attempts=1, fast_path=False)
        await call(agent_of(script(), ChatHistoryMiddleware(store)), "zero", session_id)
        model = script(calling("ok"))
        agent = agent_of(model, ChatHistoryMiddleware(store, on_error="log"), checkpointer=saver)
        proxy.script(*[fault] * 2, operation="Write")
        await call(agent, "one", session_id)
        proxy.script()
        assert await record_of(store, session_id) == "H AI H AI(ok) T AI"
        # The model is sent what was read before the error.
        assert names(model.seen[-1]) == "H AI H AI(ok) T"

    async def test_older_history_is_loaded_once_the_store_is_back(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call
    ) -> None:
        store, model = store_through(), script()
        await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
        agent = agent_of(model, ChatHistoryMiddleware(store, on_error="log"), checkpointer=InMemorySaver())
        proxy.script(*DENIED_ONCE, operation="Query")
        await call(agent, "one", session_id)
        # The look before the first write brought it.
        assert names(model.seen[-1]) == "H AI H"
        proxy.schedule = denied
        await call(agent, "two", session_id)
        assert names(model.seen[-1]) == "H AI H"
        proxy.script()
        await call(agent, "three", session_id)
        assert names(model.seen[-1]) == "H AI H AI H AI H"
        assert await record_of(store, session_id) == "H AI H AI H AI H AI"


class TestSessions:
    async def test_of_a_resolver_and_an_owner(self, store: ChatHistoryStore, session_id: str, owner: str) -> None:
        agent = agent_of(
            script(),
            ChatHistoryMiddleware(
                store,
                session=lambda state, runtime: f"{session_id}-{len(state['messages']) and 'mine'}",
                owner=lambda state, runtime: owner,
            ),
        )
        await agent.ainvoke({"messages": [HumanMessage("one")]})
        assert await record_of(store, f"{session_id}-mine") == "H AI"
        page = await store.list_sessions(owner)
        assert [info.session_id for info in page.sessions] == [f"{session_id}-mine"]

    async def test_of_a_tenant(self, collection_table: str, session_id: str, call: Call) -> None:
        async with ChatHistoryStore(collection_table, key_parts=2) as store:
            middleware = ChatHistoryMiddleware(store, session=lambda state, runtime: ("acme", session_id))
            await call(agent_of(script(), middleware), "one", session_id)
            history = store.session("", key={"SessionId": ("acme", session_id)})
            assert names(await history.aget_messages()) == "H AI"

    async def test_of_the_user_on_a_server(self, store: ChatHistoryStore, session_id: str, owner: str) -> None:
        info = ExecutionInfo(checkpoint_id="", checkpoint_ns="", task_id="", thread_id=session_id)
        user = SimpleNamespace(identity=owner)
        runtime: Any = SimpleNamespace(execution_info=info, server_info=SimpleNamespace(user=user))
        await ChatHistoryMiddleware(store).abefore_model({"messages": [HumanMessage("one", id="1")]}, runtime)
        assert len((await store.list_sessions(owner)).sessions) == 1

    async def test_of_one_owner(self, store: ChatHistoryStore, session_id: str, owner: str, call: Call) -> None:
        await call(agent_of(script(), ChatHistoryMiddleware(store, owner=owner)), "one", session_id)
        assert [info.session_id for info in (await store.list_sessions(owner)).sessions] == [session_id]

    async def test_an_empty_owner_is_refused(self, store: ChatHistoryStore, session_id: str) -> None:
        with pytest.raises(ValueError, match="owner"):
            await asynchronously(agent_of(script(), ChatHistoryMiddleware(store, owner="")), "one", session_id)

    async def test_a_session_is_a_function(self, store: ChatHistoryStore) -> None:
        session: Any = "alice-1"
        for make in (ChatHistoryMiddleware, load_history, save_history):
            with pytest.raises(TypeError, match="pass lambda state, runtime: …, which returns"):
                make(store, session=session)

    async def test_an_owner_needs_an_index(self, collection_table: str) -> None:
        with pytest.raises(ValueError, match="session_index=True"):
            ChatHistoryMiddleware(ChatHistoryStore(collection_table), owner=lambda state, runtime: "me")


class TestCost:
    @pytest.mark.parametrize("indexed", [True, pytest.param(False, marks=pytest.mark.stress)], ids=["indexed", "plain"])
    @pytest.mark.parametrize("old", [True, False], ids=["older history", "new"])
    async def test_a_plain_turn_takes_one_read_and_two_writes(
        self,
        collection_table: str,
        proxy: Proxy,
        session_id: str,
        call: Call,
        saver: InMemorySaver | None,
        indexed: bool,
        old: bool,
    ) -> None:
        config = Config(retries={"total_max_attempts": 1})
        store = ChatHistoryStore(collection_table, endpoint_url=proxy.url, session_index=indexed, config=config)
        async with store:
            agent = agent_of(script(), ChatHistoryMiddleware(store), checkpointer=saver)
            await call(agent, "warm", f"{session_id}-warm")
            if old:
                await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
            write = "TransactWriteItems" if indexed else "PutItem"
            for text in TURNS:
                proxy.seen.clear()
                await call(agent, text, session_id)
                assert proxy.operations() == ["Query", write, write]

    async def test_a_turn_with_tools_takes_a_write_more_for_each_step(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        store = store_through()
        agent = agent_of(
            script(AIMessage("warm"), calling("ok"), calling("ok")), ChatHistoryMiddleware(store), checkpointer=saver
        )
        await call(agent, "warm", session_id)
        proxy.seen.clear()
        await call(agent, "one", session_id)
        assert proxy.operations() == ["Query", *["TransactWriteItems"] * 4]

    @pytest.mark.parametrize("save", ["steps", "end"])
    @pytest.mark.parametrize("failing", ["model", "tool"])
    async def test_a_resumed_run_takes_a_read_more_or_two(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call, save: Any, failing: str
    ) -> None:
        store, flaky, saver = store_through(), Flaky(), InMemorySaver()
        await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
        answers = [calling("flaky"), calling("ok"), calling("ok")]
        model = script(*([ConnectionError()] if failing == "model" else []), *answers)
        flaky.recovered = failing == "model"

        def agent() -> Agent:
            middleware = ChatHistoryMiddleware(store, save=save)
            return agent_of(model, middleware, checkpointer=saver, tools=[ok, flaky.tool()])

        with pytest.raises(ConnectionError if failing == "model" else RuntimeError):
            await call(agent(), "one", session_id)
        flaky.recovered = True
        proxy.seen.clear()
        await call(agent(), None, session_id)
        assert proxy.operations().count("Query") == (2 if failing == "model" else 1)
        assert names(model.seen[-1]) == "H AI H AI(flaky) T AI(ok) T AI(ok) T"
        assert await record_of(store, session_id) == "H AI H AI(flaky) T AI(ok) T AI(ok) T AI"

    async def test_a_past_that_is_not_in_memory_is_read_once_for_the_next_calls(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call
    ) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
        middleware = ChatHistoryMiddleware(store)

        class Forgetful(type(script())):  # type: ignore[misc]
            """As if other runs had needed the memory during the first call of the model."""

            def _generate(self, *arguments: Any, **options: Any) -> Any:
                if not self.seen:
                    middleware._recorder._pasts._pasts.clear()
                return super()._generate(*arguments, **options)

        model = Forgetful(answers=[calling("ok")] * 3, seen=[])
        proxy.seen.clear()
        await call(agent_of(model, middleware), "one", session_id)
        assert proxy.operations().count("Query") == 2
        assert names(model.seen[-1]) == "H AI H AI(ok) T AI(ok) T AI(ok) T"

    async def test_nothing_is_read_while_it_is_made(self, proxy: Proxy, store_through: NewStore) -> None:
        agent_of(script(), ChatHistoryMiddleware(store_through()))
        assert not proxy.seen


class TestAtOnce:
    @pytest.mark.parametrize("number", [5, pytest.param(100, marks=pytest.mark.stress)])
    @pytest.mark.parametrize(
        "encrypted", [False, pytest.param(True, marks=pytest.mark.stress)], ids=["plain", "encrypted"]
    )
    async def test_threads(
        self, new_store: NewStore, session_id: str, kms_key: str, number: int, encrypted: bool
    ) -> None:
        store = new_store(**({"kms_key_id": kms_key} if encrypted else {}))
        agents = [agent_of(script(calling("ok")), ChatHistoryMiddleware(store)) for _ in range(number)]
        for text in TURNS[:2]:
            runs = [asynchronously(agent, text, f"{session_id}-{at}") for at, agent in enumerate(agents)]
            await asyncio.gather(*runs)
        for at in range(number):
            assert await record_of(store, f"{session_id}-{at}") == "H AI(ok) T AI H AI"

    # Not whole agents: langchain's own tracing starts threads.
    @pytest.mark.parametrize("number", [10, pytest.param(100, marks=pytest.mark.stress)])
    async def test_the_hooks_start_no_thread(
        self, store: ChatHistoryStore, session_id: str, started_threads: list[str], number: int
    ) -> None:
        middleware = ChatHistoryMiddleware(store, session=lambda state, runtime: state["session"])

        async def turn(at: int) -> None:
            state = {"messages": [HumanMessage("one", id="one")], "session": f"{session_id}-{at}"}
            for hook in (middleware.abefore_agent, middleware.abefore_model):
                state |= await hook(state, Runtime()) or {}
            await middleware.awrap_model_call(request_of(state), answer)
            state["messages"] = [*state["messages"], AIMessage("fine", id="fine")]
            await middleware.aafter_agent(state, Runtime())

        async def answer(request: ModelRequest[Any]) -> Any:
            return ModelResponse([AIMessage("fine")])

        await asyncio.gather(*map(turn, range(number)))
        assert await record_of(store, f"{session_id}-{number - 1}") == "H AI"
        assert set(started_threads) <= SDK_THREADS

    def test_the_synchronous_hooks_start_only_the_thread_of_synchronous_calls(
        self, store: ChatHistoryStore, session_id: str, started_threads: list[str]
    ) -> None:
        middleware = ChatHistoryMiddleware(store, session=lambda state, runtime: session_id)
        state: dict[str, Any] = {"messages": [HumanMessage("one", id="one")]}
        for hook in (middleware.before_agent, middleware.before_model):
            state |= hook(state, Runtime()) or {}
        middleware.wrap_model_call(request_of(state), lambda request: ModelResponse([AIMessage("fine")]))
        state["messages"] = [*state["messages"], AIMessage("fine", id="fine")]
        middleware.after_agent(state, Runtime())
        assert names(store.session(session_id).messages) == "H AI"
        assert set(started_threads) <= {THREAD_NAME} | SDK_THREADS
        assert started_threads.count(THREAD_NAME) <= 1

    async def test_synchronous_threads(self, store: ChatHistoryStore, session_id: str) -> None:
        agent = agent_of(script(), ChatHistoryMiddleware(store))
        await asyncio.gather(*(synchronously(agent, "one", f"{session_id}-{at}") for at in range(8)))
        for at in range(8):
            assert await record_of(store, f"{session_id}-{at}") == "H AI"

    async def test_runs_of_one_thread(
        self, store: ChatHistoryStore, session_id: str, saver: InMemorySaver | None
    ) -> None:
        agents = [agent_of(script(calling("ok")), ChatHistoryMiddleware(store), checkpointer=saver) for _ in range(4)]
        await asyncio.gather(*(asynchronously(agent, "one", session_id) for agent in agents))
        stored = await store.session(session_id).aget_messages()
        assert sendable(stored) == stored
        assert sorted(names(stored).split()) == sorted(["H", "AI(ok)", "T", "AI"] * 4)
        model = script()
        await asynchronously(agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver), "last", session_id)
        assert sendable(model.seen[-1]) == model.seen[-1]

    @pytest.mark.parametrize("kept", [1, 7])
    async def test_more_runs_than_are_kept_in_memory(
        self, store: ChatHistoryStore, session_id: str, monkeypatch: pytest.MonkeyPatch, kept: int
    ) -> None:
        monkeypatch.setattr("chathistory_async.integrations._agent_recorder._KEPT_MESSAGES", kept)
        model, agents = script(), []
        agent = agent_of(model, ChatHistoryMiddleware(store))
        for at in range(6):
            await store.session(f"{session_id}-{at}").aadd_messages([HumanMessage(f"{at}"), AIMessage("before")])
            agents.append(asynchronously(agent, f"{at}", f"{session_id}-{at}"))
        await asyncio.gather(*agents)
        assert all(names(sent) == "H AI H" and sent[0].content == sent[2].content for sent in model.seen)


class TestMemory:
    """The messages before a thread's state are in memory only while the thread runs."""

    def kept(self, middleware: ChatHistoryMiddleware) -> int:
        pasts = middleware._recorder._pasts
        assert pasts._size == sum(1 + len(messages) for messages in pasts._pasts.values())
        return pasts._size

    async def test_is_bounded_by_messages(
        self, store: ChatHistoryStore, session_id: str, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chathistory_async.integrations._agent_recorder._KEPT_MESSAGES", 20)
        await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")] * 4)
        middleware = ChatHistoryMiddleware(store)
        agent = agent_of(script(*[ConnectionError("overloaded")] * 4), middleware)
        for text in TURNS:
            # The end of a run that fails is never seen.
            with pytest.raises(ConnectionError):
                await call(agent, text, session_id)
            assert 0 < self.kept(middleware) <= 20

    async def test_is_free_after_a_run_and_after_an_error_at_its_end(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call
    ) -> None:
        middleware = ChatHistoryMiddleware(store_through(), save="end")
        agent = agent_of(script(), middleware)
        await call(agent, "one", session_id)
        assert self.kept(middleware) == 0
        proxy.script(*DENIED_ONCE, operation="Write")
        with pytest.raises(AccessDeniedError):
            await call(agent, "two", session_id)
        assert self.kept(middleware) == 0

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_lock_held_at_a_fork_does_not_hang_the_child(self) -> None:
        held = _agent_recorder._lock_of_pasts
        held.acquire()
        child = os.fork()
        if not child:
            # The handler of pytest's time-out would go on with the tests here.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            _agent_recorder._Pasts().keep([])
            os._exit(0)
        held.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class TestCancelled:
    @pytest.mark.parametrize(
        "at", [pytest.param(at, marks=[] if at % 4 == 1 else pytest.mark.stress) for at in range(12)]
    )
    async def test_at_any_moment(
        self, store: ChatHistoryStore, session_id: str, saver: InMemorySaver | None, at: int
    ) -> None:
        agent = agent_of(script(calling("ok")), ChatHistoryMiddleware(store), checkpointer=saver)
        value = {"messages": [HumanMessage("one", id="one")]}
        running = asyncio.create_task(asynchronously(agent, value, session_id))
        await asyncio.sleep(at * 0.004)
        running.cancel()
        await asyncio.wait([running])
        # A request that was under way may still arrive.
        await asyncio.sleep(0.1)
        stored = await store.session(session_id).aget_messages()
        assert names(stored) in ("", "H", "H AI(ok) T", "H AI(ok) T AI")
        await asynchronously(agent, value, session_id)
        again = await store.session(session_id).aget_messages()
        assert sendable(again) == again
        ids = [message.id for message in again]
        assert len(set(ids)) == len(ids)
        assert ids.count("one") == 1
        assert names(again).endswith("AI")

    async def test_in_the_model(self, store: ChatHistoryStore, session_id: str, saver: InMemorySaver | None) -> None:
        arrived = asyncio.Event()

        class Slow(type(script())):  # type: ignore[misc]
            async def _agenerate(self, *arguments: Any, **options: Any) -> Any:
                arrived.set()
                await asyncio.Event().wait()

        agent = agent_of(Slow(answers=[], seen=[]), ChatHistoryMiddleware(store), checkpointer=saver)
        running = asyncio.create_task(asynchronously(agent, "one", session_id))
        await arrived.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await record_of(store, session_id) == "H"


async def test_encrypted_and_read_without_the_key(
    new_store: NewStore, collection_table: str, session_id: str, kms_key: str, call: Call, dynamodb: Any
) -> None:
    agent = agent_of(script(AIMessage("private")), ChatHistoryMiddleware(new_store(kms_key_id=kms_key)))
    await call(agent, "private", session_id)
    await call(agent, "again", session_id)
    items = dynamodb.query(
        TableName=collection_table,
        KeyConditionExpression="SessionId = :s",
        ExpressionAttributeValues={":s": {"S": session_id}},
    )["Items"]
    assert "private" not in repr(items)
    with pytest.raises(ConfigurationError, match="kms_key_id"):
        await call(agent_of(script(), ChatHistoryMiddleware(new_store())), "two", session_id)


LONG = 5000


@pytest.fixture
async def long_session(store: ChatHistoryStore, session_id: str) -> str:
    for start in range(0, LONG, 500):
        batch = [HumanMessage("short", id=str(start + at)) for at in range(500)]
        await store.session(session_id).aadd_messages(batch)
    return session_id


async def test_a_long_history_never_holds_the_loop(
    store: ChatHistoryStore, long_session: str, long_steps: list[str]
) -> None:
    middleware = ChatHistoryMiddleware(store, session=lambda state, runtime: long_session)
    runtime: Runtime[Any] = Runtime()
    state: dict[str, Any] = {"messages": [HumanMessage("new", id="new")]}

    async def handler(request: ModelRequest[Any]) -> Any:
        return request.messages

    long_steps.clear()
    state |= await middleware.abefore_agent(state, runtime) or {}
    sent: Any = await middleware.awrap_model_call(request_of(state), handler)
    assert len(sent) == LONG + 1
    await middleware.abefore_model(state, runtime)
    assert long_steps == []


async def test_nodes_with_a_long_history_never_hold_the_loop(
    store: ChatHistoryStore, long_session: str, long_steps: list[str]
) -> None:
    load: Any = load_history(store, session=lambda state, runtime: long_session)
    save: Any = save_history(store, session=lambda state, runtime: long_session)
    state: dict[str, Any] = {"messages": [HumanMessage("new", id="new")]}
    long_steps.clear()
    state |= await load.afunc(state, Runtime())
    # Ends the step, and the reducer takes the removal of all messages out.
    await asyncio.sleep(0)
    assert len(state["messages"][1:]) == LONG + 1
    state["messages"] = state["messages"][1:]
    await save.afunc(state, Runtime())
    await asyncio.sleep(0)
    assert long_steps == []
    assert (await store.session(long_session).aget_messages(limit=1))[0].id == "new"


@pytest.mark.parametrize("way", ["middleware", "nodes"])
async def test_other_tasks_run_while_a_long_history_is_put_into_the_state(
    store: ChatHistoryStore, session_id: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async def latest(history: Any, count: int | None) -> list[Entry]:
        # The reader's own slices are tested elsewhere.
        return entries

    entries = [Entry("", HumanMessage("short")) for _ in range(5000)]
    monkeypatch.setattr("chathistory_async.integrations._agent_recorder._latest", latest)
    middleware = ChatHistoryMiddleware(store, session=lambda state, runtime: session_id, load="state")
    load: Any = load_history(store, session=lambda state, runtime: session_id)
    state: dict[str, Any] = {"messages": [HumanMessage("new", id="new")]}
    async with turns_of_another_task() as turns:
        update = await (middleware.abefore_agent if way == "middleware" else load.afunc)(state, Runtime())
    # Copies take about 10 µs each, in slices of 2 ms.
    assert turns() >= 5
    assert update is not None
    assert len(update["messages"]) == len(entries) + 2


@pytest.mark.parametrize("way", ["middleware", "nodes"])
async def test_a_long_state_is_stored_without_holding_the_loop(
    store: ChatHistoryStore, session_id: str, long_steps: list[str], way: str
) -> None:
    middleware = ChatHistoryMiddleware(store, session=lambda state, runtime: session_id)
    save: Any = save_history(store, session=lambda state, runtime: session_id)
    state: dict[str, Any] = {"messages": [HumanMessage("short", id=f"{at}") for at in range(5000)]}
    # Ends the step that made the messages.
    await asyncio.sleep(0)
    long_steps.clear()
    await (middleware.aafter_agent if way == "middleware" else save.afunc)(state, Runtime())
    await asyncio.sleep(0)
    assert long_steps == []
    assert len(await store.session(session_id).aget_messages()) == 5000


def test_agents_share_a_middleware(store: ChatHistoryStore, session_id: str) -> None:
    middleware = ChatHistoryMiddleware(store)
    agents: list[Agent] = [create_agent(script(), [], middleware=[middleware]) for _ in range(2)]
    for agent in agents:
        agent.invoke({"messages": [HumanMessage("one")]}, on_thread(session_id))
    assert names(store.session(session_id).messages) == "H AI H AI"
