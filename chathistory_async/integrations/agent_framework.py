"""The history of Microsoft Agent Framework's agents in a ``ChatHistoryStore``. Needs the extra ``agent-framework``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

try:
    from agent_framework import HistoryProvider, Message
except ModuleNotFoundError as error:
    advice = "pip install 'chathistory-async[agent-framework]'"
    text = f"DynamoDBHistoryProvider needs the Microsoft Agent Framework: {advice}"
    raise ModuleNotFoundError(text, name=error.name) from error

from .._cooperative import in_slices
from .._settings import check_positive
from ..errors import SessionRef, UndecodableItemError

if TYPE_CHECKING:
    from agent_framework import SessionContext

    from .._opening import Key
    from ..json_session import JsonSession
    from ..store import ChatHistoryStore

FORMAT = "agent-framework"
"""The format of the stored messages, for ``ChatHistoryStore.list_sessions`` and ``json_session``."""

# A client that sends the whole conversation often hides the calls of functions and their results, and another agent may
# have written to the session meanwhile.
_READ_FOR_EACH = 4

_Chosen = TypeVar("_Chosen")
_PerSession: TypeAlias = Callable[[str, Mapping[str, Any]], _Chosen]


class DynamoDBHistoryProvider(HistoryProvider):
    """Loads a session's messages before each run of an agent, and stores the messages of the run after it.

    Use it as ``Agent(client, context_providers=[DynamoDBHistoryProvider(store)])``, and run the agent with
    ``session=AgentSession(session_id="alice")``. One provider serves all sessions, agents and event loops of an
    application. It does no I/O when it is made, and need not be closed; the store stays the caller's. Agents that run
    on one session with the same provider share its history.

    Messages are stored as ``Message.to_dict`` returns them, as JSON values of the format "agent-framework", with the
    store's encryption, expiry and session index. ``to_dict`` leaves out ``raw_representation``, and values of
    ``additional_properties`` that the framework cannot serialize. ``store.json_session(session_id,
    format="agent-framework")`` reads the same messages with their ids and times. Not stored is the rest of an
    ``AgentSession``: its ``state`` and the checkpoints of workflows. ``store.delete_session(session_id)`` deletes the
    stored messages only.

    A run that fails stores nothing, because the framework saves the messages of a run at its end. With
    ``require_per_service_call_history_persistence`` of the agent, it saves them after each call of the model. A run
    without ``session=`` is stored under a random id that the framework makes up. If the agent has a client that keeps
    the history on its server, pass ``load_messages=False``.

    Args:
        store: the store, with the layout "item_collection".
        source_id: the provider's id, unique among the context providers of an agent.
        owner: the owner whose list of sessions new sessions are in: an id, or a function that takes the session's id
            and the provider's state (``session.state[source_id]``) and returns an id or None. Needs a store with
            ``session_index``.
        key: a function that takes the same arguments and returns the session's whole key, as for
            ``ChatHistoryStore.session``. Required if the store has ``key_parts``. With None, the session's id is the
            key. Two providers that write to one table need different keys.
        limit: the maximum number of messages that are loaded, counted from the latest; None for all. Older messages
            stay stored. If older messages exist, the loaded ones begin with the first user message among them, or if
            there is none, not with the result of a function. Model providers reject a result whose call was cut off.
        load_messages: whether messages are loaded before a run. False for a record that is only written.
        store_inputs: whether a run's input messages are stored.
        store_context_messages: whether messages that other context providers add to a run are stored.
        store_context_from: the ids of the context providers whose messages are stored, or None for all.
        store_outputs: whether a run's response messages are stored.

    Raises:
        ValueError: ``limit`` is not a positive integer.
    """

    def __init__(
        self,
        store: ChatHistoryStore,
        *,
        source_id: str = "dynamodb",
        owner: str | _PerSession[str | None] | None = None,
        key: _PerSession[Key] | None = None,
        limit: int | None = None,
        load_messages: bool = True,
        store_inputs: bool = True,
        store_context_messages: bool = False,
        store_context_from: set[str] | None = None,
        store_outputs: bool = True,
    ) -> None:
        check_positive("limit", limit)
        super().__init__(
            source_id,
            load_messages=load_messages,
            store_inputs=store_inputs,
            store_context_messages=store_context_messages,
            store_context_from=store_context_from,
            store_outputs=store_outputs,
        )
        self._store = store
        self._owner = owner
        self._key = key
        self._limit = limit

    async def before_run(self, *, context: SessionContext, **kwargs: Any) -> None:
        """Load the session's messages into the context of a run, without those that the input repeats.

        A client may send the whole conversation with each run. From the first loaded message on whose id is in the
        input, the model is sent the input only, which has the client's order.

        A message with a call of a function that has no result, and waits for no approval, is left out with the results
        of its other calls: model providers reject a call without a result. The session is not changed.

        Args:
            context: the run's context.
            **kwargs: the framework's other arguments.

        Raises:
            ChatHistoryError: as for ``get_messages``.
        """
        await super().before_run(context=context, **kwargs)
        loaded = context.context_messages.get(self.source_id, [])
        sent = {message.message_id for message in context.input_messages if message.message_id}
        repeated = (at for at, message in enumerate(loaded) if message.message_id in sent)
        del loaded[next(repeated, len(loaded)) :]
        loaded[:] = _without_given_up_calls(loaded, context.get_messages(include_input=True))

    async def get_messages(
        self, session_id: str | None, *, state: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Message]:
        """Return the session's messages, oldest first, or an empty list if there is no session or no session id.

        One ``Query`` for each megabyte. With ``limit``, one ``Query`` reads little more than the requested messages.

        Args:
            session_id: the session's id, or None.
            state: the provider's state, which is passed to the functions ``owner`` and ``key``.
            **kwargs: no effect; the framework's interface has them.

        Raises:
            UndecodableItemError: a stored value is not a message that this version of the framework knows.
            LayoutError, TypeError, ValueError: as for ``ChatHistoryStore.json_session``.
            ChatHistoryError: as for ``JsonSession.aget``.
        """
        if not session_id:
            return []
        session = self._session(session_id, state)
        # One more message than the limit shows whether older messages exist.
        values = await session.aget(None if self._limit is None else self._limit + 1)
        messages = await in_slices(lambda value, _: _message_of(value, session), values)
        return messages if self._limit is None or len(messages) <= self._limit else _without_cut_off_turn(messages[1:])

    async def save_messages(
        self,
        session_id: str | None,
        messages: Sequence[Message],
        *,
        state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append messages: all or none, contiguous and in order, and exactly once however often the request is retried.

        Usually one ``PutItem``, or one ``TransactWriteItems`` in a store with a session index. If a message has a
        ``message_id``, a ``Query`` reads four times as many of the latest messages first: if the batch begins with
        messages that are already stored, they are not stored again. That happens if a client sends the whole
        conversation with each run. The last message whose id is among the stored ids is looked for. It and all messages
        before it are taken for stored. Messages right after it are, too, as long as they have the role and the contents
        of those that are stored after it. A batch in which no message has a stored id is always stored. Without a
        session id, or without messages, nothing is sent.

        So ids must be unique in a session. A message that a client has inserted or edited before a stored one is not
        stored. A message without an id that follows the last stored id is stored again if the client sends it with
        other contents than are stored, or if others have written in between.

        Args:
            session_id: the session's id, or None.
            messages: the messages, any number of them.
            state: as for ``get_messages``.
            **kwargs: no effect; the framework's interface has them.

        Raises:
            ItemTooLargeError: the messages do not fit into one transaction of 4 MB after compression. Nothing was
                written.
            LayoutError, TypeError, ValueError: as for ``ChatHistoryStore.json_session``.
            ChatHistoryError: as for ``JsonSession.aadd``.
        """
        if not session_id or not messages:
            return
        session = self._session(session_id, state)
        values = await in_slices(lambda message, _: message.to_dict(), messages)
        if any(message.message_id for message in messages):
            latest = await session.aget(_READ_FOR_EACH * len(values))
            # A value that is no message concerns those who load it: what is said now is stored all the same.
            stored = [value for value in latest if isinstance(value, Mapping)]
            values = values[_number_stored(stored, values) :]
        await session.aadd(values)

    def _session(self, session_id: str, state: Mapping[str, Any] | None) -> JsonSession:
        state = state or {}
        key = None if self._key is None else self._key(session_id, state)
        owner = self._owner(session_id, state) if callable(self._owner) else self._owner
        return self._store.json_session(session_id, key=key, owner=owner, format=FORMAT)


