"""Transcripts of the Claude Agent SDK: its own conformance suite, and what that does not ask."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from claude_agent_sdk import (
    InMemorySessionStore,
    SessionKey,
    SessionStore,
    fold_session_summary,
    fork_session_via_store,
    get_session_messages_from_store,
    get_subagent_messages_from_store,
    import_session_to_store,
    list_sessions_from_store,
    project_key_for_directory,
    rename_session_via_store,
)
from claude_agent_sdk.testing import run_session_store_conformance
from conftest import NewStore
from engines import ROOT, SDK_THREADS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import of_page
from proxy import Fault, Proxy, Seen, cut_off

from chathistory_async import ChatHistoryStore
from chathistory_async._session_index import keyed
from chathistory_async._session_index.value_ids import DIGEST_BYTES, MAX_LATEST
from chathistory_async.errors import (
    AccessDeniedError,
    ChatHistoryError,
    ConfigurationError,
    ItemTooLargeError,
    LayoutError,
    MessageNotStorableError,
    UndecodableItemError,
)
from chathistory_async.integrations import claude_agent_sdk as integration
from chathistory_async.integrations.claude_agent_sdk import FORMAT, SUMMARY, DynamoDBSessionStore

# More than the session's item holds, so that some ids stand in items of their own.
MANY = 3 * MAX_LATEST // DIGEST_BYTES


def entry(number: int | str, **more: Any) -> Any:
    return {"type": "user", "uuid": f"{number}", "message": {"role": "user", "content": f"about {number}"}, **more}


def entries(*numbers: int) -> list[Any]:
    return [entry(number) for number in range(*numbers)]


@pytest.fixture
def key() -> SessionKey:
    return {"project_key": f"project-{uuid.uuid4().hex}", "session_id": f"{uuid.uuid4()}"}


def sub(key: SessionKey, subpath: str = "subagents/agent-1") -> SessionKey:
    return {"project_key": key["project_key"], "session_id": key["session_id"], "subpath": subpath}


OF_MAIN_OR_LONG = [lambda key: key, pytest.param(sub, marks=pytest.mark.stress)]


@pytest.fixture
def transcripts(new_store: NewStore) -> DynamoDBSessionStore:
    return DynamoDBSessionStore(new_store())


@pytest.fixture
def through(store_through: NewStore) -> DynamoDBSessionStore:
    return DynamoDBSessionStore(store_through())


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the process forget what it knows of sessions and what it has written, as if it were another one."""

    def forget() -> None:
        monkeypatch.setattr(keyed, "_known", keyed._Known())
        monkeypatch.setattr(integration, "_written", integration._Written())

    return forget


@pytest.fixture
def many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets each call behave as in a process of its own: it waits for no other, and knows nothing."""
    monkeypatch.setattr(keyed, "_turn_of", lambda name: asyncio.Lock())
    monkeypatch.setattr(keyed._known, "take", lambda name: None)
    monkeypatch.setattr(keyed._known, "keep", lambda name, knowledge: None)


@pytest.fixture
def raw(dynamodb: Any, collection_table: str) -> Callable[[str], list[dict[str, Any]]]:
    """Reads all items of all partitions whose key begins with a project."""

    def raw(project_key: str) -> list[dict[str, Any]]:
        pages = dynamodb.get_paginator("scan").paginate(TableName=collection_table, ConsistentRead=True)
        return [item for page in pages for item in page["Items"] if item["SessionId"]["S"].startswith(project_key)]

    return raw


def alive(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All but the tombstones, which have no content."""
    return [item for item in items if "RemovedBy" not in item]


def hide_in_index(seen: Seen, answer: dict[str, Any]) -> dict[str, Any]:
    """An index that follows too late to show anything."""
    return answer | {"Items": [], "Count": 0} if "IndexName" in seen.body else answer


@pytest.fixture(
    params=["plain", *(pytest.param(kind, marks=pytest.mark.stress) for kind in ("encrypted", "without the index"))]
)
async def make_store(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[], Any]]:
    options: dict[str, Any] = {"session_index": request.param != "without the index"}
    if request.param == "encrypted":
        options["kms_key_id"] = request.getfixturevalue("kms_key")
    stores = []

    async def make() -> SessionStore:
        stores.append(ChatHistoryStore(f"chat-{uuid.uuid4().hex}", key_parts=2, **options))
        await stores[-1].create_table()
        return DynamoDBSessionStore(stores[-1])

    yield make
    for store in stores:
        await store.delete_table()
        await store.aclose()


async def test_the_sdks_conformance(make_store: Callable[[], Any], request: pytest.FixtureRequest) -> None:
    listing = frozenset({"list_sessions", "list_session_summaries"})
    without = "without the index" in request.node.name
    await run_session_store_conformance(make_store, skip_optional=listing if without else frozenset())


