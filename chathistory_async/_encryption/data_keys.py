"""Data keys from KMS: generated, decrypted, and cached within fixed limits. Only this module sends requests to KMS."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from cachetools import TTLCache

from .._aws.calls import call, connect
from .._aws.clients import Clients
from .._aws.errors import aws_error_of, not_an_answer
from .._aws.sdk_sessions import known_regions
from .._request import Request, Service
from .._sync.fork import after_fork_in_child
from .._telemetry.gauges import DATA_KEYS, Observed, register
from ..errors import DecryptionError, ServiceError, SessionRef

Context: TypeAlias = tuple[tuple[str, str], ...]

# A revoked KMS permission takes effect within this time. It is the same time as in DynamoDB's encryption at rest.
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/encryption.howitworks.html
MAX_AGE_SECONDS = 300
# A leaked data key decrypts at most this many messages and bytes (or one message that is larger). Cryptography would
# allow 2**32 messages, because each message has its own key, which is derived from the data key.
MAX_MESSAGES = 1_000
MAX_BYTES = 64 * 1024 * 1024
# The limit of each of the two caches in a KeyCache, over all its sessions. A data key takes about 1 KB.
MAX_CACHED = 4_096

_KEY_BYTES = 32
_ARN = re.compile(
    r"arn:(?P<partition>[a-z-]+):kms:(?P<region>[a-z0-9-]+):(?P<account>\d{12}):key/(?P<id>[A-Za-z0-9-]+)"
)
_REGION = re.compile(r"arn:[a-z-]+:kms:([a-z0-9-]+):")


class EncryptedDataKey(NamedTuple):
    """A data key as it is stored with a message: encrypted under a KMS key."""

    key_arn: str
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class DataKey:
    encrypted_key: EncryptedDataKey
    plaintext: bytes = field(repr=False)


@dataclass(slots=True)
class _InUse:
    """The data key that encrypts a session's next messages, and how much more it may encrypt."""

    key: DataKey
    messages_left: int
    bytes_left: int


@dataclass(slots=True)
class _SharedCall:
    """A KMS call that is in progress, and the number of callers that wait for it."""

    task: asyncio.Task[DataKey]
    waiting: int = 0


