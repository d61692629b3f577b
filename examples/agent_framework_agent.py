"""Two agents of Microsoft Agent Framework share a session in DynamoDB, on the embedded engine.

Run it with ``python examples/agent_framework_agent.py``. It needs no key and no AWS account:
``pip install '.[local,agent-framework]'``.
"""

import asyncio
from typing import Any

import aioboto3
from agent_framework import Agent, AgentSession, BaseChatClient, ChatResponse, FunctionInvocationLayer, Message

from chathistory_async import ChatHistoryStore
from chathistory_async.integrations.agent_framework import DynamoDBHistoryProvider
from chathistory_async.local import local_engine


class Echo(FunctionInvocationLayer[Any], BaseChatClient[Any]):
    """Plays the part of a model: it tells how many messages it was sent. Use any chat client of the framework."""

    async def _inner_get_response(self, *, messages: Any, **_: Any) -> Any:
        return ChatResponse(messages=[Message("assistant", [f"I was sent {len(messages)} messages."])])


async def main() -> None:
    """Run two agents on one session, and list the owner's sessions."""
    aws = aioboto3.Session(aws_access_key_id="demo", aws_secret_access_key="demo", region_name="us-east-1")
    async with (
        local_engine() as url,
        ChatHistoryStore("Chats", endpoint_url=url, boto3_session=aws, session_index=True) as store,
    ):
        await store.create_table()
        history = DynamoDBHistoryProvider(store, owner="alice")
        for name in ("Writer", "Editor"):
            agent = Agent(Echo(), name=name, context_providers=[history])
            print(f"{name}: {await agent.run('Please write.', session=AgentSession(session_id='first-chat'))}")

        for info in (await store.list_sessions("alice")).sessions:
            print(f"{info.session_id!r}: {info.message_count} messages of {info.format}")


asyncio.run(main())
