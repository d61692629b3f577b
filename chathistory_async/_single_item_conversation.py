"""One session in a single item: read, append, clear."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage

from ._binding import Binding
from ._calls import LONGEST_PAUSE_SECONDS, ConditionFailed, Item
from ._clients import Clients
from ._codec.attribute_values import MAX_ITEM_BYTES, AttributeValue, bytes_of, size_of
from ._codec.messages import decode_json, decode_message, encode_json, encode_message
from ._codec.plain import Default
from ._conversation import (
    MAX_ATTEMPTS,
    Conversation,
    check_sequence,
    from_a_human_message,
    leaves_nothing_opened,
    now,
    reads_stored,
)
from ._settings import check_positive
from ._single_item import WRITES, Hint, SingleItem
from .errors import (
    ChatHistoryError,
    ItemTooLargeError,
    Place,
    UndecodableItemError,
    WriteOutcomeUnknownError,
)

if TYPE_CHECKING:
    from ._sealing import Sealing

# One for all messages: an append does not read, and cannot know which position a message will have.
_BINDING = Binding("message")


class SingleItemConversation(Conversation):
    """One session in one item of a table."""

    def __init__(
        self,
        layout: SingleItem,
        clients: Clients,
        place: Place,
        sealing: Sealing | None,
        *,
        consistent_read: bool,
        default: Default | None = None,
    ) -> None:
        super().__init__(clients, place, sealing, consistent_read=consistent_read, default=default)
        self._layout = layout
        self._hint = Hint()

    async def read(self, limit: int | None = None, *, whole_turns: bool = False) -> list[BaseMessage]:
        """Return the latest messages, oldest first."""
        check_positive("limit", limit)
        item = await self._get(consistent=self._consistent_read)
        stored = self._layout.stored(item, now())
        if stored.expired:
            return []
        if stored.malformed:
            raise self._malformed()
        self._hint = stored.hint()
        messages = await self._decode(stored.messages, len(stored.messages) - (limit or len(stored.messages)))
        return from_a_human_message(messages) if whole_turns else messages

    async def stream(self) -> AsyncGenerator[BaseMessage, None]:
        """Yield all messages, oldest first."""
        for message in await self.read():
            yield message

    async def append(self, messages: Sequence[BaseMessage]) -> None:
        """Store a batch whole, contiguous and in order behind what is there, or not at all."""
        check_sequence(messages)
        batch = await self._encode(list(messages))
        if not batch:
            return
        if size_of({"L": batch}) > MAX_ITEM_BYTES:
            raise self._too_large(None, batch)
        try:
            await self._append(batch)
        except ItemTooLargeError as error:
            raise self._too_large(await self._get_if_possible(), batch) from error.__cause__

    @reads_stored
    async def clear(self) -> None:
        """Delete the item that is there now, and none that another writer creates after it."""
        layout = self._layout
        response = await self._call(layout.read_identity())
        item = response.get("Item")
        for _ in range(MAX_ATTEMPTS):
            if item is None:
                self._hint = Hint()
                return
            identity = layout.identity(item)
            try:
                await self._call(layout.delete(identity))
            except ConditionFailed as failed:
                # Where its identity is known, the item is gone: deleted by an attempt of this call whose answer was
                # lost, or by someone else. What is there now came after, and stays.
                item = failed.item if identity is None else None
                if item is not None and failed.sent_before:
                    raise self._outcome_unknown() from None
            else:
                item = None
        raise self._conflict()

    async def _encode(self, messages: Sequence[BaseMessage]) -> list[AttributeValue]:
        """Return the stored forms of those messages that history_size keeps; all of them must be storable."""
        kept = slice(-(self._layout.history_size or 0), None)
        if self._sealing is None:
            return (await self._in_slices(lambda message, at: encode_message(message, at, self._default), messages))[
                kept
            ]
        bodies = (await self._in_slices(lambda message, at: encode_json(message, at, self._default), messages))[kept]
        unsealed: list[AttributeValue] = [{"B": body} for body in bodies]
        if size_of({"L": unsealed}) > MAX_ITEM_BYTES:
            # Before KMS is asked, and in vain.
            raise self._too_large(None, unsealed)
        return [{"B": sealed} for sealed in await self._sealing.seal([(_BINDING, body) for body in bodies])]

    @leaves_nothing_opened
    @reads_stored
    async def _decode(self, elements: Sequence[AttributeValue], start: int) -> list[BaseMessage]:
        positions = range(max(0, start), len(elements))
        bodies = await self._open(
            {at: (_BINDING, bytes_of(elements[at]["B"])) for at in positions if "B" in elements[at]}
        )

        def decode(position: int, _: int) -> BaseMessage:
            body = bodies.get(position)
            return decode_message(elements[position], position) if body is None else decode_json(body, position)

        return await self._in_slices(decode, positions)

    @reads_stored
    async def _append(self, batch: list[AttributeValue]) -> None:
        write, hint, stored, maybe_stored = secrets.token_urlsafe(9), self._hint, None, False
        for attempt in range(MAX_ATTEMPTS):
            try:
                request = self._layout.append(batch, write, hint, now(), stored)
                await self._call(request, maybe_stored=maybe_stored)
            except ConditionFailed as failed:
                maybe_stored = failed.sent_before
                stored = self._layout.stored(failed.item, now())
                if write in stored.writes:
                    self._hint = stored.hint()
                    return
                if stored.malformed and not stored.expired:
                    raise self._malformed() from None
                if stored.has_damaged_writes and not stored.expired:
                    raise (self._outcome_unknown() if maybe_stored else self._damaged_writes()) from None
                if maybe_stored and not stored.proves_unpruned_since(hint.anchor):
                    raise self._outcome_unknown() from None
                hint = stored.hint()
                await asyncio.sleep(random.uniform(0, min(attempt * 0.005, LONGEST_PAUSE_SECONDS)))
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

    def _damaged_writes(self) -> UndecodableItemError:
        return UndecodableItemError(
            f"The attribute {WRITES!r}, by which retries are recognised, is damaged, and nothing can be appended;"
            " nothing was written. aclear() deletes the session",
            self.place,
        )

    async def _get(self, *, consistent: bool) -> Item | None:
        response = await self._call(self._layout.read(consistent=consistent))
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
