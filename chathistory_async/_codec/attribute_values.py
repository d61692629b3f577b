"""DynamoDB attribute values: their limits and sizes, and the conversion from and to plain values (``plain``).

A value that no DynamoDB type can represent is stored as a mark: a map with a single name, ``{"$chathistory": text}``.
The text is the value's JSON text (``json_text``). langchain-community reads a mark as an ordinary dict. If a map that
is not a mark would look like one, its name is stored with one more ``$`` in front.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, Inexact
from typing import Any, TypeAlias

from .json_text import from_text, is_unicode, to_text
from .plain import FIRST_AMBIGUOUS_INTEGER, are_of_one_hash
from .unstorable import Encoder, Unstorable, encode_elements, encode_entries, path_step

AttributeValue: TypeAlias = dict[str, Any]

# DynamoDB's limits: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_ITEM_BYTES = 400 * 1024
MAX_KEY_BYTES = 2048
MAX_NESTING = 32
_MAX_DIGITS = 38
_EXACT = Context(prec=_MAX_DIGITS, traps=[Inexact])
_MIN_EXPONENT, _MAX_EXPONENT = -130, 125
_MIN_NUMBER = 1e-130
_MARK = "$chathistory"
_LOOKS_MARKED = re.compile(r"\$+chathistory")


class Marking:
    """Encodes plain values. A value that no DynamoDB type can represent is encoded as a mark.

    Attributes:
        used: whether a mark was encoded.
    """

    def __init__(self) -> None:
        self.used = False

    def encode(self, value: Any, level: int) -> AttributeValue:
        """Encode a plain value.

        Args:
            value: the value.
            level: the number of lists and maps around it.

        Raises:
            Unstorable: no DynamoDB type can represent the value, and it is nested too deeply for a mark.
        """
        can_be_map = level < MAX_NESTING - 1
        try:
            if can_be_map and type(value) is list:
                return {"L": encode_elements(self.encode, value, level + 1)}
            if can_be_map and type(value) is dict:
                extra = "$" if _looks_marked(value) else ""
                entries = {extra + map_name(name): element for name, element in value.items()}
                return {"M": encode_entries(self.encode, entries, level + 1)}
            return encode_plain(value, level)
        except Unstorable:
            if not can_be_map:
                # A mark is a map, and a map would exceed MAX_NESTING here. The enclosing list or dict becomes the mark.
                raise
            self.used = True
            return {"M": {_MARK: {"S": to_text(value).decode()}}}


def _looks_marked(value: Mapping[str, object]) -> bool:
    return len(value) == 1 and _LOOKS_MARKED.fullmatch(next(iter(value))) is not None


def encode_plain(value: object, level: int) -> AttributeValue:
    """Encode a plain value, without marks.

    Raises:
        Unstorable: the value is not plain, or no DynamoDB type can represent it.
    """
    encode = _ENCODERS.get(type(value))
    if encode is None:
        raise Unstorable(f"{type(value).__name__} has no stored form")
    encoded_value: AttributeValue = encode(value, level)
    return encoded_value


def _encode_str(value: Any, level: int) -> AttributeValue:
    return {"S": plain_text(value)}


def plain_text(value: str) -> str:
    """Return a text as a plain str. It may be of a subclass of str.

    Raises:
        Unstorable: the text holds surrogates.
    """
    text = value if type(value) is str else str.__str__(value)
    if not is_unicode(text):
        raise Unstorable("the text holds surrogates, which UTF-8 cannot represent")
    return text


def _encode_number(value: Any, level: int) -> AttributeValue:
    # A fast path, five times as fast, for the two common cases. Both are exact by construction.
    if type(value) is int and -FIRST_AMBIGUOUS_INTEGER < value < FIRST_AMBIGUOUS_INTEGER:
        return {"N": str(value)}
    if type(value) is float and not value.is_integer() and _MIN_NUMBER <= abs(value) < FIRST_AMBIGUOUS_INTEGER:
        return {"N": repr(value)}
    text = number_text(value)
    if _decode_number(text) != value:
        raise Unstorable(f"the {type(value).__name__} would be read back as a different number")
    return {"N": text}


def number_text(value: int | float | Decimal) -> str:
    """Return the text of a number attribute.

    Raises:
        Unstorable: DynamoDB cannot store the number exactly.
    """
    number = _decimal_of(value)
    if not number.is_finite():
        raise Unstorable("DynamoDB numbers cannot be NaN or infinity")
    if number and not _MIN_EXPONENT <= number.adjusted() <= _MAX_EXPONENT:
        raise Unstorable("the number is outside DynamoDB's range (1E-130 to 9.99E+125)")
    try:
        exact = _EXACT.create_decimal(number)
    except Inexact:
        raise Unstorable(f"the number has more than DynamoDB's {_MAX_DIGITS} digits") from None
    return str(exact)


def key_number_text(value: int | Decimal) -> str:
    """Return the text of a number that is a key.

    Equal numbers have the same text. To DynamoDB, 5, 5.0 and 5E0 are the same key, and so are 0 and -0.

    Raises:
        Unstorable: as for ``number_text``.
    """
    text = number_text(value)
    if isinstance(value, int):
        return text
    number = Decimal(text)
    if number == number.to_integral_value():
        return number_text(int(number))
    return str(number.normalize(_EXACT))


def _decimal_of(value: int | float | Decimal) -> Decimal:
    if isinstance(value, float):
        if value.is_integer() and abs(value) < FIRST_AMBIGUOUS_INTEGER:
            return Decimal(int(value))
        return Decimal(float.__repr__(value))
    return Decimal(value)


def _encode_set(value: Any, level: int) -> AttributeValue:
    elements = [encode_plain(element, level + 1) for element in value]
    kinds = {kind for element in elements for kind in element}
    if len(kinds) != 1 or not kinds <= {"S", "N", "B"}:
        raise Unstorable("a DynamoDB set must hold only text, only numbers or only bytes, and must not be empty")
    kind = kinds.pop()
    return {f"{kind}S": [element[kind] for element in elements]}


def _encode_list(value: Any, level: int) -> AttributeValue:
    _check_nesting(level)
    return {"L": [encode_plain(element, level + 1) for element in value]}


def _encode_map(value: Any, level: int) -> AttributeValue:
    _check_nesting(level)
    entries: dict[str, AttributeValue] = {}
    for name, element in value.items():
        if type(name) is not str or not name or not name.isascii():
            map_name(name)
        # Inlined for the most common values: with a call for each of them, encoding takes 1.1 to 1.2 times as long.
        if type(element) is str and element.isascii():
            entries[name] = {"S": element}
        elif element is None:
            entries[name] = {"NULL": True}
        else:
            entries[name] = encode_plain(element, level + 1)
    return {"M": entries}


def map_name(name: object) -> str:
    """Return a map's key.

    Raises:
        Unstorable: the key is not text, is empty, or holds surrogates.
    """
    if type(name) is not str:
        raise Unstorable(f"a map's keys must be text, not {type(name).__name__}")
    if not name:
        raise Unstorable("DynamoDB has no empty keys in a map", "['']")
    if not is_unicode(name):
        raise Unstorable("DynamoDB has no keys with surrogates in a map", path_step(name))
    return name


def _check_nesting(level: int) -> None:
    if level >= MAX_NESTING - 1:
        raise Unstorable(f"it is nested deeper than DynamoDB's {MAX_NESTING} levels")


_ENCODERS: dict[type, Encoder] = {
    type(None): lambda value, level: {"NULL": True},
    str: _encode_str,
    bool: lambda value, level: {"BOOL": value},
    int: _encode_number,
    float: _encode_number,
    list: _encode_list,
    dict: _encode_map,
    bytes: lambda value, level: {"B": value},
    set: _encode_set,
}


class Undecodable(Exception):
    """A stored value does not have the expected form. The error text gives the reason and holds no content.

    Attributes:
        path: the path to the value at fault, or empty if the whole message is at fault.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.path = path


