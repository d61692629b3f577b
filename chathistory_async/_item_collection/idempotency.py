"""Idempotency keys in an item collection, pure: one marker for each key, in the transaction that stores its record.

A checkpoint lies in the session's partition, under ``k#`` and a digest of the key, outside of the range of records:
clearing the session leaves it. It holds a digest of what was stored, into which the key itself goes, and the sort key
of the record, and expires. The transaction's condition is that there is no marker of the key, or an expired one. So of
all who append by one key, from whatever process, one stores its record. The others meet its marker, which tells whether
they wanted to store the same, and behind which record comes what they write next: they may never have read it, and
their clocks may be behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .._idempotency import check_key, content_digest_of, key_digest_of, key_reused
from .._request import Item, Request
from ..errors import SessionRef
from .requests import CONTENT, RECORD, Action, ItemCollection
from .sort_keys import SortKey, parse

PREFIX = "k#"


class Once(NamedTuple):
    """An idempotency key with its batch, as digests.

    Attributes:
        key_digest: of the idempotency key.
        content_digest: of the batch.
        seconds: until the key may be used anew.
    """

    key_digest: str
    content_digest: str
    seconds: int

    @classmethod
    def of(cls, key: str, format_name: str, texts: Sequence[bytes], seconds: int) -> Once:
        """Return what makes a batch of JSON texts be stored once.

        Raises:
            TypeError: the key is not text.
            ValueError: it is empty or too long.
        """
        check_key(key)
        return cls(key_digest_of(key), content_digest_of(key, format_name, texts), seconds)

    def put(self, layout: ItemCollection, record: SortKey, now: int) -> Action:
        """Store the checkpoint of a record, unless there is one of the key that has not expired."""
        ((partition, _),) = layout.key.items()
        return {
            "Put": {
                "TableName": layout.table_name,
                "Item": {
                    **layout.key,
                    layout.sort_key_name: {"S": PREFIX + self.key_digest},
                    CONTENT: {"S": self.content_digest},
                    RECORD: {"S": str(record)},
                    layout.expiry_name: {"N": str(now + self.seconds)},
                },
                "ConditionExpression": "attribute_not_exists(#partition) OR #expiry <= :now",
                "ExpressionAttributeNames": {"#partition": partition, "#expiry": layout.expiry_name},
                "ExpressionAttributeValues": {":now": {"N": str(now)}},
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }

    def check(self, found: Item | None, ref: SessionRef) -> SortKey | None:
        """Return the sort key of the record that was stored by this key, None where its marker does not tell it.

        Raises:
            IdempotencyKeyReusedError: another batch was stored by it.
        """
        checkpoint = found or {}
        if checkpoint.get(CONTENT) != {"S": self.content_digest}:
            raise key_reused(ref)
        return parse(checkpoint.get(RECORD, {}).get("S", ""))


def query_checkpoints(layout: ItemCollection, start_key: dict[str, Any] | None) -> Request:
    """Read a page of the sort keys of a session's markers."""
    return layout.query_between(PREFIX, f"{PREFIX}~", start_key)


def delete_checkpoints(layout: ItemCollection, items: Sequence[Item]) -> list[Request]:
    """Delete the markers of a page."""
    return layout.delete_items([item[layout.sort_key_name]["S"] for item in items])
