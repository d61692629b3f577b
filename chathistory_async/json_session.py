"""A session of JSON values, such as the items of a different framework's conversation. It does not import LangChain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ._codec.keys import KeyValue
from ._opening import SessionSpec
from ._session import check_ids, check_sequence
from ._sync.bridge import iterate, run
from ._telemetry.operations import count_messages, observed, observed_stream


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A JSON value with its id and the time at which it was added.

    Attributes:
        id: the value's id, which the methods of the session take. It does not change while the value is stored.
        value: the value, equal to the one that was added; ``JsonSession`` names the exceptions.
        created_at: the time at which the value was added, in UTC, by the writer's clock.
    """

    id: str
    value: Any = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ValuePage:
    """A page of a session's JSON values.

    Attributes:
        values: the values, oldest first.
        cursor: pass it to ``apage`` as ``before`` to get the page of older values. None if there are no older values.
    """

    values: list[StoredValue]
    cursor: str | None


class JsonSession:
    """The JSON values of one session. ``ChatHistoryStore.json_session`` returns it.

    Values have JSON's types: dicts with text as names, lists, text, numbers, booleans and None. They come back equal.
    Bytes, sets, integers of any size, NaN, infinities and text with surrogates come back equal too. Other values are
    stored in their plain form, as in a message: tuples come back as lists, and objects as pydantic dumps them. A value
    that has no plain form is passed to the store's ``default``.

    The ``a…`` methods run on the caller's event loop. Each has a synchronous twin, which runs it on one private event
    loop and blocks the calling thread. Any number of handles, threads, event loops and hosts may use one session at the
    same time. ``DynamoDBChatMessageHistory.aadd_messages`` says what an append guarantees and what it costs.

    A handle belongs to its store: it is closed with the store, and need not be closed itself. It can be copied,
    deep-copied and pickled, like a handle of ``ChatHistoryStore.session``.
    """

    @staticmethod
    def _in_store(session_id: str, spec: SessionSpec) -> JsonSession:
        handle = JsonSession.__new__(JsonSession)
        handle._begin(session_id, spec)
        return handle

    def _begin(self, session_id: str, spec: SessionSpec) -> None:
        """Become a handle on a session. A copy of the handle does not share the session object."""
        self._session_id = session_id
        self._spec = spec
        self._session = spec.open().session

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings: a copy is a new handle on the same session. All handles share the session's clock."""
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin(self._session_id, self._spec)

    def __init__(self) -> None:
        raise TypeError("ChatHistoryStore.json_session(session_id) makes a JsonSession")

    @property
    def table_name(self) -> str:
        """The table's name."""
        return self._spec.layout.table_name

    @property
    def session_id(self) -> str:
        """The session's id, as given."""
        return self._session_id

    @property
    def key(self) -> dict[str, KeyValue]:
        """A copy of the whole partition key, with the ids of a tuple joined."""
        return dict(self._spec.key)

    @property
    def format(self) -> str:
        """The name of the values' format."""
        return self._spec.format.name

    @observed("read", len)
    async def aget(self, limit: int | None = None, up_to: str | None = None) -> list[Any]:
        """Return the session's values, oldest first, or an empty list if the session does not exist or has expired.

        One ``Query`` for each megabyte. With ``limit`` or the store's ``history_size``, one ``Query`` reads little more
        than the requested values.

        Args:
            limit: the maximum number of values, counted from the latest; None for all values that ``history_size``
                keeps.
            up_to: a value's id. Only values up to and including that value are returned; with ``limit``, the latest of
                these.

        Raises:
            ValueError: ``limit`` is not a positive integer, or ``up_to`` is not an id.
            FormatError: the session holds values of a different format. The text names the call that reads them.
            UndecodableItemError, DecryptionError: as for ``DynamoDBChatMessageHistory.aget_messages``.
            EncryptionContextError, ConfigurationError: as for ``DynamoDBChatMessageHistory.aget_messages``.
            KmsKeyError, WriteConflictError, TableNotFoundError: as for ``DynamoDBChatMessageHistory.aget_messages``.
            KeySchemaError, AccessDeniedError, ThrottledError: as for ``DynamoDBChatMessageHistory.aget_messages``.
            EndpointError, ServiceError, ClosedError: as for ``DynamoDBChatMessageHistory.aget_messages``.
        """
        return await self._session.read(limit, up_to=up_to)

    def aiter(self) -> AsyncGenerator[Any, None]:
        """Return an iterator over the session's values, oldest first, that holds one page of values at a time.

        Use it as ``async for value in session.aiter()``. The iterator raises the errors of ``aget``.
        """
        return observed_stream("iterate", self, self._session.stream())

    @observed("page", lambda page: len(page.values))
    async def apage(self, limit: int = 50, before: str | None = None) -> ValuePage:
        """Return a page of values with their ids, oldest first: the latest values, or those before a cursor.

        Args:
            limit: the maximum number of values, 50 by default.
            before: the cursor of a page, or a value's id. Only values before it are returned.

        Raises:
            ValueError: ``limit`` is not a positive integer, or ``before`` is not a cursor.
            ChatHistoryError: as for ``aget``.
        """
        page = await self._session.page(limit, before)
        return ValuePage([StoredValue(one.id, one.value, one.created_at) for one in page.values], page.cursor)

    @observed("append")
    async def aadd(self, values: Sequence[Any], idempotency_key: str | None = None) -> None:
        """Append values: all or none, contiguous and in order, and exactly once however often the request is retried.

        Usually one ``PutItem``. An append takes a ``TransactWriteItems`` instead if it has an idempotency key, if the
        store has a session index, or if the values are too large for one item. An empty sequence writes nothing.

        Args:
            values: the values.
            idempotency_key: text of 1 to 256 characters, or None. A session stores only one batch for a key within the
                store's ``idempotency_seconds``, even if several processes send it; see
                ``DynamoDBChatMessageHistory.aadd_messages``.

        Raises:
            TypeError: ``values`` is not a sequence, or the key is not text.
            ValueError: the key is empty or too long.
            MessageNotStorableError: a value has no plain form. Nothing was written. The text names the path to the
                value.
            ItemTooLargeError: the values do not fit into one transaction of 4 MB after compression. Nothing was
                written.
            IdempotencyKeyReusedError: the key was used with other values. Nothing was written.
            FormatError: according to the session index, the session has a different format. Nothing was written.
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.aadd_messages``.
        """
        check_sequence(values, "aadd", "value")
        count_messages(len(values))
        await self._session.append(values, idempotency_key)

    @observed("delete")
    async def adelete(self, ids: Iterable[str]) -> None:
        """Remove values by their ids. Ids of values that do not exist, or no longer exist, are ignored.

        Args:
            ids: the ids that ``apage`` returns.

        Raises:
            ValueError: a value in ``ids`` is not an id.
            TypeError: ``ids`` is a single id and not an iterable.
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.adelete_messages``.
        """
        check_ids(ids, "adelete")
        await self._session.remove(ids)

    @observed("replace", lambda _: 1)
    async def areplace(self, value_id: str, value: Any) -> None:
        """Replace a value, whole or not at all. The new value has the id and the place of the old one.

        Args:
            value_id: the id that ``apage`` returns.
            value: the new value.

        Raises:
            ValueError: ``value_id`` is not the id of a value.
            MessageNotFoundError: there is no value with this id, or no longer.
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.areplace_message``.
        """
        await self._session.replace(value_id, value)

    @observed("pop")
    async def apop(self) -> Any:
        """Remove the latest value and return it, or return None if there is no value.

        Each value is returned to only one caller, however many callers pop at the same time. A stored value None cannot
        be distinguished from an empty session.

        Raises:
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.apop_message``.
        """
        for value in await self._session.pop():
            count_messages(1)
            return value
        return None

    @observed("clear")
    async def aclear(self) -> None:
        """Delete the session's values. Idempotency keys are kept.

        Raises:
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.aclear``.
        """
        await self._session.clear()

    def get(self, limit: int | None = None, up_to: str | None = None) -> list[Any]:
        """Return the session's values, as ``aget`` does."""
        return run(self.aget, limit, up_to)

    def iter(self) -> Iterator[Any]:
        """Return an iterator over the session's values, as ``aiter`` does."""
        return iterate(self.aiter())

    def page(self, limit: int = 50, before: str | None = None) -> ValuePage:
        """Return a page of values with their ids, as ``apage`` does."""
        return run(self.apage, limit, before)

    def add(self, values: Sequence[Any], idempotency_key: str | None = None) -> None:
        """Append values, as ``aadd`` does."""
        run(self.aadd, values, idempotency_key)

    def delete(self, ids: Iterable[str]) -> None:
        """Remove values by their ids, as ``adelete`` does."""
        run(self.adelete, ids)

    def replace(self, value_id: str, value: Any) -> None:
        """Replace a value, as ``areplace`` does."""
        run(self.areplace, value_id, value)

    def pop(self) -> Any:
        """Remove the latest value and return it, as ``apop`` does."""
        return run(self.apop)

    def clear(self) -> None:
        """Delete the session's values, as ``aclear`` does."""
        run(self.aclear)

    def _observed_layout(self) -> str | None:
        return self._spec.settings.observed_layout(self._spec.layout)

    def __repr__(self) -> str:
        """Return the table, the session and the format, without content."""
        return f"<JsonSession {self._session.access.ref}, format {self.format!r}>"
