"""The asynchronous core of one session: read, append, clear. It knows messages, and nobody's base class."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from langchain_core.messages import BaseMessage

from ._calls import ConditionFailed, Item, call
from ._clients import Clients
from ._codec import MAX_ITEM_BYTES, AttributeValue, bytes_of, decode_message, encode_message, size_of
from ._json_codec import decode_json, encode_json
from ._single_item import Hint, SingleItem
from ._slices import in_slices
from .errors import (
    ChatHistoryError,
    ConfigurationError,
    ItemTooLargeError,
    MessageNotStorableError,
    Place,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)

if TYPE_CHECKING:
    # At run time it needs an extra, and its SDK takes 0.2 s to import: only who encrypts does.
    from ._sealing import Sealing

In = TypeVar("In")
Out = TypeVar("Out")

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
        sealing: what seals the messages, None to store them in the clear.
        consistent_read: whether reads are strongly consistent.
    """

    def __init__(
        self, layout: SingleItem, clients: Clients, place: Place, sealing: Sealing | None, *, consistent_read: bool
    ) -> None:
        self.place = place
        self._layout = layout
        self._clients = clients
        self._sealing = sealing
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
        return await self._decode(stored.messages)

    async def append(self, messages: Sequence[BaseMessage]) -> None:
        """Store a batch whole, contiguous and in order behind what is there, or not at all."""
        if not isinstance(messages, Sequence):
            raise TypeError("aadd_messages takes a sequence of messages: put the one message in a list")
        batch = await self._encode(list(messages))
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

    async def _encode(self, messages: Sequence[BaseMessage]) -> list[AttributeValue]:
        """Return the stored forms of those messages that history_size keeps; all of them must be storable."""
        kept = slice(-(self._layout.history_size or 0), None)
        if self._sealing is None:
            return (await self._in_slices(encode_message, messages))[kept]
        bodies = await self._in_slices(encode_json, messages)
        return [{"B": sealed} for sealed in await self._sealing.seal(bodies[kept])]

    async def _decode(self, elements: Sequence[AttributeValue]) -> list[BaseMessage]:
        sealed = {position: bytes_of(element["B"]) for position, element in enumerate(elements) if "B" in element}
        if not sealed:
            return await self._in_slices(decode_message, elements)
        if self._sealing is None:
            raise ConfigurationError(
                f"Stored message {min(sealed)} is sealed: give kms_key_id, the KMS key for what is to be written, and"
                " the permission kms:Decrypt on the key of what is stored",
                self.place,
            )
        bodies = await self._sealing.open(sealed)

        def decode(element: AttributeValue, position: int) -> BaseMessage:
            body = bodies.get(position)
            return decode_message(element, position) if body is None else decode_json(body, position)

        return await self._in_slices(decode, elements)

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

    async def _in_slices(self, convert: Callable[[In, int], Out], values: Iterable[In]) -> list[Out]:
        try:
            return await in_slices(convert, values)
        except (MessageNotStorableError, UndecodableItemError) as error:
            raise self._located(error) from None

    def _located(self, error: ChatHistoryError) -> ChatHistoryError:
        return type(error)(str(error), self.place)


def _now() -> int:
    return int(time.time())
