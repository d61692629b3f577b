"""The variants of a history behind one interface, so that one suite holds all to the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import pytest
from langchain_core.messages import BaseMessage

from chathistory_async import DynamoDBChatMessageHistory


class Variant(Protocol):
    encrypted: bool
    collection: bool
    indexed: bool
    fast_path: bool

    def __init__(self, history: DynamoDBChatMessageHistory) -> None: ...
    async def read(self) -> list[BaseMessage]: ...
    async def add(self, messages: Sequence[BaseMessage]) -> None: ...
    async def clear(self) -> None: ...


class AsyncVariant:
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


class EncryptedVariant(AsyncVariant):
    """With it, the fixture ``make`` gives each handle a KMS key."""

    encrypted = True


class SyncVariant:
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


class CollectionVariant(AsyncVariant):
    """With it, the fixture ``make`` makes handles on an item collection."""

    collection = True


class SyncCollectionVariant(SyncVariant):
    collection = True


class SdkVariant(AsyncVariant):
    """With it, the fixture ``make`` makes handles that send all by the SDK's client."""

    fast_path = False


class SdkCollectionVariant(SdkVariant, CollectionVariant):
    pass


class EncryptedCollectionVariant(EncryptedVariant, CollectionVariant):
    pass


class IndexedVariant(CollectionVariant):
    """With it, the fixture ``make`` takes handles from a store with a session index."""

    indexed = True


PLAIN_VARIANTS: list[type[Variant]] = [AsyncVariant, SyncVariant]
SINGLE_ITEM_VARIANTS: list[type[Variant]] = [*PLAIN_VARIANTS, EncryptedVariant]
COLLECTION_VARIANTS: list[type[Variant]] = [CollectionVariant, SyncCollectionVariant, EncryptedCollectionVariant]
ALL_VARIANTS = [*SINGLE_ITEM_VARIANTS, *COLLECTION_VARIANTS, IndexedVariant]
SDK_VARIANTS: list[type[Variant]] = [SdkVariant, SdkCollectionVariant]


def in_stress(*variants: type[Variant]) -> list[Any]:
    """Variants in which a module's tests differ little from those of its other variants: for the long runs alone."""
    return [pytest.param(variant, marks=pytest.mark.stress) for variant in variants]
