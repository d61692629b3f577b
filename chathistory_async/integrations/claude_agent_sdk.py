"""Transcripts of the Claude Agent SDK in a ``ChatHistoryStore``. Needs the extra ``claude-agent-sdk``."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

try:
    from claude_agent_sdk import (
        SessionKey,
        SessionListSubkeysKey,
        SessionStore,
        SessionStoreEntry,
        SessionStoreListEntry,
        SessionSummaryEntry,
        fold_session_summary,
    )
except ModuleNotFoundError as error:
    advice = "pip install 'chathistory-async[claude-agent-sdk]'"
    raise ModuleNotFoundError(f"DynamoDBSessionStore needs the Claude Agent SDK: {advice}", name=error.name) from error

from .._codec.json_values import encode_value
from .._codec.keys import split_key
from .._cooperative import at_most
from .._session_index.session import MAX_METADATA_BYTES
from .._sync.fork import after_fork_in_child
from ..errors import ItemTooLargeError
from ..store import keyed_session

if TYPE_CHECKING:
    from .._session_index.keyed import KeyedSession
    from .._session_index.session import SessionInfo
    from ..store import ChatHistoryStore

FORMAT = "claude-agent-sdk"
"""The format of the stored entries, for ``ChatHistoryStore.list_sessions`` and ``json_session``."""
SUMMARY = "claude_agent_sdk"
"""The name of a session's summary in its metadata in the session index."""

_LOGGER = logging.getLogger("chathistory_async")
# With summaries of the usual size, such a page is a part of the megabyte that a Query reads at most.
_PAGE = 200
# A process mostly has a few sessions that the index does not show yet. More at once would hold up its appends.
_READ_AT_ONCE = 4
# Between them the event loop runs. An entry takes some microseconds to fold, and a long one some more.
_FOLDED_AT_ONCE = 100
# Each append rewrites the summary, and each listing reads it. Usually it has less than 1 KB, but the SDK keeps titles
# of any length.
_MAX_SUMMARY_BYTES = 16 * 1024
# The session index follows a write about a second later.
_REMEMBERED_SECONDS = 60
# More than a process appends to in a minute. They take a few megabytes.
_MAX_REMEMBERED = 10_000


