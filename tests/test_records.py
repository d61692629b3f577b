"""A batch is one record: its form, its awkward sizes, edits of single messages in it, and its cost."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from conftest import Make
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage, messages_from_dict
from proxy import Fault, Proxy, Seen
from samples import EVERY_TYPE, humans, texts
from variants import (
    CollectionVariant,
    EncryptedCollectionVariant,
    IndexedVariant,
    SdkCollectionVariant,
    SyncCollectionVariant,
    Variant,
    in_stress,
)

from chathistory_async import (
    DynamoDBChatMessageHistory,
    ItemTooLargeError,
    MessageNotFoundError,
    StoredMessage,
    UndecodableItemError,
    WriteOutcomeUnknownError,
)
from chathistory_async._item_collection.layout import PARTS
from chathistory_async._item_collection.records import MAX_TYPES, PART_BYTES, positions_of, text_of
from chathistory_async._item_collection.requests import TOMBSTONE_SECONDS
from chathistory_async._item_collection.revisions import CHANGES_KNOWN
from chathistory_async._item_collection.sort_keys import MAX_VALUES, parse_id
from chathistory_async._item_collection.typical_counts import TypicalCounts

VARIANTS = [
    CollectionVariant,
    EncryptedCollectionVariant,
    IndexedVariant,
    *in_stress(SyncCollectionVariant, SdkCollectionVariant),
]
UNANSWERED = [Fault.LOST_RESPONSE, Fault.LATE_ERROR]

Through = Callable[..., DynamoDBChatMessageHistory]
Items = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def layout(request: pytest.FixtureRequest, collection_table: str) -> dict[str, Any]:
    """The options of an item collection, for the tests without variants too."""
    variant = request.getfixturevalue("variant") if "variant" in request.fixturenames else None
    indexed = {"session_index": True} if variant is not None and variant.indexed else {}
    return {"table_name": collection_table, "sort_key_name": "MessageId", **indexed}


@pytest.fixture
def records(items: Items) -> Items:
    """Reads the raw first items of the test's records, without tombstones."""
    return lambda: [
        item
        for item in items()
        if item["MessageId"]["S"].startswith("m#") and "CreatedAt" in item and "History" in item
    ]


async def all_stored(history: DynamoDBChatMessageHistory) -> list[StoredMessage]:
    pages, cursor = list[list[StoredMessage]](), None
    while True:
        page = await history.apage(3, cursor)
        pages.insert(0, page.messages)
        if (cursor := page.cursor) is None:
            return [message for messages in pages for message in messages]


class TestPositions:
    @given(st.sets(st.integers(0, 300), min_size=1))
    def test_are_read_back(self, positions: set[int]) -> None:
        in_order = sorted(positions)
        assert [*(positions_of(text_of(in_order), len(in_order)) or ())] == in_order

    @given(st.integers(1, MAX_VALUES))
    def test_of_a_whole_record_have_no_text(self, number: int) -> None:
        assert text_of(range(number)) == ""

    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("0,0", 2),
            ("1,0", 2),
            ("0-1", 3),
            ("0-2", 2),
            ("2-1", 1),
            ("-1", 1),
            ("0-", 1),
            ("x", 1),
            ("0,,1", 2),
            (f"{MAX_VALUES}", 1),
            ("9" * 40, 1),
            (f"0-{MAX_VALUES - 1}", 2),
            ("²", 1),
        ],
    )
    def test_that_cannot_be_are_none(self, text: str, count: int) -> None:
        if text == "0-":
            # As short for a run of one.
            assert positions_of(text, count) == [0]
            return
        assert positions_of(text, count) is None

    def test_of_alternate_messages_are_told_in_milliseconds(self) -> None:
        # More often than one call asks; 5,000 runs took 10 ms each time.
        text = text_of(range(1, 10_000, 2))
        began = time.thread_time()
        assert [*(positions_of(text, 5000) or ())] == [*range(1, 10_000, 2)]
        for _ in range(20):
            positions_of(text, 5000)
        assert time.thread_time() - began < 0.1

    async def test_of_many_messages_are_removed_in_linear_time(self, make: Make) -> None:
        ids = [f"{'0' * 16}-{'0' * 16}-{position:06x}" for position in range(20_000)]
        began = time.thread_time()
        await make().adelete_messages(ids)
        assert time.thread_time() - began < 0.5


