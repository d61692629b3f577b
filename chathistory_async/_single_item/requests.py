"""The single-item layout: it builds request dicts and reads response dicts. Pure: no I/O.

One item holds one session: its key, the messages as a list of maps, and the expiry time. They are stored exactly as
langchain-community writes them, so that each library reads the messages of the other. This library adds one attribute,
WRITES, which langchain-community neither reads nor changes. WRITES is a list of text. Its first element is the id of
the write that created the item. The other elements are the ids of the item's recent writes in their order, including
that first write, until they are pruned. ``changes`` proves that an append is stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._codec.attribute_values import AttributeValue, for_request, has_passed
from .._expressions import ALIVE, number_value, time_values
from .._request import Item, Request
from .._settings import check_settings
from .changes import WRITES, Change, Hint, Stored, Write, change_messages, change_writes, list_of

# An attribute that is not a list belongs to a different program. It is neither appended to nor overwritten.
_OURS = "(attribute_not_exists(#messages) OR attribute_type(#messages, :list))"
_EXPIRED = "(attribute_exists(#expiry) AND attribute_type(#expiry, :number) AND #expiry <= :now)"


@dataclass(frozen=True, slots=True)
class SingleItem:
    """The table, key and settings of one session.

    Attributes:
        key: the names and attribute values of the whole primary key.
        messages_name: the name of the attribute that holds the messages.
        expiry_name: the name of the attribute that holds the time at which the session expires.
        ttl: how many seconds after its latest append the session expires, or None for never.
        history_size: how many messages are kept, or None for all.
    """

    table_name: str
    key: dict[str, AttributeValue]
    messages_name: str
    expiry_name: str
    ttl: int | None
    history_size: int | None

    def __post_init__(self) -> None:
        names = [*self.key, self.messages_name, self.expiry_name, WRITES]
        check_settings(self.table_name, self.ttl, self.history_size, names)

    def read(self, *, consistent: bool) -> Request:
        return Request("get_item", self._get("#messages, #expiry, #writes", self._names(), consistent))

    def read_whole(self) -> Request:
        """Return the request that reads the whole item, including attributes of other programs."""
        return Request("get_item", {"TableName": self.table_name, "Key": self.key, "ConsistentRead": True})

    def others(self, item: Item) -> list[str]:
        """Return the names of an item's attributes that neither this library nor langchain-community writes."""
        return sorted(item.keys() - {*self.key, self.messages_name, self.expiry_name, WRITES})

    def read_identity(self) -> Request:
        """Return the request that reads only the key and WRITES, which show which write created the item."""
        key_names = {f"#key{index}": name for index, name in enumerate(self.key)}
        return Request("get_item", self._get(", ".join((*key_names, "#writes")), key_names | {"#writes": WRITES}, True))

    def identity(self, item: Item) -> Identity | None:
        """Return what distinguishes an item from one that is created later, or None if the item has no WRITES."""
        if WRITES not in item:
            return None
        creator, *_ = item[WRITES].get("L") or [None]
        if creator is None:
            return Identity("#writes", for_request(item[WRITES]))
        return Identity("#writes[0]", for_request(creator))

    def delete(self, identity: Identity | None) -> Request:
        """Return the request that deletes the item if it has this identity, or, with None, if it has no WRITES."""
        condition = "attribute_not_exists(#writes)"
        values = {}
        if identity is not None:
            condition = f"{identity.path} = :identity"
            values = {"ExpressionAttributeValues": {":identity": identity.value}}
        return self._write(
            "delete_item",
            Key=self.key,
            ConditionExpression=condition,
            ExpressionAttributeNames={"#writes": WRITES},
            **values,
        )

    def delete_unchanged(self, messages: Sequence[AttributeValue]) -> Request:
        """Return the request that deletes the item if its messages are these, as they were read."""
        return self._write(
            "delete_item",
            Key=self.key,
            ConditionExpression="#messages = :before",
            ExpressionAttributeNames={"#messages": self.messages_name},
            ExpressionAttributeValues={":before": {"L": [for_request(message) for message in messages]}},
        )

    def scan_keys(self, start_key: dict[str, AttributeValue] | None) -> Request:
        """Return the scan for a page of the partition keys of the whole table."""
        (name, *_) = self.key
        parameters = {
            "TableName": self.table_name,
            "ConsistentRead": True,
            "ProjectionExpression": "#partition",
            "ExpressionAttributeNames": {"#partition": name},
        }
        if start_key is not None:
            parameters["ExclusiveStartKey"] = start_key
        return Request("scan", parameters)

    def append(
        self, batch: Sequence[AttributeValue], write: Write, hint: Hint, now: int, stored: Stored | None = None
    ) -> Request:
        """Return the request that appends a batch in one write.

        If the write assumes something that is not true, its condition fails, and DynamoDB returns the item.

        Args:
            batch: the messages, at least one and at most ``history_size``.
            write: the id of the write, which is the same in every request that stores this batch.
            hint: what the writer last knew of the item.
            now: the time, in seconds since the epoch.
            stored: the item that the last failed condition returned, or None before the first failure.
        """
        if stored is not None and stored.expired:
            return self._start_afresh(batch, write, now)
        changes = [
            change_messages(batch, self.history_size, hint.length, stored),
            change_writes(write, hint.anchor, stored),
        ]
        values = {":list": {"S": "L"}} | time_values(now)
        conditions = [ALIVE, _OURS, *(change.condition for change in changes if change.condition)]
        if self.ttl is not None:
            changes.append(Change("#expiry = :expiry", {":expiry": number_value(now + self.ttl)}))
        for change in changes:
            values.update(change.values)
        remove = "".join(f" REMOVE {change.remove}" for change in changes if change.remove)
        return self._write(
            "update_item",
            Key=self.key,
            UpdateExpression=f"SET {', '.join(change.set for change in changes)}{remove}",
            ConditionExpression=" AND ".join(conditions),
            ExpressionAttributeNames=self._names(),
            ExpressionAttributeValues=values,
        )

    def stored(self, item: Item | None, now: int) -> Stored:
        """Parse an item, or None for an absent one."""
        item = item or {}
        messages = item.get(self.messages_name, {"L": []})
        writes = [element.get("S") for element in item.get(WRITES, {}).get("L", ())]
        damaged = WRITES in item and (len(writes) < 2 or None in writes)
        return Stored(
            messages=messages.get("L", ()),
            writes=() if damaged else writes,
            expired=has_passed(item.get(self.expiry_name), now),
            malformed="L" not in messages,
            has_damaged_writes=damaged,
        )

    def _start_afresh(self, batch: Sequence[AttributeValue], write: Write, now: int) -> Request:
        """Return the request that replaces an expired item. No attribute is kept, not even one of other programs."""
        item = {
            **self.key,
            self.messages_name: {"L": list(batch)},
            WRITES: list_of([*write.texts()[:1], *write.texts()]),
        }
        if self.ttl is not None:
            item[self.expiry_name] = number_value(now + self.ttl)
        return self._write(
            "put_item",
            Item=item,
            ConditionExpression=_EXPIRED,
            ExpressionAttributeNames={"#expiry": self.expiry_name},
            ExpressionAttributeValues=time_values(now),
        )

    def _write(self, operation: str, **parameters: Any) -> Request:
        common = {"TableName": self.table_name, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        return Request(operation, common | parameters)

    def _get(self, projection: str, names: dict[str, str], consistent: bool) -> dict[str, Any]:
        return {
            "TableName": self.table_name,
            "Key": self.key,
            "ConsistentRead": consistent,
            "ProjectionExpression": projection,
            "ExpressionAttributeNames": names,
        }

    def _names(self) -> dict[str, str]:
        return {"#messages": self.messages_name, "#expiry": self.expiry_name, "#writes": WRITES}


class Identity(NamedTuple):
    """A path in an item, and the value at that path, which a later item of the same key does not have."""

    path: str
    value: AttributeValue
