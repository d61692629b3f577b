"""What the sessions of both layouts share: the interface of one session, and what it reaches its table with."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from ._aws.calls import call
from ._aws.clients import Clients
from ._aws.errors import not_an_answer
from ._codec.format import Format
from ._codec.plain import Default
from ._cooperative import in_slices
from ._encryption.binding import Bound
from ._request import Request
from .errors import (
    ChatHistoryError,
    ConfigurationError,
    LayoutError,
    MessageNotStorableError,
    SessionRef,
    UndecodableItemError,
    write_conflict,
)

if TYPE_CHECKING:
    # At run time it needs an extra, and its SDK takes 0.2 s to import: only who encrypts does.
    from ._encryption.message_cipher import MessageCipher

_LOGGER = logging.getLogger("chathistory_async")

In = TypeVar("In")
Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])
Name = TypeVar("Name", int, str)
Out = TypeVar("Out")
P = ParamSpec("P")
Value = TypeVar("Value")

# A page without items stands for a megabyte that has expired or has another format. So many in a row are 100 GB, or an
# endpoint that is not DynamoDB and never ends.
MAX_EMPTY_PAGES = 100_000
# An attempt fails only where another writer's succeeded or the first guess was wrong: this many are lost in a row
# only to a crowd that DynamoDB would throttle.
MAX_ATTEMPTS = 50
_LONGEST_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Stored(Generic[Value]):
    """A value, and what it is known by where it is stored."""

    id: str
    value: Value
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredPage(Generic[Value]):
    """Some of a session's values, oldest first, with the cursor of the page before; None where there is none."""

    values: list[Stored[Value]]
    cursor: str | None


# What comes of items of another form than the one that is written: of another type, or without what they need.
_OF_ANOTHER_FORM = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def reads_stored(read: Method) -> Method:
    """Have a method that reads what is stored raise UndecodableItemError where that is of another form.

    The form is not looked at beforehand: for a page that would take a tenth of what it takes to read it.
    """

    @functools.wraps(read)
    async def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await read(self, *args, **kwargs)
        except ChatHistoryError:
            raise
        except _OF_ANOTHER_FORM as error:
            reason = type(error).__name__
        # Outside of the handler: the error's text may quote what is stored.
        raise UndecodableItemError(f"What is stored has another form than what is written ({reason})", self.access.ref)

    return cast("Method", reading)


class Access:
    """What a session reaches its table with, and how its errors name the two.

    Args:
        clients: what to send requests with.
        ref: the session's name in errors.
        cipher: what encrypts the messages, None to store them in the clear.
        consistent_read: whether reads are strongly consistent.
        default: what converts a value that has no plain form, None for nothing.
    """

    def __init__(
        self,
        clients: Clients,
        ref: SessionRef,
        cipher: MessageCipher | None,
        *,
        consistent_read: bool,
        default: Default | None = None,
    ) -> None:
        self.clients = clients
        self.ref = ref
        self.cipher = cipher
        self.consistent_read = consistent_read
        self.default = default

    async def call(self, request: Request, *, maybe_stored: bool = False) -> dict[str, Any]:
        """Send a request: see ``calls.call``."""
        return await call(self.clients, request, self.ref, maybe_stored=maybe_stored)

    async def decrypt(self, encrypted: Mapping[Name, Bound]) -> dict[Name, bytes]:
        """Open encrypted bodies, each under the position or the id of what was read."""
        if not encrypted:
            return {}
        if self.cipher is None:
            first, (binding, _) = next(iter(encrypted.items()))
            raise ConfigurationError(
                f"Stored {binding.name(first)} is encrypted: give kms_key_id, the KMS key for new messages, and"
                " the permission kms:Decrypt on the key of what is stored",
                self.ref,
                first if isinstance(first, str) else None,
            )
        return await self.cipher.decrypt(encrypted)

    async def encode(self, format_: Format, values: Sequence[Value]) -> list[bytes]:
        """Return the JSON texts of values, in slices."""
        return await self.in_slices(lambda value, at: format_.encode(value, at, self.default), values)

    async def in_slices(self, convert: Callable[[In, int], Out], values: Iterable[In], first: int = 0) -> list[Out]:
        """Convert values in slices, with errors that name the session."""
        try:
            return await in_slices(convert, values, first)
        except MessageNotStorableError as error:
            located = self.located(error)
            # For callers whose framework swallows the error, as RunnableWithMessageHistory does.
            _LOGGER.error("Nothing was stored: %s", located)  # noqa: TRY400  # a traceback would tell nothing more
            raise located from None
        except UndecodableItemError as error:
            raise self.located(error) from None

    def located(self, error: ChatHistoryError) -> ChatHistoryError:
        """Return an error that names the session."""
        return type(error)(str(error), self.ref, error.message_id)

    def undecodable(self, what: str, message_id: str | None, reason: str) -> UndecodableItemError:
        """Return the error of a stored message or record that cannot be read."""
        return UndecodableItemError(f"stored {what} cannot be decoded: {reason}", self.ref, message_id)

    def attempts(self) -> Attempts:
        """Return the attempts of an operation, none of which has begun."""
        return Attempts(self.ref)


