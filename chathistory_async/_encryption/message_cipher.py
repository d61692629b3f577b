"""Client-side encryption: each value is encrypted on its own, in the message format of the AWS Encryption SDK.

https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/message-format.html
The encryption context binds a value to its table, to the names of the key attributes and to the session. AWS CloudTrail
shows the encryption context in the clear, so it holds a digest of the session's key. The first line of the plaintext
binds the value to its place in the session: see ``binding``.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from decimal import Context as DecimalContext
from decimal import Decimal
from typing import TypeVar

import orjson
from aws_encryption_sdk import CommitmentPolicy, DecryptorConfig, EncryptionSDKClient, StreamDecryptor
from aws_encryption_sdk.identifiers import AlgorithmSuite
from aws_encryption_sdk.materials_managers import (
    DecryptionMaterials,
    DecryptionMaterialsRequest,
    EncryptionMaterials,
    EncryptionMaterialsRequest,
)
from aws_encryption_sdk.materials_managers.base import CryptoMaterialsManager
from aws_encryption_sdk.structures import DataKey as SDKDataKey
from aws_encryption_sdk.structures import EncryptedDataKey as SDKEncryptedDataKey
from aws_encryption_sdk.structures import MasterKeyInfo

from .._aws.calls import connect
from .._aws.clients import Clients
from .._codec.attribute_values import AttributeValue
from .._cooperative import at_most, in_slices
from ..errors import AccessDeniedError, DecryptionError, EncryptionContextError, KmsKeyError, SessionRef
from .binding import Bound, BoundElsewhere, bind, body_of
from .data_keys import DataKey, DataKeys, EncryptedDataKey, kms_of

SUITE = AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
POLICY = CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
_KMS = "aws-kms"
Name = TypeVar("Name", int, str)
# With the SDK's default frames of 4 KB, a message of 300 KB takes four times as long, and 2 KB more.
_FRAME_BYTES = 64 * 1024
# A session that many hosts wrote has many data keys. KMS would only throttle more concurrent requests.
_KEYS_AT_ONCE = 16
_DIGITS = DecimalContext(prec=38)

_sdk = EncryptionSDKClient(commitment_policy=POLICY, max_encrypted_data_keys=1)


class MessageCipher:
    """Encrypts and decrypts the values of one session: messages, title, metadata, and the digests of a migration.

    Args:
        key_id: the KMS key to encrypt with: an id, an ARN or an alias.
        key: the session's primary key.
        clients: the clients for requests to KMS.
        ref: the table and session, for errors.
    """

    def __init__(self, key_id: str, key: Mapping[str, AttributeValue], clients: Clients, ref: SessionRef) -> None:
        self.context = encryption_context(ref.table_name, key)
        self._ref = ref
        self._keys = DataKeys(clients, key_id, tuple(self.context.items()), ref)

    @staticmethod
    async def connect(key_id: str, clients: Clients, ref: SessionRef) -> None:
        """Open the running loop's KMS client, so that the first message does not have to wait for it."""
        await connect(clients, ref, await kms_of(key_id, clients, ref))

    async def check_key(self) -> None:
        """Check that the credentials may encrypt and decrypt with the KMS key: see ``DataKeys.check``."""
        await self._keys.check()

    async def encrypt(self, bodies: Sequence[Bound]) -> list[bytes]:
        """Encrypt each body with its binding.

        Raises:
            ChatHistoryError: KMS returned no data key.
        """
        keys = [await self._keys.for_encryption(len(body)) for _, body in bodies]
        return await in_slices(self._encrypt, zip(keys, bodies, strict=True))

    async def decrypt(self, encrypted: Mapping[Name, Bound]) -> dict[Name, bytes]:
        """Decrypt values.

        Args:
            encrypted: the encrypted values by id or position in the session, each with the binding that belongs there.

        Returns:
            the decrypted bodies by the same ids or positions.

        Raises:
            DecryptionError: a value was changed or truncated after its encryption, or names no valid KMS key.
            EncryptionContextError: a value was encrypted for a different session or table, or as a different value of
                this session.
            ChatHistoryError: KMS did not decrypt a data key.
        """
        bodies: dict[Name, bytes] = {}
        missing: dict[Name, EncryptedDataKey] = {}

        def decrypt_if_known(name: Name, _: int) -> None:
            try:
                bodies[name] = self._decrypt(encrypted[name], name)
            except _UnknownKey as unknown:
                missing[name] = unknown.encrypted_key

        async def fetch(encrypted_key: EncryptedDataKey) -> DataKey:
            try:
                return await self._keys.decrypt(encrypted_key)
            except (DecryptionError, KmsKeyError, AccessDeniedError) as error:
                # A writer to the table may have stored one message under a KMS key that this process may not use.
                error.message_id = _id_of(next(name for name in missing if missing[name] == encrypted_key))
                raise

        await in_slices(decrypt_if_known, encrypted)
        fetched = await at_most(_KEYS_AT_ONCE, fetch, dict.fromkeys(missing.values()))
        keys = {key.encrypted_key: key for key in fetched}
        decrypted = await in_slices(lambda name, _: self._decrypt(encrypted[name], name, keys), missing)
        return bodies | dict(zip(missing, decrypted, strict=True))

    def _encrypt(self, keyed: tuple[DataKey, Bound], position: int) -> bytes:
        key, (binding, body) = keyed
        encrypted: bytes
        encrypted, _ = _sdk.encrypt(
            source=bind(binding, body),
            materials_manager=_Materials(self.context, self._keys.cached, key),
            encryption_context=self.context,
            algorithm=SUITE,
            frame_length=_FRAME_BYTES,
        )
        return encrypted

    def _decrypt(self, bound: Bound, name: int | str, keys: Mapping[EncryptedDataKey, DataKey] | None = None) -> bytes:
        materials = _Materials(self.context, self._keys.cached if keys is None else keys.get)
        binding, encrypted = bound
        stored = f"Stored {binding.name(name)}"
        try:
            return body_of(binding, _decrypted(encrypted, materials))
        except _UnknownKey:
            raise
        except BoundElsewhere as elsewhere:
            raise EncryptionContextError(
                f"{stored} {elsewhere}: a writer to the table has moved or copied it", self._ref, _id_of(name)
            ) from None
        except _OtherContext as other:
            raise EncryptionContextError(
                f"{stored} was encrypted for another session or table: its encryption context is"
                f" {other.context}, here it is {self.context}. If the table was restored under a different name,"
                " restore it under its original name",
                self._ref,
                _id_of(name),
            ) from None
        except Exception as error:  # noqa: BLE001
            # On damaged bytes the SDK and its dependencies raise many errors, and only some of them have a class of the
            # SDK. The context is dropped, because the frames of an SDK error's own cause hold the message's key.
            error.__context__ = None
            raise DecryptionError(
                f"{stored} cannot be decrypted: it was changed or truncated since it was encrypted, or is"
                f" not in the AWS Encryption SDK's format ({type(error).__name__})",
                self._ref,
                _id_of(name),
                # The traceback is dropped, because the SDK's frames hold data keys and partly decrypted content, and
                # tools that record errors also record local variables.
            ) from error.with_traceback(None)


