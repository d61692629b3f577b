"""What may be shown of a text of AWS's, pure: no value of the request that it answers.

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
# Fewer characters that a text and a value have in common are chance.
_IN_COMMON = 12
# A search takes 5 ms for each of these.
_LONGEST_VALUES = 2**20
# Words of DynamoDB's, which are values of nearly every request too: the names of types, and LangChain's of fields.
_TELLING_NOTHING = {"S", "N", "B", "L", "M", "type", "data", "name", "content", "id"}
_QUOTED = re.compile(r"""\[.*\]|\{.*\}|'.*'|".*"|[\[{"].*""", re.DOTALL)
_WORD = re.compile(r"\S+")


def without_values(text: str, parameters: Mapping[str, Any]) -> str:
    """Return a text of AWS's without what it quotes, and without the values of the request's parameters."""
    values = {value for value in _texts(parameters) if value and value not in _TELLING_NOTHING}
    if sum(map(len, values)) > _LONGEST_VALUES:
        return _CUT
    shown = _QUOTED.sub(_CUT, text)
    for value in sorted((value for value in values if value in shown), key=len, reverse=True):
        # As a word: a value may be as short as a letter.
        shown = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", _CUT, shown)
    end = _start_of_a_piece(shown[:_LONGEST_TEXT], "\0".join(values))
    return shown if end == len(shown) else shown[:end] + _CUT


def _start_of_a_piece(text: str, values: str) -> int:
    """Return where a text begins to repeat a part of a value, such as a text in JSON; its end where it does not."""
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
    """Yield the texts of attribute values, and the names in their maps, which are content too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, bytes):
            yield base64.b64encode(one).decode()
        elif isinstance(one, dict):
            yield from one.get("M", ())
            # But for attributes' names, which stand under their placeholders: they are of the configuration.
            waiting.extend(one[name] for name in one if not (isinstance(one[name], str) and name.startswith("#")))
        elif isinstance(one, (list, tuple, set)):
            waiting.extend(one)
