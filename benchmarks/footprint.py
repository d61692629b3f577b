"""5. The costs of a handle, in time and memory, and of importing."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

from chathistory_async import DynamoDBChatMessageHistory

from .measure import Operation, Row, block, interleave
from .setup import Setup
from .variants import OURS, SINGLE_ITEM, UPSTREAM, Target, new_store

BASELINE = UPSTREAM
IMPORT = "import"
WITHOUT = "what ours cannot do without"
STORE = "ours, the store alone"
STORE_WITHOUT = "what the store cannot do without"
IMPORTS = {
    OURS: "from chathistory_async import DynamoDBChatMessageHistory",
    WITHOUT: "import aioboto3, orjson, langchain_core.chat_history, langchain_core.messages",
    STORE: "import chathistory_async",
    # To import pydantic alone imports next to nothing of it.
    STORE_WITHOUT: "import aioboto3, orjson; from pydantic import BaseModel",
    UPSTREAM: "import boto3; from langchain_community.chat_message_histories import DynamoDBChatMessageHistory",
}
_TIMED = "import time; started = time.process_time(); {}; print(time.process_time() - started)"


@dataclass(frozen=True)
class _Maker:
    """Something that makes handles.

    Attributes:
        variant: who makes them.
        way: how, in a few words.
        make: makes one for a session.
        times: how many are made in a block.
    """

    variant: str
    way: str
    make: Callable[[str], object]
    times: int


async def run(setup: Setup) -> list[Row]:
    """Make handles in this process, and import in fresh ones."""
    return [*await _handles(setup), *_imports(setup)]


async def _handles(setup: Setup) -> list[Row]:
    makers = _makers(setup.on_stub)
    timed = await interleave({maker: block(_making(maker), maker.times) for maker in makers}, setup.rounds(20))
    rows = []
    for maker in makers:
        row = timed[maker].row(maker.variant, {"measured": "handle", "way": maker.way})
        row.rounds = {"handle_us": [1000 * cpu for cpu in timed[maker].cpu]}
        row.figures = {f"bytes_{kind}_session": _bytes_of(maker, kind) for kind in ("new", "known")}
        rows.append(row)
    return rows


def _makers(target: Target) -> list[_Maker]:
    from langchain_community.chat_message_histories import DynamoDBChatMessageHistory as Upstream

    table = target.tables[SINGLE_ITEM]
    stores = {layout: new_store(target, layout) for layout in target.tables}
    ways = [_Maker(OURS, f"store.session(), {layout}", stores[layout].session, 200) for layout in stores]
    ways.append(
        _Maker(OURS, "constructor", lambda name: DynamoDBChatMessageHistory(table, name, endpoint_url=target.url), 200)
    )
    return [*ways, _Maker(UPSTREAM, "constructor", lambda name: Upstream(table, name, endpoint_url=target.url), 2)]


def _making(maker: _Maker) -> Operation:
    async def make(_: int) -> None:
        maker.make("session")

    return make


def _bytes_of(maker: _Maker, kind: str) -> float:
    """Return how much memory an idle handle keeps: less where another handle has made its session known."""
    names = [f"{kind}-{one}" for one in range(max(5, maker.times))]
    # A session is known as long as somebody holds a handle on it.
    others = [maker.make(name) for name in names if kind == "known"]
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = [maker.make(name) for name in names]
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        others.clear()
    return (after - before) / len(kept)


def _imports(setup: Setup) -> list[Row]:
    names, seconds = list(IMPORTS), {name: list[float]() for name in IMPORTS}
    for _ in range(setup.rounds(11)):
        for name in random.sample(names, len(names)):
            seconds[name].append(_seconds_to_import(IMPORTS[name]))
    return [Row({"measured": IMPORT}, name, {"import_ms": [1000 * one for one in seconds[name]]}) for name in names]


def _seconds_to_import(statement: str) -> float:
    command = [sys.executable, "-I", "-W", "ignore", "-c", _TIMED.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
