"""The session index, pure: request dicts out, response dicts in.

A session has one item in the index, in its own item collection, under a sort key that no message has. It is written in
the transactions that store and remove messages, so that its count is theirs. A sparse global secondary index holds it
by owner and time of the last append: items of messages lack both attributes, sessions without an owner lack one.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from ._calls import Item, Request
from ._codec import AttributeValue, for_request
from ._item_collection import ALIVE, CREATED_AT, REVISION, ItemCollection, iso
from ._settings import check_names
from ._sort_keys import SortKey

INDEX_NAME = "SessionsByOwner"
SORT_KEY = "session"
OWNER = "Owner"
LAST_ACTIVE = "LastActive"
MESSAGE_COUNT = "MessageCount"
TITLE = "Title"
METADATA = "Metadata"
# DynamoDB's limit for the partition key of an index.
MAX_OWNER_BYTES = 2048

# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_CreateTable.html
KEY_SCHEMA = [(OWNER, "HASH"), (LAST_ACTIVE, "RANGE")]
_NEW = f"(attribute_not_exists(#revision) OR NOT {ALIVE})"
_THERE = f"(attribute_exists(#revision) AND {ALIVE})"


class StoredSession(NamedTuple):
    """A session's item as it is stored.

    Attributes:
        partition_key: the partition key's attribute value.
        title: None where there is none; binary where it is sealed.
        metadata: JSON text; None where there is none, binary where it is sealed.
        revision: the id of the latest write that changed the count.
    """

    partition_key: AttributeValue
    owner: str | None
    title: AttributeValue | None
    created_at: str
    last_active: str
    message_count: int
    metadata: AttributeValue | None
    revision: str


@dataclass(frozen=True, slots=True)
class SessionItem:
    """Where and how one session's item of the index is stored.

    Attributes:
        layout: how its messages are.
        owner: whose it is where it begins, or None.

    Raises:
        ValueError: ``owner`` is empty or too long, or an attribute has the name of one of these.
    """

    layout: ItemCollection
    owner: str | None

    def __post_init__(self) -> None:
        if self.owner is not None:
            check_owner(self.owner)
        layout = self.layout
        own = (OWNER, LAST_ACTIVE, MESSAGE_COUNT, TITLE, METADATA, CREATED_AT, REVISION)
        check_names([*layout.key, layout.sort_key_name, layout.messages_name, layout.expiry_name, *own])

    def count_added(
        self, number: int, first: SortKey, now: int, revision: str, *, keep_expiry: bool = False
    ) -> dict[str, Any]:
        """Count messages that the same transaction adds.

        Its condition fails where the session has expired, or has messages that expire later than these, or never:
        then ``keep_expiry``, because the session's item must not go before its messages.
        """
        at = {"S": iso(first.created_at)}
        sets = [
            "#count = if_not_exists(#count, :none) + :added",
            "#created = if_not_exists(#created, :at)",
            "#active = :at",
            "#revision = :revision",
        ]
        names = {
            "#count": MESSAGE_COUNT,
            "#created": CREATED_AT,
            "#active": LAST_ACTIVE,
            "#revision": REVISION,
            "#expiry": self.layout.expiry_name,
        }
        values = {":none": _number(0), ":added": _number(number), ":at": at, ":revision": {"S": revision}}
        if self.owner is not None:
            sets.append("#owner = if_not_exists(#owner, :owner)")
            names["#owner"] = OWNER
            values[":owner"] = {"S": self.owner}
        change, condition = "", ALIVE
        if not keep_expiry and self.layout.ttl is None:
            change = " REMOVE #expiry"
        elif not keep_expiry and self.layout.ttl is not None:
            sets.append("#expiry = :expiry")
            values[":expiry"] = _number(now + self.layout.ttl)
            condition = f"{ALIVE} AND (attribute_not_exists(#revision) OR #expiry <= :expiry)"
        return {"Update": self._update(f"SET {', '.join(sets)}{change}", condition, names, values | _at(now))}

    def begin_anew(
        self, number: int, first: SortKey, now: int, revision: str, expiry: str | None = None
    ) -> dict[str, Any]:
        """Put the session's item where there is none, or an expired one, of which nothing is revived.

        It expires at ``expiry``, in seconds since the epoch, or when the messages that are written now do.
        """
        at = {"S": iso(first.created_at)}
        item = {
            **self._key(),
            MESSAGE_COUNT: _number(number),
            CREATED_AT: at,
            LAST_ACTIVE: at,
            REVISION: {"S": revision},
        }
        if self.owner is not None:
            item[OWNER] = {"S": self.owner}
        if expiry is not None or self.layout.ttl is not None:
            item[self.layout.expiry_name] = {"N": expiry or str(now + (self.layout.ttl or 0))}
        return {
            "Put": {
                "TableName": self.layout.table_name,
                "Item": item,
                "ConditionExpression": _NEW,
                "ExpressionAttributeNames": {"#revision": REVISION, "#expiry": self.layout.expiry_name},
                "ExpressionAttributeValues": _at(now),
            }
        }

    def count_on(self, change: int, now: int, revision: str, expiry: str | None = None) -> dict[str, Any]:
        """Count what the same transaction removes, or puts before what is there.

        Its condition fails where the session has no item, or where ``expiry`` is not later than the item's own.
        """
        sets, condition = "SET #count = #count + :change, #revision = :revision", _THERE
        values = {":change": _number(change), ":revision": {"S": revision}} | _at(now)
        names = {"#count": MESSAGE_COUNT, "#revision": REVISION, "#expiry": self.layout.expiry_name}
        if self.owner is not None:
            sets = f"{sets}, #owner = if_not_exists(#owner, :owner)"
            names["#owner"], values[":owner"] = OWNER, {"S": self.owner}
        if expiry is not None:
            sets, condition = f"{sets}, #expiry = :expiry", f"{condition} AND #expiry < :expiry"
            values[":expiry"] = {"N": expiry}
        return {"Update": self._update(sets, condition, names, values)}

    def extend(self, now: int) -> Request | None:
        """Have a session that is there expire no earlier than what is written now; None where that never does."""
        if self.layout.ttl is None:
            return None
        update = self._update(
            "SET #expiry = :expiry",
            f"{_THERE} AND #expiry < :expiry",
            {"#revision": REVISION, "#expiry": self.layout.expiry_name},
            {":expiry": _number(now + self.layout.ttl)} | _at(now),
        )
        return Request("update_item", update)

    def set_count(self, number: int, seen: str, revision: str) -> Request:
        """Set the count to what is there, unless it has changed since it was seen."""
        update = self._update(
            "SET #count = :count, #revision = :revision",
            "#revision = :seen",
            {"#count": MESSAGE_COUNT, "#revision": REVISION},
            {":count": _number(number), ":revision": {"S": revision}, ":seen": {"S": seen}},
        )
        return Request("update_item", update)

    def set_title(self, title: AttributeValue | None, now: int) -> Request:
        """Set or remove the title of a session that is there."""
        change = "REMOVE #title" if title is None else "SET #title = :title"
        update = self._update(
            change,
            _THERE,
            {"#title": TITLE, "#revision": REVISION, "#expiry": self.layout.expiry_name},
            ({} if title is None else {":title": title}) | _at(now),
        )
        return Request("update_item", update)

    def set_metadata(self, metadata: AttributeValue, seen: AttributeValue | None, now: int) -> Request:
        """Set the metadata of a session that is there, unless they have changed since they were seen."""
        same = "attribute_not_exists(#metadata)" if seen is None else "#metadata = :seen"
        update = self._update(
            "SET #metadata = :metadata",
            f"{_THERE} AND {same}",
            {"#metadata": METADATA, "#revision": REVISION, "#expiry": self.layout.expiry_name},
            {":metadata": metadata} | ({} if seen is None else {":seen": for_request(seen)}) | _at(now),
        )
        return Request("update_item", update)

    def get(self) -> Request:
        return Request("get_item", {"TableName": self.layout.table_name, "Key": self._key(), "ConsistentRead": True})

    def delete(self, seen: str) -> Request:
        """Delete the item, unless messages were added or removed since it was seen."""
        return Request(
            "delete_item",
            {
                "TableName": self.layout.table_name,
                "Key": self._key(),
                "ConditionExpression": "#revision = :seen",
                "ExpressionAttributeNames": {"#revision": REVISION},
                "ExpressionAttributeValues": {":seen": {"S": seen}},
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            },
        )

    def _key(self) -> dict[str, AttributeValue]:
        return {**self.layout.key, self.layout.sort_key_name: {"S": SORT_KEY}}

    def _update(
        self, change: str, condition: str, names: Mapping[str, str], values: Mapping[str, AttributeValue]
    ) -> dict[str, Any]:
        return {
            "TableName": self.layout.table_name,
            "Key": self._key(),
            "UpdateExpression": change,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }


def read_session(layout: ItemCollection, item: Item) -> StoredSession:
    """Read a session's item.

    Raises:
        KeyError, ValueError: it is damaged.
    """
    (partition_name,) = layout.key
    return StoredSession(
        partition_key=item[partition_name],
        owner=item.get(OWNER, {}).get("S"),
        title=item.get(TITLE),
        created_at=item[CREATED_AT]["S"],
        last_active=item[LAST_ACTIVE]["S"],
        message_count=int(item[MESSAGE_COUNT]["N"]),
        metadata=item.get(METADATA),
        revision=item[REVISION]["S"],
    )


def is_alive(layout: ItemCollection, item: Item, now: int) -> bool:
    expiry = item.get(layout.expiry_name, {}).get("N")
    return expiry is None or float(expiry) > now


def query_sessions(
    layout: ItemCollection, owner: str, *, limit: int, start_key: Mapping[str, AttributeValue] | None
) -> Request:
    """Read a page of an owner's sessions, expired ones among them, the last active first."""
    parameters = {
        "TableName": layout.table_name,
        "IndexName": INDEX_NAME,
        "KeyConditionExpression": "#owner = :owner",
        "ExpressionAttributeNames": {"#owner": OWNER},
        "ExpressionAttributeValues": {":owner": {"S": owner}},
        "ScanIndexForward": False,
        "Limit": limit,
    }
    return Request("query", parameters if start_key is None else parameters | {"ExclusiveStartKey": start_key})


