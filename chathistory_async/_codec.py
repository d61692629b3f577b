"""Messages to DynamoDB attribute values and back, without loss; sizes; refusals that name the path to the value.

The stored form of a message is that of langchain-core's ``message_to_dict``, a map ``{"type", "data"}``, which is
also what langchain-community writes, in its plain form (``_plain``). For a value that DynamoDB has no form for there is
a mark, a map with a single name: ``{"$chathistory": text}``, with the value's JSON text (``_json_text``). To
langchain-community that is a dict like another. The name of a map that would look like a mark has a ``$`` more.
"""

from __future__ import annotations

import base64
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Context, Decimal, Inexact
from typing import Any, TypeAlias, TypeVar

from boto3.dynamodb.types import TypeDeserializer
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
    get_buffer_string,
    messages_from_dict,
)
from pydantic import ValidationError

from ._json_text import from_text, is_unicode, to_text
from ._plain import (
    FIRST_AMBIGUOUS_INTEGER,
    Default,
    Encoder,
    Refused,
    are_of_one_hash,
    dump_of,
    encode_elements,
    encode_entries,
    first_loss,
    path_step,
    plain_message,
)
from .errors import MessageNotStorableError, UndecodableItemError

AttributeValue: TypeAlias = dict[str, Any]
In = TypeVar("In")
Out = TypeVar("Out")

# DynamoDB's limits: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_ITEM_BYTES = 400 * 1024
MAX_KEY_BYTES = 2048
MAX_NESTING = 32
_MAX_DIGITS = 38
_EXACT = Context(prec=_MAX_DIGITS, traps=[Inexact])
_MIN_EXPONENT, _MAX_EXPONENT = -130, 125
_MIN_NUMBER = 1e-130
# The list of messages, a message's map and its "data" map lie around every value of a message.
_LEVELS_AROUND_DATA = 3
_MARK = "$chathistory"
_LOOKS_MARKED = re.compile(r"\$+chathistory")


def encode_message(message: BaseMessage, position: int, default: Default | None = None) -> AttributeValue:
    """Return the attribute value of a message, proved to read back as a message whose dump has the same plain form.

    Text with surrogates is stored without them where langchain-core has no place for anything but text, such as the
    content: a pair becomes the character that it stands for, another one U+FFFD.

    Args:
        message: the message.
        position: its index in the caller's batch, for the error text.
        default: what converts a value that has no plain form, None for nothing.

    Raises:
        MessageNotStorableError: it would not read back so; the text names the path, never the content.
    """
    return encoded(lambda message: _encode_message(message, default), message, f"messages[{position}]")


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


def _encode_message(message: BaseMessage, default: Default | None) -> AttributeValue:
    try:
        data = dump_of(message)
        value = _map_of(message.type, _encode(data, _LEVELS_AROUND_DATA - 1)["M"])
        if reads_back(_message(value), message, data):
            return value
    except (Refused, Undecodable, RecursionError):
        pass
    return _encode_with_marks(plain_message(message, default))


def _map_of(kind: str, fields: dict[str, AttributeValue]) -> AttributeValue:
    return {"M": {"type": _encode(kind, _LEVELS_AROUND_DATA), "data": {"M": fields}}}


def reads_back(back: BaseMessage, message: BaseMessage, data: dict[str, Any]) -> bool:
    """Tell whether what was read back is a message, or has the same dump as one of another class."""
    try:
        if back == message:
            return True
    except Exception:  # noqa: BLE001, S110  # of an object in the message, which is compared with a dict
        pass
    return dump_of(back) == data


def check_reads_back(decode: Callable[[Out], BaseMessage], stored: Out, plain: dict[str, Any]) -> None:
    """Refuse a message whose stored form is decoded into one whose dump lacks anything."""
    try:
        back = plain_message(decode(stored))
    except Undecodable as error:
        raise Refused(f"nothing could read it back ({error})", error.path or _unreadable_field(plain)) from None
    if (path := first_loss(plain["data"], back["data"])) is not None:
        raise Refused("langchain-core would not read it back as it is", path)


def _unreadable_field(plain: dict[str, Any]) -> str:
    """Return the path to the field without which langchain-core could read a message, empty where there is none."""
    for name in plain["data"]:
        others = {other: value for other, value in plain["data"].items() if other != name}
        try:
            rebuild({"type": plain["type"], "data": others})
        except Undecodable:
            continue
        return path_step(name)
    return ""


