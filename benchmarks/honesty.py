"""Reads back what a variant stored: one that loses, repeats or changes a message is wrong, however fast it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from langchain_core.messages import BaseMessage

from .messages import number_of
from .variants import Peer


async def fault_in_session(reader: Peer, session: str, expected: Sequence[BaseMessage]) -> str | None:
    """Return what is wrong with a session's messages, None if they are the expected ones in their order.

    Args:
        reader: what reads them, whoever wrote them: an SDK's client by hand.
        session: the session.
        expected: the messages that were stored, in their order.
    """
    return fault_in_messages(await reader.read(session), expected)


def fault_in_messages(found: Sequence[BaseMessage], expected: Sequence[BaseMessage]) -> str | None:
    """Return what is wrong with messages, None if they are the expected ones in their order."""
    if list(found) == list(expected) and [*map(type, found)] == [*map(type, expected)]:
        return None
    return fault_in_numbers(map(number_of, found), map(number_of, expected)) or "messages are changed or out of order"


def fault_in_numbers(found: Iterable[int], expected: Iterable[int]) -> str | None:
    """Return what is wrong with the messages of these numbers, in whatever order; None if nothing is."""
    there, wanted = Counter(found), Counter(expected)
    if lost := (wanted - there).total():
        return f"lost {lost} of {wanted.total()} messages"
    if surplus := (there - wanted).total():
        return f"has {surplus} messages too many"
    return None
