"""Moving sessions from single items into an item collection: read, copy, compare, delete."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from langchain_core.messages import BaseMessage

from ._calls import ConditionFailed, Item, Request, TransactionCanceled, call, pause
from ._clients import Clients
from ._codec import AttributeValue
from ._conversation import MAX_ATTEMPTS, now
from ._indexed_conversation import check_index
from ._item_collection import MAX_TRANSACTION_ITEMS, ItemCollection, Items, sized
from ._item_collection_conversation import ItemCollectionConversation
from ._migration import OTHER_ACTIONS, Digests, Marker, Migration, digest, indexes
from ._session_item import SessionItem
from ._single_item import SingleItem
from ._single_item_conversation import SingleItemConversation
from ._slices import at_most, in_order
from ._sort_keys import SortKey, batch_before, parse
from .errors import (
    ItemTooLargeError,
    KmsKeyError,
    MessageNotStorableError,
    Place,
    UndecodableItemError,
    WriteConflictError,
)

if TYPE_CHECKING:
    from ._sealing import Sealing

# Each holds its session's 400 KB a few times over, and the event loop for as long as the SDK takes to write a request.
_SESSIONS_AT_ONCE = 8
_LOOKED_FOR_AT_ONCE = 16
# Before the clocks of all hosts that write to the target, however wrong they are.
_BEFORE_NOW_SECONDS = 3600

Outcome: TypeAlias = Literal["copied", "moved", "unchanged", "would_copy", "expired", "absent", "deleted", "failed"]


@dataclass(frozen=True, slots=True)
class MigratedSession:
    """What became of a session.

    Attributes:
        session_id: the session.
        outcome: "copied", or "unchanged" where all was copied before; "moved" where the source was deleted, too;
            "would_copy" in a dry run; "expired" and "absent" where the source has expired or holds no messages;
            "deleted" where the session was moved before and deleted since, with ``delete_source`` its source now too;
            "failed".
        copied: how many messages this run has copied, or in a dry run would copy.
        total: how many messages have been copied by all runs, those that were removed since among them.
        error: why it failed, with the error's class; None where it did not. It holds no content.
    """

    session_id: str
    outcome: Outcome
    copied: int
    total: int
    error: str | None = None


class _Overtaken(Exception):
    """Somebody has changed the marker or the source since it was read."""


class _NotVerified(Exception):
    """What was copied does not read back equal."""


# Of one session. Whatever else goes wrong would go wrong with the others too.
_FAILURES = (
    ItemTooLargeError,
    KmsKeyError,
    MessageNotStorableError,
    UndecodableItemError,
    WriteConflictError,
    _NotVerified,
)


class Found(NamedTuple):
    """The source's messages, as they are stored, decoded, and as digests; and when they expire, None for never."""

    stored: Sequence[AttributeValue]
    messages: list[BaseMessage]
    digests: list[bytes]
    expiry: str | None


class Source(SingleItemConversation):
    """A session that is moved from a single item."""

    async def look(self) -> Found | Literal["absent", "expired"]:
        item = await self._get(consistent=True) or {}
        stored = self._layout.stored(item, now())
        if stored.expired:
            return "expired"
        if stored.malformed:
            raise self._malformed()
        if not stored.messages:
            return "absent"
        messages = await self._decode(stored.messages, 0)
        digests = await self._in_slices(lambda message, at: digest(stored.messages[at], message), messages)
        return Found(stored.messages, messages, digests, item.get(self._layout.expiry_name, {}).get("N"))

    async def delete(self, found: Found) -> None:
        """Delete the session, unless it holds other messages than were found."""
        try:
            await self._call(self._layout.delete_unchanged(found.stored))
        except ConditionFailed as failed:
            # Where it is gone, an attempt whose answer was lost may have done it, or another migrator.
            if failed.item is not None:
                raise _Overtaken from None


