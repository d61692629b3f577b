"""Client-side encryption: each value encrypted by itself, in the message format of the AWS Encryption SDK.

https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/message-format.html
The encryption context binds a value to its table, to the names of the key attributes and to the session. AWS's
CloudTrail shows it in the clear, so the session is in it as a digest. Within the session, the first line of what is
encrypted binds it: see ``_binding``.
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
# In the SDK's own frames of 4 KB a message of 300 KB takes four times as long, and 2 KB more.
_FRAME_BYTES = 64 * 1024
# A session that many hosts wrote has many data keys; more at once would only meet KMS's throttle.
_KEYS_AT_ONCE = 16
_DIGITS = DecimalContext(prec=38)

_sdk = EncryptionSDKClient(commitment_policy=POLICY, max_encrypted_data_keys=1)


class MessageCipher:
    """Encrypts and opens the values of one session: messages, title, metadata, digests.

    Args:
        key_id: the KMS key to encrypt with: an id, an ARN or an alias.
        key: the session's primary key.
        clients: what to ask KMS with.
        ref: the table's and session's name in errors.
    """

    def __init__(self, key_id: str, key: Mapping[str, AttributeValue], clients: Clients, ref: SessionRef) -> None:
        self.context = encryption_context(ref.table_name, key)
        self._ref = ref
        self._keys = DataKeys(clients, key_id, tuple(self.context.items()), ref)

    @staticmethod
    async def connect(key_id: str, clients: Clients, ref: SessionRef) -> None:
        """Open the running loop's KMS client, so that the first message does not have to."""
        await connect(clients, ref, await kms_of(key_id, clients, ref))

    async def encrypt(self, bodies: Sequence[Bound]) -> list[bytes]:
        """Encrypt each body with its binding.

        Raises:
            ChatHistoryError: KMS gives no data key.
        """
        keys = [await self._keys.for_encryption(len(body)) for _, body in bodies]
        return await in_slices(self._encrypt, zip(keys, bodies, strict=True))

    async def decrypt(self, encrypted: Mapping[Name, Bound]) -> dict[Name, bytes]:
        """Decrypt values, given by their ids or positions in the session, each with the binding that belongs there.

        Raises:
            DecryptionError: one is not as it was encrypted.
            EncryptionContextError: one was encrypted for another session or table, or as another value of this session.
            ChatHistoryError: KMS does not open a data key.
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
                # Whoever writes to the table may have stored one message under a key that nobody here may use.
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
            materials_manager=_Materials(self.context, self._keys.opened, key),
            encryption_context=self.context,
            algorithm=SUITE,
            frame_length=_FRAME_BYTES,
        )
        return encrypted

    def _decrypt(self, bound: Bound, name: int | str, keys: Mapping[EncryptedDataKey, DataKey] | None = None) -> bytes:
        materials = _Materials(self.context, self._keys.opened if keys is None else keys.get)
        binding, encrypted = bound
        stored = f"Stored {binding.name(name)}"
        try:
            return body_of(binding, _decrypted(encrypted, materials))
        except _UnknownKey:
            raise
        except BoundElsewhere as elsewhere:
            raise EncryptionContextError(
                f"{stored} {elsewhere}: who may write to the table has moved or copied it", self._ref, _id_of(name)
            ) from None
        except _OtherContext as other:
            raise EncryptionContextError(
                f"{stored} was encrypted for another session or table: its encryption context is"
                f" {other.context}, here it is {self.context}. A table that was restored under another name has to get"
                " its own back",
                self._ref,
                _id_of(name),
            ) from None
        except Exception as error:  # noqa: BLE001
            # Whatever the SDK and what it stands on raise on bytes that are not as they were written: of all of them
            # only some have a class of the SDK's. The error that an SDK's error was raised for has frames as well, with
            # the message's key in them.
            error.__context__ = None
            raise DecryptionError(
                f"{stored} cannot be opened: it was changed or cut short since it was encrypted, or is"
                f" not in the AWS Encryption SDK's format ({type(error).__name__})",
                self._ref,
                _id_of(name),
                # The SDK's frames hold data keys and what was opened before the fault, and those who record errors
                # record local variables too.
            ) from error.with_traceback(None)


def _id_of(name: int | str) -> str | None:
    """Return the id of a message that has one, None for a position."""
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
    """Hands the SDK the data keys of one session.

    Args:
        context: what a message must have been encrypted for.
        find: returns a stored data key, opened, or None.
        encryption_key: the data key to encrypt with, where a message is to be encrypted.
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
            raise ValueError("It is encrypted in another algorithm suite")
        if request.encryption_context != self._context:
            # Before KMS is asked: whoever copied it here chose what the request would say.
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
        # The SDK's own writes an error into the log for each message that could not be read to its end.
        io.IOBase.close(self)


def _decrypted(encrypted: bytes, materials: CryptoMaterialsManager) -> bytes:
    config = DecryptorConfig(
        source=encrypted, materials_manager=materials, commitment_policy=POLICY, max_encrypted_data_keys=1
    )
    with _Decryptor(config=config) as decryptor:
        # As many as there could be at most: without a number it reads 8 KB at a time, and copies the rest each time.
        body: bytes = decryptor.read(len(encrypted))
        if decryptor.source_stream.read(1):
            raise ValueError("There are bytes behind its end")
    return body


def encryption_context(table_name: str, key: Mapping[str, AttributeValue]) -> dict[str, str]:
    """Return the encryption context of a session.

    The digest is SHA-256, as URL-safe base64 without padding, over the JSON text, without spaces, of a list of
    ``[name, type, value]`` for each key attribute in the order of their names. The type is DynamoDB's letter, a number
    is in its shortest form and bytes are base64.

    Args:
        table_name: the table's name or ARN. The name alone counts: replicas of a global table have one name.
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
        # 1 and 1.0 are one key to DynamoDB, and so are 0 and -0.
        return f"{Decimal(value).normalize(_DIGITS):f}" if Decimal(value) else "0"
    return value
