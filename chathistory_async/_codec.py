"""Messages to DynamoDB attribute values and back, without loss; sizes; refusals that name the path to the value.

The stored form of a message is that of langchain-core's ``message_to_dict``, a map ``{"type", "data"}``, which is
also what langchain-community writes.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Iterable, Mapping
from decimal import Context, Decimal, Inexact
from typing import Any, TypeAlias, TypeVar

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
    messages_from_dict,
)
from pydantic import ValidationError

from .errors import MessageNotStorableError, UndecodableItemError

AttributeValue: TypeAlias = dict[str, Any]
Encoder: TypeAlias = Callable[[Any, int], Any]
In = TypeVar("In")
Out = TypeVar("Out")

# DynamoDB's limits: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_ITEM_BYTES = 400 * 1024
MAX_NESTING = 32
_MAX_DIGITS = 38
_EXACT = Context(prec=_MAX_DIGITS, traps=[Inexact])
_MIN_EXPONENT, _MAX_EXPONENT = -130, 125
_MIN_NUMBER = 1e-130
# The list of messages, a message's map and its "data" map lie around every value of a message.
_LEVELS_AROUND_DATA = 3
# From here on a number with few digits may be either an int or a float of another value (10**40 != 1e40).
# Below it each integral float is written with all its digits, so that int() gives back its exact value.
_FIRST_AMBIGUOUS_INTEGER = 10**_MAX_DIGITS


class Refused(Exception):
    """A value that cannot be stored: what is wrong with it, and the path to it, built from the inside out."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path = ""

    def inside(self, step: str) -> Refused:
        self.path = step + self.path
        return self


def encode_message(message: BaseMessage, position: int) -> AttributeValue:
    """Return the attribute value of a message, proved to read back equal to it.

    Args:
        message: the message.
        position: its index in the caller's batch, for the error text.

    Raises:
        MessageNotStorableError: it would not read back equal; the text names the path, never the content.
    """
    return encoded(_encode_message, message, f"messages[{position}]")


def encoded(encode: Callable[[In], Out], value: In, name: str) -> Out:
    """Return what ``encode`` makes of a value, with a refusal turned into an error that names the whole path."""
    try:
        return encode(value)
    except Refused as refused:
        text = f"{name}{refused.path} cannot be stored: {refused.reason}"
    except RecursionError:
        text = f"{name} cannot be stored: it is nested too deeply"
    # Raised outside of the handler, without a context: the original errors' texts (pydantic's above all) hold content.
    raise MessageNotStorableError(text)


def _encode_message(message: BaseMessage) -> AttributeValue:
    data = data_of(message)
    value = {"M": {"type": _encode(message.type, _LEVELS_AROUND_DATA), "data": _encode(data, _LEVELS_AROUND_DATA - 1)}}
    check_reads_back(_message, value, message)
    return value


def data_of(message: BaseMessage) -> dict[str, Any]:
    """Return what ``message_to_dict`` has under "data"."""
    if not isinstance(message, BaseMessage):
        raise Refused(f"{type(message).__name__} is not a langchain_core message")
    try:
        # As message_to_dict() does, but pydantic's warnings would print the values they warn of.
        return message.model_dump(warnings=False)
    except (ValueError, TypeError) as error:
        raise Refused(f"its model_dump() fails with {type(error).__name__}") from None


def check_reads_back(decode: Callable[[Out], BaseMessage], stored: Out, message: BaseMessage) -> None:
    """Refuse a message whose stored form is decoded into anything else."""
    try:
        back = decode(stored)
    except Undecodable as error:
        raise Refused(f"it would not be readable again ({error})") from None
    if type(back) is not type(message):
        raise Refused(f"a {type(message).__name__} would come back as a {type(back).__name__}; convert it first")
    if back != message:
        raise Refused("it would not read back equal to what it is now")


def _encode(value: object, level: int) -> AttributeValue:
    if value is None:
        return {"NULL": True}
    encode = _ENCODERS.get(type(value)) or encoder_of_subclass(_ENCODERS, value)
    encoded_value: AttributeValue = encode(value, level)
    return encoded_value


def _encode_str(value: Any, level: int) -> AttributeValue:
    return {"S": plain_text(value)}


def plain_text(value: str) -> str:
    """Return the text itself, of a subclass of str too."""
    text = value if type(value) is str else str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused("the text holds a lone surrogate, which UTF-8 cannot represent") from None
    return text


