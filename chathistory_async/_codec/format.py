"""The interface of the formats that a session's values can be of, and the errors that the codecs of all raise."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import MessageNotStorableError, UndecodableItemError
from .attribute_values import Undecodable
from .json_text import BadMark, from_text
from .plain import Default, Unstorable

# The format of LangChain's messages.
LANGCHAIN_NAME = "langchain"
_NAME = re.compile(r"[a-z0-9_.-]{1,64}")

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Format:
    """A kind of values that a session can have, with the functions that encode and decode them.

    Attributes:
        name: by which a stored value tells its format.
        encode: returns the JSON text of a value, proved to read back as its plain form. It is given the value, its
            position in the caller's batch, for the error text, and what converts a value that has no plain form.
            It raises MessageNotStorableError, with the path to what it refuses.
        decode: returns the value of a JSON text. It is given the text and the value's id or position, for the error. It
            raises UndecodableItemError, with the id.
        decode_array: returns the values of a JSON array of such texts, faster than one by one. It raises Undecodable
            where one is at fault; ``decode`` of each tells which.
        type_of: returns the name of a value's type, None where values have none.
        begins_turn: tells whether a value begins a turn of a conversation, with which a history cut short may begin.
    """

    name: str
    encode: Callable[[Any, int, Default | None], bytes]
    decode: Callable[[str | bytes, int | str], Any]
    decode_array: Callable[[str | bytes], list[Any]]
    type_of: Callable[[Any], str | None]
    begins_turn: Callable[[Any], bool]


def is_name(name: object) -> bool:
    """Tell whether a format that is not of LangChain's messages may have this name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name != LANGCHAIN_NAME


def encoded(encode: Callable[[In], Out], value: In, name: str) -> Out:
    """Return what ``encode`` makes of a value, with a refusal turned into an error that names the whole path."""
    try:
        return encode(value)
    except Unstorable as refused:
        text = f"{name}{refused.path} cannot be stored: {refused.reason}"
    except RecursionError:
        text = f"{name} cannot be stored: it is nested too deeply"
    # Raised outside of the handler, without a context: the original errors' texts (pydantic's above all) hold content.
    raise MessageNotStorableError(text)


def decoded(decode: Callable[[In], Out], stored: In, name: int | str, what: str = "message") -> Out:
    """Return what ``decode`` makes of what is stored, with a failure turned into an error that names the message."""
    try:
        return decode(stored)
    except Undecodable as error:
        reason = str(error)
    # Outside of the handler for the same reason as above.
    text = f"stored {what} {name} cannot be decoded: {reason}"
    raise UndecodableItemError(text, message_id=name if isinstance(name, str) else None)


def parsed(text: str | bytes, rebuild: Callable[[Any], Out], what: str) -> Out:
    """Return what ``rebuild`` makes of the value of a JSON text.

    Raises:
        Undecodable: it is no such text, or ``rebuild`` says so; the reason has ``what`` it should be.
    """
    try:
        return rebuild(from_text(text))
    except BadMark as error:
        reason = str(error)
    except (ValueError, RecursionError):
        reason = f"it is not the JSON text of {what}"
    raise Undecodable(reason)


def elements(value: Any) -> list[Any]:
    """Return a list itself.

    Raises:
        Undecodable: it is none.
    """
    if type(value) is not list:
        raise Undecodable("it is not an array")
    return value
