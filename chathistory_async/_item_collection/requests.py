"""The item-collection layout: it builds request dicts and reads response dicts. Pure: no I/O.

One append is one record: one item under the session's partition key and a sort key that orders it (see ``sort_keys``).
Its body is the JSON text of its one value, or of an array with one line per value. If the body is not encrypted, the
values' types are stored beside it. The time and the number of values (left out for one value) are always stored in the
clear, so that streams, exports and the console can read them. A body that is too large for one item is divided into
several items, the parts of the record, which one transaction writes.

Exactly once. Sort keys are unique, and every item is put on condition that no item has its key. So a request that is
sent again changes nothing, whether DynamoDB still knows the transaction's token or not. This must also hold for a
record that was removed in the meantime. So a record that is younger than TOMBSTONE_SECONDS is not deleted but emptied.
The emptied item is a tombstone, which keeps the record's key. Readers skip it, and DynamoDB's TTL deletes it.

Changes. A record is changed on condition that its REVISION has not changed. REVISION holds the ids of the record's
latest changes, the latest one first. Each change has its own id, so no revision ever recurs, and a request that arrives
late changes nothing. If a response was lost, the revision shows whether the change was stored. The change was stored if
its id is in the revision. The change was not stored if its id is missing, while the id of the change before it is there
(or, if there was none, while no id has been dropped yet). In any other case the outcome is unknown. The tombstone of a
removal keeps the revision, so it shows the same. The id of a replacement ends with the position of the replaced value,
because a migration compares only values that were not replaced.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

from .._codec.attribute_values import AttributeValue, bytes_of, for_request, has_passed
from .._request import Item, Request, transaction
from .._settings import check_settings
from .records import DAMAGED, MAX_TYPES, Body, PlainRecord, Record
from .sort_keys import MAX_VALUES, PREFIX, SortKey, are_of_first_parts, parse

# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_TRANSACTION_ITEMS = 100
# The limit is 4 MB, taken as 10**6 bytes each: AWS does not publish what DynamoDB counts besides the items.
MAX_TRANSACTION_BYTES = 4_000_000
MAX_BATCH_WRITE_ITEMS = 25
# More items than a page holds: a page has at most 1 MB, and an item has 100 bytes or more.
MAX_LIMIT = 20_000
# AWS refuses a request that was signed more than five minutes ago, and the SDK's own retries end within minutes. The
# rest of this time allows for clocks that differ.
TOMBSTONE_SECONDS = 1800
# How many change ids a record keeps. After a lost response, the outcome is known if fewer changes have followed.
CHANGES_KNOWN = 16

ENCODING = "Encoding"
TYPE = "Type"
CREATED_AT = "CreatedAt"
COUNT = "Count"
POSITIONS = "Positions"
FORMAT = "Format"
PARTS = "Parts"
REVISION = "Revision"
REMOVED_BY = "RemovedBy"
MIGRATION = "Migration"
# Attributes of an idempotency key's marker: a digest of the batch, and the sort key of its record.
CONTENT, RECORD = "Content", "Record"
_OF_RECORDS = (ENCODING, TYPE, CREATED_AT, COUNT, POSITIONS, FORMAT, PARTS, REVISION, REMOVED_BY)
_OWN_NAMES = (*_OF_RECORDS, MIGRATION, CONTENT, RECORD)

_NOT_TEXT = "not text"
# The item is a record, maybe a damaged one, and not a tombstone.
_THERE = "(attribute_exists(#sort) AND attribute_not_exists(#removed))"
# The time is that at which the request was built.
ALIVE = "(attribute_not_exists(#expiry) OR NOT attribute_type(#expiry, :number) OR #expiry > :now)"

Action: TypeAlias = "dict[str, Any]"
Items: TypeAlias = "list[dict[str, AttributeValue]]"
# The action in a transaction, and the operation that does the same for a single item.
_OPERATIONS = {"Put": "put_item", "Update": "update_item", "Delete": "delete_item"}


@dataclass(frozen=True, slots=True)
class ItemCollection:
    """The table, key and settings of one session.

    Attributes:
        key: the name and attribute value of the partition key.
        sort_key_name: the name of the table's sort key.
        messages_name: the name of the attribute that holds a record's body.
        expiry_name: the name of the attribute that holds the time at which an item expires.
        ttl: how many seconds after its writing a record expires, or None for never.
        history_size: how many messages are kept, or None for all.

    Raises:
        ValueError: a setting is not valid, or two attributes have the same name.
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

    def put(self, items: Items) -> list[Action]:
        """Return the actions that store a record's items, each on condition that no item has its key."""
        return [{"Put": self._put(item)} for item in items]

    def items_of(
        self, key: SortKey, body: Body, expiry: AttributeValue | None, revision: AttributeValue | None = None
    ) -> Items:
        """Return the items of a record, the first part first."""
        contents = body.parts()
        common: dict[str, AttributeValue] = {} if expiry is None else {self.expiry_name: expiry}
        if revision is not None:
            common[REVISION] = revision
        items = [
            {**self._key(key.of_part(part)), self.messages_name: content, **common}
            for part, content in enumerate(contents)
        ]
        head = items[0]
        head[CREATED_AT] = {"S": iso(key.created_at)}
        if body.types:
            types: list[AttributeValue] = [{"S": kind} for kind in body.types[:MAX_TYPES]]
            head[TYPE] = types[0] if len(body.positions) == 1 else {"L": types}
        if len(body.positions) > 1:
            head[COUNT] = {"N": str(len(body.positions))}
        if positions := body.positions_text():
            head[POSITIONS] = {"S": positions}
        if body.format:
            head[FORMAT] = {"S": body.format}
        if body.encoding:
            head[ENCODING] = {"S": body.encoding}
        if len(contents) > 1:
            head[PARTS] = {"N": str(len(contents))}
        return items

    def expiry(self, now: int) -> AttributeValue | None:
        """Return when an item that is written now expires, or None for never."""
        return None if self.ttl is None else {"N": str(now + self.ttl)}

    def query(
        self,
        *,
        now: int,
        consistent: bool,
        newest_first: bool = False,
        limit: int | None = None,
        before: SortKey | None = None,
        up_to: SortKey | None = None,
        only: SortKey | None = None,
        types: bool = False,
        start_key: dict[str, AttributeValue] | None = None,
    ) -> Request:
        """Return the query for a page of live items: no tombstones, and no expired ones.

        Args:
            now: the time, in seconds since the epoch.
            consistent: whether the read is strongly consistent.
            newest_first: whether the items are in descending order instead of ascending order.
            limit: how many items DynamoDB reads at most, including tombstones and expired items, or None for no limit.
            before: only records before this one.
            up_to: only records up to this one, including it.
            only: only the parts of this record.
            types: whether types and expiry are read too, which rewriting a record needs.
            start_key: the ``LastEvaluatedKey`` of the previous page.
        """
        low, high = _range(before=before, up_to=up_to, only=only)
        parameters = self._query(low, high, newest_first=newest_first, consistent=consistent) | {
            "FilterExpression": f"attribute_not_exists(#removed) AND {ALIVE}",
            "ProjectionExpression": ", ".join(("#sort", *_READ, *(["#type", "#expiry"] if types else []))),
        }
        parameters["ExpressionAttributeNames"] |= {
            "#expiry": self.expiry_name,
            "#removed": REMOVED_BY,
            "#body": self.messages_name,
            **_READ_NAMES,
            **({"#type": TYPE} if types else {}),
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
        """Return the query for a page of all items without bodies, including tombstones and expired items, in order.

        Args:
            before: only records before this one.
            only: only the parts of this record.
            start_key: the ``LastEvaluatedKey`` of the previous page.
        """
        low, high = _range(before=before, only=only)
        parameters = self._query(low, high, newest_first=False, consistent=True) | {
            "ProjectionExpression": "#sort, #removed, #parts, #count, #encoding, #type, #expiry",
        }
        parameters["ExpressionAttributeNames"] |= {
            "#removed": REMOVED_BY,
            "#parts": PARTS,
            "#count": COUNT,
            "#encoding": ENCODING,
            "#type": TYPE,
            "#expiry": self.expiry_name,
        }
        if start_key is not None:
            parameters["ExclusiveStartKey"] = start_key
        return Request("query", parameters, large=True)

    def query_alive_keys(self, *, now: int, start_key: dict[str, AttributeValue] | None = None) -> Request:
        """Return the query for a page of the sort keys and numbers of values of live items, in order."""
        parameters = self._query(PREFIX, f"{PREFIX}~", newest_first=False, consistent=True) | {
            "FilterExpression": f"attribute_not_exists(#removed) AND {ALIVE}",
            "ProjectionExpression": "#sort, #count",
        }
        parameters["ExpressionAttributeNames"] |= {
            "#expiry": self.expiry_name,
            "#removed": REMOVED_BY,
            "#count": COUNT,
        }
        parameters["ExpressionAttributeValues"] |= {":now": {"N": str(now)}, ":number": {"S": "N"}}
        if start_key is not None:
            parameters["ExclusiveStartKey"] = start_key
        return Request("query", parameters)

    def is_of_all(self, request: Request) -> bool:
        """Return whether a query is strongly consistent, covers the whole session, and reads its first page."""
        values, low_and_high = request.parameters["ExpressionAttributeValues"], _range()
        return (
            "ExclusiveStartKey" not in request.parameters
            and request.parameters["ConsistentRead"]
            and (values[":low"]["S"], values[":high"]["S"]) == low_and_high
        )

    def query_between(self, low: str, high: str, start_key: dict[str, AttributeValue] | None) -> Request:
        """Return the query for a page of the sort keys of all items between two sort keys, including both, in order."""
        parameters = self._query(low, high, newest_first=False, consistent=True) | {"ProjectionExpression": "#sort"}
        if start_key is not None:
            parameters["ExclusiveStartKey"] = start_key
        return Request("query", parameters)

    def delete_items(self, sort_keys: Sequence[str]) -> list[Request]:
        """Return the requests that delete items by their sort keys, without a condition."""
        return self._batches(
            [{"DeleteRequest": {"Key": {**self.key, self.sort_key_name: {"S": key}}}} for key in sort_keys]
        )

    def get(self, key: SortKey, *, consistent: bool = True) -> Request:
        """Return the request that reads the first item of a record."""
        return Request("get_item", {"TableName": self.table_name, "Key": self._key(key), "ConsistentRead": consistent})

    def replace(self, stored: Record, items: Items, now: int) -> list[Action]:
        """Return the actions that replace the items of a stored record by new ones.

        The condition is that the record was not removed, has not expired, and has the revision that was read.
        """
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
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if stored.revision is not None:
            head["ExpressionAttributeValues"] |= {":revision": stored.revision}
        return [
            {"Put": head},
            *({"Put": {"TableName": self.table_name, "Item": item}} for item in items[1:]),
            *(
                {"Delete": {"TableName": self.table_name, "Key": self._key(stored.key.of_part(part))}}
                for part in range(len(items), stored.parts)
            ),
        ]

    def remove(self, key: SortKey, known: Record | None, write: str, now: int) -> Action:
        """Return the action that turns the first item of a record into a tombstone.

        The condition is that the item is not a tombstone already (unless it is a damaged one, with a body), and that
        the record has the revision of ``known``. With None for ``known``, any revision is accepted.
        """
        # An item that is marked as removed but has a body is damaged. Its body must be removed too.
        condition = f"({_THERE} OR attribute_exists(#body))"
        names = {
            "#sort": self.sort_key_name,
            "#removed": REMOVED_BY,
            "#expiry": self.expiry_name,
            "#body": self.messages_name,
            "#encoding": ENCODING,
            "#type": TYPE,
        }
        values: dict[str, AttributeValue] = {":write": {"S": write}, ":tombstone": {"N": str(now + TOMBSTONE_SECONDS)}}
        if known is not None:
            condition += f" AND {_same(known.revision)}"
            names["#revision"] = REVISION
            values |= {} if known.revision is None else {":revision": known.revision}
        return {
            "Update": {
                "TableName": self.table_name,
                "Key": self._key(key),
                "UpdateExpression": "SET #removed = :write, #expiry = :tombstone REMOVE #body, #encoding, #type",
                "ConditionExpression": condition,
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": values,
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }

    def removed_by(self, tombstone: Item) -> str | None:
        """Return the id of the write that removed a record, or None if the item is not a tombstone."""
        return tombstone[REMOVED_BY].get("S", "") if REMOVED_BY in tombstone else None

    def alive(self, item: Item, now: int) -> Record | None:
        """Return the record of a first item, or None if the record was removed or has expired."""
        record = self.record(item)
        expired = has_passed(item.get(self.expiry_name), now)
        return None if record is None or record.removed_by is not None or expired else record

    def sweep(self, parts: Iterable[Record], write: str, now: int) -> list[Request]:
        """Return the requests that delete items, or empty them if a request that stores them may still be under way."""
        actions = []
        for part in parts:
            key = self._key(part.key)
            # Further parts need no tombstone: a request that stores them fails on the first part's tombstone.
            is_over = part.removed_by is not None and has_passed(part.expiry, now)
            if is_over or part.key.created_at < now - TOMBSTONE_SECONDS or part.key.part > 0:
                actions.append({"DeleteRequest": {"Key": key}})
            elif part.removed_by is None or _may_have_a_body(part, now):
                tombstone = {REMOVED_BY: {"S": write}, self.expiry_name: {"N": str(now + TOMBSTONE_SECONDS)}}
                actions.append({"PutRequest": {"Item": {**key, **tombstone}}})
        return self._batches(actions)

    def _batches(self, actions: list[dict[str, Any]]) -> list[Request]:
        return [
            self.batch_write(actions[start : start + MAX_BATCH_WRITE_ITEMS])
            for start in range(0, len(actions), MAX_BATCH_WRITE_ITEMS)
        ]

    def batch_write(self, actions: list[dict[str, Any]]) -> Request:
        return Request("batch_write_item", {"RequestItems": {self.table_name: actions}})

    def record(self, item: Item) -> Record | None:
        """Return an item as a record, part or tombstone, or None if its sort key is not that of a record."""
        key = parse(item[self.sort_key_name].get("S", ""))
        if key is None:
            return None
        body = item.get(self.messages_name, {})
        content = body["S"] if "S" in body else bytes_of(body.get("B", b""))
        if not isinstance(content, (str, bytes)):
            raise TypeError("a body is text or binary")
        return Record(
            key,
            content,
            _text_in(item, ENCODING),
            number_in(item, PARTS, MAX_TRANSACTION_ITEMS) if key.is_first_part else 0,
            number_in(item, COUNT, MAX_VALUES),
            _text_in(item, POSITIONS),
            _text_in(item, FORMAT),
            _types_in(item),
            for_request(item[REVISION]) if REVISION in item else None,
            self.removed_by(item),
            for_request(item[self.expiry_name]) if self.expiry_name in item else None,
        )

    def plain_records(self, items: Sequence[Item], format_name: str) -> list[PlainRecord] | None:
        """Return the plain records of a page, or None if it has no items or has one that is not plain.

        A plain record is a whole record in one item, of this format, with only a text: see ``PlainRecord``. Most pages
        have only plain records. ``record`` would take 1.3 times as long to read them.
        """
        name, marks = self.messages_name, {FORMAT: {"S": format_name}} if format_name else {}
        records: list[PlainRecord] = []
        try:
            for item in items:
                left = len(item) - 2
                count = 1
                if left and COUNT in item:
                    left -= 1
                    count = int(item[COUNT]["N"])
                if marks:
                    left -= 1
                    if item[FORMAT] != marks[FORMAT]:
                        return None
                if left:
                    return None
                records.append((item[self.sort_key_name]["S"], item[name]["S"], count))
        except (KeyError, TypeError, ValueError):
            return None
        keys = [key for key, _, _ in records]
        texts = {type(part) for key, text, _ in records for part in (key, text)}
        is_plain = records and texts == {str} and all(1 <= count <= MAX_VALUES for _, _, count in records)
        return records if is_plain and are_of_first_parts(keys) else None

    def is_stored(self, item: Mapping[str, AttributeValue], found: Item | None) -> bool:
        """Return whether the item that was found instead has the sort key of this one, and so was stored before.

        Sort keys are unique, so no other request puts an item under this one. In a table without a sort key, the found
        item is a different one, or a different one of the same transaction.
        """
        return found is not None and found.get(self.sort_key_name) == item[self.sort_key_name]

    def _put(self, item: Mapping[str, AttributeValue]) -> dict[str, Any]:
        ((partition, _),) = self.key.items()
        # The condition is on the partition key. In a table without a sort key every item lacks that attribute, so a
        # condition on it would hold, and the put would replace the item: a whole session of langchain-community's.
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


def request_of(actions: Sequence[Action], token: str | None = None) -> Request:
    """Return the request that performs actions. A single action is a plain call, which costs half of a transaction.

    Args:
        actions: the actions, at least one.
        token: the ClientRequestToken of a transaction, or None for a new one.
    """
    if len(actions) > 1:
        return transaction(actions, token or new_token())
    ((name, parameters),) = actions[0].items()
    return Request(_OPERATIONS[name], parameters)


def new_token() -> str:
    """Return a new id of a write: at most 36 characters, because it is a transaction's ClientRequestToken too."""
    return secrets.token_urlsafe(18)


def id_of_replacement(token: str, position: int) -> str:
    """Return the id of a change that replaces the value at a position."""
    return f"{token}.{position:x}"


def may_be_replaced(revision: AttributeValue | None, position: int) -> bool:
    """Return whether the value at a position may have been replaced, according to the record's revision."""
    if revision is None:
        return False
    changes = _changes(revision)
    return not 1 <= len(changes) < CHANGES_KNOWN or any(change.endswith(f".{position:x}") for change in changes)


def changed_by(change_id: str, stored: Record) -> AttributeValue:
    """Return the revision of a stored record after a change."""
    return {"S": " ".join([change_id, *_changes(stored.revision)][:CHANGES_KNOWN])}


def outcome_of(change_id: str, stored: Record, found: Item | None) -> Literal["stored", "not stored", "unknown"]:
    """Return whether a refused change was stored by an earlier request.

    Args:
        change_id: the id of the change.
        stored: the record as it was read before the change.
        found: the item that is stored under the record's sort key now, or None if there is none.
    """
    if found is None:
        return "unknown"
    changes, before = _changes(found.get(REVISION)), _changes(stored.revision)
    if change_id in changes or change_id == found.get(REMOVED_BY, {}).get("S"):
        return "stored"
    # A sweep's tombstone keeps neither CREATED_AT nor the revision.
    is_all_told = CREATED_AT in found and (before[0] in changes if before else len(changes) < CHANGES_KNOWN)
    return "not stored" if is_all_told else "unknown"


def _changes(revision: AttributeValue | None) -> list[str]:
    text = (revision or {}).get("S")
    return text.split() if isinstance(text, str) else []


def _range(
    *, before: SortKey | None = None, up_to: SortKey | None = None, only: SortKey | None = None
) -> tuple[str, str]:
    """Return the lower and the upper bound of the sort keys of records and their parts, for a query."""
    low = PREFIX if only is None else str(only)[:-2]
    if last := only or up_to:
        return low, f"{str(last)[:-2]}~"
    return low, f"{PREFIX}~" if before is None else str(before)[:-2]


def _text_in(item: Item, name: str) -> str:
    """Return an attribute's text, empty if there is no such attribute, or an invalid value if it is not text."""
    return item[name].get("S", _NOT_TEXT) if name in item else ""


def number_in(item: Item, name: str, most: int) -> int:
    """Return a number of parts or values: 1 if there is no such attribute, DAMAGED if it is not from 1 to ``most``."""
    if name not in item:
        return 1
    digits = item[name].get("N", "")
    # The length is checked first, because a damaged number may have any length.
    number = int(digits) if len(digits) <= len(str(most)) and digits.isdecimal() else 0
    return number if 1 <= number <= most else DAMAGED


def _types_in(item: Item) -> list[str]:
    kinds = item.get(TYPE, {})
    return [str(kind.get("S", "")) for kind in kinds.get("L", [kinds] if "S" in kinds else [])]


_READ_NAMES = {
    "#encoding": ENCODING,
    "#parts": PARTS,
    "#count": COUNT,
    "#positions": POSITIONS,
    "#format": FORMAT,
    "#revision": REVISION,
}
_READ = ("#body", *_READ_NAMES)


def _may_have_a_body(tombstone: Record, now: int) -> bool:
    """Return whether a tombstone is damaged: it has an encoding or types, or expires later than any tombstone."""
    has_more = tombstone.encoding or tombstone.types
    return bool(has_more) or not has_passed(tombstone.expiry, now + 2 * TOMBSTONE_SECONDS)


def _same(revision: AttributeValue | None) -> str:
    return "attribute_not_exists(#revision)" if revision is None else "#revision = :revision"


def iso(seconds: float) -> str:
    """Return a time, in seconds since the epoch, in its stored form: ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
