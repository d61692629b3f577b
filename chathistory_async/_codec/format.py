"""What the codecs of all formats have in common: the errors that they raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import MessageNotStorableError, UndecodableItemError
from .attribute_values import Undecodable
from .plain import Refused

In = TypeVar("In")
Out = TypeVar("Out")


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


def decoded(decode: Callable[[In], Out], stored: In, name: int | str) -> Out:
    """Return what ``decode`` makes of a stored message, with a failure turned into an error that names the message."""
    try:
        return decode(stored)
    except Undecodable as error:
        reason = str(error)
    # Outside of the handler for the same reason as above.
    text = f"stored message {name} cannot be decoded: {reason}"
    raise UndecodableItemError(text, message_id=name if isinstance(name, str) else None)
