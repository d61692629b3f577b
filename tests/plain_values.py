"""Values that messages hold beside plain ones, each with the exact value that comes back."""

from __future__ import annotations

import enum
import ipaddress
import math
import os
import threading
import uuid
from collections import ChainMap, OrderedDict, UserDict, UserList, UserString, deque, namedtuple
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
from boto3.dynamodb.types import Binary
from langchain_core.documents import Document
from pydantic import BaseModel, ConfigDict, SecretStr, computed_field, field_serializer

from chathistory_async._codec.plain import MAX_NESTING


class Person(BaseModel):
    """As a schema for with_structured_output."""

    name: str
    born: date | None = None
    tags: tuple[str, ...] = ()
    score: float = 0.5


class Usage(BaseModel):
    """As LiteLLM's, which keeps what it does not know."""

    model_config = ConfigDict(extra="allow")
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Row:
    number: int
    person: Person | None = None
    tags: set[str] = field(default_factory=set)


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Kind(str, enum.Enum):
    NEW = "new"


class Name(str):
    pass


Pair = namedtuple("Pair", "left right")

ADA = Person(name="Ada", born=date(1815, 12, 10), tags=("x",))
ADA_PLAIN = {"name": "Ada", "born": "1815-12-10", "tags": ["x"], "score": 0.5}

