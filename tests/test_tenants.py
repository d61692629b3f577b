"""Keys that are joined of a tenant's id and a session's: no id reaches into another tenant's sessions."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Make
from hypothesis import given
from hypothesis import strategies as st
from samples import humans, texts

from chathistory_async import ChatHistoryStore, split_key
from chathistory_async._codec.keys import join_key

NO_PAIRS: list[Any] = ["acme#s1", ("acme#s1",), ("acme", "s1", ""), 5, b"acme#s1"]


@pytest.fixture
async def store(collection_table: str) -> AsyncIterator[ChatHistoryStore]:
    async with ChatHistoryStore(collection_table, session_index=True, key_parts=2) as store:
        yield store


@pytest.fixture
def tenant(session_id: str) -> str:
    return f"{session_id}%"


def key_of(tenant: str, session: str) -> dict[str, Any]:
    return {"SessionId": (tenant, session)}


async def test_plain_text_is_the_session_of_the_tuple_that_is_joined_to_it(make: Make, session_id: str) -> None:
    await make(key=key_of("acme", session_id)).aadd_messages(humans("of a tuple"))
    assert texts(await make(session=f"acme#{session_id}").aget_messages()) == ["of a tuple"]


async def test_with_key_parts_an_id_that_a_user_made_up_opens_nothing(store: ChatHistoryStore, tenant: str) -> None:
    theirs = store.session("s1", key=key_of(tenant, "s1"), owner=tenant)
    await theirs.aadd_messages(humans("secret"))
    joined = str(theirs.key["SessionId"])
    await store.set_title("s1", "title", key=key_of(tenant, "s1"))
    stored = pickle.loads(pickle.dumps(store))
    for one in (store, copy.copy(store), stored):
        for key in (None, {"SessionId": joined}, {"other": (tenant, "s1")}):
            with pytest.raises(ValueError, match="With key_parts=2, key must have a tuple of 2 ids"):
                one.session(joined, key=key)
    mine = store.session("s2", key=key_of("mallory", joined))
    await mine.aadd_messages(humans("mine"))
    plain: list[dict[str, Any]] = [{}, {"key": {"SessionId": joined}}]
    for options in plain:
        for call in (
            store.get_session_info(joined, **options),
            store.set_title(joined, "stolen", **options),
            store.update_metadata(joined, {"stolen": True}, **options),
            store.delete_session(joined, **options),
            mine.acopy_to(joined, **options),
        ):
            with pytest.raises(ValueError, match=r"With key_parts=2|made with key"):
                await call
    assert texts(await mine.aget_messages()) == ["mine"]
    assert texts(await theirs.aget_messages()) == ["secret"]
    info = await store.get_session_info("s1", key=key_of(tenant, "s1"))
    assert info is not None
    assert (info.title, info.metadata) == ("title", {})


@pytest.mark.parametrize("key", NO_PAIRS, ids=str)
async def test_with_key_parts_every_other_key_is_refused_in_both_layouts(key: Any) -> None:
    layouts: list[Any] = ["item_collection", "single_item"]
    for layout in layouts:
        store = ChatHistoryStore("table", layout=layout, key_parts=2)
        with pytest.raises(ValueError, match="With key_parts=2, key must have a tuple of 2 ids as 'SessionId', not"):
            store.session("s", key={"SessionId": key})
        assert store.session("s", key=key_of("acme", "s#1")).key == {"SessionId": "acme#s%231"}


async def test_what_is_listed_is_opened_by_its_ids(store: ChatHistoryStore, tenant: str) -> None:
    for session in ("s1", "s#2", "%23"):
        await store.session("", key=key_of(tenant, session), owner=tenant).aadd_messages(humans(session))
    sessions = (await store.list_sessions(tenant, 10)).sessions
    opened = {split_key(str(info.session_id)) for info in sessions}
    assert opened == {(tenant, "s1"), (tenant, "s#2"), (tenant, "%23")}
    for ids in opened:
        assert texts(await store.session("", key={"SessionId": ids}).aget_messages()) == [ids[1]]
    branch = await store.session("", key=key_of(tenant, "s1")).acopy_to("", key=key_of(tenant, "branch"))
    assert texts(await branch.aget_messages()) == ["s1"]
    assert (await store.purge_owner(tenant)).sessions == 4


async def test_a_migration_copies_only_what_key_parts_can_open(
    store: ChatHistoryStore, table: str, tenant: str
) -> None:
    with pytest.raises(ValueError, match="source needs the key_parts of this store"):
        store.migrate_from(ChatHistoryStore(table, layout="single_item"), [tenant])
    async with ChatHistoryStore(table, layout="single_item", key_parts=2) as source:
        theirs = source.session("", key=key_of(tenant, "s1"))
        await theirs.aadd_messages(humans("copied"))
        joined = str(theirs.key["SessionId"])
        moved = [one async for one in store.migrate_from(source, [joined, f"{joined}#x", tenant, 5])]
    assert [one.outcome for one in moved] == ["copied", "failed", "failed", "failed"]
    assert "must have a tuple of 2 ids as 'SessionId', not a tuple of 3" in str(moved[1].error)
    assert texts(await store.session("", key=key_of(tenant, "s1")).aget_messages()) == ["copied"]


@given(st.lists(st.text(st.sampled_from("ab%#235é")), min_size=1, max_size=4).map(tuple))
def test_ids_come_back_from_what_they_are_joined_to(ids: tuple[str, ...]) -> None:
    assert split_key(str(join_key({"pk": ids})["pk"])) == ids


@given(st.text(st.sampled_from("ab%#235é")))
def test_text_is_split_into_ids_that_are_joined_to_it_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert join_key({"pk": split_key(text)})["pk"] == text


@pytest.mark.parametrize("text", ["%", "100%", "a%24b", "%2"])
def test_text_that_no_ids_are_joined_to_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the joined text of a tuple of ids"):
        split_key(text)


def test_only_text_is_split() -> None:
    with pytest.raises(TypeError, match="Only text can be split into ids, not int"):
        split_key(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "2"])
def test_key_parts_is_a_positive_integer(number: Any) -> None:
    with pytest.raises(ValueError, match="key_parts must be a positive integer"):
        ChatHistoryStore("table", key_parts=number)
