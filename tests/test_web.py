"""A FastAPI application on uvicorn under load from outside: up to 200 sessions in one process."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import SDK_THREADS

SESSIONS = [40, pytest.param(200, marks=pytest.mark.stress)]
TURNS = 4


@pytest.fixture
async def web(collection_table: str) -> AsyncIterator[httpx.AsyncClient]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("web_app.py")), str(port), collection_table]
    )
    limits = httpx.Limits(max_connections=200)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=200, limits=limits) as client:
            await until_it_answers(client, server)
            yield client
    finally:
        server.terminate()
        server.wait(30)


async def until_it_answers(client: httpx.AsyncClient, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            await client.get("/loop")
        except httpx.ConnectError:
            await asyncio.sleep(0.1)
        else:
            return
    raise RuntimeError("the application did not start")


async def loop_state(web: httpx.AsyncClient) -> dict[str, Any]:
    state: dict[str, Any] = (await web.get("/loop")).json()
    return state


@pytest.mark.timeout(240)
@pytest.mark.parametrize("sessions", SESSIONS)
async def test_many_sessions_at_once(web: httpx.AsyncClient, session_id: str, sessions: int) -> None:
    async def converse(number: int) -> None:
        for turn in range(TURNS):
            answer = await web.post(f"/chat/{session_id}-{number}", params={"question": f"question {turn}"})
            assert answer.json() == {"messages": 2 * turn + 2}

    await asyncio.gather(*(converse(number) for number in range(sessions)))
    state = await loop_state(web)

    assert set(state["threads"]) - SDK_THREADS == {"MainThread"}
    # Not none: there are half a dozen, one that opens the client, and the others Python's own collections of garbage.
    assert len(state["slow"]) <= max(8, sessions * TURNS * 0.015), state["slow"][:5]
    expected = [text for turn in range(TURNS) for text in (f"question {turn}", f"answer to question {turn}")]
    for number in range(0, sessions, 20):
        assert (await web.get(f"/history/{session_id}-{number}")).json() == expected


@pytest.mark.parametrize("computing", [False, True])
async def test_the_guard_would_see_a_blocked_loop(web: httpx.AsyncClient, computing: bool) -> None:
    await loop_state(web)
    for _ in range(5):
        await web.post("/block", params={"computing": computing})
    assert len((await loop_state(web))["slow"]) >= 5
