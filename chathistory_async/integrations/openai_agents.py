"""Sessions of the OpenAI Agents SDK in a ``ChatHistoryStore``. Needs the extra ``openai-agents``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

try:
    from agents.items import TResponseInputItem
    from agents.memory import SessionSettings
    from agents.memory.session_settings import coerce_session_settings, resolve_session_limit
except ModuleNotFoundError as error:
    advice = "pip install 'chathistory-async[openai-agents]'"
    raise ModuleNotFoundError(f"DynamoDBSession needs the OpenAI Agents SDK: {advice}", name=error.name) from error

if TYPE_CHECKING:
    from agents import RunContextWrapper

    from .._opening import Key
    from ..store import ChatHistoryStore

FORMAT = "openai-agents"
"""The format of the stored items, for ``ChatHistoryStore.list_sessions`` and ``json_session``."""

_Result = TypeVar("_Result")


class DynamoDBSession:
    """A session of the OpenAI Agents SDK: ``Runner.run(agent, "Hello", session=DynamoDBSession("alice", store))``.

    It implements the SDK's protocol ``agents.memory.Session``. Making one does no I/O and takes microseconds. It
    belongs to its store: it is closed with the store, and need not be closed itself. Any number of sessions, event
    loops and hosts may use one ``session_id`` at the same time.

    The items that the SDK adds are stored unchanged, as JSON values of the format "openai-agents", with the store's
    encryption, expiry and session index. ``store.json_session(session_id, format="openai-agents")`` reads the same
    items with their ids and times. Not stored are a run's state (``RunState``), which the application keeps if a run
    waits for an approval, and traces.

    The SDK's ``OpenAIResponsesCompactionSession`` and ``EncryptedSession`` take it as their underlying session. A
    compaction replaces the items by a clear and an append, and a reader may see the session empty in between. With a
    ``limit``, the SDK does not compact automatically.

    The SDK reads a session again after it has removed items from it, so the store needs strongly consistent reads,
    which are its default. The methods raise the library's errors unchanged; the SDK passes them on to the caller of
    the run.

    Args:
        session_id: the session's id. The SDK also uses it to group model requests.
        store: the store, with the layout "item_collection". It stays the caller's.
        key: as for ``ChatHistoryStore.session``. Required if the store has ``key_parts``.
        owner: the owner whose list of sessions the session is in. Needs a store with ``session_index``.
        session_settings: the SDK's settings, or a dict of them. ``limit`` is the default limit of ``get_items``.

    Raises:
        LayoutError: the store has the layout "single_item".
        TypeError: as for ``ChatHistoryStore.session``; or ``session_settings`` has a name that the SDK does not know.
        ValueError: as for ``ChatHistoryStore.session``.
    """

    session_id: str
    session_settings: SessionSettings | None

    def __init__(
        self,
        session_id: str,
        store: ChatHistoryStore,
        *,
        key: Key | None = None,
        owner: str | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        self.session_id = session_id
        self.session_settings = (
            SessionSettings() if session_settings is None else coerce_session_settings(session_settings)
        )
        self._session = store.json_session(session_id, key=key, owner=owner, format=FORMAT)

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """Return the session's items, oldest first, or an empty list if the session does not exist or has expired.

        One ``Query`` for each megabyte. With a limit, one ``Query`` reads little more than the requested items.

        Args:
            limit: the maximum number of items, counted from the latest. None for the limit of ``session_settings``, or
                if it has none, for all items. Zero and negative limits return an empty list.
            wrapper: the run's context. No effect; the SDK passes it.

        Raises:
            ChatHistoryError: as for ``JsonSession.aget``. An item that cannot be decoded is never skipped.
        """
        limit = resolve_session_limit(limit, self.session_settings)
        if limit is not None and limit <= 0:
            return []
        return await self._session.aget(limit)

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Append items: all or none, contiguous and in order, and exactly once however often the request is retried.

        Usually one ``PutItem``, or one ``TransactWriteItems`` in a store with a session index. An empty list writes
        nothing. If the call is cancelled, the write ends first, and then the cancellation is raised. By default, a
        request ends within 81 seconds, with all its retries.

        Args:
            items: the items, any number of them.
            wrapper: the run's context. No effect; the SDK passes it.

        Raises:
            ChatHistoryError: as for ``JsonSession.aadd``.
        """
        await _settled(self._session.aadd(items))

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> TResponseInputItem | None:
        """Remove the latest item and return it, or return None if the session has no items.

        Each item is returned to only one caller, however many callers pop at the same time. If the call is cancelled,
        the write ends first, and the item may have been removed.

        Args:
            wrapper: the run's context. No effect; the SDK passes it.

        Raises:
            ChatHistoryError: as for ``JsonSession.apop``.
        """
        item: TResponseInputItem | None = await _settled(self._session.apop())
        return item

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Delete the session's items, and none that another writer adds afterwards.

        The session's title, metadata and place in its owner's list stay; ``ChatHistoryStore.delete_session`` deletes
        them too. If the call is cancelled, the deletion ends first.

        Args:
            wrapper: the run's context. No effect; the SDK passes it.

        Raises:
            ChatHistoryError: as for ``JsonSession.aclear``.
        """
        await _settled(self._session.aclear())

    def __repr__(self) -> str:
        """Return the table and the session, without content."""
        return f"<{type(self).__name__} of {self._session!r}>"


async def _settled(write: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of a write. If the caller is cancelled, however often, wait for the end of the write first.

    The SDK reads a session after a cancelled write, to find out how much of a turn is stored. A write that was still
    under way could be stored after that read. An error of the write is the ``__cause__`` of the cancellation.
    """
    task = asyncio.ensure_future(write)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    if cancelled is None:
        return task.result()
    # The error of the write, if it failed, is the cause: else nobody would see it.
    raise cancelled from (None if task.cancelled() else task.exception())
