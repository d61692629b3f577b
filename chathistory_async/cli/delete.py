"""The commands that delete a session, some of its messages, or all sessions of an owner."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, NamedTuple

import click
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .._codec.format import LANGCHAIN_NAME
from .._codec.keys import KeyValue
from ..errors import UndecodableItemError
from ..store import ChatHistoryStore
from .errors import Failed
from .output import in_one_line, iso_text, number_of, progress, write_json
from .reading import format_of
from .settings import Command, Settings, as_json, in_event_loop, with_settings

_LISTED = 200
# In a network without a way to STS, the SDK's default would hold a purge up for five minutes.
_IDENTITY_SECONDS = 5.0
_NOT_COVERED = [
    "sessions without this owner, such as those that were never appended to with an owner",
    "sessions that began within the last second: repeat the purge",
    "the table's backups, point-in-time recovery, exports and streams, until they expire",
    "the single items that sessions were migrated from",
    "copies in logs, traces, agent checkpoints and other stores of the application",
]

yes = click.option("--yes", is_flag=True, help="Delete without asking.")


@click.command(cls=Command, short_help="Delete a session with all its messages.")
@click.argument("session")
@yes
@as_json
@with_settings
@in_event_loop
async def delete(settings: Settings, session: str, yes: bool, as_json: bool) -> None:
    """Delete SESSION: its messages, title and metadata, its entry in the session index and its idempotency keys.

    In a single item, all attributes of the item are deleted.
    """
    is_single = settings.layout == "single_item"
    async with settings.store(session_index=not is_single) as store:
        number = await _count(store, session, indexed=not is_single)
        if number is None:
            raise Failed(f"There is no session {session!r}")
        _confirm(f"Delete the session {session!r} with {number_of(number, 'message')}?", yes)
        if is_single:
            await store.session(session).aclear()
        else:
            number = await store.delete_session(session)
    if as_json:
        write_json({"session": session, "messages": number})
    else:
        click.echo(f"Deleted the session {in_one_line(session)} with {number_of(number, 'message')}.")


@click.command("delete-message", cls=Command, short_help="Delete messages of a session by their ids.")
@click.argument("session")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@yes
@as_json
@with_settings
@in_event_loop
async def delete_message(settings: Settings, session: str, ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete messages of SESSION by their ids, which `show --ids` shows. Ids of no message are ignored.

    The id that an error names, of a message or of a whole record that cannot be read, is accepted, too.
    """
    async with await settings.store_as_indexed() as store:
        name = await format_of(store, session)
        _confirm(f"Delete {number_of(len(ids), 'message')} of the session {session!r}?", yes)
        if name == LANGCHAIN_NAME:
            await store.session(session).adelete_messages(ids)
        else:
            await store.json_session(session, format=name).adelete(ids)
    if as_json:
        write_json({"session": session, "ids": list(ids)})
    else:
        click.echo(f"Deleted what was stored under {number_of(len(ids), 'id')}.")


class _Listed(NamedTuple):
    """A session to delete, and how many messages it has; None if that is not known."""

    id: KeyValue
    messages: int | None


@click.command(cls=Command, short_help="Delete all sessions of an owner, and write a receipt.")
@click.argument("owner")
@yes
@with_settings
@in_event_loop
async def purge(settings: Settings, owner: str, yes: bool) -> None:
    """Delete all sessions of OWNER that the session index has, and write a receipt as JSON.

    The receipt says how many sessions and messages were deleted, when, by which AWS identity, and what is not covered.
    A purge that failed or was interrupted also writes one, and can be repeated: it continues, and its receipt has what
    it has deleted itself.
    """
    receipt: dict[str, Any] = {"owner": owner, "table": settings.table, "complete": False, "sessions": 0, "messages": 0}
    async with settings.store(session_index=True) as store:
        listed = await _listed(store, owner)
        known = sum(one.messages or 0 for one in listed)
        _confirm(f"Delete {number_of(len(listed), 'session')} of {owner!r} with {number_of(known, 'message')}?", yes)
        receipt |= {"identity": await _identity(settings), "began_at": iso_text(datetime.now(timezone.utc))}
        try:
            with progress("Deleting sessions", len(listed)) as advance:
                for one in listed:
                    _count_up(receipt, 1, await store.delete_session("", key={settings.primary_key_name: one.id}))
                    advance()
                # Also the expired ones, which are not listed, and those that began meanwhile.
                rest = await store.purge_owner(owner)
                _count_up(receipt, rest.sessions, rest.messages)
            receipt["complete"] = True
        finally:
            receipt |= {"ended_at": iso_text(datetime.now(timezone.utc)), "not_covered": _NOT_COVERED}
            write_json(receipt)


def _count_up(receipt: dict[str, Any], sessions: int, messages: int) -> None:
    receipt["sessions"] += sessions
    receipt["messages"] += messages


async def _listed(store: ChatHistoryStore, owner: str) -> list[_Listed]:
    listed: list[_Listed] = []
    cursor = None
    while True:
        page = await store.list_sessions(owner, _LISTED, before=cursor)
        listed += (_Listed(one.session_id, one.message_count) for one in page.sessions)
        listed += (_Listed(one.session_id, None) for one in page.unreadable)
        cursor = page.cursor
        if cursor is None:
            return listed


async def _count(store: ChatHistoryStore, session: str, *, indexed: bool) -> int | None:
    """Return how many messages a session has, or None if there is no session."""
    if indexed:
        # A damaged entry of the index is deleted like any other.
        with suppress(UndecodableItemError):
            if (found := await store.get_session_info(session)) is not None:
                return found.message_count
    stats = await store.get_session_stats(session)
    return None if stats.format is None else stats.messages


async def _identity(settings: Settings) -> str:
    """Return the ARN of the credentials' identity, or why it is not known. AWS needs no permission for that."""
    soon = Config(connect_timeout=_IDENTITY_SECONDS, read_timeout=_IDENTITY_SECONDS, retries={"total_max_attempts": 2})
    try:
        async with settings.session().client("sts", region_name=settings.region, config=soon) as sts:
            identity: str = (await sts.get_caller_identity())["Arn"]
    except ClientError as error:
        return f"not known ({error.response['Error']['Code']})"
    except (BotoCoreError, ValueError) as error:
        return f"not known ({type(error).__name__})"
    return identity


def _confirm(question: str, yes: bool) -> None:
    if not yes and not click.confirm(in_one_line(question), err=True):
        raise Failed("Nothing was done")
