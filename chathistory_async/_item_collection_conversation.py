"""One session in an item collection: read, page, append, edit, clear."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timezone
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias, Union

from langchain_core.messages import BaseMessage

from ._binding import Binding, Bound
from ._calls import ConditionFailed, Item, Request, TransactionCanceled, pause
from ._clients import Clients
from ._codec.attribute_values import AttributeValue
from ._codec.compression import MAX_BYTES, MIN_BYTES, compressed, decompressed
from ._codec.messages import decode_json, encode_json
from ._codec.plain import Default
from ._conversation import (
    MAX_ATTEMPTS,
    Conversation,
    Page,
    StoredMessage,
    check_sequence,
    from_a_human_message,
    leaves_nothing_opened,
    now,
    reads_stored,
    smaller,
)
from ._item_collection import (
    DAMAGED,
    FENCE_SECONDS,
    MAX_TRANSACTION_BYTES,
    MAX_TRANSACTION_ITEMS,
    Body,
    ItemCollection,
    Items,
    StoredPart,
    StoredText,
    TooLarge,
    as_bytes,
    joined,
    messages_of,
    other_parts,
    parts_in,
    sized,
    transactions,
)
from ._settings import check_positive
from ._slices import Slices, Turns, at_most
from ._sort_keys import PREFIX, SortKey, clock_of, message_id_of, parse
from .errors import (
    ChatHistoryError,
    EndpointError,
    ItemTooLargeError,
    MessageNotFoundError,
    PartiallyStoredError,
    Place,
    ThrottledError,
    UndecodableItemError,
    wrong_key,
)

if TYPE_CHECKING:
    from ._sealing import Sealing

_ZLIB, _SEALED = "zlib", "aws-encryption-sdk"
_KNOWN_ENCODINGS = {"", _ZLIB, _SEALED, f"{_ZLIB},{_SEALED}"}
# Of 25 items each; more at once would only meet the throttle of the partition.
_SWEEPS_AT_ONCE = 4
_READ_AGAIN = 5
# Half of it is left for the requests that are sent then.
_OLDEST_SECONDS = FENCE_SECONDS // 2
# Most items are less than a KB, and a Query bills for 4 KB and more.
_POPPED_AT_ONCE = 16
# Of what is stored in an error's text: it may be anything.
_LONGEST_QUOTE = 40
_DECODED_AT_ONCE = 32
_COPIED_AT_ONCE = 100
# Of half a megabyte and more, whose JSON holds the loop for 2 to 6 ms.
_LONG_PAGE = 500

# A message as it is read.
Stored: TypeAlias = Union[StoredPart, StoredText]


class ItemCollectionConversation(Conversation):
    """One session in the items of one partition key."""

    # What a subclass may leave less of, because its transactions write other items too, which all of them share.
    _message_items = MAX_TRANSACTION_ITEMS
    _removed_at_once = 16

    def __init__(
        self,
        layout: ItemCollection,
        clients: Clients,
        place: Place,
        sealing: Sealing | None,
        *,
        consistent_read: bool,
        default: Default | None = None,
    ) -> None:
        super().__init__(clients, place, sealing, consistent_read=consistent_read, default=default)
        self._layout = layout
        self._clock = clock_of(layout.table_name, repr(layout.key))
        self._sort_key_check = ("sort key", layout.table_name, *layout.key, layout.sort_key_name)
        # The latest messages' sort keys, oldest first, where history_size wants to know them; None before a read.
        self._window: list[SortKey] | None = None

    @leaves_nothing_opened
    async def read(self, limit: int | None = None, *, whole_turns: bool = False) -> list[BaseMessage]:
        """Return the latest messages, oldest first, and read no more than them."""
        check_positive("limit", limit)
        size = self._layout.history_size
        if limit is None and size is not None:
            messages = await self._decode((await self._latest_and_window(size))[-size:])
        elif (count := smaller(limit, size)) is not None:
            messages = await self._decode((await self._latest(count))[-count:])
        else:
            messages = []
            async with aclosing(self._pages()) as pages:
                async for page in pages:
                    messages += await self._decode(page)
        return from_a_human_message(messages) if whole_turns else messages

    async def stream(self) -> AsyncGenerator[BaseMessage, None]:
        """Yield all messages, oldest first, a page at a time."""
        if self._layout.history_size is not None:
            for message in await self.read():
                yield message
            return
        async with aclosing(self._pages()) as pages:
            async for bodies in pages:
                # A few at a time: a megabyte may be a hundred when it is decompressed.
                for start in range(0, len(bodies), _DECODED_AT_ONCE):
                    for message in await self._decode(bodies[start : start + _DECODED_AT_ONCE]):
                        yield message

    async def page(self, limit: int, before: str | None) -> Page:
        """Return the latest messages, or those before a cursor."""
        check_positive("limit", limit, optional=False)
        # One more tells whether there is a page before this one.
        bodies = await self._latest(limit + 1, before=None if before is None else _key_of(before))
        cursor = message_id_of(bodies[-limit].key) if len(bodies) > limit else None
        bodies = await self._whole(bodies[-limit:])
        messages = await self._decode(bodies)
        stored = [_stored_message(body.key, message) for body, message in zip(bodies, messages, strict=True)]
        return Page(stored, cursor)

    async def append(self, messages: Sequence[BaseMessage]) -> None:
        """Store a batch in order behind all that was seen: all of it or nothing, up to the limits of a transaction."""
        check_sequence(messages)
        messages = list(messages)
        if not messages:
            return
        size = self._layout.history_size
        left_out = max(0, len(messages) - size) if size is not None else 0
        # Before the messages are sealed: each is bound to its key.
        first, began = await self._next_batch(), monotonic()
        keys = [SortKey(first.tick, first.batch, index) for index in range(len(messages) - left_out)]
        bodies = await self._encode(messages, keys)
        await self._check_table()
        items = await self._in_slices(lambda key, index: sized(self._layout.items_of(key, bodies[index], now())), keys)
        done = left_out
        for number, together in enumerate(self._divide(items, left_out)):
            try:
                await self._store(together, keys[done - left_out], f"{first.batch}-{number}", began)
            except ChatHistoryError as error:
                if done == left_out:
                    raise
                text = f"The batch is stored up to its first {done} messages; then {type(error).__name__}"
                raise PartiallyStoredError(text, self.place, done) from error
            done += len(together)
        if size is not None:
            # What was added is stored. What cannot be removed now is left to the next append.
            with suppress(ChatHistoryError):
                await self._trim(size, keys)

    async def clear(self) -> None:
        """Remove all messages that are there now, and none that another writer adds after."""
        self._window = None
        await self._sweep_found()
        self._clock.recover()

    async def remove(self, ids: Iterable[str]) -> None:
        """Remove these messages, where they are there."""
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise TypeError("adelete_messages takes an iterable of ids: put the one id in a list")
        self._window = None
        await at_most(self._removed_at_once, self._remove, [_key_of(message_id) for message_id in ids])

    async def pop(self) -> BaseMessage | None:
        """Remove the latest message and return it; each message is returned to one caller only."""
        self._window = None
        turns = Turns()
        for attempt in range(MAX_ATTEMPTS):
            # Others who take messages off leave empty items behind the latest message.
            latest = (await self._latest(1, at_first=_POPPED_AT_ONCE if attempt else 1, consistent=True))[-1:]
            if not latest:
                return None
            if whole := await self._whole(latest):
                [message] = await self._decode(whole)
                if await self._remove(whole[0].key, whole[0]):
                    return message
            await turns.wait()
        raise self._conflict()

    async def replace(self, message_id: str, message: BaseMessage) -> None:
        """Put another message into the place of one, whole or not at all."""
        key = _key_of(message_id)
        [body] = await self._encode([message], [key])
        revision, maybe_stored = {"S": secrets.token_urlsafe(9)}, False
        for attempt in range(MAX_ATTEMPTS):
            stored = await self._first_part(key)
            if stored is None:
                raise MessageNotFoundError("There is no message of this id, or not any more", self.place, message_id)
            if stored.revision == revision:
                # An attempt whose answer was lost.
                return
            items = self._layout.items_of(key, body, now(), revision)
            self._divide([sized(items)])
            try:
                request = self._layout.replace(stored, items, secrets.token_urlsafe(18), now())
                await self._call(request, maybe_stored=maybe_stored)
            except TransactionCanceled as canceled:
                maybe_stored = canceled.sent_before
                await pause(attempt)
            else:
                return
        raise self._conflict(maybe_stored=maybe_stored)

    @leaves_nothing_opened
    async def copy_to(self, other: Conversation, upto: str | None) -> None:
        """Append the messages, up to one of them, to another session's."""
        last = None if upto is None else _key_of(upto)
        waiting: list[BaseMessage] = []
        async with aclosing(self._pages(last)) as pages:
            async for bodies in pages:
                waiting += await self._decode(bodies)
                while len(waiting) >= _COPIED_AT_ONCE:
                    await other.append(waiting[:_COPIED_AT_ONCE])
                    del waiting[:_COPIED_AT_ONCE]
        await other.append(waiting)

    async def _encode(self, messages: Sequence[BaseMessage], keys: Sequence[SortKey]) -> list[Body]:
        """Return the bodies of the last messages, as many as there are keys; the others must be storable too."""
        left_out = len(messages) - len(keys)
        texts = (await self._in_slices(lambda message, at: encode_json(message, at, self._default), messages))[
            left_out:
        ]
        types = [message.type for message in messages][left_out:]
        slices, packed = Slices(), list[tuple[bytes, str]]()
        for position, text in enumerate(texts):
            if len(text) > MAX_BYTES:
                raise self._too_large(left_out + position, len(text))
            packed.append(await _packed(text))
            await slices.breathe()
        if self._sealing is None:
            return [
                Body(data if encoding else data.decode(), encoding, kind)
                for (data, encoding), kind in zip(packed, types, strict=True)
            ]
        sealed = await self._sealing.seal(
            [(Binding("message", key, encoding), data) for key, (data, encoding) in zip(keys, packed, strict=True)]
        )
        encodings = [",".join(filter(None, (encoding, _SEALED))) for _, encoding in packed]
        return [Body(data, encoding, None) for data, encoding in zip(sealed, encodings, strict=True)]

    @leaves_nothing_opened
    @reads_stored
    async def _decode(self, bodies: Sequence[Stored]) -> list[BaseMessage]:
        """Return the messages of these bodies, without those that have gone meanwhile."""
        texts = [body for body in bodies if not isinstance(body, StoredPart)]
        if texts:
            return await self._in_slices(lambda stored, _: decode_json(stored[1], message_id_of(stored[0])), texts)
        return await self._decode_parts(await self._whole([body for body in bodies if isinstance(body, StoredPart)]))

    async def _decode_parts(self, bodies: Sequence[StoredPart]) -> list[BaseMessage]:
        for body in bodies:
            if body.encoding not in _KNOWN_ENCODINGS:
                raise self._undecodable(body, f"its encoding is {body.encoding[:_LONGEST_QUOTE]!r}")
        contents = {message_id_of(body.key): as_bytes(body.content or b"") for body in bodies}
        sealed = {message_id_of(body.key): _bound(body) for body in bodies if body.encoding.endswith(_SEALED)}
        contents |= await self._open(sealed)
        # Each is decompressed and decoded before the next one. What comes out of a page's bodies may be a hundred
        # times as large as they are, and must not all be there at once beside the messages.
        messages, slices = list[BaseMessage](), Slices()
        for body in bodies:
            content = contents.pop(message_id_of(body.key))
            if body.encoding.startswith(_ZLIB):
                content = await self._unpacked(body, content)
            messages.append(self._message(content, body))
            await slices.breathe()
        return messages

    async def _unpacked(self, body: StoredPart, data: bytes) -> bytes:
        try:
            return await decompressed(data)
        except ValueError as error:
            raise self._undecodable(body, f"it cannot be decompressed: {error}") from None

    def _message(self, text: bytes, body: StoredPart) -> BaseMessage:
        try:
            return decode_json(text, message_id_of(body.key))
        except UndecodableItemError as error:
            raise self._located(error) from None

    def _undecodable(self, body: StoredPart, reason: str) -> UndecodableItemError:
        message_id = message_id_of(body.key)
        return UndecodableItemError(f"stored message {message_id} cannot be decoded: {reason}", self.place, message_id)

    def _divide(self, messages: list[tuple[Items, int]], left_out: int = 0) -> list[list[Items]]:
        try:
            return transactions(messages, self._message_items)
        except TooLarge as error:
            raise self._too_large(left_out + error.position, error.size) from None

    def _too_large(self, position: int, size: int) -> ItemTooLargeError:
        return ItemTooLargeError(
            f"messages[{position}] of {size:,} bytes does not fit into one transaction, for which DynamoDB's limit is"
            f" {MAX_TRANSACTION_BYTES:,} bytes; nothing was written. Store large content elsewhere",
            self.place,
        )

    async def _check_table(self) -> None:
        """Refuse a table in which what is to be appended could not be found; once, before the first append."""

    async def _check_sort_key(self, key: SortKey) -> None:
        """Refuse a table without the sort key; once, before the first message that is put alone.

        To such a table it is an attribute like any other: the item would be stored as the session itself. All other
        requests have the sort key where DynamoDB refuses it, or put two items that would be one.
        """
        read = self._layout.get(key, consistent=False)
        await self._clients.first_append.check(self._sort_key_check, lambda: self._call(read))

    async def _next_batch(self) -> SortKey:
        """Return the sort key of the first message of a batch, unless it cannot come behind what was seen."""
        if self._clock.saw_impossible_key:
            # By whomever, it may have been deleted since. No other message comes behind it.
            latest = (await self._latest(1, consistent=True))[-1:]
            if latest and not self._clock.is_possible(latest[0].key):
                message_id = message_id_of(latest[0].key)
                raise UndecodableItemError(
                    f"stored message {message_id} claims a time that no clock can have told, and nothing can come"
                    " behind it; nothing was written. adelete_messages([error.message_id]) deletes it",
                    self.place,
                    message_id,
                )
            self._clock.recover()
        return self._clock.next_batch()

    async def _store(self, messages: list[Items], first: SortKey, token: str, began: float) -> None:
        """Put messages where there are none; where theirs are there, an attempt whose answer was lost has done so.

        Args:
            messages: their items.
            first: the first one's sort key.
            token: what DynamoDB knows a transaction by.
            began: when the sort keys were made, by ``monotonic``.
        """
        items = [item for items in messages for item in items]
        self._check_age(began)
        try:
            if len(items) == 1:
                await self._check_sort_key(first)
                await self._call(self._layout.put(items[0]))
            else:
                await self._call(self._layout.put_together(items, token))
                self._clients.first_append.record(self._sort_key_check)
        except ConditionFailed as failed:
            self._check_stored([(items[0], failed.item)])
        except TransactionCanceled as canceled:
            self._check_stored(refused(items, canceled))

    def _check_age(self, began: float) -> None:
        """Refuse to store a message so late that a retry of it may arrive after the tombstone of its removal has gone.

        The tombstone's time is told from the key, which was made before the message was encrypted. How long ago that
        is tells a clock of its own: that of the keys may be behind.
        """
        if monotonic() - began > _OLDEST_SECONDS:
            text = f"Encrypting and storing the batch took more than {_OLDEST_SECONDS:,} s, and is given up"
            raise EndpointError(f"{text}: read the session before you try again, in smaller batches", self.place)

    def _check_stored(self, found: Iterable[tuple[dict[str, AttributeValue], Item | None]]) -> None:
        """Refuse what was found in the places of items, unless it is what an attempt of this write has put there."""
        if not all(self._layout.is_stored(item, other) for item, other in found):
            raise wrong_key(f"it has no sort key {self._layout.sort_key_name!r}", self.place)

    async def _latest_and_window(self, size: int) -> list[StoredPart]:
        """Return the latest messages, so many or up to a slack more, and remember their sort keys."""
        bodies = await self._latest(size, at_first=size + slack(size))
        self._window = [body.key for body in bodies]
        return bodies

    async def _latest(
        self,
        count: int,
        *,
        at_first: int | None = None,
        before: SortKey | None = None,
        consistent: bool | None = None,
    ) -> list[StoredPart]:
        """Return at least so many of the latest messages, if there are, oldest first.

        Args:
            count: how many.
            at_first: how many items to ask for at first, None for as many as messages.
            before: only messages before this one.
            consistent: whether the read is strongly consistent, None for the handle's choice.
        """
        parts: list[StoredPart] = []
        found, limit, start_key = 0, at_first or count, None
        while True:
            items, start_key = await self._query(
                self._layout.query(
                    now=now(),
                    consistent=self._consistent_read if consistent is None else consistent,
                    newest_first=True,
                    limit=limit,
                    before=before,
                    start_key=start_key,
                )
            )
            page = await self._parts(items)
            parts += page
            found += sum(part.key.is_first_part for part in page)
            if found >= count or start_key is None:
                return await _joined(reversed(parts))
            # Parts, tombstones and what has expired count towards a limit: where there are many, a few requests must
            # do.
            limit = max(count - found, 4 * limit)

    async def _pages(
        self, upto: SortKey | None = None, *, consistent: bool | None = None
    ) -> AsyncGenerator[Sequence[Stored], None]:
        """Yield the messages in order, those of one response at a time."""
        consistent = self._consistent_read if consistent is None else consistent
        waiting: list[StoredPart] = []
        start_key = None
        while True:
            items, start_key = await self._query(
                self._layout.query(now=now(), consistent=consistent, upto=upto, start_key=start_key)
            )
            texts = None if waiting else self._layout.plain_texts(items)
            if texts is not None:
                # For the clock: the last of a page is its latest.
                await self._parts(items[-1:])
                # A megabyte, which is not searched for garbage while its texts are decoded.
                del items
                yield texts
            else:
                waiting += await self._parts(items)
                end = len(waiting) if start_key is None else _start_of_last(waiting)
                yield await _joined(waiting[:end])
                del waiting[:end]
            if start_key is None:
                return

    async def _whole(self, bodies: Sequence[StoredPart]) -> list[StoredPart]:
        """Return messages, those read again of which a part was missing, without those that have gone meanwhile.

        What a transaction writes may be met in part: a page is not one with another, nor, on AWS, with itself.

        Raises:
            UndecodableItemError: a part stays missing. So however many are damaged, only one is read again in vain.
        """
        return [
            whole
            for body in bodies
            if (whole := body if body.content is not None else await self._read_again(body)) is not None
        ]

    async def _read_again(self, body: StoredPart) -> StoredPart | None:
        """Return a message read as a whole, None where it is gone."""
        if body.parts == DAMAGED:
            raise self._undecodable(body, "its number of parts is damaged")
        unchanged = 0
        for _ in range(MAX_ATTEMPTS):
            await pause(unchanged)
            parts, start_key = list[StoredPart](), None
            while True:
                items, start_key = await self._query(
                    self._layout.query(now=now(), consistent=True, only=body.key, start_key=start_key)
                )
                parts += await self._parts(items)
                if start_key is None:
                    break
            found = await _joined(parts)
            if not found:
                return None
            if found[0].content is not None:
                return found[0]
            # Whoever replaces the message in a loop may tear each read of it. Where nobody has, nothing will mend it.
            unchanged = unchanged + 1 if found[0].revision == body.revision else 0
            if unchanged == _READ_AGAIN:
                raise self._undecodable(body, "a part of it is missing")
            body = found[0]
        raise self._conflict()

    async def _query(self, request: Request) -> tuple[list[Item], dict[str, AttributeValue] | None]:
        """Return a page of what is stored, with the key of the next one."""
        response = await self._call(request)
        self._clients.first_append.record(self._sort_key_check)
        items: list[Item] = response.get("Items", [])
        if len(items) > _LONG_PAGE:
            await asyncio.sleep(0)
        return items, response.get("LastEvaluatedKey")

    async def _parts(self, items: Sequence[Item]) -> list[StoredPart]:
        """Return what a page has of messages, and order what is written after it."""
        parts = await self._stored_parts(items)
        if parts:
            # They are in order, from either end.
            self._clock.see(max(parts[0].key, parts[-1].key))
        return parts

    @reads_stored
    async def _stored_parts(self, items: Sequence[Item]) -> list[StoredPart]:
        read = await self._in_slices(lambda item, _: self._layout.stored_part(item), items)
        return [part for part in read if part is not None]

    @reads_stored
    async def _first_part(self, key: SortKey) -> StoredPart | None:
        """Return the first item of a message, None where it was removed or has expired."""
        item: Item | None = (await self._call(self._layout.get(key))).get("Item")
        return None if item is None else self._layout.alive(item, now())

    async def _remove(self, key: SortKey, known: StoredPart | None = None) -> bool:
        """Remove a message, unless it is another one than what is known; return whether this call removed it."""
        write = secrets.token_urlsafe(9)
        removed = True
        try:
            tombstone: Item = (await self._call(self._layout.remove(key, known, write, now())))["Attributes"]
        except ConditionFailed as failed:
            if failed.item is None:
                return False
            tombstone = failed.item
            # An attempt whose answer was lost may have done it.
            removed = self._layout.removed_by(tombstone) == write
            if self._layout.removed_by(tombstone) is None:
                return False
        await self._sweep_other_parts(key, parts_in(tombstone))
        return removed

    async def _sweep_other_parts(self, key: SortKey, parts: int) -> None:
        # The message is removed; parts that stay are read by nobody, and cost their space until the session is cleared.
        with suppress(ChatHistoryError):
            if parts == DAMAGED:
                await self._sweep_found(only=key)
            else:
                await self._sweep(other_parts(key, parts))

    async def _trim(self, size: int, added: list[SortKey]) -> None:
        """Remove what history_size leaves out, once that seems to have grown to a slack.

        What is remembered of the session only tells when to look: others may have removed messages since. Where nothing
        is, somebody looks once in as many messages as the slack has, at random.
        """
        known = self._window
        if known is None and random.random() * slack(size) > len(added):
            return
        window = sorted({*(known or ()), *added})
        self._window = window[-(size + slack(size)) :]
        if known is not None and len(window) < size + slack(size):
            return
        await self._keep_latest(size)

    async def _keep_latest(self, size: int) -> None:
        """Remove all messages but so many."""
        latest = await self._latest(size, consistent=True)
        self._window = [body.key for body in latest]
        if len(latest) >= size:
            await self._sweep_found(before=latest[-size].key)

    async def _sweep_found(self, *, before: SortKey | None = None, only: SortKey | None = None) -> int:
        """Remove all messages, all before one, or what is left of one, and return how many messages that were."""
        start_key, swept = None, 0
        while True:
            response = await self._call(self._layout.query_keys(before=before, only=only, start_key=start_key))
            parts = await self._stored_parts(response.get("Items", []))
            await self._sweep(parts)
            swept += sum(part.key.is_first_part and part.removed_by is None for part in parts)
            start_key = response.get("LastEvaluatedKey")
            if start_key is None:
                return swept

    async def _sweep(self, parts: Sequence[StoredPart]) -> None:
        requests = self._layout.sweep(parts, secrets.token_urlsafe(9), now())
        await at_most(_SWEEPS_AT_ONCE, self._batch_write, requests)

    async def _batch_write(self, request: Request) -> None:
        for attempt in range(MAX_ATTEMPTS):
            response = await self._call(request)
            unprocessed = response.get("UnprocessedItems", {}).get(self._layout.table_name)
            if not unprocessed:
                return
            request = self._layout.batch_write(unprocessed)
            await pause(attempt)
        raise ThrottledError("AWS throttled BatchWriteItem and every retry", self.place)


