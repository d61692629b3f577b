"""How the embedded engine answers HTTP requests: one at a time, on connections that stay open."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from typing import Any, BinaryIO

from werkzeug.serving import WSGIRequestHandler

# moto does not lock items, and parallel requests lose updates (5 of 400 in a trial).
_one_at_a_time = threading.Lock()


class KeepAliveHandler(WSGIRequestHandler):
    """Answers requests as werkzeug's handler does, but one at a time, and does not close the connection after each.

    A new connection for each request took a seventh of the engine's CPU time and a quarter of the client's.
    """

    protocol_version = "HTTP/1.1"
    # A response is one packet: a second one would wait until the client acknowledges the first.
    wbufsize = 65536
    disable_nagle_algorithm = True

    def run_wsgi(self) -> None:
        environ = self.make_environ()
        try:
            # Whether or not moto needs the body, it is read whole: the next request follows it.
            environ["wsgi.input"] = BytesIO(self._body(environ))
        except (EOFError, ValueError):
            # Where the next request would begin is not known.
            self.close_connection = True
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        try:
            status, headers, content = self._answer(environ)
        except Exception:  # noqa: BLE001  # moto's faults
            self.server.log("error", traceback.format_exc())
            status, headers, content = "500 Internal Server Error", [], b""
        self._send(status, headers, content)

    def _answer(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        status, headers, parts = "", list[tuple[str, str]](), list[bytes]()

        def start_response(
            given_status: str, given_headers: list[tuple[str, str]], _: object = None, /
        ) -> Callable[[bytes], object]:
            nonlocal status, headers
            status, headers = given_status, given_headers
            return parts.append

        with _one_at_a_time:
            parts.extend(self.server.app(environ, start_response))
        return status, headers, b"".join(parts)

    def _send(self, status: str, headers: list[tuple[str, str]], content: bytes) -> None:
        code, _, reason = status.partition(" ")
        self.send_response(int(code), reason)
        for name, value in headers:
            # send_response() has sent a Server header. Under "python -X dev" aiohttp refuses two of them.
            if name.lower() not in {"server", "content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self, environ: dict[str, Any]) -> bytes:
        """Return the body of a request.

        Raises:
            EOFError: the client has left before its end.
            ValueError: its length is not a number, or its chunks are malformed.
        """
        if environ.get("wsgi.input_terminated"):
            return self._chunks(environ["wsgi.input"])
        length = self.headers.get("Content-Length", "0")
        if not re.fullmatch("[0-9]+", length):
            raise ValueError(length)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise EOFError
        return body

    @staticmethod
    def _chunks(chunked: BinaryIO) -> bytes:
        try:
            return chunked.read()
        except ConnectionError:
            raise
        except OSError as error:
            raise ValueError(*error.args) from error
