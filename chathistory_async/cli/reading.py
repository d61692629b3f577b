"""Reading a session, whatever its layout and format are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any, NamedTuple

from ..store import ChatHistoryStore
from .errors import Failed
from .messages import Shown, shown
from .settings import Settings


class Entry(NamedTuple):
    """A stored value: JSON, or a LangChain message as a dict of its type and its data.

    Attributes:
        id: its id, or None in a single item.
        time: when it was added, or None in a single item.
        value: the value.
    """

    id: str | None
    time: datetime | None
    value: Any

    def shown(self, format_name: str) -> Shown:
        """Return the value as people read it."""
        return shown(self.value, format_name, self.id, self.time)


async def format_of(store: ChatHistoryStore, session: str) -> str:
    """Return the format of a session's values.

    Raises:
        Failed: the session has no values.
    """
    name = await store.get_format(session)
    if name is None:
        raise nothing_in(session)
    return name


def nothing_in(session: str) -> Failed:
    """Return the error for a session without messages."""
    return Failed(f"The session {session!r} has no messages")


async def entries(
    settings: Settings, store: ChatHistoryStore, session: str, format_name: str, last: int | None = None
) -> AsyncGenerator[Entry, None]:
    """Yield the values of a session, oldest first.

    Args:
        settings: the store's settings.
        store: the store.
        session: the session's id.
        format_name: the format of the values.
        last: only that many values, the latest, or None for all.
    """
    if settings.layout == "single_item":
        from langchain_core.messages import message_to_dict

        for message in await store.session(session).aget_messages(limit=last):
            yield Entry(None, None, message_to_dict(message))
        return
    async with aclosing(store.iter_stored(session, format=format_name, last=last)) as values:
        async for stored in values:
            yield Entry(stored.id, stored.created_at, stored.value)
