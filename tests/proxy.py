"""The package's proxy, and what only these tests measure with it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from aiohttp import web
from botocore.config import Config
from multidict import CIMultiDict

from chathistory_async.testing import Fault, FaultProxy, Seen

__all__ = ["Fault", "Proxy", "Seen", "cut_off", "retries"]


def retries(attempts: int = 4) -> Config:
    """Return a client's settings: so many attempts for a request, after short pauses.

    A request waits long for its response: the proxy blocks while a schedule calls the engine, and an attempt that timed
    out then would be one more request than a test scripts.
    """
    return Config(retries={"total_max_attempts": attempts, "mode": "legacy"}, read_timeout=60)


class Proxy(FaultProxy):
    """Counts what passes.

    Attributes:
        busiest: how many requests were under way at once, at most.
        units: the capacity units that each request consumed, if ``measure`` is set.
        answers: what the engine answered: the operation, the status and the body.
    """

    def __init__(self, target: str, kms_target: str = "") -> None:
        super().__init__(target)
        self._kms_target = kms_target or target
        self.busiest = 0
        self.measure = False
        self.units: list[float] = []
        self.answers: list[tuple[str, int, bytes]] = []
        self._busy = 0
        self._late_may_arrive = threading.Event()
        self._late_may_arrive.set()

    @contextmanager
    def late_requests_held(self) -> Iterator[None]:
        """Forward no late request before the end of the block, however slow the engine is."""
        self._late_may_arrive.clear()
        try:
            yield
        finally:
            self._late_may_arrive.set()

    async def idle(self) -> None:
        """Wait until no request is under way but late ones. The engine answers a request whose caller was cancelled."""
        while self._busy:
            await asyncio.sleep(0.01)

    async def _handle(self, request: web.Request) -> web.Response:
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            return await super()._handle(request)
        finally:
            self._busy -= 1

    async def _forward_later(self, body: bytes, headers: CIMultiDict[str]) -> web.Response:
        await asyncio.to_thread(self._late_may_arrive.wait)
        return await super()._forward_later(body, headers)

    def _target_of(self, headers: CIMultiDict[str]) -> str:
        is_for_kms = headers["X-Amz-Target"].startswith("TrentService.")
        return self._kms_target if is_for_kms else super()._target_of(headers)

    async def _forward(self, body: bytes, headers: CIMultiDict[str]) -> web.Response:
        if self.measure:
            # No local engine checks the signature.
            body = json.dumps(json.loads(body) | {"ReturnConsumedCapacity": "TOTAL"}).encode()
            headers["Content-Length"] = str(len(body))
        response = await super()._forward(body, headers)
        assert isinstance(response.body, bytes)
        if self.measure:
            consumed = json.loads(response.body)["ConsumedCapacity"]
            self.units += [one["CapacityUnits"] for one in (consumed if isinstance(consumed, list) else [consumed])]
        self.answers.append((headers["X-Amz-Target"].split(".")[1], response.status, response.body))
        return response


async def cut_off(work: Awaitable[object], proxy: Proxy, number: int, fault: Fault = Fault.RESET) -> bool:
    """Cancel some work when its request of this number has arrived, and tell whether it has had so many.

    No other request of the work is under way any more when this returns, unless it is late.
    """
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    arrived = 0

    def schedule(seen: Seen) -> Fault:
        nonlocal arrived
        arrived += 1
        if arrived == number:
            loop.call_soon_threadsafe(task.cancel)
            return fault
        return Fault.NONE

    proxy.schedule = schedule
    await asyncio.gather(task, return_exceptions=True)
    await proxy.idle()
    proxy.schedule = lambda seen: Fault.NONE
    return arrived >= number
