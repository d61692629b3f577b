"""Runs commands as a user types them, in this process: a process of its own takes a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from click.testing import CliRunner

from chathistory_async.cli.commands import chathistory


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    output: str
    error: str

    def lines(self) -> list[str]:
        return self.output.splitlines()

    def json(self) -> Any:
        return json.loads(self.output)


Environment = Mapping[str, str | None]


def run_command(*arguments: str, typed: str | bytes = "", environment: Environment | None = None) -> Done:
    """Run a command. It never ends with a traceback, and what fails says so in one line."""
    done = CliRunner().invoke(chathistory, arguments, input=typed, env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1, 2)
    return Done(done.exit_code, done.stdout, done.stderr)


def succeeds(*arguments: str, typed: str | bytes = "", environment: Environment | None = None) -> Done:
    done = run_command(*arguments, typed=typed, environment=environment)
    assert done.code == 0, done
    return done


def fails(*arguments: str, code: int = 1, typed: str | bytes = "", environment: Environment | None = None) -> str:
    """Return the error of a command that fails with this exit code and writes nothing else. It is one line."""
    done = run_command(*arguments, typed=typed, environment=environment)
    assert (done.code, done.output) == (code, ""), done
    [error] = done.error.splitlines()
    assert error.startswith("Error: ")
    return error
