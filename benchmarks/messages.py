"""The messages that every variant is given, sessions whose names say how many they have, and their canned answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from boto3.dynamodb.types import TypeSerializer
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, message_to_dict

from chathistory_async._codec.messages import LANGCHAIN
from chathistory_async._item_collection.sort_keys import Clock

# 1,000 of them fit into DynamoDB's 400 KB for an item.
_TEXT = "The quick brown fox jumps over the lazy dog, again and again, as it is asked to. "
_numbers = itertools.count(1)


def session_of(messages: int, per_record: int = 1) -> str:
    """Return the name of the session that has so many messages, and in an item collection so many in a record."""
    return f"messages-{messages}" if per_record == 1 else f"messages-{messages}-in-{per_record}"


def content_of(number: int) -> str:
    """Return a message's content, with its number in it."""
    return f"#{number:08d}# {_TEXT}"


def number_of(message: BaseMessage) -> int:
    """Return the number in a message's content."""
    return int(str(message.content)[1:9])


def message_of(number: int) -> BaseMessage:
    """Return the message of a number, a person's or the model's."""
    return HumanMessage(content_of(number)) if number % 2 else AIMessage(content_of(number))


def new_number() -> int:
    """Return a number that no message has yet."""
    return next(_numbers)


def new_message() -> BaseMessage:
    """Return a message that differs from all others."""
    return message_of(new_number())


def new_messages(count: int) -> list[BaseMessage]:
    """Return messages that differ from all others, people's and the model's in turn."""
    return [new_message() for _ in range(count)]


def new_turn() -> list[BaseMessage]:
    """Return a person's message and the model's answer, which differ from all others."""
    first, second = new_message(), new_message()
    return [first, second] if isinstance(first, HumanMessage) else [second, new_message()]


def single_item(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """Return the answer to GetItem on a session in a single item."""
    return {"Item": {"History": TypeSerializer().serialize([message_to_dict(message) for message in messages])}}


def item_collection(
    messages: Sequence[BaseMessage], *, per_record: int = 1, newest_first: bool = False
) -> dict[str, Any]:
    """Return the answer to a Query for a session's messages in an item collection, with what ours asks for.

    Args:
        messages: the session's messages.
        per_record: how many of them were appended together, and are one item.
        newest_first: the order of the items.
    """
    clock = Clock()
    texts = [LANGCHAIN.encode(message, position, None).decode() for position, message in enumerate(messages)]
    items = [
        _record(str(clock.next_key()), texts[start : start + per_record]) for start in range(0, len(texts), per_record)
    ]
    return {"Items": items[::-1] if newest_first else items, "Count": len(items), "ScannedCount": len(items)}


def _record(sort_key: str, texts: Sequence[str]) -> dict[str, Any]:
    if len(texts) == 1:
        return {"MessageId": {"S": sort_key}, "History": {"S": texts[0]}}
    body = "[" + ",\n".join(texts) + "]"
    return {"MessageId": {"S": sort_key}, "History": {"S": body}, "Count": {"N": str(len(texts))}}
