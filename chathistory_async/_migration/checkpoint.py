"""The checkpoint of a session's migration from a single item into an item collection, and its requests. Pure: no I/O.

A session's partition holds the records that were copied and one more item, the checkpoint. The checkpoint's sort key is
outside the range of the records' sort keys. The checkpoint holds the sort keys of the copied messages, their number,
and digests of the copied messages that the source held when it was last read, in the source's order. A checksum covers
all of these. A checkpoint that does not match its checksum is refused, because the checkpoint decides what is deleted.

Exactly once. One transaction stores messages and the checkpoint that counts them, on condition that the checkpoint has
not changed since it was read. So a process that is killed, that repeats a request, or that runs beside another process
stores all messages that its checkpoint counts, or nothing. The checkpoint counts every message that was copied,
including messages that were removed, trimmed or have expired since. So no message is copied twice.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from .._codec.attribute_values import AttributeValue, bytes_of
from .._expressions import number_value, unchanged
from .._item_collection.layout import MIGRATION, REVISION, ItemCollection, Items
from .._item_collection.requests import put_items, query_keys
from .._item_collection.sort_keys import MAX_MOVED, SortKey, parse
from .._request import Item, Request, transaction

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

# Sorts after "m#~", the end of the messages.
SORT_KEY = "migration"
# A transaction with messages may also write the checkpoint and the session's item in the index. Both fit into the
# 190 KB by which MAX_TRANSACTION_BYTES stays below DynamoDB's 4 MB: the checkpoint has 8 bytes for each of the source's
# messages, and all of these together have at most 400 KB.
OTHER_ACTIONS = 2
# In one of 2**41 sessions with a few thousand messages, two messages have the same digest.
_DIGEST_BYTES = 8
_LONGEST_DECIMAL_BITS = 128
_BASE, _COPIED, _ENCRYPTED, _TOTAL, _VERIFIED = "Base", "Copied", "Encrypted", "Total", "Verified"
_GONE, _DELETED, _CHECK = "Gone", "Deleted", "Check"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The progress of a session's migration.

    Attributes:
        base: the sort key of the first record that was copied. The other records have the same nonce. The tick of a
            record is the tick of ``base`` plus the number of messages before the record.
        copied: the digests of the source's messages that were copied, in the source's order when it was last read.
        total: the number of messages that were copied, which is also the index of the next one.
        verified: the number of copied messages, from the first one on, that were compared with the source.
        revision: the id of the write that stored the checkpoint, or None if it is not stored.
        gone: whether the source was absent or had expired when it was last read.
        deleted: whether the session was deleted in the target, so that nothing more is copied.
    """

    base: SortKey
    copied: tuple[bytes, ...] = ()
    total: int = 0
    verified: int = 0
    revision: str | None = None
    gone: bool = False
    deleted: bool = False

    def key(self, index: int) -> SortKey:
        """Return the sort key of the record that begins with the message at an index."""
        return SortKey(self.base.tick + index, self.base.nonce)

    def index(self, key: SortKey, position: int) -> int:
        """Return the index of the message at a position of a record."""
        return key.tick - self.base.tick + position

    def after_copying(self, number: int, source: Sequence[bytes]) -> Checkpoint:
        """Return the checkpoint after ``number`` more messages were copied.

        Args:
            number: the number of these messages.
            source: the digests of all of the source's messages.
        """
        return self._changed(copied=tuple(source), total=self.total + number, gone=False)

    def after_verifying(self) -> Checkpoint:
        return self._changed(verified=self.total)

    def without_source(self) -> Checkpoint:
        return self._changed(gone=True)

    def known(self, source: Sequence[bytes]) -> int | None:
        """Return how many of the source's first messages were copied before, or None if the source has diverged.

        If the source was gone and holds messages again, they may be a different conversation. Or langchain-community,
        which had read the source before, has written it back. Messages that were copied before do not show which of the
        two happened, so the source then counts as diverged.

        Args:
            source: the digests of the source's messages.
        """
        known = known_of(self.copied, source)
        return None if self.gone and known else known

    def _changed(self, **changes: Any) -> Checkpoint:
        # The revision is also part of a transaction's ClientRequestToken, which has at most 36 characters.
        return replace(self, revision=secrets.token_urlsafe(18), **changes)


