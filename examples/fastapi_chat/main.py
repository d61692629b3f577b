"""A web chat with FastAPI: streamed answers, and the conversations in DynamoDB, on the embedded engine.

Run it with ``python examples/fastapi_chat/main.py``, and open http://127.0.0.1:8000. It needs no key and no AWS
account: ``pip install '.[local]' fastapi uvicorn``. It uses the DynamoDB at AWS_ENDPOINT_URL if that is set. The model
is made up.
"""

import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import fastapi
import uvicorn
from fastapi import Cookie, Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import BaseModel, Field

from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    DynamoDBChatMessageHistory,
    IdempotencyKeyReusedError,
    ItemTooLargeError,
    SessionInfo,
    SessionNotFoundError,
    split_key,
)
from chathistory_async.local import local_engine

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def hash_of(element: str) -> str:
    """Return the hash of the page's script or style, which alone the browser may run or apply."""
    [text] = re.findall(f"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {hash_of('script')}; style-src {hash_of('style')}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STATUS: dict[type[Exception], int] = {
    SessionNotFoundError: 404,
    IdempotencyKeyReusedError: 409,
    ItemTooLargeError: 413,
}


async def model(messages: list[BaseMessage]) -> AsyncIterator[str]:
    """Play the part of a model. With LangChain: ``async for chunk in model.astream(messages): yield chunk.text``."""
    answer = f"You said:\n{messages[-1].text}\n\nI was sent {len(messages)} messages. I only play the part of a model."
    for word in re.findall(r"\S+\s*", answer):
        await asyncio.sleep(0.06)
        yield word


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Keep one store open for the whole application."""
    async with ChatHistoryStore("Chats", session_index=True, key_parts=2) as store:
        await store.create_table()
        yield {"store": store}


app = FastAPI(title="Chat", lifespan=lifespan)

Id = Annotated[str, fastapi.Path(pattern="^[0-9a-f]{24}$")]
# The cookie plays the part of a sign-in: whoever has it is the owner.
Owner = Annotated[str, Cookie(pattern="^[0-9a-f]{32}$")]


@dataclass(frozen=True)
class Chat:
    """A chat of the caller. The owner is a part of its key, so no other owner can open it by its id."""

    store: ChatHistoryStore
    owner: str
    id: str

    @property
    def key(self) -> dict[str, tuple[str, ...]]:
        """The key of the chat's session."""
        return {"SessionId": (self.owner, self.id)}

    @property
    def history(self) -> DynamoDBChatMessageHistory:
        """The chat's messages."""
        return self.store.session(self.id, key=self.key, owner=self.owner)

    async def info(self) -> SessionInfo | None:
        """Return the chat's entry in the list of chats, or None if there is no such chat."""
        return await self.store.get_session_info(self.id, key=self.key)

    async def set_title(self, title: str) -> None:
        """Set the chat's title, in one line."""
        await self.store.set_title(self.id, " ".join(title.split()), key=self.key)


def chat_of(request: Request, owner: Owner, chat_id: Id) -> Chat:
    """Return the chat that a path names."""
    return Chat(request.state.store, owner, chat_id)


MyChat = Annotated[Chat, Depends(chat_of)]


class Question(BaseModel):
    """A question of the user."""

    text: str = Field(pattern=r"\S", max_length=20_000)


class Title(BaseModel):
    """A chat's new title."""

    title: str = Field(pattern=r"\S", max_length=200)


class Branch(BaseModel):
    """The last message that a branch has in common with its chat."""

    up_to: str


@app.exception_handler(ChatHistoryError)
async def failed(request: Request, error: ChatHistoryError) -> JSONResponse:
    """Answer with the status of an error. The page may repeat whatever it sent."""
    return JSONResponse({"detail": type(error).__name__}, STATUS.get(type(error), 503))


@app.exception_handler(RequestValidationError)
@app.exception_handler(ValueError)
async def refused(request: Request, error: Exception) -> JSONResponse:
    """Answer that the request is wrong, such as its cursor. FastAPI's own answer would repeat what was sent."""
    return JSONResponse({"detail": "The request is not valid"}, 422)


