"""An HTTP proxy before the engine that records requests and makes them fail."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import ClientSession, web
from multidict import CIMultiDict

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class Fault(Enum):
    """A fault of a request that reaches a ``FaultProxy``. Each value describes its fault."""

    NONE = "forward the request and the response"
    LOST_RESPONSE = "forward the request, then break the connection"
    LATE_ERROR = "forward the request, then respond 500"
    RESET = "break the connection"
    ERROR_500 = "respond 500: InternalServerError"
    ERROR_503 = "respond 503, as HTML"
    CAPACITY = "throttle: ProvisionedThroughputExceededException"
    THROTTLED = "throttle: ThrottlingException"
    DENIED = "refuse: AccessDeniedException"
    CONFLICT = "refuse: TransactionConflictException"
    DELAY = "forward the request after delay_seconds"
    LATE_REQUEST = "break the connection, and forward the request after late_seconds"


_FORWARDED = {Fault.NONE, Fault.DELAY, Fault.LOST_RESPONSE, Fault.LATE_ERROR}
_BROKEN = {Fault.LOST_RESPONSE, Fault.RESET, Fault.LATE_REQUEST}
_REFUSALS = {
    Fault.CAPACITY: "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
    Fault.THROTTLED: "com.amazon.coral.service#ThrottlingException",
    Fault.DENIED: "com.amazon.coral.service#AccessDeniedException",
    Fault.CONFLICT: "com.amazonaws.dynamodb.v20120810#TransactionConflictException",
}


@dataclass(frozen=True)
class Seen:
    """A request that a ``FaultProxy`` has seen.

    Attributes:
        operation: the operation's name, such as "PutItem".
        body: the request's parameters.
        authorization: the request's signature.
        by_sdk: whether the SDK's client sent the request, and not the library's fast path.
    """

    operation: str
    body: dict[str, Any]
    authorization: str
    by_sdk: bool


class FaultProxy:
    """An HTTP proxy before DynamoDB or KMS that records requests and makes them fail; a context manager.

    Give ``url`` to a store or a handle as its ``endpoint_url`` or ``kms_endpoint_url``. The proxy runs on a thread of
    its own, so synchronous calls and blocked event loops reach it too. The signature of a forwarded request does not
    match the engine's address, so the engine must be one that does not check signatures, as local ones are.

    Args:
        target: the engine's URL.

    Attributes:
        url: the proxy's URL.
        seen: the requests, in the order of their arrival.
        schedule: a function that returns the fault for a request. It runs on the proxy's thread. At first, it returns
            ``Fault.NONE`` for each request.
        edit: a function that changes the body of a forwarded response, or None to change nothing.
        delay_seconds: how long ``Fault.DELAY`` holds up a request.
        late_seconds: how long after the connection broke ``Fault.LATE_REQUEST`` forwards a request.
    """

    def __init__(self, target: str) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self.schedule: Callable[[Seen], Fault] = lambda seen: Fault.NONE
        self.edit: Callable[[Seen, dict[str, Any]], dict[str, Any]] | None = None
        self.delay_seconds = 0.05
        self.late_seconds = 1.0
        self._target = target
        self._late: set[asyncio.Task[web.Response]] = set()

    def operations(self) -> list[str]:
        """Return the operations of the requests, in the order of their arrival."""
        return [seen.operation for seen in self.seen]

    def script(self, *faults: Fault, operation: str = "") -> None:
        """Give the next requests these faults, in order, and no fault to later requests. Replaces ``schedule``.

        Args:
            faults: the faults, one for each request.
            operation: the operation, or a part of its name, whose requests are meant. Other requests have no fault.
        """
        left = list(faults)
        self.schedule = lambda seen: left.pop(0) if left and operation in seen.operation else Fault.NONE

    def wait_for_late_requests(self) -> None:
        """Block until every request with ``Fault.LATE_REQUEST`` was forwarded."""
        self._run(self._all_late())

    def __enter__(self) -> Self:
        """Start the proxy on a free port of 127.0.0.1."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chathistory_proxy", daemon=True)
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Forward the late requests, and stop the proxy."""
        try:
            self._run(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self) -> None:
        self._session = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await self._site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        try:
            await self._all_late()
        finally:
            await self._site.stop()
            # The server knows of a connection that it has just accepted, and closes it, only some steps of the loop
            # later.
            await asyncio.sleep(0.01)
            await self._runner.cleanup()
            await self._session.close()

    async def _all_late(self) -> None:
        await asyncio.gather(*self._late)

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        seen = _seen(request, body)
        self.seen.append(seen)
        fault = self.schedule(seen)
        if fault is Fault.DELAY:
            await asyncio.sleep(self.delay_seconds)
        if fault is Fault.LATE_REQUEST:
            self._late.add(asyncio.create_task(self._forward_later(body, request.headers.copy())))
        response = web.Response()
        if fault in _FORWARDED:
            response = self._edited(seen, await self._forward(body, request.headers.copy()))
        if fault in _BROKEN and request.transport is not None:
            request.transport.abort()
        error = _error(fault)
        # Not `or`: a response of aiohttp 3.9 is false.
        return response if error is None else error

    async def _forward_later(self, body: bytes, headers: CIMultiDict[str]) -> web.Response:
        await asyncio.sleep(self.late_seconds)
        return await self._forward(body, headers)

    def _target_of(self, headers: CIMultiDict[str]) -> str:
        return self._target

    async def _forward(self, body: bytes, headers: CIMultiDict[str]) -> web.Response:
        # aiohttp warns of a body of more than a megabyte, unless it is a stream.
        async with self._session.post(self._target_of(headers), data=io.BytesIO(body), headers=headers) as response:
            kept = {name: value for name, value in response.headers.items() if name.lower().startswith("x-amz")}
            return web.Response(
                body=await response.read(),
                status=response.status,
                headers=kept,
                content_type="application/x-amz-json-1.0",
            )

    def _edited(self, seen: Seen, response: web.Response) -> web.Response:
        if self.edit is not None:
            assert isinstance(response.body, bytes)  # noqa: S101  # _forward read it
            response.body = json.dumps(self.edit(seen, json.loads(response.body))).encode()
            response.headers.popall("x-amz-crc32", None)
        return response


def _seen(request: web.Request, body: bytes) -> Seen:
    return Seen(
        operation=request.headers["X-Amz-Target"].split(".")[1],
        body=json.loads(body),
        authorization=request.headers.get("Authorization", ""),
        by_sdk="amz-sdk-invocation-id" in request.headers,
    )


def _error(fault: Fault) -> web.Response | None:
    """Return the response of a fault, or None if it has none of its own."""
    if fault in (Fault.LATE_ERROR, Fault.ERROR_500):
        return web.json_response({"__type": "com.amazonaws.dynamodb.v20120810#InternalServerError"}, status=500)
    if fault is Fault.ERROR_503:
        return web.Response(text="<html><h1>Service Unavailable</h1></html>", status=503, content_type="text/html")
    if fault in _REFUSALS:
        return web.json_response({"__type": _REFUSALS[fault], "message": "no"}, status=400)
    return None
