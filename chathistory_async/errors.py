"""The exception tree. ``_aws_errors`` maps botocore's errors into it.

::

    ChatHistoryError
    ├── ConfigurationError         no credentials, region, profile or valid endpoint; other TTL settings; no kms_key_id
    ├── AccessDeniedError          the credentials are refused, or lack a permission
    ├── TableNotFoundError         no such table in this account, region and endpoint
    ├── KeySchemaError             the key does not fit the table's key schema
    ├── ThrottledError             still throttled after the last retry
    ├── EndpointError              no connection, or no answer in time, after the last retry
    ├── ServiceError               any other refusal or failure of the service
    ├── ItemTooLargeError          the session would outgrow 400 KB in its single item, or a batch 4 MB
    ├── IdempotencyKeyReusedError  the idempotency key was used to store something else
    ├── FormatError                what is stored has another format, such as JSON values and not messages
    ├── MessageNotStorableError    a value in a message that has no form to be stored in (a ValueError)
    ├── KmsKeyError                the KMS key is missing, disabled, awaiting deletion or of another use
    ├── UndecodableItemError       what is stored under the key is not a chat history
    │   └── DecryptionError        an encrypted message was changed or cut short
    │       └── EncryptionContextError  it was encrypted for another session or table, or as another value
    ├── MessageNotFoundError       there is no message of this id
    ├── SessionNotFoundError       the index has no such session
    ├── LayoutError                the operation is for the other layout, most often for a table with a sort key
    ├── WriteConflictError         too many other writers were always faster
    ├── WriteOutcomeUnknownError   an answer was lost, and it can no longer be told if the write was stored
    ├── ClosedError                the history or store was used after it was closed
    └── BridgeError                a synchronous call that could only hang or was cut short

An error of AWS or of the connection has the botocore error as its ``__cause__``. No text holds message content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionRef:
    """The table and session that a request concerns; ``str`` of it is how every error names them."""

    table_name: str
    session_key: Mapping[str, object] | None = None

    def __str__(self) -> str:
        if self.session_key is None:
            return f"table {self.table_name!r}"
        key = ", ".join(f"{name}={value!r}" for name, value in self.session_key.items())
        return f"table {self.table_name!r}, session {key}"


class ChatHistoryError(Exception):
    """The base of every error that this library raises on purpose.

    Attributes:
        table_name: the table, or None where no table was involved.
        session_key: the session's key attributes and their values, or None where no session was involved.
        message_id: the id of the stored message at fault, by which ``apage`` reads what is before it and
            ``adelete_messages`` removes it. None where it is not one message's fault, and for a single item, whose
            messages have no ids: there the text says at which position the message is.
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
    """The AWS SDK has no credentials, no region, no such profile or no valid endpoint; or the table's TTL differs.

    Or the session holds encrypted messages, and the handle has no ``kms_key_id``; or the store has no session index.
    """


class AccessDeniedError(ChatHistoryError):
    """AWS refused the credentials, or they lack a permission that the operation needs."""


class TableNotFoundError(ChatHistoryError):
    """The table does not exist in this account, region and endpoint."""


class KeySchemaError(ChatHistoryError):
    """The session's key does not fit the table's key schema: other names, other types or a missing part.

    Or the table lacks the index of the session index.
    """


class ThrottledError(ChatHistoryError):
    """AWS throttled the request, to DynamoDB or to KMS, and every retry.

    What is throttled is not stored. Where the answer to an earlier sending was lost, that one may have been.
    """


class EndpointError(ChatHistoryError):
    """The endpoint could not be reached, or did not answer in time, at the last retry.

    After an append or a clear it is not known whether the write was stored; if it was, it was stored whole. Where the
    text says that KMS's endpoint does not answer, nothing was.
    """


class ServiceError(ChatHistoryError):
    """DynamoDB or KMS refused or failed the request for a reason that has no class of its own.

    After an append or a clear that failed with an HTTP status of 500 or above it is not known whether the
    write was stored; if it was, it was stored whole. Where it was a call to KMS that failed, nothing was.
    """


