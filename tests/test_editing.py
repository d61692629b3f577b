"""Reading in pieces and editing: limits and turns in both layouts; pages, ids and edits in an item collection."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Make
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from proxy import Fault, Proxy
from samples import EVERY_TYPE, humans, texts

from chathistory_async import (
    ClosedError,
    DynamoDBChatMessageHistory,
    LayoutError,
    MessageNotFoundError,
    MessageNotStorableError,
    Page,
    StoredMessage,
)

UNANSWERED = [Fault.LOST_RESPONSE, Fault.LATE_ERROR]
Through = Callable[..., DynamoDBChatMessageHistory]

CALL = {"name": "search", "args": {}, "id": "c", "type": "tool_call"}
TURN: list[BaseMessage] = [
    HumanMessage("question"),
    AIMessage("", tool_calls=[CALL]),
    ToolMessage("result", tool_call_id="c"),
    AIMessage("answer"),
]
LAYOUTS = ["single item", "item collection", "encrypted item collection", "indexed item collection"]


@pytest.fixture(params=LAYOUTS[1:])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def layout(kind: str, table: str, collection_table: str) -> dict[str, Any]:
    if kind == "single item":
        return {"table_name": table}
    indexed = {"session_index": True} if kind.startswith("indexed") else {}
    return {"table_name": collection_table, "sort_key_name": "MessageId", **indexed}


@pytest.fixture
def encryption(kind: str, kms_key: str) -> dict[str, Any]:
    return {"kms_key_id": kms_key} if kind.startswith("encrypted") else {}


@pytest.fixture
def removal(kind: str) -> str:
    """The operation that removes a message."""
    return "TransactWriteItems" if kind.startswith("indexed") else "UpdateItem"


def messages_of(page: Page) -> list[BaseMessage]:
    return [stored.message for stored in page.messages]


async def all_stored(history: DynamoDBChatMessageHistory) -> list[StoredMessage]:
    return (await history.apage(1000)).messages


@pytest.mark.parametrize("kind", LAYOUTS)
class TestLimit:
    async def test_gives_the_latest_oldest_first(self, make: Make) -> None:
        await make().aadd_messages(humans(*range(10)))
        for limit in (1, 3, 9, 10, 11, 1000, 2**31 - 1, 2**63, 10**40, 10**400):
            expected = [str(number) for number in range(10)][-limit:]
            assert texts(await make().aget_messages(limit=limit)) == expected
            assert texts(await asyncio.to_thread(make().get_messages, limit=limit)) == expected

    async def test_and_history_size_the_smaller_holds(self, make: Make) -> None:
        history = make(history_size=5)
        await history.aadd_messages(humans(*range(9)))
        assert texts(await history.aget_messages(limit=3)) == ["6", "7", "8"]
        assert texts(await history.aget_messages(limit=7)) == ["4", "5", "6", "7", "8"]

    @pytest.mark.parametrize("size", [2**31, 10**40, 10**400])
    async def test_and_history_size_may_be_any_number(self, make: Make, size: int) -> None:
        history = make(history_size=size)
        for number in range(3):
            await history.aadd_messages(humans(number))
        assert texts(await make(history_size=size).aget_messages(limit=size)) == ["0", "1", "2"]

    @pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
    async def test_must_be_a_positive_integer(self, make: Make, limit: Any) -> None:
        with pytest.raises(ValueError, match="limit must be a positive integer"):
            await make().aget_messages(limit=limit)

    async def test_of_an_empty_session(self, make: Make) -> None:
        assert await make().aget_messages(limit=3, start_on="human") == []

    async def test_starts_on_nothing_but_a_human_message(self, make: Make) -> None:
        with pytest.raises(ValueError, match="start_on must be 'human' or None, not 'ai'"):
            await make().aget_messages(start_on="ai")  # type: ignore[arg-type]  # what is tested

    async def test_start_on_human_begins_at_a_human_message(self, make: Make) -> None:
        await make().aadd_messages([*TURN, *TURN])
        for limit, expected in {8: 8, 7: 4, 6: 4, 5: 4, 4: 4, 3: 0, 1: 0}.items():
            read = await make().aget_messages(limit=limit, start_on="human")
            assert read == [*TURN, *TURN][8 - expected :]
        assert await make(history_size=6).aget_messages(limit=6, start_on="human") == TURN
        assert await make().aget_messages(start_on="human") == [*TURN, *TURN]


@pytest.mark.parametrize("kind", LAYOUTS)
class TestIteration:
    async def test_gives_all_oldest_first(self, make: Make) -> None:
        await make().aadd_messages(EVERY_TYPE)
        assert [message async for message in make().aiter()] == EVERY_TYPE
        assert await asyncio.to_thread(lambda: list(make().iter())) == EVERY_TYPE
        assert [message async for message in make(session="empty").aiter()] == []

    async def test_with_history_size_gives_what_is_kept(self, make: Make) -> None:
        history = make(history_size=4)
        await history.aadd_messages(humans(*range(4)))
        await history.aadd_messages(humans(4))
        assert [message.content async for message in history.aiter()] == ["1", "2", "3", "4"]

    async def test_that_stops_early_leaves_nothing_behind(self, make: Make) -> None:
        await make().aadd_messages(humans(*range(5)))
        before = set(asyncio.all_tasks())
        iterator = make().aiter()
        async for message in iterator:
            assert message.content == "0"
            break
        await iterator.aclose()
        await asyncio.sleep(0)
        assert set(asyncio.all_tasks()) == before
        assert next(make().iter()).content == "0"

    async def test_of_a_closed_handle_is_refused_at_once(self, make: Make) -> None:
        history = make()
        await history.aclose()
        with pytest.raises(ClosedError):
            history.aiter()


@pytest.mark.sampled("kind")
async def test_a_long_session_is_iterated_over_a_page_at_a_time(through: Through, make: Make, proxy: Proxy) -> None:
    batch = [HumanMessage(secrets.token_urlsafe(8000)) for _ in range(400)]
    for start in range(0, 400, 10):
        await make().aadd_messages(batch[start : start + 10])
    requests, read = set(), []
    async for message in through().aiter():
        read.append(message)
        requests.add((len(read), len(proxy.seen)))
    assert read == batch
    assert (1, 1) in requests, "the first page is enough for the first message"
    assert len(proxy.seen) > 2


class TestPages:
    async def test_have_fifty_messages_unless_told(self, make: Make) -> None:
        await make().aadd_messages(humans(*range(60)))
        page = await make().apage()
        assert texts(messages_of(page)) == [str(number) for number in range(10, 60)]
        assert texts(messages_of(await asyncio.to_thread(make().page, before=page.cursor))) == [
            str(number) for number in range(10)
        ]

    async def test_lead_back_to_the_beginning(self, make: Make) -> None:
        await make().aadd_messages(humans(*range(10)))
        history, cursor, pages = make(), None, list[list[Any]]()
        while True:
            page = await history.apage(4, cursor)
            pages.append(texts(messages_of(page)))
            if (cursor := page.cursor) is None:
                break
        assert pages == [["6", "7", "8", "9"], ["2", "3", "4", "5"], ["0", "1"]]

    @pytest.mark.parametrize(("stored", "limit", "pages"), [(0, 3, 1), (3, 3, 1), (6, 3, 2), (1, 1, 1)])
    async def test_end_without_an_empty_one(self, make: Make, stored: int, limit: int, pages: int) -> None:
        await make().aadd_messages(humans(*range(stored)))
        page, count = await make().apage(limit), 1
        while page.cursor is not None:
            page, count = await make().apage(limit, page.cursor), count + 1
            assert page.messages
        assert count == pages

    @pytest.mark.parametrize("limit", [2**31 - 1, 2**31, 10**40, 10**400])
    async def test_may_be_of_any_size(self, make: Make, limit: int) -> None:
        await make().aadd_messages(humans(*range(3)))
        assert texts(messages_of(await make().apage(limit))) == ["0", "1", "2"]

    async def test_stay_as_they_are_while_others_append(self, make: Make) -> None:
        await make().aadd_messages(humans(*range(6)))
        latest = await make().apage(2)
        before = await make().apage(2, latest.cursor)
        await make().aadd_messages(humans(*range(6, 60)))
        assert await make().apage(2, latest.cursor) == before

    async def test_are_found_before_a_message_of_any_id(self, make: Make) -> None:
        await make().aadd_messages(humans(*range(6)))
        stored = await all_stored(make())
        for position, one in enumerate(stored):
            page = await asyncio.to_thread(make().page, 2, one.id)
            assert page.messages == stored[max(0, position - 2) : position]

    async def test_hold_ids_and_times(self, make: Make) -> None:
        await make().aadd_messages(EVERY_TYPE)
        stored = await all_stored(make())
        assert [one.message for one in stored] == EVERY_TYPE
        assert len({one.id for one in stored}) == len(EVERY_TYPE)
        assert len({one.created_at for one in stored}) == 1
        assert stored[0].created_at.tzinfo is not None

    @pytest.mark.parametrize("cursor", ["", "x", "m#", 5, b"x", "0" * 38])
    async def test_are_not_found_by_what_is_no_cursor(self, make: Make, cursor: Any) -> None:
        with pytest.raises(ValueError, match="is not an id of a message, nor a cursor"):
            await make().apage(2, cursor)

    @pytest.mark.parametrize("limit", [0, True, "1", None])
    async def test_are_of_a_positive_size(self, make: Make, limit: Any) -> None:
        with pytest.raises(ValueError, match="limit must be a positive integer"):
            await make().apage(limit)


class TestDeleting:
    async def test_removes_those_messages_and_no_others(self, make: Make) -> None:
        await make().aadd_messages([*humans(0, 1), HumanMessage(secrets.token_urlsafe(900_000)), *humans(3, 4)])
        stored = await all_stored(make())
        await make().adelete_messages([stored[1].id, stored[2].id])
        assert texts(await make().aget_messages()) == ["0", "3", "4"]
        await asyncio.to_thread(make().delete_messages, [stored[4].id])
        assert texts(await make().aget_messages()) == ["0", "3"]
        assert [one.id for one in await all_stored(make())] == [stored[0].id, stored[3].id]

    async def test_passes_over_what_is_not_there(self, make: Make) -> None:
        await make().aadd_messages(humans(0))
        [stored] = await all_stored(make())
        for _ in range(2):
            await make().adelete_messages([stored.id])
        await make(session="never-written").adelete_messages([stored.id])
        assert await make().aget_messages() == []
        assert await make(session="never-written").aget_messages() == []

    async def test_of_what_is_no_id_removes_nothing(self, make: Make) -> None:
        await make().aadd_messages(humans(0))
        [stored] = await all_stored(make())
        with pytest.raises(ValueError, match="is not an id"):
            await make().adelete_messages([stored.id, "x"])
        assert len(await make().aget_messages()) == 1

    @pytest.mark.parametrize("ids", ["0" * 40, b"x", 5, None])
    async def test_takes_an_iterable_of_ids(self, make: Make, ids: Any) -> None:
        with pytest.raises(TypeError, match="put the one id in a list"):
            await make().adelete_messages(ids)

    async def test_is_not_undone_by_an_append_that_arrives_late(
        self, through: Through, make: Make, proxy: Proxy
    ) -> None:
        proxy.script(Fault.LATE_REQUEST)
        await through().aadd_messages(humans("once"))
        [stored] = await all_stored(make())
        await make().adelete_messages([stored.id])
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert await make().aget_messages() == []

    @pytest.mark.parametrize("fault", UNANSWERED)
    async def test_is_retried(self, through: Through, make: Make, proxy: Proxy, removal: str, fault: Fault) -> None:
        await make().aadd_messages([HumanMessage(secrets.token_urlsafe(900_000)), *humans(1)])
        stored = await all_stored(make())
        proxy.script(fault, operation=removal)
        await through().adelete_messages([stored[0].id])
        assert texts(await make().aget_messages()) == ["1"]


class TestReplacing:
    async def test_keeps_the_place_the_id_and_the_time(self, make: Make) -> None:
        await make().aadd_messages(humans(0, 1, 2))
        stored = await all_stored(make())
        large = HumanMessage(secrets.token_urlsafe(900_000))
        for message in (AIMessage("other"), large, HumanMessage("small again")):
            await make().areplace_message(stored[1].id, message)
            now_stored = await all_stored(make())
            assert [one.message for one in now_stored] == [stored[0].message, message, stored[2].message]
            assert [one.id for one in now_stored] == [one.id for one in stored]
            assert [one.created_at for one in now_stored] == [one.created_at for one in stored]
        await asyncio.to_thread(make().replace_message, stored[1].id, HumanMessage("by the synchronous method"))
        assert texts(await make().aget_messages()) == ["0", "by the synchronous method", "2"]

    async def test_of_what_is_gone_is_an_error(self, make: Make) -> None:
        await make().aadd_messages(humans(0))
        [stored] = await all_stored(make())
        await make().adelete_messages([stored.id])
        with pytest.raises(MessageNotFoundError) as caught:
            await make().areplace_message(stored.id, HumanMessage("x"))
        assert caught.value.session_key == make().key
        with pytest.raises(MessageNotFoundError):
            await make(session="never-written").areplace_message(stored.id, HumanMessage("x"))
        assert await make().aget_messages() == []

    async def test_of_what_has_expired_is_an_error(self, make: Make, dynamodb: Any, layout: dict[str, Any]) -> None:
        await make(ttl=1000).aadd_messages(humans(0))
        [stored] = await all_stored(make())
        dynamodb.update_item(
            TableName=layout["table_name"],
            Key={"SessionId": {"S": make().session_id}, "MessageId": {"S": f"m#{stored.id[:-7]}-00"}},
            UpdateExpression="SET expireAt = :past",
            ExpressionAttributeValues={":past": {"N": "1"}},
        )
        with pytest.raises(MessageNotFoundError):
            await make().areplace_message(stored.id, HumanMessage("x"))
        assert await make().aget_messages() == []

    async def test_with_what_cannot_be_stored_changes_nothing(self, make: Make) -> None:
        await make().aadd_messages(humans(0))
        [stored] = await all_stored(make())
        with pytest.raises(MessageNotStorableError):
            await make().areplace_message(stored.id, HumanMessage("", additional_kwargs={"a": object()}))
        assert texts(await make().aget_messages()) == ["0"]

    @pytest.mark.parametrize("fault", [*UNANSWERED, Fault.ERROR_500])
    async def test_is_retried(self, through: Through, make: Make, proxy: Proxy, fault: Fault) -> None:
        await make().aadd_messages(humans(0))
        [stored] = await all_stored(make())
        proxy.script(fault, operation="TransactWriteItems")
        await through().areplace_message(stored.id, HumanMessage("new"))
        assert texts(await make().aget_messages()) == ["new"]

    async def test_that_arrives_late_does_not_undo_a_later_one(
        self, through: Through, make: Make, proxy: Proxy
    ) -> None:
        await make().aadd_messages(humans(0))
        [stored] = await all_stored(make())
        proxy.script(Fault.LATE_REQUEST, operation="TransactWriteItems")
        await through().areplace_message(stored.id, HumanMessage("first"))
        await make().areplace_message(stored.id, HumanMessage("second"))
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert texts(await make().aget_messages()) == ["second"]

    @pytest.mark.real_engine("moto has no transactions that conflict")
    async def test_by_many_at_once_leaves_one_of_theirs_whole(self, make: Make) -> None:
        await make().aadd_messages(humans("0", "next"))
        [stored, _] = await all_stored(make())
        large = [HumanMessage(f"{number}" * 500_000 + secrets.token_urlsafe(500_000)) for number in range(6)]
        await asyncio.gather(*(make().areplace_message(stored.id, message) for message in large))
        [left, following] = await make().aget_messages()
        assert left in large
        assert following.content == "next"


class TestPopping:
    async def test_takes_the_latest_off(self, make: Make) -> None:
        large = HumanMessage(secrets.token_urlsafe(900_000))
        await make().aadd_messages([*humans(0, 1), large])
        assert await make().apop_message() == large
        assert await asyncio.to_thread(make().pop_message) == HumanMessage("1")
        assert texts(await make().aget_messages()) == ["0"]
        await make().aadd_messages(humans("new"))
        assert [await make().apop_message() for _ in range(3)] == [HumanMessage("new"), HumanMessage("0"), None]

    @pytest.mark.sampled("kind")
    async def test_by_many_at_once_gives_each_message_to_one(self, make: Make) -> None:
        await make().aadd_messages(humans(*range(12)))
        popped = await asyncio.gather(*(make().apop_message() for _ in range(15)))
        contents = sorted(int(str(message.content)) for message in popped if message is not None)
        assert contents == list(range(12))
        assert await make().aget_messages() == []

    @pytest.mark.sampled("kind")
    async def test_by_more_than_there_are_messages_takes_few_requests(self, make: Make, proxy: Proxy) -> None:
        requests = []
        for _ in range(3):
            proxy.seen.clear()
            await make().aadd_messages(humans(*range(15)))
            popped = await asyncio.gather(*(make(endpoint_url=proxy.url).apop_message() for _ in range(20)))
            contents = sorted(int(str(message.content)) for message in popped if message is not None)
            assert contents == list(range(15))
            requests.append(len(proxy.seen))
        # A read and a removal each, and the turns that are lost: 75 to 103 on an idle machine. Without growing pauses
        # it is 300 and more. The least of three, because a busy machine makes some writers lose more turns.
        assert min(requests) <= 130

    async def test_takes_two_requests(self, through: Through, make: Make, proxy: Proxy, removal: str) -> None:
        await make().aadd_messages(humans(0))
        await make().aadd_messages(humans(1))
        assert await through().apop_message() == HumanMessage("1")
        assert proxy.operations() == ["Query", removal]
        proxy.seen.clear()
        await make().aadd_messages(humans(2, 3))
        assert await through().apop_message() == HumanMessage("3")
        assert proxy.operations() == ["Query", "PutItem" if removal == "UpdateItem" else removal]

    @pytest.mark.parametrize("fault", UNANSWERED)
    async def test_is_retried_without_taking_two(
        self, through: Through, make: Make, proxy: Proxy, removal: str, fault: Fault
    ) -> None:
        await make().aadd_messages(humans(0, 1))
        proxy.script(fault, operation=removal)
        assert await through().apop_message() == HumanMessage("1")
        assert texts(await make().aget_messages()) == ["0"]

    async def test_gives_the_message_though_its_parts_cannot_be_removed(
        self, through: Through, make: Make, proxy: Proxy
    ) -> None:
        large = HumanMessage(secrets.token_urlsafe(900_000))
        await make().aadd_messages([HumanMessage("small"), large])
        proxy.schedule = lambda seen: Fault.ERROR_500 if seen.operation == "BatchWriteItem" else Fault.NONE
        assert await through(attempts=1).apop_message() == large
        assert texts(await make().aget_messages()) == ["small"]

    async def test_and_replacing_wait_for_a_transaction_on_the_same_item(
        self, through: Through, make: Make, proxy: Proxy, removal: str
    ) -> None:
        await make().aadd_messages(humans("old"))
        [stored] = await all_stored(make())
        proxy.script(Fault.CONFLICT, Fault.CONFLICT, operation="PutItem")
        await through().areplace_message(stored.id, HumanMessage("new"))
        assert proxy.operations().count("PutItem") == 3
        proxy.seen.clear()
        proxy.script(Fault.CONFLICT, Fault.CONFLICT, operation=removal)
        assert await through().apop_message() == HumanMessage("new")
        assert proxy.operations().count(removal) == 3

    async def test_gives_what_was_put_in_its_place_meanwhile(
        self, through: Through, make: Make, proxy: Proxy, removal: str
    ) -> None:
        await make().aadd_messages(humans("old"))
        [stored] = await all_stored(make())

        def replace_before_the_removal(seen: Any) -> Fault:
            if seen.operation == removal and proxy.operations().count(removal) == 1:
                make().replace_message(stored.id, HumanMessage("new"))
            return Fault.NONE

        proxy.schedule = replace_before_the_removal
        assert await through().apop_message() == HumanMessage("new")


class TestCopying:
    async def test_branches_off(self, make: Make, session_id: str) -> None:
        await make().aadd_messages(EVERY_TYPE)
        stored = await all_stored(make())
        branch = await make().acopy_to(f"{session_id}-branch", up_to=stored[3].id)
        assert await branch.aget_messages() == EVERY_TYPE[:4]
        await branch.aadd_messages(humans("elsewhere"))
        whole = await asyncio.to_thread(make().copy_to, f"{session_id}-whole")
        assert await whole.aget_messages() == EVERY_TYPE
        assert await make().aget_messages() == EVERY_TYPE
        assert texts(await branch.aget_messages())[4:] == ["elsewhere"]
        assert {one.id for one in await all_stored(whole)}.isdisjoint(one.id for one in stored)

    async def test_of_a_long_session(self, make: Make, session_id: str) -> None:
        await make().aadd_messages(humans(*range(120)))
        copy = await make().acopy_to(f"{session_id}-copy")
        assert texts(await copy.aget_messages()) == [str(number) for number in range(120)]

    async def test_keeps_a_tenants_prefix(self, make: Make, session_id: str) -> None:
        history, two = make(key={"SessionId": f"tenant#{session_id}"}), {"SessionId": f"tenant#{session_id}-two"}
        await history.aadd_messages(humans(0))
        with pytest.raises(ValueError, match="made with key"):
            await history.acopy_to("two")
        copy = await history.acopy_to("two", key=two)
        assert copy.key == two
        assert texts(await make(key=two).aget_messages()) == ["0"]

    async def test_has_the_same_default(self, make: Make, session_id: str) -> None:
        history = make(default=lambda value: type(value).__name__)
        await history.aadd_messages(humans(0))
        copy = await history.acopy_to(f"{session_id}-copy")
        await copy.aadd_messages([HumanMessage("1", additional_kwargs={"a": object()})])
        assert (await copy.aget_messages())[1].additional_kwargs == {"a": "object"}

    async def test_to_itself_is_refused(self, make: Make, session_id: str) -> None:
        with pytest.raises(ValueError, match="cannot be copied to itself"):
            await make().acopy_to(session_id)

    async def test_leaves_a_handle_that_outlives_the_first(self, make: Make, session_id: str) -> None:
        history = make()
        await history.aadd_messages(humans(0))
        copy = await history.acopy_to(f"{session_id}-copy")
        await history.aclose()
        assert texts(await copy.aget_messages()) == ["0"]


@pytest.mark.parametrize("kind", LAYOUTS[:1])
async def test_a_single_item_says_what_it_cannot_do(make: Make) -> None:
    some_id = "0" * 16 + "-" + "0" * 16 + "-" + "0" * 6
    history = make()
    await history.aadd_messages(humans(0))
    for attempt in (
        history.apage(1),
        history.adelete_messages([some_id]),
        history.areplace_message(some_id, HumanMessage("x")),
        history.apop_message(),
        history.acopy_to("other"),
    ):
        with pytest.raises(LayoutError, match="needs a table with a sort key, and sort_key_name") as caught:
            await attempt
        assert caught.value.session_key == history.key
    assert texts(await history.aget_messages()) == ["0"]
