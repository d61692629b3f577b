"""The record of a state's messages: what is loaded from a session, and what is stored in it. For ``langchain.py``."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias
from uuid import uuid4

from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import BaseMessage, RemoveMessage
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime
from typing_extensions import NotRequired, TypedDict

from .._cooperative import in_slices
from .._session import smaller
from .._settings import check_positive
from .._sync.fork import after_fork_in_child
from ..errors import ChatHistoryError, ItemTooLargeError
from ._agent_messages import Entry, Mark, cursor, halves, is_loaded, past, sendable, unstored, with_ids

if TYPE_CHECKING:
    from ..history import DynamoDBChatMessageHistory
    from ..store import ChatHistoryStore

Load: TypeAlias = Literal["beside", "state", "never"]
OnError: TypeAlias = Literal["raise", "log"]
SessionOf: TypeAlias = Callable[[Any, Runtime[Any]], "str | tuple[str, ...]"]
OwnerOf: TypeAlias = Callable[[Any, Runtime[Any]], "str | None"]
Update: TypeAlias = dict[str, Any]

_LOGGER = logging.getLogger("chathistory_async")
_NOT_READ = "The agent goes on, although its history was not read: %s"
_NOT_STORED = "The agent goes on, although its history was not stored: %s"

# Writes that a killed run did not checkpoint, and what other runs have stored since, are searched among so many latest
# messages. A run usually stores a few messages between two checkpoints. One query reads 50, usually for a few units.
_TAIL_MESSAGES = 50
# More than any session has.
_ALL_MESSAGES = 10**9
# How many messages that precede states are in memory at most, at about 3 KB each: those of runs under way, and of some
# that failed or were interrupted, whose end is never seen. A past that was dropped is read again.
_KEPT_MESSAGES = 20_000


class Sessions:
    """Finds the session of a run."""

    def __init__(self, store: ChatHistoryStore, session: SessionOf | None, owner: OwnerOf | str | None) -> None:
        if session is not None and not callable(session):
            raise TypeError("session is not a function: pass lambda state, runtime: …, which returns a session's id")
        if owner is not None and not store.session_index:
            raise ValueError("owner needs a ChatHistoryStore with session_index=True")
        self._store = store
        self._session = session or _thread_id
        self._owner = _identity if owner is None and store.session_index else owner

    def of(self, state: Any, runtime: Runtime[Any]) -> DynamoDBChatMessageHistory:
        """Return the session of a run, as its state and its runtime tell."""
        session = self._session(state, runtime)
        owner = self._owner(state, runtime) if callable(self._owner) else self._owner
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


class Keys(NamedTuple):
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
    def of(cls, name: str) -> Keys:
        """Return the names for a middleware of this name."""
        return cls(f"{name}_mark", f"{name}_looked", f"{name}_token")

    def schema(self) -> type[Any]:
        """Return the state's schema with these names: in no input, no output and no result."""
        fields = {
            self.mark: NotRequired[Annotated[list[str] | None, PrivateStateAttr]],
            self.looked: NotRequired[Annotated[bool, UntrackedValue, PrivateStateAttr]],
            self.token: NotRequired[Annotated[str, UntrackedValue, PrivateStateAttr]],
        }
        return TypedDict("ChatHistoryState", fields)  # type: ignore[operator, no-any-return]  # its names are not literal


# The nodes keep no past in memory, so they have no token for it.
NODE_KEYS = Keys("history_mark", "history_looked", token="")


class _Look(NamedTuple):
    """The result of a look at the record: the messages to load, and the new mark."""

    past: list[BaseMessage]
    mark: Mark


class _Pasts:
    """The messages that precede the states of runs, by a token for each run. The runs may be of several threads."""

    def __init__(self) -> None:
        self._pasts: OrderedDict[str, list[BaseMessage]] = OrderedDict()
        self._size = 0

    def keep(self, messages: list[BaseMessage]) -> str:
        """Keep messages, if need be instead of the oldest ones, and return their token."""
        token = uuid4().hex
        with _lock_of_pasts:
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
        with _lock_of_pasts:
            messages = self._pasts.pop(token or "", None)
            self._size -= 0 if messages is None else _size(messages)


def _size(messages: list[BaseMessage]) -> int:
    # The token counts too: many runs may have nothing that precedes them.
    return 1 + len(messages)


# All middlewares of a process share it, so that it can be replaced after a fork.
_lock_of_pasts = threading.Lock()


def _forget_lock() -> None:
    """Replace the lock, because a fork may have copied it while a thread held it."""
    global _lock_of_pasts
    _lock_of_pasts = threading.Lock()


after_fork_in_child(_forget_lock)


class Recorder:
    """Loads and stores the messages of a state. Its methods return updates of that state."""

    def __init__(self, limit: int | None, load: Load, on_error: OnError, keys: Keys, *, by_steps: bool = True) -> None:
        check_positive("limit", limit)
        check_choice("load", load, ("beside", "state", "never"))
        check_choice("on_error", on_error, ("raise", "log"))
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
            self._tolerate(error, _NOT_READ)
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
            self._tolerate(error, _NOT_READ)
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
            self._tolerate(error, _NOT_STORED)
            # The batch may have been stored all the same: the next step looks.
            update[self.keys.looked] = False

    async def _look(self, history: DynamoDBChatMessageHistory, state: Any) -> _Look:
        """Read the latest messages of the record: which of the state's are stored, and which precede the state.

        The messages that precede the state are found when the thread begins, and for "beside" in each later run too, up
        to the same entry. In all other cases, only the tail of the record is read.
        """
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

    def _tolerate(self, error: ChatHistoryError, text: str) -> None:
        if not self._logs_errors:
            raise error
        _LOGGER.error(text, error)


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


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError if an option's value is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
