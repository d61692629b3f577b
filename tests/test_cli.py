"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import created_table
from samples import humans, texts

from chathistory_async import DynamoDBChatMessageHistory
from chathistory_async.cli import CONVERSATIONS


def chathistory(*arguments: str, typed: str = "", aws: bool = False) -> subprocess.CompletedProcess[str]:
    command = shutil.which("chathistory", path=str(Path(sys.executable).parent))
    assert command is not None, "the package is installed without its command"
    environment = {name: value for name, value in os.environ.items() if aws or not name.startswith("AWS_")}
    return subprocess.run(
        [command, *arguments], input=typed, capture_output=True, text=True, timeout=90, env=environment, check=False
    )


def test_demo_shows_every_conversation_by_both_faces() -> None:
    done = chathistory("demo")
    assert (done.returncode, done.stderr) == (0, "")
    natively, synchronously = done.stdout.split("by the synchronous API")
    for name, turns in CONVERSATIONS.items():
        for text in (natively, synchronously):
            shown = text.split(f"[{name}]")[1].split("[")[0].strip().splitlines()
            said = [re.sub(r"^\s*\w+: ", "", line) for line in shown]
            assert said[: 2 * len(turns)] == [line for turn in turns for line in turn]


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["migrate", "--help"]])
def test_help(arguments: list[str]) -> None:
    done = chathistory(*arguments)
    assert done.returncode == 0
    assert "Usage: chathistory" in done.stdout


@pytest.fixture
def tables(collection_table: str) -> Iterator[tuple[str, str]]:
    """A table with two sessions in single items, and one to migrate them to."""
    with created_table(layout="single_item") as source:
        for session in ("alice", "bob"):
            DynamoDBChatMessageHistory(source, session).add_messages(humans(1, 2))
        yield source, collection_table


def migrate(tables: tuple[str, str], *options: str, typed: str = "") -> tuple[int, list[str]]:
    done = chathistory("migrate", *tables, *options, typed=typed, aws=True)
    assert done.stderr == "" or done.returncode
    return done.returncode, [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_migrate_tells_of_each_session(tables: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("alice\n\nbob\nnobody\n")
    by_file = ("--ids", str(tmp_path / "ids"))
    nobody = "absent +0 of 0 nobody"
    assert migrate(tables, *by_file, "--dry-run", "--delete-source") == (
        0,
        [
            *(f"would_copy +2 of 0 {session}" for session in ("alice", "bob")),
            nobody,
            "Sessions: 2 would_copy, 1 absent. Messages to copy: 4.",
        ],
    )
    assert migrate(tables, *by_file) == (
        0,
        ["copied +2 of 2 alice", "copied +2 of 2 bob", nobody, "Sessions: 2 copied, 1 absent. Messages copied: 4."],
    )
    DynamoDBChatMessageHistory(tables[0], "alice").add_messages(humans(3))
    assert migrate(tables, "--ids", "-", "--delete-source", "--yes", typed="alice\nbob") == (
        0,
        ["moved +1 of 3 alice", "moved +0 of 2 bob", "Sessions: 2 moved. Messages copied: 1."],
    )
    history = DynamoDBChatMessageHistory(tables[1], "alice", sort_key_name="MessageId")
    assert texts(history.messages) == ["1", "2", "3"]
    assert migrate(tables, "--scan") == (0, ["Sessions: none. Messages copied: 0."])


def test_migrate_ends_with_1_where_a_session_failed(tables: tuple[str, str], dynamodb: Any) -> None:
    dynamodb.put_item(TableName=tables[0], Item={"SessionId": {"S": "damaged"}, "History": {"S": "no list"}})
    code, lines = migrate(tables, "--scan")
    assert code == 1
    assert any(line.startswith("failed +0 of 0 damaged UndecodableItemError: ") for line in lines)
    assert "1 failed" in lines[-1]


def test_migrate_deletes_nothing_unasked(tables: tuple[str, str]) -> None:
    code, _ = migrate(tables, "--scan", "--delete-source", typed="n\n")
    assert code == 1
    code, _ = migrate(tables, "--ids", "-", "--delete-source", typed="alice\n")
    assert code == 2
    assert texts(DynamoDBChatMessageHistory(tables[0], "alice").messages) == ["1", "2"]
    code, _ = migrate(tables, "--scan", "--delete-source", typed="y\n")
    assert code == 0
    assert DynamoDBChatMessageHistory(tables[0], "alice").messages == []


@pytest.mark.parametrize("options", [[], ["--scan", "--ids", "-"]])
def test_migrate_wants_to_know_which_sessions(options: list[str]) -> None:
    done = chathistory("migrate", "old", "new", *options)
    assert (done.returncode, "--ids or --scan" in done.stderr) == (2, True)


def test_migrate_says_what_is_wrong() -> None:
    done = chathistory("migrate", "old", "new", "--ids", "-", typed="alice", aws=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The table does not exist")


def test_version() -> None:
    assert re.search(r"\d+\.\d+\.\d+", chathistory("--version").stdout)


def test_without_click_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('click')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import chathistory_async.cli"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "pip install 'chathistory-async[cli]'" in done.stderr
