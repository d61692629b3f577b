"""From single items into an item collection: nothing lost, nothing doubled, and nothing deleted that was not compared."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from botocore.config import Config
from langchain_community.chat_message_histories import DynamoDBChatMessageHistory as Theirs
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from proxy import Fault, Proxy, Seen
from samples import EVERY_TYPE, FLOATS, NESTED, humans, texts

from chathistory_async import (
    AccessDeniedError,
    ChatHistoryError,
    ChatHistoryStore,
    EndpointError,
    LayoutError,
    MigratedSession,
    TableNotFoundError,
)
from chathistory_async._calls import ConditionFailed, call
from chathistory_async._codec import size_of
from chathistory_async._migration import Aligned, Migration, align
from chathistory_async.errors import Place

COPIES = "moto copies the whole table for every transaction"


@pytest.fixture
async def source(table: str) -> AsyncIterator[ChatHistoryStore]:
    async with ChatHistoryStore(table, layout="single_item") as store:
        yield store


@pytest.fixture
async def target(collection_table: str) -> AsyncIterator[ChatHistoryStore]:
    async with ChatHistoryStore(collection_table) as store:
        yield store


async def migrated(
    target: ChatHistoryStore, source: ChatHistoryStore, ids: Iterable[str], **options: bool
) -> list[MigratedSession]:
    return [session async for session in target.migrate_from(source, ids, **options)]


async def outcome(target: ChatHistoryStore, source: ChatHistoryStore, session_id: str, **options: bool) -> Any:
    [session] = await migrated(target, source, [session_id], **options)
    assert session.session_id == session_id
    assert (session.error is not None) == (session.outcome == "failed")
    return session.outcome, session.copied, session.total


async def read(store: ChatHistoryStore, session_id: str) -> list[BaseMessage]:
    return await store.session(session_id).aget_messages()


def marker_request(target: ChatHistoryStore, session_id: str) -> Migration:
    layout: Any = target.session(session_id)._layout
    return Migration(layout)


async def mark_deleted(target: ChatHistoryStore, session_id: str) -> None:
    request = marker_request(target, session_id).mark_deleted()
    await call(target._clients, request, Place(target._layout.table_name))


@pytest.fixture
def target_items(dynamodb: Any, collection_table: str, session_id: str) -> Callable[[], list[dict[str, Any]]]:
    """Reads the raw items of the test's own session in the target, the marker aside."""

    def items() -> list[dict[str, Any]]:
        answer = dynamodb.query(
            TableName=collection_table,
            KeyConditionExpression="SessionId = :session",
            ExpressionAttributeValues={":session": {"S": session_id}},
            ConsistentRead=True,
        )
        return [item for item in answer["Items"] if "Migration" not in item]

    return items


class TestOutcomes:
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
                assert await outcome(target, source, session_id, **options) == ("would_copy", 0, 0)
            assert set(proxy.operations()) == {"GetItem", "Query"}
            assert await outcome(target, source, session_id) == ("copied", 2, 2)
            assert await outcome(target, source, session_id, dry_run=True) == ("unchanged", 0, 2)
        assert texts(await read(source, session_id)) == ["1", "2"]

    async def test_absent(self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str) -> None:
        assert await outcome(target, source, session_id) == ("absent", 0, 0)

    async def test_an_expired_session_is_not_revived(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, update: Any, item: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1))
        # Not even looked into.
        update(expireAt={"N": "1"}, History={"L": [{"S": "not a message"}]})
        assert await outcome(target, source, session_id, delete_source=True) == ("expired", 0, 0)
        assert await read(target, session_id) == []
        assert item() is not None

    async def test_moved(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, item: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 2, 2)
        assert item() is None
        assert texts(await read(target, session_id)) == ["1", "2"]
        assert await outcome(target, source, session_id, delete_source=True) == ("absent", 0, 2)

    async def test_moved_again_where_old_code_begins_anew(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, item: Any
    ) -> None:
        for run in range(1, 4):
            await source.session(session_id).aadd_messages(humans("hi"))
            assert await outcome(target, source, session_id, delete_source=True) == ("moved", 1, run)
        assert item() is None
        assert texts(await read(target, session_id)) == ["hi"] * 3

    @pytest.mark.parametrize("history", [{"L": [{"S": "no message"}]}, {"S": "no list"}, {"L": [{"B": b"sealed?"}]}])
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
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, item: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        with pytest.raises(ConditionFailed):
            await mark_deleted(target, session_id)
        await outcome(target, source, session_id)
        await mark_deleted(target, session_id)
        await target.session(session_id).aclear()
        await source.session(session_id).aadd_messages(humans(3))
        for options in ({}, {"dry_run": True}, {"delete_source": True}):
            assert await outcome(target, source, session_id, **options) == ("deleted", 0, 2)
        assert await read(target, session_id) == []
        assert texts(await read(source, session_id)) == ["1", "2", "3"]


