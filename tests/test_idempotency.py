"""Idempotency keys: a batch is stored once, whoever sends it, however often, from whatever process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Make
from langchain_core.messages import HumanMessage
from proxy import Fault, Proxy, Seen
from samples import humans, texts
from variants import (
    SDK_VARIANTS,
    AsyncVariant,
    CollectionVariant,
    EncryptedCollectionVariant,
    EncryptedVariant,
    IndexedVariant,
    SyncCollectionVariant,
    SyncVariant,
    Variant,
    in_stress,
)

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory, IdempotencyKeyReusedError, KeySchemaError
from chathistory_async._item_collection.sort_keys import Clock
from chathistory_async._single_item.changes import WRITES_KEPT, WRITES_LIMIT
from chathistory_async._single_item.layout import WRITES

VARIANTS = [
    AsyncVariant,
    EncryptedVariant,
    CollectionVariant,
    IndexedVariant,
    *SDK_VARIANTS,
    *in_stress(SyncVariant, SyncCollectionVariant, EncryptedCollectionVariant),
]
FAULTS = [Fault.LOST_RESPONSE, Fault.LATE_ERROR, Fault.RESET, Fault.ERROR_500, Fault.CAPACITY, Fault.CONFLICT]

Through = Callable[..., DynamoDBChatMessageHistory]


async def test_the_same_key_is_stored_once(variant: type[Variant], make: Make) -> None:
    for _ in range(3):
        await make().aadd_messages(humans(1, 2), idempotency_key="a")
    await asyncio.to_thread(make().add_messages, humans(1, 2), idempotency_key="a")
    await make().aadd_messages(humans(3), idempotency_key="b")
    await make().aadd_messages(humans(1, 2))
    assert texts(await variant(make()).read()) == ["1", "2", "3", "1", "2"]


async def test_the_second_call_writes_nothing(
    variant: type[Variant], through: Through, make: Make, stored: Any
) -> None:
    await make().aadd_messages(humans(1), idempotency_key="a")
    before = stored()
    await through().aadd_messages(humans(1), idempotency_key="a")
    assert stored() == before


@pytest.mark.sampled
@pytest.mark.parametrize(
    "other", [humans(2), humans(1, 1), humans("1 "), [HumanMessage("1", id="x")]], ids=["text", "two", "space", "id"]
)
async def test_other_content_is_an_error_that_writes_nothing(variant: type[Variant], make: Make, other: Any) -> None:
    await make().aadd_messages(humans(1), idempotency_key="a")
    await make().aadd_messages(humans("between"))
    for _ in range(2):
        with pytest.raises(IdempotencyKeyReusedError, match="use a new key for new content") as caught:
            await make().aadd_messages(other, idempotency_key="a")
        assert caught.value.session_key == make().key
    assert texts(await variant(make()).read()) == ["1", "between"]


async def test_keys_are_of_a_session(variant: type[Variant], make: Make, session_id: str) -> None:
    await make().aadd_messages(humans(1), idempotency_key="a")
    other = f"{session_id}-other"
    await make(session=other).aadd_messages(humans(2), idempotency_key="a")
    assert texts(await variant(make()).read()) == ["1"]
    assert texts(await variant(make(session=other)).read()) == ["2"]


@pytest.mark.sampled
@pytest.mark.parametrize("key", ["x" * 256, "名前", "\ud800", "#", "\x00", " "])
async def test_any_text_is_a_key(variant: type[Variant], make: Make, key: str) -> None:
    for _ in range(2):
        await make().aadd_messages(humans(1), idempotency_key=key)
    assert len(await variant(make()).read()) == 1


@pytest.mark.parametrize(
    ("key", "error"), [("", ValueError), ("x" * 257, ValueError), (5, TypeError), (b"x", TypeError)]
)
async def test_what_is_no_key_is_refused(variant: type[Variant], make: Make, key: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="idempotency_key must"):
        await make().aadd_messages(humans(1), idempotency_key=key)
    assert await variant(make()).read() == []


async def test_neither_key_nor_content_is_stored_beside_the_messages(
    variant: type[Variant], make: Make, items: Any
) -> None:
    await make().aadd_messages(humans("the content"), idempotency_key="the key")
    others = [{name: value for name, value in item.items() if name != "History"} for item in items()]
    assert "the key" not in repr(others)
    assert "the content" not in repr(others)


@pytest.mark.sampled
@pytest.mark.parametrize("fault", FAULTS)
async def test_it_holds_under_faults(
    variant: type[Variant], through: Through, make: Make, proxy: Proxy, fault: Fault
) -> None:
    await variant(make()).read()
    for number in range(3):
        proxy.script(fault)
        await through().aadd_messages(humans(number, -number), idempotency_key=str(number))
        proxy.script(fault)
        await through().aadd_messages(humans(number, -number), idempotency_key=str(number))
    assert texts(await variant(make()).read()) == ["0", "0", "1", "-1", "2", "-2"]


async def test_a_request_that_arrives_late_stores_nothing_more(
    variant: type[Variant], through: Through, make: Make, proxy: Proxy
) -> None:
    await variant(make()).add(humans("before"))
    proxy.script(Fault.LATE_REQUEST)
    await through().aadd_messages(humans(1), idempotency_key="a")
    await make().aadd_messages(humans(1), idempotency_key="a")
    await asyncio.to_thread(proxy.wait_for_late_requests)
    assert texts(await variant(make()).read()) == ["before", "1"]


async def test_many_at_once_store_one(variant: type[Variant], make: Make) -> None:
    await variant(make()).add(humans("before"))
    await asyncio.gather(*(make().aadd_messages(humans("one"), idempotency_key="a") for _ in range(8)))
    results = await asyncio.gather(
        *(make().aadd_messages(humans(number), idempotency_key="b") for number in range(6)), return_exceptions=True
    )
    refused = [result for result in results if result is not None]
    assert len(refused) == 5
    assert all(isinstance(result, IdempotencyKeyReusedError) for result in refused)
    assert texts(await variant(make()).read())[:2] == ["before", "one"]
    assert len(await variant(make()).read()) == 3


class TestItemCollection:
    @pytest.fixture
    def layout(self, collection_table: str) -> dict[str, Any]:
        return {"table_name": collection_table, "sort_key_name": "MessageId"}

    async def test_a_clear_does_not_forget_a_key(self, make: Make) -> None:
        await make().aadd_messages(humans(1), idempotency_key="a")
        await make().aclear()
        await make().aadd_messages(humans(1), idempotency_key="a")
        assert await make().aget_messages() == []

    async def test_a_deleted_session_does(
        self, new_store: Any, session_id: str, items_in: Any, collection_table: str
    ) -> None:
        store: ChatHistoryStore = new_store()
        for _ in range(2):
            for number in range(60):
                await store.session(session_id).aadd_messages(humans(number), idempotency_key=str(number))
            assert await store.delete_session(session_id) == 60
            assert not [item for item in items_in(collection_table) if item["MessageId"]["S"].startswith("k#")]

    async def test_what_comes_after_a_key_of_another_process_stands_behind_its_record(self, make: Make) -> None:
        await make().aadd_messages(humans(1), idempotency_key="a")
        behind = make()
        session: Any = behind._session
        # As in a process that has not read the session, on a host whose clock is five minutes behind.
        session._reader.clock = Clock(lambda: int((time.time() - 300) * 1000))
        await behind.aadd_messages(humans(1), idempotency_key="a")
        await behind.aadd_messages(humans(2))
        assert texts(await make().aget_messages()) == ["1", "2"]

    async def test_a_key_stands_for_what_history_size_leaves_out_too(self, make: Make) -> None:
        history = make(history_size=1)
        await history.aadd_messages(humans(1, 2), idempotency_key="a")
        await history.aadd_messages(humans(1, 2), idempotency_key="a")
        with pytest.raises(IdempotencyKeyReusedError):
            await history.aadd_messages(humans(3, 2), idempotency_key="a")
        assert texts(await make().aget_messages()) == ["2"]

    @pytest.mark.parametrize("exists", [False, True])
    async def test_a_table_without_a_sort_key_is_told_of(
        self, make: Make, table: str, item: Callable[[], dict[str, Any] | None], exists: bool
    ) -> None:
        if exists:
            await make(table_name=table, sort_key_name=None).aadd_messages(humans(0))
        before = item()
        with pytest.raises(KeySchemaError):
            await make(table_name=table).aadd_messages(humans(1), idempotency_key="a")
        assert item() == before

    async def test_costs_one_transaction_of_two_items(self, make: Make, proxy: Proxy) -> None:
        history = make(endpoint_url=proxy.url)
        await history.aget_messages()
        proxy.seen.clear()
        await history.aadd_messages(humans(1, 2), idempotency_key="a")
        assert proxy.operations() == ["TransactWriteItems"]
        assert len(proxy.seen[0].body["TransactItems"]) == 2

    @pytest.mark.parametrize("expired", [False, True])
    async def test_lasts_for_the_seconds_of_the_store(
        self, collection_table: str, session_id: str, dynamodb: Any, items_in: Any, expired: bool
    ) -> None:
        async with ChatHistoryStore(collection_table, idempotency_seconds=5000) as store:
            await store.session(session_id).aadd_messages(humans(1), idempotency_key="a")
            [marker] = [item for item in items_in(collection_table) if item["MessageId"]["S"].startswith("k#")]
            assert abs(int(marker["expireAt"]["N"]) - time.time() - 5000) < 30
            if expired:
                dynamodb.put_item(TableName=collection_table, Item=marker | {"expireAt": {"N": str(int(time.time()))}})
            await store.session(session_id).aadd_messages(humans(1), idempotency_key="a")
            assert len(await store.session(session_id).aget_messages()) == 1 + expired

    @pytest.mark.parametrize("seconds", [0, -1, 1.5, "1", True, None])
    def test_needs_a_positive_number_of_seconds(self, seconds: Any) -> None:
        with pytest.raises(ValueError, match="idempotency_seconds must be a positive integer, not"):
            ChatHistoryStore("t", idempotency_seconds=seconds)

    async def test_a_batch_in_parts_is_stored_once_too(self, make: Make) -> None:
        import secrets

        batch = humans(secrets.token_hex(400_000), "and more")
        for _ in range(2):
            await make().aadd_messages(batch, idempotency_key="a")
        assert await make().aget_messages() == batch
        with pytest.raises(IdempotencyKeyReusedError):
            await make().aadd_messages(batch[:1], idempotency_key="a")

    async def test_a_handle_of_one_format_is_told_of_the_other(self, collection_table: str, session_id: str) -> None:
        async with ChatHistoryStore(collection_table) as store:
            await store.json_session(session_id).aadd([1], idempotency_key="a")
            with pytest.raises(IdempotencyKeyReusedError):
                await store.json_session(session_id, format="other").aadd([1], idempotency_key="a")


class TestSingleItem:
    async def test_a_key_is_forgotten_when_the_session_expires(self, make: Make, update: Callable[..., None]) -> None:
        await make().aadd_messages(humans(1), idempotency_key="a")
        for number in (1, 2):
            # DynamoDB deletes it days later.
            update(expireAt={"N": str(int(time.time()) - 10)})
            await make().aadd_messages(humans(number), idempotency_key="a")
            await make().aadd_messages(humans(number), idempotency_key="a")
            assert texts(await make().aget_messages()) == [str(number)]

    async def test_a_key_is_known_while_its_mark_is_kept(self, make: Make, update: Any, item: Any) -> None:
        await make().aadd_messages(humans("first"), idempotency_key="a")
        marks = item()[WRITES]["L"]
        later = [{"S": f"write-{number}"} for number in range(WRITES_KEPT)]
        update(**{WRITES: {"L": [*marks, *later[: WRITES_KEPT - len(marks)]]}})
        await make().aadd_messages(humans("first"), idempotency_key="a")
        assert texts(await make().aget_messages()) == ["first"]
        update(**{WRITES: {"L": [marks[0], *later]}})
        await make().aadd_messages(humans("first"), idempotency_key="a")
        assert texts(await make().aget_messages()) == ["first", "first"], "as the documentation says"

    @pytest.mark.stress
    async def test_a_key_is_known_for_some_number_of_writes(self, make: Make) -> None:
        await make().aadd_messages(humans("first"), idempotency_key="a")
        for number in range(WRITES_KEPT // 2 - 1):
            await make(history_size=3).aadd_messages(humans(number), idempotency_key=f"key {number}")
        await make(history_size=3).aadd_messages(humans("first"), idempotency_key="a")
        assert "first" not in texts(await make().aget_messages())
        for number in range(WRITES_LIMIT):
            await make(history_size=3).aadd_messages(humans(number))
        await make(history_size=3).aadd_messages(humans("first"), idempotency_key="a")
        assert texts(await make().aget_messages())[-1] == "first", "as the documentation says"


PROGRAM = """
import sys
from langchain_core.messages import AIMessage, HumanMessage
from chathistory_async import DynamoDBChatMessageHistory
table, session, url, sort_key = sys.argv[1:]
history = DynamoDBChatMessageHistory(table, session, endpoint_url=url, sort_key_name=sort_key or None)
print("ready", flush=True)
sys.stdin.readline()
for number in range(5):
    batch = [HumanMessage(f"{number}"), AIMessage(f"{number}")]
    history.add_messages(batch, idempotency_key=f"request {number}")
