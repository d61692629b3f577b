"""An HTTP proxy before the engine that counts requests and makes them fail on a schedule."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any

from aiohttp import ClientSession, web


class Fault(Enum):
    NONE = "forward the request and the answer"
    LOST_ANSWER = "forward the request, then break the connection"
    LATE_ERROR = "forward the request, then answer 500"
    RESET = "break the connection"
    ERROR_500 = "answer 500"
    ERROR_503 = "answer 503, as HTML"
    CAPACITY = "throttle: ProvisionedThroughputExceededException"
    THROTTLED = "throttle: ThrottlingException"
    DENIED = "refuse: AccessDeniedException"
    CONFLICT = "refuse: TransactionConflictException"
    DELAY = "forward after a moment"
    ZOMBIE = "break the connection, and forward the request later"


FORWARDED_UNANSWERED = {Fault.LOST_ANSWER, Fault.LATE_ERROR}
REFUSALS = {
    Fault.CAPACITY: "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
    Fault.THROTTLED: "com.amazon.coral.service#ThrottlingException",
    Fault.DENIED: "com.amazon.coral.service#AccessDeniedException",
    Fault.CONFLICT: "com.amazonaws.dynamodb.v20120810#TransactionConflictException",
}


@dataclass(frozen=True)
class Seen:
    """A request, and whether it was the SDK's client that sent it."""

    operation: str
    body: dict[str, Any]
    authorization: str
    by_sdk: bool


class Proxy:
    """Runs on a thread of its own, so that blocked loops and synchronous calls reach it too.

    Attributes:
        schedule: says which fault a request meets; all pass at first.
        edit: changes the answers, given as parsed JSON; none at first.
        seen: the requests, in the order of their arrival.
        busiest: how many were under way at once, at most.
        units: the capacity units that each request consumed, if ``measure`` is set.
        answers: what the engine answered: the operation, the status and the body.
    """

    def __init__(self, target: str) -> None:
        self.schedule: Callable[[Seen], Fault] = lambda seen: Fault.NONE
        self.edit: Callable[[Seen, dict[str, Any]], dict[str, Any]] | None = None
        self.seen: list[Seen] = []
        self.busiest = 0
        self.measure = False
        self.units: list[float] = []
        self.answers: list[tuple[str, int, bytes]] = []
        self.zombie_seconds = 1.0
        self.url = ""
        self._target = target
        self._busy = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._zombies: set[asyncio.Task[Any]] = set()

    def operations(self) -> list[str]:
        return [seen.operation for seen in self.seen]

    def script(self, *faults: Fault, operation: str = "") -> None:
        """Give the next requests (of one operation, or of all) these faults, in order; then none."""
        left = list(faults)
        self.schedule = lambda seen: left.pop(0) if left and operation in seen.operation else Fault.NONE

    def wait_for_zombies(self) -> None:
        async def wait() -> None:
            await asyncio.gather(*self._zombies)

        self._submit(wait())

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._submit(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._submit(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self) -> None:
        self._session = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await asyncio.gather(*self._zombies)
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.Response:
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            return await self._answer(request)
        finally:
            self._busy -= 1

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        operation = request.headers["X-Amz-Target"].split(".")[1]
        by_sdk = "amz-sdk-invocation-id" in request.headers
        seen = Seen(operation, json.loads(body), request.headers.get("Authorization", ""), by_sdk)
        self.seen.append(seen)
        fault = self.schedule(seen)
        if fault is Fault.DELAY:
            await asyncio.sleep(0.05)
        if fault is Fault.ZOMBIE:
            self._zombies.add(asyncio.create_task(self._forward_later(request, body)))
        answer = (
            await self._forward(request, body) if fault in {Fault.NONE, Fault.DELAY, *FORWARDED_UNANSWERED} else None
        )
        if answer is not None and self.edit is not None:
            assert isinstance(answer.body, bytes)
            answer.body = json.dumps(self.edit(seen, json.loads(answer.body))).encode()
            answer.headers.popall("x-amz-crc32", None)
        if fault in {Fault.LOST_ANSWER, Fault.RESET, Fault.ZOMBIE}:
            assert request.transport is not None
            request.transport.abort()
        if fault in {Fault.LATE_ERROR, Fault.ERROR_500}:
            return web.json_response({"__type": "com.amazonaws.dynamodb.v20120810#InternalServerError"}, status=500)
        if fault is Fault.ERROR_503:
            return web.Response(text="<html><h1>Service Unavailable</h1></html>", status=503, content_type="text/html")
        if fault in REFUSALS:
            return web.json_response({"__type": REFUSALS[fault], "message": "no"}, status=400)
        return answer or web.Response()

    async def _forward_later(self, request: web.Request, body: bytes) -> None:
        headers = request.headers.copy()
        await asyncio.sleep(self.zombie_seconds)
        async with self._session.post(self._target, data=io.BytesIO(body), headers=headers):
            pass

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = request.headers.copy()
        if self.measure:
            # No local engine checks the signature.
            body = json.dumps(json.loads(body) | {"ReturnConsumedCapacity": "TOTAL"}).encode()
            headers["Content-Length"] = str(len(body))
        async with self._session.post(self._target, data=io.BytesIO(body), headers=headers) as answer:
            if self.measure:
                consumed = (await answer.json(content_type=None))["ConsumedCapacity"]
                self.units += [one["CapacityUnits"] for one in (consumed if isinstance(consumed, list) else [consumed])]
            operation = headers["X-Amz-Target"].split(".")[1]
            self.answers.append((operation, answer.status, await answer.read()))
            kept = {name: value for name, value in answer.headers.items() if name.lower().startswith("x-amz")}
            return web.Response(
                body=await answer.read(), status=answer.status, headers=kept, content_type="application/x-amz-json-1.0"
            )
