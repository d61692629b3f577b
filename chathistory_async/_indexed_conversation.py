"""One session that has an item in the session index: what changes its messages changes that in the same transaction."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.messages import BaseMessage

from ._binding import Binding
from ._calls import ConditionFailed, Item, Request, TransactionCanceled, call, pause
from ._clients import Clients
from ._codec.attribute_values import AttributeValue, bytes_of, plain_text
from ._codec.format import encoded
from ._codec.json_values import decode_value, encode_value
from ._codec.keys import KeyValue, decode_key_value
from ._codec.plain import Default
from ._conversation import MAX_ATTEMPTS, leaves_nothing_opened, now
from ._item_collection import FENCE_SECONDS, MAX_TRANSACTION_ITEMS, REVISION, ItemCollection, Items, StoredPart
from ._item_collection_conversation import ItemCollectionConversation, refused
from ._migration import Migration
from ._session_item import (
    INDEX_NAME,
    MESSAGE_COUNT,
    METADATA,
    SORT_KEY,
    TITLE,
    DamagedAttribute,
    SessionItem,
    StoredSession,
    counts_all,
    flags_over,
    is_alive,
    may_count_all,
    new_flag,
    owner_of,
    query_sessions,
    read_session,
    was_changed_by,
)
from ._sort_keys import SortKey
from .errors import (
    ChatHistoryError,
    ItemTooLargeError,
    MessageNotStorableError,
    Place,
    ServiceError,
    SessionNotFoundError,
    UndecodableItemError,
)

if TYPE_CHECKING:
    from ._sealing import Sealing

# Each append rewrites the session's item and is billed for all of it, in the table and in the index.
MAX_TITLE_BYTES = 4 * 1024
MAX_METADATA_BYTES = 64 * 1024
_TITLE, _METADATA = Binding("title", SORT_KEY), Binding("metadata", SORT_KEY)
_ATTRIBUTES = {_TITLE: TITLE, _METADATA: METADATA}
_REMEDIES = {TITLE: "set_title() replaces it", METADATA: "nothing restores it"}
# Of a session that is written to without a pause; then its flags stay, and whoever reads the count counts.
_RECOUNTS = 4


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What the session index knows of a session.

    Attributes:
        session_id: the value of its partition key.
        owner: whose it is, None where nobody was named.
        title: None where none was set.
        created_at: when its first message was added, by the writer's clock, in UTC.
        last_active_at: when messages were added last, likewise. It never goes back, however the writers' clocks differ.
        message_count: how many messages were added and not removed, also before there was a session index. Those that
            have expired one by one count as well, until an ``aclear`` or a trim by ``history_size`` counts anew.
        metadata: what ``update_metadata`` has put there.
    """

    session_id: KeyValue
    owner: str | None
    title: str | None = field(repr=False)
    created_at: datetime
    last_active_at: datetime
    message_count: int
    metadata: dict[str, Any] = field(repr=False)


