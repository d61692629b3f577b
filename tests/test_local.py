"""The embedded engine."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
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
