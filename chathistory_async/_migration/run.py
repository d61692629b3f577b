"""Moving sessions from single items into an item collection: read, copy, compare, delete."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from langchain_core.messages import BaseMessage

from .._aws.calls import call
from .._aws.clients import Clients
from .._aws.errors import aws_error_of
from .._codec.attribute_values import AttributeValue, size_of
from .._codec.keys import KeyValue, decode_key_value
from .._codec.messages import LANGCHAIN, are_equal
from .._cooperative import at_most, in_order
from .._encryption.binding import Binding
from .._item_collection.bodies import Bodies
from .._item_collection.layout import MAX_TRANSACTION_BYTES, MAX_TRANSACTION_ITEMS, ItemCollection, Items
from .._item_collection.reader import Reader
from .._item_collection.records import wanted_of
from .._item_collection.requests import TOMBSTONE_SECONDS, get_record
from .._item_collection.revisions import may_be_replaced
from .._item_collection.sort_keys import MAX_MOVED, RecordPosition, SortKey, key_of_first_moved, parse
from .._request import ConditionFailed, Item, Request, TransactionCanceled
from .._session import Access, EmptyPages, leaves_nothing_opened, now, reads_stored
from .._session_index.counting import check_format, check_index
from .._session_index.flags import new_flag
from .._session_index.requests import SessionItem
from .._single_item.requests import SingleItem
from .._single_item.session import SingleItemSession
from ..errors import (
    AccessDeniedError,
    ChatHistoryError,
    ConfigurationError,
    FormatError,
    ItemTooLargeError,
    KmsKeyError,
    MessageNotStorableError,
    ServiceError,
    SessionRef,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
    wrong_key,
)
from .checkpoint import OTHER_ACTIONS, SORT_KEY, Checkpoint, Digests, Migration, digest

# Each move holds its session's 400 KB in memory a few times, and blocks the event loop while the SDK writes a request.
_SESSIONS_AT_ONCE = 8
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

Outcome: TypeAlias = Literal[
    "copied", "moved", "kept", "unchanged", "would_copy", "expired", "absent", "deleted", "diverged", "failed"
]


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """The result of moving one session.

    Attributes:
        session_id: the value of the session's partition key.
        outcome: one of these:

            - "copied": messages were copied; "unchanged": all messages had been copied before.
            - "moved": all messages were copied and compared, by this run or earlier ones, and the source was deleted.
            - "kept": the source should have been deleted, but was not. Either all messages were copied and compared,
              but the source has attributes that this library does not know. ``error`` names them. Or the session was
              copied before and deleted in the target since, so nothing is left to compare the source with.
            - "would_copy": a dry run found messages to copy.
            - "absent": the source holds no messages; "expired": it has expired.
            - "deleted": the session was copied before, and deleted in the target since. Nothing more is copied.
            - "diverged": the source does not continue the messages that were copied from it, so it is not known which
              of its messages are new. No more messages were copied, nothing was deleted. ``error`` gives the remedy.
            - "failed": ``error`` gives the reason. The source was not deleted.
        copied: how many messages this run has copied, or would copy if it is a dry run.
        total: how many messages all runs have copied, including messages that were removed since.
        error: why the session was kept, diverged or failed; None for other outcomes. It holds no message content.
    """

    session_id: KeyValue
    outcome: Outcome
    copied: int
    total: int
    error: str | None = None


class ConcurrentChange(Exception):
    """Another process has changed the checkpoint or the source since it was read."""


class _Ended(Exception):
    """The move of a session has ended, with an outcome and possibly a reason."""

    def __init__(self, outcome: Outcome, reason: str | None = None) -> None:
        super().__init__()
        self.outcome = outcome
        self.reason = reason


_OF_ONE_SESSION = (
    FormatError,
    ItemTooLargeError,
    KmsKeyError,
    MessageNotStorableError,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)


def _is_of_one_session(error: ChatHistoryError) -> bool:
    """Return whether an error concerns one session only. Any other error would affect the other sessions too."""
    operation, code = aws_error_of(error)
    if isinstance(error, ConfigurationError):
        # Without a cause it does not come from the SDK: a message is encrypted, and there is no kms_key_id.
        return error.__cause__ is None
    if isinstance(error, AccessDeniedError):
        # KMS refused to decrypt with the key that a stored message names.
        return operation == "Decrypt"
    if isinstance(error, ServiceError):
        # DynamoDB refused to update a damaged item, such as one whose count is text.
        return code in {"ValidationException", "TransactionCanceledException"}
    return isinstance(error, _OF_ONE_SESSION)


class Found(NamedTuple):
    """The content of a source.

    Attributes:
        stored: the messages as they are stored.
        messages: the messages, decoded.
        digests: the messages' digests.
        expiry: when the session expires, in seconds since the epoch, or None for never.
        others: the names of attributes that this library does not know.
    """

    stored: Sequence[AttributeValue]
    messages: list[BaseMessage]
    digests: list[bytes]
    expiry: str | None
    others: list[str]


class Source:
    """A session that is moved from a single item.

    Args:
        layout: how the session is stored.
        access: access to the session's table.
    """

    def __init__(self, layout: SingleItem, access: Access) -> None:
        self.access = access
        self._layout = layout
        self._session = SingleItemSession(layout, access)

    @reads_stored
    async def look(self) -> Found | Literal["absent", "expired"]:
        """Read the session's whole item, because the item may be deleted only if all its attributes are known.

        Raises:
            _Ended: the item has no attribute for messages, but attributes that this library does not know.
            UndecodableItemError: the item is malformed, or a message cannot be decoded.
        """
        item: Item = (await self.access.call(self._layout.read_whole())).get("Item", {})
        stored = self._layout.stored(item, now())
        if stored.expired:
            return "expired"
        if stored.malformed:
            raise self._session.malformed()
        if self._layout.messages_name not in item and self._layout.others(item):
            # Not "absent": the messages may be in a different attribute than history_messages_key names.
            others = ", ".join(map(repr, self._layout.others(item)))
            reason = f"the source has no attribute {self._layout.messages_name!r}, but {others}"
            raise _Ended("failed", f"{reason}: check history_messages_key [{self.access.ref}]")
        if not stored.messages:
            return "absent"
        messages = await self._session.decode(stored.messages, 0)
        digests = await self.access.in_slices(lambda message, at: digest(stored.messages[at], message), messages)
        expiry = item.get(self._layout.expiry_name, {}).get("N")
        return Found(stored.messages, messages, digests, expiry, self._layout.others(item))

    @reads_stored
    async def delete(self, found: Found) -> None:
        """Delete the session's item, on condition that its messages are still those in ``found``.

        If another application adds an attribute after the item was read, the attribute is deleted too: a condition
        cannot cover an attribute whose name is unknown.

        Raises:
            _Ended: the item has attributes that this library does not know, and is kept.
            ConcurrentChange: the messages have changed since the item was read.
        """
        if found.others:
            names = ", ".join(map(repr, found.others))
            reason = f"the source is not deleted, because it has unknown attributes: {names}"
            raise _Ended("kept", f"{reason} [{self.access.ref}]")
        try:
            await self.access.call(self._layout.delete_unchanged(found.stored))
        except ConditionFailed as failed:
            # If the item is gone, an attempt whose response was lost has deleted it, or another migrator has.
            if failed.item is not None:
                raise ConcurrentChange from None


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

    @leaves_nothing_opened
    @reads_stored
    async def checkpoint(self) -> Checkpoint | None:
        migration = Migration(self._layout)
        item: Item | None = (await self.access.call(migration.read())).get("Item")
        if item is None:
            return None
        try:
            data, encrypted = migration.digests(item)
            checkpoint = migration.checkpoint(
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
            request = Migration(self._layout).read_first_keys(limit, start_key)
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
        # The variant that fitted last comes first, because a refused transaction costs as much as any.
        # The variant without an expiry must come after the one with it: it fits whenever the item exists, and would
        # extend nothing.
        for turn in [*range(self._fitted, len(countings)), *range(self._fitted)]:
            token = f"{after.revision}-{turn}"
            try:
                request = Migration(self._layout).copy(copy.items, before, after, digests, token, *countings[turn])
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
        revision = after.revision or ""
        if expiry is None and self._layout.ttl is not None:
            expiry = str(now() + self._layout.ttl)
        # The copies' time is before that of all other messages, so it does not show when the item was created.
        flag = None if self._is_empty else new_flag(now() + TOMBSTONE_SECONDS)
        begin = self._summary.begin_anew(number, first, now(), revision, expiry, is_first=self._is_empty, flag=flag)
        extend = [] if expiry is None else [[self._summary.count_on(number, now(), revision, expiry)]]
        return [[begin], *extend, [self._summary.count_on(number, now(), revision)]]

    async def verify(self, originals: Mapping[int, BaseMessage], checkpoint: Checkpoint, new: int) -> Checkpoint:
        """Compare messages with their copies, and store and return the checkpoint that counts them as verified.

        Messages from the index ``new`` on were stored a moment ago, and must be there. Earlier messages may have been
        removed since. They were certainly stored, because one transaction stored them and the checkpoint.

        Args:
            originals: the source's messages by index.
            checkpoint: the current checkpoint.
            new: the index of the first message that this attempt has copied.

        Raises:
            _Ended: a copy differs from its original, or is missing.
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
        await self._advance(Migration(self._layout).advance(before, after, await self._digests(after)), after)
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
        if not Migration(self._layout).is_stored(found, checkpoint):
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
                    raise _Ended("failed", f"message {index} reads back as a different message [{self.access.ref}]")
        await self._check_missing(
            [index for index in originals if index >= new and index not in there], checkpoint, new
        )

    async def _check_missing(self, missing: list[int], checkpoint: Checkpoint, new: int) -> None:
        """Check that missing messages, which were stored a moment ago, have been removed or trimmed since.

        Raises:
            _Ended: one of them has not.
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
            raise _Ended("failed", f"message {first} was copied, but is missing in the target [{self.access.ref}]")

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


class SessionMigration:
    """The move of one session. It may need several attempts.

    Attributes:
        copied: how many messages this move has copied.
        total: how many messages all moves of the session have copied.
    """

    def __init__(self, source: Source, target: Target) -> None:
        self.copied = 0
        self.total = 0
        self._source = source
        self._target = target

    @leaves_nothing_opened
    async def run(self, *, dry_run: bool, delete_source: bool) -> Outcome:
        attempts = self._source.access.attempts(reads_first=True)
        while True:
            await attempts.begin()
            with suppress(ConcurrentChange):
                return await self._attempt(dry_run, delete_source)

    async def _attempt(self, dry_run: bool, delete_source: bool) -> Outcome:
        # The checkpoint is read first, so that it does not describe a later state of the source than the one read here.
        checkpoint = await self._target.checkpoint()
        self.total = 0 if checkpoint is None else checkpoint.total
        found = await self._source.look()
        if checkpoint is not None and checkpoint.deleted:
            if delete_source and not dry_run and not isinstance(found, str):
                reason = (
                    "the source is not deleted, because the session was deleted in the target and nothing is left to"
                    " compare it with: clear the source yourself if it is not needed"
                )
                raise _Ended("kept", f"{reason} [{self._source.access.ref}]")
            return "deleted"
        if isinstance(found, str):
            if checkpoint is not None and not dry_run:
                await self._target.note_absence(checkpoint)
            return found
        checkpoint = checkpoint or await self._target.begin()
        known = checkpoint.known(found.digests)
        if known is None:
            reason = (
                "the source does not continue the messages that were copied from it: compare both sessions, append the"
                " missing messages to the target, and clear the source"
            )
            raise _Ended("diverged", f"{reason} [{self._source.access.ref}]")
        if dry_run:
            self.copied = (await self._target.prepare(found, known, checkpoint)).number
            if self.copied:
                await self._target.check_format()
            return "would_copy" if self.copied else "unchanged"
        checkpoint = await self._copy_and_verify(found, known, checkpoint, again=delete_source)
        if not delete_source:
            return "copied" if self.copied else "unchanged"
        await self._source.delete(found)
        await self._target.note_absence(checkpoint)
        return "moved"

    async def _copy_and_verify(self, found: Found, known: int, checkpoint: Checkpoint, *, again: bool) -> Checkpoint:
        """Copy the source's new messages, and compare messages with their copies.

        Args:
            found: the content of the source.
            known: how many of the source's first messages were copied before.
            checkpoint: the current checkpoint.
            again: compare all messages, instead of only those that were not compared before.
        """
        new = checkpoint.total
        originals = {
            index: message
            for index, message in enumerate(found.messages, new - known)
            if again or index >= checkpoint.verified
        }
        copy = await self._target.prepare(found, known, checkpoint)
        if copy.number:
            after = checkpoint.after_copying(copy.number, found.digests)
            await self._target.copy(copy, checkpoint, after, found.expiry)
            checkpoint = after
            self.copied += copy.number
            self.total = checkpoint.total
        return await self._target.verify(originals, checkpoint, new)


def migrate(
    session_ids: Iterable[KeyValue] | AsyncIterable[KeyValue],
    open_session: Callable[[KeyValue], tuple[Source, Target]],
    *,
    dry_run: bool,
    delete_source: bool,
) -> AsyncGenerator[MigrationResult, None]:
    """Move sessions, up to 8 at once, and yield their results in the order of ``session_ids``."""

    async def move(session_id: KeyValue) -> MigrationResult:
        try:
            one = SessionMigration(*open_session(session_id))
        except (TypeError, ValueError) as failure:
            return MigrationResult(session_id, "failed", 0, 0, f"{type(failure).__name__}: {failure}")
        outcome: Outcome
        error = None
        try:
            outcome = await one.run(dry_run=dry_run, delete_source=delete_source)
        except _Ended as end:
            outcome, error = end.outcome, end.reason
        except ChatHistoryError as failure:
            if not _is_of_one_session(failure):
                raise
            outcome, error = "failed", f"{type(failure).__name__}: {failure}"
        return MigrationResult(session_id, outcome, one.copied, one.total, error)

    return in_order(_SESSIONS_AT_ONCE, move, session_ids)


async def scan_session_ids(layout: SingleItem, clients: Clients) -> AsyncGenerator[KeyValue, None]:
    (name, *_) = layout.key
    ref, start_key = SessionRef(layout.table_name), None
    empty_pages = EmptyPages(ref)
    while True:
        response = await call(clients, layout.scan_keys(start_key), ref)
        for item in response["Items"]:
            if name not in item:
                raise wrong_key(f"its items have no {name!r}", ref)
            yield decode_key_value(item[name])
        start_key = response.get("LastEvaluatedKey")
        if start_key is None:
            return
        empty_pages.count(response["Items"])
