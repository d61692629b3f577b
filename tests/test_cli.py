"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import NewStore, created_table
from proxy import Fault, Proxy, Seen
from samples import humans, texts

from chathistory_async import DynamoDBChatMessageHistory
from chathistory_async.cli.commands import chathistory as main
from chathistory_async.cli.demo import CONVERSATIONS, _let_agents_talk
from chathistory_async.cli.demo_agents import AGENTS
from chathistory_async.cli.output import in_one_line


def chathistory(*arguments: str, typed: str = "", aws: bool = False) -> subprocess.CompletedProcess[str]:
    command = shutil.which("chathistory", path=str(Path(sys.executable).parent))
    assert command is not None, "the package is installed without its command"
    environment = {name: value for name, value in os.environ.items() if aws or not name.startswith("AWS_")}
    return subprocess.run(
        [command, *arguments], input=typed, capture_output=True, text=True, timeout=90, env=environment, check=False
    )


def test_demo_shows_every_conversation_by_both_variants() -> None:
    done = chathistory("demo")
    assert (done.returncode, done.stderr) == (0, "")
    natively, synchronously = done.stdout.split("by the synchronous API")
    for name, turns in CONVERSATIONS.items():
        for text in (natively, synchronously):
            shown = text.split(f"[{name}]")[1].split("[")[0].strip().splitlines()
            said = [re.sub(r"^\s*\w+: ", "", line) for line in shown]
            assert said[: 2 * len(turns)] == [line for turn in turns for line in turn]
    _, agents = synchronously.split("Agents on the same table")
    assert agents.count("I was sent 3 messages.") == len(AGENTS)
    _, sessions = agents.split("in the session index:")
    formats = re.findall(r"\d values of the format ([\w-]+)", sessions)
    assert sorted(formats) == sorted([*AGENTS, *(["langchain"] * len(CONVERSATIONS))])


async def test_a_framework_that_is_not_installed_is_named_with_its_extra(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("agent_framework", "agents", "claude_agent_sdk", "langchain.agents"):
        monkeypatch.setitem(sys.modules, package, None)
    await _let_agents_talk(new_store())
    shown = capsys.readouterr().out
    assert re.findall(r"not installed: pip install 'chathistory-async\[([\w-]+)\]'", shown) == [*AGENTS]
    assert "I was sent" not in shown


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["migrate", "--help"]])
def test_help(arguments: list[str]) -> None:
    code, shown, _ = in_process(*arguments)
    assert code == 0
    assert "Usage: chathistory" in shown


@pytest.fixture
def tables() -> Iterator[tuple[str, str]]:
    """A table with two sessions in single items, and one to migrate them to."""
    with created_table(layout="single_item") as source, created_table() as target:
        for session in ("alice", "bob"):
            DynamoDBChatMessageHistory(source, session).add_messages(humans(1, 2))
        yield source, target


def migrate(tables: tuple[str, str], *options: str, typed: str = "") -> tuple[int, list[str]]:
    code, shown, error = in_process("migrate", *tables, *options, typed=typed)
    assert error == "" or code
    return code, [" ".join(line.split()) for line in shown.splitlines()]


