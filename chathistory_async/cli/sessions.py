"""The sessions of an owner, and what is known of one session."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from .._session_index.session import SessionInfo
from ..store import ChatHistoryStore
from .errors import Failed, in_own_words
from .output import (
    in_one_line,
    is_narrow,
    iso_text,
    json_of,
    size_text,
    terminal,
    time_text,
    title_of,
    write_fields,
    write_indented,
    write_json,
    write_table,
)
from .reading import nothing_in
from .settings import Command, Settings, as_json, in_event_loop, with_settings


@click.command("list", cls=Command, short_help="List the sessions of an owner.")
@click.argument("owner")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most that many sessions.")
@click.option("--before", metavar="CURSOR", help="The next page: the cursor of the page before.")
@as_json
@with_settings
@in_event_loop
async def list_(settings: Settings, owner: str, limit: int, before: str | None, as_json: bool) -> None:
    """List the sessions of OWNER, the last active first. Needs a table with a session index."""
    async with settings.store(session_index=True) as store:
        page = await store.list_sessions(owner, limit, before=before)
    if as_json:
        unreadable = [{"session": one.session_id, "error": in_own_words(one.error)} for one in page.unreadable]
        sessions = [_as_json(one) for one in page.sessions]
        write_json({"sessions": sessions, "unreadable": unreadable, "cursor": page.cursor})
        return
    if page.sessions:
        _write_list(page.sessions)
    elif not page.unreadable:
        click.echo(f"No sessions of {in_one_line(owner)}.")
    for one in page.unreadable:
        click.echo(f"Not readable: {in_one_line(one.session_id)}: {in_one_line(in_own_words(one.error))}")
    if page.cursor is not None:
        click.echo(f"More sessions: --before {page.cursor}")


@click.command(cls=Command, short_help="Show what the session index knows of a session.")
@click.argument("session")
@as_json
@with_settings
@in_event_loop
async def info(settings: Settings, session: str, as_json: bool) -> None:
    """Show the owner, title, times, count, format and metadata of SESSION. Needs a table with a session index."""
    async with settings.store(session_index=True) as store:
        found = await _info(store, session)
    if as_json:
        write_json(_as_json(found))
        return
    write_fields(
        [
            ("Session", in_one_line(found.session_id)),
            ("Owner", in_one_line(found.owner or "none")),
            ("Title", title_of(found.title) or "none"),
            ("Created", time_text(found.created_at)),
            ("Last active", time_text(found.last_active_at)),
            ("Messages", f"{found.message_count:,}"),
            ("Format", found.format),
            *(
                (f"Metadata {title_of(name)}", title_of(json_of(value).decode()))
                for name, value in found.metadata.items()
            ),
        ]
    )


@click.command(cls=Command, short_help="Show, set or remove the title of a session.")
@click.argument("session")
@click.argument("text", required=False)
@click.option("--remove", is_flag=True, help="Remove the title.")
@as_json
@with_settings
@in_event_loop
async def title(settings: Settings, session: str, text: str | None, remove: bool, as_json: bool) -> None:
    """Show the title of SESSION, or set it to TEXT. Needs a table with a session index."""
    if remove and text is not None:
        raise click.UsageError("Give a title or --remove, not both")
    async with settings.store(session_index=True) as store:
        if remove or text is not None:
            await store.set_title(session, text)
        else:
            text = (await _info(store, session)).title
    if as_json:
        write_json({"session": session, "title": text})
    elif text is not None:
        click.echo(title_of(text))


@click.command(cls=Command, short_help="Show how large a session is, and what it costs.")
@click.argument("session")
@as_json
@with_settings
@in_event_loop
async def stats(settings: Settings, session: str, as_json: bool) -> None:
    """Show how many messages, records and bytes SESSION has, and what an append and a read of it cost.

    Reads the whole session. Sizes and units follow AWS's published rules. An append in a table with a session index
    also writes the index.
    """
    async with await settings.store_as_indexed() as store:
        found = await store.get_session_stats(session)
    if found.format is None:
        raise nothing_in(session)
    if as_json:
        times = {"first_expiry": iso_text(found.first_expiry), "last_expiry": iso_text(found.last_expiry)}
        write_json({name: getattr(found, name) for name in type(found).__dataclass_fields__} | times)
        return
    unknown = "not known, the messages are encrypted"
    raw, largest = (
        unknown if size is None else size_text(size) for size in (found.raw_bytes, found.largest_message_bytes)
    )
    never = "never" if found.first_expiry is None else "some messages never"
    write_fields(
        [
            ("Format", found.format),
            ("Messages", f"{found.messages:,}"),
            ("Records", f"{found.records:,}"),
            ("Stored", size_text(found.stored_bytes)),
            ("Raw", raw),
            ("Largest message", largest),
            ("Largest record", f"{size_text(found.largest_record_bytes)} stored"),
            ("An append", f"{found.append_write_units:,.1f} write units on average"),
            ("A full read", f"{found.read_units:,} read units, half of that eventually consistent"),
            ("First expires", time_text(found.first_expiry) or "never"),
            ("Last expires", time_text(found.last_expiry) or never),
        ]
    )


def _write_list(sessions: list[SessionInfo]) -> None:
    columns = ("Session", "Title", "Messages", "Last active", "Format")
    rows = [
        (
            in_one_line(one.session_id),
            title_of(one.title),
            f"{one.message_count:,}",
            time_text(one.last_active_at),
            one.format,
        )
        for one in sessions
    ]
    if not is_narrow(console := terminal()):
        write_table(columns, rows, right=["Messages"])
        return
    for session, title, number, time, format_name in rows:
        console.print(Text(session, style="bold"))
        for line in filter(None, (title, f"Messages: {number}, {format_name}", time)):
            write_indented(console, line, 2)


async def _info(store: ChatHistoryStore, session: str) -> SessionInfo:
    found = await store.get_session_info(session)
    if found is None:
        raise Failed(f"The session index has no session {session!r}, or it has expired")
    return found


def _as_json(found: SessionInfo) -> dict[str, Any]:
    return {
        "session": found.session_id,
        "owner": found.owner,
        "title": found.title,
        "created_at": iso_text(found.created_at),
        "last_active_at": iso_text(found.last_active_at),
        "messages": found.message_count,
        "format": found.format,
        "metadata": found.metadata,
    }
