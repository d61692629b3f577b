"""LangChain chat message history on DynamoDB, async first."""

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
    MessageNotStorableError,
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
    "MessageNotStorableError",
    "ServiceError",
    "TableNotFoundError",
    "ThrottledError",
    "UndecodableItemError",
    "WriteConflictError",
    "WriteOutcomeUnknownError",
]
