"""The messages that every variant is given, sessions whose names say how many they have, and their canned answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from boto3.dynamodb.types import TypeSerializer
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, message_to_dict

from chathistory_async._sort_keys import Clock

# 1,000 of them fit into DynamoDB's 400 KB for an item.
_TEXT = "The quick brown fox jumps over the lazy dog, again and again, as it is asked to. "
_numbers = itertools.count(1)


def session_of(messages: int) -> str:
    """Return the name of the session that has so many messages."""
    return f"messages-{messages}"


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


def single_item(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """Return the answer to GetItem on a session in a single item."""
    return {"Item": {"History": TypeSerializer().serialize([message_to_dict(message) for message in messages])}}


def item_collection(messages: Sequence[BaseMessage], *, newest_first: bool = False) -> dict[str, Any]:
    """Return the answer to a Query for a session's messages in an item collection, with what ours asks for."""
    clock = Clock()
    items = [
        {
            "MessageId": {"S": str(clock.next_batch())},
            "History": {"S": json.dumps(message_to_dict(message), ensure_ascii=False, separators=(",", ":"))},
        }
        for message in messages
    ]
    return {"Items": items[::-1] if newest_first else items, "Count": len(items), "ScannedCount": len(items)}
