"""The demo: several conversations at the same time, and agents of each framework, on an embedded engine."""

from __future__ import annotations

import asyncio

import aioboto3
import click

from ..local import local_engine
from ..store import ChatHistoryStore
from .demo_agents import AGENTS, OWNER
from .errors import Failed

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


@click.command(short_help="Hold conversations on an embedded engine, without AWS.")
def demo() -> None:
    """Hold conversations on an embedded engine, some of them at the same time and some by agents, and read them back.

    There is an agent of each framework that is installed. Needs neither an AWS account nor Docker. Keeps no data.
    """
    try:
        asyncio.run(_demo())
    except ModuleNotFoundError as missing:
        raise Failed(str(missing)) from None


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
    from langchain_core.messages import AIMessage, HumanMessage

    history = store.session(name, owner=OWNER)
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
    from ..history import DynamoDBChatMessageHistory

    transcripts = []
    for name in CONVERSATIONS:
        history = DynamoDBChatMessageHistory(
            TABLE, name, endpoint_url, boto3_session=session, sort_key_name="MessageId"
        )
        transcripts.append(f"[{name}]\n{history}\n")
    return transcripts
