"""The store: one table, its clients, its handles."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from botocore.config import Config
from conftest import Make
from langchain_core.messages import HumanMessage
from proxy import Fault, Proxy, Seen
from samples import humans, texts

from chathistory_async import (
    ChatHistoryStore,
    ConfigurationError,
    DynamoDBChatMessageHistory,
    KeySchemaError,
    ServiceError,
    TableNotFoundError,
)
from chathistory_async._aws import table
from chathistory_async._aws.clients import _open_holders


@pytest.fixture
async def name(dynamodb: Any) -> AsyncIterator[str]:
    """The name of a table that does not exist yet, and will not any more."""
    name = f"store-{uuid.uuid4().hex}"
    yield name
    async with ChatHistoryStore(name) as store:
        await store.delete_table()


@pytest.mark.parametrize("kind", [ChatHistoryStore, DynamoDBChatMessageHistory])
def test_a_default_that_cannot_be_called_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="default must be a function or None, not str"):
        kind("T", **({} if kind is ChatHistoryStore else {"session_id": "s"}), default="str")


@pytest.mark.parametrize(
    ("options", "schema"),
    [
        ({"sort_key_name": "sk"}, {"pk": "HASH", "sk": "RANGE"}),
        ({}, {"pk": "HASH", "MessageId": "RANGE"}),
        ({"layout": "single_item"}, {"pk": "HASH"}),
    ],
)
async def test_create_table_makes_what_the_handles_need(
    name: str, dynamodb: Any, options: dict[str, Any], schema: dict[str, str]
) -> None:
    async with ChatHistoryStore(name, primary_key_name="pk", ttl_key_name="goneAt", **options) as store:
        await store.create_table()
        await store.session("a").aadd_messages(humans(1))
        assert texts(await store.session("a").aget_messages()) == ["1"]
    description = dynamodb.describe_table(TableName=name)["Table"]
    assert {part["AttributeName"]: part["KeyType"] for part in description["KeySchema"]} == schema
    assert {part["AttributeName"]: part["AttributeType"] for part in description["AttributeDefinitions"]} == (
        dict.fromkeys(schema, "S")
    )
    assert description["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    ttl = dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "goneAt")


async def test_create_table_with_options(name: str, dynamodb: Any, kms_key: str) -> None:
    async with ChatHistoryStore(name) as store:
        for _ in range(2):
            await store.create_table(point_in_time_recovery=True, table_kms_key_id=kms_key, tags={"team": "chat"})
    description = dynamodb.describe_table(TableName=name)["Table"]
    assert description["SSEDescription"]["KMSMasterKeyArn"] == kms_key
    backups = dynamodb.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]
    assert backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"
    assert dynamodb.list_tags_of_resource(ResourceArn=description["TableArn"])["Tags"] == [
        {"Key": "team", "Value": "chat"}
    ]


def test_its_settings_can_be_read() -> None:
    store = ChatHistoryStore("Chats", primary_key_name="Id", session_index=True)
    assert (store.table_name, store.primary_key_name) == ("Chats", "Id")
    assert (store.layout, store.session_index) == ("item_collection", True)
    single = ChatHistoryStore("Chats", layout="single_item")
    assert (single.layout, single.session_index) == ("single_item", False)


def test_there_are_two_layouts() -> None:
    unknown: Any = "items"
    with pytest.raises(ValueError, match='layout must be "item_collection" or "single_item"'):
        ChatHistoryStore("table", layout=unknown)
    assert ChatHistoryStore("table").session("s").sort_key_name == "MessageId"
    assert ChatHistoryStore("table", layout="single_item").session("s").sort_key_name is None


async def test_create_table_again_changes_nothing(name: str) -> None:
    async with ChatHistoryStore(name) as store:
        await store.create_table()
        await store.session("a").aadd_messages(humans(1))
        await store.create_table()
        assert texts(await store.session("a").aget_messages()) == ["1"]


async def test_many_may_create_the_table_at_once(name: str, dynamodb: Any) -> None:
    stores = [ChatHistoryStore(name) for _ in range(5)]
    await asyncio.gather(*(store.create_table() for store in stores))
    await asyncio.gather(*(store.aclose() for store in stores))
    assert dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]["TimeToLiveStatus"] == "ENABLED"


async def test_a_table_with_another_key_is_left_alone(name: str) -> None:
    async with ChatHistoryStore(name, primary_key_name="pk") as store, ChatHistoryStore(name) as other:
        await store.create_table()
        with pytest.raises(KeySchemaError, match=r"exists with the key pk \(HASH, S\), MessageId .* not SessionId"):
            await other.create_table()
    async with ChatHistoryStore(name, primary_key_name="pk", layout="single_item") as single:
        with pytest.raises(KeySchemaError, match=r"MessageId \(RANGE, S\), not pk \(HASH, S\)"):
            await single.create_table()


async def test_a_table_with_ttl_on_another_attribute_is_left_alone(name: str, dynamodb: Any) -> None:
    async with ChatHistoryStore(name, ttl_key_name="goneAt") as store, ChatHistoryStore(name) as other:
        await store.create_table()
        with pytest.raises(ConfigurationError, match="TTL is on the attribute 'goneAt', not on 'expireAt'"):
            await other.create_table()
    assert dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]["AttributeName"] == "goneAt"


async def test_a_failing_create_table_is_an_error(name: str, proxy: Proxy) -> None:
    proxy.schedule = lambda seen: Fault.ERROR_500 if seen.operation == "CreateTable" else Fault.NONE
    config = Config(retries={"total_max_attempts": 2})
    async with ChatHistoryStore(name, endpoint_url=proxy.url, config=config) as store:
        with pytest.raises(ServiceError):
            await store.create_table()


async def test_delete_table_is_idempotent(name: str, dynamodb: Any) -> None:
    async with ChatHistoryStore(name) as store:
        await store.delete_table()
        await store.create_table()
        await store.delete_table()
        assert name not in dynamodb.list_tables()["TableNames"]
        with pytest.raises(TableNotFoundError):
            await store.session("a").aget_messages()


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Has create_table and delete_table wait in no time, by a clock of their own; returns how long they waited."""
    waited = list[float]()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(table, "sleep", sleep)
    monkeypatch.setattr(table, "monotonic", lambda: sum(waited))
    return waited


