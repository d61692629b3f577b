"""Clients: which handles share one, whose credentials it signs with, and how it closes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import aioboto3
import boto3
import botocore.session
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentialResolver, AioCredentials, AioDeferredRefreshableCredentials
from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from conftest import Make
from proxy import Fault, Proxy
from samples import humans, texts

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory, TableNotFoundError
from chathistory_async._aws.clients import _open_holders, _shared
from chathistory_async._aws.sdk import MAX_POOL_CONNECTIONS


async def send(history: DynamoDBChatMessageHistory) -> None:
    """Send a request for what it is signed with; engines keep the tables of each account and region apart."""
    with contextlib.suppress(TableNotFoundError):
        await history.aget_messages()


async def client_of(history: DynamoDBChatMessageHistory) -> Any:
    async with history._spec.settings.clients.acquire() as client:
        return client.client


class TestHandles:
    def test_cost_no_io_no_loop_and_no_thread(self, table: str) -> None:
        threads = threading.active_count()
        nowhere = "http://127.0.0.1:9"
        store = ChatHistoryStore(table, layout="single_item", endpoint_url=nowhere)
        for number in range(1000):
            DynamoDBChatMessageHistory(table, str(number), nowhere)
            store.session(str(number))
        assert threading.active_count() == threads

    async def test_share_a_client_where_their_settings_are_equal(self, make: Make) -> None:
        first = await client_of(make(config=Config(read_timeout=3)))
        assert await client_of(make(config=Config(read_timeout=3), session="another", ttl=5)) is first
        assert await client_of(make(config=Config(read_timeout=4))) is not first
        assert await client_of(make(config=Config(read_timeout=3), region_name="eu-west-1")) is not first

    async def test_of_a_store_share_the_stores(self, collection_table: str) -> None:
        async with ChatHistoryStore(collection_table) as store, ChatHistoryStore(collection_table) as other:
            assert await client_of(store.session("a")) is await client_of(store.session("b"))
            assert await client_of(store.session("a")) is not await client_of(other.session("a"))

    async def test_that_begin_at_once_open_one_client(self, make: Make) -> None:
        config = Config(read_timeout=7)
        clients = await asyncio.gather(*(client_of(make(config=config)) for _ in range(20)))
        assert len({id(client) for client in clients}) == 1

    def test_have_another_client_on_another_loop(self, make: Make) -> None:
        history = make()
        clients = [asyncio.run(client_of(history)) for _ in range(2)]
        assert clients[0] is not clients[1]

    @pytest.fixture
    def few_shared(self, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr("chathistory_async._aws.clients.MAX_SHARED", 4)
        return 4

    async def test_do_not_pile_up_clients_by_the_sessions_they_are_given(self, make: Make, few_shared: int) -> None:
        # Other tests' handles, which nobody has closed, may still be there.
        gc.collect()
        before, in_use = len(_open_holders), sum(not clients.can_close() for clients in _shared.values())
        for _ in range(20):
            await make(boto3_session=aioboto3.Session()).aget_messages()
        await asyncio.sleep(0.1)
        assert len(_shared) <= few_shared + in_use
        assert len(_open_holders) <= before + few_shared

    async def test_in_use_keep_their_client_however_many_others_come(self, make: Make, few_shared: int) -> None:
        history = make(boto3_session=aioboto3.Session())
        client = await client_of(history)
        for _ in range(20):
            make(boto3_session=aioboto3.Session())
        assert len(_shared) <= few_shared + 1
        await asyncio.sleep(0.1)
        assert await client_of(history) is client
        assert await history.aget_messages() == []


class TestClosing:
    async def test_the_last_open_handle_closes_the_client(self, make: Make) -> None:
        one, other = make(config=Config(tcp_keepalive=True)), make(config=Config(tcp_keepalive=True))
        await one.aget_messages()
        holders = set(_open_holders)
        await one.aclose()
        assert await other.aget_messages() == []
        assert set(_open_holders) == holders
        await other.aclose()
        assert len(_open_holders) == len(holders) - 1

    async def test_async_with_closes(self, make: Make) -> None:
        before = set(_open_holders)
        async with make(config=Config(tcp_keepalive=True)) as history:
            await history.aadd_messages(humans(1))
            assert texts(await history.aget_messages()) == ["1"]
            assert set(_open_holders) > before
        assert set(_open_holders) == before

    def test_a_loop_that_did_not_run_at_the_time_closes_at_its_next_opening(self, table: str, session_id: str) -> None:
        loop = asyncio.new_event_loop()
        for _ in range(3):
            store = ChatHistoryStore(table, layout="single_item")
            assert loop.run_until_complete(store.session(session_id).aget_messages()) == []
            store.close()
            assert sum(holder.loop is loop for holder in _open_holders) == 1
        loop.run_until_complete(loop.shutdown_asyncgens())
        assert not any(holder.loop is loop for holder in _open_holders)
        loop.close()

    def test_the_synchronous_variant_closes_too(self, make: Make) -> None:
        before = set(_open_holders)
        history = make(config=Config(tcp_keepalive=True))
        assert history.messages == []
        assert set(_open_holders) > before
        history.close()
        assert set(_open_holders) == before

    async def test_a_store_closes_the_clients_of_all_loops(self, collection_table: str) -> None:
        before = set(_open_holders)
        async with ChatHistoryStore(collection_table) as store:
            await asyncio.to_thread(lambda: store.session("x").messages)
            assert len(_open_holders) == len(before) + 2
        for _ in range(100):
            if set(_open_holders) == before:
                break
            await asyncio.sleep(0.02)
        assert set(_open_holders) == before

    async def test_handles_that_come_and_go_leave_nothing_open(self, make: Make) -> None:
        before = set(_open_holders)
        config = Config(tcp_keepalive=True)

        async def request(number: int) -> None:
            await asyncio.sleep(number * 0.003)
            async with make(config=config) as history:
                await history.aget_messages()

        await asyncio.gather(*(request(number) for number in range(40)))
        assert set(_open_holders) == before

    async def test_a_closing_store_lets_the_calls_under_way_end(self, collection_table: str, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.DELAY
        async with ChatHistoryStore(collection_table, endpoint_url=proxy.url) as store:
            reads = [asyncio.create_task(store.session(str(number)).aget_messages()) for number in range(5)]
            while not proxy.seen:
                await asyncio.sleep(0.001)
        assert await asyncio.gather(*reads) == [[]] * 5

    async def test_a_store_that_was_closed_amid_its_first_call_leaves_nothing_open(self, collection_table: str) -> None:
        class Slow:
            METHOD = "slow"
            asked, answers = asyncio.Event(), asyncio.Event()

            async def load(self) -> AioCredentials:
                self.asked.set()
                await self.answers.wait()
                return AioCredentials("test", "test")

        before = set(_open_holders)
        session, credentials = AioSession(), Slow()
        session.register_component("credential_provider", AioCredentialResolver([credentials]))
        store = ChatHistoryStore(collection_table, boto3_session=session)
        reads = [asyncio.create_task(store.session(str(number)).aget_messages()) for number in range(3)]
        await credentials.asked.wait()
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        credentials.answers.set()
        assert await asyncio.gather(*reads) == [[]] * 3
        await closing
        assert set(_open_holders) == before

    def test_loops_that_have_ended_are_let_go(self, make: Make) -> None:
        history, loops = make(config=Config(tcp_keepalive=True)), []

        async def use() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            await history.aget_messages()

        for _ in range(5):
            asyncio.run(use())
        gc.collect()
        assert sum(loop() is not None for loop in loops) <= 1

    async def test_a_session_that_was_given_stays_usable(self, make: Make, table: str) -> None:
        session = aioboto3.Session()
        async with make(boto3_session=session) as history:
            await history.aget_messages()
        async with session.client("dynamodb") as client:
            assert table in (await client.list_tables())["TableNames"]


class TestConfig:
    async def test_ours_has_a_large_pool_and_short_time_outs(self, make: Make) -> None:
        config = (await client_of(make())).meta.config
        assert config.max_pool_connections == MAX_POOL_CONNECTIONS == 512
        assert (config.connect_timeout, config.read_timeout) == (3.1, 5)

    async def test_a_given_one_wins_where_it_says_something(self, make: Make) -> None:
        given = Config(read_timeout=2, max_pool_connections=3, retries={"total_max_attempts": 7})
        config = (await client_of(make(config=given))).meta.config
        assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (3.1, 2, 3)
        assert config.retries["total_max_attempts"] == 7

    async def test_what_only_aiobotocore_knows_is_kept(self, make: Make) -> None:
        given = AioConfig(connector_args={"keepalive_timeout": 77}, read_timeout=2)
        config = (await client_of(make(config=given))).meta.config
        assert config.connector_args == {"keepalive_timeout": 77}

    async def test_the_environment_bounds_retries(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
    ) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        client = await client_of(make(endpoint_url=proxy.url))
        assert client.meta.config.retries["total_max_attempts"] == 2

    async def test_the_environment_names_the_endpoint(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
        await make(boto3_session=aioboto3.Session()).aget_messages()
        assert proxy.operations() == ["GetItem"]

    async def test_region_name_is_signed_for(self, make: Make, proxy: Proxy) -> None:
        await send(make(endpoint_url=proxy.url, region_name="eu-north-1"))
        assert "/eu-north-1/dynamodb/" in proxy.seen[0].authorization


class TestSessions:
    @pytest.mark.parametrize("kind", [boto3.Session, aioboto3.Session])
    async def test_pass_on_credentials_and_region(self, make: Make, proxy: Proxy, kind: Any) -> None:
        session = kind(aws_access_key_id="PASSED", aws_secret_access_key="s", region_name="sa-east-1")
        await send(make(endpoint_url=proxy.url, boto3_session=session))
        assert "Credential=PASSED/" in proxy.seen[0].authorization
        assert "/sa-east-1/" in proxy.seen[0].authorization

    async def test_of_aiobotocore_are_taken_too(self, make: Make, proxy: Proxy) -> None:
        session = AioSession()
        session.set_credentials("PASSED", "s")
        await send(make(endpoint_url=proxy.url, boto3_session=session))
        assert "Credential=PASSED/" in proxy.seen[0].authorization

    @pytest.mark.parametrize("kind", [boto3.Session, aioboto3.Session])
    def test_serve_the_synchronous_variant(self, make: Make, proxy: Proxy, kind: Any) -> None:
        session = kind(aws_access_key_id="PASSED", aws_secret_access_key="s", region_name="us-east-1")
        with contextlib.suppress(TableNotFoundError):
            assert make(endpoint_url=proxy.url, boto3_session=session).messages == []
        assert "Credential=PASSED/" in proxy.seen[0].authorization

    async def test_pass_on_their_profile(
        self, make: Make, proxy: Proxy, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "config"
        path.write_text(
            "[profile passed]\nregion = ca-west-1\naws_access_key_id = OFPROFILE\naws_secret_access_key = s\n"
            f"services = local\n[services local]\ndynamodb =\n  endpoint_url = {proxy.url}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name)
        await send(make(boto3_session=boto3.Session(profile_name="passed")))
        assert "Credential=OFPROFILE/" in proxy.seen[0].authorization
        assert "/ca-west-1/" in proxy.seen[0].authorization

    @pytest.mark.parametrize("fast_path", [True, False])
    async def test_refresh_the_credentials_of_a_role_without_blocking_the_loop(
        self, make: Make, proxy: Proxy, fast_path: bool
    ) -> None:
        roles = AssumedRole(lifetime=timedelta(hours=1))
        history = make(endpoint_url=proxy.url, boto3_session=roles.session(), fast_path=fast_path)
        await history.aget_messages()
        assert (roles.refreshes, roles.on_loop_thread) == (0, False)

        roles.expire()
        ticks = asyncio.create_task(count_ticks())
        await asyncio.gather(*(history.aget_messages() for _ in range(5)))
        ticks.cancel()
        assert roles.refreshes == 1
        assert not roles.on_loop_thread
        assert "Credential=ROLE1/" in proxy.seen[-1].authorization

        threads = threading.active_count()
        await history.aget_messages()
        assert threading.active_count() == threads
        assert roles.refreshes == 1

    @pytest.mark.sampled
    @pytest.mark.parametrize("fast_path", [True, False])
    @pytest.mark.parametrize("kind", [AioSession, aioboto3.Session])
    def test_that_are_asynchronous_serve_several_loops_while_they_refresh(
        self, make: Make, proxy: Proxy, kind: Any, fast_path: bool
    ) -> None:
        refreshes = []

        async def refresh() -> dict[str, str]:
            refreshes.append(1)
            await asyncio.sleep(0.2)
            expiry = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
            return {"access_key": "ROLE", "secret_key": "s", "token": "t", "expiry_time": expiry}

        core = AioSession()
        core._credentials = AioDeferredRefreshableCredentials(refresh, "assume-role")
        session = core if kind is AioSession else kind(botocore_session=core)
        history = make(endpoint_url=proxy.url, boto3_session=session, fast_path=fast_path)
        failures: list[BaseException] = []

        async def read() -> None:
            await asyncio.gather(*(history.aget_messages() for _ in range(3)))

        def use() -> None:
            try:
                asyncio.run(asyncio.wait_for(read(), 20))
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(refreshes) == 1

    @pytest.mark.parametrize("wrong", ["session", object(), boto3], ids=["text", "object", "module"])
    def test_of_other_kinds_are_refused(self, make: Make, table: str, wrong: Any) -> None:
        for construct in (
            lambda: make(boto3_session=wrong),
            lambda: ChatHistoryStore(table, layout="single_item", boto3_session=wrong),
        ):
            with pytest.raises(TypeError, match=r"a boto3\.Session, an aioboto3\.Session or an aiobotocore session"):
                construct()


async def count_ticks() -> None:
    while True:
        await asyncio.sleep(0)


class AssumedRole:
    """A boto3 session whose temporary credentials are fetched by slow, blocking code, as STS's are."""

    def __init__(self, lifetime: timedelta) -> None:
        self.lifetime = lifetime
        self.refreshes = 0
        self.on_loop_thread = False
        self.credentials = RefreshableCredentials.create_from_metadata(
            self.metadata(), refresh_using=self.refresh, method="assume-role"
        )

    def metadata(self) -> dict[str, str]:
        return {
            "access_key": f"ROLE{self.refreshes}",
            "secret_key": "s",
            "token": "t",
            "expiry_time": (datetime.now(timezone.utc) + self.lifetime).isoformat(),
        }

    def refresh(self) -> dict[str, str]:
        try:
            asyncio.get_running_loop()
            self.on_loop_thread = True
        except RuntimeError:
            pass
        time.sleep(0.2)
        self.refreshes += 1
        return self.metadata()

    def expire(self) -> None:
        self.credentials._expiry_time = datetime.now(timezone.utc) - timedelta(seconds=1)

    def session(self) -> boto3.Session:
        core = botocore.session.Session()
        core._credentials = self.credentials
        return boto3.Session(botocore_session=core, region_name="us-east-1")


