"""Flags: when the count of a session's item is exact. Pure: no I/O.

The count is the number of messages, not of records: a record may have several messages. A sweep (``aclear``,
``delete_session``, the trim of ``history_size``) removes messages by BatchWriteItem, outside the transactions that
count. So a sweep first adds its own flag to the set RECOUNT, between its query for a page of messages and their
removal. The count of a session with a flag is not trusted: a reader counts the messages instead. Only a write that
stores a counted number removes flags. Its condition is that REVISION has not changed since the item was read, and the
item is read before the messages are counted. The write removes two kinds of flags:

- flags of sweeps for which the responses to all removals were received before the item was read;
- flags whose lease was over when the item was read. After the lease, no request of the flag's sweep can arrive.

The claim is: without a flag, the count is the number of messages.

1. A transaction that counts keeps the claim true, and changes REVISION.
2. The messages of a page were stored with the session's item, before the page was queried. So there is an item to add
   the flag to. Or the session was deleted since, and the item of a new session with the same id does not count these
   messages.
3. A write that stores a counted number changes REVISION. So between the read of the item and this write, no transaction
   counted and no flag was removed. Messages that were removed in between were removed by sweeps whose flags are still
   there after the write. If no flag is left, the number is right.

A sweep that was cancelled or killed, or whose count lost to other writers each time, leaves its flag. Readers count
the messages until the flag's lease is over. Then the first reader with permission to write stores the number. A session
without an item needs no flag, because nothing counts its messages.

If there are many flags, one flag replaces them. The lease of the new flag ends when the longest of their leases ends.
So the count may be distrusted for longer than necessary, but never for a shorter time.

Messages that were stored without an item. An item may be created for a session that already has such messages, and its
count leaves them out. COUNTS_ALL means that there are no such messages, or that they were counted. A count without
COUNTS_ALL is not trusted. COUNTS_ALL is true from the beginning if the writer had read that the session has no
messages. Otherwise the first counting that finds no messages from before the item sets it. If a counting finds such
messages, a sweep or a removal of them may still be in progress that began before there was an item to flag. Then
COUNTS_ALL becomes true once the item is older than TOMBSTONE_SECONDS. An item that a migration creates has the time of
its first message, which is before its own creation. So that item has a flag from the beginning.
"""

from __future__ import annotations

import re
import secrets

from .._item_collection.layout import CREATED_AT, iso
from .._item_collection.requests import TOMBSTONE_SECONDS
from .._item_collection.sort_keys import SortKey
from .._request import Item
from .stored import COUNTS_ALL, RECOUNT, text_in

# A flag has 25 bytes, and every append is billed for them.
MAX_FLAGS = 16
_LEASE = re.compile(r"([0-9]{1,15})#")


def new_flag(until: int) -> str:
    """Return a new flag whose lease is over at ``until``, in seconds since the epoch."""
    return f"{until}#{secrets.token_urlsafe(6)}"


def flags_over(item: Item, now: int) -> set[str]:
    """Return the flags whose lease is over, malformed ones, and those whose lease is impossibly long."""
    flags: list[str] = item.get(RECOUNT, {}).get("SS", [])
    return {flag for flag in flags if not now < _lease_of(flag) <= now + 2 * TOMBSTONE_SECONDS}


def counts_all(item: Item) -> bool:
    """Return whether messages from before the session had its item are counted, or there were none."""
    return bool(item.get(COUNTS_ALL) == {"BOOL": True})


def may_count_all(item: Item, earliest: SortKey | None, now: int) -> bool:
    """Return whether COUNTS_ALL may be set with a counted number.

    It may if no messages from before the item were found, or if no sweep or removal that began before the item existed
    can still be in progress.

    Args:
        item: the item, as it was read before the counting.
        earliest: the sort key of the first record that was counted, or None if there was none.
        now: the time, in seconds since the epoch.
    """
    created_at = text_in(item, CREATED_AT)
    return earliest is None or created_at <= iso(earliest.created_at) or created_at < iso(now - TOMBSTONE_SECONDS)


def is_trusted(item: Item) -> bool:
    """Return whether the item's count is the number of the session's messages, so that they need not be counted."""
    return RECOUNT not in item and counts_all(item)


def merged_flag(item: Item, now: int) -> str:
    """Return the flag that replaces all flags of an item, as the module's docstring says."""
    flags = set(item[RECOUNT]["SS"])
    return new_flag(max([now, *map(_lease_of, flags - flags_over(item, now))]))


def _lease_of(flag: str) -> int:
    """Return when the lease of a flag is over, in seconds since the epoch, or 0 if the flag is malformed."""
    found = _LEASE.match(flag)
    return int(found[1]) if found else 0
