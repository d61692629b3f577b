"""The requests of the item-collection layout, as dicts. Pure: no I/O.

Exactly once. Sort keys are unique, and every item is put on condition that no item has its key. So a request that is
sent again changes nothing, whether DynamoDB still knows the transaction's token or not. This must also hold for a
record that was removed in the meantime. So a record that is younger than TOMBSTONE_SECONDS is not deleted but emptied.
The emptied item is a tombstone, which keeps the record's key. Readers skip it, and DynamoDB's TTL deletes it. A record
is changed on condition that its revision has not changed (see ``revisions``).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from .._codec.attribute_values import AttributeValue, has_passed
from .._expressions import ALIVE, names_in, number_value, time_values, unchanged
from .._request import Item, Request, transaction
from .layout import (
    COUNT,
    ENCODING,
    FORMAT,
    PARTS,
    POSITIONS,
    REMOVED_BY,
    REVISION,
    TYPE,
    ItemCollection,
    Items,
)
from .records import Record
from .sort_keys import PREFIX, SortKey

# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_BATCH_WRITE_ITEMS = 25
# More items than a page holds: a page has at most 1 MB, and an item has 100 bytes or more.
MAX_LIMIT = 20_000
# AWS refuses a request that was signed more than five minutes ago, and the SDK's own retries end within minutes. The
# rest of this time allows for clocks that differ.
TOMBSTONE_SECONDS = 1800

_NAMES = {
    "#removed": REMOVED_BY,
    "#revision": REVISION,
    "#encoding": ENCODING,
    "#type": TYPE,
    "#parts": PARTS,
    "#count": COUNT,
    "#positions": POSITIONS,
    "#format": FORMAT,
}
_READ = "#sort, #body, #encoding, #parts, #count, #positions, #format, #revision"
# The item is a record, maybe a damaged one, and not a tombstone.
_THERE = "(attribute_exists(#sort) AND attribute_not_exists(#removed))"

Action: TypeAlias = "dict[str, Any]"
# The action in a transaction, and the operation that does the same for a single item.
_OPERATIONS = {"Put": "put_item", "Update": "update_item", "Delete": "delete_item"}


class Together(NamedTuple):
    """The attributes and items that one transaction writes together with a record. Only the session index's writer can.

    Attributes:
        items: further items, which replace what is stored under their keys. The transaction has no other action on
            these keys, so no condition on them can fail.
        seen: texts in the session's item that must be as they were read, by the names of their attributes; None for an
            attribute that was absent.
        new: new values of attributes of the session's item.
    """

    items: Items
    seen: Mapping[str, str | None]
    new: Mapping[str, AttributeValue]

    def is_overtaken(self, item: Item | None) -> bool:
        """Return whether the session's item has other texts than were read. None for an item that does not exist."""
        return any((item or {}).get(name, {}).get("S") != text for name, text in self.seen.items())


def query_records(
    layout: ItemCollection,
    *,
    now: int,
    consistent: bool,
    newest_first: bool = False,
    limit: int | None = None,
    before: SortKey | None = None,
    up_to: SortKey | None = None,
    only: SortKey | None = None,
    types: bool = False,
    start_key: dict[str, AttributeValue] | None = None,
) -> Request:
    """Return the query for a page of live items: no tombstones, and no expired ones.

    Args:
        layout: how the session is stored.
        now: the time, in seconds since the epoch.
        consistent: whether the read is strongly consistent.
        newest_first: whether the items are in descending order instead of ascending order.
        limit: how many items DynamoDB reads at most, including tombstones and expired items, or None for no limit.
        before: only records before this one.
        up_to: only records up to this one, including it.
        only: only the parts of this record.
        types: whether types and expiry are read too, which rewriting a record needs.
        start_key: the ``LastEvaluatedKey`` of the previous page.
    """
    low_and_high = _range(before=before, up_to=up_to, only=only)
    projection = f"{_READ}, #type, #expiry" if types else _READ
    parameters = _query(layout, low_and_high, projection, start_key, alive_at=now)
    parameters |= {"ScanIndexForward": not newest_first, "ConsistentRead": consistent}
    if limit is not None:
        parameters["Limit"] = min(limit, MAX_LIMIT)
    return Request("query", parameters, large=True)


def query_keys(
    layout: ItemCollection,
    *,
    before: SortKey | None = None,
    only: SortKey | None = None,
    start_key: dict[str, AttributeValue] | None = None,
) -> Request:
    """Return the query for a page of all items without bodies, including tombstones and expired items, in order.

    Args:
        layout: how the session is stored.
        before: only records before this one.
        only: only the parts of this record.
        start_key: the ``LastEvaluatedKey`` of the previous page.
    """
    projection = "#sort, #removed, #parts, #count, #encoding, #type, #expiry"
    return Request("query", _query(layout, _range(before=before, only=only), projection, start_key), large=True)


