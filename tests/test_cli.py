"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chathistory_async.cli import CONVERSATIONS


def chathistory(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("chathistory", path=str(Path(sys.executable).parent))
    assert command is not None, "the package is installed without its command"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        [command, *arguments], capture_output=True, text=True, timeout=90, env=environment, check=False
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


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help(arguments: list[str]) -> None:
    done = chathistory(*arguments)
    assert done.returncode == 0
    assert "Usage: chathistory" in done.stdout


def test_version() -> None:
    assert re.search(r"\d+\.\d+\.\d+", chathistory("--version").stdout)


def test_without_click_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('click')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import chathistory_async.cli"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "pip install 'chathistory-async[cli]'" in done.stderr
