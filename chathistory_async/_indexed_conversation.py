"""One session that has an item in the session index: what changes its messages changes that in the same transaction."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage

from ._binding import Binding
from ._calls import ConditionFailed, Item, TransactionCanceled, call, pause
from ._clients import Clients
from ._codec import AttributeValue, KeyValue, bytes_of, decode_key_value, encoded, plain_text
from ._conversation import MAX_ATTEMPTS, leaves_nothing_opened, now
from ._item_collection import MAX_TRANSACTION_ITEMS, REVISION, ItemCollection, Items, StoredPart
from ._item_collection_conversation import ItemCollectionConversation, refused
from ._json_codec import decode_value, encode_value
from ._migration import Migration
from ._plain import Default
from ._session_item import (
    INDEX_NAME,
    SORT_KEY,
    SessionItem,
    StoredSession,
    is_alive,
    query_sessions,
    read_session,
)
from ._sort_keys import SortKey
from .errors import ItemTooLargeError, Place, SessionNotFoundError, UndecodableItemError

if TYPE_CHECKING:
    from ._sealing import Sealing

# Each append rewrites the session's item and is billed for all of it, in the table and in the index.
MAX_TITLE_BYTES = 4 * 1024
MAX_METADATA_BYTES = 64 * 1024
_RECOUNTS = 8
_TITLE, _METADATA = Binding("title", SORT_KEY), Binding("metadata", SORT_KEY)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What the session index knows of a session.

    Attributes:
        session_id: the value of its partition key.
        owner: whose it is, None where nobody was named.
        title: None where none was set.
        created_at: when its first message was added, by the writer's clock, in UTC.
        last_active_at: when messages were added last, likewise.
        message_count: how many messages were added and not removed. Those that have expired one by one count as well.
        metadata: what ``update_metadata`` has put there.
    """

    session_id: KeyValue
    owner: str | None
    title: str | None = field(repr=False)
    created_at: datetime
    last_active_at: datetime
    message_count: int
    metadata: dict[str, Any] = field(repr=False)


