"""Tests under anyio."""

from __future__ import annotations

import anyio
import pytest
from langchain_core.messages import HumanMessage

from chathistory_async import ChatHistoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_conversation(chathistory_store: ChatHistoryStore) -> None:
    history = chathistory_store.session("alice")
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(history.aadd_messages, [HumanMessage(str(number))])
    assert len(await history.aget_messages()) == 10
