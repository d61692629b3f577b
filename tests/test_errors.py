"""Each failure has a class of its own that names the table and the session, says what to do and keeps its cause."""

from __future__ import annotations

import json
import logging
import pickle
import re
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aioboto3
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from conftest import CREDENTIALS, Make
from langchain_core.messages import HumanMessage
from proxy import Fault, Proxy, Seen
from samples import humans, texts
from variants import AsyncVariant, EncryptedVariant, SdkVariant, SyncVariant, Variant, in_stress

from chathistory_async import (
    AccessDeniedError,
    ChatHistoryError,
    ChatHistoryStore,
    ClosedError,
    ConfigurationError,
    DynamoDBChatMessageHistory,
    EndpointError,
    ItemTooLargeError,
    KeySchemaError,
    MessageNotStorableError,
    ServiceError,
    TableNotFoundError,
    ThrottledError,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)
from chathistory_async._aws.calls import call
from chathistory_async._aws.errors import from_botocore
from chathistory_async._request import Request
from chathistory_async.errors import SessionRef

Through = Callable[..., DynamoDBChatMessageHistory]
VARIANTS = [SyncVariant, SdkVariant, *in_stress(AsyncVariant, EncryptedVariant)]
SECRET = "the launch code is 0000"
OPERATIONS = ["read", "add", "clear"]


async def attempt(history: Variant, operation: str) -> None:
    if operation == "add":
        await history.add([HumanMessage(SECRET, additional_kwargs={"nested": [SECRET]})])
    elif operation == "read":
        await history.read()
    else:
        await history.clear()


async def failure(
    kind: type[ChatHistoryError], variant: type[Variant], history: DynamoDBChatMessageHistory, operation: str = "read"
) -> ChatHistoryError:
    """The error of an operation, after the checks that hold for all of them."""
    with pytest.raises(kind) as caught:
        await attempt(variant(history), operation)
    error = caught.value
    assert type(error) is kind
    assert error.table_name == history.table_name
    assert error.session_key == history.key
    assert history.table_name in str(error)
    assert all(repr(value) in str(error) for value in history.key.values())
    assert SECRET not in str(error)
    return error


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_missing_table(variant: type[Variant], encryption: dict[str, Any], operation: str) -> None:
    error = await failure(
        TableNotFoundError, variant, DynamoDBChatMessageHistory("no-such-table", "x", **encryption), operation
    )
    assert 'create_table(), with layout="single_item" for a DynamoDBChatMessageHistory without' in str(error)
    assert isinstance(error.__cause__, ClientError)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "options",
    [{"primary_key_name": "other"}, {"key": {"SessionId": "x", "sort": "y"}}],
    ids=str,
)
async def test_wrong_key_schema(
    variant: type[Variant], encryption: dict[str, Any], table: str, options: dict[str, Any], operation: str
) -> None:
    history = DynamoDBChatMessageHistory(table, "x", **encryption, **options)
    error = await failure(KeySchemaError, variant, history, operation)
    assert "primary_key_name" in str(error)
    assert isinstance(error.__cause__, ClientError)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_single_item_in_a_table_with_a_sort_key(
    variant: type[Variant], encryption: dict[str, Any], collection_table: str, operation: str
) -> None:
    history = DynamoDBChatMessageHistory(collection_table, "x", **encryption)
    assert "sort_key_name" in str(await failure(KeySchemaError, variant, history, operation))


@pytest.mark.real_engine("moto does not check a key's type or size")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("value", [5, b"x", "x" * 2049, ""], ids=["number", "binary", "too-long", "empty"])
async def test_wrong_key_type_or_size(
    variant: type[Variant], encryption: dict[str, Any], table: str, value: Any, operation: str
) -> None:
    history = DynamoDBChatMessageHistory(table, "x", key={"SessionId": value}, **encryption)
    await failure(KeySchemaError, variant, history, operation)