@app.get("/")
async def page(owner: Annotated[str | None, Cookie()] = None) -> HTMLResponse:
    """Return the page, and make a new visitor an owner."""
    response = HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})
    if owner is None:
        # Add secure=True where the page is served by HTTPS.
        response.set_cookie("owner", secrets.token_hex(16), max_age=365 * 24 * 3600, httponly=True, samesite="lax")
    return response


@app.get("/chats")
async def chats(request: Request, owner: Owner) -> list[dict[str, str]]:
    """List the owner's chats, the last active first."""
    found = await request.state.store.list_sessions(owner, limit=100)
    return [{"id": split_key(info.session_id)[1], "title": info.title or "New chat"} for info in found.sessions]


@app.get("/chats/{chat_id}/messages")
async def messages(chat: MyChat, before: str | None = None) -> dict[str, Any]:
    """Return the latest messages, or those before a cursor."""
    found = await chat.history.apage(before=before)
    shown = [
        {
            "id": stored.id,
            "key": stored.message.id,
            "role": stored.message.type,
            "text": stored.message.text,
            "time": stored.created_at,
        }
        for stored in found.messages
    ]
    return {"messages": shown, "cursor": found.cursor}


@app.post("/chats/{chat_id}/messages", status_code=204)
async def send(chat: MyChat, question: Question, idempotency_key: Annotated[Id, Header()]) -> None:
    """Store a question, once however often it is sent. The first question is the title of a new chat."""
    asked = HumanMessage(question.text, id=idempotency_key)
    await chat.history.aadd_messages([asked], idempotency_key=idempotency_key)
    info = await chat.info()
    if info is not None and info.title is None:
        await chat.set_title(question.text[:60])


@app.get("/chats/{chat_id}/answers/{question_key}")
async def answer(chat: MyChat, question_key: Id) -> StreamingResponse:
    """Stream the answer to a stored question, as server-sent events, and store it.

    If the connection is lost, the page asks again. Several tabs may ask at the same time; one answer is stored.
    """
    recent = await chat.history.aget_messages(limit=50)
    keys = [message.id for message in recent]
    if question_key not in keys:
        raise HTTPException(404)
    answer_key = f"{question_key}-answer"
    asked = [] if answer_key in keys else recent[: keys.index(question_key) + 1]
    return StreamingResponse(events(chat, asked, answer_key), media_type="text/event-stream")


async def events(chat: Chat, asked: list[BaseMessage], answer_key: str) -> AsyncIterator[str]:
    """Send the words of an answer, store it, and tell that it is stored. Without messages, it was stored before."""
    if asked:
        text = ""
        async for word in model(asked):
            text += word
            yield f"data: {json.dumps(word)}\n\n"
        # An append would begin a chat anew that was deleted in the meantime.
        if await chat.info():
            # The key is in use if another tab was faster, whose answer may be another one.
            with suppress(IdempotencyKeyReusedError):
                await chat.history.aadd_messages([AIMessage(text, id=answer_key)], idempotency_key=answer_key)
    yield "event: stored\ndata: {}\n\n"


@app.patch("/chats/{chat_id}", status_code=204)
async def rename(chat: MyChat, title: Title) -> None:
    """Change a chat's title."""
    await chat.set_title(title.title)


@app.delete("/chats/{chat_id}", status_code=204)
async def delete(chat: MyChat) -> None:
    """Delete a chat."""
    await chat.store.delete_session(chat.id, key=chat.key)


@app.post("/chats/{chat_id}/branches", status_code=201)
async def branch(chat: MyChat, branch: Branch) -> dict[str, str]:
    """Copy a chat up to a message into a new chat, and return the new chat."""
    copy = Chat(chat.store, chat.owner, secrets.token_hex(12))
    await chat.history.acopy_to(copy.id, key=copy.key, up_to=branch.up_to)
    info = await chat.info()
    title = f"{(info and info.title) or 'New chat'} (branch)"
    await copy.set_title(title)
    return {"id": copy.id, "title": title}


def main() -> None:
    """Serve the chat, on the embedded engine unless there is another."""
    with nullcontext() if "AWS_ENDPOINT_URL" in os.environ else local_engine() as url:
        if url is not None:
            os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
            os.environ |= {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"}
        uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