def decode_plain(value: AttributeValue) -> Any:
    """Return the plain value of an attribute value.

    Raises:
        Undecodable: a set in it would take too long to build, because too many of its numbers have the same hash.
    """
    ((kind, content),) = value.items()
    return _DECODERS[kind](content)


def _decode_map(content: Mapping[str, AttributeValue]) -> Any:
    result: dict[str, Any] = {}
    for name, value in content.items():
        # Inlined for the most common values: with a call for each of them, decoding takes 1.8 times as long.
        if "S" in value:
            result[name] = value["S"]
        elif "NULL" in value:
            result[name] = None
        elif "M" in value:
            result[name] = _decode_map(value["M"]) if value["M"] else {}
        elif "L" in value:
            result[name] = [decode_plain(element) for element in value["L"]] if value["L"] else []
        else:
            result[name] = decode_plain(value)
    return _unmarked(result) if len(result) == 1 and name[:1] == "$" else result


def _unmarked(value: dict[str, Any]) -> Any:
    ((name, content),) = value.items()
    if not _looks_marked(value):
        return value
    if name != _MARK:
        return {name[1:]: content}
    try:
        return from_text(content)
    except (ValueError, TypeError, RecursionError):
        # Another application has stored a map with this name.
        return value


def _decode_number(text: str) -> int | float:
    if len(text) <= _MAX_DIGITS and text.isdecimal():
        return int(text)
    approximate = float(text)
    if not approximate.is_integer():
        return approximate
    number = Decimal(text)
    # copy_abs(), because abs() rounds to the context's 28 digits.
    if number == number.to_integral_value() and number.copy_abs() < FIRST_AMBIGUOUS_INTEGER:
        return int(number)
    return float(number)


