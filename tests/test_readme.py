"""The README is true: its examples run, and its commands are those that the tests know."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Make
from engines import ROOT
from pages import DOCS, blocks, new_reader, run_blocks
from proxy import Proxy

README = (ROOT / "README.md").read_text()
EXAMPLES = blocks(README, "python")
STATEMENTS = [json.loads(text) for text in blocks((DOCS / "guides" / "encryption.md").read_text(), "json")]
COMMANDS = [command.rstrip() for command in blocks(README, "bash")]


@pytest.fixture(scope="module")
def reader() -> Iterator[dict[str, str]]:
    with new_reader() as environment:
        yield environment


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[0])
def test_example(example: str, tmp_path: Path, reader: dict[str, str]) -> None:
    output = run_blocks([example], tmp_path, reader)
    if "print(" in example:
        assert "Hi, how can I help?" in output


def test_there_are_examples_of_each_use() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("statement", STATEMENTS, ids=["IAM", "key"])
def test_the_statements_allow_what_is_called_and_no_more(
    statement: dict[str, Any], kms: Any, proxy: Proxy, make: Make, kms_key: str
) -> None:
    history = make(kms_key_id=kms_key, kms_endpoint_url=proxy.url)
    history.add_user_message("x")
    assert history._session.access.cipher is not None
    history._session.access.cipher._keys._cache.forget()
    assert len(history.messages) == 1
    assert [f"kms:{operation}" for operation in proxy.operations()] == statement["Action"]
    [condition] = statement["Condition"]["StringEquals"]
    assert condition.removeprefix("kms:EncryptionContext:") in proxy.seen[0].body["EncryptionContext"]


def test_a_key_accepts_its_statement(kms: Any) -> None:
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    [statement] = [statement for statement in STATEMENTS if "Principal" in statement]
    policy = json.loads(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])
    policy["Statement"].append(statement)
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(policy))
    assert statement in json.loads(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])["Statement"]


def test_the_first_screen_has_the_two_commands() -> None:
    assert COMMANDS[:2] == ['pip install ".[local,cli]" && chathistory demo', 'pip install "nox[uv]" && nox']
    assert README.index(COMMANDS[1]) < 1200
    assert "&& nox" in COMMANDS[1]
    assert 'nox.options.sessions = ["tests"]' in (ROOT / "noxfile.py").read_text()


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_tests_have_a_map() -> None:
    tests = ROOT / "tests"
    mapped = (tests / "README.md").read_text()
    modules = [*tests.glob("test_*.py"), *tests.glob("stress/test_*.py")]
    assert [path.name for path in modules if path.name not in mapped] == []


def test_the_compose_file_pins_localstack() -> None:
    assert re.search(r"image: localstack/localstack:\d+\.\d+\.\d+\n", (ROOT / "docker-compose.yml").read_text())
