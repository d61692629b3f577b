"""A session's item in the index as it is stored: its attributes, and reading them. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple, TypeVar

from .._codec.attribute_values import AttributeValue, has_passed
from .._item_collection.layout import CREATED_AT, FORMAT, REVISION, ItemCollection
from .._request import Item

SORT_KEY = "session"
OWNER = "Owner"
LAST_ACTIVE = "LastActive"
MESSAGE_COUNT = "MessageCount"
TITLE = "Title"
METADATA = "Metadata"
DETAILS_REVISION = "DetailsRevision"
RECOUNT = "Recount"
COUNTS_ALL = "CountsAll"
# See value_ids.
VALUE_IDS, VALUE_IDS_AT, MORE_VALUE_IDS = "ValueIds", "ValueIdsAt", "MoreValueIds"
# No session has more messages. A damaged count, which may have 38 digits, is not incremented.
MAX_COUNT = 10**15

Value = TypeVar("Value")


class DamagedAttribute(ValueError):
    """An attribute of a session's item is missing or malformed. The error text is the attribute's name."""


class StoredSession(NamedTuple):
    """A session's item as it is stored.

    Attributes:
        partition_key: the partition key's attribute value.
        title: the title's attribute value, binary if it is encrypted, or None if there is no title.
        message_count: the stored count, which is not always exact: see ``flags``.
        format: the name of the format of the session's values, empty for LangChain's messages.
        metadata: the attribute value with the JSON text, binary if it is encrypted, or None if there is no metadata.
    """

    partition_key: AttributeValue
    owner: str | None
    title: AttributeValue | None
    created_at: datetime
    last_active: datetime
    message_count: int
    metadata: AttributeValue | None
    format: str


def read_session(layout: ItemCollection, item: Item) -> StoredSession:
    """Return the session of a stored item.

    Raises:
        DamagedAttribute: an attribute is damaged.
    """
    (partition_name,) = layout.key
    return StoredSession(
        partition_key=item[partition_name],
        owner=owner_of(item),
        title=item.get(TITLE),
        created_at=_read(item, CREATED_AT, "S", _time),
        last_active=_read(item, LAST_ACTIVE, "S", _time),
        message_count=_read(item, MESSAGE_COUNT, "N", _count),
        metadata=item.get(METADATA),
        format=format_of(item),
    )


def owner_of(item: Item) -> str | None:
    owner: str | None = item.get(OWNER, {}).get("S")
    return owner


def format_of(item: Item) -> str:
    """Return the name of the format of a session's values, empty for LangChain's messages.

    Raises:
        DamagedAttribute: the attribute is damaged.
    """
    return _read(item, FORMAT, "S", _format_name) if FORMAT in item else ""


def is_alive(layout: ItemCollection, item: Item, now: int) -> bool:
    return not has_passed(item.get(layout.expiry_name), now)


def is_sessions_item(layout: ItemCollection, item: Item) -> bool:
    """Return whether an item of the index is a session's. Other applications may put an owner into other items."""
    return bool(item.get(layout.sort_key_name) == {"S": SORT_KEY})


def text_in(item: Item, name: str) -> str:
    """Return a text attribute, or an empty text if there is none."""
    text = item.get(name, {}).get("S", "")
    return str(text)


def damaged_in(item: Item) -> set[str]:
    """Return the names of damaged attributes with which messages cannot be counted or the item cannot be read."""
    damaged = set()
    for name, kind, convert in _NEEDED:
        try:
            _read(item, name, kind, convert)
        except DamagedAttribute:
            damaged.add(name)
    return damaged | ({RECOUNT} if RECOUNT in item and "SS" not in item[RECOUNT] else set())


def _read(item: Item, name: str, kind: str, convert: Callable[[str], Value]) -> Value:
    try:
        return convert(item[name][kind])
    except (KeyError, ValueError):
        pass
    raise DamagedAttribute(name)


def _format_name(text: str) -> str:
    if not text:
        raise ValueError("LangChain's messages have no such attribute")
    return text


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if time.tzinfo is None:
        raise ValueError("the time has no time zone")
    return time


def _count(digits: str) -> int:
    count = int(digits)
    if abs(count) > MAX_COUNT:
        raise ValueError("the count is out of range")
    return count


_NEEDED: list[tuple[str, str, Callable[[str], object]]] = [
    (CREATED_AT, "S", _time),
    (LAST_ACTIVE, "S", _time),
    (MESSAGE_COUNT, "N", _count),
    (REVISION, "S", str),
]
