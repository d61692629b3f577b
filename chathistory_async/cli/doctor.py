"""The doctor: checks the table, the key, the clock and the messages, and says what to do."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple

import click
from rich.text import Text

from .._aws.table import TableDescription
from .._session_index.owner_index import INDEX_NAME, KEY_SCHEMA
from .._version import __version__
from ..errors import AccessDeniedError, ChatHistoryError, LayoutError
from ..store import ChatHistoryStore
from .errors import FAILED, in_own_words
from .output import in_one_line, write_findings, write_json
from .settings import Command, Settings, as_json, in_event_loop, with_settings

Status = Literal["ok", "note", "warning", "problem"]
_STYLES: dict[Status, str] = {"ok": "green", "note": "", "warning": "yellow", "problem": "bold red"}
# AWS refuses a request that is signed five minutes ago. Times within the first are usual.
_CLOCK_WARNING_SECONDS, _CLOCK_PROBLEM_SECONDS = 30, 240
_PACKAGES = ("aioboto3", "aiobotocore", "botocore", "langchain-core", "aws-encryption-sdk")


class Finding(NamedTuple):
    """A finding.

    Attributes:
        check: what was checked.
        status: "ok"; "note", a choice that may be meant; "warning"; or "problem".
        found: what was found.
        advice: what to do, or empty.
    """

    check: str
    status: Status
    found: str
    advice: str = ""


@click.command(cls=Command, short_help="Check the table, the KMS key, the clock and a session.")
@click.option("--session", help="Also read this session, and name its messages that cannot be read.")
@as_json
@with_settings
@in_event_loop
async def doctor(settings: Settings, session: str | None, as_json: bool) -> None:
    """Check the table against the options, and say what to do.

    The checks: key, TTL, session index, backups, encryption, KMS permissions, this host's clock, fast path, versions,
    and with --session the messages of a session.

    Exit code 1: there is a problem.
    """
    async with settings.store() as store, aclosing(_findings(settings, store, session)) as found:
        findings = [finding async for finding in found]
    if as_json:
        write_json([finding._asdict() for finding in findings])
    else:
        _write(findings)
    if any(finding.status == "problem" for finding in findings):
        sys.exit(FAILED)


def _write(findings: list[Finding]) -> None:
    write_findings(
        (Text(status, style=_STYLES[status]), check, in_one_line(f"{found}: {advice}" if advice else found))
        for check, status, found, advice in findings
    )


async def _findings(settings: Settings, store: ChatHistoryStore, session: str | None) -> AsyncGenerator[Finding, None]:
    try:
        table = await store.describe_table()
    except AccessDeniedError as error:
        yield _problem("table", error)
    else:
        for finding in _of_table(settings, table):
            yield finding
    yield await _of_kms_key(settings, store)
    yield _of_fast_path(store)
    yield Finding("versions", "ok", _versions())
    if session is not None:
        async with aclosing(_of_session(store, session)) as findings:
            async for finding in findings:
                yield finding


def _of_table(settings: Settings, table: TableDescription) -> Iterator[Finding]:
    is_usable = table.status in ("ACTIVE", "UPDATING")
    yield Finding(
        "table",
        "ok" if is_usable else "problem",
        f"{table.status}, about {table.items:,} items",
        "" if is_usable else "wait until it is ACTIVE",
    )
    yield _of_key(settings, table)
    yield _of_ttl(settings, table)
    if settings.layout == "item_collection":
        yield _of_index(table)
    yield _of_backups(table)
    key = table.kms_key_arn
    yield Finding("encryption at rest", "ok", "by the key that AWS owns" if key is None else f"by {key}")
    yield _of_clock(table)


def _of_key(settings: Settings, table: TableDescription) -> Finding:
    wanted = [(settings.primary_key_name, "HASH", "S")]
    if settings.layout == "item_collection":
        wanted.append((settings.sort_key_name, "RANGE", "S"))
    if table.key == wanted:
        return Finding("key", "ok", _described(table.key))
    advice = "give --primary-key-name, --sort-key-name and --layout of this table, or another table"
    return Finding("key", "problem", f"{_described(table.key)}, not {_described(wanted)}", advice)


def _of_ttl(settings: Settings, table: TableDescription) -> Finding:
    if error := table.problems.get("ttl_attribute"):
        return _unknown("TTL", error)
    if table.ttl_attribute is None:
        advice = (
            "nothing that has expired or was deleted leaves the table. Run chathistory create-table, which enables it"
        )
        return Finding("TTL", "problem", "not enabled", advice)
    found = f"enabled on {table.ttl_attribute}"
    if table.ttl_attribute == settings.ttl_key_name:
        return Finding("TTL", "ok", found)
    advice = "the store's ttl_key_name must be that attribute: give it as --ttl-key-name, or change the table's TTL"
    return Finding("TTL", "problem", f"{found}, not on {settings.ttl_key_name}", advice)


def _of_index(table: TableDescription) -> Finding:
    if table.index_status is None:
        advice = "list, info, title and purge need it. chathistory create-table --session-index adds it"
        return Finding("session index", "note", "none", advice)
    wanted = [(name, role, "S") for name, role in KEY_SCHEMA]
    if table.index_key != wanted or not table.index_holds_all:
        found = f"{INDEX_NAME} has the key {_described(table.index_key)}, or does not hold all attributes"
        advice = "delete that index, and run chathistory create-table --session-index"
        return Finding("session index", "problem", found, advice)
    if table.index_status == "ACTIVE":
        return Finding("session index", "ok", f"{INDEX_NAME}, ACTIVE")
    return Finding("session index", "warning", table.index_status, "sessions cannot be listed until it is ACTIVE")


def _of_backups(table: TableDescription) -> Finding:
    if error := table.problems.get("point_in_time_recovery"):
        return _unknown("backups", error)
    if table.point_in_time_recovery:
        return Finding("backups", "ok", "point-in-time recovery is enabled")
    advice = "chathistory create-table --point-in-time-recovery enables it"
    return Finding("backups", "warning", "point-in-time recovery is not enabled", advice)


def _of_clock(table: TableDescription) -> Finding:
    lead = table.clock_lead_seconds
    if lead is None:
        return Finding("clock", "note", "the endpoint sends no time")
    found = f"{abs(lead):,.0f} s {'ahead of' if lead > 0 else 'behind'} the endpoint's"
    if abs(lead) < _CLOCK_WARNING_SECONDS:
        return Finding("clock", "ok", found)
    status: Status = "warning" if abs(lead) < _CLOCK_PROBLEM_SECONDS else "problem"
    return Finding("clock", status, found, "set this host's clock, or AWS refuses its requests")


async def _of_kms_key(settings: Settings, store: ChatHistoryStore) -> Finding:
    if settings.kms_key_id is None:
        return Finding("KMS key", "note", "none: messages are not encrypted by this host")
    try:
        await store.check_kms_key()
    except ChatHistoryError as error:
        return _problem("KMS key", error)
    return Finding("KMS key", "ok", "GenerateDataKey and Decrypt are allowed")


def _of_fast_path(store: ChatHistoryStore) -> Finding:
    status = store.fast_path_status
    if status.active:
        return Finding("fast path", "ok", "on, in this process")
    return Finding("fast path", "note", f"off, in this process: {status.reason}")


def _versions() -> str:
    # A bundler of applications may have left out the library's metadata.
    found = [f"Python {platform.python_version()}", f"chathistory-async {__version__}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


async def _of_session(store: ChatHistoryStore, session: str) -> AsyncGenerator[Finding, None]:
    advice = f"chathistory delete-message {shlex.quote(session)} ID removes it"
    number = 0
    has_messages = False
    try:
        async with aclosing(store.iter_unreadable(session)) as errors:
            async for error in errors:
                number += 1
                yield Finding("messages", "problem", in_own_words(error), advice)
        has_messages = number > 0 or await store.get_format(session) is not None
    except LayoutError:
        try:
            has_messages = bool(await store.session(session).aget_messages())
        except ChatHistoryError as error:
            number += 1
            yield _problem("messages", error)
    except ChatHistoryError as error:
        number += 1
        yield _problem("messages", error)
    if number:
        return
    if has_messages:
        yield Finding("messages", "ok", f"all messages of {session} can be read")
    else:
        yield Finding("messages", "note", f"{session} has no messages", "check the session's id")


def _problem(check: str, error: ChatHistoryError) -> Finding:
    return Finding(check, "problem", in_own_words(error))


def _unknown(check: str, error: ChatHistoryError) -> Finding:
    return Finding(check, "warning", f"not known: {in_own_words(error)}")


def _described(key: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} ({role}, {kind})" for name, role, kind in key)
