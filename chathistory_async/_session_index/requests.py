"""The session index, without I/O: the functions build request dicts and read response dicts.

A session has one item in the index. The item is in the session's own item collection, under a sort key that no message
has. The transactions that store or remove messages also write the item, so its count agrees with the messages. A sparse
global secondary index holds the item by owner and time of the last append. Items of messages lack both attributes, and
sessions without an owner lack one, so the index does not hold them.

The count is the number of messages, not of records: a record may have several messages. A sweep (``aclear``,
``delete_session``, the trim of ``history_size``) removes messages by BatchWriteItem, outside the transactions that
count. So a sweep first adds its own flag to the set RECOUNT, between its query for a page of messages and their
removal. The count of a session with a flag is not trusted: a reader counts the messages instead. Only a write that
stores a counted number removes flags. Its condition is that REVISION has not changed since the item was read, and the
item is read before the messages are counted. The write removes two kinds of flags:

- flags of sweeps for which the responses to all removals were received before the item was read;
- flags whose lease was over when the item was read. After the lease, no request of the flag's sweep can arrive.

The claim is: without a flag, the count is the number of messages.

1. A transaction that counts keeps the claim true, and changes REVISION.
2. The messages of a page were stored with the session's item, before the page was queried. So there is an item to add
   the flag to. Or the session was deleted since, and the item of a new session with the same id does not count these
   messages.
3. A write that stores a counted number changes REVISION. So between the read of the item and this write, no transaction
   counted and no flag was removed. Messages that were removed in between were removed by sweeps whose flags are still
   there after the write. If no flag is left, the number is right.

A sweep that was cancelled, killed or overtaken leaves its flag. Readers count the messages until the flag's lease is
over. Then the first reader with permission to write stores the number. A session without an item needs no flag, because
nothing counts its messages.

If there are many flags, one flag replaces them, and its lease ends with the last of theirs. So the count may be
distrusted for longer than necessary, but never for a shorter time.

Messages that were stored without an item. An item may be created for a session that already has such messages, and its
count leaves them out. COUNTS_ALL means that there are no such messages, or that they were counted. A count without
COUNTS_ALL is not trusted. COUNTS_ALL is true from the beginning if the writer had read that the session has no
messages. Otherwise the first counting that finds no messages from before the item sets it. If a counting finds such
messages, a sweep or a removal of them may still be in progress that began before there was an item to flag. Then
COUNTS_ALL becomes true once the item is older than TOMBSTONE_SECONDS. An item that a migration creates has the time of
its first message, which is before its own creation. So that item has a flag from the beginning.

Titles and metadata. DETAILS_REVISION is there from the first append on, and each change of the title or the metadata
changes it. The condition of a change is that DETAILS_REVISION has not changed since it was read. So a request that
arrives late changes nothing, not even in a later session with the same id.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import orjson

from .._codec.attribute_values import AttributeValue, bytes_of, for_request, has_passed
from .._codec.json_text import is_unicode
from .._codec.keys import KeyValue, encode_key
from .._item_collection.requests import (
    ALIVE,
    CREATED_AT,
    FORMAT,
    MAX_LIMIT,
    REVISION,
    TOMBSTONE_SECONDS,
    ItemCollection,
    iso,
)
from .._item_collection.sort_keys import SortKey
from .._request import Item, Request
from .._settings import check_names

INDEX_NAME = "SessionsByOwner"
SORT_KEY = "session"
OWNER = "Owner"
LAST_ACTIVE = "LastActive"
MESSAGE_COUNT = "MessageCount"
TITLE = "Title"
METADATA = "Metadata"
DETAILS_REVISION = "DetailsRevision"
RECOUNT = "Recount"
COUNTS_ALL = "CountsAll"
# DynamoDB's limit for the partition key of an index.
MAX_OWNER_BYTES = 2048

# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_CreateTable.html
KEY_SCHEMA = [(OWNER, "HASH"), (LAST_ACTIVE, "RANGE")]
_NEW = f"(attribute_not_exists(#revision) OR NOT {ALIVE})"
_THERE = f"(attribute_exists(#revision) AND {ALIVE})"
# The number of latest changes of the details whose ids are kept. A retry recognizes that its own change was stored,
# unless that many other changes have come after it.
_CHANGES_KNOWN = 4
_LEASE = re.compile(r"([0-9]{1,15})#")
# A flag has 25 bytes, and every append is billed for them.
_MAX_FLAGS = 16
# No session has more messages. A damaged count, which may have 38 digits, is not incremented.
_MAX_COUNT = 10**15

Value = TypeVar("Value")


class DamagedAttribute(ValueError):
    """An attribute of a session's item is missing or malformed. The error text is the attribute's name."""


class StoredSession(NamedTuple):
    """A session's item as it is stored.

    Attributes:
        partition_key: the partition key's attribute value.
        title: the title's attribute value, binary if it is encrypted, or None if there is no title.
        format: the name of the format of the session's values, empty for LangChain's messages.
        metadata: the attribute value with the JSON text, binary if it is encrypted, or None if there is no metadata.
        flagged: whether ``message_count`` is not trusted, so that the messages have to be counted.
    """

    partition_key: AttributeValue
    owner: str | None
    title: AttributeValue | None
    created_at: datetime
    last_active: datetime
    message_count: int
    metadata: AttributeValue | None
    format: str
    flagged: bool


@dataclass(frozen=True, slots=True)
class SessionItem:
    """One session's item in the index: where and how it is stored.

    Attributes:
        layout: how the session's messages are stored.
        owner: the owner of a session that has none yet, or None.
        format: the name of the format of the session's values, empty for LangChain's messages.

    Raises:
        ValueError: ``owner`` is empty or too long, or an attribute of ``layout`` has the name of one of the item's own.
    """

    layout: ItemCollection
    owner: str | None
    format: str = ""

    def __post_init__(self) -> None:
        if self.owner is not None:
            check_owner(self.owner)
        layout = self.layout
        own = (OWNER, LAST_ACTIVE, MESSAGE_COUNT, TITLE, METADATA, DETAILS_REVISION, RECOUNT, COUNTS_ALL)
        keys = (*layout.key, layout.sort_key_name)
        check_names([*keys, layout.messages_name, layout.expiry_name, *own, CREATED_AT, FORMAT, REVISION])

    def count_added(
        self, number: int, first: SortKey, now: int, revision: str, seen: Item | None = None, *, is_first: bool
    ) -> dict[str, Any]:
        """Return the action that counts messages which the same transaction stores.

        The session's item is created if there is none. The item never expires before its messages, and its last
        activity never goes back, even if the writers' clocks differ. The condition fails if

        - the session's values have a different format, or the item's count is damaged;
        - the item has expired;
        - the item expires later or was active later than these messages. The next attempt gives the item as ``seen``,
          and then leaves that attribute unchanged.

        Args:
            number: the number of messages.
            first: the sort key of the first message.
            now: the time, in seconds since the epoch.
            revision: the id of this write.
            seen: the item for which the previous attempt's condition failed, or None.
            is_first: whether the session is known to have no other messages, if it has no item.
        """
        at = iso(first.created_at)
        sets = [
            "#count = if_not_exists(#count, :none) + :added",
            "#created = if_not_exists(#created, :at)",
            "#revision = :revision",
            "#details = if_not_exists(#details, :revision)",
            "#all = if_not_exists(#all, :all)",
        ]
        names = {
            "#count": MESSAGE_COUNT,
            "#created": CREATED_AT,
            "#revision": REVISION,
            "#details": DETAILS_REVISION,
            "#all": COUNTS_ALL,
            "#format": FORMAT,
            "#expiry": self.layout.expiry_name,
        }
        values = {
            ":all": {"BOOL": is_first},
            ":none": _number(0),
            ":added": _number(number),
            ":at": {"S": at},
            ":revision": {"S": revision},
            ":least": _number(-_MAX_COUNT),
            ":most": _number(_MAX_COUNT),
        }
        # A damaged count is not incremented.
        countable = "(attribute_not_exists(#revision) OR #count BETWEEN :least AND :most)"
        change, conditions = "", [ALIVE if seen is None else _THERE, countable, self._of_this_format()]
        if self.format:
            sets.append("#format = :format")
            values[":format"] = {"S": self.format}
        if self.owner is not None:
            sets.append("#owner = if_not_exists(#owner, :owner)")
            names["#owner"] = OWNER
            values[":owner"] = {"S": self.owner}
        if seen is None or _text(seen, LAST_ACTIVE) <= at:
            sets.append("#active = :at")
            conditions.append("(attribute_not_exists(#active) OR #active <= :at)")
            names["#active"] = LAST_ACTIVE
        if self.layout.ttl is None:
            change = " REMOVE #expiry"
        elif seen is None or has_passed(seen.get(self.layout.expiry_name), now + self.layout.ttl):
            sets.append("#expiry = :expiry")
            conditions.append("(attribute_not_exists(#revision) OR #expiry <= :expiry)")
            values[":expiry"] = _number(now + self.layout.ttl)
        return {
            "Update": self._update(f"SET {', '.join(sets)}{change}", " AND ".join(conditions), names, values | _at(now))
        }

    def begin_anew(
        self,
        number: int,
        first: SortKey,
        now: int,
        revision: str,
        expiry: str | None = None,
        *,
        is_first: bool,
        flag: str | None = None,
    ) -> dict[str, Any]:
        """Return the action that begins the item anew. The condition fails if there is an item that has not expired.

        Only the flags of an expired item are kept.

        Args:
            number: the number of messages that the same transaction stores.
            first: the sort key of the first message.
            now: the time, in seconds since the epoch.
            revision: the id of this write.
            expiry: when the item expires, in seconds since the epoch, or None to expire with messages written now.
            is_first: whether the session is known to have no other messages.
            flag: a flag to add. It is needed if the session may have other messages, and the first message's time does
                not show when the item was created.
        """
        sets = {"#count": ":added", "#created": ":at", "#active": ":at", "#revision": ":new", "#details": ":new"}
        sets["#all"] = ":all"
        names = {
            "#count": MESSAGE_COUNT,
            "#created": CREATED_AT,
            "#active": LAST_ACTIVE,
            "#revision": REVISION,
            "#details": DETAILS_REVISION,
            "#title": TITLE,
            "#metadata": METADATA,
            "#owner": OWNER,
            "#all": COUNTS_ALL,
            "#format": FORMAT,
            "#expiry": self.layout.expiry_name,
        }
        values: dict[str, AttributeValue] = {":added": _number(number), ":all": {"BOOL": is_first}}
        values |= {":at": {"S": iso(first.created_at)}, ":new": {"S": revision}}
        removed = {"#title", "#metadata", "#owner", "#format", "#expiry"}
        if self.format:
            sets["#format"], values[":format"] = ":format", {"S": self.format}
        if self.owner is not None:
            sets["#owner"], values[":owner"] = ":owner", {"S": self.owner}
        if expiry is not None or self.layout.ttl is not None:
            sets["#expiry"], values[":expiry"] = ":expiry", {"N": expiry or str(now + (self.layout.ttl or 0))}
        change = ", ".join(f"{name} = {value}" for name, value in sets.items())
        change = f"SET {change} REMOVE {', '.join(sorted(removed - set(sets)))}"
        if flag is not None:
            change += " ADD #recount :flags"
            names["#recount"], values[":flags"] = RECOUNT, {"SS": [flag]}
        return {"Update": self._update(change, _NEW, names, values | _at(now))}

    def count_on(self, change: int, now: int, revision: str, expiry: str | None = None) -> dict[str, Any]:
        """Return the action that counts messages which the same transaction removes, or stores before all others.

        The condition fails if

        - the session has no item, or the item has expired;
        - ``expiry`` is given and is not later than the item's own;
        - messages are stored and the session's values have a different format.

        Args:
            change: the number of messages, negative for messages that are removed.
            now: the time, in seconds since the epoch.
            revision: the id of this write.
            expiry: the item's new expiry, in seconds since the epoch, or None to leave it.
        """
        sets, condition = "SET #count = #count + :change, #revision = :revision", _THERE
        if change > 0:
            condition = f"{condition} AND {self._of_this_format()}"
        values = {":change": _number(change), ":revision": {"S": revision}} | _at(now)
        names = {"#count": MESSAGE_COUNT, "#revision": REVISION, "#expiry": self.layout.expiry_name}
        if change > 0:
            names["#format"] = FORMAT
            values |= {":format": {"S": self.format}} if self.format else {}
        if self.owner is not None:
            sets = f"{sets}, #owner = if_not_exists(#owner, :owner)"
            names["#owner"], values[":owner"] = OWNER, {"S": self.owner}
        if expiry is not None:
            sets, condition = f"{sets}, #expiry = :expiry", f"{condition} AND #expiry < :expiry"
            values[":expiry"] = {"N": expiry}
        return {"Update": self._update(sets, condition, names, values)}

    def extend(self, now: int) -> Request | None:
        """Return the request that extends an item's expiry to that of messages written now; None if these never expire.

        The condition fails if the session has no item, or if the item has expired or expires as late or later.
        """
        if self.layout.ttl is None:
            return None
        update = self._update(
            "SET #expiry = :expiry",
            f"{_THERE} AND #expiry < :expiry",
            {"#revision": REVISION, "#expiry": self.layout.expiry_name},
            {":expiry": _number(now + self.layout.ttl)} | _at(now),
        )
        return Request("update_item", update)

    def flag(self, flag: str) -> Request:
        """Return the request that adds a flag, so that readers count the messages.

        The condition fails if the session has no item, or if its item has 16 flags, which have to be merged first.
        """
        return self._update_there(
            "ADD #recount :flags",
            "(attribute_not_exists(#recount) OR (attribute_type(#recount, :set) AND size(#recount) < :most))",
            {"#recount": RECOUNT},
            {":flags": {"SS": [flag]}, ":set": {"S": "SS"}, ":most": _number(_MAX_FLAGS)},
        )

    def merge_flags(self, seen: Item, now: int) -> Request:
        """Return the request that replaces all flags by one, whose lease ends with the last of theirs.

        The condition fails if the flags have changed since the item was seen. The new flag belongs to no sweep, because
        no sweep knows when the other sweeps have finished. So the flag stays until its lease is over.
        """
        flags: list[str] = seen[RECOUNT]["SS"]
        until = max([now, *map(_lease_of, set(flags) - flags_over(seen, now))])
        same, seen_values = _same("#recount", seen[RECOUNT])
        return self._update_there(
            "SET #recount = :merged",
            same,
            {"#recount": RECOUNT},
            {":merged": {"SS": [new_flag(until)]}} | seen_values,
        )

    def set_count(self, number: int, seen: Item, flags: Collection[str], revision: str, *, counts_all: bool) -> Request:
        """Return the request that sets the count and removes flags.

        The condition fails if messages were counted since the item was seen, that is, if REVISION has changed.

        Args:
            number: the number of messages that were counted.
            seen: the item, as it was read before the counting.
            flags: the flags to remove.
            revision: the id of this write.
            counts_all: set COUNTS_ALL. If false, it is left unchanged.
        """
        change = "SET #count = :count, #revision = :revision"
        names = {"#count": MESSAGE_COUNT, "#revision": REVISION}
        values: dict[str, AttributeValue] = {":count": _number(number), ":revision": {"S": revision}}
        if counts_all:
            change += ", #all = :all"
            names["#all"], values[":all"] = COUNTS_ALL, {"BOOL": True}
        if flags:
            change += " DELETE #recount :flags"
            names["#recount"], values[":flags"] = RECOUNT, {"SS": sorted(flags)}
        same, seen_values = _same("#revision", seen.get(REVISION))
        return self._update_there(change, same, names, values | seen_values)

    def repair(self, seen: Item, now: int, revision: str) -> Request | None:
        """Return the request that replaces the item's damaged attributes, or None if none is damaged.

        With these attributes damaged, messages cannot be counted in the item, or the item cannot be read. The request
        also adds a flag, so that the messages are counted. A damaged title or metadata is left unchanged.
        """
        damaged = _damaged(seen)
        if not damaged:
            return None
        active = _text(seen, LAST_ACTIVE)
        if LAST_ACTIVE in damaged:
            active = iso(now) if CREATED_AT in damaged else max(iso(now), _text(seen, CREATED_AT))
        repaired: dict[str, AttributeValue] = {
            CREATED_AT: {"S": active},
            LAST_ACTIVE: {"S": active},
            MESSAGE_COUNT: _number(0),
            REVISION: {"S": revision},
            RECOUNT: {"SS": [new_flag(0)]},
        }
        # A flag is added to RECOUNT, unless RECOUNT is not a set of texts and is replaced.
        sets = [name for name in (CREATED_AT, LAST_ACTIVE, MESSAGE_COUNT, RECOUNT) if name in damaged] + [REVISION]
        change = f"SET {', '.join(f'#{name} = :{name}' for name in sets)}"
        if RECOUNT not in damaged:
            sets.append(RECOUNT)
            change += f" ADD #{RECOUNT} :{RECOUNT}"
        same, seen_values = _same(f"#{REVISION}", seen.get(REVISION))
        return self._update_there(
            change,
            same,
            {f"#{name}": name for name in sets},
            {f":{name}": repaired[name] for name in sets} | seen_values,
        )

    def set_detail(self, name: str, value: AttributeValue | None, seen: Item, change_id: str, now: int) -> Request:
        """Return the request that sets or removes the title or the metadata.

        The condition fails if the title or the metadata has changed since the item was seen, or the item has expired.

        Args:
            name: TITLE or METADATA.
            value: the new value, or None to remove the attribute.
            seen: the item, on which the value may be based.
            change_id: the id by which ``was_changed_by`` recognizes this change.
            now: the time, in seconds since the epoch.
        """
        change = f"SET #details = :new{', #name = :value' if value is not None else ' REMOVE #name'}"
        changes = " ".join([change_id, *_text(seen, DETAILS_REVISION).split()][:_CHANGES_KNOWN])
        same, seen_values = _same("#details", seen.get(DETAILS_REVISION))
        names = {"#name": name, "#details": DETAILS_REVISION, "#revision": REVISION}
        values = {":new": {"S": changes}} | ({} if value is None else {":value": value}) | seen_values | _at(now)
        update = self._update(change, f"{_THERE} AND {same}", names | {"#expiry": self.layout.expiry_name}, values)
        return Request("update_item", update)

    def get(self) -> Request:
        return Request("get_item", {"TableName": self.layout.table_name, "Key": self._key(), "ConsistentRead": True})

    def delete(self, seen: Item) -> Request:
        """Return the request that deletes the item. The condition fails if messages were counted since it was seen."""
        same, seen_values = _same("#revision", seen.get(REVISION))
        parameters = {
            "TableName": self.layout.table_name,
            "Key": self._key(),
            "ConditionExpression": same,
            "ExpressionAttributeNames": {"#revision": REVISION},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if seen_values:
            parameters["ExpressionAttributeValues"] = seen_values
        return Request("delete_item", parameters)

    def _of_this_format(self) -> str:
        """Return the condition that the session's values have this format, or that it has no item."""
        has_it = "#format = :format" if self.format else "attribute_not_exists(#format)"
        return f"(attribute_not_exists(#revision) OR {has_it})"

    def _key(self) -> dict[str, AttributeValue]:
        return {**self.layout.key, self.layout.sort_key_name: {"S": SORT_KEY}}

    def _update_there(
        self, change: str, condition: str, names: Mapping[str, str], values: Mapping[str, AttributeValue]
    ) -> Request:
        """Return a request that changes an existing item only.

        The existence is a condition too, because a condition that an attribute is absent holds for a deleted item.
        """
        (partition_name,) = self.layout.key
        condition = f"attribute_exists(#partition) AND {condition}"
        return Request("update_item", self._update(change, condition, {**names, "#partition": partition_name}, values))

    def _update(
        self, change: str, condition: str, names: Mapping[str, str], values: Mapping[str, AttributeValue]
    ) -> dict[str, Any]:
        return {
            "TableName": self.layout.table_name,
            "Key": self._key(),
            "UpdateExpression": change,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }


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
        flagged=RECOUNT in item or not counts_all(item),
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


