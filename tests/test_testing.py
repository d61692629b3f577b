"""The pytest plugin: what its fixtures give, and a user's project that runs beside the wheel."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import uuid
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from aiohttp import ClientConnectionError, web
from botocore.config import Config
from conftest import OUR_PLUGIN_ALONE, Make
from engines import ROOT, Engine
from samples import humans, texts

from chathistory_async import ChatHistoryStore, ThrottledError
from chathistory_async._sync.bridge import run
from chathistory_async._wall_clock import now
from chathistory_async.testing import FakeClock, Fault, FaultProxy, Seen, StoreFactory, _store_on_a_new_table

pytest_plugins = ["pytester"]

# Their packages are here, and the user does not have them.
WITHOUT_PLUGINS = ["-p", "no:langsmith_plugin", "-p", "no:hypothesispytest"]

NEW_MODULES = """
import sys, pytest
before = {*sys.modules}
import chathistory_async.testing
print(*sorted({*sys.modules} - before))
"""


def test_it_imports_nothing_before_a_fixture_is_used() -> None:
    output = subprocess.run([sys.executable, "-c", NEW_MODULES], capture_output=True, text=True, check=True).stdout
    assert set(output.split()) == {f"chathistory_async{name}" for name in ("", "._version", ".testing")}


class TestEndpoint:
    """The first of: the option, the ini option, the environment, a running LocalStack, the embedded engine."""

    @pytest.fixture
    def is_used(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
        """Says whether the fixture gives a URL to a test of another project."""
        for name in ("CHATHISTORY_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("LOCALSTACK_HOST", "127.0.0.1:1")

        def is_used(url: str, *options: str) -> bool:
            pytester.makepyfile(f"def test(chathistory_endpoint_url): assert chathistory_endpoint_url == {url!r}")
            done = pytester.runpytest_inprocess(*OUR_PLUGIN_ALONE, *options)
            return done.parseoutcomes() == {"passed": 1}

        return is_used

    def test_of_the_option(self, is_used: Any, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        pytester.makeini("[pytest]\nchathistory_endpoint_url = http://ini:1")
        monkeypatch.setenv("CHATHISTORY_ENDPOINT_URL", "http://environment:1")
        assert is_used("http://option:1", "--chathistory-endpoint-url", "http://option:1")
        assert is_used("http://ini:1")

    @pytest.mark.parametrize("name", ["CHATHISTORY_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"])
    def test_of_the_environment(self, is_used: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://of-all-services:1")
        monkeypatch.setenv(name, "http://environment:1")
        with answering_get('{"services": {"dynamodb": "running"}}') as host:
            monkeypatch.setenv("LOCALSTACK_HOST", host)
            assert is_used("http://environment:1")

    @pytest.mark.parametrize("state", ["available", "running"])
    def test_of_localstack(self, is_used: Any, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
        with answering_get(f'{{"services": {{"dynamodb": "{state}"}}}}') as host:
            monkeypatch.setenv("LOCALSTACK_HOST", host)
            assert is_used(f"http://{host}")

    @pytest.mark.parametrize("health", ['{"services": {"dynamodb": "disabled"}}', '{"services": {}}', "[]", "<html>"])
    def test_of_what_is_no_dynamodb_is_not_used(
        self, is_used: Any, monkeypatch: pytest.MonkeyPatch, health: str
    ) -> None:
        monkeypatch.setattr("chathistory_async.local.LocalEngine.__enter__", lambda self: "http://embedded:1")
        monkeypatch.setattr("chathistory_async.local.LocalEngine.__exit__", lambda *_: None)
        with answering_get(health) as host:
            monkeypatch.setenv("LOCALSTACK_HOST", host)
            assert is_used("http://embedded:1")


@contextmanager
def answering_get(body: str) -> Iterator[str]:
    """A server that answers one request; the host and the port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.timeout = 0.01
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                server.handle_request()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            ended.set()
            thread.join()


class TestStores:
    @pytest.fixture
    def table_exists(self, dynamodb: Any) -> Callable[[ChatHistoryStore], bool]:
        def table_exists(store: ChatHistoryStore) -> bool:
            pages = dynamodb.get_paginator("list_tables").paginate()
            return any(store._layout.table_name in page["TableNames"] for page in pages)

        return table_exists

    def test_have_a_table_until_the_test_ends(self, engine: Engine, table_exists: Any) -> None:
        with _store_on_a_new_table(engine.endpoint_url, {"endpoint_url": engine.endpoint_url}) as store:
            assert table_exists(store)
        assert not table_exists(store)

    @pytest.mark.parametrize("fails", [False, True])
    def test_may_be_closed_and_their_proxy_may_fail(
        self, engine: Engine, proxy: FaultProxy, table_exists: Any, fails: bool
    ) -> None:
        proxy.schedule = lambda seen: Fault.DENIED
        with (
            pytest.raises(AssertionError) if fails else nullcontext(),
            _store_on_a_new_table(engine.endpoint_url, {"endpoint_url": proxy.url}) as store,
        ):
            store.close()
            assert not fails
        assert proxy.seen == []
        assert not table_exists(store)

    def test_make_encrypted_ones_too(self, chathistory_store_factory: StoreFactory, kms_key: str) -> None:
        history = chathistory_store_factory(kms_key_id=kms_key).session("alice")
        history.add_messages(humans(1))
        assert texts(history.messages) == ["1"]

    def test_a_synchronous_creation_takes_all_options(self, engine: Engine, dynamodb: Any) -> None:
        store = ChatHistoryStore(f"chat-{uuid.uuid4().hex}", session_index=True)
        store.create_table_sync(tags={"for": "tests"}, point_in_time_recovery=True, wait_seconds=60)
        table = dynamodb.describe_table(TableName=store._layout.table_name)["Table"]
        [tag] = dynamodb.list_tags_of_resource(ResourceArn=table["TableArn"])["Tags"]
        run(store.delete_table)
        store.close()
        assert [index["IndexName"] for index in table["GlobalSecondaryIndexes"]] == ["SessionsByOwner"]
        assert tag == {"Key": "for", "Value": "tests"}


