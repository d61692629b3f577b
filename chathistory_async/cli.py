"""The command line."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections import Counter
from collections.abc import AsyncIterable, Iterable
from contextlib import aclosing
from decimal import Decimal
from typing import Any, TextIO

import aioboto3
from langchain_core.messages import AIMessage, HumanMessage

from ._codec.keys import KeyValue
from ._demo_agents import AGENTS, OWNER
from .errors import ChatHistoryError
from .history import DynamoDBChatMessageHistory
from .local import local_engine
from .store import ChatHistoryStore

try:
    import click
except ModuleNotFoundError:
    sys.exit("The command line needs click: pip install 'chathistory-async[cli]'")

TABLE = "ChatHistory"
CONVERSATIONS = {
    "alice": [("What is a partition key?", "The attribute that decides where DynamoDB stores an item.")],
    "bob": [("Say hello in French.", "Bonjour !"), ("And in Japanese?", "こんにちは")],
    "carol": [
        ("Is 0.1 + 0.2 equal to 0.3?", "Not in binary floating point."),
        ("Why?", "0.1 has no finite form in it."),
    ],
}
QUESTIONS = ["I am Dora.", "Who am I?"]

# The exit code of a process that SIGINT ended.
_INTERRUPTED = 130


class _NotDone(click.ClickException):
    """The command could not run or could not finish: exit code 2, as for wrong usage."""

    exit_code = 2


class _Commands(click.Group):
    """Commands that show an error as one line, never as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        # Characters that the terminal or the pipe cannot encode are escaped.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            return super().invoke(ctx)
        except ChatHistoryError as error:
            raise _NotDone(in_one_line(error)) from error
        except click.Abort as error:
            # The user gave no answer to a question.
            raise _NotDone("Nothing was done") from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(_INTERRUPTED)
        except BrokenPipeError:
            # The reader of the output has ended. The interpreter flushes stdout once more at exit, which must not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_NotDone.exit_code)


def in_one_line(value: object) -> str:
    """Return a value's text; characters that could move the cursor, hide text or begin a new line are escaped."""
    text = str(value) if isinstance(value, (str, int, Decimal, Exception)) else repr(value)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


@click.group(cls=_Commands)
@click.version_option(package_name="chathistory-async")
def main() -> None:
    """LangChain chat message history on DynamoDB."""


@main.command()
def demo() -> None:
    """Hold conversations on an embedded engine, some of them at the same time and some by agents, and read them back.

    There is an agent of each framework that is installed. Needs neither an AWS account nor Docker. Keeps no data.
    """
    try:
        asyncio.run(_demo())
    except ModuleNotFoundError as missing:
        raise click.ClickException(str(missing)) from None


async def _demo() -> None:
    session = aioboto3.Session(aws_access_key_id="demo", aws_secret_access_key="demo", region_name="us-east-1")
    click.echo("Starting the embedded engine …")
    async with (
        local_engine() as endpoint_url,
        ChatHistoryStore(TABLE, endpoint_url=endpoint_url, boto3_session=session, session_index=True) as store,
    ):
        await store.create_table()
        click.echo(f"Created the table {TABLE} on {endpoint_url}.\n")

        await asyncio.gather(*(_converse(store, name) for name in CONVERSATIONS))
        click.secho(f"Held {len(CONVERSATIONS)} conversations at once. The messages, read by the async API:", bold=True)
        for name in CONVERSATIONS:
            click.echo(f"\n[{name}]")
            for message in await store.session(name).aget_messages():
                click.echo(f"{message.type:>6}: {message.content}")

        click.secho("\nThe same messages, read by the synchronous API:\n", bold=True)
        # In a separate thread: a synchronous call would block this event loop.
        for transcript in await asyncio.to_thread(_read_synchronously, endpoint_url, session):
            click.echo(transcript)

        await _let_agents_talk(store)


async def _converse(store: ChatHistoryStore, name: str) -> None:
    history = store.session(name)
    for question, answer in CONVERSATIONS[name]:
        await history.aadd_messages([HumanMessage(question)])
        await history.aadd_messages([AIMessage(answer)])