class IndexedConversation(ItemCollectionConversation):
    """One session in the items of one partition key, of which one is its own."""

    _message_items = MAX_TRANSACTION_ITEMS - 1
    # All of them write the session's item, so that two at once would only be in each other's way.
    _removed_at_once = 1

    def __init__(
        self,
        layout: ItemCollection,
        clients: Clients,
        place: Place,
        sealing: Sealing | None,
        *,
        consistent_read: bool,
        owner: str | None,
        default: Default | None = None,
    ) -> None:
        super().__init__(layout, clients, place, sealing, consistent_read=consistent_read, default=default)
        self._entry = SessionItem(layout, owner)

    async def clear(self) -> None:
        """Remove all messages that are there now, and none that another writer adds after."""
        await super().clear()
        await self._recount(self._count)

    async def replace(self, message_id: str, message: BaseMessage) -> None:
        """Put another message into the place of one, whole or not at all."""
        # Before, because the session's item must not expire before its messages do.
        if (extension := self._entry.extend(now())) is not None:
            with suppress(ConditionFailed):
                await self._write(extension)
        await super().replace(message_id, message)

    async def delete(self) -> int | None:
        """Remove the session, whoever writes meanwhile; return how many messages it had, None where there is none."""
        self._window = None
        with suppress(ConditionFailed):
            await self._write(Migration(self._layout).mark_deleted())
        messages = 0
        for attempt in range(MAX_ATTEMPTS):
            stored = await self._stored(expired_too=True)
            swept = await self._sweep_found()
            messages += swept
            if stored is None and swept:
                # An item of the session may have come with what was swept.
                continue
            if stored is None:
                return messages or None
            try:
                await self._write(self._entry.delete(stored.revision))
            except ConditionFailed as failed:
                if failed.item is None:
                    # Gone: by an attempt whose answer was lost, or by somebody else.
                    return messages
                await pause(attempt)
            else:
                self._clock.recover()
                return messages
        raise self._conflict()

    async def info(self) -> SessionInfo | None:
        """Return what the index knows of the session, None where that is nothing."""
        stored = await self._stored()
        return None if stored is None else await self.info_of(stored)

    async def owner(self) -> str | None:
        """Return whose the session is: as the handle says, or else as the index does."""
        if self._entry.owner is not None:
            return self._entry.owner
        stored = await self._stored()
        return None if stored is None else stored.owner

    @leaves_nothing_opened
    async def info_of(self, stored: StoredSession) -> SessionInfo:
        """Return what the index knows of the session, of which the item was read already."""
        title, metadata = await self._texts({_TITLE: stored.title, _METADATA: stored.metadata})
        try:
            text = None if title is None else title.decode()
            names = {} if metadata is None else decode_value(metadata)
            created_at, last_active_at = _time(stored.created_at), _time(stored.last_active)
        except ValueError:
            raise self._damaged() from None
        if not isinstance(names, dict):
            raise self._damaged()
        return SessionInfo(
            session_id=decode_key_value(stored.partition_key),
            owner=stored.owner,
            title=text,
            created_at=created_at,
            last_active_at=last_active_at,
            # Below nothing, where messages from before the index were removed.
            message_count=max(0, min(stored.message_count, self._layout.history_size or stored.message_count)),
            metadata=names,
        )

    async def set_title(self, title: str | None) -> None:
        """Set or remove the title."""
        value = None
        if title is not None:
            value = await self._value(encoded(plain_text, title, "title").encode(), MAX_TITLE_BYTES, _TITLE)
        try:
            await self._write(self._entry.set_title(value, now()))
        except ConditionFailed:
            raise self._not_found() from None

    async def update_metadata(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change some of the metadata, and return them all; what others change meanwhile is not lost."""
        plain = decode_value(encode_value(dict(changes), "metadata", self._default))
        for attempt in range(MAX_ATTEMPTS):
            stored = await self._stored()
            if stored is None:
                raise self._not_found()
            changed = (await self.info_of(stored)).metadata | plain
            metadata = {name: value for name, value in changed.items() if value is not None}
            value = await self._value(encode_value(metadata, "metadata"), MAX_METADATA_BYTES, _METADATA)
            try:
                await self._write(self._entry.set_metadata(value, stored.metadata, now()))
            except ConditionFailed:
                await pause(attempt)
            else:
                return metadata
        raise self._conflict()

    async def _check_table(self) -> None:
        await check_index(self._clients, self._entry, self.place)

    async def _store(self, messages: list[Items], first: SortKey, token: str) -> None:
        items = [item for items in messages for item in items]
        count: Callable[..., dict[str, Any]] = self._entry.count_added
        for attempt in range(MAX_ATTEMPTS):
            revision = f"{token}-{attempt}"
            counting = count(len(messages), first, now(), revision)
            try:
                await self._write(self._layout.put_together(items, revision, counting))
            except TransactionCanceled as canceled:
                if found := refused(items, canceled):
                    self._check_stored(found)
                    return
                there = canceled.reasons[-1].get("Item")
                if there is not None and not is_alive(self._layout, there, now()):
                    count = self._entry.begin_anew
                elif count == self._entry.count_added:
                    count = functools.partial(self._entry.count_added, keep_expiry=True)
                else:
                    count = self._entry.count_added
            else:
                return
        raise self._conflict()

    async def _remove(self, key: SortKey, known: StoredPart | None = None) -> bool:
        first = known or await self._first_part(key)
        if first is None:
            return False
        write = secrets.token_urlsafe(9)
        counting = self._entry.count_on(-1, now(), write)
        try:
            await self._write(self._layout.remove_together(key, known, write, now(), counting))
        except TransactionCanceled as canceled:
            removal = canceled.reasons[0]
            if removal.get("Code") != "ConditionalCheckFailed":
                # The session has no item: it was written before there was an index.
                return await super()._remove(key, known)
            if self._layout.removed_by(removal.get("Item", {})) != write:
                return False
            # An attempt whose answer was lost has done it.
        await self._sweep_other_parts(key, first.parts)
        return True

    async def _keep_latest(self, size: int) -> int:
        return await self._recount(lambda: super(IndexedConversation, self)._keep_latest(size))

    async def _recount(self, count: Callable[[], Awaitable[int]]) -> int:
        """Have the index say what is counted, unless others write all the while: they count on from what it says."""
        for attempt in range(_RECOUNTS):
            stored = await self._stored(expired_too=True)
            number = await count()
            if stored is None or number == stored.message_count:
                break
            revision = secrets.token_urlsafe(9)
            try:
                await self._write(self._entry.set_count(number, stored.revision, revision))
            except ConditionFailed as failed:
                if failed.item is not None and failed.item.get(REVISION) == {"S": revision}:
                    break
                await pause(attempt)
            else:
                break
        return number

    async def _count(self) -> int:
        async with aclosing(self._pages(consistent=True)) as pages:
            return sum([len(bodies) async for bodies in pages])

    async def _stored(self, *, expired_too: bool = False) -> StoredSession | None:
        item: Item | None = (await self._call(self._entry.get())).get("Item")
        if item is None or not (expired_too or is_alive(self._layout, item, now())):
            return None
        return self.stored_session(item)

    def stored_session(self, item: Item) -> StoredSession:
        """Read the session's item."""
        try:
            return read_session(self._layout, item)
        except (KeyError, ValueError):
            raise self._damaged() from None

    async def _value(self, text: bytes, max_bytes: int, binding: Binding) -> AttributeValue:
        if len(text) > max_bytes:
            raise ItemTooLargeError(
                f"The {binding.kind} of {len(text):,} bytes is above {max_bytes:,} bytes", self.place
            )
        if self._sealing is None:
            return {"S": text.decode()}
        [sealed] = await self._sealing.seal([(binding, text)])
        return {"B": sealed}

    async def _texts(self, values: Mapping[Binding, AttributeValue | None]) -> list[bytes | None]:
        """Return the texts of attribute values, opened where they are sealed."""
        there = {at: (binding, value) for at, (binding, value) in enumerate(values.items()) if value is not None}
        opened = await self._open(
            {at: (binding, bytes_of(value["B"])) for at, (binding, value) in there.items() if "B" in value}
        )
        plain = {at: value["S"].encode() for at, (_, value) in there.items() if "S" in value}
        return [(opened | plain).get(at) for at in range(len(values))]

    def _not_found(self) -> SessionNotFoundError:
        return SessionNotFoundError("The session index has no such session, or not any more", self.place)

    def _damaged(self) -> UndecodableItemError:
        return UndecodableItemError("The session's item in the index is damaged", self.place)


async def check_index(clients: Clients, entry: SessionItem, place: Place) -> None:
    """Refuse a table without the index, before the first append to it: sessions would be stored and never listed.

    Raises:
        KeySchemaError: the table has no such index.
        ChatHistoryError: the table does not exist, or cannot be reached.
    """
    request = query_sessions(entry.layout, entry.owner or "nobody", limit=1, start_key=None)
    check = (INDEX_NAME, entry.layout.table_name)
    await clients.first_append.check(check, lambda: call(clients, request, place))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
