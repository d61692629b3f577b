"""A session in a single item: read, append, clear."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Sequence

from langchain_core.messages import BaseMessage

from .._codec.attribute_values import MAX_ITEM_BYTES, AttributeValue, bytes_of, size_of
from .._codec.message_attribute_values import decode_message, encode_message
from .._codec.messages import LANGCHAIN, decode_json
from .._encryption.binding import Binding
from .._idempotency import check_key, content_digest_of, key_digest_of, key_reused
from .._request import ConditionFailed, Item
from .._session import Access, Session, leaves_no_plaintext, reads_stored
from .._settings import check_positive
from .._wall_clock import now
from ..errors import (
    ChatHistoryError,
    ItemTooLargeError,
    UndecodableItemError,
    WriteOutcomeUnknownError,
)
from .layout import WRITES, Hint, SingleItem, Write
from .requests import append_messages, delete_item, get_identity, get_messages

# All messages have the same binding: an append does not read, so it cannot know the position of a message.
_BINDING = Binding("message")


class SingleItemSession(Session[BaseMessage]):
    """One session, stored in one item of a table.

    Args:
        layout: the session's table, key and settings.
        access: the session's access to its table.
    """

    def __init__(self, layout: SingleItem, access: Access) -> None:
        self.access = access
        self._layout = layout
        self._hint = Hint()

    async def read(self, limit: int | None = None, *, up_to: str | None = None) -> list[BaseMessage]:
        """Return the latest ``limit`` messages (None for all), oldest first.

        Raises:
            LayoutError: ``up_to`` is not None.
        """
        check_positive("limit", limit)
        if up_to is not None:
            raise self.needs_an_item_collection("Reading up to a message")
        item = await self._get(consistent=self.access.consistent_read)
        stored = self._layout.stored(item, now())
        if stored.expired:
            return []
        if stored.malformed:
            raise self.malformed()
        self._hint = stored.hint()
        return await self.decode(stored.messages, len(stored.messages) - (limit or len(stored.messages)))

    async def stream(self) -> AsyncGenerator[BaseMessage, None]:
        """Yield all messages, oldest first."""
        for message in await self.read():
            yield message

    async def append(self, values: Sequence[BaseMessage], idempotency_key: str | None = None) -> None:
        """Append a batch after the stored messages, contiguous and in order: all of it or nothing."""
        messages = list(values)
        if not messages:
            return
        write = await self._write_of(messages, idempotency_key)
        batch = await self._encode(messages)
        if size_of({"L": batch}) > MAX_ITEM_BYTES:
            raise self._too_large(None, batch)
        try:
            await self._append(batch, write)
        except ItemTooLargeError as error:
            raise self._too_large(await self._get_if_possible(), batch) from error.__cause__

    @reads_stored
    async def clear(self) -> None:
        """Delete the item that is stored now, and none that another writer creates afterwards."""
        layout = self._layout
        response = await self.access.call(get_identity(layout))
        item = response.get("Item")
        attempts = self.access.attempts()
        while item is not None:
            await attempts.begin()
            identity = layout.identity(item)
            try:
                await self.access.call(delete_item(layout, identity))
            except ConditionFailed as failed:
                # If the identity is known, the item with this identity is gone: a request of this call whose response
                # was lost deleted it, or another writer did. An item that is there now was created later, and stays.
                item = failed.item if identity is None else None
                if item is not None and failed.sent_before:
                    raise self._outcome_unknown() from None
            else:
                item = None
        self._hint = Hint()

    async def _write_of(self, messages: Sequence[BaseMessage], idempotency_key: str | None) -> Write:
        if idempotency_key is None:
            return Write(secrets.token_urlsafe(9))
        check_key(idempotency_key)
        texts = await self.access.encode(LANGCHAIN, messages)
        return Write.once(key_digest_of(idempotency_key), content_digest_of(idempotency_key, "", texts))

    async def _encode(self, messages: Sequence[BaseMessage]) -> list[AttributeValue]:
        """Return the stored forms of the messages that history_size keeps. All messages must be storable."""
        kept, default = slice(-(self._layout.history_size or 0), None), self.access.default
        if self.access.cipher is None:
            encoded = await self.access.in_slices(lambda message, at: encode_message(message, at, default), messages)
            return encoded[kept]
        bodies = (await self.access.encode(LANGCHAIN, messages))[kept]
        unencrypted: list[AttributeValue] = [{"B": body} for body in bodies]
        if size_of({"L": unencrypted}) > MAX_ITEM_BYTES:
            # Refused before a useless call to KMS.
            raise self._too_large(None, unencrypted)
        return [
            {"B": encrypted} for encrypted in await self.access.cipher.encrypt([(_BINDING, body) for body in bodies])
        ]

    @leaves_no_plaintext
    @reads_stored
    async def decode(self, elements: Sequence[AttributeValue], start: int) -> list[BaseMessage]:
        """Return the messages of an item's elements, from the position ``start`` on."""
        positions = range(max(0, start), len(elements))
        bodies = await self.access.decrypt(
            {at: (_BINDING, bytes_of(elements[at]["B"])) for at in positions if "B" in elements[at]}
        )

        def decode(position: int, _: int) -> BaseMessage:
            body = bodies.get(position)
            return decode_message(elements[position], position) if body is None else decode_json(body, position)

        return await self.access.in_slices(decode, positions)

    @reads_stored
    async def _append(self, batch: list[AttributeValue], write: Write) -> None:
        hint, stored, attempts = self._hint, None, self.access.attempts()
        while True:
            await attempts.begin()
            try:
                request = append_messages(self._layout, batch, write, hint, now(), stored)
                await self.access.call(request, maybe_stored=attempts.maybe_stored)
            except ConditionFailed as failed:
                attempts.maybe_stored = failed.sent_before
                stored = self._layout.stored(failed.item, now())
                # An idempotency key expires with its session.
                if write.id in stored.writes and not (stored.expired and write.content is not None):
                    if write.content is not None and write.content not in stored.writes:
                        raise key_reused(self.access.ref) from None
                    self._hint = stored.hint()
                    return
                if stored.malformed and not stored.expired:
                    raise self.malformed() from None
                if stored.has_damaged_writes and not stored.expired:
                    raise (self._outcome_unknown() if attempts.maybe_stored else self._damaged_writes()) from None
                if attempts.maybe_stored and not stored.proves_unpruned_since(hint.anchor):
                    raise self._outcome_unknown() from None
                hint = stored.hint()
            else:
                self._hint = self._hint_after(batch, write.id, hint)
                return

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
            "An earlier attempt may have succeeded, and the session was cleared or written many times since, so its"
            " outcome is not known: read the session before you try again",
            self.access.ref,
        )

    def malformed(self) -> UndecodableItemError:
        """Return the error for an item whose messages are not a list."""
        return UndecodableItemError(
            "The attribute of the messages is not a list: check history_messages_key", self.access.ref
        )

    def _damaged_writes(self) -> UndecodableItemError:
        return UndecodableItemError(
            f"The attribute {WRITES!r}, which is needed to recognise retries, is damaged, and nothing can be appended;"
            " nothing was written. aclear() deletes the session",
            self.access.ref,
        )

    async def _get(self, *, consistent: bool) -> Item | None:
        response = await self.access.call(get_messages(self._layout, consistent=consistent))
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
            self.access.ref,
        )
