"""Session keys: joining ids to one text, converting keys from and to attribute values, and checking their size."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TypeAlias

from .attribute_values import MAX_KEY_BYTES, AttributeValue, bytes_of, key_number_text, plain_text, size_of
from .unstorable import Unstorable, with_article

KeyValue: TypeAlias = "str | int | Decimal | bytes"


def join_key(
    key: Mapping[str, KeyValue | tuple[str, ...]], parts: Mapping[str, int] | None = None
) -> dict[str, KeyValue]:
    """Return a key in which each tuple of ids is joined to one text, with ``#`` between the ids.

    ``%`` and ``#`` in an id become ``%25`` and ``%23``. So different tuples never have the same text, and the text of a
    tuple never begins with the id of a different tenant and ``#``. A value that is already text is not changed, and may
    equal the text of a tuple.

    Args:
        key: the key.
        parts: the attributes that must be tuples, each with the required number of ids.

    Raises:
        TypeError: the key is not a mapping, or an id is not text.
        ValueError: an attribute in ``parts`` is not a tuple of the required length.
    """
    if not isinstance(key, Mapping):
        raise TypeError(f"key must map the key attributes to their values, not be {with_article(key)}")
    for name, number in (parts or {}).items():
        if not isinstance(value := key.get(name), tuple) or len(value) != number:
            what = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
            raise ValueError(f"With key_parts={number}, key must have a tuple of {number} ids as {name!r}, not {what}")
    return {name: "#".join(map(escaped, value)) if isinstance(value, tuple) else value for name, value in key.items()}


def escaped(part: object) -> str:
    """Return an id as it stands in a joined key."""
    if not isinstance(part, str):
        raise TypeError(f"The ids that make up a key must be text, not {type(part).__name__}")
    return part.replace("%", "%25").replace("#", "%23")


def split_key(text: str) -> tuple[str, ...]:
    """Return the ids that were joined to the text of a key, such as a tenant's and a session's.

    This is the inverse of giving a tuple in ``key``. Use it on the ``session_id`` of a ``SessionInfo``, which is the
    joined text.

    Raises:
        TypeError: ``text`` is not a str.
        ValueError: ``text`` is not the joined text of any tuple: it has a ``%`` that is not part of ``%25`` or ``%23``.
    """
    if not isinstance(text, str):
        raise TypeError(f"Only text can be split into ids, not {type(text).__name__}")
    ids = tuple(part.replace("%23", "#").replace("%25", "%") for part in text.split("#"))
    if "#".join(map(escaped, ids)) != text:
        raise ValueError(f"{text!r} is not the joined text of a tuple of ids")
    return ids


def encode_key(key: Mapping[str, KeyValue]) -> dict[str, AttributeValue]:
    """Return a primary key as attribute values.

    Raises:
        TypeError: a value is not text, an int, a Decimal or bytes. DynamoDB has no other types for keys.
        ValueError: a number is outside DynamoDB's range or precision, or a text holds surrogates.
    """
    return {name: _encode_key_value(name, value) for name, value in key.items()}


def _encode_key_value(name: str, value: object) -> AttributeValue:
    if not isinstance(value, (str, int, Decimal, bytes)) or isinstance(value, bool):
        raise TypeError(f"The key attribute {name!r} must be a str, int, Decimal or bytes, not {type(value).__name__}")
    try:
        if isinstance(value, (int, Decimal)):
            return {"N": key_number_text(value)}
        return {"S": plain_text(value)} if isinstance(value, str) else {"B": bytes(value)}
    except Unstorable as unstorable:
        raise ValueError(f"The key attribute {name!r} cannot be stored: {unstorable.reason}") from None


def check_key_size(key: Mapping[str, AttributeValue]) -> None:
    """Check that the size of a partition key is within DynamoDB's limits.

    Raises:
        ValueError: the key is empty or longer than 2,048 bytes.
    """
    ((name, value),) = key.items()
    if "N" not in value and not 1 <= size_of(value) <= MAX_KEY_BYTES:
        raise ValueError(f"The key attribute {name!r} must have 1 to {MAX_KEY_BYTES:,} bytes, not {size_of(value):,}")


def decode_key_value(value: AttributeValue) -> KeyValue:
    """Return the value of a key attribute. It is equal to the value that was encoded."""
    ((kind, content),) = value.items()
    if kind == "N":
        number = Decimal(content)
        return int(number) if number == number.to_integral_value() else number
    return bytes_of(content) if kind == "B" else str(content)
