"""Conversations of LangChain agents and LangGraph graphs in a ``ChatHistoryStore``. Needs the extra ``langchain``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from langchain_core.messages import BaseMessage
from typing_extensions import NotRequired

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
    from langgraph.channels.untracked_value import UntrackedValue
    from langgraph.graph.message import MessagesState
    from langgraph.runtime import Runtime
except ModuleNotFoundError as error:
    advice = "pip install 'chathistory-async[langchain]'"
    raise ModuleNotFoundError(f"ChatHistoryMiddleware needs LangChain 1: {advice}", name=error.name) from error

from .._sync.bridge import run
from ..errors import LayoutError, SessionRef
from ._agent_messages import sendable
from ._agent_recorder import (
    NODE_KEYS,
    Keys,
    Load,
    OnError,
    OwnerOf,
    Recorder,
    SessionOf,
    Sessions,
    Update,
    check_choice,
)

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from ..store import ChatHistoryStore

_Save: TypeAlias = Literal["steps", "end"]


class HistoryState(MessagesState):
    """A graph's state with what ``load_history`` and ``save_history`` note in it: text and a flag, no messages.

    Use it, or a subclass, as the state of a graph that has these nodes, or as ``input_schema`` of both nodes. Without
    it, ``save_history`` reads the record each time, and stores a message again that was deleted from the record's end.
    If clients send the graph's input, give the graph ``input_schema=MessagesState``: a client that sends
    ``history_mark`` says which messages are stored already.

    Attributes:
        history_mark: which messages of the state are stored. It is checkpointed.
        history_looked: whether this run has compared its state with the record. It is not checkpointed.
    """

    history_mark: NotRequired[list[str] | None]
    history_looked: NotRequired[Annotated[bool, UntrackedValue]]


class ChatHistoryMiddleware(AgentMiddleware[Any, Any, Any]):
    """Loads a thread's history for an agent of ``create_agent``, and stores what the agent adds to it.

        store = ChatHistoryStore("Chats", session_index=True)
        agent = create_agent(model, tools, middleware=[ChatHistoryMiddleware(store)])
        await agent.ainvoke({"messages": "Hello"}, {"configurable": {"thread_id": "alice-1"}})

    With or without a checkpointer: the record is complete, and can be listed, read, exported and erased; a checkpointer
    keeps what an interrupted run needs to go on. The record holds messages. It holds no checkpoints, no system prompt
    and no summaries. To erase a conversation, delete the session and also the checkpointer's thread
    (``checkpointer.adelete_thread``); otherwise the model still sees the messages that are in the checkpoint.

    Stored is what the agent's state holds, in whole steps: an AI message with the results of all its tool calls. A step
    that an interrupt holds back is stored when it has its results; one that was given up is not stored. Each write is
    one append: see ``DynamoDBChatMessageHistory.aadd_messages``.

    The request to the model is always valid: a call without its result is left out of it, whether the call comes from
    the record or from the state. The record and the state are not changed.

    Messages are recognised by their ids. A client that sends a message again, after an error or with each request, must
    send it with the same id; then the message is stored once, unless two runs send it at the same time. The middleware
    looks for it among the messages that it loads, and at least among the record's latest 50. A message that was deleted
    from the record stays deleted while a message after it is stored; as the last one, it is stored again if a client
    sends it again and no checkpointer knows the thread.

    **Order of middleware.** Put PIIMiddleware before this one, or personal data is stored unredacted. Put
    SummarizationMiddleware after this one, or new messages may be summarised before they are stored. A middleware with
    ``after_agent`` that adds messages goes after this one, because ``after_agent`` runs in reverse order.

    **Several on one agent.** LangChain refuses two middlewares with one name. A subclass has a name of its own, and its
    own keys in the state: ``class Audit(ChatHistoryMiddleware): pass``.

    Two that load send the model the messages of both records: give all but one ``load="never"``.

    **Agents within agents.** LangGraph passes the thread's id on to an agent that runs inside a tool. If that agent has
    this middleware, give it ``session``, or its messages are stored in the outer session.

    **Cost.** A plain turn takes one ``Query`` and two appends, a turn with tools one append more for each step. A run
    that is resumed takes one ``Query`` more, or two if only the model's call is made again. The hooks without ``a``
    block the calling thread.

    Errors of the library end the run, unchanged; see ``on_error``.

    Args:
        store: the store. It stays the caller's.
        session: a function of the state and the runtime that returns the session's id, or with a store of ``key_parts``
            a tuple of ids. By default the id is the run's ``thread_id``. Return the same session for all runs of a
            thread: the state notes which messages that session has stored.
        owner: the owner whose list new sessions are in: an id, or a function of the state and the runtime that returns
            an id or None. Needs a store with ``session_index``. By default the owner is the identity of the
            authenticated user on LangGraph Server, and elsewhere None.
        limit: only messages among the record's latest ``limit`` are loaded, from a human message on; None for all. A
            look at the record reads at least 50, to find those of the state that are stored already.
        load: "beside": the model is sent the record's messages that precede the thread's state. They are never in the
            state, the result or a stream. "state": they are put into the state when a thread begins, so that
            SummarizationMiddleware sees them without a checkpointer; streams of messages emit them too. Needed for the
            layout "single_item", whose messages have no ids. "never": the agent's messages are stored, none is loaded.
        save: "steps": complete steps are stored before each call of the model, and at the end. "end": all are stored at
            the end, in one append; a run that fails stores nothing.
        on_error: "raise": errors of the library end the run. "log": they are logged by the logger
            ``chathistory_async``, without content, and the agent goes on. Messages that were not stored are stored
            with the next step; without a checkpointer, they are lost at the end of the run. A step that cannot be
            stored (``ItemTooLargeError``, ``MessageNotStorableError``) stays in the way of what follows it.

    Raises:
        LayoutError: the store has the layout "single_item", and ``load`` is "beside".
        TypeError: ``session`` is not a function.
        ValueError: ``limit``, ``load``, ``save`` or ``on_error`` is not valid, or ``owner`` is given, and the store has
            no ``session_index``. A run raises it if it has no ``thread_id``, and ``session`` is not given.
    """

    def __init__(
        self,
        store: ChatHistoryStore,
        *,
        session: SessionOf | None = None,
        owner: OwnerOf | str | None = None,
        limit: int | None = None,
        load: Load = "beside",
        save: _Save = "steps",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        check_choice("save", save, ("steps", "end"))
        self._sessions = Sessions(store, session, owner)
        self._recorder = Recorder(limit, load, on_error, Keys.of(self.name), by_steps=save == "steps")
        if load == "beside" and store.layout == "single_item":
            raise LayoutError('The layout "single_item" needs load="state"', SessionRef(store.table_name))
        self.state_schema = self._recorder.keys.schema()

    async def abefore_agent(self, state: Any, runtime: Runtime[Any]) -> Update | None:
        """Read the record."""
        return await self._recorder.begin(self._sessions.of(state, runtime), state)

    async def abefore_model(self, state: Any, runtime: Runtime[Any]) -> Update | None:
        """Store the complete steps that are not stored yet, and in a resumed run read the record."""
        return await self._recorder.step(self._sessions.of(state, runtime), state)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Send the model what precedes the state, and no half a step."""
        history = self._sessions.of(request.state, request.runtime)
        return await handler(_with_past(request, await self._recorder.past(history, request.state)))

    async def aafter_agent(self, state: Any, runtime: Runtime[Any]) -> Update | None:
        """Store the complete steps that are not stored yet."""
        return await self._recorder.end(self._sessions.of(state, runtime), state)

    def before_agent(self, state: Any, runtime: Runtime[Any]) -> Update | None:
        """Read the record, as ``abefore_agent`` does."""
        return run(self._recorder.begin, self._sessions.of(state, runtime), state)

    def before_model(self, state: Any, runtime: Runtime[Any]) -> Update | None:
        """Store complete steps, as ``abefore_model`` does."""
        return run(self._recorder.step, self._sessions.of(state, runtime), state)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Send the model what precedes the state, as ``awrap_model_call`` does."""
        history = self._sessions.of(request.state, request.runtime)
        return handler(_with_past(request, run(self._recorder.past, history, request.state)))

    def after_agent(self, state: Any, runtime: Runtime[Any]) -> Update | None:
        """Store complete steps, as ``aafter_agent`` does."""
        return run(self._recorder.end, self._sessions.of(state, runtime), state)


def load_history(
    store: ChatHistoryStore,
    *,
    session: SessionOf | None = None,
    owner: OwnerOf | str | None = None,
    limit: int | None = None,
    on_error: OnError = "raise",
) -> Runnable[Any, Any]:
    """Return a node for a graph that puts a thread's history into the state, before the messages that are there.

        graph = StateGraph(HistoryState)
        graph.add_node("load", load_history(store))
        graph.add_node("model", call_model)
        graph.add_node("save", save_history(store))

    The history is loaded when a thread begins: with a checkpointer, the later runs of a thread have it in their state.
    If it cannot be read and ``on_error`` is "log", the thread's next run loads it. Half a step is left out. One
    ``Query`` for each run, or one ``GetItem`` for a single item. Streams of messages emit the loaded ones. The state's
    key ``messages`` must have the reducer ``add_messages``.

    Args:
        store: the store. It stays the caller's.
        session: as for ``ChatHistoryMiddleware``.
        owner: as for ``ChatHistoryMiddleware``.
        limit: as for ``ChatHistoryMiddleware``.
        on_error: as for ``ChatHistoryMiddleware``.

    Raises:
        TypeError, ValueError: as for ``ChatHistoryMiddleware``.
    """
    sessions, recorder = Sessions(store, session, owner), Recorder(limit, "state", on_error, NODE_KEYS)

    def load(state: Any, runtime: Runtime[Any]) -> Update | None:
        return run(recorder.begin, sessions.of(state, runtime), state)

    async def aload(state: Any, runtime: Runtime[Any]) -> Update | None:
        return await recorder.begin(sessions.of(state, runtime), state)

    return _node(load, aload, "load_history")


def save_history(
    store: ChatHistoryStore,
    *,
    session: SessionOf | None = None,
    owner: OwnerOf | str | None = None,
    on_error: OnError = "raise",
) -> Runnable[Any, Any]:
    """Return a node for a graph that stores the complete steps of the state that are not stored yet.

    It may stand in several places: before a model's node, it stores the steps that are complete by then; at the end, it
    stores the rest. Usually one append, or no request if nothing is new. A run that did not begin with
    ``load_history``, such as a resumed one, takes one ``Query`` more before its first append. ``ChatHistoryMiddleware``
    says what is stored. Without ``load_history`` in the graph, this node records only. All nodes of a graph share
    what is noted in the state, so all need the same session: a second record would stay empty.

    Args:
        store: the store. It stays the caller's.
        session: as for ``ChatHistoryMiddleware``.
        owner: as for ``ChatHistoryMiddleware``.
        on_error: as for ``ChatHistoryMiddleware``.

    Raises:
        TypeError, ValueError: as for ``ChatHistoryMiddleware``.
    """
    sessions, recorder = Sessions(store, session, owner), Recorder(None, "never", on_error, NODE_KEYS)

    def save(state: Any, runtime: Runtime[Any]) -> Update | None:
        return run(recorder.save, sessions.of(state, runtime), state)

    async def asave(state: Any, runtime: Runtime[Any]) -> Update | None:
        return await recorder.save(sessions.of(state, runtime), state)

    return _node(save, asave, "save_history")


def _node(work: Callable[..., Any], awork: Callable[..., Any], name: str) -> Runnable[Any, Any]:
    # LangGraph has no public class for a node with a synchronous and an asynchronous function that take the runtime.
    # It is imported here, so that the middleware does not depend on it.
    from langgraph._internal._runnable import RunnableCallable

    return RunnableCallable(work, awork, name=name, trace=False)


def _with_past(request: ModelRequest[Any], before: list[BaseMessage]) -> ModelRequest[Any]:
    """Return a request with these messages before its own, each message once by its id, and without half a step."""
    ids = {message.id for message in request.messages}
    before = [message for message in before if message.id is None or message.id not in ids]
    return request.override(messages=sendable([*before, *request.messages]))  # type: ignore[arg-type]  # AnyMessage
