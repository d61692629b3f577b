"""Lost answers, late requests and pruned marks: a write is stored once or not at all, and a clear deletes once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Make
from proxy import Fault, Proxy
from samples import humans, texts
from variants import AsyncVariant, EncryptedVariant, SdkVariant, SyncVariant, Variant, in_stress

from chathistory_async import DynamoDBChatMessageHistory, EndpointError, ServiceError, WriteOutcomeUnknownError
from chathistory_async._single_item.changes import WRITES_KEPT, WRITES_LIMIT
from chathistory_async._single_item.layout import WRITES

Through = Callable[..., DynamoDBChatMessageHistory]

VARIANTS = [AsyncVariant, SdkVariant, *in_stress(SyncVariant, EncryptedVariant)]
pytestmark = pytest.mark.usefixtures("fast_path_always_open")
UNANSWERED = [Fault.LOST_RESPONSE, Fault.LATE_ERROR]
NOT_STORED = [Fault.RESET, Fault.ERROR_500, Fault.ERROR_503, Fault.CAPACITY, Fault.THROTTLED, Fault.CONFLICT]


@pytest.mark.sampled
@pytest.mark.parametrize("fault", UNANSWERED + NOT_STORED)
@pytest.mark.parametrize("history_size", [None, 3])
async def test_a_retried_append_is_stored_once(
    variant: type[Variant], through: Through, proxy: Proxy, fault: Fault, history_size: int | None
) -> None:
    history = variant(through(history_size=history_size))
    expected: list[str] = []
    for number in range(5):
        proxy.script(fault, operation="UpdateItem")
        await history.add(humans(number, f"{number}b"))
        expected += [str(number), f"{number}b"]
        assert texts(await history.read()) == expected[-(history_size or 0) :]
    assert proxy.operations().count("UpdateItem") >= 10


@pytest.mark.parametrize("fault", UNANSWERED)
async def test_a_retried_fresh_start_of_an_expired_session_is_stored_once(
    variant: type[Variant], through: Through, make: Make, proxy: Proxy, update: Any, fault: Fault
) -> None:
    await variant(make()).add(humans("old"))
    update(expireAt={"N": "1"})
    proxy.script(fault, operation="PutItem")
    await variant(through(ttl=60)).add(humans("new"))
    assert texts(await variant(make()).read()) == ["new"]
    assert proxy.operations() == ["UpdateItem", "PutItem", "PutItem"]


@pytest.mark.parametrize("fault", UNANSWERED)
async def test_an_append_whose_answers_are_all_lost_is_stored_at_most_once(
    variant: type[Variant], through: Through, make: Make, proxy: Proxy, fault: Fault
) -> None:
    proxy.schedule = lambda seen: fault
    with pytest.raises((EndpointError, ServiceError)):
        await variant(through(attempts=3)).add(humans(1, 2))
    assert texts(await variant(make()).read()) == ["1", "2"]


async def test_a_request_that_arrives_after_its_retry_changes_nothing(
    variant: type[Variant], through: Through, make: Make, proxy: Proxy
) -> None:
    history = variant(through())
    await history.add(humans("before"))
    proxy.script(Fault.LATE_REQUEST, operation="UpdateItem")
    await history.add(humans("once"))
    await history.add(humans("after"))
    await asyncio.to_thread(proxy.wait_for_late_requests)
    assert texts(await variant(make()).read()) == ["before", "once", "after"]


async def test_a_request_that_arrives_after_a_clear_brings_nothing_back(
    variant: type[Variant], through: Through, make: Make, proxy: Proxy
) -> None:
    history = variant(through())
    await history.add(humans("before"))
    proxy.script(Fault.LATE_REQUEST, operation="UpdateItem")
    await history.add(humans("once"))
    await history.clear()
    await asyncio.to_thread(proxy.wait_for_late_requests)
    assert await variant(make()).read() == []


class TestPruning:
    async def fill(self, history: Variant, writes: int) -> None:
        for number in range(writes):
            await history.add(humans(number))

    @pytest.fixture
    async def nearly_full(self, make: Make, update: Any) -> None:
        """The session before its last ten writes that need no pruning."""
        await make().aadd_messages(humans("first"))
        marks = ["creator", *(f"write-{number}" for number in range(WRITES_LIMIT - 11))]
        update(**{WRITES: {"L": [{"S": mark} for mark in marks]}})

    @pytest.mark.usefixtures("nearly_full")
    async def test_keeps_the_marks_few(self, make: Make, item: Any) -> None:
        history = make(history_size=2)
        sizes = []
        for number in range(30):
            await history.aadd_messages(humans(number))
            sizes.append(len(item()[WRITES]["L"]))
        assert max(sizes) == WRITES_LIMIT
        assert min(sizes) == WRITES_KEPT + 2
        assert texts(await history.aget_messages()) == ["28", "29"]

    @pytest.mark.usefixtures("nearly_full")
    async def test_is_one_write_more_in_many(self, through: Through, proxy: Proxy) -> None:
        history = through()
        await history.aget_messages()
        proxy.seen.clear()
        for number in range(60):
            await history.aadd_messages(humans(number))
        # A slow engine may make the SDK send a request again.
        different = {json.dumps(seen.body) for seen in proxy.seen}
        assert len(different) == 60 + 1

    @pytest.fixture
    async def pruned(self, make: Make, update: Any) -> None:
        """The session as a long life leaves it: more writes than are kept."""
        await make().aadd_messages(humans("first"))
        marks = ["creator", *(f"write-{number}" for number in range(WRITES_KEPT))]
        update(**{WRITES: {"L": [{"S": mark} for mark in marks]}})

    @pytest.mark.parametrize("fault", UNANSWERED)
    @pytest.mark.usefixtures("pruned")
    async def test_does_not_hurt_a_retry(self, through: Through, make: Make, proxy: Proxy, fault: Fault) -> None:
        history = through()
        await history.aget_messages()
        proxy.script(fault, operation="UpdateItem")
        await history.aadd_messages(humans("second"))
        assert texts(await make().aget_messages()) == ["first", "second"]

    @pytest.mark.usefixtures("pruned")
    async def test_costs_a_handle_that_knows_nothing_a_request(self, through: Through, proxy: Proxy) -> None:
        history = through()
        await history.aadd_messages(humans("second"))
        await history.aadd_messages(humans("third"))
        assert proxy.operations() == ["UpdateItem"] * 3

    @pytest.mark.usefixtures("pruned")
    async def test_between_a_lost_answer_and_its_retry_is_admitted(
        self, through: Through, make: Make, proxy: Proxy, update: Any
    ) -> None:
        history = through()
        await history.aget_messages()

        def lose_the_answer_and_all_marks(seen: Any) -> Fault:
            if proxy.operations().count("UpdateItem") == 2:
                others = ["creator", *(f"later-{number}" for number in range(WRITES_KEPT))]
                update(**{WRITES: {"L": [{"S": mark} for mark in others]}})
            return Fault.LOST_RESPONSE if proxy.operations().count("UpdateItem") == 1 else Fault.NONE

        proxy.schedule = lose_the_answer_and_all_marks
        with pytest.raises(WriteOutcomeUnknownError, match="read the session before you try again"):
            await history.aadd_messages(humans("second"))
        assert texts(await make().aget_messages()) == ["first", "second"]

    async def test_is_admitted_where_all_that_is_known_is_the_write_that_created_the_item(
        self, through: Through, make: Make, proxy: Proxy, update: Any, item: Any
    ) -> None:
        history = through()
        await history.aadd_messages(humans("first"))
        creator = item()[WRITES]["L"][0]

        def lose_the_answer_and_all_marks(seen: Any) -> Fault:
            if proxy.operations().count("UpdateItem") == 3:
                update(**{WRITES: {"L": [creator, *({"S": f"later-{number}"} for number in range(WRITES_KEPT))]}})
            return Fault.LOST_RESPONSE if proxy.operations().count("UpdateItem") == 2 else Fault.NONE

        proxy.schedule = lose_the_answer_and_all_marks
        with pytest.raises(WriteOutcomeUnknownError):
            await history.aadd_messages(humans("second"))
        assert texts(await make().aget_messages()) == ["first", "second"]

    @pytest.mark.usefixtures("pruned")
    async def test_before_the_first_attempt_is_no_matter(self, make: Make, update: Any) -> None:
        history = make()
        await history.aget_messages()
        others = ["creator", *(f"later-{number}" for number in range(WRITES_KEPT))]
        update(**{WRITES: {"L": [{"S": mark} for mark in others]}})
        await history.aadd_messages(humans("second"))
        assert texts(await make().aget_messages()) == ["first", "second"]


class TestClear:
    @pytest.mark.parametrize("fault", UNANSWERED)
    async def test_retried_deletes_no_message_that_came_after_it(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy, fault: Fault, session_id: str
    ) -> None:
        await variant(make()).add(humans("old"))

        def another_writes_before_the_retry(seen: Any) -> Fault:
            if seen.operation != "DeleteItem":
                return Fault.NONE
            if proxy.operations().count("DeleteItem") == 1:
                return fault
            # Once: on a busy machine the SDK may send again what takes longer than a second.
            if proxy.operations().count("DeleteItem") == 2:
                # On the proxy's loop: through the synchronous methods, which has a loop of its own.
                make().add_messages(humans("new"))
            return Fault.NONE

        proxy.schedule = another_writes_before_the_retry
        await variant(through()).clear()
        assert texts(await variant(make()).read()) == ["new"]

    async def test_of_a_session_that_langchain_community_wrote(
        self, variant: type[Variant], make: Make, update: Any, item: Any
    ) -> None:
        update(History={"L": []})
        await variant(make()).clear()
        assert item() is None

    @pytest.mark.parametrize("conflicts", [0, 1])
    async def test_of_a_foreign_session_whose_answer_is_lost_leaves_what_came_after(
        self, variant: type[Variant], through: Through, make: Make, proxy: Proxy, update: Any, conflicts: int
    ) -> None:
        update(History={"L": []})

        def lose_the_answer_and_append(seen: Any) -> Fault:
            if seen.operation != "DeleteItem":
                return Fault.NONE
            sent = proxy.operations().count("DeleteItem")
            if sent == 1:
                return Fault.LOST_RESPONSE
            if sent <= 1 + conflicts:
                return Fault.CONFLICT
            make().add_messages(humans("new"))
            return Fault.NONE

        proxy.schedule = lose_the_answer_and_append
        with pytest.raises(WriteOutcomeUnknownError):
            await variant(through()).clear()
        assert texts(await make().aget_messages()) == ["new"]

    async def test_of_a_foreign_session_that_ours_appends_to_meanwhile(
        self, through: Through, make: Make, proxy: Proxy, update: Any, item: Any
    ) -> None:
        update(History={"L": []})

        def append_before_the_delete(seen: Any) -> Fault:
            if seen.operation == "DeleteItem" and proxy.operations().count("DeleteItem") == 1:
                make().add_messages(humans("just before"))
            return Fault.NONE

        proxy.schedule = append_before_the_delete
        await through().aclear()
        assert item() is None


class TestCancellation:
    async def test_leaves_the_batch_whole_or_absent(self, through: Through, make: Make, proxy: Proxy) -> None:
        history = through()
        proxy.schedule = lambda seen: Fault.DELAY
        outcomes = set()
        for number in range(24):
            task = asyncio.create_task(history.aadd_messages(humans(*[number] * 3)))
            await asyncio.sleep(number * 0.005)
            task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            outcomes.add(type(outcome))
        assert asyncio.CancelledError in outcomes
        await asyncio.sleep(0.2)
        stored = texts(await make().aget_messages())
        assert stored == [text for text in stored[::3] for _ in range(3)]
        assert len(set(stored)) == len(stored) / 3

    async def test_stops_the_retries(self, through: Through, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.ERROR_500
        task = asyncio.create_task(through(attempts=10).aadd_messages(humans(1)))
        while not proxy.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # A request that was on its way arrives.
        await asyncio.sleep(0.2)
        sent = len(proxy.seen)
        await asyncio.sleep(0.5)
        assert len(proxy.seen) == sent

    async def test_leaves_the_handle_and_its_client_usable(self, make: Make) -> None:
        history = make()
        first = asyncio.create_task(history.aget_messages())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await history.aadd_messages(humans(1))
        assert texts(await history.aget_messages()) == ["1"]