USE = """
async def use():
    history = DynamoDBChatMessageHistory(table, "script")
    await history.aget_messages()
    store = ChatHistoryStore(table, layout="single_item")
    await store.session("script").aget_messages()
"""


class TestScriptsThatCloseNothing:
    """A program that ends without a close leaves no complaint of aiohttp's and no open connection."""

    @pytest.fixture
    def run_script(self, table: str) -> Callable[..., str]:
        def run_script(code: str, *options: str) -> str:
            program = "import asyncio, gc, sys\nfrom chathistory_async import *\ntable = sys.argv[1]\n" + USE
            command = [sys.executable, *options, "-c", program + textwrap.dedent(code), table]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
            assert done.returncode == 0, done.stderr
            return done.stderr

        return run_script

    @pytest.mark.parametrize(
        "code",
        [
            "asyncio.run(use())",
            "asyncio.run(use()); asyncio.run(use())",
            "DynamoDBChatMessageHistory(table, 'script').messages",
            "asyncio.run(use()); DynamoDBChatMessageHistory(table, 'script').messages; asyncio.run(use())",
            "asyncio.new_event_loop().run_until_complete(use())",
            "loop = asyncio.new_event_loop(); loop.run_until_complete(use()); gc.collect()",
        ],
    )
    def test_with_every_warning_an_error(self, run_script: Callable[..., str], code: str) -> None:
        assert run_script(code, "-W", "error::ResourceWarning") == ""

    def test_not_even_where_the_loop_was_closed_without_a_shutdown(self, run_script: Callable[..., str]) -> None:
        code = """
        for _ in range(3):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use())
            loop.close()
        """
        assert run_script(code) == ""

    def test_nor_where_threads_find_such_loops_at_once(self, run_script: Callable[..., str]) -> None:
        code = """
        import threading
        def leave_one_behind():
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use())
            loop.close()
        for _ in range(4):
            threads = [threading.Thread(target=leave_one_behind) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        """
        assert run_script(code) == ""
