"""The session index: what it knows of each session, listing them, titles and metadata, and removing them."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from conftest import NewStore, created_table
from langchain_core.messages import HumanMessage
from plain_values import EXACT, OBJECTS, same
from proxy import Fault, Proxy
from samples import humans, texts

from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    ConfigurationError,
    DynamoDBChatMessageHistory,
    FormatError,
    ItemTooLargeError,
    KeySchemaError,
    MessageNotFoundError,
    MessageNotStorableError,
    PurgeResult,
    SessionInfo,
    SessionNotFoundError,
)
from chathistory_async._item_collection.sort_keys import Clock
from chathistory_async._sync.bridge import run
from chathistory_async.testing import FakeClock

UNANSWERED = [Fault.LOST_RESPONSE, Fault.LATE_ERROR]
NOT_STORED = [Fault.RESET, Fault.ERROR_500, Fault.CONFLICT]


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, new_store: NewStore) -> ChatHistoryStore:
    encrypted = request.param == "encrypted"
    return new_store(kms_key_id=request.getfixturevalue("kms_key") if encrypted else None)


@pytest.fixture
def expire(dynamodb: Any, items_in: Callable[[str], list[dict[str, Any]]], collection_table: str) -> Callable[[], None]:
    """Has all of the session expired a second ago, as DynamoDB may leave it for days."""

    def expire() -> None:
        for item in items_in(collection_table):
            dynamodb.update_item(
                TableName=collection_table,
                Key={name: item[name] for name in ("SessionId", "MessageId")},
                UpdateExpression="SET expireAt = :past",
                ExpressionAttributeValues={":past": {"N": str(int(time.time()) - 1)}},
            )

    return expire


async def info_of(store: ChatHistoryStore, session: str) -> SessionInfo:
    info = await store.get_session_info(session)
    assert info is not None
    return info


def key_schema(*names: str) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": role} for name, role in zip(names, ("HASH", "RANGE"))]


def ids(sessions: list[SessionInfo]) -> list[Any]:
    return [info.session_id for info in sessions]


async def begin(store: ChatHistoryStore, owner: str, number: int) -> list[str]:
    """Begin sessions of an owner, one after another, and return their ids, the last one first."""
    names = [f"{owner}-{position}" for position in range(number)]
    for position, name in enumerate(names):
        await store.session(name, owner=owner).aadd_messages(humans(*range(position + 1)))
    return names[::-1]


class TestInfo:
    async def test_of_a_session(self, store: ChatHistoryStore, session_id: str, owner: str) -> None:
        assert await store.get_session_info(session_id) is None
        before = datetime.now(timezone.utc)
        await store.session(session_id, owner=owner).aadd_messages(humans(1))
        await store.session(session_id, owner=owner).aadd_messages(humans(2, 3))
        info = await info_of(store, session_id)
        assert info == SessionInfo(session_id, owner, None, info.created_at, info.last_active_at, 3, {}, "langchain")
        # Stored to the millisecond.
        assert before.timestamp() - 0.001 <= info.created_at.timestamp() <= info.last_active_at.timestamp()
        page = await store.session(session_id).apage(3)
        assert [info.created_at, info.last_active_at, info.last_active_at] == [one.created_at for one in page.messages]

    async def test_needs_no_owner(self, store: ChatHistoryStore, session_id: str, owner: str) -> None:
        await store.session(session_id).aadd_messages(humans(1))
        assert (await info_of(store, session_id)).owner is None
        await store.session(session_id, owner=owner).aadd_messages(humans(1))
        assert (await info_of(store, session_id)).owner == owner

    async def test_keeps_the_first_owner(self, store: ChatHistoryStore, session_id: str, owner: str) -> None:
        await store.session(session_id, owner=owner).aadd_messages(humans(1))
        await store.session(session_id, owner="another").aadd_messages(humans(1))
        await store.session(session_id).aadd_messages(humans(1))
        assert (await info_of(store, session_id)).owner == owner

    async def test_tells_no_content_by_its_repr(self, store: ChatHistoryStore, session_id: str) -> None:
        await store.session(session_id).aadd_messages(humans("a secret"))
        await store.set_title(session_id, "a secret")
        await store.update_metadata(session_id, {"a": "a secret"})
        page = await store.session(session_id).apage(1)
        assert "secret" not in f"{await info_of(store, session_id)!r}{page!r}"


class TestCount:
    async def test_follows_what_is_added_and_removed(self, store: ChatHistoryStore, session_id: str) -> None:
        history = store.session(session_id)

        async def count() -> int:
            return (await info_of(store, session_id)).message_count

        await history.aadd_messages(humans(*range(117)))
        await history.aadd_messages(humans(117, 118, 119))
        assert await count() == 120
        page = await history.apage(4)
        await history.adelete_messages([stored.id for stored in page.messages[:3]])
        assert await count() == 117
        await history.adelete_messages([stored.id for stored in page.messages])
        assert await count() == 116
        await history.apop_message()
        assert await count() == 115
        await history.areplace_message((await history.apage(1)).messages[0].id, HumanMessage("other"))
        assert await count() == 115 == len(await history.aget_messages())
        await history.aclear()
        assert await count() == 0
        await history.aadd_messages(humans(1))
        assert await count() == 1

    async def test_of_a_branch(self, store: ChatHistoryStore, session_id: str, owner: str) -> None:
        history = store.session(session_id, owner=owner)
        await history.aadd_messages(humans(*range(5)))
        await history.acopy_to(f"{session_id}-2")
        info = await info_of(store, f"{session_id}-2")
        assert (info.message_count, info.owner) == (5, owner)

    @pytest.mark.sampled
    @pytest.mark.parametrize("synchronous", [False, True])
    async def test_of_a_branch_is_its_owners_whichever_handle_branched_it_off(
        self, store: ChatHistoryStore, session_id: str, owner: str, synchronous: bool
    ) -> None:
        await store.session(session_id, owner=owner).aadd_messages(humans(1))
        history = store.session(session_id)
        name = f"{session_id}-2"
        branch = await (asyncio.to_thread(history.copy_to, name) if synchronous else history.acopy_to(name))
        assert (await info_of(store, name)).owner == owner
        # So is what is written by the handle that it returned, after it was deleted.
        await store.delete_session(name)
        await branch.aadd_messages(humans(1, 2))
        assert ids((await store.list_sessions(owner)).sessions) == [name, session_id]
        await store.session(session_id, owner="another").acopy_to(f"{session_id}-3")
        assert (await info_of(store, f"{session_id}-3")).owner == "another"
        assert await store.purge_owner(owner) == PurgeResult(2, 3)
        assert await branch.aget_messages() == []

    async def test_of_a_branch_of_nobodys_session_is_nobodys(self, store: ChatHistoryStore, session_id: str) -> None:
        await (await store.session(f"{session_id}-none").acopy_to(f"{session_id}-2")).aadd_messages(humans(1))
        await store.session(session_id).aadd_messages(humans(1))
        await store.session(session_id).acopy_to(f"{session_id}-3")
        assert {(await info_of(store, f"{session_id}-{number}")).owner for number in (2, 3)} == {None}

    async def test_with_history_size_is_of_what_is_kept(self, new_store: NewStore, session_id: str) -> None:
        store = new_store(history_size=3)
        for number in range(20):
            await store.session(session_id).aadd_messages(humans(number))
            assert (await info_of(store, session_id)).message_count == min(3, number + 1)
        await store.session(session_id).apop_message()
        await store.session(session_id).aclear()
        assert (await info_of(store, session_id)).message_count == 0

    @pytest.mark.sampled
    @pytest.mark.parametrize("fault", UNANSWERED + NOT_STORED)
    @pytest.mark.parametrize("batch", [1, 3])
    async def test_is_exact_where_a_request_is_retried(
        self, store_through: NewStore, session_id: str, proxy: Proxy, fault: Fault, batch: int
    ) -> None:
        store = store_through()
        history = store.session(session_id)
        for _ in range(3):
            proxy.script(fault, operation="TransactWriteItems")
            await history.aadd_messages(humans(*range(batch)))
        proxy.script(fault, operation="TransactWriteItems")
        await history.apop_message()
        proxy.script(fault, operation="TransactWriteItems")
        await history.adelete_messages([(await history.apage(1)).messages[0].id])
        left = 3 * batch - 2
        assert (await info_of(store, session_id)).message_count == left == len(await history.aget_messages())
        proxy.script(fault, operation="UpdateItem")
        await history.aclear()
        assert (await info_of(store, session_id)).message_count == 0

    async def test_is_exact_after_a_bad_day(self, store_through: NewStore, session_id: str, proxy: Proxy) -> None:
        chance = random.Random(1)
        faults = [fault for fault in Fault if fault not in {Fault.NONE, Fault.DENIED}]
        proxy.schedule = lambda seen: chance.choice(faults) if chance.random() < 0.2 else Fault.NONE
        store = store_through()

        async def write(writer: int) -> None:
            history = store.session(session_id)
            for number in range(15):
                try:
                    await history.aadd_messages(humans(*range(1 + number % 3)))
                    if number % 4 == 0:
                        await history.apop_message()
                except ChatHistoryError:
                    continue

        await asyncio.gather(*(write(writer) for writer in range(6)))
        await asyncio.to_thread(proxy.wait_for_late_requests)
        proxy.schedule = lambda seen: Fault.NONE
        stored = await store.session(session_id).aget_messages()
        assert len(stored) > 50
        assert (await info_of(store, session_id)).message_count == len(stored)

    async def test_has_what_was_there_before_the_index(
        self, new_store: NewStore, session_id: str, collection_table: str
    ) -> None:
        async with ChatHistoryStore(collection_table) as plain:
            await plain.session(session_id).aadd_messages(humans(1, 2, 3))
        store = new_store()
        history = store.session(session_id)
        assert await history.apop_message() == HumanMessage("3")
        await history.adelete_messages([(await history.apage(1)).messages[0].id])
        assert await store.get_session_info(session_id) is None
        await history.aadd_messages(humans(4))
        assert (await info_of(store, session_id)).message_count == 2
        await history.adelete_messages([stored.id for stored in (await history.apage(9)).messages])
        assert (await info_of(store, session_id)).message_count == 0
        await history.aclear()
        await history.aadd_messages(humans(5))
        assert (await info_of(store, session_id)).message_count == 1

    async def test_is_written_with_the_messages_or_not_at_all(
        self, store_through: NewStore, session_id: str, proxy: Proxy
    ) -> None:
        store = store_through(attempts=1)
        await store.session(session_id).aadd_messages(humans(1))
        proxy.schedule = lambda seen: Fault.RESET
        with pytest.raises(ChatHistoryError):
            await store.session(session_id).aadd_messages(humans(2))
        proxy.schedule = lambda seen: Fault.NONE
        assert proxy.operations().count("PutItem") == proxy.operations().count("UpdateItem") == 0
        assert (await info_of(store, session_id)).message_count == 1


MADE_UP = [
    base64.urlsafe_b64encode(json.dumps(position).encode()).decode()
    for position in [
        ["2026", "S", ""],
        ["", "S", "x"],
        ["2026", "S", 5],
        ["2026", "M", {}],
        ["2026", ["S"], "x"],
        ["2026", "N", "x"],
        ["2026", "N", "NaN"],
        ["2026", "N", "1e999999999"],
        ["2026", "N", "9" * 39],
        ["2026", "B", "é"],
        ["2026", "B", None],
        [5, "S", "x"],
        {"a": 1, "b": 2, "c": 3},
    ]
]


class TestListing:
    async def test_is_by_the_last_activity_and_page_by_page(self, store: ChatHistoryStore, owner: str) -> None:
        names = await begin(store, owner, 5)
        assert ids((await store.list_sessions(owner, 10)).sessions) == names
        await store.session(names[-1]).aadd_messages(humans("again"))
        names = [names[-1], *names[:-1]]
        found, cursor, pages = [], None, 0
        while True:
            page = await store.list_sessions(owner, 2, before=cursor)
            found += ids(page.sessions)
            pages += 1
            cursor = page.cursor
            if cursor is None:
                break
        assert (found, pages) == (names, 3)

    async def test_that_fills_its_last_page_ends_there(self, store: ChatHistoryStore, owner: str) -> None:
        await begin(store, owner, 2)
        assert (await store.list_sessions(owner, 2)).cursor is None
        assert (await store.list_sessions(f"{owner}-nobody", 2)).sessions == []

    async def test_goes_on_behind_a_session_that_has_gone(self, store: ChatHistoryStore, owner: str) -> None:
        names = await begin(store, owner, 4)
        page = await store.list_sessions(owner, 2)
        await store.delete_session(names[1])
        await store.session(names[0]).aadd_messages(humans("again"))
        assert ids((await store.list_sessions(owner, 9, before=page.cursor)).sessions) == names[2:]

    async def test_takes_any_limit(self, store: ChatHistoryStore, owner: str) -> None:
        names = await begin(store, owner, 2)
        assert ids((await store.list_sessions(owner, 2**40)).sessions) == names

    async def test_passes_over_what_is_no_session(
        self, store: ChatHistoryStore, owner: str, dynamodb: Any, collection_table: str
    ) -> None:
        [name] = await begin(store, owner, 1)
        stray = {"SessionId": name, "MessageId": "another's", "Owner": owner, "LastActive": "9999"}
        dynamodb.put_item(TableName=collection_table, Item={key: {"S": text} for key, text in stray.items()})
        page = await store.list_sessions(owner, 1)
        assert (ids(page.sessions), page.unreadable, page.cursor) == ([name], [], None)
        assert await store.purge_owner(owner) == PurgeResult(1, 1)

    async def test_has_titles_and_metadata(self, store: ChatHistoryStore, owner: str) -> None:
        names = await begin(store, owner, 3)
        for name in names:
            await store.set_title(name, f"Title of {name}")
            await store.update_metadata(name, {"name": name})
        sessions = (await store.list_sessions(owner, 5)).sessions
        assert [(info.title, info.metadata) for info in sessions] == [
            (f"Title of {name}", {"name": name}) for name in names
        ]
        assert sessions[0] == await info_of(store, names[0])

    async def test_does_not_read_the_messages(self, store_through: NewStore, owner: str, proxy: Proxy) -> None:
        store = store_through()
        await begin(store, owner, 3)
        # Which counts the messages of each once, because they were begun by handles that had not read.
        await store.list_sessions(owner, 3)
        proxy.seen.clear()
        await store.list_sessions(owner, 3)
        [seen] = proxy.seen
        assert (seen.operation, seen.body["IndexName"]) == ("Query", "SessionsByOwner")

    @pytest.mark.parametrize(
        "cursor", ["", "x", "W10", "bnVsbA", "é", "WzUsIngiXQ", "WyJhIix7IlMiOiIifV0", "WyIiLCJ4Il0", *MADE_UP]
    )
    async def test_refuses_what_is_no_cursor(self, new_store: NewStore, owner: str, cursor: str) -> None:
        with pytest.raises(ValueError, match="is not a cursor"):
            await new_store().list_sessions(owner, 2, before=cursor)

    @pytest.mark.parametrize(
        ("whose", "limit"), [("", 1), ("x" * 2049, 1), ("\ud800", 1), (None, 1), ("x", 0), ("x", True), ("x", None)]
    )
    async def test_refuses_what_cannot_be_meant(self, new_store: NewStore, whose: Any, limit: Any) -> None:
        with pytest.raises(ValueError, match=r"must be (text of 1|a positive integer, not)"):
            await new_store().list_sessions(whose, limit)

    async def test_has_fifty_on_a_page_unless_told(self, new_store: NewStore, owner: str) -> None:
        store = new_store()
        names = [f"{owner}-{number}" for number in range(51)]
        await asyncio.gather(*(store.session(name, owner=owner).aadd_messages(humans(1)) for name in names))
        page = await store.list_sessions(owner)
        assert len(page.sessions) == 50
        assert len((await store.list_sessions(owner, before=page.cursor)).sessions) == 1


class TestFormats:
    """The format of a session's values, as the index knows it."""

    async def test_are_told_of_each_session(self, store: ChatHistoryStore, owner: str) -> None:
        names = {f"{owner}-{name}": name for name in ("langchain", "json", "openai-agents")}
        for session, name in names.items():
            if name == "langchain":
                await store.session(session, owner=owner).aadd_messages(humans(1))
            else:
                await store.json_session(session, owner=owner, format=name).aadd([{"a": 1}, 2])
        for session, name in names.items():
            assert (await info_of(store, session)).format == name
        listed = (await store.list_sessions(owner)).sessions
        assert {info.session_id: (info.format, info.message_count) for info in listed} == {
            session: (name, 1 if name == "langchain" else 2) for session, name in names.items()
        }

    async def test_stay_when_values_come_and_go(self, store: ChatHistoryStore, session_id: str) -> None:
        session = store.json_session(session_id, format="other")
        await session.aadd([1, 2, 3])
        await store.set_title(session_id, "t")
        await session.apop()
        await session.aadd([4])
        await session.aclear()
        await session.aadd([5, 6])
        info = await info_of(store, session_id)
        assert (info.format, info.message_count, info.title) == ("other", 2, "t")

    async def test_are_asked_for_in_a_list(self, new_store: NewStore, owner: str) -> None:
        store = new_store()
        of = {f"{owner}-{number}": ("langchain", "json", "other")[number % 3] for number in range(9)}
        for session, name in of.items():
            if name == "langchain":
                await store.session(session, owner=owner).aadd_messages(humans(1))
            else:
                await store.json_session(session, owner=owner, format=name).aadd([1])
        for asked in ("langchain", "json", "other", "unused", None):
            expected = [session for session, name in of.items() if asked in (name, None)][::-1]
            assert ids((await store.list_sessions(owner, format=asked)).sessions) == expected
            found, cursor, pages = [], None, 0
            while pages == 0 or cursor is not None:
                page = await store.list_sessions(owner, 2, before=cursor, format=asked)
                found += ids(page.sessions)
                cursor, pages = page.cursor, pages + 1
            # None of them is empty, though those of other formats are read in between.
            assert (found, pages) == (expected, max(1, (len(expected) + 1) // 2))

    @pytest.mark.parametrize("name", ["", "JSON", "a b", "x" * 65, "é"])
    async def test_that_cannot_be_are_refused_by_a_list(self, new_store: NewStore, owner: str, name: str) -> None:
        with pytest.raises(ValueError, match="format"):
            await new_store().list_sessions(owner, format=name)

    @pytest.mark.sampled
    @pytest.mark.parametrize(
        ("stored", "appended"), [("langchain", "json"), ("json", "langchain"), ("json", "other"), ("other", "json")]
    )
    @pytest.mark.parametrize("cleared", [False, True])
    async def test_of_another_session_are_refused_before_any_write(
        self,
        store_through: NewStore,
        session_id: str,
        owner: str,
        proxy: Proxy,
        items_in: Callable[[str], list[dict[str, Any]]],
        collection_table: str,
        stored: str,
        appended: str,
        cleared: bool,
    ) -> None:
        store = store_through()

        async def append(name: str, key: str | None = None) -> None:
            if name == "langchain":
                await store.session(session_id, owner=owner).aadd_messages(humans(1), idempotency_key=key)
            else:
                await store.json_session(session_id, owner=owner, format=name).aadd([1], key)

        await append(stored)
        if cleared:
            await store.session(session_id).aclear()
        before = items_in(collection_table)
        proxy.seen.clear()
        text = f"values have the format '{stored}', and these have '{appended}': nothing was written.*{session_id}"
        for key in (None, "key"):
            with pytest.raises(FormatError, match=text):
                await append(appended, key)
        # Both were cancelled, and not tried again.
        assert proxy.operations() == ["TransactWriteItems"] * 2
        assert items_in(collection_table) == before
        await append(stored, "key")
        # The session may be begun anew.
        await store.delete_session(session_id)
        await append(appended)
        info = await info_of(store, session_id)
        assert (info.format, info.message_count) == (appended, 1)

    @pytest.mark.parametrize("stored", ["langchain", "json"])
    async def test_may_change_where_the_session_has_expired(
        self, new_store: NewStore, session_id: str, owner: str, expire: Callable[[], None], stored: str
    ) -> None:
        store = new_store(ttl=1000)
        history, session = store.session(session_id, owner=owner), store.json_session(session_id, owner=owner)
        if stored == "json":
            await session.aadd([1, 2])
            expire()
            await history.aadd_messages(humans(3))
        else:
            await history.aadd_messages(humans(1, 2))
            expire()
            await session.aadd([3])
        info = await info_of(store, session_id)
        assert (info.format, info.message_count) == ("langchain" if stored == "json" else "json", 1)

    @pytest.mark.parametrize("options", [{}, {"ttl": 1000}])
    async def test_of_another_session_are_refused_by_a_migration(
        self,
        new_store: NewStore,
        table: str,
        session_id: str,
        items_in: Callable[[str], list[dict[str, Any]]],
        collection_table: str,
        options: dict[str, Any],
    ) -> None:
        target = new_store(**options)
        await target.json_session(session_id).aadd([1])
        before = items_in(collection_table)
        async with ChatHistoryStore(table, layout="single_item") as source:
            await source.session(session_id).aadd_messages(humans(1, 2))
            for dry_run in (True, False):
                [moved] = [
                    one async for one in target.migrate_from(source, [session_id], dry_run=dry_run, delete_source=True)
                ]
                assert moved.outcome == "failed"
                assert "FormatError: " in str(moved.error)
                assert "have the format 'json', and these have 'langchain': nothing was written" in str(moved.error)
            assert texts(await source.session(session_id).aget_messages()) == ["1", "2"]
        assert items_in(collection_table) == before

    async def test_of_what_a_migration_has_copied_are_langchains(
        self, new_store: NewStore, table: str, session_id: str
    ) -> None:
        store = new_store()
        async with ChatHistoryStore(table, layout="single_item") as source:
            await source.session(session_id).aadd_messages(humans(1, 2))
            assert [one.outcome async for one in store.migrate_from(source, [session_id])] == ["copied"]
        assert (await info_of(store, session_id)).format == "langchain"
        with pytest.raises(FormatError, match="have the format 'langchain', and these have 'json'"):
            await store.json_session(session_id).aadd([1])


class TestKeysOfOtherTypes:
    """A partition key may be a number or bytes."""

    @pytest.fixture(params=["N", "B"])
    async def typed_store(self, request: pytest.FixtureRequest, dynamodb: Any) -> AsyncIterator[ChatHistoryStore]:
        name = f"typed-{uuid.uuid4().hex}"
        types = {"SessionId": request.param, "MessageId": "S", "Owner": "S", "LastActive": "S"}
        dynamodb.create_table(
            TableName=name,
            KeySchema=key_schema("SessionId", "MessageId"),
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind} for key, kind in types.items()],
            BillingMode="PAY_PER_REQUEST",
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "SessionsByOwner",
                    "KeySchema": key_schema("Owner", "LastActive"),
                    "Projection": {"ProjectionType": "ALL"},
                }
            ],
        )
        async with ChatHistoryStore(name, session_index=True) as store:
            yield store
            await store.delete_table()

    @pytest.fixture
    def keys(self, request: pytest.FixtureRequest) -> list[Any]:
        numbers = [5, -1, Decimal("1.5"), 10**37 + 1, 0]
        texts = [b"\x00", b"\xff\xfe", b"text", b"=", b"\x00" * 50]
        return numbers if request.node.callspec.params["typed_store"] == "N" else texts

    async def test_is_what_pages_and_purges_go_by(
        self, typed_store: ChatHistoryStore, keys: list[Any], owner: str
    ) -> None:
        for number, key in enumerate(keys):
            await typed_store.session("", key={"SessionId": key}, owner=owner).aadd_messages(humans(*range(number + 1)))
        async with ChatHistoryStore(typed_store._layout.table_name, session_index=True, fast_path=False) as by_sdk:
            for store in (typed_store, by_sdk):
                found, cursor = [], None
                while True:
                    page = await store.list_sessions(owner, 1, before=cursor)
                    found += [(type(one.session_id), one.session_id, one.message_count) for one in page.sessions]
                    cursor = page.cursor
                    if cursor is None:
                        break
                assert found == [(type(key), key, number + 1) for number, key in enumerate(keys)][::-1]
        await typed_store.set_title("", "t", key={"SessionId": keys[0]})
        assert await typed_store.delete_session("", key={"SessionId": keys[0]}) == 1
        assert await typed_store.purge_owner(owner) == PurgeResult(4, 14)

    async def test_is_used_by_every_method(
        self, typed_store: ChatHistoryStore, storage: dict[str, Any], keys: list[Any], owner: str
    ) -> None:
        one, copied, other, of_values, _ = ({"SessionId": key} for key in keys)
        # The same number, spelled in another way.
        again = {"SessionId": Decimal(f"{keys[0]}.0")} if isinstance(keys[0], int) else one
        whose = {"owner": owner} if "session_index" in storage else {}
        async with ChatHistoryStore(typed_store._layout.table_name, **storage) as store:
            history = store.session("", key=one, **whose)
            await history.aadd_messages(humans(1, 2, 3))
            await history.aadd_messages(humans(4), idempotency_key="key")
            await store.session("", key=other).aadd_messages(humans("other"), idempotency_key="key")
            [_, second, third, _] = (await history.apage()).messages
            await history.areplace_message(third.id, HumanMessage("three"))
            assert await history.apop_message() == HumanMessage("4")
            await history.adelete_messages([second.id])
            await store.session("", key=again).aadd_messages(humans(4), idempotency_key="key")
            assert texts(await store.session("", key=again).aget_messages()) == ["1", "three"]
            assert texts(await history.aget_messages(limit=1)) == ["three"]
            assert texts([message async for message in history.aiter()]) == ["1", "three"]
            branch = await history.acopy_to("", key=copied, up_to=second.id)
            await history.aclear()
            assert await history.aget_messages() == []
            assert (branch.key, texts(await branch.aget_messages())) == (copied, ["1"])
            assert texts(await store.session("", key=other).aget_messages()) == ["other"]
            values = store.json_session("", key=of_values, **whose)
            await values.aadd([1, 2])
            assert (await values.apop(), await values.aget()) == (2, [1])
            if whose:
                assert await store.purge_owner(owner) == PurgeResult(sessions=3, messages=2)
                assert await branch.aget_messages() == await values.aget() == []
                assert texts(await store.session("", key=other).aget_messages()) == ["other"]

    @pytest.mark.parametrize("typed_store", ["N"], indirect=True)
    async def test_of_one_number_has_one_clock_however_it_is_spelled(self, typed_store: ChatHistoryStore) -> None:
        for number, spelled in ((Decimal(5), Decimal("5.0")), (Decimal("1.5"), Decimal("1.50"))):
            reader = typed_store.session("", key={"SessionId": spelled})
            ahead = TestTimes.on_another_host(typed_store.session("", key={"SessionId": number}), 300)
            await ahead.aadd_messages(humans("read"))
            assert texts(await reader.aget_messages()) == ["read"]
            await typed_store.session("", key={"SessionId": number}).aadd_messages(humans("written"))
            assert texts(await reader.aget_messages()) == ["read", "written"]


