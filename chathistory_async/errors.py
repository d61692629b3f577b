"""The exception tree. ``_aws.errors`` maps botocore's errors into it.

::

    ChatHistoryError
    ├── ConfigurationError         no credentials, region, profile or valid endpoint; other TTL settings; no kms_key_id
    ├── AccessDeniedError          AWS refused the credentials, or they lack a permission
    ├── TableNotFoundError         no such table in this account, region and endpoint
    ├── KeySchemaError             the key does not fit the table's key schema
    ├── ThrottledError             still throttled after the last retry
    ├── EndpointError              no connection, or no response in time, after the last retry
    ├── ServiceError               any other refusal or failure of DynamoDB or KMS
    ├── ItemTooLargeError          the session would outgrow 400 KB in its single item, or a batch 4 MB
    ├── IdempotencyKeyReusedError  the idempotency key was used with a different batch
    ├── FormatError                the session has a different format, such as JSON values instead of messages
    ├── MessageNotStorableError    a value in a message has no form that can be stored (also a ValueError)
    ├── KmsKeyError                the KMS key is missing, disabled, awaiting deletion or not for encryption
    ├── UndecodableItemError       the item that is stored under the key is not a chat history
    │   └── DecryptionError        an encrypted message was changed or cut short
    │       └── EncryptionContextError  a value was encrypted for a different session or table, or as a different value
    ├── MessageNotFoundError       there is no message with this id
    ├── SessionNotFoundError       the session is not in the index
    ├── LayoutError                the operation needs the other layout, usually a table with a sort key
    ├── WriteConflictError         other writers were faster in every attempt
    ├── WriteOutcomeUnknownError   a response was lost, and the library cannot tell whether the write was stored
    ├── ClosedError                the history or store was used after it was closed
    └── BridgeError                a synchronous call would have blocked forever, or was interrupted

An error of AWS or of the connection has the botocore error as its ``__cause__``. No error text holds message content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionRef:
    """The table and the session that a request concerns. Every error names them as ``str`` of this object."""

    table_name: str
    session_key: Mapping[str, object] | None = None

    def __str__(self) -> str:
        if self.session_key is None:
            return f"table {self.table_name!r}"
        key = ", ".join(f"{name}={value!r}" for name, value in self.session_key.items())
        return f"table {self.table_name!r}, session {key}"


class ChatHistoryError(Exception):
    """The base class of all errors that this library raises on purpose.

    Attributes:
        table_name: the table, or None if the error concerns no table.
        session_key: the session's key attributes and their values, or None if the error concerns no session.
        message_id: the id of the stored message that caused the error. ``apage`` reads the messages before it, and
            ``adelete_messages`` removes it. None if no single message caused the error, and for a single item, whose
            messages have no ids; the error text then names the message's position.
    """

    def __init__(self, message: str, ref: SessionRef | None = None, message_id: str | None = None) -> None:
        super().__init__(f"{message} [{ref}]" if ref else message)
        self.table_name = ref.table_name if ref else None
        self.session_key = dict(ref.session_key) if ref and ref.session_key else None
        self.message_id = message_id

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[ChatHistoryError], args: tuple[str], state: dict[str, object]) -> ChatHistoryError:
    error = kind(*args)
    error.__dict__.update(state)
    return error


class ConfigurationError(ChatHistoryError):
    """The configuration of the AWS SDK, of the table or of this library is incomplete or wrong.

    The AWS SDK has no credentials, no region, no such profile or no valid endpoint; the table's TTL is on a different
    attribute; the session holds encrypted messages and the handle has no ``kms_key_id``; or the store has no session
    index.
    """


class AccessDeniedError(ChatHistoryError):
    """AWS refused the credentials, or they lack a permission that the operation needs."""


class TableNotFoundError(ChatHistoryError):
    """The table does not exist in this account, region and endpoint."""


class KeySchemaError(ChatHistoryError):
    """The session's key does not fit the table's key schema: other names, other types or a missing part.

    Also raised if the table lacks the index of ``session_index``.
    """


class ThrottledError(ChatHistoryError):
    """AWS throttled a request to DynamoDB or KMS, and all of its retries.

    A throttled request is not stored. But if the response to an earlier attempt was lost, that attempt may have been
    stored.
    """


class EndpointError(ChatHistoryError):
    """The endpoint could not be reached, or did not respond in time, at the last retry.

    After an append or a clear, the write may or may not have been stored; if it was stored, it was stored whole. If the
    text says that KMS's endpoint does not answer, nothing was stored.
    """


class ServiceError(ChatHistoryError):
    """DynamoDB or KMS refused or failed the request for a reason that has no class of its own.

    If an append or a clear failed with an HTTP status of 500 or above, the write may or may not have been stored; if it
    was stored, it was stored whole. If a call to KMS failed, nothing was stored.
    """


class ItemTooLargeError(ChatHistoryError):
    """The session would outgrow DynamoDB's limit of 400 KB for an item. The stored messages are unchanged.

    In an item collection: the batch does not fit into one transaction, which is limited to 4 MB after compression.
    """


class IdempotencyKeyReusedError(ChatHistoryError):
    """The idempotency key was used before in this session, with a different batch. Nothing was written."""


class MessageNotStorableError(ChatHistoryError, ValueError):
    """A value in a message, or in a session's metadata, has no form that can be stored. Nothing was written.

    The value is an object for which neither LangChain's dump nor ``default`` has a plain form, it contains itself, it
    is nested too deeply, or langchain-core would not read the message's dump back. The text names the path to the
    value, e.g. ``messages[3].response_metadata.logprobs[0]``.
    """


class UndecodableItemError(ChatHistoryError):
    """The item that is stored under the session's key cannot be read as messages. A read never skips such an item.

    In an item collection, ``message_id`` is the id of the message that cannot be read, or the id of the record if the
    whole record cannot be read. ``adelete_messages`` removes either.
    """


class FormatError(ChatHistoryError):
    """The session has a different format than the reader expects, such as JSON values instead of LangChain's messages.

    The text names both formats, and the call that reads the session. An append raises this error if the session index
    has a different format for the session; then nothing was written.
    """


class DecryptionError(UndecodableItemError):
    """An encrypted message was changed or cut short, or has a different format. The read returns no message at all."""


class EncryptionContextError(DecryptionError):
    """An encrypted value was copied here from a different session or table, or the table was given a different name.

    Also raised if a value was moved within its session: a title into a message, or a message to a different sort key.
    The text says what the value was encrypted as.
    """


class KmsKeyError(ChatHistoryError):
    """The KMS key of ``kms_key_id``, or of a stored message, does not exist, is disabled or is not for encryption.

    If an append raises this error, nothing was written.
    """


class MessageNotFoundError(ChatHistoryError):
    """The session has no message with this id: it never existed, was removed, or has expired."""


class SessionNotFoundError(ChatHistoryError):
    """The session index has no such session: it never existed, was deleted, or has expired."""


class LayoutError(ChatHistoryError):
    """The session is stored in a single item, and the operation needs a table with a sort key.

    Also raised for a migration whose source is not of single items or whose target is not an item collection.
    """


class WriteConflictError(ChatHistoryError):
    """Other writers changed the session before every attempt of this call.

    Nothing was written, unless the method says otherwise. A read raises this error if other writers replaced a record
    of several parts during each of 50 reads of that record.
    """


class WriteOutcomeUnknownError(ChatHistoryError):
    """A response was lost, and the library cannot tell whether the write was stored. Read before you retry.

    The write of an earlier attempt may have succeeded, but the session shows no trace of it, or no longer does. A batch
    was stored once and whole, or not at all. A session was cleared, or not.
    """


class ClosedError(ChatHistoryError):
    """The history or the store was used after it was closed."""


class BridgeError(ChatHistoryError):
    """A synchronous method was called in a place where it would have blocked forever, or its call was interrupted."""


def write_conflict(text: str, ref: SessionRef, *, maybe_stored: bool) -> WriteConflictError | WriteOutcomeUnknownError:
    """Return the error of a write that lost to other writers; with ``maybe_stored``, an attempt may be stored."""
    if not maybe_stored:
        return WriteConflictError(text, ref)
    advice = "the response to an earlier attempt was lost: read the session before you try again"
    return WriteOutcomeUnknownError(f"{text}, and {advice}", ref)


def wrong_key(reason: str, ref: SessionRef) -> KeySchemaError:
    """Return the error for a key that does not fit the table."""
    advice = 'check primary_key_name, key and sort_key_name (or layout="single_item"), and the types of their values'
    return KeySchemaError(f"The session's key does not fit the table ({reason}): {advice}", ref)