def _decode_numbers(content: list[str]) -> set[int | float]:
    numbers = [*map(_decode_number, content)]
    if are_of_one_hash(numbers):
        raise Undecodable("it has a set in which too many numbers have one hash")
    return set(numbers)


def bytes_of(content: bytes | str) -> bytes:
    """Return the bytes of a binary attribute value. In a response parsed as plain JSON it is base64 text."""
    return content if isinstance(content, bytes) else base64.b64decode(content)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "S": lambda content: content,
    "N": _decode_number,
    "BOOL": lambda content: content,
    "NULL": lambda content: None,
    "M": _decode_map,
    "L": lambda content: [decode_plain(value) for value in content],
    "B": bytes_of,
    "SS": set,
    "NS": _decode_numbers,
    "BS": lambda content: {bytes_of(data) for data in content},
}


def has_passed(expiry: AttributeValue | None, now: float) -> bool:
    """Return whether an expiry time, in seconds since the epoch, has passed. False if it is absent or not a number."""
    try:
        return expiry is not None and float(expiry["N"]) <= now
    except (KeyError, ValueError):
        return False


def for_request(value: AttributeValue) -> AttributeValue:
    """Return an attribute value from a plain JSON response in the form that botocore sends: base64 text as bytes."""
    ((kind, content),) = value.items()
    if kind == "B":
        return {"B": bytes_of(content)}
    if kind == "BS":
        return {"BS": [bytes_of(data) for data in content]}
    if kind == "L":
        return {"L": [for_request(element) for element in content]}
    if kind == "M":
        return {"M": {name: for_request(element) for name, element in content.items()}}
    return value


def size_of(value: AttributeValue) -> int:
    """Return the approximate number of bytes that a value adds to an item's size, by AWS's published rules.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    ((kind, content),) = value.items()
    return _SIZES[kind](content)


def _text_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _number_size(text: str) -> int:
    return len(text.strip("-0.")) // 2 + 2


def _map_size(content: Mapping[str, AttributeValue]) -> int:
    return 3 + sum(1 + _text_size(name) + size_of(value) for name, value in content.items())


_SIZES: dict[str, Callable[[Any], int]] = {
    "S": _text_size,
    "N": _number_size,
    "BOOL": lambda content: 1,
    "NULL": lambda content: 1,
    "M": _map_size,
    "L": lambda content: 3 + sum(1 + size_of(value) for value in content),
    "B": lambda content: len(bytes_of(content)),
    "SS": lambda content: sum(map(_text_size, content)),
    "NS": lambda content: sum(map(_number_size, content)),
    "BS": lambda content: sum(len(bytes_of(data)) for data in content),
}
