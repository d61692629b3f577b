"""The store: one table, its clients, its handles."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.config import Config
from conftest import Make
from proxy import Fault, Proxy
from samples import humans, texts

from chathistory_async import (
    ChatHistoryStore,
    ConfigurationError,
    DynamoDBChatMessageHistory,
    KeySchemaError,
    ServiceError,
    TableNotFoundError,
)
from chathistory_async._clients import _open_slots


@pytest.fixture
async def name(dynamodb: Any) -> AsyncIterator[str]:
    """The name of a table that does not exist yet, and will not any more."""
    name = f"store-{uuid.uuid4().hex}"
    yield name
    async with ChatHistoryStore(name) as store:
        await store.delete_table()


async def test_create_table_makes_what_the_handles_need(name: str, dynamodb: Any) -> None:
    async with ChatHistoryStore(name, primary_key_name="pk", ttl_key_name="goneAt") as store:
        await store.create_table()
        await store.session("a").aadd_messages(humans(1))
        assert texts(await store.session("a").aget_messages()) == ["1"]
    description = dynamodb.describe_table(TableName=name)["Table"]
    assert description["KeySchema"] == [{"AttributeName": "pk", "KeyType": "HASH"}]
    assert description["AttributeDefinitions"] == [{"AttributeName": "pk", "AttributeType": "S"}]
    assert description["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    ttl = dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "goneAt")


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
        with pytest.raises(KeySchemaError, match=r"exists with the key pk \(HASH, S\), not SessionId \(HASH, S\)"):
            await other.create_table()


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


async def test_its_settings_hold_for_its_handles(table: str, session_id: str, proxy: Proxy) -> None:
    settings: dict[str, Any] = {"ttl": 60, "ttl_key_name": "goneAt", "history_size": 2, "history_messages_key": "M"}
    async with ChatHistoryStore(table, endpoint_url=proxy.url, consistent_read=False, **settings) as store:
        history = store.session(session_id)
        assert isinstance(history, DynamoDBChatMessageHistory)
        assert {name: getattr(history, name) for name in settings} == settings
        assert (history.session_id, history.key) == (session_id, {"SessionId": session_id})
        await history.aadd_messages(humans(1, 2, 3))
        assert texts(await history.aget_messages()) == ["2", "3"]
    assert proxy.seen[-1].body["ConsistentRead"] is False


async def test_at_run_time_only_items_are_asked_for(table: str, session_id: str, proxy: Proxy) -> None:
    async with ChatHistoryStore(table, endpoint_url=proxy.url) as store:
        history = store.session(session_id)
        await history.aadd_messages(humans(1))
        await history.aget_messages()
        await history.aclear()
    assert set(proxy.operations()) == {"UpdateItem", "GetItem", "DeleteItem"}


async def test_entering_it_opens_the_client_but_sends_nothing(table: str, proxy: Proxy) -> None:
    async with ChatHistoryStore(table, endpoint_url=proxy.url) as store:
        assert set(store._clients._slots.values()) <= _open_slots
        assert store._clients._slots
    assert not proxy.seen


async def test_closing_a_handle_leaves_the_stores_client_open(table: str, session_id: str) -> None:
    async with ChatHistoryStore(table) as store:
        async with store.session(session_id) as history:
            await history.aadd_messages(humans(1))
        assert texts(await store.session(session_id).aget_messages()) == ["1"]


def test_the_synchronous_face_needs_no_loop(table: str, session_id: str) -> None:
    store = ChatHistoryStore(table)
    store.session(session_id).add_user_message("x")
    assert texts(store.session(session_id).messages) == ["x"]
    store.close()


def test_repr_names_the_table(table: str) -> None:
    assert repr(ChatHistoryStore(table)) == f"<ChatHistoryStore table '{table}'>"


@pytest.mark.parametrize("option", [{"ttl": 0}, {"history_size": -1}, {"ttl_key_name": "SessionId"}])
def test_wrong_settings_are_refused_at_once(table: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        ChatHistoryStore(table, **option)


async def test_a_handle_has_the_same_place_in_the_table_as_one_without_a_store(
    table: str, session_id: str, make: Make
) -> None:
    async with ChatHistoryStore(table) as store:
        await store.session(session_id).aadd_messages(humans(1))
    assert texts(await make().aget_messages()) == ["1"]


async def test_a_store_that_cannot_reach_its_endpoint_opens_all_the_same(table: str, proxy: Proxy) -> None:
    """Start-up does not depend on DynamoDB: the first request will say what is wrong."""
    proxy.schedule = lambda seen: Fault.RESET
    async with ChatHistoryStore(table, endpoint_url=proxy.url):
        assert not proxy.seen
