"""Finds the DynamoDB that the tests run on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from chathistory_async._testing.endpoint import localstack_url, running_localstack
from chathistory_async.local import local_engine

ROOT = Path(__file__).parent.parent

# aiobotocore 3 reads the certificates of a new client in a thread of the loop's executor, once; aiobotocore 2 does not.
SDK_THREADS = set() if version("aiobotocore").startswith("2.") else {"asyncio_0"}


@dataclass(frozen=True)
class Engine:
    """An engine, with no URL where it is an embedded one that has not been started.

    Attributes:
        kms_endpoint_url: where KMS is, if another program than the engine answers its calls.
    """

    name: str
    endpoint_url: str
    embedded: bool = False
    kms_endpoint_url: str = ""

    def settings(self) -> dict[str, str]:
        """The environment variables that tell an SDK of the engine."""
        if not self.kms_endpoint_url:
            return {"AWS_ENDPOINT_URL": self.endpoint_url}
        return {"AWS_ENDPOINT_URL": self.kms_endpoint_url, "AWS_ENDPOINT_URL_DYNAMODB": self.endpoint_url}


@contextmanager
def found_engine() -> Iterator[Engine]:
    """The first of: an endpoint in the environment, a running LocalStack, one started with Docker, the embedded one."""
    of_dynamodb, of_all = os.environ.get("AWS_ENDPOINT_URL_DYNAMODB"), os.environ.get("AWS_ENDPOINT_URL", "")
    if of_dynamodb:
        yield Engine("the endpoint in the environment", of_dynamodb, kms_endpoint_url=of_all)
    elif of_all:
        yield Engine("the endpoint in the environment", of_all)
    elif localstack := running_localstack():
        yield Engine("LocalStack, already running", localstack)
    elif _docker_works():
        with _composed():
            yield Engine("LocalStack, started with Docker", localstack_url())
    else:
        yield Engine("the embedded engine (moto)", "", embedded=True)


@contextmanager
def started(engine: Engine) -> Iterator[Engine]:
    """The engine that was found. Each process starts an embedded one of its own: it takes one request at a time."""
    if not engine.embedded:
        yield engine
    else:
        with local_engine() as url:
            yield replace(engine, endpoint_url=url)


def _docker_works() -> bool:
    return shutil.which("docker") is not None and _docker("info").returncode == 0


def _docker(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["docker", *arguments], cwd=ROOT, capture_output=True, check=False)


@contextmanager
def _composed() -> Iterator[None]:
    up = _docker("compose", "up", "--wait")
    try:
        if up.returncode:
            raise RuntimeError(f"docker compose up --wait failed: {up.stderr.decode()}")
        yield
    finally:
        _docker("compose", "down", "--volumes")
