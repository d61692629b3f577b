"""The requests of the single-item layout, as dicts. Pure: no I/O. ``changes`` proves that an append is stored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._codec.attribute_values import AttributeValue, for_request
from .._expressions import ALIVE, number_value, time_values
from .._request import Request
from .changes import Change, change_messages, change_writes, list_of
from .layout import WRITES, Hint, Identity, SingleItem, Stored, Write

# An attribute that is not a list belongs to a different program. It is neither appended to nor overwritten.
_OURS = "(attribute_not_exists(#messages) OR attribute_type(#messages, :list))"
_EXPIRED = "(attribute_exists(#expiry) AND attribute_type(#expiry, :number) AND #expiry <= :now)"


def get_messages(layout: SingleItem, *, consistent: bool) -> Request:
    return Request("get_item", _get(layout, "#messages, #expiry, #writes", _names(layout), consistent))


def get_item(layout: SingleItem) -> Request:
    """Return the request that reads the whole item, including attributes of other programs."""
    return Request("get_item", {"TableName": layout.table_name, "Key": layout.key, "ConsistentRead": True})


def get_identity(layout: SingleItem) -> Request:
    """Return the request that reads only the key and WRITES, which show which write created the item."""
    key_names = {f"#key{index}": name for index, name in enumerate(layout.key)}
    return Request("get_item", _get(layout, ", ".join((*key_names, "#writes")), key_names | {"#writes": WRITES}, True))


def delete_item(layout: SingleItem, identity: Identity | None) -> Request:
    """Return the request that deletes the item if it has this identity, or, with None, if it has no WRITES."""
    condition = "attribute_not_exists(#writes)"
    values = {}
    if identity is not None:
        condition = f"{identity.path} = :identity"
        values = {"ExpressionAttributeValues": {":identity": identity.value}}
    return _write(
        layout,
        "delete_item",
        Key=layout.key,
        ConditionExpression=condition,
        ExpressionAttributeNames={"#writes": WRITES},
        **values,
    )


def delete_unchanged(layout: SingleItem, messages: Sequence[AttributeValue]) -> Request:
    """Return the request that deletes the item if its messages are these, as they were read."""
    return _write(
        layout,
        "delete_item",
        Key=layout.key,
        ConditionExpression="#messages = :before",
        ExpressionAttributeNames={"#messages": layout.messages_name},
        ExpressionAttributeValues={":before": {"L": [for_request(message) for message in messages]}},
    )


def scan_keys(layout: SingleItem, start_key: dict[str, AttributeValue] | None) -> Request:
    """Return the scan for a page of the partition keys of the whole table."""
    (name, *_) = layout.key
    parameters = {
        "TableName": layout.table_name,
        "ConsistentRead": True,
        "ProjectionExpression": "#partition",
        "ExpressionAttributeNames": {"#partition": name},
    }
    if start_key is not None:
        parameters["ExclusiveStartKey"] = start_key
    return Request("scan", parameters)


def append_messages(
    layout: SingleItem,
    batch: Sequence[AttributeValue],
    write: Write,
    hint: Hint,
    now: int,
    stored: Stored | None = None,
) -> Request:
    """Return the request that appends a batch in one write.

    If the write assumes something that is not true, its condition fails, and DynamoDB returns the item.

    Args:
        layout: how the session is stored.
        batch: the messages, at least one and at most ``history_size``.
        write: the id of the write, which is the same in every request that stores this batch.
        hint: what the writer last knew of the item.
        now: the time, in seconds since the epoch.
        stored: the item that the last failed condition returned, or None before the first failure.
    """
    if stored is not None and stored.expired:
        return _start_afresh(layout, batch, write, now)
    changes = [
        change_messages(batch, layout.history_size, hint.length, stored),
        change_writes(write, hint.anchor, stored),
    ]
    values = {":list": {"S": "L"}} | time_values(now)
    conditions = [ALIVE, _OURS, *(change.condition for change in changes if change.condition)]
    if layout.ttl is not None:
        changes.append(Change("#expiry = :expiry", {":expiry": number_value(now + layout.ttl)}))
    for change in changes:
        values.update(change.values)
    remove = "".join(f" REMOVE {change.remove}" for change in changes if change.remove)
    return _write(
        layout,
        "update_item",
        Key=layout.key,
        UpdateExpression=f"SET {', '.join(change.set for change in changes)}{remove}",
        ConditionExpression=" AND ".join(conditions),
        ExpressionAttributeNames=_names(layout),
        ExpressionAttributeValues=values,
    )


def _start_afresh(layout: SingleItem, batch: Sequence[AttributeValue], write: Write, now: int) -> Request:
    """Return the request that replaces an expired item. No attribute is kept, not even one of other programs."""
    item = {
        **layout.key,
        layout.messages_name: {"L": list(batch)},
        WRITES: list_of([*write.texts()[:1], *write.texts()]),
    }
    if layout.ttl is not None:
        item[layout.expiry_name] = number_value(now + layout.ttl)
    return _write(
        layout,
        "put_item",
        Item=item,
        ConditionExpression=_EXPIRED,
        ExpressionAttributeNames={"#expiry": layout.expiry_name},
        ExpressionAttributeValues=time_values(now),
    )


def _write(layout: SingleItem, operation: str, **parameters: Any) -> Request:
    common = {"TableName": layout.table_name, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
    return Request(operation, common | parameters)


def _get(layout: SingleItem, projection: str, names: dict[str, str], consistent: bool) -> dict[str, Any]:
    return {
        "TableName": layout.table_name,
        "Key": layout.key,
        "ConsistentRead": consistent,
        "ProjectionExpression": projection,
        "ExpressionAttributeNames": names,
    }


def _names(layout: SingleItem) -> dict[str, str]:
    return {"#messages": layout.messages_name, "#expiry": layout.expiry_name, "#writes": WRITES}
