"""Messages of every type, with what they can hold."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)

from chathistory_async._encryption.binding import Binding, Bound

# langchain-community can store these values too: no floats, which it refuses by default, no bytes, no sets.
NESTED: dict[str, Any] = {
    "none": None,
    "flags": [True, False],
    "numbers": [0, -1, 2**63, 10**37, -(10**37)],
    "empty": {"list": [], "map": {}, "text": ""},
    "unicode": {"emoji": "👩🏽‍🚀", "combining": "é", "rtl": "שלום", "nul": "\x00", "line": "\u2028"},
    "names": {"with space": 1, "with.dot": 2, "#hash": 3, ":colon": 4, "ключ": 5},
    "deep": {"a": [{"b": [{"c": [{"d": "e"}]}]}]},
}

FLOATS = [0.1, -2.5, 1e-130, 9.99e125, 1e23, 1e22, 2.0**53 + 2, 5e-100, 1.7976931348623157e100, 3.0, -0.0, 123456.789]

EVERY_TYPE: list[BaseMessage] = [
    HumanMessage("text"),
    HumanMessage(""),
    HumanMessage([]),
    HumanMessage(["text", {"type": "text", "text": "multimodal"}], id="h1", name="someone"),
    HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]),
    HumanMessage("extra", additional_kwargs=NESTED, response_metadata={"a": [1, {"b": None}]}),
    HumanMessage("with a field that its class does not have", custom_field={"kept": True}),
    AIMessage("answer", id="run-1", response_metadata={"model_name": "m", "finish_reason": "stop", "logprobs": None}),
    AIMessage(
        "",
        tool_calls=[{"name": "search", "args": {"query": "x", "limit": 3}, "id": "c1", "type": "tool_call"}],
        invalid_tool_calls=[
            {"name": "broken", "args": "{", "id": "c2", "error": "not JSON", "type": "invalid_tool_call"}
        ],
        usage_metadata={
            "input_tokens": 11,
            "output_tokens": 7,
            "total_tokens": 18,
            "input_token_details": {"cache_read": 3},
            "output_token_details": {"reasoning": 2},
        },
    ),
    SystemMessage("You are terse."),
    ToolMessage("result", tool_call_id="c1", name="search", status="success"),
    ToolMessage([{"type": "text", "text": "failed"}], tool_call_id="c2", artifact=NESTED, status="error"),
    FunctionMessage(content="result", name="function"),
    ChatMessage(content="custom role", role="critic"),
    RemoveMessage(id="h1"),
    AIMessageChunk(content="streamed", chunk_position="last"),
    AIMessageChunk(
        content="",
        tool_call_chunks=[{"name": "f", "args": '{"a": 1}', "id": "c3", "index": 0, "type": "tool_call_chunk"}],
        usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
    ),
    HumanMessageChunk(content="chunk"),
    SystemMessageChunk(content="chunk"),
    ToolMessageChunk(content="chunk", tool_call_id="c1"),
    FunctionMessageChunk(content="chunk", name="function"),
    ChatMessageChunk(content="chunk", role="critic"),
]


# The binding of a message of a single item.
A_MESSAGE = Binding("message")


def bound(*bodies: bytes) -> list[Bound]:
    return [(A_MESSAGE, body) for body in bodies]


def described(message: BaseMessage) -> str:
    return f"{type(message).__name__}-{str(message.content)[:12]}"


def texts(messages: list[BaseMessage]) -> list[Any]:
    return [message.content for message in messages]


def humans(*contents: object) -> list[BaseMessage]:
    return [HumanMessage(str(content)) for content in contents]
