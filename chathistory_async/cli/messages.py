"""Stored values as people read them: who says what. The terminal, Markdown and HTML show the same parts.

The values may be LangChain's messages, the items of the OpenAI Agents SDK, the entries of the Claude Agent SDK, or any
other JSON. Content of unknown kinds is shown as JSON, so nothing is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from .._codec.format import LANGCHAIN_NAME
from .output import size_text

Kind = Literal["text", "reasoning", "call", "result", "attachment", "data"]

_REASONING = {"reasoning", "thinking", "redacted_thinking", "reasoning_content"}
_CALLS = {"tool_call", "tool_use", "tool-call", "invalid_tool_call", "function_call", "custom_tool_call"}
_SERVER_CALLS = {"server_tool_call", "server_tool_use", "mcp_call"}
_RESULTS = {"tool_result", "tool-return", "server_tool_result", "function_call_output", "custom_tool_call_output"}
_ATTACHMENTS = {"image", "image_url", "input_image", "audio", "input_audio", "video", "file", "input_file", "document"}
_MEDIA = {"media", "text-plain", "image_generation_call"}
# The names under which blocks hold the place and the bytes of what is attached.
_SOURCES = ("image_url", "source", "file", "input_audio", "inline_data")
_BYTES = ("base64", "data", "file_data", "result")


class Part(NamedTuple):
    """A part of a message.

    Attributes:
        kind: what the part is.
        title: the tool and the call's id, or what is attached; else empty.
        text: the text, a call's arguments or a result; empty for what is attached.
    """

    kind: Kind
    title: str
    text: str

    @property
    def label(self) -> str:
        """The heading above the text; empty for texts and data."""
        if self.kind in ("text", "data"):
            return ""
        if self.kind in ("attachment", "reasoning"):
            return self.title or self.kind
        return f"{'result of' if self.kind == 'result' and self.title else self.kind} {self.title}".rstrip()


class Shown(NamedTuple):
    """A message as people read it.

    Attributes:
        role: who says it: "human", "ai", "tool", or the framework's own name.
        name: the speaker's own name, or empty.
        id: the id of the stored message, or None if it has none.
        time: when it was added, or None if that is not known.
        parts: its parts, in order.
    """

    role: str
    name: str
    id: str | None
    time: datetime | None
    parts: list[Part]

    @property
    def speaker(self) -> str:
        """The role, and the name if there is one."""
        return f"{self.role} ({self.name})" if self.name else self.role


def shown(value: Any, format_name: str, message_id: str | None, time: datetime | None) -> Shown:
    """Return a stored value as people read it."""
    role, parts = (_langchain if format_name == LANGCHAIN_NAME else _json)(value, format_name)
    return Shown(role, _name_in(value), message_id, time, parts)


def _name_in(value: Any) -> str:
    """Return the speaker's name in a message, or an empty text. A tool's name is part of its result."""
    data = value.get("data", value) if isinstance(value, dict) else {}
    is_speaker = isinstance(data, dict) and not data.keys() & {"tool_call_id", "call_id"}
    return _text(data.get("name")) if is_speaker else ""


def _langchain(value: Any, format_name: str) -> tuple[str, list[Part]]:
    if not isinstance(value, dict) or not isinstance(data := value.get("data"), dict):
        return format_name, [_data(value)]
    kind = _text(value.get("type")).removesuffix("MessageChunk").lower()
    role = _text(data.get("role")) or kind
    if kind in ("tool", "function"):
        return role, _result(data, data.get("content"))
    extra = data.get("additional_kwargs")
    extra = extra if isinstance(extra, dict) else {}
    parts = [*_reasoning_in(extra), *_parts(data.get("content"))]
    return role, [*parts, *_calls_in(data, extra, parts)]


def _json(value: Any, format_name: str) -> tuple[str, list[Part]]:
    if not isinstance(value, dict):
        return format_name, [*_parts(value)] or [_data(value)]
    inner = value.get("message")
    if isinstance(inner, dict) and "content" in inner:
        # The Claude Agent SDK wraps the messages of the API.
        return _text(inner.get("role")) or _text(value.get("type")), [*_parts(inner["content"])]
    if role := _text(value.get("role")):
        if role == "tool":
            return role, _result(value, value.get("content"))
        content = next((value[name] for name in ("content", "parts", "contents") if name in value), None)
        parts = [*_reasoning_in(value), *_parts(content)]
        return role, [*parts, *_calls_in(value, value, parts)]
    if isinstance(value.get("parts"), list):
        return _text(value.get("kind")) or format_name, [*_parts(value["parts"])]
    parts = [*_parts(value)]
    roles: dict[str, str] = {"result": "tool", "call": "assistant", "reasoning": "assistant"}
    return roles.get(parts[0].kind if parts else "", format_name), parts


def _parts(content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        if content:
            yield Part("text", "", content)
    elif isinstance(content, list):
        for block in content:
            yield from _parts(block)
    elif isinstance(content, dict):
        yield from _block(content)
    elif content is not None:
        yield _data(content)


def _block(block: Mapping[str, Any]) -> Iterator[Part]:
    kind = _text(block.get("type") or block.get("part_kind"))
    if kind in _REASONING:
        yield Part("reasoning", "", _reasoning(block))
    elif kind in _CALLS | _SERVER_CALLS:
        yield _call(block)
    elif kind in _RESULTS:
        yield from _result(block, block.get("content", block.get("output")))
    elif kind in _ATTACHMENTS | _MEDIA:
        yield _attachment(kind, block)
    else:
        text = next((block[name] for name in ("text", "refusal", "content") if isinstance(block.get(name), str)), None)
        # Blocks of text may have annotations and the like. A dict without a type may hold anything.
        yield _data(block) if text is None or not kind else Part("text", "", text)


def _reasoning_in(extra: Mapping[str, Any]) -> Iterator[Part]:
    if text := _text(extra.get("reasoning_content")):
        yield Part("reasoning", "", text)


def _reasoning(block: Mapping[str, Any]) -> str:
    for name in ("reasoning", "thinking", "text", "reasoning_content", "content", "summary"):
        value = block.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value:
            return "\n\n".join(_text(one.get("text")) for one in value if isinstance(one, dict))
    # The provider returns it encrypted only.
    return "(not readable)"


def _calls_in(data: Mapping[str, Any], extra: Mapping[str, Any], parts: list[Part]) -> Iterator[Part]:
    """Yield the calls of a message. Some providers also have them as blocks of its content."""
    calls = [call for name in ("tool_calls", "invalid_tool_calls") for call in _list(data.get(name))]
    if not calls:
        calls = [*_list(extra.get("tool_calls")), *_list([extra.get("function_call")])]
    for call in calls:
        if (part := _call(call)).title not in {one.title for one in parts if one.kind == "call"}:
            yield part


def _call(call: Mapping[str, Any]) -> Part:
    function = call.get("function")
    named = function if isinstance(function, dict) else call
    name = _text(named.get("name") or named.get("tool_name") or call.get("type"))
    arguments = next((named[key] for key in ("args", "arguments", "input") if key in named), None)
    title = _with_id(name, call)
    return Part("call", f"{title}, invalid" if call.get("type") == "invalid_tool_call" else title, _pretty(arguments))


def _result(result: Mapping[str, Any], content: Any) -> list[Part]:
    title = _with_id(_text(result.get("name") or result.get("tool_name")), result)
    if result.get("status") == "error" or result.get("is_error") is True:
        title = f"{title}, error" if title else "error"
    parts = [*_parts(content)]
    texts = "\n".join(part.text for part in parts if part.kind in ("text", "data"))
    return [Part("result", title, texts), *(part for part in parts if part.kind not in ("text", "data"))]


def _attachment(kind: str, block: Mapping[str, Any]) -> Part:
    found: dict[str, Any] = dict(block)
    for name in _SOURCES:
        inner = block.get(name)
        found |= inner if isinstance(inner, dict) else {"url": inner} if isinstance(inner, str) else {}
    url = _text(found.get("url"))
    mime = _text(found.get("mime_type") or found.get("media_type") or found.get("format"))
    content = next((found[name] for name in _BYTES if isinstance(found.get(name), (str, bytes))), None)
    if url.startswith("data:"):
        head, _, content = url.partition(",")
        mime, url = mime or head.removeprefix("data:").partition(";")[0], ""
    elif isinstance(content, str) and content.startswith("data:"):
        head, _, content = content.partition(",")
        mime = mime or head.removeprefix("data:").partition(";")[0]
    kind = kind.removeprefix("input_").removesuffix("_url").replace("_generation_call", "")
    size = "" if content is None else size_text(_bytes_in(content))
    names = [_text(found.get(name)) for name in ("filename", "name", "file_id")]
    return Part("attachment", ", ".join(filter(None, (kind, mime, size, *names, url))), "")


def _bytes_in(content: str | bytes) -> int:
    """Return how many bytes base64 text stands for, or the number of bytes."""
    return len(content) if isinstance(content, bytes) else len(content.rstrip("=")) * 3 // 4


def _with_id(name: str, call: Mapping[str, Any]) -> str:
    call_id = next((_text(call[key]) for key in ("tool_call_id", "call_id", "tool_use_id", "id") if key in call), "")
    return f"{name} ({call_id})" if name and call_id else name or call_id


def _data(value: Any) -> Part:
    return Part("data", "", json.dumps(value) if value in (None, "") else _pretty(value))


def _pretty(value: Any) -> str:
    """Return a value as indented JSON. Arguments that are JSON text are indented, too."""
    if value is None:
        return ""
    if isinstance(value, str):
        try:
            return _indented(json.loads(value))
        except (ValueError, RecursionError):
            # It is not JSON, or is nested too deeply.
            return str(value)
    return _indented(value)


def _indented(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=_placeholder)


def _placeholder(value: object) -> object:
    return f"<{size_text(len(value))}>" if isinstance(value, bytes) else sorted(value, key=repr)  # type: ignore[call-overload]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
