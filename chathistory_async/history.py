"""LangChain's face: a drop-in for langchain-community's DynamoDBChatMessageHistory."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
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
from ._opening import Indexed, Key, Layout, Settings, cipher_type, layout_of, layout_with, open_session
from ._session import Session, check_ids, check_sequence
from ._single_item.requests import SingleItem
from ._sync.bridge import iterate, run
from .errors import ClosedError

if TYPE_CHECKING:
    from langchain_core.chat_history import BaseChatMessageHistory
else:
    try:
        from langchain_core.chat_history import BaseChatMessageHistory
    except ImportError:

        class BaseChatMessageHistory:
            """The base class for langchain-core 2.0, which has none. All that it had is defined below."""


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


class DynamoDBChatMessageHistory(BaseChatMessageHistory):
    """The messages of one chat session in a DynamoDB table: in one item, or with ``sort_key_name`` in many.

    Constructing it does no I/O and needs no event loop. The ``a…`` methods run on the caller's event loop; their
    synchronous twins run them on one private event loop in a thread of its own, and block the calling thread, also
    inside a running event loop. Any number of handles, threads, event loops and hosts may use one session at once.

    A handle can be copied, deeply copied and pickled: the copy is another handle on the same session, with the same
    settings. A copy in this process has the same clients; that of a store's handle ends with the store. An unpickled
    one has those of the process that it is in, and does not need the store. A ``boto3_session`` cannot be pickled.

    Args:
        table_name: the table.
        session_id: the value of the partition key.
        endpoint_url: the endpoint, None for the SDK's choice (``AWS_ENDPOINT_URL_DYNAMODB``, ``AWS_ENDPOINT_URL``,
            the profile, the region).
        primary_key_name: the partition key's attribute.
        key: a whole primary key, one or two attributes of type str, int, Decimal or bytes. It replaces
            ``{primary_key_name: session_id}``. With ``sort_key_name``, the partition key alone. A tuple of ids, such as
            a tenant's and the session's, is joined by ``#``; ``%`` and ``#`` in an id become ``%25`` and ``%23``, and
            so no id in a tuple reaches into another tenant's partitions. Plain text is not changed: the text
            ``"acme#s1"``, also as ``session_id``, is the session of ``("acme", "s1")``. A store with ``key_parts=2``
            refuses such text. ``split_key`` returns the ids of a joined key.
        boto3_session: a ``boto3.Session``, an ``aioboto3.Session`` or an aiobotocore session, None for the SDK's own.
            Its credentials are loaded and refreshed once, for all event loops and threads. A boto3 session lends its
            credentials, region and profile; loading and refreshing them runs in a thread.
        kms_key_id: the id, ARN or alias (``alias/…``) of a symmetric KMS key: each message, or with
            ``sort_key_name`` each append, is encrypted under it before it leaves the process. No part of a message is
            stored in the clear. None stores messages in the clear. Messages that were encrypted under other keys, or
            stored in the clear, are read as well. Each message is bound to its session, and with
            ``sort_key_name`` to its place in the session. Needs the extra ``kms``, which the first handle imports
            (0.1 s).
        ttl: seconds from the last append until the session expires. With None this handle sets no expiry time: a
            single item that has one from another writer keeps it, and expires then. An expired session reads as empty,
            also while DynamoDB has not deleted it, and an append to it starts afresh. With ``sort_key_name``, seconds
            from the writing of each message until that one expires; with None that message never does.
        ttl_key_name: the attribute of the expiry time, in seconds since the epoch.
        history_size: how many messages are kept, the latest ones; None for all. In a single item, no append leaves
            more; one that had more before is read whole until the next append. With ``sort_key_name``, a fifth more
            (four at least) may be stored before they are removed, and several times as many by handles that never read;
            only ``apage`` and reads with ``up_to`` return them, but where messages are deleted, those that had fallen
            out may take their places.
        history_messages_key: the attribute of the messages, or with ``sort_key_name`` of a message's body.
        coerce_float_to_decimal: accepted for compatibility. Floats are stored exactly whatever it says, and come back
            as floats (as ints where they are whole), never as Decimal.
        region_name: the region, None for the SDK's choice.
        config: a botocore ``Config`` or aiobotocore ``AioConfig`` that is merged over ours (a pool of 512 connections,
            3.1 seconds to connect, 5 without a byte of an answer). Its ``retries`` bound the retries; unset, the SDK's
            choice holds. A call ends after 81 seconds by default. With other time-outs or retries it ends after what
            all its attempts may take, and not before 60 seconds.
        consistent_read: whether reads are strongly consistent; False halves their price.
        kms_endpoint_url: KMS's endpoint, None for the SDK's choice (``AWS_ENDPOINT_URL_KMS``, ``AWS_ENDPOINT_URL``, the
            profile, the region of the key). ``endpoint_url`` is DynamoDB's alone.
        sort_key_name: the sort key's attribute, text, in a table that has one: each append is an item, and the session
            has no limit of its size. None stores the session in a single item, langchain-community's way.
        fast_path: whether calls to DynamoDB are first tried on a fast path beside the SDK's client, for less than a
            third of its CPU, wherever nothing watches or replaces that client (a tracer, an event handler, a mock); see
            ``fast_path_status``. False sends all by that client.
        default: a function, as for ``json.dumps``: it takes a value that has no plain form (see ``aadd_messages``) and
            returns the value to store instead, which may hold further such values. It is called on the event loop. It
            may be called more than once for a value, and has to return the same each time. A message that holds such a
            value is refused if ``default`` is None, and if the function raises an exception.

    Raises:
        TypeError: ``boto3_session``, ``kms_key_id``, ``default`` or a value in ``key`` is of a type that is not
            accepted.
        ValueError: ``ttl`` or ``history_size`` is not a positive integer, ``kms_key_id`` is empty, or two attributes
            have one name.
        ModuleNotFoundError: ``kms_key_id`` was given, and the extra ``kms`` is not installed.
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
            endpoint_url or None, kms_endpoint_url or None, region_name, boto3_session, config, fast_path
        )
        # For what it refuses.
        cipher_type(kms_key_id)
        settings = Settings(shared_clients(options), kms_key_id, consistent_read, default)
        self._set_up(session_id, whole_key, layout, settings, index=None)
        self._coerce_float_to_decimal = coerce_float_to_decimal

    @staticmethod
    def _in_store(
        session_id: str, key: Mapping[str, KeyValue], layout: Layout, settings: Settings, index: Indexed | None
    ) -> DynamoDBChatMessageHistory:
        history = DynamoDBChatMessageHistory.__new__(DynamoDBChatMessageHistory)
        history._set_up(session_id, key, layout, settings, index)
        history._coerce_float_to_decimal = False
        return history

    def _set_up(
        self,
        session_id: str,
        key: Mapping[str, KeyValue],
        layout: Layout,
        settings: Settings,
        index: Indexed | None,
    ) -> None:
        self._session_id = session_id
        self._key = key
        self._layout = layout
        self._settings = settings
        self._index = index
        self._begin()

    def _begin(self) -> None:
        """Make from the settings what a handle knows of its session."""
        opened = open_session(self._settings, self._layout, self._key, LANGCHAIN, self._index)
        self._session: Session[BaseMessage] = opened.session
        self._indexed = opened.indexed
        self._lifetime = Lifetime()
        clients = self._settings.clients
        if clients.shared:
            clients.users.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, and what a subclass has added: a copy is another handle on the same session."""
        return {name: value for name, value in vars(self).items() if name not in _MADE_ANEW}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @property
    def table_name(self) -> str:
        """The table's name."""
        return self._layout.table_name

    @property
    def session_id(self) -> str:
        """The session's id, as given."""
        return self._session_id

    @property
    def key(self) -> dict[str, KeyValue]:
        """The whole primary key, ids joined: a copy."""
        return dict(self._key)

    @property
    def sort_key_name(self) -> str | None:
        """The sort key's attribute, None where the session is stored in a single item."""
        return None if isinstance(self._layout, SingleItem) else self._layout.sort_key_name

    @property
    def kms_key_id(self) -> str | None:
        """The KMS key that messages are encrypted under, as given, None where they are stored in the clear."""
        return self._settings.kms_key_id

    @property
    def encryption_context(self) -> dict[str, str] | None:
        """The encryption context of the session's messages, which KMS's policies and CloudTrail see: a copy.

        ``table`` is the table's name, ``key`` the names of the key attributes and ``session`` a SHA-256 digest of their
        values. None without ``kms_key_id``.
        """
        cipher = self._session.access.cipher
        return None if cipher is None else dict(cipher.context)

    @property
    def ttl(self) -> int | None:
        """Seconds from the last append until the session expires, None where this handle sets no expiry time."""
        return self._layout.ttl

    @property
    def ttl_key_name(self) -> str:
        """The attribute of the expiry time."""
        return self._layout.expiry_name

    @property
    def history_size(self) -> int | None:
        """How many messages are kept, None for all."""
        return self._layout.history_size

    @property
    def history_messages_key(self) -> str:
        """The attribute of the messages."""
        return self._layout.messages_name

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

    @property
    def coerce_float_to_decimal(self) -> bool:
        """What was given; it changes nothing."""
        return self._coerce_float_to_decimal

    async def aget_messages(
        self, *, limit: int | None = None, up_to: str | None = None, start_on: Literal["human"] | None = None
    ) -> list[BaseMessage]:
        """Return the session's messages, oldest first; an empty list where there is no session or it has expired.

        From a single item with one ``GetItem``. From an item collection with one ``Query`` for each megabyte, and for
        the latest messages, by ``limit`` or ``history_size``, without reading the others. With ``kms_key_id`` a
        ``Decrypt`` of KMS follows for each data key that was not in use within the last five minutes. Long histories
        are opened and decoded in slices, between which the event loop runs.

        Args:
            limit: how many messages, the latest ones; None for all that ``history_size`` keeps.
            up_to: an id: only messages up to that one, and that one; with ``limit``, the latest of these. Needs an item
                collection.
            start_on: "human" leaves out the messages before the first human message, as ``trim_messages`` does: model
                providers reject, for example, a tool message whose call is cut off. If there is no human message,
                the list is empty.

        Raises:
            ValueError: ``limit`` is not a positive integer, ``up_to`` is not an id, or ``start_on`` is another value.
            LayoutError: ``up_to`` was given, and the session is stored in a single item.
            FormatError: the session holds JSON values of another framework; the text says which call reads them.
            UndecodableItemError: something stored is not a message that this langchain-core knows. In an item
                collection ``error.message_id`` is its id, by which ``adelete_messages`` removes it, and ``apage`` reads
                what is before it.
            DecryptionError, EncryptionContextError: an encrypted message is not as it was encrypted for its place.
            ConfigurationError: a message is encrypted, and there is no ``kms_key_id``.
            KmsKeyError: a KMS key does not exist, is disabled, or is not for encryption.
            WriteConflictError: others changed a record of over 390 KB during each of 50 reads of it.
            TableNotFoundError, KeySchemaError, AccessDeniedError, ConfigurationError, ThrottledError, EndpointError,
                ServiceError, ClosedError: see ``errors``.
        """
        if start_on not in (None, "human"):
            raise ValueError(f"start_on must be 'human' or None, not {start_on!r}")
        messages = await self._open_session().read(limit, up_to=up_to)
        return messages if start_on is None else _from_a_human_message(messages)

    def aiter(self) -> AsyncGenerator[BaseMessage, None]:
        """Return an iterator over the session's messages, oldest first, that holds one page of them at a time.

        ``async for message in history.aiter()``. Whoever stops early leaves nothing behind. What is appended meanwhile
        is met too. With ``history_size``, and from a single item, all messages are one page.

        Raises:
            ClosedError: the handle is closed. The iterator raises what ``aget_messages`` does.
        """
        return self._open_session().stream()

    async def apage(self, limit: int = 50, before: str | None = None) -> Page:
        """Return some of the latest messages with their ids, oldest first, or of those before a cursor.

        For scrolling back: ask for a page, then for the page before its ``cursor``, until that is None. A page stays
        the same however much is appended. Needs an item collection.

        Args:
            limit: how many messages at most, 50 by default.
            before: the cursor of a page, or a message's id: only what comes before it.

        Raises:
            ValueError: ``limit`` is not a positive integer, or ``before`` is not a cursor.
            LayoutError: the session is stored in a single item.
            FormatError, UndecodableItemError, DecryptionError, EncryptionContextError, ConfigurationError, KmsKeyError,
                WriteConflictError, TableNotFoundError, KeySchemaError, AccessDeniedError, ThrottledError,
                EndpointError, ServiceError, ClosedError: as for ``aget_messages``.
        """
        page = await self._open_session().page(limit, before)
        return Page([StoredMessage(one.id, one.value, one.created_at) for one in page.values], page.cursor)

    async def aadd_messages(self, messages: Sequence[BaseMessage], *, idempotency_key: str | None = None) -> None:
        """Append messages, all or none of them, contiguous and in order; exactly once, however often it is retried.

        In a single item, one ``UpdateItem`` that does not read. A second write follows where the first finds that the
        session has expired; that it outgrew ``history_size`` unseen by this handle; that it has had over 255 writes and
        this handle has neither read nor written it; and at about every 126th write of a long session.

        In an item collection, the batch is one record of any number of messages: one ``PutItem``, or where the record
        is above 390 KB after compression one ``TransactWriteItems``. With ``history_size``, now and then a ``Query``
        and ``BatchWriteItem`` follow. Before the first append of a process, if nothing was read before, an eventually
        consistent ``GetItem`` finds out if the table has the sort key. Where the credentials do not allow it, the
        append goes on without.

        In a single item one case is left where a batch is stored twice: AWS receives a request only after its retry was
        answered and ``aclear`` has deleted the session, and the batch was the first one of a handle that had seen no
        messages of the session. An item collection has no such case.

        An empty sequence writes nothing. If the call is cancelled, or fails with ``EndpointError``, ``ServiceError``,
        ``ThrottledError`` or ``WriteOutcomeUnknownError``, the batch may have been stored, and then whole.

        Long batches are converted in slices, between which the event loop runs. One message is one step, and so is the
        SDK's own serialisation of the request.

        In a store with a session index, a ``TransactWriteItems`` that writes the session's item as well. A second one
        follows where the first finds that the session expires or was active later than these messages: where clocks or
        ``ttl`` of its writers differ, or several write at once. The first append of a store queries the index once.

        With ``idempotency_key``, the same key on the same session is stored once, whoever sends it, from whatever
        process. A second call with the same key and batch returns without writing. An item collection keeps the key for
        the store's ``idempotency_seconds``, a day by default, in an item of its own that the same
        ``TransactWriteItems`` writes; ``aclear`` does not forget it, ``delete_session`` does. A single item keeps it in
        the item: for at least the next 63 appends with a key or 127 without, and until ``aclear`` or the session's
        expiry. Of the key and the batch digests are stored. Batches are the same if their JSON texts are: dicts in
        another order are another batch.

        What is stored of a message is what LangChain's ``message_to_dict`` has, and its dump comes back: text, numbers,
        bytes and sets exactly, NaN and infinities too. Tuples come back as lists, a ``Decimal`` as an int or a float,
        the names of a dict as text, and an object as pydantic dumps it: models and dataclasses as dicts, an ``Enum`` as
        its value, dates, UUIDs and paths as text, numpy's scalars and arrays as numbers and lists. A message of a
        subclass comes back as the class of LangChain's that its ``type`` names. What has no such form is given to
        ``default``. In a single item without ``kms_key_id`` text with surrogates comes back without them where
        LangChain takes text alone, such as in ``content``: a pair as its character, others as U+FFFD. In a single item
        floats that are whole come back as ints.

        A message that cannot be stored is also logged at ERROR by the logger ``chathistory_async``, without content,
        because ``RunnableWithMessageHistory`` swallows the exception.

        With ``kms_key_id``, a ``GenerateDataKey`` of KMS comes before, unless the session has a data key in use: one
        serves for five minutes, 1,000 messages or 64 MB. An error that names this operation has written nothing.

        Args:
            messages: the messages.
            idempotency_key: text of 1 to 256 characters, such as a request's ``Idempotency-Key``; None for none.

        Raises:
            TypeError: a message was given instead of a sequence, or the key is not text.
            ValueError: the key is empty or too long.
            IdempotencyKeyReusedError: the key was used with other messages. Nothing was written.
            FormatError: the session index knows the session as one of JSON values. Nothing was written.
            KmsKeyError: the KMS key does not exist, is disabled, or is not for encryption. Nothing was written.
            MessageNotStorableError: a value has no plain form, or langchain-core would not read the message's dump
                back. Nothing was written; the text names the path to the value.
            ItemTooLargeError: the session would outgrow 400 KB in its single item, or the batch 4 MB after compression
                in an item collection. Nothing was written.
            WriteConflictError: other writers were always faster. Nothing was written.
            WriteOutcomeUnknownError: see there.
            UndecodableItemError: in a single item, the attribute of the messages is not a list, or that of our own is
                damaged. In an item collection, a record was read whose id claims a time over a century ahead, behind
                which nothing can come. Nothing was written. ``adelete_messages([error.message_id])`` deletes it.
            KeySchemaError: the table has other key attributes. Nothing was written.
            TableNotFoundError, AccessDeniedError, ConfigurationError, ThrottledError, EndpointError,
                ServiceError, ClosedError: see ``errors``.
        """
        check_sequence(messages, "aadd_messages", "message")
        await self._open_session().append(messages, idempotency_key)

    async def adelete_messages(self, ids: Iterable[str]) -> None:
        """Remove messages by their ids. Ids of messages that are not there, or not any more, are passed over.

        For each record that the messages are in, a ``GetItem`` and a ``PutItem`` that writes the record without them,
        or an ``UpdateItem`` where none is left; several records at once. A ``TransactWriteItems`` where the record is
        above 390 KB, and with a session index, where one record follows another. Where it fails halfway, some of the
        messages are removed, and it can be called again. Needs an item collection.

        Args:
            ids: the ids that ``apage`` returns, or an error's ``message_id``, which may be that of a whole record.

        Raises:
            ValueError: one is not an id.
            TypeError: an id was given instead of an iterable.
            LayoutError: the session is stored in a single item.
            FormatError, UndecodableItemError, DecryptionError, EncryptionContextError, KmsKeyError: as for
                ``aget_messages``, where other messages stay in a record. Where it cannot be read, its own id removes
                all of it.
            ItemTooLargeError: from one record over 10,000 single messages are removed, each beside one that stays.
            WriteConflictError, WriteOutcomeUnknownError, TableNotFoundError, KeySchemaError, AccessDeniedError,
                ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see ``errors``.
        """
        check_ids(ids, "adelete_messages")
        await self._open_session().remove(ids)

    async def areplace_message(self, message_id: str, message: BaseMessage) -> None:
        """Put another message into the place of one, whole or not at all: its id and its place stay.

        A ``GetItem`` and a ``PutItem`` of the message's record, or a ``TransactWriteItems`` where that is above 390 KB.
        Of two that replace at once the later one stays. The record's time to live begins anew if this handle has a
        ``ttl``, and never ends earlier than before. Needs an item collection. With ``kms_key_id`` the new message is
        bound to the same place, as the old one was: who may write to the table can put the old one back.

        Args:
            message_id: the id that ``apage`` returns.
            message: the message.

        Raises:
            ValueError: it is not an id.
            MessageNotFoundError: there is no such message, or not any more.
            MessageNotStorableError: the new message cannot be stored, as for ``aadd_messages``.
            ItemTooLargeError: the record with the new message is larger than 4 MB.
            WriteConflictError: other writers were always faster.
            WriteOutcomeUnknownError: they were, and an answer was lost. The message may have been replaced.
            LayoutError: the session is stored in a single item.
            FormatError, UndecodableItemError, DecryptionError, EncryptionContextError: the record that the message is
                in cannot be read, as for ``aget_messages``. Nothing was written.
            KmsKeyError, TableNotFoundError, KeySchemaError, AccessDeniedError, ConfigurationError, ThrottledError,
                EndpointError, ServiceError, ClosedError: see ``errors``.
        """
        await self._open_session().replace(message_id, message)

    async def apop_message(self) -> BaseMessage | None:
        """Remove the latest message and return it, or return None where there is none.

        However many do so at once, each message is returned to one of them. A ``Query`` and an ``UpdateItem``, or a
        ``PutItem`` where other messages are left in the record; with a session index a ``TransactWriteItems``.
        Both again where others took the message off first, after a random pause that grows with each time. Where an
        answer is lost beyond the last retry, the message may have been removed. Needs an item collection.

        Raises:
            WriteConflictError: others were always faster. Nothing was removed.
            WriteOutcomeUnknownError: they were, and an answer was lost. The message may have been removed.
            LayoutError: the session is stored in a single item.
            FormatError, UndecodableItemError, DecryptionError, EncryptionContextError, ConfigurationError, KmsKeyError,
                TableNotFoundError, KeySchemaError, AccessDeniedError, ThrottledError, EndpointError, ServiceError,
                ClosedError: as for ``aget_messages``. Nothing was removed that could not be read.
        """
        for message in await self._open_session().pop():
            return message
        return None

    async def acopy_to(
        self, session_id: str, *, key: Key | None = None, up_to: str | None = None
    ) -> DynamoDBChatMessageHistory:
        """Append this session's messages to another one of the same table, to branch off, and return its handle.

        As one batch, up to 4 MB after compression; a second call appends them again. The copies have ids and times of
        their own. The messages are all in memory meanwhile. The handle has the class of this one, and its attributes.
        Needs an item collection.

        With a session index, the new session has the owner that this handle names, or else the owner of this session,
        which takes a ``GetItem``.

        Args:
            session_id: the value of the other session's partition key.
            key: the other session's partition key instead, as for the constructor; required of a handle that was made
                with ``key``.
            up_to: the id of the last message to copy, None for all. Where it is gone, all before it are copied.

        Raises:
            ValueError: ``up_to`` is not an id, the other session is this one, or ``key`` is required, or it is not the
                tuple that the store's ``key_parts`` requires.
            LayoutError: the session is stored in a single item.
            ItemTooLargeError: together they do not fit into one transaction. Nothing was copied.
            ChatHistoryError: what ``aget_messages`` and ``aadd_messages`` raise.
        """
        session = self._open_session()
        other = await self._sibling(session_id, key)
        await session.copy_to(other._session, up_to)
        return other

    async def aclear(self) -> None:
        """Delete the session's messages; in a single item, with all attributes that others have put there.

        A retry never deletes what was added after it. In a single item, a ``GetItem`` and, where there is an item, a
        ``DeleteItem``. In an item collection, a ``Query`` for each megabyte and a ``BatchWriteItem`` for each 25
        records; where it fails halfway, some are left, and it can be called again. What is younger than half an hour
        leaves an empty item for that time, which DynamoDB's TTL deletes. With a session index, an ``UpdateItem`` for
        each megabyte says that the count does not hold meanwhile, and a ``GetItem``, a ``Query`` for each megabyte that
        is left and an ``UpdateItem`` count anew.

        In a single item, a request of ``aadd_messages`` that AWS receives after this call may store its batch again:
        see there.

        Raises:
            WriteOutcomeUnknownError: an answer was lost, and another session has begun on a key whose item
                langchain-community had created. It was left alone.
            WriteConflictError: other writers were always faster. In an item collection, some messages may have been
                deleted.
            TableNotFoundError, KeySchemaError, AccessDeniedError, ConfigurationError, ThrottledError, EndpointError,
                ServiceError, ClosedError: see ``errors``.
        """
        await self._open_session().clear()

    async def aclose(self) -> None:
        """Close this handle, and its client unless another open handle shares it. A second call does nothing.

        A handle of a store leaves the store's client open. Nobody has to call this: clients close with their loop.
        ``async with`` opens a closed handle again.
        """
        self._lifetime.closed = True
        clients = self._settings.clients
        if clients.shared:
            clients.users.discard(self)
            if not clients.users:
                await clients.aclose()

    async def __aenter__(self) -> DynamoDBChatMessageHistory:
        """Return the handle itself, opened again if it was closed."""
        self._lifetime.enter()
        if self._settings.clients.shared:
            self._settings.clients.users.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the handle, unless another ``async with`` of it is still open."""
        if self._lifetime.leave():
            await self.aclose()

    @property
    def messages(self) -> list[BaseMessage]:
        """The session's messages, as ``aget_messages`` returns them. Each access reads them."""
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
        """Return some of the latest messages with their ids, as ``apage`` does."""
        return run(self.apage, limit, before)

    def delete_messages(self, ids: Iterable[str]) -> None:
        """Remove messages by their ids, as ``adelete_messages`` does."""
        run(self.adelete_messages, ids)

    def replace_message(self, message_id: str, message: BaseMessage) -> None:
        """Put another message into the place of one, as ``areplace_message`` does."""
        run(self.areplace_message, message_id, message)

    def pop_message(self) -> BaseMessage | None:
        """Remove the latest message and return it, as ``apop_message`` does."""
        return run(self.apop_message)

    def copy_to(
        self, session_id: str, *, key: Key | None = None, up_to: str | None = None
    ) -> DynamoDBChatMessageHistory:
        """Append this session's messages to another one, as ``acopy_to`` does."""
        return run(self.acopy_to, session_id, key=key, up_to=up_to)

    def add_messages(self, messages: Sequence[BaseMessage], *, idempotency_key: str | None = None) -> None:
        """Append messages, as ``aadd_messages`` does."""
        run(self.aadd_messages, messages, idempotency_key=idempotency_key)

    def add_message(self, message: BaseMessage) -> None:
        """Append one message, as ``aadd_messages`` does."""
        run(self.aadd_messages, [message])

    def add_user_message(self, message: HumanMessage | str) -> None:
        """Append a human message, or text as one, as ``aadd_messages`` does."""
        run(self.aadd_messages, [HumanMessage(content=message) if isinstance(message, str) else message])

    def add_ai_message(self, message: AIMessage | str) -> None:
        """Append an AI message, or text as one, as ``aadd_messages`` does."""
        run(self.aadd_messages, [AIMessage(content=message) if isinstance(message, str) else message])

    def clear(self) -> None:
        """Delete the session's messages, as ``aclear`` does."""
        run(self.aclear)

    def close(self) -> None:
        """Close this handle, as ``aclose`` does, with the clients that its synchronous methods opened."""
        run(self.aclose)

    def __str__(self) -> str:
        """Return the messages as text, one ``Human: …`` or ``AI: …`` a line."""
        return get_buffer_string(self.messages)

    def __repr__(self) -> str:
        """Return the table and the session; no content."""
        return f"<{type(self).__name__} {self._session.access.ref}>"

    async def _sibling(self, session_id: str, key: Key | None) -> DynamoDBChatMessageHistory:
        """Return a handle on another session with the same settings, clients and owner."""
        if key is None:
            (name,) = list(self._key)[:1]
            if self._key != {name: self._session_id}:
                # The key may have a tenant's prefix, which the other session must not lose.
                raise ValueError("This handle was made with key: give the other session's too")
            key = {name: session_id}
        whole_key = join_key(key, self._settings.key_parts)
        if whole_key == self._key:
            raise ValueError("A session cannot be copied to itself")
        layout, index = layout_with(self._layout, encode_key(whole_key)), self._index
        if self._indexed is not None:
            index = Indexed(await self._indexed.owner())
        # A subclass keeps what it has added to itself.
        sibling = copy.copy(self)
        sibling._set_up(session_id, whole_key, layout, self._settings, index)
        return sibling

    def _open_session(self) -> Session[BaseMessage]:
        if self._lifetime.closed:
            raise ClosedError("The chat history is closed", self._session.access.ref)
        return self._session


# What a copy of a handle makes for itself.
_MADE_ANEW = {"_session", "_indexed", "_lifetime"}


def _from_a_human_message(messages: list[BaseMessage]) -> list[BaseMessage]:
    """Leave out what comes before the first human message."""
    for position, message in enumerate(messages):
        if LANGCHAIN.begins_turn(message):
            return messages[position:]
    return []