class TestTitleAndMetadata:
    async def test_a_title_is_set_and_removed(self, store: ChatHistoryStore, session_id: str) -> None:
        await store.session(session_id).aadd_messages(humans(1))
        for title in ["Ein Titel 💬", "", "x" * 4096, None, None]:
            await store.set_title(session_id, title)
            assert (await info_of(store, session_id)).title == title

    async def test_metadata_are_merged(self, store: ChatHistoryStore, session_id: str) -> None:
        await store.session(session_id).aadd_messages(humans(1))
        assert await store.update_metadata(session_id, {"a": 0.1, "b": {"c": [1, None]}}) == {
            "a": 0.1,
            "b": {"c": [1, None]},
        }
        assert await store.update_metadata(session_id, {"a": None, "d": b"\x00"}) == {
            "b": {"c": [1, None]},
            "d": b"\x00",
        }
        assert (await info_of(store, session_id)).metadata == {"b": {"c": [1, None]}, "d": b"\x00"}

    async def test_metadata_may_be_objects(self, new_store: NewStore, session_id: str) -> None:
        store = new_store(default=lambda value: [type(value).__name__])
        await store.session(session_id).aadd_messages(humans(1))
        await store.update_metadata(session_id, {"1": "old"})
        given: Any = {name: value for name, (value, _) in OBJECTS.items()} | EXACT | {1: "new", "other": object()}
        plain = {name: value for name, (_, value) in OBJECTS.items()} | EXACT | {"1": "new", "other": ["object"]}
        assert same(plain, await store.update_metadata(session_id, given))
        assert same(plain, (await info_of(store, session_id)).metadata)

    async def test_metadata_of_many_writers_are_all_kept(self, store: ChatHistoryStore, session_id: str) -> None:
        await store.session(session_id).aadd_messages(humans(1))
        await asyncio.gather(*(store.update_metadata(session_id, {f"n{number}": number}) for number in range(12)))
        assert (await info_of(store, session_id)).metadata == {f"n{number}": number for number in range(12)}

    async def test_are_encrypted_where_messages_are(
        self, new_store: NewStore, session_id: str, dynamodb: Any, collection_table: str, kms_key: str
    ) -> None:
        store = new_store(kms_key_id=kms_key)
        await store.session(session_id).aadd_messages(humans("a secret"))
        await store.set_title(session_id, "a secret")
        await store.update_metadata(session_id, {"secret": 1})
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": "session"}}
        item = dynamodb.get_item(TableName=collection_table, Key=key)["Item"]
        assert "secret" not in repr(item)
        assert set(item["Title"]) == set(item["Metadata"]) == {"B"}
        with pytest.raises(ConfigurationError, match="Stored title is encrypted: give kms_key_id"):
            await new_store().get_session_info(session_id)

    async def test_stay_when_messages_come_and_go(self, store: ChatHistoryStore, session_id: str) -> None:
        history = store.session(session_id)
        await history.aadd_messages(humans(1))
        await store.set_title(session_id, "t")
        await store.update_metadata(session_id, {"a": 1})
        await history.aadd_messages(humans(2, 3))
        await history.aclear()
        info = await info_of(store, session_id)
        assert (info.title, info.metadata) == ("t", {"a": 1})

    async def test_need_a_session(self, store: ChatHistoryStore, session_id: str) -> None:
        with pytest.raises(SessionNotFoundError, match=f"no such session.*{re.escape(session_id)}"):
            await store.set_title(session_id, "t")
        with pytest.raises(SessionNotFoundError):
            await store.update_metadata(session_id, {"a": 1})
        assert await store.get_session_info(session_id) is None

    async def test_what_cannot_be_kept_is_refused(self, store: ChatHistoryStore, session_id: str) -> None:
        await store.session(session_id).aadd_messages(humans(1))
        place = rf" \[table '[^']+', session SessionId='{re.escape(session_id)}'\]$"
        text = r"metadata\.a\[1\] cannot be stored: an object has no plain.*"
        with pytest.raises(MessageNotStorableError, match=text + place) as refused:
            await store.update_metadata(session_id, {"a": [0, object()]})
        assert refused.value.session_key == {"SessionId": session_id}
        for title in ["\ud800", "\ud835\udcb3"]:
            with pytest.raises(
                MessageNotStorableError, match="title cannot be stored: the text holds surrog.*" + place
            ):
                await store.set_title(session_id, title)
        with pytest.raises(ItemTooLargeError, match="title of 4,097 bytes is above 4,096.*" + place):
            await store.set_title(session_id, "x" * 4097)
        with pytest.raises(ItemTooLargeError, match=r"metadata of .* is above 65,536.*" + place):
            await store.update_metadata(session_id, {"a": "x" * 70_000})
        with pytest.raises(TypeError, match="title must be a str, or None to remove it, not int"):
            await store.set_title(session_id, 5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="changes must be a mapping of names to values, not list"):
            await store.update_metadata(session_id, ["a"])  # type: ignore[arg-type]
        info = await info_of(store, session_id)
        assert (info.title, info.metadata) == (None, {})

    @pytest.mark.parametrize("fault", UNANSWERED + NOT_STORED)
    async def test_are_retried(self, store_through: NewStore, session_id: str, proxy: Proxy, fault: Fault) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages(humans(1))
        proxy.script(fault, operation="UpdateItem")
        await store.set_title(session_id, "t")
        proxy.script(fault, operation="UpdateItem")
        await store.update_metadata(session_id, {"a": 1})
        info = await info_of(store, session_id)
        assert (info.title, info.metadata) == ("t", {"a": 1})


