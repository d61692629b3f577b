"""A history in an item collection, beyond the contract: its storage, order, size, cost and removal."""

from __future__ import annotations

import asyncio
import json
import pickle
import secrets
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from botocore.config import Config
from conftest import Make
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from proxy import Fault, Proxy, Seen
from samples import EVERY_TYPE, humans, texts
from variants import CollectionVariant, EncryptedCollectionVariant, SyncCollectionVariant, Variant, in_stress

from chathistory_async import (
    AccessDeniedError,
    ConfigurationError,
    DecryptionError,
    DynamoDBChatMessageHistory,
    EndpointError,
    ItemTooLargeError,
    KeySchemaError,
    ServiceError,
    UndecodableItemError,
)
from chathistory_async._item_collection.layout import PARTS, REMOVED_BY, REVISION
from chathistory_async._item_collection.requests import TOMBSTONE_SECONDS
from chathistory_async._item_collection.session import slack
from chathistory_async._item_collection.sort_keys import Clock, Clocks, SortKey, message_id_of, parse

VARIANTS = [CollectionVariant, EncryptedCollectionVariant, *in_stress(SyncCollectionVariant)]
UNANSWERED = [Fault.LOST_RESPONSE, Fault.LATE_ERROR]
NOT_STORED = [Fault.RESET, Fault.ERROR_500, Fault.ERROR_503, Fault.CAPACITY, Fault.THROTTLED, Fault.CONFLICT]

Through = Callable[..., DynamoDBChatMessageHistory]
Items = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def layout(collection_table: str) -> dict[str, Any]:
    return {"table_name": collection_table, "sort_key_name": "MessageId"}


@pytest.fixture
def put(dynamodb: Any, collection_table: str, session_id: str) -> Callable[..., None]:
    """Puts a raw item into the test's own session."""

    def put(sort_key: str, **attributes: Any) -> None:
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": sort_key}}
        dynamodb.put_item(TableName=collection_table, Item=key | attributes)

    return put


def old_key(number: int = 0, age_seconds: int = 2 * TOMBSTONE_SECONDS) -> str:
    return str(SortKey(int((time.time() - age_seconds) * 1000) << 16, f"{number:016x}"))


def body(content: str) -> dict[str, Any]:
    return {"History": {"S": json.dumps({"type": "human", "data": {"content": content}})}}


class TestStorage:
    async def test_of_a_plain_message(self, make: Make, items: Items, collection_table: str, session_id: str) -> None:
        history = make(ttl=60)
        before = datetime.now(timezone.utc)
        await history.aadd_messages([AIMessage("né", id="1")])
        [item] = items()
        key = parse(item.pop("MessageId")["S"])
        assert key is not None
        assert json.loads(item.pop("History")["S"])["data"]["content"] == "né"
        created = datetime.fromisoformat(item.pop("CreatedAt")["S"].replace("Z", "+00:00"))
        assert abs((created - before).total_seconds()) < 10
        assert abs(int(item.pop("expireAt")["N"]) - time.time() - 60) < 10
        assert item == {"SessionId": {"S": session_id}, "Type": {"S": "ai"}}

    async def test_of_an_encrypted_message_tells_no_type(self, make: Make, items: Items, kms_key: str) -> None:
        history = make(kms_key_id=kms_key)
        messages = [HumanMessage("x"), HumanMessage("y" * 10_000)]
        for message in messages:
            await history.aadd_messages([message])
        assert [set(item) for item in items()] == [{"SessionId", "MessageId", "History", "CreatedAt", "Encoding"}] * 2
        assert [item["Encoding"]["S"] for item in items()] == ["aws-encryption-sdk", "zlib,aws-encryption-sdk"]
        assert all(set(item["History"]) == {"B"} for item in items())
        assert await history.aget_messages() == messages

    async def test_of_a_long_message_is_compressed_where_that_helps(self, make: Make, items: Items) -> None:
        history = make()
        messages = humans("x" * 3000, "x" * 5000, secrets.token_hex(40))
        for message in messages:
            await history.aadd_messages([message])
        short, long, _ = items()
        assert "Encoding" not in short
        assert long["Encoding"] == {"S": "zlib"}
        assert json.loads(zlib.decompress(long["History"]["B"]))["data"]["content"] == "x" * 5000
        assert len(long["History"]["B"]) < 1000
        assert await history.aget_messages() == messages

    async def test_of_a_batch_is_one_put_and_of_a_large_one_a_transaction(
        self, variant: type[Variant], through: Through, proxy: Proxy
    ) -> None:
        for number in (1, 2, 500):
            await variant(through()).add(humans(*range(number)))
        assert proxy.operations() == ["PutItem"] * 3
        await variant(through()).add(humans(secrets.token_hex(400_000)))
        assert proxy.operations() == ["PutItem"] * 3 + ["TransactWriteItems"]
        assert len(proxy.seen[-1].body["ClientRequestToken"]) <= 36

    async def test_of_a_thousand_messages(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy
    ) -> None:
        batch = humans(*range(1000))
        await variant(through()).add(batch)
        assert proxy.operations() == ["PutItem"]
        assert await variant(make()).read() == batch
        assert texts(await make().aget_messages(limit=3)) == ["997", "998", "999"]

    async def test_of_every_type_in_any_session(self, variant: type[Variant], make: Make) -> None:
        awkward = ["a/b", "a#b", "m#", "'\"`", "\x00", " ", "名前", "💬", "%s{}", "a" * 2000, "m#~", "..", "\u2028"]
        for session in awkward:
            await variant(make(session=session)).clear()
            await variant(make(session=session)).add([HumanMessage(session), *EVERY_TYPE[:2]])
        for session in awkward:
            assert await variant(make(session=session)).read() == [HumanMessage(session), *EVERY_TYPE[:2]]

    async def test_leaves_the_other_items_of_a_partition_alone(
        self, variant: type[Variant], make: Make, put: Callable[..., None], items: Items
    ) -> None:
        for foreign in ("METADATA", "m", "m#", "m#x", "m$", "n#1", "a"):
            put(foreign, title={"S": "kept"})
        # It has nothing but a key and a body, as a plain message has.
        put("m#y", **body("foreign"))
        await variant(make()).add(humans(1, 2))
        assert texts(await variant(make()).read()) == ["1", "2"]
        await variant(make()).clear()
        assert len([item for item in items() if item.get("title") == {"S": "kept"}]) == 7

    async def test_of_a_part_whose_message_was_removed_is_passed_over(
        self, variant: type[Variant], make: Make, put: Callable[..., None]
    ) -> None:
        put(SortKey(2**40, "f" * 16, part=1), **body("left over"))
        await variant(make()).add(humans(1, 2))
        assert texts(await variant(make()).read()) == ["1", "2"]

    async def test_of_one_kind_does_not_hide_another(self, variant: type[Variant], make: Make) -> None:
        plain, compressed = humans(*range(3)), [HumanMessage("so on " * 2000)]
        in_parts = [HumanMessage(secrets.token_hex(300_000))]
        stored = [*plain, *compressed, *plain, *in_parts, *plain]
        for message in stored:
            await variant(make()).add([message])
        assert await variant(make()).read() == stored


