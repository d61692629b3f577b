"""From single items into an item collection: nothing lost, nothing doubled, nothing deleted that was not compared."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from botocore.config import Config
from conftest import created_table
from langchain_community.chat_message_histories import DynamoDBChatMessageHistory as Theirs
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from plain_values import EXACT, same
from proxy import Fault, Proxy, Seen, retries
from samples import EVERY_TYPE, FLOATS, NESTED, humans, texts

from chathistory_async import (
    AccessDeniedError,
    ChatHistoryError,
    ChatHistoryStore,
    DynamoDBChatMessageHistory,
    EndpointError,
    KeySchemaError,
    LayoutError,
    MigrationResult,
    TableNotFoundError,
)
from chathistory_async._aws.calls import call
from chathistory_async._codec.attribute_values import size_of
from chathistory_async._codec.message_attribute_values import decode_message, encode_message
from chathistory_async._codec.messages import decode_json
from chathistory_async._item_collection.sort_keys import MAX_MOVED, SortKey, parse_id
from chathistory_async._migration.checkpoint import Checkpoint, CheckpointItem, Digests, known_of
from chathistory_async._request import ConditionFailed
from chathistory_async._sync.bridge import run
from chathistory_async.errors import SessionRef


@pytest.fixture
async def source(table: str) -> AsyncIterator[ChatHistoryStore]:
    async with ChatHistoryStore(table, layout="single_item") as store:
        yield store


@pytest.fixture
async def target(collection_table: str) -> AsyncIterator[ChatHistoryStore]:
    async with ChatHistoryStore(collection_table) as store:
        yield store


async def migrated(
    target: ChatHistoryStore, source: ChatHistoryStore, ids: Iterable[Any], **options: Any
) -> list[MigrationResult]:
    return [session async for session in target.migrate_from(source, ids, **options)]


async def outcome(target: ChatHistoryStore, source: ChatHistoryStore, session_id: str, **options: Any) -> Any:
    [session] = await migrated(target, source, [session_id], **options)
    assert session.session_id == session_id
    assert (session.error is not None) == (session.outcome in {"failed", "diverged", "kept"})
    return session.outcome, session.copied, session.total


async def read(store: ChatHistoryStore, session_id: str) -> list[BaseMessage]:
    return await store.session(session_id).aget_messages()


async def mark_deleted(target: ChatHistoryStore, session_id: str) -> None:
    layout: Any = target.session(session_id)._spec.layout
    await call(target._settings.clients, CheckpointItem(layout).mark_deleted(), SessionRef(target._layout.table_name))


async def test_what_dynamodb_has_no_form_for_is_copied_compared_and_recognised(
    source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
) -> None:
    await source.session(session_id).aadd_messages(
        [ToolMessage("x", tool_call_id=name, artifact=[value]) for name, value in EXACT.items()]
    )
    assert await outcome(target, source, session_id) == ("copied", len(EXACT), len(EXACT))
    # Which writes all messages anew.
    Theirs(source._layout.table_name, session_id).add_messages(humans("later"))
    assert await outcome(target, source, session_id) == ("copied", 1, len(EXACT) + 1)
    assert (await outcome(target, source, session_id, delete_source=True))[0] == "moved"
    *back, _ = await read(target, session_id)
    for message in back:
        assert isinstance(message, ToolMessage)
        assert same([EXACT[message.tool_call_id]], message.artifact)


@pytest.fixture
def target_items(
    items_in: Callable[[str], list[dict[str, Any]]], collection_table: str
) -> Callable[[], list[dict[str, Any]]]:
    """Reads the raw items of the test's own session in the target, the checkpoint aside."""
    return lambda: [item for item in items_in(collection_table) if "Migration" not in item]


@pytest.fixture
def checkpoint(dynamodb: Any, collection_table: str, session_id: str) -> Callable[[], dict[str, Any]]:
    """Reads the raw checkpoint of the test's own session."""

    def checkpoint() -> dict[str, Any]:
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": "migration"}}
        found: dict[str, Any] = dynamodb.get_item(TableName=collection_table, Key=key, ConsistentRead=True)["Item"]
        return found

    return checkpoint


ONCE = Config(retries={"total_max_attempts": 1, "mode": "legacy"})
MANY = retries(10)
# Two records, with the fixture.
THREE = humans(1, 2, 3)


