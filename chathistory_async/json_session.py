"""A session of JSON values, such as the items of another framework's conversation. It does not import LangChain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ._codec.format import Format
from ._codec.keys import KeyValue
from ._item_collection.requests import ItemCollection
from ._opening import Indexed, Settings, open_session
from ._session import Session, check_ids, check_sequence
from ._sync.bridge import iterate, run


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A JSON value, and what it is known by where it is stored.

    Attributes:
        id: the name by which the session's methods take it. It stays the same as long as the value is stored.
        value: the value itself, equal to what was added.
        created_at: when it was added, by the writer's clock, in UTC.
    """

    id: str
    value: Any = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ValuePage:
    """Some of a session's JSON values, in their order.

    Attributes:
        values: the values, oldest first.
        cursor: pass it as ``before`` to get the page before this one; None where there is none.
    """

    values: list[StoredValue]
    cursor: str | None


class JsonSession:
    """The JSON values of one session: ``ChatHistoryStore.json_session`` returns it.

    Values are of JSON's types: dicts with text as names, lists, text, numbers, booleans and None. They come back equal.
    So do bytes, sets, integers of any size, NaN and infinities, and text with surrogates. Other values take their plain
    form, as in a message: tuples come back as lists, objects as pydantic dumps them; what has no such form is given to
    the store's ``default``.

    The ``a…`` methods run on the caller's event loop; their synchronous twins run them on one private event loop, and
    block the calling thread. Any number of handles, threads, event loops and hosts may use one session at once. What an
    append promises, and what it costs, is said at ``DynamoDBChatMessageHistory.aadd_messages``.

    A handle belongs to its store: it is closed with the store, and has nothing of its own to close. It can be copied,
    deeply copied and pickled, as a handle of ``ChatHistoryStore.session``.
    """

    @staticmethod
    def _in_store(
        session_id: str,
        key: Mapping[str, KeyValue],
        layout: ItemCollection,
        settings: Settings,
        format_: Format,
        index: Indexed | None,
    ) -> JsonSession:
        handle = JsonSession.__new__(JsonSession)
        handle._session_id = session_id
        handle._key = key
        handle._layout = layout
        handle._settings = settings
        handle._format = format_
        handle._index = index
        handle._begin()
        return handle

    _session_id: str
    _key: Mapping[str, KeyValue]
    _layout: ItemCollection
    _settings: Settings
    _format: Format
    _index: Indexed | None
    _session: Session[Any]

    def _begin(self) -> None:
        """Make from the settings what a handle knows of its session."""
        self._session = open_session(self._settings, self._layout, self._key, self._format, self._index).session

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings: a copy is another handle on the same session, with the clock that all of them share."""
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def __init__(self) -> None:
        raise TypeError("ChatHistoryStore.json_session(session_id) makes a JsonSession")

    @property
    def session_id(self) -> str:
        """The session's id, as given."""
        return self._session_id

    @property
    def key(self) -> dict[str, KeyValue]:
        """The whole partition key, ids joined: a copy."""
        return dict(self._key)

    @property
    def format(self) -> str:
        """The name of the values' format."""
        return self._format.name

    async def aget(self, limit: int | None = None, up_to: str | None = None) -> list[Any]:
        """Return the session's values, oldest first; an empty list where there is no session or it has expired.

        One ``Query`` for each megabyte; for the latest values, by ``limit`` or the store's ``history_size``, one
        ``Query`` that reads little more than these.

        Args:
            limit: how many values, the latest ones; None for all that ``history_size`` keeps.
            up_to: an id: only values up to that one, and that one; with ``limit``, the latest of these.

        Raises:
            ValueError: ``limit`` is not a positive integer, or ``up_to`` is not an id.
            FormatError: the session holds values of another format; the text says which call reads them.
            UndecodableItemError, DecryptionError, EncryptionContextError, ConfigurationError, KmsKeyError,
                TableNotFoundError, KeySchemaError, AccessDeniedError, ThrottledError, EndpointError, ServiceError,
                ClosedError: as for ``DynamoDBChatMessageHistory.aget_messages``.
        """
        return await self._session.read(limit, up_to=up_to)

    def aiter(self) -> AsyncGenerator[Any, None]:
        """Return an iterator over the session's values, oldest first, that holds one page of them at a time.

        ``async for value in session.aiter()``. It raises what ``aget`` does.
        """
        return self._session.stream()

    async def apage(self, limit: int = 50, before: str | None = None) -> ValuePage:
        """Return some of the latest values with their ids, oldest first, or of those before a cursor.

        Args:
            limit: how many values at most, 50 by default.
            before: the cursor of a page, or a value's id: only what comes before it.

        Raises:
            ValueError: ``limit`` is not a positive integer, or ``before`` is not a cursor.
            ChatHistoryError: as for ``aget``.
        """
        page = await self._session.page(limit, before)
        return ValuePage([StoredValue(one.id, one.value, one.created_at) for one in page.values], page.cursor)

    async def aadd(self, values: Sequence[Any], idempotency_key: str | None = None) -> None:
        """Append values, all of them or none, contiguous and in order; exactly once, however often it is retried.

        One ``PutItem``; a ``TransactWriteItems`` with an idempotency key, with a session index, and where the values
        are too large for one item. An empty sequence writes nothing.

        Args:
            values: the values.
            idempotency_key: text of 1 to 256 characters. The same key on the same session is stored once within the
                store's ``idempotency_seconds``, whoever sends it; see ``DynamoDBChatMessageHistory.aadd_messages``.

        Raises:
            TypeError: a value was given instead of a sequence, or the key is not text.
            ValueError: the key is empty or too long.
            MessageNotStorableError: a value has no plain form. Nothing was written; the text names the path to it.
            ItemTooLargeError: the values do not fit into one transaction, of 4 MB after compression. Nothing was
                written.
            IdempotencyKeyReusedError: the key was used with other values. Nothing was written.
            FormatError: the session index knows that the session has another format. Nothing was written.
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.aadd_messages``.
        """
        check_sequence(values, "aadd", "value")
        await self._session.append(values, idempotency_key)

    async def adelete(self, ids: Iterable[str]) -> None:
        """Remove values by their ids. Ids of values that are not there, or not any more, are passed over.

        Args:
            ids: the ids that ``apage`` returns.

        Raises:
            ValueError: one is not an id.
            TypeError: an id was given instead of an iterable.
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.adelete_messages``.
        """
        check_ids(ids, "adelete")
        await self._session.remove(ids)

    async def areplace(self, value_id: str, value: Any) -> None:
        """Put another value into the place of one, whole or not at all: its id and its place stay.

        Args:
            value_id: the id that ``apage`` returns.
            value: the value.

        Raises:
            ValueError: it is not an id of a value.
            MessageNotFoundError: there is no such value, or not any more.
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.areplace_message``.
        """
        await self._session.replace(value_id, value)

    async def apop(self) -> Any:
        """Remove the latest value and return it, or return None where there is none.

        However many do so at once, each value is returned to one of them. A value that is None cannot be told from an
        empty session.

        Raises:
            ChatHistoryError: as for ``DynamoDBChatMessageHistory.apop_message``.
        """
        for value in await self._session.pop():
            return value
        return None

    async def aclear(self) -> None:
        """Delete the session's values. Idempotency keys stay known.

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
        """Return some of the latest values with their ids, as ``apage`` does."""
        return run(self.apage, limit, before)

    def add(self, values: Sequence[Any], idempotency_key: str | None = None) -> None:
        """Append values, as ``aadd`` does."""
        run(self.aadd, values, idempotency_key)

    def delete(self, ids: Iterable[str]) -> None:
        """Remove values by their ids, as ``adelete`` does."""
        run(self.adelete, ids)

    def replace(self, value_id: str, value: Any) -> None:
        """Put another value into the place of one, as ``areplace`` does."""
        run(self.areplace, value_id, value)

    def pop(self) -> Any:
        """Remove the latest value and return it, as ``apop`` does."""
        return run(self.apop)

    def clear(self) -> None:
        """Delete the session's values, as ``aclear`` does."""
        run(self.aclear)

    def __repr__(self) -> str:
        """Return the table, the session and the format; no content."""
        return f"<JsonSession {self._session.access.ref}, format {self.format!r}>"
