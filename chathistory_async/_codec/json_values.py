"""JSON values to JSON text and back, without loss; refusals that name the path to the value.

The values are those of JSON's types, and what marks keep exactly (``json_text``). Others take their plain form
(``plain``).
"""

from __future__ import annotations

import marshal
from typing import Any

import orjson

from .format import LANGCHAIN_NAME, Format, decoded, elements, encoded, is_name, parsed
from .json_text import PLAIN_ONLY, BadMark, from_text, to_text
from .plain import Default, Unstorable, first_loss, plain_value


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
    try:
        text = orjson.dumps(value, option=PLAIN_ONLY)
        if _are_identical(value, from_text(text)):
            return text
    except (orjson.JSONEncodeError, ValueError, RecursionError):
        pass
    plain = plain_value(value, default)
    text = to_text(plain)
    if (path := first_loss(plain, from_text(text))) is not None:
        raise Unstorable("it would not read back equal to what it is now", path)
    return text


def _are_identical(value: Any, back: Any) -> bool:
    """Tell whether two values are equal and of the same types throughout, such as 1, 1.0 and True are not.

    Raises:
        ValueError: one holds an object of a class that is not one of Python's own.
    """
    # In C, and so in a sixth of the time that a walk takes. Version 2 is the last one that writes all values in full,
    # where later ones refer back to an object that was there before.
    return marshal.dumps(value, 2) == marshal.dumps(back, 2)


def json_format(name: str = "json") -> Format:
    """Return the format of JSON values, under a name such as that of the framework whose values they are.

    Raises:
        ValueError: the name is not of 1 to 64 lower-case letters, digits, dots, hyphens and underscores, or is that of
            LangChain's messages.
    """
    if not is_name(name):
        text = "format must have 1 to 64 lower-case letters, digits, dots, hyphens or underscores, and not be"
        raise ValueError(f"{text} {LANGCHAIN_NAME!r}: {name!r}")
    return Format(
        name=name,
        encode=_encode,
        decode=_decode,
        decode_array=_decode_array,
        type_of=_type_of,
        begins_turn=_begins_turn,
    )


def _encode(value: object, position: int, default: Default | None = None) -> bytes:
    return encode_value(value, f"values[{position}]", default)


def _decode(text: str | bytes, name: int | str) -> Any:
    return decoded(_value_of, text, name, "value")


def _value_of(text: str | bytes) -> Any:
    return parsed(text, lambda value: value, "a value")


def _decode_array(text: str | bytes) -> list[Any]:
    return parsed(text, elements, "values")


def _type_of(value: object) -> None:
    return None


def _begins_turn(value: object) -> bool:
    return True
