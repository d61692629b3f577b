"""One table and its clients for a whole application."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from botocore.config import Config

from ._aws.clients import Clients, FastPathStatus
from ._aws.credentials import AnySession
from ._aws.sdk import ClientOptions
from ._aws.table import Index, Table
from ._codec.format import LANGCHAIN_NAME
from ._codec.json_values import json_format
from ._codec.keys import KeyValue, check_key_size, encode_key, join_key, split_key
from ._codec.plain import Default, check_default
from ._item_collection.requests import ItemCollection
from ._opening import (
    IDEMPOTENCY_SECONDS,
    Indexed,
    Key,
    Layout,
    Settings,
    cipher_type,
    layout_of,
    layout_with,
    open_session,
)
from ._session import Access
from ._session_index.listing import PurgeResult, SessionPage, Sessions
from ._session_index.requests import INDEX_NAME, KEY_SCHEMA, SessionItem
from ._session_index.session import IndexedSession, SessionInfo
from ._settings import check_positive
from ._single_item.requests import SingleItem
from ._sync.bridge import run
from .errors import ConfigurationError, LayoutError, SessionRef
from .json_session import JsonSession

if TYPE_CHECKING:
    from ._migration.run import MigrationResult, Source, Target
    from .history import DynamoDBChatMessageHistory


Method = TypeVar("Method", bound=Callable[..., Any])


def _hidden_from_signature(parameter: str) -> Callable[[Method], Method]:
    """Leave a parameter out of what ``inspect.signature`` tells of a method that is called with and without it."""

    def hide(method: Method) -> Method:
        signature = inspect.signature(method)
        shown = [value for name, value in signature.parameters.items() if name != parameter]
        method.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return method

    return hide


class ChatHistoryStore:
    """The sessions of one table: settings and clients that all their handles share.

    Open it once for the application, with ``async with``, and take handles from ``session()``, which is what
    LangChain's ``RunnableWithMessageHistory`` calls as ``get_session_history``. It opens a client on each event loop
    that uses it, at the first use. Its own methods are asynchronous; plain code calls them with ``asyncio.run``, and
    its handles' methods as they are.

    A store that was closed raises ``ClosedError``, and so do its handles, until ``async with`` opens it again. Any
    number of ``async with`` may be open at once, on any event loops: the last one to end closes the store. ``aclose``
    and ``close`` close it at once, whoever uses it.

    A store can be copied, deeply copied and pickled. The copy has the settings and opens clients of its own. A
    ``boto3_session`` cannot be pickled.

    Args:
        table_name: the table.
        endpoint_url: the endpoint, None for the SDK's choice.
        primary_key_name: the partition key's attribute.
        boto3_session: as for ``DynamoDBChatMessageHistory``; it stays the caller's and is not closed.
        kms_key_id: the KMS key that messages are encrypted under, None to store them in the clear; as for
            ``DynamoDBChatMessageHistory``.
        ttl: seconds from the writing of a message until it expires, or in a single item from the last append until the
            session does. None as for ``DynamoDBChatMessageHistory``.
        ttl_key_name: the attribute of the expiry time, in seconds since the epoch.
        history_size: how many messages of a session are kept, the latest ones; None for all. How exactly that holds is
            said at ``DynamoDBChatMessageHistory``.
        history_messages_key: the attribute of the messages, or of a message's body.
        region_name: the region, None for the SDK's choice.
        config: a botocore ``Config`` that is merged over ours.
        consistent_read: whether reads are strongly consistent.
        kms_endpoint_url: KMS's endpoint, None for the SDK's choice.
        layout: "item_collection", where each append is an item and a session has no limit of its size, or
            "single_item", where a session is one, as langchain-community stores it, in a table without a sort key.
        sort_key_name: the sort key's attribute, text; of no matter in the single item.
        session_index: keep an item for each session, for ``list_sessions`` and the other methods that take a session's
            id. It is written in one transaction with the session's messages. So an append costs twice what it does
            without, and four write units more (DynamoDB bills transactions twice, and for the item and its entry in the
            owner's index), and concurrent writers of one session conflict and retry. Every store that writes to
            the table should have ``session_index=True``. A session that had messages before is listed from its next
            append on, and its earlier messages are counted when the index is first asked for it. Needs an item
            collection, and the global secondary index ``SessionsByOwner`` that ``create_table`` makes. The store's
            first append queries that index, and raises ``KeySchemaError`` where it is missing.
        fast_path: whether calls to DynamoDB may take the fast path; as for ``DynamoDBChatMessageHistory``.
        default: what converts a value in a message, or in metadata, that has no plain form; as for
            ``DynamoDBChatMessageHistory``.
        key_parts: the number of ids in each session's partition key, such as 2 for a tenant's and a session's. Every
            method that takes ``key`` then needs a tuple of that many ids there, and raises ``ValueError`` for plain
            text. So no session's id that a user made up, such as ``"acme#s1"``, opens another tenant's session. With
            None these methods take plain text and tuples. ``split_key(info.session_id)`` returns the tuple of a session
            in a list.
        idempotency_seconds: how long an idempotency key keeps its batch from being stored again, a day by default; of
            no matter in the single item, which knows a key for some number of writes.

    Raises:
        TypeError: ``boto3_session``, ``kms_key_id`` or ``default`` is of a type that is not accepted.
        ValueError: ``ttl``, ``history_size``, ``key_parts`` or ``idempotency_seconds`` is not a positive integer,
            ``kms_key_id`` is empty, two attributes have one name, there is no such layout, or it has no session index.
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
        session_index: bool = False,
        fast_path: bool = True,
        default: Default | None = None,
        key_parts: int | None = None,
        idempotency_seconds: int = IDEMPOTENCY_SECONDS,
    ) -> None:
        check_default(default)
        if layout not in ("item_collection", "single_item"):
            raise ValueError(f'layout must be "item_collection" or "single_item", not {layout!r}')
        if session_index and layout == "single_item":
            raise ValueError("session_index needs the layout item_collection: a single item has no place for it")
        check_positive("key_parts", key_parts)
        self._primary_key_name = primary_key_name
        self._key_parts = {} if key_parts is None else {primary_key_name: key_parts}
        self._session_index = session_index
        check_positive("idempotency_seconds", idempotency_seconds, optional=False)
        clients = Clients(
            ClientOptions(endpoint_url or None, kms_endpoint_url or None, region_name, boto3_session, config, fast_path)
        )
        self._settings = Settings(clients, kms_key_id, consistent_read, default, idempotency_seconds, self._key_parts)
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
        if isinstance(self._layout, ItemCollection) and session_index:
            # For what it refuses.
            SessionItem(self._layout, None)
        # For what it refuses.
        cipher_type(kms_key_id)

    @_hidden_from_signature("key")
    def session(
        self, session_id: str, *, key: Key | None = None, owner: str | None = None
    ) -> DynamoDBChatMessageHistory:
        """Return a handle on a session. No I/O; a handle costs microseconds and need not be kept or closed.

        ``RunnableWithMessageHistory`` calls it with the session's id, or with a ``history_factory_config`` of the
        fields ``session_id`` and ``owner``. It accepts no further parameter, so ``inspect.signature`` has no ``key``.

        Args:
            session_id: the value of the partition key.
            key: a whole primary key instead, one or two attributes; in an item collection the partition key alone. A
                tuple of ids is joined, as for ``DynamoDBChatMessageHistory``: ``{"SessionId": (tenant, session_id)}``.
                Plain text is not changed, and ``"acme#s1"`` is the session of ``("acme", "s1")``: see ``key_parts``.
            owner: whose list the session is in, from its first append by a handle that names one; it stays theirs.
                Needs ``session_index``. Where a policy has ``dynamodb:LeadingKeys``, begin it with the tenant's id too.

        Raises:
            TypeError: a key's value is not a str, int, Decimal, bytes or tuple of str.
            ValueError: a key attribute has the name of another attribute, or is one too many, or is not the tuple that
                ``key_parts`` requires; or ``owner`` is empty, longer than 2,048 bytes, or given without
                ``session_index``.
        """
        from .history import DynamoDBChatMessageHistory

        whole_key = join_key(key or {self._primary_key_name: session_id}, self._key_parts)
        layout = layout_with(self._layout, encode_key(whole_key))
        return DynamoDBChatMessageHistory._in_store(
            session_id, whole_key, layout, self._settings, self._index_of(owner)
        )

    def json_session(
        self, session_id: str, *, key: Key | None = None, owner: str | None = None, format: str = "json"
    ) -> JsonSession:
        """Return a handle on a session of JSON values, such as another framework's items. No I/O, as for ``session``.

        It does not import LangChain. Needs an item collection.

        Args:
            session_id: the value of the partition key.
            key: as for ``session``.
            owner: as for ``session``.
            format: the name of the values' format, such as that of the framework that they are of. It is stored with
                them, and who reads the session by another name gets an error.

        Raises:
            LayoutError: the store is of single items.
            TypeError: as for ``session``.
            ValueError: as for ``session``; or ``format`` is not 1 to 64 lower-case letters, digits, dots, hyphens and
                underscores, or is "langchain".
        """
        if not isinstance(self._layout, ItemCollection):
            raise LayoutError("A JSON session needs a table with a sort key", SessionRef(self._layout.table_name))
        whole_key = join_key(key or {self._primary_key_name: session_id}, self._key_parts)
        layout = layout_with(self._layout, encode_key(whole_key))
        return JsonSession._in_store(
            session_id, whole_key, layout, self._settings, json_format(format), self._index_of(owner)
        )

    def _index_of(self, owner: str | None) -> Indexed | None:
        if owner is not None and not self._session_index:
            raise ValueError("owner needs a ChatHistoryStore with session_index=True")
        return Indexed(owner) if self._session_index else None

    @property
    def fast_path_status(self) -> FastPathStatus:
        """Whether calls to DynamoDB take the fast path now, and if not, why.

        No I/O. It looks at the clients that are open in this process, on whatever event loop, that of the synchronous
        methods included: ``active`` is True where all of them take the fast path, False where one does not, and None
        until the first call, or ``async with``, has opened one. A tracer or a mock that begins later is seen here, and
        by the next call; one that was there when a client was opened keeps that client off the fast path. Calls are
        also sent by the SDK's client alone for up to 1.5 seconds after a failure on the fast path, which is not shown.
        """
        return self._settings.clients.fast_path_status()

    async def list_sessions(
        self, owner: str, limit: int = 50, *, before: str | None = None, format: str | None = None
    ) -> SessionPage:
        """Return an owner's sessions, the last active first.

        One ``Query`` of the index ``SessionsByOwner``, which follows the table within a second or so: it cannot be read
        consistently. Expired sessions are left out. With ``kms_key_id`` a ``Decrypt`` of KMS follows for each session
        with a title or metadata, 16 at once, unless it was opened within the last five minutes. A session whose count
        does not hold costs what it does in ``get_session_info``. A session that cannot be read is in the page's
        ``unreadable``, and does not keep the others from being listed.

        Args:
            owner: the owner.
            limit: how many at most, 50 by default.
            before: the ``cursor`` of a page: only what comes after that page. Sessions that become active meanwhile
                move to the front, and are not met again.
            format: only sessions of this format, "langchain" for messages; None for all. The others are read, and
                billed for, all the same.

        Raises:
            ValueError: ``owner``, ``limit`` or ``format`` cannot be meant, or ``before`` is not a cursor.
            ConfigurationError: there is no ``session_index``.
            KeySchemaError: the table lacks the index, which ``create_table`` adds.
            TableNotFoundError, AccessDeniedError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``errors``.
        """
        if format is not None and format != LANGCHAIN_NAME:
            # For what it refuses.
            json_format(format)
        return await self._sessions().page(owner, limit, before, format)

    async def get_session_info(self, session_id: str, *, key: Key | None = None) -> SessionInfo | None:
        """Return what the index knows of a session, None where there is none or it has expired.

        One ``GetItem``, strongly consistent. The count does not hold while ``aclear``, ``delete_session`` or a trim by
        ``history_size`` is under way, nor after one that was cut off. Then a ``Query`` for each megabyte of the session
        counts its messages, and from half an hour later on an ``UpdateItem`` stores their number, if it may. So it is,
        once, for a session whose first append came from a handle that had not read it: that it had no messages from
        before the index was not known. Where it had, their number too is stored half an hour after that append.

        Args:
            session_id: as for ``session``.
            key: likewise.

        Raises:
            UndecodableItemError: the session's item is damaged; the text says what repairs it.
            DecryptionError, EncryptionContextError, KmsKeyError: the title or the metadata cannot be opened, or
                was moved here.
            ConfigurationError: one is encrypted, and there is no ``kms_key_id``; or there is no ``session_index``.
            ChatHistoryError: as for ``list_sessions``.
        """
        return await self._indexed(session_id, key).info()

    async def set_title(self, session_id: str, title: str | None, *, key: Key | None = None) -> None:
        """Give a session that has had messages a title, or take it away with None; exactly once, also under retry.

        A ``GetItem`` and an ``UpdateItem``, again where others change the title or metadata at the same time. Of two
        who set it the later one stays. With ``kms_key_id`` it is encrypted, as messages are. A damaged item of the
        session is repaired.

        Args:
            session_id: as for ``session``.
            title: text of at most 4 KB.
            key: as for ``session``.

        Raises:
            TypeError: it is neither a str nor None.
            SessionNotFoundError: the index has no such session.
            ItemTooLargeError: the title is too long.
            MessageNotStorableError: it is not text that UTF-8 can represent.
            WriteConflictError: others were always faster. Nothing was written.
            WriteOutcomeUnknownError: they were, and an answer was lost. It may have been written.
            ChatHistoryError: as for ``list_sessions``.
        """
        await self._indexed(session_id, key).set_title(title)

    async def update_metadata(
        self, session_id: str, changes: Mapping[str, Any], *, key: Key | None = None
    ) -> dict[str, Any]:
        """Change some of a session's metadata and return them all; exactly once, also under retry.

        Of two who change one name the later one stays. A ``GetItem`` and an ``UpdateItem``, again where others change
        some, or the title, at the same time: nothing of theirs is lost.
        With ``kms_key_id`` they are encrypted, as messages are.

        Args:
            session_id: as for ``session``.
            changes: names, and values as messages may hold them; None removes the name. All together may have 64 KB,
                which each append to the session is billed for.
            key: as for ``session``.

        Raises:
            TypeError: ``changes`` is not a mapping.
            SessionNotFoundError: the index has no such session.
            ItemTooLargeError: they are too large.
            MessageNotStorableError: a value has no plain form; the text names the path to it.
            WriteConflictError: others were always faster. Nothing was written.
            WriteOutcomeUnknownError: they were, and an answer was lost. It may have been written.
            ChatHistoryError: as for ``list_sessions``.
        """
        return await self._indexed(session_id, key).update_metadata(changes)

    async def delete_session(self, session_id: str, *, key: Key | None = None) -> int:
        """Delete a session with its messages, title and metadata, and return how many messages that were.

        Needs ``session_index``, though the session need not be in the index. In a store without it, ``aclear`` of the
        session's handle deletes the messages.

        What others append meanwhile is deleted too, as long as they do; what they append later begins a session anew.
        Messages go first, so that a call that fails halfway can be made again. An ``UpdateItem`` (so that no migration
        brings it back), a ``GetItem``, a ``DeleteItem``, a ``Query``, ``UpdateItem`` and ``BatchWriteItem`` as for
        ``aclear``, and a ``Query`` for the session's idempotency keys, which are forgotten. A damaged item of the
        session is deleted like any other. What was migrated is in the old table until it is cleared there: a migration
        with ``delete_source`` keeps what it cannot compare any more. Backups and exports of the table keep what they
        have.

        Args:
            session_id: as for ``session``.
            key: likewise.

        Raises:
            ConfigurationError: the store has no ``session_index``.
            WriteConflictError: others appended all the while. Some messages may have been deleted.
            ChatHistoryError: as for ``aclear``.
        """
        return await self._indexed(session_id, key).delete() or 0

    async def purge_owner(self, owner: str) -> PurgeResult:
        """Delete all of an owner's sessions, and return how many sessions and messages this call has deleted.

        Where it fails or is cut short it can be called again, and goes on. It looks again until the index shows no more
        session; one that began within the last second or so may not be shown yet.

        Args:
            owner: the owner.

        Raises:
            ValueError: it cannot be an owner.
            WriteConflictError: the same sessions were there again after 50 deletions.
            ChatHistoryError: as for ``list_sessions`` and ``delete_session``.
        """
        return await self._sessions().purge(owner)

    async def create_table(
        self,
        *,
        point_in_time_recovery: bool = False,
        table_kms_key_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait_seconds: float | None = None,
    ) -> None:
        """Create the table where it does not exist, on demand, wait until it is active, and enable TTL.

        The partition key is ``primary_key_name``, the sort key of an item collection ``sort_key_name``, both text. Does
        nothing to a table that is already so, but for what TTL and ``point_in_time_recovery`` ask for, and for the
        index of ``session_index``, which is added where it is not there yet. AWS builds the index of a large table for
        hours. The logger "chathistory_async" tells at INFO what is waited for.

        A policy needs ``dynamodb:DescribeTable``, ``CreateTable``, ``DescribeTimeToLive`` and ``UpdateTimeToLive``. To
        add the index to a table it also needs ``UpdateTable``, for ``point_in_time_recovery``
        ``UpdateContinuousBackups``, and for ``tags`` ``TagResource``.

        Args:
            point_in_time_recovery: enable it. It is never disabled here.
            table_kms_key_id: the KMS key of a new table's encryption at rest, None for AWS's own.
            tags: a new table's tags.
            wait_seconds: how long to wait at most until the table and its index are active, None for as long as it
                takes. After that ``ServiceError`` is raised, and TTL and ``point_in_time_recovery`` are not enabled
                yet. AWS goes on, and a later call does the rest.

        Raises:
            KeySchemaError: a table of another key schema has this name, or an index in it. It was not changed.
            ConfigurationError: the table's TTL is on another attribute than ``ttl_key_name``.
            ValueError: ``wait_seconds`` is negative.
            AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``errors``.
        """
        await self._table(wait_seconds).create(
            self._primary_key_name,
            self._sort_key_name,
            self._layout.expiry_name,
            Index(INDEX_NAME, KEY_SCHEMA) if self._session_index else None,
            point_in_time_recovery=point_in_time_recovery,
            kms_key_id=table_kms_key_id,
            tags=tags or {},
        )

    async def delete_table(self, *, wait_seconds: float | None = None) -> None:
        """Delete the table with all its sessions and wait until it is gone. Without a table it does nothing.

        Args:
            wait_seconds: how long to wait at most, None for as long as it takes. After that ``ServiceError`` is raised,
                and AWS goes on.

        Raises:
            ValueError: ``wait_seconds`` is negative.
            AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``errors``.
        """
        await self._table(wait_seconds).delete()

    def migrate_from(
        self,
        source: ChatHistoryStore,
        session_ids: Iterable[KeyValue] | AsyncIterable[KeyValue],
        *,
        dry_run: bool = False,
        delete_source: bool = False,
        owner_of: Callable[[Any], str | None] | None = None,
    ) -> AsyncGenerator[MigrationResult, None]:
        """Return an iterator that copies sessions from single items into this item collection, and reports each.

        ``async for session in store.migrate_from(source, ids)``, with the settings of the application's stores. Several
        sessions are under way at once; they are reported in the order of the ids, by a ``MigrationResult`` each, which
        lists the outcomes. An iteration that is stopped early or killed can be run again: each message is copied once,
        and what users remove from the target meanwhile does not come back. The application may go on writing to both
        tables, with langchain-community too, and several migrations may run at once. What is appended to the source
        after a session's turn is copied by the next run.

        A session is copied by one transaction, in records of 16 messages, or of more where these would be over 80
        records. Copied messages come before those that the application writes to the target itself. So ``created_at``
        of a copied message is not the time when it was added: it is an hour before the session was first copied, or
        just before the session's first message in the target. Copied messages expire when the source would have expired
        at the time of copying; those of a source that never expires, by the ``ttl`` of this store. They are encrypted
        if this store encrypts.

        A run finds out how much of a source was copied before. The source may continue what was copied;
        ``history_size`` may have removed messages from its front; or it may share no message with what was copied, and
        is then copied whole. Any other source has diverged: for example langchain-community overwrote its end, or the
        session was deleted and begun anew with a message that it had before. Such a session is left as it is.

        Copied messages are read again and compared. ``delete_source`` compares all messages of a source again. It
        deletes the source only where all of them are equal (or were removed or replaced in the target since), and where
        the source's item holds nothing else: no other messages, and no attributes that this library does not know. An
        attribute that somebody adds between the reading and the deletion of the item is deleted with it. The target
        keeps an item of each session under the sort key "migration", which has to stay there as long as the source may
        be written to.

        A session costs a read of its source and of the item "migration", a ``Query``, a ``TransactWriteItems``
        (with ``session_index`` one or two more, which find out if the session has an item there), a
        ``Query`` and a ``PutItem``, and with ``delete_source`` a ``DeleteItem`` and a ``PutItem``.

        Args:
            source: a store of ``layout="single_item"``, on another table; its ``kms_key_id`` decrypts its messages. If
                this store has ``key_parts``, ``source`` needs the same. A session whose id is not joined of that many
                ids then fails.
            session_ids: values of the partition key, the same in both tables. ``source.scan_session_ids()`` has all.
            dry_run: read each session, check that it can be stored, and write nothing.
            delete_source: delete the sources that were copied and compared. The source of a session that was deleted in
                the target since is kept.
            owner_of: takes a session's id and returns the session's owner in the session index. An owner that the
                session has there is not changed. Needs ``session_index``. Copied messages are counted in the index, and
                the session is listed as active an hour before it was first copied, unless it has been active in the
                target. A session that was copied without ``session_index`` is in the index from its next append on.

        Raises:
            LayoutError: this store is not of an item collection, or ``source`` is not of single items.
            ValueError: ``owner_of`` is given without ``session_index``, or ``source`` lacks the ``key_parts`` of this
                store.
            TypeError: ``session_ids`` is a str or bytes.
            TableNotFoundError, KeySchemaError, AccessDeniedError, ConfigurationError, ThrottledError, EndpointError,
                ServiceError, ClosedError: see ``errors``. The iterator raises these where the other sessions would meet
                them too, and ends: sessions under way are left as after a kill. An error of one session alone is
                reported by its ``MigrationResult``.
        """
        from ._migration.run import Source, Target, migrate

        to, out_of = self._layout, source._layout
        if not isinstance(to, ItemCollection):
            raise LayoutError("A migration leads into a table with a sort key", SessionRef(to.table_name))
        if not isinstance(out_of, SingleItem):
            text = 'A migration leads out of single items: source must be a ChatHistoryStore(..., layout="single_item")'
            raise LayoutError(text, SessionRef(out_of.table_name))
        if isinstance(session_ids, (str, bytes)):
            raise TypeError("migrate_from takes an iterable of ids: put the one id in a list")
        if owner_of is not None and not self._session_index:
            raise ValueError("owner_of needs a ChatHistoryStore with session_index=True")
        if self._key_parts and [*source._key_parts.values()] != [*self._key_parts.values()]:
            raise ValueError("source needs the key_parts of this store: ids are copied as they are")

        def open_session(session_id: KeyValue) -> tuple[Source, Target]:
            if self._key_parts:
                # For what it refuses: nobody could open the copy, or another tenant would.
                ids = split_key(session_id) if isinstance(session_id, str) else session_id
                join_key({self._primary_key_name: ids}, self._key_parts)
            old = layout_with(out_of, encode_key({source._primary_key_name: session_id}))
            check_key_size(old.key)
            new = layout_with(to, encode_key({self._primary_key_name: session_id}))
            owner = None if owner_of is None else owner_of(session_id)
            summary = SessionItem(new, owner) if self._session_index else None
            return Source(old, source._access(old, session_id)), Target(new, self._access(new, session_id), summary)

        return migrate(session_ids, open_session, dry_run=dry_run, delete_source=delete_source)

    def scan_session_ids(self) -> AsyncGenerator[KeyValue, None]:
        """Return an iterator over the ids of all sessions of a table of single items, in no order.

        An id is the value of the partition key: a str, or where the key is a number an int or a Decimal, or where it is
        binary bytes. By ``Scan``, strongly consistent, a megabyte at a time: DynamoDB bills it as a read of the whole
        table, though only the keys are returned. Nothing else in this library scans.

        Raises:
            LayoutError: the store is not of single items.
            TableNotFoundError, KeySchemaError, AccessDeniedError, ConfigurationError, ThrottledError, EndpointError,
                ServiceError, ClosedError: see ``errors``. The iterator raises these.
        """
        if not isinstance(self._layout, SingleItem):
            raise LayoutError(
                'Scanning needs a ChatHistoryStore(..., layout="single_item")', SessionRef(self._layout.table_name)
            )
        from ._migration.run import scan_session_ids

        return scan_session_ids(self._layout, self._settings.clients)

    async def aclose(self) -> None:
        """Close the clients of all event loops, at once, and with them the store and its handles.

        Calls under way end first. A second call does nothing. ``async with`` opens the store again.
        """
        self._settings.clients.lifetime.closed = True
        await self._settings.clients.aclose()

    def close(self) -> None:
        """Close the store, as ``aclose`` does."""
        run(self.aclose)

    async def __aenter__(self) -> ChatHistoryStore:
        """Open the running loop's clients, so that the first request does not have to, and return the store.

        Raises:
            ConfigurationError: the SDK cannot make a client.
            ClosedError: the store was closed meanwhile.
        """
        self._settings.clients.lifetime.enter()
        try:
            await self._table().connect()
            key_id = self._settings.kms_key_id
            cipher = cipher_type(key_id)
            if cipher is not None:
                await cipher.connect(key_id or "", self._settings.clients, SessionRef(self._layout.table_name))
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store, unless another ``async with`` of it is still open."""
        await self._leave()

    async def _leave(self) -> None:
        if self._settings.clients.lifetime.leave():
            await self._settings.clients.aclose()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, and what a subclass has added."""
        return vars(self) | {"_settings": replace(self._settings, clients=self._settings.clients.options)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        settings: Any = state["_settings"]
        self._settings = replace(settings, clients=Clients(settings.clients))

    def __repr__(self) -> str:
        """Return the table's name."""
        return f"<{type(self).__name__} {SessionRef(self._layout.table_name)}>"

    def _sessions(self) -> Sessions:
        self._check_indexed()
        assert isinstance(self._layout, ItemCollection)  # noqa: S101  # that was asked for with session_index
        # Of what is stored, whose ids are joined already.
        return Sessions(
            self._layout,
            self._settings.clients,
            lambda value: self._indexed_session({self._primary_key_name: value}),
        )

    def _indexed(self, session_id: str, key: Key | None) -> IndexedSession:
        self._check_indexed()
        return self._indexed_session(join_key(key or {self._primary_key_name: session_id}, self._key_parts))

    def _indexed_session(self, whole_key: Mapping[str, KeyValue]) -> IndexedSession:
        layout = layout_with(self._layout, encode_key(whole_key))
        # The index knows sessions of any format, and reads no values.
        opened = open_session(self._settings, layout, whole_key, json_format(), Indexed(None))
        assert opened.indexed is not None  # noqa: S101  # it was opened with an index
        return opened.indexed

    def _check_indexed(self) -> None:
        if not self._session_index:
            raise ConfigurationError(
                "The store has no session index: make it with session_index=True", SessionRef(self._layout.table_name)
            )

    def _access(self, layout: Layout, session_id: KeyValue) -> Access:
        """Return what a session of this store that is moved reaches its table with."""
        return replace(self._settings, consistent_read=True).access(layout, {self._primary_key_name: session_id})

    def _table(self, wait_seconds: float | None = None) -> Table:
        return Table(self._layout.table_name, self._settings.clients, wait_seconds)
