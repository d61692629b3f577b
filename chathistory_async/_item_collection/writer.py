"""Writing the records of one session: store, change and remove them, each exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

from .._aws.calls import pause
from .._cooperative import at_most
from .._request import CONDITION_FAILED, ConditionFailed, Item, Request, TransactionCanceled
from .._session import Access
from .._telemetry.events import retried, throttled
from .._wall_clock import now
from ..errors import EndpointError, ThrottledError, wrong_key
from .idempotency import Once
from .layout import MAX_TRANSACTION_ITEMS, ItemCollection, Items
from .records import Record
from .requests import (
    TOMBSTONE_SECONDS,
    Action,
    Together,
    batch_write,
    new_token,
    put_items,
    request_of,
    sweep_parts,
)
from .sort_keys import SortKey

# Batches of 25 items each. More at once would only be throttled by the partition.
_SWEEPS_AT_ONCE = 4
# The random pauses between them are at most 5 s in all.
_BATCH_ATTEMPTS = 50
# The other half of TOMBSTONE_SECONDS is left for the requests that are sent then.
_OLDEST_SECONDS = TOMBSTONE_SECONDS // 2


class NewRecord(NamedTuple):
    """A record to be stored.

    Attributes:
        items: the record's items.
        length: how many values it has.
        began: when its sort key was made, by ``monotonic``.
        once: its idempotency key and batch, or None without a key.
        together: what the same transaction writes, or None for nothing else.
    """

    key: SortKey
    items: Items
    length: int
    began: float
    once: Once | None = None
    together: Together | None = None

    def actions(self, layout: ItemCollection) -> list[Action]:
        marker = [] if self.once is None else [self.once.put(layout, self.key, now())]
        return [*put_items(layout, self.items), *marker]


class Overtaken(Exception):
    """A record was not stored, because another writer has changed the session's item. See ``Together.seen``."""


class NotWritten(Exception):
    """DynamoDB refused a change, because its record was changed or removed.

    Attributes:
        found: the item that is stored under the record's sort key, or None if there is none.
        sent_before: whether an earlier request of the same change may have been stored.
    """

    def __init__(self, found: Item | None, *, sent_before: bool) -> None:
        super().__init__()
        self.found = found
        self.sent_before = sent_before


class RecordWriter(Protocol):
    """Stores, changes and removes records. The session index has a writer that counts their values too.

    Attributes:
        max_items: how many items a record may have. The others of a transaction's items are for what the writer adds:
            the marker of an idempotency key, and the session's item.
        changed_at_once: how many records it changes concurrently.
    """

    max_items: int
    changed_at_once: int

    async def check_table(self) -> None:
        """Check, before the first append, that the table has the secondary index, if this writer's session is in it.

        Raises:
            KeySchemaError: the table has no such index.
        """

    async def store(self, record: NewRecord) -> SortKey | None:
        """Store a record, unless it is stored already: by a request whose response was lost, or by its idempotency key.

        Returns:
            the sort key of the record that was stored before with its idempotency key, or None.

        Raises:
            IdempotencyKeyReusedError: the key was used to store a different batch.
            Overtaken: ``record.together`` no longer fits the session's item.
        """

    async def change(self, actions: Sequence[Action], token: str, removed: int) -> None:
        """Change a record.

        Args:
            actions: the actions to perform together. The first one has the condition.
            token: the ClientRequestToken if there are several actions.
            removed: how many values the change removes.

        Raises:
            NotWritten: the condition did not hold.
        """

    async def sweep(self, parts: Sequence[Record], *, of_all: bool = False) -> None:
        """Delete items, or replace them by tombstones if a request that is still under way could store them again.

        Args:
            parts: the items.
            of_all: whether all records of the session are being removed.
        """

    async def swept(self) -> None:
        """Finish a sweep: all its items have been removed."""


