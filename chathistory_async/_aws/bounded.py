"""Reading no more of an answer than DynamoDB and KMS ever send."""

from __future__ import annotations

import contextlib
from typing import Any

import aiohttp

# A page has 1 MB of items and a refused transaction 4 MB. JSON makes 14 bytes of the 2 that {"NULL": true} counts.
MAX_ANSWER_BYTES = 32 * 1024 * 1024


class BoundedResponse(aiohttp.ClientResponse):
    """A response that reads as empty, and closes its connection, where it is longer than MAX_ANSWER_BYTES.

    An empty one is no success of DynamoDB's or KMS's, so that it fails as any other that is not theirs.
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
    """Have one of the SDK's clients read answers within the bound; a foreign HTTP session reads them as it does."""
    # What fails here, such as a certificate that is not there, is told of by the first request.
    with contextlib.suppress(Exception):
        http = client._endpoint.http_session
        session = await http._get_session(http._proxy_config.proxy_url_for(client.meta.endpoint_url))
        if isinstance(session, aiohttp.ClientSession):
            session._response_class = BoundedResponse
