"""Compression of large bodies, because DynamoDB bills by the KB."""

from __future__ import annotations

import asyncio
import zlib

# JSON text of chats, measured: from here on it saves two write units of five and more, for about 30 µs. Below, text
# that can be read in the console is worth more than one unit.
MIN_BYTES = 4 * 1024
# The fastest level gives nine tenths of what zlib's default level 6 saves, in a third of its time.
LEVEL = 1
# Highly repetitive text is compressed to a thousandth: what comes out again must be bounded.
MAX_BYTES = 64 * 1024 * 1024
# 100 to 200 KB take a millisecond or two to compress, and half of that to decompress.
_STEP_BYTES = 128 * 1024


async def compressed(data: bytes) -> bytes:
    """Return the data compressed, and let the event loop run now and then."""
    compressor = zlib.compressobj(LEVEL)
    pieces = []
    for start in range(0, len(data), _STEP_BYTES):
        pieces.append(compressor.compress(data[start : start + _STEP_BYTES]))
        if start:
            await asyncio.sleep(0)
    return b"".join([*pieces, compressor.flush()])


async def decompressed(data: bytes) -> bytes:
    """Return what was compressed, and let the event loop run now and then.

    Raises:
        ValueError: it is not whole, or not what was compressed, or more than MAX_BYTES.
    """
    decompressor = zlib.decompressobj()
    pieces: list[bytes] = []
    size = 0
    while not decompressor.eof and size <= MAX_BYTES:
        try:
            piece = decompressor.decompress(data, _STEP_BYTES)
        except zlib.error:
            raise ValueError("It is not compressed by zlib, or damaged") from None
        data = decompressor.unconsumed_tail
        if not piece and not data:
            break
        if pieces:
            await asyncio.sleep(0)
        pieces.append(piece)
        size += len(piece)
    if not decompressor.eof or decompressor.unused_data or size > MAX_BYTES:
        raise ValueError("It is cut short, or goes on behind its end, or is too large")
    return b"".join(pieces)
