"""Sessions of JSON values: what comes back, which format a session has, and that LangChain is not needed."""

from __future__ import annotations

import asyncio
import math
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from plain_values import same
from proxy import Fault, Proxy, retries
from samples import humans

from chathistory_async import (
    ChatHistoryStore,
    ClosedError,
    DynamoDBChatMessageHistory,
    FormatError,
    IdempotencyKeyReusedError,
    ItemTooLargeError,
    JsonSession,
    LayoutError,
    MessageNotFoundError,
    MessageNotStorableError,
    UndecodableItemError,
)

VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5,
    1.0,
    "",
    "text 👩🏽‍🚀",
    "\ud800",
    [],
    {},
    [[], [[1]]],
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"$set": [1]},
    {"a": {"$bytes": "x"}},
    b"\x00\xff",
    {1, 2},
    10**40,
    -(2**70),
    math.nan,
    math.inf,
    -math.inf,
    {"line\n": "break,\n", "quote": '"', "nested": {"deep": [None, False, 2**63]}},
]


class Open(Protocol):
    def __call__(self, name: str = ..., **options: Any) -> JsonSession: ...


@pytest.fixture
async def open_session(collection_table: str, session_id: str, storage: dict[str, Any]) -> AsyncIterator[Open]:
    """Opens the test's own session, in a store of its own each time."""
    stores: list[ChatHistoryStore] = []

    def open_session(name: str = "json", **options: Any) -> JsonSession:
        stores.append(ChatHistoryStore(collection_table, **(storage | options)))
        return stores[-1].json_session(session_id, format=name)

    yield open_session
    for store in stores:
        await store.aclose()


@pytest.fixture
def through(open_session: Open, proxy: Proxy) -> Open:
    """Opens it through the proxy, with few retries."""
    config = retries()
    return lambda name="json", **options: open_session(name, endpoint_url=proxy.url, config=config, **options)


def all_alike(values: list[Any], others: list[Any]) -> bool:
    return len(values) == len(others) and all(same(*pair) for pair in zip(values, others, strict=True))


class TestValues:
    @pytest.mark.sampled("storage")
    async def test_come_back_equal_one_by_one(self, open_session: Open) -> None:
        for value in VALUES:
            await open_session().aadd([value])
        assert all_alike(await open_session().aget(), VALUES)

    async def test_come_back_equal_together(self, open_session: Open) -> None:
        await open_session().aadd(VALUES)
        await open_session().aadd(VALUES * 40)
        assert all_alike(await open_session().aget(), VALUES * 41)
        assert all_alike(await open_session().aget(3), VALUES[-3:])
        assert all_alike([value async for value in open_session().aiter()], VALUES * 41)

    async def test_of_other_types_take_their_plain_form(self, open_session: Open) -> None:
        await open_session().aadd([(1, "a"), {1: 2}])
        assert await open_session().aget() == [[1, "a"], {"1": 2}]

    async def test_without_a_plain_form_are_refused_with_their_path(self, through: Open, proxy: Proxy) -> None:
        with pytest.raises(
            MessageNotStorableError, match=r"^values\[1\]\.a\[0\] cannot be stored: an object"
        ) as caught:
            await through().aadd([1, {"a": [object()]}])
        assert caught.value.session_key == through().key
        assert not [operation for operation in proxy.operations() if operation in ("PutItem", "TransactWriteItems")]

    async def test_are_given_to_default(self, open_session: Open) -> None:
        await open_session(default=lambda value: ["converted"]).aadd([{"a": object()}])
        assert await open_session().aget() == [{"a": ["converted"]}]

    async def test_of_more_than_a_transaction_are_refused(self, open_session: Open) -> None:
        with pytest.raises(ItemTooLargeError, match="Append smaller batches"):
            await open_session().aadd([secrets.token_hex(5_000_000)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(JSON, min_size=1, max_size=5), min_size=1, max_size=4))
