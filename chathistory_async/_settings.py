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
    """Check that the names of an item's attributes are texts, not empty, and all different.

    Raises:
        ValueError: they are not.
    """
    for name in attribute_names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"An attribute's name must be text that is not empty, not {name!r}")
    if repeated := [name for name in attribute_names if attribute_names.count(name) > 1]:
        raise ValueError(f"Two attributes have the name {repeated[0]!r}: each needs a name of its own")


def check_positive(name: str, value: object, *, optional: bool = True) -> None:
    """Check that a value is a positive integer, or None if it is optional.

    Raises:
        ValueError: it is not.
    """
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer{' or None' if optional else ''}, not {value!r}")