class TestItemTooLarge:
    @pytest.mark.real_engine("moto counts the elements of a list twice")
    async def test_at_the_limit_what_was_stored_stays_whole(self, variant: type[Variant], make: Make) -> None:
        history = make()
        block = [HumanMessage("x" * 60_000)]
        for _ in range(6):
            await variant(history).add(block)
        with pytest.raises(ItemTooLargeError) as caught:
            await variant(history).add(block)
        assert re.search(
            r"1 messages of 60,\d{3} bytes on top of the 36\d,\d{3} bytes that are stored", str(caught.value)
        )
        assert "history_size" in str(caught.value)
        assert caught.value.session_key == history.key
        assert isinstance(caught.value.__cause__, ClientError)
        assert await variant(make()).read() == block * 6
        await variant(history).add(humans("a short one still fits"))

    @pytest.mark.real_engine("moto counts the elements of a list twice")
    async def test_is_told_even_where_the_stored_size_cannot_be_read(
        self, variant: type[Variant], through: Through, proxy: Proxy
    ) -> None:
        history = through()
        await variant(history).add([HumanMessage("x" * 300_000)])
        proxy.schedule = lambda seen: Fault.ERROR_500 if seen.operation == "GetItem" else Fault.NONE
        with pytest.raises(ItemTooLargeError, match=r"1 messages of 200,\d{3} bytes do not fit"):
            await variant(history).add([HumanMessage("x" * 200_000)])

    async def test_a_batch_that_no_item_could_hold_is_not_even_sent(
        self, variant: type[Variant], through: Through, proxy: Proxy
    ) -> None:
        with pytest.raises(ItemTooLargeError, match="nothing was written"):
            await variant(through()).add([HumanMessage("x" * 410_000)])
        assert not proxy.seen

    @pytest.mark.real_engine("moto counts the elements of a list twice")
    async def test_only_what_history_size_keeps_counts(self, variant: type[Variant], make: Make) -> None:
        history = make(history_size=2)
        await variant(history).add([HumanMessage("x" * 150_000)] * 5)
        await variant(history).add([HumanMessage("y" * 150_000)])
        assert [text[0] for text in texts(await variant(make()).read())] == ["x", "y"]


async def test_nothing_of_a_batch_with_one_refused_message_is_sent(
    variant: type[Variant], through: Through, proxy: Proxy
) -> None:
    history = through()
    batch = [*humans(*range(250)), HumanMessage("", response_metadata={"logprobs": [object()]})]
    with pytest.raises(MessageNotStorableError) as caught:
        await variant(history).add(batch)
    assert "messages[250].response_metadata.logprobs[0] cannot be stored" in str(caught.value)
    assert caught.value.session_key == history.key
    assert isinstance(caught.value, ValueError)
    assert not proxy.seen


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", [Fault.CAPACITY, Fault.THROTTLED])
async def test_throttled_beyond_the_retries(
    variant: type[Variant], through: Through, proxy: Proxy, fault: Fault, operation: str
) -> None:
    proxy.schedule = lambda seen: fault
    error = await failure(ThrottledError, variant, through(attempts=3), operation)
    # The fast path makes one attempt before the SDK's.
    assert len(proxy.seen) == 3 + variant.fast_path
    assert isinstance(error.__cause__, ClientError)


