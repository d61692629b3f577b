"""An HTTP server with canned answers in a process of its own, so that the engine's speed does not hide the client's.

It remembers the numbers of the messages that it was sent: what did not arrive was not stored either.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

# A message's number, and the name of a session that it has an answer for, as messages.py writes them.
_NUMBER = re.compile(rb"#(\d{8})#")
_SESSION = re.compile(rb"messages-\d+(?:-in-\d+)?")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TARGET = re.compile(rb"x-amz-target: *DynamoDB_20120810\.(\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Stub:
    """The running server.

    Attributes:
        url: its endpoint.
        pid: its process.
    """

    url: str
    pid: int

    async def teach(self, operation: str, session: str, answer: bytes) -> None:
        """Have it give an answer to an operation on a session of messages.py, and on all others that are unknown."""
        async with aiohttp.request("PUT", f"{self.url}/{operation}/{session}", data=answer) as response:
            response.raise_for_status()

    async def seen(self) -> list[int]:
        """Return the numbers of the messages that arrived in writes since the last call, as often as they did."""
        async with aiohttp.request("GET", f"{self.url}/seen") as response:
            numbers: list[int] = await response.json()
        return numbers

    def pin(self, *, together: bool) -> None:
        """Put this process and the server on one CPU, or leave both to the scheduler; Linux only, elsewhere nothing.

        Apart, every call costs the client 0.05 ms of CPU for waking the other CPU up, which flattens all ratios.
        """
        if hasattr(os, "sched_setaffinity"):
            # Each thread by itself: threads that another variant has started would stay where they are.
            threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
            for one in (*threads, self.pid):
                os.sched_setaffinity(one, {min(_CPUS)} if together else _CPUS)


_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()


@asynccontextmanager
async def running_stub() -> AsyncIterator[Stub]:
    """Run the server; it ends with this context, or with this process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None  # a pipe was asked for
    try:
        yield Stub((await process.stdout.readline()).decode().strip(), process.pid)
    finally:
        process.kill()
        await process.communicate()


class _Answers:
    def __init__(self) -> None:
        empty = _response(b"{}")
        self._known: dict[tuple[bytes, bytes], bytes] = {}
        self._others: dict[bytes, bytes] = {b"PutItem": empty, b"UpdateItem": empty, b"TransactWriteItems": empty}
        self._numbers: list[int] = []

    def answer(self, head: bytes, body: bytes) -> bytes:
        target = _TARGET.search(head)
        if target is None:
            return self._control(head, body)
        operation = target[1]
        if operation not in (b"GetItem", b"Query"):
            self._numbers += map(int, _NUMBER.findall(body))
        session = _SESSION.search(body)
        return self._known.get((operation, session[0] if session else b""), self._others[operation])

    def _control(self, head: bytes, body: bytes) -> bytes:
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            numbers, self._numbers = self._numbers, []
            return _response(json.dumps(numbers).encode(), b"application/json")
        _, operation, session = path.split(b"/")
        self._known[operation, session] = _response(body)
        self._others.setdefault(operation, _response(body))
        return _response(b"")


def _response(body: bytes, content_type: bytes = b"application/x-amz-json-1.0") -> bytes:
    head = (
        b"HTTP/1.1 200 OK\r\nServer: Server\r\nDate: Sun, 01 Feb 2026 00:00:00 GMT\r\nContent-Type: %b\r\n"
        b"Content-Length: %d\r\nConnection: keep-alive\r\nx-amz-crc32: %d\r\n"
        b"x-amzn-RequestId: VV5V5OA8EOS64DHFJNLBGOOV6VVV4KQNSO5AEMVJF66Q9ASUAAJG\r\n\r\n"
    )
    return head % (content_type, len(body), zlib.crc32(body)) + body


class _Connection(asyncio.Protocol):
    def __init__(self, answers: _Answers) -> None:
        self._answers = answers
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # of TCP
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._received[:head_end])
        length = _LENGTH.search(head)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self._received) >= end:
            body = bytes(self._received[head_end + 4 : end])
            # Clients send the next request only after the answer.
            self._received.clear()
            self._transport.write(self._answers.answer(head, body))


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    answers = _Answers()
    server = await loop.create_server(lambda: _Connection(answers), "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}", flush=True)
    # Until the process that started this one ends it, or dies.
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