def test_migrate_tells_of_each_session(tables: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("alice\n\nbob\nnobody\n")
    by_file = ("--ids", str(tmp_path / "ids"))
    nobody = "absent +0 of 0 nobody"
    assert migrate(tables, *by_file, "--dry-run", "--delete-source") == (
        0,
        [
            *(f"would_copy +2 of 2 {session}" for session in ("alice", "bob")),
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


def test_migrate_refuses_ids_that_are_not_of_key_parts(tables: tuple[str, str]) -> None:
    DynamoDBChatMessageHistory(tables[0], "", key={"SessionId": ("acme", "s1")}).add_messages(humans(1))
    code, lines = migrate(tables, "--ids", "-", "--key-parts", "2", typed="acme#s1\nalice")
    assert (code, lines[0]) == (1, "copied +1 of 1 acme#s1")
    assert lines[1].startswith("failed +0 of 0 alice ValueError: With key_parts=2, ")


def test_migrate_deletes_nothing_unasked(tables: tuple[str, str]) -> None:
    for answer in ("n\n", "\n", ""):
        code, _, error = in_process("migrate", *tables, "--scan", "--delete-source", typed=answer)
        assert code == 1
        assert error.splitlines()[-1] == "Error: Nothing was done"
    assert chathistory("migrate", *tables, "--ids", "-", "--delete-source", typed="alice\n", aws=True).returncode == 2
    assert texts(DynamoDBChatMessageHistory(tables[0], "alice").messages) == ["1", "2"]
    code, lines = migrate(tables, "--scan", "--delete-source", typed="y\n")
    assert code == 0
    assert lines[0].startswith(f"Delete sessions from {tables[0]} after copying and verifying them? [y/N]: ")
    assert DynamoDBChatMessageHistory(tables[0], "alice").messages == []


def in_process(*arguments: str, typed: str | bytes = "") -> tuple[int, str, str]:
    """Run a command here, which takes a second less than a process of its own."""
    done = CliRunner().invoke(main, arguments, input=typed)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Say which sessions: --ids or --scan"),
        (["--scan", "--ids", "-"], "Give --ids or --scan, not both"),
        (["--scan", "--history-messages-key", "SessionId"], "Two attributes have the name"),
        (["--scan", "--sort-key-name", "History"], "Two attributes have the name"),
        (["--scan", "--session-index", "--ttl-key-name", "Title"], "Two attributes have the name"),
        (["--scan", "--primary-key-name", ""], "An attribute's name must be text that is not empty"),
        (["--scan", "--source-kms-key-id", ""], "--source-kms-key-id or --target-kms-key-id is empty: leave it out"),
        (["--scan", "--ttl", "0"], "--ttl"),
    ],
)
def test_wrong_usage_is_one_line(options: list[str], said: str) -> None:
    code, shown, error = in_process("migrate", "old", "new", *options)
    assert (code, shown) == (2, "")
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_demo_without_its_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, error = in_process("demo")
    assert code == 1
    assert error.splitlines()[-1].startswith("Error: The embedded engine needs moto: pip install")


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chathistory_async._encryption.message_cipher", None)
    code, _, error = in_process("migrate", "old", "new", "--scan", "--target-kms-key-id", "alias/chat")
    assert code == 2
    assert "Error: " in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "The table does not exist"),
        (["--endpoint-url", "nowhere"], "nowhere"),
        (["--endpoint-url", "http://127.0.0.1:9"], "does not answer"),
    ],
)
def test_what_cannot_run_ends_with_1(monkeypatch: pytest.MonkeyPatch, options: list[str], said: str) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    code, shown, error = in_process("migrate", "old", "new", "--ids", "-", *options, typed="alice")
    assert (code, shown) == (1, "")
    assert error.startswith("Error: ")
    assert said in error
    assert len(error.splitlines()) == 1


def test_what_is_not_as_it_should_be_ends_with_1(tables: tuple[str, str], dynamodb: Any) -> None:
    key = {"SessionId": {"S": "bob"}}
    options: dict[str, Any] = {"UpdateExpression": "SET Notes = :x", "ExpressionAttributeValues": {":x": {"S": "x"}}}
    dynamodb.update_item(TableName=tables[0], Key=key, **options)
    code, shown, _ = in_process("migrate", *tables, "--ids", "-", "--delete-source", "--yes", typed="bob")
    assert code == 1
    assert "kept  +2 of 2  bob  the source is not deleted, because it has unknown attributes: 'Notes'" in shown
    history = DynamoDBChatMessageHistory(tables[0], "alice")
    in_process("migrate", *tables, "--ids", "-", typed="alice")
    history.clear()
    history.add_messages(humans(1, "other"))
    code, shown, _ = in_process("migrate", *tables, "--ids", "-", typed="alice")
    assert code == 1
    assert "diverged  +0 of 2  alice  the source does not continue" in shown


FORGED = "x\n    copied  +9 of 9  bob"
HOSTILE = [FORGED, "\x1b[2J\x1b]0;title\x07", "\u202eecila", "a\rb\x08", "\x85\u2028", "a\u200bb"]


