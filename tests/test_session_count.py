"""The index's count of messages: right whenever it is quiet, whatever was cut off before."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from conftest import NewStore
from langchain_core.messages import HumanMessage
from proxy import Fault, Proxy, Seen, cut_off
from samples import humans

from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    DynamoDBChatMessageHistory,
    WriteConflictError,
    WriteOutcomeUnknownError,
)
from chathistory_async._item_collection.requests import TOMBSTONE_SECONDS
from chathistory_async._item_collection.revisions import CHANGES_KNOWN
from chathistory_async._sync.bridge import run
from chathistory_async.testing import FakeClock

# Two requests of BatchWriteItem, because each message is a record of its own.
SIZE = 26
KEPT = 5

Session = Callable[[ChatHistoryStore], Awaitable[object]]


@pytest.fixture
async def store(new_store: NewStore) -> ChatHistoryStore:
    """Reaches the engine directly, to see and to do what the others are not to be disturbed by."""
    return new_store()


@pytest.fixture
async def filled(store: ChatHistoryStore, session_id: str, owner: str) -> None:
    await fill(store.session(session_id, owner=owner))


@pytest.fixture
def raw(dynamodb: Any, collection_table: str, session_id: str) -> Callable[[], dict[str, Any]]:
    """Reads the session's own item."""

    def raw() -> dict[str, Any]:
        key = {"SessionId": {"S": session_id}, "MessageId": {"S": "session"}}
        item: dict[str, Any] = dynamodb.get_item(TableName=collection_table, Key=key, ConsistentRead=True).get("Item")
        return item

    return raw


@pytest.fixture
def check(store: ChatHistoryStore, session_id: str, owner: str) -> Callable[[], Awaitable[int]]:
    """Compares the count, got in both ways, with what is stored once that is quiet, and returns it."""

    async def check() -> int:
        # A request that was cut off may still be under way.
        for _ in range(100):
            with suppress(AssertionError):
                return await compare()
            await asyncio.sleep(0.05)
        return await compare()

    async def compare() -> int:
        stored = len(await store.session(session_id).aget_messages())
        info = await store.get_session_info(session_id)
        listed = [info.message_count for info in (await store.list_sessions(owner, 5)).sessions]
        assert ([] if info is None else [info.message_count]) == listed
        assert (listed or [0]) == [stored]
        return stored

    return check


@pytest.fixture
def later(clock: FakeClock) -> Callable[[], None]:
    """Has the leases of all sweeps be over."""
    return lambda: clock.advance(TOMBSTONE_SECONDS + 1)


async def fill(history: DynamoDBChatMessageHistory) -> None:
    for number in range(SIZE):
        await history.aadd_messages(humans(number))


def ways_to_sweep(session_id: str) -> dict[str, Session]:
    async def clear(store: ChatHistoryStore) -> None:
        await store.session(session_id).aclear()

    async def delete(store: ChatHistoryStore) -> None:
        await store.delete_session(session_id)

    async def trim(store: ChatHistoryStore) -> None:
        history = store.session(session_id)
        await history.aget_messages()
        await history.aadd_messages(humans("new"))

    return {"clear": clear, "delete": delete, "trim": trim}


@pytest.fixture(params=["clear", "delete", "trim"])
def sweep(request: pytest.FixtureRequest, session_id: str) -> Session:
    return ways_to_sweep(session_id)[request.param]


@pytest.fixture
def sweeping(request: pytest.FixtureRequest, store_through: NewStore) -> NewStore:
    """Makes stores through the proxy that sweep as the test wants it."""
    trims = "trim" in request.node.callspec.params.values()
    return lambda **options: store_through(**(options | ({"history_size": KEPT} if trims else {})))


