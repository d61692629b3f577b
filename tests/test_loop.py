"""The asynchronous methods do nothing to their event loop that other tasks would notice."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Make, turns_of_another_task
from engines import SDK_THREADS
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from samples import humans

from chathistory_async import DynamoDBChatMessageHistory
from chathistory_async._codec.message_attribute_values import decode_message, encode_message
from chathistory_async._cooperative import in_slices

SLOW_SECONDS = 0.05


@pytest.fixture
async def slow_callbacks(caplog: pytest.LogCaptureFixture) -> AsyncIterator[list[str]]:
    """Collects what asyncio's debug mode says of each step that held the loop for longer than SLOW_SECONDS."""
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = SLOW_SECONDS
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if " took " in record.getMessage():
                found.append(record.getMessage())

    handler = Collect()
    logging.getLogger("asyncio").addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger("asyncio").removeHandler(handler)


async def test_the_guard_itself_sees_a_blocked_loop(slow_callbacks: list[str], make: Make) -> None:
    async def block() -> None:
        time.sleep(2 * SLOW_SECONDS)  # noqa: ASYNC251  # what the guard must see

    await asyncio.create_task(block())
    assert len(slow_callbacks) == 1


async def test_the_guard_of_cpu_time_sees_it_too(long_steps: list[str]) -> None:
    async def count() -> None:
        begun = time.thread_time()
        while time.thread_time() - begun < 2 * SLOW_SECONDS:
            sum(range(1000))

    await asyncio.create_task(count())
    assert len(long_steps) == 1


def many_messages() -> list[BaseMessage]:
    """About 1,100 small messages with tool calls, which is near what fits into an item."""
    call = {"name": "search", "args": {"q": "x", "n": [1, 2, 3]}, "id": "c", "type": "tool_call"}
    return [AIMessage("short", tool_calls=[call], id=str(number)) for number in range(1100)]


@pytest.fixture(params=["plain", "encrypted"])
def encryption(request: pytest.FixtureRequest, kms_key: str) -> dict[str, Any]:
    return {"kms_key_id": kms_key} if request.param == "encrypted" else {}


async def test_a_full_item_is_read_in_slices(slow_callbacks: list[str], make: Make, encryption: dict[str, Any]) -> None:
    # Encrypted, a message is three times as long, and moto counts it twice.
    stored = many_messages()[: 250 if encryption else None]
    for start in range(0, len(stored), 400):
        await make().aadd_messages(stored[start : start + 400])
    slow_callbacks.clear()
    reads = 6
    for _ in range(reads):
        assert len(await make().aget_messages()) == len(stored)
    # botocore's own parsing and one conversion of the whole would each hold the loop in every read; a machine that
    # is busy elsewhere, or a full garbage collection, does so now and then.
    assert len(slow_callbacks) <= reads // 2, slow_callbacks


async def test_a_long_item_collection_is_written_and_read_in_slices(
    slow_callbacks: list[str], make: Make, collection_table: str, encryption: dict[str, Any]
) -> None:
    long = HumanMessage("a word or two " * 3000)
    stored = [*many_messages(), *[long] * 200]
    history = make(table_name=collection_table, sort_key_name="MessageId")
    await history.aget_messages()
    slow_callbacks.clear()
    await history.aadd_messages(stored)
    # botocore serialises the record in one step, which is near the limit.
    assert len(slow_callbacks) <= 7, slow_callbacks
    slow_callbacks.clear()
    for _ in range(4):
        assert len(await history.aget_messages()) == len(stored)
    assert len(slow_callbacks) <= 4, slow_callbacks


async def test_other_tasks_run_while_a_full_item_is_decoded() -> None:
    encoded = [encode_message(message, 0) for message in many_messages()]
    async with turns_of_another_task() as turns:
        await in_slices(decode_message, encoded)
    # About 25 µs each, in slices of 2 ms.
    assert turns() >= 5


async def test_no_thread_is_used(make: Make) -> None:
    histories: list[DynamoDBChatMessageHistory] = [make(session=f"no-thread-{number}") for number in range(20)]
    others = set(threading.enumerate())
    await histories[0].aget_messages()
    before = set(threading.enumerate())
    assert {thread.name for thread in before - others} <= SDK_THREADS
    await asyncio.gather(*(history.aadd_messages(humans(1, 2)) for history in histories))
    await asyncio.gather(*(history.aget_messages() for history in histories))
    await asyncio.gather(*(history.aclear() for history in histories))
    assert set(threading.enumerate()) <= before
