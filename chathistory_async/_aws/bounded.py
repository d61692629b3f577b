"""A bound on the size of a response: no more is read than DynamoDB and KMS ever send."""

from __future__ import annotations

import contextlib
from typing import Any

import aiohttp

# A page has up to 1 MB of items, and the error of a cancelled transaction up to 4 MB. JSON is up to 7 times as long:
# DynamoDB counts {"NULL": true} as 2 bytes, and its JSON has 14.
MAX_ANSWER_BYTES = 32 * 1024 * 1024


class BoundedResponse(aiohttp.ClientResponse):
    """A response that reads as empty, and closes its connection, if its body is longer than MAX_ANSWER_BYTES.

    DynamoDB and KMS send no success with an empty body, so the call fails as it does for any foreign response.
    """

    async def read(self) -> bytes:
        """Return the body."""
        if self._body is None:
            self._body = await self._read_bounded()
        return self._body

    async def _read_bounded(self) -> bytes:
        pieces, size = list[bytes](), 0
        try:
            while piece := await self.content.readany():
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    self.close()
                    return b""
        except BaseException:
            self.close()
            raise
        return b"".join(pieces)


async def bound_answers(client: Any) -> None:
    """Make one of the SDK's clients read responses within the bound, if its HTTP session is aiohttp's."""
    # The first request reports what fails here, such as a missing certificate.
    with contextlib.suppress(Exception):
        http = client._endpoint.http_session
        session = await http._get_session(http._proxy_config.proxy_url_for(client.meta.endpoint_url))
        if isinstance(session, aiohttp.ClientSession):
            session._response_class = BoundedResponse