class TestAQuietSweep:
    @pytest.mark.usefixtures("filled")
    async def test_leaves_no_flag(
        self, sweep: Session, sweeping: NewStore, check: Callable[[], Awaitable[int]], raw: Callable[[], Any]
    ) -> None:
        await sweep(sweeping())
        assert await check() in {0, KEPT}
        assert "Recount" not in (raw() or {})

    @pytest.mark.usefixtures("filled")
    async def test_costs_a_reader_nothing_after_it(
        self, store_through: NewStore, session_id: str, owner: str, proxy: Proxy
    ) -> None:
        store = store_through()
        await store.session(session_id).aclear()
        assert proxy.operations() == [
            *["Query", "UpdateItem", "BatchWriteItem", "BatchWriteItem"],
            *["GetItem", "Query", "UpdateItem"],
        ]
        proxy.seen.clear()
        await store.get_session_info(session_id)
        await store.list_sessions(owner, 1)
        assert proxy.operations() == ["GetItem", "Query"]

    async def test_of_a_session_that_is_not_in_the_index_puts_nothing_there(
        self, new_store: NewStore, collection_table: str, session_id: str, raw: Callable[[], Any]
    ) -> None:
        async with ChatHistoryStore(collection_table) as plain:
            await plain.session(session_id).aadd_messages(humans(1, 2))
        await new_store().session(session_id).aclear()
        assert raw() is None

    async def test_of_what_an_unindexed_writer_stored_counts_what_is_left(
        self, store: ChatHistoryStore, collection_table: str, session_id: str, owner: str, check: Any
    ) -> None:
        async with ChatHistoryStore(collection_table) as plain:
            await plain.session(session_id).aadd_messages(humans(1, 2))
        await store.session(session_id, owner=owner).aadd_messages(humans(3))
        await store.session(session_id).aclear()
        assert await check() == 0


class TestASessionThatIsOlderThanItsItem:
    @pytest.fixture(autouse=True)
    async def older(self, collection_table: str, session_id: str) -> None:
        async with ChatHistoryStore(collection_table) as plain:
            await fill(plain.session(session_id))

    @pytest.mark.parametrize("reads", [False, True])
    async def test_is_counted_whole(
        self, store_through: NewStore, session_id: str, owner: str, proxy: Proxy, check: Any, later: Any, reads: bool
    ) -> None:
        store = store_through()
        history = store.session(session_id, owner=owner)
        if reads:
            await history.aget_messages()
        await history.aadd_messages(humans(1, 2))
        assert await check() == SIZE + 2
        await history.apop_message()
        assert await check() == SIZE + 1
        later()
        assert await check() == SIZE + 1
        proxy.seen.clear()
        await store.get_session_info(session_id)
        assert proxy.operations() == ["GetItem"]
        await history.aclear()
        assert await check() == 0

    async def test_is_counted_with_a_clear_that_began_before_the_item(
        self, store_through: NewStore, store: ChatHistoryStore, session_id: str, owner: str, proxy: Proxy, check: Any
    ) -> None:
        # At the first BatchWriteItem, which arrives when the item is there and the messages were counted.
        with proxy.late_requests_held():
            assert await cut_off(store_through().session(session_id).aclear(), proxy, 3, Fault.LATE_REQUEST)
            await store.session(session_id, owner=owner).aadd_messages(humans(1))
            before = await check()
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert await check() < before

    async def test_is_counted_with_a_clear_that_began_before_a_migration_into_it(
        self,
        store_through: NewStore,
        store: ChatHistoryStore,
        table: str,
        session_id: str,
        owner: str,
        proxy: Proxy,
        check: Any,
        later: Any,
        dynamodb: Any,
    ) -> None:
        assert await cut_off(store_through().session(session_id).aclear(), proxy, 3, Fault.RESET)
        late = proxy.seen[2]
        async with ChatHistoryStore(table, layout="single_item") as source:
            await source.session(session_id).aadd_messages(humans(1))
            [moved] = [one async for one in store.migrate_from(source, [session_id], owner_of=lambda _: owner)]
        assert moved.copied == 1
        before = await check()
        dynamodb.batch_write_item(**late.body)
        assert await check() < before
        later()
        assert await check() < before

    async def test_is_counted_where_its_item_has_expired(
        self, new_store: NewStore, session_id: str, owner: str, check: Any, dynamodb: Any, collection_table: str
    ) -> None:
        await new_store(ttl=60).session(session_id, owner=owner).aadd_messages(humans(1))
        dynamodb.update_item(
            TableName=collection_table,
            Key={"SessionId": {"S": session_id}, "MessageId": {"S": "session"}},
            UpdateExpression="SET expireAt = :past",
            ExpressionAttributeValues={":past": {"N": "1"}},
        )
        await new_store().session(session_id, owner=owner).aadd_messages(humans(2))
        assert await check() == SIZE + 2