class Writer:
    """Writes the records of one session that is not in the session index."""

    __slots__ = ("_access", "_checks", "_layout")

    max_items = MAX_TRANSACTION_ITEMS - 1
    changed_at_once = 16

    def __init__(self, layout: ItemCollection, access: Access, checks: SortKeyCheck) -> None:
        self._layout = layout
        self._access = access
        self._checks = checks

    async def check_table(self) -> None:
        """See ``RecordWriter``. This does nothing: ``store`` checks the sort key, and only if it has to."""

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

    async def sweep(self, parts: Sequence[Record], *, of_all: bool = False) -> None:
        """See ``RecordWriter``."""
        await self.batch_write(sweep_parts(self._layout, parts, new_token(), now()))

    async def swept(self) -> None:
        """See ``RecordWriter``."""

    async def batch_write(self, requests: Sequence[Request]) -> None:
        """Send batches, a few at once, and send their unprocessed items again until none is left.

        Raises:
            ThrottledError: a batch still has unprocessed items after 50 attempts.
        """
        await at_most(_SWEEPS_AT_ONCE, self._batch_write, requests)

    async def _batch_write(self, request: Request) -> None:
        for attempt in range(_BATCH_ATTEMPTS):
            response = await self._access.call(request)
            unprocessed = response.get("UnprocessedItems", {}).get(self._layout.table_name)
            if not unprocessed:
                return
            throttled("DynamoDB", "BatchWriteItem")
            retried(f"A batch of table {self._layout.table_name}", "throttled")
            request = batch_write(self._layout, unprocessed)
            await pause(attempt)
        raise ThrottledError("AWS throttled BatchWriteItem and every retry", self._access.ref)


class SortKeyCheck(Protocol):
    """The check that the table has the sort key. A reader implements it."""

    async def check_sort_key(self, key: SortKey) -> None:
        """Check that the table has the sort key."""

    def has_sort_key(self) -> None:
        """Record that the check has passed."""


def check_age(access: Access, record: NewRecord) -> None:
    """Refuse to store a record so late that a retry could arrive after the tombstone of its removal is deleted.

    A sweep decides by the time in the sort key whether it leaves a tombstone, and the key was made before the record
    was encrypted. The record's age is measured with ``monotonic``, because the clock of the sort keys may be behind.

    Raises:
        EndpointError: the record is older than 900 s.
    """
    if monotonic() - record.began > _OLDEST_SECONDS:
        text = f"Encrypting and storing the batch took more than {_OLDEST_SECONDS:,} s and was given up"
        raise EndpointError(f"{text}: read the session before you try again, in smaller batches", access.ref)


def condition_failed(record: NewRecord, reasons: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a condition on a record's items or on its idempotency key failed."""
    return any(
        reason.get("Code") == CONDITION_FAILED for reason in reasons[: len(record.items) + (record.once is not None)]
    )


def check_stored(
    access: Access, layout: ItemCollection, record: NewRecord, reasons: Sequence[Mapping[str, Any]]
) -> SortKey | None:
    """Check, after a condition failed, that the record is stored already.

    Args:
        access: names the session in errors.
        layout: the session's table, key and settings.
        record: the record.
        reasons: the cancellation reasons of the transaction: one for each of the record's actions, then any others.

    Returns:
        the sort key of the record that was stored with the idempotency key, or None without a key.

    Raises:
        IdempotencyKeyReusedError: the key was used to store a different batch.
        KeySchemaError: the table has no sort key, so the condition failed on a different item.
    """
    items = [action["Put"]["Item"] for action in record.actions(layout)]
    for item, reason in zip(items, reasons):  # noqa: B905  # reasons of other actions follow
        if reason.get("Code") == CONDITION_FAILED and not layout.is_stored(item, reason.get("Item")):
            raise wrong_key(f"it has no sort key {layout.sort_key_name!r}", access.ref)
    number = len(record.items)
    if record.once is not None and reasons[number].get("Code") == CONDITION_FAILED:
        return record.once.check(reasons[number].get("Item"), access.ref)
    return None
