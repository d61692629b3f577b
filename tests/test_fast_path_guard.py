"""A tracer, hook or mock of the SDK's client sees every call, and a status tells where that makes calls slower."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import aioboto3
import aiobotocore.client
import aiobotocore.endpoint
import botocore
import pytest
import wrapt
from aiobotocore.client import AioBaseClient
from aiobotocore.endpoint import AioEndpoint
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from aws_xray_sdk.core import xray_recorder
from aws_xray_sdk.ext.aiobotocore import patch as patch_for_xray
from botocore import handlers
from botocore.config import Config
from botocore.history import get_global_history_recorder
from botocore.stub import Stubber
from conftest import Make
from opentelemetry.instrumentation.botocore import AiobotocoreInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from proxy import Proxy
from samples import humans, texts
from variants import AsyncVariant, CollectionVariant, Variant

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory, FastPathStatus
from chathistory_async._aws import sdk_sessions
from chathistory_async._aws.fast_path_guard import _EVENTS, _METHODS, Guard
from chathistory_async._aws.sdk import ReadyClient

VARIANTS = [AsyncVariant, CollectionVariant]
ON = FastPathStatus(active=True, reason=None)

# Begins to trace, and yields what returns the names of the operations that were seen.
Tracer = Callable[[pytest.MonkeyPatch], AbstractContextManager[Callable[[], list[str]]]]


@contextmanager
def opentelemetry(_: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instrumentor = AiobotocoreInstrumentor()  # type: ignore[no-untyped-call]
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield lambda: [span.name.removeprefix("DynamoDB.") for span in spans.get_finished_spans()]
    finally:
        instrumentor.uninstrument()


@contextmanager
def xray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    xray_recorder.configure(sampling=False, context_missing="LOG_ERROR")
    segment = xray_recorder.begin_segment("test")
    with monkeypatch.context() as patches:
        # It has no way back: what it replaces is remembered here.
        patches.setattr(AioBaseClient, "_make_api_call", vars(AioBaseClient)["_make_api_call"])
        patches.setattr(AioEndpoint, "prepare_request", AioEndpoint.prepare_request)
        patch_for_xray()
        yield lambda: [part.aws["operation"] for part in segment.subsegments]
        del aiobotocore.client._xray_enabled
    xray_recorder.clear_trace_entities()


@contextmanager
def datadog(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """As ddtrace patches, whose wheel has 10 MB."""
    seen: list[str] = []

    async def traced(original: Any, _: Any, arguments: Any, options: Any) -> Any:
        seen.append(arguments[0])
        return await original(*arguments, **options)

    with monkeypatch.context() as patches:
        patches.setattr(AioBaseClient, "_make_api_call", vars(AioBaseClient)["_make_api_call"])
        wrapt.wrap_function_wrapper("aiobotocore.client", "AioBaseClient._make_api_call", traced)
        yield lambda: seen


TRACERS: dict[Tracer, str] = {
    opentelemetry: "opentelemetry.instrumentation.botocore",
    xray: "aws_xray_sdk.ext.aiobotocore.patch",
    datadog: __name__,
}


def by_sdk(proxy: Proxy) -> set[bool]:
    return {seen.by_sdk for seen in proxy.seen}


async def chat(history: Variant) -> None:
    await history.add(humans(1))
    await history.add(humans(2, 3))
    assert texts(await history.read()) == ["1", "2", "3"]


@asynccontextmanager
async def client_of(history: DynamoDBChatMessageHistory) -> AsyncIterator[ReadyClient]:
    async with history._spec.settings.clients.acquire() as client:
        yield client


class TestTracers:
    @pytest.mark.parametrize("late", [False, True], ids=["before-the-client", "after-the-client"])
    @pytest.mark.parametrize("tracer", TRACERS, ids=["opentelemetry", "xray", "datadog"])
    async def test_see_every_call(
        self,
        variant: type[Variant],
        make: Make,
        proxy: Proxy,
        monkeypatch: pytest.MonkeyPatch,
        tracer: Tracer,
        late: bool,
    ) -> None:
        history = make(endpoint_url=proxy.url)
        if late:
            await history.aget_messages()
            assert history.fast_path_status == ON
            proxy.seen.clear()
        with tracer(monkeypatch) as seen:
            await chat(variant(history))
            assert seen() == proxy.operations()
            assert by_sdk(proxy) == {True}
            active, reason = history.fast_path_status
            assert not active
            assert TRACERS[tracer] in str(reason)
        proxy.seen.clear()
        await history.aget_messages()
        # A tracer that was there when the client was opened is not looked for again.
        assert by_sdk(proxy) == {not late}
        assert history.fast_path_status.active is late

    def test_see_synchronous_calls_too(self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        history = make(endpoint_url=proxy.url)
        with opentelemetry(monkeypatch) as seen:
            history.add_messages(humans(1))
            assert texts(history.messages) == ["1"]
            assert seen() == proxy.operations() == ["UpdateItem", "GetItem"]


def heard(events: list[str]) -> Callable[..., None]:
    def handler(event_name: str, **_: Any) -> None:
        events.append(event_name)

    return handler


class TestEventHandlers:
    @pytest.mark.sampled
    @pytest.mark.parametrize("kind", [AioSession, aioboto3.Session])
    @pytest.mark.parametrize("event", ["before-send", "before-call.dynamodb", "request-created.dynamodb.*"])
    async def test_of_a_session_are_called(
        self, variant: type[Variant], make: Make, proxy: Proxy, kind: Any, event: str
    ) -> None:
        core, events = AioSession(), list[str]()
        core.get_component("event_emitter").register(event, functools.partial(heard(events)))
        session = core if kind is AioSession else kind(botocore_session=core)
        history = make(endpoint_url=proxy.url, boto3_session=session)
        await chat(variant(history))
        assert [event.split(".")[2] for event in events] == proxy.operations()
        assert f"has an event handler, by {__name__}" in str(history.fast_path_status.reason)

    async def test_that_a_mock_adds_to_the_sdks_list_are_called_by_the_next_client(
        self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await make(endpoint_url=proxy.url).aget_messages()
        events: list[str] = []
        added = [*handlers.BUILTIN_HANDLERS, ("before-send.dynamodb.*", heard(events))]
        monkeypatch.setattr(handlers, "BUILTIN_HANDLERS", added)
        await make(endpoint_url=proxy.url, config=Config(read_timeout=9)).aget_messages()
        assert len(events) == 1
        assert [seen.by_sdk for seen in proxy.seen] == [False, True]

    async def test_of_an_initializer_are_called_once_while_it_is_registered(self, make: Make, proxy: Proxy) -> None:
        events = list[str]()
        handler = heard(events)

        def initialize(session: Any) -> None:
            session.register("before-send.dynamodb.*", handler)

        # As in a process that has made no session before.
        sdk_sessions._with_builtin_handlers.cache_clear()
        botocore.register_initializer(initialize)
        try:
            await make(endpoint_url=proxy.url).aget_messages()
        finally:
            botocore.unregister_initializer(initialize)
        assert len(events) == 1
        await make(endpoint_url=proxy.url, config=Config(read_timeout=9)).aget_messages()
        assert len(events) == 1

    async def test_that_come_later_are_called_and_may_go_again(self, make: Make, proxy: Proxy) -> None:
        history, events = make(endpoint_url=proxy.url), list[str]()
        handler = heard(events)
        async with client_of(history) as client:
            await history.aget_messages()
            client.client.meta.events.register("before-parameter-build.dynamodb.GetItem", handler)
            await history.aget_messages()
            client.client.meta.events.unregister("before-parameter-build.dynamodb.GetItem", handler)
            await history.aget_messages()
        assert len(events) == 1
        assert [seen.by_sdk for seen in proxy.seen] == [False, True, False]

    async def test_of_a_stubber_answer(self, make: Make, proxy: Proxy, table: str) -> None:
        history = make(endpoint_url=proxy.url)
        async with client_of(history) as client:
            with Stubber(client.client) as stubber:
                stubber.add_response("get_item", {})
                assert await history.aget_messages() == []
                stubber.assert_no_pending_responses()
                assert "botocore.stub" in str(history.fast_path_status.reason)
        assert proxy.seen == []
        assert history.fast_path_status == ON

    async def test_on_any_event_of_a_call_are_found(self, guard: Guard, client: Any) -> None:
        handler = heard([])
        for event in _EVENTS:
            client.meta.events.register(event, handler)
            assert guard.found() == f"{event} has an event handler, by {__name__}"
            client.meta.events.unregister(event, handler)
        assert guard.found() is None


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    async with aioboto3.Session().client("dynamodb") as client:
        yield client


@pytest.fixture
def guard(client: Any) -> Guard:
    guard = Guard(client, {"get_item": "GetItem", "put_item": "PutItem"})
    assert guard.found() is None
    return guard


class TestPatches:
    def test_of_any_method_of_a_call_are_found(self, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
        for kind, name in _METHODS:
            with monkeypatch.context() as patches:
                patches.setattr(kind, name, functools.wraps(getattr(kind, name))(lambda *_: None))
                assert guard.found() == f"{kind.__name__}.{name} is replaced, by {__name__}"
            assert guard.found() is None

    async def test_of_a_client_are_called(self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        history = make(endpoint_url=proxy.url)
        async with client_of(history) as client:
            monkeypatch.setattr(client.client, "get_item", mock.AsyncMock(return_value={}), raising=False)
            assert await history.aget_messages() == []
            assert "get_item is replaced on the instance, by unittest.mock" in str(history.fast_path_status.reason)
        assert proxy.seen == []

    @pytest.mark.parametrize("name", ["get_item", "_make_api_call", "_convert_to_request_dict"])
    async def test_of_a_clients_own_class_are_called(
        self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        history = make(endpoint_url=proxy.url)
        async with client_of(history) as client:
            kind = type(client.client)
            original, called = getattr(kind, name), list[str]()

            async def watch(*args: Any, **kwargs: Any) -> Any:
                called.append(name)
                return await original(*args, **kwargs)

            monkeypatch.setattr(kind, name, watch, raising=False)
            await history.aget_messages()
            assert called == [name]
            assert history.fast_path_status.reason == f"DynamoDB.{name} is replaced, by {__name__}"

    async def test_of_its_parts_are_found(self, guard: Guard, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for part, name in ((client._endpoint, "_send"), (client._endpoint.http_session, "send")):
            with monkeypatch.context() as patches:
                patches.setattr(part, name, print)
                assert f".{name} is replaced on the instance" in str(guard.found())
        with monkeypatch.context() as patches:
            foreign = type("Foreign", (AIOHTTPSession,), {})()
            patches.setattr(client._endpoint, "http_session", foreign)
            assert guard.found() == f"{__name__}.Foreign stands in for the SDK's AIOHTTPSession"
        assert guard.found() is None

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"class_attributes": {"put_item": print}}, "DynamoDB.put_item is replaced"),
            ({"base_classes": [type("Mixin", (), {})]}, "base classes"),
        ],
        ids=["method", "base-class"],
    )
    async def test_of_the_class_that_a_session_makes_are_found(
        self, make: Make, proxy: Proxy, change: dict[str, Any], reason: str
    ) -> None:
        def customize(class_attributes: dict[str, Any], base_classes: list[type], **_: Any) -> None:
            class_attributes.update(change.get("class_attributes", {}))
            base_classes.extend(change.get("base_classes", []))

        session = AioSession()
        session.register("creating-client-class.dynamodb", customize)
        history = make(endpoint_url=proxy.url, boto3_session=session)
        await history.aget_messages()
        assert by_sdk(proxy) == {True}
        assert reason in str(history.fast_path_status.reason)


class TestOfTheSdk:
    async def test_its_history_is_found(self, guard: Guard) -> None:
        recorder = get_global_history_recorder()
        recorder.enable()
        try:
            assert guard.found() == "botocore's history recorder is enabled"
        finally:
            recorder.disable()
        assert guard.found() is None

    async def test_its_monitoring_is_found(self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_CSM_ENABLED", "true")
        session = AioSession()
        history = make(endpoint_url=proxy.url, boto3_session=session)
        await history.aget_messages()
        # Nobody else closes it.
        session._get_internal_component("monitor")._publisher._socket.close()
        assert "botocore.monitoring" in str(history.fast_path_status.reason)
        assert by_sdk(proxy) == {True}

    @pytest.mark.parametrize("mode", ["legacy", "standard"])
    async def test_its_own_handlers_are_none(self, make: Make, proxy: Proxy, mode: str) -> None:
        history = make(endpoint_url=proxy.url, config=Config(retries={"mode": mode}))
        await history.aget_messages()
        assert history.fast_path_status == ON

    @pytest.mark.parametrize("strange", [SimpleNamespace(), mock.Mock()], ids=["nothing", "anything"])
    def test_what_is_not_known_counts_as_found(self, strange: Any) -> None:
        assert Guard(strange, {"get_item": "GetItem"}).found() is not None


class TestStatus:
    async def test_is_not_known_before_the_first_call(self, collection_table: str) -> None:
        store = ChatHistoryStore(collection_table)
        assert store.fast_path_status == FastPathStatus(active=None, reason="no client is open yet")
        async with store:
            assert store.fast_path_status == ON
        assert store.fast_path_status.active is None

    async def test_says_that_it_was_asked_for(self, collection_table: str) -> None:
        async with ChatHistoryStore(collection_table, fast_path=False) as store:
            assert store.fast_path_status == FastPathStatus(active=False, reason="fast_path=False")

    def test_is_told_to_plain_code(self, make: Make) -> None:
        history = make(config=Config(read_timeout=6))
        assert history.fast_path_status.active is None
        assert history.messages == []
        assert history.fast_path_status == ON
        history.close()
        assert history.fast_path_status.active is None

    async def test_is_that_of_the_clients_of_all_loops(self, make: Make) -> None:
        history = make(config=Config(read_timeout=8))
        await history.aget_messages()
        assert await asyncio.to_thread(lambda: history.messages) == []
        async with client_of(history) as client:
            client.client.meta.events.register("before-send", heard([]))
            assert history.fast_path_status.active is False


class TestWarning:
    def logged(self, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "chathistory_async"]

    async def test_is_given_once_for_a_configuration(
        self, make: Make, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        def use() -> DynamoDBChatMessageHistory:
            config = Config(retries={"mode": "adaptive"})
            return make(endpoint_url=proxy.url, config=config, boto3_session=aioboto3.Session())

        for _ in range(3):
            await use().aget_messages()
            await asyncio.to_thread(lambda: use().messages)
        [record] = self.logged(caplog)
        assert record.levelno == logging.WARNING
        assert "do not take the fast path: the SDK adapts its rate" in record.getMessage()

    async def test_is_given_once_where_a_tracer_comes_later(
        self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        history = make(endpoint_url=proxy.url)
        await history.aget_messages()
        assert self.logged(caplog) == []
        with opentelemetry(monkeypatch):
            for _ in range(3):
                await history.aget_messages()
        [record] = self.logged(caplog)
        assert "AioBaseClient._make_api_call is replaced, by opentelemetry." in record.getMessage()

    async def test_is_not_given_where_that_was_asked_for(
        self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with opentelemetry(monkeypatch):
            await make(endpoint_url=proxy.url, fast_path=False).aget_messages()
        assert self.logged(caplog) == []


# moto watches every client that is made after it was imported: not in this process.
IN_A_MOCK = """
import asyncio, json, sys
from moto import mock_aws
from moto.core.models import botocore_stubber
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.session import AioSession
from langchain_core.messages import HumanMessage
from chathistory_async import ChatHistoryStore

