"""One of several processes that read and write one session at once, and write down each call before and after it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from botocore.config import Config
from langchain_core.messages import HumanMessage

from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    DynamoDBChatMessageHistory,
    IdempotencyKeyReusedError,
    WriteConflictError,
)
from chathistory_async._item_collection import records
from chathistory_async._wall_clock import now, replaced
from chathistory_async.json_session import JsonSession

BATCH_SIZES = [1, 2, 3, 4, 4, 40]
# So few that most are used several times, by several processes.
KEYS = 30
OTHER_CONTENT = 0.2
CANCELLED = 0.08
CANCELLED_CLEARS = 0.3
LONGEST_WAIT_SECONDS = 0.05


class Journal:
    """Keeps what was written to it when the process is killed, because nothing is buffered."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **entry: Any) -> None:
        os.write(self._file, json.dumps(entry).encode() + b"\n")


class Messages:
    """A session of messages, each of which is its text."""

    def __init__(self, history: DynamoDBChatMessageHistory) -> None:
        self._history = history
        self.clear = history.aclear

    async def append(self, texts: list[str], key: str | None) -> None:
        await self._history.aadd_messages([HumanMessage(text) for text in texts], idempotency_key=key)

    async def read(self) -> list[str]:
        return [str(message.content) for message in await self._history.aget_messages()]

    async def pop(self) -> list[str]:
        message = await self._history.apop_message()
        return [] if message is None else [str(message.content)]


class Values:
    """A session of JSON values, with the same methods."""

    def __init__(self, session: JsonSession) -> None:
        self._session = session
        self.clear = session.aclear

    async def append(self, texts: list[str], key: str | None) -> None:
        await self._session.aadd([{"text": text} for text in texts], key)

    async def read(self) -> list[str]:
        return [value["text"] for value in await self._session.aget()]

    async def pop(self) -> list[str]:
        value = await self._session.apop()
        return [] if value is None else [value["text"]]


def session_in(store: ChatHistoryStore, session_id: str, owner: str | None, *, json_values: bool) -> Messages | Values:
    if json_values:
        return Values(store.json_session(session_id, owner=owner))
    return Messages(store.session(session_id, owner=owner))


class Worker:
    """Makes calls at random, one at a time; some of them are cancelled."""

    def __init__(
        self, name: str, journal: Journal, session: Messages | Values, mix: dict[str, float], seed: int
    ) -> None:
        self._name = name
        self._journal = journal
        self._session = session
        self._mix = mix
        self._random = random.Random(f"{seed} {name}")

    async def run(self, calls: int) -> None:
        # The first write of a handle that has not read may come late and once more: see _single_item/changes.py.
        await self._call("first", "read")
        for number in range(calls):
            (kind,) = self._random.choices(list(self._mix), list(self._mix.values()))
            await self._call(f"{self._name}.{number}", kind)

    async def _call(self, number: str, kind: str) -> None:
        key, written = None, list[str]()
        if kind == "append":
            written = [f"{number}.{index}" for index in range(self._random.choice(BATCH_SIZES))]
        elif kind == "append once":
            kind, (key, written) = "append", self._batch_with_key()
        calls: dict[str, Callable[[], Awaitable[list[str] | None]]] = {
            "append": lambda: self._session.append(written, key),
            "read": self._session.read,
            "clear": self._session.clear,
            "pop": self._session.pop,
        }
        call = {"call": number, "process": self._name, "kind": kind, "written": written, "key": key}
        self._journal.write(**call, invoked=time.monotonic())
        cancelled = CANCELLED_CLEARS if kind == "clear" else CANCELLED
        outcome, returned = await self._outcome(calls[kind](), cancelled)
        self._journal.write(call=number, outcome=outcome, returned=returned, ended=time.monotonic())

    def _batch_with_key(self) -> tuple[str, list[str]]:
        """Return an idempotency key, and the batch that all processes send with it, or now and then another one."""
        number = self._random.randrange(KEYS)
        batch = f"key {number}" if self._random.random() >= OTHER_CONTENT else f"key {number}, other"
        return f"key {number}", [f"{batch}.{index}" for index in range(BATCH_SIZES[number % len(BATCH_SIZES)])]

    async def _outcome(self, call: Awaitable[list[str] | None], cancelled: float) -> tuple[str, list[str]]:
        task = asyncio.ensure_future(call)
        if self._random.random() < cancelled:
            asyncio.get_running_loop().call_later(self._random.uniform(0, LONGEST_WAIT_SECONDS), task.cancel)
        try:
            return "ok", await task or []
        except (WriteConflictError, IdempotencyKeyReusedError):
            return "refused", []
        except (ChatHistoryError, asyncio.CancelledError):
            return "unknown", []


def work(*asked: Any) -> None:
    asyncio.run(_work(*asked))


async def _work(
    name: str, journal: str, skew: int, calls: int, store_options: dict[str, Any], asked: dict[str, Any]
) -> None:
    """Run a worker whose clock is wrong by so many seconds."""
    records.PART_BYTES = asked["part_bytes"] or records.PART_BYTES
    config = Config(retries={"total_max_attempts": 6, "mode": "legacy"}, read_timeout=5)
    with replaced(lambda: time.time_ns() + skew * 10**9):
        assert abs(now() - time.time() - skew) < 60, "the library reads another clock"
        async with ChatHistoryStore(**store_options, config=config) as store:
            session = session_in(store, asked["session_id"], asked["owner"], json_values=asked["json_values"])
            await Worker(name, Journal(journal), session, asked["mix"], asked["seed"]).run(calls)
