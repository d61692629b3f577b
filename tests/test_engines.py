"""How the tests find their engine: the order, and what is started is taken down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import CREDENTIALS, set_aws_settings
from engines import Engine, found_engine

FAKE_DOCKER = """#!/bin/sh
echo "$@" >> "$0.calls"
case "$1$2" in {failing}) exit 1;; esac
"""


pytestmark = pytest.mark.posix


@pytest.fixture(autouse=True)
def nothing_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCALSTACK_HOST", "localhost:1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    install_docker(tmp_path, failing="info")


def install_docker(path: Path, failing: str) -> Path:
    docker = path / "docker"
    docker.write_text(FAKE_DOCKER.format(failing=failing))
    docker.chmod(0o755)
    return path / "docker.calls"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB"])
def test_an_endpoint_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://given:1")
    with found_engine() as engine:
        assert (engine.endpoint_url, engine.embedded) == ("http://given:1", False)


def test_kms_may_be_elsewhere_than_dynamodb(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"AWS_ENDPOINT_URL": "http://kms:1", "AWS_ENDPOINT_URL_DYNAMODB": "http://dynamodb:1"}
    for name, url in given.items():
        monkeypatch.setenv(name, url)
    with found_engine() as engine:
        assert engine.endpoint_url == "http://dynamodb:1"
        environment = dict[str, str]()
        set_aws_settings(environment, engine)
        assert environment == CREDENTIALS | given


def test_docker_starts_localstack_and_takes_it_down(tmp_path: Path) -> None:
    calls = install_docker(tmp_path, failing="none")
    with found_engine() as engine:
        assert (engine.endpoint_url, engine.embedded) == ("http://127.0.0.1:1", False)
        assert calls.read_text().splitlines() == ["info", "compose up --wait"]
    assert calls.read_text().splitlines()[2:] == ["compose down --volumes"]


def test_a_localstack_that_does_not_start_is_an_error_and_taken_down(tmp_path: Path) -> None:
    calls = install_docker(tmp_path, failing="composeup")
    with pytest.raises(RuntimeError, match="docker compose up --wait failed"), found_engine():
        pass
    assert calls.read_text().splitlines()[-1] == "compose down --volumes"


def test_without_any_the_embedded_engine_is_used() -> None:
    with found_engine() as engine:
        assert (engine.endpoint_url, engine.embedded) == ("", True)


def test_the_tests_have_no_aws_settings_but_their_own() -> None:
    environment = {"PATH": "/bin", "AWS_PROFILE": "mine", "AWS_SESSION_TOKEN": "x", "AWS_MAX_ATTEMPTS": "1"}
    environment["AWS_ENDPOINT_URL_DYNAMODB"] = "http://mine:1"
    set_aws_settings(environment, Engine("any", "http://given:1"))
    assert environment == {"PATH": "/bin", **CREDENTIALS, "AWS_ENDPOINT_URL": "http://given:1"}
