"""The guides of the documentation that run as a server, or that calculate: what they promise holds."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from engines import ROOT
from langchain_core.messages import AIMessage, HumanMessage

from chathistory_async import ChatHistoryStore

GUIDES = ROOT / "docs" / "guides"
# In AWS's example: https://docs.aws.amazon.com/cli/latest/reference/kms/generate-data-key.html
AWS_DATA_KEY_BYTES = 167


def program_of(page: str, **replaced: str) -> SimpleNamespace:
    """Return the names that the first Python block of a page makes; some of its texts are replaced."""
    code = (GUIDES / page).read_text().split("```python\n")[1].split("```")[0]
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    names: dict[str, Any] = {"__name__": page}
    exec(compile(code, page, "exec", dont_inherit=True), names)
    return SimpleNamespace(**names, names=names)


@pytest.fixture
def web(collection_table: str) -> SimpleNamespace:
    """The program of the FastAPI guide."""
    return program_of("fastapi.md", WebChats=collection_table)


@asynccontextmanager
async def served(web: SimpleNamespace) -> AsyncIterator[tuple[httpx.AsyncClient, uvicorn.Server]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(web.app, log_level="warning", lifespan="on"))
        serving = asyncio.create_task(server.serve([listening]))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while not server.started:
                await asyncio.sleep(0.01)
            yield client, server
        server.should_exit = True
        await serving


async def ask(client: httpx.AsyncClient, chat: str, question: str, key: str | None = None) -> list[str]:
    """Ask a question, read the stream to its end, and return its lines."""
    headers = {} if key is None else {"Idempotency-Key": key}
    async with client.stream("POST", f"/chats/{chat}", params={"question": question}, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [line async for line in response.aiter_lines() if line]


async def contents(client: httpx.AsyncClient, chat: str) -> list[str]:
    return [message["data"]["content"] for message in (await client.get(f"/chats/{chat}")).json()]


async def test_an_answer_is_streamed_and_stored(web: SimpleNamespace, session_id: str) -> None:
    async with served(web) as (client, _):
        *words, event, _ = await ask(client, session_id, "Hello!")
        assert [json.loads(word.removeprefix("data: ")) for word in words] == ["Hi, ", "how can ", "I help?"]
        assert event == "event: end"
        assert await contents(client, session_id) == ["Hello!", "Hi, how can I help?"]
        chats = {chat["id"]: chat["messages"] for chat in (await client.get("/chats")).json()}
        assert chats[session_id] == 2


async def test_a_request_that_is_sent_again_asks_nothing_again(web: SimpleNamespace, session_id: str) -> None:
    async with served(web) as (client, _):
        await ask(client, session_id, "Hello!", "request-1")
        web.names["model"] = None  # it would fail
        answer, event, _ = await ask(client, session_id, "Hello!", "request-1")
        assert (json.loads(answer.removeprefix("data: ")), event) == ("Hi, how can I help?", "event: end")
        assert await contents(client, session_id) == ["Hello!", "Hi, how can I help?"]
        refused = await client.post(
            f"/chats/{session_id}", params={"question": "Another?"}, headers={"Idempotency-Key": "request-1"}
        )
        assert refused.status_code == 422


async def test_an_answer_is_complete_though_the_client_has_gone(web: SimpleNamespace, session_id: str) -> None:
    gone = asyncio.Event()

    async def model(messages: list[Any]) -> AsyncIterator[str]:
        yield "Hi, "
        await gone.wait()
        yield "how can I help?"

    web.names["model"] = model
    async with served(web) as (client, server):
        async with client.stream("POST", f"/chats/{session_id}", params={"question": "Hello!"}) as response:
            assert await anext(response.aiter_lines()) == 'data: "Hi, "'
        await client.aclose()
        while server.server_state.connections:
            await asyncio.sleep(0.01)
        assert len(web.answering) == 1
        gone.set()
        await asyncio.gather(*web.answering)
    async with served(web) as (client, _):
        assert await contents(client, session_id) == ["Hello!", "Hi, how can I help?"]


async def test_the_application_ends_after_its_answers(web: SimpleNamespace, session_id: str) -> None:
    ending = asyncio.Event()

    async def model(messages: list[Any]) -> AsyncIterator[str]:
        await ending.wait()
        yield "Hi, how can I help?"

    web.names["model"] = model
    async with web.lifespan(web.app) as state:
        history = state["store"].session(session_id, key={"SessionId": ("alice", session_id)}, owner="alice")
        task = asyncio.create_task(web.answer(history, [HumanMessage("Hello!")], asyncio.Queue(), None))
        web.answering.add(task)
        await asyncio.sleep(0)
        # The lifespan begins to end before the loop runs this.
        asyncio.get_running_loop().call_soon(ending.set)
    await task
    async with web.lifespan(web.app) as state:
        history = state["store"].session(session_id, key={"SessionId": ("alice", session_id)})
        assert [message.content for message in await history.aget_messages()] == ["Hi, how can I help?"]


async def test_a_user_cannot_open_the_chat_of_another(web: SimpleNamespace, session_id: str) -> None:
    async with served(web) as (client, _):
        await ask(client, session_id, "Hello!")
        web.app.dependency_overrides[web.current_user] = lambda: "mallory"
        for chat in (session_id, f"alice%23{session_id}", f"..%2Falice%23{session_id}"):
            response = await client.get(f"/chats/{chat}")
            assert response.status_code == 404 or response.json() == []


@pytest.mark.parametrize("turn_bytes", [100, 700, 1000, 3000])
@pytest.mark.parametrize("session_index", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_the_calculator_knows_what_is_stored(
    collection_table: str,
    kms: Any,
    kms_key: str,
    session_id: str,
    turn_bytes: int,
    session_index: bool,
    encrypted: bool,
) -> None:
    chats = program_of("costs.md").Chats(1, turn_bytes, read_turns=5, session_index=session_index, encrypted=encrypted)
    key = kms_key if encrypted else None
    async with ChatHistoryStore(collection_table, session_index=session_index, kms_key_id=key) as store:
        history = store.session(session_id, owner="alice@example.com" if session_index else None)
        for _ in range(chats.read_turns):
            await history.aadd_messages([HumanMessage("q" * (turn_bytes // 4)), AIMessage("a" * (turn_bytes * 3 // 4))])
        if session_index:
            await store.set_title(session_id, "A title of the usual length")
        stats = await store.get_session_stats(session_id)
    assert chats.append_units == stats.append_write_units
    assert chats.read_units == stats.read_units
    record_bytes = stats.largest_record_bytes
    if encrypted:
        data_key = kms.generate_data_key(KeyId=kms_key, NumberOfBytes=32)["CiphertextBlob"]
        record_bytes += AWS_DATA_KEY_BYTES - len(data_key)
    assert 0 <= chats.record_bytes - record_bytes < 100


async def test_the_calculator_knows_what_an_idempotency_key_costs(
    dynamodb: Any, collection_table: str, session_id: str
) -> None:
    chats = program_of("costs.md").Chats(1, 100, idempotency_keys=True)
    async with ChatHistoryStore(collection_table) as store:
        await store.session(session_id).aadd_messages([HumanMessage("x")], idempotency_key="1")
    query = "SessionId = :session"
    found = dynamodb.query(
        TableName=collection_table,
        KeyConditionExpression=query,
        ExpressionAttributeValues={":session": {"S": session_id}},
    )
    # A transaction bills each write twice.
    assert chats.append_units == 2 * len(found["Items"])