def test_ids_are_shown_in_one_line_and_without_control_characters(tables: tuple[str, str], dynamodb: Any) -> None:
    for session in HOSTILE:
        dynamodb.put_item(TableName=tables[0], Item={"SessionId": {"S": session}, "History": {"S": "no list"}})
    DynamoDBChatMessageHistory(tables[0], "日本 👋").add_messages(humans(1))
    code, shown, _ = in_process("migrate", *tables, "--scan")
    assert code == 1
    lines = shown.splitlines()
    assert len(lines) == 2 + len(HOSTILE) + 1 + 1
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("    failed  +0 of 0  ") for line in lines) == len(HOSTILE)
    assert any(r"failed  +0 of 0  x\n    copied  +9 of 9  bob  UndecodableItemError" in line for line in lines)
    assert any(r"\x1b[2J\x1b]0;title\x07" in line for line in lines)
    assert any(r"\u202eecila" in line for line in lines)
    assert any("+1 of 1  日本 👋" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("a\\b", "a\\b"), (5, "5"), (Decimal("0.10"), "0.10"), (b"\x00a", r"b'\x00a'"), ("\udcff'", r"\udcff'"), ("", "")],
)
def test_in_one_line(value: object, shown: str) -> None:
    assert in_one_line(value) == shown


def test_ids_that_are_not_utf_8_fail_alone(tables: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbfalice\r\nb\xffob\nbob\n")
    code, shown, _ = in_process("migrate", *tables, "--ids", str(tmp_path / "ids"))
    lines = [line.split() for line in shown.splitlines()]
    assert code == 1
    assert [line[0] for line in lines[:3]] == ["copied", "failed", "copied"]
    assert lines[1][4:6] == [r"b\udcffob", "ValueError:"]


def test_what_a_terminal_cannot_show_is_escaped(tables: tuple[str, str]) -> None:
    DynamoDBChatMessageHistory(tables[0], "日本").add_messages(humans(1))
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "chathistory_async.cli", "migrate", *tables, "--scan"]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert rb"+1 of 1  \u65e5\u672c" in done.stdout


def test_a_reader_that_ends_early_is_no_traceback(tables: tuple[str, str]) -> None:
    command = [sys.executable, "-u", "-m", "chathistory_async.cli", "migrate", *tables, "--scan"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 1


COMMAND = f"{shlex.quote(sys.executable)} -m chathistory_async.cli"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", ["policy --table T", "--help"])
def test_a_full_disk_is_one_line(arguments: str) -> None:
    done = subprocess.run(f"{COMMAND} {arguments} > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")


@pytest.mark.posix
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("policy --table T >&-", 0, ""),
        ("import --table T - x <&-", 1, "Error: The file has no messages\n"),
        ("policy --table T --mode migrate 2>&-", 2, ""),
    ],
)
def test_closed_streams_are_no_traceback(arguments: str, code: int, said: str) -> None:
    done = subprocess.run(f"{COMMAND} {arguments}", shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


@pytest.mark.posix
def test_ctrl_c_is_no_traceback(tables: tuple[str, str], proxy: Proxy) -> None:
    # Tests that run in a shell's background ignore SIGINT, and so do their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "chathistory_async.cli", "migrate", *tables, "--scan", "--endpoint-url", proxy.url]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

            def interrupt(seen: Seen) -> Fault:
                process.send_signal(signal.SIGINT)
                return Fault.DELAY

            proxy.schedule = interrupt
            shown, error = process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (process.returncode, shown, error.strip()) == (130, "", "Interrupted.")


def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise KeyboardInterrupt")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "chathistory_async.cli", "policy", "--table", "T"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_the_module_works_as_the_command_does() -> None:
    command = [sys.executable, "-m", "chathistory_async.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == in_process("--help")[1].split()
    commands = done.stdout.partition("Commands:")[2]
    assert commands
    assert "..." not in commands


def test_version() -> None:
    assert re.search(r"\d+\.\d+\.\d+", chathistory("--version").stdout)


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_its_extra_it_says_what_to_install(tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('no', name={package!r})")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "chathistory_async.cli"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "pip install 'chathistory-async[cli]'" in done.stderr
