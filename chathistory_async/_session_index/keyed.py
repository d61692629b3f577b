"""A session whose values have ids of the caller's: each is stored once. It may have subsessions. See ``value_ids``."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from .._codec.attribute_values import AttributeValue
from .._item_collection.layout import ItemCollection, Items
from .._item_collection.reader import Reader
from .._item_collection.requests import Together
from .._item_collection.session import ItemCollectionSession
from .._item_collection.sort_keys import SortKey, record_id_of
from .._item_collection.writer import Overtaken
from .._request import Item
from .._session import reads_stored
from .._sync.fork import after_fork_in_child
from .._telemetry.operations import count_messages, observed
from .._wall_clock import now
from ..errors import ItemTooLargeError
from .counting import CountingWriter
from .requests import with_change
from .session import IndexedSession, SessionInfo
from .stored import DETAILS_REVISION, METADATA, MORE_VALUE_IDS, VALUE_IDS, VALUE_IDS_AT, is_alive, text_in
from .value_ids import (
    DIGEST_BYTES,
    MAX_IDS,
    MAX_LATEST,
    Subsession,
    digest_of,
    digests_in,
    is_expired,
    item_of_ids,
    name_in,
    query_ids,
    query_subsessions,
)

# Takes a session's metadata, or None for a session without an item, and the values that will be stored. It returns the
# metadata that changes.
Change: TypeAlias = Callable[["Mapping[str, Any] | None", Sequence[Any]], Awaitable["Mapping[str, Any]"]]

# In bytes of digests, each of which takes about 100 bytes in a set: 25 MB for a process.
_MAX_KNOWN = 250_000


@dataclass(frozen=True, slots=True)
class Knowledge:
    """The state of a session as this process last saw it.

    Attributes:
        item: the attributes of the session's item that an append with ids needs, or None if the session has no item.
        digests: the digests of all ids that are stored.
    """

    item: Item | None
    digests: set[bytes]


class _Batch(NamedTuple):
    """The values of an append that are not stored yet, and the digests of their ids."""

    values: list[Any]
    digests: list[bytes]


class KeyedSession:
    """One session whose values have ids.

    The calls of ``add`` in one event loop store their values in the order of the calls.

    Args:
        layout: how the session is stored.
        session: the session itself.
        reader: reads the session's items.
        writer: writes the session's records.
        indexed: the session in the index.
        place: the session's place in its parent if it is a subsession, or None.

    Attributes:
        access: access to the session's table.
    """

    def __init__(
        self,
        layout: ItemCollection,
        *,
        session: ItemCollectionSession[Any],
        reader: Reader,
        writer: CountingWriter,
        indexed: IndexedSession,
        place: Subsession | None,
    ) -> None:
        self.access = session.access
        self._layout = layout
        self._session = session
        self._reader = reader
        self._writer = writer
        self._indexed = indexed
        self._place = place
        self._name = (layout.table_name, repr(layout.key))

    @observed("read", len)
    async def read(self) -> list[Any]:
        """Return the values, oldest first."""
        return await self._session.read()

    @observed("append")
    async def add(
        self, values: Sequence[Any], ids: Sequence[str | None], change: Change | None = None
    ) -> datetime | None:
        """Append the values whose ids are not stored yet: all of them or none, in order, as one record.

        One ``TransactWriteItems``. The first append of a process to a session reads the session's item before, and with
        more than 32 ids all of the ids.

        Args:
            values: the values.
            ids: an id for each value, or None for a value that is always stored. If several values have one id, the
                first of them is stored.
            change: changes the session's metadata in the same transaction, or None.

        Returns:
            the time of the new record, or None if all values were stored already.

        Raises:
            ItemTooLargeError: the values do not fit into one transaction, or are too many. Nothing was written.
            ChatHistoryError: as for ``JsonSession.aadd``.
        """
        count_messages(len(values))
        if len(values) > MAX_IDS:
            raise ItemTooLargeError(f"One append stores at most {MAX_IDS:,} values with ids", self.access.ref)
        async with _turn_of(self._name):
            return await self._add(values, [None if one is None else digest_of(one) for one in ids], change)

    @observed("list_subsessions")
    async def subsessions(self) -> list[str]:
        """Return the names of the subsessions, by strongly consistent queries."""
        names: list[str] = []
        start_key = None
        while True:
            items, start_key = await self._reader.query(query_subsessions(self._layout, start_key))
            alive = [name_in(item) for item in items if not is_expired(self._layout, item, now())]
            if None in alive:
                raise self.access.undecodable("name of a subsession", None, "it is damaged")
            names += [name for name in alive if name is not None]
            if start_key is None:
                return names

    @observed("get_session_info")
    async def info(self) -> SessionInfo | None:
        """Return the information on the session by a strongly consistent read, or None if it does not exist."""
        return await self._indexed.info()

    @observed("delete_session")
    async def delete(self) -> None:
        """Delete the session and its subsessions."""
        _known.take(self._name)
        await self._indexed.delete()

    def _observed_layout(self) -> str | None:
        return "item_collection" if self.access.clients.options.tracing else None

    async def _add(
        self, values: Sequence[Any], digests: Sequence[bytes | None], change: Change | None
    ) -> datetime | None:
        # Taken, and kept again only after a success: whatever else happens, the next append reads what is stored.
        known, attempts = _known.take(self._name), self.access.attempts()
        while True:
            await attempts.begin()
            is_read = known is None
            if known is None:
                known = await self._read_ids()
            batch = _unknown(values, digests, known.digests)
            if not batch.values and is_read:
                _known.keep(self._name, known)
                return None
            if not batch.values:
                # Another process may have deleted the session since.
                known = None
                attempts.retry_at_once()
                continue
            try:
                written = _Writing(self._layout, self._place, known, batch, await self._metadata(known, batch, change))
                await self._session.append(batch.values, together=written.prepare)
            except Overtaken:
                known = None
                continue
            known.digests.update(batch.digests)
            _known.keep(self._name, Knowledge(written.item, known.digests))
            return written.at

    async def _metadata(self, known: Knowledge, batch: _Batch, change: Change | None) -> AttributeValue | None:
        """Return the session's changed metadata, or None if it does not change."""
        if change is None:
            return None
        before = None if known.item is None else await self._indexed.metadata(known.item)
        changes = await change(before, batch.values)
        if not changes:
            return None
        after = {**(before or {}), **changes}
        return await self._indexed.metadata_value({name: value for name, value in after.items() if value is not None})

    @reads_stored
    async def _read_ids(self) -> Knowledge:
        """Read all ids. The session's item is read first: see ``value_ids``."""
        item = await self._writer.item()
        if item is None or not is_alive(self._layout, item, now()):
            # The writer notes whether there are records, so that nobody has to count them later: see flags.
            await self._reader.latest(1, consistent=True)
            return Knowledge(None, set())
        digests = set(digests_in(item)) if VALUE_IDS in item else set()
        start_key = None
        while MORE_VALUE_IDS in item:
            items, start_key = await self._reader.query(query_ids(self._layout, start_key))
            for one in items:
                if not is_expired(self._layout, one, now()):
                    digests.update(digests_in(one))
            if start_key is None:
                break
        return Knowledge(_needed_of(item), digests)