print("done", flush=True)
"""


@pytest.mark.parametrize("sort_key", ["MessageId", ""], ids=["item collection", "single item"])
class TestProcesses:
    @pytest.fixture
    def start(self, request: pytest.FixtureRequest, session_id: str, proxy: Proxy, sort_key: str) -> Any:
        table = request.getfixturevalue("collection_table" if sort_key else "table")
        processes = []

        def start() -> subprocess.Popen[str]:
            command = [sys.executable, "-c", PROGRAM, table, session_id, proxy.url, sort_key]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            return processes[-1]

        yield start
        for process in processes:
            process.kill()
            process.communicate()

    @staticmethod
    def go(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()

    @staticmethod
    def finish(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"

    def read(self, request: pytest.FixtureRequest, session_id: str, sort_key: str) -> list[str]:
        table = request.getfixturevalue("collection_table" if sort_key else "table")
        history = DynamoDBChatMessageHistory(table, session_id, sort_key_name=sort_key or None)
        return [str(message.content) for message in history.messages]

    @pytest.mark.sampled("sort_key")
    def test_that_race_store_each_batch_once(
        self, request: pytest.FixtureRequest, start: Any, session_id: str, sort_key: str
    ) -> None:
        processes = [start() for _ in range(2)]
        for process in processes:
            self.go(process)
        for process in processes:
            self.finish(process)
        stored = self.read(request, session_id, sort_key)
        assert sorted(stored) == sorted(f"{number}" for number in range(5) for _ in range(2))
        assert stored[::2] == stored[1::2], "batches stay together"

    @pytest.mark.sampled("sort_key")
    @pytest.mark.parametrize("answered", [False, pytest.param(True, marks=pytest.mark.stress)])
    def test_that_are_killed_after_a_write_run_again(
        self, request: pytest.FixtureRequest, start: Any, session_id: str, sort_key: str, proxy: Proxy, answered: bool
    ) -> None:
        for killed_at in range(1, 5):
            process = start()
            writes = 0

            def schedule(seen: Seen, process: Any = process, killed_at: int = killed_at) -> Fault:
                nonlocal writes
                writes += seen.operation in {"UpdateItem", "TransactWriteItems"}
                if writes == killed_at:
                    process.kill()
                    return Fault.LOST_RESPONSE if answered else Fault.RESET
                return Fault.NONE

            proxy.schedule = schedule
            self.go(process)
            process.wait(60)
        proxy.schedule = lambda seen: Fault.NONE
        process = start()
        self.go(process)
        self.finish(process)
        assert self.read(request, session_id, sort_key) == [f"{number}" for number in range(5) for _ in range(2)]