async def test_any_values_come_back_equal(collection_table: str, batches: list[list[Any]]) -> None:
    import uuid

    async with ChatHistoryStore(collection_table) as store:
        session = store.json_session(uuid.uuid4().hex)
        for batch in batches:
            await session.aadd(batch)
        assert all_alike(await session.aget(), [value for batch in batches for value in batch])


class TestMethods:
    async def test_page_replace_delete_and_pop(self, open_session: Open) -> None:
        await open_session().aadd([{"at": 0}, {"at": 1}, None])
        await open_session().aadd([3])
        page = await open_session().apage(3)
        assert [stored.value for stored in page.values] == [{"at": 1}, None, 3]
        assert page.cursor == page.values[0].id
        before = await open_session().apage(3, page.cursor)
        assert ([stored.value for stored in before.values], before.cursor) == ([{"at": 0}], None)
        await open_session().areplace(page.values[0].id, {"at": "one"})
        await open_session().adelete([before.values[0].id])
        assert await open_session().aget() == [{"at": "one"}, None, 3]
        assert await open_session().aget(up_to=page.values[0].id) == [{"at": "one"}]
        assert await open_session().apop() == 3
        assert await open_session().apop() is None
        assert await open_session().apop() == {"at": "one"}
        assert await open_session().aget() == []
        with pytest.raises(MessageNotFoundError):
            await open_session().areplace(page.values[0].id, 1)

    async def test_have_synchronous_twins(self, open_session: Open) -> None:
        def use(session: JsonSession) -> None:
            session.add([1, 2])
            session.add([3], "key")
            session.add([3], idempotency_key="key")
            assert session.get() == [1, 2, 3]
            assert session.get(2) == [2, 3]
            assert list(session.iter()) == [1, 2, 3]
            [*_, last] = session.page(5).values
            session.replace(last.id, "three")
            assert session.get(up_to=last.id, limit=1) == ["three"]
            session.delete([last.id])
            assert session.pop() == 2
            session.clear()
            assert session.get() == []

        await asyncio.to_thread(use, open_session())

    async def test_refuse_one_value_where_several_are_expected(self, open_session: Open) -> None:
        for wrong in ({"a": 1}, "text", b"x", bytearray(b"x"), 5):
            with pytest.raises(TypeError, match="aadd takes a sequence of values: put the one value in a list"):
                await open_session().aadd(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="adelete takes an iterable of ids"):
            await open_session().adelete("id")

    async def test_are_closed_with_the_store(self, collection_table: str, session_id: str) -> None:
        store = ChatHistoryStore(collection_table)
        session = store.json_session(session_id)
        await session.aadd([1])
        await store.aclose()
        with pytest.raises(ClosedError):
            await session.aget()

    async def test_show_no_content(self, open_session: Open, session_id: str, collection_table: str) -> None:
        await open_session().aadd(["secret"])
        assert "secret" not in repr(await open_session().apage())
        assert repr(open_session("mine")).endswith(f"session SessionId={session_id!r}, format 'mine'>")
        session = open_session("mine")
        assert (session.session_id, session.key, session.format) == (session_id, {"SessionId": session_id}, "mine")
        assert session.table_name == collection_table

    @pytest.mark.sampled
    @pytest.mark.parametrize(
        "fault", [Fault.LOST_RESPONSE, Fault.LATE_ERROR, Fault.RESET, Fault.ERROR_500, Fault.CONFLICT]
    )
    async def test_store_and_change_once_under_faults(
        self, open_session: Open, through: Open, proxy: Proxy, fault: Fault
    ) -> None:
        await open_session().aget()
        proxy.script(fault)
        await through().aadd([0, 1])
        proxy.script(fault)
        await through().aadd([2])
        proxy.script(fault)
        assert await through().apop() == 2
        proxy.script(Fault.NONE, fault)
        assert await through().apop() == 1
        assert await open_session().aget() == [0]

    @pytest.mark.sampled("storage")
    async def test_keep_the_latest_by_history_size(self, open_session: Open) -> None:
        session = open_session(history_size=3)
        for number in range(30):
            await session.aget()
            await session.aadd([number, -number])
        assert await open_session(history_size=3).aget() == [-28, 29, -29]
        assert len(await open_session().aget()) < 3 + 4 + 2


