"""A page in Debian's chromium, by the DevTools protocol: what a test needs of it, and no more."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")
_START_SECONDS = 60
_KEY_CODES = {"Tab": 9, "Enter": 13, "Escape": 27}


class Page:
    """The browser's page.

    Attributes:
        requested: the URLs that it has asked for, blocked ones too.
        logged: what it has logged, such as violations of a content security policy, and its scripts' exceptions.
    """

    def __init__(self, http: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse, tabs_url: str) -> None:
        self.requested: list[str] = []
        self.logged: list[str] = []
        self._http = http
        self._socket = socket
        self._tabs_url = tabs_url
        self._number = 0

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while (answer := await self._socket.receive_json(timeout=_START_SECONDS)).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    async def open(self, url: str, *, width: int, dark: bool = False) -> None:
        """Load a page in a window of this width, in light or dark colours."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState == 'complete'")

    async def value(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression in the page is true."""
        for _ in range(20 * _START_SECONDS):
            if await self.value(f"Boolean({condition})"):
                return
            await asyncio.sleep(0.05)
        raise TimeoutError(f"It does not come true: {condition}")

    async def type(self, text: str) -> None:
        """Type text where the focus is."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key, such as Enter, Tab or Escape, where the focus is."""
        pressed = {"key": key, "windowsVirtualKeyCode": _KEY_CODES[key], "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    @asynccontextmanager
    async def another_tab(self) -> AsyncIterator[Page]:
        """Open a second tab of the same browser, with the same cookies."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        async with _tab(self._http, self._tabs_url, target) as page:
            yield page

    async def screenshot(self) -> bytes:
        """Return an image of the whole page as PNG, for who wants to look at it."""
        return base64.b64decode((await self.call("Page.captureScreenshot", captureBeyondViewport=True))["data"])

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Network.requestWillBeSent":
            self.requested.append(event["params"]["request"]["url"])
        if event.get("method") == "Log.entryAdded":
            self.logged.append(event["params"]["entry"]["text"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.logged.append(event["params"]["exceptionDetails"]["exception"]["description"])


@asynccontextmanager
async def browser(directory: Path) -> AsyncIterator[Page]:
    """Run chromium with a new profile in a directory."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *_OPTIONS,
        f"--user-data-dir={directory}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        address = await _address(directory / "DevToolsActivePort")
        async with aiohttp.ClientSession() as http, http.get(f"{address}/json/list") as answer:
            [target] = [one for one in await answer.json() if one["type"] == "page"]
            async with _tab(http, target["webSocketDebuggerUrl"].removesuffix(target["id"]), target["id"]) as page:
                yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def _tab(http: aiohttp.ClientSession, tabs_url: str, target: str) -> AsyncIterator[Page]:
    async with http.ws_connect(tabs_url + target, max_msg_size=0) as socket:
        page = Page(http, socket, tabs_url)
        for domain in ("Page", "Network", "Log", "Runtime"):
            await page.call(f"{domain}.enable")
        yield page


async def _address(file: Path) -> str:
    for _ in range(20 * _START_SECONDS):
        if lines := _lines_of(file):
            return f"http://127.0.0.1:{lines[0]}"
        await asyncio.sleep(0.05)
    raise TimeoutError("chromium does not start")


def _lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
