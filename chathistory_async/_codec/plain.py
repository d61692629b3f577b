"""The plain form of values. Every codec can store a plain value exactly.

Plain values are None, bool, int, float, str, bytes, and sets, lists and dicts of plain values. The keys of a dict are
text. Other objects are converted to their dump by pydantic or ``pydantic_core.to_jsonable_python``. An object that
these cannot dump is passed to the caller's ``default``. If there is no ``default``, the object is refused.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import UserString, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic_core import SchemaSerializer, core_schema, to_jsonable_python

from .unstorable import NESTED_TOO_DEEPLY, Unstorable, encode_elements, path_step, unreadable, with_article

Default: TypeAlias = Callable[[Any], Any]

# Python's stack holds 1,000 calls. A level of nesting takes three calls here, and four in a codec.
MAX_NESTING = 200
# From this value on, an integral Decimal may stand for an int or for a float, which differ (10**40 != 1e40).
FIRST_AMBIGUOUS_INTEGER = 10**38
# Building a set of numbers with the same hash takes quadratic time: 2 s for 16,000. A message may hold millions.
MAX_OF_ONE_HASH = 100
_DUMP = SchemaSerializer(core_schema.any_schema())
# In pydantic's dump, an object of this type stands for an iterator of any type.
_DUMPED_ITERATOR = type(_DUMP.to_python(iter(())))


def are_of_one_hash(elements: Collection[object]) -> bool:
    """Return whether building a set of the elements takes too long: too many have the same hash as another element.

    Raises:
        TypeError: an element has no hash.
    """
    return len(elements) - len(set(map(hash, elements))) > MAX_OF_ONE_HASH


def plain_value(value: object, default: Default | None = None) -> Any:
    """Return the plain form of a value.

    Args:
        value: the value.
        default: the function that converts an object that pydantic cannot dump, or None.

    Raises:
        Unstorable: a value in it has no plain form.
    """
    return _Conversion(default).of(value, 0)


def check_default(default: object) -> None:
    """Check that ``default`` is callable or None.

    Raises:
        TypeError: it is neither.
    """
    if default is not None and not callable(default):
        raise TypeError(f"default must be a function or None, not {type(default).__name__}")


class _Conversion:
    """The conversion of one value."""

    def __init__(self, default: Default | None) -> None:
        self._default = default
        # The id() of each object around the value that is being converted, to detect cycles.
        self._around: set[int] = set()

    def of(self, value: Any, level: int) -> Any:
        kind = type(value)
        if kind in _EXACT:
            return value
        if kind is float:
            # All NaN become the same object, so that containers with NaN compare equal: they compare identity first.
            return value if value == value else math.nan
        for kinds, convert in _SCALARS:
            if isinstance(value, kinds):
                return self.of(convert(value), level)
        if _is_binary(value):
            return bytes(value)
        if id(value) in self._around:
            raise Unstorable("it contains itself")
        if level >= MAX_NESTING:
            raise Unstorable(f"it is nested deeper than {MAX_NESTING} levels")
        self._around.add(id(value))
        try:
            return self._of_container(value, level + 1)
        finally:
            self._around.discard(id(value))

    def _of_container(self, value: Any, level: int) -> Any:
        if isinstance(value, dict):
            return self._of_dict(value, level)
        if isinstance(value, (list, tuple, deque)):
            return encode_elements(self.of, value, level)
        if isinstance(value, (set, frozenset)):
            elements = [self.of(element, level) for element in value]
            try:
                converted = set(elements)
            except TypeError:
                # The set held tuples, which have become lists.
                return elements
            if are_of_one_hash(converted):
                raise Unstorable(f"more than {MAX_OF_ONE_HASH} numbers in the set have the same hash as another one")
            return converted
        return self._of_object(value, level)

    def _of_dict(self, value: Mapping[Any, object], level: int) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for key, element in value.items():
            try:
                results[_free_name(key, results)] = self.of(element, level)
            except Unstorable as unstorable:
                raise unstorable.inside(path_step(key)) from None
            except RecursionError:
                raise Unstorable(NESTED_TOO_DEEPLY, path_step(key)) from None
            except Exception as error:  # noqa: BLE001  # for example of a proxy without a target
                raise Unstorable(unreadable(error), path_step(key)) from None
        return results

    def _of_object(self, value: Any, level: int) -> Any:
        """Convert an object to its dump by pydantic or, if pydantic cannot dump it, by ``default``."""
        if _is_numpy(value):
            return self.of(_unboxed(value), level)
        try:
            dump = _pydantic_dump(value)
        except Exception as error:  # noqa: BLE001  # a serializer may be user code
            failure = type(error).__name__
        else:
            return self.of(with_iterators(dump, value), level)
        if self._default is not None:
            return self.of(self._by_default(self._default, value), level)
        if not _names_of(value):
            raise Unstorable(f"{with_article(value)} has no plain form, and there is no default= that converts it")
        # This refuses the field that is at fault, with the path to it.
        self.of(fields_of(value), level)
        raise Unstorable(f"the dump of {with_article(value)} fails with {failure}, and there is no default=")

    def _by_default(self, default: Default, value: Any) -> Any:
        try:
            converted = default(value)
        except Exception as error:  # noqa: BLE001  # the error's text may hold content
            raise Unstorable(f"default= fails on {with_article(value)} with {type(error).__name__}") from None
        if converted is value:
            raise Unstorable(f"default= returns the {type(value).__name__} itself")
        return converted


_EXACT = {type(None), bool, int, str, bytes}


def _number_of(value: Decimal) -> int | float | str:
    """Return a Decimal as the int or float that reading an item would return, or as text if a float would overflow."""
    if not value.is_finite():
        return math.nan if value.is_nan() else float(value)
    if value.copy_abs() < FIRST_AMBIGUOUS_INTEGER and value == value.to_integral_value():
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else str(value)


# The order matters: an Enum may be a str or an int as well.
_SCALARS: list[tuple[Any, Callable[[Any], Any]]] = [
    (Enum, lambda value: value.value),
    (str, str.__str__),
    (int, int),
    (float, float),
    (Decimal, _number_of),
    ((bytes, bytearray, memoryview), bytes),
    ((PurePath, UserString), str),
]

_ABSTRACT: list[tuple[Any, Callable[[Any], Any]]] = [(Mapping, dict), (AbstractSet, set), (Sequence, list)]


def _free_name(key: Any, taken: Mapping[str, object]) -> str:
    name = key if type(key) is str else _name_of(key)
    if name in taken:
        raise Unstorable("another name of this dict has the same text")
    return name


def _name_of(key: Any) -> str:
    """Return the text of a dict's key, as pydantic writes it.

    Raises:
        Unstorable: pydantic has no text for the key.
    """
    if isinstance(key, (str, PurePath)) and not isinstance(key, Enum):
        return str.__str__(key) if isinstance(key, str) else str(key)
    try:
        (name,) = to_jsonable_python({_unboxed(key) if _is_numpy(key) else key: None})
    except Exception:  # noqa: BLE001  # any error means that the key has no text
        raise Unstorable(f"{with_article(key)} cannot be stored as the key of a dict") from None
    return str(name)


def _is_binary(value: object) -> bool:
    """Return whether a value is a ``Binary``, the type that boto3, and so langchain-community, reads bytes as."""
    # No import is needed: if a Binary exists, boto3 was imported.
    types = sys.modules.get("boto3.dynamodb.types")
    return types is not None and isinstance(value, types.Binary)


def _is_numpy(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.generic, numpy.ndarray))


def _unboxed(value: Any) -> Any:
    """Return the Python value of a numpy scalar or array. Floats and datetimes need a cast before ``tolist``."""
    kind = {"f": float, "M": str}.get(value.dtype.kind)
    return (value if kind is None else value.astype(kind)).tolist()


def _names_of(value: Any) -> list[str]:
    if isinstance(value, BaseModel):
        return [*type(value).model_fields, *(value.model_extra or {})]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return []


def _pydantic_dump(value: object) -> Any:
    """Return an object as a dict, set or list if it implements that interface, or else pydantic's dump of it.

    Pydantic's dump is in Python's types, or in JSON's types if the dump in Python's types has the object's own type.
    """
    if isinstance(value, (Iterator, range)):
        # A dump would use up an iterator, and a second append would store an empty list. A range may stand for more
        # numbers than fit into memory.
        raise TypeError
    # For example headers, read-only views and SQLAlchemy's rows. pydantic dumps none of them.
    for kinds, convert in _ABSTRACT:
        if isinstance(value, kinds):
            return convert(value)
    dump = _DUMP.to_python(value, warnings=False)
    if type(dump) is _DUMPED_ITERATOR:
        raise TypeError
    return to_jsonable_python(value, inf_nan_mode="constants") if type(dump) is type(value) else dump


def with_iterators(dump: Any, value: Any) -> Any:
    """Return a dump with the original values of fields that hold iterators: ``default`` needs these, not their dump."""
    if type(dump) is not dict:
        return dump
    names = [name for name in _names_of(value) if name in dump and _holds_iterator(dump[name])]
    return dump | {name: _field_of(value, name) for name in names} if names else dump


def _holds_iterator(dump: object) -> bool:
    """Return whether a dump holds an iterator, at any depth."""
    waiting: list[Any] = [dump]
    seen = set[int]()
    while waiting:
        one = waiting.pop()
        kind = type(one)
        if kind is _DUMPED_ITERATOR:
            return True
        if id(one) in seen:
            # A value that contains itself.
            continue
        seen.add(id(one))
        # The types are compared exactly, because an object may pretend to be a dict. A dump's own dicts are exact.
        if kind is dict:
            waiting += one.values()
        elif kind in (list, tuple, set, frozenset):
            waiting += one
    return False


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of an object that cannot be dumped. A field that cannot be dumped either has its own value.

    Raises:
        Unstorable: a field cannot be read, or its serializer fails on a value that pydantic could dump.
    """
    fields: dict[str, Any] = {}
    for name in _names_of(value):
        try:
            fields |= _dump_of_field(value, name)
        except Exception as error:  # noqa: BLE001  # a serializer may be user code
            fields[name] = _field_of(value, name)
            if _can_be_dumped(fields[name]):
                raise Unstorable(f"its serializer fails with {type(error).__name__}", path_step(name)) from None
    return fields


def _field_of(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except Exception as error:  # noqa: BLE001  # a field may be unset, or a property of a user's class
        raise Unstorable(unreadable(error), path_step(name)) from None


def _dump_of_field(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return value.model_dump(include={name}, warnings=False)
    return {name: _DUMP.to_python(getattr(value, name), warnings=False)}


def _can_be_dumped(value: object) -> bool:
    try:
        _DUMP.to_python(value, warnings=False)
    except Exception:  # noqa: BLE001  # a serializer may be user code
        return False
    return True
