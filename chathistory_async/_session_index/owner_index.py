"""The index of sessions by owner and last activity, a global secondary index: its query and cursors. Pure: no I/O.

The index is sparse. Items of messages have neither of its keys, and sessions without an owner lack one, so the index
does not hold them.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import orjson

from .._codec.attribute_values import AttributeValue, bytes_of
from .._codec.json_text import is_unicode
from .._codec.keys import KeyValue, encode_key
from .._item_collection.layout import FORMAT, ItemCollection
from .._item_collection.requests import MAX_LIMIT
from .._request import Item, Request
from .stored import LAST_ACTIVE, OWNER, SORT_KEY

INDEX_NAME = "SessionsByOwner"
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_CreateTable.html
KEY_SCHEMA = [(OWNER, "HASH"), (LAST_ACTIVE, "RANGE")]
# DynamoDB's limit for the partition key of an index.
MAX_OWNER_BYTES = 2048


def query_sessions(
    layout: ItemCollection,
    owner: str,
    *,
    limit: int,
    start_key: Mapping[str, AttributeValue] | None,
    format_name: str | None = None,
) -> Request:
    """Return the request for a page of an owner's sessions, including expired ones, the last active first.

    Args:
        layout: how the table's sessions are stored.
        owner: the owner.
        limit: the highest number of items to read, including items of other formats.
        start_key: the ``LastEvaluatedKey`` of the page before, or None for the first page.
        format_name: the format of the sessions to return, empty for LangChain's messages, or None for all formats.
    """
    parameters: dict[str, Any] = {
        "TableName": layout.table_name,
        "IndexName": INDEX_NAME,
        "KeyConditionExpression": "#owner = :owner",
        "ExpressionAttributeNames": {"#owner": OWNER},
        "ExpressionAttributeValues": {":owner": {"S": owner}},
        "ScanIndexForward": False,
        "Limit": min(limit, MAX_LIMIT),
    }
    if format_name is not None:
        parameters["FilterExpression"] = "#format = :format" if format_name else "attribute_not_exists(#format)"
        parameters["ExpressionAttributeNames"]["#format"] = FORMAT
        if format_name:
            parameters["ExpressionAttributeValues"][":format"] = {"S": format_name}
    return Request("query", parameters if start_key is None else parameters | {"ExclusiveStartKey": start_key})


def cursor_of(layout: ItemCollection, item: Item) -> str:
    """Return the cursor of a session. The next page begins after the session."""
    (partition_name,) = layout.key
    ((kind, content),) = item[partition_name].items()
    text = content if isinstance(content, str) else base64.b64encode(content).decode()
    return base64.urlsafe_b64encode(orjson.dumps([item[LAST_ACTIVE]["S"], kind, text])).decode().rstrip("=")


def start_key_of(layout: ItemCollection, owner: str, cursor: str) -> dict[str, AttributeValue]:
    """Return the key in the index that a cursor stands for.

    Raises:
        ValueError: ``cursor`` is not a cursor.
    """
    (partition_name,) = layout.key
    try:
        last_active, kind, text = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        key = encode_key({partition_name: _KEY_VALUES[kind](text)})
        named = _is_text(last_active) and _is_text(text)
    except (ValueError, TypeError, KeyError, ArithmeticError):
        named = False
    if not named:
        # The cursor comes from a client, which may have made it up.
        raise ValueError(f"{cursor!r} is not a cursor of list_sessions")
    return {OWNER: {"S": owner}, LAST_ACTIVE: {"S": last_active}, **key, layout.sort_key_name: {"S": SORT_KEY}}


_KEY_VALUES: dict[str, Callable[[str], KeyValue]] = {"S": str, "N": Decimal, "B": bytes_of}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def check_owner(owner: object) -> None:
    """Check that an owner can be the partition key of the index.

    Raises:
        ValueError: it is not text of 1 to 2,048 bytes in UTF-8.
    """
    if not isinstance(owner, str) or not is_unicode(owner) or not 1 <= len(owner.encode()) <= MAX_OWNER_BYTES:
        raise ValueError(f"owner must be text of 1 to {MAX_OWNER_BYTES} bytes in UTF-8, not {owner!r}")
