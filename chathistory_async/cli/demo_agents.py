"""An agent of each framework for ``chathistory demo``. Their models are made up: they tell how much they were sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

if TYPE_CHECKING:
    from ..store import ChatHistoryStore

Ask: TypeAlias = Callable[[str], Awaitable[str]]

OWNER = "demo"


def _answer(number: int) -> str:
    return f"I was sent {number} message{'s' if number > 1 else ''}."


def _langchain(store: ChatHistoryStore) -> Ask:
    from langchain.agents import create_agent
    from langchain_core.language_models import SimpleChatModel
    from langchain_core.messages import HumanMessage
    from langchain_core.runnables import RunnableConfig

    from ..integrations.langchain import ChatHistoryMiddleware

    class Model(SimpleChatModel):
        @property
        def _llm_type(self) -> str:
            return "demo"

        def _call(self, messages: Any, *_: Any, **__: Any) -> str:
            return _answer(len(messages))

    thread: RunnableConfig = {"configurable": {"thread_id": "langchain"}}
    history = ChatHistoryMiddleware(store, owner=lambda state, runtime: OWNER)

    async def ask(question: str) -> str:
        agent = create_agent(Model(), middleware=[history])
        result = await agent.ainvoke({"messages": [HumanMessage(question)]}, thread)
        return str(result["messages"][-1].text)

    return ask


def _openai_agents(store: ChatHistoryStore) -> Ask:
    from agents import Agent, RunConfig, Runner
    from agents.testing import ModelStep, ScriptedModel, assistant_message

    from ..integrations.openai_agents import DynamoDBSession

    async def ask(question: str) -> str:
        model = ScriptedModel([ModelStep.respond(lambda call: [assistant_message(_answer(len(call.input)))])])
        session = DynamoDBSession("openai-agents", store, owner=OWNER)
        untraced = RunConfig(tracing_disabled=True)
        result = await Runner.run(Agent("Demo", model=model), question, session=session, run_config=untraced)
        return str(result.final_output)

    return ask


def _claude_agent_sdk(store: ChatHistoryStore) -> Ask:
    from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, SessionKey, Transport, query

    from ..integrations.claude_agent_sdk import DynamoDBSessionStore

    key: SessionKey = {"project_key": OWNER, "session_id": "claude-agent-sdk"}
    sessions = DynamoDBSessionStore(store)
    options = ClaudeAgentOptions(session_store=sessions, env={"CLAUDE_CONFIG_DIR": "/demo"})

    class ClaudeCode(Transport):
        """Plays the part of Claude Code, which would resume the transcript that the store has."""

        def __init__(self) -> None:
            self._said = asyncio.Queue[Any]()

        async def connect(self) -> None: ...

        async def write(self, data: str) -> None:
            request = json.loads(data)
            if request["type"] == "control_request":
                response = {"subtype": "success", "request_id": request["request_id"], "response": {}}
                self._say("control_response", response=response)
                return
            answer = _answer(len(await sessions.load(key) or []) + 1)
            said = [("user", request["message"]["content"]), ("assistant", answer)]
            entries = [{"type": role, "uuid": f"{uuid4()}", "message": {"content": text}} for role, text in said]
            transcript = f"/demo/projects/{key['project_key']}/{key['session_id']}.jsonl"
            self._say("transcript_mirror", filePath=transcript, entries=entries)
            numbers = {"duration_ms": 0, "duration_api_ms": 0, "num_turns": 1, "is_error": False}
            self._say("result", subtype="success", session_id=key["session_id"], result=answer, **numbers)

        async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
            while message := await self._said.get():
                yield message

        async def end_input(self) -> None:
            self._said.put_nowait(None)

        async def close(self) -> None: ...

        def is_ready(self) -> bool:
            return True

        def _say(self, kind: str, **message: Any) -> None:
            self._said.put_nowait({"type": kind, **message})

    async def ask(question: str) -> str:
        messages = [message async for message in query(prompt=question, options=options, transport=ClaudeCode())]
        return "".join(message.result or "" for message in messages if isinstance(message, ResultMessage))

    return ask


def _agent_framework(store: ChatHistoryStore) -> Ask:
    from agent_framework import Agent, AgentSession, BaseChatClient, ChatResponse, FunctionInvocationLayer, Message

    from ..integrations.agent_framework import DynamoDBHistoryProvider

    class Model(FunctionInvocationLayer[Any], BaseChatClient[Any]):
        async def _inner_get_response(self, *, messages: Any, **_: Any) -> Any:
            return ChatResponse(messages=[Message("assistant", [_answer(len(messages))])])

    history = DynamoDBHistoryProvider(store, owner=OWNER)

    async def ask(question: str) -> str:
        agent = Agent(Model(), context_providers=[history])
        return str(await agent.run(question, session=AgentSession(session_id="agent-framework")))

    return ask


AGENTS: dict[str, Callable[[ChatHistoryStore], Ask]] = {
    "langchain": _langchain,
    "openai-agents": _openai_agents,
    "claude-agent-sdk": _claude_agent_sdk,
    "agent-framework": _agent_framework,
}
"""For each framework's extra, what makes an agent in a store. It raises ModuleNotFoundError without the framework."""
