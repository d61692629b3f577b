"""Moving sessions from single items into an item collection, pure: what is known of a move, and its requests.

Beside the records that have been moved into a session's partition lies one more item, the checkpoint, whose sort key is
outside of the range of the records'. It says under which sort keys the messages are stored, how many there are, and
which of them the source held when it was last looked at, as digests in the source's order. A checksum covers all of
that: a checkpoint in which anything was changed is refused, because it decides what is deleted.

Exactly once. One transaction stores messages and the checkpoint that counts them, on condition that the checkpoint is
still what was read. So a process that is killed, that repeats a request, or that works beside another one stores what
the checkpoint counts, or nothing. The checkpoint counts every message that was stored, also those that users have
removed since: none of them is copied again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from .._codec.attribute_values import AttributeValue, bytes_of
from .._item_collection.requests import MIGRATION, REVISION, ItemCollection, Items
from .._item_collection.sort_keys import MAX_MOVED, SortKey, parse
from .._request import Item, Request, transaction

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

# Behind "m#~", the end of the messages.
SORT_KEY = "migration"
# The checkpoint, and the session's item in the index, which may have to be stored with messages. Both fit into the
# 190 KB by which MAX_TRANSACTION_BYTES stays below DynamoDB's 4 MB: the checkpoint has 8 bytes for each of the source's
# messages, which are no more than 400 KB.
OTHER_ACTIONS = 2
# Of one session's few thousand messages, two have the same digest once in 2**41 sessions.
_DIGEST_BYTES = 8
_LONGEST_DECIMAL_BITS = 128
_BASE, _COPIED, _SEALED, _TOTAL, _VERIFIED = "Base", "Copied", "Encrypted", "Total", "Verified"
_GONE, _DELETED, _CHECK = "Gone", "Deleted", "Check"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a session has been moved.

    Attributes:
        base: the sort key of the first record that was moved. The others have its nonce, and a tick that is as many
            more as messages come before them.
        copied: the digests of the source's messages that were copied, in the source's order when it was last seen.
        total: how many messages were copied, which is the index of the next one.
        verified: how many of these, from the first one on, were compared with the source.
        revision: the id of the write that stored the checkpoint, None where it is not stored.
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
        """Return the sort key of the record that begins with the message of this index."""
        return SortKey(self.base.tick + index, self.base.nonce)

    def index(self, key: SortKey, position: int) -> int:
        """Return the index of the message at a position of a record."""
        return key.tick - self.base.tick + position

    def after_copying(self, number: int, source: Sequence[bytes]) -> Checkpoint:
        """Return the checkpoint that counts so many more, when these of the source's messages are copied."""
        return self._changed(copied=tuple(source), total=self.total + number, gone=False)

    def after_verifying(self) -> Checkpoint:
        return self._changed(verified=self.total)

    def without_source(self) -> Checkpoint:
        return self._changed(gone=True)

    def known(self, source: Sequence[bytes]) -> int | None:
        """Return how many of the source's first messages, as digests, were copied last; None if it has diverged.

        Once the source was gone it holds another conversation, unless langchain-community, which had read it before,
        has written it back. Messages that both have in common do not tell which of the two it is.
        """
        known = known_of(self.copied, source)
        return None if self.gone and known else known

    def _changed(self, **changes: Any) -> Checkpoint:
        # At most 36 characters, because it is a transaction's ClientRequestToken too.
        return replace(self, revision=secrets.token_urlsafe(18), **changes)