class Target(ItemCollectionConversation):
    """A session that is moved into an item collection."""

    _message_items = MAX_TRANSACTION_ITEMS - OTHER_ACTIONS

    def __init__(
        self,
        layout: ItemCollection,
        clients: Clients,
        place: Place,
        sealing: Sealing | None,
        entry: SessionItem | None,
    ) -> None:
        super().__init__(layout, clients, place, sealing, consistent_read=True)
        self._entry = entry
        self._fitted = 0

    async def marker(self) -> Marker | None:
        migration = Migration(self._layout)
        item: Item | None = (await self._call(migration.read())).get("Item")
        if item is None:
            return None
        data, sealed = migration.digests(item)
        marker = migration.marker(item, (await self._open({0: data}))[0] if sealed else data)
        if marker is None:
            raise UndecodableItemError("What is in the place of the migration's marker is none", self.place)
        return marker

    async def begin(self) -> Marker:
        """Return the marker, not stored yet, of a session that comes before all that is there and will be written."""
        items: list[Item] = (await self._call(Migration(self._layout).read_first_key()))["Items"]
        first = parse(items[0][self._layout.sort_key_name]["S"]) if items else None
        return Marker(batch_before(first, _BEFORE_NOW_SECONDS))

    async def prepare(self, found: Found, done: int, marker: Marker) -> list[list[Items]]:
        """Return the items of the source's messages but for the first ones, divided into transactions."""
        if done == len(found.messages):
            return []
        if self._entry is not None:
            await check_index(self._clients, self._entry, self.place)
        migration = Migration(self._layout)
        bodies = await self._encode(found.messages, done)
        keys = [marker.key(marker.total + offset) for offset in range(len(bodies))]
        items = await self._in_slices(
            lambda key, offset: sized(migration.items_of(key, bodies[offset], now(), found.expiry)), keys
        )
        return self._divide(items, done)

    async def copy(self, together: list[Items], before: Marker, after: Marker, expiry: str | None) -> None:
        items, digests = [item for items in together for item in items], await self._digests(after)
        countings = self._countings(len(together), before.key(before.total), after, expiry)
        # What fitted last first: a transaction that is refused costs as much as another.
        for turn in sorted(range(len(countings)), key=lambda turn: turn != self._fitted):
            token = f"{after.revision}-{turn}"
            try:
                request = Migration(self._layout).copy(items, before, after, digests, token, *countings[turn])
                await self._advance(request, after)
            except _Overtaken:
                continue
            self._fitted = turn
            return
        raise _Overtaken

    def _countings(self, number: int, first: SortKey, after: Marker, expiry: str | None) -> list[list[dict[str, Any]]]:
        """Return how the session's item may have to be written, of which one is right; what it says stays true."""
        if self._entry is None:
            return [[]]
        revision = after.revision or ""
        if expiry is None and self._layout.ttl is not None:
            expiry = str(now() + self._layout.ttl)
        begin = self._entry.begin_anew(number, first, now(), revision, expiry)
        extend = [] if expiry is None else [[self._entry.count_on(number, now(), revision, expiry)]]
        return [[begin], *extend, [self._entry.count_on(number, now(), revision)]]

    async def verify(self, originals: Mapping[int, BaseMessage], marker: Marker, new: int) -> Marker:
        """Compare messages with what is stored of them, by their indexes, and return the marker that says so.

        Messages from the index ``new`` on were stored a moment ago, and must be there. Earlier ones, of a run that was
        cut short, may have been removed: they were stored with the marker that counts them, or it would not.
        """
        if originals:
            await self._compare(originals, marker, new)
        return await self._store_marker(marker, marker.after_verifying())

    async def note_absence(self, marker: Marker) -> None:
        """Store that the source is gone, unless that is known, or another migrator is about it."""
        if not marker.gone:
            with suppress(_Overtaken):
                await self._store_marker(marker, marker.without_source())

    async def _store_marker(self, before: Marker, after: Marker) -> Marker:
        await self._advance(Migration(self._layout).advance(before, after, await self._digests(after)), after)
        return after

    async def _digests(self, marker: Marker) -> Digests:
        data = b"".join(marker.copied)
        if self._sealing is None:
            return Digests(data, sealed=False)
        (sealed,) = await self._sealing.seal([data])
        return Digests(sealed, sealed=True)

    async def _advance(self, request: Request, marker: Marker) -> None:
        """Send a request that stores a marker; where that is there, an attempt whose answer was lost has done so."""
        try:
            await self._write(request)
        except ConditionFailed as failed:
            found = failed.item
        except TransactionCanceled as canceled:
            found = canceled.reasons[-1].get("Item")
        else:
            return
        if not Migration(self._layout).is_stored(found, marker):
            raise _Overtaken

    async def _compare(self, originals: Mapping[int, BaseMessage], marker: Marker, new: int) -> None:
        number = marker.total - min(originals)
        latest = await self._latest(number, before=marker.key(marker.total), consistent=True)
        by_key = {body.key: body for body in latest}
        bodies = {index: by_key[key] for index in originals if (key := marker.key(index)) in by_key}
        # What was replaced here is another message by right.
        index_of = {body.key: index for index, body in bodies.items() if body.revision is None}
        same = await self._whole([bodies[index] for index in index_of.values()])
        for body, message in zip(same, await self._decode(same), strict=True):
            index = index_of[body.key]
            if type(message) is not type(originals[index]) or message != originals[index]:
                raise _NotVerified(f"message {index} reads back as another one [{self.place}]")
        missing = [index for index in originals if index >= new and index not in bodies]
        if missing and (kept := await self._first_kept()) is not None:
            missing = [index for index in missing if marker.key(index) >= kept]
        removed = await at_most(_LOOKED_FOR_AT_ONCE, lambda index: self._was_removed(marker, index), missing)
        if not all(removed):
            first = missing[removed.index(False)]
            raise _NotVerified(f"message {first} was copied, and is not there any more [{self.place}]")

    async def _first_kept(self) -> SortKey | None:
        """Return the sort key of the first message that history_size keeps, None where it keeps all."""
        size = self._layout.history_size
        if size is None:
            return None
        latest = await self._latest(size, consistent=True)
        return latest[-size].key if len(latest) >= size else None

    async def _was_removed(self, marker: Marker, index: int) -> bool:
        """Tell whether a message was removed, or has expired."""
        item: Item | None = (await self._call(self._layout.get(marker.key(index)))).get("Item")
        return item is not None and self._layout.alive(item, now()) is None