class TestANewSession:
    @pytest.mark.parametrize(
        "read",
        [
            lambda history: history.aget_messages(),
            lambda history: history.aget_messages(limit=3),
            lambda history: history.apage(3),
            lambda history: history.apop_message(),
        ],
        ids=["read", "limit", "page", "pop"],
    )
    @pytest.mark.parametrize("options", [{}, {"history_size": KEPT}], ids=["all", "size"])
    async def test_that_was_read_is_never_counted(
        self, store_through: NewStore, session_id: str, owner: str, proxy: Proxy, read: Any, options: dict[str, Any]
    ) -> None:
        store = store_through(**options)
        history = store.session(session_id, owner=owner)
        await read(history)
        await history.aadd_messages(humans(1))
        proxy.seen.clear()
        info = await store.get_session_info(session_id)
        assert info is not None
        assert info.message_count == 1
        assert proxy.operations() == ["GetItem"]

    @pytest.mark.parametrize("reads_eventually", [False, True])
    async def test_that_was_not_is_counted_once(
        self, store_through: NewStore, session_id: str, owner: str, proxy: Proxy, reads_eventually: bool
    ) -> None:
        store = store_through(consistent_read=False)
        history = store.session(session_id, owner=owner)
        if reads_eventually:
            await history.aget_messages()
        await history.aadd_messages(humans(1))
        proxy.seen.clear()
        await store.list_sessions(owner)
        await store.list_sessions(owner)
        assert proxy.operations() == ["Query", "Query", "UpdateItem", "Query"]

    async def test_that_was_read_is_known_to_be_new_once(
        self, store: ChatHistoryStore, collection_table: str, session_id: str, owner: str, check: Any, raw: Any
    ) -> None:
        history = store.session(session_id, owner=owner)
        assert await history.aget_messages() == []
        await history.aadd_messages(humans(1))
        assert raw()["CountsAll"] == {"BOOL": True}
        await store.delete_session(session_id)
        async with ChatHistoryStore(collection_table) as plain:
            await plain.session(session_id).aadd_messages(humans(2, 3))
        await history.aadd_messages(humans(4))
        assert raw()["CountsAll"] == {"BOOL": False}
        assert await check() == 3


