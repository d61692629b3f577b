"""The asynchronous core of one session, whatever its layout. It knows messages, and nobody's base class."""

from __future__ import annotations

import functools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from langchain_core.messages import BaseMessage, HumanMessage

from ._binding import Bound
from ._calls import Request, call
from ._clients import Clients
from ._codec.plain import Default
from ._slices import in_slices
from .errors import (
    ChatHistoryError,
    ConfigurationError,
    LayoutError,
    MessageNotStorableError,
    Place,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)

if TYPE_CHECKING:
    # At run time it needs an extra, and its SDK takes 0.2 s to import: only who encrypts does.
    from ._sealing import Sealing

_LOGGER = logging.getLogger("chathistory_async")

In = TypeVar("In")
Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])
Name = TypeVar("Name", int, str)
Out = TypeVar("Out")
P = ParamSpec("P")

# An attempt fails only where another writer's succeeded or the first guess was wrong: this many are lost in a row
# only to a crowd that DynamoDB would throttle.
MAX_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message, and what it is known by where it is stored.

    Attributes:
        id: the name by which the session's methods take it. It stays the same as long as the message is stored.
        message: the message itself, equal to what was added.
        created_at: when it was added, by the writer's clock, in UTC.
    """

    id: str
    message: BaseMessage = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a session's messages, in their order.

    Attributes:
        messages: the messages, oldest first.
        cursor: pass it as ``before`` to get the page before this one; None where there is none.
    """

    messages: list[StoredMessage]
    cursor: str | None


# What comes of items of another form than the one that is written: of another type, or without what they need.
_OF_ANOTHER_FORM = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def reads_stored(read: Method) -> Method:
    """Have a method that reads what is stored raise UndecodableItemError where that is of another form.

    The form is not looked at beforehand: for a page that would take a tenth of what it takes to read it.
    """

    @functools.wraps(read)
    async def reading(self: Conversation, *args: Any, **kwargs: Any) -> Any:
        try:
            return await read(self, *args, **kwargs)
        except ChatHistoryError:
            raise
        except _OF_ANOTHER_FORM as error:
            reason = type(error).__name__
        # Outside of the handler: the error's text may quote what is stored.
        raise UndecodableItemError(f"What is stored has another form than what is written ({reason})", self.place)

    return cast("Method", reading)


class Conversation(ABC):
    """One session in one table.

    Args:
        clients: what to send requests with.
        place: the session's name in errors.
        sealing: what seals the messages, None to store them in the clear.
        consistent_read: whether reads are strongly consistent.
        default: what converts a value that has no plain form, None for nothing.
    """

    def __init__(
        self,
        clients: Clients,
        place: Place,
        sealing: Sealing | None,
        *,
        consistent_read: bool,
        default: Default | None = None,
    ) -> None:
        self.place = place
        self._clients = clients
        self._sealing = sealing
        self._consistent_read = consistent_read
        self._default = default

    @abstractmethod
    async def read(self, limit: int | None = None, *, whole_turns: bool = False) -> list[BaseMessage]:
        """Return the latest messages, oldest first."""

    @abstractmethod
    async def append(self, messages: Sequence[BaseMessage]) -> None:
        """Store a batch behind what is there."""

    @abstractmethod
    async def clear(self) -> None:
        """Delete what is there now, and nothing that another writer adds after it."""

    @abstractmethod
    def stream(self) -> AsyncGenerator[BaseMessage, None]:
        """Yield all messages, oldest first."""

    async def page(self, limit: int, before: str | None) -> Page:
        """Return a page of what is before a cursor, or of the latest."""
        raise self._needs_an_item_collection("Paging")

    async def remove(self, ids: Iterable[str]) -> None:
        """Remove these messages, where they are there."""
        raise self._needs_an_item_collection("Removing a message")

    async def replace(self, message_id: str, message: BaseMessage) -> None:
        """Put another message into the place of one."""
        raise self._needs_an_item_collection("Replacing a message")

    async def pop(self) -> BaseMessage | None:
        """Remove the latest message and return it."""
        raise self._needs_an_item_collection("Taking a message off")

    async def copy_to(self, other: Conversation, upto: str | None) -> None:
        """Append the messages to another session's."""
        raise self._needs_an_item_collection("Copying a session")

    def _needs_an_item_collection(self, what: str) -> LayoutError:
        return LayoutError(f"{what} needs a table with a sort key, and sort_key_name", self.place)

    async def _call(self, request: Request, *, maybe_stored: bool = False) -> dict[str, Any]:
        return await call(self._clients, request, self.place, maybe_stored=maybe_stored)

    async def _open(self, sealed: Mapping[Name, Bound]) -> dict[Name, bytes]:
        """Open sealed bodies, each under the position or the id of what was read."""
        if not sealed:
            return {}
        if self._sealing is None:
            first, (binding, _) = next(iter(sealed.items()))
            raise ConfigurationError(
                f"Stored {binding.name(first)} is sealed: give kms_key_id, the KMS key for what is to be written, and"
                " the permission kms:Decrypt on the key of what is stored",
                self.place,
                first if isinstance(first, str) else None,
            )
        return await self._sealing.open(sealed)

    async def _in_slices(self, convert: Callable[[In, int], Out], values: Iterable[In], first: int = 0) -> list[Out]:
        try:
            return await in_slices(convert, values, first)
        except MessageNotStorableError as error:
            located = self._located(error)
            # For callers whose framework swallows the error, as RunnableWithMessageHistory does.
            _LOGGER.error("Nothing was stored: %s", located)  # noqa: TRY400  # a traceback would tell nothing more
            raise located from None
        except UndecodableItemError as error:
            raise self._located(error) from None

    def _located(self, error: ChatHistoryError) -> ChatHistoryError:
        return type(error)(str(error), self.place, error.message_id)

    def _conflict(self, *, maybe_stored: bool = False) -> WriteConflictError | WriteOutcomeUnknownError:
        """Return the error of a write that others were always faster than, though an attempt may have been stored."""
        text = f"Other writers were faster in {MAX_ATTEMPTS} attempts in a row"
        if not maybe_stored:
            return WriteConflictError(text, self.place)
        return WriteOutcomeUnknownError(
            f"{text}, and the answer to an earlier one was lost: read the session before you try again", self.place
        )


def leaves_nothing_opened(
    read: Callable[P, Coroutine[Any, Any, Out]],
) -> Callable[P, Coroutine[Any, Any, Out]]:
    """Have a method that opens sealed values raise its errors without the frames and errors below it.

    Those who record errors record local variables too, and some errors hold their input: ``UnicodeDecodeError.object``,
    ``JSONDecodeError.doc``.
    """

    @functools.wraps(read)
    async def reading(*args: P.args, **kwargs: P.kwargs) -> Out:
        try:
            return await read(*args, **kwargs)
        except ChatHistoryError as error:
            error.__context__ = None
            raise error.with_traceback(None) from error.__cause__

    return reading


def check_sequence(messages: object) -> None:
    """Refuse a message where a sequence of them is expected."""
    if not isinstance(messages, Sequence):
        raise TypeError("aadd_messages takes a sequence of messages: put the one message in a list")


def smaller(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two limits, None for no limit."""
    limits = [limit for limit in (one, other) if limit is not None]
    return min(limits, default=None)


def from_a_human_message(messages: list[BaseMessage]) -> list[BaseMessage]:
    """Leave out what comes before the first human message."""
    for position, message in enumerate(messages):
        if isinstance(message, HumanMessage):
            return messages[position:]
    return []


def now() -> int:
    """Return the time, in seconds since the epoch."""
    return int(time.time())
