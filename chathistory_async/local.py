"""An embedded DynamoDB and KMS for demos and tests: moto's server in a subprocess. It serves one request at a time."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeAlias

WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_START_SECONDS = 60.0
# With any other release, the engine uses moto's own methods, which are slower.
_KNOWN_MOTO = "5.2."


@asynccontextmanager
async def local_engine() -> AsyncIterator[str]:
    """Run an embedded engine on a free port of 127.0.0.1. It starts without data, and keeps none when it ends.

    The engine accepts any credentials, but the SDK requires some. Pass a session with made-up credentials and a region,
    or set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION. The engine ends when this context or this
    process ends.

    Yields:
        The endpoint's URL, for ``endpoint_url`` and ``kms_endpoint_url``.

    Raises:
        ModuleNotFoundError: the extra ``local`` is not installed.
        RuntimeError: the engine ended before it had started, or did not start within 60 seconds.
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
    assert engine.stdout is not None  # noqa: S101  # stdout=PIPE was passed
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
    # Unlike wait(), communicate() also reads and closes the pipes.
    await engine.communicate()


class _OneAtATime:
    """One request at a time: moto does not lock items, and parallel requests lose updates (5 of 400 in a trial)."""

    def __init__(self, app: WSGIApp) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: object) -> Any:
            # werkzeug sends a Server header too. Under "python -X dev" aiohttp is strict, and refuses two of them.
            return start_response(status, [header for header in headers if header[0].lower() != "server"], *rest)

        with self._lock:
            return list(self._app(environ, start))


def _serve() -> None:
    """Serve until standard input ends. It also ends when the parent process dies."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    _speed_up_moto()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, _OneAtATime(DomainDispatcherApplication(create_backend_app)), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


def _speed_up_moto() -> None:
    if version("moto").startswith(_KNOWN_MOTO):
        from ._quick_moto import install

        install()


if __name__ == "__main__":
    _serve()
