"""Writing the records of one session: storing, changing and removing them, each exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

from .._aws.calls import pause
from .._cooperative import at_most
from .._request import CONDITION_FAILED, ConditionFailed, Item, Request, TransactionCanceled
from .._session import Access, now
from ..errors import EndpointError, ThrottledError, wrong_key
from .idempotency import Once
from .records import Record
from .requests import MAX_TRANSACTION_ITEMS, TOMBSTONE_SECONDS, Action, ItemCollection, Items, new_token, request_of
from .sort_keys import SortKey

# Of 25 items each; more at once would only meet the throttle of the partition.
_SWEEPS_AT_ONCE = 4
# With the pauses between them, these are 5 s of throttling.
_BATCH_ATTEMPTS = 50
# Half of it is left for the requests that are sent then.
_OLDEST_SECONDS = TOMBSTONE_SECONDS // 2


class NewRecord(NamedTuple):
    """A record that is to be stored.

    Attributes:
        items: its items.
        length: how many values it has.
        began: when its sort key was made, by ``monotonic``.
        once: what makes its idempotency key take it once, None without one.
    """

    key: SortKey
    items: Items
    length: int
    began: float
    once: Once | None = None

    def actions(self, layout: ItemCollection) -> list[Action]:
        return [*layout.put(self.items), *([] if self.once is None else [self.once.put(layout, self.key, now())])]


class NotWritten(Exception):
    """A change was refused, because its record has changed or gone.

    Attributes:
        found: what is in the record's ref, None where there is nothing.
        sent_before: whether an earlier sending may have been stored.
    """

    def __init__(self, found: Item | None, *, sent_before: bool) -> None:
        super().__init__()
        self.found = found
        self.sent_before = sent_before


class RecordWriter(Protocol):
    """What stores, changes and removes records. The session index has one that counts their values too.

    Attributes:
        max_items: how many of a transaction's items may be a record's.
        changed_at_once: how many records it changes at once.
    """

    max_items: int
    changed_at_once: int

    async def check_table(self) -> None:
        """Refuse a table in which what is to be appended could not be found; once, before the first append."""

    async def store(self, record: NewRecord) -> SortKey | None:
        """Store a record, unless that was done before, by a sending whose answer was lost or by its key.

        Returns:
            the sort key of the record that its idempotency key has stored before, None where it has stored none.
        """

    async def change(self, actions: Sequence[Action], token: str, removed: int) -> None:
        """Change a record by actions, the first of which has the condition; so many values are removed.

        Raises:
            NotWritten: the condition did not hold.
        """

    async def sweep(self, parts: Sequence[Record]) -> None:
        """Remove items, or empty those that a request which is under way could store again."""

    async def swept(self) -> None:
        """Take note that all that was to be swept is swept."""


class Writer:
    """Writes the records of one session that is in no index."""

    __slots__ = ("_access", "_checks", "_layout")

    max_items = MAX_TRANSACTION_ITEMS - 1
    changed_at_once = 16

    def __init__(self, layout: ItemCollection, access: Access, checks: SortKeyCheck) -> None:
        self._layout = layout
        self._access = access
        self._checks = checks

    async def check_table(self) -> None:
        """See ``RecordWriter``: the sort key is checked by ``store``, and only where it has to be."""

    async def store(self, record: NewRecord) -> SortKey | None:
        """See ``RecordWriter``."""
        check_age(self._access, record)
        actions = record.actions(self._layout)
        if len(actions) == 1:
            await self._checks.check_sort_key(record.key)
        try:
            await self._access.call(request_of(actions))
        except ConditionFailed as failed:
            return check_stored(self._access, self._layout, record, [{"Code": CONDITION_FAILED, "Item": failed.item}])
        except TransactionCanceled as canceled:
            return check_stored(self._access, self._layout, record, canceled.reasons)
        self._checks.has_sort_key()
        return None

    async def change(self, actions: Sequence[Action], token: str, removed: int) -> None:
        """See ``RecordWriter``."""
        try:
            await self._access.call(request_of(actions, token))
        except ConditionFailed as failed:
            raise NotWritten(failed.item, sent_before=failed.sent_before) from None
        except TransactionCanceled as canceled:
            raise NotWritten(canceled.reasons[0].get("Item"), sent_before=canceled.sent_before) from None

    async def sweep(self, parts: Sequence[Record]) -> None:
        """See ``RecordWriter``."""
        await self.batch_write(self._layout.sweep(parts, new_token(), now()))

    async def swept(self) -> None:
        """See ``RecordWriter``."""

    async def batch_write(self, requests: Sequence[Request]) -> None:
        """Send batches, several at once, until all of them is done."""
        await at_most(_SWEEPS_AT_ONCE, self._batch_write, requests)

    async def _batch_write(self, request: Request) -> None:
        for attempt in range(_BATCH_ATTEMPTS):
            response = await self._access.call(request)
            unprocessed = response.get("UnprocessedItems", {}).get(self._layout.table_name)
            if not unprocessed:
                return
            request = self._layout.batch_write(unprocessed)
            await pause(attempt)
        raise ThrottledError("AWS throttled BatchWriteItem and every retry", self._access.ref)


class SortKeyCheck(Protocol):
    """Knows whether the table has the sort key: a reader."""

    async def check_sort_key(self, key: SortKey) -> None:
        """Refuse a table without it."""

    def has_sort_key(self) -> None:
        """Take the check for passed."""


def check_age(access: Access, record: NewRecord) -> None:
    """Refuse to store a record so late that a retry of it may arrive after the tombstone of its removal has gone.

    The tombstone's time is told from the key, which was made before the record was encrypted. How long ago that is
    tells a clock of its own: that of the keys may be behind.
    """
    if monotonic() - record.began > _OLDEST_SECONDS:
        text = f"Encrypting and storing the batch took more than {_OLDEST_SECONDS:,} s, and is given up"
        raise EndpointError(f"{text}: read the session before you try again, in smaller batches", access.ref)


def was_refused(record: NewRecord, reasons: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the places of a record's items, or its idempotency key, were taken."""
    return any(
        reason.get("Code") == CONDITION_FAILED for reason in reasons[: len(record.items) + (record.once is not None)]
    )


def check_stored(
    access: Access, layout: ItemCollection, record: NewRecord, reasons: Sequence[Mapping[str, Any]]
) -> SortKey | None:
    """Refuse what was found in the places of a record's items, unless the record was stored before.

    Returns the sort key of the record that its idempotency key has stored, None without one.

    Args:
        access: names the session in errors.
        layout: how it is stored.
        record: the record.
        reasons: of the transaction that was refused, one for each action, and maybe further ones.

    Raises:
        IdempotencyKeyReusedError: the key was used for something else.
        KeySchemaError: the table has no sort key.
    """
    items = [action["Put"]["Item"] for action in record.actions(layout)]
    for item, reason in zip(items, reasons):  # noqa: B905  # other actions follow
        if reason.get("Code") == CONDITION_FAILED and not layout.is_stored(item, reason.get("Item")):
            raise wrong_key(f"it has no sort key {layout.sort_key_name!r}", access.ref)
    number = len(record.items)
    if record.once is not None and reasons[number].get("Code") == CONDITION_FAILED:
        return record.once.check(reasons[number].get("Item"), access.ref)
    return None
