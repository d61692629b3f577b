"""Stored values as people read them: the parts that the terminal, Markdown and HTML show."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, message_to_dict
from markdown_it import MarkdownIt
from samples import EVERY_TYPE, described

from chathistory_async.cli.html import message as html_of
from chathistory_async.cli.markdown import message as markdown_of
from chathistory_async.cli.messages import Part, Shown, shown
from chathistory_async.cli.output import in_one_line, readable, size_text, title_of

PNG = "iVBORw0KGgo="


def parts_of(value: Any, format_name: str = "openai-agents") -> tuple[str, list[Part]]:
    one = shown(value, format_name, None, None)
    return one.role, one.parts


def of_message(message: BaseMessage) -> tuple[str, list[Part]]:
    return parts_of(message_to_dict(message), "langchain")


def text(content: str) -> Part:
    return Part("text", "", content)


@pytest.mark.parametrize("message", EVERY_TYPE, ids=described)
def test_no_message_is_lost(message: BaseMessage) -> None:
    role, parts = of_message(message)
    assert role
    told = " ".join(f"{part.label} {part.text}" for part in parts)
    assert "".join(str(message.text).split()) in "".join(told.split())
    for call in getattr(message, "tool_calls", ()):
        assert f"{call['name']} ({call['id']})" in told
    for one in (html_of, markdown_of):
        assert role in one(shown(message_to_dict(message), "langchain", "id", datetime.now(timezone.utc)))


def test_calls_and_reasoning_of_a_langchain_message() -> None:
    blocks: list[Any] = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]},
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "redacted_thinking", "data": "abc"},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "c1", "name": "search", "input": {"q": "x"}},
    ]
    message = AIMessage(blocks, tool_calls=[{"name": "search", "args": {"q": "x"}, "id": "c1"}])
    role, parts = of_message(message)
    assert role == "ai"
    assert parts == [
        Part("reasoning", "", "why"),
        Part("reasoning", "", "hm"),
        Part("reasoning", "", "(not readable)"),
        text("Let me look."),
        # The block and the message's own call are one call.
        Part("call", "search (c1)", '{\n  "q": "x"\n}'),
    ]


def test_calls_that_only_the_provider_s_form_has() -> None:
    extra = {"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}}], "reasoning_content": "r"}
    data = {"type": "ai", "data": {"content": "", "additional_kwargs": extra}}
    assert parts_of(data, "langchain")[1] == [Part("reasoning", "", "r"), Part("call", "f (c1)", '{\n  "a": 1\n}')]


@pytest.mark.parametrize(
    ("block", "title"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}, "image, image/png, 8 B"),
        ({"type": "image_url", "image_url": "https://a.example/x.png"}, "image, https://a.example/x.png"),
        ({"type": "image", "base64": PNG, "mime_type": "image/png"}, "image, image/png, 8 B"),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PNG}},
            "image, image/jpeg, 8 B",
        ),
        (
            {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"},
            "file, application/pdf, 8 B, a.pdf",
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file, file-1"),
        ({"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}}, "audio, wav, 8 B"),
        ({"type": "media", "mime_type": "video/mp4", "data": b"12345"}, "media, video/mp4, 5 B"),
    ],
)
def test_images_and_files_are_placeholders(block: dict[str, Any], title: str) -> None:
    assert parts_of({"role": "user", "content": [block]}) == ("user", [Part("attachment", title, "")])


@pytest.mark.parametrize(
    ("value", "role", "parts"),
    [
        ({"role": "user", "content": "Hi"}, "user", [text("Hi")]),
        ({"role": "user", "content": None}, "user", []),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yo"}]},
            "assistant",
            [text("Yo")],
        ),
        (
            {"type": "function_call", "name": "f", "call_id": "c", "arguments": "not JSON"},
            "assistant",
            [Part("call", "f (c)", "not JSON")],
        ),
        ({"type": "function_call_output", "call_id": "c", "output": "4"}, "tool", [Part("result", "c", "4")]),
        (
            {
                "type": "user",
                "message": {"role": "user", "content": [{"type": "tool_result", "content": "no", "is_error": True}]},
            },
            "user",
            [Part("result", "error", "no")],
        ),
        ({"role": "tool", "tool_call_id": "c", "content": "4"}, "tool", [Part("result", "c", "4")]),
        ({"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "Hi"}]}, "request", [text("Hi")]),
        ("plain text", "json", [text("plain text")]),
        (5, "json", [Part("data", "", "5")]),
        ({"x": [b"12", {3}]}, "json", [Part("data", "", '{\n  "x": [\n    "<2 B>",\n    [\n      3\n    ]\n  ]\n}')]),
    ],
)
def test_values_of_other_frameworks(value: Any, role: str, parts: list[Part]) -> None:
    assert parts_of(value, "json") == (role, parts)


@pytest.mark.parametrize("value", [None, [], {}, {"type": 5, "data": []}, {"type": "ai", "data": {"content": 5}}])
def test_what_has_no_known_form_is_shown_all_the_same(value: Any) -> None:
    for format_name in ("langchain", "json"):
        one = shown(value, format_name, None, None)
        assert one.role
        assert html_of(one)
        assert markdown_of(one)


@pytest.mark.parametrize("value", [None, "", [], [[], []], {}, 0, False])
def test_a_value_without_content_is_shown_as_json(value: Any) -> None:
    assert parts_of(value, "json") == ("json", [Part("data", "", json.dumps(value, indent=2))])


def test_a_line_of_a_message_is_no_heading_of_another() -> None:
    value = {"role": "user", "content": "Hi\n\n## assistant\n\nI agree\n```"}
    lines = markdown_of(shown(value, "json", None, None)).splitlines()
    assert [line for line in lines if line and not line.startswith(">")] == ["## user"]
    result = {"role": "tool", "content": "```\n## user\n````"}
    lines = markdown_of(shown(result, "json", None, None)).splitlines()
    assert lines.count("`````") == 2


def test_markdown_loads_and_runs_nothing() -> None:
    text = "<b>x</b> ![a](https://a.example) `<i> ![b]` ``` <u> ``\n```\n<s>\n```\n<p>"
    lines = markdown_of(shown({"role": "user", "content": text}, "json", None, None)).splitlines()[2:]
    assert lines[0] == "> &lt;b>x&lt;/b> !\\[a](https://a.example) `<i> ![b]` \\`\\`\\` &lt;u> \\`\\`"
    assert lines[1:5] == ["> ```", "> <s>", "> ```", "> &lt;p>"]


# Where a viewer may see code end earlier, or begin later, than the author of the export.
@pytest.mark.parametrize(
    "text",
    [
        "```\n~~~\n```\n<img src=x>",
        "````\n```\n````\n<img src=x>",
        "```\n```js\n```\n<img src=x>",
        "``` a`b\n<img src=x>",
        "- a\n\n  ```\n<img src=x>",
        "  ```\n  x\n```\n```\n<img src=x>",
        "a ` b\n` <img src=x> `",
        r"\` <img src=x> `",
        "a | b\n--|--\n` | ` <img src=x> `",
        r"\\<img src=x>",
        "- ~~~\n~~~\n<img src=x>",
    ],
)
def test_no_code_in_markdown_ends_early(text: str) -> None:
    exported = markdown_of(Shown("human", "", None, None, [Part("text", "", text)]))
    viewer = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = [token for block in viewer.parse(exported) for token in (block, *(block.children or ()))]
    assert not {token.type for token in tokens} & {"html_block", "html_inline", "image"}


def test_code_in_markdown_is_shown_as_it_is_written() -> None:
    text = "- a\n\n  ```html\n  <b>\n  ```\n`<i>` and ``<u> ` ``\n~~~\n<s>\n~~~"
    exported = markdown_of(Shown("human", "", None, None, [Part("text", "", text)]))
    assert exported.endswith("\n\n" + "\n".join(f"> {line}".rstrip() for line in text.split("\n")) + "\n\n")


def test_values_nested_as_deeply_as_any_are_shown() -> None:
    value: Any = "x"
    for _ in range(250):
        value = [{"a": value}]
    [part] = shown(value, "json", None, None).parts
    assert '"x"' in part.text
    deep = "[" * 100_000 + "]" * 100_000
    [call] = shown({"type": "tool_call", "name": "n", "args": deep}, "json", None, None).parts
    assert call.text == deep


def test_speakers_have_names() -> None:
    message = message_to_dict(HumanMessage("Hi", name="someone"))
    assert shown(message, "langchain", None, None).speaker == "human (someone)"
    assert shown({"role": "user", "name": "bob", "content": "Hi"}, "json", None, None).speaker == "user (bob)"
    assert shown({"type": "function_call", "name": "f", "call_id": "c"}, "json", None, None).speaker == "assistant"


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'"


def test_stored_markup_is_text_in_html() -> None:
    block = {"type": f"x{MARKUP}", "content": MARKUP}
    call = {"type": "tool_use", "name": MARKUP, "id": MARKUP, "input": {MARKUP: MARKUP}}
    image = {"type": "image", "url": f"javascript:{MARKUP}", "mime_type": MARKUP}
    value = {
        "role": f'"><b>{MARKUP}',
        "content": [MARKUP, block, call, image, {"type": "thinking", "thinking": MARKUP}],
    }
    page = html_of(shown(value, "json", f'"{MARKUP}', None))
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;") >= 9


@pytest.mark.parametrize(
    ("stored", "as_line", "as_title", "as_text"),
    [
        ("a\nb", r"a\nb", r"a\nb", "a\nb"),
        ("\x1b[2J\x07", r"\x1b[2J\x07", r"\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\u202eecila", r"\u202eecila", r"\u202eecila", r"\u202eecila"),
        ("👩\u200d🚀", r"👩\u200d🚀", "👩\u200d🚀", "👩\u200d🚀"),
        ("שלום", "שלום", "שלום", "שלום"),
        ("a\r\nb\rc", r"a\r\nb\rc", r"a\r\nb\rc", "a\nb\\rc"),
    ],
)
def test_control_characters_are_escaped(stored: str, as_line: str, as_title: str, as_text: str) -> None:
    assert (in_one_line(stored), title_of(stored), readable(stored)) == (as_line, as_title, as_text)


@pytest.mark.parametrize(("size", "told"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_500_000, "2.5 MB")])
def test_sizes(size: int, told: str) -> None:
    assert size_text(size) == told