async def _let_agents_talk(store: ChatHistoryStore) -> None:
    click.secho("Agents on the same table, a new one for each turn. Their models are made up:", bold=True)
    for extra, agent in AGENTS.items():
        click.echo(f"\n[{extra}]")
        try:
            ask = agent(store)
        except ModuleNotFoundError:
            click.echo(f"  It is not installed: pip install 'chathistory-async[{extra}]'")
            continue
        for question in QUESTIONS:
            click.echo(f" human: {question}\n    ai: {await ask(question)}")
    click.secho(f"\nThe sessions of {OWNER!r} in the session index:\n", bold=True)
    for info in (await store.list_sessions(OWNER)).sessions:
        click.echo(f"{info.session_id!s}: {info.message_count} values of the format {info.format}")


def _read_synchronously(endpoint_url: str, session: aioboto3.Session) -> list[str]:
    transcripts = []
    for name in CONVERSATIONS:
        history = DynamoDBChatMessageHistory(
            TABLE, name, endpoint_url, boto3_session=session, sort_key_name="MessageId"
        )
        transcripts.append(f"[{name}]\n{history}\n")
    return transcripts


@main.command()
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
@click.option("--ttl-key-name", default="expireAt", show_default=True, help="The expiry attribute in both tables.")
@click.option("--history-messages-key", default="History", show_default=True, help="Messages attribute in both tables.")
@click.option("--primary-key-name", default="SessionId", show_default=True, help="The partition key in both tables.")
@click.option("--sort-key-name", default="MessageId", show_default=True, help="The sort key of the target.")
@click.option("--key-parts", type=click.IntRange(1), help="The stores' key_parts: refuse ids with fewer or more parts.")
@click.option("--region", help="The AWS region. Default: the SDK's choice.")
@click.option("--endpoint-url", help="DynamoDB's endpoint. Default: the SDK's choice.")
@click.option("--source-kms-key-id", help="A KMS key, if the source holds encrypted messages.")
@click.option("--target-kms-key-id", help="The KMS key to encrypt the copies. Default: not encrypted.")
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
    endpoint_url: str | None,
    source_kms_key_id: str | None,
    target_kms_key_id: str | None,
) -> None:
    """Copy sessions from single items (langchain-community's) into an item collection.

    You can run it while the application runs, and repeatedly: it continues after an interruption, and copies the
    messages that were appended since the last run.

    Exit code 0: success. 1: all sessions were processed, but some failed, have diverged, or were kept although
    --delete-source was given. 2: the command could not run or could not finish, because of wrong usage, settings,
    table, credentials or connection. 130: the command was interrupted.
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
            raise _NotDone("Nothing was done")
    open_store = functools.partial(
        ChatHistoryStore,
        primary_key_name=primary_key_name,
        key_parts=key_parts,
        ttl_key_name=ttl_key_name,
        history_messages_key=history_messages_key,
        region_name=region,
        endpoint_url=endpoint_url,
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
        raise click.UsageError(in_one_line(error)) from error
    lines = None if ids is None else filter(None, (line.rstrip("\r\n") for line in ids))
    done = asyncio.run(_migrate(source, target, lines, dry_run=dry_run, delete_source=delete_source))
    sys.exit(0 if done else 1)


async def _migrate(
    source: ChatHistoryStore,
    target: ChatHistoryStore,
    ids: Iterable[str] | None,
    *,
    dry_run: bool,
    delete_source: bool,
) -> bool:
    """Print the progress, and return whether no session failed, diverged or was kept."""
    sessions, copied = Counter[str](), 0
    async with source, target:
        chosen: Iterable[KeyValue] | AsyncIterable[KeyValue] = source.scan_session_ids() if ids is None else ids
        async with aclosing(
            target.migrate_from(source, chosen, dry_run=dry_run, delete_source=delete_source)
        ) as progress:
            async for one in progress:
                counts = f"{one.outcome:>10}  +{one.copied} of {one.total}"
                click.echo(f"{counts}  {in_one_line(one.session_id)}  {in_one_line(one.error or '')}".rstrip())
                sessions[one.outcome] += 1
                copied += one.copied
    outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in sessions.most_common()) or "none"
    click.echo(f"Sessions: {outcomes}. Messages {'to copy' if dry_run else 'copied'}: {copied:,}.")
    return not sessions.keys() & {"failed", "diverged", "kept"}


if __name__ == "__main__":
    main()
