"""The web chat in ``examples/fastapi_chat``: its server from outside, and its page in a browser."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Page, browser
from conftest import created_table
from engines import ROOT, Engine
from langchain_core.messages import AIMessage, HumanMessage

from chathistory_async import ChatHistoryStore

EXAMPLE = ROOT / "examples" / "fastapi_chat"
MARKUP = "<script>document.title = 'run'</script><b>bold</b> & <img src=//a.example/x.png>"


class Server:
    """The chat's server in a process of its own, on a table of its own."""

    def __init__(self, directory: Path, table: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.table = table
        self._program = directory / "main.py"
        self._program.write_text((EXAMPLE / "main.py").read_text().replace('"Chats"', repr(table)))
        (directory / "page.html").write_text((EXAMPLE / "page.html").read_text())

    async def start(self) -> None:
        command = [sys.executable, str(self._program)]
        self._process = subprocess.Popen(command, env=os.environ | {"PORT": str(self.port)})
        async with httpx.AsyncClient() as client:
            while True:
                assert self._process.poll() is None
                try:
                    await client.get(self.url)
                except httpx.ConnectError:
                    await asyncio.sleep(0.1)
                else:
                    return

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def chats_table(engine: Engine) -> Iterator[str]:
    with created_table(session_index=True) as name:
        yield name


@pytest.fixture(scope="module")
async def server(chats_table: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    server = Server(tmp_path_factory.mktemp("chat"), chats_table)
    await server.start()
    yield server
    server.kill()


def new_id() -> str:
    return secrets.token_hex(12)


class User:
    """Somebody who has opened the page, and talks to its server without it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.chat = f"chats/{new_id()}"

    async def send(self, text: str, key: str) -> int:
        sent = await self.client.post(f"{self.chat}/messages", json={"text": text}, headers={"Idempotency-Key": key})
        return sent.status_code

    async def messages(self) -> list[tuple[str, str]]:
        found = (await self.client.get(f"{self.chat}/messages")).raise_for_status().json()["messages"]
        return [(message["role"], message["text"]) for message in found]

    async def answer(self, key: str) -> list[str]:
        """Return the events of an answer."""
        answer = (await self.client.get(f"{self.chat}/answers/{key}")).raise_for_status()
        return answer.text.removesuffix("\n\n").split("\n\n")

    async def chats(self) -> list[str]:
        return [chat["title"] for chat in (await self.client.get("chats")).raise_for_status().json()]


@pytest.fixture
async def user(server: Server) -> AsyncIterator[User]:
    async with httpx.AsyncClient(base_url=server.url, timeout=100) as client:
        await client.get("")
        yield User(client)


@pytest.fixture
async def other_user(server: Server) -> AsyncIterator[User]:
    async with httpx.AsyncClient(base_url=server.url, timeout=100) as client:
        await client.get("")
        yield User(client)


STORED = "event: stored\ndata: {}"


def text_of(events: list[str]) -> str:
    assert events[-1] == STORED
    return "".join(json.loads(event.removeprefix("data: ")) for event in events[:-1])


async def test_a_send_that_is_repeated_stores_once(user: User) -> None:
    key = new_id()
    assert await user.send("Hello!", key) == await user.send("Hello!", key) == 204
    assert await user.messages() == [("human", "Hello!")]
    assert await user.send("Hi!", key) == 409
    assert await user.messages() == [("human", "Hello!")]
    assert await user.chats() == ["Hello!"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/messages?before=xx", ""),
        ("POST", "/branches", '{"up_to": "xx"}'),
        ("POST", "/messages", r'{"text": "\ud800"}'),
        ("POST", "/messages", '{"text": " "}'),
        ("PATCH", "", r'{"title": "\ud800"}'),
        ("PATCH", "", '{"title": " "}'),
    ],
)
async def test_a_wrong_request_is_refused(user: User, method: str, path: str, body: str) -> None:
    await user.send("Hello!", new_id())
    headers = {"Idempotency-Key": new_id(), "Content-Type": "application/json"}
    response = await user.client.request(method, user.chat + path, content=body, headers=headers)
    assert (response.status_code, response.json()) == (422, {"detail": "The request is not valid"})
    assert await user.chats() == ["Hello!"]


async def test_an_answer_is_streamed_and_stored_once(user: User) -> None:
    key = new_id()
    await user.send(MARKUP, key)
    first, second = await asyncio.gather(user.answer(key), user.answer(key))
    assert first == second
    assert len(first) > 10
    answer = text_of(first)
    assert MARKUP in answer
    assert await user.messages() == [("human", MARKUP), ("ai", answer)]
    assert await user.answer(key) == [STORED]


async def test_a_reader_who_leaves_loses_nothing_that_was_confirmed(user: User) -> None:
    key = new_id()
    await user.send("Hello!", key)
    async with user.client.stream("GET", f"{user.chat}/answers/{key}") as answer:
        assert await anext(answer.aiter_lines()) == 'data: "You "'
    assert (await user.messages())[0] == ("human", "Hello!")
    await user.answer(key)
    # An answer that was cut short is not stored, nor is a second one.
    [question, (role, text)] = await user.messages()
    assert (question, role) == (("human", "Hello!"), "ai")
    assert text.endswith("I only play the part of a model.")


async def test_an_answer_does_not_begin_a_deleted_chat_anew(user: User) -> None:
    key = new_id()
    await user.send("Hello!", key)
    async with user.client.stream("GET", f"{user.chat}/answers/{key}") as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        assert (await user.client.delete(user.chat)).status_code == 204
        assert [line async for line in lines][-3:] == ["event: stored", "data: {}", ""]
    assert await user.messages() == []
    assert await user.chats() == []


async def test_an_owner_s_chats_are_no_other_owner_s(user: User, other_user: User, server: Server) -> None:
    await user.send("Hello!", new_id())
    other_user.chat = user.chat
    assert await other_user.messages() == []
    assert await other_user.chats() == []
    assert (await other_user.client.patch(user.chat, json={"title": "Mine"})).status_code == 404
    await other_user.client.delete(user.chat)
    assert await user.messages() == [("human", "Hello!")]
    async with httpx.AsyncClient(base_url=server.url) as nobody:
        assert (await nobody.get("chats")).status_code == 422


@pytest.mark.stress
async def test_it_runs_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server = Server(tmp_path, "Chats")
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=100) as client:
            await client.get("")
            assert await User(client).send("Hello!", new_id()) == 204
    finally:
        server.kill()


@pytest.fixture(scope="module")
async def chromium(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    async with browser(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
async def page(chromium: Page, server: Server) -> AsyncIterator[Page]:
    """The page of a new visitor."""
    await chromium.call("Network.clearBrowserCookies")
    chromium.requested.clear()
    chromium.logged.clear()
    await chromium.open("about:blank", width=1200)
    await chromium.open(server.url, width=1200)
    yield chromium
    assert chromium.logged == []


READY = "!document.getElementById('send').disabled"


async def ask(page: Page, text: str) -> None:
    await page.until(READY)
    await page.value("document.getElementById('text').focus()")
    await page.type(text)
    await page.press("Enter")


async def answers(page: Page, count: int) -> list[str]:
    """Wait until so many answers are stored, and return the texts of all messages."""
    await page.until(f"document.querySelectorAll('article.ai .branch').length == {count}")
    return await texts(page)


async def texts(page: Page) -> list[str]:
    found: list[str] = await page.value("[...document.querySelectorAll('article .text')].map(text => text.textContent)")
    return found


async def titles(page: Page) -> list[str]:
    found: list[str] = await page.value("[...document.querySelectorAll('nav a')].map(link => link.textContent)")
    return found


async def click(page: Page, name: str) -> None:
    """Click the first button of this name that is shown."""
    found = (
        "[...document.querySelectorAll('button')].find(button => button.textContent == {} && button.checkVisibility())"
    )
    await page.until(found.format(json.dumps(name)))
    await page.value(found.format(json.dumps(name)) + ".click()")


async def reload(page: Page, server: Server) -> None:
    place = await page.value("location.hash")
    await page.open("about:blank", width=1200)
    await page.open(server.url + place, width=1200)


@pytest.mark.browser
async def test_a_chat_streams_and_is_there_after_a_reload(page: Page, server: Server) -> None:
    await ask(page, MARKUP)
    await page.until("document.querySelector('article.ai:not(:has(.branch)) .text')?.textContent.startsWith('You')")
    shown = await answers(page, 1)
    assert shown[0] == MARKUP
    assert MARKUP in shown[1]
    await reload(page, server)
    assert await answers(page, 1) == shown
    await page.until(f"document.title == {json.dumps(MARKUP[:60])}")
    assert await page.value("document.querySelectorAll('img, b, article script').length") == 0
    assert all(url.startswith((server.url, "about:", "data:")) for url in page.requested)


@pytest.mark.browser
async def test_a_chat_is_renamed_branched_and_deleted(page: Page, server: Server) -> None:
    await ask(page, "One")
    await answers(page, 1)
    await ask(page, "Two")
    shown = await answers(page, 2)

    await click(page, "Rename")
    await page.type("Numbers")
    await page.press("Enter")
    await page.until("document.title == 'Numbers'")

    await page.value("document.querySelectorAll('.branch')[1].click()")
    await page.until("document.title == 'Numbers (branch)'")
    assert await answers(page, 1) == shown[:2]
    await ask(page, "Three")
    assert (await answers(page, 2))[:3] == [*shown[:2], "Three"]

    await page.value("document.querySelectorAll('nav a')[1].click()")
    await page.until("document.title == 'Numbers'")
    assert await answers(page, 2) == shown
    await click(page, "Delete")
    await page.press("Escape")
    assert await titles(page) == ["Numbers (branch)", "Numbers"]
    await click(page, "Delete")
    # The focus is on Cancel at first.
    await page.press("Tab")
    await page.press("Enter")
    await page.until("document.querySelector('.welcome')")
    await reload(page, server)
    await page.until("document.querySelector('nav a')")
    assert await titles(page) == ["Numbers (branch)"]


@pytest.mark.browser
async def test_a_branch_from_a_question_gets_an_answer(page: Page) -> None:
    await ask(page, "One")
    shown = await answers(page, 1)
    await click(page, "Branch from here")
    await page.until("document.title == 'One (branch)'")
    assert await answers(page, 1) == shown


LOSE_ONE_RESPONSE = """
const sending = window.fetch;
window.fetch = async (...request) => {
  const response = await sending(...request);
  // The list of chats may be read at the same time.
  if (request[1]?.method !== "POST") return response;
  window.fetch = sending;
  throw new TypeError("Failed to fetch");
};
"""


@pytest.mark.browser
async def test_a_message_whose_response_is_lost_is_sent_again_and_stored_once(page: Page) -> None:
    await page.until(READY)
    await page.value(LOSE_ONE_RESPONSE)
    await ask(page, "Hello!")
    await page.until("document.activeElement.id == 'again'")
    assert await page.value("document.querySelector('#status.bad').textContent")
    # As when the user comes back from another tab.
    await page.value("void readChats().then(() => { document.body.id = 'read' })")
    await page.until("document.body.id == 'read'")
    assert await page.value("document.activeElement.id") == "again"
    await page.press("Enter")
    assert (await answers(page, 1))[0] == "Hello!"
    assert len(await texts(page)) == 2


@pytest.mark.browser
async def test_an_answer_comes_though_the_server_ends_meanwhile(page: Page, server: Server) -> None:
    await ask(page, "Hello! " * 30)
    await page.until("document.querySelector('article.ai .text')?.textContent")
    server.kill()
    await page.until("document.querySelector('#status.bad')")
    await server.start()
    await answers(page, 1)
    assert len(await texts(page)) == 2
    assert await page.value("document.getElementById('status').textContent") == ""
    # What the browser says of the lost connection.
    page.logged.clear()


@pytest.mark.browser
async def test_two_tabs_show_one_chat(page: Page, server: Server) -> None:
    await ask(page, "Hello! " * 10)
    await page.until("document.querySelector('article.ai')")
    async with page.another_tab() as other:
        await other.open(server.url + await page.value("location.hash"), width=1200)
        shown = await answers(page, 1)
        assert await answers(other, 1) == shown
        await ask(other, "And I?")
        both = await answers(other, 2)
        assert both[:2] == shown
        await page.value("window.dispatchEvent(new Event('focus'))")
        assert await answers(page, 2) == both
        await other.value("location.hash = ''")
        assert other.logged == []


@pytest.mark.browser
async def test_a_long_chat_is_shown_from_its_end(page: Page, server: Server) -> None:
    await page.until(READY)
    [cookie] = (await page.call("Network.getCookies"))["cookies"]
    owner, chat = cookie["value"], new_id()
    said = [kind(f"{number}", id=f"{number}") for number in range(30) for kind in (HumanMessage, AIMessage)]
    async with ChatHistoryStore(server.table, session_index=True, key_parts=2) as store:
        history = store.session(chat, key={"SessionId": (owner, chat)}, owner=owner)
        await history.aadd_messages([*said, HumanMessage("Last", id="key"), AIMessage("Done", id="key-answer")])
    await page.value(f"location.hash = '{chat}'")
    await page.until("document.querySelectorAll('article').length == 50")
    scroller = "document.getElementById('scroller')"
    assert await page.value(f"{scroller}.scrollTop + {scroller}.clientHeight >= {scroller}.scrollHeight - 1")
    await click(page, "Show older messages")
    await page.until("document.querySelectorAll('article').length == 62")
    assert await texts(page) == [str(message.content) for message in said] + ["Last", "Done"]
    assert await page.value("document.getElementById('older').hidden")


@pytest.mark.browser
async def test_the_page_fits_a_phone_and_the_dark(page: Page, server: Server) -> None:
    await ask(page, "word" * 100)
    await answers(page, 1)
    place, colours = await page.value("location.hash"), []
    for width, dark in ((390, False), (390, True), (1200, True)):
        await page.open("about:blank", width=width)
        await page.open(server.url + place, width=width, dark=dark)
        await answers(page, 1)
        assert await page.value("document.documentElement.scrollWidth") <= width
        colours.append(await page.value("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(15, 19, 24)", "rgb(15, 19, 24)"]


@pytest.mark.browser
async def test_a_phone_s_list_of_chats_opens_and_closes_by_the_keyboard(page: Page, server: Server) -> None:
    await page.open("about:blank", width=390)
    await page.open(server.url, width=390)
    await page.until(READY)
    side = "document.getElementById('side').checkVisibility()"
    assert not await page.value(side)
    await page.value("document.getElementById('menu').focus()")
    await page.press("Enter")
    await page.until(side)
    assert await page.value("document.activeElement.id") == "new"
    await page.press("Escape")
    await page.until(f"!{side}")
    assert await page.value("document.activeElement.id") == "menu"


@pytest.mark.browser
async def test_every_control_has_a_name(page: Page) -> None:
    await ask(page, "Hello!")
    await answers(page, 1)
    await click(page, "Rename")
    nodes: list[dict[str, Any]] = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    controls = [node for node in nodes if node.get("role", {}).get("value") in ("button", "link", "textbox", "dialog")]
    assert {node["role"]["value"] for node in controls} >= {"button", "textbox"}
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
