"""A drop-in replacement for langchain-community's DynamoDBChatMessageHistory."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from botocore.config import Config
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, get_buffer_string

from ._aws.clients import FastPathStatus, Lifetime, shared_clients
from ._aws.credentials import AnySession
from ._aws.sdk import ClientOptions
from ._codec.keys import KeyValue, encode_key, join_key
from ._codec.messages import LANGCHAIN
from ._codec.plain import Default, check_default
from ._opening import Indexed, Key, SessionSpec, Settings, cipher_type, layout_of
from ._session import Session, check_ids, check_sequence
from ._single_item.layout import SingleItem
from ._sync.bridge import iterate, run
from ._telemetry.operations import count_messages, observed, observed_stream
from .errors import ClosedError

if TYPE_CHECKING:
    from langchain_core.chat_history import BaseChatMessageHistory
else:
    try:
        from langchain_core.chat_history import BaseChatMessageHistory
    except ImportError:

        class BaseChatMessageHistory:
            """A stand-in for langchain-core 2.0, which has no such class. The subclass below defines all methods."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message with its id and the time at which it was added.

    Attributes:
        id: the message's id, which the methods of the session take. It does not change while the message is stored.
        message: the message, equal to the one that was added; ``aadd_messages`` names the exceptions.
        created_at: the time at which the message was added, in UTC, by the writer's clock.
    """

    id: str
    message: BaseMessage = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a session's messages.

    Attributes:
        messages: the messages, oldest first.
        cursor: pass it to ``apage`` as ``before`` to get the page of older messages. None if there are no older
            messages.
    """

    messages: list[StoredMessage]
    cursor: str | None


