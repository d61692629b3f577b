"""Removes the values of a request from AWS's error text. Pure: no I/O.

DynamoDB quotes values in some of its texts: "The parameter cannot be converted to a numeric value: NaN", "Input
collection [a, a] contains duplicates", "upper bound operand: AttributeValue: {S:a}".
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

_CUT = "…"
_LONGEST_TEXT = 300
# If a text and a value share fewer characters than this, they share them by chance.
_IN_COMMON = 12
# A search in values of this many characters takes 5 ms.
_LONGEST_VALUES = 2**20
# Words of DynamoDB's texts that are also values of nearly every request: names of types, and LangChain's field names.
_TELLING_NOTHING = {"S", "N", "B", "L", "M", "type", "data", "name", "content", "id"}
_QUOTED = re.compile(r"""\[.*\]|\{.*\}|'.*'|".*"|[\[{"].*""", re.DOTALL)
_WORD = re.compile(r"\S+")


def without_values(text: str, parameters: Mapping[str, Any]) -> str:
    """Return AWS's text without its quotations, and without the values of the request's parameters.

    "…" replaces each removed part. The result is "…" alone if the values have more than 2**20 characters in all. No
    more than 300 characters of the text are returned.
    """
    values = {value for value in _texts(parameters) if value and value not in _TELLING_NOTHING}
    if sum(map(len, values)) > _LONGEST_VALUES:
        return _CUT
    shown = _QUOTED.sub(_CUT, text)
    for value in sorted((value for value in values if value in shown), key=len, reverse=True):
        # Only a whole word is replaced: a value may be as short as a letter.
        shown = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", _CUT, shown)
    end = _start_of_a_piece(shown[:_LONGEST_TEXT], "\0".join(values))
    return shown if end == len(shown) else shown[:end] + _CUT


def _start_of_a_piece(text: str, values: str) -> int:
    """Return the index at which a text begins to repeat a part of a value, or the text's length if it repeats none.

    A part may also be a text inside a JSON value.
    """
    for word in _WORD.finditer(text):
        start = word.start()
        piece = text[start : start + _IN_COMMON]
        if text[:start].endswith(": ") and word[0] not in _TELLING_NOTHING:
            piece = word[0].rstrip(".,;)")
        elif len(piece) < _IN_COMMON:
            continue
        if piece in values:
            return start
    return len(text)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of attribute values, and the names in their maps: those names are content too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, bytes):
            yield base64.b64encode(one).decode()
        elif isinstance(one, dict):
            yield from one.get("M", ())
            # Attribute names under placeholders ("#sort") are left out: they come from the configuration.
            waiting.extend(one[name] for name in one if not (isinstance(one[name], str) and name.startswith("#")))
        elif isinstance(one, (list, tuple, set)):
            waiting.extend(one)
