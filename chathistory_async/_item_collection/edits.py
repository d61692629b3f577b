"""Changing single values: replace, remove and pop. Each change rewrites the value's record.

A record is written on condition that it has not changed since it was read, and each change has an id. So if two callers
pop at the same time, only one of them gets the value. If a response was lost, the record shows whether the change was
stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from contextlib import aclosing, suppress
from typing import Generic, TypeVar

from .._codec.attribute_values import AttributeValue, has_passed, size_of
from .._cooperative import at_most
from .._session import Access, leaves_no_plaintext
from .._wall_clock import now
from ..errors import ChatHistoryError, ItemTooLargeError, MessageNotFoundError, WriteOutcomeUnknownError
from .bodies import Bodies
from .layout import MAX_TRANSACTION_BYTES, ItemCollection, Items
from .reader import Reader
from .records import DAMAGED, MAX_POSITIONS_BYTES, Body, Record, Wanted, other_parts
from .requests import Action, new_token, remove_record, replace_record
from .revisions import id_of_replacement, outcome_of, revision_after
from .sort_keys import SortKey, parse_id
from .writer import NotWritten, RecordWriter

# Most items are smaller than 1 KB, and a Query is billed for at least 4 KB.
_POPPED_AT_ONCE = 16

Value = TypeVar("Value")


class Edits(Generic[Value]):
    """Replaces, removes and pops the values of one session."""

    __slots__ = ("_access", "_bodies", "_layout", "_reader", "_writer")

    def __init__(
        self, layout: ItemCollection, access: Access, bodies: Bodies[Value], reader: Reader, writer: RecordWriter
    ) -> None:
        self._layout = layout
        self._access = access
        self._bodies = bodies
        self._reader = reader
        self._writer = writer

    @leaves_no_plaintext
    async def replace(self, value_id: str, value: Value) -> None:
        """Replace the value with this id by a new one, at the same position. All of the change is stored, or none.

        Raises:
            ValueError: ``value_id`` is not the id of a message.
            MessageNotFoundError: no stored value has this id.
            ItemTooLargeError: the record would not fit into one transaction.
        """
        key, position = parse_id(value_id)
        if position is None:
            raise ValueError(f"{value_id!r} is the id of a record, not of a message")
        [new] = await self._bodies.encode([value])
        change = _Change(self._access, id_of_replacement(new_token(), position))
        attempts = self._access.attempts(reads_first=True)
        while True:
            await attempts.begin()
            record = await self._whole(await self._reader.first_part(key))
            positions = self._positions(record) if record is not None else ()
            if record is None or position not in positions:
                text = "No message has this id: it was never stored, was removed, or has expired"
                raise MessageNotFoundError(text, self._access.ref, value_id)
            texts, types = await self._bodies.texts(record), list(record.types)
            index = positions.index(position)
            texts[index] = new
            if index < len(types):
                types[index : index + 1] = self._bodies.types_of([value])
            body = await self._bodies.pack(key, texts, positions, types)
            if await self._rewrite(record, body, change, self._extended(record.expiry)):
                return

    @leaves_no_plaintext
    async def remove(self, ids: Iterable[str]) -> None:
        """Remove the values with these ids. The id of a record removes all its values. Unknown ids are ignored."""
        positions: dict[SortKey, set[int] | None] = {}
        for key, position in map(parse_id, ids):
            known = positions.setdefault(key, set())
            if position is None:
                positions[key] = None
            elif known is not None:
                known.add(position)
        await at_most(self._writer.changed_at_once, lambda one: self._remove(*one), positions.items())

    @leaves_no_plaintext
    async def pop(self) -> list[Value]:
        """Remove the latest value and return it in a list of one, or return an empty list if there is none.

        Each value is returned to one caller only.
        """
        change, attempts = _Change(self._access, new_token()), self._access.attempts(reads_first=True)
        while True:
            await attempts.begin()
            # Other callers that pop leave tombstones after the latest record.
            at_first = _POPPED_AT_ONCE if attempts.number > 1 else 1
            latest = (await self._reader.latest(1, at_first=at_first, consistent=True, types=True))[-1:]
            if not latest:
                return []
            if whole := await self._reader.whole(latest):
                record = whole[0]
                positions = self._positions(record)
                [values] = await self._bodies.decode([Wanted(record, range(len(positions) - 1, len(positions)))])
                if await self._take_off(record, positions, {positions[-1]}, change):
                    return values

    async def _remove(self, key: SortKey, gone: Set[int] | None) -> None:
        if gone is None:
            await self._remove_whatever_is_there(key)
            return
        change, attempts = _Change(self._access, new_token(), may_repeat=True), self._access.attempts(reads_first=True)
        while True:
            await attempts.begin()
            # The whole record is read only if some of its values stay, because its other parts may be damaged.
            record = await self._reader.first_part(key)
            if record is not None and {*self._positions(record)} - gone:
                record = await self._whole(record)
            if record is None:
                return
            positions = self._positions(record)
            if not gone & {*positions} or await self._take_off(record, positions, gone, change):
                return

    async def _take_off(self, record: Record, positions: Sequence[int], gone: Set[int], change: _Change) -> bool:
        """Remove values of a record, or the record if no value is left. Return whether the change was stored."""
        indexes = [index for index, position in enumerate(positions) if position not in gone]
        if not indexes:
            action = remove_record(self._layout, record.key, record, change.id, now())
            if not await change.write(self._writer, record, [action], record.number):
                return False
            await self._sweep_other_parts(record)
            return True
        texts = await self._bodies.texts(record)
        types = [record.types[index] for index in indexes if index < len(record.types)]
        left = [positions[index] for index in indexes]
        body = await self._bodies.pack(record.key, [texts[index] for index in indexes], left, types)
        return await self._rewrite(record, body, change, record.expiry, len(positions) - len(left))

    async def _rewrite(
        self, record: Record, body: Body, change: _Change, expiry: AttributeValue | None, removed: int = 0
    ) -> bool:
        items = self._layout.items_of(record.key, body, expiry, revision_after(change.id, record))
        self.check_size(items, len(body.positions))
        self._check_positions(body)
        return await change.write(self._writer, record, replace_record(self._layout, record, items, now()), removed)

    def _extended(self, expiry: AttributeValue | None) -> AttributeValue | None:
        """Return the expiry of a record that is rewritten now, which applies to all its values.

        It is now plus the ttl, unless the record's current expiry is later. The current expiry stays if there is no
        ttl. A record that never expires stays so.
        """
        new = self._layout.expiry(now())
        if new is None or expiry is None or not has_passed(expiry, int(new["N"])):
            return expiry
        return new

    def check_size(self, items: Items, number: int, others: Items | tuple[()] = ()) -> None:
        """Check that a record fits into one transaction.

        Args:
            items: the record's items.
            number: how many values it has.
            others: the other items that the same transaction puts.

        Raises:
            ItemTooLargeError: it has too many items or bytes.
        """
        if len(items) == 1:
            # A single item is never made too large for DynamoDB, and measuring it would take a tenth of an append.
            return
        together = [*items, *others]
        size = sum(size_of({"M": item}) for item in together)
        if len(together) > self._writer.max_items or size > MAX_TRANSACTION_BYTES:
            raise self._bodies.too_large(number, size)

    def _check_positions(self, body: Body) -> None:
        if len(body.positions_text()) > MAX_POSITIONS_BYTES:
            text = "Too many single messages are removed from one record: remove all of its messages, or fewer"
            raise ItemTooLargeError(text, self._access.ref)

    async def _remove_whatever_is_there(self, key: SortKey) -> None:
        """Remove all items of a record that may be damaged. Their bodies are not read."""
        async with aclosing(self._reader.keys(only=key)) as pages:
            async for parts in pages:
                await self._writer.sweep(parts)
        await self._writer.swept()

    async def _sweep_other_parts(self, record: Record) -> None:
        # The record is removed. Readers ignore parts that are left, which take up storage until the session is cleared.
        with suppress(ChatHistoryError):
            if record.parts == DAMAGED:
                await self._remove_whatever_is_there(record.key)
            elif record.parts > 1:
                await self._writer.sweep(other_parts(record))

    async def _whole(self, record: Record | None) -> Record | None:
        return None if record is None else next(iter(await self._reader.whole([record])), None)

    def _positions(self, record: Record) -> Sequence[int]:
        positions = record.all_positions()
        if positions is None:
            raise self._bodies.undecodable(record, "the number or the positions of its messages are damaged")
        return positions


class _Change:
    """One change of a record, which may need several attempts.

    Args:
        access: names the session in errors.
        change_id: the id that the record stores of the change. A transaction's token adds three characters to it.
        may_repeat: whether a change that was stored may be made again.
    """

    def __init__(self, access: Access, change_id: str, *, may_repeat: bool = False) -> None:
        self.id = change_id
        self._access = access
        self._may_repeat = may_repeat
        self._attempts = 0

    async def write(self, writer: RecordWriter, record: Record, actions: list[Action], removed: int) -> bool:
        """Make the change. Return whether it was stored, or False if the record has changed since it was read.

        Raises:
            WriteOutcomeUnknownError: an earlier request may have been stored, and the record no longer shows whether
                it was.
        """
        self._attempts += 1
        try:
            # Each attempt has its own token, because DynamoDB rejects a token that comes back with different actions.
            await writer.change(actions, f"{self.id}-{self._attempts}", removed)
        except NotWritten as not_written:
            outcome = outcome_of(self.id, record, not_written.found)
            if outcome == "unknown" and not_written.sent_before and not self._may_repeat:
                raise WriteOutcomeUnknownError(
                    "A response was lost, and the record was removed or changed many times since, so it is not known"
                    " whether this change was stored: read the session before you try again",
                    self._access.ref,
                ) from None
            return outcome == "stored"
        return True