def _id_of(name: int | str) -> str | None:
    """Return a message's id, or None if the name is a position."""
    return name if isinstance(name, str) else None


class _UnknownKey(Exception):
    def __init__(self, encrypted_key: EncryptedDataKey) -> None:
        super().__init__()
        self.encrypted_key = encrypted_key


class _OtherContext(Exception):
    def __init__(self, context: Mapping[str, str]) -> None:
        super().__init__()
        self.context = context


class _Materials(CryptoMaterialsManager):  # type: ignore[misc]  # the SDK is not typed
    """Gives the SDK the data keys of one session.

    Args:
        context: the encryption context that a message must have.
        find: returns the decrypted data key for a stored one, or None.
        encryption_key: the data key to encrypt with, or None to decrypt.
    """

    def __init__(
        self,
        context: Mapping[str, str],
        find: Callable[[EncryptedDataKey], DataKey | None],
        encryption_key: DataKey | None = None,
    ) -> None:
        self._context = context
        self._find = find
        self._encryption_key = encryption_key

    def get_encryption_materials(self, request: EncryptionMaterialsRequest) -> EncryptionMaterials:
        if self._encryption_key is None:
            raise ValueError("There is no data key to encrypt with")
        key = _for_sdk(self._encryption_key)
        return EncryptionMaterials(
            algorithm=SUITE,
            data_encryption_key=key,
            encrypted_data_keys={SDKEncryptedDataKey(key.key_provider, key.encrypted_data_key)},
            encryption_context=request.encryption_context,
        )

    def decrypt_materials(self, request: DecryptionMaterialsRequest) -> DecryptionMaterials:
        if request.algorithm is not SUITE:
            raise ValueError("It is encrypted with a different algorithm suite")
        if request.encryption_context != self._context:
            # Checked before any request to KMS, because a writer who copied the message may have chosen its context.
            raise _OtherContext(request.encryption_context)
        (stored,) = request.encrypted_data_keys
        if stored.key_provider.provider_id != _KMS:
            raise ValueError("Its data key is not encrypted by KMS")
        encrypted_key = EncryptedDataKey(stored.key_provider.key_info.decode(), stored.encrypted_data_key)
        key = self._find(encrypted_key)
        if key is None:
            raise _UnknownKey(encrypted_key)
        return DecryptionMaterials(data_key=_for_sdk(key))