def known_of(copied: Sequence[bytes], source: Sequence[bytes]) -> int | None:
    """Return how many of the source's first messages are the last ones that were copied, both as digests.

    All that was copied is still there; or history_size has trimmed its front; or nothing of it is left, so that all of
    the source is new. Which part of it a trim has left is told by the first message of the source that was copied
    exactly once: it is taken for the same message. Anything else has diverged, which is None.
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
    """Return a digest of a message that stays the same as long as the message does.

    Args:
        stored: as it is stored in the source.
        message: what it was decoded to. Not its stored form: with each append langchain-community writes all messages
            anew, in the form of its langchain-core, so empty fields that others know do not count either.
    """
    if "B" in stored:
        # Encrypted, which langchain-community cannot write anew.
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
    """A checkpoint's digests as they are stored. They are encrypted if messages are: short texts could be guessed."""

    data: bytes
    encrypted: bool


@dataclass(frozen=True, slots=True)
class Migration:
    """The checkpoint's requests, and those that write it together with messages."""

    layout: ItemCollection

    def read(self) -> Request:
        return Request("get_item", {"TableName": self.layout.table_name, "Key": self._key(), "ConsistentRead": True})

    def read_first_keys(self, limit: int, start_key: dict[str, AttributeValue] | None) -> Request:
        """Read the first sort keys of all that is stored, tombstones among it, or those behind another."""
        query = self.layout.query_keys(start_key=start_key)
        return Request(query.operation, query.parameters | {"Limit": limit})

    def digests(self, item: Item) -> Digests:
        """Read the digests that are in a checkpoint.

        Raises:
            KeyError, ValueError: it is damaged.
        """
        state = item[MIGRATION]["M"]
        if _SEALED in state:
            return Digests(bytes_of(state[_SEALED]["B"]), encrypted=True)
        return Digests(bytes_of(state[_COPIED]["B"]) if _COPIED in state else b"", encrypted=False)

    def checkpoint(self, item: Item, copied: bytes) -> Checkpoint:
        """Read a checkpoint with its digests, opened.

        Raises:
            KeyError, ValueError: it is damaged.
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
        # mark_deleted() does not read the checkpoint, and leaves the checksum as it was.
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
        """Store records with the checkpoint that counts them, unless it has changed. It is the last action."""
        return transaction([*self.layout.put(items), *counting, {"Put": self._put(before, after, digests)}], token)

    def advance(self, before: Checkpoint, after: Checkpoint, digests: Digests) -> Request:
        """Store the checkpoint alone, unless it has changed."""
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
                    "SET #migration.#deleted = :true, #revision = :new REMOVE #migration.#copied, #migration.#encrypted"
                ),
                # What is no map is damaged, and no migrator copies anything there.
                "ConditionExpression": "attribute_type(#migration, :map)",
                "ExpressionAttributeNames": {
                    "#migration": MIGRATION,
                    "#deleted": _DELETED,
                    "#copied": _COPIED,
                    "#encrypted": _SEALED,
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
        """Tell whether what was found in the checkpoint's place is this one."""
        return found is not None and found.get(REVISION) == {"S": checkpoint.revision}

    def _put(self, before: Checkpoint, after: Checkpoint, digests: Digests) -> dict[str, Any]:
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

    def _item(self, checkpoint: Checkpoint, digests: Digests) -> dict[str, AttributeValue]:
        state: dict[str, AttributeValue] = {
            _BASE: {"S": str(checkpoint.base)},
            _SEALED if digests.encrypted else _COPIED: {"B": digests.data},
            _TOTAL: {"N": str(checkpoint.total)},
            _VERIFIED: {"N": str(checkpoint.verified)},
            _CHECK: _check(checkpoint, digests),
        }
        if checkpoint.gone:
            state[_GONE] = {"BOOL": True}
        # It never expires: as long as the source is there, or may come back, it would be copied again.
        return {**self._key(), MIGRATION: {"M": state}, REVISION: {"S": checkpoint.revision}}

    def _key(self) -> dict[str, AttributeValue]:
        return {**self.layout.key, self.layout.sort_key_name: {"S": SORT_KEY}}


def _check(checkpoint: Checkpoint, digests: Digests) -> AttributeValue:
    """Return the checksum of all that a checkpoint says, its digests as they are stored."""
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
