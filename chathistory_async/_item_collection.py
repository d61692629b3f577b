"""The item-collection layout, pure: request dicts out, response dicts in.

One item holds one message, under the session's partition key and a sort key that orders it (see ``_sort_keys``): its
body, and where that is in the clear its type and time, so that streams, exports and the console can read them. A body
that is too large for one item goes on in further items, its parts, which are stored and read together.

Exactly once. Sort keys are unique, and every item is put on condition that there is none of its key: a request that is
sent again changes nothing, whether DynamoDB still knows a transaction's token or not. So that this holds for what was
removed in the meantime too, a message that is younger than FENCE_SECONDS is not deleted but emptied: a tombstone stays
in its place, which readers skip and DynamoDB's TTL deletes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeAlias

from ._calls import Item, Request
from ._codec.attribute_values import AttributeValue, bytes_of, for_request, has_passed, size_of
from ._settings import check_settings
from ._sort_keys import PREFIX, SortKey, are_of_first_parts, parse

# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_TRANSACTION_ITEMS = 100
# Not of 2**20 bytes each: what DynamoDB counts beside the items is not published.
MAX_TRANSACTION_BYTES = 4_000_000
MAX_BATCH_WRITE_ITEMS = 25
# A page holds a megabyte, of items of 100 bytes and more.
MAX_LIMIT = 20_000
# Of the 400 KB of an item: keys, names and the other attributes take at most 6 KB.
PART_BYTES = 390 * 1024
# AWS refuses a request that was signed more than five minutes ago, and the SDK's own retries end within minutes. The
# rest is for clocks that differ.
FENCE_SECONDS = 1800

ENCODING = "Encoding"
TYPE = "Type"
CREATED_AT = "CreatedAt"
PARTS = "Parts"
REVISION = "Revision"
REMOVED_BY = "RemovedBy"
MIGRATION = "Migration"
_OWN_NAMES = (ENCODING, TYPE, CREATED_AT, PARTS, REVISION, REMOVED_BY, MIGRATION)

# The number of a message's parts where what is stored is none that a message can have.
DAMAGED = -1
_NOT_TEXT = "not text"
# A message, or what is left of a damaged one, rather than a tombstone.
_THERE = "(attribute_exists(#sort) AND attribute_not_exists(#removed))"
# Judged by the time at which the request was built.
ALIVE = "(attribute_not_exists(#expiry) OR NOT attribute_type(#expiry, :number) OR #expiry > :now)"


class Body(NamedTuple):
    """What is stored of one message.

    Attributes:
        content: JSON text where the encoding is empty, else bytes.
        encoding: what was made of the JSON text: "zlib", "aws-encryption-sdk" or "zlib,aws-encryption-sdk".
        type: the message's type, None where that is nobody's business.
    """

    content: str | bytes
    encoding: str
    type: str | None

    def parts(self) -> list[AttributeValue]:
        """Return the attribute values of the body, one an item."""
        if isinstance(self.content, str):
            data = self.content.encode()
            if len(data) <= PART_BYTES:
                return [{"S": self.content}]
        else:
            data = self.content
        return [{"B": data[start : start + PART_BYTES]} for start in range(0, max(1, len(data)), PART_BYTES)]


class StoredPart(NamedTuple):
    """An item as it is stored: a message, or a part of one. Put together, the first part stands for the whole message.

    Attributes:
        content: as in ``Body``; None where parts of the message are missing.
        parts: of how many items the message consists; 0 in all of them but the first, DAMAGED where it cannot be told.
        revision: the attribute with the id of the write that replaced the message, None where it was not replaced.
        removed_by: the id of the write that removed the message, None where it is there.
        expiry: the attribute with the time from which on the item is nothing any more, None where it has none.
    """

    key: SortKey
    content: str | bytes | None
    encoding: str
    parts: int
    revision: AttributeValue | None
    removed_by: str | None
    expiry: AttributeValue | None = None


# A message that has no more than a text: its sort key and the text.
StoredText: TypeAlias = "tuple[str, str]"


@dataclass(frozen=True, slots=True)
class ItemCollection:
    """Where and how one session is stored.

    Attributes:
        key: the partition key, as attribute values.
        messages_name: the attribute of a message's body.
        ttl: seconds from a message's writing until it expires, or None.
        history_size: how many messages are kept, or None for all.

    Raises:
        ValueError: a setting is not what it says, or two attributes have one name.
    """

    table_name: str
    key: dict[str, AttributeValue]
    sort_key_name: str
    messages_name: str
    expiry_name: str
    ttl: int | None
    history_size: int | None

    def __post_init__(self) -> None:
        if len(self.key) != 1:
            raise ValueError(f"With sort_key_name, key must be the partition key alone, not {', '.join(self.key)}")
        names = [*self.key, self.sort_key_name, self.messages_name, self.expiry_name, *_OWN_NAMES]
        check_settings(self.table_name, self.ttl, self.history_size, names)

    def put(self, item: Mapping[str, AttributeValue]) -> Request:
        """Store one item, unless it was stored before."""
        return Request("put_item", self._put(item))

    def put_together(
        self, items: Sequence[Mapping[str, AttributeValue]], token: str, *others: Mapping[str, Any]
    ) -> Request:
        """Store items all or none, unless they were stored before, and with them what the other actions do."""
        return together([*({"Put": self._put(item)} for item in items), *others], token)

    def items_of(
        self, key: SortKey, body: Body, now: int, revision: AttributeValue | None = None
    ) -> list[dict[str, AttributeValue]]:
        contents = body.parts()
        expiry = {} if self.ttl is None else {self.expiry_name: {"N": str(now + self.ttl)}}
        replaced = {} if revision is None else {REVISION: revision}
        items = [
            {**self._key(key.of_part(part)), self.messages_name: content, **expiry, **replaced}
            for part, content in enumerate(contents)
        ]
        items[0] |= {CREATED_AT: {"S": iso(key.created_at)}}
        if body.type is not None:
            items[0] |= {TYPE: {"S": body.type}}
        if body.encoding:
            items[0] |= {ENCODING: {"S": body.encoding}}
        if len(contents) > 1:
            items[0] |= {PARTS: {"N": str(len(contents))}}
        return items

    def query(
        self,
        *,
        now: int,
        consistent: bool,
        newest_first: bool = False,
        limit: int | None = None,
        before: SortKey | None = None,
        upto: SortKey | None = None,
        only: SortKey | None = None,
        start_key: dict[str, AttributeValue] | None = None,
    ) -> Request:
        """Read a page of what is alive, in order.

        Args:
            now: the time, in seconds since the epoch.
            consistent: whether the read is strongly consistent.
            newest_first: the order.
            limit: how many items are read at most, dead ones among them.
            before: only messages before this one.
            upto: only messages before this one, and this one.
            only: only the parts of this one.
            start_key: the ``LastEvaluatedKey`` of the page before.
        """
        low, high = _range(before=before, upto=upto, only=only)
        parameters = self._query(low, high, newest_first=newest_first, consistent=consistent) | {
            "FilterExpression": f"attribute_not_exists(#removed) AND {ALIVE}",
            "ProjectionExpression": "#sort, #body, #encoding, #parts, #revision",
        }
        parameters["ExpressionAttributeNames"] |= {
            "#expiry": self.expiry_name,
            "#removed": REMOVED_BY,
            "#body": self.messages_name,
            "#encoding": ENCODING,
            "#parts": PARTS,
            "#revision": REVISION,
        }
        parameters["ExpressionAttributeValues"] |= {":now": {"N": str(now)}, ":number": {"S": "N"}}
        if limit is not None:
            parameters["Limit"] = min(limit, MAX_LIMIT)
        if start_key is not None:
            parameters["ExclusiveStartKey"] = start_key
        return Request("query", parameters, large=True)

    def query_keys(
        self,
        *,
        before: SortKey | None = None,
        only: SortKey | None = None,
        start_key: dict[str, AttributeValue] | None = None,
    ) -> Request:
        """Read a page of the sort keys of all that is stored, tombstones among it, in order.

        Args:
            before: only messages before this one.
            only: only the parts of this one.
            start_key: the ``LastEvaluatedKey`` of the page before.
        """
        low, high = _range(before=before, only=only)
        parameters = self._query(low, high, newest_first=False, consistent=True) | {
            "ProjectionExpression": "#sort, #removed, #parts, #expiry",
        }
        parameters["ExpressionAttributeNames"] |= {
            "#removed": REMOVED_BY,
            "#parts": PARTS,
            "#expiry": self.expiry_name,
        }
        if start_key is not None:
            parameters["ExclusiveStartKey"] = start_key
        return Request("query", parameters, large=True)

    def query_alive_keys(self, *, now: int, start_key: dict[str, AttributeValue] | None = None) -> Request:
        """Read a page of the sort keys of what is alive, in order."""
        parameters = self._query(PREFIX, f"{PREFIX}~", newest_first=False, consistent=True) | {
            "FilterExpression": f"attribute_not_exists(#removed) AND {ALIVE}",
            "ProjectionExpression": "#sort",
        }
        parameters["ExpressionAttributeNames"] |= {"#expiry": self.expiry_name, "#removed": REMOVED_BY}
        parameters["ExpressionAttributeValues"] |= {":now": {"N": str(now)}, ":number": {"S": "N"}}
        if start_key is not None:
            parameters["ExclusiveStartKey"] = start_key
        return Request("query", parameters)

    def is_of_all(self, request: Request) -> bool:
        """Tell whether a query begins at one end of the session and, strongly consistent, leaves no message out."""
        values, low_and_high = request.parameters["ExpressionAttributeValues"], _range()
        return (
            "ExclusiveStartKey" not in request.parameters
            and request.parameters["ConsistentRead"]
            and (values[":low"]["S"], values[":high"]["S"]) == low_and_high
        )

    def get(self, key: SortKey, *, consistent: bool = True) -> Request:
        """Read the first item of a message."""
        return Request("get_item", {"TableName": self.table_name, "Key": self._key(key), "ConsistentRead": consistent})

    def replace(
        self, stored: StoredPart, items: Sequence[Mapping[str, AttributeValue]], token: str, now: int
    ) -> Request:
        """Put a message's new items into the place of what is stored, unless it has gone or changed since."""
        names = {
            "#sort": self.sort_key_name,
            "#removed": REMOVED_BY,
            "#revision": REVISION,
            "#expiry": self.expiry_name,
        }
        head: dict[str, Any] = {
            "TableName": self.table_name,
            "Item": items[0],
            "ConditionExpression": f"{_THERE} AND {_same(stored.revision)} AND {ALIVE}",
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": {":now": {"N": str(now)}, ":number": {"S": "N"}},
        }
        if stored.revision is not None:
            head["ExpressionAttributeValues"] |= {":revision": stored.revision}
        actions = [{"Put": head}, *({"Put": {"TableName": self.table_name, "Item": item}} for item in items[1:])]
        actions += [
            {"Delete": {"TableName": self.table_name, "Key": self._key(stored.key.of_part(part))}}
            for part in range(len(items), stored.parts)
        ]
        return together(actions, token)

    def removal(self, key: SortKey, known: StoredPart | None, write: str, now: int) -> dict[str, Any]:
        """Empty the first item of a message, unless it was replaced since it was known."""
        # What is marked as removed and has a body all the same is damaged: its body has to go.
        condition = f"({_THERE} OR attribute_exists(#body))"
        names = {
            "#sort": self.sort_key_name,
            "#removed": REMOVED_BY,
            "#expiry": self.expiry_name,
            "#body": self.messages_name,
            "#encoding": ENCODING,
            "#type": TYPE,
        }
        values: dict[str, AttributeValue] = {":write": {"S": write}, ":fence": {"N": str(now + FENCE_SECONDS)}}
        if known is not None:
            condition += f" AND {_same(known.revision)}"
            names["#revision"] = REVISION
            values |= {} if known.revision is None else {":revision": known.revision}
        return {
            "TableName": self.table_name,
            "Key": self._key(key),
            "UpdateExpression": "SET #removed = :write, #expiry = :fence REMOVE #body, #encoding, #type",
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    def remove(self, key: SortKey, known: StoredPart | None, write: str, now: int) -> Request:
        """Do a removal, and return what is left."""
        return Request("update_item", self.removal(key, known, write, now) | {"ReturnValues": "ALL_NEW"})

    def remove_together(
        self, key: SortKey, known: StoredPart | None, write: str, now: int, *others: Mapping[str, Any]
    ) -> Request:
        """Do a removal, and with it what the other actions do."""
        return together([{"Update": self.removal(key, known, write, now)}, *others], write)

    def removed_by(self, tombstone: Item) -> str | None:
        """Return the id of the write that removed a message, None where the message is there."""
        return tombstone[REMOVED_BY].get("S", "") if REMOVED_BY in tombstone else None

    def alive(self, item: Item, now: int) -> StoredPart | None:
        """Read the first item of a message, None where it was removed or has expired."""
        part = self.stored_part(item)
        expired = has_passed(item.get(self.expiry_name), now)
        return None if part is None or part.removed_by is not None or expired else part

    def sweep(self, parts: Iterable[StoredPart], write: str, now: int) -> list[Request]:
        """Remove items for good, or empty them where a request that stores them may still be under way."""
        actions = []
        for part in parts:
            key = self._key(part.key)
            # A request that stores parts stores the first one too, and fails on its tombstone.
            is_over = part.removed_by is not None and has_passed(part.expiry, now)
            if is_over or part.key.created_at < now - FENCE_SECONDS or part.key.part > 0:
                actions.append({"DeleteRequest": {"Key": key}})
            elif part.removed_by is None or not has_passed(part.expiry, now + 2 * FENCE_SECONDS):
                # What expires later than a tombstone does, on whatever clock, is damaged: it may have a body, too.
                tombstone = {REMOVED_BY: {"S": write}, self.expiry_name: {"N": str(now + FENCE_SECONDS)}}
                actions.append({"PutRequest": {"Item": {**key, **tombstone}}})
        return [
            self.batch_write(actions[start : start + MAX_BATCH_WRITE_ITEMS])
            for start in range(0, len(actions), MAX_BATCH_WRITE_ITEMS)
        ]

    def batch_write(self, actions: list[dict[str, Any]]) -> Request:
        return Request("batch_write_item", {"RequestItems": {self.table_name: actions}})

    def stored_part(self, item: Item) -> StoredPart | None:
        """Read an item, None where it is not a message's."""
        key = parse(item[self.sort_key_name].get("S", ""))
        if key is None:
            return None
        body = item.get(self.messages_name, {})
        content = body["S"] if "S" in body else bytes_of(body.get("B", b""))
        if not isinstance(content, (str, bytes)):
            raise TypeError("a body is text or binary")
        return StoredPart(
            key,
            content,
            _text_in(item, ENCODING),
            parts_in(item) if key.is_first_part else 0,
            for_request(item[REVISION]) if REVISION in item else None,
            self.removed_by(item),
            item.get(self.expiry_name),
        )

    def plain_texts(self, items: Sequence[Item]) -> list[StoredText] | None:
        """Return what a page has, None unless each item has nothing but the key and the text of a whole message.

        Most pages are such. By ``stored_part`` reading them takes 1.3 times as long.
        """
        try:
            keys = [item[self.sort_key_name]["S"] for item in items if len(item) == 2]
            texts = [item[self.messages_name]["S"] for item in items]
        except (KeyError, TypeError):
            return None
        is_plain = items and len(keys) == len(items) and {*map(type, keys), *map(type, texts)} == {str}
        is_plain = is_plain and are_of_first_parts(keys)
        return list(zip(keys, texts, strict=True)) if is_plain else None

    def is_stored(self, item: Mapping[str, AttributeValue], found: Item | None) -> bool:
        """Tell whether what was found in an item's place has its key: no other request puts an item there.

        In a table without a sort key it is another item, or another one of the same transaction.
        """
        return found is not None and found.get(self.sort_key_name) == item[self.sort_key_name]

    def _put(self, item: Mapping[str, AttributeValue]) -> dict[str, Any]:
        ((partition, _),) = self.key.items()
        # Of the partition key, because in a table that has no sort key every item lacks that attribute, and would be
        # replaced: a whole session of langchain-community's.
        return {
            "TableName": self.table_name,
            "Item": item,
            "ConditionExpression": "attribute_not_exists(#partition)",
            "ExpressionAttributeNames": {"#partition": partition},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    def _key(self, key: SortKey) -> dict[str, AttributeValue]:
        return {**self.key, self.sort_key_name: {"S": str(key)}}

    def _query(self, low: str, high: str, *, newest_first: bool, consistent: bool) -> dict[str, Any]:
        ((name, value),) = self.key.items()
        return {
            "TableName": self.table_name,
            "KeyConditionExpression": "#partition = :partition AND #sort BETWEEN :low AND :high",
            "ExpressionAttributeNames": {"#partition": name, "#sort": self.sort_key_name},
            "ExpressionAttributeValues": {":partition": value, ":low": {"S": low}, ":high": {"S": high}},
            "ScanIndexForward": not newest_first,
            "ConsistentRead": consistent,
        }


def other_parts(key: SortKey, parts: int) -> list[StoredPart]:
    """Return the parts that a message of so many has behind its first one."""
    return [StoredPart(key.of_part(part), None, "", 0, None, None) for part in range(1, parts)]


def together(actions: Sequence[Mapping[str, Any]], token: str) -> Request:
    """Write all or nothing. By its token DynamoDB knows a request that is sent again within ten minutes."""
    return Request("transact_write_items", {"TransactItems": actions, "ClientRequestToken": token})


def messages_of(parts: Iterable[StoredPart]) -> tuple[list[StoredPart], dict[int, list[StoredPart]]]:
    """Return the first parts of all messages, in order, and by its position what else there is of a message.

    Parts without a first one are left over from a removal.
    """
    messages: list[StoredPart] = []
    others: dict[int, list[StoredPart]] = {}
    for part in parts:
        if part.parts:
            messages.append(part)
            if part.parts != 1:
                others[len(messages) - 1] = []
        elif messages and _belongs_to(messages[-1], part):
            others.setdefault(len(messages) - 1, []).append(part)
    return messages, others


def joined(first: StoredPart, others: Sequence[StoredPart]) -> StoredPart:
    """Return a message of several parts, without a content where one is missing."""
    if first.parts == DAMAGED or [part.key.part for part in others] != [*range(1, first.parts)]:
        return first._replace(content=None)
    return first._replace(content=b"".join(as_bytes(part.content or b"") for part in (first, *others)))


def _belongs_to(first: StoredPart, part: StoredPart) -> bool:
    return first.key == part.key.of_part(0) and first.revision == part.revision


def _range(
    *, before: SortKey | None = None, upto: SortKey | None = None, only: SortKey | None = None
) -> tuple[str, str]:
    """Return what sort keys of messages, and of their parts, lie between."""
    low = PREFIX if only is None else str(only)[:-2]
    if last := only or upto:
        return low, f"{str(last)[:-2]}~"
    return low, f"{PREFIX}~" if before is None else str(before)[:-2]


def _text_in(item: Item, name: str) -> str:
    """Return an attribute's text, empty where there is none, and what nothing is called where it is not text."""
    return item[name].get("S", _NOT_TEXT) if name in item else ""


def parts_in(item: Item) -> int:
    """Return of how many items a message consists, or consisted; DAMAGED where that is no number that can be."""
    if PARTS not in item:
        return 1
    digits = item[PARTS].get("N", "")
    # By its length first: a damaged number may have any.
    parts = int(digits) if len(digits) <= len(str(MAX_TRANSACTION_ITEMS)) and digits.isdecimal() else 0
    return parts if 1 <= parts <= MAX_TRANSACTION_ITEMS else DAMAGED


def as_bytes(content: str | bytes) -> bytes:
    """Return a body's bytes, those of its text in UTF-8."""
    return content.encode() if isinstance(content, str) else content


class TooLarge(Exception):
    """A message does not fit into a transaction; its position in the batch, and its size in bytes."""

    def __init__(self, position: int, size: int) -> None:
        super().__init__()
        self.position = position
        self.size = size


Items: TypeAlias = "list[dict[str, AttributeValue]]"


def sized(items: Items) -> tuple[Items, int]:
    """Return a message's items with their size in bytes."""
    return items, sum(size_of({"M": item}) for item in items)


def transactions(messages: Iterable[tuple[Items, int]], max_items: int) -> list[list[Items]]:
    """Divide a batch, in order, into as few transactions as DynamoDB's limits allow; no message is divided.

    Args:
        messages: the messages' items, with their sizes.
        max_items: how many of a transaction's items may be theirs.

    Raises:
        TooLarge: a message does not fit into one.
    """
    divided: list[list[Items]] = []
    items_left, bytes_left = 0, 0
    for position, (items, size) in enumerate(messages):
        if len(items) > max_items or size > MAX_TRANSACTION_BYTES:
            raise TooLarge(position, size)
        if len(items) > items_left or size > bytes_left:
            divided.append([])
            items_left, bytes_left = max_items, MAX_TRANSACTION_BYTES
        divided[-1].append(items)
        items_left -= len(items)
        bytes_left -= size
    return divided


def _same(revision: AttributeValue | None) -> str:
    return "attribute_not_exists(#revision)" if revision is None else "#revision = :revision"


def iso(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as it is stored: to the millisecond, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