@pytest.fixture
def two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record has room for two messages."""
    monkeypatch.setattr("chathistory_async._migration.target._MESSAGES_IN_A_RECORD", 2)


@pytest.fixture
async def proxied(
    table: str, collection_table: str, proxy: Proxy
) -> AsyncIterator[Callable[[Config], tuple[ChatHistoryStore, ChatHistoryStore]]]:
    """Makes a target and a source that are reached through the proxy."""
    stores = []

    def proxied(config: Config) -> tuple[ChatHistoryStore, ChatHistoryStore]:
        target = ChatHistoryStore(collection_table, endpoint_url=proxy.url, config=config)
        source = ChatHistoryStore(table, layout="single_item", endpoint_url=proxy.url, config=config)
        stores.extend([target, source])
        return target, source

    yield proxied
    for store in stores:
        await store.aclose()


Proxied = Callable[[Config], tuple[ChatHistoryStore, ChatHistoryStore]]


def key_of(message_id: str) -> str:
    """The sort key of the record that a message is in."""
    return str(parse_id(message_id).key)


def swapped_lines(body: str) -> str:
    """The body of a record of two messages, in the other order."""
    first, second = body[1:-1].split(",\n")
    return f"[{second},\n{first}]"


def is_verification(seen: Seen) -> bool:
    return seen.operation == "Query" and not seen.body["ScanIndexForward"]


class TestSessionIndex:
    @pytest.fixture
    async def target(self, collection_table: str) -> AsyncIterator[ChatHistoryStore]:
        async with ChatHistoryStore(collection_table, session_index=True) as store:
            yield store

    async def counted(self, target: ChatHistoryStore, session_id: str) -> tuple[int, str | None]:
        info = await target.get_session_info(session_id)
        assert info is not None
        assert info.message_count == len(await read(target, session_id))
        return info.message_count, info.owner

    async def test_counts_what_is_copied(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(*range(120)))
        owner_of = {session_id: "alice"}.get
        assert await outcome(target, source, session_id, owner_of=owner_of) == ("copied", 120, 120)
        assert await self.counted(target, session_id) == (120, "alice")
        await target.session(session_id).aadd_messages(humans(*range(3)))
        await source.session(session_id).aadd_messages(humans("later"))
        assert await outcome(target, source, session_id, owner_of=lambda _: "bob") == ("copied", 1, 121)
        assert await self.counted(target, session_id) == (124, "alice")

    async def test_and_what_was_there_before(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await target.session(session_id, owner="alice").aadd_messages(humans(3))
        before = await target.get_session_info(session_id)
        await source.session(session_id).aadd_messages(humans(1, 2))
        assert await outcome(target, source, session_id) == ("copied", 2, 2)
        assert await self.counted(target, session_id) == (3, "alice")
        after = await target.get_session_info(session_id)
        assert before is not None
        assert after is not None
        assert after.last_active_at == before.last_active_at

    async def test_expires_with_the_last_message(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, dynamodb: Any, collection_table: str
    ) -> None:
        def expiry() -> int:
            key = {"SessionId": {"S": session_id}, "MessageId": {"S": "session"}}
            item = dynamodb.get_item(TableName=collection_table, Key=key, ConsistentRead=True)["Item"]
            return int(item["expireAt"]["N"])

        async def append(ttl: int) -> None:
            async with ChatHistoryStore(source._layout.table_name, layout="single_item", ttl=ttl) as store:
                await store.session(session_id).aadd_messages(humans(ttl))

        await append(1000)
        await outcome(target, source, session_id)
        first = expiry()
        await append(5000)
        await outcome(target, source, session_id)
        assert 3900 < expiry() - first < 4100
        await append(100)
        await outcome(target, source, session_id)
        assert 3900 < expiry() - first < 4100
        assert (await self.counted(target, session_id))[0] == 3

    # The session has no item yet, or one that expires before the first message, or after it.
    @pytest.mark.parametrize("ttl", [None, 500, 2000])
    @pytest.mark.parametrize("grows", [False, True])
    async def test_expires_with_the_last_message_also_if_the_source_grows_meanwhile(
        self,
        table: str,
        collection_table: str,
        session_id: str,
        proxy: Proxy,
        items_in: Callable[[str], list[dict[str, Any]]],
        pauses: list[float],
        ttl: int | None,
        grows: bool,
    ) -> None:
        def grow(seen: Seen) -> Fault:
            if grows and seen.operation == "DeleteItem" and proxy.operations().count("DeleteItem") == 1:
                DynamoDBChatMessageHistory(table, session_id, ttl=5000).add_messages(humans("meanwhile"))
            return Fault.NONE

        proxy.schedule = grow
        if ttl is not None:
            async with ChatHistoryStore(collection_table, session_index=True, ttl=ttl) as before:
                await before.session(session_id).aadd_messages(humans("before"))
        await DynamoDBChatMessageHistory(table, session_id, ttl=1000).aadd_messages(humans("first"))
        async with (
            ChatHistoryStore(table, layout="single_item", endpoint_url=proxy.url) as source,
            ChatHistoryStore(collection_table, session_index=True, endpoint_url=proxy.url) as target,
        ):
            assert await outcome(target, source, session_id, delete_source=True) == ("moved", 1 + grows, 1 + grows)
        items = [item for item in items_in(collection_table) if "expireAt" in item]
        expiries = {item["MessageId"]["S"]: int(item["expireAt"]["N"]) for item in items}
        session_expiry = expiries.pop("session")
        assert len(expiries) == 1 + grows + (ttl is not None)
        assert session_expiry >= max(expiries.values())
        assert len(pauses) == grows, "it pauses only after it has lost to another writer"

    async def test_never_expires_if_the_copies_never_do(
        self, table: str, collection_table: str, session_id: str, items_in: Callable[[str], list[dict[str, Any]]]
    ) -> None:
        async with ChatHistoryStore(collection_table, session_index=True, ttl=500) as before:
            await before.session(session_id).aadd_messages(humans("before"))
        async with (
            ChatHistoryStore(table, layout="single_item") as source,
            ChatHistoryStore(collection_table, session_index=True) as target,
        ):
            await source.session(session_id).aadd_messages(humans("first"))
            assert await outcome(target, source, session_id) == ("copied", 1, 1)
        expiring = [item["MessageId"]["S"] for item in items_in(collection_table) if "expireAt" in item]
        assert len(expiring) == 1
        assert "session" not in expiring

    @pytest.mark.parametrize("fault", [Fault.LOST_RESPONSE, Fault.LATE_ERROR, Fault.RESET, Fault.CONFLICT])
    async def test_counts_once_where_a_request_is_retried(
        self, source: ChatHistoryStore, collection_table: str, session_id: str, proxy: Proxy, fault: Fault
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        config = retries()
        options: dict[str, Any] = {"session_index": True, "endpoint_url": proxy.url, "config": config}
        async with ChatHistoryStore(collection_table, **options) as target:
            for number in range(2):
                proxy.script(fault, operation="TransactWriteItems")
                assert (await outcome(target, source, session_id))[2] == 2 + number
                assert (await self.counted(target, session_id))[0] == 2 + number
                await source.session(session_id).aadd_messages(humans(number))

    async def test_what_is_deleted_there_does_not_come_back(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        await outcome(target, source, session_id)
        assert await target.delete_session(session_id) == 2
        await source.session(session_id).aadd_messages(humans(3))
        assert (await outcome(target, source, session_id))[0] == "deleted"
        assert await read(target, session_id) == []
        assert await target.get_session_info(session_id) is None

    async def test_an_owner_that_cannot_be_meant_fails_one_session(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        for name in (session_id, f"{session_id}-2"):
            await source.session(name).aadd_messages(humans(1))
        owner_of = {session_id: ""}.get
        bad, good = await migrated(target, source, [session_id, f"{session_id}-2"], owner_of=owner_of)
        assert (bad.session_id, bad.outcome, good.outcome) == (session_id, "failed", "copied")
        assert "owner must be text" in (bad.error or "")

    async def test_gives_an_owner_to_a_session_without_one(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await target.session(session_id).aadd_messages(humans(2))
        await source.session(session_id).aadd_messages(humans(1))
        await outcome(target, source, session_id, owner_of=lambda _: "alice")
        assert await self.counted(target, session_id) == (2, "alice")

    async def test_owners_need_it(self, source: ChatHistoryStore, collection_table: str) -> None:
        async with ChatHistoryStore(collection_table) as target:
            with pytest.raises(ValueError, match="owner_of needs"):
                target.migrate_from(source, [], owner_of=lambda _: "alice")


class TestOutcomes:
    async def test_what_is_copied_comes_first_beside_items_of_others(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, dynamodb: Any, collection_table: str
    ) -> None:
        for name in ("m#", "m#0", *(f"m#00-{number:03}" for number in range(150))):
            item = {"SessionId": {"S": session_id}, "MessageId": {"S": name}, "Notes": {"S": "of somebody else's"}}
            dynamodb.put_item(TableName=collection_table, Item=item)
        # Its time is before that of the copies by default.
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": str(SortKey(10**12 << 16, "0" * 16, 0))}}
        text = '{"type": "human", "data": {"content": "3"}}'
        dynamodb.put_item(TableName=collection_table, Item=key | {"History": {"S": text}})
        await source.session(session_id).aadd_messages(humans(1, 2))
        assert await outcome(target, source, session_id) == ("copied", 2, 2)
        assert texts(await read(target, session_id)) == ["1", "2", "3"]

    async def test_copied_then_unchanged(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await source.session(session_id).aadd_messages(EVERY_TYPE)
        number = len(EVERY_TYPE)
        assert await outcome(target, source, session_id) == ("copied", number, number)
        moved = await read(target, session_id)
        assert moved == await read(source, session_id) == EVERY_TYPE
        assert [type(message) for message in moved] == [type(message) for message in EVERY_TYPE]
        assert await outcome(target, source, session_id) == ("unchanged", 0, number)
        assert await read(target, session_id) == EVERY_TYPE

    async def test_a_dry_run_writes_nothing(
        self, source: ChatHistoryStore, collection_table: str, session_id: str, proxy: Proxy
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        async with ChatHistoryStore(collection_table, endpoint_url=proxy.url) as target:
            for options in ({"dry_run": True}, {"dry_run": True, "delete_source": True}):
                assert await outcome(target, source, session_id, **options) == ("would_copy", 2, 0)
            assert set(proxy.operations()) == {"GetItem", "Query"}
            assert await outcome(target, source, session_id) == ("copied", 2, 2)
            assert await outcome(target, source, session_id, dry_run=True) == ("unchanged", 0, 2)
        assert texts(await read(source, session_id)) == ["1", "2"]

    async def test_absent(self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str) -> None:
        assert await outcome(target, source, session_id) == ("absent", 0, 0)

    async def test_a_wrong_attribute_does_not_make_a_source_diverge(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        await outcome(target, source, session_id)
        mistaken = ChatHistoryStore(source._layout.table_name, layout="single_item", history_messages_key="Messages")
        async with mistaken:
            for delete_source in (False, True):
                [session] = await migrated(target, mistaken, [session_id], delete_source=delete_source)
                assert session.outcome == "failed"
                assert "no attribute 'Messages', but 'History'" in (session.error or "")
        assert await outcome(target, source, session_id) == ("unchanged", 0, 1)

    @pytest.mark.parametrize("key", ["", "x" * 2049, "é" * 1025], ids=["empty", "too long", "too long in UTF-8"])
    async def test_an_id_that_no_table_takes_fails_alone(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, key: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        refused, copied = await migrated(target, source, [key, session_id])
        assert (refused.outcome, copied.outcome) == ("failed", "copied")
        assert "must have 1 to 2,048 bytes" in (refused.error or "")

    async def test_an_expired_session_is_not_revived(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, update: Any, item: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        # Not even looked into.
        update(expireAt={"N": "1"}, History={"L": [{"S": "not a message"}]})
        assert await outcome(target, source, session_id, delete_source=True) == ("expired", 0, 0)
        assert await read(target, session_id) == []
        assert item() is not None

    async def test_moved(self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, item: Any) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 2, 2)
        assert item() is None
        assert texts(await read(target, session_id)) == ["1", "2"]
        assert await outcome(target, source, session_id, delete_source=True) == ("absent", 0, 2)

    async def test_what_langchain_community_writes_back_has_diverged(
        self,
        source: ChatHistoryStore,
        target: ChatHistoryStore,
        session_id: str,
        table: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It reads the session, which is then moved, and writes all of it with what it adds."""
        theirs = Theirs(table, session_id)
        theirs.add_messages(humans(1, 2))
        stale = theirs.messages
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 2, 2)
        with monkeypatch.context() as patch:
            patch.setattr(Theirs, "messages", stale)
            theirs.add_messages(humans(3))
        assert texts(theirs.messages) == ["1", "2", "3"]
        for _ in range(2):
            assert await outcome(target, source, session_id, delete_source=True) == ("diverged", 0, 2)
        assert texts(theirs.messages) == ["1", "2", "3"]
        assert texts(await read(target, session_id)) == ["1", "2"]

    @pytest.mark.parametrize("seen_absent", [False, True])
    async def test_moved_again_where_old_code_begins_anew(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, item: Any, seen_absent: bool
    ) -> None:
        for number in range(1, 4):
            await source.session(session_id).aadd_messages(humans(f"question {number}", f"answer {number}"))
            assert await outcome(target, source, session_id, delete_source=True) == ("moved", 2, 2 * number)
            if seen_absent:
                assert await outcome(target, source, session_id) == ("absent", 0, 2 * number)
        assert item() is None
        assert texts(await read(target, session_id))[::2] == ["question 1", "question 2", "question 3"]

    async def test_a_conversation_that_begins_as_the_one_before_has_diverged(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans("hi"))
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 1, 1)
        await source.session(session_id).aadd_messages(humans("hi", "how are you?"))
        assert await outcome(target, source, session_id, delete_source=True) == ("diverged", 0, 1)
        assert texts(await read(source, session_id)) == ["hi", "how are you?"]

    async def test_what_a_diverged_session_says_helps(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, update: Any, item: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        before = item()["History"]
        await source.session(session_id).aadd_messages(humans("overwritten"))
        await outcome(target, source, session_id)
        update(History=before)
        await source.session(session_id).aadd_messages(humans("secret"))
        for options in ({}, {"dry_run": True}, {"delete_source": True}):
            [session] = await migrated(target, source, [session_id], **options)
            assert (session.outcome, session.copied, session.total) == ("diverged", 0, 3)
        assert session.error is not None
        assert "append the missing messages to the target, and clear the source" in session.error
        assert session_id in session.error
        assert "secret" not in session.error
        await target.session(session_id).aadd_messages((await read(source, session_id))[-1:])
        await source.session(session_id).aclear()
        assert await outcome(target, source, session_id) == ("absent", 0, 3)
        await source.session(session_id).aadd_messages(humans("later"))
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 1, 4)
        assert texts(await read(target, session_id)) == ["1", "2", "overwritten", "later", "secret"]

    @pytest.mark.sampled("history")
    @pytest.mark.parametrize("history", [{"L": [{"S": "no message"}]}, {"S": "no list"}, {"L": [{"B": b"encrypted?"}]}])
    async def test_failed_and_the_others_go_on(
        self,
        source: ChatHistoryStore,
        target: ChatHistoryStore,
        session_id: str,
        update: Any,
        item: Any,
        history: dict[str, Any],
        kms_key: str,
    ) -> None:
        others = [f"{session_id}-{number}" for number in range(20)]
        for other in others:
            await source.session(other).aadd_messages(humans(other))
        update(History=history)
        async with ChatHistoryStore(source._layout.table_name, layout="single_item", kms_key_id=kms_key) as source:
            sessions = await migrated(target, source, [*others[:10], session_id, *others[10:]], delete_source=True)
        assert [session.session_id for session in sessions] == [*others[:10], session_id, *others[10:]]
        assert [session.outcome for session in sessions] == ["moved"] * 10 + ["failed"] + ["moved"] * 10
        error = sessions[10].error or ""
        assert error.split(":")[0] in {"UndecodableItemError", "DecryptionError"}
        assert session_id in error
        assert "no message" not in error
        assert item()["History"] == history
        assert [texts(await read(target, other)) for other in others] == [[other] for other in others]

    async def test_deleted_does_not_come_back(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, checkpoint: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        with pytest.raises(ConditionFailed):
            await mark_deleted(target, session_id)
        await outcome(target, source, session_id)
        await mark_deleted(target, session_id)
        await target.session(session_id).aclear()
        assert "Copied" not in checkpoint()["Migration"]["M"]
        await source.session(session_id).aadd_messages(humans(3))
        for options in ({}, {"dry_run": True}, {"dry_run": True, "delete_source": True}):
            assert await outcome(target, source, session_id, **options) == ("deleted", 0, 2)
        assert await read(target, session_id) == []
        assert texts(await read(source, session_id)) == ["1", "2", "3"]

    async def test_its_source_is_not_deleted_uncompared(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        await outcome(target, source, session_id)
        await mark_deleted(target, session_id)
        await target.session(session_id).aclear()
        for _ in range(2):
            [session] = await migrated(target, source, [session_id], delete_source=True)
            assert (session.outcome, session.copied, session.total) == ("kept", 0, 2)
            assert "nothing is left to compare it with" in (session.error or "")
            assert texts(await read(source, session_id)) == ["1", "2"]
        await source.session(session_id).aclear()
        assert await outcome(target, source, session_id, delete_source=True) == ("deleted", 0, 2)

    async def test_cleared_before_it_was_compared(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, proxied: Proxied, proxy: Proxy
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2, 3))
        proxy.schedule = lambda seen: Fault.RESET if is_verification(seen) else Fault.NONE
        with pytest.raises(EndpointError):
            await migrated(*proxied(ONCE), [session_id])
        await target.session(session_id).aclear()
        assert await outcome(target, source, session_id) == ("unchanged", 0, 3)
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 0, 3)
        assert await read(target, session_id) == []


