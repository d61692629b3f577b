"""Conversation storage on DynamoDB, async first: LangChain's messages, and JSON values of any framework."""

import importlib as _importlib
import typing as _typing

from ._version import __version__ as __version__

if _typing.TYPE_CHECKING:
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
    from .history import DynamoDBChatMessageHistory, Page, StoredMessage
    from .json_session import JsonSession, StoredValue, ValuePage
    from .store import ChatHistoryStore

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

# The package itself imports only its version: pytest imports it at every start, for the plugin in ``testing``, and
# the SDK and LangChain take a second. The first use of a name imports the name's module.
_MODULES = {
    "ChatHistoryStore": "store",
    "DynamoDBChatMessageHistory": "history",
    "FastPathStatus": "_aws.clients",
    "JsonSession": "json_session",
    "MigrationResult": "_migration.outcome",
    "Page": "history",
    "PurgeResult": "_session_index.listing",
    "SessionInfo": "_session_index.session",
    "SessionPage": "_session_index.listing",
    "SessionStats": "_statistics",
    "StoredMessage": "history",
    "StoredValue": "json_session",
    "TableDescription": "_aws.table",
    "UnreadableSession": "_session_index.listing",
    "ValuePage": "json_session",
    "split_key": "_codec.keys",
}


def __getattr__(name: str) -> object:
    if name in ("errors", "json_session", "store"):
        return _importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