class DynamoDBSessionStore(SessionStore):
    """A session store for transcripts: ``ClaudeAgentOptions(session_store=DynamoDBSessionStore(store))``.

    It implements all methods of ``claude_agent_sdk.SessionStore``, and passes ``run_session_store_conformance``. Making
    one does no I/O and takes microseconds. It belongs to its store: it is closed with the store, and need not be closed
    itself. Any number of processes may append to one transcript at the same time.

    A main transcript is a JSON session of the format "claude-agent-sdk". Its partition key is joined from the project
    key and the session id, and ``store.json_session("", key={"SessionId": (project_key, session_id)},
    format="claude-agent-sdk")`` reads it. With ``session_index``, its owner is the project key, and its metadata has
    the SDK's summary. A subagent's transcript has a partition of its own, which belongs to the main transcript: no
    owner lists it, and whatever deletes the main transcript deletes it too, also ``store.delete_session`` and
    ``store.purge_owner(project_key)``. End a session's agents before: see ``delete``.

    Each entry is stored once by its ``uuid``, whichever batches it comes in. Entries without one are always stored, as
    the SDK asks. The store's ``ttl``, ``history_size`` and encryption apply to entries as to other values. The SDK
    resumes a session only if all of its entries are there, so a ``history_size`` would break it.

    After ``aclear`` of the JSON session, its entries can be stored again, but only if the store that clears it has
    ``session_index``. Other stores do not look for uuids: there, delete the transcript instead.

    With ``kms_key_id``, entries and summaries are encrypted. Keys, subpaths and digests of uuids are not.

    Not stored are the files that the agent works on, checkpoints of files, and the local transcripts, which the SDK
    keeps under ``CLAUDE_CONFIG_DIR``.

    The methods raise the library's errors unchanged. The SDK sends a failed batch up to three times, and then reports a
    ``MirrorErrorMessage``; ``import_session_to_store`` stores what is missing.

    Args:
        store: the store, with the layout "item_collection" and ``key_parts`` of 2 or None. It stays the caller's.

    Raises:
        LayoutError: the store has the layout "single_item".
        ValueError: the store has ``key_parts`` other than 2.
    """

    def __init__(self, store: ChatHistoryStore) -> None:
        self._store = store
        # Only to raise its errors for a store that cannot hold transcripts: the SDK would only log them.
        self._session({"project_key": "project", "session_id": "session"})

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Append those entries of a batch that are not stored yet, in order and in one write.

        One ``TransactWriteItems``: all of the new entries are stored, or none. The first append of a process to a
        transcript also reads once or twice. A batch that does not fit into one transaction of 4 MB after compression,
        or has more than 10,000 entries, takes several. In one event loop, batches of a transcript are stored in the
        order of the calls; the parts of a batch that takes several writes may have others between them.

        Args:
            key: the transcript.
            entries: the entries. No entries write nothing.

        Raises:
            ValueError: the key has an empty ``subpath`` or ``project_key``, or is too long.
            MessageNotStorableError: an entry has no plain form. Nothing was written, unless the batch has more than
                10,000 entries: then entries before it may have been written.
            ItemTooLargeError: one entry does not fit into a transaction. The entries before it may have been written.
            ChatHistoryError: as for ``JsonSession.aadd``.
        """
        if not entries:
            return
        try:
            await self._append(key, entries)
        except ItemTooLargeError:
            if len(entries) == 1:
                raise
            # A batch that is sent again is stored once in any cuts, so it need not be stored whole.
            middle = len(entries) // 2
            await self.append(key, entries[:middle])
            await self.append(key, entries[middle:])

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """Return a transcript's entries in order, or None if it has none or has expired. A ``Query`` per megabyte.

        Args:
            key: the transcript.

        Raises:
            ValueError: as for ``append``.
            ChatHistoryError: as for ``JsonSession.aget``.
        """
        return await self._session(key).read() or None

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """Return the main transcripts of a project with the times of their last appends, in no particular order.

        As ``ChatHistoryStore.list_sessions``, a ``Query`` of the session index for each 200 transcripts. The list
        has the appends and deletions of this process at once, with a ``GetItem`` for each transcript that the index
        does not show as it is, and those of other processes about a second later. A transcript whose item in the index
        cannot be read is left out, and the error is logged. A session that an application stored with this format and
        owner under a key of another form is left out, because ``load`` cannot read it.

        Args:
            project_key: the project.

        Raises:
            ValueError: the project key is empty, or longer than 2,048 bytes.
            ConfigurationError: the store has no ``session_index``.
            ChatHistoryError: as for ``ChatHistoryStore.list_sessions``.
        """
        infos = await self._infos(project_key)
        return [{"session_id": session_id, "mtime": _mtime(info)} for session_id, info in infos.items()]

    async def list_session_summaries(self, project_key: str) -> list[SessionSummaryEntry]:
        """Return the SDK's summaries of a project's main transcripts; as ``list_sessions``.

        Each append stores the summary in its own transaction, so a summary always covers all entries. A transcript that
        was begun by other means, or whose summary is longer than 16 KB or does not fit beside the application's own
        metadata, has none. The SDK loads such a transcript.

        Args:
            project_key: the project.

        Raises:
            ChatHistoryError: as for ``list_sessions``.
        """
        infos = await self._infos(project_key)
        return [
            {"session_id": session_id, "mtime": _mtime(info), "data": data}
            for session_id, info in infos.items()
            if isinstance(data := info.metadata.get(SUMMARY), dict)
        ]

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """Return the subpaths of a main transcript, in no particular order. One strongly consistent ``Query``.

        Args:
            key: the main transcript.

        Raises:
            ChatHistoryError: as for ``JsonSession.aget``.
        """
        main: SessionKey = {"project_key": key["project_key"], "session_id": key["session_id"]}
        return await self._session(main).subsessions()

    async def delete(self, key: SessionKey) -> None:
        """Delete a transcript: a main transcript with all subpaths that the table has, or the one subpath of the key.

        As ``ChatHistoryStore.delete_session``, for each of the transcripts. A call that fails halfway can be made
        again. Entries that an agent appends afterwards begin a new transcript. If these are a subagent's only, the main
        transcript is in no list and ``purge_owner`` does not find it, but deleting the main transcript deletes them. So
        end the agents of a session before you erase the session, or delete it again after they have ended.

        Args:
            key: the transcript. If it does not exist, nothing is deleted.

        Raises:
            ValueError: as for ``append``.
            ChatHistoryError: as for ``ChatHistoryStore.delete_session``.
        """
        await self._session(key).delete()
        self._remember(key, None)

    def __repr__(self) -> str:
        """Return the store, without content."""
        return f"<{type(self).__name__} {self._store!r}>"

    async def _append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        async def summarized(metadata: Mapping[str, Any] | None, stored: Sequence[Any]) -> Mapping[str, Any]:
            return await _summarized(key, metadata, stored)

        ids = [uuid if isinstance(uuid := entry.get("uuid"), str) else None for entry in entries]
        # A subagent's entries are no part of the summary, and no listing shows their session.
        change = summarized if key.get("subpath") is None else None
        at = await self._session(key).add(entries, ids, change)
        if at is not None:
            self._remember(key, at)

    def _session(self, key: SessionKey) -> KeyedSession:
        """Return the session of a transcript."""
        subpath = key.get("subpath")
        if subpath == "":
            # As the main transcript, it would delete everything.
            raise ValueError("subpath is empty: leave it out for the main transcript")
        project_key = key["project_key"]
        ids = (project_key, key["session_id"])
        return keyed_session(self._store, ids, owner=project_key, format=FORMAT, subsession=subpath)

    async def _infos(self, project_key: str) -> dict[str, SessionInfo]:
        """Return the information on a project's main transcripts by their session ids."""
        infos: dict[str, SessionInfo] = {}
        before = None
        while True:
            page = await self._store.list_sessions(project_key, _PAGE, before=before, format=FORMAT)
            for info in page.sessions:
                if (session_id := _session_id(info, project_key)) is not None:
                    infos[session_id] = info
            for unreadable in page.unreadable:
                _LOGGER.error("A session is not listed: %s", unreadable.error)
            before = page.cursor
            if before is None:
                break

        async def current(session_id: str) -> SessionInfo | None:
            return await self._session({"project_key": project_key, "session_id": session_id}).info()

        written = _written.since(self._store.table_name, project_key)
        differing = [session_id for session_id, at in written if _differs(infos.get(session_id), at)]
        for session_id, stored in zip(differing, await at_most(_READ_AT_ONCE, current, differing), strict=True):
            if stored is None:
                infos.pop(session_id, None)
            else:
                infos[session_id] = stored
        return infos

    def _remember(self, key: SessionKey, at: datetime | None) -> None:
        if key.get("subpath") is None:
            _written.remember(self._store.table_name, key["project_key"], key["session_id"], at)


