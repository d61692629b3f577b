"""The commands that show sessions: show, tail, list, info, title, stats."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import fails, run_command, succeeds
from conftest import created_table
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from proxy import Fault, Proxy
from rich.cells import cell_len
from samples import humans

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory, SessionStats
from chathistory_async._sync.bridge import run

TURN = [
    HumanMessage("Where? 👩\u200d🚀 שלום"),
    AIMessage("", tool_calls=[{"name": "search", "args": {"q": "x"}, "id": "c1"}]),
    ToolMessage("found\nit", tool_call_id="c1", name="search"),
]


@pytest.fixture
def alices(store: ChatHistoryStore, session_id: str, owner: str) -> str:
    """A session of a turn."""
    store.session(session_id, owner=owner).add_messages(TURN)
    return session_id


def test_show_tells_who_said_what(alices: str, options: list[str]) -> None:
    lines = [line.strip() for line in succeeds("show", alices, *options).lines()]
    assert [line.split()[0] for line in lines if line.endswith(" UTC")] == ["human", "ai", "tool"]
    assert "Where? 👩\u200d🚀 שלום" in lines
    assert "call search (c1):" in lines
    assert '"q": "x"' in lines
    assert lines[lines.index("result of search (c1):") + 1 :][:2] == ["found", "it"]
    assert all(line == line.rstrip() for line in succeeds("show", alices, *options).lines())


def test_show_the_last_with_ids(alices: str, options: list[str], store: ChatHistoryStore) -> None:
    stored = store.session(alices).page(limit=1).messages[0]
    [heading, *_] = succeeds("show", alices, "--last", "1", "--ids", *options).lines()
    assert heading.split()[0] == "tool"
    assert heading.endswith(stored.id)
    [line] = succeeds("show", alices, "--last", "1", "--json", *options).lines()
    shown = json.loads(line)
    assert (shown["id"], shown["format"], shown["value"]["type"]) == (stored.id, "langchain", "tool")


def test_show_json_values_without_naming_their_format(
    store: ChatHistoryStore, session_id: str, options: list[str]
) -> None:
    store.json_session(session_id, format="my-agent").add([{"role": "user", "content": "Hi"}, b"bytes", 2**70])
    shown = [json.loads(line) for line in succeeds("show", session_id, "--json", *options).lines()]
    assert [one["value"] for one in shown] == [
        {"role": "user", "content": "Hi"},
        {"$bytes": "Ynl0ZXM="},
        {"$int": str(2**70)},
    ]
    assert {one["format"] for one in shown} == {"my-agent"}
    assert "  Hi" in succeeds("show", session_id, *options).lines()


def test_show_a_single_item(table: str, session_id: str) -> None:
    DynamoDBChatMessageHistory(table, session_id).add_messages(TURN)
    shown = succeeds("show", session_id, "--table", table, "--layout", "single_item", "--last", "2")
    assert [line for line in shown.lines() if line and not line.startswith(" ")] == ["ai", "tool"]
    assert "needs a table with a sort key" in fails(
        "tail", session_id, "--table", table, "--layout", "single_item", code=2
    )


def test_show_encrypted_messages(collection_table: str, session_id: str, kms_key: str, options: list[str]) -> None:
    ChatHistoryStore(collection_table, kms_key_id=kms_key).session(session_id).add_messages(humans("secret"))
    error = fails("show", session_id, *options)
    assert "give --kms-key-id, the KMS key" in error
    assert "  secret" in succeeds("show", session_id, *options, "--kms-key-id", kms_key).lines()


def test_a_session_without_messages_is_an_error(options: list[str]) -> None:
    assert fails("show", "nobody's", *options) == 'Error: The session "nobody\'s" has no messages'


def test_options_come_from_the_environment(alices: str, collection_table: str) -> None:
    assert "human" in succeeds("show", alices, environment={"CHATHISTORY_TABLE": collection_table}).output
    assert fails("show", alices, code=2, environment={"CHATHISTORY_TABLE": None}).startswith(
        "Error: Missing option '--table'"
    )
    both = {"CHATHISTORY_TABLE": collection_table, "CHATHISTORY_SORT_KEY_NAME": "Other"}
    assert "check --primary-key-name, --sort-key-name and --layout" in fails("show", alices, environment=both)
    empty = {"CHATHISTORY_TABLE": collection_table, "CHATHISTORY_KMS_KEY_ID": ""}
    assert "CHATHISTORY_KMS_KEY_ID is empty" in fails("show", alices, code=2, environment=empty)


def test_list_is_paged_with_the_newest_first(
    store: ChatHistoryStore, session_id: str, owner: str, options: list[str], alices: str
) -> None:
    other = f"{session_id}-2"
    store.json_session(other, owner=owner, format="my-agent").add(["x"])
    run(store.set_title, other, "A title\n👩\u200d🚀")
    heads, _, first, more = succeeds("list", owner, "--limit", "1", *options).lines()
    assert heads.split() == ["Session", "Title", "Messages", "Last", "active", "Format"]
    assert first.split()[0] == other
    assert r"A title\n👩‍🚀" in first
    assert first.endswith("my-agent")
    cursor = more.removeprefix("More sessions: --before ")
    page = succeeds("list", owner, "--before", cursor, "--json", *options).json()
    assert page["cursor"] is None
    assert [(one["session"], one["messages"], one["format"]) for one in page["sessions"]] == [(alices, 3, "langchain")]
    assert succeeds("list", "no-such-owner", *options).output == "No sessions of no-such-owner.\n"
    assert "is not a cursor of chathistory list" in fails("list", owner, "--before", "x", *options, code=2)


def test_a_session_that_cannot_be_read_is_listed(
    alices: str, owner: str, options: list[str], collection_table: str, dynamodb: Any
) -> None:
    key = {"SessionId": {"S": alices}, "MessageId": {"S": "session"}}
    change: dict[str, Any] = {"UpdateExpression": "SET Title = :x", "ExpressionAttributeValues": {":x": {"N": "1"}}}
    dynamodb.update_item(TableName=collection_table, Key=key, **change)
    shown = succeeds("list", owner, *options).output
    assert shown.startswith(f"Not readable: {alices}: ")
    assert "chathistory delete deletes the session" in shown
    [unreadable] = succeeds("list", owner, "--json", *options).json()["unreadable"]
    assert unreadable["session"] == alices


def test_info_and_title(alices: str, owner: str, options: list[str], store: ChatHistoryStore) -> None:
    run(store.update_metadata, alices, {"model": "large"})
    assert succeeds("title", alices, *options).output == ""
    assert succeeds("title", alices, "Where?", *options).output == "Where?\n"
    found = succeeds("info", alices, "--json", *options).json()
    named = {"session": alices, "owner": owner, "title": "Where?", "messages": 3, "format": "langchain"}
    assert named.items() <= found.items()
    assert found["metadata"] == {"model": "large"}
    told = {line[:16].strip(): line[16:].strip() for line in succeeds("info", alices, *options).lines()}
    assert (told["Owner"], told["Title"], told["Messages"], told["Metadata model"]) == (owner, "Where?", "3", '"large"')
    assert succeeds("title", alices, "--remove", "--json", *options).json() == {"session": alices, "title": None}
    assert "not both" in fails("title", alices, "x", "--remove", *options, code=2)
    for command in (["info"], ["title"]):
        assert "has no session 'nobody', or it has expired" in fails(*command, "nobody", *options)
    assert "The session index has no such session" in fails("title", "nobody", "x", *options)


def test_a_table_without_the_index_says_what_to_do(session_id: str) -> None:
    with created_table() as name:
        error = fails("list", "alice", "--table", name)
        assert "The table has no session index: chathistory create-table adds it" in error


def test_stats_tell_sizes_and_units(alices: str, options: list[str], store: ChatHistoryStore) -> None:
    found = succeeds("stats", alices, "--json", *options).json()
    assert set(found) == set(SessionStats.__dataclass_fields__)
    assert (found["messages"], found["records"], found["append_write_units"], found["read_units"]) == (3, 1, 6.0, 1)
    store.session(f"{alices}-2").add_messages(TURN)
    without_owner = succeeds("stats", f"{alices}-2", "--json", *options).json()
    assert without_owner["append_write_units"] == 4.0
    told = succeeds("stats", alices, *options).output
    assert "6.0 write units on average" in told
    assert "never" in told
    assert "has no messages" in fails("stats", "nobody", *options)


def _wait_for(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


@pytest.mark.posix
def test_tail_follows_a_session(store: ChatHistoryStore, session_id: str, options: list[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    history = store.session(session_id)
    history.add_messages(humans(1, 2))
    command = [sys.executable, "-u", "-m", "chathistory_async.cli", "tail", session_id, *options]
    try:
        with subprocess.Popen(
            [*command, "--last", "1", "--json", "--interval", "0.1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            shown = _wait_for(process, 1)
            history.add_messages(humans(3))
            history.add_messages(humans(4, 5))
            shown += _wait_for(process, 3)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            rest, error = process.stdout.read() if process.stdout else "", process.stderr.read()
    finally:
        signal.signal(signal.SIGINT, before)
    assert [json.loads(line)["value"]["data"]["content"] for line in shown] == ["2", "3", "4", "5"]
    assert (process.returncode, rest, error) == (0, "", "")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--profile", "nowhere"], "There is no AWS profile 'nowhere': check --profile"),
        (["--endpoint-url", "http://127.0.0.1:9"], "DynamoDB's endpoint does not answer"),
        (["--endpoint-url", "nowhere"], "nowhere"),
        (["--primary-key-name", ""], "must be text that is not empty"),
    ],
)
def test_settings_that_do_not_work_are_one_line(option: list[str], said: str, options: list[str]) -> None:
    done = run_command("list", "alice", *options, *option, environment={"AWS_MAX_ATTEMPTS": "1"})
    assert done.code in (1, 2)
    assert done.output == ""
    [line] = done.error.splitlines()
    assert said in line


def test_a_configuration_file_that_is_not_valid_is_one_line(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile unfinished\n")
    environment = {"AWS_CONFIG_FILE": str(tmp_path / "config")}
    profile = ["--profile", "unfinished"]
    for command in (["list", "alice", *options, *profile], ["migrate", "A", "B", "--scan", *profile]):
        assert "cannot use its configuration" in fails(*command, environment=environment)


@pytest.mark.parametrize("session", ["", "\udcff", "x" * 2049])
def test_a_session_id_that_no_key_can_have_is_one_line(session: str, options: list[str]) -> None:
    for command in (["show"], ["info"], ["title"], ["stats"], ["export"], ["delete", "--yes"]):
        done = run_command(*command, session, *options)
        assert done.code in (1, 2)
        assert len(done.error.splitlines()) == 1


def test_a_configuration_that_cannot_be_read_is_one_line(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[[[")
    environment = {"AWS_CONFIG_FILE": str(tmp_path / "config")}
    for command in (["show", "x"], ["show", "x", "--profile", "y"]):
        error = fails(*command, *options, environment=environment)
        assert error.startswith("Error: The AWS SDK cannot use its configuration: Unable to parse config file")


def test_without_a_region_it_names_its_option(options: list[str]) -> None:
    said = fails("show", "x", *options, environment={"AWS_DEFAULT_REGION": None})
    assert said.startswith("Error: No AWS region: give --region, or set AWS_DEFAULT_REGION")


def test_a_refused_request_is_one_line(proxy: Proxy, alices: str, options: list[str]) -> None:
    proxy.schedule = lambda seen: Fault.DENIED
    said = fails("show", alices, *options, "--endpoint-url", proxy.url)
    assert said.startswith("Error: AWS refused Query (AccessDeniedException): check the credentials and their policy")


COLOURS = "\x1b\\[[0-9;?]*[A-Za-z]"


def in_a_terminal(columns: int, *arguments: str) -> str:
    """Run a command in a terminal of this width, and return what it shows."""
    parent, child = pty.openpty()
    os.set_inheritable(child, True)
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "chathistory_async.cli", *arguments]
    with subprocess.Popen(command, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        shown, read = b"", b"x"
        while read:
            try:
                read = os.read(parent, 65536)
            except OSError:
                read = b""
            shown += read
    os.close(parent)
    assert process.returncode == 0, shown
    return re.sub(COLOURS, "", shown.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("columns", [40, 80])
def test_nothing_is_wider_than_the_terminal(
    columns: int, store: ChatHistoryStore, session_id: str, owner: str, options: list[str]
) -> None:
    long = f"{session_id}-{'x' * 60}"
    store.session(long, owner=owner).add_messages([HumanMessage("מהו מפתח מחיצה? " * 20 + "👋 " * 60 + "y" * 90)])
    run(store.set_title, long, "A long title with many words 👋 " * 4)
    # With FORCE_COLOR, rich takes the output for a terminal.
    terminal = {"FORCE_COLOR": "1", "COLUMNS": str(columns)}
    for arguments in (["show", long, "--ids"], ["list", owner], ["info", long], ["stats", long], ["doctor"]):
        shown = re.sub(COLOURS, "", succeeds(*arguments, *options, environment=terminal).output)
        assert max(map(cell_len, shown.splitlines())) <= columns


def test_progress_bars_are_for_terminals_only(
    alices: str, options: list[str], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "x.jsonl")
    assert "Exporting messages" in in_a_terminal(80, "export", alices, "-o", file, *options)
    assert "Exporting" not in succeeds("export", alices, "-o", file, *options).error


def test_stored_control_characters_never_reach_the_terminal(
    store: ChatHistoryStore, session_id: str, owner: str, options: list[str]
) -> None:
    hostile = "\x1b]0;title\x07\u202eecila\n"
    store.session(session_id, owner=owner).add_messages(
        [HumanMessage(hostile), AIMessage("", tool_calls=[{"name": hostile, "args": {hostile: 1}, "id": hostile}])]
    )
    run(store.set_title, session_id, hostile)
    run(store.update_metadata, session_id, {hostile: hostile})
    commands: list[list[str]] = [["show", session_id], ["list", owner], ["info", session_id], ["title", session_id]]
    for command in commands:
        shown = succeeds(*command, *options).output
        assert r"\x1b]0;title\x07\u202eecila" in shown or r"\u001b]0;title" in shown
        assert "".join(shown.split()).isprintable()


def test_nor_do_they_in_json(store: ChatHistoryStore, session_id: str, owner: str, options: list[str]) -> None:
    hostile = "\x9b2J\x7f\u202e\U000e0041"
    store.session(session_id, owner=owner).add_messages(humans(hostile))
    run(store.set_title, session_id, hostile)
    for command in (["show", session_id, "--json"], ["list", owner, "--json"], ["export", session_id]):
        shown = succeeds(*command, *options)
        assert shown.output.strip().isprintable()
        assert hostile in repr(shown.json()).encode().decode("unicode_escape")


def measured(proxy: Proxy, work: Callable[[], Any]) -> float:
    proxy.measure, proxy.units = True, []
    work()
    return sum(proxy.units)


@pytest.mark.real_engine("it makes capacity units up")
def test_the_units_are_those_that_are_billed(proxy: Proxy, collection_table: str, session_id: str) -> None:
    store = ChatHistoryStore(collection_table, endpoint_url=proxy.url)
    history = store.session(session_id)
    batches = [humans("first"), humans("x" * 3000), humans("y" * 10, "z" * 20_000)]
    billed = [measured(proxy, lambda batch=batch: history.add_messages(batch)) for batch in batches]  # type: ignore[misc]
    read = measured(proxy, lambda: history.messages)
    found: SessionStats = run(store.get_session_stats, session_id)
    # Before the first append of a store, half a unit's read checks the table.
    assert (found.read_units, found.append_write_units * 3) == (read, sum(billed) - billed[0] + 1)
    store.close()