def known_of(copied: Sequence[bytes], source: Sequence[bytes]) -> int | None:
    """Return how many of the source's first messages were copied before, or None if the source has diverged.

    The source continues what was copied in three cases:

    - All copied messages are still at the front of the source.
    - history_size has trimmed the front of the copied messages. To find how many are left, the first message of the
      source that was copied exactly once is taken for the same message.
    - No copied message is left, so all messages of the source are new. The result is 0.

    In any other case the source has diverged.

    Args:
        copied: the digests of the messages that were copied, in order.
        source: the digests of the source's messages, in order.
    """
    before, there = list(copied), list(source)
    if there[: len(before)] == before:
        return len(before)
    times = Counter(before)
    if times.keys().isdisjoint(there):
        return 0
    once = next((at for at, one in enumerate(there) if times[one] == 1), None)
    if once is None:
        return None
    trimmed = before.index(there[once]) - once
    left = before[trimmed:] if trimmed > 0 else []
    return len(left) if left and there[: len(left)] == left else None


def digest(stored: AttributeValue, message: BaseMessage) -> bytes:
    """Return a digest of a message. It stays the same as long as the message stays the same.

    The digest of a message in the clear is not taken over its stored form, because langchain-community rewrites all
    messages with each append, in the form of its version of langchain-core. The digest ignores empty fields, because
    versions differ in them.

    Args:
        stored: the message as it is stored in the source.
        message: the decoded message.
    """
    if "B" in stored:
        # An encrypted message, which langchain-community cannot rewrite.
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
        return sorted(repr(_canonical(element)) for element in value)
    if type(value) is int and value.bit_length() > _LONGEST_DECIMAL_BITS:
        # repr() refuses an int of more than 4,300 digits.
        return hex(value)
    return value


class Digests(NamedTuple):
    """A checkpoint's digests as they are stored.

    They are encrypted if the messages are, because a short text could be guessed from its digest.
    """

    data: bytes
    encrypted: bool


