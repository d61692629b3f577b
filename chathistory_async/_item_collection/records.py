"""Records as stored: the body of an append, its parts, and the positions of its values. Pure: no I/O."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from .._codec.attribute_values import AttributeValue
from .sort_keys import MAX_VALUES, RecordPosition, SortKey, message_id_of, record_id_of

# An item has at most 400 KB. Its keys, attribute names and other attributes take at most 10 KB of them.
PART_BYTES = 390 * 1024
# In characters. With 4 bytes for each, the body fits into one part, however long the text of its positions is.
_SURELY_ONE_PART = 64 * 1024
# The positions' text shares the first item with the body. It is longest after every second value was removed.
MAX_POSITIONS_BYTES = 64 * 1024
# How many types a record stores. They are for people who look at the table, and more would not be worth their cost.
MAX_TYPES = 100
# The encoding of an encrypted body, after any other encoding.
ENCRYPTED = "aws-encryption-sdk"
# Returned for a stored number of parts or values that no record can have.
DAMAGED = -1
_DIGITS = len(str(MAX_VALUES))
_RUN = f"[0-9]{{1,{_DIGITS}}}(?:-[0-9]{{0,{_DIGITS}}})?"
_RUNS = re.compile(f"{_RUN}(?:,{_RUN})*")
# How many positions, of 40 bytes each, a cached list has at most.
_MOST_KEPT = 16_384


class Body(NamedTuple):
    """The body of one append, in its stored form.

    Attributes:
        content: JSON text if the encoding is empty (as bytes if it is not UTF-8), else bytes.
        encoding: how the JSON text was encoded: "zlib", "aws-encryption-sdk" or "zlib,aws-encryption-sdk"; else empty.
        positions: the positions of its values, in ascending order.
        format: the name of the values' format, empty for LangChain's messages.
        types: the types of the values, of which the first MAX_TYPES are stored; empty if the body is encrypted.
    """

    content: str | bytes
    encoding: str
    positions: Sequence[int]
    format: str
    types: Sequence[str]

    def parts(self) -> list[AttributeValue]:
        """Return the body as attribute values, one per item."""
        if isinstance(self.content, str) and len(self.content) < _SURELY_ONE_PART:
            return [{"S": self.content}]
        data, first_bytes = as_bytes(self.content), PART_BYTES - len(self.positions_text())
        if isinstance(self.content, str) and len(data) <= first_bytes:
            return [{"S": self.content}]
        starts = [0, *range(first_bytes, len(data), PART_BYTES)]
        return [{"B": data[start:end]} for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]

    def positions_text(self) -> str:
        """Return the positions in their stored form: see ``text_of``."""
        return text_of(self.positions)


class Record(NamedTuple):
    """A stored item: a record, or a part of one. After joining, the first part stands for the whole record.

    Attributes:
        content: as in ``Body``, or None if a part of the record is missing.
        parts: how many items the record has; 0 in every part but the first; DAMAGED if the stored number is not valid.
        length: how many values the record has, or DAMAGED if the stored number is not valid.
        positions: the values' positions as text: see ``text_of``.
        types: as in ``Body``, if they were read.
        revision: the attribute with the ids of the record's latest changes, or None if the record was never changed.
        removed_by: the id of the write that removed the record, or None if it was not removed.
        expiry: the attribute with the time at which the item expires, or None if it has none.
    """

    key: SortKey
    content: str | bytes | None = None
    encoding: str = ""
    parts: int = 0
    length: int = 1
    positions: str = ""
    format: str = ""
    types: Sequence[str] = ()
    revision: AttributeValue | None = None
    removed_by: str | None = None
    expiry: AttributeValue | None = None

    @property
    def id(self) -> str:
        """The id of the record's only message, or the record's id if it has several or its positions are damaged."""
        positions = self.all_positions() if self.length == 1 else None
        return record_id_of(self.key) if positions is None else message_id_of(self.key, positions[0])

    @property
    def name(self) -> str:
        """The name of the record in errors: "message" or "record", and the id."""
        is_message = self.length == 1 and self.all_positions() is not None
        return f"{'message' if is_message else 'record'} {self.id}"

    @property
    def is_encrypted(self) -> bool:
        """Whether the body is encrypted."""
        return self.encoding.endswith(ENCRYPTED)

    @property
    def number(self) -> int:
        """How many values the record counts as: 1 if the stored number is damaged."""
        return max(1, self.length)

    def all_positions(self) -> Sequence[int] | None:
        """Return the positions of the values, or None if they are damaged."""
        return None if self.length == DAMAGED else positions_of(self.positions, self.length)


class Wanted(NamedTuple):
    """A record and the indexes of its values that are wanted, or None for all values."""

    record: Record
    indexes: range | None = None

    @property
    def number(self) -> int:
        return self.record.number if self.indexes is None else len(self.indexes)


def wanted_of(
    records: Sequence[Record],
    last: int | None = None,
    *,
    before: RecordPosition | None = None,
    up_to: RecordPosition | None = None,
) -> list[Wanted]:
    """Return which values of records are wanted: the last ones, before or up to a position.

    Args:
        records: the records, oldest first.
        last: how many values are wanted, or None for all.
        before: only values before this position.
        up_to: only values up to this position, including it.
    """
    wanted = [_cut(record, before, up_to) for record in records]
    wanted = [one for one in wanted if one.number]
    return wanted if last is None else _latest(wanted, last)


def _latest(wanted: Sequence[Wanted], number: int) -> list[Wanted]:
    latest: list[Wanted] = []
    for one in reversed(wanted):
        if number <= 0:
            break
        indexes = range(one.record.number) if one.indexes is None else one.indexes
        latest.append(one if one.number <= number else Wanted(one.record, indexes[-number:]))
        number -= one.number
    return latest[::-1]


def _cut(record: Record, before: RecordPosition | None, up_to: RecordPosition | None) -> Wanted:
    bound = before or up_to
    if bound is None or bound.key != record.key or (bound is up_to and bound.position is None):
        return Wanted(record)
    positions = record.all_positions()
    if positions is None:
        # Decoding the record raises the error.
        return Wanted(record)
    if bound is up_to:
        return Wanted(record, range(bisect_right(positions, bound.position or 0)))
    return Wanted(record, range(0 if bound.position is None else bisect_left(positions, bound.position)))


# A record in one item, neither compressed nor encrypted nor changed: its sort key, its JSON text, its number of values.
PlainRecord: TypeAlias = "tuple[str, str, int]"


def text_of(positions: Sequence[int]) -> str:
    """Return positions as text, such as ``0-3,5``, or an empty text if they begin at 0 and have no gap."""
    if not positions or positions[-1] == len(positions) - 1:
        return ""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in _runs(positions))


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = last = positions[0]
    for position in positions[1:]:
        if position != last + 1:
            yield first, last
            first = position
        last = position
    yield first, last


def positions_of(text: str, count: int) -> Sequence[int] | None:
    """Return the positions in a text, or None if the text is damaged or does not have ``count`` positions."""
    if not text:
        return range(count)
    return _positions_of(text, count) if count <= _MOST_KEPT else _positions_of.__wrapped__(text, count)


# Cached: reading or changing a record needs its positions several times, and parsing 5,000 runs takes 3 ms.
@lru_cache(maxsize=32)
def _positions_of(text: str, count: int) -> Sequence[int] | None:
    if not _RUNS.fullmatch(text):
        return None
    positions: list[int] = []
    before = -1
    for run in text.split(","):
        first, _, last = run.partition("-")
        start = end = int(first)
        if last:
            end = int(last)
        if not before < start <= end < MAX_VALUES or end - start >= count - len(positions):
            return None
        positions += (start,) if start == end else range(start, end + 1)
        before = end
    return positions if len(positions) == count else None


def as_bytes(content: str | bytes) -> bytes:
    """Return a body as bytes. Text is encoded in UTF-8."""
    return content.encode() if isinstance(content, str) else content


def other_parts(record: Record) -> list[Record]:
    """Return the parts after a record's first one, with their sort keys only."""
    return [Record(record.key.of_part(part)) for part in range(1, record.parts)]


def records_of(parts: Iterable[Record]) -> tuple[list[Record], dict[int, list[Record]]]:
    """Group parts by record.

    Parts without a first part are left over from a removal. They are left out.

    Returns:
        the first parts, in order; and the other parts of records that have some, by the index of their first part.
    """
    records: list[Record] = []
    others: dict[int, list[Record]] = {}
    for part in parts:
        if part.parts:
            records.append(part)
            if part.parts != 1:
                others[len(records) - 1] = []
        elif records and _belongs_to(records[-1], part):
            others.setdefault(len(records) - 1, []).append(part)
    return records, others


def joined(first: Record, others: Sequence[Record]) -> Record:
    """Join the parts of a record. The record has the content None if a part is missing."""
    if first.parts == DAMAGED or [part.key.part for part in others] != [*range(1, first.parts)]:
        return first._replace(content=None)
    return first._replace(content=b"".join(as_bytes(part.content or b"") for part in (first, *others)))


def _belongs_to(first: Record, part: Record) -> bool:
    return first.key == part.key.of_part(0) and first.revision == part.revision
