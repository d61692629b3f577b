"""Spans, metrics and log records tell what the library does, and never what it stores."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import logging
import operator
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import Any

import pytest
from botocore.config import Config
from conftest import Make, NewStore, created_table
from engines import ROOT
from langchain_core.messages import BaseMessage, HumanMessage
from opentelemetry import context, metrics, trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.botocore import AiobotocoreInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, StatusCode
from proxy import Fault, Proxy

from chathistory_async import (
    ChatHistoryStore,
    DynamoDBChatMessageHistory,
    FastPathStatus,
    JsonSession,
    LayoutError,
    MessageNotStorableError,
    TableNotFoundError,
    ThrottledError,
)
from chathistory_async._aws.fast_path_guard import Guard
from chathistory_async._session_index.keyed import KeyedSession
from chathistory_async._telemetry import events, operations
from chathistory_async.store import keyed_session

DOCUMENTATION = (ROOT / "docs" / "guides" / "observability.md").read_text()
SECRET = "quokka"
ON = FastPathStatus(active=True, reason=None)


def secrets(number: int) -> list[BaseMessage]:
    return [HumanMessage(f"{SECRET} {index}", additional_kwargs={SECRET: SECRET}) for index in range(number)]


class Telemetry:
    """The spans and metrics that the library exports in one test."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    def spans(self, kind: SpanKind | None = None) -> list[ReadableSpan]:
        found = sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        return [span for span in found if kind in (None, span.kind)]

    def operations(self) -> list[ReadableSpan]:
        return self.spans(SpanKind.INTERNAL)

    def calls(self) -> list[ReadableSpan]:
        return self.spans(SpanKind.CLIENT)

    def tree(self) -> list[tuple[str, int | None, list[str]]]:
        """The operations, each with its number of messages and the names of its calls."""
        return [
            (one.name, attributes_of(one).get("chathistory.messages"), [call_of(child) for child in self.below(one)])
            for one in self.operations()
        ]

    def below(self, operation: ReadableSpan) -> list[ReadableSpan]:
        own = operation.get_span_context()
        return [one for one in self.calls() if one.parent is not None and own and one.parent.span_id == own.span_id]

    def clear(self) -> None:
        self.exporter.clear()

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """The points of each metric: their attributes, and a sum, a gauge or a histogram's count."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: [
                (dict(point.attributes or {}), getattr(point, "value", getattr(point, "count", None)))
                for point in metric.data.data_points
            ]
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name == "chathistory_async"
            for metric in scope.metrics
        }

    def total(self, name: str, **attributes: str) -> Any:
        return sum(value for found, value in self.metrics().get(name, []) if attributes.items() <= found.items())


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def names_in(span: ReadableSpan) -> list[str]:
    """What the documentation has to name, if the span is the library's."""
    if span.instrumentation_scope is None or span.instrumentation_scope.name != "chathistory_async":
        return []
    return [*attributes_of(span), *([span.name] if span.kind is SpanKind.INTERNAL else [])]


def call_of(span: ReadableSpan) -> str:
    attributes = attributes_of(span)
    return str(attributes.get("db.operation.name", attributes.get("rpc.method")))


@pytest.fixture
def secret_texts(session_id: str, owner: str) -> list[str]:
    """What nothing may export: tests add the ids of messages."""
    return [SECRET, session_id, owner]


@pytest.fixture
def telemetry(
    table: str,
    collection_table: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    secret_texts: list[str],
) -> Iterator[Telemetry]:
    """Sets both providers for the test, after the tables are made.

    Afterwards it checks that no secret was exported or logged, and that the documentation names all that was exported.
    """
    telemetry = Telemetry()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", telemetry.provider)
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", telemetry.meters)
    caplog.set_level(logging.DEBUG, "chathistory_async")
    yield telemetry
    told = [span.to_json() for span in telemetry.spans()]
    told += [record.getMessage() for record in caplog.records if record.name == "chathistory_async"]
    told.append(json.dumps(telemetry.metrics(), default=str))
    assert [(secret, text) for secret in secret_texts for text in told if secret in text] == []
    names = {name for span in telemetry.spans() for name in names_in(span)}
    assert [name for name in names | {*telemetry.metrics()} if f"`{name}`" not in DOCUMENTATION] == []
    assert [span.events for span in telemetry.spans() if span.events] == []
    assert [span.status.description for span in telemetry.spans() if span.status.description] == []
    telemetry.meters.shutdown()


class NoOperations(Sampler):
    """An application's own sampler: it drops the spans of operations, and keeps those of calls."""

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        *others: Any,
        **options: Any,
    ) -> SamplingResult:
        decision = Decision.RECORD_AND_SAMPLE if kind is SpanKind.CLIENT else Decision.DROP
        return SamplingResult(decision, attributes)

    def get_description(self) -> str:
        return "NoOperations"


