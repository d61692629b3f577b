"""Closing and opening again, copies and pickles, subclasses, and a langchain-core without a base class."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
import boto3
import pytest
from botocore.config import Config
from conftest import Make
from fastapi import FastAPI
from fastapi.testclient import TestClient
from langchain_core.messages import HumanMessage
from proxy import Fault, Proxy
from samples import humans, texts
from variants import ALL_VARIANTS, Variant

from chathistory_async import (
    ChatHistoryStore,
    ClosedError,
    ConfigurationError,
    DynamoDBChatMessageHistory,
    JsonSession,
)
from chathistory_async._aws.clients import _open_holders
from chathistory_async._item_collection.sort_keys import Clock

VARIANTS = ALL_VARIANTS

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@pytest.fixture(params=["item_collection", "single_item", "encrypted"])
def store(request: pytest.FixtureRequest) -> ChatHistoryStore:
    """A store of each layout, and an encrypted one."""
    if request.param == "single_item":
        return ChatHistoryStore(request.getfixturevalue("table"), layout="single_item")
    encrypted = {"kms_key_id": request.getfixturevalue("kms_key")} if request.param == "encrypted" else {}
    return ChatHistoryStore(request.getfixturevalue("collection_table"), **encrypted)


async def is_closed(history: DynamoDBChatMessageHistory) -> bool:
    try:
        await history.aget_messages()
    except ClosedError:
        return True
    return False


class TestAStoreThatIsEnteredAgain:
    async def test_works_and_so_do_its_handles(self, store: ChatHistoryStore, session_id: str) -> None:
        before = set(_open_holders)
        async with store:
            history = store.session(session_id)
            await history.aadd_messages(humans(1))
        for number in (2, 3):
            assert await is_closed(history)
            async with store:
                await history.aadd_messages(humans(number))
                assert texts(await store.session(session_id).aget_messages())[-1] == str(number)
        assert await is_closed(history)
        assert set(_open_holders) == before

    @pytest.mark.parametrize("by_itself", [True, False])
    async def test_also_after_a_close(self, store: ChatHistoryStore, session_id: str, by_itself: bool) -> None:
        history = store.session(session_id)
        if not by_itself:
            async with store:
                await store.aclose()
                assert await is_closed(history)
        await asyncio.to_thread(store.close)
        assert await is_closed(history)
        async with store:
            await asyncio.to_thread(history.add_messages, humans(1))
            assert texts(await history.aget_messages()) == ["1"]
        assert await is_closed(history)

    def test_on_another_loop(self, store: ChatHistoryStore, session_id: str) -> None:
        async def lifespan() -> int:
            async with store:
                await store.session(session_id).aadd_messages(humans(1))
                return len(await store.session(session_id).aget_messages())

        assert [asyncio.run(lifespan()) for _ in range(3)] == [1, 2, 3]

    async def test_while_it_is_open_closes_with_the_last(self, store: ChatHistoryStore, session_id: str) -> None:
        before = set(_open_holders)
        history, first = store.session(session_id), await store.__aenter__()
        async with store:
            await first.__aexit__(None, None, None)
            assert not await is_closed(history)
        assert await is_closed(history)
        assert set(_open_holders) == before

    async def test_after_a_close_does_not_end_with_who_entered_before(self, store: ChatHistoryStore) -> None:
        history = store.session("x")
        async with store:
            await store.aclose()
            late = await store.__aenter__()
        assert not await is_closed(history)
        await late.__aexit__(None, None, None)
        assert await is_closed(history)

    async def test_while_it_is_open_on_another_loop(self, store: ChatHistoryStore, session_id: str) -> None:
        entered, may_leave = threading.Event(), threading.Event()

        async def other_lifespan() -> None:
            async with store:
                entered.set()
                await asyncio.to_thread(may_leave.wait, 30)
                await store.session(session_id).aadd_messages(humans(1))

        async with store:
            other = asyncio.create_task(asyncio.to_thread(asyncio.run, other_lifespan()))
            await asyncio.to_thread(entered.wait, 30)
        may_leave.set()
        await other
        assert await is_closed(store.session(session_id))
        async with store:
            assert texts(await store.session(session_id).aget_messages()) == ["1"]

    async def test_while_it_closes(self, collection_table: str, session_id: str, proxy: Proxy) -> None:
        """The calls under way keep the closing waiting; who enters meanwhile gets clients of its own."""
        proxy.schedule = lambda seen: Fault.DELAY
        store = ChatHistoryStore(collection_table, endpoint_url=proxy.url)
        async with store:
            read = asyncio.create_task(store.session(session_id).aget_messages())
            while not proxy.seen:
                await asyncio.sleep(0.001)
            closing = asyncio.create_task(store.__aexit__(None, None, None))
            await asyncio.sleep(0)
            assert await is_closed(store.session(session_id))
            async with store:
                assert await read == []
                await closing
                assert await store.session(session_id).aget_messages() == []
        assert await is_closed(store.session(session_id))

    async def test_in_vain_leaves_nothing_open(self, collection_table: str) -> None:
        before = set(_open_holders)
        store = ChatHistoryStore(collection_table, endpoint_url="not a URL")
        for _ in range(2):
            with pytest.raises(ConfigurationError):
                await store.__aenter__()
        assert set(_open_holders) == before
        assert await is_closed(store.session("x"))

    def test_serves_each_lifespan_of_an_application(self, store: ChatHistoryStore, session_id: str) -> None:
        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with store:
                yield

        app = FastAPI(lifespan=lifespan)

        @app.post("/")
        async def add() -> int:
            await store.session(session_id).aadd_messages(humans(1))
            return len(await store.session(session_id).aget_messages())

        for number in (1, 2):
            with TestClient(app) as client:
                assert client.post("/").json() == number
        with TestClient(app) as client:
            with TestClient(app) as other:
                assert other.post("/").json() == 3
            assert client.post("/").json() == 4


async def test_a_handle_opens_again_too(variant: type[Variant], make: Make) -> None:
    history = make()
    async with history:
        await history.aadd_messages(humans(1))
        async with history:
            pass
        assert not await is_closed(history)
    assert await is_closed(history)
    async with history:
        assert texts(await history.aget_messages()) == ["1"]


def plain_form(value: object) -> str:
    return "a plain form"


class Tagged(DynamoDBChatMessageHistory):
    """A user's subclass, with an attribute that its own constructor sets."""

    def __init__(self, tag: list[str], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tag = tag


class TaggedStore(ChatHistoryStore):
    def __init__(self, tag: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tag = tag


def settings(history: DynamoDBChatMessageHistory) -> dict[str, Any]:
    names = [name for name, value in vars(DynamoDBChatMessageHistory).items() if isinstance(value, property)]
    # An unpickled handle has other clients, which may not be open yet.
    return {name: getattr(history, name) for name in names if name not in {"messages", "fast_path_status"}}


@pytest.mark.parametrize("how", COPIES)
class TestCopies:
    async def test_of_a_handle_are_handles_on_its_session(self, variant: type[Variant], make: Make, how: str) -> None:
        config = Config(retries={"total_max_attempts": 4})
        history = make(ttl=1000, history_size=5, default=plain_form, config=config)
        await history.aadd_messages(humans(1))
        other = COPIES[how](history)
        assert settings(other) == settings(history)
        options = [handle._spec.settings.clients.options for handle in (history, other)]
        assert options[0].configuration() == options[1].configuration()
        await other.aadd_messages([HumanMessage("2", additional_kwargs={"lock": threading.Lock()})])
        assert await history.aget_messages() == await other.aget_messages()
        assert (await history.aget_messages())[1].additional_kwargs == {"lock": "a plain form"}

    async def test_of_a_handle_outlive_its_closing(self, variant: type[Variant], make: Make, how: str) -> None:
        history = make()
        await history.aadd_messages(humans(1))
        early = COPIES[how](history)
        await history.aclose()
        for other in (early, COPIES[how](history)):
            assert texts(await other.aget_messages()) == ["1"]
            await other.aclose()
            assert await is_closed(other)

    async def test_of_a_stores_handle(self, store: ChatHistoryStore, session_id: str, how: str) -> None:
        async with store:
            other = COPIES[how](store.session(session_id))
            await other.aadd_messages(humans(1))
        # An unpickled one is in another process as a rule, where there is no store.
        assert await is_closed(other) == (how != "pickle")
        await other.aclose()

    @pytest.mark.parametrize("of_json", [False, True])
    async def test_of_a_handle_write_behind_what_the_handle_has_read(
        self, collection_table: str, session_id: str, of_json: bool, how: str
    ) -> None:
        async with ChatHistoryStore(collection_table) as store:
            new_handle: Any = store.json_session if of_json else store.session
            handle, ahead = new_handle(session_id), new_handle(session_id)
            ahead._session._reader.clock = Clock(lambda: int(time.time() * 1000) + 300_000)
            early = COPIES[how](handle)
            question, answer = ("question", "answer") if of_json else humans("question", "answer")
            read = handle.aget if of_json else handle.aget_messages
            await ahead._session.append([question])
            assert await read() == [question]
            await early._session.append([answer])
            assert await read() == [question, answer]

    def test_of_a_json_session_have_its_settings(self, kms_key: str, how: str) -> None:
        store = ChatHistoryStore("T", kms_key_id=kms_key, session_index=True, key_parts=2)
        session = store.json_session("s", key={"SessionId": ("acme", "s")}, owner="o", format="my-agent")
        other = COPIES[how](session)
        assert type(other) is JsonSession
        assert (other.session_id, other.key, other.format) == (session.session_id, session.key, session.format)
        assert (other._spec.settings.kms_key_id, other._spec.in_index) == (kms_key, session._spec.in_index)
        assert repr(other) == repr(session)

    async def test_of_a_store_have_its_settings_and_no_client_of_its(
        self, store: ChatHistoryStore, session_id: str, how: str
    ) -> None:
        async with store:
            history = store.session(session_id)
            await history.aadd_messages(humans(1))
            holders = set(_open_holders)
            other = COPIES[how](store)
            assert set(_open_holders) == holders
            async with other:
                assert settings(other.session(session_id)) == settings(history)
                assert texts(await other.session(session_id).aget_messages()) == ["1"]
            await other.aclose()
            assert set(_open_holders) == holders
            assert texts(await history.aget_messages()) == ["1"]
        async with COPIES[how](store) as late:
            assert texts(await late.session(session_id).aget_messages()) == ["1"]

    async def test_of_subclasses_keep_what_these_have_added(self, table: str, session_id: str, how: str) -> None:
        history = COPIES[how](Tagged(["mine"], table, session_id))
        assert (type(history), history.tag) == (Tagged, ["mine"])
        store = COPIES[how](TaggedStore("mine", table, layout="single_item"))
        assert (type(store), store.tag) == (TaggedStore, "mine")

    @pytest.mark.parametrize("kind", [boto3.Session, aioboto3.Session])
    async def test_keep_a_session_that_was_given_or_say_what_to_do(
        self, collection_table: str, session_id: str, proxy: Proxy, kind: Any, how: str
    ) -> None:
        session = kind(aws_access_key_id="PASSED", aws_secret_access_key="s", region_name="us-east-1")
        options: dict[str, Any] = {"boto3_session": session, "endpoint_url": proxy.url}
        history = DynamoDBChatMessageHistory(collection_table, session_id, sort_key_name="MessageId", **options)
        store = ChatHistoryStore(collection_table, **options)
        for original in (history, store, store.session(session_id)):
            if how == "pickle":
                with pytest.raises(TypeError, match=r"boto3_session cannot be pickled.* in the other process"):
                    COPIES[how](original)
                continue
            other = COPIES[how](original)
            kept = other._settings if isinstance(other, ChatHistoryStore) else other._spec.settings
            assert kept.clients.options.session is session


async def test_deep_copies_of_a_handle_open_no_client(variant: type[Variant], make: Make) -> None:
    """LangChain copies configurations, and what is in them, for each call."""
    history = make()
    await history.aget_messages()
    holders = set(_open_holders)
    for _ in range(3):
        await copy.deepcopy({"configurable": {"message_history": history}})["configurable"][
            "message_history"
        ].aget_messages()
    assert set(_open_holders) == holders


def test_a_spawned_process_writes_with_a_pickled_handle(collection_table: str, session_id: str) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for history in (
            DynamoDBChatMessageHistory(collection_table, session_id, sort_key_name="MessageId"),
            ChatHistoryStore(collection_table).session(session_id),
        ):
            pool.apply(history.add_user_message, ("worker",))
        assert texts(pool.apply(ChatHistoryStore(collection_table).session, (session_id,)).messages) == ["worker"] * 2


class TestASubclass:
    async def test_branches_off_as_itself(self, collection_table: str, session_id: str) -> None:
        history = Tagged(["mine"], collection_table, session_id, sort_key_name="MessageId", ttl=1000)
        await history.aadd_messages(humans(1))
        branch = await history.acopy_to(f"{session_id}-2")
        assert isinstance(branch, Tagged)
        assert branch.tag is history.tag
        assert settings(branch) == settings(history) | {
            "session_id": f"{session_id}-2",
            "key": {"SessionId": f"{session_id}-2"},
        }
        await history.aclose()
        assert texts(await branch.aget_messages()) == ["1"]
        assert isinstance(await asyncio.to_thread(branch.copy_to, f"{session_id}-3"), Tagged)


def test_it_works_with_a_langchain_core_that_has_no_base_class(table: str, session_id: str) -> None:
    """langchain-core 2.0 removes it, and RunnableWithMessageHistory with it."""
    program = """
    import asyncio, inspect, sys

    class Removed:
        def find_spec(self, name, path=None, target=None):
            if name in ("langchain_core.chat_history", "langchain_core.runnables.history"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    from langchain_core.chat_history import BaseChatMessageHistory
    for name in [name for name in sys.modules if name.startswith("langchain_core")]:
        del sys.modules[name]
    sys.meta_path.insert(0, Removed())

    from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
    assert "langchain_core.chat_history" not in sys.modules
    public = {name for name in dir(BaseChatMessageHistory) if not name.startswith("_")} | {"__str__"}
    assert public <= set(vars(DynamoDBChatMessageHistory)), public
    table, session = sys.argv[1:]
    history = DynamoDBChatMessageHistory(table, session)
    history.add_user_message("Hello!")
    asyncio.run(ChatHistoryStore(table, layout="single_item").session(session).aadd_messages(history.messages))
    print(history)
    """
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(program), table, session_id]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Human: Hello!\nHuman: Hello!\n", "")
