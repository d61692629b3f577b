"""The asynchronous core of one session: read, append, clear. It knows messages, and nobody's base class."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from langchain_core.messages import BaseMessage

from ._calls import ConditionFailed, Item, call
from ._clients import Clients
from ._codec import MAX_ITEM_BYTES, AttributeValue, decode_message, encode_message, size_of
from ._single_item import Hint, SingleItem
from .errors import (
    ChatHistoryError,
    ItemTooLargeError,
    MessageNotStorableError,
    Place,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)

In = TypeVar("In")
Out = TypeVar("Out")

# A message takes 10 to 30 µs to convert, and one with a large artifact milliseconds, so slices are cut by time.
SLICE_SECONDS = 0.002
# An attempt fails only where another writer's succeeded or the first guess was wrong: this many are lost in a row
# only to a crowd that DynamoDB would throttle.
MAX_ATTEMPTS = 50
_LONGEST_PAUSE_SECONDS = 0.1


class Conversation:
    """One session in one table.

    Args:
        layout: where and how the session is stored.
        clients: what to send requests with.
        place: the session's name in errors.
        consistent_read: whether reads are strongly consistent.
    """

    def __init__(self, layout: SingleItem, clients: Clients, place: Place, *, consistent_read: bool) -> None:
        self.place = place
        self._layout = layout
        self._clients = clients
        self._consistent_read = consistent_read
        self._hint = Hint()

    async def read(self) -> list[BaseMessage]:
        """Return all stored messages, oldest first."""
        item = await self._get(consistent=self._consistent_read)
        stored = self._layout.stored(item, _now())
        if stored.expired:
            return []
        if stored.malformed:
            raise self._malformed()
        self._hint = stored.hint()
        return await self._in_slices(decode_message, stored.messages)

    async def append(self, messages: Sequence[BaseMessage]) -> None:
        """Store a batch whole, contiguous and in order behind what is there, or not at all."""
        if not isinstance(messages, Sequence):
            raise TypeError("aadd_messages takes a sequence of messages: put the one message in a list")
        batch = await self._in_slices(encode_message, list(messages))
        if self._layout.history_size is not None:
            batch = batch[-self._layout.history_size :]
        if not batch:
            return
        if size_of({"L": batch}) > MAX_ITEM_BYTES:
            raise self._too_large(None, batch)
        try:
            await self._append(batch)
        except ItemTooLargeError as error:
            raise self._too_large(await self._get_if_possible(), batch) from error.__cause__

    async def clear(self) -> None:
        """Delete the item that is there now, and none that another writer creates after it."""
        layout = self._layout
        response = await call(self._clients, layout.read_identity(), self.place)
        item = response.get("Item")
        for _ in range(MAX_ATTEMPTS):
            if item is None:
                self._hint = Hint()
                return
            creator = next(iter(layout.stored(item, _now()).writes), None)
            try:
                await call(self._clients, layout.delete(creator), self.place)
            except ConditionFailed as failed:
                # Where the creator is known, the item that it created is gone: deleted by an attempt of this call
                # whose answer was lost, or by someone else. What is there now came after, and stays.
                item = failed.item if creator is None else None
                if item is not None and failed.sent_before:
                    raise self._outcome_unknown() from None
            else:
                item = None
        raise self._conflict()

    async def _append(self, batch: list[AttributeValue]) -> None:
        write, hint, stored, maybe_stored = secrets.token_urlsafe(9), self._hint, None, False
        for attempt in range(MAX_ATTEMPTS):
            try:
                await call(self._clients, self._layout.append(batch, write, hint, _now(), stored), self.place)
            except ConditionFailed as failed:
                maybe_stored = maybe_stored or failed.sent_before
                stored = self._layout.stored(failed.item, _now())
                if write in stored.writes:
                    self._hint = stored.hint()
                    return
                if stored.malformed and not stored.expired:
                    raise self._malformed() from None
                if maybe_stored and not stored.proves_unpruned_since(hint.anchor):
                    raise self._outcome_unknown() from None
                hint = stored.hint()
                await asyncio.sleep(random.uniform(0, min(attempt * 0.005, _LONGEST_PAUSE_SECONDS)))
            else:
                self._hint = self._hint_after(batch, write, hint)
                return
        # A sending whose answer was lost may still be under way.
        raise self._outcome_unknown() if maybe_stored else self._conflict()

    def _hint_after(self, batch: list[AttributeValue], write: str, hint: Hint) -> Hint:
        size = self._layout.history_size
        if len(batch) == size:
            return Hint(size, write)
        if hint.length is None:
            return Hint(None, write)
        length = hint.length + len(batch)
        return Hint(length if size is None else min(length, size), write)

    def _outcome_unknown(self) -> WriteOutcomeUnknownError:
        return WriteOutcomeUnknownError(
            "An earlier attempt may have succeeded, and the session was cleared or written much since, so that its"
            " outcome cannot be told: read the session before you try again",
            self.place,
        )

    def _malformed(self) -> UndecodableItemError:
        return UndecodableItemError(
            "The attribute of the messages is not a list: check history_messages_key", self.place
        )

    def _conflict(self) -> WriteConflictError:
        return WriteConflictError(f"Other writers were faster in {MAX_ATTEMPTS} attempts in a row", self.place)

    async def _get(self, *, consistent: bool) -> Item | None:
        response = await call(self._clients, self._layout.read(consistent=consistent), self.place)
        item: Item | None = response.get("Item")
        return item

    async def _get_if_possible(self) -> Item | None:
        with contextlib.suppress(ChatHistoryError):
            return await self._get(consistent=True)
        return None

    def _too_large(self, item: Item | None, batch: Sequence[AttributeValue]) -> ItemTooLargeError:
        stored = "" if item is None else f" on top of the {size_of({'M': dict(item)}):,} bytes that are stored"
        return ItemTooLargeError(
            f"{len(batch)} messages of {size_of({'L': list(batch)}):,} bytes{stored} do not fit into one item, for"
            f" which DynamoDB's limit is {MAX_ITEM_BYTES:,} bytes; nothing was written. Set history_size, store large"
            " content elsewhere, or begin another session",
            self.place,
        )

    async def _in_slices(self, convert: Callable[[In, int], Out], values: Sequence[In]) -> list[Out]:
        """Convert all values, and let the loop run now and then."""
        converted: list[Out] = []
        started = time.perf_counter()
        try:
            for position, value in enumerate(values):
                converted.append(convert(value, position))
                if time.perf_counter() - started > SLICE_SECONDS:
                    await asyncio.sleep(0)
                    started = time.perf_counter()
        except (MessageNotStorableError, UndecodableItemError) as error:
            raise self._located(error) from None
        return converted

    def _located(self, error: ChatHistoryError) -> ChatHistoryError:
        return type(error)(str(error), self.place)


def _now() -> int:
    return int(time.time())
