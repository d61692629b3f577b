"""The values of the library's gauges. The module that holds a value registers its reader here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

Observed: TypeAlias = Iterable[tuple[int, Mapping[str, "str | bool"]]]

FAST_PATH, DATA_KEYS = "chathistory.fast_path.clients", "chathistory.data_keys"

_sources: dict[str, Callable[[], Observed]] = {}


def register(gauge: str, source: Callable[[], Observed]) -> None:
    """Set the source of a gauge: a function that returns numbers, each with its attributes. Any thread may call it."""
    _sources[gauge] = source


def observed(gauge: str) -> Observed:
    """Return what a gauge observes now. Nothing is observed before the source's module is imported."""
    source = _sources.get(gauge)
    return () if source is None else source()
