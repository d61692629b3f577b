"""The history of Microsoft Agent Framework's agents: what is loaded and stored, in which runs, and once."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import pytest
from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    ContextProvider,
    FunctionInvocationLayer,
    HistoryProvider,
    Message,
    ResponseStream,
    tool,
)
from conftest import NewStore
from engines import SDK_THREADS
from pages import of_page
from proxy import Fault, Proxy, retries

from chathistory_async import (
    AccessDeniedError,
    ChatHistoryStore,
    ClosedError,
    FormatError,
    ItemTooLargeError,
    LayoutError,
    TableNotFoundError,
    UndecodableItemError,
)
from chathistory_async.integrations.agent_framework import FORMAT, DynamoDBHistoryProvider


class Scripted(FunctionInvocationLayer[Any], ChatMiddlewareLayer[Any], BaseChatClient[Any]):
    """A chat client that returns the contents of a script, or raises its errors.

    Attributes:
        calls: the messages that it was sent, for each call.
    """

    def __init__(self, *script: Any) -> None:
        super().__init__()
        self.script = list(script)
        self.calls: list[list[Message]] = []

    def _inner_get_response(self, *, messages: Any, stream: bool, **_: Any) -> Any:
        self.calls.append(list(messages))
        return ResponseStream(self._updates(), finalizer=ChatResponse.from_updates) if stream else self._response()

    async def _updates(self) -> AsyncIterator[ChatResponseUpdate]:
        for message in (await self._response()).messages:
            for content in message.contents:
                yield ChatResponseUpdate(role="assistant", contents=[content], message_id=message.message_id)

    async def _response(self) -> ChatResponse[Any]:
        said = self.script.pop(0)
        if isinstance(said, Exception):
            raise said
        return ChatResponse(messages=[said if isinstance(said, Message) else Message("assistant", [said])])


@tool(approval_mode="never_require")
async def look() -> str:
    """Look out of the window."""
    return "rain"


@tool(approval_mode="always_require")
async def leave() -> str:
    """Leave the house."""
    return "left"


def calls(name: str) -> Message:
    return Message("assistant", [Content.from_function_call(f"call-{name}", name, arguments="{}")])


def user(text: str, message_id: str | None = None) -> Message:
    return Message("user", [text], message_id=message_id)


def assistant(text: str, message_id: str | None = None) -> Message:
    return Message("assistant", [text], message_id=message_id)


def texts(messages: list[Message]) -> list[str]:
    """The texts of all speakers, and the kinds of other contents."""
    return [message.text or message.contents[0].type for message in messages]


def dumps(messages: list[Message]) -> list[dict[str, Any]]:
    return [message.to_dict() for message in messages]


# The encrypted sessions are in the index too.
STORAGES: list[Any] = ["plain", "encrypted"]
LONG_STORAGES = [pytest.param(kind, marks=pytest.mark.stress) for kind in ("indexed", "sdk")]


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
def provider(stores: NewStore) -> DynamoDBHistoryProvider:
    return DynamoDBHistoryProvider(stores())


class Through(Protocol):
    def __call__(self, **options: Any) -> DynamoDBHistoryProvider: ...


@pytest.fixture
def through(stores: NewStore, proxy: Proxy) -> Through:
    """Makes providers that reach the engine through the proxy, with few retries."""

    def through(**options: Any) -> DynamoDBHistoryProvider:
        config = retries()
        return DynamoDBHistoryProvider(stores(endpoint_url=proxy.url, config=config, **options))

    return through


@pytest.fixture(params=["run", "stream"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs an agent, at once or streamed."""

    async def run(agent: Agent[Any], messages: Any, session: AgentSession | None = None) -> Any:
        if request.param == "run":
            return await agent.run(messages, session=session)
        return await agent.run(messages, session=session, stream=True).get_final_response()

    return run