OBJECTS: dict[str, tuple[Any, Any]] = {
    "pydantic model": (ADA, ADA_PLAIN),
    "models in a list": ([ADA, {"who": ADA}], [ADA_PLAIN, {"who": ADA_PLAIN}]),
    "model that allows extras": (
        Usage.model_validate({"prompt_tokens": 1, "completion_tokens": 2, "cost": Decimal("0.25")}),
        {"prompt_tokens": 1, "completion_tokens": 2, "cost": 0.25},
    ),
    "dataclass": (
        Row(1, ADA, {"a"}),
        {"number": 1, "person": ADA_PLAIN, "tags": {"a"}},
    ),
    "documents": (
        [Document(page_content="x", metadata={"at": 1})],
        [{"id": None, "metadata": {"at": 1}, "page_content": "x", "type": "Document"}],
    ),
    "SQL rows": ([(1, "Ada"), (2, None)], [[1, "Ada"], [2, None]]),
    "named tuple": (Pair(1, (2, b"x")), [1, [2, b"x"]]),
    "deque": (deque([1, (2,)]), [1, [2]]),
    "Decimal": (Decimal("0.1"), 0.1),
    "Decimal with more digits than a float": (Decimal("0.1234567890123456789012345"), 0.12345678901234568),
    "whole Decimal": (Decimal("12.00"), 12),
    "Decimal of 20 digits": (Decimal(10) ** 20, 10**20),
    "large Decimal": (Decimal("1e200"), 1e200),
    "Decimal beyond a float": (Decimal("1e400"), "1E+400"),
    "a set with two NaN": ({math.nan, float("nan")}, {math.nan}),
    "Decimal NaN": (Decimal("sNaN"), math.nan),
    "Decimal infinity": (Decimal("-Infinity"), -math.inf),
    "datetime": (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "2026-01-02T03:04:05Z"),
    "date": (date(2026, 1, 2), "2026-01-02"),
    "timedelta": (timedelta(hours=36), "P1DT12H"),
    "UUID": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "Enum": (Color.RED, "red"),
    "IntEnum": (Level.HIGH, 3),
    "Enum of text": (Kind.NEW, "new"),
    "path": (PurePosixPath("/tmp/x"), "/tmp/x"),
    "address": (ipaddress.ip_address("127.0.0.1"), "127.0.0.1"),
    "secret, which pydantic does not tell": (SecretStr("hidden"), "**********"),
    "subclass of str": (Name("x"), "x"),
    "ordered dict": (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "read-only dict": (MappingProxyType({"a": (1,)}), {"a": [1]}),
    "what acts as a dict": ([UserDict(a=1), ChainMap({"a": 1}, {"b": 2})], [{"a": 1}, {"a": 1, "b": 2}]),
    "what acts as a set": ({"a": 1}.keys(), {"a"}),
    "what acts as a list": (UserList([1, (2,)]), [1, [2]]),
    "what acts as text": (UserString("x"), "x"),
    "bytes as boto3 reads them": ([Binary(b"x"), memoryview(b"y")], [b"x", b"y"]),
    "float64": (np.float64(0.1), 0.1),
    "float32": (np.float32(0.5), 0.5),
    "int64": (np.int64(7), 7),
    "numpy bool": (np.bool_(True), True),
    "numpy text": (np.str_("x"), "x"),
    "numpy time": (np.datetime64("2026-01-02T03:04:05.123456789"), "2026-01-02T03:04:05.123456789"),
    "numpy array": (np.array([[1.5, np.nan], [2.5, np.inf]]), [[1.5, math.nan], [2.5, math.inf]]),
    "integer keys": ({1: "a", 2: {3: "b"}}, {"1": "a", "2": {"3": "b"}}),
    "other keys": (
        {None: 1, 1.5: 2, Kind.NEW: 3, uuid.UUID(int=1): 4, np.int64(5): 5, Name("n"): 6, True: 7},
        {"None": 1, "1.5": 2, "new": 3, "00000000-0000-0000-0000-000000000001": 4, "5": 5, "n": 6, "true": 7},
    ),
    "set of tuples": ({(1, 2)}, [[1, 2]]),
    "set of an Enum": ({Color.RED}, {"red"}),
    "frozenset": (frozenset({1, 2}), {1, 2}),
    "bytearray": (bytearray(b"\xff"), b"\xff"),
}

UNDECODABLE_NAME = os.fsdecode(b"caf\xe9.txt")

EXACT: dict[str, Any] = {
    "NaN": math.nan,
    "infinities": [math.inf, -math.inf],
    "log probabilities": [{"token": "x", "logprob": -math.inf, "top": [{"p": math.nan}]}],
    "set with NaN": {math.nan, 1.0},
    "large floats": [1e126, 1.7976931348623157e308, -1e200, 1.5e45, 5e-324, 1e-131],
    "huge ints": [10**38 + 1, -(10**40), 2**64, 10**400, -(10**5000)],
    "bytes": [b"", b"\x00\xff"],
    "sets": [{"a", "b"}, {1, 2.5}, {b"x"}, set(), {1, "a", None, b"x"}, {True}],
    "file name": UNDECODABLE_NAME,
    "lone surrogates": ["\ud800", "x\udc80\\udc80\\", "\udfff\U0001d4b3"],
    "pair of surrogates": ["\ud835\udcb3", "\U0001d4b3"],
    "names": {"": 1, "a": {"": {"": []}}},
    "names with surrogates": {UNDECODABLE_NAME: 1, "\\": {"\ud835\udcb3": math.nan, "\U0001d4b3": b""}},
    "what looks like a mark": [
        {"$bytes": "eA=="},
        {"$$set": []},
        {"$float": "nan"},
        {"$text": "x"},
        {"$dict": [["a", 1]]},
        {"$int": math.nan},
        {"$chathistory": '{"$float": "nan"}'},
        {"$$chathistory": "1"},
        {"$chathistory": 5},
        {"$chathistory": math.nan},
        {"$chathistory": "1", "more": 2},
        {"$price": 5},
        {"": {"$set": [1]}},
    ],
}


def nested(levels: int, innermost: Any = b"x") -> Any:
    """A value in so many lists."""
    for _ in range(levels):
        innermost = [innermost]
    return innermost


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [1, value]
    return value


class Holder(BaseModel):
    items: list[Any] = []


def looped() -> Holder:
    holder = Holder()
    holder.items.append(holder)
    return holder


class Failing(BaseModel):
    when: int = 1

    @field_serializer("when")
    def fail(self, value: int) -> int:
        raise KeyError("content")


@dataclass
class Around:
    inner: Any


class FailingAsAWhole(BaseModel):
    when: int = 1

    @computed_field
    def now(self) -> int:
        raise AttributeError("content")


@dataclass
class Unfinished:
    later: int = field(init=False)


class Proxy:
    """As werkzeug's and Django's are outside of a request."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("content")


# In additional_kwargs: the value, the path from there, and what is wrong.
REFUSED: list[tuple[dict[Any, Any], str, str]] = [
    ({"a b": {"c.d": object()}}, "['a b']['c.d']", "an object has no plain form, and there is no default="),
    ({"a": [1, {"b": threading.Lock()}]}, ".a[1].b", "a lock has no plain form"),
    ({"a": {"x": (1, object)}}, ".a.x[1]", "a type has no plain form"),
    ({"a": iter([1])}, ".a", "a list_iterator has no plain form"),
    ({"a": range(10**12)}, ".a", "a range has no plain form"),
    ({"a": {object()}}, ".a", "an object has no plain form"),
    ({"parsed": Holder(items=[1, 2, 3, object()])}, ".parsed.items[3]", "an object has no plain form"),
    ({"parsed": Around([object()])}, ".parsed.inner[0]", "an object has no plain form"),
    ({"parsed": {"a": [Failing()]}}, ".parsed.a[0].when", "its serializer fails with PydanticSerializationError"),
    ({"parsed": Around(Failing())}, ".parsed.inner.when", "its serializer fails with PydanticSerializationError"),
    ({"parsed": FailingAsAWhole()}, ".parsed", "the dump of a FailingAsAWhole fails with AttributeError"),
    ({"parsed": Unfinished()}, ".parsed.later", "reading it fails with AttributeError"),
    ({"a": [Proxy()]}, ".a[0]", "reading it fails with RuntimeError"),
    ({"a": {"b": Proxy()}}, ".a.b", "reading it fails with RuntimeError"),
    ({"a": cyclic()}, ".a.self[1].self[1]", "it contains itself"),
    ({"a": [cyclic()]}, ".a[0].self[1].self[1]", "it contains itself"),
    ({"parsed": looped()}, ".parsed.items[0].items[0]", "it contains itself"),
    ({1: {2: object()}}, "[1][2]", "an object has no plain form"),
    ({b"\xff": 1}, "[a bytes]", "a bytes cannot be stored as the key of a dict"),
    ({object(): 1}, "[an object]", "an object cannot be stored as the key of a dict"),
    ({"a": {1: "a", "1": "b"}}, ".a['1']", "another name of this dict has the same text"),
    ({"a" * 999: object()}, f"['{'a' * 60}…']", "an object has no plain form"),
    (
        {"a": {number * 2**61 - number for number in range(102)}},
        ".a",
        "more than 100 numbers in the set have the same hash",
    ),
    ({"a": nested(MAX_NESTING)}, ".a" + "[0]" * (MAX_NESTING - 2), "nested deeper than 200"),
    ({"a": nested(3000)}, ".a" + "[0]" * (MAX_NESTING - 2), "nested deeper than 200"),
]


def same(one: Any, other: Any) -> bool:
    """Equal, where NaN equals NaN, and of one type, but for floats that are whole and so ints from a single item."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set) and isinstance(other, set):
        return len(one) == len(other) and all(any(same(left, right) for right in other) for left in one)
    alike = type(one) is type(other) or (type(one) is float and type(other) is int)
    return alike and one == other
