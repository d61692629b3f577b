"""The pages of the documentation: their code, run as a reader would run it."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from conftest import OUR_PLUGIN_ALONE
from engines import ROOT

from chathistory_async import ChatHistoryStore
from chathistory_async._sync.bridge import run

DOCS = ROOT / "docs"

# Not the region of the other tests, which have a KMS key with an alias too.
REGION = "eu-north-1"


FENCED = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(text: str, *languages: str) -> list[str]:
    """Return a page's blocks of code in these languages, also those that are indented, in a list for example."""
    return [textwrap.dedent(code) for _, language, code in FENCED.findall(text) if language in languages]


async def of_page(page: str, names: dict[str, Any], replaced: Mapping[str, str]) -> None:
    """Run a page's Python, which may await at its top level, as in a notebook, or run its ``main``.

    Args:
        page: the name of its file.
        names: the names that the Python finds, and afterwards also those that it has made.
        replaced: texts in it, and what to put there instead.
    """
    text = (DOCS / page).read_text()
    for old, new in replaced.items():
        text = text.replace(old, new)
    program = "\n".join(blocks(text, "python")).replace("asyncio.run(main())", "await main()")
    await eval(compile(program, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)


# Runs blocks one after the other as cells of a notebook: each may await at its top level, or run an event loop.
RUN_BLOCKS = """
import ast, asyncio, inspect, logging, sys

# A page may show an error that the library also logs.
logging.getLogger("chathistory_async").addHandler(logging.NullHandler())

def main():
    with_await = asyncio.new_event_loop()
    for number, block in enumerate(sys.argv[1:], 1):
        code = compile(block, f"<block {number}>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, globals())
        if inspect.iscoroutine(result):
            with_await.run_until_complete(result)
    with_await.close()

main()
"""


def run_blocks(code: list[str], directory: Path, environment: Mapping[str, str]) -> str:
    """Run a page's Python in a new process and directory, and return its output. Blocks with tests run in pytest."""
    programs = [block for block in code if "def test_" not in block]
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", RUN_BLOCKS, *programs]
    output = _output(command, directory, environment) if programs else ""
    for number, block in enumerate(block for block in code if block not in programs):
        file = directory / f"test_block_{number}.py"
        file.write_text(block)
        settings = ["asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function"]
        options = [*OUR_PLUGIN_ALONE, "-p", "asyncio", *(part for setting in settings for part in ("-o", setting))]
        output += _output([sys.executable, "-m", "pytest", "-W", "error", *options, str(file)], directory, environment)
    return output


def _output(command: list[str], directory: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=directory,
        env=os.environ | environment,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@contextmanager
def new_reader() -> Iterator[dict[str, str]]:
    """The environment of somebody who has made the tables and the KMS key that the pages begin with.

    On LocalStack the access key names the account, so nobody else's tables are touched.
    """
    account = f"{random.randrange(10**12):012}"
    session = boto3.Session(account, "test", region_name=REGION)
    stores = [
        ChatHistoryStore("ChatHistory", layout="single_item", boto3_session=session),
        ChatHistoryStore("Chats", session_index=True, boto3_session=session),
    ]
    kms = session.client("kms")
    with contextlib.suppress(kms.exceptions.NotFoundException):
        # A run that was cut short has left it.
        kms.delete_alias(AliasName="alias/chat")
    kms.create_alias(AliasName="alias/chat", TargetKeyId=kms.create_key()["KeyMetadata"]["KeyId"])
    for store in stores:
        run(store.create_table)
    yield {"AWS_ACCESS_KEY_ID": account, "AWS_DEFAULT_REGION": REGION}
    for store in stores:
        run(store.delete_table)
        store.close()
    kms.delete_alias(AliasName="alias/chat")