def in_turn(proxy: Proxy, *changes: Callable[[dict[str, Any]], object]) -> None:
    """Change the next answers to DescribeTable that say that there is the table, one by one."""
    left = list(changes)

    def edit(seen: Seen, answer: dict[str, Any]) -> dict[str, Any]:
        if seen.operation == "DescribeTable" and "Table" in answer and left:
            left.pop(0)(answer["Table"])
        return answer

    proxy.edit = edit


def is_being_built(table: dict[str, Any]) -> None:
    table["GlobalSecondaryIndexes"][0] |= {"IndexStatus": "CREATING", "Backfilling": True}
    table["ItemCount"] = 12_345_678


async def test_create_table_waits_for_the_index_without_a_limit_and_tells_the_log(
    name: str, proxy: Proxy, waited: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    in_turn(proxy, *[is_being_built] * 40)
    with caplog.at_level(logging.INFO, "chathistory_async"):
        async with ChatHistoryStore(name, endpoint_url=proxy.url, session_index=True) as store:
            await store.create_table()
            await store.session("a", owner="b").aadd_messages(humans(1))
    assert sum(waited) > 500
    assert waited == sorted(waited)
    assert (waited[0], waited[-1]) == (0.5, 15)
    progress = [record for record in caplog.records if "SessionsByOwner" in record.getMessage()]
    assert len(progress) >= 39
    assert {(record.name, record.levelname) for record in progress} == {("chathistory_async", "INFO")}
    told = progress[-1].getMessage()
    assert f"Waiting for table '{name}' (" in told
    assert "'SessionsByOwner' is CREATING: AWS fills it with the table's items (the table has 12,345,678 items" in told


async def test_create_table_waits_as_long_as_it_is_told(
    name: str, proxy: Proxy, waited: list[float], dynamodb: Any
) -> None:
    async with ChatHistoryStore(name, endpoint_url=proxy.url, session_index=True) as store:
        in_turn(proxy, *[is_being_built] * 100)
        with pytest.raises(
            ServiceError, match=r"index 'SessionsByOwner' is CREATING.* after 60 s.*AWS continues"
        ) as caught:
            await store.create_table(wait_seconds=60)
        assert sum(waited) == 60
        assert f"aws dynamodb describe-table --table-name {name}" in str(caught.value)
        with pytest.raises(ServiceError, match="after 0 s"):
            await store.create_table(wait_seconds=0)
        in_turn(proxy)
        await store.create_table(wait_seconds=0)
        for wrong in (-1, float("nan")):
            with pytest.raises(ValueError, match="wait_seconds must be at least 0, or None, not"):
                await store.create_table(wait_seconds=wrong)
    assert dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]["TimeToLiveStatus"] == "ENABLED"


