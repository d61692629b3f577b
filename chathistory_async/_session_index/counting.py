"""Writing the records of a session that is in the index: a change of its messages also changes the session's item.

One transaction writes both, so the item's count agrees with the messages. See ``flags`` for when the count is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from .._aws.calls import call, pause
from .._aws.clients import Clients
from .._codec.format import LANGCHAIN_NAME
from .._expressions import number_value
from .._item_collection.layout import MAX_TRANSACTION_ITEMS, REVISION, ItemCollection
from .._item_collection.reader import Reader
from .._item_collection.records import Record
from .._item_collection.requests import TOMBSTONE_SECONDS, Action, new_token, query_alive_keys
from .._item_collection.sort_keys import SortKey
from .._item_collection.writer import (
    NewRecord,
    NotWritten,
    Overtaken,
    Writer,
    check_age,
    check_stored,
    condition_failed,
)
from .._request import CONDITION_FAILED, ConditionFailed, Item, Request, TransactionCanceled, transaction
from .._session import Access, Attempts
from .._wall_clock import now
from ..errors import ChatHistoryError, FormatError, ServiceError, SessionRef, UndecodableItemError
from .flags import counts_all, flags_over, may_count_all, new_flag
from .owner_index import INDEX_NAME, query_sessions
from .requests import SessionItem
from .stored import (
    MESSAGE_COUNT,
    MORE_VALUE_IDS,
    VALUE_IDS,
    VALUE_IDS_AT,
    DamagedAttribute,
    format_of,
    is_alive,
)
from .value_ids import found, query_all_but_records, query_keys_of_ids

# Attempts to store a counted number while others write to the session. After these the flags stay, and readers count.
_RECOUNTS = 4


class _Counted(NamedTuple):
    """The number of a session's messages, and the sort key of its first record, or None if it has no record."""

    number: int
    earliest: SortKey | None