class TestLargeMessages:
    async def test_of_three_megabytes(self, variant: type[Variant], make: Make, items: Items) -> None:
        large = HumanMessage([{"type": "image_url", "image_url": {"url": secrets.token_urlsafe(2_250_000)}}])
        batch: list[BaseMessage] = [HumanMessage("before"), large, HumanMessage("after")]
        for message in batch:
            await variant(make()).add([message])
        assert len([item for item in items() if PARTS in item]) == 1
        assert len(items()) > 4
        assert await variant(make()).read() == batch
        assert await make().aget_messages(limit=2) == batch[1:]
        assert await make().aget_messages(limit=1) == batch[2:]
        page = await make().apage(1, (await make().apage(1)).cursor)
        assert [stored.message for stored in page.messages] == [large]
        await variant(make()).clear()
        assert await variant(make()).read() == []

    @pytest.mark.stress
    async def test_is_read_whole_while_it_is_replaced(self, make: Make) -> None:
        versions = [HumanMessage(f"{number}" + secrets.token_urlsafe(1_200_000)) for number in range(2)]
        await make().aadd_messages([versions[0]])
        await make().aadd_messages(humans("after"))
        message_id = (await make().apage(2)).messages[0].id
        done = False

        async def read() -> int:
            reads = 0
            while not done:
                [large, after] = await make().aget_messages()
                assert large in versions
                assert after.content == "after"
                reads += 1
            return reads

        readers = [asyncio.create_task(read()) for _ in range(2)]
        for number in range(12):
            await make().areplace_message(message_id, versions[number % 2])
        done = True
        assert min(await asyncio.gather(*readers)) > 1

    async def test_is_read_again_for_as_long_as_it_is_replaced(self, through: Through, proxy: Proxy) -> None:
        """As if a replacement came between the reads of its parts, twice as often as a part may be missing."""
        large = HumanMessage(secrets.token_urlsafe(1_000_000))
        await through().aadd_messages([large])
        replacements = iter(range(10))

        def tear(seen: Seen, answer: dict[str, Any]) -> dict[str, Any]:
            revision = next(replacements, None) if seen.operation == "Query" else None
            for item in [] if revision is None else answer["Items"]:
                item |= {REVISION: {"S": str(revision)}} if PARTS in item else {}
            return answer

        proxy.edit = tear
        assert await through().aget_messages() == [large]
        assert proxy.operations().count("Query") > 10

    async def test_of_more_than_a_transaction_holds_is_refused_before_any_write(
        self, variant: type[Variant], through: Through, proxy: Proxy
    ) -> None:
        batch = [*humans(*range(150)), HumanMessage(secrets.token_hex(4_500_000))]
        with pytest.raises(ItemTooLargeError, match=r"A record of 151 values .* does not fit into one transaction"):
            await variant(through()).add(batch)
        assert not proxy.seen

    async def test_a_part_that_is_missing_is_an_error(
        self, make: Make, items: Items, dynamodb: Any, collection_table: str
    ) -> None:
        history = make()
        await history.aadd_messages(humans(secrets.token_hex(500_000)))
        await history.aadd_messages(humans("next"))
        part = items()[1]
        dynamodb.delete_item(TableName=collection_table, Key={name: part[name] for name in ("SessionId", "MessageId")})
        with pytest.raises(UndecodableItemError, match="a part of it is missing"):
            await history.aget_messages()
        assert texts(await history.aget_messages(limit=1)) == ["next"]


