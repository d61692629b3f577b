"""One session in the index: what it knows of the session, the session's title and metadata, and its deletion."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .._codec.attribute_values import AttributeValue, bytes_of, plain_text
from .._codec.format import LANGCHAIN_NAME, encoded
from .._codec.json_values import decode_value, encode_value
from .._codec.keys import KeyValue, decode_key_value
from .._encryption.binding import Binding
from .._item_collection.reader import Reader
from .._item_collection.requests import FORMAT, ItemCollection
from .._item_collection.session import ItemCollectionSession
from .._migration.checkpoint import Migration
from .._request import ConditionFailed, Item
from .._session import Access, leaves_nothing_opened, now
from ..errors import ItemTooLargeError, MessageNotStorableError, SessionNotFoundError, UndecodableItemError
from .counting import CountingWriter
from .requests import (
    METADATA,
    SORT_KEY,
    TITLE,
    DamagedAttribute,
    SessionItem,
    StoredSession,
    is_alive,
    owner_of,
    read_session,
    was_changed_by,
)

# Each append rewrites the session's item and is billed for all of it, in the table and in the index.
MAX_TITLE_BYTES = 4 * 1024
MAX_METADATA_BYTES = 64 * 1024
_TITLE, _METADATA = Binding("title", SORT_KEY), Binding("metadata", SORT_KEY)
_ATTRIBUTES = {_TITLE: TITLE, _METADATA: METADATA}
_REMEDIES = {
    TITLE: "set_title() replaces it",
    METADATA: "nothing restores it",
    FORMAT: "nothing restores it",
}


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
        format: the format of its values: "langchain" for messages, "json" or another name for those of a JSON session.
    """

    session_id: KeyValue
    owner: str | None
    title: str | None = field(repr=False)
    created_at: datetime
    last_active_at: datetime
    message_count: int
    metadata: dict[str, Any] = field(repr=False)
    format: str


class IndexedSession:
    """One session as the index knows it.

    Args:
        layout: how the session is stored.
        access: what it reaches its table with.
        session: the session itself.
        reader: reads its records.
        writer: writes its records and counts them.
        summary: its item in the index.
    """

    def __init__(
        self,
        layout: ItemCollection,
        access: Access,
        session: ItemCollectionSession[Any],
        reader: Reader,
        writer: CountingWriter,
        summary: SessionItem,
    ) -> None:
        self.access = access
        self._layout = layout
        self._session = session
        self._reader = reader
        self._writer = writer
        self._summary = summary

    async def delete(self) -> int | None:
        """Remove the session, whoever writes meanwhile; return how many messages it had, None where there is none."""
        with suppress(ConditionFailed):
            await self.access.call(Migration(self._layout).mark_deleted())
        messages, attempts = 0, self.access.attempts()
        while True:
            await attempts.begin()
            item = await self._writer.item()
            swept = await self._session.sweep()
            await self._writer.forget_idempotency_keys()
            messages += swept
            if item is None and swept:
                # An item of the session may have come with what was swept.
                continue
            if item is None:
                return messages or None
            try:
                await self.access.call(self._summary.delete(item))
            except ConditionFailed as failed:
                if failed.item is None:
                    # Gone: by an attempt whose answer was lost, or by somebody else.
                    return messages
            else:
                self._reader.clock.recover()
                return messages

    async def info(self) -> SessionInfo | None:
        """Return what the index knows of the session, None where that is nothing."""
        item = await self._alive_item()
        return None if item is None else await self.info_of(item)

    async def owner(self) -> str | None:
        """Return whose the session is: as the handle says, or else as the index does."""
        if self._summary.owner is not None:
            return self._summary.owner
        item = await self._alive_item()
        return None if item is None else owner_of(item)

    @leaves_nothing_opened
    async def info_of(self, item: Item) -> SessionInfo:
        """Return what the index knows of the session, of which the item was read already."""
        stored = self._read(item)
        title, metadata = await self._texts({_TITLE: stored.title, _METADATA: stored.metadata})
        count = await self._writer.count_and_heal(item) if stored.flagged else stored.message_count
        return SessionInfo(
            session_id=decode_key_value(stored.partition_key),
            owner=stored.owner,
            title=self._title_in(title),
            created_at=stored.created_at,
            last_active_at=stored.last_active,
            # Below nothing, where a damaged number was counted on.
            message_count=max(0, min(count, self._layout.history_size or count)),
            metadata=self._metadata_in(metadata),
            format=stored.format or LANGCHAIN_NAME,
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

    @leaves_nothing_opened
    async def update_metadata(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change some of the metadata, and return them all; what others change meanwhile is not lost."""
        if not isinstance(changes, Mapping):
            raise TypeError(f"changes must be a mapping of names to values, not {type(changes).__name__}")
        plain = decode_value(self._encoded(lambda: encode_value(dict(changes), "metadata", self.access.default)))
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
        change_id, attempts = secrets.token_urlsafe(6), self.access.attempts()
        while True:
            await attempts.begin()
            item = await self._alive_item()
            if item is None:
                raise SessionNotFoundError("The session index has no such session, or not any more", self.access.ref)
            if was_changed_by(item, change_id):
                # By an attempt whose answer was lost.
                return
            if await self._writer.repair(item):
                continue
            request = self._summary.set_detail(name, await value_of(item), item, change_id, now())
            try:
                await self.access.call(request, maybe_stored=attempts.maybe_stored)
            except ConditionFailed as failed:
                attempts.maybe_stored = failed.sent_before
            else:
                return

    async def _alive_item(self) -> Item | None:
        item = await self._writer.item()
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
            raise self.access.located(error) from None

    async def _value(self, text: bytes, max_bytes: int, binding: Binding) -> AttributeValue:
        if len(text) > max_bytes:
            raise ItemTooLargeError(
                f"The {binding.kind} of {len(text):,} bytes is above {max_bytes:,} bytes", self.access.ref
            )
        if self.access.cipher is None:
            return {"S": text.decode()}
        [encrypted] = await self.access.cipher.encrypt([(binding, text)])
        return {"B": encrypted}

    async def _texts(self, values: Mapping[Binding, AttributeValue | None]) -> list[bytes | None]:
        """Return the texts of attribute values, opened where they are encrypted."""
        there = {at: (binding, value) for at, (binding, value) in enumerate(values.items()) if value is not None}
        for binding, value in there.values():
            if not value.keys() & {"B", "S"}:
                raise self._damaged(_ATTRIBUTES[binding])
        opened = await self.access.decrypt(
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
        return UndecodableItemError(
            f"The session's item in the index is damaged (its {name}): {remedy}", self.access.ref
        )