@pytest.mark.parametrize("operation", ["add", "clear"])
async def test_transactions_of_others_in_the_way_beyond_the_retries(
    variant: type[Variant],
    through: Through,
    make: Make,
    proxy: Proxy,
    item: Any,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    await variant(make()).add(humans("before"))
    before = item()
    monkeypatch.setattr("chathistory_async._aws.calls.MAX_CONFLICTS", 3)
    proxy.schedule = lambda seen: Fault.NONE if seen.operation == "GetItem" else Fault.CONFLICT
    error = await failure(WriteConflictError, variant, through(), operation)
    assert "in 3 attempts in a row" in str(error)
    assert len([name for name in proxy.operations() if name != "GetItem"]) == 3
    assert isinstance(error.__cause__, ClientError)
    assert item() == before


async def test_transactions_of_others_in_the_way_after_a_lost_answer(
    variant: type[Variant], through: Through, proxy: Proxy, item: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chathistory_async._aws.calls.MAX_CONFLICTS", 3)
    proxy.script(Fault.LOST_RESPONSE, *[Fault.CONFLICT] * 9)
    await failure(WriteOutcomeUnknownError, variant, through(), "add")
    assert item() is not None


async def test_transactions_of_others_in_the_way_after_another_guess_of_which_the_answer_was_lost(
    variant: type[Variant], through: Through, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await variant(make()).add(humans(1, 2))
    monkeypatch.setattr("chathistory_async._aws.calls.MAX_CONFLICTS", 3)
    # The guess that there is room is refused in its second sending. The first one may still arrive.
    proxy.script(Fault.RESET, Fault.NONE, *[Fault.CONFLICT] * 9)
    await failure(WriteOutcomeUnknownError, variant, through(history_size=2), "add")
    assert proxy.operations() == ["UpdateItem"] * 5


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("fault", "status"), [(Fault.ERROR_500, "500"), (Fault.ERROR_503, "503")])
async def test_failing_service(
    variant: type[Variant], through: Through, proxy: Proxy, fault: Fault, status: str, operation: str
) -> None:
    proxy.schedule = lambda seen: fault
    error = await failure(ServiceError, variant, through(attempts=2), operation)
    assert status in str(error)
    assert isinstance(error.__cause__, ClientError)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_broken_connection(variant: type[Variant], through: Through, proxy: Proxy, operation: str) -> None:
    proxy.schedule = lambda seen: Fault.RESET
    error = await failure(EndpointError, variant, through(attempts=2), operation)
    assert isinstance(error.__cause__, BotoCoreError)


async def test_unreachable_endpoint(variant: type[Variant], make: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    history = make(endpoint_url=url, config=Config(retries={"total_max_attempts": 2}))
    error = await failure(EndpointError, variant, history)
    assert url in str(error)
    assert isinstance(error.__cause__, BotoCoreError)


async def test_endpoint_that_does_not_answer(variant: type[Variant], make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        config = Config(retries={"total_max_attempts": 1}, read_timeout=0.2)
        history = make(endpoint_url=f"http://127.0.0.1:{deaf.getsockname()[1]}", config=config)
        await failure(EndpointError, variant, history)


async def test_endpoint_that_is_no_url(variant: type[Variant], make: Make) -> None:
    error = await failure(ConfigurationError, variant, make(endpoint_url="localhost:4566"))
    assert "localhost:4566" in str(error)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "body", ["<html>Please log in</html>", "[]", "null", '{"Item": 5}', "", '{"please": "log in"}']
)
async def test_an_answer_that_is_not_dynamodbs(
    variant: type[Variant], make: Make, answering: Any, body: str, operation: str
) -> None:
    error = await failure(ServiceError, variant, make(endpoint_url=answering(200, body)), operation)
    assert "check endpoint_url" in str(error)


async def test_a_condition_that_no_read_has(variant: type[Variant], make: Make, answering: Any) -> None:
    url = answering(400, '{"__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException"}')
    error = await failure(ServiceError, variant, make(endpoint_url=url), "read")
    assert "ConditionalCheckFailedException" in str(error)


DENIALS = ["AccessDeniedException", "UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException"]


@pytest.mark.parametrize("code", DENIALS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_access_denied(variant: type[Variant], make: Make, answering: Any, code: str, operation: str) -> None:
    """No local engine checks policies, so the answer is AWS's documented one, given by a stub."""
    url = answering(400, f'{{"__type": "com.amazon.coral.service#{code}", "message": "no"}}')
    error = await failure(AccessDeniedError, variant, make(endpoint_url=url), operation)
    assert code in str(error)
    assert isinstance(error.__cause__, ClientError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Invalid UpdateExpression: Incorrect operand type for operator or function; operand type: S",) * 2,
        (
            f"The parameter cannot be converted to a numeric value: {SECRET}",
            "cannot be converted to a numeric value: …",
        ),
        (f"Input collection [{SECRET}, {SECRET}] contains duplicates", "Input collection … contains duplicates"),
        (f"upper bound operand: AttributeValue: {{S:{SECRET}}}", "upper bound operand: AttributeValue: …"),
        (f"1 validation error detected: Value '{SECRET}' at 'x' failed", "1 validation error detected: Value … failed"),
        (f"{SECRET[:15]} (and so on)", "(ValidationException: …)"),
        ("The key element nested does not do", "The key element … does not do"),
        ("x " * 400, "x …)"),
    ],
    ids=["nothing", "a-value", "a-collection", "an-operand", "in-quotes", "cut-short", "a-name", "long"],
)
@pytest.mark.parametrize("fast_path", [True, False])
async def test_what_dynamodb_says_of_a_request_is_told_without_a_value_of_it(
    make: Make, answering: Any, text: str, shown: str, fast_path: bool
) -> None:
    body = {"__type": "com.amazon.coral.validate#ValidationException", "message": text}
    history = make(endpoint_url=answering(400, json.dumps(body)), fast_path=fast_path)
    with pytest.raises(ServiceError) as caught:
        await attempt(AsyncVariant(history), "add")
    assert shown in str(caught.value)
    assert SECRET[:15] not in "".join(traceback.format_exception(caught.value))


@pytest.mark.real_engine("moto accepts it")
async def test_what_an_engine_says_of_a_request_is_told(make: Make) -> None:
    clients = make()._spec.settings.clients
    parameters = {"TableName": make().table_name, "Item": {"SessionId": {"S": "x"}, "tags": {"SS": [SECRET, SECRET]}}}
    with pytest.raises(ServiceError, match=r"HTTP status 400 \(ValidationException: \w") as caught:
        await call(clients, Request("put_item", parameters), SessionRef("table"))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "SDK"])
@pytest.mark.parametrize("fault", [Fault.DENIED, Fault.RESET, Fault.ERROR_500, Fault.ERROR_503, Fault.CAPACITY])
async def test_its_cause_has_no_frames_whose_locals_hold_the_credentials(
    through: Through, proxy: Proxy, fault: Fault, fast_path: bool
) -> None:
    proxy.schedule = lambda seen: fault
    with pytest.raises(ChatHistoryError) as caught:
        await through(attempts=2, fast_path=fast_path).aget_messages()
    assert proxy.seen[0].by_sdk is not fast_path
    below = caught.value.__cause__
    assert below is not None
    while below is not None:
        assert below.__traceback__ is None
        below = below.__cause__ or below.__context__


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "SDK"])
async def test_what_the_caller_was_handling_keeps_its_frames(through: Through, proxy: Proxy, fast_path: bool) -> None:
    proxy.schedule = lambda seen: Fault.DENIED
    try:
        json.loads("no JSON")
    except ValueError as error:
        handled = error
        with pytest.raises(AccessDeniedError) as caught:
            await through(attempts=2, fast_path=fast_path).aget_messages()
    assert proxy.seen[0].by_sdk is not fast_path
    below = caught.value.__cause__
    assert below is not None
    assert below.__context__ is handled, "this test shows nothing"
    assert handled.__traceback__ is not None


