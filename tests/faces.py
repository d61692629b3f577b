"""The faces of a history behind one interface, so that one suite holds all to the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from langchain_core.messages import BaseMessage

from chathistory_async import DynamoDBChatMessageHistory


class Face(Protocol):
    encrypted: bool
    collection: bool
    indexed: bool
    fast_path: bool

    def __init__(self, history: DynamoDBChatMessageHistory) -> None: ...
    async def read(self) -> list[BaseMessage]: ...
    async def add(self, messages: Sequence[BaseMessage]) -> None: ...
    async def clear(self) -> None: ...


class AsyncFace:
    encrypted = False
    collection = False
    indexed = False
    fast_path = True

    def __init__(self, history: DynamoDBChatMessageHistory) -> None:
        self.history = history

    async def read(self) -> list[BaseMessage]:
        return await self.history.aget_messages()

    async def add(self, messages: Sequence[BaseMessage]) -> None:
        await self.history.aadd_messages(messages)

    async def clear(self) -> None:
        await self.history.aclear()


class EncryptedFace(AsyncFace):
    """With it, the fixture ``make`` gives each handle a KMS key."""

    encrypted = True


class SyncFace:
    encrypted = False
    collection = False
    indexed = False
    fast_path = True

    def __init__(self, history: DynamoDBChatMessageHistory) -> None:
        self.history = history

    async def read(self) -> list[BaseMessage]:
        return await asyncio.to_thread(lambda: self.history.messages)

    async def add(self, messages: Sequence[BaseMessage]) -> None:
        await asyncio.to_thread(self.history.add_messages, messages)

    async def clear(self) -> None:
        await asyncio.to_thread(self.history.clear)


class CollectionFace(AsyncFace):
    """With it, the fixture ``make`` makes handles on an item collection."""

    collection = True


class SyncCollectionFace(SyncFace):
    collection = True


class SdkFace(AsyncFace):
    """With it, the fixture ``make`` makes handles that send all by the SDK's client."""

    fast_path = False


class SdkCollectionFace(SdkFace, CollectionFace):
    pass


class EncryptedCollectionFace(EncryptedFace, CollectionFace):
    pass


class IndexedFace(CollectionFace):
    """With it, the fixture ``make`` takes handles from a store with a session index."""

    indexed = True


PLAIN_FACES: list[type[Face]] = [AsyncFace, SyncFace]
SINGLE_ITEM_FACES: list[type[Face]] = [*PLAIN_FACES, EncryptedFace]
COLLECTION_FACES: list[type[Face]] = [CollectionFace, SyncCollectionFace, EncryptedCollectionFace]
ALL_FACES = [*SINGLE_ITEM_FACES, *COLLECTION_FACES, IndexedFace]
SDK_FACES: list[type[Face]] = [SdkFace, SdkCollectionFace]
