"""The item-collection layout: a session's table, key and settings, and its records as items. Pure: no I/O.

One append is one record: one item under the session's partition key and a sort key that orders it (see ``sort_keys``).
Its body is the JSON text of its one value, or of an array with one line per value. If the body is not encrypted, the
values' types are stored beside it. The time and the number of values (left out for one value) are always stored in the
clear, so that streams, exports and the console can read them. A body that is too large for one item is divided into
several items, the parts of the record, which one transaction writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TypeAlias

from .._codec.attribute_values import AttributeValue, bytes_of, for_request, has_passed
from .._expressions import number_value
from .._request import Item
from .._settings import check_settings
from .records import DAMAGED, MAX_TYPES, Body, PlainRecord, Record
from .sort_keys import MAX_VALUES, SortKey, are_of_first_parts, parse

# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_TRANSACTION_ITEMS = 100
# The limit is 4 MB, taken as 10**6 bytes each: AWS does not publish what DynamoDB counts besides the items.
MAX_TRANSACTION_BYTES = 4_000_000

# The attributes of records. A new one has to be added to _OF_RECORDS, ItemCollection.items_of and .record, Body and
# Record (``records``), and _NAMES and _READ (``requests``). Also look at plain_records, which counts a plain record's
# attributes; and in ``requests`` at query_keys, at remove_record, which removes attributes, and at _may_have_a_body.
ENCODING = "Encoding"
TYPE = "Type"
CREATED_AT = "CreatedAt"
COUNT = "Count"
POSITIONS = "Positions"
FORMAT = "Format"
PARTS = "Parts"
REVISION = "Revision"
REMOVED_BY = "RemovedBy"
# The attribute of a migration's checkpoint. It stands here because no setting may give another attribute its name.
MIGRATION = "Migration"
# The attributes of an idempotency key's marker: a digest of the batch, and the sort key of its record.
CONTENT, RECORD = "Content", "Record"
_OF_RECORDS = (ENCODING, TYPE, CREATED_AT, COUNT, POSITIONS, FORMAT, PARTS, REVISION, REMOVED_BY)
_OWN_NAMES = (*_OF_RECORDS, MIGRATION, CONTENT, RECORD)

_NOT_TEXT = "not text"

Items: TypeAlias = "list[dict[str, AttributeValue]]"


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

    def key_of(self, sort_key: str) -> dict[str, AttributeValue]:
        """Return the primary key of the session's item with this sort key."""
        return {**self.key, self.sort_key_name: {"S": str(sort_key)}}

    def items_of(
        self, key: SortKey, body: Body, expiry: AttributeValue | None, revision: AttributeValue | None = None
    ) -> Items:
        """Return the items of a record, the first part first."""
        contents = body.parts()
        common: dict[str, AttributeValue] = {} if expiry is None else {self.expiry_name: expiry}
        if revision is not None:
            common[REVISION] = revision
        items = [
            {**self.key_of(key.of_part(part)), self.messages_name: content, **common}
            for part, content in enumerate(contents)
        ]
        head = items[0]
        head[CREATED_AT] = {"S": iso(key.created_at)}
        if body.types:
            types: list[AttributeValue] = [{"S": kind} for kind in body.types[:MAX_TYPES]]
            head[TYPE] = types[0] if len(body.positions) == 1 else {"L": types}
        if len(body.positions) > 1:
            head[COUNT] = number_value(len(body.positions))
        if positions := body.positions_text():
            head[POSITIONS] = {"S": positions}
        if body.format:
            head[FORMAT] = {"S": body.format}
        if body.encoding:
            head[ENCODING] = {"S": body.encoding}
        if len(contents) > 1:
            head[PARTS] = number_value(len(contents))
        return items

    def expiry(self, now: int) -> AttributeValue | None:
        """Return when an item that is written now expires, or None for never."""
        return None if self.ttl is None else number_value(now + self.ttl)

    def alive(self, item: Item, now: int) -> Record | None:
        """Return the record of a first item, or None if the record was removed or has expired."""
        record = self.record(item)
        expired = has_passed(item.get(self.expiry_name), now)
        return None if record is None or record.removed_by is not None or expired else record

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
            _text_or_invalid(item, ENCODING),
            _number_in(item, PARTS, MAX_TRANSACTION_ITEMS) if key.is_first_part else 0,
            _number_in(item, COUNT, MAX_VALUES),
            _text_or_invalid(item, POSITIONS),
            _text_or_invalid(item, FORMAT),
            _types_in(item),
            for_request(item[REVISION]) if REVISION in item else None,
            _removed_by(item),
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


def iso(seconds: float) -> str:
    """Return a time, in seconds since the epoch, in its stored form: ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _removed_by(item: Item) -> str | None:
    """Return the id of the write that removed a record, or None if the item is not a tombstone."""
    return item[REMOVED_BY].get("S", "") if REMOVED_BY in item else None


def _text_or_invalid(item: Item, name: str) -> str:
    """Return an attribute's text, empty if there is no such attribute, or an invalid value if it is not text."""
    return item[name].get("S", _NOT_TEXT) if name in item else ""


def _number_in(item: Item, name: str, most: int) -> int:
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