@pytest.mark.parametrize("fast_path", [True, False])
async def test_what_dynamodb_says_of_a_transaction_is_told_without_a_value_of_it(
    make: Make, answering: Any, collection_table: str, fast_path: bool
) -> None:
    reasons = [{"Code": "None"}, {"Code": "ValidationError", "Message": f"No number: {SECRET}"}]
    body = {
        "__type": "#TransactionCanceledException",
        "Message": "Transaction cancelled",
        "CancellationReasons": reasons,
    }
    layout = {"table_name": collection_table, "sort_key_name": "MessageId"}
    history = make(endpoint_url=answering(400, json.dumps(body)), fast_path=fast_path, **layout)
    with pytest.raises(ServiceError, match="ValidationError: No number: …") as caught:
        # A record and the marker of its key.
        await history.aadd_messages([HumanMessage(SECRET)], idempotency_key="key")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "error",
    [UnauthorizedSSOTokenError(), SSOTokenLoadError(error_msg="x"), TokenRetrievalError(provider="sso", error_msg="x")],
)
def test_an_expired_login_of_sso_is_to_be_renewed(error: BotoCoreError) -> None:
    mapped = from_botocore(error, SessionRef("table"))
    assert type(mapped) is ConfigurationError
    assert "log in with aws sso login" in str(mapped)


