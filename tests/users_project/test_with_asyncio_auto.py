"""Tests under pytest-asyncio in its auto mode, on several workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chathistory_async import ChatHistoryStore


@pytest.fixture
def note_of_the_engine(chathistory_endpoint_url: str) -> None:
    """Leaves the URL of this worker's engine to whoever runs this project."""
    Path(os.environ["PYTEST_XDIST_WORKER"]).write_text(chathistory_endpoint_url)


@pytest.mark.usefixtures("note_of_the_engine")
@pytest.mark.parametrize("number", range(6))
async def test_a_conversation(chathistory_store: ChatHistoryStore, number: int) -> None:
    session = chathistory_store.json_session("alice")
    await session.aadd([number])
    assert await session.aget() == [number]
