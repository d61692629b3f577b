"""The session index, pure: request dicts out, response dicts in.

A session has one item in the index, in its own item collection, under a sort key that no message has. It is written in
the transactions that store and remove messages, so that its count is theirs. A sparse global secondary index holds it
by owner and time of the last append: items of messages lack both attributes, sessions without an owner lack one.

The count is of messages, of which a record may have several. A sweep (``aclear``, ``delete_session``, the trim of
``history_size``) removes messages by BatchWriteItem, outside of the transactions that count. So it adds a flag of its
own to the set RECOUNT first, between its query for a page of messages and their removal. The count of a session with a
flag is not believed: who reads it counts the messages. A flag is removed only by a write that stores a number that was
counted, and this write takes place only if REVISION has not changed since the item was read, before the counting. It
removes two kinds of flags: those of sweeps whose removals were all answered before the item was read, and those whose
lease was over by then, after which no request of their sweeps can arrive any more. The claim: without a flag, the count
is the number of messages.

1. A transaction that counts keeps that true, and changes REVISION.
2. A page's messages were stored with the session's item, before the page was queried. So there is an item to put the
   flag into; or the session was deleted since, and one that has begun there anew does not count them.
3. A write that stores a number changes REVISION. So between the reading of the item and this write there was no
   transaction that counts, and no flag was removed. What was removed from the messages meanwhile was removed by sweeps
   whose flags are still there after the write. Where no flag is, the number is right.

A sweep that was cancelled, killed or overtaken leaves its flag. Readers count until its lease is over, and then the
first one that may write stores the number. A session without an item needs no flag: nothing counts its messages.

Many flags are replaced by one that is over when the last of them is. So the count is not believed for longer, never
for shorter.

Messages that were stored without an item. An item may be created for a session that has such messages, which its count
leaves out. COUNTS_ALL says that there are none, or that they were counted. Without it a count is not believed. It is
true from the beginning where the writer had read that the session has no messages, and else from the first counting on
that finds none from before the item. Where it finds some, a sweep or a removal of them that began before there was an
item to flag may still be under way: then COUNTS_ALL becomes true once the item is older than TOMBSTONE_SECONDS. An item
that a migration creates is younger than it says, because its first message is: it has a flag from the beginning.

Titles and metadata. DETAILS_REVISION is there from the first append on, and changes with each of them. A change is made
on condition that it is as it was read. So a request that arrives late changes nothing, not even in another session of
that id.
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
# How many changes of the details are known by their ids: a retry is told from a late one while no more come between.
_CHANGES_KNOWN = 4
_LEASE = re.compile(r"([0-9]{1,15})#")
# Of 25 bytes each, which every append is billed for.
_MAX_FLAGS = 16
# No session has more messages, and a number of 38 digits cannot be counted on.
_MAX_COUNT = 10**15

Value = TypeVar("Value")


class DamagedAttribute(ValueError):
    """An attribute of a session's item is missing, or is not what is stored there; its name."""


