"""What every layout refuses in its settings."""

from __future__ import annotations

from collections.abc import Sequence


def check_settings(table_name: object, ttl: object, history_size: object, attribute_names: Sequence[object]) -> None:
    """Refuse settings that cannot be meant.

    Raises:
        ValueError: they cannot; the text says which.
    """
    if not isinstance(table_name, str) or not table_name:
        raise ValueError(f"table_name must be a table's name or ARN, not {table_name!r}")
    check_positive("ttl", ttl)
    check_positive("history_size", history_size)
    check_names(attribute_names)


def check_names(attribute_names: Sequence[object]) -> None:
    """Refuse attributes of one item that have one name, or none."""
    are_texts = all(isinstance(name, str) and name for name in attribute_names)
    if not are_texts or len(set(attribute_names)) < len(attribute_names):
        names = ", ".join(map(repr, attribute_names))
        raise ValueError(f"The attributes' names must differ and not be empty, and be text: {names}")


def check_positive(name: str, value: object, *, optional: bool = True) -> None:
    """Refuse what is neither a positive integer nor, where it is optional, None."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer{' or None' if optional else ''}, not {value!r}")