REMOVALS: dict[str, Callable[[JsonSession, str], Awaitable[None]]] = {
    "clear": lambda session, value_id: session.aclear(),
    "pop": lambda session, value_id: session.apop(),
    "delete": lambda session, value_id: session.adelete([value_id]),
    "replace": lambda session, value_id: session.areplace(value_id, "other"),
}


class TestIdempotencyKeys:
    async def test_of_other_values_are_refused_and_nothing_is_written(
        self, open_session: Open, items_in: Any, collection_table: str
    ) -> None:
        await open_session().aadd([1, "a"], "key")
        before, other_process = items_in(collection_table), open_session()
        for values in ([1], [1, "a", 2], ["a", 1], [1.0, "a"], [True, "a"], [[1, "a"]], ["1", "a"], [1, b"a"]):
            with pytest.raises(IdempotencyKeyReusedError, match="use a new key for new content") as caught:
                await other_process.aadd(values, "key")
            assert caught.value.session_key == other_process.key
        assert items_in(collection_table) == before

    async def test_of_many_senders_at_once_store_one_batch(self, open_session: Open) -> None:
        senders = [open_session(), open_session()] * 4
        await asyncio.gather(*(sender.aadd(["one", None], "same") for sender in senders))
        results = await asyncio.gather(
            *(sender.aadd([number], "differs") for number, sender in enumerate(senders)), return_exceptions=True
        )
        refused = [isinstance(result, IdempotencyKeyReusedError) for result in results]
        stored = refused.index(False)
        assert refused == [number != stored for number in range(8)]
        assert results[stored] is None
        assert await open_session().aget() == ["one", None, stored]

    async def test_are_known_when_their_values_are_gone(self, open_session: Open) -> None:
        session, other_process = open_session(), open_session()
        for removal, remove in REMOVALS.items():
            await session.aadd([removal], removal)
            await remove(session, (await session.apage(1)).values[0].id)
            left = await session.aget()
            assert removal not in left
            for sender in (session, other_process):
                await sender.aadd([removal], removal)
                with pytest.raises(IdempotencyKeyReusedError):
                    await sender.aadd(["another"], removal)
            assert await session.aget() == left

    async def test_are_forgotten_with_their_session(
        self, open_session: Open, collection_table: str, session_id: str
    ) -> None:
        async with ChatHistoryStore(collection_table, session_index=True) as store:
            session = open_session()
            for value in ("first", "second"):
                await session.aadd([value], "key")
                assert await session.aget() == [value]
                assert await store.delete_session(session_id) == 1


