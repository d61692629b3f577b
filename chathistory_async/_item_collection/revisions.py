"""The revision of a record: the ids of its latest changes, which show whether a change was stored. Pure: no I/O.

A record is changed on condition that its REVISION has not changed. REVISION holds the ids of the record's latest
changes, the latest one first. Each change has its own id, so no revision ever recurs, and a request that arrives late
changes nothing. If a response was lost, the revision shows whether the change was stored. The change was stored if its
id is in the revision. The change was not stored if its id is missing, while the id of the change before it is there
(or, if there was none, while no id has been dropped yet). In any other case the outcome is unknown. The tombstone of a
removal keeps the revision, so it shows the same. The id of a replacement ends with the position of the replaced value,
because a migration compares only values that were not replaced.
"""

from __future__ import annotations

from typing import Literal

from .._codec.attribute_values import AttributeValue
from .._request import Item
from .layout import CREATED_AT, REMOVED_BY, REVISION
from .records import Record

# How many change ids a record keeps. After a lost response, the outcome is known if fewer changes have followed.
CHANGES_KNOWN = 16


def id_of_replacement(token: str, position: int) -> str:
    """Return the id of a change that replaces the value at a position."""
    return f"{token}.{position:x}"


def may_be_replaced(revision: AttributeValue | None, position: int) -> bool:
    """Return whether the value at a position may have been replaced, according to the record's revision."""
    if revision is None:
        return False
    changes = _changes(revision)
    return not 1 <= len(changes) < CHANGES_KNOWN or any(change.endswith(f".{position:x}") for change in changes)


def revision_after(change_id: str, stored: Record) -> AttributeValue:
    """Return the revision of a stored record after a change."""
    return {"S": " ".join([change_id, *_changes(stored.revision)][:CHANGES_KNOWN])}


def outcome_of(change_id: str, stored: Record, found: Item | None) -> Literal["stored", "not stored", "unknown"]:
    """Return whether a refused change was stored by an earlier request.

    Args:
        change_id: the id of the change.
        stored: the record as it was read before the change.
        found: the item that is stored under the record's sort key now, or None if there is none.
    """
    if found is None:
        return "unknown"
    changes, before = _changes(found.get(REVISION)), _changes(stored.revision)
    if change_id in changes or change_id == found.get(REMOVED_BY, {}).get("S"):
        return "stored"
    # A sweep's tombstone keeps neither CREATED_AT nor the revision.
    is_all_told = CREATED_AT in found and (before[0] in changes if before else len(changes) < CHANGES_KNOWN)
    return "not stored" if is_all_told else "unknown"


def _changes(revision: AttributeValue | None) -> list[str]:
    text = (revision or {}).get("S")
    return text.split() if isinstance(text, str) else []
