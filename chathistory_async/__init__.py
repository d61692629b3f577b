"""LangChain chat message history on DynamoDB, async first."""

from ._conversation import Page, StoredMessage
from ._migrating import MigratedSession
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
    "ItemTooLargeError",
    "KeySchemaError",
    "KmsKeyError",
    "LayoutError",
    "MessageNotFoundError",
    "MessageNotStorableError",
    "MigratedSession",
    "Page",
    "PartiallyStoredError",
    "ServiceError",
    "StoredMessage",
    "TableNotFoundError",
    "ThrottledError",
    "UndecodableItemError",
    "WriteConflictError",
    "WriteOutcomeUnknownError",
]
