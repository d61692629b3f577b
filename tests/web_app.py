"""A FastAPI application as a user writes one, plus a page that tells how its event loop fares."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from botocore.config import Config
from fastapi import FastAPI, Request
from langchain_core.messages import AIMessage, HumanMessage

from chathistory_async import ChatHistoryStore

SLOW_SECONDS = 0.05

slow_callbacks: list[str] = []


def watch_callbacks() -> None:
    """Note each callback that holds the loop for long: that computes, or waits for anything but a processor.

    asyncio's debug mode goes by the clock alone, and would note what other processes of a busy machine do.
    """
    handle: Any = asyncio.Handle
    run = handle._run
    # Linux's. Its second number is for how many nanoseconds this thread could have run and had no processor.
    path = Path("/proc/thread-self/schedstat")
    statistics = os.open(path, os.O_RDONLY) if path.exists() else None

    def held() -> float:
        waited = 0 if statistics is None else int(os.pread(statistics, 99, 0).split()[1])
        return time.monotonic() - waited / 1e9

    def watched(self: Any) -> None:
        began = held()
        run(self)
        if (seconds := held() - began) >= SLOW_SECONDS:
            slow_callbacks.append(f"{getattr(self._callback, '__self__', self)!r} held the loop for {seconds:.3f} s")

    handle._run = watched


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = math.inf
    watch_callbacks()
    # The embedded engine answers one request at a time, so that one in two hundred waits for long.
    async with ChatHistoryStore(sys.argv[2], config=Config(read_timeout=120)) as store:
        yield {"store": store}


app = FastAPI(lifespan=lifespan)


@app.post("/chat/{session_id}")
async def chat(session_id: str, question: str, request: Request) -> dict[str, int]:
    history = request.state.store.session(session_id)
    before = await history.aget_messages()
    await history.aadd_messages([HumanMessage(question), AIMessage(f"answer to {question}")])
    return {"messages": len(before) + 2}


@app.get("/history/{session_id}")
async def read(session_id: str, request: Request) -> list[Any]:
    return [message.content for message in await request.state.store.session(session_id).aget_messages()]


@app.post("/block")
async def block(computing: bool = False) -> None:
    began = time.thread_time()
    while computing and time.thread_time() < began + 2 * SLOW_SECONDS:
        pass
    if not computing:
        time.sleep(2 * SLOW_SECONDS)  # noqa: ASYNC251  # what the guard must see


@app.get("/loop")
async def loop_state() -> dict[str, Any]:
    state = {"threads": [thread.name for thread in threading.enumerate()], "slow": list(slow_callbacks)}
    slow_callbacks.clear()
    return state


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", loop="asyncio", timeout_keep_alive=120)
