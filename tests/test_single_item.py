"""A history in the single item, beyond the contract: cost, time to live, keys, attributes of others."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from conftest import Make
from proxy import Proxy
from samples import humans, texts
from variants import Variant

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async._single_item.layout import WRITES

ODD_NAMES = ["Data", "ttl", "chat-history", "a.b", "with space", "#x", ":x", "[0]", "名前", "size", "AND"]


async def test_attributes_of_others_survive_an_append(
    variant: type[Variant], make: Make, item: Any, update: Any
) -> None:
    update(title={"S": "stored before any message"}, owner={"S": "someone"})
    history = variant(make())
    assert await history.read() == []
    await history.add(humans(1))
    await history.add(humans(2))
    assert texts(await history.read()) == ["1", "2"]
    assert (item()["title"], item()["owner"]) == ({"S": "stored before any message"}, {"S": "someone"})


class TestCost:
    """An append is one request that does not read; a read is one request."""

    @pytest.fixture
    def cost(self, proxy: Proxy) -> Callable[[], list[str]]:
        def cost() -> list[str]:
            operations = proxy.operations()
            proxy.seen.clear()
            return operations

        return cost

    async def test_of_appends(self, variant: type[Variant], through: Any, cost: Any) -> None:
        history = variant(through())
        for number in range(5):
            await history.add(humans(number, number))
            assert cost() == ["UpdateItem"]
        for number in range(3):
            await variant(through()).add(humans(number))
            assert cost() == ["UpdateItem"]

    async def test_of_a_turn_with_history_size(self, variant: type[Variant], through: Any, cost: Any) -> None:
        for number in range(8):
            history = variant(through(history_size=5))
            await history.read()
            await history.add(humans(f"question {number}", f"answer {number}"))
            assert cost() == ["GetItem", "UpdateItem"]

    async def test_of_appends_with_history_size_that_never_read(
        self, variant: type[Variant], through: Any, cost: Any
    ) -> None:
        history = variant(through(history_size=3))
        await history.add(humans(1, 2))
        assert cost() == ["UpdateItem"]
        await history.add(humans(3, 4))
        assert cost() == ["UpdateItem"] * 2, "the guess that there is room was wrong, and the refusal told the length"
        for number in range(5):
            await history.add(humans(number))
            assert cost() == ["UpdateItem"]

    async def test_of_a_clear(self, variant: type[Variant], through: Any, cost: Any) -> None:
        history = variant(through())
        await history.clear()
        assert cost() == ["GetItem"]
        await history.add(humans(1))
        cost()
        await history.clear()
        assert cost() == ["GetItem", "DeleteItem"]

    async def test_no_message_is_sent_back(self, variant: type[Variant], through: Any, proxy: Proxy) -> None:
        await variant(through()).add(humans(1))
        assert "ReturnValues" not in proxy.seen[0].body


class TestTTL:
    async def test_every_append_sets_it(self, variant: type[Variant], make: Make, item: Any, update: Any) -> None:
        history = variant(make(ttl=60))
        for _ in range(2):
            before = int(time.time())
            await history.add(humans(1))
            assert before + 60 <= int(item()["expireAt"]["N"]) <= time.time() + 60
            update(expireAt={"N": str(before + 5)})

    async def test_without_it_no_expiry_is_stored_and_a_stored_one_stays(
        self, variant: type[Variant], make: Make, item: Any, update: Any
    ) -> None:
        await variant(make()).add(humans(1))
        assert "expireAt" not in item()
        update(expireAt={"N": "9999999999"})
        await variant(make()).add(humans(2))
        assert item()["expireAt"] == {"N": "9999999999"}

    @pytest.mark.parametrize("handle_ttl", [None, 60])
    async def test_an_expired_session_is_gone(
        self, variant: type[Variant], make: Make, item: Any, update: Any, handle_ttl: int | None
    ) -> None:
        await variant(make()).add(humans("old"))
        update(expireAt={"N": str(int(time.time()) - 1)}, title={"S": "gone too"})
        history = variant(make(ttl=handle_ttl))
        assert await history.read() == []
        await history.add(humans("new"))
        assert texts(await history.read()) == ["new"]
        assert "title" not in item()
        assert ("expireAt" in item()) is (handle_ttl is not None)
        await history.add(humans("newer"))
        assert texts(await history.read()) == ["new", "newer"]

    async def test_a_handle_that_knew_the_session_does_not_revive_it(
        self, variant: type[Variant], make: Make, update: Any
    ) -> None:
        history = variant(make(history_size=3, ttl=60))
        await history.add(humans(1, 2, 3))
        await history.read()
        update(expireAt={"N": str(int(time.time()))})
        await history.add(humans("new"))
        assert texts(await history.read()) == ["new"]

    async def test_clear_deletes_an_expired_session(
        self, variant: type[Variant], make: Make, item: Any, update: Any
    ) -> None:
        await variant(make()).add(humans("old"))
        update(expireAt={"N": "1"})
        await variant(make()).clear()
        assert item() is None

    async def test_an_attribute_of_that_name_that_is_no_number_is_no_expiry(
        self, variant: type[Variant], make: Make, item: Any, update: Any
    ) -> None:
        update(expireAt={"S": "2020-01-01"})
        await variant(make()).add(humans(1))
        assert texts(await variant(make()).read()) == ["1"]
        assert item()["expireAt"] == {"S": "2020-01-01"}

    @pytest.mark.parametrize("ttl", [0, -1, 1.5, True])
    async def test_must_be_a_positive_integer(self, make: Make, ttl: Any) -> None:
        with pytest.raises(ValueError, match="ttl must be a positive integer"):
            make(ttl=ttl)


class TestKeys:
    @pytest.mark.sampled
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
        variant: type[Variant],
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
            await variant(history).add(humans(1, 2, 3))
            await variant(history).add(humans(4))
            store = ChatHistoryStore(name, primary_key_name="pk", layout="single_item", **encryption)
            assert texts(await variant(store.session("not used", key=key)).read()) == ["3", "4"]
            await variant(history).clear()
            assert await variant(history).read() == []
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
            {"history_messages_key": 5},
            {"primary_key_name": "expireAt"},
        ],
    )
    def test_and_other_attributes_must_have_different_names(self, make: Make, names: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"Two attributes have the name|must be text that is not empty"):
            make(**names)