class CountingWriter:
    """Writes the records of one session that is in the index.

    Args:
        layout: how the session is stored.
        access: access to the session's table.
        reader: reads the session's records.
        writer: makes the writes that are not counted.
        summary: the session's item in the index.
        listed: whether the table must have the index. If not, the session has an item, but no owner lists it.
    """

    max_items = MAX_TRANSACTION_ITEMS - 2
    # All changes write the session's item, so concurrent changes would only conflict.
    changed_at_once = 1

    def __init__(
        self,
        layout: ItemCollection,
        access: Access,
        reader: Reader,
        writer: Writer,
        summary: SessionItem,
        *,
        listed: bool = True,
    ) -> None:
        self._layout = layout
        self._access = access
        self._reader = reader
        self._writer = writer
        self._summary = summary
        self._listed = listed
        # The flags of this handle's sweeps that have removed all their items.
        self._done_flags: set[str] = set()
        self._has_forgotten = False

    async def check_table(self) -> None:
        """Check that the table has the index.

        Raises:
            KeySchemaError: it has none.
        """
        if self._listed:
            await check_index(self._access.clients, self._summary, self._access.ref)

    async def store(self, record: NewRecord) -> SortKey | None:
        """Store a record and count its messages, in one transaction. See ``RecordWriter``."""
        is_first, self._reader.found_nothing = self._reader.found_nothing, False
        token, seen, attempts = new_token(), None, self._access.attempts()
        others = [] if record.together is None else record.together.items
        puts = [{"Put": {"TableName": self._layout.table_name, "Item": item}} for item in others]
        while True:
            await attempts.begin()
            check_age(self._access, record)
            revision = f"{token}-{attempts.number}"
            counting = self._count_added(record, revision, seen, is_first=is_first)
            actions = [*record.actions(self._layout), *puts, counting]
            try:
                await self._send(transaction(actions, revision), attempts)
            except TransactionCanceled as canceled:
                if condition_failed(record, canceled.reasons):
                    return check_stored(self._access, self._layout, record, canceled.reasons)
                attempts.maybe_stored = canceled.sent_before
                seen = canceled.reasons[-1].get("Item")
                check_format(self._access, self._summary, seen)
                if seen is not None and await self.repair(seen, attempts):
                    seen = None
                elif record.together is not None and record.together.is_overtaken(self._alive(seen)):
                    raise Overtaken from None
            else:
                return None

    async def change(self, actions: Sequence[Action], token: str, removed: int) -> None:
        """Change a record and count the messages that the change removes. See ``RecordWriter``."""
        if not removed:
            # The expiry is extended first, because the session's item must not expire before its messages.
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
                await self._send(request, attempts)
            except TransactionCanceled as canceled:
                attempts.maybe_stored = canceled.sent_before
                if canceled.reasons[0].get("Code") == CONDITION_FAILED:
                    raise NotWritten(canceled.reasons[0].get("Item"), sent_before=canceled.sent_before) from None
                found = canceled.reasons[-1].get("Item")
                if found is None or not await self.repair(found, attempts):
                    # The session has no item, or an expired one. It may have been written before there was an index.
                    await self._writer.change(actions, token, removed)
                    return
            else:
                return

    async def sweep(self, parts: Sequence[Record], *, of_all: bool = False) -> None:
        """Remove items. The session is flagged first, so the count is not trusted until the messages are counted."""
        flag = None
        if any(part.key.is_first_part and part.removed_by is None for part in parts):
            flag, item = await self._flag()
            if of_all and VALUE_IDS_AT in item:
                await self._forget_value_ids(item)
        await self._writer.sweep(parts, of_all=of_all)
        if flag is not None:
            self._done_flags.add(flag)

    async def swept(self) -> None:
        """Count the messages if any were swept, and store the number."""
        if self._has_forgotten:
            # The sweep may have removed what others have stored meanwhile.
            self._has_forgotten = False
            item = await self.item()
            if item is not None and VALUE_IDS in item:
                await self._forget_value_ids(item)
        if self._done_flags:
            await self._recount()

    async def forget_ids(self) -> list[str]:
        """Delete the session's idempotency keys and ids of values, and return the names of its subsessions."""
        return await self._delete_found(query_all_but_records)

    async def item(self) -> Item | None:
        """Return the session's item by a strongly consistent read, or None if there is no item."""
        item: Item | None = (await self._access.call(self._summary.get())).get("Item")
        return item

    async def repair(self, item: Item, attempts: Attempts) -> bool:
        """Repair the session's item if it is damaged, and return whether it was damaged.

        Args:
            item: the session's item, because of which an attempt fails.
            attempts: the attempts of the caller's operation. After a repair, the next one begins at once.
        """
        request = self._summary.repair(item, now(), new_token())
        if request is None:
            return False
        # If another writer has changed the item meanwhile, the caller's next attempt reads it again.
        with suppress(ConditionFailed):
            await self._access.call(request)
            attempts.retry_at_once()
        return True

    async def count_and_heal(self, item: Item) -> int:
        """Count the messages and return their number.

        The number is also stored if the lease of a flag is over, or if the item does not count all messages.
        """
        over = flags_over(item, now())
        counted = await self._count()
        if over or not counts_all(item):
            # A reader may lack the permission to write.
            with suppress(ChatHistoryError):
                await self._set_count(counted, item, over)
        return counted.number

    def _count_added(self, record: NewRecord, revision: str, seen: Item | None, *, is_first: bool) -> Action:
        added = (record.length, record.key, now(), revision)
        if seen is not None and self._alive(seen) is None:
            return self._summary.begin_anew(*added, is_first=is_first, together=record.together)
        return self._summary.count_added(*added, seen, is_first=is_first, together=record.together)

    def _alive(self, item: Item | None) -> Item | None:
        return item if item is not None and is_alive(self._layout, item, now()) else None

    async def _send(self, request: Request, attempts: Attempts) -> None:
        """Send a transaction that counts. If it fails and the session's item is damaged, repair the item and resend.

        The second sending is an attempt of its own.
        """
        try:
            await self._access.call(request, maybe_stored=attempts.maybe_stored)
        except ServiceError:
            item = await self.item()
            if item is None or not await self.repair(item, attempts):
                raise
        else:
            return
        await attempts.begin()
        await self._access.call(request, maybe_stored=attempts.maybe_stored)

    async def _delete_found(self, query: Callable[[ItemCollection, dict[str, Any] | None], Request]) -> list[str]:
        """Delete what a query finds, except for the names of subsessions, and return these names."""
        names: list[str] = []
        start_key = None
        while True:
            items, start_key = await self._reader.query(query(self._layout, start_key))
            on_page = found(self._layout, items)
            names += on_page.subsessions
            await self._writer.batch_write(on_page.others)
            if start_key is None:
                return names

    async def _forget_value_ids(self, item: Item) -> None:
        """Forget the ids of all values, so that no writer knows any. See ``value_ids``.

        Args:
            item: the session's item.

        Raises:
            WriteConflictError: other writers kept appending.
        """
        self._has_forgotten = True
        attempts = self._access.attempts(reads_first=True)
        while VALUE_IDS_AT in item:
            await attempts.begin()
            text = new_token()
            try:
                await self._access.call(self._summary.forget_ids(item, text))
                if MORE_VALUE_IDS in item:
                    await self._delete_found(query_keys_of_ids)
                    # Another writer may have read the items of ids just before they were deleted.
                    await self._access.call(self._summary.forget_ids({VALUE_IDS_AT: {"S": text}}, new_token()))
            except ConditionFailed as failed:
                item = failed.item or {}
            else:
                return

    async def _flag(self) -> tuple[str | None, Item]:
        """Add a flag to the session's item, and return the flag and the item.

        If the session has no item, return None and no attributes.
        """
        flag, attempts = new_flag(now() + TOMBSTONE_SECONDS), self._access.attempts()
        while True:
            await attempts.begin()
            try:
                response = await self._access.call(self._summary.flag(flag))
            except ConditionFailed as failed:
                if failed.item is None:
                    return None, {}
                if not await self.repair(failed.item, attempts):
                    # If another process has changed the flags meanwhile, there may be room for this one.
                    with suppress(ConditionFailed):
                        await self._access.call(self._summary.merge_flags(failed.item, now()))
            else:
                return flag, response["Attributes"]

    async def _recount(self) -> None:
        """Count the messages and store the number in the index. If others keep writing, the flags stay instead."""
        for attempt in range(_RECOUNTS):
            item = await self.item()
            if item is None:
                return
            # Only flags from before the counting are removed: a later sweep may remove messages that were counted.
            flags = self._done_flags | flags_over(item, now())
            if await self._set_count(await self._count(), item, flags):
                return
            await pause(attempt)

    async def _set_count(self, counted: _Counted, seen: Item, flags: set[str]) -> bool:
        """Store a counted number and remove flags.

        Returns:
            whether the number is stored. It is not if another writer has counted since the item was seen.
        """
        number, earliest = counted
        of_all = may_count_all(seen, earliest, now())
        is_said = seen.get(MESSAGE_COUNT) == number_value(number) and counts_all(seen) >= of_all
        if is_said and not flags:
            return True
        revision = new_token()
        try:
            await self._access.call(self._summary.set_count(number, seen, flags, revision, counts_all=of_all))
        except ConditionFailed as failed:
            # An attempt whose response was lost may have stored the number.
            if failed.item is None or failed.item.get(REVISION) != {"S": revision}:
                return False
        self._done_flags -= flags
        return True

    async def _count(self) -> _Counted:
        count, earliest, start_key = 0, None, None
        while True:
            items, start_key = await self._reader.query(query_alive_keys(self._layout, now=now(), start_key=start_key))
            records = [part for part in await self._reader.stored(items) if part.key.is_first_part]
            count += sum(record.number for record in records)
            earliest = earliest or next((record.key for record in records), None)
            if start_key is None:
                return _Counted(count, earliest)


