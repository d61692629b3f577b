r"""Lossless conversion between plain values and JSON text.

A value that JSON cannot represent, or that some JSON readers change, is written as a mark: an object with a single
name. The marks are:

- ``{"$bytes": base64}`` and ``{"$set": [...]}``;
- ``{"$int": digits}`` for an integer beyond 64 bits. If Python refuses to write it in decimal, the digits are
  hexadecimal after ``0x``;
- ``{"$float": "nan"}``, ``"inf"`` and ``"-inf"``;
- ``{"$text": text}`` for text with surrogates: each surrogate is written as ``\udXXX``, and each backslash is doubled;
- ``{"$dict": [[name, value], ...]}`` for a dict in which a name has surrogates.

If an object that is not a mark would look like one, its name is written with one more ``$`` in front.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any

import orjson

from .plain import MAX_NESTING, are_of_one_hash
from .unstorable import Unstorable, encode_elements, encode_entries

# orjson's options for a value that may not be plain. orjson then refuses subclasses, dataclasses and datetimes: a
# subclass of str, for example, may stand for a different value.
PLAIN_ONLY = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64


class BadMark(ValueError):
    """A mark has malformed content. The error text names the mark."""


def to_text(value: object) -> bytes:
    """Return the JSON text of a plain value.

    Raises:
        Unstorable: the value is nested too deeply.
    """
    return orjson.dumps(_encode(value, 0))


def from_text(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        BadMark: a mark in the text has malformed content.
        ValueError: the text is not JSON.
        RecursionError: the text is nested too deeply.
    """
    # The one character is searched for first, which is several times as fast as searching for two.
    marked = ("$" in text and '"$' in text) if isinstance(text, str) else (b"$" in text and b'"$' in text)
    # The standard library's parser takes several times as long as orjson, but has a hook for each object.
    return json.loads(text, object_hook=_unmarked) if marked else orjson.loads(text)


def is_unicode(text: str) -> bool:
    """Return whether a text has no surrogates, which UTF-8 cannot represent."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode(value: Any, level: int) -> Any:
    encode = _ENCODERS.get(type(value))
    return value if encode is None else encode(value, level)


def _encode_text(value: str, level: int) -> object:
    if is_unicode(value):
        return value
    return {"$text": value.replace("\\", r"\\").encode(errors="backslashreplace").decode()}


def _encode_integer(value: int, level: int) -> object:
    if _MIN_INTEGER <= value < _MAX_INTEGER:
        return value
    try:
        return {"$int": str(value)}
    except ValueError:
        return {"$int": hex(value)}


def _encode_float(value: float, level: int) -> object:
    return value if math.isfinite(value) else {"$float": str(value)}


def _encode_bytes(value: bytes, level: int) -> dict[str, str]:
    return {"$bytes": base64.b64encode(value).decode()}


def _encode_set(value: set[object], level: int) -> dict[str, list[Any]]:
    _check_nesting(level)
    # Sorted, so that equal values have the same text in every process: idempotency keys compare digests of the text.
    return {"$set": sorted((_encode(element, level + 1) for element in value), key=orjson.dumps)}


def _encode_list(value: list[object], level: int) -> list[Any]:
    _check_nesting(level)
    return encode_elements(_encode, value, level + 1)


def _encode_dict(value: dict[str, object], level: int) -> dict[str, Any]:
    _check_nesting(level)
    if not all(map(is_unicode, value)):
        # The lists of the mark put the entries two levels deeper.
        entries = encode_entries(_encode, value, level + 3)
        return {"$dict": [[_encode_text(name, level), entry] for name, entry in entries.items()]}
    entries = encode_entries(_encode, value, level + 1)
    return {f"${name}": entry for name, entry in entries.items()} if _looks_marked(entries) else entries


def _check_nesting(level: int) -> None:
    if level >= MAX_NESTING:
        raise Unstorable(f"it is nested deeper than {MAX_NESTING} levels")


_ENCODERS: dict[type, Callable[[Any, int], Any]] = {
    str: _encode_text,
    int: _encode_integer,
    float: _encode_float,
    list: _encode_list,
    dict: _encode_dict,
    bytes: _encode_bytes,
    set: _encode_set,
}


def _unmarked(value: dict[str, Any]) -> Any:
    if not _looks_marked(value):
        return value
    ((mark, content),) = value.items()
    if mark not in _DECODERS:
        return {mark[1:]: content}
    try:
        return _DECODERS[mark](content)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadMark(f"it has a malformed {mark}") from None


def _looks_marked(value: dict[str, Any]) -> bool:
    return len(value) == 1 and _MARK.fullmatch(next(iter(value))) is not None


def _set_of(content: list[Any]) -> set[Any]:
    if are_of_one_hash(content):
        raise ValueError
    return set(content)


def _dict_of(content: list[Any]) -> dict[str, Any]:
    if not all(isinstance(name, str) for name, _ in content):
        raise TypeError
    return dict(content)


def _unescaped(content: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else "\\", content)


_MARK = re.compile(r"\$+(bytes|set|int|float|text|dict)")
_ESCAPE = re.compile(r"\\(?:u(d[89a-f][0-9a-f]{2})|\\)")
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$bytes": lambda content: base64.b64decode(content, validate=True),
    "$set": _set_of,
    "$int": lambda content: int(content, 0),
    "$float": {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.__getitem__,
    "$text": _unescaped,
    "$dict": _dict_of,
}
