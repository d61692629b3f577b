"""The sessions of a table, by its session index: listing an owner's sessions, and deleting all of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from .._aws.calls import call
from .._aws.clients import Clients
from .._aws.errors import not_an_answer
from .._codec.format import LANGCHAIN_NAME
from .._codec.keys import KeyValue, decode_key_value
from .._cooperative import at_most, in_order
from .._item_collection.layout import ItemCollection
from .._request import Item
from .._session import MAX_ATTEMPTS, EmptyPages
from .._settings import check_positive
from .._wall_clock import now
from ..errors import (
    AccessDeniedError,
    ChatHistoryError,
    ConfigurationError,
    KmsKeyError,
    SessionRef,
    UndecodableItemError,
    WriteConflictError,
)
from .owner_index import check_owner, cursor_of, query_sessions, start_key_of
from .session import IndexedSession, SessionInfo
from .stored import LAST_ACTIVE, OWNER, is_alive, is_sessions_item

# If they are encrypted, each has its own data key, which KMS decrypts.
_READ_AT_ONCE = 16
# Each deletion sends up to four batches at once, and more would keep appends of the same client waiting.
_DELETED_AT_ONCE = 4
# The items have about 1 KB. A page of DynamoDB holds 1 MB.
_PAGE = 100
# Errors that concern one session's item only. A writer to the table can encrypt an item under a KMS key that this
# process may not use.
_UNREADABLE = (UndecodableItemError, KmsKeyError, ConfigurationError, AccessDeniedError)


@dataclass(frozen=True, slots=True)
class UnreadableSession:
    """A session whose item in the index cannot be read. The other sessions are listed nevertheless.

    Attributes:
        session_id: the value of the session's partition key, for ``delete_session``. If the store has ``key_parts``,
            pass ``split_key(session_id)`` by ``key`` instead.
        error: why the item cannot be read: it is damaged, or cannot be decrypted.
    """

    session_id: KeyValue
    error: ChatHistoryError


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some of an owner's sessions, the last active first.

    Attributes:
        sessions: the sessions that can be read.
        cursor: the value of ``before`` for the next page, or None on the last page.
        unreadable: the sessions of this page that cannot be read, each with its error. They count towards ``limit``.
    """

    sessions: list[SessionInfo]
    cursor: str | None
    unreadable: list[UnreadableSession]


@dataclass(frozen=True, slots=True)
class PurgeResult:
    """The result of deleting an owner's sessions.

    Attributes:
        sessions: how many sessions were deleted.
        messages: how many messages were deleted.
    """

    sessions: int
    messages: int


class Sessions:
    """The sessions of one table.

    Args:
        layout: how the sessions are stored. The value of its key is not used.
        clients: the clients for requests to DynamoDB.
        session_of: returns the session with a value of the partition key.
    """

    def __init__(
        self, layout: ItemCollection, clients: Clients, session_of: Callable[[KeyValue], IndexedSession]
    ) -> None:
        self._layout = layout
        self._clients = clients
        self._session_of = session_of
        # Every item of the index has these attributes.
        self._index_key = {OWNER, LAST_ACTIVE, *layout.key, layout.sort_key_name}

    async def page(self, owner: str, limit: int, before: str | None, format_name: str | None) -> SessionPage:
        """Return up to ``limit`` sessions of an owner, the last active first, from the start or after a cursor.

        Raises:
            ValueError: ``owner``, ``limit`` or the cursor is invalid.
        """
        check_owner(owner)
        check_positive("limit", limit, optional=False)
        alive: list[Item] = []
        async with aclosing(self._items(owner, limit + 1, before, format_name)) as items:
            async for item in items:
                if is_alive(self._layout, item, now()):
                    alive.append(item)
                if len(alive) > limit:
                    break
        read = await at_most(_READ_AT_ONCE, self._read, alive[:limit])
        return SessionPage(
            [session for session in read if isinstance(session, SessionInfo)],
            cursor_of(self._layout, alive[limit - 1]) if len(alive) > limit else None,
            [session for session in read if isinstance(session, UnreadableSession)],
        )

    async def purge(self, owner: str) -> PurgeResult:
        """Delete all sessions of an owner, including expired ones.

        Raises:
            ValueError: ``owner`` is invalid.
            WriteConflictError: MAX_ATTEMPTS rounds in a row found only sessions that were deleted before.
        """
        check_owner(owner)
        ref = SessionRef(self._layout.table_name)
        sessions = messages = 0
        known, rounds_without_new = set[KeyValue](), 0
        while rounds_without_new < MAX_ATTEMPTS:
            async with (
                aclosing(self._items(owner, _PAGE)) as items,
                aclosing(in_order(_DELETED_AT_ONCE, self._delete, items)) as counts,
            ):
                deleted = [count async for count in counts if count is not None]
            sessions += len(deleted)
            messages += sum(count for _, count in deleted)
            # The index is eventually consistent: it may still show deleted sessions, and may not show new ones yet.
            if not deleted:
                return PurgeResult(sessions, messages)
            ids = {session_id for session_id, _ in deleted}
            rounds_without_new = rounds_without_new + 1 if ids <= known else 0
            known |= ids
        raise WriteConflictError(f"Sessions of this owner existed again after each of {MAX_ATTEMPTS} deletions", ref)

    async def _items(
        self, owner: str, limit: int, before: str | None = None, format_name: str | None = None
    ) -> AsyncGenerator[Item, None]:
        """Yield an owner's items in the index, the last active first. ``limit`` items are read with each request."""
        start_key = None if before is None else start_key_of(self._layout, owner, before)
        ref = SessionRef(self._layout.table_name)
        empty_pages = EmptyPages(ref)
        while True:
            stored_name = "" if format_name == LANGCHAIN_NAME else format_name
            request = query_sessions(self._layout, owner, limit=limit, start_key=start_key, format_name=stored_name)
            response: dict[str, Any] = await call(self._clients, request, ref)
            for item in response["Items"]:
                if not self._index_key <= item.keys():
                    raise not_an_answer(ref)
                if is_sessions_item(self._layout, item):
                    yield item
            start_key = response.get("LastEvaluatedKey")
            if start_key is None:
                return
            empty_pages.count(response["Items"])

    async def _read(self, item: Item) -> SessionInfo | UnreadableSession:
        try:
            return await self._session(item).info_of(item)
        except _UNREADABLE as error:
            return UnreadableSession(self._session_id(item), error)

    async def _delete(self, item: Item) -> tuple[KeyValue, int] | None:
        """Delete a session and return its id and the number of its messages, or None if it did not exist."""
        count = await self._session(item).delete()
        return None if count is None else (self._session_id(item), count)

    def _session(self, item: Item) -> IndexedSession:
        return self._session_of(self._session_id(item))

    def _session_id(self, item: Item) -> KeyValue:
        (partition_name,) = self._layout.key
        return decode_key_value(item[partition_name])