def new_flag(until: int) -> str:
    """Return a new flag whose lease is over at ``until``, in seconds since the epoch."""
    return f"{until}#{secrets.token_urlsafe(6)}"


def flags_over(item: Item, now: int) -> set[str]:
    """Return the flags whose lease is over, malformed ones, and those whose lease is impossibly long."""
    flags: list[str] = item.get(RECOUNT, {}).get("SS", [])
    return {flag for flag in flags if not now < _lease_of(flag) <= now + 2 * TOMBSTONE_SECONDS}


def counts_all(item: Item) -> bool:
    """Return whether messages from before the session had its item are counted, or there were none."""
    return bool(item.get(COUNTS_ALL) == {"BOOL": True})


def may_count_all(item: Item, earliest: SortKey | None, now: int) -> bool:
    """Return whether COUNTS_ALL may be set with a counted number.

    It may if no messages from before the item were found, or if no sweep or removal that began before the item existed
    can still be in progress.

    Args:
        item: the item, as it was read before the counting.
        earliest: the sort key of the first record that was counted, or None if there was none.
        now: the time, in seconds since the epoch.
    """
    created_at = _text(item, CREATED_AT)
    return earliest is None or created_at <= iso(earliest.created_at) or created_at < iso(now - TOMBSTONE_SECONDS)


