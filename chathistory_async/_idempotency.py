"""Idempotency keys: the digests that are stored for a key and its batch. Pure: no I/O.

Only digests are stored. The digest of the batch includes the idempotency key. With a digest of the batch alone, a
reader of the table could guess the content of a short encrypted record and test the guess. With the key in the digest,
the reader must also know or guess the key.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from .errors import IdempotencyKeyReusedError, SessionRef

MAX_KEY_CHARACTERS = 256


def check_key(key: object) -> None:
    """Check an idempotency key.

    Raises:
        TypeError: the key is not a str.
        ValueError: the key is empty, or longer than MAX_KEY_CHARACTERS characters.
    """
    if not isinstance(key, str):
        raise TypeError(f"idempotency_key must be a str or None, not {type(key).__name__}")
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise ValueError(f"idempotency_key must have 1 to {MAX_KEY_CHARACTERS} characters, not {len(key):,}")


def key_digest_of(key: str) -> str:
    """Return the digest of an idempotency key."""
    return _digest_of(_bytes(key))


def content_digest_of(key: str, format_name: str, texts: Sequence[bytes]) -> str:
    """Return the digest of a batch, given as JSON texts, together with its idempotency key."""
    lengths = ",".join(str(len(text)) for text in texts)
    return _digest_of(_bytes(key), f";{format_name};{lengths};".encode(), *texts)


def key_reused(ref: SessionRef) -> IdempotencyKeyReusedError:
    """Return the error for an idempotency key that was already used to store a different batch."""
    return IdempotencyKeyReusedError(
        "The idempotency key was used before with different content, and nothing was written: use a new key for new"
        " content",
        ref,
    )


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogatepass")


def _digest_of(*pieces: bytes) -> str:
    """Return a 128-bit digest as 22 characters of URL-safe base64."""
    hashing = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        hashing.update(piece)
    return base64.urlsafe_b64encode(hashing.digest()).decode().rstrip("=")