class DynamoDBChatMessageHistory(BaseChatMessageHistory):
    """The messages of one chat session in a DynamoDB table: in a single item, or with ``sort_key_name`` in many items.

    The constructor does no I/O and needs no event loop. The ``a…`` methods run on the caller's event loop. Each has a
    synchronous twin, which runs it on one private event loop in a separate thread and blocks the calling thread, even
    if an event loop is running in that thread. Any number of handles, threads, event loops and hosts may use one
    session at the same time.

    A handle can be copied, deep-copied and pickled. The copy is a new handle on the same session, with the same
    settings. A copy in the same process shares the clients of the original; a copy of a store's handle is closed with
    the store. An unpickled handle uses the clients of the process that unpickled it, and does not need the store. A
    ``boto3_session`` cannot be pickled.

    Args:
        table_name: the table's name or ARN.
        session_id: the value of the partition key.
        endpoint_url: DynamoDB's endpoint, or None for the SDK's choice (``AWS_ENDPOINT_URL_DYNAMODB``,
            ``AWS_ENDPOINT_URL``, the profile, the region).
        primary_key_name: the attribute name of the partition key.
        key: the whole primary key, which replaces ``{primary_key_name: session_id}``: one or two attributes of type
            str, int, Decimal or bytes. With ``sort_key_name``, the partition key alone. A tuple of ids, such as a
            tenant's id and a session's id, is joined with ``#``. In each id of a tuple, ``%`` and ``#`` become ``%25``
            and ``%23``, so no id in a tuple can reach a different tenant's partitions. Plain text is not escaped: the
            text ``"acme#s1"``, also as ``session_id``, is the session of ``("acme", "s1")``. A store with
            ``key_parts=2`` refuses plain text. ``split_key`` returns the ids of a joined key.
        boto3_session: a ``boto3.Session``, an ``aioboto3.Session`` or an aiobotocore session, or None for the SDK's
            own. Its credentials are loaded and refreshed once for all event loops and threads. From a boto3 session,
            the library takes the credentials, the region and the profile; it loads and refreshes the credentials in a
            thread.
        kms_key_id: the id, ARN or alias (``alias/…``) of a symmetric KMS key. Each message, or with ``sort_key_name``
            each append, is encrypted under this key before it leaves the process. No part of a message is stored
            unencrypted. With None, messages are stored unencrypted. Messages that were encrypted under other keys, or
            stored unencrypted, can still be read. Each encrypted message is bound to its session, and with
            ``sort_key_name`` also to its place in the session. Needs the extra ``kms``; the first handle with a key
            imports it, which takes 0.1 s.
        ttl: the number of seconds from the last append until the session expires. With None, this handle sets no expiry
            time; a single item keeps an expiry time that a different writer has set, and then expires at that time. An
            expired session reads as empty, even if DynamoDB has not deleted it yet, and an append starts it anew. With
            ``sort_key_name``, each message expires separately, ``ttl`` seconds after it was written; a message that is
            written with None never expires.
        ttl_key_name: the attribute name of the expiry time, which is stored in seconds since the epoch.
        history_size: how many of the latest messages are kept, or None for all. In a single item, no append leaves more
            messages than that; an item that held more before is read whole until the next append. With
            ``sort_key_name``, up to a fifth more messages (at least four more) may be stored before they are removed,
            and several times as many if the handles that append never read. Only ``apage`` and reads with ``up_to``
            return the surplus messages. If messages are deleted, however, surplus messages may take their places.
        history_messages_key: the attribute name of the list of messages, or with ``sort_key_name`` of a record's body.
        coerce_float_to_decimal: no effect; accepted for compatibility. Floats are always stored exactly and come back
            as floats, never as Decimal. A single item without ``kms_key_id`` returns whole floats as ints.
        region_name: the region, or None for the SDK's choice.
        config: a botocore ``Config`` or aiobotocore ``AioConfig``. It overrides the library's own config (a pool of 512
            connections, 3.1 seconds to connect, 5 seconds without a byte of a response). Its ``retries`` limit the
            retries; without them, the SDK's choice applies. A call with all its attempts ends after 81 seconds by
            default. With other time-outs or retries, it ends after the longest time that all its attempts may take, but
            not before 60 seconds.
        consistent_read: whether reads are strongly consistent. False halves the price of reads.
        kms_endpoint_url: KMS's endpoint, or None for the SDK's choice (``AWS_ENDPOINT_URL_KMS``, ``AWS_ENDPOINT_URL``,
            the profile, the region of the key). ``endpoint_url`` never applies to KMS.
        sort_key_name: the attribute name of the table's sort key, which is of type text. Each append is then stored as
            one item, a record, and the size of the session is not limited. With None, the session is stored in a single
            item, in langchain-community's format.
        fast_path: whether calls to DynamoDB are first tried on a fast path beside the SDK's client, which takes less
            than a third of the client's CPU. The fast path is not taken if anything watches or replaces that client,
            such as a tracer, an event handler or a mock; see ``fast_path_status``. False sends all calls by the SDK's
            client.
        tracing: "auto": if the application has set a tracer provider or a meter provider of OpenTelemetry, the library
            makes spans and metrics of operations and of calls to AWS, without keys and content. False turns them off.
            The extra ``otel`` installs OpenTelemetry's API. ``docs/guides/observability.md`` lists spans and metrics.
        default: a function like the one for ``json.dumps``. It takes a value that has no plain form (see
            ``aadd_messages``) and returns the value to store instead, which may hold further such values. The library
            calls it on the event loop, possibly more than once for a value, and it must return the same result each
            time. If ``default`` is None or raises an exception, a message that holds such a value is refused.

    Raises:
        TypeError: the type of ``boto3_session``, ``kms_key_id``, ``default`` or a value in ``key`` is not accepted.
        ValueError: ``ttl`` or ``history_size`` is not a positive integer, ``kms_key_id`` is empty, or two attributes
            have the same name.
        ModuleNotFoundError: ``kms_key_id`` is given, and the extra ``kms`` is not installed.
    """

    def __init__(
        self,
        table_name: str,
        session_id: str,
        endpoint_url: str | None = None,
        primary_key_name: str = "SessionId",
        key: Key | None = None,
        boto3_session: AnySession | None = None,
        kms_key_id: str | None = None,
        ttl: int | None = None,
        ttl_key_name: str = "expireAt",
        history_size: int | None = None,
        history_messages_key: str = "History",
        *,
        coerce_float_to_decimal: bool = False,
        region_name: str | None = None,
        config: Config | None = None,
        consistent_read: bool = True,
        kms_endpoint_url: str | None = None,
        sort_key_name: str | None = None,
        fast_path: bool = True,
        default: Default | None = None,
        tracing: Literal["auto", False] = "auto",
    ) -> None:
        super().__init__()
        check_default(default)
        whole_key = join_key(key or {primary_key_name: session_id})
        layout = layout_of(
            sort_key_name,
            table_name=table_name,
            key=encode_key(whole_key),
            messages_name=history_messages_key,
            expiry_name=ttl_key_name,
            ttl=ttl,
            history_size=history_size,
        )
        options = ClientOptions(
            endpoint_url or None, kms_endpoint_url or None, region_name, boto3_session, config, fast_path, tracing
        )
        # Only to raise its errors for an invalid kms_key_id.
        cipher_type(kms_key_id)
        settings = Settings(shared_clients(options), kms_key_id, consistent_read, default)
        self._begin(session_id, SessionSpec(settings, layout, whole_key, LANGCHAIN, None))
        self._coerce_float_to_decimal = coerce_float_to_decimal

    @staticmethod
    def _in_store(session_id: str, spec: SessionSpec) -> DynamoDBChatMessageHistory:
        history = DynamoDBChatMessageHistory.__new__(DynamoDBChatMessageHistory)
        history._begin(session_id, spec)
        history._coerce_float_to_decimal = False
        return history

    def _begin(self, session_id: str, spec: SessionSpec) -> None:
        """Open the handle on a session. A copy of the handle has its own session and lifetime."""
        self._session_id = session_id
        self._spec = spec
        opened = spec.open()
        self._session: Session[BaseMessage] = opened.session
        self._indexed = opened.indexed
        self._lifetime = Lifetime()
        clients = spec.settings.clients
        if clients.shared:
            clients.users.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the attributes of a subclass: a copy is a new handle on the same session."""
        return {name: value for name, value in vars(self).items() if name not in _MADE_ANEW}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin(self._session_id, self._spec)

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
        """A copy of the whole primary key, with the ids of a tuple joined."""
        return dict(self._spec.key)

    @property
    def sort_key_name(self) -> str | None:
        """The attribute name of the sort key, or None if the session is stored in a single item."""
        layout = self._spec.layout
        return None if isinstance(layout, SingleItem) else layout.sort_key_name

    @property
    def kms_key_id(self) -> str | None:
        """The KMS key that messages are encrypted under, as given, or None if messages are stored unencrypted."""
        return self._spec.settings.kms_key_id

    @property
    def encryption_context(self) -> dict[str, str] | None:
        """A copy of the encryption context of the session's messages, or None without ``kms_key_id``.

        KMS policies and CloudTrail see this context. ``table`` is the table's name, ``key`` the names of the key
        attributes, and ``session`` a SHA-256 digest of the values of the key attributes.
        """
        cipher = self._session.access.cipher
        return None if cipher is None else dict(cipher.context)

    @property
    def ttl(self) -> int | None:
        """Seconds from the last append until the session expires, or None if this handle sets no expiry time.

        With ``sort_key_name``, seconds from the writing of each message until that message expires.
        """
        return self._spec.layout.ttl

    @property
    def ttl_key_name(self) -> str:
        """The attribute name of the expiry time."""
        return self._spec.layout.expiry_name

    @property
    def history_size(self) -> int | None:
        """How many of the latest messages are kept, or None for all."""
        return self._spec.layout.history_size

    @property
    def history_messages_key(self) -> str:
        """The attribute name of the messages."""
        return self._spec.layout.messages_name

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
        return self._spec.settings.clients.fast_path_status()

    @property
    def coerce_float_to_decimal(self) -> bool:
        """The value that was given. It has no effect."""
        return self._coerce_float_to_decimal

    @observed("read", len)
    async def aget_messages(
        self, *, limit: int | None = None, up_to: str | None = None, start_on: Literal["human"] | None = None
    ) -> list[BaseMessage]:
        """Return the session's messages, oldest first, or an empty list if the session does not exist or has expired.

        A single item takes one ``GetItem``. An item collection takes one ``Query`` for each megabyte; with ``limit`` or
        ``history_size``, the query reads the latest messages without the others. With ``kms_key_id``, each data key
        that this process has not cached in the last five minutes takes one KMS ``Decrypt``. Long histories are
        decrypted and decoded in slices, and the event loop runs other tasks between the slices.

        A batch that is appended meanwhile is read whole or not at all, unless ``limit``, ``up_to`` or ``history_size``
        cuts it. A read of several pages is not a snapshot: a message that is appended or deleted meanwhile may or may
        not be in it.

        Args:
            limit: the maximum number of messages, counted from the latest; None for all messages that ``history_size``
                keeps.
            up_to: a message id. Only messages up to and including that message are returned; with ``limit``, the latest
                of these. The id of a message that does not exist, or of another session, is a place in the order of the
                messages. Needs an item collection.
            start_on: "human" leaves out the messages before the first human message, as ``trim_messages`` does.
                ``limit`` applies before that. Model providers reject, for example, a tool message whose tool call was
                cut off. If there is no human message, the list is empty.

        Raises:
            ValueError: ``limit`` is not a positive integer, ``up_to`` is not an id, or ``start_on`` has a different
                value.
            LayoutError: ``up_to`` is given, and the session is stored in a single item.
            FormatError: the session holds JSON values of a different framework. The text names the call that reads
                them.
            UndecodableItemError: a stored value is not a message that this version of langchain-core knows. In an item
                collection, ``error.message_id`` is the id of that value: ``adelete_messages`` removes it, and ``apage``
                reads the messages before it.
            DecryptionError, EncryptionContextError: an encrypted message was changed, or was encrypted for a different
                place.
            ConfigurationError: a message is encrypted, and the handle has no ``kms_key_id``.
            KmsKeyError: a KMS key does not exist, is disabled, or is not for encryption.
            WriteConflictError: other writers changed a record of over 390 KB during each of 50 reads of that record.
            TableNotFoundError, KeySchemaError, AccessDeniedError: see ``chathistory_async.errors``.
            ConfigurationError, ThrottledError, EndpointError, ServiceError: see ``chathistory_async.errors``.
            ClosedError: see ``chathistory_async.errors``.
        """
        if start_on not in (None, "human"):
            raise ValueError(f"start_on must be 'human' or None, not {start_on!r}")
        messages = await self._open_session().read(limit, up_to=up_to)
        return messages if start_on is None else _from_a_human_message(messages)

    def aiter(self) -> AsyncGenerator[BaseMessage, None]:
        """Return an iterator over the session's messages, oldest first, that holds one page of messages at a time.

        Use it as ``async for message in history.aiter()``. A loop that stops early need not close the iterator. The
        iterator also returns messages that are appended while it runs. With ``history_size``, and from a single item,
        all messages are one page, which is read once.

        Raises:
            ClosedError: the handle is closed. The iterator itself raises the errors of ``aget_messages``.
        """
        return observed_stream("iterate", self, self._open_session().stream())

    @observed("page", lambda page: len(page.messages))
    async def apage(self, limit: int = 50, before: str | None = None) -> Page:
        """Return a page of messages with their ids, oldest first: the latest messages, or those before a cursor.

        To scroll back, request a page, then the page before its ``cursor``, until ``cursor`` is None. Appends do not
        change the messages of a page before a cursor. Needs an item collection.

        Args:
            limit: the maximum number of messages, 50 by default.
            before: the cursor of a page, or a message id. Only messages before it are returned.

        Raises:
            ValueError: ``limit`` is not a positive integer, or ``before`` is not a cursor.
            LayoutError: the session is stored in a single item.
            FormatError, UndecodableItemError, DecryptionError, EncryptionContextError: as for ``aget_messages``.
            ConfigurationError, KmsKeyError, WriteConflictError, TableNotFoundError: as for ``aget_messages``.
            KeySchemaError, AccessDeniedError, ThrottledError, EndpointError, ServiceError: as for ``aget_messages``.
            ClosedError: as for ``aget_messages``.
        """
        page = await self._open_session().page(limit, before)
        return Page([StoredMessage(one.id, one.value, one.created_at) for one in page.values], page.cursor)

    @observed("append")
    async def aadd_messages(self, messages: Sequence[BaseMessage], *, idempotency_key: str | None = None) -> None:
        """Append messages: all or none, contiguous and in order, and exactly once however often the request is retried.

        An empty sequence writes nothing. If the call is cancelled, or fails with ``EndpointError``, ``ServiceError``,
        ``ThrottledError`` or ``WriteOutcomeUnknownError``, the batch may have been stored. If it was stored, it was
        stored whole. Before you repeat such a call, read the session, or give both calls the same ``idempotency_key``.

        In a single item: usually one ``UpdateItem`` that does not read. A second write is needed if the session has
        expired; if the session outgrew ``history_size`` unseen by this handle; if the session has had over 255 writes
        and this handle has neither read nor written it; and at about every 126th write of a long session.

        In a single item, one case remains in which a batch is stored twice. AWS must receive a delayed request after it
        has answered the retry of that request and after ``aclear`` has deleted the session. The batch must also be the
        first one of a handle that had seen no messages of the session. An item collection has no such case.

        In an item collection: the batch is one record of any number of messages, written with one ``PutItem``, or with
        one ``TransactWriteItems`` if the record is larger than 390 KB after compression. With ``history_size``, a
        ``Query`` and a ``BatchWriteItem`` follow now and then. Before the first append of a process, if the process has
        read nothing before, an eventually consistent ``GetItem`` checks that the table has the sort key. If the
        credentials do not allow the ``GetItem``, the append proceeds without the check.

        In a store with a session index: one ``TransactWriteItems``, which also writes the session's item. A second one
        is needed if the session's item has a later expiry or a later last activity than these messages. That happens if
        the clocks or ``ttl`` of the writers differ, or if several writers append at the same time. The first append of
        a store also queries the index once.

        With ``kms_key_id``: a KMS ``GenerateDataKey`` comes first, unless the session has a data key in use. A data key
        is in use for five minutes, 1,000 messages (1,000 records in an item collection) or 64 MB. If an error names
        ``GenerateDataKey``, nothing was written.

        With ``idempotency_key``: a session stores only one batch for a key, even if several processes send it. A second
        call with the same key and batch returns without writing. An item collection keeps the key for the store's
        ``idempotency_seconds``, a day by default, in a separate item that the same ``TransactWriteItems`` writes;
        ``aclear`` keeps that item, and ``delete_session`` deletes it. A single item keeps the key in the session's
        item, for at least the next 63 appends with a key or 127 without, and until ``aclear`` or the session's expiry.
        Only digests of the key and of the batch are stored. Two batches are the same if their JSON texts are equal: a
        different order of the names in a dict makes a different batch.

        The stored form of a message is LangChain's ``message_to_dict``, and the same dump comes back. Text, numbers,
        bytes, sets, NaN and infinities come back exactly. Tuples come back as lists, a ``Decimal`` as an int or a
        float, and the names of a dict as text. Other objects are stored in their plain form, as pydantic dumps it:
        models and dataclasses as dicts, an ``Enum`` as its value, dates, UUIDs and paths as text, numpy scalars and
        arrays as numbers and lists. A value that has no plain form is passed to ``default``. A message of a subclass
        comes back as the LangChain class that its ``type`` names.

        A single item without ``kms_key_id`` has two exceptions. Whole floats come back as ints. If LangChain accepts
        only text, such as in ``content``, surrogates in that text do not come back: a pair comes back as its character,
        any other surrogate as U+FFFD.

        Long batches are converted in slices, and the event loop runs other tasks between the slices. One message is one
        step, and so is the SDK's own serialisation of the request.

        A message that cannot be stored is also logged at ERROR by the logger ``chathistory_async``, without content,
        because ``RunnableWithMessageHistory`` swallows the exception.

        Args:
            messages: the messages.
            idempotency_key: text of 1 to 256 characters, such as a request's ``Idempotency-Key``, or None for no key.

        Raises:
            TypeError: ``messages`` is a single message and not a sequence, or the key is not text.
            ValueError: the key is empty or too long.
            IdempotencyKeyReusedError: the key was used with other messages. Nothing was written.
            FormatError: according to the session index, the session holds JSON values. Nothing was written.
            KmsKeyError: the KMS key does not exist, is disabled, or is not for encryption. Nothing was written.
            MessageNotStorableError: a value has no plain form, or langchain-core would not read the message's dump
                back. Nothing was written. The text names the path to the value.
            ItemTooLargeError: the session would outgrow 400 KB in a single item, or the batch is larger than 4 MB after
                compression in an item collection. Nothing was written.
            WriteConflictError: other writers were faster in every attempt. Nothing was written.
            WriteOutcomeUnknownError: a response was lost, and the library cannot tell whether the batch was stored.
                Read the session before you retry.
            UndecodableItemError: nothing was written. In a single item, the attribute of the messages is not a list, or
                the library's own attribute is damaged. In an item collection, the id of a stored record claims a time
                over a century ahead, so that no record can follow it; ``adelete_messages([error.message_id])`` deletes
                that record.
            KeySchemaError: the table has other key attributes. Nothing was written.
            TableNotFoundError, AccessDeniedError, ConfigurationError: see ``chathistory_async.errors``.
            ThrottledError, EndpointError, ServiceError, ClosedError: see ``chathistory_async.errors``.
        """
        check_sequence(messages, "aadd_messages", "message")
        count_messages(len(messages))
        await self._open_session().append(messages, idempotency_key)

    @observed("delete")
    async def adelete_messages(self, ids: Iterable[str]) -> None:
        """Remove messages by their ids. Ids of messages that do not exist, or no longer exist, are ignored.

        Each record that holds such messages takes a ``GetItem`` and a ``PutItem``, which writes the record without
        them. If no message is left in the record, an ``UpdateItem`` replaces the ``PutItem``. Several records are
        changed at the same time. A record of over 390 KB takes a ``TransactWriteItems`` instead. With a session index,
        every record takes a ``TransactWriteItems``, and the records are changed one after the other. If the call fails
        halfway, some of the messages are removed; call it again. Needs an item collection.

        Args:
            ids: the ids that ``apage`` returns. An error's ``message_id`` is accepted too; it may be the id of a whole
                record.

        Raises:
            ValueError: a value in ``ids`` is not an id.
            TypeError: ``ids`` is a single id and not an iterable.
            LayoutError: the session is stored in a single item.
            FormatError, UndecodableItemError, DecryptionError, EncryptionContextError, KmsKeyError: as for
                ``aget_messages``, if a record also holds messages that stay. If a record cannot be read, pass the
                record's own id to remove all of it.
            ItemTooLargeError: the call would remove over 10,000 messages from one record, each next to a message that
                stays.
            WriteConflictError, WriteOutcomeUnknownError, TableNotFoundError: see ``chathistory_async.errors``.
            KeySchemaError, AccessDeniedError, ConfigurationError, ThrottledError: see ``chathistory_async.errors``.
            EndpointError, ServiceError, ClosedError: see ``chathistory_async.errors``.
        """
        check_ids(ids, "adelete_messages")
        await self._open_session().remove(ids)

    @observed("replace", lambda _: 1)
    async def areplace_message(self, message_id: str, message: BaseMessage) -> None:
        """Replace a message, whole or not at all. The new message has the id and the place of the old one.

        A ``GetItem`` and a ``PutItem`` of the message's record, or a ``TransactWriteItems`` if the record is larger
        than 390 KB. If two calls replace the same message at the same time, the later one wins. If this handle has a
        ``ttl``, the record's time to live starts again; a record never expires earlier than before. With
        ``kms_key_id``, the old and the new message are bound to the same place, so a writer with access to the table
        can put the old one back. Needs an item collection.

        Args:
            message_id: the id that ``apage`` returns.
            message: the new message.

        Raises:
            ValueError: ``message_id`` is not the id of a message.
            MessageNotFoundError: there is no message with this id, or no longer.
            MessageNotStorableError: the new message cannot be stored, as for ``aadd_messages``.
            ItemTooLargeError: the record with the new message is larger than 4 MB.
            WriteConflictError: other writers were faster in every attempt. Nothing was written.
            WriteOutcomeUnknownError: a response was lost, and the library cannot tell whether the message was replaced.
                Read the session before you retry.
            LayoutError: the session is stored in a single item.
            FormatError, UndecodableItemError, DecryptionError, EncryptionContextError: the message's record cannot be
                read, as for ``aget_messages``. Nothing was written.
            KmsKeyError, TableNotFoundError, KeySchemaError, AccessDeniedError: see ``chathistory_async.errors``.
            ConfigurationError, ThrottledError, EndpointError, ServiceError: see ``chathistory_async.errors``.
            ClosedError: see ``chathistory_async.errors``.
        """
        await self._open_session().replace(message_id, message)

    @observed("pop", lambda message: message is not None)
    async def apop_message(self) -> BaseMessage | None:
        """Remove the latest message and return it, or return None if there is no message.

        Each message is returned to only one caller, however many callers pop at the same time. A ``Query`` and an
        ``UpdateItem``, or a ``PutItem`` if other messages are left in the record; with a session index, a
        ``TransactWriteItems`` replaces the write. If another caller removes the message first, both requests are
        repeated after a random pause, which grows with each attempt. Needs an item collection.

        Raises:
            WriteConflictError: other writers were faster in every attempt. Nothing was removed.
            WriteOutcomeUnknownError: a response was lost, and the library cannot tell whether the message was removed.
                Read the session before you retry.
            LayoutError: the session is stored in a single item.
            FormatError, UndecodableItemError, DecryptionError, EncryptionContextError: as for ``aget_messages``.
            ConfigurationError, KmsKeyError, TableNotFoundError, KeySchemaError: as for ``aget_messages``.
            AccessDeniedError, ThrottledError, EndpointError, ServiceError, ClosedError: as for ``aget_messages``. A
                message that cannot be read is never removed.
        """
        for message in await self._open_session().pop():
            return message
        return None

    @observed("copy")
    async def acopy_to(
        self, session_id: str, *, key: Key | None = None, up_to: str | None = None
    ) -> DynamoDBChatMessageHistory:
        """Append this session's messages to a different session of the same table, and return a handle on that session.

        Use it to branch off a conversation. The messages are appended as one batch, of up to 4 MB after compression. A
        second call appends them again. The copies have new times and new ids as stored messages (``StoredMessage.id``);
        ``message.id`` is unchanged. All messages are in memory during the call. The returned handle has the class and
        the attributes of this handle. Needs an item collection.

        With a session index, the new session gets the owner that this handle was made with. If this handle has no
        owner, the new session gets this session's owner from the index, which takes a ``GetItem``.

        Args:
            session_id: the value of the other session's partition key.
            key: the other session's partition key, as for the constructor; it replaces ``session_id``. Required if this
                handle was made with ``key``.
            up_to: the id of the last message to copy, or None for all. If that message no longer exists, all messages
                before it are copied.

        Raises:
            ValueError: ``up_to`` is not an id, the other session is this session, ``key`` is required, or ``key`` is
                not the tuple that the store's ``key_parts`` requires.
            LayoutError: the session is stored in a single item.
            ItemTooLargeError: the messages do not fit into one transaction. Nothing was copied.
            ChatHistoryError: the errors of ``aget_messages`` and ``aadd_messages``.
        """
        session = self._open_session()
        other = await self._sibling(session_id, key)
        await session.copy_to(other._session, up_to)
        return other

    @observed("clear")
    async def aclear(self) -> None:
        """Delete the session's messages; in a single item, also all attributes that other programs have put there.

        A retry never deletes messages that were added after the deletion. A batch that is appended while the call
        runs is deleted or kept.

        In a single item: a ``GetItem`` and, if the item exists, a ``DeleteItem``. If AWS receives a request of
        ``aadd_messages`` only after this call, the request may store its batch again; ``aadd_messages`` describes that
        case.

        In an item collection: a ``Query`` for each megabyte and a ``BatchWriteItem`` for each 25 records. If the call
        fails halfway, some messages are left; call it again. A record younger than half an hour leaves an empty item
        for that time, which DynamoDB's TTL deletes. Idempotency keys are kept, so a batch that is sent again with its
        old key is not stored.

        With a session index: an ``UpdateItem`` for each megabyte marks the message count as invalid during the
        deletion. Then a ``GetItem``, a ``Query`` for each megabyte that is left, and an ``UpdateItem`` count the
        messages anew. The session stays listed, with no messages; ``ChatHistoryStore.delete_session`` removes it.

        Raises:
            WriteOutcomeUnknownError: a response was lost, and a new session has begun under a key whose item
                langchain-community had created. The new session was not deleted.
            WriteConflictError: other writers were faster in every attempt. In an item collection, some messages may
                have been deleted.
            TableNotFoundError, KeySchemaError, AccessDeniedError: see ``chathistory_async.errors``.
            ConfigurationError, ThrottledError, EndpointError, ServiceError: see ``chathistory_async.errors``.
            ClosedError: see ``chathistory_async.errors``.
        """
        await self._open_session().clear()

    async def aclose(self) -> None:
        """Close this handle, and its client unless another open handle shares it. A second call does nothing.

        A handle of a store leaves the store's client open. Calling this method is optional: clients close with their
        event loop. ``async with`` opens a closed handle again.
        """
        self._lifetime.closed = True
        clients = self._spec.settings.clients
        if clients.shared:
            clients.users.discard(self)
            if not clients.users:
                await clients.aclose()

    async def __aenter__(self) -> DynamoDBChatMessageHistory:
        """Return the handle itself. A closed handle is open again."""
        self._lifetime.enter()
        clients = self._spec.settings.clients
        if clients.shared:
            clients.users.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the handle, unless another ``async with`` of the same handle is still open."""
        if self._lifetime.leave():
            await self.aclose()

    @property
    def messages(self) -> list[BaseMessage]:
        """The session's messages, as ``aget_messages`` returns them. Each access reads the table."""
        return run(self.aget_messages)

    @messages.setter
    def messages(self, messages: list[BaseMessage]) -> None:
        raise NotImplementedError("Direct assignment to 'messages' is not allowed. Use 'add_messages' instead.")

    def get_messages(
        self, *, limit: int | None = None, up_to: str | None = None, start_on: Literal["human"] | None = None
    ) -> list[BaseMessage]:
        """Return the session's messages, as ``aget_messages`` does."""
        return run(self.aget_messages, limit=limit, up_to=up_to, start_on=start_on)

    def iter(self) -> Iterator[BaseMessage]:
        """Return an iterator over the session's messages, as ``aiter`` does."""
        return iterate(self.aiter())

    def page(self, limit: int = 50, before: str | None = None) -> Page:
        """Return a page of messages with their ids, as ``apage`` does."""
        return run(self.apage, limit, before)

    def delete_messages(self, ids: Iterable[str]) -> None:
        """Remove messages by their ids, as ``adelete_messages`` does."""
        run(self.adelete_messages, ids)

    def replace_message(self, message_id: str, message: BaseMessage) -> None:
        """Replace a message, as ``areplace_message`` does."""
        run(self.areplace_message, message_id, message)

    def pop_message(self) -> BaseMessage | None:
        """Remove the latest message and return it, as ``apop_message`` does."""
        return run(self.apop_message)

    def copy_to(
        self, session_id: str, *, key: Key | None = None, up_to: str | None = None
    ) -> DynamoDBChatMessageHistory:
        """Append this session's messages to a different session, as ``acopy_to`` does."""
        return run(self.acopy_to, session_id, key=key, up_to=up_to)

    def add_messages(self, messages: Sequence[BaseMessage], *, idempotency_key: str | None = None) -> None:
        """Append messages, as ``aadd_messages`` does."""
        run(self.aadd_messages, messages, idempotency_key=idempotency_key)

    def add_message(self, message: BaseMessage) -> None:
        """Append one message, as ``aadd_messages`` does."""
        run(self.aadd_messages, [message])

    def add_user_message(self, message: HumanMessage | str) -> None:
        """Append a human message, given as a message or as its text, as ``aadd_messages`` does."""
        run(self.aadd_messages, [HumanMessage(content=message) if isinstance(message, str) else message])

    def add_ai_message(self, message: AIMessage | str) -> None:
        """Append an AI message, given as a message or as its text, as ``aadd_messages`` does."""
        run(self.aadd_messages, [AIMessage(content=message) if isinstance(message, str) else message])

    def clear(self) -> None:
        """Delete the session's messages, as ``aclear`` does."""
        run(self.aclear)

    def close(self) -> None:
        """Close this handle and the clients that its synchronous methods opened, as ``aclose`` does."""
        run(self.aclose)

    def __str__(self) -> str:
        """Return the messages as text, one ``Human: …`` or ``AI: …`` on each line."""
        return get_buffer_string(self.messages)

    def __repr__(self) -> str:
        """Return the table and the session, without content."""
        return f"<{type(self).__name__} {self._session.access.ref}>"

    def _observed_layout(self) -> str | None:
        return self._spec.settings.observed_layout(self._spec.layout)

    async def _sibling(self, session_id: str, key: Key | None) -> DynamoDBChatMessageHistory:
        """Return a handle on a different session with the same settings, clients and owner."""
        if key is None:
            (name,) = list(self._spec.key)[:1]
            if self._spec.key != {name: self._session_id}:
                # The key may have a tenant's prefix, which the other session's key must have too.
                raise ValueError("This handle was made with key: pass the other session's key too")
            key = {name: session_id}
        spec = self._spec.other(key)
        if spec.key == self._spec.key:
            raise ValueError("A session cannot be copied to itself")
        if self._indexed is not None:
            spec = spec._replace(in_index=Indexed(await self._indexed.owner()))
        # A copy, so that the attributes of a subclass are kept.
        sibling = copy.copy(self)
        sibling._begin(session_id, spec)
        return sibling

    def _open_session(self) -> Session[BaseMessage]:
        if self._lifetime.closed:
            raise ClosedError("The chat history is closed", self._session.access.ref)
        return self._session


# The attributes that a copy of a handle makes anew.
_MADE_ANEW = {"_session", "_indexed", "_lifetime"}


def _from_a_human_message(messages: list[BaseMessage]) -> list[BaseMessage]:
    """Leave out the messages before the first human message."""
    for position, message in enumerate(messages):
        if LANGCHAIN.begins_turn(message):
            return messages[position:]
    return []