def cursor_of(layout: ItemCollection, item: Item) -> str:
    """Return what the page after a session begins behind."""
    (partition_name,) = layout.key
    text = orjson.dumps([item[LAST_ACTIVE]["S"], item[partition_name]["S"]])
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def start_key_of(layout: ItemCollection, owner: str, cursor: str) -> dict[str, AttributeValue]:
    """Return the key in the index that a cursor stands for.

    Raises:
        ValueError: it is not a cursor.
    """
    try:
        last_active, partition_key = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        named = _is_text(last_active) and _is_text(partition_key)
    except (ValueError, TypeError):
        named = False
    if not named:
        # It comes from a client, who may have made it up.
        raise ValueError(f"{cursor!r} is not a cursor of list_sessions")
    (partition_name,) = layout.key
    return {
        OWNER: {"S": owner},
        LAST_ACTIVE: {"S": last_active},
        partition_name: {"S": partition_key},
        layout.sort_key_name: {"S": SORT_KEY},
    }


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def check_owner(owner: object) -> None:
    """Refuse what cannot be the partition key of the index."""
    if not isinstance(owner, str) or not owner or len(owner.encode()) > MAX_OWNER_BYTES:
        raise ValueError(f"owner must be text of 1 to {MAX_OWNER_BYTES} bytes, not {owner!r}")


def _at(now: int) -> dict[str, AttributeValue]:
    return {":now": _number(now), ":number": {"S": "N"}}


def _number(value: int) -> AttributeValue:
    return {"N": str(value)}
