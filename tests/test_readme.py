"""The README is true: its examples run, and its commands are those that the tests know."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from engines import ROOT

from chathistory_async import ChatHistoryStore
from chathistory_async._bridge import run

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def example_table() -> Iterator[None]:
    store = ChatHistoryStore("ChatHistory")
    run(store.create_table)
    yield
    run(store.delete_table)
    store.close()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[0])
def test_example(example: str) -> None:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if "print(" in example:
        assert "Hi, how can I help?" in done.stdout


def test_there_are_examples_of_each_use() -> None:
    assert len(EXAMPLES) == 3


def test_the_first_screen_has_the_two_commands() -> None:
    assert COMMANDS[:2] == ['pip install ".[local,cli]" && chathistory demo', "pip install nox && nox"]
    assert README.index(COMMANDS[1]) < 1200
    assert "&& nox" in COMMANDS[1]
    assert 'nox.options.sessions = ["tests"]' in (ROOT / "noxfile.py").read_text()


def test_what_it_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_compose_file_pins_localstack() -> None:
    assert re.search(r"image: localstack/localstack:\d+\.\d+\.\d+\n", (ROOT / "docker-compose.yml").read_text())