def query_alive_keys(
    layout: ItemCollection, *, now: int, start_key: dict[str, AttributeValue] | None = None
) -> Request:
    """Return the query for a page of the sort keys and numbers of values of live items, in order."""
    return Request("query", _query(layout, _range(), "#sort, #count", start_key, alive_at=now))


def query_whole_items(layout: ItemCollection, *, start_key: dict[str, AttributeValue] | None = None) -> Request:
    """Return the query for a page of all items with all their attributes, including tombstones and expired items."""
    parameters = _query(layout, _range(), "#sort", start_key)
    del parameters["ProjectionExpression"]
    return Request("query", parameters, large=True)


def query_between(
    layout: ItemCollection,
    low: str,
    high: str,
    start_key: dict[str, AttributeValue] | None,
    names: Mapping[str, str] | None = None,
) -> Request:
    """Return the query for a page of all items between two sort keys, including both, in order.

    Args:
        layout: how the session is stored.
        low: the first sort key.
        high: the last sort key.
        start_key: the ``LastEvaluatedKey`` of the previous page.
        names: the names of the attributes to read beside the sort key, by their placeholders.
    """
    names = names or {}
    parameters = _query(layout, (low, high), "#sort", start_key)
    parameters["ProjectionExpression"] = ", ".join(["#sort", *names])
    parameters["ExpressionAttributeNames"] |= names
    return Request("query", parameters)


def is_of_all(query: Request) -> bool:
    """Return whether a query is strongly consistent, covers the whole session, and reads its first page."""
    values = query.parameters["ExpressionAttributeValues"]
    return (
        "ExclusiveStartKey" not in query.parameters
        and query.parameters["ConsistentRead"]
        and (values[":low"]["S"], values[":high"]["S"]) == _range()
    )


def get_record(layout: ItemCollection, key: SortKey, *, consistent: bool = True) -> Request:
    """Return the request that reads the first item of a record."""
    parameters = {"TableName": layout.table_name, "Key": layout.key_of(key), "ConsistentRead": consistent}
    return Request("get_item", parameters)


def put_items(layout: ItemCollection, items: Items) -> list[Action]:
    """Return the actions that store a record's items, each on condition that no item has its key."""
    return [{"Put": _put(layout, item)} for item in items]


