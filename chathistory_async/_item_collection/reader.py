"""Reading the records of one session: in pages, the latest ones, or one. Later writes are ordered after them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import NamedTuple

from .._aws.calls import pause
from .._codec.attribute_values import AttributeValue
from .._cooperative import Slices
from .._request import Item, Request
from .._session import MAX_ATTEMPTS, Access, EmptyPages, reads_stored
from .._wall_clock import now
from ..errors import UndecodableItemError
from .layout import ItemCollection
from .records import DAMAGED, PlainRecord, Record, joined, records_of
from .requests import get_record, is_of_all, query_keys, query_records
from .sort_keys import RecordPosition, SortKey, clock_of
from .typical_counts import typical_counts

_READ_AGAIN = 5
# A page of more items has half a megabyte or more. Parsing its JSON blocks the event loop for 2 to 6 ms.
_LONG_PAGE = 500


class PlainPage(NamedTuple):
    """A page whose items are all plain records: see ``PlainRecord``."""

    records: list[PlainRecord]


class Reader:
    """Reads the records of one session.

    Args:
        layout: the session's table, key and settings.
        access: the session's access to its table.
        format_name: the stored name of the values' format, empty for LangChain's messages.

    Attributes:
        clock: the session's clock, which ``latest`` and ``pages`` move past the records that they read.
        found_nothing: whether the latest query covered the whole session, was strongly consistent and returned no item.
    """

    __slots__ = ("_empty_pages", "_format_name", "_session", "access", "clock", "found_nothing", "layout")

    def __init__(self, layout: ItemCollection, access: Access, format_name: str) -> None:
        self.layout = layout
        self.access = access
        self._session = (layout.table_name, repr(layout.key))
        self.clock = clock_of(*self._session)
        self.found_nothing = False
        # One counter for all reads of the handle. Any page with items sets it to 0.
        self._empty_pages = EmptyPages(access.ref)
        self._format_name = format_name

    async def check_sort_key(self, key: SortKey) -> None:
        """Check that the table has the sort key, once, before the first record that is put without a transaction.

        In a table without the sort key, DynamoDB would store it as an ordinary attribute, and the record as the only
        item of the session. Other requests need no check. DynamoDB rejects them in such a table, because they use the
        sort key as a key, or because they put two items that would have the same primary key.
        """
        await self.access.clients.first_append.check(
            self._sort_key_check(), lambda: self.access.call(get_record(self.layout, key, consistent=False))
        )

    def has_sort_key(self) -> None:
        """Record that this check has passed, because another request has shown that the table has the sort key."""
        self.access.clients.first_append.record(self._sort_key_check())

    def _sort_key_check(self) -> tuple[str, ...]:
        return ("sort key", self.layout.table_name, *self.layout.key, self.layout.sort_key_name)

    def wrote(self, number: int) -> None:
        """Remember the number of values of a record that was written, for the estimates of later reads."""
        typical_counts.see(*self._session, [number])

    async def next_key(self) -> SortKey:
        """Return the sort key of a new record, which comes after all records that were seen.

        Raises:
            UndecodableItemError: the latest record has an impossible sort key, so no new record can come after it.
        """
        if self.clock.saw_impossible_key:
            # The impossible record may have been deleted since. If it is still stored, it is the latest one.
            latest = (await self.latest(1, consistent=True))[-1:]
            if latest and not self.clock.is_possible(latest[0].key):
                raise UndecodableItemError(
                    f"stored {latest[0].name} has an impossible time, more than a century ahead, and nothing can be"
                    " appended after it; nothing was written. adelete_messages([error.message_id]) deletes it",
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
        """Return the latest records that together have at least ``count`` values, oldest first.

        If the session has fewer values, all its records are returned. Usually one request is enough. A record with a
        missing part has the content None: see ``whole``.

        Args:
            count: how many values are needed.
            at_first: how many items the first request reads, or None for an estimate from the session's other records.
            before: only records with values before this position.
            up_to: only records with values up to this position, including it.
            consistent: whether the reads are strongly consistent, or None for the handle's setting.
            types: whether the values' types are read too.
        """
        parts: list[Record] = []
        found, limit, start_key = 0, at_first or typical_counts.records_for(*self._session, count), None
        if bound := before or up_to:
            # The record that the bound lies in contributes only some of its values.
            limit += 1
        while True:
            items, start_key = await self.query(
                query_records(
                    self.layout,
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
            # Further parts, tombstones and expired items count towards Limit. If there are many of them, the limit
            # grows fourfold, so that a few requests are enough.
            limit = needed if 2 * len(page) >= limit else max(needed, 4 * limit)

    async def pages(
        self, up_to: RecordPosition | None = None, *, consistent: bool | None = None
    ) -> AsyncGenerator[PlainPage | list[Record], None]:
        """Yield the records in order, one response at a time.

        A record with a missing part has the content None: see ``whole``.
        """
        consistent = self.access.consistent_read if consistent is None else consistent
        waiting: list[Record] = []
        start_key = None
        while True:
            last = None if up_to is None else up_to.key
            request = query_records(self.layout, now=now(), consistent=consistent, up_to=last, start_key=start_key)
            items, start_key = await self.query(request)
            plain = self._plain(items) if up_to is None and not waiting else None
            if plain is not None:
                # Moves the clock. The last item of a page is its latest.
                await self._parts(items[-1:])
                # Freed, so that the garbage collector does not search a page of 1 MB while its texts are decoded.
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
        """Return a record, by a strongly consistent read, or None if it was removed or has expired.

        A record of several parts has the content None: see ``whole``.
        """
        item: Item | None = (await self.access.call(get_record(self.layout, key))).get("Item")
        first = None if item is None else self.layout.alive(item, now())
        return first if first is None or first.parts == 1 else first._replace(content=None)

    async def keys(
        self, *, before: SortKey | None = None, only: SortKey | None = None
    ) -> AsyncGenerator[list[Record], None]:
        """Yield all stored parts of records, without bodies, one response at a time.

        Tombstones and expired items are among them.
        """
        start_key = None
        while True:
            request = query_keys(self.layout, before=before, only=only, start_key=start_key)
            items, start_key = await self.query(request)
            yield await self.stored(items)
            if start_key is None:
                return

    async def whole(self, records: Sequence[Record]) -> list[Record]:
        """Return complete records. A record with a missing part is read again, and left out if it is gone by then.

        A query may return some of a transaction's writes without the others. DynamoDB does not isolate transactions
        from the pages of a query, and on AWS not even from a single page.

        Raises:
            UndecodableItemError: a part is still missing. The first such record ends the call, so only one damaged
                record is read again, even if there are several.
        """
        return [
            whole
            for record in records
            if (whole := record if record.content is not None else await self._read_again(record)) is not None
        ]

    async def query(self, request: Request) -> tuple[list[Item], dict[str, AttributeValue] | None]:
        """Send a query. Return the items of its page, and the start key of the next page or None."""
        response = await self.access.call(request)
        self.has_sort_key()
        items: list[Item] = response.get("Items", [])
        start_key = response.get("LastEvaluatedKey")
        if start_key is not None:
            self._empty_pages.count(items)
        self.found_nothing = not items and start_key is None and is_of_all(request)
        if len(items) > _LONG_PAGE:
            await asyncio.sleep(0)
        return items, start_key

    @reads_stored
    async def stored(self, items: Sequence[Item]) -> list[Record]:
        """Return the records, parts and tombstones among the items of a page."""
        read = await self.access.in_slices(lambda item, _: self.layout.record(item), items)
        return [part for part in read if part is not None]

    async def _parts(self, items: Sequence[Item]) -> list[Record]:
        """Return the records and parts among the items of a page, and move the clock past them."""
        parts = await self.stored(items)
        if parts:
            # The items are in ascending or descending order.
            self.clock.see(max(parts[0].key, parts[-1].key))
        return parts

    @reads_stored
    async def _read_again(self, record: Record) -> Record | None:
        """Read a record again until no part is missing, and return it, or None if it is gone."""
        if record.parts == DAMAGED:
            raise self.access.undecodable(record.name, record.id, "its number of parts is damaged")
        unchanged = 0
        for _ in range(MAX_ATTEMPTS):
            # A reader does not conflict: it waits for the writer to finish.
            await pause(unchanged)
            parts, start_key = list[Record](), None
            while True:
                request = query_records(
                    self.layout, now=now(), consistent=True, only=record.key, types=True, start_key=start_key
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
            # A writer that keeps changing the record may tear every read. If it has not changed, more reads will fail.
            unchanged = unchanged + 1 if found[0].revision == record.revision else 0
            if unchanged == _READ_AGAIN:
                raise self.access.undecodable(record.name, record.id, "a part of it is missing")
            record = found[0]
        raise self.access.conflict()

    def _plain(self, items: Sequence[Item]) -> list[PlainRecord] | None:
        plain = self.layout.plain_records(items, self._format_name)
        if plain:
            typical_counts.see(*self._session, [count for _, _, count in plain])
        return plain


def _is_cut(record: Record, bound: RecordPosition | None) -> bool:
    return bound is not None and bound.key == record.key


async def _joined(parts: Iterable[Record]) -> list[Record]:
    """Join parts into records. A record with a missing part has the content None."""
    slices = Slices()
    records, others = records_of(parts)
    for position, rest in others.items():
        await slices.checkpoint()
        records[position] = joined(records[position], rest)
    await slices.checkpoint()
    return records


def _start_of_last(parts: Sequence[Record]) -> int:
    """Return the index of the last record's first part if it may continue on the next page, else the length."""
    start = len(parts)
    if parts and parts[-1].parts == 1:
        return start
    while start and parts[start - 1].key.of_part(0) == parts[-1].key.of_part(0):
        start -= 1
    return start
