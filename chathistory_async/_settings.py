"""Checks of the settings that all layouts have. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Sequence


def check_settings(table_name: object, ttl: object, history_size: object, attribute_names: Sequence[object]) -> None:
    """Check the settings of a layout.

    Raises:
        ValueError: a setting is invalid. The text names it.
    """
    if not isinstance(table_name, str) or not table_name:
        raise ValueError(f"table_name must be a table's name or ARN, not {table_name!r}")
    check_positive("ttl", ttl)
    check_positive("history_size", history_size)
    check_names(attribute_names)


def check_names(attribute_names: Sequence[object]) -> None:
    """Check that the attribute names of an item are different, non-empty texts.

    Raises:
        ValueError: they are not.
    """
    are_texts = all(isinstance(name, str) and name for name in attribute_names)
    if not are_texts or len(set(attribute_names)) < len(attribute_names):
        names = ", ".join(map(repr, attribute_names))
        raise ValueError(f"The attributes' names must differ and not be empty, and be text: {names}")


def check_positive(name: str, value: object, *, optional: bool = True) -> None:
    """Check that a value is a positive integer, or None if it is optional.

    Raises:
        ValueError: it is not.
    """
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer{' or None' if optional else ''}, not {value!r}")