class _Counted(NamedTuple):
    """How many messages a session has, and the sort key of the first one, None where there are none."""

    number: int
    earliest: SortKey | None


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
        # Of sweeps of this handle's that have removed all that they meant to.
        self._done_flags: set[str] = set()
        # Whether the latest read found no messages in all of the session, and this handle has appended none since.
        self._is_empty = False

    async def clear(self) -> None:
        """Remove all messages that are there now, and none that another writer adds after."""
        await super().clear()
        await self._recount()

    async def replace(self, message_id: str, message: BaseMessage) -> None:
        """Put another message into the place of one, whole or not at all."""
        # Before, because the session's item must not expire before its messages do.
        if (extension := self._entry.extend(now())) is not None:
            with suppress(ConditionFailed):
                await self._call(extension)
        await super().replace(message_id, message)

    async def delete(self) -> int | None:
        """Remove the session, whoever writes meanwhile; return how many messages it had, None where there is none."""
        self._window = None
        with suppress(ConditionFailed):
            await self._call(Migration(self._layout).mark_deleted())
        messages = 0
        for attempt in range(MAX_ATTEMPTS):
            item = await self._item()
            swept = await self._sweep_found()
            messages += swept
            if item is None and swept:
                # An item of the session may have come with what was swept.
                continue
            if item is None:
                return messages or None
            try:
                await self._call(self._entry.delete(item))
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
        item = await self._alive_item()
        return None if item is None else await self.info_of(item)

    async def owner(self) -> str | None:
        """Return whose the session is: as the handle says, or else as the index does."""
        if self._entry.owner is not None:
            return self._entry.owner
        item = await self._alive_item()
        return None if item is None else owner_of(item)

    @leaves_nothing_opened
    async def info_of(self, item: Item) -> SessionInfo:
        """Return what the index knows of the session, of which the item was read already."""
        stored = self._read(item)
        title, metadata = await self._texts({_TITLE: stored.title, _METADATA: stored.metadata})
        count = await self._count_and_heal(item) if stored.flagged else stored.message_count
        return SessionInfo(
            session_id=decode_key_value(stored.partition_key),
            owner=stored.owner,
            title=self._title_in(title),
            created_at=stored.created_at,
            last_active_at=stored.last_active,
            # Below nothing, where a damaged number was counted on.
            message_count=max(0, min(count, self._layout.history_size or count)),
            metadata=self._metadata_in(metadata),
        )

    async def set_title(self, title: str | None) -> None:
        """Set or remove the title."""
        if title is not None and not isinstance(title, str):
            raise TypeError(f"title must be a str, or None to remove it, not {type(title).__name__}")
        value = None
        if title is not None:
            text = self._encoded(lambda: encoded(plain_text, title, "title").encode())
            value = await self._value(text, MAX_TITLE_BYTES, _TITLE)

        async def same(item: Item) -> AttributeValue | None:
            return value

        await self._change(TITLE, same)

    async def update_metadata(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change some of the metadata, and return them all; what others change meanwhile is not lost."""
        if not isinstance(changes, Mapping):
            raise TypeError(f"changes must be a mapping of names to values, not {type(changes).__name__}")
        plain = decode_value(self._encoded(lambda: encode_value(dict(changes), "metadata", self._default)))
        metadata: dict[str, Any] = {}

        async def merged(item: Item) -> AttributeValue:
            nonlocal metadata
            changed = await self._metadata(item) | plain
            metadata = {name: value for name, value in changed.items() if value is not None}
            text = self._encoded(lambda: encode_value(metadata, "metadata"))
            return await self._value(text, MAX_METADATA_BYTES, _METADATA)

        await self._change(METADATA, merged)
        return metadata

    @leaves_nothing_opened
    async def _metadata(self, item: Item) -> dict[str, Any]:
        [text] = await self._texts({_METADATA: item.get(METADATA)})
        return self._metadata_in(text)

    async def _change(self, name: str, value_of: Callable[[Item], Awaitable[AttributeValue | None]]) -> None:
        """Set the title or the metadata to what is made of the session's item, which nobody has changed since."""
        change_id, maybe_stored = secrets.token_urlsafe(6), False
        for attempt in range(MAX_ATTEMPTS):
            item = await self._alive_item()
            if item is None:
                raise SessionNotFoundError("The session index has no such session, or not any more", self.place)
            if was_changed_by(item, change_id):
                # By an attempt whose answer was lost.
                return
            if await self._repair(item):
                continue
            request = self._entry.set_detail(name, await value_of(item), item, change_id, now())
            try:
                await self._call(request, maybe_stored=maybe_stored)
            except ConditionFailed as failed:
                maybe_stored = failed.sent_before
                await pause(attempt)
            else:
                return
        raise self._conflict(maybe_stored=maybe_stored)

    async def _check_table(self) -> None:
        await check_index(self._clients, self._entry, self.place)

    async def _store(self, messages: list[Items], first: SortKey, token: str, began: float) -> None:
        items = [item for items in messages for item in items]
        is_first, self._is_empty = self._is_empty, False
        seen: Item | None = None
        maybe_stored = False
        for attempt in range(MAX_ATTEMPTS):
            self._check_age(began)
            revision = f"{token}-{attempt}"
            if seen is not None and not is_alive(self._layout, seen, now()):
                counting = self._entry.begin_anew(len(messages), first, now(), revision, is_first=is_first)
            else:
                counting = self._entry.count_added(len(messages), first, now(), revision, seen, is_first=is_first)
            try:
                request = self._layout.put_together(items, revision, counting)
                await self._write_counting(request, maybe_stored=maybe_stored)
            except TransactionCanceled as canceled:
                if found := refused(items, canceled):
                    self._check_stored(found)
                    return
                maybe_stored = canceled.sent_before
                seen = canceled.reasons[-1].get("Item")
                if seen is not None and await self._repair(seen):
                    seen = None
            else:
                return
        # A sending whose answer was lost may still be under way.
        raise self._conflict(maybe_stored=maybe_stored)

    async def _remove(self, key: SortKey, known: StoredPart | None = None) -> bool:
        first = known or await self._first_part(key)
        if first is None:
            return False
        write = secrets.token_urlsafe(9)
        counting = self._entry.count_on(-1, now(), write)
        try:
            await self._write_counting(self._layout.remove_together(key, known, write, now(), counting))
        except TransactionCanceled as canceled:
            removal, counted = canceled.reasons
            if removal.get("Code") != "ConditionalCheckFailed":
                if "Item" in counted and await self._repair(counted["Item"]):
                    return await self._remove(key, known)
                # The session has no item: it was written before there was an index.
                return await super()._remove(key, known)
            if self._layout.removed_by(removal.get("Item", {})) != write:
                return False
            # An attempt whose answer was lost has done it.
        await self._sweep_other_parts(key, first.parts)
        return True

    async def _write_counting(self, request: Request, *, maybe_stored: bool = False) -> None:
        """Send a transaction that counts; where the session's item is damaged, repair it, so that no turn is lost."""
        try:
            await self._call(request, maybe_stored=maybe_stored)
        except ServiceError:
            item = await self._item()
            if item is None or not await self._repair(item):
                raise
            await self._call(request, maybe_stored=maybe_stored)

    async def _repair(self, item: Item) -> bool:
        """Repair the session's item, and return whether it was damaged."""
        request = self._entry.repair(item, now(), secrets.token_urlsafe(9))
        if request is None:
            return False
        # Where somebody else has changed it meanwhile, whoever calls this looks at it again.
        with suppress(ConditionFailed):
            await self._call(request)
        return True

    async def _sweep(self, parts: Sequence[StoredPart]) -> None:
        flag = None
        if any(part.key.is_first_part and part.removed_by is None for part in parts):
            flag = await self._flag()
        await super()._sweep(parts)
        if flag is not None:
            self._done_flags.add(flag)

    async def _flag(self) -> str | None:
        """Flag the session, and return the flag; None where it has no item."""
        flag = new_flag(now() + FENCE_SECONDS)
        for _ in range(MAX_ATTEMPTS):
            try:
                await self._call(self._entry.flag(flag))
            except ConditionFailed as failed:
                if failed.item is None:
                    return None
                if not await self._repair(failed.item):
                    # Where others have changed the flags meanwhile, there may be room for this one.
                    with suppress(ConditionFailed):
                        await self._call(self._entry.merge_flags(failed.item, now()))
            else:
                return flag
        raise self._conflict()

    async def _keep_latest(self, size: int) -> None:
        await super()._keep_latest(size)
        if self._done_flags:
            await self._recount()

    async def _recount(self) -> None:
        """Have the index say how many messages there are; where others write all the while, flags say it does not."""
        for attempt in range(_RECOUNTS):
            item = await self._item()
            if item is None:
                return
            # Before the counting: what another sweep removes meanwhile is not counted.
            flags = self._done_flags | flags_over(item, now())
            if await self._set_count(await self._count(), item, flags):
                return
            await pause(attempt)

    async def _set_count(self, counted: _Counted, seen: Item, flags: set[str]) -> bool:
        """Store a number and remove flags; return whether nobody has counted since the item was seen."""
        number, earliest = counted
        of_all = may_count_all(seen, earliest, now())
        is_said = seen.get(MESSAGE_COUNT) == {"N": str(number)} and counts_all(seen) >= of_all
        if is_said and not flags:
            return True
        revision = secrets.token_urlsafe(9)
        try:
            await self._call(self._entry.set_count(number, seen, flags, revision, counts_all=of_all))
        except ConditionFailed as failed:
            # An attempt whose answer was lost may have done it.
            if failed.item is None or failed.item.get(REVISION) != {"S": revision}:
                return False
        self._done_flags -= flags
        return True

    async def _count_and_heal(self, item: Item) -> int:
        """Return how many messages there are, and store that where no sweep can be at work any more."""
        over = flags_over(item, now())
        counted = await self._count()
        if over or not counts_all(item):
            # Whoever reads need not be allowed to write.
            with suppress(ChatHistoryError):
                await self._set_count(counted, item, over)
        return counted.number

    async def _count(self) -> _Counted:
        count, earliest, start_key = 0, None, None
        while True:
            items, start_key = await self._query(self._layout.query_alive_keys(now=now(), start_key=start_key))
            keys = [part.key for part in await self._stored_parts(items) if part.key.is_first_part]
            count += len(keys)
            earliest = earliest or next(iter(keys), None)
            if start_key is None:
                return _Counted(count, earliest)

    async def _query(self, request: Request) -> tuple[list[Item], dict[str, AttributeValue] | None]:
        items, start_key = await super()._query(request)
        self._is_empty = not items and start_key is None and self._layout.is_of_all(request)
        return items, start_key

    async def _item(self) -> Item | None:
        item: Item | None = (await self._call(self._entry.get())).get("Item")
        return item

    async def _alive_item(self) -> Item | None:
        item = await self._item()
        return item if item is not None and is_alive(self._layout, item, now()) else None

    def _read(self, item: Item) -> StoredSession:
        try:
            return read_session(self._layout, item)
        except DamagedAttribute as damaged:
            raise self._damaged(str(damaged)) from None

    def _encoded(self, encode: Callable[[], bytes]) -> bytes:
        try:
            return encode()
        except MessageNotStorableError as error:
            raise self._located(error) from None

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
        for binding, value in there.values():
            if not value.keys() & {"B", "S"}:
                raise self._damaged(_ATTRIBUTES[binding])
        opened = await self._open(
            {at: (binding, bytes_of(value["B"])) for at, (binding, value) in there.items() if "B" in value}
        )
        plain = {at: value["S"].encode() for at, (_, value) in there.items() if "S" in value}
        return [(opened | plain).get(at) for at in range(len(values))]

    def _title_in(self, text: bytes | None) -> str | None:
        with suppress(UnicodeDecodeError):
            return None if text is None else text.decode()
        raise self._damaged(TITLE)

    def _metadata_in(self, text: bytes | None) -> dict[str, Any]:
        metadata = None
        with suppress(ValueError):
            metadata = {} if text is None else decode_value(text)
        if isinstance(metadata, dict):
            return metadata
        raise self._damaged(METADATA)

    def _damaged(self, name: str) -> UndecodableItemError:
        remedy = f"{_REMEDIES.get(name, 'set_title() repairs it')}, delete_session() deletes the session"
        return UndecodableItemError(f"The session's item in the index is damaged (its {name}): {remedy}", self.place)


async def check_index(clients: Clients, entry: SessionItem, place: Place) -> None:
    """Refuse a table without the index, before the first append to it: sessions would be stored and never listed.

    Raises:
        KeySchemaError: the table has no such index.
        ChatHistoryError: the table does not exist, or cannot be reached.
    """
    request = query_sessions(entry.layout, entry.owner or "nobody", limit=1, start_key=None)
    check = (INDEX_NAME, entry.layout.table_name)
    await clients.first_append.check(check, lambda: call(clients, request, place))