NO_NUMBERS_OF_PARTS: list[dict[str, Any]] = [
    {"N": "0"},
    {"N": "-2"},
    {"N": "1.5"},
    {"N": "101"},
    {"N": "9" * 38},
    {"N": "9.9E+125"},
    {"S": "2"},
    {"L": [{"N": "2"}]},
]


class TestDamage:
    @pytest.mark.sampled
    @pytest.mark.parametrize(
        ("attributes", "reason"),
        [
            ({}, "it is not the JSON text of a message"),
            ({"History": {"S": "nothing"}}, "it is not the JSON text of a message"),
            ({"History": {"S": "{}"}}, "it has no 'type'"),
            (body("x") | {"Encoding": {"S": "rot13"}}, "its encoding is 'rot13'"),
            (body("x") | {"Encoding": {"S": "zlib"}}, "cannot be decompressed: It is not compressed by zlib"),
            ({"History": {"B": zlib.compress(b"x" * 999)[:-5]}, "Encoding": {"S": "zlib"}}, "It is truncated"),
            ({"History": {"B": zlib.compress(b"x") + b"y"}, "Encoding": {"S": "zlib"}}, "has bytes after its end"),
            ({"History": {"B": zlib.compress(bytes(70_000_000))}, "Encoding": {"S": "zlib"}}, "or is too large"),
            (body("x") | {PARTS: {"N": "2"}}, "a part of it is missing"),
            *((body("x") | {PARTS: number}, "its number of parts is damaged") for number in NO_NUMBERS_OF_PARTS),
            (body("x") | {"Encoding": {"S": "x" * 100_000}}, "its encoding is 'x{40}' "),
            (body("x") | {"Encoding": {"L": []}}, "its encoding is 'not text'"),
        ],
    )
    async def test_is_an_error(
        self, variant: type[Variant], make: Make, put: Any, attributes: Any, reason: str
    ) -> None:
        await variant(make()).add(humans("fine"))
        put(key := old_key(), **attributes)
        with pytest.raises(UndecodableItemError, match=reason) as caught:
            await variant(make()).read()
        error = caught.value
        assert error.session_key == make().key
        assert error.message_id == message_id_of(key, 0)
        assert error.message_id in str(error)
        assert len(str(error)) < 1000
        assert texts(await make().aget_messages(limit=1)) == ["fine"]
        assert pickle.loads(pickle.dumps(error)).message_id == error.message_id
        await make().adelete_messages([error.message_id])
        assert texts(await variant(make()).read()) == ["fine"]

    @pytest.mark.parametrize("tick", [2**64 - 1, 2**63, (253_402_300_799_000 << 16)], ids=["last", "2**63", "9999"])
    async def test_a_time_that_no_clock_can_tell_is_an_error(
        self, variant: type[Variant], make: Make, put: Any, tick: int
    ) -> None:
        put(key := str(SortKey(tick, "f" * 16)), **body("x"))
        history = make()
        await variant(history).read()
        with pytest.raises(UndecodableItemError, match="has an impossible time, more than a century ahead") as caught:
            await variant(history).add(humans(1))
        assert caught.value.message_id == message_id_of(key, 0)
        assert len((await history.apage(1)).messages) == 1
        await variant(history).clear()
        await variant(history).add(humans("anew"))
        assert texts(await variant(history).read()) == ["anew"]

    @pytest.mark.parametrize("expired", [False, True])
    async def test_a_time_that_no_clock_can_tell_is_no_error_any_more_when_it_is_gone(
        self, make: Make, put: Any, through: Through, proxy: Proxy, expired: bool
    ) -> None:
        await make().aadd_messages(humans("before"))
        keys = [str(SortKey(2**64 - number, "f" * 16)) for number in (1, 2)]
        for key in keys:
            put(key, **body("x"))
        # Its clock is new, as in another process.
        elsewhere = make()
        elsewhere._session._reader.clock = Clock()  # type: ignore[attr-defined]
        for history in (make(), elsewhere):
            await history.aget_messages()
        for key in keys:
            for history in (make(), elsewhere):
                with pytest.raises(UndecodableItemError) as caught:
                    await history.aadd_messages(humans("refused"))
            assert caught.value.message_id == message_id_of(key, 0)
            if expired:
                put(key, **body("x"), expireAt={"N": "1"})
            else:
                await make().adelete_messages([caught.value.message_id])
        for number, history in enumerate((make(), elsewhere)):
            await history.aadd_messages(humans(number))
        assert texts(await make().aget_messages()) == ["before", "0", "1"]
        await through().aadd_messages(humans("after"))
        assert proxy.operations() == ["PutItem"]

    @pytest.mark.parametrize(
        "what", ["changed", "not encrypted", "of another session", "of another place", "another key"]
    )
    async def test_of_what_is_encrypted_names_the_message(
        self, make: Make, put: Any, items: Items, kms_key: str, session_id: str, dynamodb: Any, what: str
    ) -> None:
        history = make(kms_key_id=kms_key)
        for text in ("one", "two", "three"):
            await history.aadd_messages(humans(text))
        item, other = items()[1:]
        encrypted = item["History"]["B"]
        if what == "changed":
            encrypted = encrypted[:-1] + bytes([encrypted[-1] ^ 1])
        elif what == "not encrypted":
            encrypted = b"x"
        elif what == "of another session":
            elsewhere = make(session=f"{session_id}-other", kms_key_id=kms_key)
            await elsewhere.aadd_messages(humans("stolen"))
            key = {"SessionId": {"S": elsewhere.session_id}, "MessageId": item["MessageId"]}
            query = {"ExpressionAttributeValues": {":s": key["SessionId"]}, "KeyConditionExpression": "SessionId = :s"}
            [stolen] = dynamodb.query(TableName=history.table_name, **query)["Items"]
            encrypted = stolen["History"]["B"]
        elif what == "of another place":
            encrypted = other["History"]["B"]
        else:
            # The data key, encrypted by KMS: KMS itself refuses to decrypt it, moto as if it were of a stranger's key.
            at = encrypted.index(kms_key.encode()) + len(kms_key) + 20
            encrypted = encrypted[:at] + bytes([encrypted[at] ^ 1]) + encrypted[at + 1 :]
        put(item["MessageId"]["S"], History={"B": encrypted}, Encoding=item["Encoding"])
        with pytest.raises((DecryptionError, AccessDeniedError)) as caught:
            await make(kms_key_id=kms_key).aget_messages()
        assert caught.value.message_id == message_id_of(item["MessageId"]["S"], 0)
        assert pickle.loads(pickle.dumps(caught.value)).message_id == caught.value.message_id
        await history.adelete_messages([caught.value.message_id])
        assert texts(await history.aget_messages()) == ["one", "three"]

    async def test_of_the_settings_names_the_message_that_is_encrypted(self, make: Make, kms_key: str) -> None:
        await make().aadd_messages(humans("plain"))
        await make(kms_key_id=kms_key).aadd_messages(humans("encrypted"))
        with pytest.raises(ConfigurationError, match="give kms_key_id") as caught:
            await make().aget_messages()
        assert caught.value.message_id == (await make(kms_key_id=kms_key).apage(1)).messages[0].id

    async def test_a_message_of_a_false_time_can_be_replaced(self, make: Make, put: Any) -> None:
        put(key := str(SortKey(2**64 - 1, "f" * 16)), **body("x"))
        await make().areplace_message(message_id_of(key, 0), HumanMessage("y"))
        assert texts(await make().aget_messages()) == ["y"]

    @pytest.mark.parametrize("number", [*NO_NUMBERS_OF_PARTS, {"N": "100"}])
    async def test_a_false_number_of_parts_is_removed_in_few_requests(
        self, make: Make, put: Any, items: Items, through: Through, proxy: Proxy, number: Any
    ) -> None:
        first = SortKey((int(time.time() * 1000) - 1000) << 16, "f" * 16)
        put(str(first), **body("first"), **{PARTS: number})
        for part in (1, 2, 40):
            put(str(first.of_part(part)), **body("part"))
        await make().aadd_messages(humans("fine"))
        await through().adelete_messages([message_id_of(first, 0)])
        assert texts(await make().aget_messages()) == ["fine"]
        assert [REMOVED_BY in item for item in items()] == [True, False], "the parts have gone"
        assert len(proxy.seen) <= 6

    async def test_many_missing_parts_are_read_again_as_often_as_one(
        self, make: Make, put: Any, through: Through, proxy: Proxy
    ) -> None:
        keys = [old_key(number, 9000 - number) for number in range(40)]
        for key in keys:
            put(key, **body("x"), **{PARTS: {"N": "2"}})
        await make().aadd_messages(humans("fine"))
        with pytest.raises(UndecodableItemError, match="a part of it is missing") as caught:
            await through().aget_messages()
        assert caught.value.message_id == message_id_of(keys[0], 0)
        assert len(proxy.seen) < 10
        proxy.seen.clear()
        assert len((await through().apage(1)).messages) == 1
        assert proxy.operations() == ["Query"], "what is not returned is not looked into"

    async def test_a_page_of_what_is_large_decompressed_takes_no_more_memory_than_one(
        self, make: Make, put: Any
    ) -> None:
        bomb = zlib.compress(b" " * 20_000_000 + json.dumps({"type": "human", "data": {"content": "x"}}).encode())
        peaks = []
        for number in range(12):
            put(old_key(number, 9000 - number), History={"B": bomb}, Encoding={"S": "zlib"})
            if number in (0, 11):
                tracemalloc.start()
                assert texts(await make().aget_messages()) == ["x"] * (number + 1)
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        one, twelve = peaks
        assert twelve < 1.2 * one