def was_changed_by(item: Item, change_id: str) -> bool:
    """Return whether a change is among the latest changes of the title and the metadata."""
    return change_id in _text(item, DETAILS_REVISION).split()


def is_alive(layout: ItemCollection, item: Item, now: int) -> bool:
    return not has_passed(item.get(layout.expiry_name), now)


def is_sessions_item(layout: ItemCollection, item: Item) -> bool:
    """Return whether an item of the index is a session's. Other applications may put an owner into other items."""
    return bool(item.get(layout.sort_key_name) == {"S": SORT_KEY})


def query_sessions(
    layout: ItemCollection,
    owner: str,
    *,
    limit: int,
    start_key: Mapping[str, AttributeValue] | None,
    format_name: str | None = None,
) -> Request:
    """Return the request for a page of an owner's sessions, including expired ones, the last active first.

    Args:
        layout: how the table's sessions are stored.
        owner: the owner.
        limit: the highest number of items to read, including items of other formats.
        start_key: the ``LastEvaluatedKey`` of the page before, or None for the first page.
        format_name: the format of the sessions to return, empty for LangChain's messages, or None for all formats.
    """
    parameters: dict[str, Any] = {
        "TableName": layout.table_name,
        "IndexName": INDEX_NAME,
        "KeyConditionExpression": "#owner = :owner",
        "ExpressionAttributeNames": {"#owner": OWNER},
        "ExpressionAttributeValues": {":owner": {"S": owner}},
        "ScanIndexForward": False,
        "Limit": min(limit, MAX_LIMIT),
    }
    if format_name is not None:
        parameters["FilterExpression"] = "#format = :format" if format_name else "attribute_not_exists(#format)"
        parameters["ExpressionAttributeNames"]["#format"] = FORMAT
        if format_name:
            parameters["ExpressionAttributeValues"][":format"] = {"S": format_name}
    return Request("query", parameters if start_key is None else parameters | {"ExclusiveStartKey": start_key})


