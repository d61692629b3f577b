"""The interface of a session's value formats, and the errors that all codecs raise."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import MessageNotStorableError, UndecodableItemError
from .attribute_values import Undecodable
from .json_text import BadMark, from_text
from .plain import Default
from .unstorable import Unstorable

# The format of LangChain's messages.
LANGCHAIN_NAME = "langchain"
_NAME = re.compile(r"[a-z0-9_.-]{1,64}")

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Format:
    """A format of a session's values, with the functions that encode and decode them.

    Attributes:
        name: the format's name, which identifies the format of stored values.
        encode: takes a value, its position in the caller's batch (for the error text), and the function that converts a
            value without a plain form. It returns the value's JSON text, after checking that the text reads back as the
            value's plain form. It raises MessageNotStorableError, with the path to the refused value.
        decode: takes a JSON text and the value's id or position (for the error). It returns the value. It raises
            UndecodableItemError, with the id.
        decode_array: takes a JSON array of such texts and returns the values, faster than one by one. It raises
            Undecodable if any of them cannot be decoded; call ``decode`` on each to find which.
        type_of: returns the name of a value's type, or None if values of this format have no types.
        begins_turn: returns whether a value begins a turn of a conversation. A truncated history may begin with it.
    """

    name: str
    encode: Callable[[Any, int, Default | None], bytes]
    decode: Callable[[str | bytes, int | str], Any]
    decode_array: Callable[[str | bytes], list[Any]]
    type_of: Callable[[Any], str | None]
    begins_turn: Callable[[Any], bool]


def is_name(name: object) -> bool:
    """Return whether a format other than that of LangChain's messages may have this name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name != LANGCHAIN_NAME


def encoded(encode: Callable[[In], Out], value: In, name: str) -> Out:
    """Return the result of ``encode`` for a value.

    Raises:
        MessageNotStorableError: ``encode`` refused the value. The text gives the whole path, beginning with ``name``.
    """
    try:
        return encode(value)
    except Unstorable as unstorable:
        text = f"{name}{unstorable.path} cannot be stored: {unstorable.reason}"
    except RecursionError:
        text = f"{name} cannot be stored: it is nested too deeply"
    # Raised outside of the handler, so that it has no context: the text of the original error may hold content
    # (pydantic's texts do).
    raise MessageNotStorableError(text)


def decoded(decode: Callable[[In], Out], stored: In, name: int | str, what: str = "message") -> Out:
    """Return the result of ``decode`` for a stored value.

    Raises:
        UndecodableItemError: ``decode`` failed. The text names the value by ``what`` and ``name``.
    """
    try:
        return decode(stored)
    except Undecodable as error:
        reason = str(error)
    # Raised outside of the handler for the same reason as in encoded().
    text = f"stored {what} {name} cannot be decoded: {reason}"
    raise UndecodableItemError(text, message_id=name if isinstance(name, str) else None)


def parsed(text: str | bytes, rebuild: Callable[[Any], Out], what: str) -> Out:
    """Return the result of ``rebuild`` for the value of a JSON text.

    Raises:
        Undecodable: the text is not JSON text of ``what``, has a malformed mark, or ``rebuild`` raised Undecodable.
    """
    try:
        return rebuild(from_text(text))
    except BadMark as error:
        reason = str(error)
    except (ValueError, RecursionError):
        reason = f"it is not the JSON text of {what}"
    raise Undecodable(reason)


def elements(value: Any) -> list[Any]:
    """Return a value that must be a list.

    Raises:
        Undecodable: it is not a list.
    """
    if type(value) is not list:
        raise Undecodable("it is not an array")
    return value