def replace_record(layout: ItemCollection, stored: Record, items: Items, now: int) -> list[Action]:
    """Return the actions that replace the items of a stored record by new ones.

    The condition is that the record was not removed, has not expired, and has the revision that was read.
    """
    same, seen_values = unchanged("#revision", stored.revision)
    condition = f"{_THERE} AND {same} AND {ALIVE}"
    head = {
        "TableName": layout.table_name,
        "Item": items[0],
        "ConditionExpression": condition,
        "ExpressionAttributeNames": _names_in(layout, condition),
        "ExpressionAttributeValues": seen_values | time_values(now),
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    return [
        {"Put": head},
        *({"Put": {"TableName": layout.table_name, "Item": item}} for item in items[1:]),
        *(
            {"Delete": {"TableName": layout.table_name, "Key": layout.key_of(stored.key.of_part(part))}}
            for part in range(len(items), stored.parts)
        ),
    ]


def remove_record(layout: ItemCollection, key: SortKey, known: Record | None, write: str, now: int) -> Action:
    """Return the action that turns the first item of a record into a tombstone.

    The condition is that the item is not a tombstone already (unless it is a damaged one, with a body), and that
    the record has the revision of ``known``. With None for ``known``, any revision is accepted.
    """
    # An item that is marked as removed but has a body is damaged. Its body must be removed too.
    condition = f"({_THERE} OR attribute_exists(#body))"
    values: dict[str, AttributeValue] = {":write": {"S": write}, ":tombstone": number_value(now + TOMBSTONE_SECONDS)}
    if known is not None:
        same, seen_values = unchanged("#revision", known.revision)
        condition, values = f"{condition} AND {same}", values | seen_values
    change = "SET #removed = :write, #expiry = :tombstone REMOVE #body, #encoding, #type"
    return {
        "Update": {
            "TableName": layout.table_name,
            "Key": layout.key_of(key),
            "UpdateExpression": change,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": _names_in(layout, change, condition),
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def sweep_parts(layout: ItemCollection, parts: Iterable[Record], write: str, now: int) -> list[Request]:
    """Return the requests that delete items, or empty them if a request that stores them may still be under way."""
    actions = []
    for part in parts:
        key = layout.key_of(part.key)
        # Further parts need no tombstone: a request that stores them fails on the first part's tombstone.
        is_over = part.removed_by is not None and has_passed(part.expiry, now)
        if is_over or part.key.created_at < now - TOMBSTONE_SECONDS or part.key.part > 0:
            actions.append({"DeleteRequest": {"Key": key}})
        elif part.removed_by is None or _may_have_a_body(part, now):
            tombstone = {REMOVED_BY: {"S": write}, layout.expiry_name: number_value(now + TOMBSTONE_SECONDS)}
            actions.append({"PutRequest": {"Item": {**key, **tombstone}}})
    return _batches(layout, actions)


def delete_items(layout: ItemCollection, sort_keys: Sequence[str]) -> list[Request]:
    """Return the requests that delete items by their sort keys, without a condition."""
    return _batches(layout, [{"DeleteRequest": {"Key": layout.key_of(key)}} for key in sort_keys])


def batch_write(layout: ItemCollection, actions: list[dict[str, Any]]) -> Request:
    return Request("batch_write_item", {"RequestItems": {layout.table_name: actions}})


def request_of(actions: Sequence[Action], token: str | None = None) -> Request:
    """Return the request that performs actions. A single action is a plain call, which costs half of a transaction.

    Args:
        actions: the actions, at least one.
        token: the ClientRequestToken of a transaction, or None for a new one.
    """
    if len(actions) > 1:
        return transaction(actions, token or new_token())
    ((name, parameters),) = actions[0].items()
    return Request(_OPERATIONS[name], parameters)


def new_token() -> str:
    """Return a new id of a write: at most 36 characters, because it is a transaction's ClientRequestToken too."""
    return secrets.token_urlsafe(18)


def _query(
    layout: ItemCollection,
    low_and_high: tuple[str, str],
    projection: str,
    start_key: dict[str, AttributeValue] | None,
    *,
    alive_at: int | None = None,
) -> dict[str, Any]:
    """Return the parameters of a strongly consistent query, in ascending order.

    Args:
        layout: how the session is stored.
        low_and_high: the first and the last sort key.
        projection: the attributes to read.
        start_key: the ``LastEvaluatedKey`` of the previous page, or None for the first page.
        alive_at: read only items that are live at this time, in seconds since the epoch, or None to read all items.
    """
    ((_, partition_value),) = layout.key.items()
    low, high = low_and_high
    key_condition = "#partition = :partition AND #sort BETWEEN :low AND :high"
    condition = "" if alive_at is None else f"attribute_not_exists(#removed) AND {ALIVE}"
    values: dict[str, AttributeValue] = {":partition": partition_value, ":low": {"S": low}, ":high": {"S": high}}
    parameters: dict[str, Any] = {
        "TableName": layout.table_name,
        "KeyConditionExpression": key_condition,
        "ProjectionExpression": projection,
        "ExpressionAttributeValues": values,
        "ExpressionAttributeNames": _names_in(layout, key_condition, condition, projection),
        "ScanIndexForward": True,
        "ConsistentRead": True,
    }
    if alive_at is not None:
        parameters["FilterExpression"] = condition
        values |= time_values(alive_at)
    if start_key is not None:
        parameters["ExclusiveStartKey"] = start_key
    return parameters


def _put(layout: ItemCollection, item: Mapping[str, AttributeValue]) -> dict[str, Any]:
    (partition_name,) = layout.key
    # The condition is on the partition key. In a table without a sort key every item lacks that attribute, so a
    # condition on it would hold, and the put would replace the item: a whole session of langchain-community's.
    return {
        "TableName": layout.table_name,
        "Item": item,
        "ConditionExpression": "attribute_not_exists(#partition)",
        "ExpressionAttributeNames": {"#partition": partition_name},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def _batches(layout: ItemCollection, actions: list[dict[str, Any]]) -> list[Request]:
    return [
        batch_write(layout, actions[start : start + MAX_BATCH_WRITE_ITEMS])
        for start in range(0, len(actions), MAX_BATCH_WRITE_ITEMS)
    ]


def _names_in(layout: ItemCollection, *expressions: str) -> dict[str, str]:
    (partition_name,) = layout.key
    own = {"#partition": partition_name, "#sort": layout.sort_key_name, "#body": layout.messages_name}
    return names_in({**_NAMES, **own, "#expiry": layout.expiry_name}, *expressions)


def _range(
    *, before: SortKey | None = None, up_to: SortKey | None = None, only: SortKey | None = None
) -> tuple[str, str]:
    """Return the lower and the upper bound of the sort keys of records and their parts, for a query."""
    low = PREFIX if only is None else str(only)[:-2]
    if last := only or up_to:
        return low, f"{str(last)[:-2]}~"
    return low, f"{PREFIX}~" if before is None else str(before)[:-2]


def _may_have_a_body(tombstone: Record, now: int) -> bool:
    """Return whether a tombstone is damaged: it has an encoding or types, or expires later than any tombstone."""
    has_more = tombstone.encoding or tombstone.types
    return bool(has_more) or not has_passed(tombstone.expiry, now + 2 * TOMBSTONE_SECONDS)