calls, left = [], []

def spy(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        left.append(f"{event} {arguments[1:]}")

class Raw:
    def __init__(self, content):
        self._content = content
    async def read(self):
        return self._content

# moto's answer, in the form that aiobotocore awaits: what aiomoto does.
def answer(event_name, request, **options):
    response = botocore_stubber(event_name, request, **options)
    calls.append(event_name.split(".")[-1])
    return AioAWSResponse(response.url, response.status_code, response.headers, Raw(response.raw.read()))

def session():
    session = AioSession()
    session.unregister("before-send", botocore_stubber)
    session.register("before-send", answer)
    return session

async def chat(layout, session):
    async with ChatHistoryStore(layout, layout=layout, boto3_session=session) as store:
        await store.create_table()
        # The first of a store finds out if the table is of its layout.
        await store.session("first").aadd_messages([HumanMessage("0")])
        calls.clear()
        history = store.session("s")
        await history.aadd_messages([HumanMessage("1")])
        await history.aadd_messages([HumanMessage("2"), HumanMessage("3")])
        messages = [message.content for message in await history.aget_messages()]
        return {"messages": messages, "calls": list(calls), "reason": store.fast_path_status.reason}

async def unanswered(session):
    # moto alone answers in a form that aiobotocore cannot await. Nothing leaves it even so.
    async with ChatHistoryStore("t", boto3_session=session) as store:
        try:
            await store.session("s").aget_messages()
        except Exception:
            return store.fast_path_status.reason

sys.addaudithook(spy)
with mock_aws():
    told = {layout: asyncio.run(chat(layout, session())) for layout in ("single_item", "item_collection")}
    told["alone"] = asyncio.run(unanswered(AioSession()))
print(json.dumps(told | {"left": left}))
"""


def test_nothing_leaves_a_mock(tmp_path: Any) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_ENDPOINT_URL")}
    command = [sys.executable, "-c", textwrap.dedent(IN_A_MOCK)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["left"] == []
    calls = {
        "single_item": ["UpdateItem", "UpdateItem", "GetItem"],
        "item_collection": ["PutItem", "PutItem", "Query"],
    }
    for layout, operations in calls.items():
        assert told[layout]["messages"] == ["1", "2", "3"]
        assert told[layout]["calls"] == operations
        assert "before-send has an event handler" in told[layout]["reason"]
    assert "moto" in told["alone"]