async def test_create_table_after_a_table_that_is_being_deleted(
    name: str, proxy: Proxy, waited: list[float], dynamodb: Any
) -> None:
    async with ChatHistoryStore(name, endpoint_url=proxy.url) as store:
        await store.create_table()

        def delete(table: dict[str, Any]) -> None:
            table["TableStatus"] = "DELETING"

        def gone(table: dict[str, Any]) -> None:
            delete(table)
            dynamodb.delete_table(TableName=name)

        in_turn(proxy, delete, delete, gone)
        await store.create_table()
        assert texts(await store.session("a").aget_messages()) == []
    assert len(waited) >= 3
    assert proxy.operations().count("CreateTable") == 2


async def test_create_table_does_not_wait_for_what_will_not_come(name: str, proxy: Proxy, waited: list[float]) -> None:
    async with ChatHistoryStore(name, endpoint_url=proxy.url) as store:
        await store.create_table()
        in_turn(proxy, lambda table: table.update(TableStatus="INACCESSIBLE_ENCRYPTION_CREDENTIALS"))
        before = len(waited)
        with pytest.raises(ServiceError, match="The table is INACCESSIBLE_ENCRYPTION_CREDENTIALS"):
            await store.create_table()
        assert len(waited) == before


async def test_an_index_that_is_being_deleted_is_added_again(name: str, proxy: Proxy, waited: list[float]) -> None:
    async with ChatHistoryStore(name) as without:
        await without.create_table()
    async with ChatHistoryStore(name, endpoint_url=proxy.url, session_index=True) as store:
        index = {"IndexName": "SessionsByOwner", "IndexStatus": "DELETING", "Projection": {"ProjectionType": "ALL"}}
        is_being_deleted: list[Callable[[dict[str, Any]], object]]
        is_being_deleted = [lambda table: table.update(GlobalSecondaryIndexes=[index])] * 3
        in_turn(proxy, *is_being_deleted)
        await store.create_table()
        assert len(waited) >= 2
        assert proxy.operations().count("UpdateTable") == 1
        assert (await store.list_sessions("alice", 1)).sessions == []


async def test_delete_table_waits_as_long_as_it_is_told(
    name: str, answering: Callable[[int, str], str], waited: list[float]
) -> None:
    url = answering(200, '{"Table": {"TableStatus": "DELETING", "TableId": "1"}}')
    async with ChatHistoryStore(name, endpoint_url=url) as store:
        with pytest.raises(ServiceError, match="the table is still there after 600 s"):
            await store.delete_table(wait_seconds=600)
    assert sum(waited) == 600


async def test_delete_table_does_not_wait_for_another_table_of_its_name(
    name: str, proxy: Proxy, waited: list[float]
) -> None:
    async with ChatHistoryStore(name, endpoint_url=proxy.url) as store:
        await store.create_table()
        in_turn(proxy, lambda table: table.update(TableStatus="DELETING", TableId="the one before"))
        await store.delete_table()
        assert await store.session("a").aget_messages() == []


