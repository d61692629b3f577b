"""The parts of DynamoDB's expressions that several layouts use. Pure: no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from ._codec.attribute_values import AttributeValue, for_request

# :now is the time at which the request was built. So an item that expires while the SDK retries counts as alive.
ALIVE = "(attribute_not_exists(#expiry) OR NOT attribute_type(#expiry, :number) OR #expiry > :now)"
_PLACEHOLDER = re.compile(r"#\w+")


def time_values(now: int) -> dict[str, AttributeValue]:
    """Return the values in ALIVE, for the time ``now`` in seconds since the epoch."""
    return {":now": number_value(now), ":number": {"S": "N"}}


def number_value(value: int) -> AttributeValue:
    return {"N": str(value)}


def unchanged(placeholder: str, seen: AttributeValue | None) -> tuple[str, dict[str, AttributeValue]]:
    """Return the condition that an attribute still has the value ``seen`` (None for absent).

    The second result is the expression values that the condition needs.
    """
    if seen is None:
        return f"attribute_not_exists({placeholder})", {}
    return f"{placeholder} = :seen", {":seen": for_request(seen)}


def assigned(new: Mapping[str, AttributeValue]) -> tuple[str, dict[str, AttributeValue]]:
    """Return the SET clause that gives attributes new values, by their placeholders.

    The second result is the expression values that the clause needs.
    """
    clause = ", ".join(f"{placeholder} = :{placeholder[1:]}" for placeholder in new)
    return f"SET {clause}", {f":{placeholder[1:]}": value for placeholder, value in new.items()}


def names_in(names: Mapping[str, str], *expressions: str) -> dict[str, str]:
    """Return the names that expressions use. DynamoDB rejects a request that has any others.

    Args:
        names: the attributes' names, by their placeholders.
        expressions: the expressions of one request.
    """
    return {placeholder: names[placeholder] for text in expressions for placeholder in _placeholders_of(text)}


# Cached: a process sends few different expressions, and searching an append's takes 4 µs.
@lru_cache(maxsize=128)
def _placeholders_of(expression: str) -> tuple[str, ...]:
    return tuple(_PLACEHOLDER.findall(expression))
