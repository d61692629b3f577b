"""Which of an agent's messages are stored, sent and marked. Pure: no I/O, and no import of langchain or langgraph.

An agent's messages are steps: an AI message with the results of its tool calls. Model providers reject a tool call
without a result, and a result without its call. So a step is stored whole, and sent whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

# Begins the ids of messages that were loaded into a state without an id of their own. No client's ids begin like this.
_LOADED = "chathistory-loaded:"
# Stands in a state for a mark's ``begins_after`` of None. No entry has this id.
_UNKNOWN = "?"


class Entry(NamedTuple):
    """A message of the record, with the id under which it is stored; "" in a single item, which has no ids."""

    id: str
    message: BaseMessage


class Mark(NamedTuple):
    """The part of a thread's state that is stored. The state itself holds the mark as a list of text.

    Attributes:
        begins_after: the id of the latest entry of the record that precedes the thread's state, "" if none does, or
            None if nothing was loaded yet, so that it is not known.
        stored: the ids of the state's messages that are stored.
    """

    begins_after: str | None
    stored: Set[str]

    @classmethod
    def of(cls, value: Sequence[str] | None) -> Mark | None:
        """Return the mark that a state holds, or None if it holds none."""
        return cls(None if value[0] == _UNKNOWN else value[0], set(value[1:])) if value else None

    def value(self, messages: Iterable[BaseMessage]) -> list[str]:
        """Return the mark as the state of these messages holds it. Ids of other messages are left out."""
        begins_after = _UNKNOWN if self.begins_after is None else self.begins_after
        return [begins_after, *(message.id for message in messages if message.id in self.stored and message.id)]


class _Step(NamedTuple):
    """An AI message, the results of its calls, and what follows until the next AI message. The first may have none."""

    ai: AIMessage | None
    results: dict[str, ToolMessage]
    others: list[BaseMessage]


def sendable(messages: Iterable[BaseMessage]) -> list[BaseMessage]:
    """Return the messages without half a step: as a model provider accepts them.

    A step is left out if a call of its AI message has no result. Results follow their AI message at once, and a result
    without its call is left out. A call that langchain could not parse needs a result too: providers count it.
    """
    return [message for step in _steps(messages) for message in _whole(step, _all_calls(step.ai))]


def unstored(messages: Sequence[BaseMessage], stored: Set[str]) -> list[BaseMessage]:
    """Return the messages to store next: those after the last stored one, in whole steps, without summaries.

    A message before a stored one is stored, or was given up, or was deleted from the record on purpose. A step that
    waits for results is stored once it has them. A step whose AI message has only calls that langchain could not parse
    waits for nothing.

    Args:
        messages: the messages of the state, oldest first.
        stored: the ids of those that are stored.
    """
    last = max((at for at, message in enumerate(messages) if message.id in stored or is_loaded(message)), default=-1)
    steps = _steps(messages[last + 1 :])
    return [message for step in steps for message in _whole(step, _calls(step.ai)) if not _is_summary(message)]


def halves(messages: Sequence[BaseMessage]) -> list[Sequence[BaseMessage]]:
    """Return messages to store as two batches, cut between two steps, or nothing if they are one step."""
    cuts = [at for at, message in enumerate(messages) if at and not isinstance(message, ToolMessage)]
    if not cuts:
        return []
    middle = min(cuts, key=lambda at: abs(at - len(messages) / 2))
    return [messages[:middle], messages[middle:]]


def cursor(entries: Sequence[Entry], ids: Set[str | None]) -> str:
    """Return the id of the latest entry that precedes the thread's state, or "" if none of these does."""
    before = entries[: _begin(entries, ids)]
    return before[-1].id if before else ""


def past(
    entries: Sequence[Entry], ids: Set[str | None], *, up_to: str | None = None, limit: int | None = None
) -> list[BaseMessage]:
    """Return the messages of the record that precede the thread's state, and are not in it.

    Args:
        entries: the latest entries of the record, oldest first.
        ids: the ids of the state's messages.
        up_to: only entries up to this id, or None for those before the first one that is in the state.
        limit: only the latest entries, or None for all. They then begin with a human message, because a turn that was
            cut may make no sense to a model.
    """
    first = 0 if limit is None else max(len(entries) - limit, 0)
    before = entries[first : _begin(entries, ids)] if up_to is None else entries[first:]
    found = [
        entry.message
        for entry in before
        if (entry.message.id is None or entry.message.id not in ids) and (up_to is None or entry.id <= up_to)
    ]
    if limit is not None and len(entries) >= limit:
        humans = (at for at, message in enumerate(found) if isinstance(message, HumanMessage))
        return found[next(humans, len(found)) :]
    return found


def _begin(entries: Sequence[Entry], ids: Set[str | None]) -> int:
    """Return the index of the first entry that is in the state.

    The entries after that one do not precede the state, even if they are not in the state: a client may send a question
    again whose answer is stored.
    """
    return next((at for at, entry in enumerate(entries) if entry.message.id and entry.message.id in ids), len(entries))


def with_ids(messages: Iterable[BaseMessage]) -> list[BaseMessage]:
    """Return loaded messages, each with an id. An id that is given here says that the message is stored."""
    return [message if message.id else message.model_copy(update={"id": f"{_LOADED}{uuid4()}"}) for message in messages]


def is_loaded(message: BaseMessage) -> bool:
    """Return whether a message of the state has an id that ``with_ids`` gave it."""
    return message.id is not None and message.id.startswith(_LOADED)


def _steps(messages: Iterable[BaseMessage]) -> Iterator[_Step]:
    step = _Step(None, {}, [])
    for message in messages:
        if isinstance(message, AIMessage):
            yield step
            step = _Step(message, {}, [])
        elif not isinstance(message, ToolMessage):
            step.others.append(message)
        elif message.tool_call_id in _all_calls(step.ai):
            # The latest result counts: providers accept only one.
            step.results[message.tool_call_id] = message
    yield step


def _whole(step: _Step, needed: Set[str | None]) -> list[BaseMessage]:
    if step.ai is None or not needed <= step.results.keys():
        return step.others
    return [step.ai, *step.results.values(), *step.others]


def _calls(message: AIMessage | None) -> Set[str | None]:
    return {call["id"] for call in message.tool_calls} if message else set()


def _all_calls(message: AIMessage | None) -> Set[str | None]:
    if not message:
        return set()
    # langchain 1.5 answers these at the next call of the model, if they have an id.
    return _calls(message) | {call["id"] for call in message.invalid_tool_calls if call["id"]}


def _is_summary(message: BaseMessage) -> bool:
    # How SummarizationMiddleware of langchain 1 marks the message that replaces others.
    return message.additional_kwargs.get("lc_source") == "summarization"
