"""The variants that are compared, behind one interface: ours, and those that a user would pick instead.

Where there is a choice it favours the peer: it keeps its client, and langchain-community's handles are made in advance,
while each of our calls makes its handle anew, as ``get_session_history`` does.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import aioboto3
import aiohttp
import boto3
from aiobotocore.config import AioConfig
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from chathistory_async import ChatHistoryStore
from chathistory_async._aws.calls import call
from chathistory_async._aws.sdk import MAX_POOL_CONNECTIONS
from chathistory_async._request import Request
from chathistory_async.errors import SessionRef

from .messages import content_of, session_of

OURS = "ours"
PLAIN_PATH = "ours, plain path"
UPSTREAM = "langchain-community"
AIOBOTO3 = "aioboto3"
LARGE_POOL = "aioboto3, large pool"
AIODYNAMO = "aiodynamo"
FLOOR = "bare aiohttp"

SINGLE_ITEM = "single item"
ITEM_COLLECTION = "item collection"

# A layout and a variant's name.
Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Target:
    """The server that is measured on.

    Attributes:
        name: "stub", or the engine's.
        url: its endpoint.
        tables: the table of each layout.
    """

    name: str
    url: str
    tables: Mapping[str, str]

    @classmethod
    def of(cls, name: str, url: str) -> Target:
        """Return a target with tables of its own; they do not exist yet."""
        run = uuid.uuid4().hex[:8]
        return cls(name, url, {SINGLE_ITEM: f"benchmark-item-{run}", ITEM_COLLECTION: f"benchmark-collection-{run}"})


def our_options() -> dict[str, dict[str, Any]]:
    """Return what our variants give to ``ChatHistoryStore`` beside the rest."""
    return {OURS: {"fast_path": True}, PLAIN_PATH: {"fast_path": False}}


def new_store(target: Target, layout: str, **options: Any) -> ChatHistoryStore:
    """Return a store of ours on a target's table."""
    name = "single_item" if layout == SINGLE_ITEM else "item_collection"
    return ChatHistoryStore(target.tables[layout], endpoint_url=target.url, layout=name, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def created_tables(target: Target) -> AsyncIterator[Target]:
    """Create a target's tables, and delete them with all that is in them."""
    async with AsyncExitStack() as stack:
        for layout in target.tables:
            store = await stack.enter_async_context(new_store(target, layout))
            await store.create_table()
            stack.push_async_callback(store.delete_table)
        yield target


class Peer(Protocol):
    """One way to keep chats in a table."""

    async def append(self, session: str, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind what is there."""

    async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
        """Return a session's latest messages, None for all, oldest first."""


async def store(key: Key, peer: Peer, session: str, messages: Sequence[BaseMessage]) -> None:
    """Store a long session: in batches, but where these would be an item of ours, in turns, as a chat has them."""
    number = 2 if key[0] == ITEM_COLLECTION and key[1] in our_options() else 100
    for start in range(0, len(messages), number):
        await peer.append(session, messages[start : start + number])


class Ours:
    """This library."""

    def __init__(self, store: ChatHistoryStore) -> None:
        self.handle = store.session

    async def append(self, session: str, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind what is there."""
        await self.handle(session).aadd_messages(messages)

    async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
        """Return a session's latest messages."""
        return await self.handle(session).aget_messages(limit=limit)


class Upstream:
    """langchain-community's class, through its async methods."""

    def __init__(self, target: Target) -> None:
        from langchain_community.chat_message_histories import DynamoDBChatMessageHistory

        self._new = DynamoDBChatMessageHistory
        self._target = target
        self._session = boto3.Session()
        self._handles: dict[str, Any] = {}

    def handle(self, session: str) -> Any:
        """Return the session's handle, which is made once."""
        if session not in self._handles:
            self._handles[session] = self._new(
                self._target.tables[SINGLE_ITEM],
                session,
                endpoint_url=self._target.url,
                boto3_session=self._session,
            )
        return self._handles[session]

    async def append(self, session: str, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind what is there."""
        await self.handle(session).aadd_messages(messages)

    async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
        """Return a session's latest messages, of which it reads all."""
        messages: list[BaseMessage] = await self.handle(session).aget_messages()
        return messages[-(limit or 0) :]


class SingleItemByHand:
    """The code that one writes with an aioboto3 client, in langchain-community's format."""

    def __init__(self, client: Any, table: str) -> None:
        self._client = client
        self._table = table
        self._serialize = TypeSerializer().serialize
        self._deserialize = TypeDeserializer().deserialize

    async def append(self, session: str, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind what is there."""
        batch = self._serialize([message_to_dict(message) for message in messages])
        await self._client.update_item(**update_request(self._table, session, batch))

    async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
        """Return a session's latest messages."""
        response = await self._client.get_item(**get_request(self._table, session))
        if "Item" not in response:
            return []
        return messages_from_dict(self._deserialize(response["Item"]["History"])[-(limit or 0) :])


class ItemCollectionByHand:
    """The code that one writes with an aioboto3 client, an item for each message."""

    def __init__(self, client: Any, table: str) -> None:
        self._client = client
        self._table = table

    async def append(self, session: str, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind what is there."""
        items = [item_of(session, new_sort_key(), json_of(message)) for message in messages]
        if len(items) == 1:
            await self._client.put_item(TableName=self._table, Item=items[0])
        for start in range(0, len(items), 25) if len(items) > 1 else ():
            requests = [{"PutRequest": {"Item": item}} for item in items[start : start + 25]]
            await self._client.batch_write_item(RequestItems={self._table: requests})

    async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
        """Return a session's latest messages."""
        return messages_from_dict([json.loads(item["History"]["S"]) for item in await self.items(session, limit)])

    async def items(self, session: str, limit: int | None = None) -> list[dict[str, Any]]:
        """Return a session's latest items."""
        if limit is not None:
            response = await self._client.query(**query_request(self._table, session, limit))
            return list(reversed(response["Items"]))
        pages = self._client.get_paginator("query").paginate(**query_request(self._table, session))
        return [item async for page in pages for item in page["Items"]]


class ItemCollectionOnAiodynamo:
    """The code that one writes with aiodynamo, an item for each message."""

    def __init__(self, client: Any, table: str) -> None:
        from aiodynamo.expressions import HashKey

        self._table = client.table(table)
        self._hash_key = HashKey

    async def append(self, session: str, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind what is there."""
        for message in messages:
            await self._table.put_item({"SessionId": session, "MessageId": new_sort_key(), "History": json_of(message)})

    async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
        """Return a session's latest messages."""
        query = self._table.query(
            self._hash_key("SessionId", session), scan_forward=limit is None, limit=limit, consistent_read=True
        )
        items = [item async for item in query][:: 1 if limit is None else -1]
        return messages_from_dict([json.loads(item["History"]) for item in items])


def json_of(message: BaseMessage) -> str:
    """Return a message's JSON text."""
    return json.dumps(message_to_dict(message))


def new_sort_key() -> str:
    """Return a sort key that is later than all before it in this process."""
    return f"{time.time_ns():020d}-{next(_counter):08d}"


_counter = itertools.count()


def item_of(session: str, sort_key: str, text: str) -> dict[str, Any]:
    """Return an item of one message."""
    return {"SessionId": {"S": session}, "MessageId": {"S": sort_key}, "History": {"S": text}}


def put_request(table: str, session: str, text: str) -> dict[str, Any]:
    """Return a PutItem of one message."""
    return {"TableName": table, "Item": item_of(session, new_sort_key(), text)}


def update_request(table: str, session: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Return an UpdateItem that appends messages."""
    return {
        "TableName": table,
        "Key": {"SessionId": {"S": session}},
        "UpdateExpression": "SET #h = list_append(if_not_exists(#h, :none), :batch)",
        "ExpressionAttributeNames": {"#h": "History"},
        "ExpressionAttributeValues": {":none": {"L": []}, ":batch": batch},
    }


def get_request(table: str, session: str) -> dict[str, Any]:
    """Return a GetItem of a session."""
    return {"TableName": table, "Key": {"SessionId": {"S": session}}, "ConsistentRead": True}


def query_request(table: str, session: str, limit: int | None = None) -> dict[str, Any]:
    """Return a Query of a session's messages: the latest ones, newest first, or without a limit all, oldest first."""
    latest = {} if limit is None else {"Limit": limit, "ScanIndexForward": False}
    return {
        "TableName": table,
        "KeyConditionExpression": "SessionId = :session",
        "ExpressionAttributeValues": {":session": {"S": session}},
        "ConsistentRead": True,
        **latest,
    }


@asynccontextmanager
async def aioboto3_client(target: Target, **options: Any) -> AsyncIterator[Any]:
    """Open a client as it comes, but for these options of its Config."""
    config = AioConfig(**options) if options else None
    async with aioboto3.Session().client("dynamodb", endpoint_url=target.url, config=config) as client:
        yield client


@asynccontextmanager
async def aiodynamo_client(target: Target) -> AsyncIterator[Any]:
    """Open aiodynamo's client over aiohttp, with as many connections as it wants."""
    from aiodynamo.client import Client
    from aiodynamo.credentials import Key, StaticCredentials
    from aiodynamo.http.aiohttp import AIOHTTP
    from yarl import URL

    async with bare_aiohttp() as session:
        credentials = StaticCredentials(Key("benchmark", "benchmark"))
        yield Client(AIOHTTP(session), credentials, os.environ["AWS_DEFAULT_REGION"], URL(target.url))


@asynccontextmanager
async def open_peers(target: Target, *, aiodynamo: bool = False) -> AsyncIterator[dict[Key, Peer]]:
    """Open the variants that keep chats, by their layout and name; aiodynamo if it is asked for."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(aioboto3_client(target, max_pool_connections=MAX_POOL_CONNECTIONS))
        peers: dict[Key, Peer] = {
            (SINGLE_ITEM, UPSTREAM): Upstream(target),
            (SINGLE_ITEM, AIOBOTO3): SingleItemByHand(client, target.tables[SINGLE_ITEM]),
            (ITEM_COLLECTION, AIOBOTO3): ItemCollectionByHand(client, target.tables[ITEM_COLLECTION]),
        }
        for layout in target.tables:
            for name, options in our_options().items():
                store = await stack.enter_async_context(new_store(target, layout, **options))
                peers[layout, name] = Ours(store)
        if aiodynamo:
            other = await stack.enter_async_context(aiodynamo_client(target))
            peers[ITEM_COLLECTION, AIODYNAMO] = ItemCollectionOnAiodynamo(other, target.tables[ITEM_COLLECTION])
        yield peers


class Sender(Protocol):
    """One way to send single requests of DynamoDB, without any message's conversion."""

    async def send(self, operation: str, text: str) -> object:
        """Send one of OPERATIONS and return its answer, as this way returns it."""


# How many messages the session of each has.
OPERATIONS = {"put_item": 20, "update_item": 20, "get_item": 2, "query": 20}


def request_of(operation: str, tables: Mapping[str, str], text: str) -> dict[str, Any]:
    """Return the parameters of an operation: write one message's text, get a list of 2, or query the latest 20."""
    session = session_of(OPERATIONS[operation])
    if operation == "put_item":
        return put_request(tables[ITEM_COLLECTION], session, text)
    if operation == "update_item":
        message = {"M": {"type": {"S": "human"}, "data": {"M": {"content": {"S": text}}}}}
        return update_request(tables[SINGLE_ITEM], session, {"L": [message]})
    if operation == "get_item":
        return get_request(tables[SINGLE_ITEM], session)
    return query_request(tables[ITEM_COLLECTION], session, 20)


class Aioboto3Sender:
    """An aioboto3 client's methods."""

    def __init__(self, client: Any, target: Target) -> None:
        self._client = client
        self._tables = target.tables

    async def send(self, operation: str, text: str) -> object:
        """Send a request."""
        return await getattr(self._client, operation)(**request_of(operation, self._tables, text))


class OurSender:
    """The same requests through the one place of ours that sends them."""

    def __init__(self, store: ChatHistoryStore, target: Target) -> None:
        self._clients = store._settings.clients
        self._tables = target.tables

    async def send(self, operation: str, text: str) -> object:
        """Send a request."""
        parameters = request_of(operation, self._tables, text)
        return await call(self._clients, Request(operation, parameters), SessionRef(parameters["TableName"]))


class AiodynamoSender:
    """aiodynamo's methods, which take and return plain values."""

    def __init__(self, client: Any, target: Target) -> None:
        from aiodynamo.expressions import F, HashKey

        self._field, self._hash_key = F, HashKey
        self._item, self._collection = (client.table(table) for table in target.tables.values())

    async def send(self, operation: str, text: str) -> object:
        """Send a request."""
        session = session_of(OPERATIONS[operation])
        if operation == "put_item":
            item = {"SessionId": session, "MessageId": new_sort_key(), "History": text}
            return await self._collection.put_item(item)
        if operation == "update_item":
            change = self._field("History").append([{"type": "human", "data": {"content": text}}])
            return await self._item.update_item({"SessionId": session}, change)
        if operation == "get_item":
            return await self._item.get_item({"SessionId": session}, consistent_read=True)
        return await self._collection.query_single_page(
            self._hash_key("SessionId", session), scan_forward=False, limit=20, consistent_read=True
        )


class CannedRequest:
    """A request that was signed once, sent as it is but for a message's text; the answer's bytes are not parsed.

    The floor: no client on aiohttp can do less.
    """

    _TEXT = content_of(0)

    def __init__(
        self, http: aiohttp.ClientSession, target: Target, operation: str, parameters: Mapping[str, object]
    ) -> None:
        self._http = http
        self._url = target.url
        self._body = json.dumps(parameters).encode()
        name = "".join(word.capitalize() for word in operation.split("_"))
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"DynamoDB_20120810.{name}"}
        request = AWSRequest("POST", f"{target.url}/", headers=headers, data=self._body)
        SigV4Auth(Credentials("benchmark", "benchmark"), "dynamodb", os.environ["AWS_DEFAULT_REGION"]).add_auth(request)
        self._headers = dict(request.headers)

    async def send(self, text: str = _TEXT) -> bytes:
        """Send it with a text in the place of message 0's, and return the answer."""
        body = self._body.replace(self._TEXT.encode(), text.encode())
        async with self._http.post(self._url, data=body, headers=self._headers) as response:
            return await response.read()


class CannedSender:
    """Canned requests of all operations."""

    def __init__(self, http: aiohttp.ClientSession, target: Target) -> None:
        self._requests = {
            operation: CannedRequest(http, target, operation, request_of(operation, target.tables, content_of(0)))
            for operation in OPERATIONS
        }

    async def send(self, operation: str, text: str) -> object:
        """Send a request."""
        return await self._requests[operation].send(text)


def bare_aiohttp() -> aiohttp.ClientSession:
    """Return an HTTP session with as many connections as are wanted."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


@asynccontextmanager
async def open_senders(target: Target) -> AsyncIterator[dict[str, Sender]]:
    """Open the ways to send single requests, by name."""
    async with AsyncExitStack() as stack:
        pool = {"max_pool_connections": MAX_POOL_CONNECTIONS}
        senders: dict[str, Sender] = {
            AIOBOTO3: Aioboto3Sender(await stack.enter_async_context(aioboto3_client(target)), target),
            LARGE_POOL: Aioboto3Sender(await stack.enter_async_context(aioboto3_client(target, **pool)), target),
            AIODYNAMO: AiodynamoSender(await stack.enter_async_context(aiodynamo_client(target)), target),
            FLOOR: CannedSender(await stack.enter_async_context(bare_aiohttp()), target),
        }
        for name, options in our_options().items():
            store = await stack.enter_async_context(new_store(target, ITEM_COLLECTION, **options))
            senders[name] = OurSender(store, target)
        yield senders
