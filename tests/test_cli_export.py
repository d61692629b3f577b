"""Exporting sessions and importing them again; the HTML page in a browser."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from browser import browser
from command_line import fails, succeeds
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from samples import EVERY_TYPE, humans, texts

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async._sync.bridge import run

MARKUP = "<script>document.title = 'run'</script><img src=https://a.example/x.png onerror=\"document.title = 'run'\">"
HOSTILE: list[BaseMessage] = [
    HumanMessage([{"type": "text", "text": MARKUP}, {"type": "image_url", "image_url": "https://a.example/y.png"}]),
    AIMessage(
        [{"type": "reasoning", "reasoning": MARKUP}, {"type": "text", "text": "</div></article></style>"}],
        tool_calls=[{"name": MARKUP, "args": {MARKUP: "x" * 2000}, "id": '"><b>'}],
    ),
    ToolMessage(f"{MARKUP} {'word ' * 500} {'x' * 400}", tool_call_id="c", name=MARKUP),
    HumanMessage("שלום עולם " * 30),
]


def test_what_is_exported_is_imported(store: ChatHistoryStore, session_id: str, options: list[str], owner: str) -> None:
    history = store.session(session_id)
    history.add_messages(EVERY_TYPE)
    exported = succeeds("export", session_id, *options).output
    copy = f"{session_id}-2"
    told = succeeds("import", "-", copy, "--owner", owner, *options, typed=exported).output
    assert told == f"Imported {len(EVERY_TYPE)} messages into {copy}.\n"
    assert store.session(copy).messages == history.messages
    info = run(store.get_session_info, copy)
    assert info is not None
    assert (info.owner, info.message_count) == (owner, len(EVERY_TYPE))
    # The same file again is the same batch.
    succeeds("import", "-", copy, *options, typed=exported)
    assert len(store.session(copy).messages) == len(EVERY_TYPE)


def test_json_values_too(store: ChatHistoryStore, session_id: str, options: list[str], tmp_path: Path) -> None:
    values = [{"role": "user", "content": "Hi 👋"}, b"\x00", {1, 2}, 2**70, float("inf"), "\ud800", None]
    store.json_session(session_id, format="my-agent").add(values)
    file = tmp_path / "session.jsonl"
    assert "Exported 7 messages of 1 session to" in succeeds("export", session_id, "-o", str(file), *options).error
    assert succeeds("export", session_id, "-o", "-", *options).output == file.read_text()
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    copy = f"{session_id}-2"
    told = succeeds("import", str(file), copy, "--json", *options).json()
    assert told == {"session": copy, "format": "my-agent", "messages": 7}
    assert store.json_session(copy, format="my-agent").get() == values


def test_a_single_item_becomes_an_item_collection(table: str, session_id: str, options: list[str]) -> None:
    DynamoDBChatMessageHistory(table, session_id).add_messages(humans(1, 2))
    exported = succeeds("export", session_id, "--table", table, "--layout", "single_item").output
    succeeds("import", "-", session_id, *options, typed=exported)
    history = DynamoDBChatMessageHistory(options[1], session_id, sort_key_name="MessageId")
    assert texts(history.messages) == ["1", "2"]


def test_imported_messages_expire(session_id: str, options: list[str], store: ChatHistoryStore) -> None:
    store.session(session_id).add_messages(humans(1))
    exported = succeeds("export", session_id, *options).output
    succeeds("import", "-", f"{session_id}-2", "--ttl", "3600", *options, typed=exported)
    assert run(store.get_session_stats, f"{session_id}-2").first_expiry is not None


LINE = (
    '{"session":"s","format":"langchain","id":null,"created_at":null,"value":{"type":"human","data":{"content":"1"}}}'
)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "The file has no messages"),
        (f"{LINE}\nsecret", "Line 2 is not a message of `chathistory export --as jsonl`. Nothing was written"),
        (f"{LINE}\n[]", "Line 2 is not a message"),
        (LINE + "\n" + LINE.replace('"s"', '"t"'), "The file has messages of 2 sessions: divide it"),
        (LINE + "\n" + LINE.replace("langchain", "my-agent"), "The file has messages of 2 sessions"),
        (LINE.replace("human", "secret"), "a message that langchain-core cannot read"),
        (LINE.replace("langchain", "Not A Name"), "format must have 1 to 64 lower-case letters"),
    ],
)
def test_a_wrong_file_is_refused_whole(
    lines: str, said: str, session_id: str, options: list[str], store: ChatHistoryStore
) -> None:
    error = fails("import", "-", session_id, *options, code=2 if "Not A Name" in lines else 1, typed=lines)
    assert said in error
    assert "secret" not in error
    assert store.session(session_id).messages == []


@pytest.fixture
def owned(store: ChatHistoryStore, session_id: str, owner: str) -> list[str]:
    """Two sessions of an owner, the last active first."""
    store.session(session_id, owner=owner).add_messages(HOSTILE)
    run(store.set_title, session_id, MARKUP)
    other = f"{session_id}-2"
    store.json_session(other, owner=owner, format="my-agent").add([{"role": "user", "content": "Hi"}])
    return [other, session_id]


def test_all_sessions_of_an_owner(owned: list[str], owner: str, options: list[str]) -> None:
    sessions = succeeds("export", "--owner", owner, "--as", "json", *options).json()
    assert [(one["session"], one["title"], len(one["messages"])) for one in sessions] == [
        (owned[0], None, 1),
        (owned[1], MARKUP, 4),
    ]
    lines = [json.loads(line) for line in succeeds("export", "--owner", owner, *options).lines()]
    assert [one["session"] for one in lines] == [owned[0], *[owned[1]] * 4]
    markdown = succeeds("export", "--owner", owner, "--as", "markdown", *options).output
    assert markdown.splitlines()[0].replace("\\", "") == f"# {owned[0]}"
    assert "has no sessions of 'nobody'" in fails("export", "--owner", "nobody", *options)
    assert "Give a session or --owner" in fails("export", *options, code=2)


REDACTION = """
def redact(message):
    return {**message, "data": {**message["data"], "content": "***"}}

