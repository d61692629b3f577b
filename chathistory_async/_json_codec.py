"""Messages to JSON text and back, without loss; refusals that name the path to the value.

The text is that of langchain-core's ``message_to_dict``, an object ``{"type", "data"}``. For what JSON has no form, or
none that every reader keeps, there is an object with a single name: ``{"$bytes": base64}``, ``{"$set": [...]}`` and
``{"$int": digits}`` beyond 64 bits. The name of an object that would look like one of these has a ``$`` more.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
from langchain_core.messages import BaseMessage

from ._codec import (
    Encoder,
    Refused,
    Undecodable,
    check_reads_back,
    data_of,
    decoded,
    encode_elements,
    encode_entries,
    encoded,
    encoder_of_subclass,
    plain_text,
    rebuild,
    refuse_tuple,
)

# Of the slow way: Python's stack holds 1,000 calls, of which it takes four a level. orjson alone writes 254 levels.
MAX_NESTING = 200
# Whatever is not of JSON's own types goes the slow way, which knows it or refuses it.
_PLAIN_ONLY = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64
_MAX_DECIMAL_EXPONENT = 308


def encode_json(message: BaseMessage, position: int) -> bytes:
    """Return the JSON text of a message, proved to read back equal to it.

    Args:
        message: the message.
        position: its index in the caller's batch, for the error text.

    Raises:
        MessageNotStorableError: it would not read back equal; the text names the path, never the content.
    """
    return encoded(_encode_json, message, f"messages[{position}]")


def decode_json(text: str | bytes, name: int | str) -> BaseMessage:
    """Return the message of a JSON text.

    Args:
        text: the text; bytes are UTF-8.
        name: the message's index in the stored session, or its id, for the error.

    Raises:
        UndecodableItemError: it is no message that this langchain-core knows.
    """
    return decoded(_decode_json, text, name)


def encode_value(value: object, name: str) -> bytes:
    """Return the JSON text of a value, proved to read back equal to it.

    Args:
        value: what JSON has a form for, or a mark.
        name: what an error calls it.

    Raises:
        MessageNotStorableError: it would not read back equal; the text names the path, never the content.
    """
    return encoded(_encode_value, value, name)


def decode_value(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none.
    """
    try:
        return _loads(text)
    except (RecursionError, Undecodable):
        raise ValueError("It is not JSON text of ours") from None


def _encode_value(value: object) -> bytes:
    text = orjson.dumps(_encode(value, 0))
    if _loads(text) != value:
        raise Refused("it would not read back equal to what it is now")
    return text


def _encode_json(message: BaseMessage) -> bytes:
    data = data_of(message)
    try:
        # orjson makes null of NaN and a list of a tuple, and takes {"$set": []} as it is: the reading back finds them.
        text = orjson.dumps({"type": message.type, "data": data}, option=_PLAIN_ONLY)
        check_reads_back(_decode_json, text, message)
    except (orjson.JSONEncodeError, Refused):
        text = orjson.dumps({"type": _encode(message.type, 0), "data": _encode(data, 0)})
        check_reads_back(_decode_json, text, message)
    return text


def _encode(value: object, level: int) -> Any:
    if value is None:
        return None
    encode = _ENCODERS.get(type(value)) or encoder_of_subclass(_ENCODERS, value)
    return encode(value, level)


def _encode_integer(value: Any, level: int) -> object:
    number = int(value)
    if _MIN_INTEGER <= number < _MAX_INTEGER:
        return number
    try:
        return {"$int": str(number)}
    except ValueError:
        raise Refused("the integer has more digits than Python converts") from None


def _encode_float(value: Any, level: int) -> float:
    if not math.isfinite(value):
        raise Refused(f"JSON has no number for {float(value)}")
    return float(value)


def _encode_decimal(value: Any, level: int) -> object:
    if not value.is_finite():
        raise Refused("JSON has no number for NaN and infinity")
    if value and value.adjusted() > _MAX_DECIMAL_EXPONENT:
        raise Refused("the Decimal is too large for a float")
    number = int(value) if value == value.to_integral_value() else float(value)
    if number != value:
        raise Refused("the Decimal would come back as another number")
    return _encode(number, level)


def _encode_list(value: Any, level: int) -> list[Any]:
    _check_nesting(level)
    return encode_elements(_encode, value, level + 1)


def _encode_dict(value: Any, level: int) -> dict[str, Any]:
    _check_nesting(level)
    entries = encode_entries(_encode, value, level + 1)
    return {f"${name}": entry for name, entry in entries.items()} if _looks_marked(entries) else entries


def _encode_set(value: Any, level: int) -> dict[str, list[Any]]:
    _check_nesting(level)
    return {"$set": [_encode(element, level + 1) for element in value]}


def _check_nesting(level: int) -> None:
    if level >= MAX_NESTING:
        raise Refused(f"it is nested deeper than {MAX_NESTING} levels")


_ENCODERS: dict[type, Encoder] = {
    str: lambda value, level: plain_text(value),
    bool: lambda value, level: value,
    int: _encode_integer,
    float: _encode_float,
    Decimal: _encode_decimal,
    list: _encode_list,
    dict: _encode_dict,
    tuple: refuse_tuple,
    bytes: lambda value, level: {"$bytes": base64.b64encode(value).decode()},
    bytearray: lambda value, level: {"$bytes": base64.b64encode(value).decode()},
    set: _encode_set,
    frozenset: _encode_set,
}


def _decode_json(text: str | bytes) -> BaseMessage:
    try:
        return rebuild(_loads(text))
    except (ValueError, RecursionError):
        pass
    raise Undecodable("it is not the JSON text of a message")


def _loads(text: str | bytes) -> Any:
    # The one character first, which is found several times as fast as the two are.
    marked = ("$" in text and '"$' in text) if isinstance(text, str) else (b"$" in text and b'"$' in text)
    # The standard library's parser takes several times as long, and tells of each object when it is complete.
    return json.loads(text, object_hook=_unmarked) if marked else orjson.loads(text)


def _unmarked(value: dict[str, Any]) -> Any:
    if not _looks_marked(value):
        return value
    ((mark, content),) = value.items()
    if mark not in _DECODERS:
        return {mark[1:]: content}
    try:
        return _DECODERS[mark](content)
    except (ValueError, TypeError):
        raise Undecodable(f"it has a {mark} of another form") from None


def _looks_marked(value: dict[str, Any]) -> bool:
    return len(value) == 1 and _MARK.fullmatch(next(iter(value))) is not None


_MARK = re.compile(r"\$+(bytes|set|int)")
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$bytes": lambda content: base64.b64decode(content, validate=True),
    "$set": set,
    "$int": int,
}
