"""Lossless conversion between LangChain messages and their stored form, and between that form and JSON text.

The stored form of a message is the map ``{"type", "data"}`` of langchain-core's ``message_to_dict``, in its plain form
(``plain``). The JSON text leaves out fields that langchain-core fills in by default. A value that JSON cannot represent
is stored as a mark (see ``json_text``). Errors name the path to the refused value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
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

from .attribute_values import Undecodable
from .format import LANGCHAIN_NAME, Format, Out, decoded, elements, encoded, parsed
from .json_text import PLAIN_ONLY, to_text
from .plain import Default, fields_of, plain_value, with_iterators
from .unstorable import Unstorable, first_loss, path_step


def encode_json(message: BaseMessage, position: int, default: Default | None = None) -> bytes:
    """Return the JSON text of a message, after checking that it reads back with the same plain form of its dump.

    The text leaves out fields that langchain-core fills in by default.

    Args:
        message: the message.
        position: the message's index in the caller's batch, for the error text.
        default: the function that converts a value without a plain form, or None.

    Raises:
        MessageNotStorableError: the message has no plain form, or would not read back with it. The error text gives the
            path and never the content.
    """
    return encoded(lambda message: _encode_json(message, default), message, f"messages[{position}]")


def decode_json(text: str | bytes, name: int | str) -> BaseMessage:
    """Return the message of a JSON text.

    Args:
        text: the text; bytes are UTF-8.
        name: the message's index in the stored session, or its id, for the error.

    Raises:
        UndecodableItemError: the text is not a message that the installed langchain-core knows.
    """
    return decoded(_decode_json, text, name)


def _encode_json(message: BaseMessage, default: Default | None) -> bytes:
    try:
        data = dump_of(message)
        # orjson writes NaN as null and a tuple as a list, and does not escape {"$set": []}. reads_back() detects these.
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
    """Return the JSON text of a message, from its plain form's type and from ``data``, which may lack defaults.

    Raises:
        Unstorable: the text would not read back with the whole plain form.
    """
    # Two calls of to_text(), so that the path in an error begins at the data.
    text = b'{"type":%b,"data":%b}' % (to_text(plain["type"]), to_text(data))
    check_reads_back(_decode_json, text, plain)
    return text


def _without_defaults(kind: object, data: dict[str, Any]) -> dict[str, Any]:
    """Return a message's data without the defaults of langchain-core, about 200 bytes of a message of 300."""
    defaults = _DEFAULTS.get(kind) if isinstance(kind, str) else None
    if defaults is None:
        return data
    rest = {}
    for name, value in data.items():
        default = defaults.get(name, _MISSING)
        # Most values are None, so comparing the identity first halves the time. The types are compared because 0 equals
        # False, and because the __eq__ of an object in the message may return True for a different value.
        if value is not default and (type(value) is not type(default) or value != default):
            rest[name] = value
    if rest.get("additional_kwargs"):
        # langchain-core restores removed tool calls from additional_kwargs, unless rebuild() gets an empty list.
        rest |= {name: data[name] for name in _CALLS if name in data}
    return rest


def _decode_json(text: str | bytes) -> BaseMessage:
    return parsed(text, rebuild, "a message")


def _decode_array(text: str | bytes) -> list[BaseMessage]:
    return parsed(text, lambda forms: [*map(rebuild, elements(forms))], "messages")


def dump_of(message: BaseMessage) -> dict[str, Any]:
    """Return the "data" of ``message_to_dict``, which may hold objects that are not plain.

    Raises:
        Unstorable: it is not a LangChain message, or its model_dump() fails.
    """
    if not isinstance(message, BaseMessage):
        raise Unstorable(f"{type(message).__name__} is not a langchain_core message")
    try:
        # message_to_dict() makes the same dump, but with warnings of pydantic, which would print values of the message.
        return message.model_dump(warnings=False)
    except Exception as error:  # noqa: BLE001  # a serializer may be user code
        raise Unstorable(f"its model_dump() fails with {type(error).__name__}") from None


def plain_message(message: BaseMessage, default: Default | None = None) -> dict[str, Any]:
    """Return the plain form of a message's ``message_to_dict``.

    Raises:
        Unstorable: a value in it has no plain form.
    """
    try:
        data = with_iterators(dump_of(message), message)
    except Unstorable:
        if not isinstance(message, BaseMessage):
            raise
        data = fields_of(message)
    return {"type": plain_value(message.type, default), "data": plain_value(data, default)}


def are_equal(one: BaseMessage, other: BaseMessage) -> bool:
    """Return whether two messages have the same class and the same plain form of their dumps. NaN equals NaN."""
    return type(one) is type(other) and (one == other or plain_message(one) == plain_message(other))


def reads_back(back: BaseMessage, message: BaseMessage, data: dict[str, Any]) -> bool:
    """Return whether the message that was read back equals the original, or has the dump of the original (``data``).

    A message of a user's class is read back as a message of a different class with the same dump.
    """
    try:
        if back == message:
            return True
    except Exception:  # noqa: BLE001, S110  # __eq__ of an object in the message may fail
        pass
    return dump_of(back) == data