class TestLateRequests:
    """A request that the network held back arrives after its retry: what has happened since then stays."""

    @pytest.mark.parametrize("later", ["newer", None])
    async def test_to_set_a_title_bring_no_older_one_back(
        self, store_through: NewStore, session_id: str, proxy: Proxy, later: str | None
    ) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages(humans(1))
        proxy.script(Fault.LATE_REQUEST, operation="UpdateItem")
        await store.set_title(session_id, "older")
        assert (await info_of(store, session_id)).title == "older"
        await store.set_title(session_id, later)
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert (await info_of(store, session_id)).title == later

    async def test_give_the_next_session_of_an_id_nothing(
        self, store_through: NewStore, session_id: str, proxy: Proxy
    ) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages(humans(1))
        proxy.script(Fault.LATE_REQUEST, Fault.NONE, Fault.LATE_REQUEST, operation="UpdateItem")
        await store.set_title(session_id, "old")
        await store.update_metadata(session_id, {"old": 1})
        await store.delete_session(session_id)
        await store.session(session_id).aadd_messages(humans(2))
        await asyncio.to_thread(proxy.wait_for_late_requests)
        info = await info_of(store, session_id)
        assert (info.title, info.metadata) == (None, {})

    async def test_give_a_session_that_began_anew_after_its_expiry_nothing(
        self, store_through: NewStore, session_id: str, proxy: Proxy, expire: Callable[[], None]
    ) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages(humans(1))
        proxy.script(Fault.LATE_REQUEST, operation="UpdateItem")
        await store.set_title(session_id, "old")
        expire()
        await store.session(session_id).aadd_messages(humans(2))
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert (await info_of(store, session_id)).title is None

    async def test_to_change_metadata_are_told_from_those_that_found_the_same(
        self, store_through: NewStore, session_id: str, proxy: Proxy
    ) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages(humans(1))
        await store.update_metadata(session_id, {"a": 1})
        proxy.script(Fault.LATE_REQUEST, operation="UpdateItem")
        await store.update_metadata(session_id, {"a": 2})
        await store.update_metadata(session_id, {"a": 1})
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert (await info_of(store, session_id)).metadata == {"a": 1}

    async def test_are_not_made_again_over_what_came_in_between(
        self, store_through: NewStore, new_store: NewStore, session_id: str, proxy: Proxy
    ) -> None:
        store, other = store_through(), new_store()
        await store.session(session_id).aadd_messages(humans(1))
        sent = 0

        def schedule(seen: Any) -> Fault:
            nonlocal sent
            sent += seen.operation == "UpdateItem"
            if seen.operation == "UpdateItem" and sent == 2:
                # The retry, after somebody has seen the title and changed it.
                run(other.set_title, session_id, "theirs")
                run(other.update_metadata, session_id, {"theirs": 1})
            return Fault.LOST_RESPONSE if seen.operation == "UpdateItem" and sent == 1 else Fault.NONE

        proxy.schedule = schedule
        await store.set_title(session_id, "ours")
        assert (await info_of(store, session_id)).title == "theirs"


