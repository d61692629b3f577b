"""What a store tells of a session and of its table: format, values of any format, sizes, costs, expiry, damage."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import pytest
from langchain_core.messages import HumanMessage, messages_from_dict
from samples import EVERY_TYPE, humans

from chathistory_async import (
    ChatHistoryStore,
    ConfigurationError,
    FormatError,
    KmsKeyError,
    LayoutError,
    SessionStats,
    TableNotFoundError,
)

Value = TypeVar("Value")


async def all_of(values: AsyncGenerator[Value, None]) -> list[Value]:
    return [value async for value in values]


@pytest.fixture
def store(collection_table: str) -> ChatHistoryStore:
    return ChatHistoryStore(collection_table)


@pytest.fixture
def single(table: str) -> ChatHistoryStore:
    return ChatHistoryStore(table, layout="single_item")


async def test_the_format_of_a_session(store: ChatHistoryStore, single: ChatHistoryStore, session_id: str) -> None:
    assert await store.get_format(session_id) is None
    await store.json_session(session_id, format="my-agent").aadd([1])
    assert await store.get_format(session_id) == "my-agent"
    await store.session(f"{session_id}-2").aadd_messages(humans(1))
    assert await store.get_format(f"{session_id}-2") == "langchain"
    assert await single.get_format(session_id) == "langchain"


async def test_messages_are_read_as_json(store: ChatHistoryStore, session_id: str) -> None:
    history = store.session(session_id)
    for start in range(0, len(EVERY_TYPE), 3):
        await history.aadd_messages(EVERY_TYPE[start : start + 3])
    await history.aadd_messages([HumanMessage("x" * 10_000)])
    stored = await all_of(store.iter_stored(session_id, format="langchain"))
    page = await history.apage(limit=100)
    assert messages_from_dict([one.value for one in stored]) == [one.message for one in page.messages]
    assert [(one.id, one.created_at) for one in stored] == [(one.id, one.created_at) for one in page.messages]
    last = await all_of(store.iter_stored(session_id, format="langchain", last=2))
    assert last == stored[-2:]


async def test_values_are_read_as_they_are(store: ChatHistoryStore, session_id: str) -> None:
    values = [{"a": 1}, b"bytes", None, 2**70]
    await store.json_session(session_id, format="my-agent").aadd(values)
    stored = await all_of(store.iter_stored(session_id, format="my-agent"))
    assert [one.value for one in stored] == values
    with pytest.raises(FormatError):
        await all_of(store.iter_stored(session_id, format="langchain"))
    with pytest.raises(ValueError, match="positive"):
        store.iter_stored(session_id, format="json", last=0)


async def test_a_single_item_has_no_ids(single: ChatHistoryStore, session_id: str) -> None:
    with pytest.raises(LayoutError, match="ids of messages need a table with a sort key"):
        single.iter_stored(session_id, format="langchain")
    with pytest.raises(LayoutError):
        single.iter_unreadable(session_id)


async def stats_of(store: ChatHistoryStore, session_id: str) -> SessionStats:
    return await store.get_session_stats(session_id)


async def test_the_sizes_of_a_session(
    collection_table: str, store: ChatHistoryStore, session_id: str, items_in: Callable[[str], list[dict[str, Any]]]
) -> None:
    assert await stats_of(store, session_id) == SessionStats(None, 0, 0, 0, 0, 0, 0, 0.0, 1, None, None)
    values = store.json_session(session_id, format="my-agent")
    noise = "".join(uuid.uuid4().hex for _ in range(30_000))
    await values.aadd(["a", "b" * 20_000])
    await values.aadd([noise])
    found = await stats_of(store, session_id)
    assert (found.format, found.messages, found.records) == ("my-agent", 3, 2)
    # The JSON text has two quotes more than the text.
    assert found.raw_bytes == 1 + 20_000 + len(noise) + 3 * 2
    assert found.largest_message_bytes == len(noise) + 2
    # The first record is compressed; the second has two parts, which one transaction writes.
    assert found.largest_record_bytes < found.stored_bytes < found.raw_bytes
    assert (
        2 * found.largest_record_bytes / 1024 < 2 * found.append_write_units < 2 * found.largest_record_bytes / 1024 + 8
    )
    assert found.read_units == -(-found.stored_bytes // 4096)
    await values.aclear()
    cleared = await stats_of(store, session_id)
    assert (cleared.messages, cleared.records, cleared.raw_bytes) == (0, 0, 0)
    # The emptied items are still there.
    assert cleared.stored_bytes > 0


async def test_encrypted_sizes(collection_table: str, session_id: str, kms_key: str, store: ChatHistoryStore) -> None:
    encrypting = ChatHistoryStore(collection_table, kms_key_id=kms_key)
    await encrypting.json_session(session_id).aadd(["a" * 100])
    assert (await stats_of(encrypting, session_id)).raw_bytes == 102
    without = await stats_of(store, session_id)
    assert (without.messages, without.raw_bytes, without.largest_message_bytes) == (1, None, None)
    await encrypting.aclose()


async def test_the_expiry_of_a_session(collection_table: str, session_id: str, store: ChatHistoryStore) -> None:
    for ttl in (100, 1000):
        await ChatHistoryStore(collection_table, ttl=ttl).session(session_id).aadd_messages(humans(1))
    found = await stats_of(store, session_id)
    assert found.first_expiry is not None
    assert found.last_expiry is not None
    assert found.first_expiry.timestamp() == pytest.approx(time.time() + 100, abs=10)
    assert found.last_expiry.timestamp() == pytest.approx(time.time() + 1000, abs=10)
    await store.session(session_id).aadd_messages(humans(2))
    assert (await stats_of(store, session_id)).last_expiry is None


async def test_a_single_item_s_sizes(single: ChatHistoryStore, session_id: str, kms_key: str, table: str) -> None:
    assert (await stats_of(single, session_id)).format is None
    await single.session(session_id).aadd_messages(humans("x" * 5000, 2))
    found = await stats_of(single, session_id)
    assert (found.format, found.messages, found.records) == ("langchain", 2, 1)
    assert found.raw_bytes is not None
    assert 5000 < found.raw_bytes < found.stored_bytes == found.largest_record_bytes < 6000
    assert (found.append_write_units, found.read_units) == (6, 2)
    encrypting = ChatHistoryStore(table, layout="single_item", kms_key_id=kms_key)
    await encrypting.session(f"{session_id}-2").aadd_messages(humans(1))
    assert (await stats_of(encrypting, f"{session_id}-2")).raw_bytes is None
    await encrypting.aclose()


async def test_values_that_cannot_be_read(
    collection_table: str, store: ChatHistoryStore, session_id: str, kms_key: str
) -> None:
    assert await all_of(store.iter_unreadable(session_id)) == []
    values = store.json_session(session_id)
    await values.aadd([1, 2])
    encrypting = ChatHistoryStore(collection_table, kms_key_id=kms_key)
    await encrypting.json_session(session_id).aadd([3])
    with pytest.raises(ConfigurationError):
        await all_of(store.iter_unreadable(session_id))
    assert await all_of(encrypting.iter_unreadable(session_id)) == []
    # The latest value has another format: none of the others can be read with it.
    await store.json_session(session_id, format="other").aadd([4])
    errors = await all_of(encrypting.iter_unreadable(session_id))
    assert {type(error) for error in errors} == {FormatError}
    await encrypting.aclose()


async def test_a_kms_key_is_checked(collection_table: str, kms_key: str, store: ChatHistoryStore) -> None:
    await store.check_kms_key()
    async with ChatHistoryStore(collection_table, kms_key_id=kms_key) as encrypting:
        await encrypting.check_kms_key()
    async with ChatHistoryStore(collection_table, kms_key_id=str(uuid.uuid4())) as wrong:
        with pytest.raises(KmsKeyError):
            await wrong.check_kms_key()


async def test_a_table_is_described(collection_table: str, single: ChatHistoryStore, store: ChatHistoryStore) -> None:
    found = await store.describe_table()
    assert found.key == [("SessionId", "HASH", "S"), ("MessageId", "RANGE", "S")]
    assert (found.status, found.index_status, found.index_holds_all) == ("ACTIVE", "ACTIVE", True)
    assert (found.ttl_attribute, found.point_in_time_recovery, found.problems) == ("expireAt", False, {})
    assert found.clock_lead_seconds is not None
    assert abs(found.clock_lead_seconds) < 10
    assert (await single.describe_table()).index_status is None
    with pytest.raises(TableNotFoundError):
        await ChatHistoryStore("no-such-table").describe_table()
