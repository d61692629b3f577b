"""Run ``nox -s lint types docs tests package stress`` before a merge. ``nox -l`` lists all sessions."""

import os
import shutil
import subprocess
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "uv|virtualenv"


# The wheels of the Claude Agent SDK have Claude Code in them, 384 MB that no test needs. Its sources do not.
WITHOUT_CLAUDE_CODE = ["--no-binary", "claude-agent-sdk"]


def dependencies(*groups: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, *groups)


def install(session: nox.Session) -> None:
    # As pip does: programs that the tests start have time-outs, and would compile while they run.
    session.env["UV_COMPILE_BYTECODE"] = "1"
    # Each worker, and each program that it starts, would otherwise compile the tests anew where this is set.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    session.install(*WITHOUT_CLAUDE_CODE, ".[local,cli,kms]", *dependencies("test"))
    # Programs that the tests start would otherwise import the working tree instead of the wheel.
    session.env["PYTHONSAFEPATH"] = "1"


CORES = os.cpu_count() or 1


# One process more than there are cores: tests also wait, for the engine, for a time-out or for other processes.
def run_suite(session: nox.Session, *arguments: str, processes: int = min(4, CORES + 1)) -> None:
    session.run("pytest", f"--numprocesses={processes}", "--dist=worksteal", *arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """The suite against the built wheel, on the first engine that is there: see tests/engines.py."""
    install(session)
    run_suite(session, *session.posargs)


@nox.session
def stress(session: nox.Session) -> None:
    """The long runs of the suite, and histories of processes that are killed, other ones each time."""
    install(session)
    # Most of the long runs wait, for late requests or between retries.
    run_suite(session, "-m", "stress", *session.posargs, processes=2 * CORES + 1)


@nox.session(python=nox.project.python_versions(PYPROJECT))
def versions(session: nox.Session) -> None:
    """The suite on each supported Python that this machine has."""
    tests(session)


@nox.session
def compat(session: nox.Session) -> None:
    """The suite with aiobotocore 3 beside langchain-aws: aioboto3 15.5 runs with it though it pins an older one."""
    install(session)
    session.install("aiobotocore>=3", "langchain-aws")
    run_suite(session, *session.posargs)


@nox.session(venv_backend="virtualenv")
def newest(session: nox.Session) -> None:
    """The suite with the newest release of everything, the frameworks' too, and pre-releases: for a run each night."""
    session.install("--pre", *WITHOUT_CLAUDE_CODE, ".[local,cli,kms]", *dependencies("test"))
    session.run("pip", "list")
    session.env["PYTHONSAFEPATH"] = "1"
    run_suite(session, *session.posargs)


# Where the OpenAI Agents SDK tests its sessions, its runner and its compaction.
OPENAI_AGENTS_TESTS = [
    "tests/memory/test_session.py",
    "tests/memory/test_session_limit.py",
    "tests/memory/test_session_context_wrapper.py",
    "tests/memory/test_compaction_model_visibility.py",
    "tests/memory/test_compaction_suffix.py",
    "tests/memory/test_openai_responses_compaction_session.py",
    "tests/extensions/memory/test_encrypt_session.py",
    "tests/deferred_session_writes",
    "tests/test_agent_as_tool.py",
    "tests/test_agent_runner.py",
    "tests/test_agent_runner_streamed.py",
    "tests/test_handoff_history_duplication.py",
    "tests/test_hitl_session_scenario.py",
    "tests/test_max_turns.py",
    "tests/test_native_tool_failure_history.py",
    "tests/test_programmatic_tool_calling.py",
    "tests/test_run_impl_resume_paths.py",
    "tests/test_run_state_pending_input.py",
    "tests/test_runner_guardrail_resume.py",
    "tests/test_runtime_symmetry_contract.py",
    "tests/test_soft_cancel.py",
    "tests/test_tool_batch_failure_history.py",
    "tests/test_tool_failure_boundaries.py",
]


@nox.session(venv_backend="virtualenv")
def openai_agents(session: nox.Session) -> None:
    """The OpenAI Agents SDK's own tests, with our sessions instead of SQLite's: see tests/openai_agents_suite.py."""
    needed = ["aiosqlite", "cryptography", "fakeredis", "inline-snapshot", "sqlalchemy[asyncio]"]
    session.install(*WITHOUT_CLAUDE_CODE, ".[local,openai-agents]", *dependencies("test"), *needed)
    ask = "from importlib.metadata import version; print(version('openai-agents'))"
    release = str(session.run("python", "-c", ask, silent=True)).strip()
    folder = Path(session.create_tmp())
    # Only the source distribution has the tests.
    source = ["--no-deps", "--no-binary", "openai-agents", "--dest", str(folder), f"openai-agents=={release}"]
    session.run("pip", "download", "--quiet", *source)
    session.run("python", "-m", "tarfile", "-e", str(folder / f"openai_agents-{release}.tar.gz"), str(folder))
    session.env["PYTHONPATH"] = str(Path("tests").absolute())
    session.chdir(folder / f"openai_agents-{release}")
    session.run("pytest", "-p", "openai_agents_suite", *(session.posargs or OPENAI_AGENTS_TESTS))


GITHUB_SCHEMAS = {
    "github-workflows": "workflows/*.yml",
    "dependabot": "dependabot.yml",
    "github-issue-config": "ISSUE_TEMPLATE/config.yml",
    "github-issue-forms": "ISSUE_TEMPLATE/[!c]*.yml",
}


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting, and GitHub's workflows and forms. No check asks the network."""
    session.install(*dependencies("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("zizmor", "--offline", "--no-progress", "--persona=pedantic", ".github")
    for schema, files in GITHUB_SCHEMAS.items():
        paths = [str(path) for path in sorted(Path(".github").glob(files))]
        session.run("check-jsonschema", f"--builtin-schema=vendor.{schema}", *paths)


# Against drift: a picture, a recording or an environment that gets into an archive by mistake is larger than this.
BUDGETS_BYTES = {"*.whl": 400_000, "*.tar.gz": 2_500_000}

# They read files of the archive that are not Python, import every module, and run the examples.
TESTS_OF_AN_ARCHIVE = ["tests/test_contributing.py", "tests/test_public_surface.py", "tests/test_examples.py"]


@nox.session
def package(session: nox.Session) -> None:
    """The wheel and the source distribution in dist/, checked and installed; part of the suite from the archive."""
    session.install(*dependencies("package"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--installer=uv")
    wheel, archive = (within_budget(session, pattern) for pattern in BUDGETS_BYTES)
    session.run("twine", "check", "--strict", wheel, archive)
    session.run("check-wheel-contents", "--package", "chathistory_async", wheel)
    session.install(*WITHOUT_CLAUDE_CODE, f"{wheel}[local,cli,kms]", *dependencies("test"))
    session.run("chathistory", "--version")
    session.install("--no-deps", "--force-reinstall", archive)
    folder = Path(session.create_tmp())
    shutil.unpack_archive(archive, folder)
    session.env["PYTHONSAFEPATH"] = "1"
    session.chdir(folder / Path(archive).name.removesuffix(".tar.gz"))
    run_suite(session, *(session.posargs or TESTS_OF_AN_ARCHIVE))


def within_budget(session: nox.Session, pattern: str) -> str:
    [path] = Path("dist").glob(pattern)
    size, budget = path.stat().st_size, BUDGETS_BYTES[pattern]
    session.log(f"{path.name}: {size:,} of {budget:,} bytes")
    if size > budget:
        session.error(f"{path} is over its budget")
    return str(path.absolute())


@nox.session
def types(session: nox.Session) -> None:
    """Static types of the package, its tests and its benchmarks."""
    session.install(*WITHOUT_CLAUDE_CODE, ".[local,cli,kms]", *dependencies("test", "bench"))
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation in .nox/site, where each warning is an error; ``-- serve`` shows it while you write."""
    session.install(*dependencies("docs"))
    if session.posargs:
        session.run("zensical", *session.posargs)
        return
    # Without --clean, the cache has no warnings of pages that it knows.
    said = str(session.run("zensical", "build", "--strict", "--clean", silent=True, stderr=subprocess.STDOUT))
    session.log(said)
    if "griffe: " in said:
        session.error("A docstring has a section that the reference cannot show")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Everything measured beside the peers, in a quarter of an hour: see benchmarks/README.md."""
    session.install(".[local,kms]", *dependencies("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)
