"""The single-item layout: it builds request dicts and reads response dicts. Pure: no I/O.

One item holds one session: its key, the messages as a list of maps, and the expiry time. They are stored exactly as
langchain-community writes them, so that each library reads the messages of the other. This library adds one attribute,
WRITES, which langchain-community neither reads nor changes. WRITES is a list of text. Its first element is the id of
the write that created the item. The other elements are the ids of the item's recent writes in their order, including
that first write, until they are pruned.

Exactly once. Every write has an id, and a condition that WRITES does not contain the id. So a request that is sent
again changes nothing, unless the id was pruned in between. A second condition excludes that: either nothing was pruned
yet (the first two elements are equal), or WRITES still contains a write that this writer knows to be older than its own
(pruning removes the oldest ids first). Once neither is true, no request of the write is stored, however late it
arrives. If a response was lost, the writer then raises WriteOutcomeUnknownError.

One gap is left. The first write of a handle that has seen no write of the session knows no older write. If the network
delays a request of this write until the write was acknowledged by another request and the session was cleared, the
batch is stored again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._codec.attribute_values import MAX_ITEM_BYTES, AttributeValue, for_request, has_passed
from .._request import Item, Request
from .._settings import check_settings

WRITES = "_chathistory_writes"
# WRITES takes 13 bytes per write, at most 3.4 KB. A retry is recognised while fewer than WRITES_KEPT other writes to
# the session come between the retry and its first attempt. A write with an idempotency key has two elements, of 75
# bytes together. If all writes have a key, WRITES takes up to 10 KB, and half as many writes may come between.
WRITES_LIMIT = 256
WRITES_KEPT = 128
# The id of a write with an idempotency key.
_IS_KEY = re.compile("k:[^:]*")
# Each message that is added or trimmed by its index takes about 25 of the 4,096 characters that an expression may have.
_MAX_INDEXED = 100

# The time is that at which the request was built, so a session that expires while the SDK retries counts as alive.
_ALIVE = "(attribute_not_exists(#expiry) OR NOT attribute_type(#expiry, :number) OR #expiry > :now)"
# An attribute that is not a list belongs to a different program. It is neither appended to nor overwritten.
_OURS = "(attribute_not_exists(#messages) OR attribute_type(#messages, :list))"
_EXPIRED = "(attribute_exists(#expiry) AND attribute_type(#expiry, :number) AND #expiry <= :now)"
_NEVER_PRUNED = (
    "(attribute_not_exists(#writes) OR "
    "(size(#writes) < :full AND #writes[0] = #writes[1] AND NOT contains(#writes, :write)))"
)
_ANCHORED = (
    "(attribute_exists(#writes) AND size(#writes) < :full AND contains(#writes, :anchor)"
    # The creator's id is never pruned from the front, so it proves something only while nothing was pruned.
    " AND (#writes[0] <> :anchor OR #writes[0] = #writes[1]) AND NOT contains(#writes, :write))"
)


@dataclass(frozen=True, slots=True)
class Hint:
    """A writer's last knowledge of the item. It may be outdated: the write's condition tests all that is taken from it.

    Attributes:
        length: how many messages are stored, or None if this is not known.
        anchor: the id of a write that WRITES contains, or None if none is known.
    """

    length: int | None = None
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """The item as it was at one moment. An absent item has no messages and no writes.

    Attributes:
        messages: the stored messages, oldest first; empty if their attribute is not a list.
        writes: the elements of WRITES; empty if WRITES is absent or damaged.
        expired: whether the session has expired.
        malformed: whether the attribute of the messages is not a list.
        has_damaged_writes: whether WRITES has a form that this library does not write. Unless the session has expired,
            the condition of every append then fails.
    """

    messages: Sequence[AttributeValue]
    writes: Sequence[str]
    expired: bool
    malformed: bool
    has_damaged_writes: bool

    def hint(self) -> Hint:
        if self.expired:
            return Hint(0)
        return Hint(len(self.messages), self.writes[-1] if self.writes else None)

    def proves_unpruned_since(self, anchor: str | None) -> bool:
        """Return whether no id that was written after the anchor can have been pruned."""
        if anchor is not None:
            return anchor in self.writes[1:]
        return not self.writes or self.writes[0] == self.writes[1]


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
        changes = [self._change_messages(batch, hint.length, stored), self._change_writes(write, hint.anchor, stored)]
        values = {":now": _number(now), ":number": {"S": "N"}, ":list": {"S": "L"}}
        conditions = [_ALIVE, _OURS, *(change.condition for change in changes if change.condition)]
        if self.ttl is not None:
            changes.append(_Change("#expiry = :expiry", {":expiry": _number(now + self.ttl)}))
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

    def _change_messages(self, batch: Sequence[AttributeValue], length: int | None, stored: Stored | None) -> _Change:
        size = self.history_size
        if size is None:
            return _append(batch)
        if len(batch) == size:
            return _replace_by(batch)
        surplus = 0 if length is None else length + len(batch) - size
        if surplus > 0 and surplus + len(batch) <= _MAX_INDEXED:
            return _trim(batch, length or 0, surplus)
        if surplus > 0 and stored is not None:
            return _rewrite(stored.messages, batch, size)
        # The guess is that there is room. If it is wrong, the condition fails and returns the item, and so its length.
        room = "(attribute_not_exists(#messages) OR size(#messages) <= :room)"
        append = _append(batch)
        # Limited to a number that DynamoDB accepts: no item holds more messages than bytes.
        most = min(size - len(batch), MAX_ITEM_BYTES)
        return append._replace(values=append.values | {":room": _number(most)}, condition=room)

    def _change_writes(self, write: Write, anchor: str | None, stored: Stored | None) -> _Change:
        if stored is not None and len(stored.writes) >= WRITES_LIMIT:
            creator, *recent = stored.writes
            kept = recent[-WRITES_KEPT:]
            if _IS_KEY.fullmatch(kept[0]):
                # The element before it, with the digest of its content, is pruned.
                kept = kept[1:]
            pruned = _texts([creator, *kept, *write.texts()])
            return _Change(
                "#writes = :pruned", {":pruned": pruned, ":seen": _texts(stored.writes)}, condition="#writes = :seen"
            )
        values = {":creation": _texts(write.texts()[:1]), ":writes": _texts(write.texts()), ":write": {"S": write.id}}
        return _Change(
            "#writes = list_append(if_not_exists(#writes, :creation), :writes)",
            values | {":full": _number(WRITES_LIMIT)} | ({} if anchor is None else {":anchor": {"S": anchor}}),
            condition=_NEVER_PRUNED if anchor is None else _ANCHORED,
        )

    def _start_afresh(self, batch: Sequence[AttributeValue], write: Write, now: int) -> Request:
        """Return the request that replaces an expired item. No attribute is kept, not even one of other programs."""
        item = {
            **self.key,
            self.messages_name: {"L": list(batch)},
            WRITES: _texts([*write.texts()[:1], *write.texts()]),
        }
        if self.ttl is not None:
            item[self.expiry_name] = _number(now + self.ttl)
        return self._write(
            "put_item",
            Item=item,
            ConditionExpression=_EXPIRED,
            ExpressionAttributeNames={"#expiry": self.expiry_name},
            ExpressionAttributeValues={":now": _number(now), ":number": {"S": "N"}},
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


class Write(NamedTuple):
    """A write, as WRITES identifies it.

    Attributes:
        id: the write's id. All appends with the same idempotency key have the same id.
        content: with an idempotency key, the id and a digest of the batch; else None. It is stored before the id. The
            first element of WRITES is never pruned, and a key's id must not be left there without its content.
    """

    id: str
    content: str | None = None

    @classmethod
    def once(cls, key_digest: str, content_digest: str) -> Write:
        """Return the write of a batch with an idempotency key, from the digests of both."""
        return cls(f"k:{key_digest}", f"k:{key_digest}:{content_digest}")

    def texts(self) -> list[str]:
        """Return the elements that the write adds to WRITES."""
        return [self.id] if self.content is None else [self.content, self.id]


class Identity(NamedTuple):
    """A path in an item, and the value at that path, which a later item of the same key does not have."""

    path: str
    value: AttributeValue


class _Change(NamedTuple):
    """A part of an update: its SET clause, its values, its REMOVE clause, and the condition that it assumes."""

    set: str
    values: dict[str, AttributeValue]
    remove: str = ""
    condition: str = ""


def _append(batch: Sequence[AttributeValue]) -> _Change:
    return _Change(
        "#messages = list_append(if_not_exists(#messages, :none), :batch)",
        {":none": {"L": []}, ":batch": {"L": list(batch)}},
    )


def _replace_by(messages: Sequence[AttributeValue]) -> _Change:
    return _Change("#messages = :messages", {":messages": {"L": list(messages)}})


def _trim(batch: Sequence[AttributeValue], length: int, surplus: int) -> _Change:
    # SET with an index past the end appends. The indexes in REMOVE are those before the update.
    return _Change(
        ", ".join(f"#messages[{length + index}] = :m{index}" for index in range(len(batch))),
        {f":m{index}": message for index, message in enumerate(batch)} | {":length": _number(length)},
        remove=", ".join(f"#messages[{index}]" for index in range(surplus)),
        condition="size(#messages) = :length",
    )


def _rewrite(messages: Sequence[AttributeValue], batch: Sequence[AttributeValue], size: int) -> _Change:
    # For a trim that is too long for an expression: a large batch, or a session longer than a new history_size.
    before = [for_request(message) for message in messages]
    after = [*before, *batch][-size:]
    return _Change(
        "#messages = :messages",
        {":messages": {"L": after}, ":before": {"L": before}},
        condition="#messages = :before",
    )


def _number(value: int) -> AttributeValue:
    return {"N": str(value)}


def _texts(values: Sequence[str]) -> AttributeValue:
    return {"L": [{"S": value} for value in values]}
