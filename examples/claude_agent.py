"""A session of the Claude Agent SDK in DynamoDB, on the embedded engine: ``python examples/claude_agent.py``.

Needs no key and no AWS account: ``pip install '.[local,claude-agent-sdk]'``.
"""

import asyncio
import tempfile
from pathlib import Path

import aioboto3
from claude_agent_sdk import (
    ClaudeAgentOptions,
    ResultMessage,
    delete_session_via_store,
    list_sessions_from_store,
    list_subagents_from_store,
    query,
)

from chathistory_async import ChatHistoryStore
from chathistory_async.integrations.claude_agent_sdk import DynamoDBSessionStore
from chathistory_async.local import local_engine

# Plays the part of Claude Code. Leave cli_path= and env= out of the options to talk to Claude.
STAND_IN = Path(__file__).with_name("claude_stand_in.py")


async def main() -> None:
    """Run two turns, each resumed from the table as on another host, list the sessions, and delete one."""
    aws = aioboto3.Session(aws_access_key_id="demo", aws_secret_access_key="demo", region_name="us-east-1")
    async with (
        local_engine() as url,
        ChatHistoryStore("Chats", endpoint_url=url, boto3_session=aws, session_index=True) as store,
    ):
        await store.create_table()
        sessions = DynamoDBSessionStore(store)
        resumed = None
        for question in ("I am Alice.", "Who am I?"):
            with tempfile.TemporaryDirectory() as empty:
                options = ClaudeAgentOptions(
                    session_store=sessions, resume=resumed, cli_path=STAND_IN, env={"CLAUDE_CONFIG_DIR": empty}
                )
                async for message in query(prompt=question, options=options):
                    if isinstance(message, ResultMessage):
                        resumed = message.session_id
                        print(f"{question} -> {message.result}")

        for info in await list_sessions_from_store(sessions):
            print(f"{info.summary!r}, with the subagents {await list_subagents_from_store(sessions, info.session_id)}")
            await delete_session_via_store(sessions, info.session_id)
        print(f"Left: {await list_sessions_from_store(sessions)}")


asyncio.run(main())
