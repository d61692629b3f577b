"""LangChain's messages to DynamoDB attribute values and to JSON text, and back, without loss.

The stored form of a message is that of langchain-core's ``message_to_dict``, a map ``{"type", "data"}``, which is
also what langchain-community writes, in its plain form (``plain``). What DynamoDB has no form for is marked as
``attribute_values`` says, what JSON has none for as ``json_text`` says. The JSON text leaves out what langchain-core
fills in where it is missing. Refusals name the path to the value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
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

from .attribute_values import AttributeValue, Marking, Undecodable, decode_plain, encode_plain, map_name
from .format import LANGCHAIN_NAME, Format, Out, decoded, elements, encoded, parsed
from .json_text import PLAIN_ONLY, to_text
from .plain import Default, Unstorable, encode_entries, fields_of, first_loss, path_step, plain_value, with_iterators

# The list of messages, a message's map and its "data" map lie around every value of a message.
_LEVELS_AROUND_DATA = 3


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


def decode_message(value: AttributeValue, name: int | str) -> BaseMessage:
    """Return the message of an attribute value.

    Args:
        value: as botocore or plain JSON gives it: binary is bytes or base64 text.
        name: its index in the stored list, or its id, for the error.

    Raises:
        UndecodableItemError: it is no message that this langchain-core knows.
    """
    return decoded(_message, value, name)


def encode_json(message: BaseMessage, position: int, default: Default | None = None) -> bytes:
    """Return the JSON text of a message, proved to read back as a message whose dump has the same plain form.

    It leaves out what langchain-core fills in by default.

    Args:
        message: the message.
        position: its index in the caller's batch, for the error text.
        default: what converts a value that has no plain form, None for nothing.

    Raises:
        MessageNotStorableError: it would not read back so; the text names the path, never the content.
    """
    return encoded(lambda message: _encode_json(message, default), message, f"messages[{position}]")


def decode_json(text: str | bytes, name: int | str) -> BaseMessage:
    """Return the message of a JSON text.

    Args:
        text: the text; bytes are UTF-8.
        name: the message's index in the stored session, or its id, for the error.

    Raises:
        UndecodableItemError: it is no message that this langchain-core knows.
    """
    return decoded(_decode_json, text, name)


def _encode_json(message: BaseMessage, default: Default | None) -> bytes:
    try:
        data = dump_of(message)
        # orjson makes null of NaN and a list of a tuple, and takes {"$set": []} as it is: the reading back finds them.
        form = {"type": message.type, "data": _without_defaults(message.type, data)}
        text = orjson.dumps(form, option=PLAIN_ONLY)
        if reads_back(_decode_json(text), message, data):
            return text
    except (orjson.JSONEncodeError, Unstorable, Undecodable, RecursionError):
        pass
    plain = plain_message(message, default)
    try:
        return _marked_json(plain, _without_defaults(plain["type"], plain["data"]))
    except Unstorable:
        return _marked_json(plain, plain["data"])


def _marked_json(plain: dict[str, Any], data: dict[str, Any]) -> bytes:
    """Return the JSON text of a message's plain form with so much of its data, and refuse what lacks anything."""
    # Each for itself, so that a path begins at the data.
    text = b'{"type":%b,"data":%b}' % (to_text(plain["type"]), to_text(data))
    check_reads_back(_decode_json, text, plain)
    return text


def _without_defaults(kind: object, data: dict[str, Any]) -> dict[str, Any]:
    """Return a message's data without what langchain-core fills in: about 200 bytes of a message that has 300."""
    defaults = _DEFAULTS.get(kind) if isinstance(kind, str) else None
    if defaults is None:
        return data
    rest = {}
    for name, value in data.items():
        default = defaults.get(name, _MISSING)
        # Most are None, so it takes half the time to ask that first. The types are compared because 0 is equal to
        # False, and an object of anybody's class may say that it is equal.
        if value is not default and (type(value) is not type(default) or value != default):
            rest[name] = value
    if rest.get("additional_kwargs"):
        # Where langchain-core finds calls again that were taken away, unless rebuild() is told that there are none.
        rest |= {name: data[name] for name in _CALLS if name in data}
    return rest


def _decode_json(text: str | bytes) -> BaseMessage:
    return parsed(text, rebuild, "a message")


def _decode_array(text: str | bytes) -> list[BaseMessage]:
    return parsed(text, lambda forms: [*map(rebuild, elements(forms))], "messages")


