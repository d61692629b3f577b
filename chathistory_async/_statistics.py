"""The size and the cost of a stored session: its messages, records, bytes, capacity units and expiry."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ._codec.attribute_values import AttributeValue, size_of
from ._codec.format import LANGCHAIN_NAME
from ._codec.json_values import format_as_json
from ._item_collection.bodies import Bodies
from ._item_collection.layout import ItemCollection
from ._item_collection.reader import Reader
from ._item_collection.records import Record, joined
from ._item_collection.requests import query_whole_items
from ._request import Item
from ._session import Access, reads_stored
from ._session_index.stored import OWNER
from ._single_item.layout import SingleItem
from ._single_item.requests import get_item
from ._wall_clock import now

# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
_WRITE_UNIT_BYTES = 1024
_READ_UNIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class SessionStats:
    """The size and the cost of a session, by AWS's published rules for the sizes of items.

    Attributes:
        format: the format of the values, "langchain" for messages; None if the session has no values.
        messages: how many messages or values can be read.
        records: how many records hold them. A single item is one record.
        stored_bytes: the bytes of all the session's items, also of those that are removed or expired but still stored.
        raw_bytes: the bytes of the values' JSON text before compression and encryption; in a single item, of the stored
            values. None if they are encrypted and the store has no ``kms_key_id``, and for an encrypted single item.
        largest_message_bytes: the raw bytes of the largest value; None like ``raw_bytes``.
        largest_record_bytes: the stored bytes of the largest record.
        append_write_units: the write units of an append, on average over the stored records; in a single item, of the
            next append.
        read_units: the read units of a strongly consistent read of the whole session. An eventually consistent read
            takes half.
        first_expiry: when the first value expires, or None if no value expires.
        last_expiry: when the last value expires, or None if a value never expires.
    """

    format: str | None
    messages: int
    records: int
    stored_bytes: int
    raw_bytes: int | None
    largest_message_bytes: int | None
    largest_record_bytes: int
    append_write_units: float
    read_units: int
    first_expiry: datetime | None
    last_expiry: datetime | None


class _Measured:
    """The sums over a session's records so far."""

    def __init__(self) -> None:
        self.formats: list[str] = []
        self.numbers: list[int] = []
        self.sizes: list[int] = []
        self.units: list[int] = []
        self.raw: list[int] | None = []
        self.expiries: list[float | None] = []

    def stats(self, stored_bytes: int, read_units: int) -> SessionStats:
        never = not self.expiries or None in self.expiries
        times = [time for time in self.expiries if time is not None]
        return SessionStats(
            format=self.formats[-1] if self.formats else None,
            messages=sum(self.numbers),
            records=len(self.sizes),
            stored_bytes=stored_bytes,
            raw_bytes=None if self.raw is None else sum(self.raw),
            largest_message_bytes=None if self.raw is None else max(self.raw, default=0),
            largest_record_bytes=max(self.sizes, default=0),
            append_write_units=sum(self.units) / max(1, len(self.units)),
            read_units=read_units,
            first_expiry=_time(min(times)) if times else None,
            last_expiry=None if never else _time(max(times)),
        )


