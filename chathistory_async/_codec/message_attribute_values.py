"""Lossless conversion between LangChain messages and DynamoDB attribute values, which the single-item layout stores.

The stored form of a message (see ``messages``) is the map that langchain-community writes. A value that DynamoDB cannot
represent is stored as a mark (see ``attribute_values``). Errors name the path to the refused value.
"""

from __future__ import annotations

from typing import Any

from boto3.dynamodb.types import TypeDeserializer
from langchain_core.messages import BaseMessage, get_buffer_string, messages_from_dict

from .attribute_values import AttributeValue, Marking, Undecodable, decode_plain, encode_plain, map_name
from .format import decoded, encoded
from .messages import check_reads_back, dump_of, plain_message, reads_back, rebuild, unreadable_field
from .plain import Default
from .unstorable import Unstorable, encode_entries

# Three containers are around every value of a message: the list of messages, the message's map, and its "data" map.
_LEVELS_AROUND_DATA = 3


def encode_message(message: BaseMessage, position: int, default: Default | None = None) -> AttributeValue:
    """Return the attribute value of a message, after checking that it reads back with the same plain form of its dump.

    Arguments and errors are as for ``messages.encode_json``. Text with surrogates needs a mark. If langchain-core
    accepts only text in that field, such as the content, the text is stored without surrogates: a pair becomes the
    character that it encodes, and a lone surrogate becomes U+FFFD.
    """
    return encoded(lambda message: _encode_message(message, default), message, f"messages[{position}]")


def decode_message(value: AttributeValue, name: int | str) -> BaseMessage:
    """Return the message of an attribute value. Arguments and errors are as for ``messages.decode_json``.

    The value is from botocore or from a plain JSON response, so its binary is bytes or base64 text.
    """
    return decoded(_message, value, name)


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


def _encode_with_marks(plain: dict[str, Any]) -> AttributeValue:
    """Encode a message's plain form, with marks for values that DynamoDB cannot represent.

    A field in which langchain-core cannot read the mark is encoded with its text free of surrogates instead.

    Raises:
        Unstorable: langchain-core could not read the message even so, or would read it back changed.
    """
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
            reason = "DynamoDB cannot represent a value in it, and langchain-core cannot read a mark here"
            raise Unstorable(reason, unreadable_field(TypeDeserializer().deserialize(_map_of(kind, fields))))
    stored = _map_of(kind, fields)
    check_reads_back(_message, stored, {"type": kind, "data": data})
    return stored


def _can_others_read(stored: AttributeValue) -> bool:
    """Return whether langchain-community could read a stored message and print it."""
    try:
        get_buffer_string(messages_from_dict([TypeDeserializer().deserialize(stored)]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return True


def _in_unicode(value: Any) -> Any:
    """Return a value with its surrogate pairs replaced by their characters, and lone surrogates by U+FFFD."""
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
