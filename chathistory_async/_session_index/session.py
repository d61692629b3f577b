"""One session in the index: its information there, its title and metadata, and its deletion."""

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
from .._cooperative import at_most
from .._encryption.binding import Binding
from .._item_collection.layout import FORMAT, ItemCollection
from .._item_collection.reader import Reader
from .._item_collection.requests import request_of
from .._item_collection.session import ItemCollectionSession
from .._migration.checkpoint import CheckpointItem
from .._request import ConditionFailed, Item, TransactionCanceled
from .._session import Access, leaves_no_plaintext
from .._wall_clock import now
from ..errors import ItemTooLargeError, MessageNotStorableError, SessionNotFoundError, UndecodableItemError
from .counting import CountingWriter
from .flags import is_trusted
from .requests import SessionItem, was_changed_by
from .stored import METADATA, SORT_KEY, TITLE, DamagedAttribute, StoredSession, is_alive, owner_of, read_session
from .value_ids import Subsession

# Each append rewrites the session's item and is billed for all of it, in the table and in the index.
MAX_TITLE_BYTES = 4 * 1024
MAX_METADATA_BYTES = 64 * 1024
# Subsessions. Each deletion sends up to four batches at once, and more would keep appends of the same client waiting.
_DELETED_AT_ONCE = 4
_TITLE, _METADATA = Binding("title", SORT_KEY), Binding("metadata", SORT_KEY)
_ATTRIBUTES = {_TITLE: TITLE, _METADATA: METADATA}
_REMEDIES = {
    TITLE: "set_title() replaces it",
    METADATA: "it cannot be restored",
    FORMAT: "it cannot be restored",
}


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The information on a session in the session index.

    Attributes:
        session_id: the value of the session's partition key.
        owner: the session's owner, or None if none was given.
        title: the session's title, or None if none was set.
        created_at: when the session's first message was added, by the writer's clock, in UTC.
        last_active_at: when messages were last added, by the writer's clock, in UTC. It never goes back, even if the
            writers' clocks differ.
        message_count: how many messages were added and not removed, including messages from before there was a session
            index. Messages that have expired one by one still count, until an ``aclear`` or a trim by ``history_size``
            counts the messages again.
        metadata: the metadata that ``update_metadata`` has set.
        format: the format of the session's values: "langchain" for messages, "json" or the JSON session's own name.
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
    """One session in the index.

    Args:
        layout: how the session is stored.
        access: access to the session's table.
        session: the session itself.
        reader: reads the session's records.
        writer: writes the session's records and counts their messages.
        summary: the session's item in the index.
        subsession: returns the subsession with a name.
        place: the session's place in its parent if it is a subsession, or None.
    """

    def __init__(
        self,
        layout: ItemCollection,
        access: Access,
        session: ItemCollectionSession[Any],
        reader: Reader,
        writer: CountingWriter,
        summary: SessionItem,
        subsession: Callable[[str], IndexedSession],
        place: Subsession | None = None,
    ) -> None:
        self.access = access
        self._layout = layout
        self._session = session
        self._reader = reader
        self._writer = writer
        self._summary = summary
        self._subsession = subsession
        self._place = place

    async def delete(self) -> int | None:
        """Delete the session and its subsessions, with messages that other writers append meanwhile.

        Returns:
            the number of messages that were deleted, or None if there was no session.

        Raises:
            WriteConflictError: other writers kept appending. Some messages may have been deleted.
        """
        with suppress(ConditionFailed):
            await self.access.call(CheckpointItem(self._layout).mark_deleted())
        messages, attempts = 0, self.access.attempts(reads_first=True)
        while True:
            await attempts.begin()
            item = await self._writer.item()
            swept = await self._session.sweep()
            messages += swept
            for deleted in await at_most(_DELETED_AT_ONCE, self._delete_subsession, await self._writer.forget_ids()):
                messages += deleted
            if item is None and swept:
                # The messages that were just swept may have been stored together with a new item. If there never was
                # an item, no other writer is the cause of the second attempt.
                if attempts.number == 1:
                    attempts.retry_at_once()
                continue
            if item is None and self._place is None:
                return messages or None
            try:
                await self._delete_item(item)
            except ConditionFailed as failed:
                if failed.item is None:
                    # An attempt whose response was lost has deleted the item, or another process has.
                    return messages
            else:
                self._reader.clock.recover()
                return messages

    async def _delete_item(self, item: Item | None) -> None:
        """Delete the session's item, and with it the name of a subsession: see ``value_ids``."""
        action = self._summary.delete(item)
        if self._place is None:
            await self.access.call(request_of([action]))
            return
        try:
            await self.access.call(request_of([action, self._place.delete()]))
        except TransactionCanceled as canceled:
            raise ConditionFailed(canceled.reasons[0].get("Item"), sent_before=canceled.sent_before) from None

    async def _delete_subsession(self, name: str) -> int:
        return await self._subsession(name).delete() or 0

    async def info(self) -> SessionInfo | None:
        """Return the information on the session, or None if the session is not in the index or has expired."""
        item = await self._alive_item()
        return None if item is None else await self.info_of(item)

    async def item(self) -> Item | None:
        """Return the session's item as it is stored, or None if there is none or it has expired."""
        return await self._alive_item()

    async def owner(self) -> str | None:
        """Return the session's owner: the handle's or, if the handle has none, the one in the index."""
        if self._summary.owner is not None:
            return self._summary.owner
        item = await self._alive_item()
        return None if item is None else owner_of(item)

    @leaves_no_plaintext
    async def info_of(self, item: Item) -> SessionInfo:
        """Return the information on the session from its item, which was read before."""
        stored = self._read(item)
        title, metadata = await self._texts({_TITLE: stored.title, _METADATA: stored.metadata})
        count = stored.message_count if is_trusted(item) else await self._writer.count_and_heal(item)
        return SessionInfo(
            session_id=decode_key_value(stored.partition_key),
            owner=stored.owner,
            title=self._title_in(title),
            created_at=stored.created_at,
            last_active_at=stored.last_active,
            # The stored count may be negative if it was damaged.
            message_count=max(0, min(count, self._layout.history_size or count)),
            metadata=self._metadata_in(metadata),
            format=stored.format or LANGCHAIN_NAME,
        )

    async def set_title(self, title: str | None) -> None:
        """Set the title, or remove it if it is None."""
        if title is not None and not isinstance(title, str):
            raise TypeError(f"title must be a str, or None to remove it, not {type(title).__name__}")
        value = None
        if title is not None:
            text = self._encoded(lambda: encoded(plain_text, title, "title").encode())
            value = await self._value(text, MAX_TITLE_BYTES, _TITLE)

        async def same(item: Item) -> AttributeValue | None:
            return value

        await self._change(TITLE, same)

    @leaves_no_plaintext
    async def update_metadata(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Merge changes into the metadata, and return all of it. Concurrent changes by other writers are kept.

        A name whose value is None is removed.
        """
        if not isinstance(changes, Mapping):
            raise TypeError(f"changes must be a mapping of names to values, not {type(changes).__name__}")
        plain = decode_value(self._encoded(lambda: encode_value(dict(changes), "metadata", self.access.default)))
        metadata: dict[str, Any] = {}

        async def merged(item: Item) -> AttributeValue:
            nonlocal metadata
            changed = await self.metadata(item) | plain
            metadata = {name: value for name, value in changed.items() if value is not None}
            return await self.metadata_value(metadata)

        await self._change(METADATA, merged)
        return metadata

    async def metadata_value(self, metadata: Mapping[str, Any]) -> AttributeValue:
        """Return the attribute value of metadata.

        Raises:
            ItemTooLargeError: the metadata is too large.
            MessageNotStorableError: a value has no plain form.
        """
        text = self._encoded(lambda: encode_value(metadata, "metadata"))
        return await self._value(text, MAX_METADATA_BYTES, _METADATA)

    @leaves_no_plaintext
    async def metadata(self, item: Item) -> dict[str, Any]:
        """Return the metadata of the session's item."""
        [text] = await self._texts({_METADATA: item.get(METADATA)})
        return self._metadata_in(text)

    async def _change(self, name: str, value_of: Callable[[Item], Awaitable[AttributeValue | None]]) -> None:
        """Set the title or the metadata to the result of ``value_of`` for the session's item.

        If another writer has changed either since the item was read, the next attempt reads the item again.
        """
        change_id, attempts = secrets.token_urlsafe(6), self.access.attempts(reads_first=True)
        while True:
            await attempts.begin()
            item = await self._alive_item()
            if item is None:
                raise SessionNotFoundError("The session index has no such session, or it has expired", self.access.ref)
            if was_changed_by(item, change_id):
                # An attempt whose response was lost has stored the change.
                return
            if await self._writer.repair(item, attempts):
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
        """Return the texts of attribute values, in order, decrypted if they are encrypted. None stays None."""
        there = {at: (binding, value) for at, (binding, value) in enumerate(values.items()) if value is not None}
        for binding, value in there.values():
            if not value.keys() & {"B", "S"}:
                raise self._damaged(_ATTRIBUTES[binding])
        decrypted = await self.access.decrypt(
            {at: (binding, bytes_of(value["B"])) for at, (binding, value) in there.items() if "B" in value}
        )
        plain = {at: value["S"].encode() for at, (_, value) in there.items() if "S" in value}
        return [(decrypted | plain).get(at) for at in range(len(values))]

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
