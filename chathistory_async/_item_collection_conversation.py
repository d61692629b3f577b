"""One session in an item collection: read, page, append, edit, clear."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage

from ._calls import ConditionFailed, Item, Request, TransactionCanceled
from ._clients import Clients
from ._codec import AttributeValue
from ._compression import MAX_BYTES, MIN_BYTES, compressed, decompressed
from ._conversation import (
    LONGEST_PAUSE_SECONDS,
    MAX_ATTEMPTS,
    Conversation,
    Page,
    StoredMessage,
    check_sequence,
    from_a_human_message,
    now,
    smaller,
)
from ._item_collection import (
    MAX_TRANSACTION_BYTES,
    Body,
    ItemCollection,
    StoredBody,
    StoredPart,
    TooLarge,
    assemble,
    transactions,
)
from ._json_codec import decode_json, encode_json
from ._settings import check_positive
from ._slices import at_most
from ._sort_keys import PREFIX, Clock, SortKey, parse
from .errors import (
    ChatHistoryError,
    ItemTooLargeError,
    MessageNotFoundError,
    PartiallyStoredError,
    Place,
    ServiceError,
    ThrottledError,
    UndecodableItemError,
)

if TYPE_CHECKING:
    from ._sealing import Sealing

_ZLIB, _SEALED = "zlib", "aws-encryption-sdk"
_KNOWN_ENCODINGS = {"", _ZLIB, _SEALED, f"{_ZLIB},{_SEALED}"}
_RETRYABLE = {"None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}
_THROTTLED = {"ThrottlingError", "ProvisionedThroughputExceeded"}
# Of 25 items each; more at once would only meet the throttle of the partition.
_SWEEPS_AT_ONCE = 4
_REMOVED_AT_ONCE = 16
# A transaction conflicts only with one on the same items, which is its own retry; throttles are waited out by the SDK's
# rules elsewhere, but not for transactions.
MAX_TRANSACTION_ATTEMPTS = 10
_COPIED_AT_ONCE = 100


class ItemCollectionConversation(Conversation):
    """One session in the items of one partition key."""

    def __init__(
        self, layout: ItemCollection, clients: Clients, place: Place, sealing: Sealing | None, *, consistent_read: bool
    ) -> None:
        super().__init__(clients, place, sealing, consistent_read=consistent_read)
        self._layout = layout
        self._clock = Clock()
        # The latest messages' sort keys, oldest first, where history_size wants to know them; None before a read.
        self._window: list[SortKey] | None = None

    async def read(self, limit: int | None = None, *, whole_turns: bool = False) -> list[BaseMessage]:
        """Return the latest messages, oldest first, and read no more than them."""
        check_positive("limit", limit)
        size = self._layout.history_size
        if limit is None and size is not None:
            bodies = (await self._latest_and_window(size))[-size:]
        elif (count := smaller(limit, size)) is not None:
            bodies = (await self._latest(count))[-count:]
        else:
            bodies = [body async for page in self._pages() for body in page]
        messages = await self._decode(bodies)
        return from_a_human_message(messages) if whole_turns else messages

    async def stream(self) -> AsyncGenerator[BaseMessage, None]:
        """Yield all messages, oldest first, a page at a time."""
        if self._layout.history_size is not None:
            for message in await self.read():
                yield message
            return
        async for bodies in self._pages():
            for message in await self._decode(bodies):
                yield message

    async def page(self, limit: int, before: str | None) -> Page:
        """Return the latest messages, or those before a cursor."""
        if limit is None:
            raise ValueError("limit must be a positive integer, not None")
        check_positive("limit", limit)
        # One more tells whether there is a page before this one.
        bodies = await self._latest(limit + 1, before=None if before is None else _key_of(before))
        more, bodies = len(bodies) > limit, bodies[-limit:]
        messages = await self._decode(bodies)
        stored = [_stored_message(body.key, message) for body, message in zip(bodies, messages, strict=True)]
        return Page(stored, stored[0].id if more else None)

    async def append(self, messages: Sequence[BaseMessage]) -> None:
        """Store a batch in order behind all that was seen: all of it or nothing, up to the limits of a transaction."""
        check_sequence(messages)
        size = self._layout.history_size
        bodies = await self._encode(list(messages), keep=size)
        if not bodies:
            return
        first = self._next_batch()
        done = 0
        for number, together in enumerate(self._divide(self._layout.items(first, bodies, now()))):
            try:
                await self._store([item for items in together for item in items], f"{first.batch}-{number}")
            except ChatHistoryError as error:
                if not done:
                    raise
                text = f"The first {done} of {len(bodies)} messages are stored, in order; then {type(error).__name__}"
                raise PartiallyStoredError(text, self.place, done) from error
            done += len(together)
        if size is not None:
            await self._trim(size, [SortKey(first.tick, first.batch, index) for index in range(len(bodies))])

    async def clear(self) -> None:
        """Remove all messages that are there now, and none that another writer adds after."""
        self._window = None
        await self._sweep_before(None)

    async def remove(self, ids: Iterable[str]) -> None:
        """Remove these messages, where they are there."""
        self._window = None
        await at_most(_REMOVED_AT_ONCE, self._remove, [_key_of(message_id) for message_id in ids])

    async def pop(self) -> BaseMessage | None:
        """Remove the latest message and return it; each message is returned to one caller only."""
        self._window = None
        for _ in range(MAX_ATTEMPTS):
            latest = (await self._latest(1))[-1:]
            if not latest:
                return None
            [message] = await self._decode(latest)
            if await self._remove(latest[0].key, latest[0]):
                return message
        raise self._conflict()

    async def replace(self, message_id: str, message: BaseMessage) -> None:
        """Put another message into the place of one, whole or not at all."""
        key = _key_of(message_id)
        [body] = await self._encode([message])
        revision = secrets.token_urlsafe(9)
        for attempt in range(MAX_ATTEMPTS):
            stored = await self._first_part(key)
            if stored is None:
                raise MessageNotFoundError("There is no message of this id, or not any more", self.place)
            if stored.revision == revision:
                # An attempt whose answer was lost.
                return
            items = self._layout.items_of(key, body, now(), revision)
            self._divide([items])
            try:
                await self._transact(self._layout.replace(stored, items, secrets.token_urlsafe(18)))
            except ConditionFailed:
                await _pause(attempt)
            else:
                return
        raise self._conflict()

    async def copy_to(self, other: Conversation, upto: str | None) -> None:
        """Append the messages, up to one of them, to another session's."""
        last = None if upto is None else _key_of(upto)
        waiting: list[BaseMessage] = []
        async for bodies in self._pages(last):
            waiting += await self._decode(bodies)
            while len(waiting) >= _COPIED_AT_ONCE:
                await other.append(waiting[:_COPIED_AT_ONCE])
                del waiting[:_COPIED_AT_ONCE]
        await other.append(waiting)

    async def _encode(self, messages: Sequence[BaseMessage], keep: int | None = None) -> list[Body]:
        """Return the bodies of the latest messages; all of them must be storable."""
        texts = (await self._in_slices(encode_json, messages))[-(keep or 0) :]
        types = [message.type for message in messages][-(keep or 0) :]
        for position, text in enumerate(texts):
            if len(text) > MAX_BYTES:
                raise self._too_large(position, len(text))
        packed = [await _packed(text) for text in texts]
        if self._sealing is None:
            return [
                Body(data if encoding else data.decode(), encoding, kind)
                for (data, encoding), kind in zip(packed, types, strict=True)
            ]
        sealed = await self._sealing.seal([data for data, _ in packed])
        encodings = [",".join(filter(None, (encoding, _SEALED))) for _, encoding in packed]
        return [Body(data, encoding, None) for data, encoding in zip(sealed, encodings, strict=True)]

    async def _decode(self, bodies: Sequence[StoredBody]) -> list[BaseMessage]:
        for body in bodies:
            if body.content is None or body.encoding not in _KNOWN_ENCODINGS:
                reason = "a part of it is missing" if body.content is None else f"its encoding is {body.encoding!r}"
                raise UndecodableItemError(f"stored message {body.key} cannot be decoded: {reason}", self.place)
        contents = {position: body.content or b"" for position, body in enumerate(bodies)}
        contents |= await self._open(
            {position: contents[position] for position, body in enumerate(bodies) if body.encoding.endswith(_SEALED)}
        )
        for position, body in enumerate(bodies):
            if body.encoding.startswith(_ZLIB):
                contents[position] = await self._unpacked(body.key, contents[position])
        return await self._in_slices(decode_json, contents.values())

    async def _unpacked(self, key: SortKey, data: bytes) -> bytes:
        try:
            return await decompressed(data)
        except ValueError as error:
            raise UndecodableItemError(f"stored message {key} cannot be decompressed: {error}", self.place) from None

    def _divide(self, messages: list[list[dict[str, AttributeValue]]]) -> list[list[list[dict[str, AttributeValue]]]]:
        try:
            return transactions(messages)
        except TooLarge as error:
            raise self._too_large(error.position, error.size) from None

    def _too_large(self, position: int, size: int) -> ItemTooLargeError:
        return ItemTooLargeError(
            f"messages[{position}] of {size:,} bytes does not fit into one transaction, for which DynamoDB's limit is"
            f" {MAX_TRANSACTION_BYTES:,} bytes; nothing was written. Store large content elsewhere",
            self.place,
        )

    def _next_batch(self) -> SortKey:
        try:
            return self._clock.next_batch()
        except OverflowError as error:
            raise UndecodableItemError(str(error), self.place) from None

    async def _store(self, items: list[dict[str, AttributeValue]], token: str) -> None:
        # Where the condition fails it is stored already: by an attempt whose answer was lost.
        with suppress(ConditionFailed):
            if len(items) == 1:
                await self._call(self._layout.put(items[0]))
            else:
                await self._transact(self._layout.put_together(items, token))

    async def _transact(self, request: Request) -> None:
        codes: set[str] = set()
        for attempt in range(MAX_TRANSACTION_ATTEMPTS):
            try:
                await self._call(request)
            except TransactionCanceled as canceled:
                codes = set(canceled.codes)
                if "ConditionalCheckFailed" in codes:
                    raise ConditionFailed(None, sent_before=False) from None
                if not codes <= _RETRYABLE:
                    raise ServiceError(
                        f"DynamoDB cancelled the transaction: {codes}", self.place
                    ) from canceled.__cause__
                await _pause(attempt)
            else:
                return
        if codes & _THROTTLED:
            raise ThrottledError("AWS throttled TransactWriteItems and every retry", self.place)
        raise self._conflict()

    async def _latest_and_window(self, size: int) -> list[StoredBody]:
        """Return the latest messages, so many or up to a slack more, and remember their sort keys."""
        bodies = await self._latest(size, at_first=size + slack(size))
        self._window = [body.key for body in bodies]
        return bodies

    async def _latest(
        self, count: int, *, at_first: int | None = None, before: SortKey | None = None
    ) -> list[StoredBody]:
        """Return at least so many of the latest messages, if there are, oldest first.

        Args:
            count: how many.
            at_first: how many items to ask for at first, None for as many as messages.
            before: only messages before this one.
        """
        parts: list[StoredPart] = []
        found, limit, start_key = 0, at_first or count, None
        while True:
            page, start_key = await self._query(
                self._layout.query(
                    now=now(),
                    consistent=self._consistent_read,
                    newest_first=True,
                    limit=limit,
                    before=before,
                    start_key=start_key,
                )
            )
            parts += page
            found += sum(part.key.part == 0 for part in page)
            if found >= count or start_key is None:
                return assemble(reversed(parts))
            # Parts, tombstones and what has expired count towards a limit: where there are many, a few requests must
            # do.
            limit = max(count - found, 4 * limit)

    async def _pages(self, upto: SortKey | None = None) -> AsyncGenerator[list[StoredBody], None]:
        """Yield the messages in order, those of one response at a time."""
        waiting: list[StoredPart] = []
        start_key = None
        while True:
            page, start_key = await self._query(
                self._layout.query(now=now(), consistent=self._consistent_read, upto=upto, start_key=start_key)
            )
            waiting += page
            # The last message may go on in the next page.
            last = waiting[-1].key.of_part(0) if waiting and start_key is not None else None
            yield assemble(part for part in waiting if part.key.of_part(0) != last)
            if start_key is None:
                return
            waiting = [part for part in waiting if part.key.of_part(0) == last]

    async def _query(self, request: Request) -> tuple[list[StoredPart], dict[str, AttributeValue] | None]:
        """Return a page of what is stored, with the key of the next one, and order what is written after it."""
        response = await self._call(request)
        items: list[Item] = response.get("Items", [])
        parts = [part for part in map(self._layout.stored_part, items) if part is not None]
        if parts:
            self._clock.see(max(part.key for part in parts))
        return parts, response.get("LastEvaluatedKey")

    async def _first_part(self, key: SortKey) -> StoredPart | None:
        """Return the first item of a message, None where it was removed or has expired."""
        item: Item | None = (await self._call(self._layout.get(key))).get("Item")
        return None if item is None else self._layout.alive(item, now())

    async def _remove(self, key: SortKey, known: StoredBody | None = None) -> bool:
        """Remove a message, unless it is another one than what is known; return whether this call removed it."""
        write = secrets.token_urlsafe(9)
        try:
            response = await self._call(self._layout.remove(key, known, write, now()))
            tombstone: Item = response["Attributes"]
        except ConditionFailed as failed:
            # An attempt whose answer was lost may have done it.
            if failed.item is None or self._layout.removed_by(failed.item) != write:
                return False
            tombstone = failed.item
        await self._sweep(self._layout.other_parts(key, tombstone), fenced=False)
        return True

    async def _trim(self, size: int, added: list[SortKey]) -> None:
        """Remove what history_size leaves out, once that has grown to a slack.

        Where the session's latest messages are not known, they are asked for now and then: once in as many messages as
        the slack has, at random.
        """
        if self._window is None:
            if random.random() * slack(size) > len(added):
                return
            await self._latest_and_window(size)
        window = sorted({*(self._window or ()), *added})
        self._window = window[-size:] if len(window) >= size + slack(size) else window
        if len(window) > len(self._window):
            # What was added is stored; what is left over now is left to the next trim.
            with suppress(ChatHistoryError):
                await self._sweep_before(self._window[0])

    async def _sweep_before(self, before: SortKey | None) -> None:
        """Remove all messages, or those that history_size leaves out, which nobody reads even if they come back."""
        start_key = None
        while True:
            parts, start_key = await self._query(self._layout.query_keys(before=before, start_key=start_key))
            await self._sweep(parts, fenced=before is None)
            if start_key is None:
                return

    async def _sweep(self, parts: Iterable[StoredPart], *, fenced: bool) -> None:
        requests = self._layout.sweep(parts, secrets.token_urlsafe(9) if fenced else None, now())
        await at_most(_SWEEPS_AT_ONCE, self._batch_write, requests)

    async def _batch_write(self, request: Request) -> None:
        for attempt in range(MAX_ATTEMPTS):
            response = await self._call(request)
            unprocessed = response.get("UnprocessedItems", {}).get(self._layout.table_name)
            if not unprocessed:
                return
            request = self._layout.batch_write(unprocessed)
            await _pause(attempt)
        raise ThrottledError("AWS throttled BatchWriteItem and every retry", self.place)


def slack(history_size: int) -> int:
    """Return how many messages more than history_size may be stored before they are removed.

    A fifth more is read, and removals are made for several messages at once.
    """
    return max(4, history_size // 5)


async def _packed(text: bytes) -> tuple[bytes, str]:
    """Return a body, compressed where that is worth it, and its encoding."""
    if len(text) < MIN_BYTES:
        return text, ""
    smaller_text = await compressed(text)
    return (smaller_text, _ZLIB) if len(smaller_text) < len(text) else (text, "")


def _key_of(message_id: object) -> SortKey:
    key = parse(f"{PREFIX}{message_id}-00") if isinstance(message_id, str) else None
    if key is None:
        raise ValueError(f"{message_id!r} is not an id of a message, nor a cursor")
    return key


def _stored_message(key: SortKey, message: BaseMessage) -> StoredMessage:
    created_at = datetime.fromtimestamp(key.created_at, timezone.utc)
    return StoredMessage(str(key).removeprefix(PREFIX)[:-3], message, created_at)


async def _pause(attempt: int) -> None:
    await asyncio.sleep(random.uniform(0, min(attempt * 0.005, LONGEST_PAUSE_SECONDS)))