def cursor_of(layout: ItemCollection, item: Item) -> str:
    """Return the cursor of a session. The next page begins after the session."""
    (partition_name,) = layout.key
    ((kind, content),) = item[partition_name].items()
    text = content if isinstance(content, str) else base64.b64encode(content).decode()
    return base64.urlsafe_b64encode(orjson.dumps([item[LAST_ACTIVE]["S"], kind, text])).decode().rstrip("=")


def start_key_of(layout: ItemCollection, owner: str, cursor: str) -> dict[str, AttributeValue]:
    """Return the key in the index that a cursor stands for.

    Raises:
        ValueError: ``cursor`` is not a cursor.
    """
    (partition_name,) = layout.key
    try:
        last_active, kind, text = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        key = encode_key({partition_name: _KEY_VALUES[kind](text)})
        named = _is_text(last_active) and _is_text(text)
    except (ValueError, TypeError, KeyError, ArithmeticError):
        named = False
    if not named:
        # The cursor comes from a client, which may have made it up.
        raise ValueError(f"{cursor!r} is not a cursor of list_sessions")
    return {OWNER: {"S": owner}, LAST_ACTIVE: {"S": last_active}, **key, layout.sort_key_name: {"S": SORT_KEY}}


_KEY_VALUES: dict[str, Callable[[str], KeyValue]] = {"S": str, "N": Decimal, "B": bytes_of}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def check_owner(owner: object) -> None:
    """Check that an owner can be the partition key of the index.

    Raises:
        ValueError: it is not text of 1 to 2,048 bytes in UTF-8.
    """
    if not isinstance(owner, str) or not is_unicode(owner) or not 1 <= len(owner.encode()) <= MAX_OWNER_BYTES:
        raise ValueError(f"owner must be text of 1 to {MAX_OWNER_BYTES} bytes in UTF-8, not {owner!r}")


