"""The exception tree, and the one place that maps botocore's errors into it.

::

    ChatHistoryError
    ├── ConfigurationError         no credentials, region, profile or valid endpoint; other TTL settings; no kms_key_id
    ├── AccessDeniedError          the credentials are refused, or lack a permission
    ├── TableNotFoundError         no such table in this account, region and endpoint
    ├── KeySchemaError             the key does not fit the table's key schema
    ├── ThrottledError             still throttled after the last retry
    ├── EndpointError              no connection, or no answer in time, after the last retry
    ├── ServiceError               any other refusal or failure of the service
    ├── ItemTooLargeError          the session would outgrow 400 KB in its single item, or a message 4 MB
    ├── PartiallyStoredError       a batch of several transactions was stored in part
    ├── MessageNotStorableError    a value in a message that has no form to be stored in (a ValueError)
    ├── KmsKeyError                the KMS key is missing, disabled, awaiting deletion or of another use
    ├── UndecodableItemError       what is stored under the key is not a chat history
    │   └── DecryptionError        a sealed message was changed or cut short
    │       └── EncryptionContextError  it was sealed for another session or table, or as another value
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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from botocore import exceptions as botocore_exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from ._redaction import without_values


@dataclass(frozen=True)
class Place:
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

    def __init__(self, message: str, place: Place | None = None, message_id: str | None = None) -> None:
        super().__init__(f"{message} [{place}]" if place else message)
        self.table_name = place.table_name if place else None
        self.session_key = dict(place.session_key) if place and place.session_key else None
        self.message_id = message_id

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[ChatHistoryError], args: tuple[str], state: dict[str, object]) -> ChatHistoryError:
    error = kind(*args)
    error.__dict__.update(state)
    return error


class ConfigurationError(ChatHistoryError):
    """The AWS SDK has no credentials, no region, no such profile or no valid endpoint; or the table's TTL differs.

    Or the session holds sealed messages, and the handle has no ``kms_key_id``; or the store has no session index.
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

    In an item collection: a message does not fit into a transaction, for which the limit is 4 MB.
    """


class PartiallyStoredError(ChatHistoryError):
    """A batch that does not fit into one transaction failed after some of its transactions; the cause says why.

    Attributes:
        stored_count: how many messages, from the first one of the batch on, need not be stored any more. Where the
            cause leaves open whether a write was stored, some that follow may be stored as well: read before you go on.
    """

    def __init__(self, message: str, place: Place | None = None, stored_count: int = 0) -> None:
        super().__init__(message, place)
        self.stored_count = stored_count


class MessageNotStorableError(ChatHistoryError, ValueError):
    """A value in a message, or in a session's metadata, has no form to be stored in: nothing was written.

    It is an object that neither LangChain's dump nor ``default`` makes plain, it contains itself, it is nested too
    deeply, or langchain-core would not read the message's dump back. The text names the path to the value, e.g.
    ``messages[3].response_metadata.logprobs[0]``.
    """


class UndecodableItemError(ChatHistoryError):
    """What is stored under the session's key cannot be read as messages. Nothing is skipped in silence.

    In an item collection ``message_id`` is the id of the message that cannot be read. ``adelete_messages`` removes it.
    """


class DecryptionError(UndecodableItemError):
    """A sealed message was changed or cut short, or is in another format. No message is returned, this or another."""


class EncryptionContextError(DecryptionError):
    """A sealed value was copied here from another session or table, or the table has been given another name.

    Or it was moved within its session: a title into a message, a message to another sort key. The text says what the
    value was sealed as.
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
    """Other writers changed the session before every attempt of this write. Nothing was written."""


class WriteOutcomeUnknownError(ChatHistoryError):
    """An earlier sending, whose answer was lost, may have succeeded: no trace of it is there, or not any more.

    A batch was stored once, whole, or not at all; a session was cleared, or not.
    """


class ClosedError(ChatHistoryError):
    """The history or the store was used after it was closed."""


class BridgeError(ChatHistoryError):
    """A synchronous method was called where it could only hang, or its call was cut short."""


