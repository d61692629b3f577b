"""The command line."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections import Counter
from collections.abc import AsyncIterable, Iterable
from typing import TextIO

import aioboto3
from langchain_core.messages import AIMessage, HumanMessage

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


@click.group()
@click.version_option(package_name="chathistory-async")
def main() -> None:
    """LangChain chat message history on DynamoDB."""


@main.command()
def demo() -> None:
    """Hold several conversations at once on an embedded engine, and read them again.

    Needs neither an AWS account nor Docker, and keeps no data.
    """
    asyncio.run(_demo())


async def _demo() -> None:
    session = aioboto3.Session(aws_access_key_id="demo", aws_secret_access_key="demo", region_name="us-east-1")
    click.echo("Starting the embedded engine …")
    async with local_engine() as endpoint_url:
        async with ChatHistoryStore(TABLE, endpoint_url=endpoint_url, boto3_session=session) as store:
            await store.create_table()
            click.echo(f"Created the table {TABLE} on {endpoint_url}.\n")

            await asyncio.gather(*(_converse(store, name) for name in CONVERSATIONS))
            click.secho(
                f"Held {len(CONVERSATIONS)} conversations at once. What is stored, by the async API:", bold=True
            )
            for name in CONVERSATIONS:
                click.echo(f"\n[{name}]")
                for message in await store.session(name).aget_messages():
                    click.echo(f"{message.type:>6}: {message.content}")

        click.secho("\nThe same, by the synchronous API, as plain code calls it:\n", bold=True)
        # On a thread of its own: a synchronous call would block this event loop.
        for transcript in await asyncio.to_thread(_read_synchronously, endpoint_url, session):
            click.echo(transcript)


async def _converse(store: ChatHistoryStore, name: str) -> None:
    history = store.session(name)
    for question, answer in CONVERSATIONS[name]:
        await history.aadd_messages([HumanMessage(question)])
        await history.aadd_messages([AIMessage(answer)])


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
@click.option("--ids", type=click.File(), help="A file of session ids, one a line; - for standard input.")
@click.option("--scan", is_flag=True, help="All sessions of the source: reads all of the table.")
@click.option("--dry-run", is_flag=True, help="Find out what would be copied, and write nothing.")
@click.option("--delete-source", is_flag=True, help="Delete each source that was copied, and read again and compared.")
@click.option("--yes", is_flag=True, help="Do not ask before the source is deleted.")
@click.option("--session-index", is_flag=True, help="The target has a session index: count what is copied in it.")
@click.option("--ttl", type=click.IntRange(1), help="The target's ttl in seconds, for sources that never expire.")
@click.option("--ttl-key-name", default="expireAt", show_default=True, help="The expiry's attribute, in both tables.")
@click.option("--history-messages-key", default="History", show_default=True, help="The messages', in both tables.")
@click.option("--primary-key-name", default="SessionId", show_default=True, help="The partition key, in both tables.")
@click.option("--sort-key-name", default="MessageId", show_default=True, help="The sort key of the target.")
@click.option("--region", help="The region, if not the SDK's choice.")
@click.option("--endpoint-url", help="DynamoDB's endpoint, if not the SDK's choice.")
@click.option("--source-kms-key-id", help="A KMS key: the source holds sealed messages.")
@click.option("--target-kms-key-id", help="The KMS key to seal messages under in the target.")
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
    region: str | None,
    endpoint_url: str | None,
    source_kms_key_id: str | None,
    target_kms_key_id: str | None,
) -> None:
    """Copy sessions from single items (langchain-community's) into an item collection.

    While the application runs, and as often as you like: it goes on where it was stopped, and copies what has been
    appended since. Ends with 1 if a session failed.
    """
    if (ids is None) != scan:
        raise click.UsageError("Say which sessions: --ids or --scan")
    deletes = delete_source and not dry_run
    if deletes and not yes:
        if ids is not None and ids.name == "<stdin>":
            raise click.UsageError("Standard input has the ids: --yes is needed to delete the source")
        click.confirm(f"Shall sessions be gone from {source_table} once they are copied?", abort=True)
    open_store = functools.partial(
        ChatHistoryStore,
        primary_key_name=primary_key_name,
        ttl_key_name=ttl_key_name,
        history_messages_key=history_messages_key,
        region_name=region,
        endpoint_url=endpoint_url,
    )
    source = open_store(source_table, layout="single_item", kms_key_id=source_kms_key_id)
    target = open_store(
        target_table, sort_key_name=sort_key_name, ttl=ttl, session_index=session_index, kms_key_id=target_kms_key_id
    )
    lines = None if ids is None else filter(None, (line.rstrip("\r\n") for line in ids))
    try:
        failed = asyncio.run(_migrate(source, target, lines, dry_run=dry_run, delete_source=delete_source))
    except ChatHistoryError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(1 if failed else 0)


async def _migrate(
    source: ChatHistoryStore,
    target: ChatHistoryStore,
    ids: Iterable[str] | None,
    *,
    dry_run: bool,
    delete_source: bool,
) -> int:
    """Show the progress, and return how many sessions failed."""
    sessions, copied = Counter[str](), 0
    async with source, target:
        chosen: Iterable[str] | AsyncIterable[str] = source.scan_session_ids() if ids is None else ids
        async for one in target.migrate_from(source, chosen, dry_run=dry_run, delete_source=delete_source):
            click.echo(f"{one.outcome:>10}  +{one.copied} of {one.total}  {one.session_id}  {one.error or ''}".rstrip())
            sessions[one.outcome] += 1
            copied += one.copied
    outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in sessions.most_common()) or "none"
    click.echo(f"Sessions: {outcomes}. Messages {'to copy' if dry_run else 'copied'}: {copied:,}.")
    return sessions["failed"]


if __name__ == "__main__":
    main()