def an_agent(client: Scripted, *providers: ContextProvider, **options: Any) -> Agent[Any]:
    return Agent(client, tools=[look, leave], context_providers=providers, **options)


def a_session(session_id: str) -> AgentSession:
    return AgentSession(session_id=session_id)


class TestMessages:
    async def test_come_back_equal(self, stores: NewStore, storage: dict[str, Any], session_id: str) -> None:
        messages = [
            user("hi 👩🏽‍🚀", "m1"),
            Message("system", ["be brief"], additional_properties={"n": [1, 1.0, None, {"$set": 2**70}]}),
            Message("assistant", [Content.from_text_reasoning(text="hm", protected_data="p" * 9000)], author_name="A"),
            Message("assistant", [Content.from_function_call("c", "f", arguments={"a": 1}), "and"]),
            Message("tool", [Content.from_function_result("c", result="[1]")]),
            Message("user", [Content.from_uri("https://example.com/x.png", media_type="image/png")]),
            Message("user", [Content.from_data(b"\x00\xff", media_type="image/png")]),
            Message("assistant", [], message_id="empty"),
        ]
        await DynamoDBHistoryProvider(stores(**storage)).save_messages(session_id, messages[:3])
        await DynamoDBHistoryProvider(stores(**storage)).save_messages(session_id, messages[3:])
        back = await DynamoDBHistoryProvider(stores(**storage)).get_messages(session_id)
        assert dumps(back) == dumps(messages)
        assert all(type(message) is Message for message in back)

    async def test_are_stored_without_what_the_framework_leaves_out(
        self, provider: DynamoDBHistoryProvider, session_id: str
    ) -> None:
        properties = {"kept": [1], "left out": object()}
        await provider.save_messages(
            session_id, [Message("user", ["x"], additional_properties=properties, raw_representation=object())]
        )
        [message] = await provider.get_messages(session_id)
        assert message.raw_representation is None
        assert message.additional_properties == {"kept": [1]}

    async def test_without_a_session_id_are_neither_loaded_nor_stored(self, through: Through, proxy: Proxy) -> None:
        for session_id in (None, ""):
            await through().save_messages(session_id, [user("x")])
            assert await through().get_messages(session_id) == []
        await through().save_messages("s", [])
        assert proxy.seen == []

    async def test_are_one_request_at_any_count(self, through: Through, proxy: Proxy, session_id: str) -> None:
        provider = through()
        assert await provider.get_messages(session_id) == []
        proxy.seen.clear()
        await provider.save_messages(session_id, [user(str(number)) for number in range(2000)])
        assert proxy.operations() == ["PutItem"]
        assert len(await provider.get_messages(session_id)) == 2000

    @pytest.mark.sampled
    @pytest.mark.parametrize("fault", [Fault.LOST_RESPONSE, Fault.LATE_ERROR, Fault.RESET, Fault.ERROR_500])
    @pytest.mark.parametrize("indexed", [False, True])
    async def test_are_stored_once_under_faults(
        self, through: Through, proxy: Proxy, session_id: str, fault: Fault, indexed: bool
    ) -> None:
        provider = through(session_index=indexed)
        for number in (1, 2):
            proxy.script(fault, operation="TransactWriteItems" if indexed else "PutItem")
            await provider.save_messages(session_id, [user(f"u{number}"), assistant(f"a{number}", f"id-{number}")])
        assert texts(await provider.get_messages(session_id)) == ["u1", "a1", "u2", "a2"]

    async def test_are_stored_whole_or_not_if_the_caller_is_cancelled(
        self, through: Through, provider: DynamoDBHistoryProvider, proxy: Proxy, session_id: str
    ) -> None:
        mine = through()
        await mine.get_messages(session_id)
        proxy.schedule = lambda seen: Fault.DELAY
        batch = [user("u"), assistant("a"), user("v")]
        for steps in [*range(20), 50, 100]:
            task = asyncio.create_task(mine.save_messages(session_id, batch))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        # The proxy forwards what was under way when its sender was cancelled.
        await asyncio.sleep(0.2)
        stored = texts(await provider.get_messages(session_id))
        assert stored == ["u", "a", "v"] * (len(stored) // 3)


class TestLimit:
    @pytest.mark.parametrize(
        ("limit", "loaded"),
        [
            (None, ["u1", "function_call", "function_result", "a1", "u2", "a2"]),
            (9, ["u1", "function_call", "function_result", "a1", "u2", "a2"]),
            (6, ["u1", "function_call", "function_result", "a1", "u2", "a2"]),
            (5, ["u2", "a2"]),
            (4, ["u2", "a2"]),
            (2, ["u2", "a2"]),
            (1, ["a2"]),
        ],
    )
    async def test_loads_the_latest_and_no_turn_that_is_cut_off(
        self, stores: NewStore, session_id: str, limit: int | None, loaded: list[str]
    ) -> None:
        result = Message("tool", [Content.from_function_result("call-look", result="rain")])
        stored = [user("u1"), calls("look"), result, assistant("a1"), user("u2"), assistant("a2")]
        provider = DynamoDBHistoryProvider(stores(), limit=limit)
        await provider.save_messages(session_id, stored)
        assert texts(await provider.get_messages(session_id)) == loaded

    async def test_within_one_turn_begins_with_no_result(self, stores: NewStore, session_id: str) -> None:
        results = [Message("tool", [Content.from_function_result(f"c{n}", result="rain")]) for n in range(2)]
        await DynamoDBHistoryProvider(stores()).save_messages(
            session_id, [user("u"), *results, assistant("a"), *results]
        )
        load = DynamoDBHistoryProvider(stores(), limit=4).get_messages
        assert texts(await load(session_id)) == ["a", "function_result", "function_result"]
        assert await DynamoDBHistoryProvider(stores(), limit=2).get_messages(session_id) == []

    @pytest.mark.parametrize("limit", [0, -1, 1.5, True])
    def test_is_a_positive_integer(self, stores: NewStore, limit: Any) -> None:
        with pytest.raises(ValueError, match="limit must be a positive integer"):
            DynamoDBHistoryProvider(stores(), limit=limit)


U1, A1, U2, A2, U3, A3 = (
    user("u1", "1"),
    assistant("a1", "2"),
    user("u2", "3"),
    assistant("a2", "4"),
    user("u3", "5"),
    assistant("a3", "6"),
)


RESULT = Message("tool", [Content.from_function_result("call-look", result="rain")])


class TestConversationsThatAreSentWhole:
    @pytest.mark.parametrize(
        ("stored", "sent", "added"),
        [
            ([], [U1, A1], ["u1", "a1"]),
            ([U1, A1], [U1, A1, U2, A2], ["u2", "a2"]),
            ([U1, A1, U2, A2], [U1, A1, U2, A2, U3, A3], ["u3", "a3"]),
            ([U1, A1, U2, A2], [U2, A2, U3, A3], ["u3", "a3"]),
            ([U2, A2], [U1, A1, U2, A2, U3, A3], ["u3", "a3"]),
            ([U1, A1], [U1, A1], []),
            ([U1, A1], [U2, A2], ["u2", "a2"]),
            ([U1], [U1, A1], ["a1"]),
            # Clients often give ids to one side only.
            ([user("u1"), A1], [user("u1"), A1, user("u2"), A2], ["u2", "a2"]),
            ([U1, assistant("a1")], [U1, assistant("a1"), U2, assistant("a2")], ["u2", "a2"]),
            # The same words, but not the same messages.
            ([user("yes"), assistant("ok")], [user("yes"), assistant("ok")], ["yes", "ok"]),
            ([user("yes"), assistant("ok")], [user("yes", "9"), assistant("ok")], ["yes", "ok"]),
            ([user("yes"), A1], [user("yes"), assistant("a1", "9")], ["yes", "a1"]),
            # A client has edited what was said before.
            ([user("other"), A1], [user("yes"), A1, U2], ["u2"]),
            # Another agent has written to the session, or the client hides the calls of functions.
            ([U1, A1, assistant("note", "n")], [U1, A1, U2, A2], ["u2", "a2"]),
            ([U1, assistant("note"), A1], [U1, A1, U2, A2], ["u2", "a2"]),
            ([U1, calls("look"), RESULT, A1], [U1, A1, U2, A2], ["u2", "a2"]),
            ([U1, calls("look"), RESULT, A1, U2, A2], [U1, A1, U2, A2, U3, A3], ["u3", "a3"]),
            # The client has its own ids for answers.
            ([U1, A1], [U1, assistant("a1", "mine"), U2, A2], ["u2", "a2"]),
            ([U1, user("again", "6")], [U1, user("again", "7")], ["again"]),
        ],
    )
    async def test_are_stored_once(
        self,
        provider: DynamoDBHistoryProvider,
        session_id: str,
        stored: list[Message],
        sent: list[Message],
        added: list[str],
    ) -> None:
        await provider.save_messages(session_id, stored)
        await provider.save_messages(session_id, sent)
        assert texts(await provider.get_messages(session_id)) == [*texts(stored), *added]

    async def test_are_stored_once_by_an_agent(
        self, provider: DynamoDBHistoryProvider, session_id: str, run: Any
    ) -> None:
        await run(an_agent(Scripted(A1), provider), [U1], a_session(session_id))
        client = Scripted(A2)
        await run(an_agent(client, provider), [U1, A1, U2], a_session(session_id))
        assert texts(client.calls[0]) == ["u1", "a1", "u2"]
        assert texts(await provider.get_messages(session_id)) == ["u1", "a1", "u2", "a2"]

    @pytest.mark.sampled
    @pytest.mark.parametrize("limit", [None, 2, 1])
    @pytest.mark.parametrize("each_call", [False, True])
    async def test_are_sent_to_the_model_once(
        self, stores: NewStore, session_id: str, run: Any, limit: int | None, each_call: bool
    ) -> None:
        provider = DynamoDBHistoryProvider(stores(), limit=limit)
        await provider.save_messages(session_id, [U1, calls("look"), RESULT, A1])
        client = Scripted(A2, A3)
        agent = an_agent(client, provider, require_per_service_call_history_persistence=each_call)
        await run(agent, [U1, A1, U2], a_session(session_id))
        # From here on, the client sends less than is stored: the last message, after an answer that it did not get.
        await run(agent, [U2], a_session(session_id))
        assert texts(client.calls[0]) == ["u1", "a1", "u2"]
        assert texts(client.calls[1])[-1] == "u2"
        assert texts(client.calls[1]).count("u2") == 1
        if limit is None:
            assert texts(client.calls[1]) == ["u1", "function_call", "function_result", "a1", "u2"]
            assert texts(await provider.get_messages(session_id))[-3:] == ["u2", "a2", "a3"]

    async def test_cost_a_query(self, through: Through, proxy: Proxy, session_id: str) -> None:
        provider = through()
        await provider.get_messages(session_id)
        proxy.seen.clear()
        await provider.save_messages(session_id, [U1, A1])
        assert proxy.operations() == ["Query", "PutItem"]


@pytest.mark.sampled
class TestRuns:
    async def test_continue_the_conversation(
        self, stores: NewStore, storage: dict[str, Any], session_id: str, run: Any
    ) -> None:
        client = Scripted("Hi", "Alice")
        for question in ("I am Alice.", "Who am I?"):
            agent = an_agent(client, DynamoDBHistoryProvider(stores(**storage)))
            result = await run(agent, question, a_session(session_id))
        assert result.text == "Alice"
        assert texts(client.calls[1]) == ["I am Alice.", "Hi", "Who am I?"]
        stored = await DynamoDBHistoryProvider(stores(**storage)).get_messages(session_id)
        assert texts(stored) == ["I am Alice.", "Hi", "Who am I?", "Alice"]

    async def test_store_calls_and_results(self, provider: DynamoDBHistoryProvider, session_id: str, run: Any) -> None:
        client = Scripted(calls("look"), "Rain", "Still")
        agent = an_agent(client, provider)
        await run(agent, "Weather?", a_session(session_id))
        await run(agent, "Now?", a_session(session_id))
        turn = ["Weather?", "function_call", "function_result", "Rain"]
        assert texts(client.calls[-1]) == [*turn, "Now?"]
        assert texts(await provider.get_messages(session_id)) == [*turn, "Now?", "Still"]

    async def test_that_fail_store_nothing(self, provider: DynamoDBHistoryProvider, session_id: str, run: Any) -> None:
        with pytest.raises(Exception, match="overloaded"):
            await run(an_agent(Scripted(RuntimeError("overloaded")), provider), "Hello", a_session(session_id))
        client = Scripted(calls("look"), RuntimeError("overloaded"))
        with pytest.raises(Exception, match="overloaded"):
            await run(an_agent(client, provider), "Weather?", a_session(session_id))
        assert await provider.get_messages(session_id) == []

    async def test_that_store_each_call_of_the_model_keep_what_was_done(
        self, provider: DynamoDBHistoryProvider, session_id: str, run: Any
    ) -> None:
        options = {"require_per_service_call_history_persistence": True}
        client = Scripted(calls("look"), RuntimeError("overloaded"))
        with pytest.raises(Exception, match="overloaded"):
            await run(an_agent(client, provider, **options), "Weather?", a_session(session_id))
        assert texts(await provider.get_messages(session_id)) == ["Weather?", "function_call"]
        # A provider of models would reject a call without a result.
        client = Scripted(calls("look"), "Rain")
        await run(an_agent(client, provider, **options), "Again?", a_session(session_id))
        assert [texts(sent) for sent in client.calls] == [
            ["Weather?", "Again?"],
            ["Weather?", "Again?", "function_call", "function_result"],
        ]
        client = Scripted(calls("look"), "Rain")
        await run(an_agent(client, provider, **options), "Weather?", a_session(f"{session_id}-2"))
        turn = ["Weather?", "function_call", "function_result", "Rain"]
        assert texts(client.calls[-1]) == turn[:3]
        assert texts(await provider.get_messages(f"{session_id}-2")) == turn

    @pytest.mark.parametrize("each_call", [True, False])
    @pytest.mark.parametrize("answers", [True, False])
    async def test_of_a_client_that_was_to_run_a_function(
        self, provider: DynamoDBHistoryProvider, session_id: str, run: Any, answers: bool, each_call: bool
    ) -> None:
        both = Message("assistant", [*calls("look").contents, *calls("choose").contents])
        await provider.save_messages(session_id, [U1, both, RESULT])
        client = Scripted("Done")
        result = Message("tool", [Content.from_function_result("call-choose", result="red")])
        agent = an_agent(client, provider, require_per_service_call_history_persistence=each_call)
        await run(agent, result if answers else U2, a_session(session_id))
        whole = ["u1", "function_call", "function_result", "function_result"]
        assert texts(client.calls[0]) == (whole if answers else ["u1", "u2"])
        assert len(await provider.get_messages(session_id)) == 5

    @pytest.mark.parametrize("approved", [True, False])
    async def test_wait_for_approval_and_go_on_elsewhere(
        self, provider: DynamoDBHistoryProvider, session_id: str, run: Any, approved: bool
    ) -> None:
        session = a_session(session_id)
        paused = await run(an_agent(Scripted(calls("leave")), provider), "Leave!", session)
        [request] = paused.user_input_requests
        # Another process has the session's text, and the client's answer.
        elsewhere = AgentSession.from_dict(session.to_dict())
        client = Scripted("Done")
        answer = Message("user", [request.to_function_approval_response(approved)])
        result = await run(an_agent(client, provider), answer, elsewhere)
        assert result.text == "Done"
        sent = [content for message in client.calls[0] for content in message.contents]
        assert [content.type for content in sent] == ["text", "function_call", "function_result"]
        assert ("left" in str(sent[-1].result)) is approved

    async def test_of_two_agents_share_a_session(
        self, provider: DynamoDBHistoryProvider, session_id: str, run: Any
    ) -> None:
        await run(an_agent(Scripted("Draft"), provider, name="Writer"), "Write.", a_session(session_id))
        client = Scripted("Better")
        await run(an_agent(client, provider, name="Editor"), "Edit.", a_session(session_id))
        assert texts(client.calls[0]) == ["Write.", "Draft", "Edit."]
        stored = await provider.get_messages(session_id)
        assert [message.author_name for message in stored] == [None, "Writer", None, "Editor"]

    async def test_without_a_session_are_sessions_of_their_own(self, stores: NewStore, owner: str, run: Any) -> None:
        store = stores(session_index=True)
        client = Scripted("Hi", "Hi")
        for _ in range(2):
            await run(an_agent(client, DynamoDBHistoryProvider(store, owner=owner)), "Hello")
        assert texts(client.calls[1]) == ["Hello"]
        assert len((await store.list_sessions(owner)).sessions) == 2

    async def test_cost_a_read_and_a_write(self, through: Through, proxy: Proxy, session_id: str, run: Any) -> None:
        provider = through()
        await provider.get_messages(session_id)
        proxy.seen.clear()
        await run(an_agent(Scripted("Hi"), provider), "Hello", a_session(session_id))
        assert proxy.operations() == ["Query", "PutItem"]


class Reminder(ContextProvider):
    """Adds a message to each run."""

    async def before_run(self, *, context: Any, **_: Any) -> None:
        context.extend_messages(self, [Message("user", [f"from {self.source_id}"])])


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "stored"),
        [
            ({}, ["Hello", "Hi"]),
            ({"store_inputs": False}, ["Hi"]),
            ({"store_outputs": False}, ["Hello"]),
            ({"store_inputs": False, "store_outputs": False}, []),
            ({"store_context_messages": True}, ["from one", "from two", "Hello", "Hi"]),
            ({"store_context_messages": True, "store_context_from": {"two"}}, ["from two", "Hello", "Hi"]),
            ({"load_messages": False}, ["Hello", "Hi"]),
        ],
        ids=str,
    )
    async def test_say_what_is_stored(
        self, stores: NewStore, session_id: str, run: Any, options: dict[str, Any], stored: list[str]
    ) -> None:
        provider = DynamoDBHistoryProvider(stores(), **options)
        await run(an_agent(Scripted("Hi"), provider, Reminder("one"), Reminder("two")), "Hello", a_session(session_id))
        assert texts(await provider.get_messages(session_id)) == stored

    async def test_a_record_beside_the_history_has_a_key_of_its_own(
        self, stores: NewStore, session_id: str, run: Any
    ) -> None:
        history = DynamoDBHistoryProvider(stores())
        audit = DynamoDBHistoryProvider(
            stores(),
            source_id="audit",
            key=lambda session_id, state: {"SessionId": ("audit", session_id)},
            load_messages=False,
            store_context_messages=True,
        )
        client = Scripted("Hi", "Again")
        for text in ("Hello", "Hello again"):
            await run(an_agent(client, history, audit), text, a_session(session_id))
        assert texts(client.calls[1]) == ["Hello", "Hi", "Hello again"]
        assert texts(await history.get_messages(session_id)) == ["Hello", "Hi", "Hello again", "Again"]
        assert texts(await audit.get_messages(session_id))[:2] == ["Hello", "Hi"]

    async def test_name_the_owner_and_the_tenant_by_the_session(
        self, stores: NewStore, session_id: str, owner: str, run: Any
    ) -> None:
        store = stores(session_index=True, key_parts=2)
        provider = DynamoDBHistoryProvider(
            store,
            owner=lambda session_id, state: state["user"],
            key=lambda session_id, state: {"SessionId": (state["tenant"], session_id)},
        )
        for tenant in ("acme", "acme#1"):
            session = a_session(session_id)
            session.state[provider.source_id] = {"user": f"{owner}-{tenant}", "tenant": tenant}
            await run(an_agent(Scripted("Hi"), provider), f"Hello from {tenant}", session)
            [info] = (await store.list_sessions(f"{owner}-{tenant}", format=FORMAT)).sessions
            assert info.message_count == 2
            state = session.state[provider.source_id]
            assert texts(await provider.get_messages(session_id, state=state)) == [f"Hello from {tenant}", "Hi"]

    async def test_sessions_are_purged_with_their_owner(
        self, new_store: NewStore, session_id: str, owner: str, run: Any
    ) -> None:
        store = new_store()
        provider = DynamoDBHistoryProvider(store, owner=owner)
        await run(an_agent(Scripted("Hi"), provider), "Hello", a_session(session_id))
        await store.set_title(session_id, "Greetings")
        [info] = (await store.list_sessions(owner)).sessions
        assert (info.title, info.format) == ("Greetings", "agent-framework")
        assert (await store.purge_owner(owner)).sessions == 1
        assert await provider.get_messages(session_id) == []