def _at(now: int) -> dict[str, AttributeValue]:
    return {":now": _number(now), ":number": {"S": "N"}}


def _number(value: int) -> AttributeValue:
    return {"N": str(value)}


def _text(item: Item, name: str) -> str:
    """Return a text attribute, or an empty text if there is none."""
    text = item.get(name, {}).get("S", "")
    return str(text)


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
    if abs(count) > _MAX_COUNT:
        raise ValueError("the count is out of range")
    return count


def _damaged(item: Item) -> set[str]:
    """Return the names of damaged attributes with which messages cannot be counted or the item cannot be read."""
    damaged = set()
    for name, kind, convert in _NEEDED:
        try:
            _read(item, name, kind, convert)
        except DamagedAttribute:
            damaged.add(name)
    return damaged | ({RECOUNT} if RECOUNT in item and "SS" not in item[RECOUNT] else set())


_NEEDED: list[tuple[str, str, Callable[[str], object]]] = [
    (CREATED_AT, "S", _time),
    (LAST_ACTIVE, "S", _time),
    (MESSAGE_COUNT, "N", _count),
    (REVISION, "S", str),
]


def _lease_of(flag: str) -> int:
    """Return when the lease of a flag is over, in seconds since the epoch, or 0 if the flag is malformed."""
    found = _LEASE.match(flag)
    return int(found[1]) if found else 0


def _same(name: str, seen: AttributeValue | None) -> tuple[str, dict[str, AttributeValue]]:
    """Return the condition that an attribute still has the value ``seen`` (None for absent), and its values."""
    if seen is None:
        return f"attribute_not_exists({name})", {}
    return f"{name} = :seen", {":seen": for_request(seen)}
