"""The one place that maps botocore's errors to the classes of ``errors``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from botocore import exceptions as botocore_exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from ..errors import (
    AccessDeniedError,
    ChatHistoryError,
    ConfigurationError,
    DecryptionError,
    EndpointError,
    ItemTooLargeError,
    KeySchemaError,
    KmsKeyError,
    ServiceError,
    SessionRef,
    TableNotFoundError,
    ThrottledError,
    wrong_key,
)
from .redaction import without_values


def from_botocore(
    error: ClientError | BotoCoreError | ResponseParserError | ValueError,
    ref: SessionRef,
    service: str = "dynamodb",
    parameters: Mapping[str, object] | None = None,
) -> ChatHistoryError:
    """Return the library's error for a botocore error. The caller raises it ``from`` the botocore error.

    Args:
        error: botocore's error.
        ref: the table and session that the error names.
        service: the service that was called.
        parameters: the request's parameters. The error quotes none of their values but the KeyId of a KMS request.
    """
    parameters = parameters or {}
    name, _ = _SERVICES[service]
    if isinstance(error, ClientError):
        if service == "kms":
            key_id = parameters.get("KeyId")
            return _from_kms_error(error, ref, key_id if isinstance(key_id, str) else None)
        reason = without_values(_code_and_text(error)[1], parameters)
        return _from_dynamodb_error(error, ref, reason) or _from_client_error(error, ref, _DYNAMODB_ADVICE, reason)
    if isinstance(error, _UNREACHABLE):
        return EndpointError(f"{name}'s endpoint does not answer: {error}", ref)
    if isinstance(error, _SSO):
        return ConfigurationError(f"No usable AWS credentials: {error}; log in with aws sso login", ref)
    if isinstance(error, _CREDENTIALS):
        advice = "give a boto3_session, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return ConfigurationError(f"No usable AWS credentials: {error}; {advice}", ref)
    if isinstance(error, botocore_exceptions.NoRegionError):
        return ConfigurationError("No AWS region: give region_name, or set AWS_DEFAULT_REGION", ref)
    if isinstance(error, ResponseParserError):
        return not_an_answer(ref, service)
    return ConfigurationError(f"The AWS SDK cannot use its configuration: {error}", ref)


def not_an_answer(ref: SessionRef, service: str = "dynamodb") -> ServiceError:
    """Return the error for a response that the service cannot have sent."""
    name, endpoint = _SERVICES[service]
    return ServiceError(f"The endpoint is not {name}, or its response is damaged: check {endpoint}", ref)


_SERVICES = {"dynamodb": ("DynamoDB", "endpoint_url"), "kms": ("KMS", "kms_endpoint_url")}
_UNREACHABLE = (botocore_exceptions.HTTPClientError, botocore_exceptions.ConnectionError)
_CREDENTIALS = (
    botocore_exceptions.NoCredentialsError,
    botocore_exceptions.PartialCredentialsError,
    botocore_exceptions.CredentialRetrievalError,
)
# The login to IAM Identity Center has expired, or there was none.
_SSO = (botocore_exceptions.SSOError, botocore_exceptions.TokenRetrievalError)
_DENIED_CODES = {
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
THROTTLED_CODES = {
    "ProvisionedThroughputExceededException",
    "Throttling",
    "ThrottledException",
    "ThrottlingException",
    "RequestLimitExceeded",
    "LimitExceededException",
}
# Codes of cancellation reasons, which differ from the error codes above. A transaction with only retryable ones is sent
# again. An action that did not cause the cancellation has the code "None".
THROTTLED_REASONS = {"ThrottlingError", "ProvisionedThroughputExceeded"}
RETRYABLE_REASONS = {"None", "TransactionConflict", *THROTTLED_REASONS}
# DynamoDB has one code, ValidationException, for all of these errors. Only the English text tells them apart. The texts
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
    # The items of a transaction have different keys, unless the table has no sort key.
    "cannot include multiple operations on one item",
    "Query key condition not supported",
    "Query condition missed key schema element",
    "Condition parameter type does not match schema type",
    # moto's whole text for a key without the table's sort key. moto sends this text for nothing else.
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
_KMS_DECRYPTION = {"InvalidCiphertextException", "IncorrectKeyException"}


def _code_and_text(error: ClientError) -> tuple[str, str]:
    return error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")


def aws_error_of(error: ChatHistoryError) -> tuple[str, str]:
    """Return the operation and the code of the AWS error that caused a library error, both empty if none did."""
    cause = error.__cause__
    return (cause.operation_name, _code_and_text(cause)[0]) if isinstance(cause, ClientError) else ("", "")


class _Advice(NamedTuple):
    """The advice in error texts: for refused credentials, and for a throttled request."""

    denied: str
    throttled: str


_DYNAMODB_ADVICE = _Advice("check the credentials and their policy", "raise the table's capacity")
_KMS_ADVICE = _Advice(
    "check the credentials, their policy, the key's policy and kms_endpoint_url",
    "raise KMS's quota",
)


def _from_client_error(
    error: ClientError, ref: SessionRef, advice: _Advice, reason: str = "", with_what: str = ""
) -> ChatHistoryError:
    code, _ = _code_and_text(error)
    operation = error.operation_name + with_what
    if code in _DENIED_CODES:
        return AccessDeniedError(f"AWS refused {operation} ({code}): {advice.denied}", ref)
    if code in THROTTLED_CODES:
        text = f"AWS throttled {operation} and every retry ({code}): {advice.throttled}, or the retries in config"
        return ThrottledError(text, ref)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    said = f"{code}: {reason}" if code == "ValidationException" and reason else code
    return ServiceError(f"AWS failed {operation} with HTTP status {status} ({said})", ref)


def _from_dynamodb_error(error: ClientError, ref: SessionRef, reason: str) -> ChatHistoryError | None:
    code, text = _code_and_text(error)
    if _matches(text, _NO_INDEX_TEXTS):
        advice = "ChatHistoryStore.create_table() adds it and waits until it can be read"
        return KeySchemaError(f"The table has no session index: {advice}", ref)
    if code == "ResourceNotFoundException":
        advice = (
            "check the name, region and endpoint, or create it with ChatHistoryStore.create_table(), with"
            ' layout="single_item" for a DynamoDBChatMessageHistory without sort_key_name'
        )
        return TableNotFoundError(f"The table does not exist: {advice}", ref)
    if code == "ValidationException" and _matches(text, _KEY_SCHEMA_TEXTS):
        return wrong_key(reason, ref)
    if code == "ValidationException" and _matches(text, _ITEM_SIZE_TEXTS):
        return ItemTooLargeError("The session would exceed DynamoDB's limit of 400 KB for an item", ref)
    return None


def _from_kms_error(error: ClientError, ref: SessionRef, key_id: str | None) -> ChatHistoryError:
    code, text = _code_and_text(error)
    stored = error.operation_name == "Decrypt"
    if code in _KMS_KEY:
        whose = "under which stored messages were encrypted" if stored else "of kms_key_id"
        return KmsKeyError(
            f"KMS cannot use the key {key_id}, {whose} ({code}: {text}): check the key's name, region and state, and"
            " kms_endpoint_url",
            ref,
        )
    if code in _KMS_DECRYPTION:
        return DecryptionError(
            f"KMS cannot decrypt the data key of a stored message with {key_id} ({code}): the data key was changed, or"
            " belongs to a different session",
            ref,
        )
    return _from_client_error(error, ref, _KMS_ADVICE, with_what=f" with the key {key_id}" if key_id else "")


def from_cancelled_transaction(
    reasons: Iterable[Mapping[str, object]], ref: SessionRef, parameters: Mapping[str, object]
) -> ChatHistoryError:
    """Return the library's error for a cancelled transaction that a retry cannot help."""
    told = [(str(reason.get("Code")), str(reason.get("Message"))) for reason in reasons if reason.get("Code") != "None"]
    texts = [f"{code}: {without_values(text, parameters)}" for code, text in told]
    for (_, text), shown in zip(told, texts, strict=True):
        if _matches(text, _KEY_SCHEMA_TEXTS):
            return wrong_key(shown, ref)
    return ServiceError(f"DynamoDB cancelled the transaction ({'; '.join(sorted(set(texts)))})", ref)


def _matches(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text for part in parts)
