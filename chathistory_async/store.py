"""One table and its clients for a whole application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Literal

from botocore.config import Config

from ._bridge import run
from ._clients import AnySession, ClientOptions, Clients
from ._codec import encode_key
from ._table import Table
from .errors import Place
from .history import DynamoDBChatMessageHistory, Key, layout_of, sealing_type


class ChatHistoryStore:
    """The sessions of one table: settings and clients that all their handles share.

    Open it once for the application, with ``async with``, and take handles from ``session()``, which is what
    LangChain's ``RunnableWithMessageHistory`` calls as ``get_session_history``. It opens a client on each event loop
    that uses it, at the first use.

    Args:
        table_name: the table.
        endpoint_url: the endpoint, None for the SDK's choice.
        primary_key_name: the partition key's attribute.
        boto3_session: as for ``DynamoDBChatMessageHistory``; it stays the caller's and is not closed.
        kms_key_id: the KMS key that messages are sealed under, None to store them in the clear; as for
            ``DynamoDBChatMessageHistory``.
        ttl: seconds from the last append until a session expires, None for never.
        ttl_key_name: the attribute of the expiry time, in seconds since the epoch.
        history_size: how many messages of a session are kept, the latest ones; None for all.
        history_messages_key: the attribute of the messages, or of a message's body.
        region_name: the region, None for the SDK's choice.
        config: a botocore ``Config`` that is merged over ours.
        consistent_read: whether reads are strongly consistent.
        kms_endpoint_url: KMS's endpoint, None for the SDK's choice.
        layout: "item_collection", where each message is an item and a session has no limit of its size, or
            "single_item", where a session is one, as langchain-community stores it, in a table without a sort key.
        sort_key_name: the sort key's attribute, text; of no matter in the single item.
        fast_path: whether DynamoDB's calls take the lean path; as for ``DynamoDBChatMessageHistory``.

    Raises:
        TypeError: ``boto3_session`` or ``kms_key_id`` is of a type that is not accepted.
        ValueError: ``ttl`` or ``history_size`` is not a positive integer, ``kms_key_id`` is empty, two attributes have
            one name, or there is no such layout.
        ModuleNotFoundError: ``kms_key_id`` was given, and the extra ``kms`` is not installed.
    """

    def __init__(
        self,
        table_name: str,
        *,
        endpoint_url: str | None = None,
        primary_key_name: str = "SessionId",
        boto3_session: AnySession | None = None,
        kms_key_id: str | None = None,
        ttl: int | None = None,
        ttl_key_name: str = "expireAt",
        history_size: int | None = None,
        history_messages_key: str = "History",
        region_name: str | None = None,
        config: Config | None = None,
        consistent_read: bool = True,
        kms_endpoint_url: str | None = None,
        layout: Literal["item_collection", "single_item"] = "item_collection",
        sort_key_name: str = "MessageId",
        fast_path: bool = True,
    ) -> None:
        if layout not in ("item_collection", "single_item"):
            raise ValueError(f'layout must be "item_collection" or "single_item", not {layout!r}')
        self._primary_key_name = primary_key_name
        self._consistent_read = consistent_read
        self._clients = Clients(
            ClientOptions(endpoint_url or None, kms_endpoint_url or None, region_name, boto3_session, config, fast_path)
        )
        self._sort_key_name = sort_key_name if layout == "item_collection" else None
        self._layout = layout_of(
            self._sort_key_name,
            table_name=table_name,
            key=encode_key({primary_key_name: ""}),
            messages_name=history_messages_key,
            expiry_name=ttl_key_name,
            ttl=ttl,
            history_size=history_size,
        )
        self._kms_key_id = kms_key_id
        self._sealing_type = sealing_type(kms_key_id)

    def session(self, session_id: str, *, key: Key | None = None) -> DynamoDBChatMessageHistory:
        """Return a handle on a session. No I/O; a handle costs microseconds and need not be kept or closed.

        Args:
            session_id: the value of the partition key.
            key: a whole primary key instead, one or two attributes; in an item collection the partition key alone.

        Raises:
            TypeError: a key's value is not a str, int, Decimal or bytes.
            ValueError: a key attribute has the name of another attribute, or is one too many.
        """
        whole_key = key or {self._primary_key_name: session_id}
        layout = replace(self._layout, key=encode_key(whole_key))
        return DynamoDBChatMessageHistory._in_store(
            session_id, whole_key, layout, self._clients, self._kms_key_id, self._consistent_read
        )

    async def create_table(
        self,
        *,
        point_in_time_recovery: bool = False,
        table_kms_key_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Create the table where it does not exist, on demand, wait until it is active, and enable TTL.

        The partition key is ``primary_key_name``, the sort key of an item collection ``sort_key_name``, both text. Does
        nothing to a table that is already so, but for what TTL and ``point_in_time_recovery`` ask for.

        Args:
            point_in_time_recovery: enable it. It is never disabled here.
            table_kms_key_id: the KMS key of a new table's encryption at rest, None for AWS's own.
            tags: a new table's tags.

        Raises:
            KeySchemaError: a table of another key schema has this name. It was not changed.
            ConfigurationError: the table's TTL is on another attribute than ``ttl_key_name``.
            AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``errors``.
        """
        await self._table().create(
            self._primary_key_name,
            self._sort_key_name,
            self._layout.expiry_name,
            point_in_time_recovery=point_in_time_recovery,
            kms_key_id=table_kms_key_id,
            tags=tags or {},
        )

    async def delete_table(self) -> None:
        """Delete the table with all its sessions and wait until it is gone. Without a table it does nothing.

        Raises:
            AccessDeniedError, ConfigurationError, ThrottledError, EndpointError, ServiceError, ClosedError: see
                ``errors``.
        """
        await self._table().delete()

    async def aclose(self) -> None:
        """Close the clients of all event loops and end the store's handles. A second call does nothing."""
        self._clients.retired = True
        await self._clients.aclose()

    def close(self) -> None:
        """Close the store, as ``aclose`` does."""
        run(self.aclose)

    async def __aenter__(self) -> ChatHistoryStore:
        """Open the running loop's clients, so that the first request does not have to, and return the store.

        Raises:
            ConfigurationError: the SDK cannot make a client.
            ClosedError: the store was closed.
        """
        await self._table().connect()
        if self._sealing_type is not None:
            await self._sealing_type.connect(self._kms_key_id or "", self._clients, Place(self._layout.table_name))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.aclose()

    def __repr__(self) -> str:
        """Return the table's name."""
        return f"<{type(self).__name__} {Place(self._layout.table_name)}>"

    def _table(self) -> Table:
        return Table(self._layout.table_name, self._clients)