class TestTimes:
    @staticmethod
    def on_another_host(history: DynamoDBChatMessageHistory, seconds: float) -> DynamoDBChatMessageHistory:
        """Return the handle with a clock that is wrong by so many seconds and knows of no message."""
        session: Any = history._session
        session._reader.clock = Clock(lambda: int((time.time() + seconds) * 1000))
        return history

    async def test_never_go_back_whatever_the_clocks_tell(self, store: ChatHistoryStore, owner: str) -> None:
        older, newer = f"{owner}-older", f"{owner}-newer"
        await store.session(older, owner=owner).aadd_messages(humans(1))
        await store.session(newer, owner=owner).aadd_messages(humans(1))
        first = await info_of(store, newer)
        slow = self.on_another_host(store.session(newer), -300)
        for _ in range(2):
            await slow.aadd_messages(humans(2))
        info = await info_of(store, newer)
        assert info.message_count == 3
        assert (info.created_at, info.last_active_at) == (first.created_at, first.last_active_at)
        assert ids((await store.list_sessions(owner, 2)).sessions) == [newer, older]
        await self.on_another_host(store.session(older), 300).aadd_messages(humans(2))
        info = await info_of(store, older)
        assert info.created_at < first.created_at < info.last_active_at
        assert ids((await store.list_sessions(owner, 2)).sessions) == [older, newer]

    async def test_stay_where_an_expiry_stays_too(self, new_store: NewStore, session_id: str) -> None:
        await new_store(ttl=5000).session(session_id).aadd_messages(humans(1))
        first = await info_of(new_store(), session_id)
        await self.on_another_host(new_store(ttl=1000).session(session_id), -300).aadd_messages(humans(2))
        assert (await info_of(new_store(), session_id)).last_active_at == first.last_active_at


