"""Conversation storage on DynamoDB, async first: LangChain's messages, and JSON values of any framework."""

import importlib as _importlib
import typing as _typing

from ._aws.clients import FastPathStatus
from ._aws.table import TableDescription
from ._codec.keys import split_key
from ._migration.outcome import MigrationResult
from ._session_index.listing import PurgeResult, SessionPage, UnreadableSession
from ._session_index.session import SessionInfo
from ._statistics import SessionStats
from .errors import (
    AccessDeniedError,
    BridgeError,
    ChatHistoryError,
    ClosedError,
    ConfigurationError,
    DecryptionError,
    EncryptionContextError,
    EndpointError,
    FormatError,
    IdempotencyKeyReusedError,
    ItemTooLargeError,
    KeySchemaError,
    KmsKeyError,
    LayoutError,
    MessageNotFoundError,
    MessageNotStorableError,
    ServiceError,
    SessionNotFoundError,
    TableNotFoundError,
    ThrottledError,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)
from .json_session import JsonSession, StoredValue, ValuePage
from .store import ChatHistoryStore

if _typing.TYPE_CHECKING:
    from .history import DynamoDBChatMessageHistory, Page, StoredMessage

__all__ = [
    "AccessDeniedError",
    "BridgeError",
    "ChatHistoryError",
    "ChatHistoryStore",
    "ClosedError",
    "ConfigurationError",
    "DecryptionError",
    "DynamoDBChatMessageHistory",
    "EncryptionContextError",
    "EndpointError",
    "FastPathStatus",
    "FormatError",
    "IdempotencyKeyReusedError",
    "ItemTooLargeError",
    "JsonSession",
    "KeySchemaError",
    "KmsKeyError",
    "LayoutError",
    "MessageNotFoundError",
    "MessageNotStorableError",
    "MigrationResult",
    "Page",
    "PurgeResult",
    "ServiceError",
    "SessionInfo",
    "SessionNotFoundError",
    "SessionPage",
    "SessionStats",
    "StoredMessage",
    "StoredValue",
    "TableDescription",
    "TableNotFoundError",
    "ThrottledError",
    "UndecodableItemError",
    "UnreadableSession",
    "ValuePage",
    "WriteConflictError",
    "WriteOutcomeUnknownError",
    "split_key",
]

# These modules import LangChain, which takes half a second or more: they are imported at the first use of a name.
_LAZY = {
    "DynamoDBChatMessageHistory": "history",
    "Page": "history",
    "StoredMessage": "history",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(_importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
