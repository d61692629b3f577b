"""Conversations of LangChain agents and LangGraph graphs in a ``ChatHistoryStore``. Needs the extra ``langchain``."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias
from uuid import uuid4

from langchain_core.messages import BaseMessage, RemoveMessage
from typing_extensions import NotRequired, TypedDict

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
    from langchain.agents.middleware.types import PrivateStateAttr
    from langgraph.channels.untracked_value import UntrackedValue
    from langgraph.graph.message import REMOVE_ALL_MESSAGES, MessagesState
    from langgraph.runtime import Runtime
except ModuleNotFoundError as error:
    advice = "pip install 'chathistory-async[langchain]'"
    raise ModuleNotFoundError(f"ChatHistoryMiddleware needs LangChain 1: {advice}", name=error.name) from error

from .._cooperative import in_slices
from .._session import smaller
from .._settings import check_positive
from .._sync.bridge import run
from ..errors import ChatHistoryError, ItemTooLargeError, LayoutError, SessionRef
from ._agent_messages import Entry, Mark, cursor, halves, is_loaded, past, sendable, unstored, with_ids

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from ..history import DynamoDBChatMessageHistory
    from ..store import ChatHistoryStore

Load: TypeAlias = Literal["beside", "state", "never"]
Save: TypeAlias = Literal["steps", "end"]
OnError: TypeAlias = Literal["raise", "log"]
SessionOf: TypeAlias = Callable[[Any, "Runtime[Any]"], "str | tuple[str, ...]"]
OwnerOf: TypeAlias = Callable[[Any, "Runtime[Any]"], "str | None"]
Update: TypeAlias = dict[str, Any]

_LOGGER = logging.getLogger("chathistory_async")

# A write that was not checkpointed is searched among so many latest messages: one query, and usually a few read units.
_TAIL_MESSAGES = 50
# More than any session has.
_ALL_MESSAGES = 10**9
# How many messages that precede states are in memory at most, at about 3 KB each: those of runs under way, and of some
# that failed or were interrupted, whose end is never seen. What is not in memory any more is read again.
_KEPT_MESSAGES = 20_000


class HistoryState(MessagesState):
    """A graph's state with what ``load_history`` and ``save_history`` note in it: text and a flag, no messages.

    Use it, or a subclass, as the state of a graph that has these nodes, or as ``input_schema`` of both nodes. Without
    it, ``save_history`` reads the record each time, and stores a message again that was deleted from the record's end.

    Attributes:
        history_mark: which messages of the state are stored. It is checkpointed.
        history_looked: whether this run has compared its state with the record. It is not checkpointed.
    """

    history_mark: NotRequired[list[str] | None]
    history_looked: NotRequired[Annotated[bool, UntrackedValue]]


class ChatHistoryMiddleware(AgentMiddleware[Any, Any, Any]):
    """Loads a thread's history for an agent of ``create_agent``, and stores what the agent adds to it.

    ::

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

    What the model is sent is always valid: a call without its result is left out of the request, whether it comes from
    the record or from the state. The record and the state are not changed.

    Messages are recognised by their ids. A client that sends a message again, after an error or with each request, must
    send it with the same id; then the message is stored once, unless two runs send it at the same time. A message that
    was deleted from the record stays deleted while a message after it is stored; as the last one, it is stored again
    if a client sends it again and no checkpointer knows the thread.

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
            a tuple of ids. By default the id is the run's ``thread_id``.
        owner: a function of the state and the runtime that returns the owner whose list the session is in, or None for
            no owner. Needs a store with ``session_index``. By default the owner is the identity of the authenticated
            user on LangGraph Server, and elsewhere None.
        limit: only messages among the record's latest ``limit`` are loaded, from a human message on; None for all. A
            look at the record reads at least 50, to find those of the state that are stored already.
        load: "beside": the model is sent the record's messages that precede the thread's state. They are never in the
            state, the result or a stream. "state": they are put into the state when a thread begins, so that
            SummarizationMiddleware sees them without a checkpointer; streams of messages emit them too. Needed for the
            layout "single_item", whose messages have no ids. "never": the agent's messages are stored, none is loaded.
        save: "steps": complete steps are stored before each call of the model, and at the end. "end": all are stored at
            the end, in one append; a run that fails stores nothing.
        on_error: "raise": errors of the library end the run. "log": they are logged by the logger
            ``chathistory_async``, without content, and the agent goes on. What was not stored is stored with the next
            step; without a checkpointer, nothing is left of it after the run. A step that is too large to be stored
            (``ItemTooLargeError``) stays in the way of what follows it.

    Raises:
        LayoutError: the store has the layout "single_item", and ``load`` is "beside".
        ValueError: ``limit``, ``load``, ``save`` or ``on_error`` is not valid, or ``owner`` is given, and the store has
            no ``session_index``. A run raises it if it has no ``thread_id``, and ``session`` is not given.
    """

    def __init__(
        self,
        store: ChatHistoryStore,
        *,
        session: SessionOf | None = None,
        owner: OwnerOf | None = None,
        limit: int | None = None,
        load: Load = "beside",
        save: Save = "steps",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        _check_choice("save", save, ("steps", "end"))
        self._sessions = _Sessions(store, session, owner)
        self._recorder = _Recorder(limit, load, on_error, _Keys.of(self.name), by_steps=save == "steps")
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
    owner: OwnerOf | None = None,
    limit: int | None = None,
    on_error: OnError = "raise",
) -> Runnable[Any, Any]:
    """Return a node for a graph that puts a thread's history into the state, before the messages that are there.

    ::

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
        ValueError: as for ``ChatHistoryMiddleware``.
    """
    sessions, recorder = _Sessions(store, session, owner), _Recorder(limit, "state", on_error, _NODE_KEYS)

    def load(state: Any, runtime: Runtime[Any]) -> Update | None:
        return run(recorder.begin, sessions.of(state, runtime), state)

    async def aload(state: Any, runtime: Runtime[Any]) -> Update | None:
        return await recorder.begin(sessions.of(state, runtime), state)

    return _node(load, aload, "load_history")


def save_history(
    store: ChatHistoryStore,
    *,
    session: SessionOf | None = None,
    owner: OwnerOf | None = None,
    on_error: OnError = "raise",
) -> Runnable[Any, Any]:
    """Return a node for a graph that stores the complete steps of the state that are not stored yet.

    It may stand in several places: before a model's node, it stores the steps that are complete by then; at the end, it
    stores the rest. Usually one append, or no request if nothing is new. A run that did not begin with
    ``load_history``, such as a resumed one, takes one ``Query`` more before its first append. ``ChatHistoryMiddleware``
    says what is stored. Without ``load_history`` in the graph, this node records only.

    Args:
        store: the store. It stays the caller's.
        session: as for ``ChatHistoryMiddleware``.
        owner: as for ``ChatHistoryMiddleware``.
        on_error: as for ``ChatHistoryMiddleware``.

    Raises:
        ValueError: as for ``ChatHistoryMiddleware``.
    """
    sessions, recorder = _Sessions(store, session, owner), _Recorder(None, "never", on_error, _NODE_KEYS)

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


class _Sessions:
    """Finds the session of a run."""

    def __init__(self, store: ChatHistoryStore, session: SessionOf | None, owner: OwnerOf | None) -> None:
        if owner is not None and not store.session_index:
            raise ValueError("owner needs a ChatHistoryStore with session_index=True")
        self._store = store
        self._session = session or _thread_id
        self._owner = owner or (_identity if store.session_index else None)

    def of(self, state: Any, runtime: Runtime[Any]) -> DynamoDBChatMessageHistory:
        session = self._session(state, runtime)
        owner = self._owner(state, runtime) if self._owner else None
        if isinstance(session, tuple):
            return self._store.session("", key={self._store.primary_key_name: session}, owner=owner)
        return self._store.session(session, owner=owner)


def _thread_id(state: Any, runtime: Runtime[Any]) -> str:
    # langgraph.config.get_config() does not work in asynchronous code on Python 3.10.
    thread_id = runtime.execution_info and runtime.execution_info.thread_id
    if not thread_id:
        raise ValueError(
            'The run has no thread_id: pass {"configurable": {"thread_id": …}} as its config, or give the middleware'
            " session=, which returns a session's id"
        )
    return str(thread_id)


def _identity(state: Any, runtime: Runtime[Any]) -> str | None:
    user = runtime.server_info and runtime.server_info.user
    return user.identity if user else None


class _Keys(NamedTuple):
    """The names of what is noted in the state.

    Attributes:
        mark: the mark, as a list of text. It is checkpointed.
        looked: whether this run has compared its state with the record. It is not checkpointed, so a resumed run looks.
        token: stands for what precedes the state, which the recorder has in memory; the messages themselves would be
            streamed and serialised with the state. It is not checkpointed.
    """

    mark: str
    looked: str
    token: str

    @classmethod
    def of(cls, name: str) -> _Keys:
        return cls(f"{name}_mark", f"{name}_looked", f"{name}_token")

    def schema(self) -> type[Any]:
        fields = {
            self.mark: NotRequired[Annotated[list[str] | None, PrivateStateAttr]],
            self.looked: NotRequired[Annotated[bool, UntrackedValue, PrivateStateAttr]],
            self.token: NotRequired[Annotated[str, UntrackedValue, PrivateStateAttr]],
        }
        return TypedDict("ChatHistoryState", fields)  # type: ignore[operator, no-any-return]  # its names are not literal


# The nodes keep no past in memory, so they have no token for it.
_NODE_KEYS = _Keys("history_mark", "history_looked", token="")


class _Look(NamedTuple):
    """The result of a look at the record: the messages to load, and the new mark."""

    past: list[BaseMessage]
    mark: Mark


class _Pasts:
    """The messages that precede the states of runs, by a token for each run. The runs may be of several threads."""

    def __init__(self) -> None:
        self._pasts: OrderedDict[str, list[BaseMessage]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def keep(self, messages: list[BaseMessage]) -> str:
        """Keep messages, if need be instead of the oldest ones, and return their token."""
        token = uuid4().hex
        with self._lock:
            self._pasts[token] = messages
            self._size += _size(messages)
            while self._size > _KEPT_MESSAGES and len(self._pasts) > 1:
                self._size -= _size(self._pasts.popitem(last=False)[1])
        return token

    def get(self, token: str | None) -> list[BaseMessage] | None:
        """Return the messages of a token, or None if they are not in memory."""
        return self._pasts.get(token or "")

    def drop(self, token: str | None) -> None:
        """Forget the messages of a token, if they are in memory."""
        with self._lock:
            messages = self._pasts.pop(token or "", None)
            self._size -= 0 if messages is None else _size(messages)


def _size(messages: list[BaseMessage]) -> int:
    # The token counts too: many runs may have nothing that precedes them.
    return 1 + len(messages)


class _Recorder:
    """Loads and stores the messages of a state. Its methods return updates of that state."""

    def __init__(self, limit: int | None, load: Load, on_error: OnError, keys: _Keys, *, by_steps: bool = True) -> None:
        check_positive("limit", limit)
        _check_choice("load", load, ("beside", "state", "never"))
        _check_choice("on_error", on_error, ("raise", "log"))
        self.keys = keys
        self._limit = limit
        self._load = load
        self._logs_errors = on_error == "log"
        self._by_steps = by_steps
        self._pasts = _Pasts()

    async def begin(self, history: DynamoDBChatMessageHistory, state: Any) -> Update:
        """Compare the state with the record, and load what precedes it."""
        try:
            look = await self._look(history, state)
        except ChatHistoryError as error:
            self._tolerate(error, "read")
            return {self.keys.looked: False, **self._kept([])}
        return self._looked(look, state)

    async def step(self, history: DynamoDBChatMessageHistory, state: Any) -> Update | None:
        """Prepare a call of the model: store complete steps, and load what precedes the state if it is not in memory.

        It is loaded here, and not at each call of the model, because here it can be noted in the state.
        """
        update = Update()
        if self._needs_past(state) and self._pasts.get(state.get(self.keys.token)) is None:
            update = await self.begin(history, state)
        if self._by_steps:
            await self._save(history, {**state, **update}, update)
        return update or None

    async def save(self, history: DynamoDBChatMessageHistory, state: Any) -> Update | None:
        """Store the complete steps that are not stored yet."""
        update = Update()
        await self._save(history, state, update)
        return update or None

    async def past(self, history: DynamoDBChatMessageHistory, state: Any) -> list[BaseMessage]:
        """Return what precedes the state and is not in it."""
        if not self._needs_past(state):
            return []
        kept = self._pasts.get(state.get(self.keys.token))
        if kept is not None:
            return kept
        # The run was resumed at the model's node, perhaps in a process other than the one that it began in.
        try:
            return (await self._look(history, state)).past
        except ChatHistoryError as error:
            self._tolerate(error, "read")
            return []

    async def end(self, history: DynamoDBChatMessageHistory, state: Any) -> Update | None:
        """Store the rest, and forget what precedes the state."""
        update = Update()
        try:
            await self._save(history, state, update)
        finally:
            for noted in (state, update):
                self._pasts.drop(noted.get(self.keys.token))
        return update or None

    def _needs_past(self, state: Any) -> bool:
        """Return whether the model is sent messages beside the state, as far as the state tells."""
        mark = Mark.of(state.get(self.keys.mark))
        return self._load == "beside" and not (mark and mark.begins_after == "")

    async def _save(self, history: DynamoDBChatMessageHistory, state: Any, update: Update) -> None:
        messages, mark = state["messages"], Mark.of(state.get(self.keys.mark))
        if not unstored(messages, mark.stored if mark else set()):
            return
        try:
            if mark is None or not state.get(self.keys.looked):
                # A write may have outlived its mark, and a run may have been killed in between.
                look = await self._look(history, state)
                update |= self._looked(look, state)
                mark = look.mark
            if batch := unstored(messages, mark.stored):
                async for part in _append(history, batch):
                    mark = mark._replace(stored=mark.stored | {message.id for message in part if message.id})
                    update[self.keys.mark] = mark.value(update.get("messages", messages))
        except ChatHistoryError as error:
            self._tolerate(error, "stored")
            # The batch may have been stored all the same: the next step looks.
            update[self.keys.looked] = False

    async def _look(self, history: DynamoDBChatMessageHistory, state: Any) -> _Look:
        messages, mark = state["messages"], Mark.of(state.get(self.keys.mark)) or Mark(None, set())
        ids = {message.id for message in messages}
        limit = smaller(self._limit, history.history_size)
        # A graph whose state has no place for the mark shows by its messages that they were loaded.
        begins = mark.begins_after is None and self._load != "never" and not any(map(is_loaded, messages))
        loads = begins or (self._load == "beside" and mark.begins_after != "")
        entries = await _latest(history, (limit and max(limit, _TAIL_MESSAGES)) if loads else _TAIL_MESSAGES)
        stored = mark.stored | {entry.message.id for entry in entries if entry.message.id in ids and entry.message.id}
        if self._load == "beside":
            begins_after = cursor(entries, ids) if mark.begins_after is None else mark.begins_after
            found = past(entries, ids, up_to=begins_after, limit=limit) if begins_after else []
            return _Look(found, Mark(begins_after, stored))
        if not begins:
            return _Look([], mark._replace(stored=stored))
        found = await _loadable(past(entries, ids, limit=limit))
        return _Look(found, Mark("", stored | {message.id for message in found if message.id}))

    def _looked(self, look: _Look, state: Any) -> Update:
        """Return the update after a look at the record."""
        update: Update = {self.keys.looked: True}
        messages = state["messages"]
        if self._load == "beside":
            update |= self._kept(look.past)
        elif look.past:
            update["messages"] = [RemoveMessage(id=REMOVE_ALL_MESSAGES), *look.past, *messages]
            messages = update["messages"]
        update[self.keys.mark] = look.mark.value(messages)
        return update

    def _kept(self, messages: list[BaseMessage]) -> Update:
        """Keep what precedes the state in memory, and return the update with its token."""
        if self._load != "beside":
            return {}
        return {self.keys.token: self._pasts.keep(messages)}

    def _tolerate(self, error: ChatHistoryError, what: str) -> None:
        if not self._logs_errors:
            raise error
        _LOGGER.error("The agent goes on, although its history was not %s: %s", what, error)


async def _append(
    history: DynamoDBChatMessageHistory, messages: Sequence[BaseMessage]
) -> AsyncGenerator[Sequence[BaseMessage], None]:
    """Append messages, and yield those of each append: usually all at once, else as many steps as fit into one."""
    parts = [messages]
    while parts:
        part = parts.pop()
        try:
            await history.aadd_messages(part)
        except ItemTooLargeError:
            # Much may be unstored: a store was out of reach for long, or a client sent a whole conversation.
            if not (smaller_parts := halves(part)):
                raise
            parts += reversed(smaller_parts)
        else:
            yield part


async def _latest(history: DynamoDBChatMessageHistory, count: int | None) -> list[Entry]:
    """Return the latest entries of the record, oldest first, or all if ``count`` is None. One query, usually."""
    if history.sort_key_name is None:
        return [Entry("", message) for message in await history.aget_messages(limit=count)]
    page = await history.apage(count or _ALL_MESSAGES)
    return [Entry(stored.id, stored.message) for stored in page.messages]


async def _loadable(messages: list[BaseMessage]) -> list[BaseMessage]:
    """Return the messages of a record as a state holds them: whole steps, with ids. Long histories in slices."""
    # By message, since a step may have any number of human messages. Only the copies take long.
    return await in_slices(lambda message, _: with_ids([message])[0], sendable(messages))


def _with_past(request: ModelRequest[Any], before: list[BaseMessage]) -> ModelRequest[Any]:
    ids = {message.id for message in request.messages}
    before = [message for message in before if message.id is None or message.id not in ids]
    return request.override(messages=sendable([*before, *request.messages]))  # type: ignore[arg-type]  # AnyMessage


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
