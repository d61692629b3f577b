"""Tests of what expires, without waiting for it."""

from __future__ import annotations

import time

import pytest

from chathistory_async.testing import FakeClock, StoreFactory


@pytest.mark.parametrize("layout", ["item_collection", "single_item"])
def test_messages_expire(chathistory_store_factory: StoreFactory, chathistory_clock: FakeClock, layout: str) -> None:
    history = chathistory_store_factory(layout=layout, ttl=3600).session("alice")
    history.add_user_message("Hello!")
    chathistory_clock.advance(3599)
    assert len(history.messages) == 1
    chathistory_clock.advance(1)
    assert history.messages == []


@pytest.mark.asyncio
async def test_the_time_of_a_message(chathistory_store_factory: StoreFactory, chathistory_clock: FakeClock) -> None:
    history = chathistory_store_factory().session("alice")
    chathistory_clock.advance(7 * 24 * 3600)
    history.add_user_message("Hello!")
    [message] = (await history.apage()).messages
    assert message.created_at.timestamp() == chathistory_clock.time() > time.time() + 6 * 24 * 3600