def _encode_with_marks(plain: dict[str, Any]) -> AttributeValue:
    """Encode a message's plain form, with marks where langchain-core can read the message with them."""
    kind, data, marking = plain["type"], dict(plain["data"]), _Marking()
    for name in data:
        _map_name(name)
    fields = encode_entries(marking.encode, data, _LEVELS_AROUND_DATA)
    if marking.used and not _can_others_read(_map_of(kind, fields)):
        unicode = {name: _in_unicode(value) for name, value in data.items()}
        without = encode_entries(marking.encode, unicode, _LEVELS_AROUND_DATA)
        for name, value in data.items():
            if unicode[name] != value and not _can_others_read(_map_of(kind, {**without, name: fields[name]})):
                data[name], fields[name] = unicode[name], without[name]
        if not _can_others_read(_map_of(kind, fields)):
            reason = "DynamoDB has no form for a value in it, and langchain-core reads no other"
            raise Refused(reason, _unreadable_field(TypeDeserializer().deserialize(_map_of(kind, fields))))
    stored = _map_of(kind, fields)
    check_reads_back(_message, stored, {"type": kind, "data": data})
    return stored


def _can_others_read(stored: AttributeValue) -> bool:
    """Tell whether langchain-community could read a message and print it."""
    try:
        get_buffer_string(messages_from_dict([TypeDeserializer().deserialize(stored)]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return True


def _in_unicode(value: Any) -> Any:
    """Return a value with text that UTF-8 can represent."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_in_unicode(element) for element in value]
    if isinstance(value, dict):
        return {_in_unicode(name): _in_unicode(element) for name, element in value.items()}
    return value


class _Marking:
    """Encodes plain values, with marks in the places of those that DynamoDB has no form for.

    Attributes:
        used: whether there was any.
    """

    def __init__(self) -> None:
        self.used = False

    def encode(self, value: Any, level: int) -> AttributeValue:
        can_be_map = level < MAX_NESTING - 1
        try:
            if can_be_map and type(value) is list:
                return {"L": encode_elements(self.encode, value, level + 1)}
            if can_be_map and type(value) is dict:
                extra = "$" if _looks_marked(value) else ""
                entries = {extra + _map_name(name): element for name, element in value.items()}
                return {"M": encode_entries(self.encode, entries, level + 1)}
            return _encode(value, level)
        except Refused:
            if not can_be_map:
                # Too deep even for a mark: the list or dict around it becomes one.
                raise
            self.used = True
            return {"M": {_MARK: {"S": to_text(value).decode()}}}


def _looks_marked(value: Mapping[str, object]) -> bool:
    return len(value) == 1 and _LOOKS_MARKED.fullmatch(next(iter(value))) is not None


def _encode(value: object, level: int) -> AttributeValue:
    """Encode a plain value, and refuse any other, and what DynamoDB has no form for."""
    encode = _ENCODERS.get(type(value))
    if encode is None:
        raise Refused(f"{type(value).__name__} has no stored form")
    encoded_value: AttributeValue = encode(value, level)
    return encoded_value


def _encode_str(value: Any, level: int) -> AttributeValue:
    return {"S": plain_text(value)}


def plain_text(value: str) -> str:
    """Return a text itself, of a subclass of str too."""
    text = value if type(value) is str else str.__str__(value)
    if not is_unicode(text):
        raise Refused("the text holds surrogates, which UTF-8 cannot represent")
    return text


def _encode_number(value: Any, level: int) -> AttributeValue:
    # The two common cases, five times as fast: exact by construction.
    if type(value) is int and -FIRST_AMBIGUOUS_INTEGER < value < FIRST_AMBIGUOUS_INTEGER:
        return {"N": str(value)}
    if type(value) is float and not value.is_integer() and _MIN_NUMBER <= abs(value) < FIRST_AMBIGUOUS_INTEGER:
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
        if value.is_integer() and abs(value) < FIRST_AMBIGUOUS_INTEGER:
            return Decimal(int(value))
        return Decimal(float.__repr__(value))
    return Decimal(value)


def _encode_set(value: Any, level: int) -> AttributeValue:
    elements = [_encode(element, level + 1) for element in value]
    kinds = {kind for element in elements for kind in element}
    if len(kinds) != 1 or not kinds <= {"S", "N", "B"}:
        raise Refused("DynamoDB has sets of text, of numbers and of bytes only, and none that is empty")
    kind = kinds.pop()
    return {f"{kind}S": [element[kind] for element in elements]}


def _encode_list(value: Any, level: int) -> AttributeValue:
    _check_nesting(level)
    return {"L": [_encode(element, level + 1) for element in value]}


def _encode_map(value: Any, level: int) -> AttributeValue:
    _check_nesting(level)
    entries: dict[str, AttributeValue] = {}
    for name, element in value.items():
        if type(name) is not str or not name or not name.isascii():
            _map_name(name)
        # What most of a message is made of: with a call for each of these it takes 1.1 to 1.2 times as long.
        if type(element) is str and element.isascii():
            entries[name] = {"S": element}
        elif element is None:
            entries[name] = {"NULL": True}
        else:
            entries[name] = _encode(element, level + 1)
    return {"M": entries}


def _map_name(name: object) -> str:
    if type(name) is not str:
        raise Refused(f"a map's keys must be text, not {type(name).__name__}")
    if not name:
        raise Refused("DynamoDB has no empty names in a map", "['']")
    if not is_unicode(name):
        raise Refused("DynamoDB has no names with surrogates in a map", path_step(name))
    return name


def _check_nesting(level: int) -> None:
    if level >= MAX_NESTING - 1:
        raise Refused(f"it is nested deeper than DynamoDB's {MAX_NESTING} levels")


_ENCODERS: dict[type, Encoder] = {
    type(None): lambda value, level: {"NULL": True},
    str: _encode_str,
    bool: lambda value, level: {"BOOL": value},
    int: _encode_number,
    float: _encode_number,
    list: _encode_list,
    dict: _encode_map,
    bytes: lambda value, level: {"B": value},
    set: _encode_set,
}


class Undecodable(Exception):
    """An attribute value that is not a message; the text says why and holds no content.

    Attributes:
        path: to the value at fault, empty where that is the message.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.path = path


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
        has_no_calls = not data.get("tool_calls", True)
        validate(data, self_instance=message)
        if has_no_calls and getattr(message, "tool_calls", None):
            # Whoever took them away left them in additional_kwargs, where langchain-core finds them again.
            message.tool_calls = []  # type: ignore[attr-defined]
    except ValidationError as error:
        faults = [(fault["loc"], fault["type"]) for fault in _faults(error)]
        text = "; ".join(f"{'.'.join(map(str, place))}: {kind}" for place, kind in faults)
        # What follows the field's name tells of alternatives too.
        raise Undecodable(f"langchain-core refuses it: {text}", "".join(map(path_step, faults[0][0][:1]))) from None
    except KeyError as error:
        raise Undecodable(f"it has no {error}") from None
    except ValueError:
        raise Undecodable("this langchain-core does not know its type", ".type") from None
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


def _decode_map(content: Mapping[str, AttributeValue]) -> Any:
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
    return _unmarked(result) if len(result) == 1 and name[:1] == "$" else result


def _unmarked(value: dict[str, Any]) -> Any:
    ((name, content),) = value.items()
    if not _looks_marked(value):
        return value
    if name != _MARK:
        return {name[1:]: content}
    try:
        return from_text(content)
    except (ValueError, TypeError, RecursionError):
        # Of somebody else's.
        return value


def _decode_number(text: str) -> int | float:
    if len(text) <= _MAX_DIGITS and text.isdecimal():
        return int(text)
    approximate = float(text)
    if not approximate.is_integer():
        return approximate
    number = Decimal(text)
    # copy_abs(), because abs() rounds to the context's 28 digits.
    if number == number.to_integral_value() and number.copy_abs() < FIRST_AMBIGUOUS_INTEGER:
        return int(number)
    return float(number)


def _decode_numbers(content: list[str]) -> set[int | float]:
    numbers = [*map(_decode_number, content)]
    if are_of_one_hash(numbers):
        raise Undecodable("it has a set in which too many numbers have one hash")
    return set(numbers)


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
    "NS": _decode_numbers,
    "BS": lambda content: {bytes_of(data) for data in content},
}


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
        raise TypeError(f"key must map the key attributes to their values, not be a {type(key).__name__}")
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
            return {"N": _number_text(value)}
        return {"S": plain_text(value)} if isinstance(value, str) else {"B": bytes(value)}
    except Refused as refused:
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