class StoredSession(NamedTuple):
    """A session's item as it is stored.

    Attributes:
        partition_key: the partition key's attribute value.
        title: None where there is none; binary where it is encrypted.
        format: the name of its values' format, empty for LangChain's messages.
        metadata: JSON text; None where there is none, binary where it is encrypted.
        flagged: whether the messages have to be counted to know how many there are.
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
    """Where and how one session's item of the index is stored.

    Attributes:
        layout: how its messages are.
        owner: whose it is where it begins, or None.
        format: the name of its values' format, empty for LangChain's messages.

    Raises:
        ValueError: ``owner`` is empty or too long, or an attribute has the name of one of these.
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
        """Count what the same transaction adds, of which this is the first.

        The session's item is created where there is none. The condition fails where its values have another format. It
        never expires before its messages do, and its last activity never goes back, whatever the clocks of its writers
        tell: the condition fails where the item has expired, and where it expires or was active later than these
        messages, which the next attempt leaves so.

        Args:
            number: how many messages.
            first: the first one's sort key.
            now: the time, in seconds since the epoch.
            revision: the id of this write.
            seen: the item at which the attempt before has failed.
            is_first: whether the session is known to have no other messages if it has no item.
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
        # What is damaged is not counted on.
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
        """Begin the session where it has no item, or an expired one, of which nothing but flags is left.

        It expires at ``expiry``, in seconds since the epoch, or when the messages that are written now do. ``is_first``
        says whether it is known to have no other messages. A ``flag`` is needed where it may have some and the first
        message's time does not tell when the item was created.
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
        """Count what the same transaction removes, or puts before what is there.

        Its condition fails where the session has no item, or where ``expiry`` is not later than the item's own.
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
        """Have a session that is there expire no earlier than what is written now; None where that never does."""
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
        """Have the messages counted by whoever wants to know their number.

        Fails where the session has no item, and where its item has so many flags that they have to be merged.
        """
        return self._update_there(
            "ADD #recount :flags",
            "(attribute_not_exists(#recount) OR (attribute_type(#recount, :set) AND size(#recount) < :most))",
            {"#recount": RECOUNT},
            {":flags": {"SS": [flag]}, ":set": {"S": "SS"}, ":most": _number(_MAX_FLAGS)},
        )

    def merge_flags(self, seen: Item, now: int) -> Request:
        """Replace all flags by one that is over when the last of them is, unless they have changed since.

        It is nobody's: nobody knows when the removals of all their sweeps were answered.
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
        """Set the count and remove flags, unless messages were counted since the item was seen."""
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
        """Replace the damaged attributes that keep the item from being counted in and read, None where none is damaged.

        The messages will be counted. A title and metadata that cannot be read are left.
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
        # What is no set of flags takes none.
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
        """Set or remove the title or the metadata, unless either has changed since the item was seen.

        Args:
            name: TITLE or METADATA.
            value: None to remove it.
            seen: the item, on which the value may be based.
            change_id: what ``was_changed_by`` knows this change by.
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
        """Delete the item, unless messages were counted since it was seen."""
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
        """Return the condition that the session's values have this format, where it has any."""
        has_it = "#format = :format" if self.format else "attribute_not_exists(#format)"
        return f"(attribute_not_exists(#revision) OR {has_it})"

    def _key(self) -> dict[str, AttributeValue]:
        return {**self.layout.key, self.layout.sort_key_name: {"S": SORT_KEY}}

    def _update_there(
        self, change: str, condition: str, names: Mapping[str, str], values: Mapping[str, AttributeValue]
    ) -> Request:
        """Change an item that is there: an absent attribute is one of an item that was deleted, too."""
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
    """Read a session's item.

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
        DamagedAttribute: it is damaged.
    """
    return _read(item, FORMAT, "S", _format_name) if FORMAT in item else ""


def new_flag(until: int) -> str:
    """Return a flag whose lease is over at a time, in seconds since the epoch."""
    return f"{until}#{secrets.token_urlsafe(6)}"


def flags_over(item: Item, now: int) -> set[str]:
    """Return the flags whose lease is over, and those that are none."""
    flags: list[str] = item.get(RECOUNT, {}).get("SS", [])
    return {flag for flag in flags if not now < _lease_of(flag) <= now + 2 * TOMBSTONE_SECONDS}


def counts_all(item: Item) -> bool:
    """Tell whether the messages from before the session had its item are counted, or there were none."""
    return bool(item.get(COUNTS_ALL) == {"BOOL": True})


def may_count_all(item: Item, earliest: SortKey | None, now: int) -> bool:
    """Tell whether a number that was counted stays true of the messages from before the session had its item.

    Args:
        item: the item, read before the counting.
        earliest: the first message that was counted, None where there was none.
        now: the time, in seconds since the epoch.
    """
    created_at = _text(item, CREATED_AT)
    return earliest is None or created_at <= iso(earliest.created_at) or created_at < iso(now - TOMBSTONE_SECONDS)


