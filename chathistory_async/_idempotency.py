"""Idempotency keys, pure: what is stored of a key and of the batch that was stored with it.

Digests alone are stored. The key goes into the digest of the batch: a digest of the batch alone would tell what an
encrypted record of few words holds. So only who knows the key, or can guess it, can guess the batch.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from .errors import IdempotencyKeyReusedError, SessionRef

MAX_KEY_CHARACTERS = 256


def check_key(key: object) -> None:
    """Refuse what is not an idempotency key.

    Raises:
        TypeError: it is not text.
        ValueError: it is empty or too long.
    """
    if not isinstance(key, str):
        raise TypeError(f"idempotency_key must be a str or None, not {type(key).__name__}")
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise ValueError(f"idempotency_key must have 1 to {MAX_KEY_CHARACTERS} characters, not {len(key):,}")


def key_digest_of(key: str) -> str:
    """Return the digest of a key."""
    return _digest_of(_bytes(key))


def content_digest_of(key: str, format_name: str, texts: Sequence[bytes]) -> str:
    """Return the digest of a batch, as JSON texts, that is stored with a key."""
    lengths = ",".join(str(len(text)) for text in texts)
    return _digest_of(_bytes(key), f";{format_name};{lengths};".encode(), *texts)


def key_reused(ref: SessionRef) -> IdempotencyKeyReusedError:
    """Return the error of a key with which something else was stored."""
    return IdempotencyKeyReusedError(
        "The idempotency key was used before with other content, and nothing was written: take a new key for new"
        " content",
        ref,
    )


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogatepass")


def _digest_of(*pieces: bytes) -> str:
    """Return a digest of 128 bits, as text of 22 characters."""
    hashing = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        hashing.update(piece)
    return base64.urlsafe_b64encode(hashing.digest()).decode().rstrip("=")
