"""Lossless conversion between JSON values and JSON text. Errors name the path to the refused value.

Values of JSON's types, and of the types that have marks (``json_text``), are kept exactly. Any other value is converted
to its plain form (``plain``).
"""

from __future__ import annotations

import marshal
from dataclasses import replace
from typing import Any

import orjson

from .format import LANGCHAIN_NAME, Format, decoded, elements, encoded, is_name, parsed
from .json_text import PLAIN_ONLY, BadMark, from_text, to_text
from .plain import Default, plain_value
from .unstorable import Unstorable, first_loss


def encode_value(value: object, name: str, default: Default | None = None) -> bytes:
    """Return the JSON text of a value, after checking that the text reads back as the value's plain form.

    Args:
        value: the value.
        name: the value's name in errors.
        default: the function that converts a value without a plain form, or None.

    Raises:
        MessageNotStorableError: the value has no plain form, or would not read back as it. The error text gives the
            path and never the content.
    """
    return encoded(lambda value: _encode_value(value, default), value, name)


def decode_value(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, has a malformed mark, or is nested too deeply.
    """
    try:
        return from_text(text)
    except (RecursionError, BadMark):
        raise ValueError("The JSON text has a malformed mark or is nested too deeply") from None


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
        raise Unstorable("it would not read back as an equal value", path)
    return text


def _are_identical(value: Any, back: Any) -> bool:
    """Return whether two values are equal and have the same types throughout. 1, 1.0 and True are not identical.

    Raises:
        ValueError: a value holds an object of a class that is not built in.
    """
    # marshal is written in C and takes a sixth of the time of a comparison in Python. Version 2 of its format is the
    # last one that writes all values in full: later versions write references to objects that occurred before.
    return marshal.dumps(value, 2) == marshal.dumps(back, 2)


def json_format(name: str = "json") -> Format:
    """Return the format of JSON values.

    Args:
        name: the format's name, such as the name of the framework that the values belong to.

    Raises:
        ValueError: the name does not have 1 to 64 lower-case letters, digits, dots, hyphens or underscores, or is the
            name of the format of LangChain's messages.
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


def format_as_json(name: str) -> Format:
    """Return the format that reads values of any format as JSON values: a LangChain message as its stored dict.

    Raises:
        ValueError: as for ``json_format``.
    """
    return replace(json_format(), name=LANGCHAIN_NAME) if name == LANGCHAIN_NAME else json_format(name)


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
