"""The target of a migration: a session in an item collection, with its checkpoint and its item in the session index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage

from .._codec.attribute_values import size_of
from .._codec.messages import LANGCHAIN, are_equal
from .._cooperative import at_most
from .._encryption.binding import Binding
from .._item_collection.bodies import Bodies
from .._item_collection.layout import MAX_TRANSACTION_BYTES, MAX_TRANSACTION_ITEMS, ItemCollection, Items
from .._item_collection.reader import Reader
from .._item_collection.records import wanted_of
from .._item_collection.requests import TOMBSTONE_SECONDS, get_record
from .._item_collection.revisions import may_be_replaced
from .._item_collection.sort_keys import MAX_MOVED, RecordPosition, SortKey, key_of_first_moved, parse
from .._request import ConditionFailed, Item, Request, TransactionCanceled
from .._session import Access, leaves_no_plaintext, reads_stored
from .._session_index.counting import check_format, check_index
from .._session_index.flags import new_flag
from .._session_index.requests import SessionItem
from .._wall_clock import now
from ..errors import ItemTooLargeError, UndecodableItemError
from .checkpoint import OTHER_ACTIONS, SORT_KEY, Checkpoint, CheckpointItem, Digests
from .outcome import ConcurrentChange, Ended
from .source import Found

_LOOKED_FOR_AT_ONCE = 16
_FIRST_KEYS_AT_ONCE = 100
# The copies' time is so far back that it is before the time of all hosts that write to the target, even if their clocks
# are up to an hour slow.
_BEFORE_NOW_SECONDS = 3600
# Small records keep it cheap to remove a message, or to read the latest ones.
_MESSAGES_IN_A_RECORD = 16
# The records of one transaction, which leaves room for the parts of large records.
_MAX_RECORDS = 80
_DIGESTS = Binding("migration", SORT_KEY)


class Copy(NamedTuple):
    """The messages to copy: the items of their records, and the number of messages."""

    items: Items
    number: int


class Target:
    """A session that is moved into an item collection.

    Args:
        layout: how the session is stored.
        access: access to the session's table.
        summary: the session's item in the session index, or None without an index.
    """

    def __init__(self, layout: ItemCollection, access: Access, summary: SessionItem | None) -> None:
        self.access = access
        self._layout = layout
        self._summary = summary
        self._bodies = Bodies[BaseMessage](access, LANGCHAIN)
        self._reader = Reader(layout, access, self._bodies.format_name)
        self._fitted = 0
        self._is_empty = False

    @leaves_no_plaintext
    @reads_stored
    async def checkpoint(self) -> Checkpoint | None:
        stored = CheckpointItem(self._layout)
        item: Item | None = (await self.access.call(stored.read())).get("Item")
        if item is None:
            return None
        try:
            data, encrypted = stored.digests(item)
            checkpoint = stored.checkpoint(
                item, (await self.access.decrypt({0: (_DIGESTS, data)}))[0] if encrypted else data
            )
        except (KeyError, ValueError):
            checkpoint = None
        if checkpoint is None or not self._reader.clock.is_possible(checkpoint.base):
            raise UndecodableItemError("The item 'migration', the checkpoint, is damaged", self.access.ref)
        return checkpoint

    @reads_stored
    async def begin(self) -> Checkpoint:
        """Return a new checkpoint, not stored yet. Copies will sort before all messages that the target has or gets."""
        first = await self._first_key()
        self._is_empty = first is None
        return Checkpoint(key_of_first_moved(first, _BEFORE_NOW_SECONDS))

    async def _first_key(self) -> SortKey | None:
        """Return the first sort key of a record or tombstone, or None. Items of other applications are skipped."""
        limit, start_key = 1, None
        while True:
            request = CheckpointItem(self._layout).read_first_keys(limit, start_key)
            items, start_key = await self._reader.query(request)
            keys = (parse(item[self._layout.sort_key_name]["S"]) for item in items)
            if (first := next(filter(None, keys), None)) is not None or start_key is None:
                return first
            limit = _FIRST_KEYS_AT_ONCE

    async def prepare(self, found: Found, done: int, checkpoint: Checkpoint) -> Copy:
        """Return the records of the source's messages, without the first ``done`` messages.

        Raises:
            ItemTooLargeError: the messages do not fit into one transaction, or there are more than MAX_MOVED.
        """
        new = found.messages[done:]
        if not new:
            return Copy([], 0)
        if self._summary is not None:
            await check_index(self.access.clients, self._summary, self.access.ref)
        if checkpoint.total + len(new) > MAX_MOVED:
            text = f"More than {MAX_MOVED:,} messages of one session cannot be copied"
            raise ItemTooLargeError(text, self.access.ref)
        texts = await self._bodies.encode(new)
        expiry = self._layout.expiry(now()) if found.expiry is None else {"N": found.expiry}
        items: Items = []
        for start, end in _divided(len(new)):
            key = checkpoint.key(checkpoint.total + start)
            types = self._bodies.types_of(new[start:end])
            body = await self._bodies.pack(key, texts[start:end], range(end - start), types)
            items += self._layout.items_of(key, body, expiry)
        size = sum(size_of({"M": item}) for item in items)
        if len(items) > MAX_TRANSACTION_ITEMS - OTHER_ACTIONS or size > MAX_TRANSACTION_BYTES:
            raise self._bodies.too_large(len(new), size)
        return Copy(items, len(new))

    async def copy(self, copy: Copy, before: Checkpoint, after: Checkpoint, expiry: str | None) -> None:
        digests = await self._digests(after)
        countings = self._countings(copy.number, before.key(before.total), after, expiry)
        # The variant that fitted last is tried first: a refused transaction costs as much as a stored one. The variant
        # with an expiry is tried before the one without, which always fits if the item exists and would not extend it.
        for turn in [*range(self._fitted, len(countings)), *range(self._fitted)]:
            token = f"{after.revision}-{turn}"
            try:
                request = CheckpointItem(self._layout).copy(copy.items, before, after, digests, token, *countings[turn])
                await self._advance(request, after)
            except ConcurrentChange:
                continue
            self._fitted = min(turn, 1)
            return
        await self.check_format()
        raise ConcurrentChange

    async def check_format(self) -> None:
        """Check that the session's values have the format of LangChain's messages. Without an index there is no check.

        Raises:
            FormatError: the values have a different format.
        """
        if self._summary is not None:
            check_format(self.access, self._summary, (await self.access.call(self._summary.get())).get("Item"))

    def _countings(
        self, number: int, first: SortKey, after: Checkpoint, expiry: str | None
    ) -> list[list[dict[str, Any]]]:
        """Return the variants of the action that counts the copies in the session's item.

        The stored item decides which variant fits: it may be missing, expire before the copies, or need no new expiry.
        The item's count stays right.
        """
        if self._summary is None:
            return [[]]
        # All variants have the same time. So one of them fits, unless another process changes the item meanwhile.
        revision, at = after.revision or "", now()
        if expiry is None and self._layout.ttl is not None:
            expiry = str(at + self._layout.ttl)
        # The copies' time is before that of all other messages, so it does not show when the item was created.
        flag = None if self._is_empty else new_flag(at + TOMBSTONE_SECONDS)
        begin = self._summary.begin_anew(number, first, at, revision, expiry, is_first=self._is_empty, flag=flag)
        extend = [] if expiry is None else [[self._summary.count_on(number, at, revision, expiry)]]
        return [[begin], *extend, [self._summary.count_on(number, at, revision, never_expires=expiry is None)]]

    async def verify(self, originals: Mapping[int, BaseMessage], checkpoint: Checkpoint, new: int) -> Checkpoint:
        """Compare messages with their copies, and store and return the checkpoint that counts them as verified.

        Messages from the index ``new`` on were stored a moment ago, and must be there. Earlier messages may have been
        removed since. They were certainly stored, because one transaction stored them and the checkpoint.

        Args:
            originals: the source's messages by index.
            checkpoint: the current checkpoint.
            new: the index of the first message that this attempt has copied.

        Raises:
            Ended: a copy differs from its original, or is missing.
            ConcurrentChange: another process has changed the checkpoint.
        """
        if originals:
            await self._compare(originals, checkpoint, new)
        if checkpoint.verified == checkpoint.total:
            return checkpoint
        return await self._store_checkpoint(checkpoint, checkpoint.after_verifying())

    async def note_absence(self, checkpoint: Checkpoint) -> None:
        """Store that the source is gone, unless that is stored already or another migrator changes the checkpoint."""
        if not checkpoint.gone:
            with suppress(ConcurrentChange):
                await self._store_checkpoint(checkpoint, checkpoint.without_source())

    async def _store_checkpoint(self, before: Checkpoint, after: Checkpoint) -> Checkpoint:
        await self._advance(CheckpointItem(self._layout).advance(before, after, await self._digests(after)), after)
        return after

    async def _digests(self, checkpoint: Checkpoint) -> Digests:
        data = b"".join(checkpoint.copied)
        if self.access.cipher is None:
            return Digests(data, encrypted=False)
        (encrypted,) = await self.access.cipher.encrypt([(_DIGESTS, data)])
        return Digests(encrypted, encrypted=True)

    async def _advance(self, request: Request, checkpoint: Checkpoint) -> None:
        """Store a checkpoint. If it is stored already, an attempt whose response was lost has stored it.

        Raises:
            ConcurrentChange: a different checkpoint is stored.
        """
        try:
            await self.access.call(request)
        except ConditionFailed as failed:
            found = failed.item
        except TransactionCanceled as canceled:
            found = canceled.reasons[-1].get("Item")
        else:
            return
        if not CheckpointItem(self._layout).is_stored(found, checkpoint):
            raise ConcurrentChange

    async def _compare(self, originals: Mapping[int, BaseMessage], checkpoint: Checkpoint, new: int) -> None:
        behind = RecordPosition(checkpoint.key(checkpoint.total), None)
        latest = await self._reader.latest(checkpoint.total - min(originals), before=behind, consistent=True)
        copied = [record for record in latest if record.key.nonce == checkpoint.base.nonce]
        wanted = wanted_of(await self._reader.whole(copied))
        there = set[int]()
        for one, messages in zip(wanted, await self._bodies.decode(wanted), strict=True):
            for position, message in zip(one.record.all_positions() or (), messages, strict=True):
                index = checkpoint.index(one.record.key, position)
                there.add(index)
                # A message that was replaced in the target may differ.
                is_replaced = may_be_replaced(one.record.revision, position)
                if index in originals and not is_replaced and not are_equal(message, originals[index]):
                    raise Ended("failed", f"message {index} reads back as a different message [{self.access.ref}]")
        await self._check_missing(
            [index for index in originals if index >= new and index not in there], checkpoint, new
        )

    async def _check_missing(self, missing: list[int], checkpoint: Checkpoint, new: int) -> None:
        """Check that missing messages, which were stored a moment ago, have been removed or trimmed since.

        Raises:
            Ended: one of them has not.
        """
        key_of = {
            new + index: checkpoint.key(new + start)
            for start, end in _divided(checkpoint.total - new)
            for index in range(start, end)
        }
        if missing and (kept := await self._first_kept()) is not None:
            missing = [index for index in missing if key_of[index] >= kept]
        removed = await at_most(_LOOKED_FOR_AT_ONCE, lambda index: self._was_removed(key_of[index]), missing)
        if not all(removed):
            first = missing[removed.index(False)]
            raise Ended("failed", f"message {first} was copied, but is missing in the target [{self.access.ref}]")

    async def _first_kept(self) -> SortKey | None:
        """Return the sort key of the first record that history_size keeps, or None if it keeps all records."""
        size = self._layout.history_size
        if size is None:
            return None
        records = await self._reader.latest(size, consistent=True)
        wanted = wanted_of(records, size)
        return wanted[0].record.key if sum(one.number for one in wanted) >= size else None

    @reads_stored
    async def _was_removed(self, key: SortKey) -> bool:
        """Return whether a missing message was removed: its record is a tombstone, has expired, or was changed."""
        item: Item | None = (await self.access.call(get_record(self._layout, key))).get("Item")
        record = None if item is None else self._layout.alive(item, now())
        return item is not None and (record is None or record.revision is not None)


def _divided(number: int) -> list[tuple[int, int]]:
    """Return the first index of each record of ``number`` messages, and the index after its last."""
    size = max(_MESSAGES_IN_A_RECORD, math.ceil(number / _MAX_RECORDS))
    return [(start, min(start + size, number)) for start in range(0, number, size)]