class WithoutADescription(NoOperations):
    def get_description(self) -> str:
        raise NotImplementedError


class Twin:
    """Calls the methods of a handle in their asynchronous or in their synchronous form."""

    def __init__(self, form: str) -> None:
        self._is_native = form == "async"

    async def __call__(self, handle: Any, name: str, *args: Any, **options: Any) -> Any:
        if self._is_native:
            return await getattr(handle, f"a{name}")(*args, **options)
        return await asyncio.to_thread(getattr(handle, name), *args, **options)

    async def iterated(self, handle: Any) -> list[Any]:
        if self._is_native:
            return [value async for value in handle.aiter()]
        return await asyncio.to_thread(lambda: list(handle.iter()))


@pytest.fixture(params=["async", "sync"])
def call(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)


@pytest.fixture
def collection(collection_table: str, session_id: str) -> Callable[..., DynamoDBChatMessageHistory]:
    def make(session: str = session_id, **options: Any) -> DynamoDBChatMessageHistory:
        return DynamoDBChatMessageHistory(collection_table, session, sort_key_name="MessageId", **options)

    return make


class TestOperations:
    async def test_of_a_single_item(self, telemetry: Telemetry, make: Make, call: Twin) -> None:
        history = make()
        await call(history, "add_messages", secrets(3))
        assert len(await call(history, "get_messages", limit=2)) == 2
        assert len(await call.iterated(history)) == 3
        await call(history, "clear")
        with pytest.raises(LayoutError):
            await call(history, "page")
        assert telemetry.tree() == [
            ("chathistory.append", 3, ["UpdateItem"]),
            ("chathistory.read", 2, ["GetItem"]),
            ("chathistory.iterate", 3, ["GetItem"]),
            ("chathistory.clear", None, ["GetItem", "DeleteItem"]),
            ("chathistory.page", None, []),
        ]
        assert {attributes_of(span)["chathistory.layout"] for span in telemetry.operations()} == {"single_item"}

    async def test_of_an_item_collection(
        self, telemetry: Telemetry, collection: Any, call: Twin, secret_texts: list[str]
    ) -> None:
        history = collection()
        await call(history, "get_messages")
        await call(history, "add_messages", secrets(4))
        page = await call(history, "page", 3)
        ids = [one.id for one in page.messages]
        secret_texts += ids
        await call(history, "replace_message", ids[0], secrets(1)[0])
        await call(history, "delete_messages", ids[:1])
        await call(history, "pop_message")
        await call(history, "copy_to", f"{SECRET}-copy")
        assert len(await call.iterated(history)) == 2
        await call(history, "clear")
        assert telemetry.tree() == [
            ("chathistory.read", 0, ["Query"]),
            ("chathistory.append", 4, ["PutItem"]),
            ("chathistory.page", 3, ["Query"]),
            ("chathistory.replace", 1, ["GetItem", "PutItem"]),
            ("chathistory.delete", None, ["GetItem", "PutItem"]),
            ("chathistory.pop", 1, ["Query", "PutItem"]),
            ("chathistory.copy", 2, ["Query", "PutItem"]),
            ("chathistory.iterate", 2, ["Query"]),
            ("chathistory.clear", 2, ["Query", "BatchWriteItem"]),
        ]
        assert {attributes_of(span)["chathistory.layout"] for span in telemetry.operations()} == {"item_collection"}

    async def test_of_a_json_session(
        self, telemetry: Telemetry, new_store: NewStore, session_id: str, call: Twin, secret_texts: list[str]
    ) -> None:
        session = new_store().json_session(session_id)
        assert await call(session, "get") == []
        await call(session, "add", [{SECRET: 1}, {SECRET: 2}])
        page = await call(session, "page")
        secret_texts += [one.id for one in page.values]
        await call(session, "replace", page.values[0].id, SECRET)
        await call(session, "delete", [page.values[1].id])
        assert await call.iterated(session) == [SECRET]
        assert await call(session, "pop") == SECRET
        await call(session, "clear")
        assert [(name, messages) for name, messages, _ in telemetry.tree()] == [
            ("chathistory.read", 0),
            ("chathistory.append", 2),
            ("chathistory.page", 2),
            ("chathistory.replace", 1),
            ("chathistory.delete", None),
            ("chathistory.iterate", 1),
            ("chathistory.pop", 1),
            ("chathistory.clear", 0),
        ]
        assert all(calls for _, _, calls in telemetry.tree())

    async def test_of_a_store(self, telemetry: Telemetry, new_store: NewStore, session_id: str, owner: str) -> None:
        store = new_store()
        await store.session(session_id, owner=owner).aadd_messages(secrets(2))
        await store.set_title(session_id, SECRET)
        await store.update_metadata(session_id, {SECRET: SECRET})
        assert await store.get_session_info(session_id) is not None
        await store.list_sessions(owner)
        assert await store.delete_session(session_id) == 2
        await store.purge_owner(owner)
        assert [(name, messages) for name, messages, _ in telemetry.tree()] == [
            ("chathistory.append", 2),
            ("chathistory.set_title", None),
            ("chathistory.update_metadata", None),
            ("chathistory.get_session_info", None),
            ("chathistory.list_sessions", None),
            ("chathistory.delete_session", 2),
            ("chathistory.purge", 0),
        ]
        assert all(calls for _, _, calls in telemetry.tree())

    async def test_that_inspect(
        self, telemetry: Telemetry, new_store: NewStore, session_id: str, secret_texts: list[str]
    ) -> None:
        store = new_store()
        await store.json_session(session_id).aadd([SECRET, SECRET])
        assert await store.get_format(session_id) == "json"
        stored = [one.id async for one in store.iter_stored(session_id, format="json")]
        secret_texts += stored
        assert [error async for error in store.iter_unreadable(session_id)] == []
        assert (await store.get_session_stats(session_id)).messages == 2
        await store.describe_table()
        await store.check_kms_key()
        assert [(name, messages) for name, messages, _ in telemetry.tree()] == [
            ("chathistory.append", 2),
            ("chathistory.get_format", None),
            ("chathistory.iterate", 2),
            ("chathistory.iterate_unreadable", 0),
            ("chathistory.get_session_stats", None),
            ("chathistory.describe_table", None),
            ("chathistory.check_kms_key", None),
        ]
        # Without a key for encryption, nothing is checked.
        assert [name for name, _, calls in telemetry.tree() if not calls] == ["chathistory.check_kms_key"]

    async def test_of_a_session_with_ids(self, telemetry: Telemetry, new_store: NewStore, owner: str) -> None:
        store = new_store()

        def session(**options: Any) -> KeyedSession:
            return keyed_session(store, (owner, SECRET), owner=owner, format="json", **options)

        await session().add([SECRET], [f"{SECRET}-id"])
        await session(subsession=f"{SECRET}-sub").add([SECRET], [None])
        assert await session().read() == [SECRET]
        assert await session().subsessions() == [f"{SECRET}-sub"]
        assert await session().info() is not None
        await session().delete()
        assert [(name, messages) for name, messages, calls in telemetry.tree() if calls] == [
            ("chathistory.append", 1),
            ("chathistory.append", 1),
            ("chathistory.read", 1),
            ("chathistory.list_subsessions", None),
            ("chathistory.get_session_info", None),
            ("chathistory.delete_session", None),
        ]
        telemetry.clear()
        await keyed_session(new_store(tracing=False), (owner, SECRET), owner=owner, format="json").read()
        assert telemetry.spans() == []

    @pytest.mark.parametrize("kind", [ChatHistoryStore, DynamoDBChatMessageHistory, JsonSession, KeyedSession])
    def test_are_all_public_asynchronous_methods(self, kind: type) -> None:
        methods = [one for name, one in vars(kind).items() if not name.startswith("_") and iscoroutinefunction(one)]
        unobserved = {one.__name__ for one in methods if one.__code__.co_name == one.__name__}
        assert unobserved <= {"aclose"}

    async def test_of_a_migration(self, telemetry: Telemetry, make: Make, table: str, collection_table: str) -> None:
        await make().aadd_messages(secrets(2))
        source, target = ChatHistoryStore(table, layout="single_item"), ChatHistoryStore(collection_table)
        ids = [one async for one in source.scan_session_ids()]
        telemetry.clear()
        results = [one async for one in target.migrate_from(source, [one for one in ids if one == make().session_id])]
        assert [one.copied for one in results] == [2]
        [(name, messages, calls)] = telemetry.tree()
        assert (name, messages) == ("chathistory.migrate", 2)
        # Those to the source's table, too.
        tables = {attributes_of(one)["db.collection.name"] for one in telemetry.calls()}
        assert tables == {table, collection_table}
        assert "TransactWriteItems" in calls

    async def test_of_a_table(self, telemetry: Telemetry) -> None:
        with created_table():
            pass
        names = [name for name, _, calls in telemetry.tree() if calls]
        assert names == ["chathistory.create_table", "chathistory.delete_table"]

    async def test_count_the_stored_bytes(self, telemetry: Telemetry, make: Make, collection: Any) -> None:
        content = SECRET * 100
        for history in (make(), collection()):
            await history.aadd_messages([HumanMessage(content)])
            await history.aget_messages()
        for span in telemetry.operations():
            assert len(content) < attributes_of(span)["chathistory.bytes"] < 2 * len(content)
        assert telemetry.total("chathistory.bytes") == sum(
            attributes_of(span)["chathistory.bytes"] for span in telemetry.operations()
        )

    async def test_that_are_thrown_away_leave_the_context(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Waiting:
            @operations.observed("read")
            async def read(self) -> None:
                await asyncio.sleep(0)

            def _observed_layout(self) -> str:
                return "single_item"

        here, elsewhere = contextvars.copy_context(), contextvars.copy_context()
        for closes_in in (here, elsewhere):
            reading = Waiting().read()
            here.run(reading.send, None)
            closes_in.run(reading.close)
            assert closes_in.run(operations.current) is None
            assert closes_in.run(trace.get_current_span) is trace.INVALID_SPAN
        assert len(telemetry.operations()) == 2
        assert [record.getMessage() for record in caplog.records] == []

    async def test_are_below_the_callers_span(self, telemetry: Telemetry, make: Make, call: Twin) -> None:
        with telemetry.provider.get_tracer("app").start_as_current_span("request", kind=SpanKind.SERVER) as request:
            await call(make(), "get_messages")
        [read] = telemetry.operations()
        assert read.parent == request.get_span_context()

    async def test_at_the_same_time_have_their_own_parents_and_calls(self, telemetry: Telemetry, make: Make) -> None:
        tracer = telemetry.provider.get_tracer("app")

        async def request(number: int) -> int:
            with tracer.start_as_current_span(f"request {number}", kind=SpanKind.SERVER) as span:
                history = make(session=f"{SECRET}-{number}")
                await history.aadd_messages(secrets(number + 1))
                await history.aget_messages()
                return span.get_span_context().span_id

        ids = await asyncio.gather(*map(request, range(20)))
        for number, span_id in enumerate(ids):
            mine = [one for one in telemetry.operations() if one.parent and one.parent.span_id == span_id]
            assert [(one.name, attributes_of(one)["chathistory.messages"]) for one in mine] == [
                ("chathistory.append", number + 1),
                ("chathistory.read", number + 1),
            ]
            assert [[call_of(call) for call in telemetry.below(one)] for one in mine] == [["UpdateItem"], ["GetItem"]]


class TestStreams:
    @pytest.mark.parametrize("stored_in", ["single_item", "item_collection"])
    async def test_do_not_leak_into_their_readers(
        self, telemetry: Telemetry, make: Make, collection: Any, stored_in: str
    ) -> None:
        history = make() if stored_in == "single_item" else collection()
        await history.aadd_messages(secrets(3))
        with telemetry.provider.get_tracer("app").start_as_current_span("request", kind=SpanKind.SERVER) as request:
            async for _ in history.aiter():
                assert trace.get_current_span() is request
                assert operations.current() is None
                await history.aget_messages(limit=1)
        reads = [span for span in telemetry.operations() if span.name == "chathistory.read"]
        assert [span.parent for span in reads] == [request.get_span_context()] * 3
        assert len(telemetry.below(telemetry.operations()[1])) == 1

    async def test_that_are_left_end(self, telemetry: Telemetry, collection: Any) -> None:
        history = collection()
        await history.aadd_messages(secrets(3))
        telemetry.clear()

        async def leave() -> None:
            async for _ in history.aiter():
                return

        await leave()
        gc.collect()
        while not telemetry.operations():
            await asyncio.sleep(0)
        [span] = telemetry.operations()
        assert attributes_of(span)["chathistory.messages"] == 1
        assert "error.type" not in attributes_of(span)
        assert span.status.status_code is StatusCode.UNSET
        assert trace.get_current_span() is trace.INVALID_SPAN

    async def test_that_are_closed_by_another_task_end(self, telemetry: Telemetry, collection: Any) -> None:
        history = collection()
        await history.aadd_messages(secrets(3))
        stream = history.aiter()
        await asyncio.create_task(stream.__anext__())
        await asyncio.create_task(stream.aclose())
        assert telemetry.operations()[-1].name == "chathistory.iterate"

    async def test_that_are_left_by_synchronous_code_end(self, telemetry: Telemetry, collection: Any) -> None:
        history = collection()
        await history.aadd_messages(secrets(3))
        telemetry.clear()

        def leave() -> None:
            for _ in history.iter():
                assert trace.get_current_span() is trace.INVALID_SPAN
                return

        await asyncio.to_thread(leave)
        assert [(name, messages) for name, messages, _ in telemetry.tree()] == [("chathistory.iterate", 1)]

    async def test_that_nobody_begins_are_none(self, telemetry: Telemetry, collection: Any) -> None:
        await collection().aiter().aclose()
        assert telemetry.spans() == []


class TestCalls:
    @pytest.mark.parametrize("fast_path", [True, False])
    async def test_follow_the_conventions(
        self, telemetry: Telemetry, collection: Any, proxy: Proxy, fast_path: bool
    ) -> None:
        proxy.measure = True
        history = collection(endpoint_url=proxy.url, fast_path=fast_path)
        await history.aget_messages()
        telemetry.clear()
        await history.aadd_messages(secrets(1))
        [span] = telemetry.calls()
        attributes = attributes_of(span)
        assert attributes.pop("aws.request_id")
        [consumed] = attributes.pop("aws.dynamodb.consumed_capacity")
        assert json.loads(consumed) == {"TableName": history.table_name, "CapacityUnits": proxy.units[-1]}
        assert span.name == f"PutItem {history.table_name}"
        assert attributes == {
            "db.system.name": "aws.dynamodb",
            "db.operation.name": "PutItem",
            "db.collection.name": history.table_name,
            "aws.dynamodb.table_names": (history.table_name,),
            "server.address": "127.0.0.1",
            "server.port": int(proxy.url.rpartition(":")[2]),
        }
        assert history.fast_path_status.active is fast_path

    async def test_of_kms(self, telemetry: Telemetry, collection: Any, kms_key: str, session_id: str) -> None:
        history = collection(kms_key_id=kms_key)
        await history.aget_messages()
        await history.aadd_messages(secrets(2))
        history._session.access.cipher._keys._cache.forget()
        await history.aget_messages()
        assert [calls for _, _, calls in telemetry.tree()] == [
            ["Query"],
            ["GenerateDataKey", "PutItem"],
            ["Query", "Decrypt"],
        ]
        span = telemetry.calls()[1]
        attributes = attributes_of(span)
        assert span.name == "KMS.GenerateDataKey"
        assert attributes.pop("aws.request_id")
        assert attributes.pop("server.address")
        assert attributes.pop("server.port")
        assert attributes == {"rpc.system": "aws-api", "rpc.service": "KMS", "rpc.method": "GenerateDataKey"}

    async def test_of_a_table_that_is_named_by_its_arn(self, telemetry: Telemetry, dynamodb: Any, table: str) -> None:
        arn = dynamodb.describe_table(TableName=table)["Table"]["TableArn"]
        with suppress(TableNotFoundError):
            # moto takes an ARN for a name.
            await DynamoDBChatMessageHistory(arn, SECRET).aget_messages()
        assert [span.name for span in telemetry.calls()] == [f"GetItem {table}"]

    @pytest.mark.parametrize(
        ("sampler", "recorded"),
        [
            (ALWAYS_OFF, []),
            (TraceIdRatioBased(0), []),
            (NoOperations(), ["GetItem"]),
            (WithoutADescription(), ["GetItem"]),
            (ParentBased(NoOperations()), []),
            (ParentBased(NoOperations(), local_parent_not_sampled=ALWAYS_ON), ["GetItem"]),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_below_a_dropped_operation_are_recorded_as_the_sampler_says(
        self,
        telemetry: Telemetry,
        monkeypatch: pytest.MonkeyPatch,
        make: Make,
        sampler: Sampler,
        recorded: list[str],
    ) -> None:
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(telemetry.exporter))
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", None)
        await make().aget_messages()
        assert telemetry.operations() == []
        assert [call_of(span) for span in telemetry.calls()] == recorded


class TestErrors:
    async def test_are_named_without_their_texts(self, telemetry: Telemetry) -> None:
        with pytest.raises(TableNotFoundError):
            await DynamoDBChatMessageHistory("missing", SECRET).aadd_messages(secrets(1))
        [operation], [call] = telemetry.operations(), telemetry.calls()
        assert attributes_of(operation)["error.type"] == "TableNotFoundError"
        assert attributes_of(call)["error.type"] == "ResourceNotFoundException"
        assert attributes_of(call)["db.response.status_code"] == "ResourceNotFoundException"
        assert attributes_of(call)["aws.request_id"]
        assert {span.status.status_code for span in telemetry.spans()} == {StatusCode.ERROR}
        [(attributes, number)] = telemetry.metrics()["chathistory.calls"]
        assert (attributes["error.type"], number) == ("ResourceNotFoundException", 1)
        [(attributes, number)] = telemetry.metrics()["db.client.operation.duration"]
        assert (attributes["db.response.status_code"], number) == ("ResourceNotFoundException", 1)

    async def test_before_any_call(self, telemetry: Telemetry, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(MessageNotStorableError):
            await make().aadd_messages([HumanMessage("", additional_kwargs={"key": object()})])
        [span] = telemetry.spans()
        assert attributes_of(span)["error.type"] == "MessageNotStorableError"
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        # It names the session, as the error does.
        caplog.clear()

    async def test_of_an_endpoint_that_does_not_answer(self, telemetry: Telemetry, make: Make) -> None:
        config = Config(retries={"total_max_attempts": 2})
        with pytest.raises(Exception, match="does not answer"):
            await make(endpoint_url="http://127.0.0.1:9", config=config).aget_messages()
        [call] = telemetry.calls()
        assert attributes_of(call)["error.type"] == "EndpointConnectionError"
        assert "db.response.status_code" not in attributes_of(call)
        assert attributes_of(telemetry.operations()[0])["error.type"] == "EndpointError"

    async def test_of_a_lost_answer_are_attempts(
        self,
        telemetry: Telemetry,
        through: Callable[..., DynamoDBChatMessageHistory],
        proxy: Proxy,
        pauses: list[float],
    ) -> None:
        history = through()
        proxy.script(Fault.LOST_RESPONSE)
        await history.aadd_messages(secrets(1))
        assert len(await history.aget_messages()) == 1
        append, read = map(attributes_of, telemetry.operations())
        assert (append["chathistory.attempts"], append["chathistory.conflicts"]) == (2, 0)
        assert (read["chathistory.attempts"], read["chathistory.conflicts"]) == (1, 0)
        # The SDK's client sent it again, within the same call.
        assert [call_of(span) for span in telemetry.calls()] == ["UpdateItem", "GetItem"]
        assert telemetry.total("chathistory.retries") == telemetry.total(
            "chathistory.retries", **{"chathistory.retry.reason": "failed"}
        )

    async def test_of_conflicts_are_counted(
        self, telemetry: Telemetry, collection: Any, proxy: Proxy, pauses: list[float]
    ) -> None:
        history = collection(endpoint_url=proxy.url)
        proxy.script(Fault.CONFLICT, Fault.CONFLICT)
        await history.aadd_messages(secrets(1), idempotency_key=SECRET)
        [append] = map(attributes_of, telemetry.operations())
        assert (append["chathistory.attempts"], append["chathistory.conflicts"]) == (3, 2)
        assert [attributes_of(call).get("error.type") for call in telemetry.calls()] == [
            "TransactionConflictException",
            "TransactionConflictException",
            None,
        ]
        assert telemetry.total("chathistory.conflicts") == 2
        assert telemetry.total("chathistory.retries", **{"chathistory.retry.reason": "conflict"}) == 2

    async def test_of_writers_that_compete(self, telemetry: Telemetry, collection: Any) -> None:
        history = collection()
        await history.aadd_messages(secrets(8))
        telemetry.clear()
        await asyncio.gather(*(collection().apop_message() for _ in range(8)))
        attributes = list(map(attributes_of, telemetry.operations()))
        assert [one["chathistory.messages"] for one in attributes] == [1] * 8
        conflicts = sum(one["chathistory.conflicts"] for one in attributes)
        assert conflicts == telemetry.total("chathistory.conflicts") > 0
        assert conflicts == telemetry.total("chathistory.retries", **{"chathistory.retry.reason": "conflict"})
        # A busy engine may answer late, which is another reason to try again.
        assert sum(one["chathistory.attempts"] for one in attributes) == 8 + telemetry.total("chathistory.retries")

    async def test_of_cancellation_end_the_spans(self, telemetry: Telemetry, make: Make, proxy: Proxy) -> None:
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()

        def schedule(_: object) -> Fault:
            loop.call_soon_threadsafe(arrived.set)
            return Fault.DELAY

        proxy.schedule = schedule
        task = asyncio.create_task(make(endpoint_url=proxy.url).aadd_messages(secrets(1)))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [attributes_of(span)["error.type"] for span in telemetry.spans()] == ["CancelledError"] * 2
        assert {span.status.status_code for span in telemetry.spans()} == {StatusCode.UNSET}
        assert operations.current() is None


@pytest.fixture
def instrumentors(proxy: Proxy, telemetry: Telemetry) -> Iterator[None]:
    """Both instrumentors are on, as in an application that is instrumented automatically."""
    both = AiobotocoreInstrumentor(), AioHttpClientInstrumentor()  # type: ignore[no-untyped-call]
    for one in both:
        one.instrument(tracer_provider=telemetry.provider, meter_provider=telemetry.meters)
    yield
    for one in both:
        one.uninstrument()


class TestInstrumentors:
    @pytest.mark.parametrize("options", [{}, {"fast_path": False}], ids=["fast-path", "sdk"])
    async def test_double_nothing(
        self, telemetry: Telemetry, make: Make, proxy: Proxy, instrumentors: None, options: dict[str, Any]
    ) -> None:
        history = make(endpoint_url=proxy.url, **options)
        await history.aadd_messages(secrets(1))
        await history.aget_messages()
        assert telemetry.tree() == [("chathistory.append", 1, ["UpdateItem"]), ("chathistory.read", 1, ["GetItem"])]
        assert len(telemetry.spans()) == 4
        assert {seen.by_sdk for seen in proxy.seen} == {"fast_path" in options}
        assert history.fast_path_status == (FastPathStatus(False, "fast_path=False") if options else ON)

    async def test_double_no_call_of_an_unrecorded_operation(
        self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, make: Make, proxy: Proxy, instrumentors: None
    ) -> None:
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(sampler=ALWAYS_OFF))
        monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", None)
        await make(endpoint_url=proxy.url).aget_messages()
        assert telemetry.spans() == []

    async def test_see_the_calls_with_tracing_off(
        self, telemetry: Telemetry, make: Make, proxy: Proxy, instrumentors: None
    ) -> None:
        history = make(endpoint_url=proxy.url, tracing=False)
        await history.aadd_messages(secrets(1))
        assert [span.name for span in telemetry.spans()] == ["DynamoDB.UpdateItem"]
        assert "opentelemetry.instrumentation.botocore" in str(history.fast_path_status.reason)
        assert "chathistory.calls" not in telemetry.metrics()

    async def test_see_the_calls_again_without_a_provider(
        self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, make: Make, proxy: Proxy, instrumentors: None
    ) -> None:
        history = make(endpoint_url=proxy.url)
        await history.aget_messages()
        assert history.fast_path_status == ON
        telemetry.clear()
        with monkeypatch.context() as patches:
            patches.setattr(trace, "_TRACER_PROVIDER", None)
            await history.aget_messages()
            assert [span.name for span in telemetry.spans()] == ["DynamoDB.GetItem"]
            assert history.fast_path_status.active is False
        telemetry.clear()
        await history.aget_messages()
        assert telemetry.tree() == [("chathistory.read", 0, ["GetItem"])]
        assert history.fast_path_status == ON
        assert [seen.by_sdk for seen in proxy.seen] == [False, True, False]

    async def test_do_not_hide_another_tracer_below_them(
        self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, make: Make, proxy: Proxy
    ) -> None:
        from aiobotocore.client import AioBaseClient

        original, seen = AioBaseClient._make_api_call, []

        async def traced(self: Any, *args: Any) -> Any:
            seen.append(args[0])
            return await original(self, *args)

        with monkeypatch.context() as patches:
            patches.setattr(AioBaseClient, "_make_api_call", traced)
            instrumentor = AiobotocoreInstrumentor()  # type: ignore[no-untyped-call]
            instrumentor.instrument(tracer_provider=telemetry.provider)
            history = make(endpoint_url=proxy.url)
            await history.aget_messages()
            instrumentor.uninstrument()
        assert seen == ["GetItem"]
        assert __name__ in str(history.fast_path_status.reason)

    async def test_leave_the_state_that_the_guard_remembers(
        self, telemetry: Telemetry, make: Make, proxy: Proxy, instrumentors: None
    ) -> None:
        history = make(endpoint_url=proxy.url)
        async with history._spec.settings.clients.acquire() as client:
            guard = Guard(client.client, {"get_item": "GetItem"}, lambda: True)
        # A search costs 0.2 ms a call.
        assert all(map(operator.is_, guard._state(True), guard._state(True)))
        assert guard.found() is None

    async def test_are_followed_where_they_are_suppressed(self, telemetry: Telemetry, make: Make) -> None:
        token = context.attach(context.set_value("suppress_instrumentation", True))
        await make().aget_messages()
        context.detach(token)
        assert telemetry.spans() == []


class TestProviders:
    async def test_may_be_set_after_the_store(
        self, monkeypatch: pytest.MonkeyPatch, make: Make, secret_texts: list[str]
    ) -> None:
        history, telemetry = make(), Telemetry()
        await history.aget_messages()
        with monkeypatch.context() as patches:
            patches.setattr(trace, "_TRACER_PROVIDER", telemetry.provider)
            await history.aget_messages()
        await history.aget_messages()
        assert telemetry.tree() == [("chathistory.read", 0, ["GetItem"])]

    async def test_of_the_api_itself_are_none(self, monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
        for provider in (trace.NoOpTracerProvider(), None):
            monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
            assert make()._spec.settings.clients.options.traces() is False
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
        assert make()._spec.settings.clients.options.traces() is True
        assert make(tracing=False)._spec.settings.clients.options.traces() is False

    @pytest.mark.parametrize("signal", ["spans", "metrics"])
    async def test_of_one_signal_are_enough(
        self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, make: Make, signal: str
    ) -> None:
        monkeypatch.setattr(
            *((metrics._internal, "_METER_PROVIDER", None) if signal == "spans" else (trace, "_TRACER_PROVIDER", None))
        )
        await make().aadd_messages(secrets(1))
        assert len(telemetry.spans()) == (2 if signal == "spans" else 0)
        assert bool(telemetry.metrics()) is (signal == "metrics")

    def test_of_nobody_import_nothing(self, collection_table: str) -> None:
        # Without LangChain, which takes most of the time to import.
        program = f"""
import sys
from chathistory_async import ChatHistoryStore
session = ChatHistoryStore({collection_table!r}).json_session("nobody")
session.add(["hi"])
assert session.get() == ["hi"]
session.clear()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert done.stdout.strip() == "[]"

    def test_are_set_as_the_documentation_shows(self, collection_table: str) -> None:
        [example] = re.findall(r"```python\n(.*?)```", DOCUMENTATION, re.DOTALL)
        program = example.replace('"Chats"', repr(collection_table))
        command = [sys.executable, "-W", "error", "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert (done.returncode, done.stderr) == (0, "")
        assert '"name": "chathistory.append"' in done.stdout
        assert f'"name": "PutItem {collection_table}"' in done.stdout
        assert "Hi, how can I help?" not in done.stdout

    @pytest.mark.parametrize(
        "kind", [ChatHistoryStore, lambda name, **options: DynamoDBChatMessageHistory(name, "s", **options)]
    )
    def test_are_asked_for_or_not(self, kind: Any) -> None:
        with pytest.raises(ValueError, match='tracing must be "auto" or False, not True'):
            kind("table", tracing=True)


class TestMetrics:
    async def test_of_calls(self, telemetry: Telemetry, collection: Any, kms_key: str) -> None:
        history = collection(kms_key_id=kms_key)
        await history.aget_messages()
        await history.aadd_messages(secrets(1))
        found = telemetry.metrics()
        durations = {
            attributes["db.operation.name"]: number for attributes, number in found["db.client.operation.duration"]
        }
        assert durations == {"Query": 1, "PutItem": 1}
        calls = {
            str(attributes.get("db.operation.name", attributes.get("rpc.method"))): number
            for attributes, number in found["chathistory.calls"]
        }
        assert calls == {"Query": 1, "PutItem": 1, "GenerateDataKey": 1}
        assert set(found["db.client.operation.duration"][0][0]) == {
            "db.system.name",
            "db.operation.name",
            "db.collection.name",
            "server.address",
            "server.port",
        }

    async def test_of_the_fast_path(self, telemetry: Telemetry, make: Make) -> None:
        def clients() -> dict[bool, int]:
            points = telemetry.metrics()["chathistory.fast_path.clients"]
            return {attributes["chathistory.fast_path.active"]: number for attributes, number in points}

        await make().aget_messages()
        before = clients()
        await make(fast_path=False, config=Config(read_timeout=7)).aget_messages()
        assert before[True] >= 1
        assert clients() == {True: before[True], False: before[False] + 1}

    async def test_of_data_keys(self, telemetry: Telemetry, collection: Any, kms_key: str) -> None:
        history = collection(kms_key_id=kms_key)
        await history.aget_messages()
        before = telemetry.total("chathistory.data_keys", **{"chathistory.key.use": "encrypt"})
        await history.aadd_messages(secrets(1))
        assert telemetry.total("chathistory.data_keys", **{"chathistory.key.use": "encrypt"}) == before + 1


class TestLogs:
    def of_level(self, level: int, caplog: pytest.LogCaptureFixture) -> list[str]:
        ours = [record for record in caplog.records if record.name == "chathistory_async"]
        return [record.getMessage() for record in ours if record.levelno == level]

    async def test_of_throttles_warn_once_a_minute(
        self,
        telemetry: Telemetry,
        caplog: pytest.LogCaptureFixture,
        collection: Any,
        proxy: Proxy,
        pauses: list[float],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(events, "_throttles", events._Throttles())
        history = collection(endpoint_url=proxy.url, config=Config(retries={"total_max_attempts": 4, "mode": "legacy"}))
        await history.aget_messages()
        proxy.schedule = lambda _: Fault.CAPACITY
        for _ in range(3):
            with pytest.raises(ThrottledError):
                await history.aget_messages()
        [warning] = self.of_level(logging.WARNING, caplog)
        assert warning.startswith("AWS throttles: 1 requests since the last such warning, the latest Query of ")
        throttled = telemetry.total("chathistory.throttles")
        assert throttled == len(proxy.seen) - 1
        monkeypatch.setattr(events._throttles, "_logs_at", 0)
        with pytest.raises(ThrottledError):
            await history.aget_messages()
        _, warning = self.of_level(logging.WARNING, caplog)
        assert warning.startswith(f"AWS throttles: {throttled} requests ")

    async def test_of_a_closed_fast_path(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, make: Make, proxy: Proxy, pauses: list[float]
    ) -> None:
        history = make(endpoint_url=proxy.url)
        await history.aget_messages()
        proxy.script(Fault.ERROR_500)
        await history.aget_messages()
        [closed] = self.of_level(logging.INFO, caplog)
        assert closed.startswith("The fast path is closed for up to 1.5 s (GetItem: failed)")
        assert self.of_level(logging.DEBUG, caplog) == ["GetItem: the next attempt follows (failed)"]

    async def test_of_retries(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, make: Make, proxy: Proxy, pauses: list[float]
    ) -> None:
        history = make(endpoint_url=proxy.url, fast_path=False)
        proxy.script(Fault.ERROR_500, Fault.CAPACITY)
        await history.aget_messages()
        assert self.of_level(logging.DEBUG, caplog) == [
            "GetItem: the next attempt follows (failed)",
            "GetItem: the next attempt follows (throttled)",
        ]
        [read] = map(attributes_of, telemetry.operations())
        assert read["chathistory.attempts"] == 3