def _encode_bool(value: Any, level: int) -> AttributeValue:
    return {"BOOL": value}


def _encode_number(value: Any, level: int) -> AttributeValue:
    # The two common cases, five times as fast: exact by construction.
    if type(value) is int and -_FIRST_AMBIGUOUS_INTEGER < value < _FIRST_AMBIGUOUS_INTEGER:
        return {"N": str(value)}
    if type(value) is float and not value.is_integer() and _MIN_NUMBER <= abs(value) < _FIRST_AMBIGUOUS_INTEGER:
        return {"N": repr(value)}
    text = _number_text(value)
    if _decode_number(text) != value:
        raise Refused(f"the {type(value).__name__} would come back as another number")
    return {"N": text}


def _number_text(value: int | float | Decimal) -> str:
    number = _decimal_of(value)
    if not number.is_finite():
        raise Refused("DynamoDB has no number for NaN and infinity")
    if number and not _MIN_EXPONENT <= number.adjusted() <= _MAX_EXPONENT:
        raise Refused("the number is outside DynamoDB's range (1E-130 to 9.99E+125)")
    try:
        exact = _EXACT.create_decimal(number)
    except Inexact:
        raise Refused(f"the number has more than DynamoDB's {_MAX_DIGITS} digits") from None
    return str(exact)


def _decimal_of(value: int | float | Decimal) -> Decimal:
    if isinstance(value, float):
        if value.is_integer() and abs(value) < _FIRST_AMBIGUOUS_INTEGER:
            return Decimal(int(value))
        return Decimal(float.__repr__(value))
    return Decimal(value)


def _encode_binary(value: Any, level: int) -> AttributeValue:
    return {"B": bytes(value)}


def _encode_set(value: Any, level: int) -> AttributeValue:
    elements = [_encode(element, level + 1) for element in value]
    kinds = {kind for element in elements for kind in element}
    if len(kinds) != 1 or not kinds <= {"S", "N", "B"}:
        raise Refused("DynamoDB has sets of text, of numbers and of bytes only, and none that is empty")
    kind = kinds.pop()
    return {f"{kind}S": [element[kind] for element in elements]}


def _encode_list(value: Any, level: int) -> AttributeValue:
    _check_nesting(level)
    return {"L": encode_elements(_encode, value, level + 1)}


def encode_elements(encode: Encoder, elements: Iterable[object], level: int) -> list[Any]:
    """Encode a list's elements, each with its index in the path of a refusal."""
    results = []
    for index, element in enumerate(elements):
        try:
            results.append(encode(element, level))
        except Refused as refused:
            raise refused.inside(f"[{index}]") from None
    return results


def _encode_map(value: Any, level: int) -> AttributeValue:
    _check_nesting(level)
    if "" in value:
        raise Refused("DynamoDB has no empty names in a map").inside("['']")
    return {"M": encode_entries(_encode, value, level + 1)}


def encode_entries(encode: Encoder, entries: Mapping[Any, object], level: int) -> dict[str, Any]:
    """Encode a dict's values, each with its name in the path of a refusal."""
    results = {}
    for name, element in entries.items():
        try:
            results[_map_key(name)] = encode(element, level)
        except Refused as refused:
            raise refused.inside(_path_step(name)) from None
    return results


def _map_key(name: object) -> str:
    if type(name) is not str:
        raise Refused(f"a map's keys must be text, not {type(name).__name__}")
    return plain_text(name)


def _path_step(name: object) -> str:
    return f".{name}" if isinstance(name, str) and name.isidentifier() else f"[{name!r}]"


def _check_nesting(level: int) -> None:
    if level >= MAX_NESTING - 1:
        raise Refused(f"it is nested deeper than DynamoDB's {MAX_NESTING} levels")


def refuse_tuple(value: Any, level: int) -> AttributeValue:
    raise Refused("a tuple would come back as a list; store a list")


_ENCODERS: dict[type, Encoder] = {
    str: _encode_str,
    bool: _encode_bool,
    int: _encode_number,
    float: _encode_number,
    Decimal: _encode_number,
    list: _encode_list,
    dict: _encode_map,
    tuple: refuse_tuple,
    bytes: _encode_binary,
    bytearray: _encode_binary,
    set: _encode_set,
    frozenset: _encode_set,
}