class TestForm:
    async def test_of_a_turn(self, make: Make, records: Items) -> None:
        turn: list[BaseMessage] = [HumanMessage("né"), AIMessage("answer", id="1")]
        await make(ttl=60).aadd_messages(turn)
        [record] = records()
        assert set(record) == {"SessionId", "MessageId", "History", "CreatedAt", "Type", "Count", "expireAt"}
        assert record["Type"] == {"L": [{"S": "human"}, {"S": "ai"}]}
        assert record["Count"] == {"N": "2"}
        lines = record["History"]["S"].splitlines()
        assert len(lines) == 2, "a line for each message, for who looks at it in the console"
        assert messages_from_dict(json.loads(record["History"]["S"])) == turn

    async def test_of_a_long_batch_is_compressed_whole(self, make: Make, records: Items) -> None:
        batch = humans(*(f"{number} {'again ' * 20}" for number in range(200)))
        await make().aadd_messages(batch)
        [record] = records()
        assert record["Encoding"] == {"S": "zlib"}
        assert record["Count"] == {"N": "200"}
        assert len(record["Type"]["L"]) == MAX_TYPES
        assert messages_from_dict(json.loads(zlib.decompress(record["History"]["B"]))) == batch
        assert len(record["History"]["B"]) < 5000

    async def test_of_an_encrypted_batch_tells_how_many_and_no_types(
        self, make: Make, records: Items, kms_key: str
    ) -> None:
        await make(kms_key_id=kms_key).aadd_messages(humans(1, 2))
        [record] = records()
        assert set(record) == {"SessionId", "MessageId", "History", "CreatedAt", "Count", "Encoding"}
        assert texts(await make(kms_key_id=kms_key).aget_messages()) == ["1", "2"]

    @pytest.mark.parametrize("change", [{"Count": {"N": "3"}}, {"Positions": {"S": "0,2"}}, {"Format": {"S": "json"}}])
    async def test_of_an_encrypted_batch_cannot_be_relabelled(
        self, make: Make, records: Items, dynamodb: Any, layout: dict[str, Any], kms_key: str, change: Any
    ) -> None:
        await make(kms_key_id=kms_key).aadd_messages(humans(1, 2))
        dynamodb.put_item(TableName=layout["table_name"], Item=records()[0] | change)
        with pytest.raises(UndecodableItemError if "Format" not in change else Exception, match="record") as caught:
            await make(kms_key_id=kms_key).aget_messages()
        assert parse_id(caught.value.message_id).position is None  # type: ignore[attr-defined]

    async def test_of_every_type_together(self, variant: type[Variant], make: Make) -> None:
        await variant(make()).add(EVERY_TYPE)
        assert await variant(make()).read() == EVERY_TYPE

    async def test_of_many_small_messages_is_one_item(self, variant: type[Variant], make: Make, records: Items) -> None:
        batch = humans(*range(5000))
        await variant(make()).add(batch)
        assert len(records()) == 1
        assert await variant(make()).read() == batch
        assert texts(await make().aget_messages(limit=3)) == ["4997", "4998", "4999"] or variant.encrypted