def from_botocore(
    error: ClientError | BotoCoreError | ResponseParserError | ValueError,
    place: Place,
    service: str = "dynamodb",
    parameters: Mapping[str, object] | None = None,
) -> ChatHistoryError:
    """Return our error for one of botocore's; the caller raises it ``from`` that one.

    Args:
        error: botocore's error.
        place: what the request concerned.
        service: the service that was called.
        parameters: those of the request, of which the error quotes no value.
    """
    parameters = parameters or {}
    name, _ = _SERVICES[service]
    if isinstance(error, ClientError):
        if service == "kms":
            key_id = parameters.get("KeyId")
            return _from_kms_error(error, place, key_id if isinstance(key_id, str) else None)
        reason = without_values(_code_and_text(error)[1], parameters)
        return _from_dynamodb_error(error, place, reason) or _from_client_error(error, place, _DYNAMODB_ADVICE, reason)
    if isinstance(error, _UNREACHABLE):
        return EndpointError(f"{name}'s endpoint does not answer: {error}", place)
    if isinstance(error, _SSO):
        return ConfigurationError(f"No usable AWS credentials: {error}; log in with aws sso login", place)
    if isinstance(error, _CREDENTIALS):
        advice = "give a boto3_session, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return ConfigurationError(f"No usable AWS credentials: {error}; {advice}", place)
    if isinstance(error, botocore_exceptions.NoRegionError):
        return ConfigurationError("No AWS region: give region_name, or set AWS_DEFAULT_REGION", place)
    if isinstance(error, ResponseParserError):
        return not_an_answer(place, service)
    return ConfigurationError(f"The AWS SDK cannot use its configuration: {error}", place)


def not_an_answer(place: Place, service: str = "dynamodb") -> ServiceError:
    """Return the error for what cannot be an answer of a service."""
    name, endpoint = _SERVICES[service]
    return ServiceError(f"What answered is not {name}, or not in its form: check {endpoint}", place)


_SERVICES = {"dynamodb": ("DynamoDB", "endpoint_url"), "kms": ("KMS", "kms_endpoint_url")}
_UNREACHABLE = (botocore_exceptions.HTTPClientError, botocore_exceptions.ConnectionError)
_CREDENTIALS = (
    botocore_exceptions.NoCredentialsError,
    botocore_exceptions.PartialCredentialsError,
    botocore_exceptions.CredentialRetrievalError,
)
# The login of IAM Identity Center has expired, or never was.
_SSO = (botocore_exceptions.SSOError, botocore_exceptions.TokenRetrievalError)
_DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "IncompleteSignatureException",
    "MissingAuthenticationTokenException",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidIdentityToken",
    "SignatureDoesNotMatch",
    "InvalidClientTokenId",
    "NotAuthorized",
}
_THROTTLED = {
    "ProvisionedThroughputExceededException",
    "Throttling",
    "ThrottledException",
    "ThrottlingException",
    "RequestLimitExceeded",
    "LimitExceededException",
}
# DynamoDB has one code, ValidationException, for all of these: only its English text tells them apart. The texts
# are those of AWS, of DynamoDB Local (LocalStack's engine) and of moto.
_KEY_SCHEMA_TEXTS = (
    "key element does not match the schema",
    "required keys was not given a value",
    "number of conditions on the keys is invalid",
    "Type mismatch for key",
    "Missing the key",
    "key attribute cannot contain an empty",
    "Size of hashkey",
    "Size of rangekey",
    "primary key values must be under",
    # Its items have keys of their own, unless the table has no sort key.
    "cannot include multiple operations on one item",
    "Query key condition not supported",
    "Query condition missed key schema element",
    "Condition parameter type does not match schema type",
    # All that moto says of a key without the table's sort key, and of nothing else.
    "Validation Exception",
)
_NO_INDEX_TEXTS = ("does not have the specified index", "Index not found", "Invalid index")
_ITEM_SIZE_TEXTS = ("Item size has exceeded", "Item size to update has exceeded")


# https://docs.aws.amazon.com/kms/latest/APIReference/API_GenerateDataKey.html#API_GenerateDataKey_Errors
_KMS_KEY = {
    "NotFoundException",
    "DisabledException",
    "KMSInvalidStateException",
    "KeyUnavailableException",
    "InvalidKeyUsageException",
    "InvalidArnException",
    "ValidationException",
}
_KMS_SEALED = {"InvalidCiphertextException", "IncorrectKeyException"}


