"""Idempotency keys in an item collection: one marker item per key, in the transaction of its record. Pure: no I/O.

A marker lies in the session's partition. Its sort key is ``k#`` and a digest of the idempotency key, which is outside
the range of the records, so clearing the session does not delete it. A marker holds a digest of the batch and the key,
the sort key of the record, and an expiry. The transaction's condition is that the key has no marker, or an expired one.
So if several writers in any processes append with the same key, only one of them stores its record. The condition
returns that writer's marker to the others. The digest shows whether they tried to store the same batch. The sort key of
the record is what their next record must come after: they may never have read that record, and their clocks may be
behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .._expressions import number_value
from .._idempotency import check_key, content_digest_of, key_digest_of, key_reused
from .._request import Item
from ..errors import SessionRef
from .layout import CONTENT, RECORD, ItemCollection
from .requests import Action
from .sort_keys import SortKey, parse

PREFIX = "k#"


class Once(NamedTuple):
    """An idempotency key and its batch, as digests.

    Attributes:
        key_digest: the digest of the idempotency key.
        content_digest: the digest of the batch.
        seconds: how many seconds the marker is valid. Afterwards the key can be used for a new batch.
    """

    key_digest: str
    content_digest: str
    seconds: int

    @classmethod
    def of(cls, key: str, format_name: str, texts: Sequence[bytes], seconds: int) -> Once:
        """Return the digests of an idempotency key and its batch of JSON texts.

        Raises:
            TypeError: the key is not a str.
            ValueError: the key is empty or too long.
        """
        check_key(key)
        return cls(key_digest_of(key), content_digest_of(key, format_name, texts), seconds)

    def put(self, layout: ItemCollection, record: SortKey, now: int) -> Action:
        """Return the action that stores the marker, on condition that the key has none that has not expired."""
        (partition_name,) = layout.key
        return {
            "Put": {
                "TableName": layout.table_name,
                "Item": {
                    **layout.key_of(PREFIX + self.key_digest),
                    CONTENT: {"S": self.content_digest},
                    RECORD: {"S": str(record)},
                    layout.expiry_name: number_value(now + self.seconds),
                },
                "ConditionExpression": "attribute_not_exists(#partition) OR #expiry <= :now",
                "ExpressionAttributeNames": {"#partition": partition_name, "#expiry": layout.expiry_name},
                "ExpressionAttributeValues": {":now": number_value(now)},
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }

    def check(self, found: Item | None, ref: SessionRef) -> SortKey | None:
        """Return the sort key of the record that was stored with this key, or None if the marker holds no valid one.

        Raises:
            IdempotencyKeyReusedError: the marker has the digest of a different batch.
        """
        marker = found or {}
        if marker.get(CONTENT) != {"S": self.content_digest}:
            raise key_reused(ref)
        return parse(marker.get(RECORD, {}).get("S", ""))
