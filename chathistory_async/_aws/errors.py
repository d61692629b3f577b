"""The one place that maps botocore's errors into the tree of ``errors``."""

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
    """Return our error for one of botocore's; the caller raises it ``from`` that one.

    Args:
        error: botocore's error.
        ref: what the request concerned.
        service: the service that was called.
        parameters: those of the request, of which the error quotes no value.
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
    """Return the error for what cannot be an answer of a service."""
    name, endpoint = _SERVICES[service]
    return ServiceError(f"What answered is not {name}, or not in its form: check {endpoint}", ref)


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
    error: ClientError, ref: SessionRef, advice: _Advice, reason: str = "", with_what: str = ""
) -> ChatHistoryError:
    code, _ = _code_and_text(error)
    operation = error.operation_name + with_what
    if code in _DENIED:
        return AccessDeniedError(f"AWS refused {operation} ({code}): {advice.denied}", ref)
    if code in _THROTTLED:
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
        advice = "check the name, region and endpoint, or create it with ChatHistoryStore.create_table()"
        return TableNotFoundError(f"The table does not exist: {advice}", ref)
    if code == "ValidationException" and _matches(text, _KEY_SCHEMA_TEXTS):
        return wrong_key(reason, ref)
    if code == "ValidationException" and _matches(text, _ITEM_SIZE_TEXTS):
        return ItemTooLargeError("The session would outgrow DynamoDB's 400 KB for an item", ref)
    return None


def _from_kms_error(error: ClientError, ref: SessionRef, key_id: str | None) -> ChatHistoryError:
    code, text = _code_and_text(error)
    stored = error.operation_name == "Decrypt"
    if code in _KMS_KEY:
        whose = "under which stored messages were encrypted" if stored else "of kms_key_id"
        return KmsKeyError(
            f"KMS cannot use the key {key_id}, {whose} ({code}: {text}): check its name, region and state, and that"
            " kms_endpoint_url is where you mean it to be",
            ref,
        )
    if code in _KMS_SEALED:
        return DecryptionError(
            f"KMS does not open the data key of a stored message with {key_id} ({code}): it was changed, or is of"
            " another session",
            ref,
        )
    return _from_client_error(error, ref, _KMS_ADVICE, with_what=f" with the key {key_id}" if key_id else "")


def from_cancelled_transaction(
    reasons: Iterable[Mapping[str, object]], ref: SessionRef, parameters: Mapping[str, object]
) -> ChatHistoryError:
    """Return our error for a transaction that cannot be tried again."""
    told = [(str(reason.get("Code")), str(reason.get("Message"))) for reason in reasons if reason.get("Code") != "None"]
    texts = [f"{code}: {without_values(text, parameters)}" for code, text in told]
    for (_, text), shown in zip(told, texts, strict=True):
        if _matches(text, _KEY_SCHEMA_TEXTS):
            return wrong_key(shown, ref)
    return ServiceError(f"DynamoDB cancelled the transaction ({'; '.join(sorted(set(texts)))})", ref)


def _matches(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text for part in parts)
