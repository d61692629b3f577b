"""The pages for contributors and GitHub's workflows agree with the repository."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from engines import ROOT

GITHUB = ROOT / ".github"
SESSIONS = {*re.findall(r"^@nox\.session\b.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)}
FILES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / ".pre-commit-config.yaml",
    ROOT / ".ci" / "run",
    ROOT / "tests" / "README.md",
    *GITHUB.rglob("*.*"),
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}


def sessions_in(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for names in re.findall(r"nox .*?-s ((?:\w+ ?)+)", text) for name in names.split()}


def test_the_sessions_that_are_named_are_there() -> None:
    matrix = re.search(r"session: \[(.*)\]", TEXTS[".github/workflows/checks.yml"])
    assert matrix is not None
    assert sessions_in(TEXTS.values()) | {*matrix[1].split(", ")} <= SESSIONS


def test_each_session_is_explained() -> None:
    assert sessions_in([TEXTS["CONTRIBUTING.md"], TEXTS["tests/README.md"]]) | {"tests"} == SESSIONS


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".md")])
def test_links_lead_to_files(name: str) -> None:
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        assert target.startswith("https://") or (folder / target.split("#")[0]).exists(), target


def test_github_tests_each_python_that_is_supported() -> None:
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    matrix = re.search(r"python: \[(.*)\]", TEXTS[".github/workflows/tests.yml"])
    assert matrix is not None
    assert re.findall(r"3\.\d+", matrix[1]) == supported


def test_an_action_of_github_is_a_commit() -> None:
    used = [action for text in TEXTS.values() for action in re.findall(r"uses: *(.*)", text)]
    assert len(used) > 10
    assert [action for action in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action)] == []