def dump_of(message: BaseMessage) -> dict[str, Any]:
    """Return what ``message_to_dict`` has under "data", objects among it."""
    if not isinstance(message, BaseMessage):
        raise Unstorable(f"{type(message).__name__} is not a langchain_core message")
    try:
        # As message_to_dict() does, but pydantic's warnings would print the values they warn of.
        return message.model_dump(warnings=False)
    except Exception as error:  # noqa: BLE001  # a serializer may be anybody's code
        raise Unstorable(f"its model_dump() fails with {type(error).__name__}") from None


def plain_message(message: BaseMessage, default: Default | None = None) -> dict[str, Any]:
    """Return what ``message_to_dict`` has of a message, made plain.

    Raises:
        Unstorable: something in it has no plain form.
    """
    try:
        data = with_iterators(dump_of(message), message)
    except Unstorable:
        if not isinstance(message, BaseMessage):
            raise
        data = fields_of(message)
    return {"type": plain_value(message.type, default), "data": plain_value(data, default)}


def are_equal(one: BaseMessage, other: BaseMessage) -> bool:
    """Tell whether two messages are of one class and have dumps of one plain form, in which NaN equals NaN."""
    return type(one) is type(other) and (one == other or plain_message(one) == plain_message(other))


def _encode_message(message: BaseMessage, default: Default | None) -> AttributeValue:
    try:
        data = dump_of(message)
        value = _map_of(message.type, encode_plain(data, _LEVELS_AROUND_DATA - 1)["M"])
        if reads_back(_message(value), message, data):
            return value
    except (Unstorable, Undecodable, RecursionError):
        pass
    return _encode_with_marks(plain_message(message, default))


def _map_of(kind: str, fields: dict[str, AttributeValue]) -> AttributeValue:
    return {"M": {"type": encode_plain(kind, _LEVELS_AROUND_DATA), "data": {"M": fields}}}


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
        raise Unstorable(f"nothing could read it back ({error})", error.path or _unreadable_field(plain)) from None
    if (path := first_loss(plain["data"], back["data"])) is not None:
        raise Unstorable("langchain-core would not read it back as it is", path)


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
    kind, data, marking = plain["type"], dict(plain["data"]), Marking()
    for name in data:
        map_name(name)
    fields = encode_entries(marking.encode, data, _LEVELS_AROUND_DATA)
    if marking.used and not _can_others_read(_map_of(kind, fields)):
        unicode = {name: _in_unicode(value) for name, value in data.items()}
        without = encode_entries(marking.encode, unicode, _LEVELS_AROUND_DATA)
        for name, value in data.items():
            if unicode[name] != value and not _can_others_read(_map_of(kind, {**without, name: fields[name]})):
                data[name], fields[name] = unicode[name], without[name]
        if not _can_others_read(_map_of(kind, fields)):
            reason = "DynamoDB has no form for a value in it, and langchain-core reads no other"
            raise Unstorable(reason, _unreadable_field(TypeDeserializer().deserialize(_map_of(kind, fields))))
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


def _message(value: AttributeValue) -> BaseMessage:
    if "M" not in value:
        raise Undecodable(f"it is of the DynamoDB type {'/'.join(value)}, not a map")
    return rebuild(decode_plain(value))


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


def _defaults_of(kind: type[BaseMessage]) -> dict[str, Any]:
    """Return the values, of plain types, that the fields of a class have where none is given."""
    made: dict[object, Any] = {dict: {}, list: []}
    defaults = {name: made.get(field.default_factory, field.default) for name, field in kind.model_fields.items()}
    return {name: value for name, value in defaults.items() if type(value) in (type(None), bool, str, dict, list)}


# The same ones since langchain-core 1.0.
_DEFAULTS = {name: _defaults_of(kind) for name, (kind, _) in _KINDS.items()}
_CALLS = ("tool_calls", "invalid_tool_calls")
_MISSING = object()


def _faults(error: ValidationError) -> Iterable[Mapping[str, Any]]:
    return error.errors(include_input=False, include_context=False, include_url=False)


LANGCHAIN = Format(
    name=LANGCHAIN_NAME,
    encode=encode_json,
    decode=decode_json,
    decode_array=_decode_array,
    type_of=lambda message: message.type,
    begins_turn=lambda message: isinstance(message, HumanMessage),
)
