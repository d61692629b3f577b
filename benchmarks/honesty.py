"""Reads back what a variant stored: one that loses, repeats or changes a message is wrong, however fast it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from langchain_core.messages import BaseMessage, messages_from_dict

from .messages import number_of
from .variants import ITEM_COLLECTION, SINGLE_ITEM, ItemCollectionByHand, SingleItemByHand, Target, aioboto3_client


class Reader(Protocol):
    """A reader of whole sessions, such as a plain client."""

    async def read(self, session: str) -> list[BaseMessage]:
        """Return all of a session's messages, oldest first."""


class _RecordsByHand:
    """Reads an item collection of whatever variant: in an item of ours may be an array of messages."""

    def __init__(self, by_hand: ItemCollectionByHand) -> None:
        self._by_hand = by_hand

    async def read(self, session: str) -> list[BaseMessage]:
        """Return all of a session's messages, oldest first."""
        bodies = [json.loads(item["History"]["S"]) for item in await self._by_hand.items(session)]
        return messages_from_dict([form for body in bodies for form in (body if isinstance(body, list) else [body])])


@asynccontextmanager
async def open_readers(target: Target) -> AsyncIterator[dict[str, Reader]]:
    """Open an SDK's client that reads back what any variant stored, by layout."""
    async with aioboto3_client(target) as client:
        yield {
            SINGLE_ITEM: SingleItemByHand(client, target.tables[SINGLE_ITEM]),
            ITEM_COLLECTION: _RecordsByHand(ItemCollectionByHand(client, target.tables[ITEM_COLLECTION])),
        }


async def fault_in_session(reader: Reader, session: str, expected: Sequence[BaseMessage]) -> str | None:
    """Return what is wrong with a session's messages, None if they are the expected ones in their order.

    Args:
        reader: what reads them, whoever wrote them: an SDK's client by hand.
        session: the session.
        expected: the messages that were stored, in their order.
    """
    return fault_in_messages(await reader.read(session), expected)


def fault_in_messages(found: Sequence[BaseMessage], expected: Sequence[BaseMessage]) -> str | None:
    """Return what is wrong with messages, None if they are the expected ones in their order."""
    if list(found) == list(expected) and [*map(type, found)] == [*map(type, expected)]:
        return None
    return fault_in_numbers(map(number_of, found), map(number_of, expected)) or "messages are changed or out of order"


def fault_in_numbers(found: Iterable[int], expected: Iterable[int]) -> str | None:
    """Return what is wrong with the messages of these numbers, in whatever order; None if nothing is."""
    there, wanted = Counter(found), Counter(expected)
    if lost := (wanted - there).total():
        return f"lost {lost} of {wanted.total()} messages"
    if surplus := (there - wanted).total():
        return f"has {surplus} messages too many"
    return None


def fault_on_stub(seen: Iterable[int], sent: Sequence[int]) -> str | None:
    """Return what is wrong with the messages that a variant sent, by the numbers that arrived from all variants."""
    own = set(sent)
    return fault_in_numbers([number for number in seen if number in own], sent)
