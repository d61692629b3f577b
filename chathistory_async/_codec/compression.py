"""Compression of large bodies, because DynamoDB bills by the KB."""

from __future__ import annotations

import asyncio
import zlib

# Measured with JSON text of chats: from this size on, where a write costs five units or more, compression saves two
# units and takes about 30 µs. Below it, text that is readable in the console is worth more than one unit.
MIN_BYTES = 4 * 1024
# The fastest level saves nine tenths of what zlib's default level 6 saves, in a third of the time.
LEVEL = 1
# Highly repetitive text is compressed to a thousandth, so the size after decompression must be bounded.
MAX_BYTES = 64 * 1024 * 1024
# 100 to 200 KB take 1 to 2 ms to compress, and half of that to decompress.
_STEP_BYTES = 128 * 1024


async def compressed(data: bytes) -> bytes:
    """Compress data with zlib. The event loop runs between steps of 128 KB."""
    compressor = zlib.compressobj(LEVEL)
    pieces = []
    for start in range(0, len(data), _STEP_BYTES):
        pieces.append(compressor.compress(data[start : start + _STEP_BYTES]))
        if start:
            await asyncio.sleep(0)
    return b"".join([*pieces, compressor.flush()])


async def decompressed(data: bytes) -> bytes:
    """Decompress zlib data. The event loop runs between steps of 128 KB.

    Raises:
        ValueError: the data is not zlib data, is truncated, has bytes after its end, or decompresses to more than
            MAX_BYTES.
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
        raise ValueError("It is truncated, or has bytes after its end, or is too large")
    return b"".join(pieces)
