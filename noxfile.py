"""Run ``nox -s lint types tests compat stress`` before a merge. ``nox -l`` lists all sessions."""

import os

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "uv|virtualenv"


def dependencies(*groups: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, *groups)


def install(session: nox.Session) -> None:
    # As pip does: programs that the tests start have time-outs, and would compile while they run.
    session.env["UV_COMPILE_BYTECODE"] = "1"
    session.install(".[local,cli,kms]", *dependencies("test"))
    # Programs that the tests start would otherwise import the working tree instead of the wheel.
    session.env["PYTHONSAFEPATH"] = "1"


def run_suite(session: nox.Session, *arguments: str) -> None:
    # One more than there are cores: tests also wait, for the engine, for a time-out or for other processes.
    processes = min(4, (os.cpu_count() or 1) + 1)
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
    run_suite(session, "-m", "stress", *session.posargs)


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
    """The suite with the newest release of everything, pre-releases too: for a run each night."""
    session.install("--pre", ".[local,cli,kms]", *dependencies("test"))
    session.run("pip", "list")
    session.env["PYTHONSAFEPATH"] = "1"
    run_suite(session, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install(*dependencies("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Static types of the package, its tests and its benchmarks."""
    session.install(".[local,cli,kms]", *dependencies("test", "bench"))
    session.run("mypy")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Everything measured beside the peers, in a quarter of an hour: see benchmarks/README.md."""
    session.install(".[local,kms]", *dependencies("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)