class TestSizes:
    """A body of exactly an item, one byte more, several parts, and pages that end within a record."""

    @staticmethod
    def of_body(size: int) -> BaseMessage:
        """A message whose JSON text has so many bytes, and that zlib does not make smaller than an item."""
        empty = len('{"type":"human","data":{"content":""}}')
        return HumanMessage(secrets.token_bytes(size)[: size - empty].hex()[: size - empty])

    async def test_of_more_messages_than_have_positions_is_refused(
        self, make: Make, records: Items, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chathistory_async._item_collection.bodies.MAX_VALUES", 3)
        await make().aadd_messages(humans(0, 1, 2))
        with pytest.raises(ItemTooLargeError, match="smaller batches"):
            await make().aadd_messages(humans(0, 1, 2, 3))
        assert len(records()) == 1

    @pytest.mark.parametrize("more", [-1, 0, 1])
    async def test_around_an_item(self, make: Make, records: Items, items: Items, more: int, monkeypatch: Any) -> None:
        monkeypatch.setattr("chathistory_async._item_collection.bodies.MIN_BYTES", 10**9)
        message = self.of_body(PART_BYTES + more)
        await make().aadd_messages([message])
        [record] = records()
        assert (PARTS in record) == (more > 0)
        assert len(items()) == (2 if more > 0 else 1)
        assert await make().aget_messages() == [message]
        assert await make().aget_messages(limit=1) == [message]

    async def test_of_parts_of_a_batch_are_read_as_one(self, variant: type[Variant], make: Make, items: Items) -> None:
        batch = humans(*(f"{number} {secrets.token_hex(20_000)}" for number in range(60)))
        await variant(make()).add(humans("before"))
        await variant(make()).add(batch)
        await variant(make()).add(humans("after"))
        assert len(items()) > 4
        assert texts(await variant(make()).read()) == ["before", *texts(batch), "after"]
        if not variant.encrypted:
            assert await make().aget_messages(limit=3) == [*batch[-2:], HumanMessage("after")]
            page = await make().apage(4)
            assert [stored.message for stored in page.messages] == [*batch[-3:], HumanMessage("after")]
            page = await make().apage(100, page.cursor)
            assert texts([stored.message for stored in page.messages]) == ["before", *texts(batch[:-3])]
            assert page.cursor is None

    async def test_of_more_than_a_transaction_is_refused_and_nothing_written(
        self, variant: type[Variant], through: Through, proxy: Proxy
    ) -> None:
        batch = [HumanMessage(secrets.token_hex(50_000)) for _ in range(100)]
        with pytest.raises(ItemTooLargeError, match="Append smaller batches") as caught:
            await variant(through()).add(batch)
        assert "A record of 100 values has" in str(caught.value)
        assert "PutItem" not in proxy.operations()
        assert "TransactWriteItems" not in proxy.operations()

    async def test_of_more_values_than_can_be_read_is_refused(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chathistory_async._item_collection.bodies.MAX_VALUES", 5)
        await make().aadd_messages(humans(*range(5)))
        with pytest.raises(ItemTooLargeError):
            await make().aadd_messages(humans(*range(6)))
        assert len(await make().aget_messages()) == 5

    async def test_of_nearly_a_transaction(self, variant: type[Variant], make: Make) -> None:
        batch = [HumanMessage(secrets.token_urlsafe(27_000)) for _ in range(100)]
        await variant(make()).add(batch)
        assert await variant(make()).read() == batch

    async def test_a_reader_never_meets_half_an_append(self, make: Make) -> None:
        done = False

        async def read() -> None:
            while not done:
                history = make()
                messages = texts(await history.aget_messages())
                assert len(messages) % 30 == 0
                assert all(len({*messages[at : at + 30]}) == 1 for at in range(0, len(messages), 30))
                assert len(await history.aget_messages(limit=45)) in (0, 30, 45)

        readers = [asyncio.create_task(read()) for _ in range(2)]
        for number in range(15):
            await make().aadd_messages(humans(*[f"{number} {secrets.token_hex(8000) if number % 5 == 4 else ''}"] * 30))
        done = True
        await asyncio.gather(*readers)


class TestIds:
    async def test_name_messages_in_their_order(self, make: Make) -> None:
        for number in (1, 2, 7, 3):
            await make().aadd_messages(humans(*range(number)))
        stored = await all_stored(make())
        assert texts([one.message for one in stored]) == texts(await make().aget_messages())
        assert [one.id for one in stored] == sorted({one.id for one in stored})
        for before, one in pairwise(stored):
            page = await make().apage(1, one.id)
            assert page.messages == [before]

    async def test_bound_a_read(self, make: Make) -> None:
        for number in (1, 2, 7, 3):
            await make().aadd_messages(humans(*(f"{number}.{position}" for position in range(number))))
        stored = await all_stored(make())
        everything = [one.message for one in stored]
        for index, one in enumerate(stored):
            history = make()
            assert await history.aget_messages(up_to=one.id) == everything[: index + 1]
            for limit in (1, 2, 5, 100):
                assert await history.aget_messages(up_to=one.id, limit=limit) == everything[: index + 1][-limit:]
                page = await history.apage(limit, one.id)
                assert [found.message for found in page.messages] == everything[:index][-limit:]
                assert (page.cursor is None) == (limit >= index)

    async def test_of_a_gone_message_bound_a_read_too(self, make: Make) -> None:
        await make().aadd_messages(humans(0, 1, 2))
        await make().aadd_messages(humans(3))
        stored = await all_stored(make())
        await make().adelete_messages([stored[1].id, stored[3].id])
        assert texts(await make().aget_messages(up_to=stored[1].id)) == ["0"]
        assert texts(await make().aget_messages(up_to=stored[3].id)) == ["0", "2"]
        assert texts([one.message for one in (await make().apage(5, stored[1].id)).messages]) == ["0"]

    async def test_copy_up_to_a_message_within_a_batch(self, make: Make, session_id: str) -> None:
        await make().aadd_messages(humans(0, 1, 2))
        stored = await all_stored(make())
        copy = await make().acopy_to(f"{session_id}-copy", up_to=stored[1].id)
        assert texts(await copy.aget_messages()) == ["0", "1"]

    async def test_a_copy_is_one_batch(self, make: Make, session_id: str, proxy: Proxy) -> None:
        for number in range(5):
            await make().aadd_messages(humans(number))
        copy = await make(endpoint_url=proxy.url).acopy_to(f"{session_id}-copy")
        assert proxy.operations().count("PutItem") == 1
        assert texts(await copy.aget_messages()) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
class TestEdits:
    """Edits of messages within a batch: the other messages keep their ids, positions and content."""

    @staticmethod
    def batch(number: int, large: bool) -> list[BaseMessage]:
        noise = [secrets.token_hex(60_000) if large else "" for _ in range(number)]
        return humans(*(f"{at} {text}" for at, text in enumerate(noise)))

    @pytest.mark.sampled
    async def test_at_random_leave_the_others_as_they_were(
        self, variant: type[Variant], make: Make, records: Items, large: bool
    ) -> None:
        chance = random.Random(5)
        for _ in range(2):
            await variant(make()).add(self.batch(8, large))
        expected = {one.id: one.message for one in await all_stored(make())}
        for step in range(9):
            message_id = chance.choice([*expected])
            if step % 3 == 2:
                expected[message_id] = AIMessage(f"another {step}")
                await make().areplace_message(message_id, expected[message_id])
            elif step % 3 == 1:
                assert await make().apop_message() == expected.pop(max(expected))
            else:
                await make().adelete_messages([message_id])
                del expected[message_id]
            assert {one.id: one.message for one in await all_stored(make())} == expected
            assert await variant(make()).read() == [expected[one] for one in sorted(expected)]
        await make().adelete_messages([*expected])
        assert await variant(make()).read() == []
        assert records() == []

    async def test_keep_the_types_and_the_count_true(self, make: Make, records: Items, large: bool) -> None:
        noise = secrets.token_hex(300_000) if large else ""
        await make().aadd_messages([HumanMessage("a"), AIMessage(noise), ToolMessage("c", tool_call_id="1")])
        first, second, third = await all_stored(make())
        await make().areplace_message(first.id, AIMessage("A"))
        await make().adelete_messages([second.id])
        [record] = records()
        assert record["Type"] == {"L": [{"S": "ai"}, {"S": "tool"}]}
        assert (record["Count"], record["Positions"]) == ({"N": "2"}, {"S": "0,2"})
        assert PARTS not in record
        await make().adelete_messages([first.id])
        [record] = records()
        assert (record["Type"], record["Positions"]) == ({"S": "tool"}, {"S": "2"})
        assert "Count" not in record
        assert json.loads(record["History"]["S"])["type"] == "tool"
        assert [one.id for one in await all_stored(make())] == [third.id]

    async def test_the_last_message_out_leaves_a_tombstone_alone(self, make: Make, items: Items, large: bool) -> None:
        await make().aadd_messages([*self.batch(3, large), HumanMessage(secrets.token_hex(400_000 if large else 1))])
        while await make().apop_message() is not None:
            pass
        left = [item for item in items() if item["MessageId"]["S"].startswith("m#")]
        assert len(left) == 1
        assert "History" not in left[0]
        assert abs(int(left[0]["expireAt"]["N"]) - time.time() - TOMBSTONE_SECONDS) < 30

    @pytest.mark.sampled
    @pytest.mark.parametrize("fault", UNANSWERED)
    async def test_whose_answer_is_lost_are_made_once(
        self, through: Through, make: Make, proxy: Proxy, fault: Fault, large: bool
    ) -> None:
        # Large: the record has several parts until the end.
        batch = self.batch(12 if large else 4, large)
        await make().aadd_messages(batch)
        stored = await all_stored(make())
        operation = "TransactWriteItems" if large else "PutItem"
        proxy.script(fault, operation=operation)
        assert await through().apop_message() == batch[-1]
        proxy.script(fault, operation=operation)
        await through().adelete_messages([stored[0].id])
        proxy.script(fault, operation=operation)
        await through().areplace_message(stored[1].id, AIMessage("new"))
        assert await make().aget_messages() == [AIMessage("new"), *batch[2:-1]]
        assert proxy.operations().count(operation) >= 5

    async def test_each_message_is_popped_by_one(self, make: Make, large: bool) -> None:
        batch = self.batch(6 if large else 12, large)
        await make().aadd_messages(batch[:3])
        await make().aadd_messages(batch[3:])
        popped = await asyncio.gather(*(make().apop_message() for _ in range(len(batch) + 2)))
        found = [message for message in popped if message is not None]
        assert sorted(texts(found)) == sorted(texts(batch))
        assert popped.count(None) == 2

    async def test_of_many_at_once_are_all_made(self, make: Make, large: bool) -> None:
        number = 6 if large else 12
        await make().aadd_messages(self.batch(number, large))
        stored = await all_stored(make())
        await asyncio.gather(
            *(make().areplace_message(one.id, AIMessage(str(at))) for at, one in enumerate(stored) if at % 2),
            *(make().adelete_messages([one.id]) for at, one in enumerate(stored) if not at % 2),
        )
        assert texts(await make().aget_messages()) == [str(at) for at in range(1, number, 2)]


class TestChanges:
    async def test_that_arrive_late_change_nothing(self, through: Through, make: Make, proxy: Proxy) -> None:
        await make().aadd_messages(humans(0, 1, 2))
        stored = await all_stored(make())
        proxy.script(Fault.LATE_REQUEST, operation="PutItem")
        await through().areplace_message(stored[0].id, HumanMessage("late"))
        await make().areplace_message(stored[0].id, HumanMessage("newer"))
        await make().adelete_messages([stored[1].id])
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert texts(await make().aget_messages()) == ["newer", "2"]

    async def test_that_arrive_after_a_clear_bring_nothing_back(
        self, through: Through, make: Make, proxy: Proxy
    ) -> None:
        await make().aadd_messages(humans(0, 1, 2))
        proxy.script(Fault.LATE_REQUEST, operation="PutItem")
        assert await through().apop_message() == HumanMessage("2")
        await make().aclear()
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert await make().aget_messages() == []

    @pytest.mark.parametrize("others", [1, CHANGES_KNOWN - 1, CHANGES_KNOWN])
    async def test_by_others_between_a_lost_answer_and_its_retry(
        self, through: Through, make: Make, proxy: Proxy, others: int
    ) -> None:
        """The record knows its latest changes: by them a retry tells that it was stored, or that this is not known."""
        await make().aadd_messages(humans(0, 1))
        stored = await all_stored(make())
        sent = 0

        def schedule(seen: Seen) -> Fault:
            nonlocal sent
            sent += seen.operation == "PutItem"
            if seen.operation == "PutItem" and sent == 2:
                for number in range(others):
                    make().replace_message(stored[0].id, HumanMessage(f"theirs {number}"))
            return Fault.LOST_RESPONSE if seen.operation == "PutItem" and sent == 1 else Fault.NONE

        proxy.schedule = schedule
        if others == CHANGES_KNOWN:
            with pytest.raises(WriteOutcomeUnknownError, match="read the session before you try again"):
                await through().apop_message()
        else:
            assert await through().apop_message() == HumanMessage("1")
        assert texts(await make().aget_messages()) == [f"theirs {others - 1}"]

    async def test_of_a_record_that_was_cleared_meanwhile(self, through: Through, make: Make, proxy: Proxy) -> None:
        await make().aadd_messages(humans(0, 1))
        stored = await all_stored(make())

        def schedule(seen: Seen) -> Fault:
            if seen.operation == "PutItem":
                make().clear()
            return Fault.NONE

        proxy.schedule = schedule
        await through().adelete_messages([stored[0].id])
        assert await through().apop_message() is None
        with pytest.raises(MessageNotFoundError):
            await through().areplace_message(stored[1].id, HumanMessage("x"))
        assert await make().aget_messages() == []

    async def test_renew_the_expiry_only_where_they_replace(self, make: Make, records: Items) -> None:
        await make(ttl=1000).aadd_messages(humans(0, 1, 2))
        [before] = [record["expireAt"]["N"] for record in records()]
        stored = await all_stored(make())
        await make(ttl=9000).adelete_messages([stored[0].id])
        await make(ttl=9000).apop_message()
        assert [record["expireAt"]["N"] for record in records()] == [before]
        await make(ttl=9000).areplace_message(stored[1].id, HumanMessage("x"))
        [after] = [record["expireAt"]["N"] for record in records()]
        assert int(after) > int(before) + 5000
        for history in (make(), make(ttl=5)):
            await history.areplace_message(stored[1].id, HumanMessage("y"))
            assert [record["expireAt"]["N"] for record in records()] == [after]

    async def test_of_what_never_expires_leave_it_so(self, make: Make, records: Items) -> None:
        await make().aadd_messages(humans(0, 1))
        [stored, _] = await all_stored(make())
        await make(ttl=5).areplace_message(stored.id, HumanMessage("x"))
        assert "expireAt" not in records()[0]


async def test_many_ids_of_one_record_are_taken_in_at_once(make: Make) -> None:
    # In 0.3 s; in minutes where each id copies the ones before it.
    await make().adelete_messages(f"{1:016x}-{1:016x}-{position:06x}" for position in range(200_000))


async def test_many_who_change_other_messages_of_a_record_wait_for_their_turns(make: Make) -> None:
    await make().aadd_messages(humans(*range(30)))
    ids = [one.id for one in await all_stored(make())]
    await asyncio.gather(*(make().areplace_message(one, HumanMessage("new")) for one in ids))
    assert texts(await make().aget_messages()) == ["new"] * 30


class TestDamage:
    @pytest.fixture
    def damage(self, dynamodb: Any, layout: dict[str, Any], records: Items) -> Callable[..., None]:
        def damage(**changes: Any) -> None:
            [record] = records()
            dynamodb.put_item(TableName=layout["table_name"], Item=record | changes)

        return damage

    @pytest.mark.sampled
    @pytest.mark.parametrize(
        "changes",
        [
            {"Count": {"N": "3"}},
            {"Count": {"N": "0"}},
            {"Count": {"N": "9" * 38}},
            {"Count": {"S": "2"}},
            {"Positions": {"S": "0-9"}},
            {"Positions": {"S": "x"}},
            {"Positions": {"L": []}},
            {"History": {"S": "[]"}},
            {"History": {"S": "nothing"}},
            {"History": {"S": '{"type":"human","data":{"content":"x"}}'}},
        ],
        ids=str,
    )
    async def test_of_a_record_names_it_and_is_deleted_by_that_name(
        self, variant: type[Variant], make: Make, damage: Callable[..., None], changes: Any
    ) -> None:
        await variant(make()).add(humans(0, 1))
        damage(**changes)
        await variant(make()).add(humans("fine"))
        with pytest.raises(UndecodableItemError) as caught:
            await variant(make()).read()
        record_id = caught.value.message_id
        assert record_id is not None
        assert parse_id(record_id).position is None
        assert texts(await make().aget_messages(limit=1)) == ["fine"]
        await make().adelete_messages([record_id])
        assert texts(await variant(make()).read()) == ["fine"]

    @pytest.mark.parametrize("positions", ["x", "0-1", "1000000000"])
    async def test_of_the_position_of_one_message_names_the_record(
        self, variant: type[Variant], make: Make, damage: Callable[..., None], positions: str
    ) -> None:
        await variant(make()).add(humans(0))
        damage(Positions={"S": positions})
        await variant(make()).add(humans("fine"))
        with pytest.raises(UndecodableItemError, match="record") as caught:
            await variant(make()).read()
        record_id = str(caught.value.message_id)
        assert parse_id(record_id).position is None
        await make().adelete_messages([record_id])
        assert texts(await variant(make()).read()) == ["fine"]

    async def test_of_a_message_that_is_no_unicode_does_not_keep_the_others_from_being_changed(
        self, make: Make, damage: Callable[..., None]
    ) -> None:
        await make().aadd_messages(humans(0, 1, 2))
        ids = [one.id for one in await all_stored(make())]
        fine = b'{"type":"human","data":{"content":"x"}}'
        damage(History={"B": b"[\xff,\n%b,\n%b]" % (fine, fine)})
        await make().areplace_message(ids[1], HumanMessage("new"))
        await make().adelete_messages([ids[2]])
        with pytest.raises(UndecodableItemError) as caught:
            await make().aget_messages()
        assert caught.value.message_id == ids[0]
        await make().adelete_messages([ids[0]])
        assert texts(await make().aget_messages()) == ["new"]

    async def test_of_one_message_names_that_one(self, make: Make, damage: Callable[..., None]) -> None:
        await make().aadd_messages(humans(0, 1, 2))
        ids = [one.id for one in await all_stored(make())]
        fine = '{"type":"human","data":{"content":"x"}}'
        damage(History={"S": f'[{fine},\n{{"type":"human"}},\n{fine}]'})
        with pytest.raises(UndecodableItemError) as caught:
            await make().aget_messages()
        assert caught.value.message_id == ids[1]
        assert texts(await make().aget_messages(limit=1)) == ["x"]
        await make().adelete_messages([ids[1]])
        assert texts(await make().aget_messages()) == ["x", "x"]
        assert [one.id for one in await all_stored(make())] == [ids[0], ids[2]]

    async def test_of_a_record_does_not_keep_an_id_of_another_from_being_used(self, make: Make) -> None:
        await make().aadd_messages(humans(0))
        record_id = (await all_stored(make()))[0].id[:-7]
        with pytest.raises(ValueError, match="is the id of a record, not of a message"):
            await make().areplace_message(record_id, HumanMessage("x"))
        assert await make().aget_messages(up_to=record_id) == humans(0)
        assert (await make().apage(5, record_id)).messages == []

    async def test_a_record_of_alternate_messages_is_refused_before_its_item_overflows(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chathistory_async._item_collection.edits.MAX_POSITIONS_BYTES", 20)
        await make().aadd_messages(humans(*range(40)))
        ids = [one.id for one in await all_stored(make())]
        with pytest.raises(ItemTooLargeError, match="remove all of its messages, or fewer"):
            await make().adelete_messages(ids[::2])
        assert len(await make().aget_messages()) == 40


class TestLatest:
    """How many records are asked for."""

    async def read_cost(self, make: Make, proxy: Proxy, limit: int, **options: Any) -> tuple[int, int]:
        proxy.seen.clear()
        proxy.answers.clear()
        found = await make(endpoint_url=proxy.url, **options).aget_messages(limit=limit)
        assert len(found) == limit
        read = sum(len(body) for operation, _, body in proxy.answers if operation == "Query")
        return proxy.operations().count("Query"), read

    @pytest.mark.parametrize("size", [1, 2, 6, 50])
    async def test_are_read_by_one_request_of_little_more(self, make: Make, proxy: Proxy, size: int) -> None:
        for _ in range(max(4, 120 // size)):
            await make().aadd_messages(humans(*["0123456789" * 5] * size))
        for limit in (1, size, 20, 60):
            queries, read = await self.read_cost(make, proxy, limit)
            assert queries == 1
            assert read <= 200 * max(size, 2 * limit) + 600

    async def test_of_unlike_records_are_read_by_few(self, make: Make, proxy: Proxy) -> None:
        for size in (30, 1, 1, 1, 1, 30, 1, 1, 1, 1, 1, 1, 1, 1):
            await make().aadd_messages(humans(*["x"] * size))
        queries, _ = await self.read_cost(make, proxy, 20)
        assert queries <= 3


class TestTypicalCounts:
    def test_of_turns_that_differ_are_between_them(self) -> None:
        counts = TypicalCounts()
        for number in [1, 20] * 10:
            counts.see("table", "session", [number])
            assert 3 <= counts.records_for("table", "session", 50) <= 60
        for number in (20, 1):
            counts.see("table", "session", [number])
            assert 4 <= counts.records_for("table", "session", 50) <= 9

    def test_follow_a_session_that_changes(self) -> None:
        counts = TypicalCounts()
        for number in [100] * 50 + [2] * 50:
            counts.see("table", "session", [number])
        assert counts.records_for("table", "session", 20) == 11

    def test_of_an_unknown_session_are_those_of_its_table(self) -> None:
        counts = TypicalCounts()
        assert counts.records_for("table", "unknown", 20) == 11
        counts.see("table", "session", [6, 6])
        assert counts.records_for("table", "unknown", 20) == 4


class TestCost:
    """In write units: measured for single writes; by AWS's rule from the sizes for transactions."""

    @staticmethod
    def turn() -> list[BaseMessage]:
        """Whose JSON has 900 bytes together."""
        turn: list[BaseMessage] = [HumanMessage("x" * 300), AIMessage("y" * 300)]
        missing = 900 - sum(len(json.dumps({"type": one.type, "data": one.model_dump()})) for one in turn)
        return [HumanMessage("x" * (300 + missing)), turn[1]]

    @staticmethod
    def units_of(proxy: Proxy) -> int:
        """AWS's rule: a unit for each KB that is begun, of each item, twice in a transaction."""
        from chathistory_async._codec.attribute_values import size_of

        units = 0
        for seen in proxy.seen:
            actions = [next(iter(action.values())) for action in seen.body.get("TransactItems", [])]
            items = [action["Item"] for action in actions if "Item" in action]
            updates = [action for action in actions if "UpdateExpression" in action]
            units += 2 * sum(-(-size_of({"M": item}) // 1024) for item in items) + 2 * len(updates)
        return units

    @pytest.mark.real_engine("moto does not tell the units of a write")
    @pytest.mark.parametrize(("messages", "units"), [("turn", 1), ("six", 2)])
    async def test_of_single_writes(self, make: Make, proxy: Proxy, messages: str, units: int) -> None:
        proxy.measure = True
        batch = self.turn() if messages == "turn" else humans(*["z" * 180] * 6)
        await make(endpoint_url=proxy.url).aadd_messages(batch)
        writes = [cost for seen, cost in zip(proxy.seen, proxy.units, strict=True) if seen.operation == "PutItem"]
        assert writes == [units]

    @pytest.mark.real_engine("moto does not tell the units of a write")
    async def test_of_five_hundred_entries_is_that_of_their_compressed_size(
        self, make: Make, proxy: Proxy, records: Items
    ) -> None:
        proxy.measure = True
        await make(endpoint_url=proxy.url).aadd_messages(humans(*(f"{n} " + "entry " * 160 for n in range(500))))
        [record] = records()
        compressed = len(record["History"]["B"])
        writes = [cost for seen, cost in zip(proxy.seen, proxy.units, strict=True) if seen.operation == "PutItem"]
        assert compressed < 20_000
        assert writes[0] <= (compressed + 1500) // 1024 + 2

    async def test_of_a_turn_with_the_session_index(
        self, collection_table: str, session_id: str, proxy: Proxy, new_store: Any
    ) -> None:
        """Two items in a transaction, and the entry in the owner's index."""
        store = new_store(endpoint_url=proxy.url)
        history = store.session(session_id, owner="somebody")
        await history.aadd_messages(humans("first"))
        proxy.seen.clear()
        await history.aadd_messages(self.turn())
        assert proxy.operations() == ["TransactWriteItems"]
        in_the_index = 2  # A changed sort key is a deletion and a put.
        assert self.units_of(proxy) + in_the_index == 6

    async def test_of_a_clear_is_a_tombstone_for_each_append(
        self, make: Make, through: Through, proxy: Proxy, items: Items
    ) -> None:
        """40 messages that are stored in twos leave 20 empty items, which one request writes."""
        history = make()
        for turn in range(20):
            await history.aadd_messages(humans(turn, turn))
        proxy.seen.clear()
        await through().aclear()
        assert proxy.operations() == ["Query", "BatchWriteItem"]
        tombstones = [item for item in items() if item["MessageId"]["S"].startswith("m#")]
        assert len(tombstones) == 20
        assert not any("History" in item for item in tombstones)
