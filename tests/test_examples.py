"""The programs in ``examples/`` run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
from conftest import created_table
from engines import ROOT, Engine

EXAMPLES = {
    "agent_framework_agent.py": ["Editor: I was sent 3 messages.", "'first-chat': 4 messages of agent-framework"],
    "claude_agent.py": ["Who am I? -> That was turn 2.", "'I am Alice.', with the subagents ['1']", "Left: []"],
    "langchain_agent.py": ["Where? -> In Rome.", "'first-chat': 6 messages"],
    "migrate_from_community.py": ["'bob-1': copied, 2 messages", "'alice-1': moved, 2 messages", "  ai: Tomorrow too."],
    "openai_agent.py": ["Who am I? -> You are Alice.", "'first-chat': 4 items of openai-agents"],
}


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def test_they_do_what_they_say(example: str, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples" / example
    program = path.read_text().replace("asyncio.run(main())", "await main()")
    # An engine of its own and a process would take most of the time.
    program = program.replace("local_engine()", f"nullcontext({engine.endpoint_url!r})")
    with created_table(session_index=True) as table, created_table(layout="single_item") as single_items:
        program = program.replace('"Chats"', repr(table)).replace('"ChatHistory"', repr(single_items))
        code = compile(program, path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await eval(code, {"__file__": str(path), "nullcontext": nullcontext})
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line in EXAMPLES[example]] == EXAMPLES[example]


@pytest.mark.stress
def test_each_runs_by_one_command(example: str) -> None:
    command = [sys.executable, "-W", "error::ResourceWarning", str(ROOT / "examples" / example)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "OPENAI_"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert EXAMPLES[example][-1] in done.stdout.splitlines()
