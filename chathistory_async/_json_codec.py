"""Messages to JSON text and back, without loss; refusals that name the path to the value.

The text is that of langchain-core's ``message_to_dict``, an object ``{"type", "data"}``. For what JSON has no form, or
none that every reader keeps, there is an object with a single name: ``{"$bytes": base64}``, ``{"$set": [...]}``,
``{"$int": digits}`` beyond 64 bits, and ``{"$dict": {...}}`` around an object that would look like one of these.
"""

from __future__ import annotations

import base64
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

# orjson writes 254 levels and Python's stack holds 1,000 calls, of which the slow way takes four a level.
MAX_NESTING = 200
# Whatever is not of JSON's own types goes the slow way, which knows it or refuses it.
_PLAIN_ONLY = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_MAX_INTEGER = 2**63
_MAX_DECIMAL_EXPONENT = 308


def encode_json(message: BaseMessage, position: int) -> bytes:
    """Return the JSON text of a message, proved to read back equal to it.

    Args:
        message: the message.
        position: its index in the caller's batch, for the error text.

    Raises:
        MessageNotStorableError: it would not read back equal; the text names the path, never the content.
    """
    return encoded(_encode_json, message, position)


def decode_json(text: bytes, position: int) -> BaseMessage:
    """Return the message of a JSON text.

    Args:
        text: the text, in UTF-8.
        position: the message's index in the stored session, for the error text.

    Raises:
        UndecodableItemError: it is no message that this langchain-core knows.
    """
    return decoded(_decode_json, text, position)


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
    if -_MAX_INTEGER <= number < _MAX_INTEGER:
        return number
    try:
        return {"$int": str(number)}
    except ValueError:
        raise Refused("the integer has more digits than Python converts") from None


def _encode_float(value: Any, level: int) -> float:
    if not -float("inf") < value < float("inf"):
        raise Refused(f"JSON has no number for {float(value)}")
    return float(value)


def _encode_decimal(value: Any, level: int) -> object:
    if not value.is_finite() or value.adjusted() > _MAX_DECIMAL_EXPONENT:
        raise Refused(f"JSON has no number for {value}")
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
    return {"$dict": entries} if _is_marked(entries) else entries


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
    set: lambda value, level: {"$set": [_encode(element, level + 1) for element in value]},
    frozenset: lambda value, level: {"$set": [_encode(element, level + 1) for element in value]},
}


def _decode_json(text: bytes) -> BaseMessage:
    try:
        form = orjson.loads(text)
        return rebuild(_decode(form) if b'"$' in text else form)
    except (orjson.JSONDecodeError, RecursionError):
        pass
    raise Undecodable("it is not the JSON text of a message")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(element) for element in value]
    if not isinstance(value, dict):
        return value
    if not _is_marked(value):
        return {name: _decode(element) for name, element in value.items()}
    ((mark, content),) = value.items()
    try:
        return _DECODERS[mark](content)
    except (ValueError, TypeError, AttributeError):
        raise Undecodable(f"it has a {mark} of another form") from None


def _is_marked(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _DECODERS


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$bytes": lambda content: base64.b64decode(content, validate=True),
    "$set": lambda content: {_decode(element) for element in content},
    "$int": int,
    "$dict": lambda content: {name: _decode(element) for name, element in content.items()},
}