class TestConcurrency:
    @pytest.mark.parametrize("number", [10, pytest.param(100, marks=pytest.mark.stress)])
    async def test_sessions_run_on_one_store(self, stores: NewStore, session_id: str, number: int) -> None:
        provider = DynamoDBHistoryProvider(stores(session_index=True), owner=session_id)
        await provider.get_messages(session_id)
        others = set(threading.enumerate())

        async def converse(at: int) -> None:
            session = a_session(f"{session_id}-{at}")
            await an_agent(Scripted(calls("look"), f"Rain {at}"), provider).run(f"Hello {at}", session=session)
            turn = [f"Hello {at}", "function_call", "function_result", f"Rain {at}"]
            assert texts(await provider.get_messages(session.session_id)) == turn

        await asyncio.gather(*map(converse, range(number)))
        assert {thread.name for thread in set(threading.enumerate()) - others} <= SDK_THREADS

    async def test_runs_of_one_session_at_once_are_all_stored_whole(
        self, provider: DynamoDBHistoryProvider, session_id: str, run: Any
    ) -> None:
        agents = [an_agent(Scripted(f"Hi {number}"), provider) for number in range(8)]
        await asyncio.gather(
            *(run(agent, f"Hello {number}", a_session(session_id)) for number, agent in enumerate(agents))
        )
        stored = texts(await provider.get_messages(session_id))
        assert {*zip(stored[::2], stored[1::2])} == {(f"Hello {number}", f"Hi {number}") for number in range(8)}

    async def test_long_sessions_do_not_hold_the_loop(
        self,
        stores: NewStore,
        storage: dict[str, Any],
        session_id: str,
        long_steps: list[str],
    ) -> None:
        provider = DynamoDBHistoryProvider(stores(**storage))
        messages = [user(str(number), f"id-{number}") for number in range(2000)]
        await provider.get_messages(session_id)
        long_steps.clear()
        await provider.save_messages(session_id, messages)
        for _ in range(4):
            assert len(await provider.get_messages(session_id)) == 2000
        assert long_steps == []

    async def test_equal_messages_do_not_hold_the_loop(
        self, provider: DynamoDBHistoryProvider, session_id: str, long_steps: list[str]
    ) -> None:
        same = [user("go on")] * 2000
        await provider.save_messages(session_id, same)
        long_steps.clear()
        await provider.save_messages(session_id, [*same, user("stop", "1")])
        assert long_steps == []