async def test_its_settings_hold_for_its_handles(collection_table: str, session_id: str, proxy: Proxy) -> None:
    settings: dict[str, Any] = {"ttl": 60, "ttl_key_name": "goneAt", "history_size": 2, "history_messages_key": "M"}
    async with ChatHistoryStore(collection_table, endpoint_url=proxy.url, consistent_read=False, **settings) as store:
        history = store.session(session_id)
        assert isinstance(history, DynamoDBChatMessageHistory)
        assert {name: getattr(history, name) for name in settings} == settings
        assert (history.session_id, history.key) == (session_id, {"SessionId": session_id})
        await history.aadd_messages(humans(1, 2, 3))
        assert texts(await history.aget_messages()) == ["2", "3"]
    assert proxy.seen[-1].body["ConsistentRead"] is False


async def test_at_run_time_only_items_are_asked_for(collection_table: str, session_id: str, proxy: Proxy) -> None:
    async with ChatHistoryStore(collection_table, endpoint_url=proxy.url, history_size=2) as store:
        history = store.session(session_id)
        for number in range(8):
            await history.aadd_messages(humans(number, number))
            await history.aget_messages()
        page = await history.apage(2)
        await history.areplace_message(page.messages[0].id, HumanMessage("other"))
        await history.apop_message()
        # A record that has no more messages, and one that has an idempotency key beside it.
        await history.adelete_messages([stored.id for stored in page.messages])
        await history.aadd_messages(humans(1), idempotency_key="key")
        await history.aclear()
    reads, writes = {"Query", "GetItem"}, {"PutItem", "TransactWriteItems", "UpdateItem", "BatchWriteItem"}
    assert set(proxy.operations()) == reads | writes


async def test_entering_it_opens_the_client_but_sends_nothing(collection_table: str, proxy: Proxy) -> None:
    async with ChatHistoryStore(collection_table, endpoint_url=proxy.url) as store:
        assert set(store._settings.clients._holders.values()) <= _open_holders
        assert store._settings.clients._holders
    assert not proxy.seen


async def test_closing_a_handle_leaves_the_stores_client_open(collection_table: str, session_id: str) -> None:
    async with ChatHistoryStore(collection_table) as store:
        async with store.session(session_id) as history:
            await history.aadd_messages(humans(1))
        assert texts(await store.session(session_id).aget_messages()) == ["1"]


def test_the_synchronous_variant_needs_no_loop(collection_table: str, session_id: str) -> None:
    store = ChatHistoryStore(collection_table)
    store.session(session_id).add_user_message("x")
    assert texts(store.session(session_id).messages) == ["x"]
    store.close()


def test_repr_names_the_table(collection_table: str) -> None:
    assert repr(ChatHistoryStore(collection_table)) == f"<ChatHistoryStore table '{collection_table}'>"


@pytest.mark.parametrize("option", [{"ttl": 0}, {"history_size": -1}, {"ttl_key_name": "SessionId"}])
def test_wrong_settings_are_refused_at_once(collection_table: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|Two attributes"):
        ChatHistoryStore(collection_table, **option)


async def test_a_handle_has_the_same_place_in_the_table_as_one_without_a_store(
    table: str, session_id: str, make: Make
) -> None:
    async with ChatHistoryStore(table, layout="single_item") as store:
        await store.session(session_id).aadd_messages(humans(1))
    assert texts(await make().aget_messages()) == ["1"]


async def test_a_store_that_cannot_reach_its_endpoint_opens_all_the_same(collection_table: str, proxy: Proxy) -> None:
    """Start-up does not depend on DynamoDB: the first request will say what is wrong."""
    proxy.schedule = lambda seen: Fault.RESET
    async with ChatHistoryStore(collection_table, endpoint_url=proxy.url):
        assert not proxy.seen
