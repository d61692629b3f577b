"""The content of real providers' messages: their own classes where these are light, else models of the same shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import pytest
from conftest import Make
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, SecretStr
from variants import ALL_VARIANTS, SDK_VARIANTS, Variant

VARIANTS = [*ALL_VARIANTS, *SDK_VARIANTS]


@pytest.fixture
async def there_and_back(variant: type[Variant], make: Make) -> Callable[[BaseMessage], Any]:
    """Stores a turn with a message and returns what is read of the message."""

    async def there_and_back(message: BaseMessage) -> BaseMessage:
        await variant(make()).add([HumanMessage("a question"), message])
        question, back = await variant(make()).read()
        assert question == HumanMessage("a question")
        assert type(back) is type(message)
        assert back.content == message.content
        return back

    return there_and_back


class Person(BaseModel):
    name: str
    age: int


def answering(body: dict[str, Any]) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(200, json=body))


async def test_openai_with_structured_output(there_and_back: Any) -> None:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "{", "logprob": -9999.0, "bytes": [123], "top_logprobs": []}]},
                "message": {"role": "assistant", "content": '{"name": "Ada", "age": 36}', "refusal": None},
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    model = ChatOpenAI(model="gpt-4o", api_key=SecretStr("x"), http_client=httpx.Client(transport=answering(body)))
    chain = model.with_structured_output(Person, include_raw=True)
    raw = chain.invoke("who?")["raw"]
    assert raw.additional_kwargs["parsed"] == Person(name="Ada", age=36)
    back = await there_and_back(raw)
    assert back.additional_kwargs == {"parsed": {"name": "Ada", "age": 36}, "refusal": None}
    assert back.response_metadata == raw.response_metadata
    assert back.usage_metadata == raw.usage_metadata


async def test_ollama_with_log_probabilities(there_and_back: Any) -> None:
    body = {
        "model": "m",
        "created_at": "2026-01-01T00:00:00Z",
        "done": True,
        "done_reason": "stop",
        "message": {"role": "assistant", "content": "hello"},
        "logprobs": [{"token": "hello", "logprob": -0.5, "top_logprobs": [{"token": "hello", "logprob": -0.5}]}],
        "prompt_eval_count": 1,
        "eval_count": 2,
    }
    model = ChatOllama(model="m", logprobs=True, client_kwargs={"transport": answering(body)})
    answer = model.invoke("hi")
    assert isinstance(answer.response_metadata["logprobs"][0], BaseModel), "plain, and this test shows nothing"
    back = await there_and_back(answer)
    [logprob] = back.response_metadata["logprobs"]
    assert logprob == {"token": "hello", "logprob": -0.5, "top_logprobs": [{"token": "hello", "logprob": -0.5}]}
    assert {**back.response_metadata, "logprobs": None} == {
        **answer.model_dump()["response_metadata"],
        "logprobs": None,
    }


async def test_the_artifact_of_the_rag_tutorial(there_and_back: Any) -> None:
    documents = [
        Document(page_content="x", metadata={"source": "a.md", "score": 0.5}),
        Document(page_content="y", id="2"),
    ]

    @tool(response_format="content_and_artifact")
    def retrieve(query: str) -> tuple[str, list[Document]]:
        """Retrieve documents."""
        return "x y", documents

    message = retrieve.invoke({"name": "retrieve", "args": {"query": "q"}, "id": "1", "type": "tool_call"})
    assert isinstance(message, ToolMessage)
    back = await there_and_back(message)
    assert back.artifact == [document.model_dump() for document in documents]
    assert [Document(**document) for document in back.artifact] == documents


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int | None = None


class Usage(BaseModel):
    """As litellm.types.utils.Usage."""

    model_config = ConfigDict(extra="allow")
    completion_tokens: int = 0
    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens_details: CompletionTokensDetails | None = None


class Source(BaseModel):
    """As cohere.types.Source and Citation."""

    model_config = ConfigDict(extra="allow")
    type: Literal["tool", "document"] = "document"
    id: str | None = None


class Citation(BaseModel):
    model_config = ConfigDict(extra="allow")
    start: int | None = None
    end: int | None = None
    text: str | None = None
    sources: list[Source] | None = None


class ImageContent(BaseModel):
    """As mcp.types.ImageContent."""

    model_config = ConfigDict(extra="allow")
    type: Literal["image"]
    data: str
    mimeType: str


@dataclass
class Score:
    label: str
    value: float


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("message", "field", "expected"),
    [
        (
            AIMessage(
                "x",
                response_metadata={
                    "token_usage": Usage.model_validate(
                        {"completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": None}, "cost": 0.25}
                    ),
                    "model": "m",
                },
            ),
            "response_metadata",
            {
                "token_usage": {
                    "completion_tokens": 1,
                    "prompt_tokens": 0,
                    "total_tokens": 0,
                    "completion_tokens_details": {"reasoning_tokens": None},
                    "cost": 0.25,
                },
                "model": "m",
            },
        ),
        (
            AIMessage(
                "x", additional_kwargs={"citations": [Citation(start=0, end=1, text="x", sources=[Source(id="d")])]}
            ),
            "additional_kwargs",
            {
                "citations": [
                    {"start": 0, "end": 1, "text": "x", "sources": [{"type": "document", "id": "d"}]},
                ]
            },
        ),
        (
            ToolMessage(
                "x", tool_call_id="1", artifact=[ImageContent(type="image", data="aGk=", mimeType="image/png")]
            ),
            "artifact",
            [{"type": "image", "data": "aGk=", "mimeType": "image/png"}],
        ),
        (
            ToolMessage("x", tool_call_id="1", artifact=Score("good", 0.5)),
            "artifact",
            {"label": "good", "value": 0.5},
        ),
    ],
    ids=["litellm", "cohere", "mcp", "dataclass"],
)
async def test_models_of_other_providers(there_and_back: Any, message: BaseMessage, field: str, expected: Any) -> None:
    assert getattr(await there_and_back(message), field) == expected
