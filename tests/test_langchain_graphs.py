"""``load_history`` and ``save_history`` as nodes of graphs that are built by hand."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from agents_langchain import (
    BOTH_CALLS,
    CALLS,
    Call,
    Flaky,
    agent_of,
    asynchronously,
    calling,
    names,
    ok,
    record_of,
    script,
    synchronously,
    waiting,
)
from conftest import NewStore
from engines import SDK_THREADS
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.runtime import Runtime
from langgraph.types import Command
from proxy import Fault, Proxy

from chathistory_async import AccessDeniedError, ChatHistoryStore, integrations
from chathistory_async.integrations.langchain import (
    ChatHistoryMiddleware,
    HistoryState,
    load_history,
    save_history,
)

pytestmark = pytest.mark.sampled


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Call:
    """Runs a graph, in each of the two ways."""
    return asynchronously if request.param == "async" else synchronously


@pytest.fixture(params=["checkpointer", "no checkpointer"])
def saver(request: pytest.FixtureRequest) -> InMemorySaver | None:
    return InMemorySaver() if request.param == "checkpointer" else None


@pytest.fixture(params=["collection", "single item"])
def store(request: pytest.FixtureRequest, new_store: NewStore, table: str) -> Iterator[ChatHistoryStore]:
    if request.param == "collection":
        yield new_store()
        return
    single = ChatHistoryStore(table, layout="single_item")
    yield single
    single.close()


def graph_of(
    model: BaseChatModel,
    store: ChatHistoryStore,
    saver: InMemorySaver | None = None,
    *,
    state: Any = HistoryState,
    tools: Any = (ok,),
    **options: Any,
) -> Any:
    """A model and its tools. Complete steps are stored before each call of the model, and at the end."""

    def answer(state: Any) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def aanswer(state: Any) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def after_model(state: Any) -> str:
        return "tools" if state["messages"][-1].tool_calls else "save_rest"

    on_error = options.get("on_error", "raise")
    graph = StateGraph(state)
    graph.add_node("load", load_history(store, **options))
    graph.add_node("save", save_history(store, on_error=on_error))
    graph.add_node("model", RunnableLambda(answer, aanswer))
    graph.add_node("tools", ToolNode(list(tools), handle_tool_errors=False))
    graph.add_node("save_rest", save_history(store, on_error=on_error))
    graph.add_edge(START, "load")
    graph.add_edge("load", "save")
    graph.add_edge("save", "model")
    graph.add_conditional_edges("model", after_model, ["tools", "save_rest"])
    graph.add_edge("tools", "save")
    graph.add_edge("save_rest", END)
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("state", [HistoryState, MessagesState])
async def test_turns(
    store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None, state: Any
) -> None:
    await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
    model = script(calling("ok"))
    graph = graph_of(model, store, saver, state=state)
    for text in ("one", "two", "three"):
        await call(graph, text, session_id)
    assert await record_of(store, session_id) == "H AI H AI(ok) T AI H AI H AI"
    assert names(model.seen[-1]) == "H AI H AI(ok) T AI H AI H"
    await store.aclose()


@BOTH_CALLS
async def test_a_tool_that_raises(
    store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
) -> None:
    flaky = Flaky()
    graph = graph_of(script(calling("ok", "flaky")), store, saver, tools=[ok, flaky.tool()])
    with pytest.raises(RuntimeError, match="broken"):
        await call(graph, "one", session_id)
    assert await record_of(store, session_id) == "H"
    if saver:
        flaky.recovered = True
        await call(graph, None, session_id)
        assert await record_of(store, session_id) == "H AI(ok,flaky) T T AI"
    await store.aclose()


@pytest.mark.parametrize("state", [HistoryState, MessagesState])
async def test_a_message_that_is_sent_again(
    store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None, state: Any
) -> None:
    model = script(ConnectionError("overloaded"))
    graph = graph_of(model, store, saver, state=state)
    value = {"messages": [HumanMessage("one", id="one")]}
    with pytest.raises(ConnectionError):
        await call(graph, value, session_id)
    await call(graph, value, session_id)
    assert await record_of(store, session_id) == "H AI"
    assert names(model.seen[-1]) == "H"
    await store.aclose()


async def test_half_a_step_is_not_loaded(new_store: NewStore, session_id: str, call: Call) -> None:
    store, model = new_store(), script()
    await store.session(session_id).aadd_messages([HumanMessage("old"), calling("ok")])
    await call(graph_of(model, store), "one", session_id)
    assert names(model.seen[-1]) == "H H"
    assert await record_of(store, session_id) == "H AI(ok) H AI"


async def test_a_limit(new_store: NewStore, session_id: str, call: Call) -> None:
    store, model = new_store(), script()
    graph = graph_of(model, store, limit=2)
    for text in ("one", "two", "three"):
        await call(graph, text, session_id)
    assert names(model.seen[-1]) == "H AI H"
    assert await record_of(store, session_id) == "H AI H AI H AI"


async def test_what_was_deleted_stays_deleted(new_store: NewStore, session_id: str, call: Call) -> None:
    store = new_store()
    graph = graph_of(script(), store, InMemorySaver())
    await call(graph, "one", session_id)
    page = await store.session(session_id).apage()
    await store.session(session_id).adelete_messages([page.messages[-1].id])
    await call(graph, "two", session_id)
    assert await record_of(store, session_id) == "H H AI"


@BOTH_CALLS
async def test_requests_of_a_turn(
    store_through: NewStore, proxy: Proxy, session_id: str, call: Call, saver: InMemorySaver | None
) -> None:
    graph = graph_of(script(), store_through(), saver)
    await call(graph, "one", session_id)
    proxy.seen.clear()
    await call(graph, "two", session_id)
    assert proxy.operations() == ["Query", "TransactWriteItems", "TransactWriteItems"]


# Not whole graphs: on Python 3.10, LangChain starts threads in them.
async def test_nodes_start_no_thread(store: ChatHistoryStore, session_id: str, started_threads: list[str]) -> None:
    await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
    load: Any = load_history(store, session=lambda state, runtime: session_id)
    save: Any = save_history(store, session=lambda state, runtime: session_id)
    state: dict[str, Any] = {"messages": [HumanMessage("one", id="one")]}
    state |= await load.afunc(state, Runtime())
    del state["messages"][0]
    await save.afunc(state, Runtime())
    assert await record_of(store, session_id) == "H AI H"
    assert set(started_threads) <= SDK_THREADS
    await store.aclose()


async def test_only_saving(new_store: NewStore, session_id: str, call: Call, saver: InMemorySaver | None) -> None:
    store = new_store()
    graph = StateGraph(HistoryState)
    graph.add_node("save", save_history(store))
    graph.add_edge(START, "save")
    compiled = graph.compile(checkpointer=saver)
    for text in ("one", "two"):
        await call(compiled, text, session_id)
    assert await record_of(store, session_id) == "H H"


async def test_errors(store_through: NewStore, proxy: Proxy, session_id: str, call: Call) -> None:
    graph = graph_of(script(), store_through())
    await call(graph, "one", session_id)
    for operation in ("Query", "Write"):
        proxy.script(Fault.DENIED, Fault.DENIED, operation=operation)
        with pytest.raises(AccessDeniedError):
            await call(graph, "two", session_id)


async def test_logged_errors(
    store_through: NewStore, proxy: Proxy, session_id: str, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    store, model = store_through(), script()
    graph = graph_of(model, store, on_error="log")
    await call(graph, "one", session_id)
    proxy.script(Fault.DENIED, Fault.DENIED, operation="Query")
    with caplog.at_level(logging.ERROR, "chathistory_async"):
        await call(graph, "two", session_id)
    assert "was not read" in caplog.text
    assert names(model.seen[-1]) == "H"
    assert await record_of(store, session_id) == "H AI H AI"


@pytest.mark.parametrize("denied", [2, 100], ids=["the first read", "everything"])
async def test_older_history_is_loaded_once_the_store_is_back(
    store_through: NewStore, proxy: Proxy, session_id: str, call: Call, denied: int
) -> None:
    store, model = store_through(), script()
    await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
    graph = graph_of(model, store, InMemorySaver(), on_error="log")
    proxy.script(*[Fault.DENIED] * denied)
    await call(graph, "one", session_id)
    assert names(model.seen[-1]) == "H"
    proxy.script()
    for text in ("two", "three"):
        await call(graph, text, session_id)
    assert names(model.seen[-1]) == "H AI H AI H AI H"
    assert await record_of(store, session_id) == "H AI H AI H AI H AI"


async def test_what_is_noted_can_be_left_out_of_the_result(new_store: NewStore, session_id: str, call: Call) -> None:
    graph = StateGraph(MessagesState)
    store = new_store()
    graph.add_node("load", load_history(store), input_schema=HistoryState)
    graph.add_node("save", save_history(store), input_schema=HistoryState)
    graph.add_edge(START, "load")
    graph.add_edge("load", "save")
    compiled = graph.compile()
    assert (await call(compiled, "one", session_id)).keys() == {"messages"}
    assert await record_of(store, session_id) == "H"


async def test_an_agent_that_waits_for_a_human_in_a_graph(new_store: NewStore, session_id: str, call: Call) -> None:
    call = waiting(call)
    store, model = new_store(), script(calling("ok"))
    await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
    graph = StateGraph(MessagesState)
    agent = agent_of(model, ChatHistoryMiddleware(store), HumanInTheLoopMiddleware({"ok": True}))
    graph.add_node("agent", agent)
    graph.add_edge(START, "agent")
    compiled = graph.compile(checkpointer=InMemorySaver())
    await call(compiled, "one", session_id)
    await call(compiled, Command(resume={"decisions": [{"type": "approve"}]}), session_id)
    assert await record_of(store, session_id) == "H AI H AI(ok) T AI"
    assert names(model.seen[-1]) == "H AI H AI(ok) T"
    await call(compiled, "two", session_id)
    assert names(model.seen[-1]) == "H AI H AI(ok) T AI H"
    assert await record_of(store, session_id) == "H AI H AI(ok) T AI H AI"


async def test_an_agent_in_a_graph_that_loads(
    store: ChatHistoryStore, session_id: str, call: Call, saver: InMemorySaver | None
) -> None:
    await store.session(session_id).aadd_messages([HumanMessage("old"), AIMessage("before")])
    model = script(calling("ok"))
    graph = StateGraph(HistoryState, input_schema=MessagesState)
    graph.add_node("load", load_history(store))
    graph.add_node("agent", agent_of(model, ChatHistoryMiddleware(store, load="never")))
    graph.add_edge(START, "load")
    graph.add_edge("load", "agent")
    compiled = graph.compile(checkpointer=saver)
    for text in ("one", "two", "three"):
        await call(compiled, text, session_id)
    assert await record_of(store, session_id) == "H AI H AI(ok) T AI H AI H AI"
    assert names(model.seen[-1]) == "H AI H AI(ok) T AI H AI H"
    assert [message.content for message in model.seen[-1] if message.type == "human"] == ["old", "one", "two", "three"]
    await store.aclose()


@pytest.mark.parametrize("input_schema", [MessagesState, HistoryState])
async def test_a_client_that_sends_a_mark(new_store: NewStore, session_id: str, call: Call, input_schema: Any) -> None:
    store = new_store()
    graph = StateGraph(HistoryState, input_schema=input_schema)
    graph.add_node("save", save_history(store))
    graph.add_edge(START, "save")
    value = {"messages": [HumanMessage("one", id="one")], "history_mark": ["", "one"]}
    await call(graph.compile(), value, session_id)
    # The page of the documentation says which input schema keeps clients from it.
    assert await record_of(store, session_id) == ("H" if input_schema is MessagesState else "")


async def test_the_middleware_needs_no_private_module_of_langgraph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langgraph._internal._runnable", None)
    module = "chathistory_async.integrations.langchain"
    monkeypatch.delitem(sys.modules, module)
    # The import replaces the package's attribute too: monkeypatch puts the old one back.
    monkeypatch.setattr(integrations, "langchain", None)
    fresh = importlib.import_module(module)
    assert fresh.ChatHistoryMiddleware(ChatHistoryStore("Chats"))
    with pytest.raises(ModuleNotFoundError, match="langgraph"):
        fresh.load_history(ChatHistoryStore("Chats"))