def _message_of(value: Any, session: JsonSession) -> Message:
    """Return the message of a stored value.

    Raises:
        UndecodableItemError: the value is not a message, or of a kind that this version of the framework does not know.
    """
    try:
        return Message.from_dict(value)
    except Exception as error:  # noqa: BLE001  # from_dict calls constructors, which raise whatever they raise
        reason = type(error).__name__
    # Raised outside the handler, so that it does not refer to the original error, which may quote stored content.
    text = f"A stored value is not a message that this version of agent-framework knows ({reason})"
    advice = f"json_session(..., format={FORMAT!r}).apage() returns the values with their ids"
    raise UndecodableItemError(f"{text}: {advice}", SessionRef(session.table_name, session.key))


def _without_cut_off_turn(messages: list[Message]) -> list[Message]:
    """Return the messages from the first user message on, or if there is none, without results at the beginning."""
    roles = [message.role for message in messages]
    if "user" in roles:
        return messages[roles.index("user") :]
    return messages[next((at for at, role in enumerate(roles) if role != "tool"), len(roles)) :]


def _without_given_up_calls(loaded: list[Message], request: list[Message]) -> list[Message]:
    """Return the loaded messages without those that have a call without a result, and without their other results.

    A run that fails leaves such a call if the agent stores each call of the model, and so does a client that was to run
    a function.

    Args:
        loaded: the loaded messages.
        request: all messages that the model is sent. The input may have results, and approvals.
    """
    # The messages of calls without a result so far. Some models use an id again.
    waiting: dict[str | None, Message] = {}
    answers: list[tuple[Message, Message]] = []
    given_up: set[int] = set()
    for message in request:
        for content in message.contents:
            if content.type == "function_call" and not content.informational_only:
                if content.call_id in waiting:
                    given_up.add(id(waiting[content.call_id]))
                waiting[content.call_id] = message
            elif content.type == "function_result" and content.call_id in waiting:
                answers.append((waiting.pop(content.call_id), message))
            elif content.function_call is not None:
                waiting.pop(content.function_call.call_id, None)
    given_up |= {id(message) for message in waiting.values()}
    given_up |= {id(answer) for message, answer in answers if id(message) in given_up}
    return [message for message in loaded if id(message) not in given_up]


def _number_stored(stored: Sequence[Mapping[str, Any]], values: Sequence[Mapping[str, Any]]) -> int:
    """Return how many values at the beginning of a batch are among the latest values of the session already.

    A conversation grows at its end, so with a value whose id is stored, all before it are stored. After the last such
    value, those are stored that continue the session as it does: many clients keep no ids of the model's answers.
    Without any stored id, nothing is stored: two turns of the same words are two turns.
    """
    places = {one_id: at for at, value in enumerate(stored) if isinstance(one_id := value.get("message_id"), str)}
    for number in range(len(values), 0, -1):
        at = places.get(values[number - 1].get("message_id") or "")
        if at is not None:
            continued = itertools.takewhile(_are_same, zip(stored[at + 1 :], values[number:], strict=False))
            return number + len(list(continued))
    return 0


def _are_same(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> bool:
    one, other = pair
    ids = one.get("message_id"), other.get("message_id")
    if all(ids) and one.get("role") != "assistant":
        # A client may have an id of its own for the model's answer, but its own messages differ if their ids do.
        return ids[0] == ids[1]
    return (one.get("role"), one.get("contents")) == (other.get("role"), other.get("contents"))
