"""The keys of sessions: ids joined to one text, keys to attribute values and back, and their size."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TypeAlias

from .attribute_values import MAX_KEY_BYTES, AttributeValue, bytes_of, number_text, plain_text, size_of
from .plain import Unstorable, with_article

KeyValue: TypeAlias = "str | int | Decimal | bytes"


def join_key(
    key: Mapping[str, KeyValue | tuple[str, ...]], parts: Mapping[str, int] | None = None
) -> dict[str, KeyValue]:
    """Return a key with each tuple of ids made one text: the ids with ``#`` between them and none within.

    ``%`` and ``#`` in an id become ``%25`` and ``%23``, so that different tuples never make the same text, and none
    makes a text that begins as another tenant's do. Plain text stays as it is, and may equal what a tuple makes.

    Args:
        key: the key.
        parts: the attributes that have to be tuples, each with the number of its ids.

    Raises:
        TypeError: the key is not a mapping, or an id is not text.
        ValueError: an attribute is not the tuple that it has to be.
    """
    if not isinstance(key, Mapping):
        raise TypeError(f"key must map the key attributes to their values, not be {with_article(key)}")
    for name, number in (parts or {}).items():
        if not isinstance(value := key.get(name), tuple) or len(value) != number:
            what = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
            raise ValueError(f"With key_parts={number}, key must have a tuple of {number} ids as {name!r}, not {what}")
    return {name: "#".join(map(_escaped, value)) if isinstance(value, tuple) else value for name, value in key.items()}


def _escaped(part: object) -> str:
    if not isinstance(part, str):
        raise TypeError(f"The ids that make up a key must be text, not {type(part).__name__}")
    return part.replace("%", "%25").replace("#", "%23")


def split_key(text: str) -> tuple[str, ...]:
    """Return the ids of which the text of a key was joined, such as a tenant's and a session's.

    The inverse of what is done with a tuple in ``key``: for the ``session_id`` of a ``SessionInfo``, which is joined.

    Raises:
        TypeError: it is not text.
        ValueError: no tuple is joined to it: it has a ``%`` that is not part of ``%25`` or ``%23``.
    """
    if not isinstance(text, str):
        raise TypeError(f"Only text is joined of ids, not {type(text).__name__}")
    ids = tuple(part.replace("%23", "#").replace("%25", "%") for part in text.split("#"))
    if "#".join(map(_escaped, ids)) != text:
        raise ValueError(f"{text!r} is not what a tuple of ids is joined to")
    return ids


def encode_key(key: Mapping[str, KeyValue]) -> dict[str, AttributeValue]:
    """Return a primary key as attribute values.

    Raises:
        TypeError: a value is not text, an int, a Decimal or bytes: DynamoDB has no other types for keys.
        ValueError: a number is outside DynamoDB's range or precision.
    """
    return {name: _encode_key_value(name, value) for name, value in key.items()}


def _encode_key_value(name: str, value: object) -> AttributeValue:
    if not isinstance(value, (str, int, Decimal, bytes)) or isinstance(value, bool):
        raise TypeError(f"The key attribute {name!r} must be a str, int, Decimal or bytes, not {type(value).__name__}")
    try:
        if isinstance(value, (int, Decimal)):
            return {"N": number_text(value)}
        return {"S": plain_text(value)} if isinstance(value, str) else {"B": bytes(value)}
    except Unstorable as refused:
        raise ValueError(f"The key attribute {name!r} cannot be stored: {refused.reason}") from None


def check_key_size(key: Mapping[str, AttributeValue]) -> None:
    """Refuse a partition key that no table takes.

    Raises:
        ValueError: it is empty or too long.
    """
    ((name, value),) = key.items()
    if "N" not in value and not 1 <= size_of(value) <= MAX_KEY_BYTES:
        raise ValueError(f"The key attribute {name!r} must have 1 to {MAX_KEY_BYTES:,} bytes, not {size_of(value):,}")


def decode_key_value(value: AttributeValue) -> KeyValue:
    """Return the value of a key attribute, as it was given or equal to that."""
    ((kind, content),) = value.items()
    if kind == "N":
        number = Decimal(content)
        return int(number) if number == number.to_integral_value() else number
    return bytes_of(content) if kind == "B" else str(content)