def fail(message):
    raise ValueError(message)

def leave(message):
    raise SystemExit(0)

def strange(message):
    return {"secret": object()}

async def late(message):
    return message
"""


def test_redacted(
    store: ChatHistoryStore, session_id: str, owner: str, options: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "redactions_of_a_user.py").write_text(REDACTION)
    monkeypatch.chdir(tmp_path)
    store.session(session_id, owner=owner).add_messages(humans("secret", "too secret"))
    run(store.set_title, session_id, "A secret title")
    redact = ["--redact", "redactions_of_a_user:redact"]
    for form in ("jsonl", "json", "markdown", "html"):
        exported = succeeds("export", "--owner", owner, "--as", form, *redact, *options).output
        assert "secret" not in exported
        assert exported.replace("\\", "").count("***") == 2
    error = fails("export", session_id, "--redact", "redactions_of_a_user:fail", *options)
    assert error.startswith("Error: --redact failed with ValueError, at the message ")
    assert "secret" not in error
    error = fails("export", session_id, "--redact", "redactions_of_a_user:leave", *options)
    assert error.startswith("Error: --redact failed with SystemExit, at the message ")
    for form in ("jsonl", "markdown"):
        strange = ["--redact", "redactions_of_a_user:strange", "-o", "redacted"]
        error = fails("export", session_id, "--as", form, *strange, *options)
        assert error.startswith("Error: --redact returned a value that has no JSON, at the message ")
        assert "secret" not in error
    for name, code in {"with_a_wrong_line": "def f(", "that_fails": "1 / 0", "that_exits": "raise SystemExit"}.items():
        (tmp_path / f"redactions_{name}.py").write_text(code)
    for wrong in (
        "redactions_with_a_wrong_line:f",
        "redactions_that_fails:f",
        "redactions_that_exits:f",
        "..relative:f",
        "redactions_of_a_user:late",
        "redactions_of_a_user",
        "redactions_of_a_user:none",
        "no.such:x",
        "",
        "redactions_of_a_user:__name__",
    ):
        assert "--redact" in fails("export", session_id, "--redact", wrong, *options, code=2)


def test_a_file_appears_only_when_it_is_complete(
    store: ChatHistoryStore, session_id: str, options: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "failing_redactions.py").write_text(REDACTION)
    monkeypatch.chdir(tmp_path)
    store.session(session_id).add_messages(humans(1))
    file = tmp_path / "x.json"
    file.write_text("before")
    fails("export", session_id, "-o", str(file), "--redact", "failing_redactions:fail", *options)
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    for wrong in ("no/x", "x.json/x", "x" * 255, ""):
        assert "cannot be written" in fails("export", session_id, "-o", wrong, *options)


@pytest.mark.posix
def test_a_file_replaces_only_a_file_and_keeps_its_mode(
    store: ChatHistoryStore, session_id: str, options: list[str], tmp_path: Path
) -> None:
    store.session(session_id).add_messages(humans(1))
    private, own_part, pipe = tmp_path / "private", tmp_path / "private.part", tmp_path / "pipe"
    private.touch(0o600)
    own_part.write_text("the user's")
    succeeds("export", session_id, "-o", str(private), *options)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert own_part.read_text() == "the user's"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        succeeds("export", session_id, "-o", str(pipe), *options)
        assert os.read(reader, 10_000) == private.read_bytes()
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.fixture
def page(owned: list[str], owner: str, options: list[str], tmp_path: Path) -> Path:
    file = tmp_path / "page.html"
    succeeds("export", "--owner", owner, "--as", "html", "-o", str(file), *options)
    return file


def test_the_page_has_no_stored_markup(page: Path) -> None:
    text = page.read_text()
    tags = {tag.lower() for tag in re.findall(r"<([a-zA-Z0-9]+)", text)}
    assert tags <= {
        *("html", "head", "meta", "title", "style", "body", "nav", "ul", "li", "a", "section", "h1", "h2", "p"),
        *("article", "time", "div", "pre", "details", "summary"),
    }
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["#session-0", "#session-1"]
    assert "default-src 'none'" in text


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="function")
async def test_the_page_in_a_browser(page: Path, tmp_path: Path) -> None:
    colours = []
    async with browser(tmp_path / "profile") as chromium:
        for width, dark in ((390, False), (390, True), (1200, False)):
            await chromium.open(page.as_uri(), width=width, dark=dark)
            # Unfolded, or long results would not count.
            await chromium.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
            assert await chromium.value("document.documentElement.scrollWidth") <= width
            assert await chromium.value("document.title") == "2 sessions"
            colours.append(await chromium.value("getComputedStyle(document.body).backgroundColor"))
        assert colours == ["rgb(255, 255, 255)", "rgb(15, 19, 24)", "rgb(255, 255, 255)"]
        body = await chromium.value("document.body.innerText")
        assert MARKUP in body
        assert "image, https://a.example/y.png" in body
        assert await chromium.value("document.querySelectorAll('script, img, b').length") == 0
        size = "parseFloat(getComputedStyle(document.querySelector('.text')).fontSize)"
        assert await chromium.value(size) >= 16
        # Nothing was loaded, and nothing tried to: the policy would have logged it.
        assert set(chromium.requested) == {page.as_uri()}
        assert chromium.logged == []


@pytest.fixture
def page_with_markup(page: Path) -> Path:
    """The page as if escaping had failed."""
    inside = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "run"</script><p style="color: red">x</p>'
    page.write_text(page.read_text().replace("<body>", f"<body>{inside}"))
    return page


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="function")
async def test_the_page_s_policy_is_a_second_defence(page_with_markup: Path, tmp_path: Path) -> None:
    async with browser(tmp_path / "profile") as chromium:
        await chromium.open(page_with_markup.as_uri(), width=800)
        assert await chromium.value("document.title") == "2 sessions"
        assert len([text for text in chromium.logged if "Content Security Policy" in text]) >= 2