async def _summarized(
    key: SessionKey, metadata: Mapping[str, Any] | None, stored: Sequence[SessionStoreEntry]
) -> Mapping[str, Any]:
    """Return the change of a session's metadata by entries that are stored, or an empty mapping.

    Args:
        key: the transcript.
        metadata: the metadata, or None for a new session.
        stored: the entries.
    """
    before = None
    if metadata is not None:
        data = metadata.get(SUMMARY)
        if not isinstance(data, dict):
            # Entries from before are not in it: a summary of the new entries alone would be wrong.
            return {}
        before = SessionSummaryEntry(session_id=key["session_id"], mtime=0, data=data)
    summary = before
    for start in range(0, len(stored), _FOLDED_AT_ONCE):
        summary = fold_session_summary(summary, key, list(stored[start : start + _FOLDED_AT_ONCE]))
        await asyncio.sleep(0)
    if summary is None or (before is not None and summary["data"] == before["data"]):
        return {}
    return {SUMMARY: summary["data"] if _fits(summary["data"], metadata or {}) else None}


def _fits(data: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Return whether a summary is small enough, alone and beside the application's own metadata."""
    is_small = len(encode_value(data, "summary")) <= _MAX_SUMMARY_BYTES
    return is_small and len(encode_value({**metadata, SUMMARY: data}, "metadata")) <= MAX_METADATA_BYTES


def _session_id(info: SessionInfo, project_key: str) -> str | None:
    """Return the SDK's id of a session in the index, or None if its key is not that of a transcript of the project."""
    try:
        project, session_id = split_key(str(info.session_id))
    except ValueError:
        return None
    return session_id if project == project_key else None


def _differs(shown: SessionInfo | None, at: datetime | None) -> bool:
    """Return whether the index does not show a transcript as this process has left it.

    Args:
        shown: what the index shows, or None.
        at: the time of this process's last append, or None after a deletion.
    """
    if shown is None or at is None:
        return shown is not None or at is not None
    return shown.last_active_at < at


def _mtime(info: SessionInfo) -> int:
    """Return the time of a session's last append in milliseconds. Its summary has the same."""
    return round(info.last_active_at.timestamp() * 1000)


class _Written:
    """The main transcripts that this process has appended to, or deleted, in the last minute.

    All ``DynamoDBSessionStore`` of the process share them: an application may make one for each request. Each has the
    time of the last append, or None after a deletion. A listing compares it with what the index shows, and reads the
    table only if they differ.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[tuple[str, str, str], tuple[float, datetime | None]] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, table_name: str, project_key: str, session_id: str, at: datetime | None) -> None:
        """Remember an append, or a deletion. Above the limit, forget those from longest ago."""
        with self._lock:
            self._times[table_name, project_key, session_id] = time.monotonic(), at
            self._times.move_to_end((table_name, project_key, session_id))
            if len(self._times) > _MAX_REMEMBERED:
                self._times.popitem(last=False)

    def since(self, table_name: str, project_key: str) -> list[tuple[str, datetime | None]]:
        """Return the session ids of a project's transcripts with their times. Forget what is old."""
        with self._lock:
            oldest = time.monotonic() - _REMEMBERED_SECONDS
            while self._times and next(iter(self._times.values()))[0] < oldest:
                self._times.popitem(last=False)
            return [
                (session_id, at)
                for (table, project, session_id), (_, at) in self._times.items()
                if (table, project) == (table_name, project_key)
            ]

    def forget_lock(self) -> None:
        """Replace the lock, because a fork may have copied it while a thread held it."""
        self._lock = threading.Lock()


_written = _Written()
after_fork_in_child(_written.forget_lock)
