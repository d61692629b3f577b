"""Writing the records of a session that is in the index: what changes its messages changes its item too.

Both are written in one transaction, so that the item's count is theirs. See ``requests`` for what the count claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from .._aws.calls import call, pause
from .._aws.clients import Clients
from .._codec.format import LANGCHAIN_NAME
from .._item_collection.idempotency import delete_checkpoints, query_checkpoints
from .._item_collection.reader import Reader
from .._item_collection.records import Record
from .._item_collection.requests import (
    MAX_TRANSACTION_ITEMS,
    REVISION,
    TOMBSTONE_SECONDS,
    Action,
    ItemCollection,
    new_token,
)
from .._item_collection.sort_keys import SortKey
from .._item_collection.writer import (
    NewRecord,
    NotWritten,
    Writer,
    check_age,
    check_stored,
    was_refused,
)
from .._request import CONDITION_FAILED, ConditionFailed, Item, Request, TransactionCanceled, transaction
from .._session import Access, now
from ..errors import ChatHistoryError, FormatError, ServiceError, SessionRef, UndecodableItemError
from .requests import (
    INDEX_NAME,
    MESSAGE_COUNT,
    DamagedAttribute,
    SessionItem,
    counts_all,
    flags_over,
    format_of,
    is_alive,
    may_count_all,
    new_flag,
    query_sessions,
)

# Of a session that is written to without a pause; then its flags stay, and whoever reads the count counts.
_RECOUNTS = 4


class _Counted(NamedTuple):
    """How many messages a session has, and the sort key of its first record, None where there is none."""

    number: int
    earliest: SortKey | None


class CountingWriter:
    """Writes the records of one session that is in the index.

    Args:
        layout: how the session is stored.
        access: what it reaches its table with.
        reader: reads its records.
        writer: writes what is not counted.
        summary: the session's item in the index.
    """

    max_items = MAX_TRANSACTION_ITEMS - 2
    # All changes write the session's item, so that two at once would only be in each other's way.
    changed_at_once = 1

    def __init__(
        self, layout: ItemCollection, access: Access, reader: Reader, writer: Writer, summary: SessionItem
    ) -> None:
        self._layout = layout
        self._access = access
        self._reader = reader
        self._writer = writer
        self._summary = summary
        # Of sweeps of this handle's that have removed all that they meant to.
        self._done_flags: set[str] = set()

    async def check_table(self) -> None:
        """Refuse a table without the index."""
        await check_index(self._access.clients, self._summary, self._access.ref)

    async def store(self, record: NewRecord) -> SortKey | None:
        """Store a record, and count its messages."""
        is_first, self._reader.found_nothing = self._reader.found_nothing, False
        token, seen, attempts = new_token(), None, self._access.attempts()
        while True:
            await attempts.begin()
            check_age(self._access, record)
            revision = f"{token}-{attempts.number}"
            actions = [*record.actions(self._layout), self._count_added(record, revision, seen, is_first=is_first)]
            try:
                await self._send(transaction(actions, revision), maybe_stored=attempts.maybe_stored)
            except TransactionCanceled as canceled:
                if was_refused(record, canceled.reasons):
                    return check_stored(self._access, self._layout, record, canceled.reasons)
                attempts.maybe_stored = canceled.sent_before
                seen = canceled.reasons[-1].get("Item")
                check_format(self._access, self._summary, seen)
                if seen is not None and await self.repair(seen):
                    seen = None
            else:
                return None

    async def change(self, actions: Sequence[Action], token: str, removed: int) -> None:
        """Change a record, and count the messages that this removes."""
        if not removed:
            # Before, because the session's item must not expire before its messages do.
            if (extension := self._summary.extend(now())) is not None:
                with suppress(ConditionFailed):
                    await self._access.call(extension)
            await self._writer.change(actions, token, removed)
            return
        attempts = self._access.attempts()
        while True:
            await attempts.begin()
            counting = self._summary.count_on(-removed, now(), token)
            request = transaction([*actions, counting], f"{token}-{attempts.number}")
            try:
                await self._send(request, maybe_stored=attempts.maybe_stored)
            except TransactionCanceled as canceled:
                attempts.maybe_stored = canceled.sent_before
                if canceled.reasons[0].get("Code") == CONDITION_FAILED:
                    raise NotWritten(canceled.reasons[0].get("Item"), sent_before=canceled.sent_before) from None
                found = canceled.reasons[-1].get("Item")
                if found is None or not await self.repair(found):
                    # The session has no item: it was written before there was an index.
                    await self._writer.change(actions, token, removed)
                    return
            else:
                return

    async def sweep(self, parts: Sequence[Record]) -> None:
        """Remove items; the count is not believed until they are counted."""
        flag = None
        if any(part.key.is_first_part and part.removed_by is None for part in parts):
            flag = await self._flag()
        await self._writer.sweep(parts)
        if flag is not None:
            self._done_flags.add(flag)

    async def swept(self) -> None:
        """Count the messages, where some were swept."""
        if self._done_flags:
            await self._recount()

    async def forget_idempotency_keys(self) -> None:
        """Delete the session's markers of idempotency keys."""
        start_key = None
        while True:
            items, start_key = await self._reader.query(query_checkpoints(self._layout, start_key))
            await self._writer.batch_write(delete_checkpoints(self._layout, items))
            if start_key is None:
                return

    async def item(self) -> Item | None:
        """Return the session's item, strongly consistent, None where there is none."""
        item: Item | None = (await self._access.call(self._summary.get())).get("Item")
        return item

    async def repair(self, item: Item) -> bool:
        """Repair the session's item, and return whether it was damaged."""
        request = self._summary.repair(item, now(), new_token())
        if request is None:
            return False
        # Where somebody else has changed it meanwhile, whoever calls this looks at it again.
        with suppress(ConditionFailed):
            await self._access.call(request)
        return True

    async def count_and_heal(self, item: Item) -> int:
        """Return how many messages there are, and store that where no sweep can be at work any more."""
        over = flags_over(item, now())
        counted = await self._count()
        if over or not counts_all(item):
            # Whoever reads need not be allowed to write.
            with suppress(ChatHistoryError):
                await self._set_count(counted, item, over)
        return counted.number

    def _count_added(self, record: NewRecord, revision: str, seen: Item | None, *, is_first: bool) -> Action:
        added = (record.length, record.key, now(), revision)
        if seen is not None and not is_alive(self._layout, seen, now()):
            return self._summary.begin_anew(*added, is_first=is_first)
        return self._summary.count_added(*added, seen, is_first=is_first)

    async def _send(self, request: Request, *, maybe_stored: bool = False) -> None:
        """Send a transaction that counts; where the session's item is damaged, repair it, so that no turn is lost."""
        try:
            await self._access.call(request, maybe_stored=maybe_stored)
        except ServiceError:
            item = await self.item()
            if item is None or not await self.repair(item):
                raise
            await self._access.call(request, maybe_stored=maybe_stored)

    async def _flag(self) -> str | None:
        """Flag the session, and return the flag; None where it has no item."""
        flag, attempts = new_flag(now() + TOMBSTONE_SECONDS), self._access.attempts()
        while True:
            await attempts.begin()
            try:
                await self._access.call(self._summary.flag(flag))
            except ConditionFailed as failed:
                if failed.item is None:
                    return None
                if not await self.repair(failed.item):
                    # Where others have changed the flags meanwhile, there may be room for this one.
                    with suppress(ConditionFailed):
                        await self._access.call(self._summary.merge_flags(failed.item, now()))
            else:
                return flag

    async def _recount(self) -> None:
        """Have the index say how many messages there are; where others write all the while, flags say it does not."""
        for attempt in range(_RECOUNTS):
            item = await self.item()
            if item is None:
                return
            # Before the counting: what another sweep removes meanwhile is not counted.
            flags = self._done_flags | flags_over(item, now())
            if await self._set_count(await self._count(), item, flags):
                return
            await pause(attempt)

    async def _set_count(self, counted: _Counted, seen: Item, flags: set[str]) -> bool:
        """Store a number and remove flags; return whether nobody has counted since the item was seen."""
        number, earliest = counted
        of_all = may_count_all(seen, earliest, now())
        is_said = seen.get(MESSAGE_COUNT) == {"N": str(number)} and counts_all(seen) >= of_all
        if is_said and not flags:
            return True
        revision = new_token()
        try:
            await self._access.call(self._summary.set_count(number, seen, flags, revision, counts_all=of_all))
        except ConditionFailed as failed:
            # An attempt whose answer was lost may have done it.
            if failed.item is None or failed.item.get(REVISION) != {"S": revision}:
                return False
        self._done_flags -= flags
        return True

    async def _count(self) -> _Counted:
        count, earliest, start_key = 0, None, None
        while True:
            items, start_key = await self._reader.query(self._layout.query_alive_keys(now=now(), start_key=start_key))
            records = [part for part in await self._reader.stored(items) if part.key.is_first_part]
            count += sum(record.number for record in records)
            earliest = earliest or next((record.key for record in records), None)
            if start_key is None:
                return _Counted(count, earliest)


