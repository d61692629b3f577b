"""Importing a session from JSON lines."""

from __future__ import annotations

import codecs
import hashlib
from typing import Any, BinaryIO, NamedTuple

import click

from .._codec.format import LANGCHAIN_NAME
from .._codec.json_values import decode_value
from .errors import Failed
from .output import in_one_line, number_of, progress, write_json
from .settings import Command, Settings, as_json, in_event_loop, with_settings


class Batch(NamedTuple):
    """The values of a file, and their format."""

    format: str
    values: list[Any]


@click.command("import", cls=Command, short_help="Append the messages of an export to a session, all or none.")
@click.argument("file", type=click.File("rb"))
@click.argument("session")
@click.option("--owner", help="The owner of the session in the session index, if the session has none.")
@click.option("--ttl", type=click.IntRange(1), help="Seconds until the messages expire. Default: never.")
@as_json
@with_settings
@in_event_loop
async def import_(
    settings: Settings, file: BinaryIO, session: str, owner: str | None, ttl: int | None, as_json: bool
) -> None:
    """Append the messages of FILE, JSON lines of export, to SESSION: all of them or none. - is standard input.

    The messages get new ids and times. A file is stored once: within a day, the same file changes nothing, so an import
    whose end is not known can be repeated. All lines must be of one session and fit into 4 MB after compression.
    """
    content = file.read()
    batch = _batch(content)
    key = f"import:{hashlib.sha256(content).hexdigest()}"
    async with await settings.store_as_indexed(ttl=ttl) as store:
        with progress("Importing", None):
            if batch.format == LANGCHAIN_NAME:
                history = store.session(session, owner=owner)
                await history.aadd_messages(_messages(batch.values), idempotency_key=key)
            else:
                values = store.json_session(session, owner=owner, format=batch.format)
                await values.aadd(batch.values, idempotency_key=key)
    number = len(batch.values)
    if as_json:
        write_json({"session": session, "format": batch.format, "messages": number})
    else:
        click.echo(f"Imported {number_of(number, 'message')} into {in_one_line(session)}.")


def _batch(content: bytes) -> Batch:
    """Return the values of JSON lines.

    Raises:
        Failed: a line is not one of ``export``'s, or the lines are of several sessions or formats.
    """
    values, places = [], set[tuple[str | None, str]]()
    # Editors of Windows write a byte order mark.
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = decode_value(line)
            values.append(entry["value"])
            places.add((entry.get("session"), entry["format"]))
        except (ValueError, TypeError, LookupError, AttributeError):
            # Without the line's content.
            text = f"Line {number} is not a message of `chathistory export --as jsonl`. Nothing was written"
            raise Failed(text) from None
    if not places:
        raise Failed("The file has no messages")
    if len(places) > 1:
        raise Failed(f"The file has messages of {len(places)} sessions: divide it. Nothing was written")
    ((_, format_name),) = places
    return Batch(format_name, values)


def _messages(values: list[Any]) -> list[Any]:
    from langchain_core.messages import messages_from_dict

    try:
        return messages_from_dict(values)
    except Exception as error:  # noqa: BLE001  # pydantic's errors, and others for other forms
        # Without the error's text, which may quote the message.
        text = f"The file has a message that langchain-core cannot read ({type(error).__name__}). Nothing was written"
        raise Failed(text) from None
