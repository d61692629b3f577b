"""One table and its clients for a whole application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from botocore.config import Config

from ._bridge import run
from ._clients import AnySession, ClientOptions, Clients
from ._codec import encode_key
from ._item_collection import ItemCollection
from ._migrating import MigratedSession, Source, Target, migrate, scan_session_ids
from ._single_item import SingleItem
from ._table import Table
from .errors import LayoutError, Place
from .history import DynamoDBChatMessageHistory, Key, layout_of, sealing_type

if TYPE_CHECKING:
    from ._sealing import Sealing


class ChatHistoryStore:
    """The sessions of one table: settings and clients that all their handles share.

    Open it once for the application, with ``async with``, and take handles from ``session()``, which is what
    LangChain's ``RunnableWithMessageHistory`` calls as ``get_session_history``. It opens a client on each event loop
    that uses it, at the first use.

    Args:
        table_name: the table.
        endpoint_url: the endpoint, None for the SDK's choice.
        primary_key_name: the partition key's attribute.
        boto3_session: as for ``DynamoDBChatMessageHistory``; it stays the caller's and is not closed.
        kms_key_id: the KMS key that messages are sealed under, None to store them in the clear; as for
            ``DynamoDBChatMessageHistory``.
        ttl: seconds from the last append until a session expires, None for never.
        ttl_key_name: the attribute of the expiry time, in seconds since the epoch.
        history_size: how many messages of a session are kept, the latest ones; None for all.
        history_messages_key: the attribute of the messages, or of a message's body.
        region_name: the region, None for the SDK's choice.
        config: a botocore ``Config`` that is merged over ours.
        consistent_read: whether reads are strongly consistent.
        kms_endpoint_url: KMS's endpoint, None for the SDK's choice.
        layout: "item_collection", where each message is an item and a session has no limit of its size, or
            "single_item", where a session is one, as langchain-community stores it, in a table without a sort key.
        sort_key_name: the sort key's attribute, text; of no matter in the single item.

    Raises:
        TypeError: ``boto3_session`` or ``kms_key_id`` is of a type that is not accepted.
        ValueError: ``ttl`` or ``history_size`` is not a positive integer, ``kms_key_id`` is empty, two attributes have
            one name, or there is no such layout.
        ModuleNotFoundError: ``kms_key_id`` was given, and the extra ``kms`` is not installed.
    """

    def __init__(
        self,
        table_name: str,
        *,
        endpoint_url: str | None = None,
        primary_key_name: str = "SessionId",
        boto3_session: AnySession | None = None,
        kms_key_id: str | None = None,
        ttl: int | None = None,
        ttl_key_name: str = "expireAt",
        history_size: int | None = None,
        history_messages_key: str = "History",
        region_name: str | None = None,
        config: Config | None = None,
        consistent_read: bool = True,
        kms_endpoint_url: str | None = None,
        layout: Literal["item_collection", "single_item"] = "item_collection",
        sort_key_name: str = "MessageId",
    ) -> None:
        if layout not in ("item_collection", "single_item"):
            raise ValueError(f'layout must be "item_collection" or "single_item", not {layout!r}')
        self._primary_key_name = primary_key_name
        self._consistent_read = consistent_read
        self._clients = Clients(
            ClientOptions(endpoint_url or None, kms_endpoint_url or None, region_name, boto3_session, config)
        )
        self._sort_key_name = sort_key_name if layout == "item_collection" else None
        self._layout = layout_of(
            self._sort_key_name,
            table_name=table_name,
            key=encode_key({primary_key_name: ""}),
            messages_name=history_messages_key,
            expiry_name=ttl_key_name,
            ttl=ttl,
            history_size=history_size,
        )
        self._kms_key_id = kms_key_id
        self._sealing_type = sealing_type(kms_key_id)

    def session(self, session_id: str, *, key: Key | None = None) -> DynamoDBChatMessageHistory:
        """Return a handle on a session. No I/O; a handle costs microseconds and need not be kept or closed.

        Args:
            session_id: the value of the partition key.
            key: a whole primary key instead, one or two attributes; in an item collection the partition key alone.

        Raises:
            TypeError: a key's value is not a str, int, Decimal or bytes.
            ValueError: a key attribute has the name of another attribute, or is one too many.
        """
        whole_key = key or {self._primary_key_name: session_id}
        layout = replace(self._layout, key=encode_key(whole_key))
        return DynamoDBChatMessageHistory._in_store(
            session_id, whole_key, layout, self._clients, self._kms_key_id, self._consistent_read
        )

    async def create_table(
        self,
        *,
        point_in_time_recovery: bool = False,
        table_kms_key_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Create the table where it does not exist, on demand, wait until it is active, and enable TTL.

        The partition key is ``primary_key_name``, the sort key of an item collection ``sort_key_name``, both text. Does
        nothing to a table that is already so, but for what TTL and ``point_in_time_recovery`` ask for.

        Args:
            point_in_time_recovery: enable it. It is never disabled here.
            table_kms_key_id: the KMS key of a new table's encryption at rest, None for AWS's own.
            tags: a new table's tags.

        Raises:
            KeySchemaError: a table of another key schema has this name. It was not changed.
            ConfigurationError: the table's TTL is on another attribute than ``ttl_key_name``.
            AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``errors``.
        """
        await self._table().create(
            self._primary_key_name,
            self._sort_key_name,
            self._layout.expiry_name,
            point_in_time_recovery=point_in_time_recovery,
            kms_key_id=table_kms_key_id,
            tags=tags or {},
        )

    async def delete_table(self) -> None:
        """Delete the table with all its sessions and wait until it is gone. Without a table it does nothing.

        Raises:
            AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``errors``.
        """
        await self._table().delete()

    def migrate_from(
        self,
        source: ChatHistoryStore,
        session_ids: Iterable[str] | AsyncIterable[str],
        *,
        dry_run: bool = False,
        delete_source: bool = False,
    ) -> AsyncGenerator[MigratedSession, None]:
        """Return an iterator that copies sessions from single items into this item collection, and tells of each.

        ``async for session in store.migrate_from(source, ids)``, with the settings of the application's stores. Several
        sessions are under way at once; what became of them comes in the order of the ids. Whoever stops early, or is
        killed, runs it again: each message is copied once, and what users remove here meanwhile does not come back. The
        application may go on writing to either side, on langchain-community too, and several may migrate at once. What
        is appended to the source after a session's turn is copied by the next run.

        What is copied comes before what the application writes here itself, so ``created_at`` of these messages says
        nothing of when they were added: it is an hour before the session was first copied, or just before its first
        message that was here. They expire when the source would have expired at the time; those of a source that never
        expires, by the ``ttl`` here. They are sealed, or not, as this store says.

        What was copied is read again and compared, and only where all of a session is equal, and its source holds
        nothing else, does ``delete_source`` delete that. Of a session there is an item here, with the sort key
        "migration", which has to stay as long as its source may be written to.

        A session takes two reads of the source and the item here, then a ``Query``, a ``TransactWriteItems`` for each
        98 messages, a ``Query`` and a ``PutItem``, and with ``delete_source`` a ``DeleteItem`` and a ``PutItem``.

        Args:
            source: a store of ``layout="single_item"``, on another table; its ``kms_key_id`` opens what is sealed.
            session_ids: the ids, values of the partition key in both tables; ``source.scan_session_ids()`` has all.
            dry_run: read, and find out if it can be stored, but write nothing.
            delete_source: delete the source's items of what was moved and compared.

        Raises:
            LayoutError: this store is not of an item collection, or ``source`` is not of single items.
            TypeError: ``session_ids`` is a str. The iterator raises what follows, and ends the run: sessions under way
                are left as after a kill. What fails of one session alone is told by its ``error``.
            TableNotFoundError, KeySchemaError, AccessDeniedError, ConfigurationError, ThrottledError, EndpointError,
                ServiceError, ClosedError: see ``errors``.
        """
        to, out_of = self._layout, source._layout
        if not isinstance(to, ItemCollection):
            raise LayoutError("A migration leads into a table with a sort key", Place(to.table_name))
        if not isinstance(out_of, SingleItem):
            text = 'A migration leads out of single items: source must be a ChatHistoryStore(..., layout="single_item")'
            raise LayoutError(text, Place(out_of.table_name))
        if isinstance(session_ids, str):
            raise TypeError("migrate_from takes an iterable of ids: put the one id in a list")

        def open_session(session_id: str) -> tuple[Source, Target]:
            old = replace(out_of, key=encode_key({source._primary_key_name: session_id}))
            new = replace(to, key=encode_key({self._primary_key_name: session_id}))
            return (
                Source(old, *source._access(session_id), consistent_read=True),
                Target(new, *self._access(session_id), consistent_read=True),
            )

        return migrate(session_ids, open_session, dry_run=dry_run, delete_source=delete_source)

    def scan_session_ids(self) -> AsyncGenerator[str, None]:
        """Return an iterator over the ids of all sessions of a table of single items, in no order.

        By ``Scan``, strongly consistent, a megabyte at a time: DynamoDB bills it as a read of the whole table, though
        only the keys are returned. Nothing else in this library scans.

        Raises:
            LayoutError: the store is not of single items. The iterator raises what follows.
            TableNotFoundError, AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError,
                ClosedError: see ``errors``.
        """
        if not isinstance(self._layout, SingleItem):
            raise LayoutError(
                'Scanning needs a ChatHistoryStore(..., layout="single_item")', Place(self._layout.table_name)
            )
        return scan_session_ids(self._layout, self._clients)

    async def aclose(self) -> None:
        """Close the clients of all event loops and end the store's handles. A second call does nothing."""
        self._clients.retired = True
        await self._clients.aclose()

    def close(self) -> None:
        """Close the store, as ``aclose`` does."""
        run(self.aclose)

    async def __aenter__(self) -> ChatHistoryStore:
        """Open the running loop's clients, so that the first request does not have to, and return the store.

        Raises:
            ConfigurationError: the SDK cannot make a client.
            ClosedError: the store was closed.
        """
        await self._table().connect()
        if self._sealing_type is not None:
            await self._sealing_type.connect(self._kms_key_id or "", self._clients, Place(self._layout.table_name))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.aclose()

    def __repr__(self) -> str:
        """Return the table's name."""
        return f"<{type(self).__name__} {Place(self._layout.table_name)}>"

    def _access(self, session_id: str) -> tuple[Clients, Place, Sealing | None]:
        """Return what a conversation needs beside its layout."""
        history = self.session(session_id)
        return self._clients, history._conversation.place, history._sealing

    def _table(self) -> Table:
        return Table(self._layout.table_name, self._clients)
