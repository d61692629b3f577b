"""The single-item layout: a session's table, key and settings, and its item as stored. Pure: no I/O.

One item holds one session: its key, the messages as a list of maps, and the expiry time. They are stored exactly as
langchain-community writes them, so that each library reads the messages of the other. This library adds one attribute,
WRITES, which langchain-community neither reads nor changes. WRITES is a list of text. Its first element is the id of
the write that created the item. The other elements are the ids of the item's recent writes in their order, including
that first write, until they are pruned. ``changes`` proves that an append is stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .._codec.attribute_values import AttributeValue, for_request, has_passed
from .._request import Item
from .._settings import check_settings

WRITES = "_chathistory_writes"


@dataclass(frozen=True, slots=True)
class SingleItem:
    """The table, key and settings of one session.

    Attributes:
        key: the names and attribute values of the whole primary key.
        messages_name: the name of the attribute that holds the messages.
        expiry_name: the name of the attribute that holds the time at which the session expires.
        ttl: how many seconds after its latest append the session expires, or None for never.
        history_size: how many messages are kept, or None for all.
    """

    table_name: str
    key: dict[str, AttributeValue]
    messages_name: str
    expiry_name: str
    ttl: int | None
    history_size: int | None

    def __post_init__(self) -> None:
        names = [*self.key, self.messages_name, self.expiry_name, WRITES]
        check_settings(self.table_name, self.ttl, self.history_size, names)

    def others(self, item: Item) -> list[str]:
        """Return the names of an item's attributes that neither this library nor langchain-community writes."""
        return sorted(item.keys() - {*self.key, self.messages_name, self.expiry_name, WRITES})

    def identity(self, item: Item) -> Identity | None:
        """Return what distinguishes an item from one that is created later, or None if the item has no WRITES."""
        if WRITES not in item:
            return None
        creator, *_ = item[WRITES].get("L") or [None]
        if creator is None:
            return Identity("#writes", for_request(item[WRITES]))
        return Identity("#writes[0]", for_request(creator))

    def stored(self, item: Item | None, now: int) -> Stored:
        """Parse an item, or None for an absent one."""
        item = item or {}
        messages = item.get(self.messages_name, {"L": []})
        writes = [element.get("S") for element in item.get(WRITES, {}).get("L", ())]
        damaged = WRITES in item and (len(writes) < 2 or None in writes)
        return Stored(
            messages=messages.get("L", ()),
            writes=() if damaged else writes,
            expired=has_passed(item.get(self.expiry_name), now),
            malformed="L" not in messages,
            has_damaged_writes=damaged,
        )


class Identity(NamedTuple):
    """A path in an item, and the value at that path, which a later item of the same key does not have."""

    path: str
    value: AttributeValue


@dataclass(frozen=True, slots=True)
class Hint:
    """A writer's last knowledge of the item. It may be outdated: the write's condition tests all that is taken from it.

    Attributes:
        length: how many messages are stored, or None if this is not known.
        anchor: the id of a write that WRITES contains, or None if none is known.
    """

    length: int | None = None
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """The item as it was at one moment. An absent item has no messages and no writes.

    Attributes:
        messages: the stored messages, oldest first; empty if their attribute is not a list.
        writes: the elements of WRITES; empty if WRITES is absent or damaged.
        expired: whether the session has expired.
        malformed: whether the attribute of the messages is not a list.
        has_damaged_writes: whether WRITES has a form that this library does not write. Unless the session has expired,
            the condition of every append then fails.
    """

    messages: Sequence[AttributeValue]
    writes: Sequence[str]
    expired: bool
    malformed: bool
    has_damaged_writes: bool

    def hint(self) -> Hint:
        if self.expired:
            return Hint(0)
        return Hint(len(self.messages), self.writes[-1] if self.writes else None)

    def proves_unpruned_since(self, anchor: str | None) -> bool:
        """Return whether no id that was written after the anchor can have been pruned."""
        if anchor is not None:
            return anchor in self.writes[1:]
        return not self.writes or self.writes[0] == self.writes[1]


class Write(NamedTuple):
    """A write, as WRITES identifies it.

    Attributes:
        id: the write's id. All appends with the same idempotency key have the same id.
        content: with an idempotency key, the id and a digest of the batch; else None. It is stored before the id. The
            first element of WRITES is never pruned, and a key's id must not be left there without its content.
    """

    id: str
    content: str | None = None

    @classmethod
    def once(cls, key_digest: str, content_digest: str) -> Write:
        """Return the write of a batch with an idempotency key, from the digests of both."""
        return cls(f"k:{key_digest}", f"k:{key_digest}:{content_digest}")

    def texts(self) -> list[str]:
        """Return the elements that the write adds to WRITES."""
        return [self.id] if self.content is None else [self.content, self.id]
