"""Chats of langchain-community move to a new table while the application runs, on the embedded engine.

Run it with ``python examples/migrate_from_community.py``. It needs no key and no AWS account:
``pip install '.[local]' langchain-community``.
"""

import asyncio
import warnings

import boto3
from langchain_core.messages import AIMessage, HumanMessage

from chathistory_async import ChatHistoryStore
from chathistory_async.local import local_engine

with warnings.catch_warnings():
    # On import, langchain-community warns that it is no longer maintained.
    warnings.simplefilter("ignore")
    from langchain_community.chat_message_histories import DynamoDBChatMessageHistory


def owner_of(session_id: str) -> str:
    """Return the owner of a session, for the list of sessions that the old table does not have."""
    return session_id.split("-")[0]


async def main() -> None:
    """Write with langchain-community's class, copy, switch over, copy the rest, and read from the new table."""
    aws = boto3.Session(aws_access_key_id="demo", aws_secret_access_key="demo", region_name="us-east-1")
    async with (
        local_engine() as url,
        ChatHistoryStore("ChatHistory", endpoint_url=url, boto3_session=aws, layout="single_item") as old,
        ChatHistoryStore("Chats", endpoint_url=url, boto3_session=aws, session_index=True) as new,
    ):
        await old.create_table()
        await new.create_table()

        def write(session_id: str, *texts: str) -> None:
            history = DynamoDBChatMessageHistory("ChatHistory", session_id, endpoint_url=url, boto3_session=aws)
            history.add_messages([HumanMessage(texts[0]), AIMessage(texts[1])])

        # In a thread: langchain-community's class would block the event loop.
        await asyncio.to_thread(write, "alice-1", "Hello!", "Hi, how can I help?")
        await asyncio.to_thread(write, "bob-1", "Is it late?", "It is noon.")
        async for result in new.migrate_from(old, old.scan_session_ids(), owner_of=owner_of):
            print(f"{result.session_id!r}: {result.outcome}, {result.copied} messages")

        # The next run copies the messages that the application has still written to the old table.
        await asyncio.to_thread(write, "alice-1", "And tomorrow?", "Tomorrow too.")
        rest = new.migrate_from(old, old.scan_session_ids(), owner_of=owner_of, delete_source=True)
        async for result in rest:
            print(f"{result.session_id!r}: {result.outcome}, {result.copied} messages")

        for info in (await new.list_sessions("alice")).sessions:
            print(f"{info.session_id!r}: {info.message_count} messages of {info.owner}")
        for message in await new.session("alice-1").aget_messages():
            print(f"  {message.type}: {message.text}")


asyncio.run(main())
