"""Showing a session in the terminal, and following it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import click
from rich.console import Console
from rich.text import Text

from ..store import ChatHistoryStore
from .messages import Part, Shown
from .output import in_one_line, iso_text, terminal, time_text, title_of, write_indented, write_json
from .reading import Entry, entries, format_of, nothing_in
from .settings import Command, Settings, as_json, in_event_loop, with_settings

_STYLES = {"human": "green", "user": "green", "ai": "cyan", "assistant": "cyan", "tool": "yellow", "system": "magenta"}
# How many of the latest messages each read returns, unless more were added since the last one.
_POLLED = 100


@click.command("show", cls=Command, short_help="Show the messages of a session.")
@click.argument("session")
@click.option("--last", type=click.IntRange(1), help="Only that many messages, the latest.")
@click.option("--ids", is_flag=True, help="Show the messages' ids, too.")
@as_json
@with_settings
@in_event_loop
async def show(settings: Settings, session: str, last: int | None, ids: bool, as_json: bool) -> None:
    """Show the messages of SESSION: who said what, and when, in UTC.

    Images and files are shown by their type and size. With --json, each message is one line of JSON.
    """
    async with settings.store() as store:
        name = await format_of(store, session)
        number = 0
        async with aclosing(entries(settings, store, session, name, last)) as values:
            async for entry in values:
                number += 1
                _write(entry, name, ids=ids, as_json=as_json)
        if not number:
            raise nothing_in(session)


@click.command("tail", cls=Command, short_help="Show new messages of a session as they come.")
@click.argument("session")
@click.option("--last", type=click.IntRange(0, _POLLED), default=10, show_default=True, help="Begin with that many.")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between reads.")
@click.option("--ids", is_flag=True, help="Show the messages' ids, too.")
@as_json
@with_settings
def tail(settings: Settings, session: str, last: int, interval: float, ids: bool, as_json: bool) -> None:
    """Show the latest messages of SESSION, and then new ones as they come, until Ctrl-C.

    The session may begin later. Each read of the latest messages costs at least half a read unit.
    """
    if settings.layout == "single_item":
        raise click.UsageError("tail needs a table with a sort key: --layout item_collection")
    with suppress(KeyboardInterrupt):
        asyncio.run(_follow(settings, session, last, interval, ids=ids, as_json=as_json))


async def _follow(settings: Settings, session: str, last: int, interval: float, *, ids: bool, as_json: bool) -> None:
    async with settings.store() as store:
        name = await store.get_format(session)
        values = await _latest(settings, store, session, name, _POLLED)
        seen, new = set[str | None](), values[len(values) - min(last, len(values)) :]
        while True:
            for entry in new:
                _write(entry, name or "", ids=ids, as_json=as_json)
            seen |= {entry.id for entry in values}
            await asyncio.sleep(interval)
            name = name or await store.get_format(session)
            values = await _unseen(settings, store, session, name, seen)
            new = [entry for entry in values if entry.id not in seen]


async def _unseen(
    settings: Settings, store: ChatHistoryStore, session: str, name: str | None, seen: set[str | None]
) -> list[Entry]:
    """Return the latest messages, at least those that were added since the last read."""
    number = _POLLED
    while True:
        values = await _latest(settings, store, session, name, number)
        if len(values) < number or any(entry.id in seen for entry in values):
            return values
        number *= 4


async def _latest(
    settings: Settings, store: ChatHistoryStore, session: str, name: str | None, number: int
) -> list[Entry]:
    if name is None:
        return []
    async with aclosing(entries(settings, store, session, name, number)) as values:
        return [entry async for entry in values]


def _write(entry: Entry, format_name: str, *, ids: bool, as_json: bool) -> None:
    if as_json:
        write_json({"id": entry.id, "created_at": iso_text(entry.time), "format": format_name, "value": entry.value})
        return
    console, one = terminal(), entry.shown(format_name)
    _write_heading(console, one, ids=ids)
    for part in one.parts:
        _write_part(console, part)
    console.print()


def _write_heading(console: Console, one: Shown, *, ids: bool) -> None:
    heading = Text(title_of(one.speaker), style=f"bold {_STYLES.get(one.role, 'blue')}")
    for detail in (time_text(one.time), one.id if ids else None):
        if detail:
            heading.append(f"  {detail}", style="not bold dim")
    console.print(heading, soft_wrap=not console.is_terminal)


def _write_part(console: Console, part: Part) -> None:
    if part.kind == "text":
        write_indented(console, part.text, 2)
        return
    if part.label:
        label = f"[{part.label}]" if part.kind == "attachment" else f"{part.label}:"
        write_indented(console, in_one_line(label), 2, "bold")
    if part.text:
        write_indented(console, part.text, 4 if part.label else 2, "dim" if part.kind == "reasoning" else "")
