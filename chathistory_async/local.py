"""An embedded DynamoDB and KMS for demos and tests: moto's server in a process of its own, one request at a time."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_START_SECONDS = 60.0


@asynccontextmanager
async def local_engine() -> AsyncIterator[str]:
    """Run an embedded engine on a free port of this machine, with no data at first and none kept.

    It takes any credentials, but the SDK wants some: pass a session with made-up ones, or set AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION. It ends with this context, or with this process.

    Yields:
        The endpoint's URL, for ``endpoint_url`` and ``kms_endpoint_url``.

    Raises:
        ModuleNotFoundError: the extra ``local`` is not installed.
        RuntimeError: the engine did not start.
    """
    if importlib.util.find_spec("moto") is None:
        raise ModuleNotFoundError("The embedded engine needs moto: pip install 'chathistory-async[local]'")
    engine = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield await _announced_url(engine)
    finally:
        await _end(engine)


async def _announced_url(engine: asyncio.subprocess.Process) -> str:
    assert engine.stdout is not None  # noqa: S101  # a pipe was asked for
    try:
        line = await asyncio.wait_for(engine.stdout.readline(), _START_SECONDS)
    except asyncio.TimeoutError:
        raise RuntimeError(f"The embedded engine did not start within {_START_SECONDS:.0f} s") from None
    if not line:
        raise RuntimeError("The embedded engine ended before it had started; its standard error says why")
    return line.decode().strip()


async def _end(engine: asyncio.subprocess.Process) -> None:
    if engine.returncode is None:
        engine.kill()
    # Not wait(): only this also reads and closes the pipes.
    await engine.communicate()


class _OneAtATime:
    """moto reads and writes an item without a lock: requests in parallel lose updates (5 of 400 in a trial)."""

    def __init__(self, app: WSGIApp) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: object) -> Any:
            # werkzeug sends a Server header too, and aiohttp, which is strict under "python -X dev", refuses two.
            return start_response(status, [header for header in headers if header[0].lower() != "server"], *rest)

        with self._lock:
            return list(self._app(environ, start))


def _serve() -> None:
    """Serve until standard input ends, which it also does when the process that started this one dies."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    from chathistory_async._quick_moto import install

    install()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, _OneAtATime(DomainDispatcherApplication(create_backend_app)), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