@dataclass(frozen=True, slots=True)
class CheckpointItem:
    """The item that holds a session's checkpoint: the requests that read or write it, alone or with messages."""

    layout: ItemCollection

    def read(self) -> Request:
        return Request("get_item", {"TableName": self.layout.table_name, "Key": self._key(), "ConsistentRead": True})

    def read_first_keys(self, limit: int, start_key: dict[str, AttributeValue] | None) -> Request:
        """Read sort keys of stored records, including tombstones: the first ones, or those after ``start_key``."""
        query = query_keys(self.layout, start_key=start_key)
        return Request(query.operation, query.parameters | {"Limit": limit})

    def digests(self, item: Item) -> Digests:
        """Return the digests in a stored checkpoint, as they are stored.

        Raises:
            KeyError, ValueError: the checkpoint is damaged.
        """
        state = item[MIGRATION]["M"]
        if _ENCRYPTED in state:
            return Digests(bytes_of(state[_ENCRYPTED]["B"]), encrypted=True)
        return Digests(bytes_of(state[_COPIED]["B"]) if _COPIED in state else b"", encrypted=False)

    def checkpoint(self, item: Item, copied: bytes) -> Checkpoint:
        """Return the checkpoint in a stored item.

        Args:
            item: the stored item.
            copied: its digests, decrypted.

        Raises:
            KeyError, ValueError: the checkpoint is damaged.
        """
        state = item[MIGRATION]["M"]
        base = parse(state[_BASE]["S"])
        if base is None or not base.is_first_part:
            raise ValueError("its base is not the sort key of a record")
        checkpoint = Checkpoint(
            base=base,
            copied=tuple(copied[at : at + _DIGEST_BYTES] for at in range(0, len(copied), _DIGEST_BYTES)),
            total=int(state[_TOTAL]["N"]),
            verified=int(state[_VERIFIED]["N"]),
            revision=item[REVISION]["S"],
            gone=_GONE in state,
            deleted=_DELETED in state,
        )
        if not 0 <= checkpoint.verified <= checkpoint.total <= MAX_MOVED or len(checkpoint.copied) > checkpoint.total:
            raise ValueError("its numbers contradict each other")
        # mark_deleted() does not read the checkpoint, and does not update the checksum.
        if not checkpoint.deleted and state[_CHECK] != _check(checkpoint, self.digests(item)):
            raise ValueError("it was changed")
        return checkpoint

    def copy(
        self,
        items: Items,
        before: Checkpoint,
        after: Checkpoint,
        digests: Digests,
        token: str,
        *counting: Mapping[str, Any],
    ) -> Request:
        """Store records and the checkpoint that counts them, on condition that the checkpoint has not changed.

        The checkpoint is the last action of the transaction.
        """
        put = {"Put": self._put(before, after, digests)}
        return transaction([*put_items(self.layout, items), *counting, put], token)

    def advance(self, before: Checkpoint, after: Checkpoint, digests: Digests) -> Request:
        """Store the checkpoint alone, on condition that it has not changed."""
        return Request("put_item", self._put(before, after, digests))

    def mark_deleted(self) -> Request:
        """Stop the copying of messages into a session that is being deleted, and remove the checkpoint's digests.

        This comes before the removal of the session's messages. From then on no migrator stores messages there, not
        even a migrator that is running. The request's condition fails if the session has no checkpoint.
        """
        return Request(
            "update_item",
            {
                "TableName": self.layout.table_name,
                "Key": self._key(),
                "UpdateExpression": (
                    "SET #migration.#deleted = :true, #revision = :new REMOVE #migration.#copied, #migration.#encrypted"
                ),
                # A checkpoint that is not a map is damaged, and a migrator then copies nothing.
                "ConditionExpression": "attribute_type(#migration, :map)",
                "ExpressionAttributeNames": {
                    "#migration": MIGRATION,
                    "#deleted": _DELETED,
                    "#copied": _COPIED,
                    "#encrypted": _ENCRYPTED,
                    "#revision": REVISION,
                },
                "ExpressionAttributeValues": {
                    ":true": {"BOOL": True},
                    ":map": {"S": "M"},
                    ":new": {"S": secrets.token_urlsafe(18)},
                },
            },
        )

    def is_stored(self, found: Item | None, checkpoint: Checkpoint) -> bool:
        """Return whether the item that was found in the checkpoint's place is this checkpoint."""
        return found is not None and found.get(REVISION) == {"S": checkpoint.revision}

    def _put(self, before: Checkpoint, after: Checkpoint, digests: Digests) -> dict[str, Any]:
        same, values = unchanged("#revision", None if before.revision is None else {"S": before.revision})
        put = {
            "TableName": self.layout.table_name,
            "Item": self._item(after, digests),
            "ConditionExpression": same,
            "ExpressionAttributeNames": {"#revision": REVISION},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        return put | ({"ExpressionAttributeValues": values} if values else {})

    def _item(self, checkpoint: Checkpoint, digests: Digests) -> dict[str, AttributeValue]:
        state: dict[str, AttributeValue] = {
            _BASE: {"S": str(checkpoint.base)},
            _ENCRYPTED if digests.encrypted else _COPIED: {"B": digests.data},
            _TOTAL: number_value(checkpoint.total),
            _VERIFIED: number_value(checkpoint.verified),
            _CHECK: _check(checkpoint, digests),
        }
        if checkpoint.gone:
            state[_GONE] = {"BOOL": True}
        # The checkpoint never expires. Without it, a source that still exists or comes back would be copied again.
        return {**self._key(), MIGRATION: {"M": state}, REVISION: {"S": checkpoint.revision}}

    def _key(self) -> dict[str, AttributeValue]:
        return self.layout.key_of(SORT_KEY)


def _check(checkpoint: Checkpoint, digests: Digests) -> AttributeValue:
    """Return the checksum of a checkpoint, except its ``deleted``, and of its digests as they are stored."""
    told = (
        str(checkpoint.base),
        checkpoint.total,
        checkpoint.verified,
        checkpoint.revision,
        checkpoint.gone,
        digests.encrypted,
        digests.data,
    )
    return {"S": _hash(repr(told).encode()).hex()}
