"""What a history does, held by its asynchronous and its synchronous face alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from conftest import Make
from faces import Face
from langchain_core.messages import AIMessage, HumanMessage
from proxy import Proxy
from samples import EVERY_TYPE, FLOATS, humans, texts

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async._single_item import WRITES

ODD_NAMES = ["Data", "ttl", "chat-history", "a.b", "with space", "#x", ":x", "[0]", "名前", "size", "AND"]


async def test_a_session_that_was_never_written_is_empty(face: type[Face], make: Make) -> None:
    assert await face(make()).read() == []


async def test_messages_come_back_in_the_order_they_were_added(face: type[Face], make: Make) -> None:
    history = face(make())
    await history.add(humans(1, 2, 3))
    await history.add(humans(4))
    await history.add(humans(5, 6))
    assert texts(await history.read()) == ["1", "2", "3", "4", "5", "6"]


async def test_every_type_of_message_comes_back_equal(face: type[Face], make: Make) -> None:
    await face(make()).add(EVERY_TYPE)
    back = await face(make()).read()
    assert back == EVERY_TYPE
    assert [type(message) for message in back] == [type(message) for message in EVERY_TYPE]


@pytest.mark.parametrize("coerce", [False, True])
async def test_floats_come_back_exactly_and_as_json_numbers(face: type[Face], make: Make, coerce: bool) -> None:
    history = make(coerce_float_to_decimal=coerce)
    message = AIMessage("", response_metadata={"floats": FLOATS}, additional_kwargs={"whole": 1e22})
    await face(history).add([message])
    [back] = await face(history).read()
    assert back == message
    assert {type(number) for number in back.response_metadata["floats"]} <= {int, float}


async def test_bytes_and_sets_come_back_equal(face: type[Face], make: Make) -> None:
    extra = {"bytes": b"\x00\xff", "empty": b"", "texts": {"a", "b"}, "numbers": {1, 2.5}, "blobs": {b"a", b"\xff"}}
    message = HumanMessage("x", additional_kwargs=extra)
    await face(make()).add([message])
    assert await face(make()).read() == [message]


async def test_a_handle_sees_what_another_wrote(face: type[Face], make: Make) -> None:
    one, other = face(make()), face(make())
    await one.add(humans("from one"))
    await other.add(humans("from other"))
    assert texts(await one.read()) == texts(await other.read()) == ["from one", "from other"]


async def test_sessions_do_not_mix(face: type[Face], make: Make, session_id: str) -> None:
    await face(make()).add(humans("mine"))
    other = face(make(session=session_id + "-other"))
    assert await other.read() == []
    await other.clear()
    assert texts(await face(make()).read()) == ["mine"]


async def test_clear_deletes_the_session_and_only_then(face: type[Face], make: Make, item: Any, update: Any) -> None:
    history = face(make())
    await history.add(humans(1, 2))
    update(title={"S": "another's attribute"})
    await history.clear()
    assert await history.read() == []
    assert item() is None
    await history.add(humans(3))
    assert texts(await history.read()) == ["3"]


async def test_clearing_nothing_does_nothing(face: type[Face], make: Make, item: Any) -> None:
    await face(make()).clear()
    assert item() is None


async def test_a_session_cleared_by_another_handle_begins_anew(face: type[Face], make: Make) -> None:
    one, other = face(make()), face(make())
    await one.add(humans(1))
    await other.clear()
    await one.add(humans(2))
    assert texts(await other.read()) == ["2"]


async def test_adding_nothing_writes_nothing(face: type[Face], make: Make, item: Any) -> None:
    await face(make()).add([])
    assert item() is None


async def test_attributes_of_others_survive_an_append(face: type[Face], make: Make, item: Any, update: Any) -> None:
    update(title={"S": "stored before any message"}, owner={"S": "someone"})
    history = face(make())
    assert await history.read() == []
    await history.add(humans(1))
    await history.add(humans(2))
    assert texts(await history.read()) == ["1", "2"]
    assert (item()["title"], item()["owner"]) == ({"S": "stored before any message"}, {"S": "someone"})


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_attributes_may_have_any_name(face: type[Face], make: Make, item: Any, name: str) -> None:
    history = face(make(history_messages_key=name, ttl_key_name=f"{name}2", ttl=60, history_size=2))
    await history.add(humans(1, 2))
    await history.add(humans(3))
    assert texts(await history.read()) == ["2", "3"]
    assert {name, f"{name}2"} < set(item())


async def test_an_eventually_consistent_read_is_asked_for_only_on_request(
    face: type[Face], through: Callable[..., DynamoDBChatMessageHistory], proxy: Proxy
) -> None:
    for consistent in (True, False):
        await face(through(consistent_read=consistent)).read()
    assert [seen.body["ConsistentRead"] for seen in proxy.seen] == [True, False]


class TestCost:
    """An append is one request that does not read; a read is one request."""

    @pytest.fixture
    def cost(self, proxy: Proxy) -> Callable[[], list[str]]:
        def cost() -> list[str]:
            operations = proxy.operations()
            proxy.seen.clear()
            return operations

        return cost

    async def test_of_appends(self, face: type[Face], through: Any, cost: Any) -> None:
        history = face(through())
        for number in range(5):
            await history.add(humans(number, number))
            assert cost() == ["UpdateItem"]
        for number in range(3):
            await face(through()).add(humans(number))
            assert cost() == ["UpdateItem"]

    async def test_of_a_turn_with_history_size(self, face: type[Face], through: Any, cost: Any) -> None:
        for number in range(8):
            history = face(through(history_size=5))
            await history.read()
            await history.add(humans(f"question {number}", f"answer {number}"))
            assert cost() == ["GetItem", "UpdateItem"]

    async def test_of_appends_with_history_size_that_never_read(
        self, face: type[Face], through: Any, cost: Any
    ) -> None:
        history = face(through(history_size=3))
        await history.add(humans(1, 2))
        assert cost() == ["UpdateItem"]
        await history.add(humans(3, 4))
        assert cost() == ["UpdateItem"] * 2, "the guess that there is room was wrong, and the refusal told the length"
        for number in range(5):
            await history.add(humans(number))
            assert cost() == ["UpdateItem"]

    async def test_of_a_clear(self, face: type[Face], through: Any, cost: Any) -> None:
        history = face(through())
        await history.clear()
        assert cost() == ["GetItem"]
        await history.add(humans(1))
        cost()
        await history.clear()
        assert cost() == ["GetItem", "DeleteItem"]

    async def test_no_message_is_sent_back(self, face: type[Face], through: Any, proxy: Proxy) -> None:
        await face(through()).add(humans(1))
        assert "ReturnValues" not in proxy.seen[0].body


class TestHistorySize:
    async def test_keeps_the_latest(self, face: type[Face], make: Make, item: Any) -> None:
        history = face(make(history_size=4))
        for number in range(10):
            await history.add(humans(number))
            kept = [str(n) for n in range(max(0, number - 3), number + 1)]
            assert texts(await history.read()) == kept
            assert len(item()["History"]["L"]) == len(kept)

    @pytest.mark.parametrize("batch", [2, 3, 4, 5, 9])
    async def test_with_batches(self, face: type[Face], make: Make, batch: int) -> None:
        history = face(make(history_size=4))
        expected: list[str] = []
        for start in range(0, 5 * batch, batch):
            await history.add(humans(*range(start, start + batch)))
            expected = (expected + [str(n) for n in range(start, start + batch)])[-4:]
            assert texts(await face(make()).read()) == expected

    @pytest.mark.parametrize(("stored", "size", "batch"), [(9, 3, 2), (300, 20, 2), (300, 280, 150), (90, 95, 20)])
    async def test_set_on_a_session_that_outgrew_it(
        self, face: type[Face], make: Make, stored: int, size: int, batch: int
    ) -> None:
        blob = HumanMessage("with bytes", additional_kwargs={"bytes": b"\xff"})
        await face(make()).add([*humans(*range(stored - 1)), blob])
        new = humans(*range(1000, 1000 + batch))
        expected = [*humans(*range(stored - 1)), blob, *new][-size:]
        await face(make(history_size=size)).add(new)
        assert await face(make()).read() == expected

    @pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
    async def test_must_be_a_positive_integer(self, make: Make, size: Any) -> None:
        with pytest.raises(ValueError, match="history_size must be a positive integer"):
            make(history_size=size)


class TestTTL:
    async def test_every_append_sets_it(self, face: type[Face], make: Make, item: Any, update: Any) -> None:
        history = face(make(ttl=60))
        for _ in range(2):
            before = int(time.time())
            await history.add(humans(1))
            assert before + 60 <= int(item()["expireAt"]["N"]) <= time.time() + 60
            update(expireAt={"N": str(before + 5)})

    async def test_without_it_no_expiry_is_stored_and_a_stored_one_stays(
        self, face: type[Face], make: Make, item: Any, update: Any
    ) -> None:
        await face(make()).add(humans(1))
        assert "expireAt" not in item()
        update(expireAt={"N": "9999999999"})
        await face(make()).add(humans(2))
        assert item()["expireAt"] == {"N": "9999999999"}

    @pytest.mark.parametrize("handle_ttl", [None, 60])
    async def test_an_expired_session_is_gone(
        self, face: type[Face], make: Make, item: Any, update: Any, handle_ttl: int | None
    ) -> None:
        await face(make()).add(humans("old"))
        update(expireAt={"N": str(int(time.time()) - 1)}, title={"S": "gone too"})
        history = face(make(ttl=handle_ttl))
        assert await history.read() == []
        await history.add(humans("new"))
        assert texts(await history.read()) == ["new"]
        assert "title" not in item()
        assert ("expireAt" in item()) is (handle_ttl is not None)
        await history.add(humans("newer"))
        assert texts(await history.read()) == ["new", "newer"]

    async def test_a_handle_that_knew_the_session_does_not_revive_it(
        self, face: type[Face], make: Make, update: Any
    ) -> None:
        history = face(make(history_size=3, ttl=60))
        await history.add(humans(1, 2, 3))
        await history.read()
        update(expireAt={"N": str(int(time.time()))})
        await history.add(humans("new"))
        assert texts(await history.read()) == ["new"]

    async def test_clear_deletes_an_expired_session(self, face: type[Face], make: Make, item: Any, update: Any) -> None:
        await face(make()).add(humans("old"))
        update(expireAt={"N": "1"})
        await face(make()).clear()
        assert item() is None

    async def test_an_attribute_of_that_name_that_is_no_number_is_no_expiry(
        self, face: type[Face], make: Make, item: Any, update: Any
    ) -> None:
        update(expireAt={"S": "2020-01-01"})
        await face(make()).add(humans(1))
        assert texts(await face(make()).read()) == ["1"]
        assert item()["expireAt"] == {"S": "2020-01-01"}

    @pytest.mark.parametrize("ttl", [0, -1, 1.5, True])
    async def test_must_be_a_positive_integer(self, make: Make, ttl: Any) -> None:
        with pytest.raises(ValueError, match="ttl must be a positive integer"):
            make(ttl=ttl)


class TestKeys:
    @pytest.mark.parametrize(
        ("kinds", "key"),
        [
            ("S", {"pk": "tenant#1"}),
            ("N", {"pk": 42}),
            ("N", {"pk": Decimal("1.5")}),
            ("B", {"pk": b"\x00\xff"}),
            ("SS", {"pk": "tenant", "sk": "session"}),
            ("SN", {"pk": "tenant", "sk": -7}),
            ("NB", {"pk": 10**30, "sk": b"bytes"}),
        ],
    )
    async def test_may_be_whole_and_of_any_key_type(
        self,
        face: type[Face],
        dynamodb: Any,
        session_id: str,
        kinds: str,
        key: dict[str, Any],
        encryption: dict[str, Any],
    ) -> None:
        name = f"keys-{kinds}-{abs(hash(session_id))}"
        dynamodb.create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": attribute, "KeyType": role} for attribute, role in zip(key, ("HASH", "RANGE"))
            ],
            AttributeDefinitions=[
                {"AttributeName": attribute, "AttributeType": kind} for attribute, kind in zip(key, kinds)
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        try:
            history = DynamoDBChatMessageHistory(name, "not used", key=key, history_size=2, **encryption)
            await face(history).add(humans(1, 2, 3))
            await face(history).add(humans(4))
            store = ChatHistoryStore(name, primary_key_name="pk", **encryption)
            assert texts(await face(store.session("not used", key=key)).read()) == ["3", "4"]
            await face(history).clear()
            assert await face(history).read() == []
        finally:
            dynamodb.delete_table(TableName=name)

    @pytest.mark.parametrize("value", [1.5, None, True, ["list"], {"map": 1}])
    def test_of_no_key_type_are_refused(self, make: Make, value: Any) -> None:
        with pytest.raises(TypeError, match="'pk' must be a str, int, Decimal or bytes"):
            make(key={"pk": value})

    @pytest.mark.parametrize(
        "names",
        [
            {"history_messages_key": "SessionId"},
            {"ttl_key_name": "History"},
            {"history_messages_key": WRITES},
            {"history_messages_key": ""},
            {"primary_key_name": "expireAt"},
        ],
    )
    def test_and_other_attributes_must_have_different_names(self, make: Make, names: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="names must differ"):
            make(**names)


class TestSyncConveniences:
    def test_add_one_message_each(self, make: Make) -> None:
        history = make()
        history.add_user_message("question")
        history.add_user_message(HumanMessage("named", name="n"))
        history.add_ai_message("answer")
        history.add_ai_message(AIMessage("built", id="1"))
        history.add_message(HumanMessage("any"))
        assert history.messages == [
            HumanMessage("question"),
            HumanMessage("named", name="n"),
            AIMessage("answer"),
            AIMessage("built", id="1"),
            HumanMessage("any"),
        ]

    def test_str_is_the_transcript(self, make: Make) -> None:
        history = make()
        history.add_messages([HumanMessage("question"), AIMessage("answer")])
        assert str(history) == "Human: question\nAI: answer"

    def test_messages_cannot_be_assigned(self, make: Make) -> None:
        with pytest.raises(NotImplementedError, match="Direct assignment to 'messages' is not allowed"):
            make().messages = []

    def test_settings_can_be_read(self, make: Make, session_id: str, table: str) -> None:
        history = make(ttl=5, history_size=3)
        assert (history.table_name, history.session_id, history.key) == (table, session_id, {"SessionId": session_id})
        assert (history.ttl, history.ttl_key_name, history.history_size) == (5, "expireAt", 3)
        assert (history.history_messages_key, history.coerce_float_to_decimal) == ("History", False)