def _for_sdk(key: DataKey) -> SDKDataKey:
    return SDKDataKey(MasterKeyInfo(_KMS, key.encrypted_key.key_arn), key.plaintext, key.encrypted_key.ciphertext)


class _Decryptor(StreamDecryptor):  # type: ignore[misc]  # the SDK is not typed
    def close(self) -> None:
        # The SDK's close() logs an error for each message that was not read to its end.
        io.IOBase.close(self)


def _decrypted(encrypted: bytes, materials: CryptoMaterialsManager) -> bytes:
    config = DecryptorConfig(
        source=encrypted, materials_manager=materials, commitment_policy=POLICY, max_encrypted_data_keys=1
    )
    with _Decryptor(config=config) as decryptor:
        # The size is an upper limit. Without one, the SDK reads 8 KB at a time, and copies the rest each time.
        body: bytes = decryptor.read(len(encrypted))
        if decryptor.source_stream.read(1):
            raise ValueError("There are bytes after its end")
    return body


def encryption_context(table_name: str, key: Mapping[str, AttributeValue]) -> dict[str, str]:
    """Return the encryption context of a session.

    The session is in it as a SHA-256 digest, in URL-safe base64 without padding. The digest is taken over the JSON
    text, without spaces, of a list with ``[name, type, value]`` for each key attribute, in the order of the names. The
    type is DynamoDB's letter. A number is in its shortest form, and bytes are base64.

    Args:
        table_name: the table's name or ARN. Only the name is used, because the replicas of a global table share it.
        key: the session's primary key.
    """
    names = sorted(key)
    parts = [[name, kind, _canonical(kind, value)] for name in names for kind, value in key[name].items()]
    digest = hashlib.sha256(orjson.dumps(parts)).digest()
    return {
        "table": table_name.rpartition("/")[2],
        "key": ",".join(names),
        "session": base64.urlsafe_b64encode(digest).decode().rstrip("="),
    }


def _canonical(kind: str, value: str | bytes) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if kind == "N":
        # To DynamoDB, 1 and 1.0 are the same key, and so are 0 and -0.
        return f"{Decimal(value).normalize(_DIGITS):f}" if Decimal(value) else "0"
    return value