class TestExactlyOnce:
    @pytest.mark.sampled
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("fault", UNANSWERED + NOT_STORED)
    async def test_a_retried_append_is_stored_once(
        self, variant: type[Variant], through: Through, proxy: Proxy, fault: Fault, batch: int
    ) -> None:
        history, expected = variant(through()), list[str]()
        for number in range(3):
            proxy.script(fault)
            await history.add(humans(*[number] * batch))
            expected += [str(number)] * batch
            assert texts(await history.read()) == expected

    async def test_a_clear_waits_for_transactions_of_others(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy
    ) -> None:
        await variant(make()).add(humans(1, 2))
        proxy.script(Fault.CONFLICT, Fault.CONFLICT, operation="BatchWriteItem")
        await variant(through()).clear()
        assert proxy.operations().count("BatchWriteItem") == 3
        assert await variant(make()).read() == []

    @pytest.mark.parametrize("batch", [1, 3])
    async def test_whose_answers_are_all_lost_is_stored_at_most_once(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy, batch: int
    ) -> None:
        proxy.schedule = lambda seen: Fault.LOST_RESPONSE
        with pytest.raises((EndpointError, ServiceError)):
            await variant(through(attempts=3)).add(humans(*range(batch)))
        assert len(await variant(make()).read()) == batch

    @pytest.mark.parametrize("batch", [1, 3])
    async def test_a_request_that_arrives_after_a_clear_brings_nothing_back(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy, batch: int
    ) -> None:
        history = variant(through())
        await history.add(humans("before"))
        proxy.script(Fault.LATE_REQUEST)
        await history.add(humans(*["once"] * batch))
        assert len(await history.read()) == 1 + batch
        await history.clear()
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert await variant(make()).read() == []

    async def test_a_batch_of_any_number_is_refused_or_stored_whole(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy
    ) -> None:
        proxy.schedule = lambda seen: Fault.ERROR_500
        with pytest.raises(ServiceError):
            await variant(through(attempts=2)).add(humans(*range(2500)))
        assert await variant(make()).read() == []
        proxy.schedule = lambda seen: Fault.NONE
        await variant(through()).add(humans(*range(2500)))
        assert texts(await variant(make()).read()) == [str(number) for number in range(2500)]

    async def test_what_history_size_leaves_out_of_a_batch_is_not_stored(self, make: Make, items: Items) -> None:
        await make(history_size=250).aadd_messages(humans(*range(300)))
        assert texts(await make().aget_messages()) == [str(number) for number in range(50, 300)]
        with pytest.raises(ItemTooLargeError, match="A record of 1 values"):
            await make(history_size=1).aadd_messages([*humans(0, 1), HumanMessage(secrets.token_hex(4_500_000))])

    async def test_what_took_too_long_to_encrypt_is_not_stored_behind_its_tombstone(
        self, variant: type[Variant], make: Make, items: Items, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        history, clock = variant(make()), "chathistory_async._item_collection.writer.monotonic"
        with monkeypatch.context() as slow:
            # From the making of the key to the sending of the record.
            slow.setattr(clock, lambda: time.monotonic() + TOMBSTONE_SECONDS // 2 + 1)
            for number in (1, 2):
                with pytest.raises(EndpointError, match="took more than 900 s"):
                    await history.add(humans(*range(number)))
        assert items() == []
        await history.add(humans(1))
        assert texts(await history.read()) == ["1"]


class TestOrder:
    async def test_an_answer_comes_after_its_question_on_any_clock(self, make: Make) -> None:
        asks, answers = make(), make()
        now = int(time.time() * 1000)
        for number, (history, minutes) in enumerate([(asks, 5), (answers, -5)] * 10):
            history._session._reader.clock._now_ms = lambda minutes=minutes: now + minutes * 60_000  # type: ignore[attr-defined]
            assert texts(await history.aget_messages()) == [str(seen) for seen in range(number)]
            await history.aadd_messages(humans(number))
        assert len(await asks.aget_messages()) == 20

    async def test_one_handle_may_read_and_another_write(self, make: Make) -> None:
        ahead = make()
        now = int(time.time() * 1000)
        ahead._session._reader.clock = Clock(lambda: now + 300_000)  # type: ignore[attr-defined]
        await ahead.aadd_messages(humans("question"))
        await make().aget_messages()
        await make().aadd_messages(humans("answer"))
        assert texts(await make().aget_messages()) == ["question", "answer"]

    async def test_what_was_read_counts_after_many_other_sessions_too(
        self, make: Make, put: Any, session_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chathistory_async._item_collection.sort_keys.MAX_CLOCKS", 3)
        monkeypatch.setattr("chathistory_async._item_collection.sort_keys._clocks", clocks := Clocks())
        monkeypatch.setattr("chathistory_async._item_collection.reader.clock_of", clocks.of)
        put(str(SortKey(int(time.time() * 1000 + 300_000) << 16, "f" * 16)), **body("question, by a clock ahead"))
        await make().aget_messages()
        for other in range(8):
            await make(session=f"{session_id}-{other}").aadd_messages(humans(1))
        await make().aadd_messages(humans("answer"))
        assert texts(await make().aget_messages()) == ["question, by a clock ahead", "answer"]

    async def test_what_a_handle_wrote_unread_comes_before_what_it_writes(self, make: Make) -> None:
        history = make()
        history._session._reader.clock = Clock(lambda: 1_700_000_000_000)  # type: ignore[attr-defined]
        for number in range(30):
            await history.aadd_messages(humans(number))
        assert texts(await history.aget_messages()) == [str(number) for number in range(30)]

    def test_of_two_processes_whose_clocks_are_five_minutes_apart(
        self, make: Make, collection_table: str, session_id: str
    ) -> None:
        program = """
import sys, time
table, session, offset = sys.argv[1:]
real = time.time_ns
time.time_ns = lambda: real() + int(offset) * 10**9
from langchain_core.messages import HumanMessage
from chathistory_async import DynamoDBChatMessageHistory
history = DynamoDBChatMessageHistory(table, session, sort_key_name="MessageId")
for line in sys.stdin:
    seen = len(history.messages)
    history.add_user_message(str(seen))
    print(seen, flush=True)
"""
        command = [sys.executable, "-c", program, collection_table, session_id]
        hosts = [
            subprocess.Popen([*command, str(offset)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for offset in (150, -150)
        ]
        try:
            for number in range(12):
                host = hosts[number % 2]
                assert host.stdin is not None
                assert host.stdout is not None
                host.stdin.write("go\n")
                host.stdin.flush()
                assert host.stdout.readline() == f"{number}\n"
        finally:
            for host in hosts:
                host.communicate(timeout=30)
        history = make()
        assert texts(history.messages) == [str(number) for number in range(12)]

    async def test_a_batch_stays_together_among_others(self, variant: type[Variant], make: Make) -> None:
        await asyncio.gather(*(variant(make()).add(humans(*[writer] * 150)) for writer in range(4)))
        stored = texts(await make().aget_messages())
        assert stored == [text for text in stored[::150] for _ in range(150)]


class TestWrongTable:
    """In a table without a sort key every session is an item of langchain-community's."""

    @pytest.fixture
    def wrong(self, make: Make, table: str, proxy: Proxy) -> DynamoDBChatMessageHistory:
        """A handle of a process that has done nothing yet, on a table without a sort key."""
        return make(table_name=table, endpoint_url=proxy.url)

    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("stored", [0, 5])
    @pytest.mark.parametrize("read_before", [False, True])
    async def test_the_first_append_is_refused_and_writes_nothing(
        self,
        variant: type[Variant],
        make: Make,
        wrong: DynamoDBChatMessageHistory,
        item: Callable[[], Any],
        batch: int,
        stored: int,
        read_before: bool,
    ) -> None:
        single = make(table_name=wrong.table_name, sort_key_name=None)
        if stored:
            await single.aadd_messages(humans(*range(stored)))
        before = item()
        if read_before:
            with pytest.raises(KeySchemaError):
                await wrong.aget_messages()
        for _ in range(2):
            with pytest.raises(KeySchemaError, match="sort_key_name") as caught:
                await variant(wrong).add(humans(*range(batch)))
            assert caught.value.session_key == wrong.key
        assert item() == before
        assert len(await single.aget_messages()) == stored

    async def test_the_first_append_of_one_message_reads_once_to_know(
        self, variant: type[Variant], make: Make, proxy: Proxy
    ) -> None:
        proxy.measure = True
        for number in range(3):
            await variant(make(endpoint_url=proxy.url)).add(humans(number))
        assert proxy.operations() == ["GetItem", "PutItem", "PutItem", "PutItem"]
        assert proxy.units[0] == 0.5

    async def test_a_read_or_a_batch_shows_the_sort_key_as_well(self, make: Make, proxy: Proxy) -> None:
        await make(endpoint_url=proxy.url).aget_messages()
        await make(endpoint_url=proxy.url).aadd_messages(humans(1))
        assert proxy.operations() == ["Query", "PutItem"]
        proxy.seen.clear()
        options: dict[str, Any] = {"endpoint_url": proxy.url, "config": Config(read_timeout=20)}
        await make(**options).aadd_messages(humans(secrets.token_hex(400_000)))
        await make(**options).aadd_messages(humans(3))
        assert proxy.operations() == ["TransactWriteItems", "PutItem"]

    async def test_who_may_not_read_may_append(self, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.DENIED if seen.operation == "GetItem" else Fault.NONE
        for number in range(2):
            await make(endpoint_url=proxy.url, fast_path=False).aadd_messages(humans(number))
        assert proxy.operations() == ["GetItem", "PutItem", "PutItem"]
        assert texts(await make().aget_messages()) == ["0", "1"]

    async def test_every_other_method_says_so(self, make: Make, table: str, items_in: Any) -> None:
        some_id = "0" * 16 + "-" + "0" * 16 + "-" + "0" * 6
        for wrong in (make(table_name=table), make(primary_key_name="other"), make(sort_key_name="other")):
            for attempt in (
                wrong.aget_messages(),
                wrong.aget_messages(limit=1),
                wrong.apage(1),
                wrong.aclear(),
                wrong.apop_message(),
                wrong.adelete_messages([some_id]),
                wrong.areplace_message(some_id, HumanMessage("x")),
                wrong.aadd_messages(humans(1)),
            ):
                with pytest.raises(KeySchemaError, match="check primary_key_name, key and sort_key_name"):
                    await attempt
        assert items_in(table) == []

    @pytest.mark.real_engine("moto does not check a key's type or size")
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("value", [5, b"x", "x" * 2049], ids=["number", "binary", "too-long"])
    async def test_and_a_key_of_another_type_or_size(self, make: Make, value: Any, batch: int) -> None:
        with pytest.raises(KeySchemaError):
            await make(key={"SessionId": value}).aadd_messages(humans(*range(batch)))


class TestTTL:
    async def test_each_message_expires_by_itself(self, variant: type[Variant], make: Make, put: Any) -> None:
        put(old_key(1), **body("expired"), expireAt={"N": str(int(time.time()))})
        put(old_key(2), **body("alive"), expireAt={"N": str(int(time.time()) + 60)})
        put(old_key(3), **body("no number"), expireAt={"S": "2020"})
        await variant(make(ttl=60)).add(humans("new"))
        assert texts(await variant(make()).read()) == ["alive", "no number", "new"]
        assert texts(await make().aget_messages(limit=3)) == ["alive", "no number", "new"]
        assert len((await make().apage(9)).messages) == 3

    async def test_what_has_expired_does_not_count(self, variant: type[Variant], make: Make, put: Any) -> None:
        for number in range(8):
            expired = {"expireAt": {"N": "1"}} if number % 2 else {}
            put(old_key(number, 9000 - number), **body(str(number)), **expired)
        assert texts(await variant(make(history_size=2)).read()) == ["4", "6"]
        assert texts(await make().aget_messages(limit=3)) == ["2", "4", "6"]

    async def test_without_it_no_expiry_is_stored(self, variant: type[Variant], make: Make, items: Items) -> None:
        await variant(make()).add(humans(1))
        assert "expireAt" not in items()[0]


class TestClear:
    @pytest.mark.parametrize(
        "expiry", [{}, {"expireAt": {"S": "x"}}, {"expireAt": {"N": "1"}}, {"expireAt": {"N": "9" * 38}}], ids=str
    )
    async def test_leaves_no_body_beside_a_mark_of_removal(
        self, make: Make, put: Any, items: Items, proxy: Proxy, expiry: dict[str, Any]
    ) -> None:
        put(old_key(age_seconds=-(10**8)), RemovedBy={"S": "x"}, **body("secret"), **expiry)
        await make().aclear()
        assert not any("History" in item for item in items())
        await make(endpoint_url=proxy.url).aclear()
        assert proxy.operations() == ["Query"], "a tombstone is left as it is"

    async def test_deletes_a_tombstone_whose_time_is_over(self, make: Make, put: Any, items: Items) -> None:
        put(old_key(age_seconds=0), RemovedBy={"S": "x"}, expireAt={"N": str(int(time.time()) - 1)})
        await make().aclear()
        assert items() == []

    async def test_leaves_only_tombstones_that_expire_and_hold_nothing(
        self, variant: type[Variant], make: Make, items: Items
    ) -> None:
        for number in range(30):
            await variant(make(ttl=9)).add(humans(number))
        await variant(make()).clear()
        for item in items():
            assert set(item) == {"SessionId", "MessageId", REMOVED_BY, "expireAt"}
            assert abs(int(item["expireAt"]["N"]) - time.time() - TOMBSTONE_SECONDS) < 30
        assert len(items()) == 30
        await variant(make()).add(humans("anew"))
        assert texts(await variant(make()).read()) == ["anew"]

    async def test_deletes_for_good_what_no_request_can_bring_back(
        self, variant: type[Variant], make: Make, put: Any, items: Items
    ) -> None:
        for number in range(60):
            put(old_key(number), **(body("old") if number % 2 else {REMOVED_BY: {"S": "x"}}))
        await variant(make()).clear()
        assert items() == []

    async def test_leaves_what_comes_after_it(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy
    ) -> None:
        await variant(make()).add(humans(*range(5)))

        def append_before_the_removal(seen: Any) -> Fault:
            if seen.operation == "BatchWriteItem":
                make().add_messages(humans("after"))
            return Fault.NONE

        proxy.schedule = append_before_the_removal
        await variant(through()).clear()
        assert texts(await variant(make()).read()) == ["after"]

    @pytest.mark.sampled
    @pytest.mark.parametrize("fault", UNANSWERED + NOT_STORED)
    async def test_is_retried(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy, fault: Fault
    ) -> None:
        for number in range(70):
            await variant(make()).add(humans(number))
        proxy.script(fault, fault, operation="BatchWriteItem")
        await variant(through()).clear()
        assert await variant(make()).read() == []

    async def test_takes_what_was_left_unprocessed_again(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, collection_table: str
    ) -> None:
        history = make()
        for number in range(40):
            await history.aadd_messages(humans(number))
        access: Any = history._session.access
        real, asked = access.call, list[int]()

        async def half(request: Any) -> Any:
            if request.operation != "batch_write_item":
                return await real(request)
            actions = request.parameters["RequestItems"][collection_table]
            asked.append(len(actions))
            done, left = actions[: len(actions) // 2 + 1], actions[len(actions) // 2 + 1 :]
            request.parameters["RequestItems"][collection_table] = done
            answer = await real(request)
            return answer | {"UnprocessedItems": {collection_table: left} if left else {}}

        monkeypatch.setattr(access, "call", half)
        await history.aclear()
        assert len(asked) > 4
        assert await history.aget_messages() == []


class TestHistorySize:
    @pytest.mark.parametrize("size", [1, *(pytest.param(size, marks=pytest.mark.stress) for size in (5, 20))])
    async def test_stored_messages_stay_within_a_slack(
        self, variant: type[Variant], make: Make, stored: Any, size: int
    ) -> None:
        most = 0
        for number in range(3 * size + 20):
            history = variant(make(history_size=size))
            assert len(await history.read()) == min(size, number)
            await history.add(humans(number))
            most = max(most, len(stored()))
        assert most < size + slack(size) + 1

    async def test_leaves_what_others_made_room_for(self, variant: type[Variant], make: Make) -> None:
        one, other = variant(make(history_size=10)), make(history_size=10)
        await one.add(humans(*range(10)))
        await one.read()
        for _ in range(8):
            await other.apop_message()
        await one.add(humans(*"abcd"))
        assert texts(await one.read()) == ["0", "1", "a", "b", "c", "d"]

    async def test_a_look_that_fails_does_not_fail_the_append(self, through: Through, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.DENIED if seen.operation == "Query" else Fault.NONE
        for number in range(40):
            await through(history_size=1).aadd_messages(humans(number))
        assert "Query" in proxy.operations()

    async def test_does_not_let_a_late_request_bring_back_what_was_cleared(
        self, through: Through, make: Make, proxy: Proxy
    ) -> None:
        proxy.script(Fault.LATE_REQUEST)
        await through().aadd_messages(humans("cleared"))
        await make().aclear()
        history = make(history_size=1)
        for number in range(8):
            await history.aget_messages()
            await history.aadd_messages(humans(number))
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert "cleared" not in texts(await make().aget_messages())

    async def test_of_one_handle_that_only_writes(self, make: Make, stored: Any) -> None:
        history = make(history_size=10)
        for number in range(100):
            await history.aadd_messages(humans(number))
        assert 10 <= len(stored()) < 10 + 10 * slack(10), "it is looked into once in as many messages, at random"
        assert texts(await history.aget_messages()) == [str(number) for number in range(90, 100)]

    async def test_a_removal_that_fails_does_not_fail_the_append(
        self, variant: type[Variant], through: Through, proxy: Proxy
    ) -> None:
        history = variant(through(history_size=2, attempts=1))
        await history.read()
        proxy.schedule = lambda seen: Fault.ERROR_500 if seen.operation == "BatchWriteItem" else Fault.NONE
        for number in range(20):
            await history.add(humans(number))
        assert "BatchWriteItem" in proxy.operations()
        assert texts(await history.read()) == ["18", "19"]


class TestCost:
    """The same at message 100 and at message 100,000."""

    async def costs(self, make: Make, proxy: Proxy) -> dict[str, tuple[list[str], list[float]]]:
        def history() -> DynamoDBChatMessageHistory:
            return make(endpoint_url=proxy.url)

        costs = {}
        calls: dict[str, Callable[[], Any]] = {
            "append": lambda: history().aadd_messages(humans("one")),
            "append two": lambda: history().aadd_messages(humans("one", "two")),
            "last 20": lambda: history().aget_messages(limit=20),
            "first page": lambda: history().apage(20),
        }
        for name, call in calls.items():
            proxy.seen.clear()
            proxy.units.clear()
            await call()
            costs[name] = (proxy.operations(), list(proxy.units))
        return costs

    async def fill(self, make: Make, messages: int) -> None:
        """Add so many messages, the last hundred of which are in records of two."""
        history = make()
        turns = asyncio.Semaphore(4)

        async def add(start: int, number: int) -> None:
            async with turns:
                await history.aadd_messages([HumanMessage(f"{at:06}" * 10) for at in range(start, start + number)])

        await asyncio.gather(*(add(start, 100) for start in range(0, messages - 100, 100)))
        await asyncio.gather(*(add(start, 2) for start in range(messages - 100, messages, 2)))

    @pytest.mark.timeout(400)
    @pytest.mark.parametrize("messages", [10_000, pytest.param(100_000, marks=pytest.mark.stress)])
    async def test_does_not_grow_with_the_session(self, make: Make, proxy: Proxy, messages: int) -> None:
        proxy.measure = True
        await self.fill(make, 100)
        # The first append reads once more.
        await make(endpoint_url=proxy.url).aadd_messages(humans("first"))
        at_100 = await self.costs(make, proxy)
        assert {name: operations for name, (operations, _) in at_100.items()} == {
            "append": ["PutItem"],
            "append two": ["PutItem"],
            "last 20": ["Query"],
            "first page": ["Query"],
        }
        assert all(sum(units) > 0 for _, units in at_100.values())
        await self.fill(make, messages)
        await make(endpoint_url=proxy.url).aadd_messages(humans("first"))
        assert await self.costs(make, proxy) == at_100


async def test_a_long_session_is_read_whole_page_by_page(
    variant: type[Variant], through: Through, make: Make, proxy: Proxy
) -> None:
    batch = [HumanMessage(secrets.token_hex(3000)) for _ in range(400)]
    for start in range(0, 400, 10):
        await variant(make()).add(batch[start : start + 10])
    assert await variant(through()).read() == batch
    assert proxy.operations().count("Query") > 1
