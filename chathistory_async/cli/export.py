"""Exporting sessions: as JSON lines, JSON, Markdown or an HTML page."""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import click

from .._codec.json_values import decode_value
from .._codec.keys import KeyValue
from ..errors import ChatHistoryError
from ..store import ChatHistoryStore
from .errors import Failed
from .html import END, SESSION_END, page_head, session_head
from .html import message as html_of
from .markdown import heading
from .markdown import message as markdown_of
from .output import Advance, in_one_line, iso_text, json_of, number_of, progress
from .reading import Entry, entries, format_of, nothing_in
from .settings import Command, Settings, in_event_loop, with_settings

Redact: TypeAlias = Callable[[Any], Any]
Chunks: TypeAlias = AsyncGenerator[str, None]
_LISTED = 200


class Session(NamedTuple):
    """A session to export.

    Attributes:
        id: its id.
        format: the format of its values.
        title: its title, or None if it has none, or if the export is redacted.
        messages: how many messages it has, or None if that is not known.
    """

    id: str
    format: str
    title: str | None
    messages: int | None


class Exporter:
    """Exports sessions in one form.

    Args:
        settings: the store's settings.
        store: the store.
        redact: changes each value before it is exported, or None.
        advance: is called for each message.
    """

    def __init__(self, settings: Settings, store: ChatHistoryStore, redact: Redact | None, advance: Advance) -> None:
        self._settings = settings
        self._store = store
        self._redact = redact
        self._advance = advance

    async def entries(self, session: Session) -> AsyncGenerator[Entry, None]:
        """Yield the values of a session, redacted."""
        async with aclosing(entries(self._settings, self._store, session.id, session.format)) as values:
            async for entry in values:
                yield entry if self._redact is None else entry._replace(value=self._redacted(entry))
                self._advance()

    def _redacted(self, entry: Entry) -> Any:
        assert self._redact is not None  # noqa: S101  # the caller has checked it
        # Without the errors' texts, which may quote the message.
        try:
            value = self._redact(entry.value)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # the function is the user's
            raise Failed(f"--redact failed with {type(error).__name__}, at the message {entry.id}") from None
        try:
            # All forms show the same: what the value is in JSON.
            return decode_value(json_of(value))
        except ChatHistoryError:
            raise Failed(f"--redact returned a value that has no JSON, at the message {entry.id}") from None

    async def lines(self, sessions: list[Session]) -> Chunks:
        """Yield one line of JSON for each message, which ``import`` reads."""
        for session in sessions:
            async with aclosing(self.entries(session)) as values:
                async for entry in values:
                    named = {"session": session.id, "format": session.format}
                    yield _json({**named, **_as_json(entry)}) + "\n"

    async def json(self, sessions: list[Session]) -> Chunks:
        """Yield one JSON array of the sessions, each with its messages."""
        yield "["
        for number, session in enumerate(sessions):
            head = _json({"session": session.id, "format": session.format, "title": session.title})
            yield f'{"," if number else ""}\n{head[:-1]},"messages":['
            separator = "\n"
            async with aclosing(self.entries(session)) as values:
                async for entry in values:
                    yield separator + _json(_as_json(entry))
                    separator = ",\n"
            yield "\n]}"
        yield "\n]\n"

    async def markdown(self, sessions: list[Session]) -> Chunks:
        """Yield a Markdown document."""
        for session in sessions:
            yield heading(session.title or session.id)
            async with aclosing(self.entries(session)) as values:
                async for entry in values:
                    yield markdown_of(entry.shown(session.format))

    async def html(self, sessions: list[Session]) -> Chunks:
        """Yield an HTML page, which loads nothing."""
        titles = [session.title or session.id for session in sessions]
        yield page_head(titles)
        for number, session in enumerate(sessions):
            yield session_head(number, titles[number], session.id, session.format)
            async with aclosing(self.entries(session)) as values:
                async for entry in values:
                    yield html_of(entry.shown(session.format))
            yield SESSION_END
        yield END


_FORMS: dict[str, Callable[[Exporter, list[Session]], Chunks]] = {
    "jsonl": Exporter.lines,
    "json": Exporter.json,
    "markdown": Exporter.markdown,
    "html": Exporter.html,
}


