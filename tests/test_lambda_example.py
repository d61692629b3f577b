"""The example for AWS Lambda, run as Lambda runs it: one process for many invocations, which is frozen in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from command_line import succeeds
from engines import ROOT

EXAMPLES = ROOT / "examples"
# Waits for an event, calls the handler on the main thread, and answers.
RUNTIME = """
import json, sys
from lambda_handler import handler

for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), None)), flush=True)
"""


class Environment:
    """An execution environment of Lambda. It is frozen unless it handles an event."""

    def __init__(self, table: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RUNTIME],
            cwd=EXAMPLES,
            env=os.environ | {"TABLE_NAME": table, "PYTHONSAFEPATH": "", "PYTHONPATH": python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def invoke(self, method: str, chat: str, text: str = "", key: str = "", user: str = "alice") -> Any:
        """Return the messages that the handler answers with, as pairs of role and text."""
        event = {
            "rawPath": f"/{chat}",
            "headers": {"idempotency-key": key} if key else {},
            "requestContext": {
                "authorizer": {"iam": {"userId": user}},
                "http": {"method": method},
                "requestId": os.urandom(8).hex(),
            },
            "body": json.dumps({"text": text}),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps(event), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)
        assert answer["statusCode"] == 200
        return [(message["role"], message["text"]) for message in json.loads(answer["body"])]


def python_path() -> str:
    return os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")]))


@contextmanager
def environment(table: str) -> Iterator[Environment]:
    started = Environment(table)
    with started.process:
        try:
            yield started
        finally:
            started.process.kill()


def test_invocations_of_one_process_and_of_the_next(collection_table: str, session_id: str) -> None:
    with environment(collection_table) as one:
        assert one.invoke("GET", session_id) == []
        first = one.invoke("POST", session_id, "Hello!", key="question-1")
        assert first == [("human", "Hello!"), ("ai", "I was sent 1 messages.")]
        assert one.invoke("POST", session_id, "Hello!", key="question-1") == first
        assert one.invoke("GET", session_id, user="bob") == []
    with environment(collection_table) as another:
        assert another.invoke("POST", session_id, "Hello!", key="question-1") == first
        both = another.invoke("POST", session_id, "Hello!")
        assert both == [*first, ("human", "Hello!"), ("ai", "I was sent 3 messages.")]


@pytest.mark.stress
def test_it_runs_by_one_command() -> None:
    command = [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / "lambda_handler.py")]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    [first, second] = done.stdout.splitlines()
    assert first == second
    assert json.loads(first)[1] == {"role": "ai", "text": "I was sent 1 messages."}


class Template(yaml.SafeLoader):
    """Reads CloudFormation's short forms: ``!Ref Name`` as ``{"Ref": "Name"}``."""


Template.add_multi_constructor("!", lambda loader, name, node: {name: loader.construct_scalar(node)})


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    template = yaml.load((EXAMPLES / "template.yaml").read_text(), Template)
    found: dict[str, Any] = template["Resources"]
    return found


def test_the_template_s_policy_is_the_printed_one(resources: dict[str, Any]) -> None:
    table = "arn:aws:dynamodb:eu-north-1:123456789012:table/Chats"
    [policy] = resources["Chat"]["Properties"]["Policies"]
    for statement in policy["Statement"]:
        [arn] = statement["Resource"].values()
        statement["Resource"] = arn.replace("${ChatHistory.Arn}", table).replace("ChatHistory.Arn", table)
    assert policy == succeeds("policy", "--table", table, "--session-index").json()


def test_the_template_s_table_is_the_printed_one(resources: dict[str, Any]) -> None:
    printed = succeeds("create-table", "--table", "x", "--session-index", "--print", "cloudformation").json()
    [table] = printed["Resources"].values()
    # CloudFormation names it.
    del table["Properties"]["TableName"]
    assert resources["ChatHistory"] == table


def test_the_template_s_function_is_the_example(resources: dict[str, Any]) -> None:
    function = resources["Chat"]["Properties"]
    module, _, name = function["Handler"].partition(".")
    program = (EXAMPLES / f"{module}.py").read_text()
    assert f"def {name}(event" in program
    [variable] = function["Environment"]["Variables"]
    assert f'os.environ.get("{variable}"' in program
