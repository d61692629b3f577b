"""Shared code of both layouts: the interface of a session, its access to the table, and retries of conflicts."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
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
from ._telemetry.events import conflicted, retried
from .errors import (
    ChatHistoryError,
    ConfigurationError,
    LayoutError,
    MessageNotStorableError,
    SessionRef,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
    write_conflict,
)

if TYPE_CHECKING:
    # Imported at run time only for encryption: it needs an optional extra, and importing its SDK takes 0.2 s.
    from ._encryption.message_cipher import MessageCipher

_LOGGER = logging.getLogger("chathistory_async")

In = TypeVar("In")
Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])
Name = TypeVar("Name", int, str)
Out = TypeVar("Out")
P = ParamSpec("P")
Value = TypeVar("Value")

# For an empty page, DynamoDB has read 1 MB of items that were expired, removed or of a different format. 100,000 empty
# pages in a row would be 100 GB. More likely, the endpoint is not DynamoDB and its pages never end.
MAX_EMPTY_PAGES = 100_000
# An attempt fails only if another writer's attempt succeeded, or if the first guess was wrong. Losing 50 attempts in a
# row takes so many concurrent writers that DynamoDB would throttle them.
MAX_ATTEMPTS = 50
_LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Stored(Generic[Value]):
    """A stored value, with its id and the time at which its writer added it."""

    id: str
    value: Value
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredPage(Generic[Value]):
    """A page of a session's values, oldest first, with the cursor of the previous (older) page or None."""

    values: list[Stored[Value]]
    cursor: str | None


# Errors from reading an item that this library did not write: an attribute is missing or has a different type.
_OF_ANOTHER_FORM = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def reads_stored(read: Method) -> Method:
    """Decorate a method that reads stored items: an item of an unexpected form raises UndecodableItemError.

    The form is not checked in advance, because that would take a tenth of the time that reading a page takes.
    """

    @functools.wraps(read)
    async def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await read(self, *args, **kwargs)
        except ChatHistoryError:
            raise
        except _OF_ANOTHER_FORM as error:
            reason = type(error).__name__
        # Raised outside the handler, so that it does not refer to the original error, which may quote stored content.
        raise UndecodableItemError(f"A stored item does not have the form that is written ({reason})", self.access.ref)

    return cast("Method", reading)


