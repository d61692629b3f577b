"""The embedded engine."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import aioboto3
import pytest
from samples import humans, texts

from chathistory_async import ChatHistoryStore
from chathistory_async.local import local_engine

SESSION = aioboto3.Session(aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


async def test_it_runs_while_its_context_does() -> None:
    async with local_engine() as url:
        assert url.startswith("http://127.0.0.1:")
        assert await asyncio.to_thread(answers, url)
    assert not await asyncio.to_thread(answers, url)


def test_synchronous_code_runs_it_too() -> None:
    with local_engine() as url:
        store = ChatHistoryStore("table", endpoint_url=url, boto3_session=SESSION)
        store.create_table_sync()
        store.session("s").add_messages(humans(1))
        assert texts(store.session("s").messages) == ["1"]
        store.close()
    assert not answers(url)


@pytest.mark.parametrize("path", ["/", "/nothing/is/here"])
def test_a_connection_stays_open_whatever_is_sent(path: str) -> None:
    with (
        local_engine() as url,
        contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"))) as connection,
    ):
        connection.connect()
        first = connection.sock
        for _ in range(3):
            connection.request("POST", path, b"{}", {"X-Amz-Target": "DynamoDB_20120810.ListTables"})
            connection.getresponse().read()
            assert connection.sock is first


async def test_two_are_apart() -> None:
    async with local_engine() as one, local_engine() as other:
        assert one != other
        async with (
            ChatHistoryStore("table", endpoint_url=one, boto3_session=SESSION) as store,
            ChatHistoryStore("table", endpoint_url=other, boto3_session=SESSION) as another,
        ):
            await store.create_table()
            await another.create_table()
            await store.session("s").aadd_messages(humans(1))
            assert await another.session("s").aget_messages() == []


async def test_it_loses_no_concurrent_update() -> None:
    async with local_engine() as url, ChatHistoryStore("table", endpoint_url=url, boto3_session=SESSION) as store:
        await store.create_table()
        await asyncio.gather(*(store.session("s").aadd_messages(humans(n)) for n in range(100)))
        stored = texts(await store.session("s").aget_messages())
        assert sorted(stored, key=int) == [str(n) for n in range(100)]


HEAD = (
    b"POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: DynamoDB_20120810.%s\r\n"
    b"Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/dynamodb/aws4_request\r\n%s"
)


def answer_of(url: str, operation: bytes, rest: bytes) -> bytes:
    """Send a request, and nothing more, and return all that the engine responds until it closes the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(HEAD % (operation, rest))
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_it_answers_what_it_cannot_do() -> None:
    with local_engine() as url:
        for length in (b"-1", b"abc", b"99"):
            body = b"Content-Length: %s\r\n\r\n{}" % length
            assert answer_of(url, b"ListTables", body).startswith(b"HTTP/1.1 400 ")
        assert answer_of(url, b"ListTables", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n").startswith(b"HTTP/1.1 400 ")
        # moto raises an exception, and the connection stays open.
        wrong = b'Content-Length: 28\r\n\r\n{"TableName":"T","Item":"x"}'
        answer = answer_of(url, b"PutItem", wrong + HEAD % (b"ListTables", b"Content-Length: 2\r\n\r\n{}"))
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"HTTP/1.1 200 " in answer


def test_it_ends_with_the_process_that_started_it() -> None:
    program = """
import asyncio, os
from chathistory_async.local import local_engine
async def main():
    async with local_engine() as url:
        print(url, flush=True)
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    url = done.stdout.strip()
    assert url.startswith("http://127.0.0.1:")
    deadline = time.monotonic() + 20
    while answers(url) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not answers(url)


async def test_without_moto_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'chathistory-async\[local\]'"):
        async with local_engine():
            pass


async def test_an_engine_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true" if os.name == "posix" else sys.executable)
    with pytest.raises(RuntimeError, match="ended before it had started"):
        async with local_engine():
            pass
    with pytest.raises(RuntimeError, match="ended before it had started"), local_engine():
        pass