class TestDeleting:
    async def test_leaves_nothing(
        self,
        store: ChatHistoryStore,
        session_id: str,
        owner: str,
        items_in: Callable[[str], list[dict[str, Any]]],
        collection_table: str,
    ) -> None:
        history = store.session(session_id, owner=owner)
        await history.aadd_messages(humans(1, 2))
        # The sweep needs two requests of BatchWriteItem.
        for number in range(28):
            await history.aadd_messages(humans(number))
        await store.set_title(session_id, "a secret")
        assert await store.delete_session(session_id) == 30
        assert await store.get_session_info(session_id) is None
        assert await history.aget_messages() == []
        assert (await store.list_sessions(owner, 5)).sessions == []
        left = items_in(collection_table)
        # The tombstones of what is younger than half an hour.
        assert all(set(item) == {"SessionId", "MessageId", "RemovedBy", "expireAt"} for item in left)
        assert await store.delete_session(session_id) == 0

    async def test_of_a_session_from_before_the_index(
        self, new_store: NewStore, session_id: str, collection_table: str
    ) -> None:
        async with ChatHistoryStore(collection_table) as plain:
            await plain.session(session_id).aadd_messages(humans(1, 2))
        assert await new_store().delete_session(session_id) == 2

    async def test_takes_what_is_added_meanwhile(self, store_through: NewStore, session_id: str, proxy: Proxy) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages(humans(1))
        late = asyncio.Event()
        loop = asyncio.get_running_loop()

        def schedule(seen: Any) -> Fault:
            if seen.operation == "DeleteItem" and not late.is_set():
                loop.call_soon_threadsafe(late.set)
                return Fault.DELAY
            return Fault.NONE

        async def append_late() -> None:
            await late.wait()
            await store.session(session_id).aadd_messages(humans(2))

        proxy.schedule = schedule
        count, _ = await asyncio.gather(store.delete_session(session_id), append_late())
        left = len(await store.session(session_id).aget_messages())
        info = await store.get_session_info(session_id)
        # It came before the end of the deletion, or began the session anew.
        assert (count, left) in {(2, 0), (1, 1)}
        assert (0 if info is None else info.message_count) == left

    @pytest.mark.parametrize("fault", UNANSWERED + NOT_STORED)
    async def test_is_retried(self, store_through: NewStore, session_id: str, proxy: Proxy, fault: Fault) -> None:
        store = store_through()
        await store.session(session_id).aadd_messages(humans(1, 2))
        proxy.script(fault, operation="DeleteItem")
        assert await store.delete_session(session_id) == 2
        assert await store.get_session_info(session_id) is None

    async def test_begins_anew(self, store: ChatHistoryStore, session_id: str, owner: str) -> None:
        await store.session(session_id, owner=owner).aadd_messages(humans(1))
        await store.set_title(session_id, "t")
        await store.delete_session(session_id)
        await store.session(session_id).aadd_messages(humans(2))
        info = await info_of(store, session_id)
        assert (info.owner, info.title, info.message_count) == (None, None, 1)