class Attempts:
    """The attempts of an operation that competes with other writers. Each one begins with ``await attempts.begin()``.

    The second attempt begins at once, because most first attempts fail of what their writer did not know. Before any
    later one is a random pause (full jitter), whose limit grows fourfold with each attempt, from the time that the last
    one took: after a shorter pause, the writers who lost to one would all meet again.

    Attributes:
        number: how many attempts have begun.
        maybe_stored: whether an attempt that failed may have been stored all the same, because its response was lost.
    """

    def __init__(self, ref: SessionRef) -> None:
        self.number = 0
        self.maybe_stored = False
        self._ref = ref
        self._began = 0.0

    async def begin(self) -> None:
        """Wait before the next attempt, and begin it.

        Raises:
            WriteConflictError: there were MAX_ATTEMPTS of them.
            WriteOutcomeUnknownError: there were, and ``maybe_stored``: a request may still be under way.
        """
        if self.number == MAX_ATTEMPTS:
            text = f"Other writers were faster in {MAX_ATTEMPTS} attempts in a row"
            raise write_conflict(text, self._ref, maybe_stored=self.maybe_stored)
        if self.number > 1:
            took = time.perf_counter() - self._began
            await asyncio.sleep(random.uniform(0, min(took * 4 ** (self.number - 1), _LONGEST_PAUSE_SECONDS)))
        self.number += 1
        self._began = time.perf_counter()


class Session(ABC, Generic[Value]):
    """One session in one table, whatever its layout. It knows values of one format, and nobody's base class."""

    access: Access

    @abstractmethod
    async def read(self, limit: int | None = None, *, up_to: str | None = None) -> list[Value]:
        """Return the latest values, or those up to one of them, oldest first."""

    @abstractmethod
    async def append(self, values: Sequence[Value], idempotency_key: str | None = None) -> None:
        """Store a batch behind what is there."""

    @abstractmethod
    async def clear(self) -> None:
        """Delete what is there now, and nothing that another writer adds after it."""

    @abstractmethod
    def stream(self) -> AsyncGenerator[Value, None]:
        """Yield all values, oldest first."""

    async def page(self, limit: int, before: str | None) -> StoredPage[Value]:
        """Return a page of what is before a cursor, or of the latest."""
        raise self.needs_an_item_collection("Paging")

    async def remove(self, ids: Iterable[str]) -> None:
        """Remove these values, where they are there."""
        raise self.needs_an_item_collection("Removing a message")

    async def replace(self, value_id: str, value: Value) -> None:
        """Put another value into the place of one."""
        raise self.needs_an_item_collection("Replacing a message")

    async def pop(self) -> list[Value]:
        """Remove the latest value and return it, alone in a list; return an empty list where there is none."""
        raise self.needs_an_item_collection("Taking a message off")

    async def copy_to(self, other: Session[Value], up_to: str | None) -> None:
        """Append the values to another session's, as one batch."""
        raise self.needs_an_item_collection("Copying a session")

    async def owner(self) -> str | None:
        """Return whose the session is in the session index, None for nobody."""
        return None

    def needs_an_item_collection(self, what: str) -> LayoutError:
        """Return the error of what a single item cannot do."""
        return LayoutError(f"{what} needs a table with a sort key, and sort_key_name", self.access.ref)


def leaves_nothing_opened(
    read: Callable[P, Coroutine[Any, Any, Out]],
) -> Callable[P, Coroutine[Any, Any, Out]]:
    """Have a method that opens encrypted values raise its errors without the frames and errors below it.

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


def check_sequence(values: object, method: str, what: str) -> None:
    """Refuse a message or value where a sequence of them is expected."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise TypeError(f"{method} takes a sequence of {what}s: put the one {what} in a list")


def check_ids(ids: object, method: str) -> None:
    """Refuse an id where an iterable of them is expected."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise TypeError(f"{method} takes an iterable of ids: put the one id in a list")


class EmptyPages:
    """Counts the pages in a row that had no items.

    Args:
        ref: names the table in errors.
    """

    __slots__ = ("_number", "_ref")

    def __init__(self, ref: SessionRef) -> None:
        self._ref = ref
        self._number = 0

    def count(self, items: Sequence[object]) -> None:
        """Take a page into account.

        Raises:
            ServiceError: so many in a row are not DynamoDB's.
        """
        self._number = 0 if items else self._number + 1
        if self._number > MAX_EMPTY_PAGES:
            raise not_an_answer(self._ref)


def smaller(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two limits, None for no limit."""
    limits = [limit for limit in (one, other) if limit is not None]
    return min(limits, default=None)


def now() -> int:
    """Return the time, in seconds since the epoch."""
    return int(time.time())