class ItemTooLargeError(ChatHistoryError):
    """The session would outgrow DynamoDB's limit of 400 KB for an item. What was stored before is untouched.

    In an item collection: a batch does not fit into one transaction, for which the limit is 4 MB after compression.
    """


class IdempotencyKeyReusedError(ChatHistoryError):
    """The idempotency key was used before, in this session, to store something else. Nothing was written."""


class MessageNotStorableError(ChatHistoryError, ValueError):
    """A value in a message, or in a session's metadata, has no form to be stored in: nothing was written.

    It is an object that neither LangChain's dump nor ``default`` makes plain, it contains itself, it is nested too
    deeply, or langchain-core would not read the message's dump back. The text names the path to the value, e.g.
    ``messages[3].response_metadata.logprobs[0]``.
    """


class UndecodableItemError(ChatHistoryError):
    """What is stored under the session's key cannot be read as messages. Nothing is skipped in silence.

    In an item collection ``message_id`` is the id of the message that cannot be read, or of the record where the record
    as a whole cannot be. ``adelete_messages`` removes either.
    """


class FormatError(ChatHistoryError):
    """What is stored has another format than what it is read as, such as JSON values read as LangChain's messages.

    The text names both formats, and the call that reads what is stored. Or a session index knows that the session has
    values of another format than those that were to be appended: then nothing was written.
    """


class DecryptionError(UndecodableItemError):
    """An encrypted message was changed or cut short, or has another format. The read returns no message at all."""


class EncryptionContextError(DecryptionError):
    """An encrypted value was copied here from another session or table, or the table has been given another name.

    Or it was moved within its session: a title into a message, a message to another sort key. The text says what the
    value was encrypted as.
    """


class KmsKeyError(ChatHistoryError):
    """The KMS key of ``kms_key_id``, or of a stored message, does not exist, is disabled or is not for encryption.

    An append that fails so has written nothing.
    """


class MessageNotFoundError(ChatHistoryError):
    """There is no message of this id in the session: it never was, or was removed, or has expired."""


class SessionNotFoundError(ChatHistoryError):
    """The session index has no such session: it never was, or was deleted, or has expired."""


class LayoutError(ChatHistoryError):
    """The session is stored in a single item, which cannot do this: it needs a table with a sort key.

    Or a migration was asked for that does not lead from single items into an item collection.
    """


class WriteConflictError(ChatHistoryError):
    """Other writers changed the session before every attempt of this call.

    Nothing was written, unless the method says otherwise. Of a read: a record of several parts was replaced during each
    of 50 reads.
    """


class WriteOutcomeUnknownError(ChatHistoryError):
    """An earlier sending, whose answer was lost, may have succeeded: no trace of it is there, or not any more.

    A batch was stored once, whole, or not at all; a session was cleared, or not.
    """


class ClosedError(ChatHistoryError):
    """The history or the store was used after it was closed."""


class BridgeError(ChatHistoryError):
    """A synchronous method was called where it could only hang, or its call was cut short."""


def write_conflict(text: str, ref: SessionRef, *, maybe_stored: bool) -> WriteConflictError | WriteOutcomeUnknownError:
    """Return the error of a write that others were in the way of, though an earlier sending may have been stored."""
    if not maybe_stored:
        return WriteConflictError(text, ref)
    advice = "the response to an earlier attempt was lost: read the session before you try again"
    return WriteOutcomeUnknownError(f"{text}, and {advice}", ref)


def wrong_key(reason: str, ref: SessionRef) -> KeySchemaError:
    """Return the error for a key that does not fit the table."""
    advice = 'check primary_key_name, key and sort_key_name (or layout="single_item"), and the types of their values'
    return KeySchemaError(f"The session's key does not fit the table ({reason}): {advice}", ref)
