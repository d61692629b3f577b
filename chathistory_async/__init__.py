"""LangChain chat message history on DynamoDB, async first."""

from ._clients import FastPathStatus
from ._codec.keys import split_key
from ._conversation import Page, StoredMessage
from ._indexed_conversation import SessionInfo
from ._migrating import MigratedSession
from ._sessions import Purged, SessionPage, UnreadableSession
from .errors import (
    AccessDeniedError,
    BridgeError,
    ChatHistoryError,
    ClosedError,
    ConfigurationError,
    DecryptionError,
    EncryptionContextError,
    EndpointError,
    ItemTooLargeError,
    KeySchemaError,
    KmsKeyError,
    LayoutError,
    MessageNotFoundError,
    MessageNotStorableError,
    PartiallyStoredError,
    ServiceError,
    SessionNotFoundError,
    TableNotFoundError,
    ThrottledError,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)
from .history import DynamoDBChatMessageHistory
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
    "ItemTooLargeError",
    "KeySchemaError",
    "KmsKeyError",
    "LayoutError",
    "MessageNotFoundError",
    "MessageNotStorableError",
    "MigratedSession",
    "Page",
    "PartiallyStoredError",
    "Purged",
    "ServiceError",
    "SessionInfo",
    "SessionNotFoundError",
    "SessionPage",
    "StoredMessage",
    "TableNotFoundError",
    "ThrottledError",
    "UndecodableItemError",
    "UnreadableSession",
    "WriteConflictError",
    "WriteOutcomeUnknownError",
    "split_key",
]
