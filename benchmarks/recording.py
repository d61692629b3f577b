"""An HTTP proxy before the engine that counts requests, bytes and the capacity that they consume."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import ClientSession, web


@dataclass
class Recording:
    """The traffic since the last ``restart``.

    Attributes:
        url: the proxy's endpoint.
        requests: how many there were.
        bytes: of the bodies of requests and answers.
        read_units: capacity units of reading.
        write_units: capacity units of writing, which cost five times as much.
    """

    url: str = ""
    requests: int = 0
    bytes: int = 0
    read_units: float = 0.0
    write_units: float = 0.0

    def restart(self) -> None:
        """Count from zero."""
        self.requests, self.bytes, self.read_units, self.write_units = 0, 0, 0.0, 0.0

    def add(self, operation: str, size: int, units: float) -> None:
        """Count a request."""
        self.requests += 1
        self.bytes += size
        if operation in ("GetItem", "Query"):
            self.read_units += units
        else:
            self.write_units += units

    def figures(self) -> dict[str, float]:
        """Return the counts by their names."""
        names = ("requests", "bytes", "read_units", "write_units")
        return {name: getattr(self, name) for name in names}


@asynccontextmanager
async def recording(target: str) -> AsyncIterator[Recording]:
    """Run a proxy before an engine, on this event loop."""
    record = Recording()
    async with ClientSession(auto_decompress=False) as session:

        async def forward(request: web.Request) -> web.Response:
            sent = await request.read()
            # Asked for here and not in the client, so that all variants are measured alike. No local engine checks the
            # signature.
            body = json.dumps(json.loads(sent) | {"ReturnConsumedCapacity": "TOTAL"}).encode()
            headers = request.headers.copy()
            headers["Content-Length"] = str(len(body))
            async with session.post(target, data=io.BytesIO(body), headers=headers) as answer:
                answered = json.loads(await answer.read())
                consumed = answered.pop("ConsumedCapacity", {"CapacityUnits": 0})
                received = json.dumps(answered, ensure_ascii=False, separators=(",", ":")).encode()
                units = sum(one["CapacityUnits"] for one in (consumed if isinstance(consumed, list) else [consumed]))
                record.add(request.headers["X-Amz-Target"].split(".")[1], len(sent) + len(received), units)
                return web.Response(body=received, status=answer.status, content_type="application/x-amz-json-1.0")

        app = web.Application(client_max_size=2**24)
        app.router.add_post("/", forward)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        record.url = "http://{}:{}".format(*runner.addresses[0][:2])
        try:
            yield record
        finally:
            await runner.cleanup()