def _code_and_text(error: ClientError) -> tuple[str, str]:
    return error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")


def aws_error_of(error: ChatHistoryError) -> tuple[str, str]:
    """Return the operation and the code of the AWS error that caused one of ours, both empty where there is none."""
    cause = error.__cause__
    return (cause.operation_name, _code_and_text(cause)[0]) if isinstance(cause, ClientError) else ("", "")


class _Advice(NamedTuple):
    """What to do where the credentials are refused, and where a request is throttled."""

    denied: str
    throttled: str


_DYNAMODB_ADVICE = _Advice("check the credentials and their policy", "raise the table's capacity")
_KMS_ADVICE = _Advice(
    "check the credentials, their policy and the key's, and that kms_endpoint_url is where you mean it to be",
    "raise KMS's quota",
)


def _from_client_error(
    error: ClientError, place: Place, advice: _Advice, reason: str = "", with_what: str = ""
) -> ChatHistoryError:
    code, _ = _code_and_text(error)
    operation = error.operation_name + with_what
    if code in _DENIED:
        return AccessDeniedError(f"AWS refused {operation} ({code}): {advice.denied}", place)
    if code in _THROTTLED:
        text = f"AWS throttled {operation} and every retry ({code}): {advice.throttled}, or the retries in config"
        return ThrottledError(text, place)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    said = f"{code}: {reason}" if code == "ValidationException" and reason else code
    return ServiceError(f"AWS failed {operation} with HTTP status {status} ({said})", place)


def _from_dynamodb_error(error: ClientError, place: Place, reason: str) -> ChatHistoryError | None:
    code, text = _code_and_text(error)
    if _matches(text, _NO_INDEX_TEXTS):
        advice = "ChatHistoryStore.create_table() adds it and waits until it can be read"
        return KeySchemaError(f"The table has no session index: {advice}", place)
    if code == "ResourceNotFoundException":
        advice = "check the name, region and endpoint, or create it with ChatHistoryStore.create_table()"
        return TableNotFoundError(f"The table does not exist: {advice}", place)
    if code == "ValidationException" and _matches(text, _KEY_SCHEMA_TEXTS):
        return wrong_key(reason, place)
    if code == "ValidationException" and _matches(text, _ITEM_SIZE_TEXTS):
        return ItemTooLargeError("The session would outgrow DynamoDB's 400 KB for an item", place)
    return None


def _from_kms_error(error: ClientError, place: Place, key_id: str | None) -> ChatHistoryError:
    code, text = _code_and_text(error)
    stored = error.operation_name == "Decrypt"
    if code in _KMS_KEY:
        whose = "under which stored messages were sealed" if stored else "of kms_key_id"
        return KmsKeyError(
            f"KMS cannot use the key {key_id}, {whose} ({code}: {text}): check its name, region and state, and that"
            " kms_endpoint_url is where you mean it to be",
            place,
        )
    if code in _KMS_SEALED:
        return DecryptionError(
            f"KMS does not open the data key of a stored message with {key_id} ({code}): it was changed, or is of"
            " another session",
            place,
        )
    return _from_client_error(error, place, _KMS_ADVICE, with_what=f" with the key {key_id}" if key_id else "")


def from_cancelled_transaction(
    reasons: Iterable[Mapping[str, object]], place: Place, parameters: Mapping[str, object]
) -> ChatHistoryError:
    """Return our error for a transaction that cannot be tried again."""
    told = [(str(reason.get("Code")), str(reason.get("Message"))) for reason in reasons if reason.get("Code") != "None"]
    texts = [f"{code}: {without_values(text, parameters)}" for code, text in told]
    for (_, text), shown in zip(told, texts, strict=True):
        if _matches(text, _KEY_SCHEMA_TEXTS):
            return wrong_key(shown, place)
    return ServiceError(f"DynamoDB cancelled the transaction ({'; '.join(sorted(set(texts)))})", place)


def wrong_key(reason: str, place: Place) -> KeySchemaError:
    """Return the error for a key that does not fit the table."""
    advice = 'check primary_key_name, key and sort_key_name (or layout="single_item"), and the types of their values'
    return KeySchemaError(f"The session's key does not fit the table ({reason}): {advice}", place)


def _matches(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text for part in parts)