class CollectionStatistics:
    """Measures a session of an item collection.

    Args:
        layout: the session's table, key and settings.
        access: the session's access to its table.
        session_item: the session's item in the index, or None without an index.
    """

    def __init__(self, layout: ItemCollection, access: Access, session_item: Item | None) -> None:
        self.access = access
        self._layout = layout
        self._reader = Reader(layout, access, "")
        self._session_item = session_item
        self._measured = _Measured()
        self._stored_bytes = 0
        self._read_units = 0

    async def stats(self) -> SessionStats:
        """Read the whole session, and return what it measures."""
        parts: list[tuple[Record, Item]] = []
        async with aclosing(self._items()) as items:
            async for record, item in items:
                if parts and record.key.of_part(0) != parts[0][0].key.of_part(0):
                    await self._measure(parts)
                    parts = []
                parts.append((record, item))
        await self._measure(parts)
        return self._measured.stats(self._stored_bytes, self._read_units)

    async def _items(self) -> AsyncGenerator[tuple[Record, Item], None]:
        start_key = None
        while True:
            items, start_key = await self._reader.query(query_whole_items(self._layout, start_key=start_key))
            size = sum(map(item_size, items))
            self._stored_bytes += size
            self._read_units += _units(size, _READ_UNIT_BYTES)
            for item in items:
                for record in await self._reader.stored([item]):
                    yield record, item
            if start_key is None:
                return

    @reads_stored
    async def _measure(self, parts: list[tuple[Record, Item]]) -> None:
        """Add a record, by its parts and their items. Records that are removed or expired are not counted."""
        if not parts or not parts[0][0].key.is_first_part or self._layout.alive(parts[0][1], now()) is None:
            return
        first, *others = (record for record, _ in parts)
        measured, sizes = self._measured, [item_size(item) for _, item in parts]
        measured.formats.append(first.format or LANGCHAIN_NAME)
        measured.numbers.append(first.number)
        measured.sizes.append(sum(sizes))
        measured.units.append(self._write_units(sizes))
        measured.expiries.append(_seconds(first.expiry))
        if self._is_unreadable(first):
            measured.raw = None
        if measured.raw is not None:
            for whole in await self._reader.whole([joined(first, others)]):
                bodies = Bodies[Any](self.access, format_as_json(whole.format or LANGCHAIN_NAME))
                measured.raw += map(len, await bodies.texts(whole))

    def _write_units(self, sizes: Iterable[int]) -> int:
        units = [_units(size, _WRITE_UNIT_BYTES) for size in sizes]
        if self._session_item is not None:
            # The transaction also writes the session's item. With an owner, the index drops an entry and gets another,
            # because the time of the last activity is part of its key.
            in_index = 2 if OWNER in self._session_item else 0
            return 2 * sum(units) + (2 + in_index) * _units(item_size(self._session_item), _WRITE_UNIT_BYTES)
        # Several items are written in one transaction, which costs twice as much.
        return sum(units) * (1 if len(units) == 1 else 2)

    def _is_unreadable(self, record: Record) -> bool:
        return record.is_encrypted and self.access.cipher is None


class SingleItemStatistics:
    """Measures a session of a single item."""

    def __init__(self, layout: SingleItem, access: Access) -> None:
        self.access = access
        self._layout = layout

    @reads_stored
    async def stats(self) -> SessionStats:
        """Read the item, and return what it measures."""
        measured = _Measured()
        item: Item = (await self.access.call(get_item(self._layout))).get("Item", {})
        stored, size = self._layout.stored(item, now()), item_size(item)
        if item and not stored.expired:
            measured.formats.append(LANGCHAIN_NAME)
            measured.numbers.append(len(stored.messages))
            measured.sizes.append(size)
            measured.units.append(_units(size, _WRITE_UNIT_BYTES))
            measured.expiries.append(_seconds(item.get(self._layout.expiry_name)))
            is_encrypted = any("B" in message for message in stored.messages)
            measured.raw = None if is_encrypted else [size_of(message) for message in stored.messages]
        return measured.stats(size, _units(size, _READ_UNIT_BYTES))


def item_size(item: Item) -> int:
    """Return the bytes of an item, by AWS's published rules: the names and the values of its attributes."""
    return sum(len(name.encode()) + size_of(value) for name, value in item.items())


def _units(size: int, unit: int) -> int:
    return max(1, math.ceil(size / unit))


def _seconds(expiry: AttributeValue | None) -> float | None:
    try:
        return None if expiry is None else float(expiry["N"])
    except (KeyError, ValueError):
        # DynamoDB never deletes an item whose expiry is not a number.
        return None


def _time(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return None