class TestWhatIsRefused:
    async def test_the_wrong_layout(self, source: ChatHistoryStore, target: ChatHistoryStore) -> None:
        with pytest.raises(LayoutError, match="into a table with a sort key"):
            source.migrate_from(source, [])
        with pytest.raises(LayoutError, match="out of single items"):
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
        tick, rest = page.messages[0].id.split("-", 1)
        earlier = int(tick, 16) - (24 * 3600 * 1000 << 16)
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": f"m#{earlier:016x}-{rest}-00"}}
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

    async def test_the_marker_never_expires_and_is_no_message(
        self, source: ChatHistoryStore, collection_table: str, session_id: str, dynamodb: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        async with ChatHistoryStore(collection_table, ttl=60) as target:
            await outcome(target, source, session_id)
            history = target.session(session_id)
            await history.aclear()
            assert await history.aget_messages() == [message async for message in history.aiter()] == []
            assert await outcome(target, source, session_id) == ("unchanged", 0, 2)
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": "migration"}}
        marker = dynamodb.get_item(TableName=collection_table, Key=key)["Item"]
        assert "expireAt" not in marker


class TestWhatIsCopied:
    async def test_what_langchain_community_wrote(
        self, source: ChatHistoryStore, target: ChatHistoryStore, table: str, session_id: str
    ) -> None:
        theirs = Theirs(table, session_id, coerce_float_to_decimal=True)
        theirs.add_messages([HumanMessage("", additional_kwargs={"floats": FLOATS[:4], "nested": NESTED}), *EVERY_TYPE])
        await outcome(target, source, session_id)
        assert await read(target, session_id) == await read(source, session_id)

    @pytest.mark.parametrize(("sealed_source", "sealed_target"), [(True, True), (True, False), (False, True)])
    async def test_sealed_and_plain(
        self,
        table: str,
        collection_table: str,
        session_id: str,
        kms_key: str,
        target_items: Any,
        sealed_source: bool,
        sealed_target: bool,
    ) -> None:
        old = ChatHistoryStore(table, layout="single_item", kms_key_id=kms_key if sealed_source else None)
        new = ChatHistoryStore(collection_table, kms_key_id=kms_key if sealed_target else None)
        async with old as source, new as target:
            for run in range(2):
                await source.session(session_id).aadd_messages([HumanMessage("secret", name=str(run)), *EVERY_TYPE])
                copied = len(EVERY_TYPE) + 1
                assert await outcome(target, source, session_id) == ("copied", copied, copied * (run + 1))
            assert await read(target, session_id) == await read(source, session_id)
            assert await outcome(target, source, session_id, delete_source=True) == ("moved", 0, 2 * copied)
        assert {"Type" in item for item in target_items()} == {not sealed_target}
        assert ("secret" in str(target_items())) != sealed_target

    async def test_a_session_that_fills_its_item(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, item: Any
    ) -> None:
        messages = [AIMessage("x" * 1000, id=f"run-{number}") for number in range(310)]
        await source.session(session_id).aadd_messages(messages)
        assert size_of({"M": item()}) > 350 * 1024
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 310, 310)
        assert await read(target, session_id) == messages

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
        for run in range(4):
            await source.session(session_id).aadd_messages(humans(f"{run}a", "ok"))
            Theirs(table, session_id).add_messages(humans(f"{run}b"))
            assert await outcome(target, source, session_id) == ("copied", 3, 3 * (run + 1))
        assert await read(target, session_id) == await read(source, session_id)

    async def test_a_trimmed_source_keeps_adding(
        self, table: str, target: ChatHistoryStore, session_id: str
    ) -> None:
        async with ChatHistoryStore(table, layout="single_item", history_size=5) as source:
            for run in range(0, 12, 3):
                await source.session(session_id).aadd_messages(humans(run, run + 1, run + 2))
                assert await outcome(target, source, session_id) == ("copied", 3, run + 3)
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

    async def test_what_a_race_in_the_source_has_lost_is_kept(
        self, source: ChatHistoryStore, target: ChatHistoryStore, session_id: str, item: Any, update: Any
    ) -> None:
        await source.session(session_id).aadd_messages(humans(1, 2))
        before = item()["History"]
        await source.session(session_id).aadd_messages(humans("lost"))
        await outcome(target, source, session_id)
        update(History=before)
        await source.session(session_id).aadd_messages(humans(3))
        assert await outcome(target, source, session_id, delete_source=True) == ("moved", 1, 4)
        assert texts(await read(target, session_id)) == ["1", "2", "lost", "3"]

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