class _Writing:
    """The attributes and items that an append writes together with its record.

    ``prepare`` sets the attributes: it is called when the record has its sort key.

    Attributes:
        item: the attributes of the session's item after the append.
        at: the time of the record.
    """

    def __init__(
        self,
        layout: ItemCollection,
        place: Subsession | None,
        known: Knowledge,
        batch: _Batch,
        metadata: AttributeValue | None,
    ) -> None:
        self._layout = layout
        self._place = place
        self._before = known.item or {}
        self._batch = batch
        self._metadata = metadata
        self.item: Item = {}
        self.at: datetime | None = None

    def prepare(self, record: SortKey) -> Together:
        """Set the attributes for an append as a record, and return what is written together with it."""
        seen = {VALUE_IDS_AT: self._seen(VALUE_IDS_AT)}
        new: dict[str, AttributeValue] = {VALUE_IDS_AT: {"S": str(record)}}
        items: Items = []
        ids = b"".join([*digests_in(self._before)] if VALUE_IDS in self._before else [])
        ids += b"".join(self._batch.digests)
        if len(ids) > MAX_LATEST:
            items.append(item_of_ids(self._layout, record, ids, now()))
            new[MORE_VALUE_IDS] = {"BOOL": True}
            ids = b""
        new[VALUE_IDS] = {"B": ids}
        if self._metadata is not None:
            seen[DETAILS_REVISION] = self._seen(DETAILS_REVISION)
            changes = with_change(record_id_of(record), text_in(self._before, DETAILS_REVISION))
            new |= {METADATA: self._metadata, DETAILS_REVISION: {"S": changes}}
        if self._place is not None:
            items.append(self._place.item(now()))
        self.item = _needed_of({**self._before, **new})
        self.at = datetime.fromtimestamp(record.created_at, timezone.utc)
        return Together(items, seen, new)

    def _seen(self, name: str) -> str | None:
        text: str | None = self._before.get(name, {}).get("S")
        return text


def _unknown(values: Sequence[Any], digests: Sequence[bytes | None], known: set[bytes]) -> _Batch:
    batch = _Batch([], [])
    added: set[bytes] = set()
    for value, digest in zip(values, digests, strict=True):
        if digest is not None:
            if digest in known or digest in added:
                continue
            added.add(digest)
            batch.digests.append(digest)
        batch.values.append(value)
    return batch


def _needed_of(item: Item) -> Item:
    names = (VALUE_IDS, VALUE_IDS_AT, MORE_VALUE_IDS, METADATA, DETAILS_REVISION)
    return {name: item[name] for name in names if name in item}


class _Known:
    """The knowledge of the sessions that this process appended to last. Outdated knowledge costs a request."""

    def __init__(self) -> None:
        self._of_session: OrderedDict[tuple[str, str], Knowledge] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def take(self, name: tuple[str, str]) -> Knowledge | None:
        """Return what is known of a session, and forget it."""
        with self._lock:
            knowledge = self._of_session.pop(name, None)
            self._size -= _size_of(knowledge)
            return knowledge

    def keep(self, name: tuple[str, str], knowledge: Knowledge) -> None:
        """Remember what is known of a session. Above the limit, forget the sessions that were not used for longest."""
        self.take(name)
        with self._lock:
            self._of_session[name] = knowledge
            self._size += _size_of(knowledge)
            while self._size > _MAX_KNOWN:
                _, forgotten = self._of_session.popitem(last=False)
                self._size -= _size_of(forgotten)

    def forget_lock(self) -> None:
        """Replace the lock, because a fork may have copied it while a thread held it."""
        self._lock = threading.Lock()


def _size_of(knowledge: Knowledge | None) -> int:
    # A session without ids counts like one with 32.
    return 0 if knowledge is None else max(len(knowledge.digests), MAX_LATEST // DIGEST_BYTES)


_known = _Known()
after_fork_in_child(_known.forget_lock)
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str, str], asyncio.Lock]]
_turns = WeakKeyDictionary()


def _turn_of(name: tuple[str, str]) -> asyncio.Lock:
    """Return the lock of a session in the running event loop. Tasks get it in the order in which they ask for it."""
    locks = _turns.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    return locks.setdefault(name, asyncio.Lock())
