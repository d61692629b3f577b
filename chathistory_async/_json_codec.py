"""Messages to JSON text and back, without loss; refusals that name the path to the value.

The text is that of langchain-core's ``message_to_dict``, an object ``{"type", "data"}``, in its plain form
(``_plain``), with marks for what JSON has no form for (``_json_text``).
"""

from __future__ import annotations

from typing import Any

import orjson
from langchain_core.messages import BaseMessage

from ._codec import Undecodable, check_reads_back, decoded, encoded, reads_back, rebuild
from ._json_text import BadMark, from_text, to_text
from ._plain import Default, Refused, dump_of, first_loss, plain_message, plain_value

# Whatever is not of JSON's own types is left to the plain form.
_PLAIN_ONLY = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def encode_json(message: BaseMessage, position: int, default: Default | None = None) -> bytes:
    """Return the JSON text of a message, proved to read back as a message whose dump has the same plain form.

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


def _encode_json(message: BaseMessage, default: Default | None) -> bytes:
    try:
        data = dump_of(message)
        # orjson makes null of NaN and a list of a tuple, and takes {"$set": []} as it is: the reading back finds them.
        text = orjson.dumps({"type": message.type, "data": data}, option=_PLAIN_ONLY)
        if reads_back(_decode_json(text), message, data):
            return text
    except (orjson.JSONEncodeError, Refused, Undecodable, RecursionError):
        pass
    plain = plain_message(message, default)
    # Each for itself, so that a path begins at the data.
    text = b'{"type":%b,"data":%b}' % (to_text(plain["type"]), to_text(plain["data"]))
    check_reads_back(_decode_json, text, plain)
    return text


def _decode_json(text: str | bytes) -> BaseMessage:
    try:
        return rebuild(from_text(text))
    except BadMark as error:
        reason = str(error)
    except (ValueError, RecursionError):
        reason = "it is not the JSON text of a message"
    raise Undecodable(reason)
