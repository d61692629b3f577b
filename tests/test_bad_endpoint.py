"""An endpoint that stalls, trickles, floods or goes round in circles: a call ends, within bounds of time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
import pytest
from aiobotocore.credentials import AioCredentialResolver
from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.credentials import CredentialProvider
from conftest import Make
from langchain_core.messages import HumanMessage
from samples import humans, texts
from variants import CollectionVariant, SdkCollectionVariant, Variant

from chathistory_async import (
    ChatHistoryStore,
    DynamoDBChatMessageHistory,
    EndpointError,
    ServiceError,
    WriteConflictError,
)

VARIANTS = [CollectionVariant, SdkCollectionVariant]
pytestmark = pytest.mark.usefixtures("fast_path_always_open", "no_minimum")
# All attempts of a call may take half a second together.
BRIEF = Config(connect_timeout=0.1, read_timeout=0.15, retries={"total_max_attempts": 2})
# So long that a busy machine cannot keep a test from doing something else before.
PATIENT = Config(retries={"total_max_attempts": 2})

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def no_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chathistory_async._aws.sdk.MIN_CALL_SECONDS", 0)


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """A server on the test's own loop that ends its connections with itself."""
    tasks = set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    # A connection that was made a moment ago begins first, and is closed with the others.
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def request_in(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """Read a request: its operation, in lower case, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    return headers["x-amz-target"].split(".")[1], json.loads(await reader.readexactly(int(headers["content-length"])))


def answer(body: bytes | str, *, status: int = 200, headers: str = "") -> bytes:
    content = body if isinstance(body, bytes) else body.encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode() + content


def session_with(load: Callable[[], Awaitable[None]]) -> AioSession:
    """Return a session whose credentials a function has to give."""

    class Provider(CredentialProvider):  # type: ignore[misc]  # botocore is not typed
        METHOD = "function"

        async def load(self) -> None:
            await load()

    session = AioSession()
    session.register_component("credential_provider", AioCredentialResolver([Provider()]))
    session.set_config_variable("region", "us-east-1")
    return session


async def never() -> None:
    await asyncio.Event().wait()


async def too_late() -> None:
    raise asyncio.TimeoutError


@pytest.mark.parametrize("load", [never, too_late])
async def test_a_store_that_is_opened_does_not_wait_for_credentials(load: Callable[[], Awaitable[None]]) -> None:
    store = ChatHistoryStore("table", boto3_session=session_with(load), config=BRIEF)
    with pytest.raises(EndpointError, match=r"took too long: .* or the credential provider") as caught:
        await asyncio.wait_for(store.__aenter__(), 10)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__traceback__ is None


class TestStalling:
    async def trickle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.02)

    async def hold_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def half_close(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await asyncio.Event().wait()

    async def test_a_byte_now_and_then_is_no_answer(self, variant: type[Variant], make: Make) -> None:
        async with serving(self.trickle) as url:
            for operation in (variant.read, variant.clear, lambda history: history.add(humans(1))):
                with pytest.raises(EndpointError, match="took too long") as caught:
                    await operation(variant(make(endpoint_url=url, config=BRIEF)))
                assert caught.value.session_key == make().key

    @pytest.mark.parametrize("serve", ["hold_back", "half_close"])
    async def test_what_is_never_read_is_not_sent_for_ever(
        self, variant: type[Variant], make: Make, serve: str
    ) -> None:
        """aiohttp has no time-out for the sending of a request, and none at all once the other side has half closed."""
        messages = [HumanMessage(random.Random(seed).randbytes(450_000).hex()) for seed in range(7)]
        async with serving(getattr(self, serve)) as url:
            with pytest.raises(EndpointError):
                await variant(make(endpoint_url=url, config=BRIEF)).add(messages)

    @pytest.mark.parametrize("load", [never, too_late])
    async def test_credentials_that_never_come_are_not_waited_for(
        self, variant: type[Variant], make: Make, load: Callable[[], Awaitable[None]]
    ) -> None:
        core = session_with(load)
        for session in (core, aioboto3.Session(botocore_session=core)):
            with pytest.raises(EndpointError, match=r"took too long: .* or the credential provider") as caught:
                await asyncio.wait_for(variant(make(boto3_session=session, config=BRIEF)).read(), 10)
            assert caught.value.session_key == make().key

    async def test_conflicts_without_end_are_not_waited_out(self, variant: type[Variant], make: Make) -> None:
        requests = 0

        async def conflict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests
            kind = "com.amazonaws.dynamodb.v20120810#TransactionConflictException"
            while True:
                await request_in(reader)
                requests += 1
                await asyncio.sleep(0.1)
                writer.write(answer(json.dumps({"__type": kind, "message": "no"}), status=400))

        two_seconds = Config(connect_timeout=0.5, read_timeout=0.5, retries={"total_max_attempts": 2})
        async with serving(conflict) as url:
            with pytest.raises(EndpointError, match="took too long"):
                await variant(make(endpoint_url=url, config=two_seconds)).clear()
        assert 1 < requests < 25, "each of 50 attempts would take less than a time-out"

    async def test_a_cancellation_stays_one(self, variant: type[Variant], make: Make) -> None:
        async with serving(self.trickle) as url:
            task = asyncio.create_task(variant(make(endpoint_url=url, config=PATIENT)).read())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(variant(make(endpoint_url=url, config=PATIENT)).read(), 0.1)

    async def test_a_connection_that_was_closed_is_not_waited_for(self, variant: type[Variant], make: Make) -> None:
        connections = 0

        async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await request_in(reader)
            writer.write(answer('{"Items": [], "Count": 0}'))
            if connections % 2:
                # Half: what comes after that is not even read.
                writer.write_eof()
                await asyncio.Event().wait()

        async with serving(answer_once) as url:
            history = variant(make(endpoint_url=url, config=Config(retries={"total_max_attempts": 4})))
            for number in range(6):
                assert await asyncio.wait_for(history.read(), 4) == []
                assert connections == number + 1
                await asyncio.sleep(0.05)


class TestLongestCall:
    """A call ends after a minute, or when all attempts that the configuration allows could have ended."""

    @pytest.mark.parametrize(
        ("config", "seconds"),
        [
            (None, 10 * 8.1),
            (Config(retries={"total_max_attempts": 3}), 60),
            (Config(retries={"mode": "standard"}), 10 * 8.1),
            (Config(retries={"max_attempts": 19}), 20 * 8.1),
            (Config(read_timeout=100, connect_timeout=20), 10 * 120),
            (Config(read_timeout=600, retries={"total_max_attempts": 1}), 603.1),
            (Config(read_timeout=None), None),
        ],
        ids=["default", "few", "standard", "many", "patient", "once", "unbounded"],
    )
    async def test_is_as_long_as(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, config: Config | None, seconds: float | None
    ) -> None:
        monkeypatch.undo()
        async with make(config=config)._spec.settings.clients.acquire() as client:
            assert client.longest_call_seconds == (seconds if seconds is None else pytest.approx(seconds))


class TestFlooding:
    async def flood(self, head: bytes, piece: bytes, sent: list[int]) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request_in(reader)
            writer.write(head)
            for _ in range(300):
                writer.write(piece)
                await writer.drain()
                sent[0] += len(piece)

        return serve

    @pytest.mark.parametrize(
        ("head", "frame"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 314572800\r\n\r\n", b"%s"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"100000\r\n%s\r\n"),
            (b"HTTP/1.1 200 OK\r\n\r\n", b"%s"),
            (b"HTTP/1.1 400 Bad\r\nContent-Length: 314572800\r\n\r\n", b"%s"),
        ],
        ids=["of-a-length", "in-chunks", "until-the-end", "of-an-error"],
    )
    async def test_is_read_up_to_a_bound(
        self, variant: type[Variant], make: Make, monkeypatch: pytest.MonkeyPatch, head: bytes, frame: bytes
    ) -> None:
        monkeypatch.setattr("chathistory_async._aws.bounded.MAX_ANSWER_BYTES", 2**21)
        sent = [0]
        async with serving(await self.flood(head, frame % (b" " * 2**20), sent)) as url:
            history = make(endpoint_url=url, config=Config(retries={"total_max_attempts": 2}))
            with pytest.raises(ServiceError):
                await variant(history).read()
        # On each of the paths, with what is on its way.
        assert sent[0] < 40 * 2**20

    async def test_is_not_unpacked(self, variant: type[Variant], make: Make) -> None:
        packed = gzip.compress(json.dumps({"Items": [], "x": "x" * 50_000_000}).encode())

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await request_in(reader)
                writer.write(answer(packed, headers="Content-Encoding: gzip\r\n"))

        async with serving(serve) as url:
            with pytest.raises(ServiceError, match="check endpoint_url"):
                await variant(make(endpoint_url=url)).read()

    @pytest.mark.parametrize("status", [201, 204, 206])
    async def test_another_success_is_none(self, variant: type[Variant], make: Make, status: int) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await request_in(reader)
                writer.write(f"HTTP/1.1 {status} X\r\n\r\n".encode() if status == 204 else answer("{}", status=status))

        async with serving(serve) as url:
            with pytest.raises(ServiceError, match="check endpoint_url"):
                await variant(make(endpoint_url=url)).add(humans(1))


def key(session_id: str, at: str) -> dict[str, Any]:
    return {"SessionId": {"S": session_id}, "MessageId": {"S": at}}


OF_THE_INDEX = {"Owner": {"S": "x"}, "LastActive": {"S": "2026"}}


class TestGoingRoundInCircles:
    """Pages of a query or scan that lead to no end."""

    @asynccontextmanager
    async def pages(self, last_keys: list[Any]) -> AsyncIterator[str]:
        left = list(last_keys)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await request_in(reader)
                last = left.pop(0)
                left.append(last)
                writer.write(answer(json.dumps({"Items": [], "Count": 0, "LastEvaluatedKey": last})))

        async with serving(serve) as url:
            yield url

    @pytest.mark.parametrize(
        "places",
        [["m#1"], ["m#2", "m#1"], ["m#1", "m#3", "m#2"], ["a"], ["z"], [None], [{}], [{"MessageId": 5}]],
        ids=str,
    )
    async def test_end_where_they_do_not_advance(
        self, variant: type[Variant], make: Make, session_id: str, places: list[Any]
    ) -> None:
        last_keys = [key(session_id, place) if not isinstance(place, dict) else place for place in places]

        async def stream(history: DynamoDBChatMessageHistory) -> None:
            async for _ in history.aiter():
                pass

        async with self.pages(last_keys) as url:
            for operation in (
                DynamoDBChatMessageHistory.aget_messages,
                lambda history: history.aget_messages(limit=3),
                stream,
                lambda history: history.apage(3),
                DynamoDBChatMessageHistory.aclear,
            ):
                with pytest.raises(ServiceError, match="check endpoint_url"):
                    await operation(make(endpoint_url=url))

    async def test_end_where_they_advance_and_never_have_anything(
        self, variant: type[Variant], make: Make, session_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chathistory_async._session.MAX_EMPTY_PAGES", 20)
        forward = [key(session_id, f"m#{number:04}") for number in range(90)]
        for operation, places in (
            (DynamoDBChatMessageHistory.aget_messages, forward),
            (lambda history: history.aget_messages(limit=3), forward[::-1]),
            (lambda history: history.apage(3), forward[::-1]),
            (DynamoDBChatMessageHistory.apop_message, forward[::-1]),
            (DynamoDBChatMessageHistory.aclear, forward),
        ):
            async with self.pages(places) as url:
                with pytest.raises(ServiceError, match="check endpoint_url"):
                    await operation(make(endpoint_url=url))
        sessions = [key(f"{number}", "session") | OF_THE_INDEX for number in range(90)]
        async with self.pages(sessions) as url:
            async with ChatHistoryStore("t", endpoint_url=url, session_index=True) as store:
                with pytest.raises(ServiceError, match="check endpoint_url"):
                    await store.list_sessions("x")
            async with ChatHistoryStore("t", endpoint_url=url, layout="single_item") as source:
                with pytest.raises(ServiceError, match="check endpoint_url"):
                    assert [one async for one in source.scan_session_ids()]

    async def test_of_sessions_and_of_a_scan_end_too(self) -> None:
        last = key("x", "session") | OF_THE_INDEX
        async with self.pages([last]) as url:
            async with ChatHistoryStore("t", endpoint_url=url, session_index=True) as store:
                for operation in (store.list_sessions("x", limit=3), store.purge_owner("x")):
                    with pytest.raises(ServiceError, match="check endpoint_url"):
                        await operation
            async with ChatHistoryStore("t", endpoint_url=url, layout="single_item") as source:
                with pytest.raises(ServiceError, match="check endpoint_url"):
                    assert [one async for one in source.scan_session_ids()]


async def test_sessions_that_are_there_again_are_not_deleted_for_ever(
    collection_table: str, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chathistory_async._session_index.listing.MAX_ATTEMPTS", 3)
    async with ChatHistoryStore(collection_table, session_index=True) as store:
        await store.session(session_id, owner="x").aadd_messages(humans(1))
        request = {"TableName": collection_table, "Key": key(session_id, "session")}
        async with store._settings.clients.acquire() as client:
            session = (await client.send("get_item", request))["Item"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            operation, body = await request_in(reader)
            items = [session] if "IndexName" in body else []
            answers: dict[str, Any] = {"query": {"Items": items, "Count": len(items)}, "getitem": {"Item": session}}
            writer.write(answer(json.dumps(answers.get(operation, {}))))

    async with (
        serving(serve) as url,
        ChatHistoryStore(collection_table, endpoint_url=url, session_index=True) as store,
    ):
        with pytest.raises(WriteConflictError, match="existed again"):
            await store.purge_owner("x")


async def test_pages_that_do_advance_are_read(variant: type[Variant], make: Make, session_id: str) -> None:
    left = [key(session_id, f"m#{number}") for number in range(5)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_in(reader)
            page: dict[str, Any] = {"Items": [], "Count": 0}
            writer.write(answer(json.dumps(page | ({"LastEvaluatedKey": left.pop(0)} if left else {}))))

    async with serving(serve) as url:
        assert texts(await variant(make(endpoint_url=url)).read()) == []
    assert left == []
