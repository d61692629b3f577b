"""Reading the records of one session: pages, the latest ones, one of them; and ordering what is written after them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import NamedTuple

from .._codec.attribute_values import AttributeValue
from .._cooperative import Slices
from .._request import Item, Request
from .._session import Access, EmptyPages, now, reads_stored
from ..errors import UndecodableItemError
from .records import DAMAGED, PlainRecord, Record, joined, records_of
from .requests import ItemCollection
from .sort_keys import RecordPosition, SortKey, clock_of
from .typical_counts import typical_counts

_READ_AGAIN = 5
# Of half a megabyte and more, whose JSON holds the loop for 2 to 6 ms.
_LONG_PAGE = 500


class PlainPage(NamedTuple):
    """A page of records that have no more than a text."""

    records: list[PlainRecord]


class Reader:
    """Reads the records of one session.

    Args:
        layout: how the session is stored.
        access: what it reaches its table with.
        format_name: the format of its values as it is stored, empty for LangChain's messages.

    Attributes:
        clock: the session's clock, which sees all that is read.
        found_nothing: whether the latest read was of all the session, strongly consistent, and found nothing.
    """

    __slots__ = ("_empty_pages", "_format_name", "_session", "access", "clock", "found_nothing", "layout")

    def __init__(self, layout: ItemCollection, access: Access, format_name: str) -> None:
        self.layout = layout
        self.access = access
        self._session = (layout.table_name, repr(layout.key))
        self.clock = clock_of(*self._session)
        self.found_nothing = False
        # Of all the handle's reads together: any items begin the counting anew.
        self._empty_pages = EmptyPages(access.ref)
        self._format_name = format_name

    async def check_sort_key(self, key: SortKey) -> None:
        """Refuse a table without the sort key; once, before the first record that is put alone.

        To such a table it is an attribute like any other: the item would be stored as the session itself. All other
        requests have the sort key where DynamoDB refuses it, or put two items that would be one.
        """
        await self.access.clients.first_append.check(
            self._sort_key_check(), lambda: self.access.call(self.layout.get(key, consistent=False))
        )

    def has_sort_key(self) -> None:
        """Take that check for passed, because another request has shown it."""
        self.access.clients.first_append.record(self._sort_key_check())

    def _sort_key_check(self) -> tuple[str, ...]:
        return ("sort key", self.layout.table_name, *self.layout.key, self.layout.sort_key_name)

    def wrote(self, number: int) -> None:
        """Remember how many values a record has that was written."""
        typical_counts.see(*self._session, [number])

    async def next_key(self) -> SortKey:
        """Return the sort key of a new record, unless it cannot come behind what was seen."""
        if self.clock.saw_impossible_key:
            # By whomever, it may have been deleted since. No other record comes behind it.
            latest = (await self.latest(1, consistent=True))[-1:]
            if latest and not self.clock.is_possible(latest[0].key):
                raise UndecodableItemError(
                    f"stored {latest[0].name} claims a time that no clock can have told, and nothing can come"
                    " behind it; nothing was written. adelete_messages([error.message_id]) deletes it",
                    self.access.ref,
                    latest[0].id,
                )
            self.clock.recover()
        return self.clock.next_key()

    async def latest(
        self,
        count: int,
        *,
        at_first: int | None = None,
        before: RecordPosition | None = None,
        up_to: RecordPosition | None = None,
        consistent: bool | None = None,
        types: bool = False,
    ) -> list[Record]:
        """Return the latest records that have so many values, if there are, oldest first.

        Those of which a part was missing have no content: see ``whole``.

        Args:
            count: how many values.
            at_first: how many records to ask for at first, None for as many as the session's usually need.
            before: only records with values before this one.
            up_to: only records with values up to this one.
            consistent: whether the read is strongly consistent, None for the handle's choice.
            types: whether the values' types are read too.
        """
        parts: list[Record] = []
        found, limit, start_key = 0, at_first or typical_counts.records_for(*self._session, count), None
        if bound := before or up_to:
            # What is cut off of the record in which the bound lies.
            limit += 1
        while True:
            items, start_key = await self.query(
                self.layout.query(
                    now=now(),
                    consistent=self.access.consistent_read if consistent is None else consistent,
                    newest_first=True,
                    limit=limit,
                    before=before.key if before is not None and not before.position else None,
                    up_to=bound.key if bound is not None and (bound is up_to or bound.position) else None,
                    types=types,
                    start_key=start_key,
                )
            )
            page = await self._parts(items)
            typical_counts.see(*self._session, [part.number for part in page if part.key.is_first_part])
            parts += page
            found += sum(part.number for part in page if part.key.is_first_part and not _is_cut(part, bound))
            if found >= count or start_key is None:
                return await _joined(reversed(parts))
            needed = typical_counts.records_for(*self._session, count - found)
            # Parts, tombstones and what has expired count towards a limit: where there are many, a few requests must
            # do.
            limit = needed if 2 * len(page) >= limit else max(needed, 4 * limit)

    async def pages(
        self, up_to: RecordPosition | None = None, *, consistent: bool | None = None
    ) -> AsyncGenerator[PlainPage | list[Record], None]:
        """Yield the records in order, those of one response at a time."""
        consistent = self.access.consistent_read if consistent is None else consistent
        waiting: list[Record] = []
        start_key = None
        while True:
            request = self.layout.query(
                now=now(), consistent=consistent, up_to=None if up_to is None else up_to.key, start_key=start_key
            )
            items, start_key = await self.query(request)
            plain = self._plain(items) if up_to is None and not waiting else None
            if plain is not None:
                # For the clock: the last of a page is its latest.
                await self._parts(items[-1:])
                # A megabyte, which is not searched for garbage while its texts are decoded.
                del items
                yield PlainPage(plain)
            else:
                waiting += await self._parts(items)
                end = len(waiting) if start_key is None else _start_of_last(waiting)
                yield await _joined(waiting[:end])
                del waiting[:end]
            if start_key is None:
                return

    @reads_stored
    async def first_part(self, key: SortKey) -> Record | None:
        """Return a record, strongly consistent, None where it was removed or has expired.

        It has no content where it has more parts: see ``whole``.
        """
        item: Item | None = (await self.access.call(self.layout.get(key))).get("Item")
        first = None if item is None else self.layout.alive(item, now())
        return first if first is None or first.parts == 1 else first._replace(content=None)

    async def keys(
        self, *, before: SortKey | None = None, only: SortKey | None = None
    ) -> AsyncGenerator[list[Record], None]:
        """Yield what there is of records, tombstones among it, without bodies, those of one response at a time."""
        start_key = None
        while True:
            request = self.layout.query_keys(before=before, only=only, start_key=start_key)
            items, start_key = await self.query(request)
            yield await self.stored(items)
            if start_key is None:
                return

    async def whole(self, records: Sequence[Record]) -> list[Record]:
        """Return records, those read again of which a part was missing, without those that have gone meanwhile.

        A query may return some of a transaction's writes without the others. DynamoDB does not isolate transactions
        from the pages of a query, and on AWS not from a single page.

        Raises:
            UndecodableItemError: a part stays missing. So however many are damaged, only one is read again in vain.
        """
        return [
            whole
            for record in records
            if (whole := record if record.content is not None else await self._read_again(record)) is not None
        ]

    async def query(self, request: Request) -> tuple[list[Item], dict[str, AttributeValue] | None]:
        """Return a page of what is stored, with the key of the next one."""
        response = await self.access.call(request)
        self.has_sort_key()
        items: list[Item] = response.get("Items", [])
        start_key = response.get("LastEvaluatedKey")
        if start_key is not None:
            self._empty_pages.count(items)
        self.found_nothing = not items and start_key is None and self.layout.is_of_all(request)
        if len(items) > _LONG_PAGE:
            await asyncio.sleep(0)
        return items, start_key

    @reads_stored
    async def stored(self, items: Sequence[Item]) -> list[Record]:
        """Return what a page has of records."""
        read = await self.access.in_slices(lambda item, _: self.layout.record(item), items)
        return [part for part in read if part is not None]

    async def _parts(self, items: Sequence[Item]) -> list[Record]:
        """Return what a page has of records, and order what is written after it."""
        parts = await self.stored(items)
        if parts:
            # They are in order, from either end.
            self.clock.see(max(parts[0].key, parts[-1].key))
        return parts

    @reads_stored
    async def _read_again(self, record: Record) -> Record | None:
        """Return a record read as a whole, None where it is gone."""
        if record.parts == DAMAGED:
            raise self.access.undecodable(record.name, record.id, "its number of parts is damaged")
        unchanged, attempts = 0, self.access.attempts()
        while True:
            await attempts.begin()
            parts, start_key = list[Record](), None
            while True:
                request = self.layout.query(
                    now=now(), consistent=True, only=record.key, types=True, start_key=start_key
                )
                items, start_key = await self.query(request)
                parts += await self.stored(items)
                if start_key is None:
                    break
            found = await _joined(parts)
            if not found:
                return None
            if found[0].content is not None:
                return found[0]
            # Whoever changes the record in a loop may tear each read of it. Where nobody has, nothing will mend it.
            unchanged = unchanged + 1 if found[0].revision == record.revision else 0
            if unchanged == _READ_AGAIN:
                raise self.access.undecodable(record.name, record.id, "a part of it is missing")
            record = found[0]

    def _plain(self, items: Sequence[Item]) -> list[PlainRecord] | None:
        plain = self.layout.plain_records(items, self._format_name)
        if plain:
            typical_counts.see(*self._session, [count for _, _, count in plain])
        return plain


def _is_cut(record: Record, bound: RecordPosition | None) -> bool:
    return bound is not None and bound.key == record.key


async def _joined(parts: Iterable[Record]) -> list[Record]:
    """Return the records of these parts, without a content where a part is missing."""
    slices = Slices()
    records, others = records_of(parts)
    for position, rest in others.items():
        await slices.checkpoint()
        records[position] = joined(records[position], rest)
    await slices.checkpoint()
    return records


def _start_of_last(parts: Sequence[Record]) -> int:
    """Return where the parts of the last record begin, if it may go on in the next page."""
    start = len(parts)
    if parts and parts[-1].parts == 1:
        return start
    while start and parts[start - 1].key.of_part(0) == parts[-1].key.of_part(0):
        start -= 1
    return start
