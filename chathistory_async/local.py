"""An embedded DynamoDB and KMS for demos and tests: moto's server in a subprocess. It serves one request at a time."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import sys
import threading
from importlib.metadata import version
from types import TracebackType

from ._sync.bridge import run

_START_SECONDS = 60.0
# With any other release, the engine uses moto's own methods, which are slower.
_KNOWN_MOTO = "5.2."


class LocalEngine:
    """An embedded engine that runs while its context does; made by ``local_engine``.

    Enter it with ``async with``, or with ``with`` in synchronous code.
    """

    _engine: asyncio.subprocess.Process

    async def __aenter__(self) -> str:
        """Start the engine, and return its URL."""
        if importlib.util.find_spec("moto") is None:
            raise ModuleNotFoundError("The embedded engine needs moto: pip install 'chathistory-async[local]'")
        self._engine = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            return await _announced_url(self._engine)
        except BaseException:
            await _end(self._engine)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the engine."""
        await _end(self._engine)

    def __enter__(self) -> str:
        """Start the engine, and return its URL, as ``async with`` does."""
        return run(self.__aenter__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the engine, as ``async with`` does."""
        run(self.__aexit__, kind, error, traceback)


def local_engine() -> LocalEngine:
    """Return an embedded engine, to run with ``async with`` or, in synchronous code, with ``with``.

    It runs on a free port of 127.0.0.1. It starts without data, and keeps none when it ends. It ends when its context
    or this process ends. Inside a running event loop, ``with`` blocks that loop for the seconds of the start.

    The engine accepts any credentials, but the SDK requires some. Pass a session with made-up credentials and a region,
    or set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION.

    Returns:
        A context manager. Its value is the endpoint's URL, for ``endpoint_url`` and ``kms_endpoint_url``. Entering it
        raises ``ModuleNotFoundError`` if the extra ``local`` is not installed, and ``RuntimeError`` if the engine ended
        before it had started or did not start within 60 seconds.
    """
    return LocalEngine()


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


def _serve() -> None:
    """Serve until standard input ends. It also ends when the parent process dies."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    from ._keep_alive import KeepAliveHandler

    _speed_up_moto()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=KeepAliveHandler)
    # Without this, each full garbage collection walks over moto's modules.
    gc.freeze()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


def _speed_up_moto() -> None:
    if version("moto").startswith(_KNOWN_MOTO):
        from ._quick_moto import install

        install()


if __name__ == "__main__":
    _serve()
