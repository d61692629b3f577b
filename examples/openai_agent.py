"""A conversation of the OpenAI Agents SDK in DynamoDB, on the embedded engine: ``python examples/openai_agent.py``.

Needs no key and no AWS account: ``pip install '.[local,openai-agents]'``.
"""

import asyncio

import aioboto3
from agents import Agent, Runner, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message

from chathistory_async import ChatHistoryStore
from chathistory_async.integrations.openai_agents import DynamoDBSession
from chathistory_async.local import local_engine

# Plays the part of a model. Leave model= out of Agent(...) to talk to OpenAI.
MODEL = ScriptedModel([[assistant_message("Nice to meet you, Alice.")], [assistant_message("You are Alice.")]])


async def main() -> None:
    """Run two turns, each with a session object of its own, and list the owner's sessions."""
    set_tracing_disabled(True)
    agent = Agent(name="Assistant", model=MODEL)
    aws = aioboto3.Session(aws_access_key_id="demo", aws_secret_access_key="demo", region_name="us-east-1")
    async with (
        local_engine() as url,
        ChatHistoryStore("Chats", endpoint_url=url, boto3_session=aws, session_index=True) as store,
    ):
        await store.create_table()
        for question in ("I am Alice.", "Who am I?"):
            session = DynamoDBSession("first-chat", store, owner="alice")
            result = await Runner.run(agent, question, session=session)
            print(f"{question} -> {result.final_output}")

        for info in (await store.list_sessions("alice")).sessions:
            print(f"{info.session_id!r}: {info.message_count} items of {info.format}")


asyncio.run(main())