class TestACancelledSweep:
    @pytest.mark.stress
    async def test_at_any_request_leaves_a_count_that_is_right(
        self,
        sweep: Session,
        sweeping: NewStore,
        store: ChatHistoryStore,
        session_id: str,
        owner: str,
        proxy: Proxy,
        check: Callable[[], Awaitable[int]],
    ) -> None:
        number, reached = 0, True
        while reached:
            number += 1
            await fill(store.session(session_id, owner=owner))
            reached = await cut_off(sweep(sweeping()), proxy, number, random.choice([Fault.NONE, Fault.RESET]))
            await check()
            await store.delete_session(session_id)
        assert number > 5

    @pytest.mark.usefixtures("filled")
    async def test_heals_when_its_lease_is_over(
        self,
        store_through: NewStore,
        session_id: str,
        proxy: Proxy,
        check: Callable[[], Awaitable[int]],
        raw: Callable[[], Any],
        later: Callable[[], None],
    ) -> None:
        store = store_through()
        # At the second of two BatchWriteItem.
        assert await cut_off(store.session(session_id).aclear(), proxy, 4, Fault.RESET)
        left = await check()
        assert 0 < left < SIZE
        assert "Recount" in raw(), "its requests may still arrive"
        proxy.seen.clear()
        await store.get_session_info(session_id)
        assert proxy.operations() == ["GetItem", "Query"]
        later()
        await store.get_session_info(session_id)
        assert "Recount" not in raw()
        assert raw()["MessageCount"] == {"N": str(left)}
        proxy.seen.clear()
        assert await check() == left
        await store.get_session_info(session_id)
        assert proxy.operations() == ["GetItem"]

    @pytest.mark.usefixtures("filled")
    async def test_heals_by_a_list_too(
        self,
        store_through: NewStore,
        store: ChatHistoryStore,
        session_id: str,
        owner: str,
        proxy: Proxy,
        raw: Callable[[], Any],
        later: Callable[[], None],
    ) -> None:
        await cut_off(store_through().session(session_id).aclear(), proxy, 4, Fault.RESET)
        later()
        [info] = (await store.list_sessions(owner, 1)).sessions
        assert raw()["MessageCount"] == {"N": str(info.message_count)}
        assert "Recount" not in raw()

    @pytest.mark.usefixtures("filled")
    async def test_is_told_right_to_who_must_not_write(
        self, store_through: NewStore, session_id: str, proxy: Proxy, later: Callable[[], None]
    ) -> None:
        store = store_through()
        await cut_off(store.session(session_id).aclear(), proxy, 4, Fault.RESET)
        later()
        proxy.schedule = lambda seen: Fault.DENIED if seen.operation == "UpdateItem" else Fault.NONE
        info = await store.get_session_info(session_id)
        assert info is not None
        assert info.message_count == len(await store.session(session_id).aget_messages())
        assert "UpdateItem" in proxy.operations()

    @pytest.mark.usefixtures("filled")
    async def test_whose_removal_arrives_late_is_counted_with_it(
        self, store_through: NewStore, session_id: str, proxy: Proxy, check: Callable[[], Awaitable[int]]
    ) -> None:
        store = store_through()
        with proxy.late_requests_held():
            await cut_off(store.session(session_id).aclear(), proxy, 4, Fault.LATE_REQUEST)
            before = await check()
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert await check() < before

    @pytest.mark.usefixtures("filled")
    async def test_beside_another_one(
        self, store_through: NewStore, store: ChatHistoryStore, session_id: str, proxy: Proxy, check: Any, raw: Any
    ) -> None:
        # The one has flagged the session and read what to remove, and is cut off while the other goes through.
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def schedule(seen: Seen) -> Fault:
            if seen.operation == "BatchWriteItem":
                loop.call_soon_threadsafe(reached.set)
                return Fault.LATE_REQUEST
            return Fault.NONE

        proxy.schedule = schedule
        first = asyncio.create_task(store_through().session(session_id).aclear())
        await reached.wait()
        await store.session(session_id).aclear()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert "Recount" in raw(), "the other one takes no flag but its own"
        await store.session(session_id).aadd_messages(humans(1))
        await asyncio.to_thread(proxy.wait_for_late_requests)
        assert await check() == 1

    async def test_two_clears_of_one_handle_take_their_own_flags_only(
        self, store: ChatHistoryStore, session_id: str, owner: str, check: Any, raw: Any
    ) -> None:
        history = store.session(session_id, owner=owner)
        for _ in range(5):
            await fill(history)
            await asyncio.gather(history.aclear(), history.aclear(), history.aadd_messages(humans(1, 2)))
            await check()
        await history.aclear()
        assert await check() == 0
        assert "Recount" not in raw()


class Telling(Coroutine[Any, Any, Any]):
    """A coroutine that tells of each of its awaits."""

    def __init__(self, work: Coroutine[Any, Any, Any], tell: Callable[[], None]) -> None:
        self.work = work
        self.tell = tell

    def send(self, value: Any) -> Any:
        awaited = self.work.send(value)
        self.tell()
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self.work.throw(*error)
        self.tell()
        return awaited

    def close(self) -> None:
        self.work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.work.__await__()


