"""The changes that one append makes to a single item, each with the condition that it assumes. Pure: no I/O.

Exactly once. Every write has an id, and a condition that WRITES does not contain the id. So a request that is sent
again changes nothing, unless the id was pruned in between. A second condition excludes that: either nothing was pruned
yet (the first two elements are equal), or WRITES still contains a write that this writer knows to be older than its own
(pruning removes the oldest ids first). Once neither is true, no request of the write is stored, however late it
arrives. If a response was lost, the writer then raises WriteOutcomeUnknownError.

One gap is left. The first write of a handle that has seen no write of the session knows no older write. If the network
delays a request of this write until the write was acknowledged by another request and the session was cleared, the
batch is stored again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from .._codec.attribute_values import MAX_ITEM_BYTES, AttributeValue, for_request
from .._expressions import number_value
from .layout import Stored, Write

# WRITES takes 13 bytes per write, at most 3.4 KB. A retry is recognised while fewer than WRITES_KEPT other writes to
# the session come between the retry and its first attempt. A write with an idempotency key has two elements, of 75
# bytes together. If all writes have a key, WRITES takes up to 10 KB, and half as many writes may come between.
WRITES_LIMIT = 256
WRITES_KEPT = 128
# The id of a write with an idempotency key.
_IS_KEY = re.compile("k:[^:]*")
# Each message that is added or trimmed by its index takes about 25 of the 4,096 characters that an expression may have.
_MAX_INDEXED = 100

_NEVER_PRUNED = (
    "(attribute_not_exists(#writes) OR "
    "(size(#writes) < :full AND #writes[0] = #writes[1] AND NOT contains(#writes, :write)))"
)
_ANCHORED = (
    "(attribute_exists(#writes) AND size(#writes) < :full AND contains(#writes, :anchor)"
    # The creator's id is never pruned from the front, so it proves something only while nothing was pruned.
    " AND (#writes[0] <> :anchor OR #writes[0] = #writes[1]) AND NOT contains(#writes, :write))"
)


class Change(NamedTuple):
    """A part of an update: its SET clause, its values, its REMOVE clause, and the condition that it assumes."""

    set: str
    values: dict[str, AttributeValue]
    remove: str = ""
    condition: str = ""


def change_messages(
    batch: Sequence[AttributeValue], size: int | None, length: int | None, stored: Stored | None
) -> Change:
    """Return the change that appends a batch to the messages and trims them.

    Args:
        batch: the messages to append.
        size: how many messages are kept, or None for all.
        length: how many messages are known to be stored, or None.
        stored: the item that the last failed condition returned, or None.
    """
    if size is None:
        return _append(batch)
    if len(batch) == size:
        return _replace_by(batch)
    surplus = 0 if length is None else length + len(batch) - size
    if surplus > 0 and surplus + len(batch) <= _MAX_INDEXED:
        return _trim(batch, length or 0, surplus)
    if surplus > 0 and stored is not None:
        return _rewrite(stored.messages, batch, size)
    # The guess is that there is room. If it is wrong, the condition fails and returns the item, and so its length.
    room = "(attribute_not_exists(#messages) OR size(#messages) <= :room)"
    append = _append(batch)
    # Limited to a number that DynamoDB accepts: no item holds more messages than bytes.
    most = min(size - len(batch), MAX_ITEM_BYTES)
    return append._replace(values=append.values | {":room": number_value(most)}, condition=room)


def change_writes(write: Write, anchor: str | None, stored: Stored | None) -> Change:
    """Return the change that adds a write to WRITES.

    Args:
        write: the write.
        anchor: the id of a write that WRITES contains, or None if none is known.
        stored: the item that the last failed condition returned, or None.
    """
    if stored is not None and len(stored.writes) >= WRITES_LIMIT:
        creator, *recent = stored.writes
        kept = recent[-WRITES_KEPT:]
        if _IS_KEY.fullmatch(kept[0]):
            # The element before it, with the digest of its content, is pruned.
            kept = kept[1:]
        pruned = list_of([creator, *kept, *write.texts()])
        return Change(
            "#writes = :pruned", {":pruned": pruned, ":seen": list_of(stored.writes)}, condition="#writes = :seen"
        )
    values = {":creation": list_of(write.texts()[:1]), ":writes": list_of(write.texts()), ":write": {"S": write.id}}
    return Change(
        "#writes = list_append(if_not_exists(#writes, :creation), :writes)",
        values | {":full": number_value(WRITES_LIMIT)} | ({} if anchor is None else {":anchor": {"S": anchor}}),
        condition=_NEVER_PRUNED if anchor is None else _ANCHORED,
    )


def _append(batch: Sequence[AttributeValue]) -> Change:
    return Change(
        "#messages = list_append(if_not_exists(#messages, :none), :batch)",
        {":none": {"L": []}, ":batch": {"L": list(batch)}},
    )


def _replace_by(messages: Sequence[AttributeValue]) -> Change:
    return Change("#messages = :messages", {":messages": {"L": list(messages)}})


def _trim(batch: Sequence[AttributeValue], length: int, surplus: int) -> Change:
    # SET with an index past the end appends. The indexes in REMOVE are those before the update.
    return Change(
        ", ".join(f"#messages[{length + index}] = :m{index}" for index in range(len(batch))),
        {f":m{index}": message for index, message in enumerate(batch)} | {":length": number_value(length)},
        remove=", ".join(f"#messages[{index}]" for index in range(surplus)),
        condition="size(#messages) = :length",
    )


def _rewrite(messages: Sequence[AttributeValue], batch: Sequence[AttributeValue], size: int) -> Change:
    # For a trim that is too long for an expression: a large batch, or a session longer than a new history_size.
    before = [for_request(message) for message in messages]
    after = [*before, *batch][-size:]
    return Change(
        "#messages = :messages",
        {":messages": {"L": after}, ":before": {"L": before}},
        condition="#messages = :before",
    )


def list_of(values: Sequence[str]) -> AttributeValue:
    return {"L": [{"S": value} for value in values]}