class TestClock:
    async def test_all_threads_and_loops_read_it(self, make: Make, clock: FakeClock) -> None:
        history = make(ttl=60)
        await history.aadd_messages(humans(1))
        clock.advance(59.5)
        assert texts(await asyncio.to_thread(lambda: history.messages)) == ["1"]
        clock.advance(0.5)
        assert await asyncio.to_thread(lambda: history.messages) == []
        assert await history.aget_messages() == []

    def test_what_it_showed_is_forgotten(self, chathistory_store: ChatHistoryStore) -> None:
        with FakeClock() as clock:
            clock.advance(10**6)
            chathistory_store.session("ahead").add_messages(humans(1))
        history = chathistory_store.session("today")
        history.add_messages(humans(1))
        [message] = history.page().messages
        assert abs(message.created_at.timestamp() - time.time()) < 60

    def test_an_inner_one_leaves_the_outer_one(self) -> None:
        with FakeClock() as outer:
            with FakeClock() as inner:
                inner.advance(100)
                assert now() == inner.time()
            assert now() == outer.time()

    def test_does_not_go_back(self) -> None:
        with pytest.raises(ValueError, match="cannot go back: -1 seconds"):
            FakeClock().advance(-1)


def test_an_older_aiohttp_responds_with_the_fault_too(
    chathistory_proxy: FaultProxy, chathistory_store_factory: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In aiohttp 3.9, responses have no truth value of their own: without items, they are false.
    monkeypatch.delattr(web.StreamResponse, "__bool__", raising=False)
    once = Config(retries={"total_max_attempts": 1})
    history = chathistory_store_factory(endpoint_url=chathistory_proxy.url, config=once).session("alice")
    chathistory_proxy.script(Fault.CAPACITY, operation="PutItem")
    with pytest.raises(ThrottledError):
        history.add_messages(humans(1))


def test_a_late_request_that_cannot_be_forwarded_leaves_no_thread() -> None:
    proxy = FaultProxy("http://127.0.0.1:1").__enter__()
    proxy.late_seconds = 0
    proxy.script(Fault.LATE_REQUEST)
    request = Request(proxy.url, b"{}", {"X-Amz-Target": "DynamoDB_20120810.PutItem"})
    with pytest.raises(OSError, match=r"closed|reset"):
        urlopen(request)
    with pytest.raises(ClientConnectionError):
        proxy.__exit__(None, None, None)
    assert not proxy._thread.is_alive()


def test_the_engines_response_may_be_edited(
    chathistory_proxy: FaultProxy, chathistory_store_factory: StoreFactory
) -> None:
    def empty(seen: Seen, response: dict[str, Any]) -> dict[str, Any]:
        return response | {"Items": [], "Count": 0} if seen.operation == "Query" else response

    history = chathistory_store_factory(endpoint_url=chathistory_proxy.url).session("alice")
    history.add_messages(humans(1))
    chathistory_proxy.edit = empty
    assert history.messages == []


@pytest.fixture(scope="module")
def users_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and with what is installed here beside it."""
    place = tmp_path_factory.mktemp("environment")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(place)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    venv.create(place / "venv", symlinks=True)
    [packages] = (place / "venv").glob("lib/python*/site-packages")
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib"))
    [wheel] = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    python = place / "venv" / "bin" / "python"
    where = [str(python), "-I", "-c", "import chathistory_async; print(chathistory_async.__file__)"]
    assert subprocess.check_output(where, text=True).startswith(str(packages))
    return python


@pytest.mark.posix
class TestUsersProject:
    @pytest.fixture
    def run_pytest(self, users_python: Path, tmp_path: Path) -> Callable[..., str]:
        """Runs the project's tests as its user does."""
        project = shutil.copytree(ROOT / "tests" / "users_project", tmp_path, dirs_exist_ok=True)

        def run_pytest(*options: str, **variables: str) -> str:
            environment = {
                name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON", "PYTEST"))
            }
            environment |= {"AWS_CA_BUNDLE": os.environ["AWS_CA_BUNDLE"], "LOCALSTACK_HOST": "127.0.0.1:1"}
            done = subprocess.run(
                [users_python, "-W", "error", "-m", "pytest", *WITHOUT_PLUGINS, *options],
                cwd=project,
                env=environment | variables,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
            return done.stdout

        return run_pytest

    def test_runs_under_every_plugin(self, run_pytest: Any, engine: Engine) -> None:
        output = run_pytest("--ignore=test_with_asyncio_auto.py", CHATHISTORY_ENDPOINT_URL=engine.endpoint_url)
        assert "=== 20 passed in " in output

    def test_runs_on_an_embedded_engine_for_each_worker(self, run_pytest: Any, tmp_path: Path) -> None:
        output = run_pytest("test_with_asyncio_auto.py", "-o", "asyncio_mode=auto", "-n", "2")
        assert "=== 6 passed in " in output
        assert len({worker.read_text() for worker in tmp_path.glob("gw*")}) == 2