class TestFormats:
    async def test_of_another_name_are_refused_by_the_reader(self, open_session: Open) -> None:
        await open_session("agents").aadd([1, 2])
        await open_session("agents").aadd([3])
        other = open_session("other")
        for attempt in (other.aget(), other.aget(1), other.apage(), other.apop(), other.aiter().__anext__()):
            with pytest.raises(FormatError, match=r"has the format 'agents', and was read as 'other'.*format='agents'"):
                await attempt
        assert await open_session("agents").aget() == [1, 2, 3]

    async def test_of_messages_and_values_are_told_apart(
        self, open_session: Open, collection_table: str, session_id: str, storage: dict[str, Any]
    ) -> None:
        async with ChatHistoryStore(collection_table, **storage) as store:
            await open_session().aadd([{"type": "human", "data": {"content": "x"}}])
            history = store.session(session_id)
            for attempt in (
                history.aget_messages(),
                history.apage(),
                history.aget_messages(limit=1),
                history.apop_message(),
            ):
                with pytest.raises(FormatError, match=r"json_session\(..., format='json'\) reads it"):
                    await attempt
            await store.session(f"{session_id}-messages").aadd_messages(humans(1, 2))
            with pytest.raises(FormatError, match=r"ChatHistoryStore.session\(...\) reads it"):
                await store.json_session(f"{session_id}-messages").aget()

    async def test_have_names_of_which_the_error_cuts_nothing_off(self, open_session: Open) -> None:
        mine, other = "a" * 63 + "b", "a" * 63 + "c"
        await open_session(mine).aadd([1])
        with pytest.raises(FormatError, match=f"has the format '{mine}', and was read as '{other}'.*format='{mine}'"):
            await open_session(other).aget()

    @pytest.mark.sampled
    @pytest.mark.parametrize("damaged", [{"S": "No Name"}, {"S": "langchain"}, {"S": "x" * 65}, {"N": "5"}], ids=str)
    async def test_that_none_can_have_are_damage(
        self, open_session: Open, dynamodb: Any, items_in: Any, collection_table: str, damaged: Any
    ) -> None:
        await open_session().aadd([1])
        [record] = [item for item in items_in(collection_table) if item["MessageId"]["S"].startswith("m#")]
        dynamodb.put_item(TableName=collection_table, Item=record | {"Format": damaged})
        with pytest.raises(UndecodableItemError, match="its format is '") as caught:
            await open_session().aget()
        await open_session().adelete([str(caught.value.message_id)])
        assert await open_session().aget() == []

    async def test_that_are_changed_in_the_table_are_refused(
        self, open_session: Open, dynamodb: Any, items_in: Any, collection_table: str, storage: dict[str, Any]
    ) -> None:
        await open_session("mine").aadd([1, 2])
        [record] = [item for item in items_in(collection_table) if item["MessageId"]["S"].startswith("m#")]
        dynamodb.put_item(TableName=collection_table, Item=record | {"Format": {"S": "other"}})
        if "kms_key_id" not in storage:
            # Without encryption, a writer with access to the table may change the format.
            assert await open_session("other").aget() == [1, 2]
            return
        with pytest.raises(UndecodableItemError, match=r'was encrypted as .*"format":"mine"'):
            await open_session("other").aget()

    @pytest.mark.parametrize("name", ["", "langchain", "Upper", "a b", "x" * 65, "a\n", None, 5])
    def test_need_a_name(self, collection_table: str, name: Any) -> None:
        with pytest.raises(ValueError, match="format must have 1 to 64 lower-case letters"):
            ChatHistoryStore(collection_table).json_session("s", format=name)

    def test_need_an_item_collection(self, table: str) -> None:
        with pytest.raises(LayoutError, match="A JSON session needs a table with a sort key"):
            ChatHistoryStore(table, layout="single_item").json_session("s")

    def test_are_made_by_a_store_alone(self) -> None:
        with pytest.raises(TypeError, match="json_session"):
            JsonSession()