class TestPurging:
    async def test_deletes_all_of_an_owners_sessions_and_no_others(self, store: ChatHistoryStore, owner: str) -> None:
        await begin(store, owner, 6)
        other = f"{owner}-other"
        await begin(store, other, 2)
        assert await store.purge_owner(owner) == PurgeResult(sessions=6, messages=21)
        assert (await store.list_sessions(owner, 9)).sessions == []
        assert len((await store.list_sessions(other, 9)).sessions) == 2
        assert await store.purge_owner(owner) == PurgeResult(0, 0)

    async def test_goes_on_where_it_was_cut_short(
        self, store_through: NewStore, new_store: NewStore, owner: str, proxy: Proxy
    ) -> None:
        names = await begin(new_store(), owner, 9)
        deleted = 0

        def schedule(seen: Any) -> Fault:
            nonlocal deleted
            deleted += seen.operation == "DeleteItem"
            return Fault.DENIED if deleted > 3 else Fault.NONE

        proxy.schedule = schedule
        with pytest.raises(ChatHistoryError):
            await store_through(attempts=1).purge_owner(owner)
        left = ids((await new_store().list_sessions(owner, 99)).sessions)
        assert 0 < len(left) < len(names)
        # Deletions that were under way when the purge failed may have ended after the sessions were listed.
        assert len(names) - 3 <= (await new_store().purge_owner(owner)).sessions <= len(left)
        assert (await new_store().list_sessions(owner, 99)).sessions == []
        for name in names:
            assert await new_store().session(name).aget_messages() == []

    async def test_takes_expired_ones_too(
        self, new_store: NewStore, owner: str, dynamodb: Any, collection_table: str, clock: FakeClock
    ) -> None:
        store = new_store(ttl=60)
        [name] = await begin(store, owner, 1)
        clock.advance(60)
        assert (await store.list_sessions(owner, 5)).sessions == []
        await store.purge_owner(owner)
        key = {"SessionId": {"S": name}, "MessageId": {"S": "session"}}
        assert "Item" not in dynamodb.get_item(TableName=collection_table, Key=key)


