"""Tests under pytest-asyncio in its strict mode, on loops of every scope."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from langchain_core.messages import HumanMessage

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async.testing import StoreFactory


@pytest.mark.asyncio
async def test_a_loop_for_the_test(chathistory_store: ChatHistoryStore) -> None:
    history = chathistory_store.session("alice")
    await asyncio.gather(*(history.aadd_messages([HumanMessage(str(number))]) for number in range(10)))
    assert len(await history.aget_messages()) == 10


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("_", range(2))
async def test_a_loop_for_the_session(chathistory_store: ChatHistoryStore, _: int) -> None:
    async with chathistory_store as store:
        await store.session("alice").aadd_messages([HumanMessage("Hello!")])
        assert len(await store.session("alice").aget_messages()) == 1


@pytest_asyncio.fixture
async def history(chathistory_store_factory: StoreFactory) -> AsyncIterator[DynamoDBChatMessageHistory]:
    async with chathistory_store_factory(session_index=True) as store:
        yield store.session("alice", owner="alice")


@pytest.mark.asyncio
async def test_an_asynchronous_fixture_of_our_own(history: DynamoDBChatMessageHistory) -> None:
    await history.aadd_messages([HumanMessage("Hello!")])
    assert len(history.messages) == 1


@pytest.mark.asyncio
async def test_a_closed_store_is_cleaned_up_too(chathistory_store: ChatHistoryStore) -> None:
    await chathistory_store.aclose()
