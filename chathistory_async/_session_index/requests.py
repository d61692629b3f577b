"""The writes of a session's item in the index, as request dicts. Pure: no I/O.

A session has one item in the index. The item is in the session's own item collection, under a sort key that no message
has. The transactions that store or remove messages also write the item, so its count agrees with the messages (see
``flags`` for when the count is exact). A sparse global secondary index holds the item by owner and time of the last
append (see ``owner_index``).

Titles and metadata. DETAILS_REVISION is there from the first append on, and each change of the title or the metadata
changes it. The condition of a change is that DETAILS_REVISION has not changed since it was read. So a request that
arrives late changes nothing, not even in a later session with the same id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .._codec.attribute_values import AttributeValue, has_passed
from .._expressions import ALIVE, assigned, names_in, number_value, time_values, unchanged
from .._item_collection.layout import CREATED_AT, FORMAT, REVISION, ItemCollection, iso
from .._item_collection.requests import Together
from .._item_collection.sort_keys import SortKey
from .._request import Item, Request
from .._settings import check_names
from .flags import MAX_FLAGS, merged_flag, new_flag
from .owner_index import check_owner
from .stored import (
    COUNTS_ALL,
    DETAILS_REVISION,
    LAST_ACTIVE,
    MAX_COUNT,
    MESSAGE_COUNT,
    METADATA,
    MORE_VALUE_IDS,
    OWNER,
    RECOUNT,
    SORT_KEY,
    TITLE,
    VALUE_IDS,
    VALUE_IDS_AT,
    damaged_in,
    text_in,
)

_NAMES = {
    "#owner": OWNER,
    "#active": LAST_ACTIVE,
    "#count": MESSAGE_COUNT,
    "#title": TITLE,
    "#metadata": METADATA,
    "#details": DETAILS_REVISION,
    "#recount": RECOUNT,
    "#all": COUNTS_ALL,
    "#created": CREATED_AT,
    "#format": FORMAT,
    "#revision": REVISION,
    "#ids": VALUE_IDS,
    "#ids_at": VALUE_IDS_AT,
    "#more_ids": MORE_VALUE_IDS,
}
_PLACEHOLDERS = {name: placeholder for placeholder, name in _NAMES.items()}
_DETAILS = {TITLE: "#title", METADATA: "#metadata"}
_NEW = f"(attribute_not_exists(#revision) OR NOT {ALIVE})"
_THERE = f"(attribute_exists(#revision) AND {ALIVE})"
# A damaged count is not incremented.
_COUNTABLE = "(attribute_not_exists(#revision) OR #count BETWEEN :least AND :most)"
# The attributes that a session's item may lack.
_NOT_IN_EACH = {"#title", "#metadata", "#owner", "#format", "#expiry", "#ids", "#ids_at", "#more_ids"}
# The number of latest changes of the details whose ids are kept. A retry recognizes that its own change was stored,
# unless that many other changes have come after it.
_CHANGES_KNOWN = 4


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
        keys = (*layout.key, layout.sort_key_name)
        check_names([*keys, layout.messages_name, layout.expiry_name, *_NAMES.values()])

    def count_added(
        self,
        number: int,
        first: SortKey,
        now: int,
        revision: str,
        seen: Item | None = None,
        *,
        is_first: bool,
        together: Together | None = None,
    ) -> dict[str, Any]:
        """Return the action that counts messages which the same transaction stores.

        The session's item is created if there is none. The item never expires before its messages, and its last
        activity never goes back, even if the writers' clocks differ. The condition fails if

        - the session's values have a different format, or the item's count is damaged;
        - the item has expired;
        - the item expires later or was active later than these messages. The next attempt gives the item as ``seen``,
          and then leaves that attribute unchanged;
        - the item has other texts than ``together`` has seen.

        Args:
            number: the number of messages.
            first: the sort key of the first message.
            now: the time, in seconds since the epoch.
            revision: the id of this write.
            seen: the item for which the previous attempt's condition failed, or None.
            is_first: whether the session is known to have no other messages, if it has no item.
            together: what else this write sets, and what it must find, or None.
        """
        at = iso(first.created_at)
        conditions = [ALIVE if seen is None else _THERE, _COUNTABLE, self._of_this_format()]
        sets = [
            "#count = if_not_exists(#count, :none) + :added",
            "#created = if_not_exists(#created, :at)",
            "#revision = :revision",
            "#all = if_not_exists(#all, :all)",
        ]
        values: dict[str, AttributeValue] = {
            ":all": {"BOOL": is_first},
            ":none": number_value(0),
            ":added": number_value(number),
            ":at": {"S": at},
            ":revision": {"S": revision},
            ":least": number_value(-MAX_COUNT),
            ":most": number_value(MAX_COUNT),
        }
        if together is None or DETAILS_REVISION not in together.new:
            sets.append("#details = if_not_exists(#details, :revision)")
        if together is not None:
            _add_together(together, sets, conditions, values)
        if self.format:
            sets.append("#format = :format")
            values[":format"] = {"S": self.format}
        if self.owner is not None:
            sets.append("#owner = if_not_exists(#owner, :owner)")
            values[":owner"] = {"S": self.owner}
        if seen is None or text_in(seen, LAST_ACTIVE) <= at:
            sets.append("#active = :at")
            conditions.append("(attribute_not_exists(#active) OR #active <= :at)")
        ttl = self.layout.ttl
        if ttl is not None and (seen is None or has_passed(seen.get(self.layout.expiry_name), now + ttl)):
            sets.append("#expiry = :expiry")
            conditions.append("(attribute_not_exists(#revision) OR #expiry <= :expiry)")
            values[":expiry"] = number_value(now + ttl)
        change = f"SET {', '.join(sets)}{' REMOVE #expiry' if ttl is None else ''}"
        return {"Update": self._update(change, " AND ".join(conditions), values | time_values(now))}

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
        together: Together | None = None,
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
            together: what else this write sets, or None. Its ``seen`` texts must be None: this session has no item yet.
        """
        at = {"S": iso(first.created_at)}
        new: dict[str, AttributeValue] = {
            "#count": number_value(number),
            "#created": at,
            "#active": at,
            "#revision": {"S": revision},
            "#details": {"S": revision},
            "#all": {"BOOL": is_first},
        }
        if self.format:
            new["#format"] = {"S": self.format}
        if self.owner is not None:
            new["#owner"] = {"S": self.owner}
        if expiry is not None or self.layout.ttl is not None:
            new["#expiry"] = {"N": expiry or str(now + (self.layout.ttl or 0))}
        if together is not None:
            new |= {_PLACEHOLDERS[name]: value for name, value in together.new.items()}
        change, values = assigned(new)
        absent = _NOT_IN_EACH - new.keys()
        change = f"{change} REMOVE {', '.join(sorted(absent))}"
        if flag is not None:
            change, values[":flags"] = f"{change} ADD #recount :flags", {"SS": [flag]}
        return {"Update": self._update(change, _NEW, values | time_values(now))}

    def count_on(
        self, change: int, now: int, revision: str, expiry: str | None = None, *, never_expires: bool = False
    ) -> dict[str, Any]:
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
            never_expires: whether the item must not expire, because messages that are stored never do.
        """
        sets, conditions = ["#count = #count + :change", "#revision = :revision"], [_THERE]
        values: dict[str, AttributeValue] = {":change": number_value(change), ":revision": {"S": revision}}
        if change > 0:
            conditions.append(self._of_this_format())
            values |= {":format": {"S": self.format}} if self.format else {}
        if self.owner is not None:
            sets.append("#owner = if_not_exists(#owner, :owner)")
            values[":owner"] = {"S": self.owner}
        if expiry is not None:
            sets.append("#expiry = :expiry")
            conditions.append("#expiry < :expiry")
            values[":expiry"] = {"N": expiry}
        update = f"SET {', '.join(sets)}{' REMOVE #expiry' if never_expires else ''}"
        return {"Update": self._update(update, " AND ".join(conditions), values | time_values(now))}

    def extend(self, now: int) -> Request | None:
        """Return the request that extends an item's expiry to that of messages written now; None if these never expire.

        The condition fails if the session has no item, or if the item has expired or expires as late or later.
        """
        if self.layout.ttl is None:
            return None
        update = self._update(
            "SET #expiry = :expiry",
            f"{_THERE} AND #expiry < :expiry",
            {":expiry": number_value(now + self.layout.ttl)} | time_values(now),
        )
        return Request("update_item", update)

    def flag(self, flag: str) -> Request:
        """Return the request that adds a flag, so that readers count the messages.

        The condition fails if the session has no item, or if its item has 16 flags, which have to be merged first. The
        response has the item.
        """
        request = self._update_there(
            "ADD #recount :flags",
            "(attribute_not_exists(#recount) OR (attribute_type(#recount, :set) AND size(#recount) < :most))",
            {":flags": {"SS": [flag]}, ":set": {"S": "SS"}, ":most": number_value(MAX_FLAGS)},
        )
        request.parameters["ReturnValues"] = "ALL_NEW"
        return request

    def merge_flags(self, seen: Item, now: int) -> Request:
        """Return the request that replaces all flags by one: see ``flags``.

        The condition fails if the flags have changed since the item was seen. The new flag belongs to no sweep, because
        no sweep knows when the other sweeps have finished. So the flag stays until its lease is over.
        """
        same, seen_values = unchanged("#recount", seen[RECOUNT])
        merged = {":merged": {"SS": [merged_flag(seen, now)]}}
        return self._update_there("SET #recount = :merged", same, merged | seen_values)

    def forget_ids(self, seen: Item, text: str) -> Request:
        """Return the request that removes the latest ids of values, and sets VALUE_IDS_AT to a new text.

        The condition fails if VALUE_IDS_AT has changed since the item was seen.
        """
        same, seen_values = unchanged("#ids_at", seen[VALUE_IDS_AT])
        return self._update_there("SET #ids_at = :text REMOVE #ids", same, {":text": {"S": text}} | seen_values)

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
        new: dict[str, AttributeValue] = {"#count": number_value(number), "#revision": {"S": revision}}
        if counts_all:
            new["#all"] = {"BOOL": True}
        change, values = assigned(new)
        if flags:
            change, values[":flags"] = f"{change} DELETE #recount :flags", {"SS": sorted(flags)}
        same, seen_values = unchanged("#revision", seen.get(REVISION))
        return self._update_there(change, same, values | seen_values)

    def repair(self, seen: Item, now: int, revision: str) -> Request | None:
        """Return the request that replaces the item's damaged attributes, or None if none is damaged.

        With these attributes damaged, messages cannot be counted in the item, or the item cannot be read. The request
        also adds a flag, so that the messages are counted. A damaged title or metadata is left unchanged.
        """
        damaged = damaged_in(seen)
        if not damaged:
            return None
        active = text_in(seen, LAST_ACTIVE)
        if LAST_ACTIVE in damaged:
            active = iso(now) if CREATED_AT in damaged else max(iso(now), text_in(seen, CREATED_AT))
        flags: AttributeValue = {"SS": [new_flag(0)]}
        repaired: dict[str, AttributeValue] = {
            "#created": {"S": active},
            "#active": {"S": active},
            "#count": number_value(0),
            "#recount": flags,
        }
        new = {name: value for name, value in repaired.items() if _NAMES[name] in damaged}
        change, values = assigned({**new, "#revision": {"S": revision}})
        # A flag is added to RECOUNT, unless RECOUNT is not a set of texts and is replaced.
        if RECOUNT not in damaged:
            change, values[":flags"] = f"{change} ADD #recount :flags", flags
        same, seen_values = unchanged("#revision", seen.get(REVISION))
        return self._update_there(change, same, values | seen_values)

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
        placeholder = _DETAILS[name]
        changes = with_change(change_id, text_in(seen, DETAILS_REVISION))
        change, values = assigned({"#details": {"S": changes}} | ({} if value is None else {placeholder: value}))
        if value is None:
            change = f"{change} REMOVE {placeholder}"
        same, seen_values = unchanged("#details", seen.get(DETAILS_REVISION))
        update = self._update(change, f"{_THERE} AND {same}", values | seen_values | time_values(now))
        return Request("update_item", update)

    def get(self) -> Request:
        key = self.layout.key_of(SORT_KEY)
        return Request("get_item", {"TableName": self.layout.table_name, "Key": key, "ConsistentRead": True})

    def delete(self, seen: Item | None) -> dict[str, Any]:
        """Return the action that deletes the item. The condition fails if messages were counted since it was seen.

        With None for ``seen``, the condition fails if there is an item.
        """
        same, seen_values = unchanged("#revision", (seen or {}).get(REVISION))
        parameters = {
            "TableName": self.layout.table_name,
            "Key": self.layout.key_of(SORT_KEY),
            "ConditionExpression": same,
            "ExpressionAttributeNames": {"#revision": REVISION},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if seen_values:
            parameters["ExpressionAttributeValues"] = seen_values
        return {"Delete": parameters}

    def _of_this_format(self) -> str:
        """Return the condition that the session's values have this format, or that it has no item."""
        has_it = "#format = :format" if self.format else "attribute_not_exists(#format)"
        return f"(attribute_not_exists(#revision) OR {has_it})"

    def _update_there(self, change: str, condition: str, values: Mapping[str, AttributeValue]) -> Request:
        """Return a request that changes an existing item only.

        The existence is a condition too, because a condition that an attribute is absent holds for a deleted item.
        """
        return Request("update_item", self._update(change, f"attribute_exists(#partition) AND {condition}", values))

    def _update(self, change: str, condition: str, values: Mapping[str, AttributeValue]) -> dict[str, Any]:
        (partition_name,) = self.layout.key
        names = {**_NAMES, "#partition": partition_name, "#expiry": self.layout.expiry_name}
        return {
            "TableName": self.layout.table_name,
            "Key": self.layout.key_of(SORT_KEY),
            "UpdateExpression": change,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names_in(names, change, condition),
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }


def _add_together(
    together: Together, sets: list[str], conditions: list[str], values: dict[str, AttributeValue]
) -> None:
    """Add what an append sets together with its record, and what it must find, to the clauses of an update."""
    for name, value in together.new.items():
        placeholder = _PLACEHOLDERS[name]
        sets.append(f"{placeholder} = :new_{placeholder[1:]}")
        values[f":new_{placeholder[1:]}"] = value
    for name, text in together.seen.items():
        placeholder = _PLACEHOLDERS[name]
        if text is None:
            conditions.append(f"attribute_not_exists({placeholder})")
        else:
            conditions.append(f"{placeholder} = :seen_{placeholder[1:]}")
            values[f":seen_{placeholder[1:]}"] = {"S": text}


def with_change(change_id: str, details_revision: str) -> str:
    """Return the DETAILS_REVISION after one more change of the title or the metadata."""
    return " ".join([change_id, *details_revision.split()][:_CHANGES_KNOWN])


def was_changed_by(item: Item, change_id: str) -> bool:
    """Return whether a change is among the latest changes of the title and the metadata."""
    return change_id in text_in(item, DETAILS_REVISION).split()
