"""The refusal of a value that cannot be stored, with the path to it. Codecs add the steps of the path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

Encoder: TypeAlias = Callable[[Any, int], Any]

NESTED_TOO_DEEPLY = "it is nested too deeply"
_LONGEST_NAME_IN_A_PATH = 60
_MISSING = object()


class Unstorable(Exception):
    """A value cannot be stored, for a reason, at a path. The path is built from the inside out."""

    def __init__(self, reason: str, path: str = "") -> None:
        self.reason = reason
        self.path = path

    def inside(self, step: str) -> Unstorable:
        self.path = step + self.path
        return self


def encode_elements(encode: Encoder, elements: Iterable[object], level: int) -> list[Any]:
    """Encode a list's elements. If one is refused, its index is added to the path."""
    results = []
    for index, element in enumerate(elements):
        try:
            results.append(encode(element, level))
        except Unstorable as unstorable:
            raise unstorable.inside(f"[{index}]") from None
        except RecursionError:
            raise Unstorable(NESTED_TOO_DEEPLY, f"[{index}]") from None
        except Exception as error:  # noqa: BLE001  # for example of a proxy without a target
            raise Unstorable(unreadable(error), f"[{index}]") from None
    return results


def encode_entries(encode: Encoder, entries: Mapping[str, object], level: int) -> dict[str, Any]:
    """Encode a dict's values. If one is refused, its name is added to the path."""
    results = {}
    for name, element in entries.items():
        try:
            results[name] = encode(element, level)
        except Unstorable as unstorable:
            raise unstorable.inside(path_step(name)) from None
        except RecursionError:
            raise Unstorable(NESTED_TOO_DEEPLY, path_step(name)) from None
    return results


def unreadable(error: Exception) -> str:
    """Return the reason for the refusal of a value that cannot be read. The error's own text may hold content."""
    return f"reading it fails with {type(error).__name__}"


def with_article(value: object) -> str:
    """Return the name of a value's type, with its indefinite article."""
    name = type(value).__name__
    # A name that begins with U mostly takes "a", as in "a UUID" and "a User".
    return f"an {name}" if name.startswith(tuple("AEIOaeio")) else f"a {name}"


def path_step(name: object) -> str:
    """Return a dict's key as a step of a path, such as ``.name`` or ``['a b']``."""
    if not isinstance(name, (str, int)):
        return f"[{with_article(name)}]"
    if isinstance(name, str) and len(name) > _LONGEST_NAME_IN_A_PATH:
        name = f"{name[:_LONGEST_NAME_IN_A_PATH]}…"
    return f".{name}" if isinstance(name, str) and name.isidentifier() else f"[{name!r}]"


def first_loss(value: object, back: object) -> str | None:
    """Return the path to the first value that was not read back equal, or None if all values were.

    ``back`` may hold more than ``value``: langchain-core adds the type to a tool call without one.
    """
    # NaN is not equal to itself, but all NaN in plain forms are the same object.
    if value is back or value == back:
        return None
    steps: Iterable[tuple[str, object, object]] = ()
    if isinstance(value, dict) and isinstance(back, dict):
        steps = ((path_step(name), value[name], back.get(name, _MISSING)) for name in value)
    elif isinstance(value, list) and isinstance(back, list) and len(value) == len(back):
        steps = ((f"[{index}]", *pair) for index, pair in enumerate(zip(value, back, strict=True)))
    else:
        return ""
    return next((step + path for step, one, other in steps if (path := first_loss(one, other)) is not None), None)
