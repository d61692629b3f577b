"""The documentation is true: its code runs, its links lead somewhere, and its figures are those of the benchmarks."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from engines import ROOT
from pages import DOCS, FENCED, blocks, new_reader, run_blocks

import chathistory_async
from chathistory_async import ChatHistoryError, ChatHistoryStore, errors, testing
from chathistory_async._item_collection import layout
from chathistory_async._migration import checkpoint
from chathistory_async._session_index import stored, value_ids
from chathistory_async._single_item import layout as single_item

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
PAGES_WITH_PYTHON = [page for page, text in PAGES.items() if blocks(text, "python")]
# Pages whose code needs a model, or a program that a test stands in for. These tests run it.
RUN_ELSEWHERE = {
    "agents/agent-framework.md": "test_agent_framework.py",
    "agents/claude-agent-sdk.md": "test_claude_agent_sdk.py",
    "agents/openai-agents.md": "test_openai_agents.py",
}
SETTINGS_THAT_NAME_ATTRIBUTES = ("primary_key_name", "sort_key_name", "ttl_key_name", "history_messages_key")
README_AND_PAGES = {"README.md": ROOT / "README.md", **{f"docs/{page}": DOCS / page for page in PAGES}}


@pytest.fixture(params=README_AND_PAGES)
def path(request: pytest.FixtureRequest) -> Path:
    return README_AND_PAGES[request.param]


@pytest.mark.parametrize("page", [page for page in PAGES_WITH_PYTHON if page not in RUN_ELSEWHERE])
def test_the_python_of_a_page_runs_from_its_top(page: str, tmp_path: Path) -> None:
    with new_reader() as environment:
        run_blocks(blocks(PAGES[page], "python"), tmp_path, environment)


@pytest.mark.parametrize(("page", "module"), RUN_ELSEWHERE.items())
def test_another_test_runs_a_page_that_needs_more(page: str, module: str) -> None:
    assert f'of_page("{page}"' in (ROOT / "tests" / module).read_text()


def test_code_is_in_a_language_that_is_checked(path: Path) -> None:
    languages = {language for _, language, _ in FENCED.findall(path.read_text())}
    assert languages <= {"python", "bash", "json", "toml", "text"}


def test_code_in_other_languages_has_their_syntax(path: Path) -> None:
    text = path.read_text()
    for command in blocks(text, "bash"):
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
    for block in blocks(text, "json"):
        json.loads(block)
    for block in blocks(text, "toml"):
        tomllib.loads(block)


def prose(text: str) -> str:
    """Return a page's text without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, which GitHub and the built site write in the same way."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def is_name(dotted: str) -> bool:
    """Tell whether the reference may have an anchor for this."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def is_there(target: str, page: Path) -> bool:
    url = urlsplit(target)
    if url.scheme:
        return url.scheme == "https" and "." in url.netloc
    path = (page.parent / url.path).resolve() if url.path else page
    if page.is_relative_to(DOCS) and not path.is_relative_to(DOCS):
        return False  # the built site ends there
    return path.exists() and (not url.fragment or url.fragment in anchors(path) or is_name(url.fragment))


def test_links_lead_somewhere(path: Path) -> None:
    text = prose(path.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    assert [target for target in targets if not is_there(target, path)] == []
    assert [name for name in re.findall(r"\]\[([\w.]+\.[\w.]+)\]", text) if not is_name(name)] == []


def test_each_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "zensical.toml").read_text()
    assert [page for page in PAGES if f'"{page}"' not in navigation] == []


RESULTS = json.loads((ROOT / "benchmarks" / "results" / "results.json").read_text())


def figures() -> dict[str, float]:
    """Return each figure of the benchmarks by the name that a page quotes it with.

    "<target>", "<target>: <case>", or "<benchmark>, <case>, <variant>: <value>".
    """
    found: dict[str, float] = {}
    for target in RESULTS["targets"]:
        for case, measured in (target["measured"] or {}).items():
            found[f"{target['target']}: {case}" if case else target["target"]] = measured["median"]
    for benchmark, rows in RESULTS["benchmarks"].items():
        for row in rows:
            name = ", ".join([benchmark, *map(str, row["case"].values()), row["variant"]])
            found |= {f"{name}: {value}": measured["median"] for value, measured in row["values"].items()}
            found |= {f"{name}: {value}": measured for value, measured in row["figures"].items()}
    return found


FIGURES = figures()


def is_rounded(quoted: str, measured: float) -> bool:
    """Tell whether a quoted figure, such as "0.29", "1,152" or "1/20", is this one, rounded as it is written."""
    if quoted.startswith("1/"):
        return is_rounded(quoted[2:], measured)
    decimals = len(quoted.partition(".")[2])
    return float(quoted.replace(",", "")) == round(measured, decimals)


def test_quoted_figures_are_those_of_the_benchmarks(path: Path) -> None:
    """A comment after a figure names it: ``0.29<!-- figure: CPU of a small call ...: put -->``."""
    text = path.read_text()
    quoted = re.findall(r"([\d/.,]*\d)<!-- figure: (.+?) -->", text)
    assert len(quoted) == text.count("<!-- figure")
    assert [(figure, name) for figure, name in quoted if not is_rounded(figure, FIGURES[name])] == []


def test_a_quoted_loss_was_measured(path: Path) -> None:
    quoted = re.findall(r"loses (\d+ of \d+) messages", path.read_text())
    assert [loss for loss in quoted if not any(f"lost {loss} messages" in line for line in RESULTS["wrong"])] == []


def test_no_sentence_has_a_clause_as_its_subject(path: Path) -> None:
    text = re.sub(r"^#.*$|^\*\*.*?\*\*|<!--.*?-->", "", prose(path.read_text()), flags=re.MULTILINE | re.DOTALL)
    starts = r"(?:^|\n\n|[.!?:;] |[.!?]\n|\| |^ *[-*] |^ *\d+\. )"
    assert re.findall(rf"{starts}(?:What|Who|Whoever|Of|By(?! default))\b.*", text, re.MULTILINE) == []


def test_numbers_in_the_text_are_the_constants_in_the_code(path: Path) -> None:
    """A comment after a number names it: ``4<!-- is: _item_collection.layout: MAX_TRANSACTION_BYTES / 10**6 -->``."""
    text = path.read_text()
    numbers = re.findall(r"([\d.,]*\d)<!-- is: (\S+): (.+?) -->", text)
    assert len(numbers) == text.count("<!-- is")
    for number, module, expression in numbers:
        constants = vars(importlib.import_module(f"chathistory_async.{module}"))
        assert float(number.replace(",", "")) == pytest.approx(eval(expression, dict(constants))), expression


def documented() -> set[str]:
    return {
        name.removeprefix("chathistory_async.")
        for page, text in PAGES.items()
        if page.startswith("reference/")
        for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    }


def public_in(module: str) -> set[str]:
    """Return the names of functions and classes that a module defines for its users."""
    found = vars(importlib.import_module(f"chathistory_async.{module}"))
    return {
        f"{module}.{name}"
        for name, value in found.items()
        if getattr(value, "__module__", None) == f"chathistory_async.{module}" and not name.startswith(("_", "pytest_"))
    }


def test_the_reference_has_each_public_name() -> None:
    integrations = ("langchain", "openai_agents", "claude_agent_sdk", "agent_framework")
    modules = ["local", "testing", *(f"integrations.{name}" for name in integrations)]
    of_modules = set().union(*map(public_in, modules))
    assert documented() == {*chathistory_async.__all__, *(f"testing.{name}" for name in testing.__all__), *of_modules}


def test_each_error_has_a_cure() -> None:
    page = PAGES["reference/errors.md"]
    sections = re.findall(r"^::: chathistory_async\.(\w+)\n\n\*\*Cure\.\*\* \S", page, re.MULTILINE)
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    raised = {kind.__name__ for kind in kinds if issubclass(kind, ChatHistoryError) and kind is not ChatHistoryError}
    assert sorted(sections) == sorted(raised)
    tree = blocks(page, "text")[0]
    assert sorted(re.findall(r"\w+Error\b", tree.replace("ValueError", ""))) == sorted({*raised, "ChatHistoryError"})


def test_the_page_of_stored_attributes_has_each_one() -> None:
    constants = [
        value
        for module in (layout, stored)
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    ]
    defaults = inspect.signature(ChatHistoryStore).parameters
    settings = [defaults[name].default for name in SETTINGS_THAT_NAME_ATTRIBUTES]
    names = {*constants, *settings, single_item.WRITES, value_ids._NAME}
    rows = re.findall(r"^\| `(\w+)`", PAGES["reference/stored-attributes.md"], re.MULTILINE)
    assert {*rows} == names | {checkpoint.SORT_KEY}


def test_generated_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    generate = importlib.import_module("generate")
    for page, text in generate.pages().items():
        assert (DOCS / page).read_text() == text, "run: python docs/generate.py"