# Each reads or edits a session, given the ids of its values. The first two are in one record.
OF_VALUES: dict[str, Callable[[JsonSession, list[str]], Awaitable[Any]]] = {
    "get": lambda session, ids: session.aget(),
    "get the latest": lambda session, ids: session.aget(1),
    "get up to": lambda session, ids: session.aget(up_to=ids[0]),
    "get the latest up to": lambda session, ids: session.aget(1, ids[0]),
    "page": lambda session, ids: session.apage(2),
    "page before": lambda session, ids: session.apage(1, ids[1]),
    "iterate": lambda session, ids: anext(session.aiter()),
    "pop": lambda session, ids: session.apop(),
    "replace": lambda session, ids: session.areplace(ids[0], "new"),
    "delete": lambda session, ids: session.adelete(ids[:1]),
    "get, synchronously": lambda session, ids: asyncio.to_thread(session.get, 1),
    "pop, synchronously": lambda session, ids: asyncio.to_thread(session.pop),
}
OF_MESSAGES: dict[str, Callable[[DynamoDBChatMessageHistory, list[str]], Awaitable[Any]]] = {
    "get": lambda history, ids: history.aget_messages(),
    "get the latest": lambda history, ids: history.aget_messages(limit=1),
    "get up to": lambda history, ids: history.aget_messages(up_to=ids[0]),
    "get the latest up to": lambda history, ids: history.aget_messages(limit=1, up_to=ids[0]),
    "page": lambda history, ids: history.apage(2),
    "page before": lambda history, ids: history.apage(1, ids[1]),
    "iterate": lambda history, ids: anext(history.aiter()),
    "pop": lambda history, ids: history.apop_message(),
    "replace": lambda history, ids: history.areplace_message(ids[0], HumanMessage("new")),
    "delete": lambda history, ids: history.adelete_messages(ids[:1]),
    "copy": lambda history, ids: history.acopy_to("a copy of values"),
    "copy up to": lambda history, ids: history.acopy_to("a copy of values", up_to=ids[0]),
    "get, synchronously": lambda history, ids: asyncio.to_thread(history.get_messages, limit=1),
    "pop, synchronously": lambda history, ids: asyncio.to_thread(history.pop_message),
}


class TestTheWrongFormat:
    """Every method that reads names both formats and the call that reads the session, and changes nothing."""

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("chathistory_async._item_collection.records.PART_BYTES", 2_000)

    @pytest.fixture
    async def stores(self, collection_table: str, storage: dict[str, Any]) -> AsyncIterator[list[ChatHistoryStore]]:
        """Stores that read otherwise: all, or what history_size keeps."""
        async with (
            ChatHistoryStore(collection_table, **storage) as store,
            ChatHistoryStore(collection_table, history_size=2, **storage) as of_a_size,
        ):
            yield [store, of_a_size]

    async def test_of_messages_for_values(
        self, stores: list[ChatHistoryStore], session_id: str, items_in: Any, collection_table: str
    ) -> None:
        session = stores[0].json_session(session_id)
        for values in ([1, 2], ["in parts", secrets.token_hex(6_000)], [None]):
            await session.aadd(values)
        ids, before = [stored.id for stored in (await session.apage()).values], items_in(collection_table)
        told = r"has the format 'json', and was read as 'langchain'.*json_session\(..., format='json'\) reads it"
        for store in stores:
            for name, operation in OF_MESSAGES.items():
                with pytest.raises(FormatError, match=told):
                    pytest.fail(f"{name}: {await operation(store.session(session_id), ids)}")
        assert items_in(collection_table) == before
        assert await stores[0].session("a copy of values").aget_messages() == []

    async def test_of_values_for_messages(
        self, stores: list[ChatHistoryStore], session_id: str, items_in: Any, collection_table: str
    ) -> None:
        history = stores[0].session(session_id)
        for messages in (humans(1, 2), humans("in parts", secrets.token_hex(6_000)), humans("last")):
            await history.aadd_messages(messages)
        ids, before = [stored.id for stored in (await history.apage()).messages], items_in(collection_table)
        told = r"has the format 'langchain', and was read as 'other'.*ChatHistoryStore.session\(...\) reads it"
        for store in stores:
            for name, operation in OF_VALUES.items():
                with pytest.raises(FormatError, match=told):
                    pytest.fail(f"{name}: {await operation(store.json_session(session_id, format='other'), ids)}")
        assert items_in(collection_table) == before


def test_langchain_is_not_imported(collection_table: str, session_id: str) -> None:
    program = f"""
import asyncio, sys
from chathistory_async import ChatHistoryStore

async def use():
    async with ChatHistoryStore({collection_table!r}) as store:
        session = store.json_session({session_id!r})
        await session.aadd([{{"role": "user"}}, 2], idempotency_key="k")
        await session.apop()
        print(await session.aget())

asyncio.run(use())
assert "langchain_core" not in sys.modules
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert output.stdout == "[{'role': 'user'}]\n", output.stderr