def check_format(access: Access, summary: SessionItem, seen: Item | None) -> None:
    """Check that the values of a session have the format of the values to append.

    Args:
        access: the session, for errors.
        summary: the session's item, with the format of the values to append.
        seen: the stored item, or None if there is none.

    Raises:
        FormatError: the session's values have a different format.
        UndecodableItemError: the stored format is damaged.
    """
    if seen is None or not is_alive(summary.layout, seen, now()):
        return
    try:
        stored = format_of(seen)
    except DamagedAttribute as damaged:
        text = f"The session's item in the index is damaged (its {damaged}): nothing was written. It cannot be"
        raise UndecodableItemError(f"{text} restored, delete_session() deletes the session", access.ref) from None
    if stored != summary.format:
        names = (name or LANGCHAIN_NAME for name in (stored, summary.format))
        text = "The session's values have the format {!r}, and these have {!r}: nothing was written.".format(*names)
        raise FormatError(f"{text} Append them to another session, or delete this one", access.ref)


async def check_index(clients: Clients, summary: SessionItem, ref: SessionRef) -> None:
    """Check, before the first append to a table, that it has the index. Without it, sessions would never be listed.

    Raises:
        KeySchemaError: the table has no such index.
        ChatHistoryError: the table does not exist, or cannot be reached.
    """
    request = query_sessions(summary.layout, summary.owner or "nobody", limit=1, start_key=None)
    check = (INDEX_NAME, summary.layout.table_name)
    await clients.first_append.check(check, lambda: call(clients, request, ref))