HUGE = "9" * 38
DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no digests": lambda state: state.pop("Copied"),
    "digests of another type": lambda state: state.update(Copied={"S": "x"}),
    "digests cut short": lambda state: state.update(Copied={"B": state["Copied"]["B"][:-3]}),
    "other digests": lambda state: state.update(Copied={"B": b"12345678"}),
    "encrypted digests that are none": lambda state: state.update(Encrypted={"B": b"x"}),
    "no base": lambda state: state.pop("Base"),
    "a base that is none": lambda state: state.update(Base={"S": "m#"}),
    "a base of another type": lambda state: state.update(Base={"N": "1"}),
    "a base of another time": lambda state: state.update(Base={"S": str(SortKey(1, "0" * 16, 0))}),
    "no total": lambda state: state.pop("Total"),
    "another total": lambda state: state.update(Total={"N": "1000"}),
    "a total below the number of digests": lambda state: state.update(Total={"N": "1"}, Verified={"N": "1"}),
    "a huge total": lambda state: state.update(Total={"N": HUGE}, Verified={"N": HUGE}),
    "a negative total": lambda state: state.update(Total={"N": f"-{HUGE}"}, Verified={"N": f"-{HUGE}"}),
    "a total with a fraction": lambda state: state.update(Total={"N": "2.5"}),
    "no number of those compared": lambda state: state.pop("Verified"),
    "a smaller number of those compared": lambda state: state.update(Verified={"N": "1"}),
    "a huge number of those compared": lambda state: state.update(Verified={"N": HUGE}),
    "text for a number": lambda state: state.update(Verified={"S": "2"}),
    "a source that was gone": lambda state: state.update(Gone={"BOOL": True}),
    "no checksum": lambda state: state.pop("Check"),
    "another checksum": lambda state: state.update(Check={"N": "1"}),
    "nothing": lambda state: state.clear(),
}