def encoder_of_subclass(encoders: Mapping[type, Encoder], value: object) -> Encoder:
    """Return the encoder of the type that a value's own type derives from."""
    for known, encoder in encoders.items():
        if isinstance(value, known):
            return encoder
    raise Refused(f"{type(value).__name__} has no stored form; convert it to text, a number, a list or a dict")


class Undecodable(Exception):
    """An attribute value that is not a message; the text says why and holds no content."""


def decode_message(value: AttributeValue, name: int | str) -> BaseMessage:
    """Return the message of an attribute value.

    Args:
        value: as botocore or plain JSON gives it: binary is bytes or base64 text.
        name: its index in the stored list, or its id, for the error.

    Raises:
        UndecodableItemError: it is no message that this langchain-core knows.
    """
    return decoded(_message, value, name)


def decoded(decode: Callable[[Out], BaseMessage], stored: Out, name: int | str) -> BaseMessage:
    """Return what ``decode`` makes of a stored message, with a failure turned into an error that names the message."""
    try:
        return decode(stored)
    except Undecodable as error:
        reason = str(error)
    # Outside of the handler for the same reason as above.
    text = f"stored message {name} cannot be decoded: {reason}"
    raise UndecodableItemError(text, message_id=name if isinstance(name, str) else None)


def _message(value: AttributeValue) -> BaseMessage:
    if "M" not in value:
        raise Undecodable(f"it is of the DynamoDB type {'/'.join(value)}, not a map")
    return rebuild(_decode(value))


def rebuild(form: Any) -> BaseMessage:
    """Return the message of a ``message_to_dict``, as ``messages_from_dict`` would.

    Of most by pydantic's validation alone, in half the time (0.47 to 0.53): the constructors of a message's class
    around it do no more than name what is given as ``content_blocks`` the content.
    """
    try:
        name, data = form["type"], form["data"]
        is_known = type(name) is str and name in _KINDS and type(data) is dict
        if not is_known or "content" not in data or "content_blocks" in data:
            return messages_from_dict([form])[0]
        kind, validate = _KINDS[name]
        message = object.__new__(kind)
        validate(data, self_instance=message)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['type']}" for fault in _faults(error))
        raise Undecodable(f"langchain-core refuses it: {faults}") from None
    except KeyError as error:
        raise Undecodable(f"it has no {error}") from None
    except ValueError:
        raise Undecodable("this langchain-core does not know its type") from None
    except (TypeError, AttributeError) as error:
        raise Undecodable(f"langchain-core fails on it with {type(error).__name__}") from None
    return message


def _is_built_by_validation(kind: type[BaseMessage]) -> bool:
    # All but RemoveMessage, in the langchain-core that is known.
    constructor = list(inspect.signature(kind.__init__).parameters)
    return (
        constructor == ["self", "content", "content_blocks", "kwargs"]
        and kind.__new__ is object.__new__
        and hasattr(kind, "__pydantic_validator__")
    )


_KINDS: dict[str, tuple[type[BaseMessage], Callable[..., object]]] = {
    kind.model_fields["type"].default: (kind, kind.__pydantic_validator__.validate_python)
    for kind in (
        AIMessage,
        AIMessageChunk,
        ChatMessage,
        ChatMessageChunk,
        FunctionMessage,
        FunctionMessageChunk,
        HumanMessage,
        HumanMessageChunk,
        RemoveMessage,
        SystemMessage,
        SystemMessageChunk,
        ToolMessage,
        ToolMessageChunk,
    )
    if _is_built_by_validation(kind)
}


def _faults(error: ValidationError) -> Iterable[Mapping[str, Any]]:
    return error.errors(include_input=False, include_context=False, include_url=False)


def _decode(value: AttributeValue) -> Any:
    ((kind, content),) = value.items()
    return _DECODERS[kind](content)


