"""Moving sessions from single items into an item collection, pure: what is known of a move, and its requests.

Beside the messages that have been moved into a session's partition lies one more item, the marker, whose sort key is
outside of the range of the messages'. It says under which sort keys the messages are stored, how many there are, and
which of them the source held when it was last looked at, as digests in the source's order.

Exactly once. Messages are stored in one transaction with the marker that counts them, on condition that the marker is
still what was read. So whoever is killed, sends a request again or works at the same time as another stores what the
marker counts, or nothing. And because the marker counts what was stored, whatever became of it, nothing that users
have removed comes back.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage

from ._calls import Item, Request
from ._codec import AttributeValue, bytes_of
from ._item_collection import MIGRATION, REVISION, Body, ItemCollection, Items
from ._sort_keys import SortKey, parse

# Behind "m#~", the end of the messages.
SORT_KEY = "migration"
# The marker, and what else may have to be stored with a session's messages: its item in the index. Both fit into the
# 190 KB by which MAX_TRANSACTION_BYTES stays below DynamoDB's 4 MB: the marker has 8 bytes for each of the source's
# messages, which are no more than 400 KB.
OTHER_ACTIONS = 2
# Of one session's few thousand messages, two have the same digest once in 2**41 sessions.
_DIGEST_BYTES = 8
_BASE, _COPIED, _SEALED, _TOTAL, _VERIFIED = "Base", "Copied", "Sealed", "Total", "Verified"
_GONE, _DELETED = "Gone", "Deleted"


@dataclass(frozen=True, slots=True)
class Marker:
    """How far a session has been moved.

    Attributes:
        base: the sort key of the first message that was moved; the others have its tick and batch.
        copied: the digests of the source's messages that were copied, in the source's order when it was last seen.
        total: how many messages were copied, which is the index of the next one.
        verified: how many of these, from the first one on, were compared with the source.
        revision: the id of the write that stored the marker, None where it is not stored.
        gone: whether the source was gone, or had expired, when it was last looked for.
        deleted: whether the session was deleted here, so that nothing is copied any more.
    """

    base: SortKey
    copied: tuple[bytes, ...] = ()
    total: int = 0
    verified: int = 0
    revision: str | None = None
    gone: bool = False
    deleted: bool = False

    def key(self, index: int) -> SortKey:
        return SortKey(self.base.tick, self.base.batch, index)

    def after_copying(self, number: int, source: Sequence[bytes]) -> Marker:
        """Return the marker that counts so many more, when these of the source's messages are copied."""
        return self._changed(copied=tuple(source), total=self.total + number, gone=False)

    def after_verifying(self) -> Marker:
        return self._changed(verified=self.total)

    def without_source(self) -> Marker:
        return self._changed(gone=True)

    def align(self, source: Sequence[bytes]) -> Aligned:
        """Find out which of the source's messages, as digests, were copied before.

        Once the source was gone it is another conversation, which may begin as the old one did; unless it goes on where
        that one ended: langchain-community, which had read it before it was deleted, has written it back.
        """
        aligned = align(self.copied, source)
        goes_on = aligned.start + aligned.length == len(self.copied) and aligned.length < len(source)
        return aligned if goes_on or not self.gone else Aligned(len(self.copied), 0)

    def _changed(self, **changes: Any) -> Marker:
        # At most 36 characters, because it is a transaction's ClientRequestToken too.
        return replace(self, revision=secrets.token_urlsafe(18), **changes)


class Aligned(NamedTuple):
    """Which of the source's messages were copied before.

    Attributes:
        start: at which position of what was copied the source begins.
        length: how many of the source's first messages were copied.
    """

    start: int
    length: int


def align(copied: Sequence[bytes], source: Sequence[bytes]) -> Aligned:
    """Find the source's beginning in what was copied before, both as digests.

    Normally all of what was copied is there, or what is left of it after history_size has trimmed the front. The end
    may be missing too: langchain-community overwrites what others append while it appends. That counts only where it
    leaves at least half, because one "yes" and "ok" may just be like another.
    """
    best = Aligned(len(copied), 0)
    for start in range(len(copied)):
        if len(copied) - start <= best.length:
            break
        length = 0
        while start + length < len(copied) and length < len(source) and copied[start + length] == source[length]:
            length += 1
        whole_end = start + length == len(copied)
        if length > best.length and (whole_end or 2 * length >= len(copied)):
            best = Aligned(start, length)
    return best


def indexes(marker: Marker, aligned: Aligned, number: int) -> list[int]:
    """Return the index, among the moved messages, of each of so many in the source, those to be copied among them."""
    first = marker.total - len(marker.copied) + aligned.start
    new = number - aligned.length
    return [*range(first, first + aligned.length), *range(marker.total, marker.total + new)]


def digest(stored: AttributeValue, message: BaseMessage) -> bytes:
    """Return a digest of a message that stays the same as long as the message does.

    Args:
        stored: as it is stored in the source.
        message: what it was decoded to. Not its stored form: with each append langchain-community writes all messages
            anew, in the form of its langchain-core, so empty fields that others know do not count either.
    """
    if "B" in stored:
        # Sealed, which langchain-community cannot write anew.
        return _hash(bytes_of(stored["B"]))
    fields = {name: value for name, value in message.model_dump(warnings=False).items() if value}
    return _hash(repr((type(message).__name__, _canonical(fields))).encode())


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return [(name, _canonical(value[name])) for name in sorted(value)]
    if isinstance(value, list):
        return [_canonical(element) for element in value]
    if isinstance(value, set):
        return sorted(map(repr, value))
    return value