class TestEntries:
    async def test_come_back_equal(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        values: Any = [2**70, 1.5, None, True, "é\ud800\0", {"deep": [[{}]]}, 0.1]
        await transcripts.append(key, [entry(0, values=values, text="x" * 100_000)])
        assert await transcripts.load(key) == [entry(0, values=values, text="x" * 100_000)]

    @pytest.mark.parametrize("of", [lambda key: key, sub], ids=["main", "subagent"])
    async def test_are_stored_once_in_other_cuts(
        self,
        transcripts: DynamoDBSessionStore,
        key: SessionKey,
        of: Callable[[SessionKey], SessionKey],
        another_process: Callable[[], None],
    ) -> None:
        key = of(key)
        await transcripts.append(key, entries(MANY))
        for first in range(0, MANY, 7):
            if first % 3 == 0:
                another_process()
            await transcripts.append(key, entries(first, first + 9))
        another_process()
        await transcripts.append(key, entries(MANY + 20))
        loaded = await transcripts.load(key)
        assert loaded == entries(MANY + 20)

    async def test_are_stored_once_in_any_cuts(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, another_process: Callable[[], None]
    ) -> None:
        chance = random.Random(1)
        sent: list[int] = []
        for _ in range(40):
            first = chance.randrange(200)
            batch = range(first, first + chance.randrange(1, 60))
            sent += batch
            if chance.random() < 0.3:
                another_process()
            await transcripts.append(key, entries(batch.start, batch.stop))
        assert await transcripts.load(key) == [entry(number) for number in dict.fromkeys(sent)]

    async def test_without_a_uuid_are_always_stored(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        title: Any = {"type": "custom-title", "customTitle": "t"}
        for _ in range(2):
            await transcripts.append(key, [title, entry(0), title])
        assert await transcripts.load(key) == [title, entry(0), title, title, title]

    async def test_of_one_uuid_in_one_batch_are_one(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        await transcripts.append(key, [entry(0), entry(0, second=True), entry(1)])
        assert await transcripts.load(key) == [entry(0), entry(1)]

    async def test_of_other_sessions_are_others(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        for one in (key, sub(key), {**key, "session_id": "other"}):
            await transcripts.append(one, entries(2))  # type: ignore[arg-type]
            assert await transcripts.load(one) == entries(2)  # type: ignore[arg-type]

    @pytest.mark.usefixtures("many_processes")
    async def test_are_stored_once_by_many_processes(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        batches = [(first, first + 10) for first in range(20)]
        await asyncio.gather(*(transcripts.append(key, entries(*batch)) for batch in batches))
        loaded = await transcripts.load(key)
        assert loaded is not None
        assert sorted(int(one["uuid"]) for one in loaded) == [*range(29)]
        [summary] = await transcripts.list_session_summaries(key["project_key"])
        assert summary["data"] == fold_session_summary(None, key, loaded)["data"]

    async def test_of_one_process_are_in_the_order_of_the_calls(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        await asyncio.gather(*(transcripts.append(key, entries(number, number + 3)) for number in range(0, 60, 3)))
        assert await transcripts.load(key) == entries(60)

    async def test_are_stored_again_once_another_process_has_deleted_the_session(
        self,
        new_store: NewStore,
        transcripts: DynamoDBSessionStore,
        key: SessionKey,
        another_process: Callable[[], None],
    ) -> None:
        await transcripts.append(key, entries(MANY))
        known = keyed._known
        another_process()
        await DynamoDBSessionStore(new_store()).delete(key)
        keyed._known = known
        await transcripts.append(key, entries(MANY))
        assert await transcripts.load(key) == entries(MANY)

    async def test_too_large_for_one_transaction_take_several(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        large = [entry(number, text=random.Random(number).randbytes(900_000).hex()) for number in range(6)]
        await transcripts.append(key, large)
        await transcripts.append(key, large)
        assert await transcripts.load(key) == large

    async def test_that_are_too_large_alone_are_refused(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        with pytest.raises(ItemTooLargeError):
            await transcripts.append(key, [entry(0, text=random.Random(0).randbytes(6_000_000).hex())])
        assert await transcripts.load(key) is None

    async def test_of_a_whole_long_session_are_stored_at_once(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keyed, "MAX_IDS", 100)
        await transcripts.append(key, entries(450))
        assert await transcripts.load(key) == entries(450)

    async def test_expire_and_can_be_stored_again(
        self,
        new_store: NewStore,
        key: SessionKey,
        raw: Callable[[str], list[dict[str, Any]]],
        dynamodb: Any,
        collection_table: str,
    ) -> None:
        transcripts = DynamoDBSessionStore(new_store(ttl=3600))
        for one in (key, sub(key)):
            await transcripts.append(one, entries(MANY))
        for item in raw(key["project_key"]):
            dynamodb.put_item(TableName=collection_table, Item=item | {"expireAt": {"N": "1"}})
        assert [await transcripts.load(one) for one in (key, sub(key))] == [None, None]
        assert await transcripts.list_subkeys(key) == []
        assert await transcripts.list_sessions(key["project_key"]) == []
        for one in (key, sub(key)):
            await transcripts.append(one, entries(MANY))
            assert await transcripts.load(one) == entries(MANY)
        [summary] = await transcripts.list_session_summaries(key["project_key"])
        assert summary["data"] == fold_session_summary(None, key, entries(MANY))["data"]

    async def test_are_not_in_the_table_if_it_is_encrypted(
        self, new_store: NewStore, key: SessionKey, kms_key: str, raw: Callable[[str], list[dict[str, Any]]]
    ) -> None:
        transcripts = DynamoDBSessionStore(new_store(kms_key_id=kms_key))
        for one in (key, sub(key)):
            await transcripts.append(
                one, [entry(0, customTitle="secret", message={"role": "user", "content": "secret"})]
            )
        assert "secret" not in repr(raw(key["project_key"]))
        [summary] = await transcripts.list_session_summaries(key["project_key"])
        assert summary["data"]["custom_title"] == "secret"


class TestRequests:
    async def test_five_hundred_entries_are_one_write(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy
    ) -> None:
        for one in (key, sub(key)):
            await through.append(one, entries(1))
            proxy.seen.clear()
            await through.append(one, entries(1, 501))
            assert proxy.operations() == ["TransactWriteItems"]

    async def test_the_first_append_of_a_process_reads_no_values(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy, another_process: Callable[[], None]
    ) -> None:
        await through.append(key, entries(500))
        another_process()
        proxy.seen.clear()
        proxy.answers.clear()
        await through.append(key, entries(600))
        assert proxy.operations() == ["GetItem", "Query", "TransactWriteItems"]
        assert max(len(body) for _, _, body in proxy.answers) < 500 * 40
        proxy.seen.clear()
        await through.append(key, entries(600))
        assert proxy.operations() == ["GetItem", "Query"]

    async def test_a_new_session_is_counted_from_the_beginning(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy
    ) -> None:
        await through.append(key, entries(3))
        proxy.seen.clear()
        [info] = (await through._store.list_sessions(key["project_key"])).sessions
        assert info.message_count == 3
        assert proxy.operations() == ["Query"]

    async def test_a_listing_reads_only_the_index_once_it_has_followed(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy
    ) -> None:
        await through.append(key, entries(1))
        await through.list_sessions(key["project_key"])
        proxy.seen.clear()
        await through.list_sessions(key["project_key"])
        assert proxy.operations() == ["Query"]


class TestFaults:
    @pytest.mark.parametrize("fault", [Fault.LOST_RESPONSE, Fault.LATE_ERROR, Fault.RESET, Fault.CONFLICT])
    @pytest.mark.parametrize("of", OF_MAIN_OR_LONG, ids=["main", "subagent"])
    async def test_of_a_write_neither_lose_nor_repeat(
        self,
        store_through: NewStore,
        key: SessionKey,
        of: Callable[[SessionKey], SessionKey],
        proxy: Proxy,
        fault: Fault,
    ) -> None:
        key = of(key)
        # Two attempts are spent on the faults, and an engine that is busy with other tests may spend more.
        through = DynamoDBSessionStore(store_through(attempts=10))
        for first in range(0, 60, 20):
            proxy.script(fault, fault, operation="TransactWriteItems")
            await through.append(key, entries(first, first + 25))
        assert await through.load(key) == entries(65)

    async def test_of_all_writes_are_raised_and_made_good(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy
    ) -> None:
        await through.append(key, entries(5))
        proxy.schedule = lambda seen: Fault.LOST_RESPONSE if "Transact" in seen.operation else Fault.NONE
        with pytest.raises(ChatHistoryError):
            await through.append(key, entries(10))
        proxy.script()
        await through.append(key, entries(7, 12))
        assert await through.load(key) == entries(12)

    async def test_a_refusal_is_the_librarys_error(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy
    ) -> None:
        proxy.schedule = lambda seen: Fault.DENIED
        for call in (
            lambda: through.append(key, entries(1)),
            lambda: through.load(key),
            lambda: through.list_sessions(key["project_key"]),
            lambda: through.list_session_summaries(key["project_key"]),
            lambda: through.list_subkeys(key),
            lambda: through.delete(key),
        ):
            with pytest.raises(AccessDeniedError):
                await call()

    @pytest.mark.parametrize("of", OF_MAIN_OR_LONG, ids=["main", "subagent"])
    async def test_a_cancellation_at_any_await_is_made_good(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, of: Callable[[SessionKey], SessionKey]
    ) -> None:
        key = of(key)
        sent, finished = 0, 0
        while finished < 3:
            sent += 3
            task = asyncio.create_task(transcripts.append(key, entries(sent)))
            for _ in range(sent // 3):
                await asyncio.sleep(0.001)
            finished += task.done()
            task.cancel()
            await asyncio.wait([task])
            if sent % 2:
                await transcripts.append(key, entries(sent))
        await transcripts.append(key, entries(sent))
        loaded = await transcripts.load(key)
        assert loaded == entries(sent)

    @pytest.mark.parametrize(
        "pauses", [(2, 6), pytest.param(range(1, 12), marks=pytest.mark.stress)], ids=["few", "many"]
    )
    async def test_a_cancelled_deletion_can_be_made_again(
        self,
        transcripts: DynamoDBSessionStore,
        key: SessionKey,
        raw: Callable[[str], list[dict[str, Any]]],
        pauses: Sequence[int],
    ) -> None:
        for pause in pauses:
            for one in (key, sub(key), sub(key, "b")):
                await transcripts.append(one, entries(MANY))
            task = asyncio.create_task(transcripts.delete(key))
            for _ in range(pause):
                await asyncio.sleep(0.002)
            task.cancel()
            await asyncio.wait([task])
            await transcripts.delete(key)
            assert alive(raw(key["project_key"])) == []


class TestDeletion:
    async def test_leaves_nothing(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, raw: Callable[[str], list[dict[str, Any]]]
    ) -> None:
        for one in (key, *(sub(key, f"subagents/agent-{number}") for number in range(6))):
            await transcripts.append(one, entries(MANY))
        await transcripts.delete(key)
        assert alive(raw(key["project_key"])) == []

    async def test_never_asks_the_index(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy, another_process: Callable[[], None]
    ) -> None:
        await through.append(key, entries(1))
        await through.append(sub(key), entries(1))
        another_process()
        proxy.seen.clear()
        await through.delete(key)
        assert not [seen for seen in proxy.seen if "IndexName" in seen.body]
        assert all(seen.body["ConsistentRead"] for seen in proxy.seen if seen.operation in ("Query", "GetItem"))
        assert await through.load(sub(key)) is None

    async def test_finds_the_subkeys_of_a_session_without_a_main_transcript(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, raw: Callable[[str], list[dict[str, Any]]]
    ) -> None:
        await transcripts.append(sub(key), entries(3))
        assert await transcripts.list_subkeys(key) == ["subagents/agent-1"]
        await transcripts.delete(key)
        assert alive(raw(key["project_key"])) == []

    async def test_of_one_subkey_leaves_the_others(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        for one in (key, sub(key, "a"), sub(key, "a/b")):
            await transcripts.append(one, entries(3))
        await transcripts.delete(sub(key, "a"))
        assert [await transcripts.load(one) for one in (key, sub(key, "a"), sub(key, "a/b"))] == [
            entries(3),
            None,
            entries(3),
        ]
        assert await transcripts.list_subkeys(key) == ["a/b"]

    @pytest.mark.parametrize("by", ["delete_session", "purge_owner"])
    async def test_by_the_store_deletes_subagents_too(
        self,
        transcripts: DynamoDBSessionStore,
        key: SessionKey,
        by: str,
        raw: Callable[[str], list[dict[str, Any]]],
    ) -> None:
        store, project = transcripts._store, key["project_key"]
        for one in (key, sub(key)):
            await transcripts.append(one, entries(MANY))
        if by == "purge_owner":
            result = await store.purge_owner(project)
            assert (result.sessions, result.messages) == (1, 2 * MANY)
        else:
            assert await store.delete_session("", key={"SessionId": (project, key["session_id"])}) == 2 * MANY
        assert alive(raw(project)) == []
        await transcripts.append(key, entries(MANY))
        assert await transcripts.load(key) == entries(MANY)

    @pytest.mark.usefixtures("many_processes")
    @pytest.mark.parametrize("turns", [1, pytest.param(5, marks=pytest.mark.stress)])
    async def test_beside_appends_hides_no_subkey(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, raw: Callable[[str], list[dict[str, Any]]], turns: int
    ) -> None:
        names = [f"subagents/agent-{number}" for number in range(4)]
        for turn in range(turns):
            calls = [transcripts.append(sub(key, name), entries(turn, turn + 3)) for name in names for _ in range(3)]
            await asyncio.gather(*calls, transcripts.delete(key), transcripts.delete(sub(key, names[0])))
            listed = await transcripts.list_subkeys(key)
            filled = [name for name in names if await transcripts.load(sub(key, name)) is not None]
            assert sorted(listed) == filled
        await transcripts.delete(key)
        assert alive(raw(key["project_key"])) == []

    async def test_of_all_entries_lets_them_be_stored_again(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, another_process: Callable[[], None]
    ) -> None:
        whole: Any = {"SessionId": (key["project_key"], key["session_id"])}
        for number, forget in [(3, False), (MANY, False), (MANY, True)]:
            await transcripts.append(key, entries(number))
            await transcripts.append(sub(key), entries(2))
            if forget:
                another_process()
            await transcripts._store.json_session("", key=whole, format=FORMAT).aclear()
            assert await transcripts.load(key) is None
            await transcripts.append(key, entries(number))
            await transcripts.append(key, entries(number + 1))
            assert await transcripts.load(key) == entries(number + 1)
            assert await transcripts.load(sub(key)) == entries(2)
            await transcripts.delete(key)

    @pytest.mark.parametrize("by", ["delete", "clear"])
    @pytest.mark.parametrize("of", OF_MAIN_OR_LONG, ids=["main", "subagent"])
    @pytest.mark.parametrize("knows", [True, pytest.param(False, marks=pytest.mark.stress)])
    async def test_that_was_killed_lets_entries_be_stored_again(
        self,
        through: DynamoDBSessionStore,
        key: SessionKey,
        of: Callable[[SessionKey], SessionKey],
        proxy: Proxy,
        another_process: Callable[[], None],
        by: str,
        knows: bool,
    ) -> None:
        key = of(key)
        session = through._session(key)
        work = session.delete if by == "delete" else session._session.clear
        number = 0
        is_cut = True
        while is_cut:
            number += 1
            await through.append(key, entries(MANY))
            if by == "clear" and not knows:
                another_process()
            is_cut = await cut_off(work(), proxy, number)
            if by == "delete" and not knows:
                another_process()
            await through.append(key, entries(MANY))
            loaded = await through.load(key) or []
            assert {one["uuid"] for one in loaded} == {one["uuid"] for one in entries(MANY)}
            await through.delete(key)
            another_process()
        assert number > 5

    async def test_deletes_a_damaged_name(
        self,
        transcripts: DynamoDBSessionStore,
        key: SessionKey,
        raw: Callable[[str], list[dict[str, Any]]],
        dynamodb: Any,
        collection_table: str,
    ) -> None:
        await transcripts.append(key, entries(1))
        [item] = [item for item in raw(key["project_key"]) if item["MessageId"]["S"] == "session"]
        damaged = {"SessionId": item["SessionId"], "MessageId": {"S": "j#0"}, "Subsession": {"S": "{"}}
        dynamodb.put_item(TableName=collection_table, Item=damaged)
        with pytest.raises(UndecodableItemError, match="name of a subsession"):
            await transcripts.list_subkeys(key)
        await transcripts.delete(key)
        assert alive(raw(key["project_key"])) == []


ODD = [
    "#",
    "%",
    "%23",
    "a#b",
    "a%23b",
    "a/b",
    "a/",
    "/a",
    "..",
    "%/a",
    "%.a",
    "a\0",
    "\ud800",
    "\ud801",
    "ä",
    "a" * 255,
]
ODD += ["a" * 256, "a" * 257, "x" * 5000, "x" * 5001, " ", "\n", "🙂", "e\u0301", "é", "A", "a", "session", "m#", "."]


class TestKeys:
    @pytest.mark.parametrize(
        "odd",
        [["#", "a#b", "%/a", "\ud800", "x" * 5000], pytest.param(ODD, marks=pytest.mark.stress)],
        ids=["few", "all"],
    )
    async def test_of_odd_subpaths_are_all_different(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, odd: list[str]
    ) -> None:
        for number, subpath in enumerate(odd):
            await transcripts.append(sub(key, subpath), [entry(number)])
        for number, subpath in enumerate(odd):
            assert await transcripts.load(sub(key, subpath)) == [entry(number)]
        assert sorted(await transcripts.list_subkeys(key)) == sorted(odd)
        assert await transcripts.load(key) is None
        await transcripts.delete(sub(key, odd[0]))
        assert sorted(await transcripts.list_subkeys(key)) == sorted(odd[1:])
        await transcripts.delete(key)
        assert [await transcripts.load(sub(key, subpath)) for subpath in odd] == [None] * len(odd)

    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(st.lists(st.tuples(*[st.text(st.sampled_from("ab#%/.253"), max_size=6)] * 3), min_size=2, max_size=2))
    def test_of_different_transcripts_differ(self, transcripts: DynamoDBSessionStore, keys: list[Any]) -> None:
        made = []
        for project, session_id, subpath in keys:
            key: SessionKey = {"project_key": project or "p", "session_id": session_id}
            made.append(transcripts._session(sub(key, subpath) if subpath else key)._layout.key["SessionId"]["S"])
        same = [(project or "p", *others) for project, *others in keys]
        assert (made[0] == made[1]) == (same[0] == same[1])

    async def test_of_odd_sessions_are_all_different(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        project = key["project_key"]
        odd: list[SessionKey] = [
            {"project_key": a, "session_id": b}
            for a, b in [(f"{project}#b", "c"), (project, "b#c"), (project, "b%23c")]
        ]
        for number, one in enumerate(odd):
            await transcripts.append(one, [entry(number)])
            await transcripts.append(sub(one), [entry(number)])
        assert [await transcripts.load(one) for one in odd] == [[entry(number)] for number in range(3)]
        listed = await transcripts.list_sessions(project)
        assert sorted(one["session_id"] for one in listed) == ["b#c", "b%23c"]
        await transcripts.delete(odd[1])
        assert [await transcripts.load(sub(one)) for one in odd] == [[entry(0)], None, [entry(2)]]

    async def test_no_subpath_is_not_an_empty_one(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        await transcripts.append(key, entries(1))
        with pytest.raises(ValueError, match="subpath is empty"):
            await transcripts.delete(sub(key, ""))
        assert await transcripts.load(key) == entries(1)

    async def test_can_be_read_by_the_store(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        await transcripts.append(key, entries(3))
        whole = {"SessionId": (key["project_key"], key["session_id"])}
        assert await transcripts._store.json_session("", key=whole, format=FORMAT).aget() == entries(3)


class TestListing:
    async def test_shows_at_once_what_this_process_has_written(
        self, through: DynamoDBSessionStore, new_store: NewStore, key: SessionKey, proxy: Proxy
    ) -> None:
        project, other = key["project_key"], DynamoDBSessionStore(through._store)
        proxy.edit = hide_in_index
        await through.append(key, entries(1))
        [first] = await other.list_sessions(project)
        await through.append(key, entries(2))
        [second] = await other.list_sessions(project)
        assert (first["session_id"], second["mtime"] >= first["mtime"]) == (key["session_id"], True)
        [summary] = await other.list_session_summaries(project)
        assert summary["mtime"] == second["mtime"]
        await through.delete(key)
        assert await other.list_sessions(project) == []

    async def test_reads_several_sessions_at_once(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        under_way, most = 0, 0
        ids = [f"{number}" for number in range(4)]
        for session_id in ids:
            await through.append({**key, "session_id": session_id}, entries(1))

        async def info(session: keyed.KeyedSession) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await session._indexed.info()
            finally:
                under_way -= 1

        proxy.edit = hide_in_index
        monkeypatch.setattr(keyed.KeyedSession, "info", info)
        listed = await through.list_sessions(key["project_key"])
        assert sorted(one["session_id"] for one in listed) == ids
        assert most == 4

    async def test_does_not_show_a_subagent_whose_entries_came_after_a_purge(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, raw: Callable[[str], list[dict[str, Any]]]
    ) -> None:
        await transcripts.append(key, entries(1))
        await transcripts._store.purge_owner(key["project_key"])
        await transcripts.append(sub(key), entries(1))
        assert await transcripts.list_sessions(key["project_key"]) == []
        await transcripts.delete(key)
        assert alive(raw(key["project_key"])) == []

    async def test_does_not_show_what_this_process_has_deleted(
        self, through: DynamoDBSessionStore, key: SessionKey, proxy: Proxy
    ) -> None:
        kept: list[dict[str, Any]] = []

        def late(seen: Seen, answer: dict[str, Any]) -> dict[str, Any]:
            if "IndexName" not in seen.body:
                return answer
            kept.append(answer)
            return kept[0]

        await through.append(key, entries(1))
        proxy.edit = late
        assert len(await through.list_sessions(key["project_key"])) == 1
        await through.append(key, entries(2))
        [listed] = await through.list_sessions(key["project_key"])
        info = await through._store.get_session_info("", key={"SessionId": (key["project_key"], key["session_id"])})
        assert info is not None
        assert listed["mtime"] == round(info.last_active_at.timestamp() * 1000)
        await through.delete(key)
        assert await through.list_sessions(key["project_key"]) == []

    async def test_has_all_sessions(self, transcripts: DynamoDBSessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(integration, "_PAGE", 3)
        project = f"project-{uuid.uuid4().hex}"
        ids = [f"{number}" for number in range(8)]
        for session_id in ids:
            await transcripts.append({"project_key": project, "session_id": session_id}, entries(1))
        assert sorted(one["session_id"] for one in await transcripts.list_sessions(project)) == sorted(ids)

    async def test_has_no_sessions_of_other_formats(self, transcripts: DynamoDBSessionStore, key: SessionKey) -> None:
        await transcripts._store.json_session(f"{uuid.uuid4()}", owner=key["project_key"]).aadd([1])
        assert await transcripts.list_sessions(key["project_key"]) == []

    @pytest.mark.parametrize("form", ["{}", "{}#a#b", "other#{}", "{}%"])
    async def test_has_no_sessions_of_which_the_sdk_cannot_name_the_key(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, form: str
    ) -> None:
        await transcripts.append(key, entries(1))
        project, store = key["project_key"], transcripts._store
        await store.json_session(form.format(project), owner=project, format=FORMAT).aadd([entry(1)])
        assert [one["session_id"] for one in await transcripts.list_sessions(project)] == [key["session_id"]]
        assert [one["session_id"] for one in await transcripts.list_session_summaries(project)] == [key["session_id"]]

    async def test_remembers_for_a_minute_and_not_without_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        written = integration._Written()
        monkeypatch.setattr(integration, "_MAX_REMEMBERED", 3)
        for number in range(5):
            written.remember("t", "p", f"{number}", None)
        assert [session_id for session_id, _ in written.since("t", "p")] == ["2", "3", "4"]
        assert written.since("t", "q") == written.since("u", "p") == []
        monkeypatch.setattr(integration, "_REMEMBERED_SECONDS", 0)
        assert written.since("t", "p") == []

    async def test_needs_the_session_index(self, collection_table: str, key: SessionKey) -> None:
        async with ChatHistoryStore(collection_table) as store:
            transcripts = DynamoDBSessionStore(store)
            await transcripts.append(key, entries(2))
            await transcripts.append(sub(key), entries(2))
            assert await transcripts.list_subkeys(key) == ["subagents/agent-1"]
            with pytest.raises(ConfigurationError, match="session_index=True"):
                await transcripts.list_sessions(key["project_key"])
            await transcripts.delete(key)
            assert await transcripts.load(sub(key)) is None

    async def test_leaves_out_what_cannot_be_read_and_says_so(
        self,
        transcripts: DynamoDBSessionStore,
        key: SessionKey,
        another_process: Callable[[], None],
        dynamodb: Any,
        collection_table: str,
        raw: Callable[[str], list[dict[str, Any]]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        await transcripts.append(key, entries(1))
        await transcripts.append({**key, "session_id": "good"}, entries(1))
        another_process()
        [item] = [
            item for item in raw(f"{key['project_key']}#{key['session_id']}") if item["MessageId"]["S"] == "session"
        ]
        dynamodb.put_item(TableName=collection_table, Item=item | {"Metadata": {"S": "{"}})
        assert [one["session_id"] for one in await transcripts.list_sessions(key["project_key"])] == ["good"]
        assert "A session is not listed" in caplog.text


class TestSummaries:
    async def test_are_those_of_the_sdks_own_store(
        self, transcripts: DynamoDBSessionStore, key: SessionKey, another_process: Callable[[], None]
    ) -> None:
        own = InMemorySessionStore()
        batches = [
            [entry(0, timestamp="2026-01-01T00:00:00Z", cwd="/a"), entry(1)],
            [{"type": "custom-title", "customTitle": "first"}, {"type": "tag", "tag": "x"}],
            [entry(2), {"type": "custom-title", "customTitle": "second"}],
            [{"type": "tag", "tag": ""}],
        ]
        for batch in batches:
            await own.append(key, batch)
            await transcripts.append(key, batch)
            another_process()
            [theirs], [ours] = [await one.list_session_summaries(key["project_key"]) for one in (own, transcripts)]
            assert ours["data"] == theirs["data"]
            [listed] = await transcripts.list_sessions(key["project_key"])
            assert ours["mtime"] == listed["mtime"]

    async def test_fold_an_entry_that_is_sent_again_once(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        await transcripts.append(key, [entry(0, customTitle="old")])
        await transcripts.append(key, [entry(1, customTitle="new")])
        await transcripts.append(key, [entry(0, customTitle="old"), entry(2)])
        [summary] = await transcripts.list_session_summaries(key["project_key"])
        assert summary["data"]["custom_title"] == "new"

    async def test_keep_the_title_and_metadata_of_the_application(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        store, whole = transcripts._store, {"SessionId": (key["project_key"], key["session_id"])}
        await transcripts.append(key, [entry(0, customTitle="a")])
        await store.set_title("", "ours", key=whole)
        await store.update_metadata("", {"ours": 1}, key=whole)
        await transcripts.append(key, [entry(1, customTitle="b")])
        info = await store.get_session_info("", key=whole)
        assert info is not None
        assert (info.title, info.metadata["ours"], info.metadata[SUMMARY]["custom_title"]) == ("ours", 1, "b")

    async def test_of_any_length_do_not_stop_the_transcript(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        await transcripts.append(key, [entry(0, customTitle="x" * 100_000)])
        await transcripts.append(key, [entry(1, customTitle="short")])
        assert await transcripts.list_session_summaries(key["project_key"]) == []
        assert len(await transcripts.load(key) or []) == 2

    async def test_leave_room_for_the_metadata_of_the_application(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        store, whole = transcripts._store, {"SessionId": (key["project_key"], key["session_id"])}
        await transcripts.append(key, entries(1))
        await store.update_metadata("", {"ours": "x" * 65_200}, key=whole)
        await transcripts.append(key, [entry(1), entry(2, customTitle="y" * 500)])
        assert len(await transcripts.load(key) or []) == 3
        assert await transcripts.list_session_summaries(key["project_key"]) == []
        info = await store.get_session_info("", key=whole)
        assert info is not None
        assert info.metadata == {"ours": "x" * 65_200}

    async def test_are_not_made_from_a_part_of_a_session(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        whole: Any = {"SessionId": (key["project_key"], key["session_id"])}
        session = transcripts._store.json_session("", key=whole, owner=key["project_key"], format=FORMAT)
        await session.aadd(entries(2))
        await transcripts.append(key, entries(2, 4))
        assert await transcripts.list_session_summaries(key["project_key"]) == []
        assert await transcripts.load(key) == entries(4)


class TestTheSdk:
    @pytest.fixture
    def project(self, tmp_path: Path) -> str:
        return str(tmp_path / uuid.uuid4().hex)

    @pytest.fixture
    def main(self, project: str) -> SessionKey:
        return {"project_key": project_key_for_directory(project), "session_id": f"{uuid.uuid4()}"}

    def conversation(self, session_id: str) -> list[Any]:
        ids = [f"{uuid.uuid4()}" for _ in range(60)]
        return [
            {
                "type": "user" if number % 2 == 0 else "assistant",
                "uuid": one,
                "parentUuid": ids[number - 1] if number else None,
                "sessionId": session_id,
                "timestamp": "2026-01-01T00:00:00Z",
                "message": {"role": "user", "content": f"text {number}"},
            }
            for number, one in enumerate(ids)
        ]

    async def test_reads_renames_forks_and_lists(
        self, transcripts: DynamoDBSessionStore, project: str, main: SessionKey
    ) -> None:
        written = self.conversation(main["session_id"])
        await transcripts.append(main, written)
        await transcripts.append(sub(main), written[:2])
        await rename_session_via_store(transcripts, main["session_id"], "renamed", directory=project)
        messages = await get_session_messages_from_store(transcripts, main["session_id"], directory=project)
        assert len(messages) == 60
        assert await get_subagent_messages_from_store(transcripts, main["session_id"], "1", directory=project)
        forked = await fork_session_via_store(transcripts, main["session_id"], directory=project)
        listed = await list_sessions_from_store(transcripts, directory=project)
        assert {one.session_id for one in listed} == {main["session_id"], forked.session_id}
        assert "renamed" in {one.summary for one in listed}

    async def test_imports_a_local_session_again_and_again(
        self, transcripts: DynamoDBSessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: SessionKey
    ) -> None:
        monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path))
        written = self.conversation(main["session_id"])
        folder = tmp_path / "projects" / main["project_key"]
        subagents = folder / main["session_id"] / "subagents"
        subagents.mkdir(parents=True)
        (folder / f"{main['session_id']}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in written))
        (subagents / "agent-7.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in written[:5]))
        for batch_size in (500, 7, 11):
            await import_session_to_store(main["session_id"], transcripts, batch_size=batch_size)
        assert await transcripts.load(main) == written
        assert await transcripts.load(sub(main, "subagents/agent-7")) == written[:5]
        assert await transcripts.list_subkeys(main) == ["subagents/agent-7"]

    @pytest.mark.posix
    async def test_is_used_as_the_page_says(
        self, collection_table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        environment = {"CLAUDE_CONFIG_DIR": str(tmp_path)}
        stand_in = f", cli_path={str(ROOT / 'examples' / 'claude_stand_in.py')!r}, env={environment})  # resume"
        await of_page("agents/claude-agent-sdk.md", {}, {"Chats": collection_table, ")  # resume": stand_in})
        session_id, answer = capsys.readouterr().out.split(maxsplit=1)
        assert uuid.UUID(session_id)
        assert answer == "That was turn 1.\n"


class TestMaking:
    def test_one_refuses_a_store_that_cannot_hold_transcripts(self) -> None:
        with pytest.raises(LayoutError, match="sort key"):
            DynamoDBSessionStore(ChatHistoryStore("t", layout="single_item"))
        with pytest.raises(ValueError, match="key_parts=3"):
            DynamoDBSessionStore(ChatHistoryStore("t", key_parts=3))

    def test_one_names_the_table_and_no_content(self) -> None:
        assert (
            repr(DynamoDBSessionStore(ChatHistoryStore("t"))) == "<DynamoDBSessionStore <ChatHistoryStore table 't'>>"
        )

    async def test_an_entry_that_cannot_be_stored_is_named(
        self, transcripts: DynamoDBSessionStore, key: SessionKey
    ) -> None:
        with pytest.raises(MessageNotStorableError, match=r"values\[1\]"):
            await transcripts.append(key, [entry(0), entry(1, bad=object())])
        assert await transcripts.load(key) is None


@pytest.fixture(params=["plain", pytest.param("encrypted", marks=pytest.mark.stress)])
def of_a_kind(request: pytest.FixtureRequest, new_store: NewStore) -> DynamoDBSessionStore:
    encrypted = request.param == "encrypted"
    options = {"kms_key_id": request.getfixturevalue("kms_key")} if encrypted else {}
    # A hundred sessions make a hundred data keys at once, and the embedded engine makes one at a time.
    return DynamoDBSessionStore(new_store(config=Config(read_timeout=60), **options))


@pytest.mark.parametrize("number", [10, pytest.param(100, marks=pytest.mark.stress)])
async def test_sessions_at_once_start_no_thread(of_a_kind: DynamoDBSessionStore, number: int) -> None:
    threads = {thread.name for thread in threading.enumerate()}
    project = f"project-{uuid.uuid4().hex}"
    keys: list[SessionKey] = [{"project_key": project, "session_id": f"{at}"} for at in range(number)]

    async def converse(key: SessionKey) -> None:
        await of_a_kind.append(key, entries(4))
        assert await of_a_kind.load(key) == entries(4)

    await asyncio.gather(*map(converse, keys))
    assert len(await of_a_kind.list_session_summaries(project)) == number
    assert {thread.name for thread in threading.enumerate()} - threads <= SDK_THREADS


async def test_the_loop_is_not_held(of_a_kind: DynamoDBSessionStore, key: SessionKey, long_steps: list[str]) -> None:
    large = [entry(number, text="word " * 1000) for number in range(500)]
    await of_a_kind.append(key, large)
    await of_a_kind.append(key, large)
    await of_a_kind.append(sub(key), entries(2000))
    assert len(await of_a_kind.load(key) or []) == 500
    await of_a_kind.list_session_summaries(key["project_key"])
    await of_a_kind.delete(key)
    assert not long_steps


def test_what_is_known_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "_MAX_KNOWN", 100)
    known = keyed._Known()
    for number in range(5):
        known.keep(("t", f"{number}"), keyed.Knowledge(None, {bytes([one]) for one in range(40)}))
    assert [known.take(("t", f"{number}")) is None for number in range(5)] == [True, True, True, False, False]
    assert known._size == 0
