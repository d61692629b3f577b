"""The output of commands: texts without control characters, tables, JSON and progress bars."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Protocol

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .._codec.json_values import encode_value

# Joiners of emoji and of scripts that are written from right to left. They are not printable, and harmless.
_JOINERS = "\u200c\u200d\u200e\u200f"
# No table of a pipe is as wide, so none of its lines is broken.
_PIPE_COLUMNS = 100_000
_TABLE_COLUMNS = 60


def in_one_line(value: object) -> str:
    """Return a value's text; characters that could move the cursor, hide text or begin a new line are escaped."""
    return _escaped(str(value) if isinstance(value, (str, int, Decimal, Exception)) else repr(value), "")


def title_of(text: str | None) -> str:
    """Return a title for people, in one line. It may have emoji and scripts that need joiners, unlike an id."""
    return _escaped(text or "", _JOINERS)


def readable(text: str) -> str:
    """Return a text of several lines; characters that could move the cursor or reorder other text are escaped."""
    return _escaped(text.replace("\r\n", "\n"), f"{_JOINERS}\n\t")


def _escaped(text: str, allowed: str, escape: Callable[[str], str] = lambda char: repr(char)[1:-1]) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in allowed else escape(char) for char in text)


def number_of(number: int, what: str) -> str:
    """Return a number with its noun, such as "1 message" or "1,024 messages"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size_text(size: int) -> str:
    """Return a number of bytes for people: in bytes, kB or MB."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:,.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:,.1f} MB"


def time_text(time: datetime | None) -> str:
    """Return a time in UTC, to the second, or an empty text."""
    return "" if time is None else time.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso_text(time: datetime | None) -> str | None:
    """Return a time as programs read it: ISO 8601 in UTC, to the millisecond."""
    if time is None:
        return None
    return time.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def terminal() -> Console:
    """Return the console of standard output. In a pipe its lines are as long as they are."""
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    return console


def is_narrow(console: Console) -> bool:
    """Return whether the columns of a table would be too narrow to be read."""
    return console.width < _TABLE_COLUMNS


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Write a table. In a pipe its lines are not broken.

    Args:
        columns: the names of the columns.
        rows: the cells of each row, without control characters.
        right: the names of the columns that are aligned to the right.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _write(table)


def write_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Write names and values without control characters, one pair a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(Text(name), Text(value))
    _write(table)


def write_findings(rows: Iterable[tuple[Text, str, str]]) -> None:
    """Write rows of a state, a name and a text; in a narrow terminal, the text below the others."""
    if is_narrow(console := terminal()):
        for state, name, text in rows:
            console.print(Text.assemble(state, " ", (name, "bold")))
            write_indented(console, text, 2)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for state, name, text in rows:
        table.add_row(state, Text(name), Text(text))
    _write(table)


def _write(table: Table) -> None:
    console = terminal()
    with console.capture() as captured:
        console.print(table)
    # The cells of the last column end with spaces.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def write_indented(console: Console, text: str, columns: int, style: str = "") -> None:
    """Write a text of several lines, each of them indented. A terminal's lines are wrapped between words."""
    if console.is_terminal:
        console.print(Padding(Text(readable(text), style=style), (0, 0, 0, columns), expand=False))
    else:
        for line in readable(text).split("\n"):
            console.print(Text(f"{' ' * columns}{line}".rstrip()), soft_wrap=True)


def json_of(value: Any) -> bytes:
    """Return a value as one line of JSON. Bytes, sets, NaN and large integers have the library's marks.

    Characters that a terminal could take for an instruction are escaped. JSON itself escapes only some of them.
    """
    return _escaped(encode_value(value, "value").decode(), _JOINERS, lambda char: json.dumps(char)[1:-1]).encode()


def write_json(value: Any) -> None:
    """Write a value as one line of JSON, in UTF-8 whatever the terminal's encoding is."""
    click.echo(json_of(value))


class Advance(Protocol):
    """Moves a progress bar forward."""

    def __call__(self, steps: int = 1) -> None:
        """Move the bar by some steps."""


@contextmanager
def progress(what: str, total: int | None, *, hidden: bool = False) -> Iterator[Advance]:
    """Show a progress bar on standard error if that is a terminal, and nothing if it is not.

    Lines that the command writes to the same terminal meanwhile are shown above the bar.

    Args:
        what: what is done, such as "Deleting sessions".
        total: how many steps there are, or None if that is not known.
        hidden: show nothing in any case.
    """
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        console=console,
        disable=hidden or not console.is_terminal,
        transient=True,
        # Output to a file or a pipe must not be redirected to the terminal.
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(steps: int = 1) -> None:
            bar.advance(task, steps)

        yield advance