@contextmanager
def telling(tell: Callable[[], None]) -> Iterator[None]:
    """Tell of each await of the tasks that begin meanwhile: also of those that the library begins."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, work, **options: asyncio.Task(Telling(work, tell), loop=loop, **options))
    try:
        yield
    finally:
        loop.set_task_factory(None)


async def cut_off_at_an_await(work: Coroutine[Any, Any, object], number: int) -> bool:
    """Cancel some work at its await of this number, and tell whether it has had so many."""
    waited = 0

    def tell() -> None:
        nonlocal waited
        waited += 1
        if waited == number:
            task.cancel()

    with telling(tell):
        task = asyncio.create_task(work)
        await asyncio.wait([task])
    assert task.cancelled() == (waited >= number)
    if not task.cancelled():
        await task
    return waited >= number


# They take the ids of two messages, which are in two records where a session has two.
EDITS: dict[str, Callable[[DynamoDBChatMessageHistory, list[str]], Coroutine[Any, Any, object]]] = {
    "pop": lambda history, ids: history.apop_message(),
    "replace": lambda history, ids: history.areplace_message(ids[0], HumanMessage("new")),
    "delete": lambda history, ids: history.adelete_messages(ids),
}


class TestACancelledEdit:
    @pytest.mark.parametrize("fast_path", [True, pytest.param(False, marks=pytest.mark.stress)])
    @pytest.mark.parametrize(
        ("edit", "removes", "batches"),
        [("pop", 1, [1] * 20), ("pop", 1, [20]), ("replace", 0, [20]), ("delete", 2, [30, 30])],
        ids=["pop a record", "pop", "replace", "delete"],
    )
    async def test_at_any_await_leaves_a_count_that_is_right(
        self,
        new_store: NewStore,
        session_id: str,
        owner: str,
        check: Callable[[], Awaitable[int]],
        fast_path: bool,
        edit: str,
        removes: int,
        batches: list[int],
    ) -> None:
        history = new_store(ttl=1000, fast_path=fast_path).session(session_id, owner=owner)
        for size in batches:
            await history.aadd_messages(humans(*range(size)))
        ids = [stored.id for stored in (await history.apage(sum(batches))).messages]
        number, reached, left = 0, True, len(ids)
        while reached:
            number += 1
            work = EDITS[edit](history, [ids[number], ids[-number]])
            reached = await cut_off_at_an_await(work, number)
            before, left = left, await check()
            assert 0 <= before - left <= removes
        # How many each request has depends on the engine and the connection.
        assert number > 3
        assert before - left == removes, "the last one was not cut off"
        # The requests that were cut off have arrived by now.
        await check()


PROGRAM = """
import os, sys
from chathistory_async import ChatHistoryStore
table, session, url = sys.argv[1:]
for line in sys.stdin:
    child = os.fork()
    if not child:
        store = ChatHistoryStore(table, session_index=True, endpoint_url=url)
        store.session(session).clear()
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