def check_format(access: Access, summary: SessionItem, seen: Item | None) -> None:
    """Refuse to append to a session whose values have another format.

    Args:
        access: names the session in errors.
        summary: the session's item, with the format of what is appended.
        seen: the item as it is stored, None where there is none.

    Raises:
        FormatError: they have.
        UndecodableItemError: nobody knows which they have.
    """
    if seen is None or not is_alive(summary.layout, seen, now()):
        return
    try:
        stored = format_of(seen)
    except DamagedAttribute as damaged:
        text = f"The session's item in the index is damaged (its {damaged}): nothing was written. Nothing restores it,"
        raise UndecodableItemError(f"{text} delete_session() deletes the session", access.ref) from None
    if stored != summary.format:
        names = (name or LANGCHAIN_NAME for name in (stored, summary.format))
        text = "The session's values have the format {!r}, and these have {!r}: nothing was written.".format(*names)
        raise FormatError(f"{text} Append them to another session, or delete this one", access.ref)


async def check_index(clients: Clients, summary: SessionItem, ref: SessionRef) -> None:
    """Refuse a table without the index, before the first append to it: sessions would be stored and never listed.

    Raises:
        KeySchemaError: the table has no such index.
        ChatHistoryError: the table does not exist, or cannot be reached.
    """
    request = query_sessions(summary.layout, summary.owner or "nobody", limit=1, start_key=None)
    check = (INDEX_NAME, summary.layout.table_name)
    await clients.first_append.check(check, lambda: call(clients, request, ref))
