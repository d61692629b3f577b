"""One of several processes that read and write one session at once, and write down each call before and after it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from botocore.config import Config
from langchain_core.messages import HumanMessage

from chathistory_async import ChatHistoryError, ChatHistoryStore, DynamoDBChatMessageHistory, WriteConflictError

LARGEST_BATCH = 4
CANCELLED = 0.08
CANCELLED_CLEARS = 0.3
LONGEST_WAIT_SECONDS = 0.05


class Journal:
    """Keeps what was written to it when the process is killed, because nothing is buffered."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **entry: Any) -> None:
        os.write(self._file, json.dumps(entry).encode() + b"\n")


class Worker:
    """Makes calls at random, one at a time; some of them are cancelled."""

    def __init__(self, name: str, journal: Journal, history: DynamoDBChatMessageHistory, mix: dict[str, float]) -> None:
        self._name = name
        self._journal = journal
        self._history = history
        self._mix = mix
        self._random = random.Random(name)

    async def run(self, calls: int) -> None:
        # The first write of a handle that has not read may come late and once more: see _single_item.py.
        await self._call("first", "read")
        for number in range(calls):
            (kind,) = self._random.choices(list(self._mix), list(self._mix.values()))
            await self._call(f"{self._name}.{number}", kind)

    async def _call(self, number: str, kind: str) -> None:
        size = self._random.randint(1, LARGEST_BATCH)
        written = [f"{number}.{index}" for index in range(size)] if kind == "append" else []
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "append": lambda: self._history.aadd_messages([HumanMessage(text) for text in written]),
            "read": self._history.aget_messages,
            "clear": self._history.aclear,
            "pop": self._history.apop_message,
        }
        self._journal.write(call=number, process=self._name, kind=kind, written=written, invoked=time.monotonic())
        cancelled = CANCELLED_CLEARS if kind == "clear" else CANCELLED
        outcome, returned = await self._outcome(calls[kind](), cancelled)
        self._journal.write(call=number, outcome=outcome, returned=returned, ended=time.monotonic())

    async def _outcome(self, call: Awaitable[Any], cancelled: float) -> tuple[str, list[str]]:
        task = asyncio.ensure_future(call)
        if self._random.random() < cancelled:
            asyncio.get_running_loop().call_later(self._random.uniform(0, LONGEST_WAIT_SECONDS), task.cancel)
        try:
            result = await task
        except WriteConflictError:
            return "refused", []
        except (ChatHistoryError, asyncio.CancelledError):
            return "unknown", []
        messages = result if isinstance(result, list) else [] if result is None else [result]
        return "ok", [str(message.content) for message in messages]


async def main(name: str, journal: str, skew_seconds: str, calls: str, store_options: str, options: str) -> None:
    """Run a worker whose clock is wrong by so many seconds."""
    skew, real_time, real_time_ns = float(skew_seconds), time.time, time.time_ns
    time.time = lambda: real_time() + skew
    time.time_ns = lambda: real_time_ns() + int(skew * 1e9)
    asked: dict[str, Any] = json.loads(options)
    config = Config(retries={"total_max_attempts": 6, "mode": "legacy"}, read_timeout=5)
    async with ChatHistoryStore(**json.loads(store_options), config=config) as store:
        history = store.session(asked["session_id"], owner=asked["owner"])
        await Worker(name, Journal(journal), history, asked["mix"]).run(int(calls))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
