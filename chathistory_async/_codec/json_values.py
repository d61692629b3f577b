"""JSON values to JSON text and back, without loss; refusals that name the path to the value."""

from __future__ import annotations

from typing import Any

from .format import encoded
from .json_text import BadMark, from_text, to_text
from .plain import Default, Refused, first_loss, plain_value


def encode_value(value: object, name: str, default: Default | None = None) -> bytes:
    """Return the JSON text of a value, proved to read back as its plain form.

    Args:
        value: the value.
        name: what an error calls it.
        default: what converts a value that has no plain form, None for nothing.

    Raises:
        MessageNotStorableError: it would not read back so; the text names the path, never the content.
    """
    return encoded(lambda value: _encode_value(value, default), value, name)


def decode_value(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none.
    """
    try:
        return from_text(text)
    except (RecursionError, BadMark):
        raise ValueError("It is not JSON text of ours") from None


def _encode_value(value: object, default: Default | None) -> bytes:
    plain = plain_value(value, default)
    text = to_text(plain)
    if (path := first_loss(plain, from_text(text))) is not None:
        raise Refused("it would not read back equal to what it is now", path)
    return text