class Digests(NamedTuple):
    """The digests of a marker as they are stored: sealed where messages are, because short texts could be guessed."""

    data: bytes
    sealed: bool


@dataclass(frozen=True, slots=True)
class Migration:
    """The marker's requests, and those that write it together with messages."""

    layout: ItemCollection

    def read(self) -> Request:
        return Request("get_item", {"TableName": self.layout.table_name, "Key": self._key(), "ConsistentRead": True})

    def read_first_key(self) -> Request:
        """Read the sort key of the first message that is stored, a tombstone or not."""
        query = self.layout.query_keys()
        return Request(query.operation, query.parameters | {"Limit": 1})

    def digests(self, item: Item) -> Digests:
        """Read the digests that are in a marker."""
        state = _state(item)
        if _SEALED in state:
            return Digests(bytes_of(state[_SEALED]["B"]), sealed=True)
        return Digests(bytes_of(state.get(_COPIED, {}).get("B", b"")), sealed=False)

    def marker(self, item: Item, copied: bytes) -> Marker | None:
        """Read a marker with its digests, opened; None where the item is none."""
        state = _state(item)
        base = parse(state.get(_BASE, {}).get("S", ""))
        if base is None:
            return None
        return Marker(
            base=base,
            copied=tuple(copied[at : at + _DIGEST_BYTES] for at in range(0, len(copied), _DIGEST_BYTES)),
            total=int(state[_TOTAL]["N"]),
            verified=int(state[_VERIFIED]["N"]),
            revision=item[REVISION]["S"],
            gone=_GONE in state,
            deleted=_DELETED in state,
        )

    def items_of(self, key: SortKey, body: Body, now: int, expiry: str | None) -> Items:
        """Return a message's items, which expire when the source does; if it never does, in the target's own time."""
        items = self.layout.items_of(key, body, now)
        return items if expiry is None else [item | {self.layout.expiry_name: {"N": expiry}} for item in items]

    def copy(
        self, items: Items, before: Marker, after: Marker, digests: Digests, token: str, *counting: Mapping[str, Any]
    ) -> Request:
        """Store messages with the marker that counts them, unless that has changed. The marker is the last action."""
        return self.layout.put_together(items, token, *counting, {"Put": self._put(before, after, digests)})

    def advance(self, before: Marker, after: Marker, digests: Digests) -> Request:
        """Store the marker alone, unless it has changed."""
        return Request("put_item", self._put(before, after, digests))

    def mark_deleted(self) -> Request:
        """Have no more messages copied into a session that is being deleted. Fails where none ever were.

        Before its messages are removed: from then on no migrator, one that is at work included, stores any. The digests
        go, too.
        """
        return Request(
            "update_item",
            {
                "TableName": self.layout.table_name,
                "Key": self._key(),
                "UpdateExpression": (
                    "SET #migration.#deleted = :true, #revision = :new REMOVE #migration.#copied, #migration.#sealed"
                ),
                "ConditionExpression": "attribute_exists(#migration)",
                "ExpressionAttributeNames": {
                    "#migration": MIGRATION,
                    "#deleted": _DELETED,
                    "#copied": _COPIED,
                    "#sealed": _SEALED,
                    "#revision": REVISION,
                },
                "ExpressionAttributeValues": {":true": {"BOOL": True}, ":new": {"S": secrets.token_urlsafe(18)}},
            },
        )

    def is_stored(self, found: Item | None, marker: Marker) -> bool:
        """Tell whether what was found in the marker's place is this one."""
        return found is not None and found.get(REVISION) == {"S": marker.revision}

    def _put(self, before: Marker, after: Marker, digests: Digests) -> dict[str, Any]:
        condition: dict[str, Any] = {
            "ConditionExpression": "attribute_not_exists(#revision)",
            "ExpressionAttributeNames": {"#revision": REVISION},
        }
        if before.revision is not None:
            condition |= {
                "ConditionExpression": "#revision = :revision",
                "ExpressionAttributeValues": {":revision": {"S": before.revision}},
            }
        return {
            "TableName": self.layout.table_name,
            "Item": self._item(after, digests),
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            **condition,
        }

    def _item(self, marker: Marker, digests: Digests) -> dict[str, AttributeValue]:
        state: dict[str, AttributeValue] = {
            _BASE: {"S": str(marker.base)},
            _SEALED if digests.sealed else _COPIED: {"B": digests.data},
            _TOTAL: {"N": str(marker.total)},
            _VERIFIED: {"N": str(marker.verified)},
        }
        if marker.gone:
            state[_GONE] = {"BOOL": True}
        # It never expires: as long as the source is there, or may come back, it would be copied again.
        return {**self._key(), MIGRATION: {"M": state}, REVISION: {"S": marker.revision}}

    def _key(self) -> dict[str, AttributeValue]:
        return {**self.layout.key, self.layout.sort_key_name: {"S": SORT_KEY}}


def _state(item: Item) -> dict[str, AttributeValue]:
    state: dict[str, AttributeValue] = item.get(MIGRATION, {}).get("M", {})
    return state