def _decode_map(content: Mapping[str, AttributeValue]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in content.items():
        # What most of a message is made of: with a call for each of these it takes 1.8 times as long.
        if "S" in value:
            result[name] = value["S"]
        elif "NULL" in value:
            result[name] = None
        elif "M" in value:
            result[name] = _decode_map(value["M"]) if value["M"] else {}
        elif "L" in value:
            result[name] = [_decode(element) for element in value["L"]] if value["L"] else []
        else:
            result[name] = _decode(value)
    return result


def _decode_number(text: str) -> int | float:
    if len(text) <= _MAX_DIGITS and text.isdecimal():
        return int(text)
    approximate = float(text)
    if not approximate.is_integer():
        return approximate
    number = Decimal(text)
    # copy_abs(), because abs() rounds to the context's 28 digits.
    if number == number.to_integral_value() and number.copy_abs() < _FIRST_AMBIGUOUS_INTEGER:
        return int(number)
    return float(number)


def bytes_of(content: bytes | str) -> bytes:
    """Return the bytes of a binary attribute value, which plain JSON has as base64 text."""
    return content if isinstance(content, bytes) else base64.b64decode(content)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "S": lambda content: content,
    "N": _decode_number,
    "BOOL": lambda content: content,
    "NULL": lambda content: None,
    "M": _decode_map,
    "L": lambda content: [_decode(value) for value in content],
    "B": bytes_of,
    "SS": set,
    "NS": lambda content: {_decode_number(text) for text in content},
    "BS": lambda content: {bytes_of(data) for data in content},
}


KeyValue: TypeAlias = "str | int | Decimal | bytes"


def join_key(key: Mapping[str, KeyValue | tuple[str, ...]]) -> dict[str, KeyValue]:
    """Return a key with each tuple of ids made one text: the ids with ``#`` between them and none within.

    ``%`` and ``#`` in an id become ``%25`` and ``%23``, so that different ids never make the same text, and none makes
    a text that begins as another tenant's do.

    Raises:
        TypeError: the key is not a mapping, or an id is not text.
    """
    if not isinstance(key, Mapping):
        raise TypeError(f"key must map the key attributes to their values, not be a {type(key).__name__}")
    return {name: "#".join(map(_escaped, value)) if isinstance(value, tuple) else value for name, value in key.items()}


def _escaped(part: object) -> str:
    if not isinstance(part, str):
        raise TypeError(f"The ids that make up a key must be text, not {type(part).__name__}")
    return part.replace("%", "%25").replace("#", "%23")


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
        return {"N": _number_text(value)} if isinstance(value, (int, Decimal)) else _encode(value, 0)
    except Refused as refused:
        raise ValueError(f"The key attribute {name!r} cannot be stored: {refused.reason}") from None


def decode_key_value(value: AttributeValue) -> KeyValue:
    """Return the value of a key attribute, as it was given or equal to that."""
    ((kind, content),) = value.items()
    if kind == "N":
        number = Decimal(content)
        return int(number) if number == number.to_integral_value() else number
    return bytes_of(content) if kind == "B" else str(content)


def has_passed(expiry: AttributeValue | None, now: float) -> bool:
    """Tell whether an expiry time has passed, as seconds since the epoch; what is not a number never does."""
    try:
        return expiry is not None and float(expiry["N"]) <= now
    except (KeyError, ValueError):
        return False


def for_request(value: AttributeValue) -> AttributeValue:
    """Return an attribute value read as plain JSON in the form that botocore takes: binary as bytes."""
    ((kind, content),) = value.items()
    if kind == "B":
        return {"B": bytes_of(content)}
    if kind == "BS":
        return {"BS": [bytes_of(data) for data in content]}
    if kind == "L":
        return {"L": [for_request(element) for element in content]}
    if kind == "M":
        return {"M": {name: for_request(element) for name, element in content.items()}}
    return value


def size_of(value: AttributeValue) -> int:
    """Return about how many bytes an attribute value counts towards an item's size, by AWS's published rules.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    ((kind, content),) = value.items()
    return _SIZES[kind](content)


def _text_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _number_size(text: str) -> int:
    return len(text.strip("-0.")) // 2 + 2


def _map_size(content: Mapping[str, AttributeValue]) -> int:
    return 3 + sum(1 + _text_size(name) + size_of(value) for name, value in content.items())


_SIZES: dict[str, Callable[[Any], int]] = {
    "S": _text_size,
    "N": _number_size,
    "BOOL": lambda content: 1,
    "NULL": lambda content: 1,
    "M": _map_size,
    "L": lambda content: 3 + sum(1 + size_of(value) for value in content),
    "B": lambda content: len(bytes_of(content)),
    "SS": lambda content: sum(map(_text_size, content)),
    "NS": lambda content: sum(map(_number_size, content)),
    "BS": lambda content: sum(len(bytes_of(data)) for data in content),
}
