"""The single-item layout, pure: request dicts out, response dicts in.

One item holds one session: its key, the messages as a list of maps, and the expiry time, exactly as
langchain-community writes them, so that each reads what the other wrote. One attribute is ours, which
langchain-community neither reads nor touches: WRITES, a list of text. Its first element is the id of the write that
created the item, the others are the ids of its recent writes in their order, that one included, until they are pruned.

Exactly once. Every write carries an id, and a condition that the id is not in WRITES, so a request that is sent again
changes nothing. That would not hold if the id could be pruned between two sendings, so a second condition pins the
pruning down: either nothing was pruned yet (the first two elements are equal), or a write that this writer knows to
be older than its own is still there (pruning drops the oldest first). Where neither can be shown any more, no
request is stored, however late it arrives, and the writer is told that it cannot know. One hole is left: the first
write of a handle that has seen no write of the session knows none that is older, so a sending of it that the network
delays beyond its own acknowledgement and beyond a clear is stored once more.
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
# 13 bytes a write: at most 3.4 KB in the item. A retry is recognised while fewer than WRITES_KEPT other writes to
# the session come between it and its first attempt. A write with an idempotency key has two elements, of 75 bytes:
# where all have one, the item grows by up to 10 KB, and half as many may come between.
WRITES_LIMIT = 256
WRITES_KEPT = 128
# The id of a write with an idempotency key.
_IS_KEY = re.compile("k:[^:]*")
# Each message that is added or trimmed by its index takes about 25 of the 4,096 characters that an expression may have.
_MAX_INDEXED = 100

# Judged by the time at which the request was built: a session that expires while the SDK retries counts as alive.
_ALIVE = "(attribute_not_exists(#expiry) OR NOT attribute_type(#expiry, :number) OR #expiry > :now)"
# What is not a list is another's: neither appended to nor overwritten.
_OURS = "(attribute_not_exists(#messages) OR attribute_type(#messages, :list))"
_EXPIRED = "(attribute_exists(#expiry) AND attribute_type(#expiry, :number) AND #expiry <= :now)"
_NEVER_PRUNED = (
    "(attribute_not_exists(#writes) OR "
    "(size(#writes) < :full AND #writes[0] = #writes[1] AND NOT contains(#writes, :write)))"
)
_ANCHORED = (
    "(attribute_exists(#writes) AND size(#writes) < :full AND contains(#writes, :anchor)"
    # The creator's id stays at the front for ever: only while nothing was pruned does it prove anything.
    " AND (#writes[0] <> :anchor OR #writes[0] = #writes[1]) AND NOT contains(#writes, :write))"
)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a writer last knew of the item. A write tests all that it takes from here, so it may be outdated.

    Attributes:
        length: how many messages are stored, or None.
        anchor: the id of a write that is stored, or None.
    """

    length: int | None = None
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """An item as it was at one moment; an absent item has no messages and no writes.

    Attributes:
        malformed: whether the messages' attribute is something else than a list.
        has_damaged_writes: whether WRITES is something that no write of ours leaves. No append's condition holds then.
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
        """Tell whether no id that was written after the anchor can have been pruned."""
        if anchor is not None:
            return anchor in self.writes[1:]
        return not self.writes or self.writes[0] == self.writes[1]


@dataclass(frozen=True, slots=True)
class SingleItem:
    """Where and how one session is stored.

    Attributes:
        key: the whole primary key, as attribute values.
        ttl: seconds from a write until the session expires, or None.
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
        """Read all of the item, with the attributes that are not ours."""
        return Request("get_item", {"TableName": self.table_name, "Key": self.key, "ConsistentRead": True})

    def others(self, item: Item) -> list[str]:
        """Return the names of an item's attributes that are not ours."""
        return sorted(item.keys() - {*self.key, self.messages_name, self.expiry_name, WRITES})

    def read_identity(self) -> Request:
        """Read as little as tells whether the item exists and which write created it."""
        key_names = {f"#key{index}": name for index, name in enumerate(self.key)}
        return Request("get_item", self._get(", ".join((*key_names, "#writes")), key_names | {"#writes": WRITES}, True))

    def identity(self, item: Item) -> Identity | None:
        """Return what an item has and one that comes after it has not; None where it has nothing of ours."""
        if WRITES not in item:
            return None
        creator, *_ = item[WRITES].get("L") or [None]
        if creator is None:
            return Identity("#writes", for_request(item[WRITES]))
        return Identity("#writes[0]", for_request(creator))

    def delete(self, identity: Identity | None) -> Request:
        """Delete the item, unless it is another one than that of this identity."""
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
        """Delete the item, unless it holds other messages than these, as they were read."""
        return self._write(
            "delete_item",
            Key=self.key,
            ConditionExpression="#messages = :before",
            ExpressionAttributeNames={"#messages": self.messages_name},
            ExpressionAttributeValues={":before": {"L": [for_request(message) for message in messages]}},
        )

    def scan_keys(self, start_key: dict[str, AttributeValue] | None) -> Request:
        """Read a page of the partition keys of all the table."""
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
        """Append in one write whose condition fails, and returns the item, where it took something wrong for granted.

        Args:
            batch: the messages, at least one and at most ``history_size``.
            write: the same for every request that stores this batch.
            hint: what the writer last knew.
            now: the time, in seconds since the epoch.
            stored: the item as the last condition that failed returned it.
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
        """Read an item, None where there is none."""
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
        # Without a length the guess is that there is room; where it is wrong, the item that comes back has the length.
        room = "(attribute_not_exists(#messages) OR size(#messages) <= :room)"
        append = _append(batch)
        # Of a number that DynamoDB takes, whatever the size: no item holds more messages than bytes.
        most = min(size - len(batch), MAX_ITEM_BYTES)
        return append._replace(values=append.values | {":room": _number(most)}, condition=room)

    def _change_writes(self, write: Write, anchor: str | None, stored: Stored | None) -> _Change:
        if stored is not None and len(stored.writes) >= WRITES_LIMIT:
            creator, *recent = stored.writes
            kept = recent[-WRITES_KEPT:]
            if _IS_KEY.fullmatch(kept[0]):
                # Its content is pruned.
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
        """Replace an expired item whole: nothing of it is revived, attributes of others included."""
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
    """A write, as it is known among those of an item.

    Attributes:
        id: its id. With an idempotency key it is the same for all who append by that key.
        content: with an idempotency key, what tells its batch from others. It stands before the id, because the first
            element of an item's writes stays when the id is pruned, and a key must not be known without its content.
    """

    id: str
    content: str | None = None

    @classmethod
    def once(cls, key_digest: str, content_digest: str) -> Write:
        """Return the write of a batch with an idempotency key."""
        return cls(f"k:{key_digest}", f"k:{key_digest}:{content_digest}")

    def texts(self) -> list[str]:
        """Return what is added to the item's writes."""
        return [self.id] if self.content is None else [self.content, self.id]


class Identity(NamedTuple):
    """What tells an item from another one of the same key: a path in it, and the value there."""

    path: str
    value: AttributeValue


class _Change(NamedTuple):
    """A part of an update: what it sets, the values that it names, what it removes and what it takes for granted."""

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
    # SET with an index past the end appends, and the indexes in REMOVE are those from before the update.
    return _Change(
        ", ".join(f"#messages[{length + index}] = :m{index}" for index in range(len(batch))),
        {f":m{index}": message for index, message in enumerate(batch)} | {":length": _number(length)},
        remove=", ".join(f"#messages[{index}]" for index in range(surplus)),
        condition="size(#messages) = :length",
    )


def _rewrite(messages: Sequence[AttributeValue], batch: Sequence[AttributeValue], size: int) -> _Change:
    # For a trim too long for an expression: of a large batch, or of a session that had outgrown a new history_size.
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
