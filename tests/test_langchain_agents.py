"""ChatHistoryMiddleware in agents of create_agent: what is stored, what the model is sent, what is streamed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from agents_langchain import (
    BOTH_CALLS,
    CALLS,
    Agent,
    Call,
    FileSaver,
    Flaky,
    Script,
    agent_of,
    asynchronously,
    calling,
    names,
    ok,
    on_thread,
    record_of,
    script,
    synchronously,
    waiting,
)
from conftest import NewStore
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from proxy import Fault, Proxy, Seen
from pydantic import BaseModel

from chathistory_async import ChatHistoryStore, EndpointError, ServiceError
from chathistory_async.integrations.langchain import ChatHistoryMiddleware

WRITES = {"PutItem", "UpdateItem", "TransactWriteItems"}

pytestmark = pytest.mark.sampled


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


async def add_old_turn(store: ChatHistoryStore, session_id: str) -> None:
    """Store a turn from before the thread had a checkpointer."""
    await store.session(session_id).aadd_messages([HumanMessage("old", id="old"), AIMessage("before", id="before")])


class TestTurns:
    @BOTH_CALLS
    async def test_two_turns(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        model = script()
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver)
        await call(agent, "one", session_id)
        result = await call(agent, "two", session_id)
        assert await record_of(store, session_id) == "H AI H AI"
        assert names(model.seen[-1]) == "H AI H"
        assert len(result["messages"]) == (4 if saver else 2)

    async def test_another_agent_goes_on(self, store: ChatHistoryStore, session_id: str, call: Call) -> None:
        await call(agent_of(script(), ChatHistoryMiddleware(store)), "one", session_id)
        model = script()
        await call(agent_of(model, ChatHistoryMiddleware(store)), "two", session_id)
        assert [message.content for message in model.seen[-1]] == ["one", "fine", "two"]

    @pytest.mark.parametrize("tools", [["ok"], ["ok", "ok2"]])
    async def test_tools(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None, tools: list[str]
    ) -> None:
        model = script(calling(*tools))
        both = [ok, tool("ok2", ok.func)]  # type: ignore[attr-defined]
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver, tools=both)
        await call(agent, "one", session_id)
        whole = f"H AI({','.join(tools)}) {'T ' * len(tools)}AI"
        assert await record_of(store, session_id) == whole
        await call(agent, "two", session_id)
        assert names(model.seen[-1]) == f"{whole} H"
        kinds = {type(message) for message in await store.session(session_id).aget_messages()}
        assert kinds == {HumanMessage, AIMessage, ToolMessage}

    @BOTH_CALLS
    async def test_a_tool_that_raises_leaves_no_half_a_step(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        model = script(calling("ok", "flaky"))
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver, tools=[ok, Flaky().tool()])
        with pytest.raises(RuntimeError, match="broken"):
            await call(agent, "one", session_id)
        assert await record_of(store, session_id) == "H"
        await call(agent, "two", session_id)
        assert await record_of(store, session_id) == "H H AI"
        # Also where the checkpointed state itself has the call.
        assert names(model.seen[-1]) == "H H"
        if saver:
            state = await agent.aget_state(on_thread(session_id))
            assert names(state.values["messages"]) == "H AI(ok,flaky) H AI"

    async def test_a_tool_that_recovers(self, store: ChatHistoryStore, session_id: str, call: Call) -> None:
        flaky, model = Flaky(), script(calling("ok", "flaky"))
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=InMemorySaver(), tools=[ok, flaky.tool()])
        with pytest.raises(RuntimeError, match="broken"):
            await call(agent, "one", session_id)
        flaky.recovered = True
        await call(agent, None, session_id)
        assert await record_of(store, session_id) == "H AI(ok,flaky) T T AI"
        assert names(model.seen[-1]) == "H AI(ok,flaky) T T"

    async def test_return_direct(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        model = script(calling("direct"))
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver)
        await call(agent, "one", session_id)
        assert await record_of(store, session_id) == "H AI(direct) T"
        await call(agent, "two", session_id)
        assert names(model.seen[-1]) == "H AI(direct) T H"

    async def test_structured_output(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        class Out(BaseModel):
            number: int = 5

        model = script(calling("Out"))
        agent = agent_of(
            model, ChatHistoryMiddleware(store), checkpointer=saver, response_format=ToolStrategy(Out), tools=[]
        )
        result = await call(agent, "one", session_id)
        assert result["structured_response"] == Out()
        assert await record_of(store, session_id) == "H AI(Out) T"

    @pytest.mark.parametrize("first", [True, False], ids=["history first", "limit first"])
    async def test_a_limit_of_model_calls(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None, first: bool
    ) -> None:
        limit = ModelCallLimitMiddleware(run_limit=1, exit_behavior="end")
        middleware = [ChatHistoryMiddleware(store), limit]
        model = script(calling("ok"))
        agent = agent_of(model, *(middleware if first else reversed(middleware)), checkpointer=saver)
        await call(agent, "one", session_id)
        assert await record_of(store, session_id) == "H AI(ok) T AI"

    async def test_a_call_that_cannot_be_parsed_is_stored_and_not_sent_without_a_result(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        broken = {"name": "ok", "args": "{", "id": "c", "error": "no JSON", "type": "invalid_tool_call"}
        model = script(AIMessage("I call", invalid_tool_calls=[broken]))
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver)
        await call(agent, "one", session_id)
        assert await record_of(store, session_id) == "H AI"
        await call(agent, "two", session_id)
        # langchain answers it where it is in the state.
        assert names(model.seen[-1]) == ("H AI T H" if saver else "H H")

    async def test_an_agent_as_a_node(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        model = script()
        parent = StateGraph(MessagesState)
        parent.add_node("agent", agent_of(model, ChatHistoryMiddleware(store)))
        parent.add_edge(START, "agent")
        graph = parent.compile(checkpointer=saver)
        for text in ("one", "two", "three"):
            await call(graph, text, session_id)
        assert await record_of(store, session_id) == "H AI H AI H AI"
        assert names(model.seen[-1]) == "H AI H AI H"

    async def test_an_agent_inside_a_tool_has_a_session_of_its_own(
        self, store: ChatHistoryStore, session_id: str
    ) -> None:
        inner = agent_of(script(), ChatHistoryMiddleware(store, session=lambda state, runtime: f"{session_id}-inner"))

        @tool
        async def ask() -> str:
            """Ask another agent."""
            result = await inner.ainvoke({"messages": [HumanMessage("inner")]})
            return str(result["messages"][-1].content)

        outer = agent_of(script(calling("ask")), ChatHistoryMiddleware(store), tools=[ask])
        await asynchronously(outer, "one", session_id)
        assert await record_of(store, session_id) == "H AI(ask) T AI"
        assert await record_of(store, f"{session_id}-inner") == "H AI"

    async def test_time_travel_stores_what_is_new(self, store: ChatHistoryStore, session_id: str) -> None:
        agent = agent_of(script(), ChatHistoryMiddleware(store), checkpointer=InMemorySaver())
        await asynchronously(agent, "one", session_id)
        after_one = await agent.aget_state(on_thread(session_id))
        await asynchronously(agent, "two", session_id)
        await agent.ainvoke({"messages": [HumanMessage("instead")]}, after_one.config)
        stored = [message.content for message in await store.session(session_id).aget_messages()]
        assert stored == ["one", "fine", "two", "fine", "instead", "fine"]


class TestOlderHistory:
    """The thread had a history before it had a checkpointer."""

    async def test_the_model_is_sent_it_in_every_turn(
        self, store: ChatHistoryStore, session_id: str, call: Call
    ) -> None:
        await add_old_turn(store, session_id)
        model = script()
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=InMemorySaver())
        for text in ("one", "two", "three"):
            result = await call(agent, text, session_id)
        assert names(model.seen[1]) == "H AI H AI H"
        assert names(model.seen[-1]) == "H AI H AI H AI H"
        assert model.seen[-1][0].content == "old"
        assert len(result["messages"]) == 6
        assert await record_of(store, session_id) == "H AI H AI H AI H AI"

    async def test_after_an_error_of_the_provider(self, store: ChatHistoryStore, session_id: str, call: Call) -> None:
        await add_old_turn(store, session_id)
        model, saver = script(ConnectionError("overloaded")), InMemorySaver()
        with pytest.raises(ConnectionError, match="overloaded"):
            await call(agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver), "one", session_id)
        # Only the node of the model runs again, here in another process.
        model = script()
        await call(agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver), None, session_id)
        assert names(model.seen[-1]) == "H AI H"
        assert await record_of(store, session_id) == "H AI H AI"

    async def test_after_an_interrupt_in_another_process(
        self, store: ChatHistoryStore, session_id: str, call: Call
    ) -> None:
        call = waiting(call)
        await add_old_turn(store, session_id)
        saver = InMemorySaver()

        def agent(model: Script) -> Agent:
            approval = HumanInTheLoopMiddleware({"ok": True})
            return agent_of(model, ChatHistoryMiddleware(store), approval, checkpointer=saver)

        await call(agent(script(calling("ok"))), "one", session_id)
        assert await record_of(store, session_id) == "H AI H"
        model = script()
        await call(agent(model), Command(resume={"decisions": [{"type": "approve"}]}), session_id)
        assert names(model.seen[-1]) == "H AI H AI(ok) T"
        assert await record_of(store, session_id) == "H AI H AI(ok) T AI"

    async def test_what_others_wrote_meanwhile_is_kept(self, store: ChatHistoryStore, session_id: str) -> None:
        model = script()
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=InMemorySaver())
        await asynchronously(agent, "one", session_id)
        await add_old_turn(store, session_id)
        await asynchronously(agent, "two", session_id)
        assert await record_of(store, session_id) == "H AI H AI H AI"


class TestLimit:
    async def test_the_window_begins_with_a_human_message(
        self, store: ChatHistoryStore, session_id: str, call: Call
    ) -> None:
        model = script(calling("ok"))
        agent = agent_of(model, ChatHistoryMiddleware(store, limit=3))
        for text in ("one", "two", "three"):
            await call(agent, text, session_id)
        assert names(model.seen[-1]) == "H AI H"
        assert await record_of(store, session_id) == "H AI(ok) T AI H AI H AI"

    async def test_a_long_record_is_read_whole_without_it(self, store: ChatHistoryStore, session_id: str) -> None:
        for start in range(0, 300, 100):
            batch = [HumanMessage(f"{start + number}") for number in range(100)]
            await store.session(session_id).aadd_messages(batch)
        model = script()
        await asynchronously(agent_of(model, ChatHistoryMiddleware(store)), "last", session_id)
        assert [message.content for message in model.seen[-1]] == [*map(str, range(300)), "last"]

    async def test_history_size_holds_too(self, new_store: NewStore, session_id: str) -> None:
        model = script()
        agent = agent_of(model, ChatHistoryMiddleware(new_store(history_size=4)))
        for text in ("one", "two", "three", "four"):
            await asynchronously(agent, text, session_id)
        assert names(model.seen[-1]) == "H AI H AI H"


# On Python 3.10, LangChain streams an agent's tokens in synchronous code only: an asynchronous node does not pass its
# callbacks on to the model.
STREAMED = AIMessageChunk if sys.version_info >= (3, 11) else AIMessage


class TestStreams:
    @pytest.mark.parametrize("old", [True, False])
    async def test_messages_are_only_those_of_the_model_and_its_tools(
        self, store: ChatHistoryStore, session_id: str, saver: InMemorySaver | None, old: bool
    ) -> None:
        if old:
            await add_old_turn(store, session_id)
        agent = agent_of(script(calling("ok"), AIMessage("new")), ChatHistoryMiddleware(store), checkpointer=saver)
        value, config = {"messages": [HumanMessage("one")]}, on_thread(session_id)
        found = [message async for message, _ in agent.astream(value, config, stream_mode="messages")]
        assert all(isinstance(message, (STREAMED, ToolMessage)) for message in found)
        assert "".join(message.text for message in found if isinstance(message, STREAMED)) == "new"
        assert [message.content for message in found if isinstance(message, ToolMessage)] == ["done"]

    async def test_other_modes_have_no_past_message(
        self, store: ChatHistoryStore, session_id: str, saver: InMemorySaver | None
    ) -> None:
        await add_old_turn(store, session_id)
        agent = agent_of(script(calling("ok")), ChatHistoryMiddleware(store), checkpointer=saver)
        value, config = {"messages": [HumanMessage("one")]}, on_thread(session_id)
        modes: list[Any] = ["updates", "values", "debug", "tasks", "checkpoints", "custom"]
        found = [part async for part in agent.astream(value, config, stream_mode=modes)]
        assert {"updates", "values", "debug", "tasks"} <= {mode for mode, _ in found}
        assert not any(word in repr(found) for word in ("'old'", "'before'"))

    async def test_updates_of_the_middleware_are_text(self, store: ChatHistoryStore, session_id: str) -> None:
        await add_old_turn(store, session_id)
        agent = agent_of(script(calling("ok")), ChatHistoryMiddleware(store))
        value, config = {"messages": [HumanMessage("one")]}, on_thread(session_id)
        async for part in agent.astream(value, config, stream_mode="updates"):
            for node, update in part.items():
                if node.startswith("ChatHistoryMiddleware"):
                    json.dumps(update)

    async def test_events_have_only_new_tokens(
        self, store: ChatHistoryStore, session_id: str, saver: InMemorySaver | None
    ) -> None:
        await add_old_turn(store, session_id)
        agent = agent_of(script(AIMessage("new")), ChatHistoryMiddleware(store), checkpointer=saver)
        events = agent.astream_events({"messages": [HumanMessage("one")]}, on_thread(session_id), version="v2")
        tokens = [event["data"]["chunk"].text async for event in events if event["event"] == "on_chat_model_stream"]
        assert "".join(tokens) == ("new" if STREAMED is AIMessageChunk else "")

    def test_synchronous_streams(self, store: ChatHistoryStore, session_id: str, saver: InMemorySaver | None) -> None:
        store.session(session_id).add_messages([HumanMessage("old", id="old"), AIMessage("before", id="before")])
        agent = agent_of(script(AIMessage("new")), ChatHistoryMiddleware(store), checkpointer=saver)
        value, config = {"messages": [HumanMessage("one")]}, on_thread(session_id)
        found = [message for message, _ in agent.stream(value, config, stream_mode="messages")]
        assert all(isinstance(message, AIMessageChunk) for message in found)
        assert "".join(message.text for message in found if isinstance(message, AIMessageChunk)) == "new"

    async def test_what_is_noted_is_in_no_schema_and_no_result(
        self, store: ChatHistoryStore, session_id: str, saver: InMemorySaver | None
    ) -> None:
        agent = agent_of(script(), ChatHistoryMiddleware(store), checkpointer=saver)
        assert "istory" not in json.dumps([agent.get_input_jsonschema(), agent.get_output_jsonschema()])
        assert (await asynchronously(agent, "one", session_id)).keys() == {"messages"}

    async def test_a_stream_that_is_abandoned(self, store: ChatHistoryStore, session_id: str) -> None:
        agent = agent_of(script(AIMessage("a long answer")), ChatHistoryMiddleware(store))
        stream = agent.astream({"messages": [HumanMessage("one")]}, on_thread(session_id), stream_mode="messages")
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        assert await record_of(store, session_id) == "H"


DECISIONS = {
    "approve": {"type": "approve"},
    "edit": {"type": "edit", "edited_action": {"name": "ok", "args": {}}},
    "reject": {"type": "reject", "message": "no"},
}


# The decision, the mode, whether the history comes before the approval, and whether another agent resumes the run.
WAYS_TO_DECIDE = [
    pytest.param(*way, marks=[] if at % 5 == 0 else pytest.mark.stress)
    for at, way in enumerate(itertools.product(DECISIONS, ["batched", "per_call"], [True, False], [True, False]))
]


@pytest.mark.parametrize(("decision", "mode", "first", "other"), WAYS_TO_DECIDE)
async def test_a_human_decides(
    store: ChatHistoryStore, session_id: str, call: Call, decision: str, mode: Any, first: bool, other: bool
) -> None:
    call = waiting(call)
    saver = InMemorySaver()

    def agent(model: Script) -> Agent:
        options = {} if mode == "batched" else {"interrupt_mode": mode}
        middleware = [ChatHistoryMiddleware(store), HumanInTheLoopMiddleware({"ok": True}, **options)]
        return agent_of(model, *(middleware if first else reversed(middleware)), checkpointer=saver)

    model = script(calling("ok"))
    before = agent(model)
    result = await call(before, "one", session_id)
    assert await record_of(store, session_id) == "H"
    after = agent(model) if other else before
    answer = DECISIONS[decision]
    [interrupt] = result["__interrupt__"]
    resume = {"decisions": [answer]} if mode == "batched" else {interrupt.id: answer}
    await call(after, Command(resume=resume), session_id)
    assert await record_of(store, session_id) == "H AI(ok) T AI"
    assert names(model.seen[-1]) == "H AI(ok) T"
    await call(after, "two", session_id)
    assert names(model.seen[-1]) == "H AI(ok) T AI H"


# Goes on with the run of another process, and tells its caller what the model is sent.
RESUMES = """
import json, sys
from pathlib import Path
from agents_langchain import FileSaver, agent_of, names, on_thread, script
from chathistory_async import ChatHistoryStore
from chathistory_async.integrations.langchain import ChatHistoryMiddleware
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langgraph.types import Command