class _Move:
    """The move of one session, which several attempts may be needed for.

    Attributes:
        copied: how many messages it has copied.
        total: how many messages have been copied by all moves of the session.
    """

    def __init__(self, source: Source, target: Target) -> None:
        self.copied = 0
        self.total = 0
        self._source = source
        self._target = target

    async def run(self, *, dry_run: bool, delete_source: bool) -> Outcome:
        for attempt in range(MAX_ATTEMPTS):
            try:
                return await self._attempt(dry_run, delete_source)
            except _Overtaken:
                await pause(attempt)
        raise WriteConflictError(f"Others were faster in {MAX_ATTEMPTS} attempts in a row", self._source.place)

    async def _attempt(self, dry_run: bool, delete_source: bool) -> Outcome:
        # The marker first: what it knows of the source must not be later than the source.
        marker = await self._target.marker()
        self.total = 0 if marker is None else marker.total
        found = await self._source.look()
        if marker is not None and marker.deleted:
            if delete_source and not dry_run and not isinstance(found, str):
                await self._source.delete(found)
            return "deleted"
        if isinstance(found, str):
            if marker is not None and not dry_run:
                await self._target.note_absence(marker)
            return found
        marker = marker or await self._target.begin()
        if dry_run:
            new = await self._target.prepare(found, marker.align(found.digests).length, marker)
            self.copied = sum(map(len, new))
            return "would_copy" if new else "unchanged"
        marker = await self._copy_and_verify(found, marker)
        if not delete_source:
            return "copied" if self.copied else "unchanged"
        await self._source.delete(found)
        await self._target.note_absence(marker)
        return "moved"

    async def _copy_and_verify(self, found: Found, marker: Marker) -> Marker:
        aligned = marker.align(found.digests)
        numbered = zip(indexes(marker, aligned, len(found.messages)), found.messages, strict=True)
        originals = {index: message for index, message in numbered if index >= marker.verified}
        done, new = aligned.length, marker.total
        for together in await self._target.prepare(found, done, marker):
            done += len(together)
            after = marker.after_copying(len(together), found.digests[:done])
            await self._target.copy(together, marker, after, found.expiry)
            marker = after
            self.copied += len(together)
            self.total = marker.total
        return marker if marker.verified == marker.total else await self._target.verify(originals, marker, new)


def migrate(
    session_ids: Iterable[str] | AsyncIterable[str],
    open_session: Callable[[str], tuple[Source, Target]],
    *,
    dry_run: bool,
    delete_source: bool,
) -> AsyncGenerator[MigratedSession, None]:
    """Move sessions, several at once, and yield what became of each, in order."""

    async def move(session_id: str) -> MigratedSession:
        try:
            one = _Move(*open_session(session_id))
        except ValueError as failure:
            return MigratedSession(session_id, "failed", 0, 0, f"ValueError: {failure}")
        outcome: Outcome
        error = None
        try:
            outcome = await one.run(dry_run=dry_run, delete_source=delete_source)
        except _FAILURES as failure:
            name = "" if isinstance(failure, _NotVerified) else f"{type(failure).__name__}: "
            outcome, error = "failed", f"{name}{failure}"
        return MigratedSession(session_id, outcome, one.copied, one.total, error)

    return in_order(_SESSIONS_AT_ONCE, move, session_ids)


async def scan_session_ids(layout: SingleItem, clients: Clients) -> AsyncGenerator[str, None]:
    (name, *_) = layout.key
    start_key = None
    while True:
        response = await call(clients, layout.scan_keys(start_key), Place(layout.table_name))
        for item in response["Items"]:
            (session_id,) = item[name].values()
            yield session_id
        start_key = response.get("LastEvaluatedKey")
        if start_key is None:
            return