def check_reads_back(decode: Callable[[Out], BaseMessage], stored: Out, plain: dict[str, Any]) -> None:
    """Check that the stored form of a message reads back with the whole plain form.

    Raises:
        Unstorable: the stored form cannot be decoded, or the decoded message lacks or changes a value.
    """
    try:
        back = plain_message(decode(stored))
    except Undecodable as error:
        raise Unstorable(f"nothing could read it back ({error})", error.path or unreadable_field(plain)) from None
    if (path := first_loss(plain["data"], back["data"])) is not None:
        raise Unstorable("langchain-core would read it back changed", path)


def unreadable_field(plain: dict[str, Any]) -> str:
    """Return the path to a field without which langchain-core could read the message, or "" if there is none."""
    for name in plain["data"]:
        others = {other: value for other, value in plain["data"].items() if other != name}
        try:
            rebuild({"type": plain["type"], "data": others})
        except Undecodable:
            continue
        return path_step(name)
    return ""


def rebuild(form: Any) -> BaseMessage:
    """Return the message of a ``message_to_dict`` map, as ``messages_from_dict`` would.

    Most messages are built by pydantic's validation alone, in half the time (0.47 to 0.53). The constructor that this
    skips only passes ``content_blocks`` on as the content.

    Raises:
        Undecodable: langchain-core cannot build a message from the map.
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
            # The tool calls were removed from the message but not from additional_kwargs, and the validation has
            # restored them.
            message.tool_calls = []  # type: ignore[attr-defined]
    except ValidationError as error:
        faults = [(fault["loc"], fault["type"]) for fault in _faults(error)]
        text = "; ".join(f"{'.'.join(map(str, place))}: {kind}" for place, kind in faults)
        # Only the field's name is a path. The rest of the location may name alternatives of a union.
        raise Undecodable(f"langchain-core refuses it: {text}", "".join(map(path_step, faults[0][0][:1]))) from None
    except KeyError as error:
        raise Undecodable(f"it has no {error}") from None
    except ValueError:
        raise Undecodable("this langchain-core does not know its type", ".type") from None
    except (TypeError, AttributeError) as error:
        raise Undecodable(f"langchain-core fails on it with {type(error).__name__}") from None
    return message


def _validated(kind: type[BaseMessage], data: dict[str, Any]) -> BaseMessage:
    message = object.__new__(kind)
    kind.__pydantic_validator__.validate_python(data, self_instance=message)
    return message


# Together they have the fields that constructors and validators of langchain-core treat specially.
_SAMPLES: list[dict[str, Any]] = [
    {"content": "text", "name": "name", "role": "role", "tool_call_id": "call"},
    {
        "content": ["text", {"type": "text", "text": "more"}],
        "additional_kwargs": {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        "response_metadata": {"model_provider": "openai", "output_version": "v1"},
        "usage_metadata": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        "tool_calls": [],
        "invalid_tool_calls": [],
        "tool_call_chunks": [{"name": "f", "args": "{", "id": "1", "index": 0, "type": "tool_call_chunk"}],
        "chunk_position": "last",
        "artifact": {"rows": [1]},
        "status": "error",
        "name": "name",
        "role": "role",
        "tool_call_id": "call",
        "id": "id",
    },
]


def _is_built_by_validation(kind: type[BaseMessage]) -> bool:
    """Return whether pydantic's validation builds what the constructor builds, for each of the samples.

    In the known versions of langchain-core this is so for all classes but RemoveMessage, which takes no content.
    """
    try:
        are_equal = all(_validated(kind, dict(sample)) == kind(**sample) for sample in _SAMPLES)
    except (ValueError, TypeError, AttributeError):
        return False
    return are_equal and kind.__new__ is object.__new__


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
    """Return the defaults of a class's fields: only those that are None, a bool, a str, a dict or a list."""
    made: dict[object, Any] = {dict: {}, list: []}
    defaults = {name: made.get(field.default_factory, field.default) for name, field in kind.model_fields.items()}
    return {name: value for name, value in defaults.items() if type(value) in (type(None), bool, str, dict, list)}


# These defaults are the same in all versions since langchain-core 1.0.
_DEFAULTS = {name: _defaults_of(kind) for name, (kind, _) in _KINDS.items()}
_CALLS = ("tool_calls", "invalid_tool_calls")
_MISSING = object()


def _faults(error: ValidationError) -> Iterable[Mapping[str, Any]]:
    return error.errors(include_input=False, include_context=False, include_url=False)


# Functions with names, because a handle is pickled with its format.
def _type_of(message: BaseMessage) -> str:
    return message.type


def _begins_turn(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage)


LANGCHAIN = Format(
    name=LANGCHAIN_NAME,
    encode=encode_json,
    decode=decode_json,
    decode_array=_decode_array,
    type_of=_type_of,
    begins_turn=_begins_turn,
)