class TestErrors:
    async def test_of_the_library_reach_the_caller_unchanged(
        self, through: Through, proxy: Proxy, session_id: str, run: Any
    ) -> None:
        proxy.schedule = lambda seen: Fault.DENIED
        for error, provider in [
            (TableNotFoundError, DynamoDBHistoryProvider(ChatHistoryStore("no-such-table"))),
            (AccessDeniedError, through()),
        ]:
            for attempt in (provider.get_messages(session_id), provider.save_messages(session_id, [user("x")])):
                with pytest.raises(error):
                    await attempt
            with pytest.raises(error):
                await run(an_agent(Scripted("Hi"), provider), "Hello", a_session(session_id))

    async def test_after_the_store_is_closed(self, stores: NewStore, session_id: str) -> None:
        store = stores()
        await store.aclose()
        with pytest.raises(ClosedError):
            await DynamoDBHistoryProvider(store).get_messages(session_id)

    async def test_of_values_that_are_no_messages(
        self, stores: NewStore, session_id: str, collection_table: str
    ) -> None:
        store = stores()
        await store.json_session(session_id, format=FORMAT).aadd([{"type": "message", "secret": 1}])
        with pytest.raises(
            UndecodableItemError, match=r"not a message .* \(TypeError\): json_session.*apage"
        ) as caught:
            await DynamoDBHistoryProvider(store).get_messages(session_id)
        assert caught.value.table_name == collection_table
        assert caught.value.session_key == {"SessionId": session_id}
        assert "secret" not in str(caught.value)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)

    async def test_of_values_that_are_no_messages_do_not_stop_the_record(
        self, stores: NewStore, session_id: str
    ) -> None:
        values = stores().json_session(session_id, format=FORMAT)
        await values.aadd(["x", {"message_id": ["1"]}, None])
        await DynamoDBHistoryProvider(stores()).save_messages(session_id, [U1, A1])
        await DynamoDBHistoryProvider(stores()).save_messages(session_id, [U1, A1, U2])
        assert dumps([U1, A1, U2]) == (await values.aget())[3:]

    async def test_of_other_formats(self, stores: NewStore, session_id: str) -> None:
        store = stores()
        await store.json_session(session_id, format="other").aadd([1])
        with pytest.raises(FormatError, match="format='other'"):
            await DynamoDBHistoryProvider(store).get_messages(session_id)

    async def test_of_messages_that_are_too_large(self, provider: DynamoDBHistoryProvider, session_id: str) -> None:
        with pytest.raises(ItemTooLargeError):
            await provider.save_messages(session_id, [user("fine"), user(os.urandom(4_000_000).hex())])
        assert await provider.get_messages(session_id) == []

    async def test_of_stores_that_do_not_fit(self, stores: NewStore, table: str, session_id: str) -> None:
        single = DynamoDBHistoryProvider(ChatHistoryStore(table, layout="single_item"))
        with pytest.raises(LayoutError):
            await single.get_messages(session_id)
        with pytest.raises(ValueError, match="owner needs"):
            await DynamoDBHistoryProvider(stores(), owner="alice").get_messages(session_id)


def test_the_provider_is_one_of_the_framework(provider: DynamoDBHistoryProvider) -> None:
    assert isinstance(provider, HistoryProvider)
    assert provider.source_id == "dynamodb"


async def test_the_page_is_true(collection_table: str) -> None:
    names: dict[str, Any] = {"client": Scripted("Hi")}
    await of_page("agents/agent-framework.md", names, {"Chats": collection_table})
    async with ChatHistoryStore(collection_table) as store:
        stored = await DynamoDBHistoryProvider(store).get_messages("first-chat")
    assert texts(stored) == ["I am Alice.", "Hi"]
