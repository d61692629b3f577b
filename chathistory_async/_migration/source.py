"""The source of a migration: a session in a single item, which is read whole and deleted only as it was read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, NamedTuple

from langchain_core.messages import BaseMessage

from .._aws.calls import call
from .._aws.clients import Clients
from .._codec.attribute_values import AttributeValue
from .._codec.keys import KeyValue, decode_key_value
from .._request import ConditionFailed, Item
from .._session import Access, EmptyPages, reads_stored
from .._single_item.layout import SingleItem
from .._single_item.requests import delete_unchanged, get_item, scan_keys
from .._single_item.session import SingleItemSession
from .._wall_clock import now
from ..errors import SessionRef, wrong_key
from .checkpoint import digest
from .outcome import ConcurrentChange, Ended


class Found(NamedTuple):
    """The content of a source.

    Attributes:
        stored: the messages as they are stored.
        messages: the messages, decoded.
        digests: the messages' digests.
        expiry: when the session expires, in seconds since the epoch, or None for never.
        others: the names of attributes that this library does not know.
    """

    stored: Sequence[AttributeValue]
    messages: list[BaseMessage]
    digests: list[bytes]
    expiry: str | None
    others: list[str]


class Source:
    """A session that is moved from a single item.

    Args:
        layout: how the session is stored.
        access: access to the session's table.
    """

    def __init__(self, layout: SingleItem, access: Access) -> None:
        self.access = access
        self._layout = layout
        self._session = SingleItemSession(layout, access)

    @reads_stored
    async def look(self) -> Found | Literal["absent", "expired"]:
        """Read the session's whole item, because the item may be deleted only if all its attributes are known.

        Raises:
            Ended: the item has no attribute for messages, but attributes that this library does not know.
            UndecodableItemError: the item is malformed, or a message cannot be decoded.
        """
        item: Item = (await self.access.call(get_item(self._layout))).get("Item", {})
        stored = self._layout.stored(item, now())
        if stored.expired:
            return "expired"
        if stored.malformed:
            raise self._session.malformed()
        if self._layout.messages_name not in item and self._layout.others(item):
            # Not "absent": the messages may be in a different attribute than history_messages_key names.
            others = ", ".join(map(repr, self._layout.others(item)))
            reason = f"the source has no attribute {self._layout.messages_name!r}, but {others}"
            raise Ended("failed", f"{reason}: check history_messages_key [{self.access.ref}]")
        if not stored.messages:
            return "absent"
        messages = await self._session.decode(stored.messages, 0)
        digests = await self.access.in_slices(lambda message, at: digest(stored.messages[at], message), messages)
        expiry = item.get(self._layout.expiry_name, {}).get("N")
        return Found(stored.messages, messages, digests, expiry, self._layout.others(item))

    @reads_stored
    async def delete(self, found: Found) -> None:
        """Delete the session's item, on condition that its messages are still those in ``found``.

        If another application adds an attribute after the item was read, the attribute is deleted too: a condition
        cannot cover an attribute whose name is unknown.

        Raises:
            Ended: the item has attributes that this library does not know, and is kept.
            ConcurrentChange: the messages have changed since the item was read.
        """
        if found.others:
            names = ", ".join(map(repr, found.others))
            reason = f"the source is not deleted, because it has unknown attributes: {names}"
            raise Ended("kept", f"{reason} [{self.access.ref}]")
        try:
            await self.access.call(delete_unchanged(self._layout, found.stored))
        except ConditionFailed as failed:
            # If the item is gone, an attempt whose response was lost has deleted it, or another migrator has.
            if failed.item is not None:
                raise ConcurrentChange from None


async def scan_session_ids(layout: SingleItem, clients: Clients) -> AsyncGenerator[KeyValue, None]:
    (name, *_) = layout.key
    ref, start_key = SessionRef(layout.table_name), None
    empty_pages = EmptyPages(ref)
    while True:
        response = await call(clients, scan_keys(layout, start_key), ref)
        for item in response["Items"]:
            if name not in item:
                raise wrong_key(f"its items have no {name!r}", ref)
            yield decode_key_value(item[name])
        start_key = response.get("LastEvaluatedKey")
        if start_key is None:
            return
        empty_pages.count(response["Items"])