class Access:
    """A session's access to its table: it sends requests, decrypts values, and names the session in errors.

    Args:
        clients: the clients that send the requests.
        ref: the table and the session, as errors name them.
        cipher: encrypts and decrypts the messages, or None to store them unencrypted.
        consistent_read: whether reads are strongly consistent.
        default: converts a value that has no plain form, or None to refuse such a value.
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
        """Send a request and return the response. ``calls.call`` describes retries and errors."""
        return await call(self.clients, request, self.ref, maybe_stored=maybe_stored)

    async def decrypt(self, encrypted: Mapping[Name, Bound]) -> dict[Name, bytes]:
        """Decrypt bodies, and return them under the same keys.

        The keys are the positions or the ids of the stored values. Errors name the values by them.
        """
        if not encrypted:
            return {}
        if self.cipher is None:
            first, (binding, _) = next(iter(encrypted.items()))
            raise ConfigurationError(
                f"Stored {binding.name(first)} is encrypted: give kms_key_id, the KMS key for new messages, and grant"
                " kms:Decrypt on the KMS key that encrypted the stored value",
                self.ref,
                first if isinstance(first, str) else None,
            )
        return await self.cipher.decrypt(encrypted)

    async def encode(self, format_: Format, values: Sequence[Value]) -> list[bytes]:
        """Return the JSON texts of values. The event loop runs now and then: see ``in_slices``."""
        return await self.in_slices(lambda value, at: format_.encode(value, at, self.default), values)

    async def in_slices(self, convert: Callable[[In, int], Out], values: Iterable[In], first: int = 0) -> list[Out]:
        """Convert values in time slices, between which the event loop runs. Errors name the session."""
        try:
            return await in_slices(convert, values, first)
        except MessageNotStorableError as error:
            located = self.located(error)
            # Logged too, because some frameworks swallow the error: RunnableWithMessageHistory does.
            _LOGGER.error("Nothing was stored: %s", located)  # noqa: TRY400  # a traceback would add nothing
            raise located from None
        except UndecodableItemError as error:
            raise self.located(error) from None

    def located(self, error: ChatHistoryError) -> ChatHistoryError:
        """Return the same error with the session named in its text."""
        return type(error)(str(error), self.ref, error.message_id)

    def undecodable(self, what: str, message_id: str | None, reason: str) -> UndecodableItemError:
        """Return the error for a stored message or record that cannot be read."""
        return UndecodableItemError(f"stored {what} cannot be decoded: {reason}", self.ref, message_id)

    def conflict(self, *, maybe_stored: bool = False) -> WriteConflictError | WriteOutcomeUnknownError:
        """Return the error of an operation for which other writers were too fast in MAX_ATTEMPTS attempts.

        Args:
            maybe_stored: whether a request whose response was lost may have been stored.
        """
        text = f"Other writers were faster in {MAX_ATTEMPTS} attempts in a row"
        return write_conflict(text, self.ref, maybe_stored=maybe_stored)

    def attempts(self, *, reads_first: bool = False) -> Attempts:
        """Return the attempts of an operation, none of which has begun. The arguments are those of ``Attempts``."""
        return Attempts(self, reads_first=reads_first)


class Attempts:
    """The attempts of an operation that competes with other writers. Each attempt begins with ``await begin()``.

    Before an attempt there is a random pause (full jitter). Its limit begins at 4 times the duration of the last
    attempt, grows fourfold with each pause, and is at most 1 s: after a pause shorter than an attempt, all the
    writers that lost to the same one would collide again. No pause follows an attempt that failed without a conflict.

    Args:
        access: the session.
        reads_first: whether each attempt reads before it writes, so that only another writer can make it fail. If not,
            the second attempt begins at once: most first attempts fail because the handle does not know what is stored.

    Attributes:
        number: how many attempts have begun.
        maybe_stored: whether a failed attempt may have been stored, because its response was lost.
    """

    def __init__(self, access: Access, *, reads_first: bool) -> None:
        self.number = 0
        self.maybe_stored = False
        self._access = access
        self._at_once = 1 if reads_first else 2
        self._pauses = 0
        self._began = 0.0

    async def begin(self) -> None:
        """Pause before the next attempt, and begin it.

        Raises:
            WriteConflictError: MAX_ATTEMPTS attempts have failed.
            WriteOutcomeUnknownError: they have, and ``maybe_stored`` is True.
        """
        is_conflict = bool(self.number) and not self._at_once
        if is_conflict:
            conflicted()
        if self.number == MAX_ATTEMPTS:
            raise self._access.conflict(maybe_stored=self.maybe_stored)
        if self.number:
            what = f"An operation on table {self._access.ref.table_name}"
            retried(what, "conflict" if is_conflict else "stale")
        if self._at_once:
            self._at_once -= 1
        else:
            await self._pause()
        self.number += 1
        self._began = time.perf_counter()

    def retry_at_once(self) -> None:
        """Begin the next attempt without a pause, because the current one failed without a conflict."""
        self._at_once = max(self._at_once, 1)

    async def _pause(self) -> None:
        self._pauses += 1
        limit = (time.perf_counter() - self._began) * 4**self._pauses
        await asyncio.sleep(random.uniform(0, min(limit, _LONGEST_PAUSE_SECONDS)))


class Session(ABC, Generic[Value]):
    """One session in one table: the interface that both layouts implement.

    A session reads and writes values of one format, and does not depend on a base class of LangChain's. Methods that
    raise LayoutError here are implemented by the item-collection layout only.
    """

    access: Access

    @abstractmethod
    async def read(self, limit: int | None = None, *, up_to: str | None = None) -> list[Value]:
        """Return the latest values, oldest first.

        Args:
            limit: how many values at most, or None for all.
            up_to: the id of the last value to return, or None for the session's latest value.
        """

    @abstractmethod
    async def append(self, values: Sequence[Value], idempotency_key: str | None = None) -> None:
        """Append a batch of values: all of them or none."""

    @abstractmethod
    async def clear(self) -> None:
        """Delete the values that are stored now, and none that another writer adds afterwards."""

    @abstractmethod
    def stream(self) -> AsyncGenerator[Value, None]:
        """Yield all values, oldest first."""

    async def page(self, limit: int, before: str | None) -> StoredPage[Value]:
        """Return the latest ``limit`` values before the cursor ``before``, or the session's latest if it is None."""
        raise self.needs_an_item_collection("Paging")

    async def remove(self, ids: Iterable[str]) -> None:
        """Remove the values with these ids. Ids of values that are not stored are ignored."""
        raise self.needs_an_item_collection("Removing a message")

    async def replace(self, value_id: str, value: Value) -> None:
        """Replace the value with this id by a new one."""
        raise self.needs_an_item_collection("Replacing a message")

    async def pop(self) -> list[Value]:
        """Remove the latest value and return it in a list of one, or return an empty list if there is none."""
        raise self.needs_an_item_collection("Taking a message off")

    async def copy_to(self, other: Session[Value], up_to: str | None) -> None:
        """Append this session's values, up to and including ``up_to`` (None: all), to another session as one batch."""
        raise self.needs_an_item_collection("Copying a session")

    async def owner(self) -> str | None:
        """Return the session's owner in the session index, or None if it has no owner."""
        return None

    def needs_an_item_collection(self, what: str) -> LayoutError:
        """Return the error for an operation that the single-item layout cannot do."""
        return LayoutError(f"{what} needs a table with a sort key, and sort_key_name", self.access.ref)


def leaves_no_plaintext(
    read: Callable[P, Coroutine[Any, Any, Out]],
) -> Callable[P, Coroutine[Any, Any, Out]]:
    """Decorate a method that decrypts values: its errors carry no inner frames and no context, only their cause.

    Error trackers also record the local variables of frames, and some errors hold their input:
    ``UnicodeDecodeError.object``, ``JSONDecodeError.doc``. Both would expose decrypted content.
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
    """Raise TypeError if a caller gives one message or value, or an iterator, instead of a sequence."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray, memoryview)):
        advice = "make a list of the iterator" if isinstance(values, Iterator) else f"put the one {what} in a list"
        raise TypeError(f"{method} takes a sequence of {what}s: {advice}")


def check_ids(ids: object, method: str) -> None:
    """Raise TypeError if a caller gives one id instead of an iterable."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise TypeError(f"{method} takes an iterable of ids: put the one id in a list")


class EmptyPages:
    """Counts consecutive pages without items.

    Args:
        ref: names the table in errors.
    """

    __slots__ = ("_number", "_ref")

    def __init__(self, ref: SessionRef) -> None:
        self._ref = ref
        self._number = 0

    def count(self, items: Sequence[object]) -> None:
        """Count a page, or start again from 0 if the page has items.

        Raises:
            ServiceError: more than MAX_EMPTY_PAGES consecutive pages are empty, so the endpoint is not DynamoDB.
        """
        self._number = 0 if items else self._number + 1
        if self._number > MAX_EMPTY_PAGES:
            raise not_an_answer(self._ref)


def smaller(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two limits. None means no limit."""
    limits = [limit for limit in (one, other) if limit is not None]
    return min(limits, default=None)
