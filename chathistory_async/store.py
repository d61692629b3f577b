"""One table and its clients for a whole application."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from botocore.config import Config

from ._aws.clients import Clients, FastPathStatus
from ._aws.credentials import AnySession
from ._aws.sdk import ClientOptions
from ._aws.table import Index, Table, TableDescription
from ._codec.format import LANGCHAIN_NAME, Format
from ._codec.json_values import format_as_json, json_format
from ._codec.keys import KeyValue, check_key_size, encode_key, join_key, split_key
from ._codec.plain import Default, check_default
from ._item_collection.layout import ItemCollection
from ._item_collection.session import ItemCollectionSession
from ._migration.outcome import MigrationResult
from ._opening import (
    IDEMPOTENCY_SECONDS,
    AnyLayout,
    Indexed,
    Key,
    SessionSpec,
    Settings,
    cipher_type,
    layout_of,
    layout_with,
)
from ._session import Access, Stored
from ._session_index.keyed import KeyedSession
from ._session_index.listing import PurgeResult, SessionPage, Sessions
from ._session_index.owner_index import INDEX_NAME, KEY_SCHEMA
from ._session_index.requests import SessionItem
from ._session_index.session import IndexedSession, SessionInfo
from ._settings import check_positive
from ._single_item.layout import SingleItem
from ._statistics import CollectionStatistics, SessionStats, SingleItemStatistics
from ._sync.bridge import run
from ._telemetry.operations import observed, observed_stream
from .errors import ChatHistoryError, ConfigurationError, LayoutError, SessionRef
from .json_session import JsonSession, StoredValue

if TYPE_CHECKING:
    from ._migration.source import Source
    from ._migration.target import Target
    from .history import DynamoDBChatMessageHistory


Method = TypeVar("Method", bound=Callable[..., Any])


async def _public(values: AsyncGenerator[Stored[Any], None]) -> AsyncGenerator[StoredValue, None]:
    async with aclosing(values):
        async for one in values:
            yield StoredValue(one.id, one.value, one.created_at)


def _hidden_from_signature(parameter: str) -> Callable[[Method], Method]:
    """Hide a parameter of a method from ``inspect.signature``. Calls with and without that parameter work as before."""

    def hide(method: Method) -> Method:
        signature = inspect.signature(method)
        shown = [value for name, value in signature.parameters.items() if name != parameter]
        method.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return method

    return hide


class ChatHistoryStore:
    """The sessions of one table, with the settings and clients that all their handles share.

    Open one store for the application with ``async with``, and get handles from ``session()``. LangChain's
    ``RunnableWithMessageHistory`` takes ``store.session`` as its ``get_session_history``. The store opens one client on
    each event loop that uses it, at the first use. The store's own methods are asynchronous, except
    ``create_table_sync`` and ``close``; synchronous code calls the other methods with ``asyncio.run``. Handles have
    synchronous methods too.

    A closed store and its handles raise ``ClosedError`` until ``async with`` opens the store again. Several
    ``async with`` blocks may be open at the same time, on any event loops; the end of the last block closes the store.
    ``aclose`` and ``close`` close the store immediately, even if it is still in use.

    A store can be copied, deep-copied and pickled. The copy has the same settings and opens its own clients. A
    ``boto3_session`` cannot be pickled.

    Args:
        table_name: the table's name or ARN.
        endpoint_url: DynamoDB's endpoint, or None for the SDK's choice.
        primary_key_name: the attribute name of the partition key.
        boto3_session: as for ``DynamoDBChatMessageHistory``. The store never closes it.
        kms_key_id: the KMS key that messages are encrypted under, or None to store them unencrypted; as for
            ``DynamoDBChatMessageHistory``.
        ttl: the number of seconds from the writing of a message until that message expires. In a single item, the
            number of seconds from the last append until the session expires. None as for
            ``DynamoDBChatMessageHistory``.
        ttl_key_name: the attribute name of the expiry time, which is stored in seconds since the epoch.
        history_size: how many of the latest messages of a session are kept, or None for all.
            ``DynamoDBChatMessageHistory`` says how exactly this limit holds.
        history_messages_key: the attribute name of the list of messages, or of a record's body.
        region_name: the region, or None for the SDK's choice.
        config: a botocore ``Config``, which overrides the library's own; as for ``DynamoDBChatMessageHistory``.
        consistent_read: whether reads are strongly consistent.
        kms_endpoint_url: KMS's endpoint, or None for the SDK's choice.
        layout: "item_collection": each append is one item, and the size of a session is not limited. "single_item": a
            session is one item, in langchain-community's format, in a table without a sort key.
        sort_key_name: the attribute name of the sort key, which is of type text. No effect with "single_item".
        session_index: keep an item for each session, for ``list_sessions`` and the other methods that take a session
            id. The item is written in one transaction with the session's messages. An append therefore costs twice as
            much, plus four write units: DynamoDB bills transactions twice, and bills the session's item and its entry
            in the owner's index. Concurrent writers of one session conflict and retry. Every store that writes to the
            table should have ``session_index=True``. A session that had messages before is listed from its next append
            on; its earlier messages are counted at the first request for its count. Its item expires with the messages
            of that append, although earlier messages may expire later or never. Needs an item collection, and the
            global secondary index ``SessionsByOwner`` that ``create_table`` makes. The store's first append queries
            that index and raises ``KeySchemaError`` if it is missing.
        fast_path: whether calls to DynamoDB may take the fast path; as for ``DynamoDBChatMessageHistory``.
        tracing: whether spans and metrics are made where the application has set OpenTelemetry up, "auto" or False; as
            for ``DynamoDBChatMessageHistory``.
        default: a function that converts values without a plain form, in messages and in metadata; as for
            ``DynamoDBChatMessageHistory``.
        key_parts: the number of ids in each session's partition key, such as 2 for a tenant's id and a session's id.
            Every method that takes ``key`` then requires a tuple of that many ids in it, and raises ``ValueError`` for
            plain text. A session id that a user made up, such as ``"acme#s1"``, therefore cannot open a different
            tenant's session. With None, these methods accept plain text and tuples. ``split_key(info.session_id)``
            returns the tuple of a listed session.
        idempotency_seconds: how long an idempotency key keeps its batch from being stored again, a day by default. No
            effect with "single_item", which keeps a key for a number of appends.

    Raises:
        TypeError: the type of ``boto3_session``, ``kms_key_id`` or ``default`` is not accepted.
        ValueError: ``ttl``, ``history_size``, ``key_parts`` or ``idempotency_seconds`` is not a positive integer,
            ``kms_key_id`` is empty, two attributes have the same name, ``layout`` is unknown, or ``session_index`` is
            set with the layout "single_item".
        ModuleNotFoundError: ``kms_key_id`` is given, and the extra ``kms`` is not installed.
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
        tracing: Literal["auto", False] = "auto",
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
        options = ClientOptions(
            endpoint_url or None, kms_endpoint_url or None, region_name, boto3_session, config, fast_path, tracing
        )
        clients = Clients(options)
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
            # Only to raise its errors for invalid settings.
            SessionItem(self._layout, None)
        # Only to raise its errors for an invalid kms_key_id.
        cipher_type(kms_key_id)

    @_hidden_from_signature("key")
    def session(
        self, session_id: str, *, key: Key | None = None, owner: str | None = None
    ) -> DynamoDBChatMessageHistory:
        """Return a handle on a session. No I/O. A handle costs microseconds and need not be kept or closed.

        ``RunnableWithMessageHistory`` calls this method with the session id, or with a ``history_factory_config`` of
        the fields ``session_id`` and ``owner``. It accepts no further parameter, so ``inspect.signature`` does not show
        ``key``.

        Args:
            session_id: the value of the partition key.
            key: the whole primary key, which replaces ``session_id``: one or two attributes; in an item collection, the
                partition key alone. A tuple of ids is joined, as for ``DynamoDBChatMessageHistory``:
                ``{"SessionId": (tenant, session_id)}``. Plain text is not escaped, so ``"acme#s1"`` is the session of
                ``("acme", "s1")``; ``key_parts`` prevents that.
            owner: the owner whose list the session is in. The first append by a handle with an owner sets the owner,
                and later appends do not change it. Needs ``session_index``. If a policy has ``dynamodb:LeadingKeys``,
                begin the owner with the tenant's id too.

        Raises:
            TypeError: a key's value is not a str, int, Decimal, bytes or tuple of str.
            ValueError: a key attribute has the name of another attribute, ``key`` has too many attributes, or ``key``
                is not the tuple that ``key_parts`` requires; or ``owner`` is empty, longer than 2,048 bytes, or given
                without ``session_index``.
        """
        from ._codec.messages import LANGCHAIN
        from .history import DynamoDBChatMessageHistory

        spec = self._spec(self._whole_key(session_id, key), LANGCHAIN, self._index_of(owner))
        return DynamoDBChatMessageHistory._in_store(session_id, spec)

    def json_session(
        self, session_id: str, *, key: Key | None = None, owner: str | None = None, format: str = "json"
    ) -> JsonSession:
        """Return a handle on a session of JSON values, such as the items of a different framework.

        No I/O, as for ``session``. This method does not import LangChain. Needs an item collection.

        Args:
            session_id: the value of the partition key.
            key: as for ``session``.
            owner: as for ``session``.
            format: the name of the values' format, such as the name of their framework. It is stored with the values,
                and reading the session under a different name raises ``FormatError``.

        Raises:
            LayoutError: the store has the layout "single_item".
            TypeError: as for ``session``.
            ValueError: as for ``session``; or ``format`` is "langchain", or is not 1 to 64 lower-case letters, digits,
                dots, hyphens and underscores.
        """
        self._check_takes_json()
        spec = self._spec(self._whole_key(session_id, key), json_format(format), self._index_of(owner))
        return JsonSession._in_store(session_id, spec)

    def _check_takes_json(self) -> None:
        if not isinstance(self._layout, ItemCollection):
            raise LayoutError("A JSON session needs a table with a sort key", SessionRef(self._layout.table_name))

    def _index_of(self, owner: str | None) -> Indexed | None:
        if owner is not None and not self._session_index:
            raise ValueError("owner needs a ChatHistoryStore with session_index=True")
        return Indexed(owner) if self._session_index else None

    @property
    def table_name(self) -> str:
        """The table's name or ARN, as given."""
        return self._layout.table_name

    @property
    def primary_key_name(self) -> str:
        """The attribute name of the partition key."""
        return self._primary_key_name

    @property
    def layout(self) -> Literal["item_collection", "single_item"]:
        """The layout of the store's sessions."""
        return "item_collection" if isinstance(self._layout, ItemCollection) else "single_item"

    @property
    def session_index(self) -> bool:
        """Whether the store keeps a session index."""
        return self._session_index

    @property
    def fast_path_status(self) -> FastPathStatus:
        """Whether calls to DynamoDB take the fast path now, and if not, why.

        Reading this property does no I/O. ``active`` is True if all open clients of this process take the fast path, on
        every event loop and including the client of the synchronous methods. ``active`` is False if at least one open
        client does not, and None until the first call or ``async with`` has opened a client.

        This property and the next call notice a tracer or a mock that starts after a client was opened. A tracer or a
        mock that was active when a client was opened keeps that client off the fast path. After a failure on the fast
        path, only the SDK's client sends calls for up to 1.5 seconds; this property does not show that.
        """
        return self._settings.clients.fast_path_status()

    @observed("list_sessions")
    async def list_sessions(
        self, owner: str, limit: int = 50, *, before: str | None = None, format: str | None = None
    ) -> SessionPage:
        """Return a page of an owner's sessions, the most recently active first.

        Usually one ``Query`` of the index ``SessionsByOwner``. That index is eventually consistent: it shows a write
        about a second later. Expired sessions are left out. With ``kms_key_id``, each session that has a title or
        metadata takes a KMS ``Decrypt``, 16 at the same time, unless its data key was cached in the last five minutes.
        A session whose count is invalid costs what it costs in ``get_session_info``. A session that cannot be read is
        in the page's ``unreadable``; the other sessions are still listed.

        Args:
            owner: the owner.
            limit: the maximum number of sessions, 50 by default.
            before: the ``cursor`` of a page, to get the next page, of sessions that were last active before. A session
                that becomes active in the meantime moves to the front and is not in the following pages.
            format: only sessions of this format, "langchain" for messages; None for all. Sessions of other formats are
                read and billed all the same.

        Raises:
            ValueError: ``owner``, ``limit`` or ``format`` is not valid, or ``before`` is not a cursor.
            ConfigurationError: the store has no ``session_index``.
            KeySchemaError: the table lacks the index, which ``create_table`` adds.
            TableNotFoundError, AccessDeniedError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``chathistory_async.errors``.
        """
        if format is not None and format != LANGCHAIN_NAME:
            # Only to raise its errors for an invalid format.
            json_format(format)
        return await self._sessions().page(owner, limit, before, format)

    @observed("get_session_info")
    async def get_session_info(self, session_id: str, *, key: Key | None = None) -> SessionInfo | None:
        """Return the index's information about a session, or None if the session is not in the index or has expired.

        Usually one strongly consistent ``GetItem``. The stored count is invalid while ``aclear``, ``delete_session`` or
        a trim by ``history_size`` is running, and after an interrupted one. While the count is invalid, a ``Query`` for
        each megabyte of the session counts the messages. From half an hour after that operation on, an
        ``UpdateItem`` also stores the new count, if the credentials allow it.

        The messages are also counted once if the first append of the session came from a handle that had not read the
        session: that handle could not know whether the session had messages from before the index. If the session had
        such messages, the new count is stored from half an hour after that append on, and until then each call counts.

        Args:
            session_id: as for ``session``.
            key: as for ``session``.

        Raises:
            UndecodableItemError: the session's item is damaged. The text says what repairs it.
            DecryptionError, EncryptionContextError, KmsKeyError: the title or the metadata cannot be decrypted, or was
                moved here from a different place.
            ConfigurationError: the title or the metadata is encrypted, and the store has no ``kms_key_id``; or the
                store has no ``session_index``.
            ChatHistoryError: as for ``list_sessions``.
        """
        return await self._indexed(session_id, key).info()

    @observed("set_title")
    async def set_title(self, session_id: str, title: str | None, *, key: Key | None = None) -> None:
        """Set the title of a session in the index, or remove it with None; exactly once, also under retry.

        A ``GetItem`` and an ``UpdateItem``. Both are repeated if another writer changes the title or the metadata at
        the same time. If two callers set the title, the later one wins. With ``kms_key_id``, the title is encrypted, as
        messages are. If the session's item is damaged, this call repairs it.

        Args:
            session_id: as for ``session``.
            title: text of at most 4 KB, or None.
            key: as for ``session``.

        Raises:
            TypeError: ``title`` is neither a str nor None.
            SessionNotFoundError: the session is not in the index.
            ItemTooLargeError: the title is too long.
            MessageNotStorableError: the title is not text that UTF-8 can represent.
            WriteConflictError: other writers were faster in every attempt. Nothing was written.
            WriteOutcomeUnknownError: a response was lost, and the library cannot tell whether the title was written.
            ChatHistoryError: as for ``list_sessions``.
        """
        await self._indexed(session_id, key).set_title(title)

    @observed("update_metadata")
    async def update_metadata(
        self, session_id: str, changes: Mapping[str, Any], *, key: Key | None = None
    ) -> dict[str, Any]:
        """Change some of a session's metadata, and return all of its metadata; exactly once, also under retry.

        A ``GetItem`` and an ``UpdateItem``. Both are repeated if another writer changes the metadata or the title at
        the same time, so no other writer's change is lost. If two callers change the same name, the later one wins.
        With ``kms_key_id``, the metadata is encrypted, as messages are.

        Args:
            session_id: as for ``session``.
            changes: a mapping of names to values. The values are those that a message may hold; None removes the name.
                All metadata together may have 64 KB, and each append to the session is billed for it.
            key: as for ``session``.

        Raises:
            TypeError: ``changes`` is not a mapping.
            SessionNotFoundError: the session is not in the index.
            ItemTooLargeError: the metadata is too large.
            MessageNotStorableError: a value has no plain form. The text names the path to it.
            WriteConflictError: other writers were faster in every attempt. Nothing was written.
            WriteOutcomeUnknownError: a response was lost, and the library cannot tell whether the change was written.
            ChatHistoryError: as for ``list_sessions``.
        """
        return await self._indexed(session_id, key).update_metadata(changes)

    @observed("delete_session", int)
    async def delete_session(self, session_id: str, *, key: Key | None = None) -> int:
        """Delete a session with its messages, title and metadata, and return the number of deleted messages.

        The transcripts of its subagents, which an integration stores with it, are deleted and counted too.

        Needs ``session_index``, although the session need not be in the index. In a store without ``session_index``,
        ``aclear`` of the session's handle deletes the messages.

        Messages that other writers append during the call are deleted too. Messages that they append after it begin a
        new session. The messages are deleted first, so a call that fails halfway can be made again.

        An ``UpdateItem`` (which prevents migrations from copying the session again), a ``GetItem``, a ``DeleteItem``; a
        ``Query``, ``UpdateItem`` and ``BatchWriteItem`` as for ``aclear``; and a ``Query`` for the session's
        idempotency keys and ids of values, which are deleted as well. A damaged item of the session is deleted like any
        other.

        A migrated session stays in the old table until it is cleared there; a migration with ``delete_source`` keeps a
        source that has no copy to compare with. Backups and exports of the table keep their data.

        Args:
            session_id: as for ``session``.
            key: as for ``session``.

        Raises:
            ConfigurationError: the store has no ``session_index``.
            WriteConflictError: other writers appended before every attempt. Some messages may have been deleted.
            ChatHistoryError: as for ``aclear``.
        """
        return await self._indexed(session_id, key).delete() or 0

    @observed("purge", lambda result: result.messages)
    async def purge_owner(self, owner: str) -> PurgeResult:
        """Delete all of an owner's sessions, and return how many sessions and messages this call has deleted.

        The call deletes and counts the same as ``delete_session`` for each session.

        A call that failed or was interrupted can be made again, and continues. The call queries the index until it
        shows no more sessions. A session that began within about the last second may not be in the index yet.

        Args:
            owner: the owner.

        Raises:
            ValueError: ``owner`` is not valid.
            WriteConflictError: the same sessions existed again after 50 deletions.
            ChatHistoryError: as for ``list_sessions`` and ``delete_session``.
        """
        return await self._sessions().purge(owner)

    @observed("get_format")
    async def get_format(self, session_id: str, *, key: Key | None = None) -> str | None:
        """Return the format of a session's values, "langchain" for messages, or None if the session has no values.

        One ``Query``, which reads little more than the latest value. No request in the layout "single_item", which has
        LangChain's messages only.

        Args:
            session_id: as for ``session``.
            key: as for ``session``.

        Raises:
            ChatHistoryError: as for ``list_sessions``.
        """
        if isinstance(self._layout, SingleItem):
            return LANGCHAIN_NAME
        return await self._collection_session(session_id, key, json_format()).stored_format()

    def iter_stored(
        self, session_id: str, *, key: Key | None = None, format: str, last: int | None = None
    ) -> AsyncGenerator[StoredValue, None]:
        """Return an iterator over a session's values with their ids and times, oldest first, in any format.

        A LangChain message is a dict of its ``type`` and its ``data`` without LangChain's defaults.
        ``langchain_core.messages.messages_from_dict`` accepts it; this method does not import LangChain. The iterator
        holds one page of values at a time. It also returns values that are appended while it runs.

        Args:
            session_id: as for ``session``.
            key: as for ``session``.
            format: the format of the values, which ``get_format`` returns.
            last: only that many values, the latest; one page. None for all.

        Raises:
            LayoutError: the store has the layout "single_item", whose messages have no ids.
            ValueError: ``format`` is not valid, or ``last`` is not a positive integer.
            ChatHistoryError: the iterator raises the errors of ``JsonSession.aget``.
        """
        session = self._collection_session(session_id, key, format_as_json(format))
        check_positive("last", last)
        return observed_stream("iterate", self, _public(session.stream_stored(last)))

    def iter_unreadable(self, session_id: str, *, key: Key | None = None) -> AsyncGenerator[ChatHistoryError, None]:
        """Return an iterator over the errors of a session's values that cannot be read, oldest first.

        Each error names a value, or a record of which no value can be read, by its ``message_id``. Values of a
        different format than the latest value's are among them. The iterator reads the whole session.

        Args:
            session_id: as for ``session``.
            key: as for ``session``.

        Raises:
            LayoutError: the store has the layout "single_item".
            ChatHistoryError: the iterator raises the errors of ``list_sessions``, and ``ConfigurationError`` if values
                are encrypted and the store has no ``kms_key_id``.
        """
        self._check_collection()
        return observed_stream("iterate_unreadable", self, self._unreadable(session_id, key), lambda _: 0)

    @observed("get_session_stats")
    async def get_session_stats(self, session_id: str, *, key: Key | None = None) -> SessionStats:
        """Read a whole session, and return how large it is and what an append and a read of it cost.

        A ``Query`` for each megabyte, and with ``session_index`` a ``GetItem``; in a single item, one ``GetItem``. With
        ``kms_key_id``, a KMS ``Decrypt`` for each data key.

        Args:
            session_id: as for ``session``.
            key: as for ``session``.

        Raises:
            UndecodableItemError, DecryptionError, EncryptionContextError, KmsKeyError: a record cannot be read.
            ChatHistoryError: as for ``list_sessions``.
        """
        whole_key = self._whole_key(session_id, key)
        layout = layout_with(self._layout, whole_key)
        access = self._settings.access(layout, whole_key)
        if isinstance(layout, SingleItem):
            return await SingleItemStatistics(layout, access).stats()
        item = await self._indexed_session(whole_key).item() if self._session_index else None
        return await CollectionStatistics(layout, access, item).stats()

    @observed("describe_table")
    async def describe_table(self) -> TableDescription:
        """Return what DynamoDB says of the table: its key, index, TTL, backups, encryption at rest and time.

        ``DescribeTable``, ``DescribeTimeToLive`` and ``DescribeContinuousBackups``. The last two may fail: see
        ``TableDescription.problems``.

        Raises:
            TableNotFoundError, AccessDeniedError, ConfigurationError: see ``chathistory_async.errors``.
            ThrottledError, EndpointError, ServiceError, ClosedError: see ``chathistory_async.errors``.
        """
        return await self._table().describe(Index(INDEX_NAME, KEY_SCHEMA))

    @observed("check_kms_key")
    async def check_kms_key(self, session_id: str = "check") -> None:
        """Check that the credentials may encrypt and decrypt with ``kms_key_id``. Nothing is stored.

        A KMS ``GenerateDataKey``, and a dry run of ``Decrypt``, with the encryption context of a session. Without
        ``kms_key_id`` there is nothing to check.

        Args:
            session_id: a session, whose encryption context a policy may require. It need not exist.

        Raises:
            KmsKeyError: the key does not exist, is disabled, or is not for encryption.
            AccessDeniedError: a permission is missing. The text names the operation.
            ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``chathistory_async.errors``.
        """
        whole_key = {self._primary_key_name: session_id}
        cipher = self._settings.access(layout_with(self._layout, whole_key), whole_key).cipher
        if cipher is not None:
            await cipher.check_key()

    @observed("create_table")
    async def create_table(
        self,
        *,
        point_in_time_recovery: bool = False,
        table_kms_key_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait_seconds: float | None = None,
    ) -> None:
        """Create the table (billed on demand) if it does not exist, wait until it is active, and enable TTL.

        The partition key is ``primary_key_name`` and the sort key of an item collection is ``sort_key_name``; both are
        of type text. If the table exists with this key schema, the call only enables TTL and
        ``point_in_time_recovery``, and with ``session_index`` adds the index if it is missing. AWS may take hours to
        build the index of a large table. The logger "chathistory_async" logs at INFO what the call is waiting for.

        An IAM policy needs ``dynamodb:DescribeTable``, ``CreateTable``, ``DescribeTimeToLive`` and
        ``UpdateTimeToLive``. To add the index to a table, it also needs ``UpdateTable``, for ``point_in_time_recovery``
        ``UpdateContinuousBackups``, and for ``tags`` ``TagResource``.

        Args:
            point_in_time_recovery: whether to enable point-in-time recovery. False never disables it.
            table_kms_key_id: the KMS key for a new table's encryption at rest, or None for AWS's own key.
            tags: a new table's tags.
            wait_seconds: the maximum time to wait until the table and its index are active, or None for no limit. After
                that time ``ServiceError`` is raised, and TTL and ``point_in_time_recovery`` are not enabled yet. AWS
                continues its work, and a later call does the rest.

        Raises:
            KeySchemaError: a table of this name, or its index, exists with a different key schema. It was not changed.
            ConfigurationError: the table's TTL is on a different attribute than ``ttl_key_name``.
            ValueError: ``wait_seconds`` is negative.
            AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``chathistory_async.errors``.
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

    def create_table_sync(
        self,
        *,
        point_in_time_recovery: bool = False,
        table_kms_key_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait_seconds: float | None = None,
    ) -> None:
        """Create the table, as ``create_table`` does."""
        run(
            self.create_table,
            point_in_time_recovery=point_in_time_recovery,
            table_kms_key_id=table_kms_key_id,
            tags=tags,
            wait_seconds=wait_seconds,
        )

    @observed("delete_table")
    async def delete_table(self, *, wait_seconds: float | None = None) -> None:
        """Delete the table with all its sessions, and wait until it is gone. If the table does not exist, do nothing.

        Args:
            wait_seconds: the maximum time to wait, or None for no limit. After that time ``ServiceError`` is raised,
                and AWS continues the deletion.

        Raises:
            ValueError: ``wait_seconds`` is negative.
            AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``chathistory_async.errors``.
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
        """Return an iterator that copies sessions from single items into this item collection and reports on each.

        Use it as ``async for result in store.migrate_from(source, ids)``; both stores need the settings of the
        application's stores. The iterator yields one ``MigrationResult`` for each session, in the order of the ids.
        ``MigrationResult`` lists the possible outcomes. Several sessions are copied at the same time.

        A migration that was stopped early or killed can be run again: each message is copied once, and messages that
        users removed from the target in the meantime do not come back. The application may write to both tables during
        a migration, also with langchain-community, and several migrations may run at the same time. The next run copies
        the messages that were appended to the source after this run had copied the session.

        A session is copied in one transaction, in records of 16 messages, or of more messages if there would be over 80
        records. Copied messages come before the messages that the application writes to the target. Therefore
        ``created_at`` of a copied message is not the time at which the message was added. It is an hour before the
        session was first copied, or just before the session's first message in the target. A copied message expires
        when its source would have expired, as of the time of copying. If the source never expires, the ``ttl`` of this
        store applies. Copied messages are encrypted if this store encrypts.

        Each run compares the source with what was copied before. The source may continue the copied messages;
        ``history_size`` may have removed messages from its front; or it may share no message with the copied ones, and
        is then copied whole. Any other source has diverged: for example, langchain-community overwrote its end, or the
        session was deleted and begins again with a message that it had before. A session that has diverged is neither
        copied nor deleted.

        Copied messages are read back and compared. With ``delete_source``, all messages of a source are compared again.
        The source is deleted only if all of them are equal (or were removed or replaced in the target since), and only
        if the source's item holds nothing else: no other messages, and no attributes that this library does not know.
        An attribute that another program adds between the reading and the deletion of the item is deleted with it. The
        target keeps an item for each session under the sort key "migration". Keep that item as long as the application
        may write to the source.

        A session costs a read of its source and of the item "migration", a ``Query``, a ``TransactWriteItems``, a
        ``Query`` and a ``PutItem``. With ``session_index``, one or two more ``TransactWriteItems`` find out whether the
        session has an item in the index. With ``delete_source``, a ``DeleteItem`` and a ``PutItem`` follow.

        Args:
            source: a store of ``layout="single_item"``, on a different table. Its ``kms_key_id`` decrypts its messages.
                If this store has ``key_parts``, ``source`` needs the same, and a session fails if its id is not joined
                from that many ids.
            session_ids: the values of the partition key, which are the same in both tables.
                ``source.scan_session_ids()`` returns all of them.
            dry_run: read each session, check that it can be stored, and write nothing.
            delete_source: delete the sources that were copied and compared. If a session was deleted in the target
                since, its source is kept.
            owner_of: a function that takes a session id and returns the session's owner in the session index, or None.
                It does not change an owner that the session already has. Needs ``session_index``. Copied messages are
                counted in the index. The session is listed as active an hour before it was first copied, unless it has
                been active in the target. A session that was copied without ``session_index`` is in the index from its
                next append on.

        Raises:
            LayoutError: this store is not of the layout "item_collection", or ``source`` is not of the layout
                "single_item".
            ValueError: ``owner_of`` is given without ``session_index``, or ``source`` lacks the ``key_parts`` of this
                store.
            TypeError: ``session_ids`` is a str or bytes.
            TableNotFoundError, KeySchemaError, AccessDeniedError: see ``chathistory_async.errors``.
            ConfigurationError, ThrottledError, EndpointError, ServiceError: see ``chathistory_async.errors``.
            ClosedError: see ``chathistory_async.errors``. The iterator raises these errors, and ends, if the error
                would affect the other sessions too; sessions that are being copied are left as if the process had been
                killed. An error of a single session is reported in its ``MigrationResult``.
        """
        from ._migration.run import migrate
        from ._migration.source import Source
        from ._migration.target import Target

        to, out_of = self._layout, source._layout
        if not isinstance(to, ItemCollection):
            raise LayoutError("A migration needs a target table with a sort key", SessionRef(to.table_name))
        if not isinstance(out_of, SingleItem):
            text = 'A migration copies from single items: source must be a ChatHistoryStore(..., layout="single_item")'
            raise LayoutError(text, SessionRef(out_of.table_name))
        if isinstance(session_ids, (str, bytes)):
            raise TypeError("migrate_from takes an iterable of ids: put the one id in a list")
        if owner_of is not None and not self._session_index:
            raise ValueError("owner_of needs a ChatHistoryStore with session_index=True")
        if self._key_parts and [*source._key_parts.values()] != [*self._key_parts.values()]:
            raise ValueError("source needs the key_parts of this store, because ids are copied unchanged")

        def open_session(session_id: KeyValue) -> tuple[Source, Target]:
            if self._key_parts:
                # Refuse ids of other key_parts: no handle could open the copy, or a different tenant's handle could.
                ids = split_key(session_id) if isinstance(session_id, str) else session_id
                join_key({self._primary_key_name: ids}, self._key_parts)
            old, old_access = source._to_migrate(out_of, session_id)
            check_key_size(old.key)
            new, new_access = self._to_migrate(to, session_id)
            owner = None if owner_of is None else owner_of(session_id)
            summary = SessionItem(new, owner) if self._session_index else None
            return Source(old, old_access), Target(new, new_access, summary)

        results = migrate(session_ids, open_session, dry_run=dry_run, delete_source=delete_source)
        return observed_stream("migrate", self, results, lambda result: result.copied)

    def scan_session_ids(self) -> AsyncGenerator[KeyValue, None]:
        """Return an iterator over the ids of all sessions in a table of single items, in no particular order.

        An id is the value of the partition key: a str, an int or a Decimal if the key is a number, or bytes if the key
        is binary. The iterator sends strongly consistent ``Scan`` requests of a megabyte each. DynamoDB bills them as a
        read of the whole table, although it returns only the keys. No other method of this library scans.

        Raises:
            LayoutError: the store is not of the layout "single_item".
            TableNotFoundError, KeySchemaError, AccessDeniedError: see ``chathistory_async.errors``.
            ConfigurationError, ThrottledError, EndpointError, ServiceError: see ``chathistory_async.errors``.
            ClosedError: see ``chathistory_async.errors``. The iterator raises these errors.
        """
        if not isinstance(self._layout, SingleItem):
            raise LayoutError(
                'Scanning needs a ChatHistoryStore(..., layout="single_item")', SessionRef(self._layout.table_name)
            )
        from ._migration.source import scan_session_ids

        ids = scan_session_ids(self._layout, self._settings.clients)
        return observed_stream("scan_session_ids", self, ids, lambda _: 0)

    async def aclose(self) -> None:
        """Close the store immediately, with its handles and with its clients on all event loops.

        Calls that are running end first. A second call does nothing. ``async with`` opens the store again.
        """
        self._settings.clients.lifetime.closed = True
        await self._settings.clients.aclose()

    def close(self) -> None:
        """Close the store, as ``aclose`` does."""
        run(self.aclose)

    async def __aenter__(self) -> ChatHistoryStore:
        """Open the running loop's clients before the first request, and return the store.

        Raises:
            ConfigurationError: the SDK cannot make a client.
            ClosedError: the store was closed during this call.
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
        """Return the settings and the attributes of a subclass."""
        return vars(self) | {"_settings": replace(self._settings, clients=self._settings.clients.options)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        settings: Any = state["_settings"]
        self._settings = replace(settings, clients=Clients(settings.clients))

    def __repr__(self) -> str:
        """Return the table's name."""
        return f"<{type(self).__name__} {SessionRef(self._layout.table_name)}>"

    def _observed_layout(self) -> str | None:
        return self._settings.observed_layout(self._layout)

    async def _unreadable(self, session_id: str, key: Key | None) -> AsyncGenerator[ChatHistoryError, None]:
        name = await self._collection_session(session_id, key, json_format()).stored_format()
        if name == LANGCHAIN_NAME:
            from ._codec.messages import LANGCHAIN as format_
        else:
            format_ = json_format() if name is None else json_format(name)
        async with aclosing(self._collection_session(session_id, key, format_).unreadable()) as errors:
            async for error in errors:
                yield error

    def _collection_session(self, session_id: str, key: Key | None, format_: Format) -> ItemCollectionSession[Any]:
        self._check_collection()
        session = self._spec(self._whole_key(session_id, key), format_, None).open().session
        assert isinstance(session, ItemCollectionSession)  # noqa: S101  # the layout was checked
        return session

    def _check_collection(self) -> None:
        if not isinstance(self._layout, ItemCollection):
            text = "The ids of messages need a table with a sort key"
            raise LayoutError(text, SessionRef(self._layout.table_name))

    def _sessions(self) -> Sessions:
        self._check_indexed()
        assert isinstance(self._layout, ItemCollection)  # noqa: S101  # session_index requires this layout
        # The ids in stored keys are joined already.
        return Sessions(
            self._layout,
            self._settings.clients,
            lambda value: self._indexed_session({self._primary_key_name: value}),
        )

    def _indexed(self, session_id: str, key: Key | None) -> IndexedSession:
        self._check_indexed()
        return self._indexed_session(self._whole_key(session_id, key))

    def _indexed_session(self, whole_key: Mapping[str, KeyValue]) -> IndexedSession:
        # Any format will do: the index knows sessions of all formats, and reads no values.
        opened = self._spec(whole_key, json_format(), Indexed(None)).open()
        assert opened.indexed is not None  # noqa: S101  # it was opened with an index
        return opened.indexed

    def _whole_key(self, session_id: str, key: Key | None) -> Mapping[str, KeyValue]:
        return join_key(key or {self._primary_key_name: session_id}, self._key_parts)

    def _spec(self, whole_key: Mapping[str, KeyValue], format_: Format, in_index: Indexed | None) -> SessionSpec:
        return SessionSpec(self._settings, layout_with(self._layout, whole_key), whole_key, format_, in_index)

    def _check_indexed(self) -> None:
        if not self._session_index:
            raise ConfigurationError(
                "The store has no session index: make it with session_index=True", SessionRef(self._layout.table_name)
            )

    def _to_migrate(self, layout: AnyLayout, session_id: KeyValue) -> tuple[AnyLayout, Access]:
        """Return how a session that a migration copies is stored, and the access to it, with consistent reads.

        Args:
            layout: the store's layout.
            session_id: the session's id, which is not joined again.
        """
        key = {self._primary_key_name: session_id}
        layout = layout_with(layout, key)
        return layout, replace(self._settings, consistent_read=True).access(layout, key)

    def _table(self, wait_seconds: float | None = None) -> Table:
        return Table(self._layout.table_name, self._settings.clients, wait_seconds)


def keyed_session(
    store: ChatHistoryStore, ids: tuple[str, ...], *, owner: str, format: str, subsession: str | None = None
) -> KeyedSession:
    """Return a session of JSON values with ids. No I/O. For integrations: it is no part of the public interface.

    Without ``session_index`` the session has an item too, but no owner.

    Args:
        store: the store.
        ids: the ids that the session's partition key is joined from.
        owner: the session's owner in the session index. No effect without ``session_index``.
        format: as for ``json_session``.
        subsession: the name of one of the session's subsessions, or None for the session itself.

    Raises:
        LayoutError: the store has the layout "single_item".
        ValueError: ``key_parts`` requires a different number of ids, an id is not Unicode text, or ``owner`` is not
            valid.
    """
    store._check_takes_json()
    in_index = Indexed(owner) if store.session_index else Indexed(None, listed=False)
    spec = store._spec(store._whole_key("", {store.primary_key_name: ids}), json_format(format), in_index)
    keyed = (spec if subsession is None else spec.subsession(subsession)).open().keyed
    assert keyed is not None  # noqa: S101  # it was opened with an index
    return keyed()