class TestWhatIsDamaged:
    """Each fails alone, keeps its source, and the next session goes on."""

    async def all_fail(
        self,
        target: ChatHistoryStore,
        source: ChatHistoryStore,
        damaged: list[str],
        error: str = "UndecodableItemError",
    ) -> None:
        healthy = f"{damaged[0]}-{uuid.uuid4().hex}"
        await source.session(healthy).aadd_messages(humans("healthy"))
        before = [await read(source, session) for session in damaged]
        *failed, last = await migrated(target, source, [*damaged, healthy], delete_source=True)
        assert last.outcome == "moved"
        for name, session in zip(damaged, failed, strict=True):
            assert (session.outcome, session.copied) == ("failed", 0), name
            assert (session.error or "").startswith(f"{error}: "), name
            assert repr(name) in (session.error or ""), name
        assert [await read(source, session) for session in damaged] == before

    async def test_checkpoints(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, dynamodb: Any, collection_table: str
    ) -> None:
        sessions = {f"{session_id}-{what}": damage for what, damage in DAMAGES.items()}
        for session in sessions:
            await source.session(session).aadd_messages(humans(1, 2))
        await migrated(target, source, sessions)
        for session, damage in sessions.items():
            key = {"SessionId": {"S": session}, "MessageId": {"S": "migration"}}
            checkpoint = dynamodb.get_item(TableName=collection_table, Key=key, ConsistentRead=True)["Item"]
            damage(checkpoint["Migration"]["M"])
            dynamodb.put_item(TableName=collection_table, Item=checkpoint)
        encrypted = f"{session_id}-encrypted digests that are none"
        await self.all_fail(target, source, [session for session in sessions if session != encrypted])
        await self.all_fail(target, source, [encrypted], "ConfigurationError")

    @pytest.mark.parametrize("damage", [{"Migration": {"S": "no map"}}, {"Revision": {"N": "1"}}, {"Migration": None}])
    async def test_a_checkpoint_of_another_form(
        self,
        source: ChatHistoryStore,
        target: ChatHistoryStore,
        session_id: str,
        dynamodb: Any,
        collection_table: str,
        checkpoint: Any,
        damage: dict[str, Any],
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        await outcome(target, source, session_id)
        item = {name: value for name, value in (checkpoint() | damage).items() if value is not None}
        dynamodb.put_item(TableName=collection_table, Item=item)
        await self.all_fail(target, source, [session_id])
        async with ChatHistoryStore(collection_table, session_index=True) as indexed:
            assert await indexed.delete_session(session_id) == 2
        assert (await outcome(target, source, session_id))[0] in {"failed", "deleted"}
        assert await read(target, session_id) == []

    @pytest.mark.parametrize(
        ("checkpoint", "error"),
        [
            (Checkpoint(SortKey(2**64 - 1, "0" * 16, 0), total=2), "UndecodableItemError"),
            (Checkpoint(SortKey(1, "0" * 16, 1), total=2), "UndecodableItemError"),
            (Checkpoint(SortKey(1, "0" * 16, 0), total=MAX_MOVED + 1), "UndecodableItemError"),
            (Checkpoint(SortKey(1, "0" * 16, 0), total=10**37), "UndecodableItemError"),
            (Checkpoint(SortKey(1, "0" * 16, 0), total=1, verified=2), "UndecodableItemError"),
            (Checkpoint(SortKey(1, "0" * 16, 0), total=MAX_MOVED - 1), "ItemTooLargeError"),
        ],
        ids=str,
    )
    async def test_a_checkpoint_that_somebody_made_up(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, checkpoint: Checkpoint, error: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        layout: Any = target.session(session_id)._spec.layout
        made_up = checkpoint._changed()
        request = CheckpointItem(layout).advance(
            checkpoint, made_up, Digests(b"".join(made_up.copied), encrypted=False)
        )
        await call(target._settings.clients, request, SessionRef(layout.table_name))
        await self.all_fail(target, source, [session_id], error)

    async def test_messages_in_the_target_that_were_compared_before(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, dynamodb: Any, collection_table: str
    ) -> None:
        damages: list[dict[str, Any]] = [
            {"History": {"S": "no JSON"}},
            {"History": {"N": "1"}},
            {"History": {"B": b"no JSON"}},
            {"Encoding": {"S": "unknown"}},
            {"Encoding": {"S": "zlib"}},
            {"Encoding": {"S": "aws-encryption-sdk"}},
        ]
        sessions = [f"{session_id}-{number}" for number in range(len(damages))]
        for session in sessions:
            await source.session(session).aadd_messages(humans("secret"))
        await migrated(target, source, sessions)
        for session, damage in zip(sessions, damages, strict=True):
            [stored] = (await target.session(session).apage(1)).messages
            key = {"SessionId": {"S": session}, "MessageId": {"S": key_of(stored.id)}}
            item = dynamodb.get_item(TableName=collection_table, Key=key, ConsistentRead=True)["Item"]
            dynamodb.put_item(TableName=collection_table, Item=item | damage)
        without_key = sessions.pop()
        await self.all_fail(target, source, sessions)
        await self.all_fail(target, source, [without_key], "ConfigurationError")

    async def test_another_message_in_the_place_of_one_that_was_compared_before(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, dynamodb: Any, target_items: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        await outcome(target, source, session_id)
        [record] = target_items()
        swapped = record | {"History": {"S": swapped_lines(record["History"]["S"])}}
        dynamodb.put_item(TableName=target._layout.table_name, Item=swapped)
        assert await outcome(target, source, session_id) == ("unchanged", 0, 2)
        assert await outcome(target, source, session_id, delete_source=True) == ("failed", 0, 2)
        assert texts(await read(source, session_id)) == ["1", "2"]

    async def test_items_of_the_index(
        self, source: ChatHistoryStore, session_id: str, dynamodb: Any, collection_table: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": "session"}}
        damage = {"MessageCount": {"S": "many"}, "Revision": {"S": "r"}}
        dynamodb.put_item(TableName=collection_table, Item=key | damage)
        async with ChatHistoryStore(collection_table, session_index=True) as target:
            await self.all_fail(target, source, [session_id], "ServiceError")

    async def test_encrypted_messages_without_a_key(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, table: str, kms_key: str
    ) -> None:
        async with ChatHistoryStore(table, layout="single_item", kms_key_id=kms_key) as encrypted:
            await encrypted.session(session_id).aadd_messages(humans("secret"))
        await source.session(f"{session_id}-2").aadd_messages(humans("plain"))
        first, second = await migrated(target, source, [session_id, f"{session_id}-2"], delete_source=True)
        assert (first.outcome, second.outcome) == ("failed", "moved")
        assert "give kms_key_id" in (first.error or "")

    async def test_a_message_under_a_key_that_may_not_be_used(
        self, target: ChatHistoryStore, session_id: str, table: str, kms_key: str, proxy: Proxy
    ) -> None:
        options: dict[str, Any] = {"layout": "single_item", "kms_key_id": kms_key}
        async with ChatHistoryStore(table, **options) as writer:
            await writer.session(session_id).aadd_messages(humans("secret"))
        proxy.schedule = lambda seen: Fault.DENIED if seen.operation == "Decrypt" else Fault.NONE
        async with ChatHistoryStore(table, kms_endpoint_url=proxy.url, **options) as source:
            await source.session(f"{session_id}-2").aadd_messages(humans("plain"))
            first, second = await migrated(target, source, [session_id, f"{session_id}-2"], delete_source=True)
        assert (first.outcome, second.outcome) == ("failed", "moved")
        assert (first.error or "").startswith("AccessDeniedError")

    async def test_ids_that_no_session_can_have(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        ids: list[Any] = [None, ("a", "b"), 1.5, "\udc80", session_id]
        *failed, last = await migrated(target, source, ids)
        assert [session.outcome for session in failed] == ["failed"] * 4
        assert [(session.error or "").split(":")[0] for session in failed] == ["TypeError"] * 3 + ["ValueError"]
        assert last.outcome == "copied"


class TestAttributesOfOthers:
    async def test_are_kept_with_their_item(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, update: Any, item: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        update(Notes={"S": "secret"}, Tags={"SS": ["a"]}, expireAt={"N": "9999999999"})
        assert await outcome(target, source, session_id, dry_run=True, delete_source=True) == ("would_copy", 2, 0)
        for copied in (2, 0):
            [session] = await migrated(target, source, [session_id], delete_source=True)
            assert (session.outcome, session.copied, session.total) == ("kept", copied, 2)
        assert session.error is not None
        assert "'Notes', 'Tags'" in session.error
        assert "secret" not in session.error
        assert item()["Notes"] == {"S": "secret"}
        assert texts(await read(target, session_id)) == ["1", "2"]
        await source.session(session_id).aadd_messages(humans(3))
        assert await outcome(target, source, session_id) == ("copied", 1, 3)

    async def test_of_a_session_that_was_deleted_in_the_target(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, update: Any, item: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        await outcome(target, source, session_id)
        await mark_deleted(target, session_id)
        update(Notes={"S": "x"})
        assert await outcome(target, source, session_id) == ("deleted", 0, 1)
        assert await outcome(target, source, session_id, delete_source=True) == ("kept", 0, 1)
        assert item()["Notes"] == {"S": "x"}


class TestWhatIsRefused:
    async def test_the_wrong_layout(self, source: ChatHistoryStore, target: ChatHistoryStore) -> None:
        with pytest.raises(LayoutError, match="needs a target table with a sort key"):
            source.migrate_from(source, [])
        with pytest.raises(LayoutError, match="copies from single items"):
            target.migrate_from(target, [])
        with pytest.raises(LayoutError, match="single_item"):
            target.scan_session_ids()

    async def test_an_id_instead_of_ids(self, source: ChatHistoryStore, target: ChatHistoryStore) -> None:
        with pytest.raises(TypeError, match="put the one id in a list"):
            target.migrate_from(source, "alice")

    async def test_a_missing_table_ends_the_run(self, source: ChatHistoryStore, session_id: str) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        async with ChatHistoryStore("no-such-table") as nowhere:
            with pytest.raises(TableNotFoundError, match="no-such-table"):
                await migrated(nowhere, source, [session_id, "another"])

    async def test_a_missing_permission_ends_the_run(
        self, source: ChatHistoryStore, collection_table: str, session_id: str, proxy: Proxy
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        proxy.schedule = lambda seen: Fault.DENIED if seen.operation == "TransactWriteItems" else Fault.NONE
        async with ChatHistoryStore(collection_table, endpoint_url=proxy.url) as target:
            with pytest.raises(AccessDeniedError):
                await migrated(target, source, [session_id] * 3)


class TestWhereAndWhen:
    async def test_they_come_before_what_is_there(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await target.session(session_id).aadd_messages(humans("there"))
        await source.session(session_id).aadd_messages(humans(1, 2))
        await outcome(target, source, session_id)
        await target.session(session_id).aadd_messages(humans("after"))
        await source.session(session_id).aadd_messages(humans(3))
        await outcome(target, source, session_id)
        assert texts(await read(target, session_id)) == ["1", "2", "3", "there", "after"]

    async def test_they_come_before_what_seems_to_be_old(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, dynamodb: Any
    ) -> None:
        await target.session(f"{session_id}-0").aadd_messages(humans("a clock a day behind"))
        [page] = [await target.session(f"{session_id}-0").apage(1)]
        tick, nonce, _ = page.messages[0].id.split("-")
        earlier = int(tick, 16) - (24 * 3600 * 1000 << 16)
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": str(SortKey(earlier, nonce))}}
        body = {"S": '{"type":"human","data":{"content":"old"}}'}
        dynamodb.put_item(TableName=target._layout.table_name, Item=key | {"History": body})
        await source.session(session_id).aadd_messages(humans(1, 2))
        await outcome(target, source, session_id)
        assert texts(await read(target, session_id)) == ["1", "2", "old"]

    async def test_their_time_is_an_hour_before_the_first_run(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        for number in range(2):
            await source.session(session_id).aadd_messages(humans(number))
            await outcome(target, source, session_id)
        page = await target.session(session_id).apage(5)
        times = {message.created_at for message in page.messages}
        assert len(times) == 1
        ago = datetime.now(timezone.utc) - times.pop()
        assert timedelta(seconds=3590) < ago < timedelta(seconds=3700)

    async def test_they_keep_the_sources_expiry(
        self, source: ChatHistoryStore, collection_table: str, session_id: str, update: Any, target_items: Any
    ) -> None:
        large = HumanMessage("large", response_metadata={"noise": [str(hash((number, "x"))) for number in range(9000)]})
        await source.session(session_id).aadd_messages([large, *humans(1)])
        update(expireAt={"N": "9999999999.5"})
        async with ChatHistoryStore(collection_table, ttl=60) as target:
            await outcome(target, source, session_id)
        assert {item["expireAt"]["N"] for item in target_items()} == {"9999999999.5"}

    async def test_without_one_they_get_the_targets(
        self, source: ChatHistoryStore, collection_table: str, session_id: str, target_items: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        async with ChatHistoryStore(collection_table, ttl=60) as target:
            await outcome(target, source, session_id)
        [item] = target_items()
        assert 0 < int(item["expireAt"]["N"]) - datetime.now().timestamp() <= 61

    async def test_the_checkpoint_never_expires_and_is_no_message(
        self, source: ChatHistoryStore, collection_table: str, session_id: str, checkpoint: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        async with ChatHistoryStore(collection_table, ttl=60) as target:
            await outcome(target, source, session_id)
            history = target.session(session_id)
            await history.aclear()
            assert await history.aget_messages() == [message async for message in history.aiter()] == []
            assert await outcome(target, source, session_id) == ("unchanged", 0, 2)
        assert "expireAt" not in checkpoint()


class TestWhatIsCopied:
    async def test_what_langchain_community_wrote(
        self, source: ChatHistoryStore, target: ChatHistoryStore, table: str, session_id: str
    ) -> None:
        theirs = Theirs(table, session_id, coerce_float_to_decimal=True)
        theirs.add_messages([HumanMessage("", additional_kwargs={"floats": FLOATS[:4], "nested": NESTED}), *EVERY_TYPE])
        await outcome(target, source, session_id)
        assert await read(target, session_id) == await read(source, session_id)

    @pytest.mark.parametrize(("encrypted_source", "encrypted_target"), [(True, True), (True, False), (False, True)])
    async def test_encrypted_and_plain(
        self,
        table: str,
        collection_table: str,
        session_id: str,
        kms_key: str,
        target_items: Any,
        checkpoint: Any,
        encrypted_source: bool,
        encrypted_target: bool,
    ) -> None:
        old = ChatHistoryStore(table, layout="single_item", kms_key_id=kms_key if encrypted_source else None)
        new = ChatHistoryStore(collection_table, kms_key_id=kms_key if encrypted_target else None)
        async with old as source, new as target:
            copied = len(EVERY_TYPE) + 1
            for number in (1, 2):
                await source.session(session_id).aadd_messages([HumanMessage("secret", name=str(number)), *EVERY_TYPE])
                assert await outcome(target, source, session_id) == ("copied", copied, copied * number)
            assert await read(target, session_id) == await read(source, session_id)
            assert await outcome(target, source, session_id, delete_source=True) == ("moved", 0, 2 * copied)
        assert {"Type" in item for item in target_items()} == {not encrypted_target}
        state = checkpoint()["Migration"]["M"]
        assert ("Copied" in state, "Encrypted" in state) == (not encrypted_target, encrypted_target)
        assert ("secret" in str(target_items())) != encrypted_target

    async def test_a_session_that_fills_its_item(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, item: Any
    ) -> None:
        messages = [AIMessage("x" * 1050, id=f"run-{number}") for number in range(310)]
        await source.session(session_id).aadd_messages(messages)
        assert size_of({"M": item()}) > 350 * 1024
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 310, 310)
        assert await read(target, session_id) == messages

    async def test_many_tiny_messages(
        self,
        source: ChatHistoryStore,
        session_id: str,
        collection_table: str,
        target_items: Any,
        proxy: Proxy,
        update: Any,
    ) -> None:
        messages = humans(*range(5000))
        # Without what langchain-core fills in, or they would not fit into an item.
        tiny = [{"type": {"S": "human"}, "data": {"M": {"content": {"S": str(number)}}}} for number in range(5000)]
        update(History={"L": [{"M": message} for message in tiny]})
        async with ChatHistoryStore(collection_table, session_index=True, endpoint_url=proxy.url) as target:
            assert await outcome(target, source, session_id) == ("copied", 5000, 5000)
            assert proxy.operations().count("TransactWriteItems") <= 2
            # The session's item, and the records.
            assert len(target_items()) <= 81
            history = target.session(session_id)
            assert await history.aget_messages() == messages
            page = await history.apage(100)
            await history.adelete_messages([page.messages[50].id])
            await history.areplace_message(page.messages[51].id, HumanMessage("replaced"))
            await source.session(session_id).aadd_messages(humans("later"))
            assert await outcome(target, source, session_id, delete_source=True) == ("moved", 1, 5001)
            left = [*map(str, range(4950)), "replaced", *map(str, range(4952, 5000)), "later"]
            assert texts(await history.aget_messages()) == left
            info = await target.get_session_info(session_id)
            assert info is not None
            assert info.message_count == len(left) == 5000

    async def test_a_record_says_which_of_the_messages_it_begins_with(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, target_items: Any, checkpoint: Any
    ) -> None:
        for number in (40, 1, 17):
            await source.session(session_id).aadd_messages(humans(*range(number)))
            await outcome(target, source, session_id)
        base = SortKey.of(checkpoint()["Migration"]["M"]["Base"]["S"])
        keys = [SortKey.of(item["MessageId"]["S"]) for item in target_items()]
        assert {key.nonce for key in keys} == {base.nonce}
        assert [key.tick - base.tick for key in keys] == [0, 16, 32, 40, 41, 57]
        assert [item.get("Count", {}).get("N") for item in target_items()] == ["16", "16", "8", None, "16", None]
        assert await read(target, session_id) == await read(source, session_id)

    async def test_one_large_message(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, target_items: Any
    ) -> None:
        # Bytes grow by a third as JSON's base64, and do not compress.
        noise = b"".join(hash((number, "noise")).to_bytes(9, "big", signed=True) for number in range(42_000))
        await source.session(session_id).aadd_messages([HumanMessage("x", additional_kwargs={"noise": noise})])
        assert await outcome(target, source, session_id) == ("copied", 1, 1)
        assert await read(target, session_id) == await read(source, session_id)

    async def test_what_comes_later_comes_with_the_next_run(
        self, source: ChatHistoryStore, target: ChatHistoryStore, table: str, session_id: str
    ) -> None:
        for number in range(4):
            await source.session(session_id).aadd_messages(humans(f"{number}a", "ok"))
            Theirs(table, session_id).add_messages(humans(f"{number}b"))
            assert await outcome(target, source, session_id) == ("copied", 3, 3 * (number + 1))
        assert await read(target, session_id) == await read(source, session_id)

    async def test_a_trimmed_source_keeps_adding(self, table: str, target: ChatHistoryStore, session_id: str) -> None:
        async with ChatHistoryStore(table, layout="single_item", history_size=5) as source:
            for number in range(0, 12, 3):
                await source.session(session_id).aadd_messages(humans(number, number + 1, number + 2))
                assert await outcome(target, source, session_id) == ("copied", 3, number + 3)
            assert texts(await read(source, session_id)) == ["7", "8", "9", "10", "11"]
        assert texts(await read(target, session_id)) == [str(number) for number in range(12)]

    async def test_messages_that_are_written_anew_in_another_form_are_the_same(
        self, source: ChatHistoryStore, target: ChatHistoryStore, table: str, session_id: str, update: Any, item: Any
    ) -> None:
        """langchain-community writes all messages again with each append, in the form of its langchain-core."""
        old_form = {"type": {"S": "ai"}, "data": {"M": {"content": {"S": "old"}, "example": {"BOOL": False}}}}
        update(History={"L": [{"M": old_form}] * 3})
        assert await outcome(target, source, session_id) == ("copied", 3, 3)
        Theirs(table, session_id).add_messages(humans("new"))
        assert item()["History"]["L"][0] != {"M": old_form}
        assert await outcome(target, source, session_id) == ("copied", 1, 4)
        assert await read(target, session_id) == await read(source, session_id)

    async def test_what_users_removed_here_does_not_come_back(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2, 3, 4))
        await outcome(target, source, session_id)
        history = target.session(session_id)
        page = await history.apage(4)
        await history.adelete_messages([page.messages[1].id])
        await history.areplace_message(page.messages[2].id, HumanMessage("replaced"))
        await source.session(session_id).aadd_messages(humans(5))
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 1, 5)
        assert texts(await history.aget_messages()) == ["1", "replaced", "4", "5"]


@pytest.mark.usefixtures("two_at_a_time")
class TestWhoeverIsKilled:
    """At each of a move's requests, before or after it has done its work, and run again."""

    @pytest.mark.sampled("fault")
    @pytest.mark.parametrize("fault", [Fault.RESET, Fault.LOST_RESPONSE, Fault.LATE_REQUEST])
    async def test_by_a_broken_connection(
        self,
        source: ChatHistoryStore,
        target: ChatHistoryStore,
        session_id: str,
        proxied: Proxied,
        proxy: Proxy,
        fault: Fault,
    ) -> None:
        moved, finished = list[str](), False
        proxy.late_seconds = 0.2
        while not finished:
            moved.append(f"{session_id}-{len(moved)}")
            await source.session(moved[-1]).aadd_messages(THREE)
            proxy.script(*[Fault.NONE] * (len(moved) - 1), fault)
            try:
                await migrated(*proxied(ONCE), moved[-1:], delete_source=True)
                finished = True
            except EndpointError:
                proxy.script()
                [again] = await migrated(*proxied(ONCE), moved[-1:], delete_source=True)
                assert again.outcome in {"moved", "absent"}
                assert again.total == len(THREE)
        assert len(moved) == 9
        await asyncio.to_thread(proxy.wait_for_late_requests)
        for session in moved:
            assert await read(target, session) == THREE
            assert await read(source, session) == []

    async def test_by_a_cancellation(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, proxied: Proxied, proxy: Proxy
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in range(8):
            session = f"{session_id}-{number}"
            await source.session(session).aadd_messages(THREE)
            task = asyncio.create_task(migrated(*proxied(ONCE), [session], delete_source=True))

            def kill(seen: Seen, left: list[None] = [None] * number, task: asyncio.Task[Any] = task) -> Fault:
                if left:
                    left.pop()
                else:
                    loop.call_soon_threadsafe(task.cancel)
                return Fault.NONE

            proxy.schedule = kill
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.script()
            [again] = await migrated(target, source, [session], delete_source=True)
            assert again.total == len(THREE)
            assert await read(target, session) == THREE
            assert await read(source, session) == []

    async def test_by_everything_all_the_time(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, proxied: Proxied, proxy: Proxy
    ) -> None:
        sessions = [f"{session_id}-{number}" for number in range(12)]
        for session in sessions:
            await source.session(session).aadd_messages(THREE)
        faults = [fault for fault in Fault if fault not in {Fault.NONE, Fault.DENIED}]
        chance = random.Random(4)
        proxy.schedule = lambda seen: chance.choice(faults) if chance.random() < 0.25 else Fault.NONE
        outcomes = set[str]()
        while outcomes != {"absent"}:
            with suppress(ChatHistoryError):
                outcomes = {one.outcome for one in await migrated(*proxied(MANY), sessions, delete_source=True)}
        await asyncio.to_thread(proxy.wait_for_late_requests)
        for session in sessions:
            assert await read(target, session) == THREE
            assert await read(source, session) == []

    async def test_leaves_no_task_behind_by_stopping_early(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str
    ) -> None:
        sessions = [f"{session_id}-{number}" for number in range(20)]
        for session in sessions:
            await source.session(session).aadd_messages(humans(session))
        before = asyncio.all_tasks()
        ids = iter(sessions)
        async with aclosing(target.migrate_from(source, ids)) as progress:
            async for one in progress:
                assert one.outcome == "copied"
                break
        assert asyncio.all_tasks() == before
        assert list(ids), "ids are taken as they are needed"
        await migrated(target, source, sessions)
        assert [texts(await read(target, session)) for session in sessions] == [[session] for session in sessions]


class TestOnlyWhatWasComparedIsDeleted:
    async def move_meeting(
        self, what: Callable[[], Any], when: Callable[[Seen], bool], proxied: Proxied, proxy: Proxy, session_id: str
    ) -> MigrationResult:
        """Move a session, and do something when one of its requests arrives, before it is forwarded."""
        met = list[Seen]()

        def schedule(seen: Seen) -> Fault:
            if when(seen) and not met:
                met.append(seen)
                what()
            return Fault.NONE

        proxy.schedule = schedule
        [session] = await migrated(*proxied(ONCE), [session_id], delete_source=True)
        assert met
        return session

    @pytest.mark.usefixtures("two_at_a_time")
    async def test_a_missing_message_fails(
        self,
        source: ChatHistoryStore,
        session_id: str,
        proxied: Proxied,
        proxy: Proxy,
        dynamodb: Any,
        target_items: Any,
        collection_table: str,
    ) -> None:
        await source.session(session_id).aadd_messages(THREE[:2] + humans("secret"))

        def lose() -> None:
            key = {name: target_items()[1][name] for name in ("SessionId", "MessageId")}
            dynamodb.delete_item(TableName=collection_table, Key=key)

        session = await self.move_meeting(lose, is_verification, proxied, proxy, session_id)
        assert (session.outcome, session.copied, session.total) == ("failed", 3, 3)
        assert session.error is not None
        assert "message 2 was copied, but is missing in the target" in session.error
        assert "secret" not in session.error
        assert len(await read(source, session_id)) == 3

    async def test_another_message_in_its_place_fails(
        self,
        source: ChatHistoryStore,
        session_id: str,
        proxied: Proxied,
        proxy: Proxy,
        dynamodb: Any,
        target_items: Any,
        collection_table: str,
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))

        def damage() -> None:
            [record] = target_items()
            swapped = record | {"History": {"S": swapped_lines(record["History"]["S"])}}
            dynamodb.put_item(TableName=collection_table, Item=swapped)

        session = await self.move_meeting(damage, is_verification, proxied, proxy, session_id)
        assert session.outcome == "failed"
        assert "message 0 reads back as a different message" in (session.error or "")
        assert len(await read(source, session_id)) == 2

    async def test_another_message_beside_what_users_changed_fails(
        self,
        source: ChatHistoryStore,
        target: ChatHistoryStore,
        session_id: str,
        dynamodb: Any,
        target_items: Any,
        collection_table: str,
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2, 3, 4))
        await outcome(target, source, session_id)
        history = target.session(session_id)
        page = await history.apage(4)
        await history.adelete_messages([page.messages[0].id])
        await history.areplace_message(page.messages[1].id, HumanMessage("edited"))
        [record] = [item for item in target_items() if "History" in item]
        body = record["History"]["S"].replace('"content":"3"', '"content":"damaged"')
        dynamodb.put_item(TableName=collection_table, Item=record | {"History": {"S": body}})
        [session] = await migrated(target, source, [session_id], delete_source=True)
        assert session.outcome == "failed"
        assert "message 2 reads back as a different message" in (session.error or "")
        assert len(await read(source, session_id)) == 4

    async def test_what_users_change_meanwhile_is_theirs(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, proxied: Proxied, proxy: Proxy
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2, 3))

        def edit() -> None:
            history = target.session(session_id)
            page = history.page(3)
            history.delete_messages([page.messages[0].id])
            history.replace_message(page.messages[1].id, HumanMessage("edited"))

        session = await self.move_meeting(edit, is_verification, proxied, proxy, session_id)
        assert session.outcome == "moved"
        assert texts(await read(target, session_id)) == ["edited", "3"]

    @pytest.mark.usefixtures("two_at_a_time")
    @pytest.mark.parametrize("removed", ["a record", "the latest", "all"])
    async def test_records_that_users_remove_meanwhile_are_no_failure(
        self,
        source: ChatHistoryStore,
        target: ChatHistoryStore,
        session_id: str,
        proxied: Proxied,
        proxy: Proxy,
        removed: str,
    ) -> None:
        await source.session(session_id).aadd_messages(THREE)

        def remove() -> None:
            history = target.session(session_id)
            if removed == "the latest":
                history.pop_message()
            else:
                ids = [stored.id for stored in history.page(3).messages]
                history.delete_messages(ids[:2] if removed == "a record" else ids)

        session = await self.move_meeting(remove, is_verification, proxied, proxy, session_id)
        assert (session.outcome, session.copied, session.total) == ("moved", 3, 3)
        left = {"a record": ["3"], "the latest": ["1", "2"], "all": []}
        assert texts(await read(target, session_id)) == left[removed]

    async def test_what_history_size_trims_meanwhile_is_no_failure(
        self, source: ChatHistoryStore, collection_table: str, session_id: str, proxied: Proxied, proxy: Proxy
    ) -> None:
        await source.session(session_id).aadd_messages(humans(*range(30)))
        options: dict[str, Any] = {"endpoint_url": proxy.url, "history_size": 10}
        async with ChatHistoryStore(collection_table, **options) as target:

            def trim() -> None:
                history = ChatHistoryStore(collection_table, history_size=10).session(session_id)
                assert len(history.messages) == 10
                history.add_messages(humans("new"))

            session = await self.move_meeting(
                trim, is_verification, lambda config: (target, proxied(config)[1]), proxy, session_id
            )
            assert session.outcome == "moved"
            assert texts(await read(target, session_id)) == [*map(str, range(21, 30)), "new"]
            assert len(await target.session(session_id).aget_messages(limit=20)) <= 11

    @pytest.mark.parametrize("community", [False, True])
    async def test_what_is_appended_before_the_deletion_is_moved_too(
        self,
        source: ChatHistoryStore,
        target: ChatHistoryStore,
        session_id: str,
        proxied: Proxied,
        proxy: Proxy,
        table: str,
        community: bool,
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        session = await self.move_meeting(
            lambda: (Theirs(table, session_id) if community else source.session(session_id)).add_messages(humans(3)),
            lambda seen: seen.operation == "DeleteItem",
            proxied,
            proxy,
            session_id,
        )
        assert (session.outcome, session.copied, session.total) == ("moved", 3, 3)
        assert proxy.operations().count("DeleteItem") == 2
        assert texts(await read(target, session_id)) == ["1", "2", "3"]
        assert await read(source, session_id) == []

    async def test_a_source_that_never_rests_stays(
        self,
        source: ChatHistoryStore,
        target: ChatHistoryStore,
        session_id: str,
        proxied: Proxied,
        proxy: Proxy,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("chathistory_async._session.MAX_ATTEMPTS", 8)
        writer = source.session(session_id)
        await writer.aadd_messages(humans("first"))

        def schedule(seen: Seen) -> Fault:
            if seen.operation == "DeleteItem":
                writer.add_user_message("one more")
            return Fault.NONE

        proxy.schedule = schedule
        [session] = await migrated(*proxied(ONCE), [session_id], delete_source=True)
        assert session.outcome == "failed"
        assert (session.error or "").startswith("WriteConflictError")
        assert session.copied == proxy.operations().count("DeleteItem") == 8
        assert texts(await writer.aget_messages()) == ["first", *["one more"] * session.copied]
        assert len(await read(target, session_id)) == session.copied

    async def test_a_session_that_is_deleted_meanwhile_does_not_come_back(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, proxied: Proxied, proxy: Proxy
    ) -> None:
        await source.session(session_id).aadd_messages(THREE[:2])
        await outcome(target, source, session_id)
        await source.session(session_id).aadd_messages(THREE[2:])

        def is_transaction(seen: Seen) -> bool:
            return seen.operation == "TransactWriteItems"

        def delete() -> None:
            run(mark_deleted, target, session_id)
            target.session(session_id).clear()

        session = await self.move_meeting(delete, is_transaction, proxied, proxy, session_id)
        assert (session.outcome, session.total) == ("kept", 2)
        assert await read(source, session_id) == THREE
        assert await read(target, session_id) == []


@pytest.mark.usefixtures("two_at_a_time")
async def test_two_migrators_at_once(
    source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, proxied: Proxied
) -> None:
    sessions = [f"{session_id}-{number}" for number in range(20)]
    for session in sessions:
        await source.session(session).aadd_messages(THREE)
    one, other = await asyncio.gather(
        migrated(*proxied(MANY), sessions, delete_source=True), migrated(*proxied(MANY), sessions, delete_source=True)
    )
    for mine, theirs in zip(one, other):
        assert {mine.outcome, theirs.outcome} <= {"moved", "absent"}
        assert mine.copied + theirs.copied == len(THREE)
    assert all([await read(target, session) == THREE for session in sessions])


async def test_a_scan_names_a_partition_key_that_the_table_has_not(table: str, session_id: str) -> None:
    async with (
        ChatHistoryStore(table, layout="single_item") as written,
        ChatHistoryStore(table, layout="single_item", primary_key_name="pk") as source,
    ):
        await written.session(session_id).aadd_messages(humans(1))
        with pytest.raises(KeySchemaError, match="have no 'pk'"):
            _ = [session async for session in source.scan_session_ids()]


async def test_all_sessions_of_a_table(target: ChatHistoryStore, session_id: str, dynamodb: Any, proxy: Proxy) -> None:
    with created_table(layout="single_item", primary_key_name="pk") as table:
        options: dict[str, Any] = {"layout": "single_item", "primary_key_name": "pk", "endpoint_url": proxy.url}
        async with ChatHistoryStore(table, **options) as source:
            sessions = {f"{session_id}-{number}" for number in range(7)}
            for session in sessions:
                # 350 KB each, so that the scan has several pages.
                await source.session(session).aadd_messages(humans(session, "x" * 350_000))
            assert {session async for session in source.scan_session_ids()} == sessions
            scans = [seen.body for seen in proxy.seen if seen.operation == "Scan"]
            assert len(scans) >= 3
            assert all(scan["ProjectionExpression"] == "#partition" for scan in scans)
            found = [session async for session in target.migrate_from(source, source.scan_session_ids())]
            assert {session.session_id for session in found if session.outcome == "copied"} == sessions
        for session in sessions:
            assert (await read(target, session))[0].content == session


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ("N", [7, -1, 10**37 + 1, 10**100, Decimal("0.1"), Decimal(f"1{'0' * 30}.5")]),
        ("B", [b"7", b"\x00\xff"]),
    ],
)
async def test_keys_keep_their_types(dynamodb: Any, kind: str, ids: list[Any]) -> None:
    with keyed_table(dynamodb, SessionId=kind) as old, keyed_table(dynamodb, SessionId=kind, MessageId="S") as new:
        async with ChatHistoryStore(old, layout="single_item") as source, ChatHistoryStore(new) as target:
            for session in ids:
                await source.session("", key={"SessionId": session}).aadd_messages(humans(session))
            found = [session async for session in source.scan_session_ids()]
            assert sorted(found) == sorted(ids)
            assert {type(session) for session in found} == {type(session) for session in ids}
            moved = await migrated(target, source, found, delete_source=True)
            assert [(one.session_id, one.outcome) for one in moved] == [(session, "moved") for session in found]
            for session in ids:
                history = target.session("", key={"SessionId": session})
                assert texts(await history.aget_messages()) == [str(session)]
            assert [session async for session in source.scan_session_ids()] == []


@contextmanager
def keyed_table(dynamodb: Any, **types: str) -> Iterator[str]:
    """A table with keys of these types."""
    name = f"keyed-{uuid.uuid4().hex}"
    dynamodb.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": key, "KeyType": role} for key, role in zip(types, ("HASH", "RANGE"))],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind} for key, kind in types.items()],
        BillingMode="PAY_PER_REQUEST",
    )
    dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1})
    yield name
    dynamodb.delete_table(TableName=name)


def digests_of(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


@pytest.mark.parametrize(
    ("copied", "source", "known"),
    [
        ("", "abc", 0),
        ("abc", "abc", 3),
        ("abc", "abcd", 3),
        ("aaa", "aaaa", 3),
        # Trimmed, down to nothing.
        ("abc", "bcd", 2),
        ("abc", "cde", 1),
        ("abc", "bc", 2),
        ("abac", "acd", 2),
        ("abcbd", "bdxyz", 2),
        ("abc", "xyz", 0),
        # Which "a" it is that a trim has left cannot be told.
        ("abca", "ax", None),
        ("aaa", "aax", None),
        # Overwritten at the end, alone or beside a trim.
        ("abcd", "abce", None),
        ("abcd", "abc", None),
        ("abcdef", "bcdex", None),
        # Begun anew, with a message that there was before.
        ("abcd", "ax", None),
        ("abcd", "xya", None),
        ("abcd", "xcd", None),
    ],
)
def test_what_is_known_of_a_source(copied: str, source: str, known: int | None) -> None:
    before, there = digests_of(copied), digests_of(source)
    assert known_of(before, there) == known
    assert Checkpoint(SortKey(0, "0" * 16, 0), tuple(before)).known(there) == known


@pytest.mark.parametrize(
    ("copied", "source", "known"),
    [("abc", "abcd", None), ("abc", "bcd", None), ("abc", "xa", None), ("abc", "xy", 0)],
)
def test_what_is_known_of_a_source_that_was_gone(copied: str, source: str, known: int | None) -> None:
    checkpoint = Checkpoint(SortKey(0, "0" * 16, 0), tuple(digests_of(copied)), gone=True)
    assert checkpoint.known(digests_of(source)) == known


class Compared(bytes):
    """A digest that counts the comparisons."""

    times = 0
    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return bytes.__eq__(self, other)


@pytest.mark.parametrize(
    "copied", ["a" * 2600, "b" + "a" * 2599, "ab" * 1300, "a" * 2599 + "b", "ba" + "a" * 2597 + "c"]
)
@pytest.mark.parametrize(
    "source", ["a" * 2600, "a" * 2599 + "b", "a" * 1300 + "b" + "a" * 1299, "ab" * 1299 + "a", "a" * 2597 + "cd"]
)
def test_a_source_is_compared_in_linear_time(copied: str, source: str) -> None:
    Compared.times = 0
    known_of([Compared(letter.encode()) for letter in copied], [Compared(letter.encode()) for letter in source])
    assert Compared.times < 4 * (len(copied) + len(source))


class Writers:
    """Old code that goes on writing to single items: ours to three sessions of ten, langchain-community's to a fourth.

    Each session has one writer, because langchain-community loses what others append meanwhile.
    """

    def __init__(self, table: str, sessions: list[str]) -> None:
        self.appended = Counter[str]()
        self._stopped = threading.Event()
        ours = {session: DynamoDBChatMessageHistory(table, session) for session in sessions if session[-1] in "012"}
        theirs = {session: Theirs(table, session) for session in sessions if session[-1] == "3"}
        self._threads = [threading.Thread(target=self._write, args=(histories,)) for histories in (ours, theirs)]

    def _write(self, histories: Mapping[str, BaseChatMessageHistory]) -> None:
        while not self._stopped.wait(0.1):
            session = random.choice(list(histories))
            self.appended[session] += 1
            histories[session].add_messages(humans(f"{session} goes on", self.appended[session]))

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


# 64 seconds on two cores that eight programs shared.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [12, pytest.param(500, marks=pytest.mark.stress)])
def test_many_sessions_while_writers_append_killed_halfway_and_run_again(dynamodb: Any, number: int) -> None:
    sessions = [f"session-{index:03}" for index in range(number)]
    with created_table(layout="single_item") as old, created_table() as new:
        for start in range(0, number, 25):
            puts = [{"PutRequest": {"Item": single_item(session)}} for session in sessions[start : start + 25]]
            assert not dynamodb.batch_write_item(RequestItems={old: puts})["UnprocessedItems"]
        command = [sys.executable, "-m", "chathistory_async.cli", "migrate", old, new, "--scan"]

        with Writers(old, sessions) as writers:
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
                assert killed.stdout is not None
                shown = [killed.stdout.readline() for _ in range(number // 4)]
                killed.kill()
            assert all(line.split()[0] == "copied" for line in shown)
            again = subprocess.run(command, capture_output=True, text=True, check=True)
            assert " unchanged" in again.stdout
            assert len(writers.appended) > number / 10
        subprocess.run(command, capture_output=True, text=True, check=True)

        expected = in_single_items(dynamodb, old)
        assert in_item_collection(dynamodb, new) == expected
        assert {session: len(messages) for session, messages in expected.items()} == {
            session: 3 + 2 * writers.appended[session] for session in sessions
        }


def in_single_items(dynamodb: Any, table: str) -> dict[str, list[BaseMessage]]:
    """Reads all sessions at once."""
    return {
        item["SessionId"]["S"]: [decode_message(message, 0) for message in item["History"]["L"]]
        for page in dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        for item in page["Items"]
    }


def in_item_collection(dynamodb: Any, table: str) -> dict[str, list[BaseMessage]]:
    sessions: dict[str, list[BaseMessage]] = defaultdict(list)
    # A scan returns the items of a partition in their order.
    for page in dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        for item in page["Items"]:
            if "Migration" not in item:
                sessions[item["SessionId"]["S"]] += messages_in(item)
    return sessions


def messages_in(item: dict[str, Any]) -> list[BaseMessage]:
    """Reads a record: an array with a line for each of its messages, or the one message."""
    body = item["History"]["S"] if "Encoding" not in item else zlib.decompress(item["History"]["B"]).decode()
    number = int(item.get("Count", {"N": "1"})["N"])
    lines = [body] if number == 1 else body[1:-1].split(",\n")
    assert len(lines) == number
    return [decode_json(line.encode(), 0) for line in lines]


def single_item(session: str) -> dict[str, Any]:
    messages = humans(session, "the same in all", session)
    return {"SessionId": {"S": session}, "History": {"L": [encode_message(message, 0) for message in messages]}}