@pytest.mark.parametrize(("code", "kind"), [("AccessDenied", AccessDeniedError), ("Throttling", ThrottledError)])
def test_failures_of_the_service_that_issues_a_roles_credentials(code: str, kind: type[ChatHistoryError]) -> None:
    error = ClientError({"Error": {"Code": code, "Message": "no"}}, "AssumeRole")
    mapped = from_botocore(error, SessionRef("table"))
    assert type(mapped) is kind
    assert "AssumeRole" in str(mapped)


class TestConfiguration:
    @pytest.fixture(autouse=True)
    def empty_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CREDENTIALS:
            if not name.endswith(("_FILE", "_DISABLED")):
                monkeypatch.delenv(name)

    async def test_no_credentials(self, variant: type[Variant], make: Make) -> None:
        error = await failure(ConfigurationError, variant, make(region_name="us-east-1"))
        assert "AWS_PROFILE" in str(error)
        assert isinstance(error.__cause__, BotoCoreError)

    async def test_no_credentials_in_a_boto3_session(self, variant: type[Variant], make: Make) -> None:
        session = boto3.Session(region_name="us-east-1")
        await failure(ConfigurationError, variant, make(boto3_session=session))

    async def test_no_region(self, variant: type[Variant], make: Make) -> None:
        # A client of its own: one that is open already has a region.
        error = await failure(ConfigurationError, variant, make(config=Config(user_agent_extra="no-region")))
        assert "region_name" in str(error)
        assert isinstance(error.__cause__, BotoCoreError)

    @pytest.mark.parametrize(
        "session", ["sso_start_url = https://x.test/start\nsso_region = us-east-1", "sso_session = no-such-login"]
    )
    async def test_no_login_of_sso(
        self, variant: type[Variant], make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session: str
    ) -> None:
        config = tmp_path / "config"
        config.write_text(
            f"[profile p]\nsso_account_id = 123456789012\nsso_role_name = r\n{session}\n"
            "[sso-session no-such-login]\nsso_start_url = https://x.test/start\nsso_region = us-east-1\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        for kind in (aioboto3.Session, boto3.Session):
            history = make(region_name="us-east-1", boto3_session=kind(profile_name="p"))
            error = await failure(ConfigurationError, variant, history)
            assert "log in with aws sso login" in str(error)

    async def test_no_such_profile(self, variant: type[Variant], make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        error = await failure(ConfigurationError, variant, make(region_name="eu-west-1"))
        assert "nobody" in str(error)


class TestMisuse:
    async def test_one_message_instead_of_a_list(self, variant: type[Variant], make: Make) -> None:
        with pytest.raises(TypeError, match="put the one message in a list"):
            await variant(make()).add(HumanMessage(SECRET))  # type: ignore[arg-type]

    async def test_an_iterator_instead_of_a_list(self, variant: type[Variant], make: Make) -> None:
        with pytest.raises(TypeError, match="aadd_messages takes a sequence of messages: make a list of the iterator"):
            await variant(make()).add(HumanMessage(SECRET) for _ in range(2))  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["", None])
    def test_no_table_name(self, name: Any) -> None:
        with pytest.raises(ValueError, match="table_name"):
            DynamoDBChatMessageHistory(name, "x")

    def test_a_key_that_is_no_mapping(self, make: Make) -> None:
        with pytest.raises(TypeError, match="key must map"):
            make(key="abc")

    def test_a_config_that_is_none_of_botocores(self, make: Make) -> None:
        with pytest.raises(TypeError, match="config must be a botocore Config"):
            make(config={"read_timeout": 1})

    async def test_an_empty_endpoint_is_the_sdks_choice(self, variant: type[Variant], make: Make) -> None:
        assert await variant(make(endpoint_url="")).read() == []


DAMAGED_WRITES: list[dict[str, Any]] = [
    {"S": "text"},
    {"N": "9" * 38},
    {"M": {}},
    {"SS": ["a", "b"]},
    {"L": []},
    {"L": [{"S": "a"}]},
    {"L": [{"N": "1"}, {"N": "2"}]},
    {"L": [{"L": []}, {"S": "b"}, {"S": "c"}]},
]


class TestUndecodable:
    async def test_message(self, variant: type[Variant], make: Make, update: Any) -> None:
        good = {"M": {"type": {"S": "human"}, "data": {"M": {"content": {"S": "x"}}}}}
        update(History={"L": [good] * 120 + [{"M": {"type": {"S": SECRET}, "data": {"M": {}}}}]})
        error = await failure(UndecodableItemError, variant, make())
        assert "stored message 120" in str(error)

    async def test_attribute(self, variant: type[Variant], make: Make, update: Any) -> None:
        update(History={"S": SECRET})
        assert "history_messages_key" in str(await failure(UndecodableItemError, variant, make()))

    @pytest.mark.parametrize("size", [None, 1, 50])
    async def test_attribute_to_append_to(
        self, variant: type[Variant], make: Make, update: Any, item: Any, size: int | None
    ) -> None:
        update(History={"S": SECRET})
        error = await failure(UndecodableItemError, variant, make(history_size=size), "add")
        assert "history_messages_key" in str(error)
        assert item()["History"] == {"S": SECRET}

    @pytest.mark.real_engine("moto fails with a 500 where an operand of a condition is of another type")
    @pytest.mark.parametrize("size", [None, 3])
    @pytest.mark.parametrize("damaged", DAMAGED_WRITES, ids=str)
    async def test_bookkeeping(
        self,
        variant: type[Variant],
        make: Make,
        through: Through,
        proxy: Proxy,
        update: Any,
        item: Any,
        damaged: Any,
        size: int | None,
    ) -> None:
        await variant(make()).add(humans(1))
        update(_chathistory_writes=damaged)
        before = item()
        error = await failure(UndecodableItemError, variant, through(history_size=size), "add")
        assert "_chathistory_writes" in str(error)
        assert item() == before
        assert len(proxy.seen) == 1
        assert texts(await variant(make()).read()) == ["1"]
        proxy.seen.clear()
        await variant(through()).clear()
        assert len(proxy.seen) == 2
        assert item() is None
        await variant(make()).add(humans("anew"))


class TestClosed:
    @pytest.mark.parametrize("operation", OPERATIONS)
    async def test_history(self, variant: type[Variant], make: Make, operation: str) -> None:
        history = make()
        await history.aclose()
        await history.aclose()
        assert "The chat history is closed" in str(await failure(ClosedError, variant, history, operation))

    @pytest.mark.parametrize("operation", OPERATIONS)
    async def test_store(
        self, variant: type[Variant], encryption: dict[str, Any], collection_table: str, operation: str
    ) -> None:
        async with ChatHistoryStore(collection_table, **encryption) as store:
            history = store.session("x")
        error = await failure(ClosedError, variant, history, operation)
        assert "The ChatHistoryStore is closed" in str(error)
        with pytest.raises(ClosedError):
            await store.create_table()


def every_error() -> list[type[ChatHistoryError]]:
    kinds = [ChatHistoryError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


@pytest.mark.parametrize("kind", every_error())
def test_an_error_survives_a_process_boundary(kind: type[ChatHistoryError], make: Make) -> None:
    ref = make()._session.access.ref
    error = kind("text", ref)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (kind, str(error))
    assert (back.table_name, back.session_key) == (error.table_name, error.session_key)


async def test_nothing_that_the_library_logs_or_shows_holds_content(
    variant: type[Variant], through: Through, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "chathistory_async")
    history = through()
    await attempt(variant(history), "add")
    await attempt(variant(history), "read")

    def fail(seen: Seen) -> Fault:
        return Fault.ERROR_500

    proxy.schedule = fail
    for operation in OPERATIONS:
        await failure(ServiceError, variant, history, operation)
    ours = [record for record in caplog.records if record.name.startswith("chathistory_async")]
    assert SECRET not in "".join(record.getMessage() for record in ours)
    assert SECRET not in repr(history)
    assert SECRET not in repr(history._session) + repr(history._spec.layout)
