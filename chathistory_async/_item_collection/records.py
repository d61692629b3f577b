"""Records as they are stored, pure: the body of an append, its parts, and the positions of the values in it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from .._codec.attribute_values import AttributeValue
from .sort_keys import MAX_VALUES, RecordPosition, SortKey, message_id_of, record_id_of

# Of the 400 KB of an item: keys, names and the other attributes take at most 10 KB.
PART_BYTES = 390 * 1024
# Characters, of up to four bytes each, beside any positions.
_SURELY_ONE_PART = 64 * 1024
# Below it lies the rest of an item: the positions of a record from which every second value was removed.
MAX_POSITIONS_BYTES = 64 * 1024
# Of the types that are shown; more would cost more than they tell.
MAX_TYPES = 100
# A number of parts, or of values, where what is stored is none that a record can have.
DAMAGED = -1
_DIGITS = len(str(MAX_VALUES))
_RUN = f"[0-9]{{1,{_DIGITS}}}(?:-[0-9]{{0,{_DIGITS}}})?"
_RUNS = re.compile(f"{_RUN}(?:,{_RUN})*")
# Of 40 bytes each.
_MOST_KEPT = 16_384


class Body(NamedTuple):
    """What is stored of one append.

    Attributes:
        content: JSON text where the encoding is empty, else bytes.
        encoding: what was made of the JSON text: "zlib", "aws-encryption-sdk" or "zlib,aws-encryption-sdk".
        positions: those of the values in it, in ascending order.
        format: the name of the values' format, empty for LangChain's messages.
        types: the values' types, of the first ones where there are many; none where they are nobody's business.
    """

    content: str | bytes
    encoding: str
    positions: Sequence[int]
    format: str
    types: Sequence[str]

    def parts(self) -> list[AttributeValue]:
        """Return the attribute values of the body, one an item."""
        if isinstance(self.content, str) and len(self.content) < _SURELY_ONE_PART:
            return [{"S": self.content}]
        data, first_bytes = as_bytes(self.content), PART_BYTES - len(self.positions_text())
        if isinstance(self.content, str) and len(data) <= first_bytes:
            return [{"S": self.content}]
        starts = [0, *range(first_bytes, len(data), PART_BYTES)]
        return [{"B": data[start:end]} for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]

    def positions_text(self) -> str:
        """Return the positions as they are stored, empty where none is left out."""
        return text_of(self.positions)


class Record(NamedTuple):
    """An item as it is stored: a record, or a part of one. Put together, the first part stands for the whole record.

    Attributes:
        content: as in ``Body``; None where parts of the record are missing.
        parts: of how many items the record consists; 0 in all of them but the first, DAMAGED where it cannot be told.
        length: how many values it has, DAMAGED where it cannot be told.
        positions: theirs as text, empty where they are the first ones.
        types: as in ``Body``, where they were read.
        revision: the attribute with the ids of the latest changes of the record, None where it was not changed.
        removed_by: the id of the write that removed the record, None where it is there.
        expiry: the attribute with the time from which on the item is nothing any more, None where it has none.
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
        """What it is known by: the id of its one message, or the record's where it has more or nobody knows which."""
        positions = self.all_positions() if self.length == 1 else None
        return record_id_of(self.key) if positions is None else message_id_of(self.key, positions[0])

    @property
    def name(self) -> str:
        """What an error calls it."""
        is_message = self.length == 1 and self.all_positions() is not None
        return f"{'message' if is_message else 'record'} {self.id}"

    @property
    def number(self) -> int:
        """How many values to count it for; a damaged one for one."""
        return max(1, self.length)

    def all_positions(self) -> Sequence[int] | None:
        """Return the positions of its values, None where they are damaged."""
        return None if self.length == DAMAGED else positions_of(self.positions, self.length)


class Wanted(NamedTuple):
    """A record, and which of its values are wanted, by their places in it; None for all."""

    record: Record
    places: range | None = None

    @property
    def number(self) -> int:
        return self.record.number if self.places is None else len(self.places)


def wanted_of(
    records: Sequence[Record],
    last: int | None = None,
    *,
    before: RecordPosition | None = None,
    up_to: RecordPosition | None = None,
) -> list[Wanted]:
    """Return which values of records are wanted: the last ones, before or up to one of them."""
    wanted = [_cut(record, before, up_to) for record in records]
    wanted = [one for one in wanted if one.number]
    return wanted if last is None else _latest(wanted, last)


def _latest(wanted: Sequence[Wanted], number: int) -> list[Wanted]:
    latest: list[Wanted] = []
    for one in reversed(wanted):
        if number <= 0:
            break
        places = range(one.record.number) if one.places is None else one.places
        latest.append(one if one.number <= number else Wanted(one.record, places[-number:]))
        number -= one.number
    return latest[::-1]


def _cut(record: Record, before: RecordPosition | None, up_to: RecordPosition | None) -> Wanted:
    bound = before or up_to
    if bound is None or bound.key != record.key or (bound is up_to and bound.position is None):
        return Wanted(record)
    positions = record.all_positions()
    if positions is None:
        # Whoever decodes it tells of the damage.
        return Wanted(record)
    if bound is up_to:
        return Wanted(record, range(bisect_right(positions, bound.position or 0)))
    return Wanted(record, range(0 if bound.position is None else bisect_left(positions, bound.position)))


# A record that has no more than a text: its sort key, the text and the number of its values.
PlainRecord: TypeAlias = "tuple[str, str, int]"


def text_of(positions: Sequence[int]) -> str:
    """Return positions as text, such as ``0-3,5``; empty where they are all from 0 on."""
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
    """Return the positions that a text has, None where it is damaged, or does not have so many."""
    if not text:
        return range(count)
    return _positions_of(text, count) if count <= _MOST_KEPT else _positions_of.__wrapped__(text, count)


# Each call that reads or changes a record asks several times, and 5,000 runs take 3 ms.
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
    """Return a body's bytes, those of its text in UTF-8."""
    return content.encode() if isinstance(content, str) else content


def other_parts(record: Record) -> list[Record]:
    """Return the parts that a record has behind its first one."""
    return [Record(record.key.of_part(part)) for part in range(1, record.parts)]


def records_of(parts: Iterable[Record]) -> tuple[list[Record], dict[int, list[Record]]]:
    """Return the first parts of all records, in order, and by its position what else there is of a record.

    Parts without a first one are left over from a removal.
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
    """Return a record of several parts, without a content where one is missing."""
    if first.parts == DAMAGED or [part.key.part for part in others] != [*range(1, first.parts)]:
        return first._replace(content=None)
    return first._replace(content=b"".join(as_bytes(part.content or b"") for part in (first, *others)))


def _belongs_to(first: Record, part: Record) -> bool:
    return first.key == part.key.of_part(0) and first.revision == part.revision
