"""The fast path: what takes it, what it takes, and what it leaves to the SDK's client."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import ssl
import time
import traceback
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import aioboto3
import boto3
import botocore.session
import pytest
import trustme
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioRefreshableCredentials
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from aiobotocore.signers import AioRequestSigner
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials, RefreshableCredentials
from botocore.exceptions import ClientError, CredentialRetrievalError
from conftest import Make
from engines import Engine
from langchain_core.messages import HumanMessage
from proxy import Fault, Proxy
from samples import humans, texts
from serving import serving
from variants import AsyncVariant, CollectionVariant, Variant

from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    ConfigurationError,
    DynamoDBChatMessageHistory,
    EndpointError,
    ServiceError,
)
from chathistory_async._aws.calls import call
from chathistory_async._aws.fast_path import FastPath, NoFastPath, fast_path_beside, send_by_sdk
from chathistory_async._aws.sdk import ReadyClient
from chathistory_async._aws.signing import _keyed
from chathistory_async._request import ConditionFailed, Request

Through = Callable[..., DynamoDBChatMessageHistory]
VARIANTS = [AsyncVariant, CollectionVariant]


def by_sdk(proxy: Proxy) -> list[bool]:
    return [seen.by_sdk for seen in proxy.seen]


@asynccontextmanager
async def client_of(history: DynamoDBChatMessageHistory) -> AsyncIterator[ReadyClient]:
    async with history._spec.settings.clients.acquire() as client:
        yield client


def sdk_client(**options: Any) -> Any:
    return aioboto3.Session().client("dynamodb", **options)


async def reason_against(client: Any, session: Any = None) -> str:
    with pytest.raises(NoFastPath) as caught:
        await fast_path_beside(client, session or aioboto3.Session(), tell=pytest.fail)
    return str(caught.value)


async def test_the_calls_of_a_chat_take_it(variant: type[Variant], make: Make, proxy: Proxy) -> None:
    history = variant(make(endpoint_url=proxy.url))
    await history.add(humans(1))
    await history.add(humans(2, 3))
    assert texts(await history.read()) == ["1", "2", "3"]
    await history.clear()
    left = {"BatchWriteItem"} if variant.collection else set()
    assert {seen.operation for seen in proxy.seen if seen.by_sdk} == left
    assert len({seen.operation for seen in proxy.seen}) >= 3


class TestOff:
    """Each of these is served by the SDK's client alone."""

    async def send(self, history: DynamoDBChatMessageHistory) -> None:
        await history.aadd_messages(humans(1))
        assert texts(await history.aget_messages()) == ["1"]

    @pytest.mark.parametrize(
        "options",
        [
            {"fast_path": False},
            {"config": AioConfig(http_session_cls=type("Foreign", (AIOHTTPSession,), {}))},
            {"config": Config(retries={"total_max_attempts": 1})},
            {"config": Config(retries={"mode": "adaptive"})},
            pytest.param(
                {"config": Config(signature_version=botocore.UNSIGNED)},
                marks=pytest.mark.real_engine("moto tells services apart by the signature"),
            ),
        ],
        ids=["argument", "foreign-http-session", "one-attempt", "adaptive", "unsigned"],
    )
    async def test_by_an_option(
        self, variant: type[Variant], make: Make, proxy: Proxy, options: dict[str, Any]
    ) -> None:
        await self.send(make(endpoint_url=proxy.url, **options))
        assert set(by_sdk(proxy)) == {True}

    @pytest.mark.sampled
    @pytest.mark.parametrize("default", [Config, AioConfig])
    @pytest.mark.parametrize("kind", [AioSession, aioboto3.Session, boto3.Session])
    async def test_but_not_by_a_sessions_default_config(
        self, variant: type[Variant], make: Make, proxy: Proxy, default: Any, kind: Any
    ) -> None:
        session = session_with_default(kind, default(read_timeout=7, user_agent_extra="theirs/1"))
        history = make(endpoint_url=proxy.url, boto3_session=session, config=Config(connect_timeout=8))
        await variant(history).add(humans(1))
        assert set(by_sdk(proxy)) == {False}
        async with client_of(history) as client:
            config = client.client.meta.config
        assert (config.read_timeout, config.connect_timeout) == (7, 8)
        assert config.user_agent_extra.startswith("theirs/1 chathistory-async/")

    @pytest.mark.parametrize("rest", ["/path", "?query=1"])
    async def test_by_an_endpoint_that_is_more_than_a_host(self, make: Make, saying: Saying, rest: str) -> None:
        engine = saying(Answer({}))
        assert await make(endpoint_url=engine.url + rest).aget_messages() == []
        assert engine.seen_by_sdk == [True]

    async def test_by_a_proxy(self, make: Make, proxy: Proxy, engine: Engine) -> None:
        # It is sent the whole URL, of which it takes the path.
        await self.send(make(endpoint_url=engine.endpoint_url, config=Config(proxies={"http": proxy.url})))
        assert set(by_sdk(proxy)) == {True}

    async def test_but_not_by_a_proxy_for_others(
        self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NO_PROXY", "169.254.169.254")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        await self.send(make(endpoint_url=proxy.url))
        assert set(by_sdk(proxy)) == {False}

    async def test_where_the_certificates_are_missing_as_the_sdk_tells(
        self, through: Through, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("AWS_CA_BUNDLE", "/none-such")
        with pytest.raises(EndpointError):
            await through(attempts=2).aget_messages()
        assert not proxy.seen
        assert not [record for record in caplog.records if record.name == "chathistory_async"]

    async def test_where_the_sdk_is_not_of_the_form_that_is_known(self) -> None:
        async with sdk_client() as client:
            session = aioboto3.Session()
            assert isinstance(await fast_path_beside(client, session, pytest.fail), FastPath)

            def with_model(**metadata: Any) -> Any:
                model = SimpleNamespace(metadata=client.meta.service_model.metadata | metadata)
                meta = SimpleNamespace(endpoint_url="http://x", service_model=model, config=client.meta.config)
                return SimpleNamespace(meta=meta)

            for strange in (object(), with_model(), SimpleNamespace(meta=client.meta)):
                assert "not the known ones" in await reason_against(strange)
            for strange in (with_model(protocol="smithy-rpc-v2-cbor"), with_model(jsonVersion="1.1")):
                assert "a different protocol" in await reason_against(strange)
            assert "not the known ones" in await reason_against(client, object())

    @pytest.mark.parametrize(
        ("get_session", "reason"),
        [
            (lambda: None, "cannot make"),
            (lambda proxy: None, "cannot make"),
            (lambda proxy: asyncio.sleep(0, "another"), "a different library"),
        ],
        ids=["of-other-arguments", "not-asynchronous", "of-another-library"],
    )
    async def test_where_its_http_session_is_not_of_the_form_that_is_known(
        self, monkeypatch: pytest.MonkeyPatch, get_session: Any, reason: str
    ) -> None:
        monkeypatch.setattr(AIOHTTPSession, "_get_session", staticmethod(get_session))
        async with sdk_client() as client:
            assert reason in await reason_against(client)

    @pytest.mark.parametrize(
        "signed",
        [
            "?X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256&X-Amz-Credential=AK/20260101/dynamodb/aws4_request",
            "?Signature=x",
            "",
        ],
    )
    async def test_where_the_sdk_signs_otherwise(self, monkeypatch: pytest.MonkeyPatch, signed: str) -> None:
        async def generate_presigned_url(*_: object, **__: object) -> str:
            return f"https://dynamodb.us-east-1.amazonaws.com/{signed}"

        monkeypatch.setattr(AioRequestSigner, "generate_presigned_url", generate_presigned_url)
        async with sdk_client() as client:
            assert "not the known ones" in await reason_against(client)

    async def test_where_what_it_sends_with_changes(
        self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        history = make(endpoint_url=proxy.url)
        async with client_of(history) as client:
            fast_path: Any = client.send.__self__  # type: ignore[attr-defined]
        monkeypatch.setattr(fast_path, "_http", SimpleNamespace(dispatch=None))
        monkeypatch.setattr("chathistory_async._aws.fast_path.CLOSED_SECONDS", (0, 0))
        await self.send(history)
        assert set(by_sdk(proxy)) == {True}
        assert history.fast_path_status == (False, "aiohttp's internals are not the known ones")

    async def test_but_not_for_good_where_credentials_fail_once(self) -> None:
        class Credentials:
            failures = 1

            async def get_frozen_credentials(self) -> ReadOnlyCredentials:
                self.failures -= 1
                if self.failures >= 0:
                    raise CredentialRetrievalError(provider="sts", error_msg="try again")
                return ReadOnlyCredentials("a", "b", None)

        credentials = Credentials()

        async def get_credentials() -> Credentials:
            return credentials

        session = SimpleNamespace(get_credentials=get_credentials)
        async with sdk_client() as client:
            with pytest.raises(CredentialRetrievalError):
                await fast_path_beside(client, session, pytest.fail)
            assert isinstance(await fast_path_beside(client, session, pytest.fail), FastPath)


def session_with_default(kind: Any, config: Config) -> Any:
    core = botocore.session.Session() if kind is boto3.Session else AioSession()
    core.set_default_client_config(config)
    return core if kind is AioSession else kind(botocore_session=core)


class TestUserAgent:
    """It is that of the SDK's client, which names us."""

    async def sent(self, make: Make, saying: Saying, **options: Any) -> str:
        engine = saying(Answer({}))
        history = make(endpoint_url=engine.url, **options)
        await history.aget_messages()
        async with client_of(history) as client:
            await send_by_sdk(client.client, "get_item", {"TableName": "t", "Key": {"SessionId": {"S": "x"}}})
        assert engine.seen_by_sdk == [False, True]
        ours, theirs = (self.in_order(headers["User-Agent"]) for headers in engine.seen_headers)
        assert ours == theirs
        return ours

    def in_order(self, agent: str) -> str:
        """With the features, which are a set, in one order."""
        return re.sub(r"(?<= m/)\S+", lambda found: ",".join(sorted(found[0].split(","))), agent)

    async def test_is_the_sdks_own(self, make: Make, saying: Saying) -> None:
        agent = await self.sent(make, saying)
        assert agent.startswith("aiobotocore/")
        assert " cfg/retry-mode#legacy " in agent
        assert agent.endswith(f" chathistory-async/{version('chathistory-async')}")

    @pytest.mark.parametrize(
        ("config", "part"),
        [
            (Config(user_agent_extra="theirs/1"), " theirs/1 chathistory-async/"),
            (Config(user_agent_appid="theirs"), " app/theirs "),
            (Config(retries={"mode": "standard"}), " cfg/retry-mode#standard "),
        ],
        ids=["extra", "application", "retry-mode"],
    )
    async def test_has_what_the_user_adds(self, make: Make, saying: Saying, config: Config, part: str) -> None:
        assert part in await self.sent(make, saying, config=config)

    async def test_is_the_users_where_one_is_given(self, make: Make, saying: Saying) -> None:
        agent = await self.sent(make, saying, config=Config(user_agent="theirs/1"))
        assert agent.startswith("theirs/1 ")
        assert " chathistory-async/" in agent


class TestRegion:
    @pytest.mark.parametrize("endpoint_url", [None, "http://localhost:8000"])
    @pytest.mark.parametrize("region", ["eu-west-1", "fips-us-east-1", "cn-north-1", "local"])
    async def test_is_the_one_that_the_sdk_signs_for(self, region: str, endpoint_url: str | None) -> None:
        async with sdk_client(region_name=region, endpoint_url=endpoint_url) as client:
            fast_path = await fast_path_beside(client, aioboto3.Session(), pytest.fail)
            theirs = await client.generate_presigned_url("list_tables")
            assert f"%2F{fast_path._signer.region}%2F{fast_path._signer.service}%2F" in theirs


class TestRefusals:
    """A condition that fails costs one request, and is the SDK's own error."""

    async def errors(self, history: DynamoDBChatMessageHistory, operation: str, parameters: Any) -> list[ClientError]:
        async with client_of(history) as client:
            with pytest.raises(ClientError) as fast_path:
                await client.send(operation, parameters)
            with pytest.raises(ClientError) as sdk:
                await send_by_sdk(client.client, operation, parameters)
        return [fast_path.value, sdk.value]

    def check_alike(self, fast_path: ClientError, sdk: ClientError) -> None:
        assert type(fast_path) is type(sdk)
        assert str(fast_path) == str(sdk)
        ours: dict[str, Any] = dict(fast_path.response)
        theirs: dict[str, Any] = dict(sdk.response)
        for answer in (ours, theirs):
            metadata = answer.pop("ResponseMetadata")
            assert metadata["HTTPStatusCode"] == 400
            assert metadata["RetryAttempts"] == 0
            assert metadata["RequestId"]
            assert "content-type" in metadata["HTTPHeaders"]
        assert ours == theirs

    def put(self, table: str, session_id: str) -> dict[str, Any]:
        return {
            "TableName": table,
            "Item": {"SessionId": {"S": session_id}, "blob": {"B": b"\x00\xff"}, "nested": {"L": [{"B": b"x"}]}},
            "ConditionExpression": "attribute_not_exists(SessionId)",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    async def test_of_a_condition(self, make: Make, table: str, session_id: str, proxy: Proxy) -> None:
        history = make(endpoint_url=proxy.url)
        put = self.put(table, session_id)
        await call(history._spec.settings.clients, Request("put_item", put), history._session.access.ref)
        proxy.seen.clear()
        fast_path, sdk = await self.errors(history, "put_item", put)
        assert by_sdk(proxy) == [False, True]
        self.check_alike(fast_path, sdk)
        # Binary stays base64 text, as in the JSON, on either path.
        assert dict(fast_path.response)["Item"]["nested"] == {"L": [{"B": "eA=="}]}

    @pytest.mark.parametrize(
        ("operation", "parameters", "code"),
        [
            ("get_item", {"Key": {"other": {"S": "x"}}}, "ValidationException"),
            ("get_item", {"TableName": "none-such", "Key": {"SessionId": {"S": "x"}}}, "ResourceNotFoundException"),
        ],
    )
    async def test_of_what_cannot_be(
        self, make: Make, table: str, proxy: Proxy, operation: str, parameters: dict[str, Any], code: str
    ) -> None:
        history = make(endpoint_url=proxy.url)
        fast_path, sdk = await self.errors(history, operation, {"TableName": table} | parameters)
        assert fast_path.response["Error"]["Code"] == code
        self.check_alike(fast_path, sdk)
        # One session that outgrows its item must not slow the others down.
        await history.aget_messages()
        assert by_sdk(proxy) == [False, True, False]

    @pytest.mark.real_engine("moto tells nothing of the reasons")
    async def test_of_a_transaction(self, make: Make, table: str, session_id: str, proxy: Proxy) -> None:
        history = make(endpoint_url=proxy.url)
        put = self.put(table, session_id)
        put["Item"] = {"SessionId": {"S": session_id}}
        await call(history._spec.settings.clients, Request("put_item", put), history._session.access.ref)
        proxy.seen.clear()
        parameters = {"TransactItems": [{"Put": put}], "ClientRequestToken": str(uuid.uuid4())}
        fast_path, sdk = await self.errors(history, "transact_write_items", parameters)
        assert by_sdk(proxy) == [False, True]
        self.check_alike(fast_path, sdk)
        assert dict(fast_path.response)["CancellationReasons"][0]["Code"] == "ConditionalCheckFailed"

    @pytest.mark.parametrize(
        ("fault", "sent_before"),
        [(Fault.NONE, False), (Fault.LOST_RESPONSE, True), (Fault.LATE_ERROR, True), (Fault.CAPACITY, True)],
    )
    async def test_tell_whether_there_was_a_sending_before(
        self, through: Through, table: str, session_id: str, proxy: Proxy, fault: Fault, sent_before: bool
    ) -> None:
        history = through()
        ref = history._session.access.ref
        put = Request("put_item", self.put(table, session_id))
        await call(history._spec.settings.clients, put, ref)
        proxy.seen.clear()
        proxy.script(fault)
        with pytest.raises(ConditionFailed) as caught:
            await call(history._spec.settings.clients, put, ref)
        assert caught.value.sent_before is sent_before
        assert by_sdk(proxy) == [False, True][: 1 + sent_before]


class TestFailures:
    @pytest.mark.parametrize("fault", [Fault.CAPACITY, Fault.THROTTLED, Fault.ERROR_500, Fault.ERROR_503, Fault.RESET])
    async def test_are_tried_again_by_the_sdk_after_a_wait_each(
        self, through: Through, proxy: Proxy, pauses: list[float], fault: Fault
    ) -> None:
        history = through(attempts=3)
        await history.aget_messages()
        proxy.seen.clear()
        proxy.script(fault, fault)
        assert await history.aget_messages() == []
        assert by_sdk(proxy) == [False, True, True]
        assert len(pauses) == 2
        assert 0.05 <= pauses[0] <= 0.1

    async def test_close_it_for_a_moment(self, through: Through, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        history = through()
        monkeypatch.setattr("chathistory_async._aws.fast_path.CLOSED_SECONDS", (1000, 1000))
        proxy.script(Fault.CAPACITY)
        await asyncio.gather(*(history.aget_messages() for _ in range(3)))
        proxy.seen.clear()
        await history.aget_messages()
        assert by_sdk(proxy) == [True]
        async with client_of(history) as client:
            fast_path: Any = client.send.__self__  # type: ignore[attr-defined]
        fast_path._opens_at -= 1000
        await history.aget_messages()
        assert by_sdk(proxy) == [True, False]

    async def test_are_not_hidden(self, through: Through, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.ERROR_503
        with pytest.raises(ServiceError, match="503"):
            await through(attempts=2).aget_messages()
        assert by_sdk(proxy) == [False, True, True]

    async def test_a_wrong_checksum_is_one(self, make: Make, saying: Saying) -> None:
        damaged = Answer({"Item": {}}, {"x-amz-crc32": "1"})
        engine = saying(damaged, Answer({}))
        assert await make(endpoint_url=engine.url).aget_messages() == []
        assert engine.seen_by_sdk == [False, True]

    async def test_a_right_checksum_is_none(self, make: Make, saying: Saying) -> None:
        engine = saying(Answer({}, {"x-amz-crc32": str(zlib.crc32(b"{}"))}))
        assert await make(endpoint_url=engine.url).aget_messages() == []
        assert engine.seen_by_sdk == [False]

    @pytest.mark.parametrize("body", ["<html>Please log in</html>", [], {"Item": []}, {"please": "log in"}])
    async def test_an_answer_that_is_not_dynamodbs_is_one(self, make: Make, saying: Saying, body: Any) -> None:
        engine = saying(Answer(body), Answer({}))
        assert await make(endpoint_url=engine.url).aget_messages() == []
        assert engine.seen_by_sdk == [False, True]

    async def test_a_redirect_is_one_and_is_not_followed(self, make: Make, saying: Saying) -> None:
        elsewhere = saying(Answer({}))
        redirect = Answer({}, {"Location": elsewhere.url}, status=307)
        engine = saying(redirect, Answer({}))
        assert await make(endpoint_url=engine.url).aget_messages() == []
        assert (engine.seen_by_sdk, elsewhere.seen_by_sdk) == ([False, True], [])

    async def test_no_other_than_plain_answers_are_asked_for(self, make: Make, saying: Saying) -> None:
        # Compressed, they would have another checksum.
        engine = saying(Answer({}))
        await make(endpoint_url=engine.url).aget_messages()
        assert [headers["Accept-Encoding"] for headers in engine.seen_headers] == ["identity"]

    async def test_refused_credentials_are_one(self, make: Make, saying: Saying) -> None:
        refused = Answer({"__type": "com.amazon.coral.service#RequestExpired", "message": "no"}, status=400)
        engine = saying(refused, Answer({}))
        assert await make(endpoint_url=engine.url).aget_messages() == []
        assert engine.seen_by_sdk == [False, True]

    async def test_what_it_cannot_serialise_is_not_even_tried(self, make: Make, proxy: Proxy, table: str) -> None:
        async with client_of(make(endpoint_url=proxy.url)) as client:
            key = {"SessionId": {"S": "x"}, "blob": {"B": bytearray(b"x")}}
            await client.send("put_item", {"TableName": table, "Item": key})
        assert by_sdk(proxy) == [True]


async def test_a_body_of_megabytes_is_sent(make: Make, collection_table: str, proxy: Proxy) -> None:
    history = make(table_name=collection_table, sort_key_name="MessageId", endpoint_url=proxy.url)
    # Hardly to be compressed.
    stored = [HumanMessage(random.Random(seed).randbytes(100_000).hex()) for seed in range(10)]
    await history.aadd_messages(stored)
    assert await history.aget_messages() == stored
    assert set(by_sdk(proxy)) == {False}
    assert proxy.operations()[0] == "TransactWriteItems"


@pytest.fixture
def binary_table(engine: Engine, dynamodb: Any) -> Iterator[str]:
    name = f"binary-{uuid.uuid4().hex}"
    dynamodb.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "SessionId", "KeyType": "HASH"},
            {"AttributeName": "MessageId", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "SessionId", "AttributeType": "B"},
            {"AttributeName": "MessageId", "AttributeType": "S"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    yield name
    dynamodb.delete_table(TableName=name)


@pytest.mark.parametrize(
    ("fast_path", "fault"),
    [(True, Fault.NONE), (False, Fault.NONE), (True, Fault.ERROR_500)],
    ids=["fast", "SDK", "from-one-to-the-other"],
)
async def test_pages_go_on_under_a_binary_key(binary_table: str, proxy: Proxy, fast_path: bool, fault: Fault) -> None:
    proxy.schedule = lambda seen: fault if "ExclusiveStartKey" in seen.body and not seen.by_sdk else Fault.NONE
    async with ChatHistoryStore(binary_table, endpoint_url=proxy.url, fast_path=fast_path) as store:
        history = store.session("x", key={"SessionId": b"\x00\xff"})
        for number in range(6):
            await history.aadd_messages(humans(number))
        page = await history.apage(5)
        # A removed message counts towards a page's limit, so that one request does not find two messages.
        await history.adelete_messages([message.id for message in page.messages])
        assert texts(await history.aget_messages(limit=2)) == ["0"]
    starts = [seen.body["ExclusiveStartKey"] for seen in proxy.seen if "ExclusiveStartKey" in seen.body]
    assert [start["SessionId"] for start in starts] == [{"B": "AP8="}] * len(starts)
    assert starts


class TestTLS:
    """The fast path trusts the SDK's certificates, because it uses the SDK's connections."""

    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def secure(self, authority: trustme.CA, saying: Saying) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        return saying(Answer({}), tls=context)

    async def test_is_checked_against_the_sdks_bundle(
        self, make: Make, secure: Any, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = tmp_path / "bundle.pem"
        authority.cert_pem.write_to_path(str(bundle))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        assert await make(endpoint_url=secure.url).aget_messages() == []
        assert secure.seen_by_sdk == [False]

    async def test_of_a_stranger_is_refused(self, make: Make, secure: Any) -> None:
        with pytest.raises(EndpointError):
            await make(endpoint_url=secure.url, config=Config(retries={"total_max_attempts": 2})).aget_messages()
        assert secure.seen_by_sdk == []


SECRET, TOKEN = "S3CR3T" * 8, "T0K3N" * 20


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """The frames that whoever records an error sees: its own, and those of what it came from."""
    errors, seen = [error], set[int]()
    while errors:
        one = errors.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield from (frame for frame, _ in traceback.walk_tb(one.__traceback__))
            errors += filter(None, (one.__cause__, one.__context__))


def shown(value: object, seen: set[int]) -> Iterator[str]:
    """Yield the repr of a value, of the values in it, and of the attributes of our own objects."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield repr(value)
    held: list[object] = []
    if isinstance(value, Mapping):
        held = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        held = list(value)
    elif type(value).__module__.startswith("chathistory_async"):
        held = list(getattr(value, "__dict__", {}).values())
    for one in held:
        yield from shown(one, seen)


class TestTracebacks:
    """Trackers of errors record the local variables of a traceback's frames."""

    def check(self, error: BaseException, whose: str = "") -> None:
        frames = [frame for frame in frames_of(error) if frame.f_globals["__name__"].startswith(whose)]
        assert frames
        key = _keyed(SECRET, f"{time.strftime('%Y%m%d', time.gmtime())}/us-east-1/dynamodb/aws4_request")
        for frame in frames:
            for name, value in frame.f_locals.items():
                text = "\n".join(shown(value, set()))
                for secret in (SECRET, TOKEN, repr(key), "AWS4-HMAC-SHA256 Credential="):
                    assert secret not in text, (frame.f_code.co_name, name)

    @pytest.fixture
    def history(self, variant: type[Variant], make: Make) -> Callable[..., Variant]:
        def history(url: str, **options: Any) -> Variant:
            session = aioboto3.Session("AKID", SECRET, TOKEN)
            config = Config(retries={"total_max_attempts": 2}, read_timeout=0.3)
            return variant(make(endpoint_url=url, boto3_session=session, config=config, **options))

        return history

    @pytest.mark.sampled
    @pytest.mark.parametrize("fast_path", [True, False])
    @pytest.mark.parametrize(
        "answer",
        [
            None,
            ({"__type": "x#ValidationException", "message": "no"}, 400),
            ({"__type": "x#InternalServerError"}, 500),
            ("<html>", 200),
        ],
        ids=["connection-refused", "400", "500", "not-an-answer"],
    )
    async def test_of_failures_have_no_credentials_in_frames_of_ours(
        self, history: Callable[..., Variant], saying: Saying, fast_path: bool, answer: Any
    ) -> None:
        url = saying(Answer(answer[0], status=answer[1])).url if answer else "http://127.0.0.1:1"
        with pytest.raises(ChatHistoryError) as caught:
            await history(url, fast_path=fast_path).add(humans(1))
        self.check(caught.value, "chathistory_async")

    async def test_of_a_refusal_on_it_have_none_at_all(self, history: Callable[..., Variant], saying: Saying) -> None:
        refused = saying(Answer({"__type": "x#ValidationException", "message": "no"}, status=400))
        with pytest.raises(ChatHistoryError) as caught:
            await history(refused.url).add(humans(1))
        assert set(refused.seen_by_sdk) == {False}
        self.check(caught.value)

    @pytest.fixture
    def silent(self) -> Iterator[str]:
        """An endpoint that takes a connection and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"

    async def test_of_a_time_out_have_none_in_frames_of_ours(
        self, history: Callable[..., Variant], silent: str
    ) -> None:
        with pytest.raises(EndpointError) as caught:
            await history(silent).add(humans(1))
        self.check(caught.value, "chathistory_async")

    @pytest.mark.parametrize("fast_path", [True, False])
    async def test_of_a_cancellation_have_none_at_all(
        self, history: Callable[..., Variant], silent: str, fast_path: bool
    ) -> None:
        one: Any = history(silent, fast_path=fast_path)
        async with client_of(one.history):
            pass
        task = asyncio.create_task(one.add(humans(1)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        self.check(cancelled.value)
        with pytest.raises(asyncio.TimeoutError) as late:
            await asyncio.wait_for(one.add(humans(1)), 0.05)
        self.check(late.value)

    @pytest.mark.parametrize("kind", [AioSession, boto3.Session])
    async def test_of_a_refresh_that_fails_have_none_at_all(
        self, variant: type[Variant], make: Make, saying: Saying, kind: Any
    ) -> None:
        def refresh() -> dict[str, str]:
            raise CredentialRetrievalError(provider="sts", error_msg="no")

        expiry = datetime.now(timezone.utc) + timedelta(hours=1)
        refreshable = AioRefreshableCredentials if kind is AioSession else RefreshableCredentials
        core = AioSession() if kind is AioSession else botocore.session.Session()
        core._credentials = refreshable("AKID", SECRET, TOKEN, expiry, refresh, "sts")
        session = core if kind is AioSession else boto3.Session(botocore_session=core)
        one = variant(make(endpoint_url=saying(Answer({})).url, boto3_session=session))
        await one.add(humans(1))
        core._credentials._expiry_time = datetime.now(timezone.utc)
        with pytest.raises(ConfigurationError) as caught:
            await one.add(humans(1))
        self.check(caught.value)


class Answer:
    def __init__(self, body: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.headers = headers or {}
        self.status = status


class Saying:
    """Starts a server that gives these answers, one after the other, and the last one again and again."""

    def __init__(self) -> None:
        self.servers = ExitStack()

    def __call__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> SimpleNamespace:
        left = list(answers)
        seen_by_sdk: list[bool] = []
        seen_headers: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                seen_by_sdk.append("amz-sdk-invocation-id" in self.headers)
                seen_headers.append(self.headers)
                answer = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(answer.status)
                for name, value in {**answer.headers, "Content-Length": str(len(answer.content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, format: str, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        self.servers.enter_context(serving(server))
        url = f"http://127.0.0.1:{server.server_port}" if tls is None else f"https://localhost:{server.server_port}"
        return SimpleNamespace(url=url, seen_by_sdk=seen_by_sdk, seen_headers=seen_headers)


@pytest.fixture
def saying() -> Iterator[Saying]:
    saying = Saying()
    with saying.servers:
        yield saying