class KeyCache:
    """The data keys of one configuration of clients: those in use for encryption, and those that were decrypted.

    A data key is dropped MAX_AGE_SECONDS after it was added.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._in_use: TTLCache[tuple[str, Context], _InUse] = TTLCache(MAX_CACHED, MAX_AGE_SECONDS, self._clock)
        self._decrypted: TTLCache[tuple[EncryptedDataKey, Context], DataKey] = TTLCache(
            MAX_CACHED, MAX_AGE_SECONDS, self._clock
        )
        self._shared_calls: dict[Any, _SharedCall] = {}

    def sizes(self) -> tuple[int, int]:
        """Return how many data keys are in use for encryption, and how many were decrypted."""
        with self._lock:
            self._in_use.expire()
            self._decrypted.expire()
            return len(self._in_use), len(self._decrypted)

    def take(self, key_id: str, context: Context, size: int) -> DataKey | None:
        """Return the data key in use and count a message of ``size`` bytes.

        Returns:
            the data key, or None if no data key is in use or the message would exceed its limits.
        """
        with self._lock:
            self._in_use.expire()
            in_use = self._in_use.get((key_id, context))
            if in_use is None or in_use.messages_left < 1:
                return None
            if in_use.bytes_left < size and in_use.messages_left < MAX_MESSAGES:
                # A data key without messages is exempt, so a message larger than MAX_BYTES gets its own data key.
                return None
            in_use.messages_left -= 1
            in_use.bytes_left -= size
            return in_use.key

    def use(self, key_id: str, context: Context, key: DataKey) -> None:
        with self._lock:
            self._in_use[key_id, context] = _InUse(key, MAX_MESSAGES, MAX_BYTES)
        self.add_decrypted(key, context)

    def decrypted(self, encrypted_key: EncryptedDataKey, context: Context) -> DataKey | None:
        with self._lock:
            self._decrypted.expire()
            return self._decrypted.get((encrypted_key, context))

    def add_decrypted(self, key: DataKey, context: Context) -> None:
        with self._lock:
            self._decrypted[key.encrypted_key, context] = key

    async def single_flight(self, what: object, ask: Callable[[], Coroutine[Any, Any, DataKey]]) -> DataKey:
        """Coalesce identical concurrent KMS calls on this loop (single flight). An error is shared, too.

        Cancelling one caller does not affect the others. The KMS call is cancelled when no caller waits any more.

        Args:
            what: identifies the call.
            ask: makes the call.
        """
        name = asyncio.get_running_loop(), what
        shared = self._shared_calls.get(name)
        if shared is None:
            shared = self._shared_calls[name] = _SharedCall(asyncio.create_task(ask()))
            shared.task.add_done_callback(lambda _: self._end(name, shared))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                self._end(name, shared)
                shared.task.cancel()

    def _end(self, name: object, shared: _SharedCall) -> None:
        if self._shared_calls.get(name) is shared:
            del self._shared_calls[name]


_caches: WeakKeyDictionary[Clients, KeyCache] = WeakKeyDictionary()
_caches_lock = threading.Lock()


def cache_of(clients: Clients) -> KeyCache:
    """Return the cache that all users of these clients share. No data key outlives the credentials that obtained it."""
    with _caches_lock:
        return _caches.get(clients) or _caches.setdefault(clients, KeyCache())


def _cached_keys() -> Observed:
    with _caches_lock:
        sizes = [cache.sizes() for cache in _caches.values()]
    in_use, decrypted = sum(one for one, _ in sizes), sum(other for _, other in sizes)
    return [(in_use, {"chathistory.key.use": "encrypt"}), (decrypted, {"chathistory.key.use": "decrypt"})]


register(DATA_KEYS, _cached_keys)


class DataKeys:
    """The data keys of one session.

    Args:
        clients: the clients for requests to KMS.
        key_id: the KMS key that new data keys are encrypted under: an id, an ARN or an alias.
        context: the encryption context.
        ref: the table and session, for errors.
    """

    def __init__(self, clients: Clients, key_id: str, context: Context, ref: SessionRef) -> None:
        self._clients = clients
        self._cache = cache_of(clients)
        self._key_id = key_id
        self._context = context
        self._ref = ref

    def cached(self, encrypted_key: EncryptedDataKey) -> DataKey | None:
        """Return the decrypted data key from the cache, or None if the cache does not hold it."""
        return self._cache.decrypted(encrypted_key, self._context)

    async def for_encryption(self, size: int) -> DataKey:
        """Return the data key for a message of ``size`` bytes: the one in use, or a new one if a limit is reached."""
        request = self._key_id, self._context
        while (key := self._cache.take(*request, size)) is None:
            await self._cache.single_flight(request, self._generate)
        return key

    async def decrypt(self, encrypted_key: EncryptedDataKey) -> DataKey:
        """Return a stored data key, decrypted: from the cache, or by KMS."""
        cached = self._cache.decrypted(encrypted_key, self._context)
        return cached or await self._cache.single_flight(
            (encrypted_key, self._context), lambda: self._ask_to_decrypt(encrypted_key)
        )

    async def check(self) -> None:
        """Check that the credentials may encrypt and decrypt. A new data key is dropped, its decryption is a dry run.

        Raises:
            ChatHistoryError: KMS refused the key or the credentials.
        """
        key_arn, ciphertext = (await self._new_key()).encrypted_key
        parameters = {
            "KeyId": key_arn,
            "CiphertextBlob": ciphertext,
            "EncryptionContext": dict(self._context),
            "DryRun": True,
        }
        try:
            await call(self._clients, Request("decrypt", parameters, await self._kms_of(key_arn)), self._ref)
        except ServiceError as error:
            if aws_error_of(error)[1] != "DryRunOperationException":
                raise

    async def _generate(self) -> DataKey:
        key = await self._new_key()
        self._cache.use(self._key_id, self._context, key)
        return key

    async def _new_key(self) -> DataKey:
        parameters = {"KeyId": self._key_id, "KeySpec": "AES_256", "EncryptionContext": dict(self._context)}
        kms = await self._kms_of(self._key_id)
        answer = await call(self._clients, Request("generate_data_key", parameters, kms), self._ref)
        return self._data_key(answer, answer.get("KeyId"), answer.get("CiphertextBlob"))

    async def _ask_to_decrypt(self, encrypted_key: EncryptedDataKey) -> DataKey:
        # The request names the KMS key, as the AWS Encryption SDK does. KMS could find the key by the ciphertext alone,
        # but would then also decrypt a ciphertext that an attacker made under their own key.
        key_arn = await self._trusted(encrypted_key.key_arn)
        parameters = {
            "KeyId": key_arn,
            "CiphertextBlob": encrypted_key.ciphertext,
            "EncryptionContext": dict(self._context),
        }
        answer = await call(self._clients, Request("decrypt", parameters, await self._kms_of(key_arn)), self._ref)
        key = self._data_key(answer, *encrypted_key)
        if answer.get("KeyId") != key_arn:
            del key
            raise DecryptionError(f"KMS decrypted a data key with {answer.get('KeyId')}, not {key_arn}", self._ref)
        self._cache.add_decrypted(key, self._context)
        return key

    def _data_key(self, answer: dict[str, Any], key_arn: str | None, ciphertext: bytes | None) -> DataKey:
        # The plaintext is removed from the response, and from this frame before an error is raised, because tools that
        # record errors also record local variables.
        try:
            plaintext = base64.b64decode(answer.pop("Plaintext", ""))
        except ValueError:
            plaintext = b""
        if not key_arn or not ciphertext or len(plaintext) != _KEY_BYTES:
            del plaintext
            raise not_an_answer(self._ref, "kms")
        return DataKey(EncryptedDataKey(key_arn, ciphertext), plaintext)

    async def _trusted(self, key_arn: str) -> str:
        """Return the ARN of the KMS key to decrypt with. A stored ARN is untrusted until KMS has decrypted with it.

        Raises:
            DecryptionError: the stored ARN is not that of a KMS key, or its region is unknown.
        """
        stored = _ARN.fullmatch(key_arn)
        if stored is None:
            raise DecryptionError("A stored message does not name a KMS key", self._ref)
        region = stored["region"]
        own_region = (await self._kms_of(self._key_id)).region_name
        in_own_region = key_arn.replace(f":{region}:", f":{own_region}:", 1)
        if stored["id"].startswith("mrk-") and self._key_id in (in_own_region, stored["id"]):
            # A multi-region key is the same key in each of its regions.
            return in_own_region
        # A made-up region must not cause a lookup of its endpoint.
        if region != own_region and region not in await known_regions("kms", stored["partition"]):
            raise DecryptionError(f"A stored message names a KMS key in an unknown region: {region}", self._ref)
        return key_arn

    async def _kms_of(self, key_id: str) -> Service:
        return await kms_of(key_id, self._clients, self._ref)


async def kms_of(key_id: str, clients: Clients, ref: SessionRef) -> Service:
    """Return the KMS service in a key's region. If the key id names no region, it is DynamoDB's region."""
    region = _REGION.match(key_id)
    return Service("kms", region[1] if region else await connect(clients, ref))


def _forget_in_child() -> None:
    global _caches_lock
    _caches_lock = threading.Lock()
    for cache in list(_caches.values()):
        cache.forget()


after_fork_in_child(_forget_in_child)