@click.command("export", cls=Command, short_help="Export a session, or all sessions of an owner.")
@click.argument("session", required=False)
@click.option("--owner", help="Export all sessions of this owner, by the session index.")
@click.option(
    "--as",
    "form",
    type=click.Choice([*_FORMS]),
    default="jsonl",
    show_default=True,
    help="JSON lines, which import reads; one JSON array; Markdown; or an HTML page.",
)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file, or - (default) for the output."
)
@click.option("--redact", metavar="MODULE:FUNCTION", help="A function that takes a message's JSON and returns another.")
@with_settings
@in_event_loop
async def export(
    settings: Settings, session: str | None, owner: str | None, form: str, output: Path | None, redact: str | None
) -> None:
    """Export SESSION, or with --owner all sessions of an owner.

    The HTML page is one file that loads nothing. Markdown shows messages as they are written, except that HTML and
    images are escaped outside of code.

    A LangChain message is the JSON {"type": ..., "data": ...}. The function of --redact is looked up in the current
    directory, too; with it, titles are left out. The file of --output appears when the export is complete.
    """
    if (session is None) == (owner is None):
        raise click.UsageError("Give a session or --owner")
    function = None if redact is None else _function(redact)
    output = None if output == Path("-") else output
    async with settings.store(session_index=owner is not None) as store:
        if session is not None:
            sessions = [Session(session, await format_of(store, session), None, None)]
        else:
            sessions = await _sessions_of(store, owner or "", titles=function is None)
        totals = [one.messages for one in sessions if one.messages is not None]
        total = sum(totals) if len(totals) == len(sessions) else None
        written = 0
        # In a terminal the messages themselves show the progress.
        in_view = output is None and sys.stdout.isatty()
        with _target(output) as write, progress("Exporting messages", total, hidden=in_view) as advance:

            def count(steps: int = 1) -> None:
                nonlocal written
                written += steps
                advance(steps)

            async with aclosing(_FORMS[form](Exporter(settings, store, function, count), sessions)) as chunks:
                async for chunk in chunks:
                    write(chunk)
            if session is not None and not written:
                raise nothing_in(session)
    if output is not None:
        what = f"{number_of(written, 'message')} of {number_of(len(sessions), 'session')}"
        click.echo(f"Exported {what} to {output}.", err=True)


async def _sessions_of(store: ChatHistoryStore, owner: str, *, titles: bool) -> list[Session]:
    sessions: list[Session] = []
    cursor = None
    while True:
        page = await store.list_sessions(owner, _LISTED, before=cursor)
        for one in page.sessions:
            title = one.title if titles else None
            sessions.append(Session(_text(one.session_id), one.format, title, one.message_count))
        for unreadable in page.unreadable:
            # Only its title or its metadata cannot be read.
            session = _text(unreadable.session_id)
            if (name := await store.get_format(session)) is not None:
                sessions.append(Session(session, name, None, None))
        cursor = page.cursor
        if cursor is None:
            break
    if not sessions:
        raise Failed(f"The session index has no sessions of {owner!r}")
    return sessions


def _text(session_id: KeyValue) -> str:
    if isinstance(session_id, str):
        return session_id
    raise Failed(f"The session {session_id!r} has a key that is not text, which the command line cannot open")


def _function(path: str) -> Redact:
    module, _, name = path.partition(":")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the module is the user's
        raise click.UsageError(f"--redact {path} cannot be imported: {in_one_line(error)}") from error
    finally:
        sys.path.remove("")
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise click.UsageError(f"--redact {path} is not a function, or is an asynchronous one")
    return function  # type: ignore[no-any-return]


@contextmanager
def _target(output: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield what writes a text to the output, or to a file, which gets its name at the end."""
    if output is None:
        yield lambda text: click.echo(_utf_8(text), nl=False)
        return
    try:
        with _opened(output) as file:

            def write(text: str) -> None:
                file.write(_utf_8(text))

            yield write
    except OSError as error:
        raise Failed(f"{output} cannot be written: {error.strerror}") from error


@contextmanager
def _opened(output: Path) -> Iterator[BinaryIO]:
    if output.exists() and not output.is_file():
        # A device or a pipe must not be replaced by a file.
        with output.open("wb") as file:
            yield file
        return
    # The name is this process's own: another export may write to the same file.
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    file = part.open("xb")
    try:
        with file:
            if output.exists():
                shutil.copymode(output, part)
            yield file
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _utf_8(text: str) -> bytes:
    # Half of a surrogate pair, which Python's text may hold, has no form in UTF-8.
    return text.encode(errors="backslashreplace")


def _as_json(entry: Entry) -> dict[str, Any]:
    return {"id": entry.id, "created_at": iso_text(entry.time), "value": entry.value}


def _json(value: Any) -> str:
    return json_of(value).decode()