class TestExpiry:
    async def test_hides_and_begins_anew(
        self, new_store: NewStore, session_id: str, owner: str, expire: Callable[[], None]
    ) -> None:
        await new_store(ttl=1000).session(session_id, owner=owner).aadd_messages(humans(1, 2))
        await new_store().set_title(session_id, "old")
        expire()
        store = new_store(ttl=1000)
        assert await store.get_session_info(session_id) is None
        assert (await store.list_sessions(owner, 5)).sessions == []
        with pytest.raises(SessionNotFoundError):
            await store.set_title(session_id, "new")
        await store.session(session_id, owner="another").aadd_messages(humans(3))
        info = await info_of(store, session_id)
        assert (info.owner, info.title, info.message_count) == ("another", None, 1)

    async def test_of_some_messages_leaves_those_that_never_expire(
        self, new_store: NewStore, session_id: str, owner: str, clock: FakeClock
    ) -> None:
        await new_store().session(session_id, owner=owner).aadd_messages(humans(1, 2))
        store = new_store(ttl=60)
        await store.set_title(session_id, "t")
        await store.session(session_id).aadd_messages(humans(3))
        clock.advance(60)
        assert texts(await store.session(session_id).aget_messages()) == ["1", "2"]
        assert (await info_of(store, session_id)).title == "t"
        assert (await store.purge_owner(owner)).messages >= 2
        assert await store.session(session_id).aget_messages() == []

    async def test_is_the_last_messages(
        self, new_store: NewStore, session_id: str, dynamodb: Any, collection_table: str
    ) -> None:
        def expiry() -> int:
            key = {"SessionId": {"S": session_id}, "MessageId": {"S": "session"}}
            item = dynamodb.get_item(TableName=collection_table, Key=key, ConsistentRead=True)["Item"]
            return int(item.get("expireAt", {"N": 0})["N"])

        def history(ttl: int | None) -> DynamoDBChatMessageHistory:
            return new_store(ttl=ttl).session(session_id)

        for ttl, latest in [(1000, 1000), (5000, 5000), (1000, 5000)]:
            await history(ttl).aadd_messages(humans(ttl))
            assert abs(expiry() - time.time() - latest) < 100
        [stored] = (await history(None).apage(1)).messages
        await history(9000).areplace_message(stored.id, HumanMessage("new"))
        assert abs(expiry() - time.time() - 9000) < 100
        await history(None).aadd_messages(humans(1))
        assert expiry() == 0
        await history(1000).aadd_messages(humans(1))
        assert expiry() == 0
        assert (await info_of(new_store(), session_id)).message_count == 5

    @pytest.mark.parametrize("ttls", [(100, 1000, 5000), (100, 1000, None)], ids=["all expire", "some expire"])
    async def test_is_never_before_a_messages(
        self,
        new_store: NewStore,
        session_id: str,
        dynamodb: Any,
        items_in: Callable[[str], list[dict[str, Any]]],
        collection_table: str,
        ttls: tuple[int | None, ...],
    ) -> None:
        chance, histories = random.Random(2), {ttl: new_store(ttl=ttl).session(session_id) for ttl in ttls}

        async def write() -> None:
            history = histories[chance.choice(ttls)]
            stored = (await history.apage(9)).messages
            if not stored or chance.random() < 0.4:
                await history.aadd_messages(humans(*range(chance.randint(1, 3))))
                return
            one, change = chance.choice(stored).id, chance.choice(["replace", "replace", "delete", "pop"])
            with suppress(MessageNotFoundError):
                if change == "replace":
                    await history.areplace_message(one, HumanMessage("new"))
                elif change == "delete":
                    await history.adelete_messages([one])
                else:
                    await history.apop_message()

        def expiring() -> list[dict[str, Any]]:
            """Return the session's item, which is the last one, and its messages."""
            return [one for one in items_in(collection_table) if "History" in one or "MessageCount" in one]

        def pass_time(seconds: int) -> None:
            puts = [
                {"PutRequest": {"Item": one | {"expireAt": {"N": str(int(one["expireAt"]["N"]) - seconds)}}}}
                for one in expiring()
                if "expireAt" in one
            ]
            dynamodb.batch_write_item(RequestItems={collection_table: puts})

        def check() -> set[float]:
            """Compare them, and return the expiries of the messages that are left."""
            *messages, session = [float(one.get("expireAt", {"N": "inf"})["N"]) for one in expiring()]
            left = {expiry for expiry in messages if expiry > time.time()}
            assert session >= max(left, default=0)
            return left

        found = []
        for _ in range(12):
            await asyncio.gather(*(write() for _ in range(chance.randint(1, 3))))
            found.append(check())
            if chance.random() < 0.3:
                pass_time(chance.choice([90, 900, 4900]))
                found.append(check())
        assert any(len(left) > 1 for left in found)
        assert any(math.inf in left for left in found) == (None in ttls)


AWKWARD = ["a", "a#b", "a%23b", "a%", "#", "%", "", "a#", "#a", "%2523", "session", "名#", "a##b", "'\"\\", "\x00"]