def refused(items: Items, canceled: TransactionCanceled) -> list[tuple[dict[str, AttributeValue], Item | None]]:
    """Return those of a transaction's first items whose places were taken, each with what is there."""
    return [
        (item, reason.get("Item"))
        for item, reason in zip(items, canceled.reasons)  # noqa: B905  # other actions follow
        if reason.get("Code") == "ConditionalCheckFailed"
    ]


def slack(history_size: int) -> int:
    """Return how many messages more than history_size may be stored before they are removed, several at once."""
    return max(4, history_size // 5)


async def _joined(parts: Iterable[StoredPart]) -> list[StoredPart]:
    """Return the messages of these parts, without a content where a part is missing."""
    slices = Slices()
    bodies, others = messages_of(parts)
    for position, rest in others.items():
        await slices.breathe()
        bodies[position] = joined(bodies[position], rest)
    await slices.breathe()
    return bodies


def _start_of_last(parts: Sequence[StoredPart]) -> int:
    """Return where the parts of the last message begin, if it may go on in the next page."""
    start = len(parts)
    if parts and parts[-1].parts == 1:
        return start
    while start and parts[start - 1].key.of_part(0) == parts[-1].key.of_part(0):
        start -= 1
    return start


async def _packed(text: bytes) -> tuple[bytes, str]:
    """Return a body, compressed where that is worth it, and its encoding."""
    if len(text) < MIN_BYTES:
        return text, ""
    smaller_text = await compressed(text)
    return (smaller_text, _ZLIB) if len(smaller_text) < len(text) else (text, "")


def _bound(body: StoredPart) -> Bound:
    """Return a sealed body with the binding that belongs to its place."""
    encoding = body.encoding.removesuffix(_SEALED).rstrip(",")
    return Binding("message", body.key, encoding), as_bytes(body.content or b"")


def _key_of(message_id: object) -> SortKey:
    key = parse(f"{PREFIX}{message_id}-00") if isinstance(message_id, str) else None
    if key is None:
        raise ValueError(f"{message_id!r} is not an id of a message, nor a cursor")
    return key


def _stored_message(key: SortKey, message: BaseMessage) -> StoredMessage:
    return StoredMessage(message_id_of(key), message, datetime.fromtimestamp(key.created_at, timezone.utc))
