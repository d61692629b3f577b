"""A session in an item collection: read, page, append, edit, clear."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timezone
from time import monotonic
from typing import Generic, TypeVar

from .._codec.format import LANGCHAIN_NAME
from .._cooperative import Slices
from .._session import Access, Session, Stored, StoredPage, leaves_no_plaintext, smaller
from .._settings import check_positive
from .._telemetry.operations import count_messages
from .._wall_clock import now
from ..errors import AccessDeniedError, ChatHistoryError, FormatError, KmsKeyError, UndecodableItemError
from .bodies import Bodies
from .edits import Edits
from .idempotency import Once
from .layout import ItemCollection
from .reader import PlainPage, Reader
from .records import MAX_TYPES, Record, Wanted, wanted_of
from .requests import Together
from .sort_keys import RecordPosition, SortKey, message_id_of, parse_id
from .writer import NewRecord, RecordWriter

_DECODED_AT_ONCE = 32
# Errors that concern one record only: others of the session may be readable.
_UNREADABLE = (UndecodableItemError, FormatError, KmsKeyError, AccessDeniedError)

Value = TypeVar("Value")


class ItemCollectionSession(Session[Value], Generic[Value]):
    """One session, stored in the items of one partition key.

    Args:
        layout: the session's table, key and settings.
        access: the session's access to its table.
        bodies: encodes and decodes the bodies of its records.
        reader: reads its records.
        writer: writes its records.
        idempotency_seconds: how many seconds an idempotency key keeps its batch from being stored again.
    """

    def __init__(
        self,
        layout: ItemCollection,
        access: Access,
        bodies: Bodies[Value],
        reader: Reader,
        writer: RecordWriter,
        idempotency_seconds: int,
    ) -> None:
        self.access = access
        self._layout = layout
        self._bodies = bodies
        self._reader = reader
        self._writer = writer
        self._edits = Edits(layout, access, bodies, reader, writer)
        self._idempotency_seconds = idempotency_seconds
        # For the trim of history_size: the sort keys and numbers of values of the latest records, oldest first. None
        # before the first read.
        self._window: list[tuple[SortKey, int]] | None = None

    @leaves_no_plaintext
    async def read(self, limit: int | None = None, *, up_to: str | None = None) -> list[Value]:
        """Return the latest values, or the latest up to and including ``up_to``, oldest first.

        At most ``limit`` and history_size values are returned, and few more are read.
        """
        check_positive("limit", limit)
        size, last = self._layout.history_size, None if up_to is None else parse_id(up_to)
        count = smaller(limit, size)
        if count is None:
            return [value async for values in self._value_pages(last) for value in values]
        if limit is None and last is None:
            records = await self._latest_and_window(count)
        else:
            records = await self._reader.latest(count, up_to=last)
        return _flat(await self._bodies.decode(await self._wanted(records, count, up_to=last)))

    async def stream(self) -> AsyncGenerator[Value, None]:
        """Yield all values, oldest first. They are read a page at a time, or all at once if history_size is set."""
        if self._layout.history_size is not None:
            for value in await self.read():
                yield value
            return
        async with aclosing(self._value_pages()) as pages:
            async for values in pages:
                values.reverse()
                # Popped: the next page may raise an error, and error trackers record local variables too.
                while values:
                    yield values.pop()

    async def page(self, limit: int, before: str | None) -> StoredPage[Value]:
        """Return the latest ``limit`` values, or the latest before the cursor ``before``."""
        check_positive("limit", limit, optional=False)
        end = None if before is None else parse_id(before)
        # One more value than the limit shows whether there is a previous page.
        records = await self._reader.latest(limit + 1, before=end)
        number = sum(one.number for one in wanted_of(records, before=end))
        stored = await self._stored(await self._wanted(records, limit, before=end))
        return StoredPage(stored, stored[0].id if number > limit and stored else None)

    async def stream_stored(self, last: int | None = None) -> AsyncGenerator[Stored[Value], None]:
        """Yield values with their ids and times, oldest first: all, a page at a time, or the latest ``last``."""
        if last is not None:
            for stored in (await self.page(last, None)).values:
                yield stored
            return
        async with aclosing(self._record_slices()) as slices:
            async for records in slices:
                for stored in await self._stored(await self._wanted(records)):
                    yield stored

    async def stored_format(self) -> str | None:
        """Return the name of the format of the latest value, or None if there is no value."""
        latest = await self._reader.latest(1)
        return (latest[-1].format or LANGCHAIN_NAME) if latest else None

    async def unreadable(self) -> AsyncGenerator[ChatHistoryError, None]:
        """Yield an error for each value, or for each whole record, that cannot be read."""
        async with aclosing(self._record_slices()) as slices:
            async for records in slices:
                for record in records:
                    for error in await self._unreadable_in(record):
                        yield error

    async def append(
        self,
        values: Sequence[Value],
        idempotency_key: str | None = None,
        together: Callable[[SortKey], Together] | None = None,
    ) -> None:
        """Append a batch as one record, in order and after all values that were seen: all of it or nothing.

        A batch larger than history_size is cut: only its last history_size values are stored.

        Args:
            values: the batch.
            idempotency_key: as for ``JsonSession.aadd``.
            together: returns what the same transaction writes, from the sort key of the record. Only for a session in
                the index.

        Raises:
            Overtaken: what ``together`` has returned no longer fits the session's item. Nothing was written.
        """
        values = list(values)
        if not values:
            return
        size = self._layout.history_size
        left_out = max(0, len(values) - size) if size is not None else 0
        texts = await self._bodies.encode(values)
        once = None
        if idempotency_key is not None:
            # The digest covers all values: batches that differ only in what history_size leaves out are different.
            once = Once.of(idempotency_key, self._bodies.format_name, texts, self._idempotency_seconds)
        texts = texts[left_out:]
        # Made before the values are encrypted, because encryption binds them to the sort key of their record.
        key, began = await self._reader.next_key(), monotonic()
        types = self._bodies.types_of(values[left_out : left_out + MAX_TYPES])
        body = await self._bodies.pack(key, texts, range(len(texts)), types)
        await self._writer.check_table()
        items = self._layout.items_of(key, body, self._layout.expiry(now()))
        beside = None if together is None else together(key)
        self._edits.check_size(items, len(texts), () if beside is None else beside.items)
        before = await self._writer.store(NewRecord(key, items, len(texts), began, once, beside))
        if before is not None:
            self._reader.clock.see(before)
        self._reader.wrote(len(texts))
        if size is not None:
            # The batch is stored. If the trim fails, a later append trims.
            with suppress(ChatHistoryError):
                await self._trim(size, (key, len(texts)))

    async def clear(self) -> None:
        """Remove all values that are stored now, and none that another writer adds afterwards."""
        self._window = None
        count_messages(await self.sweep())
        self._reader.clock.recover()
        await self._writer.swept()

    async def sweep(self, *, before: SortKey | None = None) -> int:
        """Remove all records, or all before ``before``, and return how many values they had."""
        swept = 0
        async with aclosing(self._reader.keys(before=before)) as pages:
            async for parts in pages:
                await self._writer.sweep(parts, of_all=before is None)
                swept += sum(part.number for part in parts if part.key.is_first_part and part.removed_by is None)
        return swept

    async def remove(self, ids: Iterable[str]) -> None:
        """Remove the values with these ids. The id of a record removes all its values. Unknown ids are ignored."""
        self._window = None
        await self._edits.remove(ids)

    async def pop(self) -> list[Value]:
        """Remove the latest value and return it in a list of one, or return an empty list if there is none.

        Each value is returned to one caller only.
        """
        self._window = None
        return await self._edits.pop()

    async def replace(self, value_id: str, value: Value) -> None:
        """Replace the value with this id by a new one. All of the change is stored, or none."""
        await self._edits.replace(value_id, value)

    @leaves_no_plaintext
    async def copy_to(self, other: Session[Value], up_to: str | None) -> None:
        """Append this session's values, up to and including ``up_to``, to another session as one batch."""
        last = None if up_to is None else parse_id(up_to)
        copied = [value async for values in self._value_pages(last) for value in values]
        count_messages(len(copied))
        await other.append(copied)

    async def _value_pages(self, up_to: RecordPosition | None = None) -> AsyncGenerator[list[Value], None]:
        """Yield the values in order, in lists."""
        async with aclosing(self._reader.pages(up_to)) as pages:
            async for page in pages:
                if isinstance(page, PlainPage):
                    yield await self._bodies.decode_plain(page.records)
                    continue
                # A few at a time: a page of 1 MB may be 100 MB when it is decompressed.
                for start in range(0, len(page), _DECODED_AT_ONCE):
                    wanted = await self._wanted(page[start : start + _DECODED_AT_ONCE], up_to=up_to)
                    yield _flat(await self._bodies.decode(wanted))

    async def _record_slices(self) -> AsyncGenerator[list[Record], None]:
        """Yield the records in order, a few at a time: see ``_value_pages``."""
        async with aclosing(self._reader.pages()) as pages:
            async for page in pages:
                records = [self._bodies.record_of(one) for one in page.records] if isinstance(page, PlainPage) else page
                for start in range(0, len(records), _DECODED_AT_ONCE):
                    yield records[start : start + _DECODED_AT_ONCE]

    async def _stored(self, wanted: Sequence[Wanted]) -> list[Stored[Value]]:
        stored, slices = list[Stored[Value]](), Slices()
        for one, values in zip(wanted, await self._bodies.decode(wanted), strict=True):
            await slices.checkpoint()
            key, created_at = one.record.key, _created_at(one.record.key)
            ids = (message_id_of(key, position) for position in _positions(one))
            stored += [Stored(id_, value, created_at) for id_, value in zip(ids, values, strict=True)]
        return stored

    async def _unreadable_in(self, record: Record) -> list[ChatHistoryError]:
        try:
            whole = await self._reader.whole([record])
            await self._bodies.decode([Wanted(one) for one in whole])
        except _UNREADABLE as error:
            if error.message_id == record.id:
                return [error]
        else:
            return []
        # One of several values cannot be read. More of them may be unreadable.
        errors = list[ChatHistoryError]()
        for index in range(record.length):
            try:
                await self._bodies.decode([Wanted(one, range(index, index + 1)) for one in whole])
            except _UNREADABLE as error:
                errors.append(error)
        return errors

    async def _wanted(
        self,
        records: Sequence[Record],
        last: int | None = None,
        *,
        before: RecordPosition | None = None,
        up_to: RecordPosition | None = None,
    ) -> list[Wanted]:
        """Return the wanted values of records. Records with a missing part are read again: see ``Reader.whole``."""
        wanted = [one.record for one in wanted_of(records, last, before=before, up_to=up_to)]
        return wanted_of(await self._reader.whole(wanted), last, before=before, up_to=up_to)

    async def _latest_and_window(self, size: int) -> list[Record]:
        """Return the latest records, with ``size`` values and up to a slack more, and remember their sort keys."""
        records = await self._reader.latest(size + slack(size))
        self._window = [(record.key, record.number) for record in records]
        return records

    async def _trim(self, size: int, added: tuple[SortKey, int]) -> None:
        """Remove the values beyond history_size, once they seem to be as many as the slack.

        The remembered records only decide when to look at the session, because other writers may have removed values
        since. If no records are remembered, each append looks at random, on average once per slack of appended values.
        """
        known = self._window
        if known is None and random.randrange(slack(size)) >= added[1]:
            return
        window = sorted({*(known or ()), added})
        self._window = _last(window, size + slack(size))
        if known is not None and sum(number for _, number in window) < size + slack(size):
            return
        await self._keep_latest(size)

    async def _keep_latest(self, size: int) -> None:
        """Remove the records before the latest ``size`` values."""
        latest = await self._reader.latest(size, consistent=True)
        self._window = [(record.key, record.number) for record in latest]
        if sum(number for _, number in self._window) >= size:
            oldest, _ = _last(self._window, size)[0]
            await self.sweep(before=oldest)
        await self._writer.swept()


def slack(history_size: int) -> int:
    """Return how many values beyond history_size may be stored before they are removed together."""
    return max(4, history_size // 5)


def _last(window: list[tuple[SortKey, int]], values: int) -> list[tuple[SortKey, int]]:
    """Return the last records of a window that together have at least ``values`` values, or the whole window."""
    found = 0
    for start in range(len(window) - 1, -1, -1):
        found += window[start][1]
        if found >= values:
            return window[start:]
    return window


def _positions(wanted: Wanted) -> Sequence[int]:
    positions = wanted.record.all_positions() or ()
    return positions if wanted.indexes is None else [positions[index] for index in wanted.indexes]


def _flat(values: Iterable[list[Value]]) -> list[Value]:
    return [value for some in values for value in some]


def _created_at(key: SortKey) -> datetime:
    return datetime.fromtimestamp(key.created_at, timezone.utc)