class TestKeys:
    async def test_no_id_reaches_into_anothers_partition(self, store: ChatHistoryStore) -> None:
        run_id = uuid.uuid4().hex
        pairs = [(tenant, session) for tenant in AWKWARD for session in AWKWARD]
        histories = {pair: store.session(pair[1], key={"SessionId": (run_id, *pair)}) for pair in pairs}
        assert len({str(history.key) for history in histories.values()}) == len(pairs)
        for (tenant, _), history in histories.items():
            lead = store.session("", key={"SessionId": (run_id, tenant, "")}).key["SessionId"]
            others = [other for other in AWKWARD if other != tenant]
            assert str(history.key["SessionId"]).startswith(str(lead))
            for other in others:
                foreign = store.session("", key={"SessionId": (run_id, other, "")}).key["SessionId"]
                assert not str(history.key["SessionId"]).startswith(str(foreign))

    async def test_of_several_ids_are_one_key_everywhere(self, store: ChatHistoryStore, owner: str) -> None:
        key = {"SessionId": (owner, "s#1")}
        history = store.session("s#1", key=key, owner=owner)
        assert history.key == {"SessionId": f"{owner}#s%231"}
        await history.aadd_messages(humans(1))
        await store.set_title("s#1", "t", key=key)
        await store.update_metadata("s#1", {"a": 1}, key=key)
        info = await store.get_session_info("s#1", key=key)
        assert info is not None
        assert (info.session_id, info.title) == (f"{owner}#s%231", "t")
        # The session id in the list names the session without the key, too.
        [listed] = (await store.list_sessions(owner, 5)).sessions
        assert texts(await store.session(str(listed.session_id)).aget_messages()) == ["1"]
        branch = await history.acopy_to("s#2", key={"SessionId": (owner, "s#2")})
        assert branch.key == {"SessionId": f"{owner}#s%232"}
        assert await store.delete_session("s#1", key=key) == 1
        assert await store.purge_owner(owner) == PurgeResult(1, 1)

    @pytest.mark.parametrize("part", [1, None, b"x"])
    def test_are_made_of_text(self, part: Any) -> None:
        with pytest.raises(TypeError, match="ids that make up a key must be text"):
            ChatHistoryStore("t").session("s", key={"SessionId": ("a", part)})


class TestWithoutIt:
    async def test_the_methods_say_so(self, collection_table: str) -> None:
        async with ChatHistoryStore(collection_table) as store:
            for call in [
                store.list_sessions("o", 1),
                store.get_session_info("s"),
                store.set_title("s", "t"),
                store.update_metadata("s", {}),
                store.delete_session("s"),
                store.purge_owner("o"),
            ]:
                with pytest.raises(ConfigurationError, match="session_index=True"):
                    await call
            with pytest.raises(ValueError, match="session_index=True"):
                store.session("s", owner="o")

    def test_a_single_item_has_no_place_for_it(self) -> None:
        with pytest.raises(ValueError, match="session_index needs"):
            ChatHistoryStore("t", layout="single_item", session_index=True)

    @pytest.mark.parametrize("name", ["Owner", "Title", "MessageCount"])
    def test_its_attributes_names_are_free(self, name: str) -> None:
        assert ChatHistoryStore("t", primary_key_name=name).session("s").key == {name: "s"}
        for option in ("primary_key_name", "sort_key_name", "history_messages_key", "ttl_key_name"):
            options: dict[str, Any] = {option: name}
            with pytest.raises(ValueError, match="Two attributes have the name"):
                ChatHistoryStore("t", session_index=True, **options)


class TestTableWithoutTheIndex:
    @pytest.fixture
    def bare_table(self) -> Iterator[str]:
        with created_table() as name:
            yield name

    async def test_is_refused_by_the_first_append(
        self, bare_table: str, session_id: str, items_in: Callable[[str], list[dict[str, Any]]]
    ) -> None:
        async with ChatHistoryStore(bare_table, session_index=True) as store:
            for owner in ("o", None):
                with pytest.raises(KeySchemaError, match=r"no session index: .*create_table\(\) adds it"):
                    await store.session(session_id, owner=owner).aadd_messages(humans(1))
            with pytest.raises(KeySchemaError, match="no session index"):
                await store.list_sessions("o", 1)
            assert items_in(bare_table) == []
            # It is not remembered: who adds the index need not begin anew.
            await store.create_table()
            await store.session(session_id, owner="o").aadd_messages(humans(1))
            assert ids((await store.list_sessions("o", 1)).sessions) == [session_id]

    async def test_is_refused_by_a_migration(self, bare_table: str, table: str, session_id: str) -> None:
        async with (
            ChatHistoryStore(table, layout="single_item") as source,
            ChatHistoryStore(bare_table, session_index=True) as target,
        ):
            await source.session(session_id).aadd_messages(humans(1))
            for dry_run in (True, False):
                with pytest.raises(KeySchemaError, match="no session index"):
                    await anext(target.migrate_from(source, [session_id], dry_run=dry_run))
            assert await target.session(session_id).aget_messages() == []

    async def test_is_looked_for_once(self, store_through: NewStore, session_id: str, proxy: Proxy) -> None:
        store = store_through()
        for number in range(3):
            await store.session(session_id if number else f"{session_id}-{number}").aadd_messages(humans(number))
        assert proxy.operations() == ["Query", *["TransactWriteItems"] * 3]

    @pytest.mark.parametrize(("fault", "queries"), [(Fault.DENIED, 1), (Fault.CAPACITY, 2), (Fault.ERROR_500, 2)])
    async def test_is_not_what_another_refusal_says(
        self, store_through: NewStore, session_id: str, proxy: Proxy, fault: Fault, queries: int
    ) -> None:
        store = store_through(attempts=1)
        proxy.script(fault, operation="Query")
        for number in range(3):
            await store.session(session_id).aadd_messages(humans(number))
        assert proxy.operations().count("Query") == queries
        assert len(await store.session(session_id).aget_messages()) == 3


class TestTable:
    @pytest.fixture
    async def name(self) -> AsyncIterator[str]:
        name = f"sessions-{uuid.uuid4().hex}"
        yield name
        async with ChatHistoryStore(name) as store:
            await store.delete_table()

    async def test_that_is_there_gets_the_index(self, name: str, owner: str, dynamodb: Any) -> None:
        async with ChatHistoryStore(name) as plain:
            await plain.create_table()
        async with ChatHistoryStore(name, session_index=True) as store:
            for _ in range(2):
                await store.create_table()
            names = await begin(store, owner, 2)
            assert ids((await store.list_sessions(owner, 5)).sessions) == names
        async with ChatHistoryStore(name) as plain:
            await plain.create_table()
        [index] = dynamodb.describe_table(TableName=name)["Table"]["GlobalSecondaryIndexes"]
        assert (index["IndexName"], index["Projection"]) == ("SessionsByOwner", {"ProjectionType": "ALL"})
        assert [part["AttributeName"] for part in index["KeySchema"]] == ["Owner", "LastActive"]

    @pytest.mark.parametrize(
        ("schema", "projection", "error"),
        [
            (["Other"], "ALL", r"index 'SessionsByOwner' .* Other \(HASH, S\), not Owner"),
            (["Owner", "LastActive"], "KEYS_ONLY", "'SessionsByOwner' exists that does not hold all attributes"),
        ],
    )
    async def test_of_another_index_of_this_name_is_left_alone(
        self, name: str, dynamodb: Any, schema: list[str], projection: str, error: str
    ) -> None:
        dynamodb.create_table(
            TableName=name,
            KeySchema=key_schema("SessionId", "MessageId"),
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": "S"} for name in ("SessionId", "MessageId", *schema)
            ],
            BillingMode="PAY_PER_REQUEST",
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "SessionsByOwner",
                    "KeySchema": key_schema(*schema),
                    "Projection": {"ProjectionType": projection},
                }
            ],
        )
        async with ChatHistoryStore(name, session_index=True) as store:
            with pytest.raises(KeySchemaError, match=error):
                await store.create_table()