table, session, path, decision = sys.argv[1:]
model = script()
middleware = [ChatHistoryMiddleware(ChatHistoryStore(table)), HumanInTheLoopMiddleware({"ok": True})]
agent = agent_of(model, *middleware, checkpointer=FileSaver(Path(path)))
agent.invoke(Command(resume={"decisions": [json.loads(decision)]}), on_thread(session))
print(names(model.seen[-1]))
"""


@pytest.mark.parametrize("decision", ["approve", pytest.param("edit", marks=pytest.mark.stress), "reject"])
async def test_a_human_decides_in_another_process(
    store: ChatHistoryStore, collection_table: str, session_id: str, tmp_path: Path, decision: str
) -> None:
    await add_old_turn(store, session_id)
    model, path = script(calling("ok")), tmp_path / "checkpoints"
    middleware = [ChatHistoryMiddleware(store), HumanInTheLoopMiddleware({"ok": True})]
    call = waiting(asynchronously)
    await call(agent_of(model, *middleware, checkpointer=FileSaver(path)), "one", session_id)
    assert await record_of(store, session_id) == "H AI H"
    command = [sys.executable, "-c", RESUMES, collection_table, session_id, str(path), json.dumps(DECISIONS[decision])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}

    def resume() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    assert (await asyncio.to_thread(resume)).strip() == "H AI H AI(ok) T"
    assert await record_of(store, session_id) == "H AI H AI(ok) T AI"
    result = (await store.session(session_id).aget_messages())[4]
    assert {"approve": "done", "edit": "done", "reject": "no"}[decision] in result.text
    model = script()
    await call(agent_of(model, *middleware, checkpointer=FileSaver(path)), "two", session_id)
    assert names(model.seen[-1]) == "H AI H AI(ok) T AI H"


async def test_a_human_writes_instead_of_deciding(store: ChatHistoryStore, session_id: str, call: Call) -> None:
    call = waiting(call)
    model = script(calling("ok"))
    agent = agent_of(
        model, ChatHistoryMiddleware(store), HumanInTheLoopMiddleware({"ok": True}), checkpointer=InMemorySaver()
    )
    await call(agent, "one", session_id)
    await call(agent, "two", session_id)
    assert await record_of(store, session_id) == "H H AI"
    assert names(model.seen[-1]) == "H H"


class TestRepeats:
    async def test_a_retry_without_an_id_is_a_second_message(
        self, store: ChatHistoryStore, session_id: str, call: Call
    ) -> None:
        model = script(ConnectionError("overloaded"))
        agent = agent_of(model, ChatHistoryMiddleware(store))
        with pytest.raises(ConnectionError):
            await call(agent, "one", session_id)
        await call(agent, "one", session_id)
        assert await record_of(store, session_id) == "H H AI"
        assert names(model.seen[-1]) == "H H"

    async def test_a_retry_with_the_same_id_is_stored_once(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
    ) -> None:
        model = script(ConnectionError("overloaded"))
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver)
        with pytest.raises(ConnectionError):
            await call(agent, {"messages": [HumanMessage("one", id="one")]}, session_id)
        await call(agent, {"messages": [HumanMessage("one", id="one")]}, session_id)
        assert await record_of(store, session_id) == "H AI"
        assert names(model.seen[-1]) == "H"

    @pytest.mark.parametrize("load", ["beside", "state"])
    async def test_a_question_that_is_sent_again_does_not_follow_its_answer(
        self, store: ChatHistoryStore, session_id: str, call: Call, load: Any
    ) -> None:
        model = script(calling("ok"), AIMessage("one"), calling("ok"), AIMessage("two"))
        agent = agent_of(model, ChatHistoryMiddleware(store, load=load))
        for text in ("one", "two", "two"):
            await call(agent, {"messages": [HumanMessage(text, id=text)]}, session_id)
        assert names(model.seen[-1]) == "H AI(ok) T AI H"
        assert model.seen[-1][-1].content == "two"
        assert await record_of(store, session_id) == "H AI(ok) T AI H AI(ok) T AI AI"

    @pytest.mark.parametrize("limit", [None, 2])
    async def test_a_client_that_sends_everything_with_ids(
        self, store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None, limit: int | None
    ) -> None:
        model, sent = script(calling("ok")), list[BaseMessage]()
        agent = agent_of(model, ChatHistoryMiddleware(store, limit=limit), checkpointer=saver)
        for text in ("one", "two", "three"):
            sent.append(HumanMessage(text, id=text))
            sent = (await call(agent, {"messages": sent}, session_id))["messages"]
        assert await record_of(store, session_id) == "H AI(ok) T AI H AI H AI"
        assert names(model.seen[-1]) == "H AI(ok) T AI H AI H"

    async def test_a_client_that_sends_everything_without_ids_is_not_recognised(
        self, store: ChatHistoryStore, session_id: str
    ) -> None:
        agent = agent_of(script(), ChatHistoryMiddleware(store))
        await asynchronously(agent, {"messages": [HumanMessage("one")]}, session_id)
        again = [HumanMessage("one"), AIMessage("fine"), HumanMessage("two")]
        await asynchronously(agent, {"messages": again}, session_id)
        assert await record_of(store, session_id) == "H AI H AI H AI"

    async def test_what_was_deleted_from_the_record_stays_deleted(
        self, store: ChatHistoryStore, session_id: str, call: Call
    ) -> None:
        model = script()
        agent = agent_of(model, ChatHistoryMiddleware(store), checkpointer=InMemorySaver())
        await call(agent, "one", session_id)
        page = await store.session(session_id).apage()
        await store.session(session_id).adelete_messages([page.messages[-1].id])
        await call(agent, "two", session_id)
        assert await record_of(store, session_id) == "H H AI"
        # The checkpoint still has it.
        assert names(model.seen[-1]) == "H AI H"

    @pytest.mark.parametrize(("deleted", "stored"), [("first", "AI H AI"), ("last", "H AI H AI")])
    async def test_what_was_deleted_and_is_sent_again_without_a_checkpointer(
        self, store: ChatHistoryStore, session_id: str, call: Call, deleted: str, stored: str
    ) -> None:
        agent = agent_of(script(), ChatHistoryMiddleware(store))
        result = await call(agent, {"messages": [HumanMessage("one", id="one")]}, session_id)
        page = await store.session(session_id).apage()
        await store.session(session_id).adelete_messages([page.messages[0 if deleted == "first" else -1].id])
        await call(agent, {"messages": [*result["messages"], HumanMessage("two", id="two")]}, session_id)
        # Stays deleted only if a message after it is stored: the page of the documentation says so.
        assert await record_of(store, session_id) == stored


class Mortal(InMemorySaver):
    """A checkpointer that a process which has been killed does not reach any more."""

    dead = False

    def put(self, *arguments: Any, **options: Any) -> Any:
        return arguments[0] if self.dead else super().put(*arguments, **options)

    def put_writes(self, *arguments: Any, **options: Any) -> None:
        if not self.dead:
            super().put_writes(*arguments, **options)


class TestKilled:
    """Between a write and its checkpoint."""

    @pytest.mark.parametrize("at", [1, 2, 3])
    @pytest.mark.parametrize("again", ["resumed", "sent again"])
    async def test_nothing_is_stored_twice(
        self, store_through: NewStore, proxy: Proxy, session_id: str, call: Call, at: int, again: str
    ) -> None:
        saver, store, writes = Mortal(), store_through(), set[str]()
        await store.session(session_id).aget_messages()
        await store.session(f"{session_id}-before").aadd_messages([HumanMessage("")])

        def kill(seen: Seen) -> Fault:
            if seen.operation not in WRITES:
                return Fault.NONE
            # On a busy machine, a request may be sent again.
            writes.add(seen.body["ClientRequestToken"])
            if len(writes) < at:
                return Fault.NONE
            saver.dead = True
            return Fault.DELAY

        class Killed(Script):
            """A process ends at its next step."""

            def _generate(self, *arguments: Any, **options: Any) -> Any:
                if saver.dead:
                    raise SystemError("killed")
                return super()._generate(*arguments, **options)

        proxy.schedule = kill
        model = Killed(answers=[calling("ok")], seen=[])
        value = {"messages": [HumanMessage("one", id="one")]}
        mortal = agent_of(model, ChatHistoryMiddleware(store), checkpointer=saver)
        # Otherwise the checkpoint of a step is written beside the next step, and may come after the process's end.
        with pytest.raises(SystemError, match="killed") if at < 3 else nullcontext():
            await call(mortal, value, session_id, durability="sync")
        proxy.schedule, saver.dead = lambda seen: Fault.NONE, False
        before = await record_of(store, session_id)
        assert before == ["H", "H AI(ok) T", "H AI(ok) T AI"][at - 1]
        after = script(*([calling("ok")] if at == 1 else []))
        agent = agent_of(after, ChatHistoryMiddleware(store), checkpointer=saver)
        await call(agent, None if again == "resumed" else value, session_id)
        stored = await store.session(session_id).aget_messages()
        ended = at == 3 and again == "resumed"
        assert names(stored) == (before if ended else {1: "H AI(ok) T AI"}.get(at, f"{before} AI"))
        assert len({message.id for message in stored}) == len(stored)

    @pytest.mark.parametrize("fault", [Fault.LOST_RESPONSE, Fault.LATE_ERROR])
    async def test_a_lost_answer(
        self,
        store_through: NewStore,
        proxy: Proxy,
        session_id: str,
        call: Call,
        saver: InMemorySaver | None,
        fault: Fault,
    ) -> None:
        store = store_through(attempts=1, fast_path=False)
        agent = agent_of(script(), ChatHistoryMiddleware(store), checkpointer=saver)
        await call(agent, "warm", f"{session_id}-before")
        value = {"messages": [HumanMessage("one", id="one")]}
        proxy.script(fault, operation="Write")
        with pytest.raises(EndpointError if fault is Fault.LOST_RESPONSE else ServiceError):
            await call(agent, value, session_id)
        assert await record_of(store, session_id) == "H"
        await call(agent, value, session_id)
        assert await record_of(store, session_id) == "H AI"
