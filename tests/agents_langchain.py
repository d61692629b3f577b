"""A scripted model, tools and agents for the tests of LangChain's integration, and short names of messages."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph

from chathistory_async import ChatHistoryStore

Agent = CompiledStateGraph[Any, Any, Any, Any]


class Script(BaseChatModel):
    """Gives the answers of a list, one by one, then "fine". An exception in the list is raised. Unlike the fake models
    of langchain-core, it streams tool calls and accepts tools.

    Attributes:
        answers: the answers that are left.
        seen: what it was sent, call by call.
    """

    answers: list[Any]
    seen: list[list[BaseMessage]]

    @property
    def _llm_type(self) -> str:
        return "script"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.seen.append(list(messages))
        answer = self.answers.pop(0) if self.answers else AIMessage("fine")
        if isinstance(answer, BaseException):
            raise answer
        return ChatResult(generations=[ChatGeneration(message=answer.model_copy(deep=True))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer = self._generate(messages).generations[0].message
        assert isinstance(answer, AIMessage)
        for letter in answer.text:
            yield ChatGenerationChunk(message=AIMessageChunk(content=letter))
        calls = [
            tool_call_chunk(name=call["name"], args="{}", id=call["id"], index=at)
            for at, call in enumerate(answer.tool_calls)
        ]
        last = AIMessageChunk(content="", tool_call_chunks=calls, chunk_position="last")
        yield ChatGenerationChunk(message=last)


def script(*answers: Any) -> Script:
    return Script(answers=list(answers), seen=[])


def calling(*names: str) -> AIMessage:
    """A message that calls tools. The call's id is the tool's name."""
    return AIMessage("", tool_calls=[{"name": name, "args": {}, "id": name, "type": "tool_call"} for name in names])


@tool
def ok() -> str:
    """Succeeds."""
    return "done"


@tool(return_direct=True)
def direct() -> str:
    """Returns its result to the caller of the agent."""
    return "directly"


class Flaky:
    """A tool that fails until it recovers."""

    def __init__(self) -> None:
        self.recovered = False

    def tool(self) -> Any:
        def flaky() -> str:
            """Fails at first."""
            if not self.recovered:
                raise RuntimeError("broken")
            return "at last"

        return tool(flaky)


class FileSaver(InMemorySaver):
    """A checkpointer in a file, which other processes can open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            for mine, saved in zip(self._dicts(), pickle.loads(path.read_bytes()), strict=True):
                mine.update(saved)

    def put(self, *arguments: Any, **options: Any) -> RunnableConfig:
        config = super().put(*arguments, **options)
        self._save()
        return config

    def put_writes(self, *arguments: Any, **options: Any) -> None:
        super().put_writes(*arguments, **options)
        self._save()

    def _dicts(self) -> list[dict[Any, Any]]:
        return [self.storage, self.writes, self.blobs]

    def _save(self) -> None:
        self._path.write_bytes(pickle.dumps([dict(saved) for saved in self._dicts()]))


def name_of(message: BaseMessage) -> str:
    if message.additional_kwargs.get("lc_source") == "summarization":
        return "Sum"
    if isinstance(message, AIMessage):
        calls = ",".join(call["name"] for call in message.tool_calls)
        return f"AI({calls})" if calls else "AI"
    return "H" if isinstance(message, HumanMessage) else "T" if isinstance(message, ToolMessage) else message.type


def names(messages: Sequence[BaseMessage]) -> str:
    """The messages' short names: H, AI, AI(its calls), T for a tool's result, Sum for a summary."""
    return " ".join(map(name_of, messages))


async def record_of(store: ChatHistoryStore, session_id: str) -> str:
    return names(await store.session(session_id).aget_messages())


def on_thread(session_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": session_id}}


def agent_of(model: BaseChatModel, *middleware: Any, **options: Any) -> Agent:
    return create_agent(model, options.pop("tools", [ok, direct]), middleware=middleware, **options)


Call = Callable[..., Any]
# The synchronous methods run the same code by the bridge: BOTH_CALLS marks the tests of both that are not long runs.
CALLS = ["async", pytest.param("sync", marks=pytest.mark.stress)]
BOTH_CALLS = pytest.mark.parametrize("call", ["async", "sync"], indirect=True)


async def asynchronously(graph: Any, value: Any, session_id: str, **options: Any) -> Any:
    """Run a graph asynchronously, with a human message if ``value`` is text."""
    value = {"messages": [HumanMessage(value)]} if isinstance(value, str) else value
    return await graph.ainvoke(value, on_thread(session_id), **options)


async def synchronously(graph: Any, value: Any, session_id: str, **options: Any) -> Any:
    """Run a graph synchronously, as ``asynchronously`` does."""
    value = {"messages": [HumanMessage(value)]} if isinstance(value, str) else value
    return await asyncio.to_thread(graph.invoke, value, on_thread(session_id), **options)


def waiting(call: Call) -> Call:
    """A way to run a graph that waits for a human. LangGraph's interrupt() needs Python 3.11 in asynchronous code."""
    return call if sys.version_info >= (3, 11) else synchronously
