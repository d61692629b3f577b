"""Migrating sessions from single items into an item collection."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import aclosing
from typing import TextIO

import click

from .._codec.keys import KeyValue
from .._migration.outcome import MigrationResult
from ..errors import ChatHistoryError
from ..store import ChatHistoryStore
from .errors import ADVICE_ON_KEYS, FAILED, Failed, in_own_words
from .output import in_one_line, progress, write_json
from .settings import as_json, session_of, shared_option

_WORDS = {
    # The two tables may have different KMS keys.
    "kms_key_id": "--source-kms-key-id or --target-kms-key-id",
    # The tables may have been given in the wrong order.
    ADVICE_ON_KEYS: "SOURCE_TABLE must hold single items and TARGET_TABLE have the sort key --sort-key-name, and both"
    " have the partition key --primary-key-name",
}


@click.command(short_help="Copy sessions from single items into an item collection.")
@click.argument("source_table")
@click.argument("target_table")
@click.option(
    "--ids",
    # A line that is not UTF-8 then fails as one session, and not the whole file.
    type=click.File(encoding="utf-8-sig", errors="surrogateescape"),
    help="A file with one session id on each line; - for standard input.",
)
@click.option("--scan", is_flag=True, help="Copy all sessions of the source. Reads the whole table.")
@click.option("--dry-run", is_flag=True, help="Show what would be copied, and write nothing.")
@click.option("--delete-source", is_flag=True, help="Delete each source after copying and verifying it.")
@click.option("--yes", is_flag=True, help="Delete sources without asking first.")
@click.option("--session-index", is_flag=True, help="The target has a session index: count the copied messages.")
@click.option("--ttl", type=click.IntRange(1), help="The target's ttl in seconds, for sources that never expire.")
@shared_option("--ttl-key-name", default="expireAt", show_default=True, help="The expiry attribute in both tables.")
@shared_option(
    "--history-messages-key", default="History", show_default=True, help="Messages attribute in both tables."
)
@shared_option("--primary-key-name", default="SessionId", show_default=True, help="The partition key in both tables.")
@shared_option("--sort-key-name", default="MessageId", show_default=True, help="The sort key of the target.")
@click.option("--key-parts", type=click.IntRange(1), help="The stores' key_parts: refuse ids with fewer or more parts.")
@shared_option("--region", help="The AWS region. Default: the SDK's choice.")
@shared_option("--profile", help="The AWS profile. Default: the SDK's choice.")
@shared_option("--endpoint-url", help="DynamoDB's endpoint. Default: the SDK's choice.")
@click.option("--source-kms-key-id", help="A KMS key, if the source holds encrypted messages.")
@click.option("--target-kms-key-id", help="The KMS key to encrypt the copies. Default: not encrypted.")
@as_json
def migrate(
    source_table: str,
    target_table: str,
    ids: TextIO | None,
    scan: bool,
    dry_run: bool,
    delete_source: bool,
    yes: bool,
    session_index: bool,
    ttl: int | None,
    ttl_key_name: str,
    history_messages_key: str,
    primary_key_name: str,
    sort_key_name: str,
    key_parts: int | None,
    region: str | None,
    profile: str | None,
    endpoint_url: str | None,
    source_kms_key_id: str | None,
    target_kms_key_id: str | None,
    as_json: bool,
) -> None:
    """Copy sessions from single items (langchain-community's) into an item collection.

    You can run it while the application runs, and repeatedly: it continues after an interruption, and copies the
    messages that were appended since the last run.

    Exit code 0: success. 1: the command failed or could not finish, or sessions failed, have diverged, or were kept
    although --delete-source was given. 2: wrong usage. 130: the command was interrupted.
    """
    if ids is not None and scan:
        raise click.UsageError("Give --ids or --scan, not both")
    if ids is None and not scan:
        raise click.UsageError("Say which sessions: --ids or --scan")
    deletes = delete_source and not dry_run
    if deletes and not yes:
        if ids is not None and ids.name == "<stdin>":
            raise click.UsageError("Standard input has the ids: --yes is needed to delete the source")
        if not click.confirm(f"Delete sessions from {source_table} after copying and verifying them?"):
            raise Failed("Nothing was done")
    open_store = functools.partial(
        ChatHistoryStore,
        primary_key_name=primary_key_name,
        key_parts=key_parts,
        ttl_key_name=ttl_key_name,
        history_messages_key=history_messages_key,
        region_name=region,
        endpoint_url=endpoint_url,
        boto3_session=None if profile is None else session_of(profile, region),
    )
    try:
        source = open_store(source_table, layout="single_item", kms_key_id=source_kms_key_id)
        target = open_store(
            target_table,
            sort_key_name=sort_key_name,
            ttl=ttl,
            session_index=session_index,
            kms_key_id=target_kms_key_id,
        )
    except (ValueError, ModuleNotFoundError) as error:
        raise click.UsageError(in_own_words(error, _WORDS)) from error
    lines = None if ids is None else filter(None, (line.rstrip("\r\n") for line in ids))
    write = _write_json if as_json else _write_line
    done = asyncio.run(_migrate(source, target, lines, write, dry_run=dry_run, delete_source=delete_source))
    if not done:
        sys.exit(FAILED)


async def _migrate(
    source: ChatHistoryStore,
    target: ChatHistoryStore,
    ids: Iterable[str] | None,
    write: Callable[[MigrationResult], None],
    *,
    dry_run: bool,
    delete_source: bool,
) -> bool:
    """Write the progress, and return whether no session failed, diverged or was kept."""
    sessions, copied = Counter[str](), 0
    with progress("Migrating sessions", None) as advance:
        async with source, target:
            chosen: Iterable[KeyValue] | AsyncIterable[KeyValue] = source.scan_session_ids() if ids is None else ids
            try:
                async with aclosing(
                    target.migrate_from(source, chosen, dry_run=dry_run, delete_source=delete_source)
                ) as results:
                    async for one in results:
                        write(one)
                        advance()
                        sessions[one.outcome] += 1
                        copied += one.copied
            except ChatHistoryError as error:
                raise Failed(in_own_words(error, _WORDS)) from error
    outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in sessions.most_common()) or "none"
    summary = f"Sessions: {outcomes}. Messages {'to copy' if dry_run else 'copied'}: {copied:,}."
    # With JSON, standard output has only the sessions.
    click.echo(summary, err=write is _write_json)
    return not sessions.keys() & {"failed", "diverged", "kept"}


def _write_line(one: MigrationResult) -> None:
    # A dry run tells how many messages the target would have.
    total = one.total + (one.copied if one.outcome == "would_copy" else 0)
    counts = f"{one.outcome:>10}  +{one.copied} of {total}"
    reason = in_one_line(in_own_words(one.error or "", _WORDS))
    click.echo(f"{counts}  {in_one_line(one.session_id)}  {reason}".rstrip())


def _write_json(one: MigrationResult) -> None:
    write_json(
        {
            "session": one.session_id,
            "outcome": one.outcome,
            "copied": one.copied,
            "total": one.total,
            "error": None if one.error is None else in_own_words(one.error, _WORDS),
        }
    )
