"""The ids of a session's values, and the names of its subsessions, as items of the session's partition. Pure: no I/O.

*Ids.* A value whose id is stored is not stored again, however the caller cuts its batches. An item for each id would
take one action of a transaction, which has at most 100, and two write units. A search for the ids among the records
would read the whole session. So the ids are stored apart from the values, as digests of 16 bytes:

- the latest in the session's item in the index, which the transaction of each append writes anyway (VALUE_IDS);
- the others in items of their own, each with the ids that had gathered in the session's item (``i#`` and the id of the
  record that was stored with it).

A writer knows the ids if it has read both, the session's item first: what has moved from there is then in an item that
is read later. A writer still knows the ids if nobody else has stored any since. So each append with ids puts the sort
key of its record into the session's item (VALUE_IDS_AT), on condition that it finds there what it has read. If two
writers know the same ids, only one of them can append. The other one reads the ids again.

*Subsessions.* A subsession is a session with a partition of its own, because reading one must not read the others. Its
name is in an item of the parent's partition (``j#`` and a digest of the name), which every append to the subsession
puts in its own transaction. The transaction that deletes the subsession's item in the index deletes the name too. So
there is a name if and only if there is a subsession, at any moment: a strongly consistent query finds all names, also
after a writer was killed, and however many delete and append at the same time.

*Deletion.* Ids must not outlive their values: sent again, the values would count as stored. So whoever removes all
values forgets the ids first, and gives VALUE_IDS_AT a new text, by which writers that know the ids are overtaken.
Between the two, values that are sent again are stored twice, in a session that is being removed anyway.

The sort keys of these items and of the markers of idempotency keys (``k#``) are neighbours, so that one query finds all
that a deletion must remove.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .._codec.attribute_values import AttributeValue, bytes_of, has_passed
from .._codec.json_values import decode_value, encode_value
from .._item_collection.idempotency import PREFIX as MARKERS
from .._item_collection.layout import ItemCollection
from .._item_collection.requests import delete_items, query_between
from .._item_collection.sort_keys import SortKey, record_id_of
from .._request import Item, Request
from .stored import VALUE_IDS

_IDS = "i#"
_SUBSESSIONS = "j#"
_NAME = "Subsession"
DIGEST_BYTES = 16
# They have half a kilobyte, so a session's item mostly stays below the kilobyte of one write unit.
MAX_LATEST = 32 * DIGEST_BYTES
# Such an item has 160 KB, and an item may have 400 KB.
MAX_IDS = 10_000
# Names that are part of a partition key as they are. The key of any other name has a digest of it.
_READABLE = re.compile(r"[\w./-]{1,255}", re.ASCII)


class Found(NamedTuple):
    """The items on a page that a deletion finds beside the session's records and its item in the index.

    Attributes:
        subsessions: the names of subsessions.
        others: the requests that delete everything else.
    """

    subsessions: list[str]
    others: list[Request]


def digest_of(value_id: str) -> bytes:
    """Return the digest that is stored for the id of a value."""
    return hashlib.blake2b(value_id.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()


def digests_in(item: Item) -> Iterable[bytes]:
    """Return the digests of ids in an item of ids or in a session's item."""
    stored = bytes_of(item[VALUE_IDS]["B"])
    return (stored[start : start + DIGEST_BYTES] for start in range(0, len(stored), DIGEST_BYTES))


def item_of_ids(layout: ItemCollection, record: SortKey, digests: bytes, now: int) -> dict[str, AttributeValue]:
    """Return the item that holds the digests of ids, of a record and of those before it."""
    return {
        **layout.key_of(_IDS + record_id_of(record)),
        VALUE_IDS: {"B": digests},
        **_expiring(layout, now),
    }


def query_ids(layout: ItemCollection, start_key: dict[str, Any] | None) -> Request:
    """Return the query for a page of a session's items of ids."""
    names = {"#ids": VALUE_IDS, "#expiry": layout.expiry_name}
    return query_between(layout, _IDS, f"{_IDS}~", start_key, names)


def query_keys_of_ids(layout: ItemCollection, start_key: dict[str, Any] | None) -> Request:
    """Return the query for a page of the sort keys of a session's items of ids."""
    return query_between(layout, _IDS, f"{_IDS}~", start_key)


def query_subsessions(layout: ItemCollection, start_key: dict[str, Any] | None) -> Request:
    """Return the query for a page of the names of a session's subsessions."""
    names = {"#name": _NAME, "#expiry": layout.expiry_name}
    return query_between(layout, _SUBSESSIONS, f"{_SUBSESSIONS}~", start_key, names)


def query_all_but_records(layout: ItemCollection, start_key: dict[str, Any] | None) -> Request:
    """Return the query for a page of a session's items of ids, names of subsessions, and idempotency keys."""
    return query_between(layout, _IDS, f"{MARKERS}~", start_key, {"#name": _NAME})


def found(layout: ItemCollection, items: Sequence[Item]) -> Found:
    """Return what a page of ``query_all_but_records`` has. A damaged name is deleted like the rest."""
    names = {item[layout.sort_key_name]["S"]: name_in(item) for item in items}
    others = [sort_key for sort_key, name in names.items() if name is None]
    return Found([name for name in names.values() if name is not None], delete_items(layout, others))


def name_in(item: Item) -> str | None:
    """Return the name of a subsession, or None if the item has none or a damaged one."""
    try:
        name = decode_value(item[_NAME]["S"].encode())
    except (KeyError, ValueError):
        return None
    return name if isinstance(name, str) else None


def is_expired(layout: ItemCollection, item: Item, now: int) -> bool:
    """Return whether an item has expired. DynamoDB may delete it days later."""
    return has_passed(item.get(layout.expiry_name), now)


class Subsession(NamedTuple):
    """The place of a subsession in its parent.

    Attributes:
        parent: how the parent is stored.
        name: the subsession's name, any text.
    """

    parent: ItemCollection
    name: str

    def item(self, now: int) -> dict[str, AttributeValue]:
        """Return the item that holds the name."""
        # As JSON text, because DynamoDB stores no text with surrogates.
        name = encode_value(self.name, "name").decode()
        return {**self._key(), _NAME: {"S": name}, **_expiring(self.parent, now)}

    def delete(self) -> dict[str, Any]:
        """Return the action that deletes the name."""
        return {"Delete": {"TableName": self.parent.table_name, "Key": self._key()}}

    def _key(self) -> dict[str, AttributeValue]:
        return self.parent.key_of(_SUBSESSIONS + digest_of(self.name).hex())


def subsession_key(parent: str, name: str) -> str:
    """Return the partition key of a subsession.

    Different names have different keys: no name is cut, and a name in its readable form has no ``%``, so the last ``%``
    is where the parent's key ends. No tuple of ids is joined to such a key, because joining writes ``%`` only as
    ``%25`` and ``%23``.

    Args:
        parent: the partition key of the parent.
        name: the name, of any length and of any characters.
    """
    return f"{parent}%/{name}" if _READABLE.fullmatch(name) else f"{parent}%.{digest_of(name).hex()}"


def _expiring(layout: ItemCollection, now: int) -> dict[str, AttributeValue]:
    expiry = layout.expiry(now)
    return {} if expiry is None else {layout.expiry_name: expiry}
