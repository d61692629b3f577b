"""The ids of values and the names of subsessions, as items: pure."""

from __future__ import annotations

from typing import Any

import pytest

from chathistory_async._codec.keys import join_key
from chathistory_async._item_collection.layout import ItemCollection
from chathistory_async._item_collection.requests import Together
from chathistory_async._item_collection.sort_keys import SortKey
from chathistory_async._session_index.requests import SessionItem
from chathistory_async._session_index.value_ids import (
    DIGEST_BYTES,
    MAX_IDS,
    Subsession,
    digest_of,
    digests_in,
    found,
    item_of_ids,
    name_in,
    query_all_but_records,
    subsession_key,
)

LAYOUT = ItemCollection("t", {"SessionId": {"S": "s"}}, "MessageId", "History", "expireAt", None, None)
EXPIRING = ItemCollection("t", {"SessionId": {"S": "s"}}, "MessageId", "History", "expireAt", 60, None)
RECORD = SortKey(1 << 20, "0" * 16)


def test_ids_come_back_from_their_item() -> None:
    digests = [digest_of(f"{number}") for number in range(100)]
    item: Any = item_of_ids(LAYOUT, RECORD, b"".join(digests), 5)
    assert [*digests_in(item)] == digests
    assert "expireAt" not in item
    assert item_of_ids(EXPIRING, RECORD, b"", 5)["expireAt"] == {"N": "65"}


def test_the_most_ids_of_an_append_fit_into_an_item() -> None:
    assert MAX_IDS * DIGEST_BYTES < 200_000


def test_different_ids_have_different_digests() -> None:
    ids = ["", "a", "A", "\ud800", "\ud801", "é", "e\u0301", "x" * 10_000]
    assert len({digest_of(one) for one in ids}) == len(ids)


@pytest.mark.parametrize("name", ["subagents/agent-1", "\ud800", "", "#", "x" * 5000, '"'])
def test_a_name_comes_back_from_its_item(name: str) -> None:
    item: Any = Subsession(EXPIRING, name).item(5)
    assert name_in(item) == name
    assert item["expireAt"] == {"N": "65"}
    assert Subsession(EXPIRING, name).delete()["Delete"]["Key"].items() <= item.items()


def test_no_key_of_a_subsession_is_that_of_another_session() -> None:
    parts = ["a", "b", "%", "#", "/", ".", "a/b", "%/a", "x" * 300, "\ud800"]
    parents = [join_key({"k": (one, other)})["k"] for one in parts[:-2] for other in parts[:-2]]
    keys = [subsession_key(str(parent), name) for parent in parents for name in parts]
    assert len({*keys, *parents}) == len(keys) + len(parents)


def test_a_key_is_as_long_as_dynamodb_allows() -> None:
    assert len(subsession_key("p", "x" * 100_000)) < 100


def test_a_deletion_finds_names_apart_from_all_that_it_deletes() -> None:
    items: list[Any] = [
        Subsession(LAYOUT, "a").item(5),
        item_of_ids(LAYOUT, RECORD, b"", 5),
        LAYOUT.key_of("k#digest"),
        {**LAYOUT.key_of("j#0"), "Subsession": {"N": "1"}},
    ]
    names, requests = found(LAYOUT, items)
    assert names == ["a"]
    deleted = [one["DeleteRequest"]["Key"] for one in requests[0].parameters["RequestItems"]["t"]]
    assert deleted == [LAYOUT.key_of(items[at]["MessageId"]["S"]) for at in (1, 2, 3)]
    values = query_all_but_records(LAYOUT, None).parameters["ExpressionAttributeValues"]
    for item in items:
        assert values[":low"]["S"] <= item["MessageId"]["S"] <= values[":high"]["S"]
    for other in (RECORD, "session", "migration"):
        assert not values[":low"]["S"] <= other <= values[":high"]["S"]


def test_a_session_that_begins_anew_knows_no_ids() -> None:
    update = SessionItem(LAYOUT, None).begin_anew(1, RECORD, 5, "r", is_first=True)["Update"]
    removed = update["UpdateExpression"].partition(" REMOVE ")[2].split(", ")
    assert {"#ids", "#ids_at", "#more_ids"} <= {*removed}


@pytest.mark.parametrize(
    ("item", "is_overtaken"), [(None, True), ({"A": {"S": "x"}}, False), ({"A": {"S": "y"}}, True)]
)
def test_a_write_is_overtaken_by_another_text(item: Any, is_overtaken: bool) -> None:
    assert Together([], {"A": "x"}, {}).is_overtaken(item) is is_overtaken
    assert Together([], {"A": None}, {}).is_overtaken(item) is (item is not None)