def was_changed_by(item: Item, change_id: str) -> bool:
    """Tell whether a change of the title or the metadata is among the latest ones."""
    return change_id in _text(item, DETAILS_REVISION).split()


def is_alive(layout: ItemCollection, item: Item, now: int) -> bool:
    return not has_passed(item.get(layout.expiry_name), now)


def is_sessions_item(layout: ItemCollection, item: Item) -> bool:
    """Tell whether an item of the index is a session's: others may have put an owner into another one."""
    return bool(item.get(layout.sort_key_name) == {"S": SORT_KEY})


def query_sessions(
    layout: ItemCollection,
    owner: str,
    *,
    limit: int,
    start_key: Mapping[str, AttributeValue] | None,
    format_name: str | None = None,
) -> Request:
    """Read a page of an owner's sessions, expired ones among them, the last active first.

    Args:
        layout: how the table's sessions are stored.
        owner: the owner.
        limit: how many items are read at most, those of other formats among them.
        start_key: the ``LastEvaluatedKey`` of the page before, None for the first page.
        format_name: only sessions of this format, empty for LangChain's messages; None for all.
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
    """Return what the page after a session begins behind."""
    (partition_name,) = layout.key
    ((kind, content),) = item[partition_name].items()
    text = content if isinstance(content, str) else base64.b64encode(content).decode()
    return base64.urlsafe_b64encode(orjson.dumps([item[LAST_ACTIVE]["S"], kind, text])).decode().rstrip("=")


def start_key_of(layout: ItemCollection, owner: str, cursor: str) -> dict[str, AttributeValue]:
    """Return the key in the index that a cursor stands for.

    Raises:
        ValueError: it is not a cursor.
    """
    (partition_name,) = layout.key
    try:
        last_active, kind, text = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        key = encode_key({partition_name: _KEY_VALUES[kind](text)})
        named = _is_text(last_active) and _is_text(text)
    except (ValueError, TypeError, KeyError, ArithmeticError):
        named = False
    if not named:
        # It comes from a client, who may have made it up.
        raise ValueError(f"{cursor!r} is not a cursor of list_sessions")
    return {OWNER: {"S": owner}, LAST_ACTIVE: {"S": last_active}, **key, layout.sort_key_name: {"S": SORT_KEY}}


_KEY_VALUES: dict[str, Callable[[str], KeyValue]] = {"S": str, "N": Decimal, "B": bytes_of}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def check_owner(owner: object) -> None:
    """Refuse what cannot be the partition key of the index."""
    if not isinstance(owner, str) or not is_unicode(owner) or not 1 <= len(owner.encode()) <= MAX_OWNER_BYTES:
        raise ValueError(f"owner must be text of 1 to {MAX_OWNER_BYTES} bytes in UTF-8, not {owner!r}")


def _at(now: int) -> dict[str, AttributeValue]:
    return {":now": _number(now), ":number": {"S": "N"}}


def _number(value: int) -> AttributeValue:
    return {"N": str(value)}


def _text(item: Item, name: str) -> str:
    """Return a text attribute, an empty text where there is none."""
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
        raise ValueError("it names no time zone")
    return time


def _count(digits: str) -> int:
    count = int(digits)
    if abs(count) > _MAX_COUNT:
        raise ValueError("no session has so many messages")
    return count


def _damaged(item: Item) -> set[str]:
    """Return the names of the attributes that keep an item from being counted in and read."""
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
    """Return when the lease of a flag is over, 0 where it is none."""
    found = _LEASE.match(flag)
    return int(found[1]) if found else 0


def _same(name: str, seen: AttributeValue | None) -> tuple[str, dict[str, AttributeValue]]:
    """Return a condition that an attribute is as it was seen, None for absent, and the condition's values."""
    if seen is None:
        return f"attribute_not_exists({name})", {}
    return f"{name} = :seen", {":seen": for_request(seen)}