@pytest.mark.posix
@pytest.mark.stress
async def test_a_clear_that_is_killed_at_any_request(
    store: ChatHistoryStore, collection_table: str, session_id: str, owner: str, proxy: Proxy, check: Any
) -> None:
    def killing(number: int) -> bool:
        """Have a process clear the session, and killed at its request of this number; tell whether it has had one."""
        child, known, arrived = 0, threading.Event(), 0

        def schedule(seen: Seen) -> Fault:
            nonlocal arrived
            arrived += 1
            if arrived == number:
                known.wait(10)
                os.kill(child or sys.maxsize, signal.SIGKILL)
            return Fault.NONE

        proxy.schedule = schedule
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("go\n")
        program.stdin.flush()
        child = int(program.stdout.readline())
        known.set()
        assert program.stdout.readline() == "gone\n"
        return arrived >= number

    command = [sys.executable, "-c", PROGRAM, collection_table, session_id, proxy.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        number, reached = 0, True
        while reached:
            number += 1
            await fill(store.session(session_id, owner=owner))
            reached = await asyncio.to_thread(killing, number)
            await check()
        program.communicate()
    assert number > 6


class TestBesideOthers:
    @pytest.mark.usefixtures("filled")
    async def test_a_clear_that_an_appender_always_overtakes(
        self,
        store_through: NewStore,
        new_store: NewStore,
        session_id: str,
        proxy: Proxy,
        check: Callable[[], Awaitable[int]],
        raw: Callable[[], Any],
    ) -> None:
        appender = new_store().session(session_id)

        def schedule(seen: Seen) -> Fault:
            if "MessageCount" in seen.body.get("ExpressionAttributeNames", {}).values():
                # It arrives between the counting and the storing of the count.
                appender.add_messages(humans("between"))
            return Fault.NONE

        proxy.schedule = schedule
        await store_through().session(session_id).aclear()
        assert await check() > 1
        assert "Recount" in raw(), "it gave up, and said so"

    @pytest.mark.usefixtures("filled")
    @pytest.mark.parametrize("options", [{}, {"history_size": KEPT}])
    async def test_appends_clears_and_cancellations_at_once(
        self, new_store: NewStore, session_id: str, check: Callable[[], Awaitable[int]], options: dict[str, Any]
    ) -> None:
        chance = random.Random(3)
        busy = True

        async def append() -> None:
            history = new_store().session(session_id)
            while busy:
                await history.aadd_messages(humans(*range(chance.randint(1, 3))))

        async def sweep() -> None:
            history = new_store(**options).session(session_id)
            for _ in range(8):
                work = history.aclear() if chance.random() < 0.5 else history.aadd_messages(humans("trims", "perhaps"))
                task = asyncio.ensure_future(work)
                await asyncio.wait([task], timeout=chance.random() * 0.1)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        appender = asyncio.create_task(append())
        await asyncio.gather(sweep(), sweep())
        busy = False
        await appender
        await check()

    @pytest.mark.stress
    async def test_all_of_it_on_a_bad_day(
        self, store_through: NewStore, session_id: str, owner: str, proxy: Proxy, check: Callable[[], Awaitable[int]]
    ) -> None:
        chance = random.Random(1)
        faults = [fault for fault in Fault if fault not in {Fault.NONE, Fault.DENIED}]
        proxy.schedule = lambda seen: chance.choice(faults) if chance.random() < 0.2 else Fault.NONE
        store = store_through()

        async def write(writer: int) -> None:
            history = store.session(session_id, owner=owner)
            for number in range(12):
                try:
                    await history.aadd_messages(humans(*range(1 + number % 3)))
                    if number % 4 == writer % 4:
                        await history.apop_message()
                    if number % 6 == writer:
                        await history.aclear()
                except ChatHistoryError:
                    continue

        await asyncio.gather(*(write(writer) for writer in range(6)))
        await asyncio.to_thread(proxy.wait_for_late_requests)
        await check()


class TestFlags:
    async def test_are_few_where_each_recount_is_lost(
        self,
        new_store: NewStore,
        session_id: str,
        owner: str,
        raw: Any,
        check: Any,
        later: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("chathistory_async._session_index.counting._RECOUNTS", 0)
        store = new_store()
        leases, merged = [0], 0
        for number in range(40):
            await store.session(session_id, owner=owner).aadd_messages(humans(number, "left"))
            await store.session(session_id).aclear()
            before, leases = leases, sorted(int(flag.split("#")[0]) for flag in raw()["Recount"]["SS"])
            assert len(leases) <= 16
            if len(leases) < len(before):
                # One for all of them, over when the last one of them is, and the new sweep's own.
                assert (len(leases), leases[0]) == (2, before[-1])
                merged += 1
        assert merged > 1
        await store.session(session_id).aadd_messages(humans(1))
        assert await check() == 1
        assert "Recount" in raw()
        later()
        assert await check() == 1
        assert "Recount" not in raw()

    @pytest.mark.usefixtures("filled")
    @pytest.mark.parametrize(
        "value",
        [{"S": "x"}, {"N": "1"}, {"SS": ["", "x", "9" * 5000]}, {"SS": ["99999999999999#far"]}, {"M": {}}],
        ids=["text", "number", "no flags", "a far one", "map"],
    )
    async def test_that_are_damaged_keep_nobody_from_the_number(
        self,
        store: ChatHistoryStore,
        session_id: str,
        check: Any,
        raw: Any,
        dynamodb: Any,
        collection_table: str,
        value: Any,
    ) -> None:
        dynamodb.update_item(
            TableName=collection_table,
            Key={"SessionId": {"S": session_id}, "MessageId": {"S": "session"}},
            UpdateExpression="SET Recount = :value, MessageCount = :wrong",
            ExpressionAttributeValues={":value": value, ":wrong": {"N": "7"}},
        )
        assert await check() == SIZE
        await store.session(session_id).apop_message()
        assert await check() == SIZE - 1
        await store.session(session_id).aclear()
        assert await check() == 0
        assert "Recount" not in raw()

    @pytest.mark.usefixtures("filled")
    async def test_outlive_a_session_that_expired_under_a_sweep(
        self,
        store_through: NewStore,
        new_store: NewStore,
        session_id: str,
        owner: str,
        proxy: Proxy,
        check: Any,
        dynamodb: Any,
        collection_table: str,
        raw: Any,
    ) -> None:
        await cut_off(store_through().session(session_id).aclear(), proxy, 3, Fault.LATE_REQUEST)
        dynamodb.update_item(
            TableName=collection_table,
            Key={"SessionId": {"S": session_id}, "MessageId": {"S": "session"}},
            UpdateExpression="SET expireAt = :past, Title = :title",
            ExpressionAttributeValues={":past": {"N": "1"}, ":title": {"S": "old"}},
        )
        await new_store().session(session_id, owner=owner).aadd_messages([HumanMessage("new")])
        assert "Recount" in raw()
        assert "Title" not in raw()


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("given_up", ["after an attempt", "after conflicts"])
async def test_an_append_whose_answer_was_lost_never_says_that_nothing_was_written(
    store_through: NewStore,
    store: ChatHistoryStore,
    session_id: str,
    proxy: Proxy,
    dynamodb: Any,
    collection_table: str,
    monkeypatch: pytest.MonkeyPatch,
    lost: bool,
    given_up: str,
) -> None:
    await store.session(session_id).aadd_messages(humans(1))
    # The first attempt, which does not know it, is refused.
    dynamodb.update_item(
        TableName=collection_table,
        Key={"SessionId": {"S": session_id}, "MessageId": {"S": "session"}},
        UpdateExpression="SET LastActive = :later",
        ExpressionAttributeValues={":later": {"S": "2999-01-01T00:00:00.000Z"}},
    )
    monkeypatch.setattr("chathistory_async._aws.calls.MAX_CONFLICTS", 3)
    if given_up == "after an attempt":
        monkeypatch.setattr("chathistory_async._session.MAX_ATTEMPTS", 1)
    first = [Fault.RESET, Fault.NONE] if lost else [Fault.NONE]
    proxy.script(*first, *[Fault.CONFLICT] * 3, operation="TransactWriteItems")
    expected = WriteOutcomeUnknownError if lost else WriteConflictError
    with pytest.raises(expected):
        await store_through().session(session_id).aadd_messages(humans(2))
    assert len(await store.session(session_id).aget_messages()) == 1


@pytest.mark.parametrize(
    ("change", "times", "expected"),
    [
        ("title", 1, WriteOutcomeUnknownError),
        # A record knows its latest changes, and so tells that this one was not stored.
        ("message", 1, WriteConflictError),
        ("message", CHANGES_KNOWN, WriteOutcomeUnknownError),
    ],
)
@pytest.mark.parametrize("given_up", ["after an attempt", "after conflicts"])
async def test_a_change_whose_answer_was_lost_says_that_nothing_was_written_only_where_that_is_known(
    store_through: NewStore,
    store: ChatHistoryStore,
    session_id: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    times: int,
    expected: type[ChatHistoryError],
    given_up: str,
) -> None:
    history = store.session(session_id)
    await history.aadd_messages(humans(1))
    [message] = (await history.apage(1)).messages
    monkeypatch.setattr("chathistory_async._aws.calls.MAX_CONFLICTS", 3)
    sent = 0

    def of(store: ChatHistoryStore, text: str) -> Coroutine[Any, Any, None]:
        if change == "title":
            return store.set_title(session_id, text)
        return store.session(session_id).areplace_message(message.id, HumanMessage(text))

    def schedule(seen: Seen) -> Fault:
        nonlocal sent
        if seen.operation not in {"UpdateItem", "PutItem"}:
            return Fault.NONE
        sent += 1
        if sent == 2:
            # Between the lost answer and the retry.
            for _ in range(times):
                run(of, store, "other")
            return Fault.NONE
        return Fault.RESET if sent == 1 else Fault.CONFLICT

    proxy.schedule = schedule
    if given_up == "after an attempt":
        monkeypatch.setattr("chathistory_async._session.MAX_ATTEMPTS", 1)
    unknown = expected is WriteOutcomeUnknownError
    with pytest.raises(expected, match="read the session before you try again" if unknown else "in a row"):
        await of(store_through(), "mine")
    assert (await store.session(session_id).aget_messages())[0].text != "mine"
