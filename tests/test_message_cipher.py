"""Messages stored with a KMS key: nothing in the clear, in the AWS Encryption SDK's format, for one session only."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from traceback import TracebackException
from typing import Any

import aws_encryption_sdk
import pytest
from aws_encryption_sdk import CommitmentPolicy, StrictAwsKmsMasterKeyProvider
from aws_encryption_sdk.identifiers import AlgorithmSuite
from aws_encryption_sdk.materials_managers import EncryptionMaterials
from aws_encryption_sdk.materials_managers.base import CryptoMaterialsManager
from aws_encryption_sdk.structures import DataKey as SDKDataKey
from aws_encryption_sdk.structures import EncryptedDataKey, MasterKeyInfo
from conftest import Make, turns_of_another_task
from langchain_core.messages import AIMessage, HumanMessage
from proxy import Proxy
from samples import A_MESSAGE, EVERY_TYPE, bound, humans, texts

from chathistory_async import (
    AccessDeniedError,
    ChatHistoryStore,
    ConfigurationError,
    DecryptionError,
    DynamoDBChatMessageHistory,
    EncryptionContextError,
    KmsKeyError,
    UndecodableItemError,
)
from chathistory_async._encryption.message_cipher import MessageCipher, encryption_context

SECRET = "the launch code is 0000"
SUITE = AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
Item = Callable[[], dict[str, Any]]

official = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)


@pytest.fixture
def encryption(kms_key: str) -> dict[str, Any]:
    return {"kms_key_id": kms_key}


@pytest.fixture
def provider(kms_key: str) -> StrictAwsKmsMasterKeyProvider:
    return StrictAwsKmsMasterKeyProvider(key_ids=[kms_key])


class RawKeys(CryptoMaterialsManager):  # type: ignore[misc]  # the SDK is not typed
    """Encrypts with a data key that is given."""

    def __init__(self, key: SDKDataKey) -> None:
        self.key = key

    def get_encryption_materials(self, request: Any) -> EncryptionMaterials:
        stored = {EncryptedDataKey(self.key.key_provider, self.key.encrypted_data_key)}
        return EncryptionMaterials(SUITE, self.key, stored, request.encryption_context)

    def decrypt_materials(self, request: Any) -> Any:
        raise AssertionError("nothing is decrypted with it")


def cipher_of(history: DynamoDBChatMessageHistory) -> MessageCipher:
    assert history._session.access.cipher is not None
    return history._session.access.cipher


class TestNothingIsStoredInTheClear:
    async def test_in_the_item(self, make: Make, item: Item) -> None:
        await make().aadd_messages(EVERY_TYPE)
        await make(history_size=len(EVERY_TYPE) + 1).aadd_messages([HumanMessage(SECRET, id=SECRET, name=SECRET)] * 2)
        stored = item()
        elements = stored["History"]["L"]
        assert [list(element) for element in elements] == [["B"]] * (len(EVERY_TYPE) + 1)
        plain = [b'"type"', b'"data"', b"human", b"content", b"launch", b"emoji", b"tool_calls", b"run-1", b"terse"]
        for element in elements:
            assert not any(words in element["B"] for words in plain)
        del stored["History"]
        assert SECRET not in json.dumps(stored, default=str)

    async def test_on_the_wire(self, make: Make, proxy: Proxy) -> None:
        history = make(endpoint_url=proxy.url, kms_endpoint_url=proxy.url)
        await history.aadd_messages([AIMessage(SECRET, additional_kwargs={"nested": [SECRET]})])
        await history.aget_messages()
        assert set(proxy.operations()) == {"GenerateDataKey", "UpdateItem", "GetItem"}
        for seen in proxy.seen:
            assert SECRET not in json.dumps(seen.body)
            assert base64.b64encode(SECRET.encode()).decode()[:-4] not in json.dumps(seen.body)

    async def test_in_logs_and_texts(
        self, make: Make, kms_key: str, update: Any, item: Item, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        writer, reader = make(), make(boto3_session=None, region_name="us-east-1")
        for history in (writer, reader):
            await history.aadd_messages([HumanMessage(SECRET)])
            await history.aget_messages()
        elements = item()["History"]["L"]
        *rest, last = elements[1]["B"]
        update(History={"L": [elements[0], {"B": bytes([*rest, last ^ 1])}]})
        with pytest.raises(DecryptionError) as caught:
            await writer.aget_messages()
        logged = [record.getMessage() + repr(record.args) for record in caplog.records]
        assert any(record.name.startswith("aws_encryption_sdk") for record in caplog.records)
        assert any("GenerateDataKey" in line for line in logged)
        assert any("Decrypt" in line for line in logged)
        complaints = [record for record in caplog.records if record.levelno > logging.INFO]
        assert not [record for record in complaints if record.name.startswith("aws_encryption_sdk")]
        shown = "\n".join([*logged, str(caught.value), repr(caught.value.__cause__), repr(vars(cipher_of(writer)))])
        secrets = [SECRET.encode()]
        for history in (writer, reader):
            cache = cipher_of(history)._keys._cache
            secrets += [key.plaintext for key in cache._decrypted.values()]
            shown += repr([*cache._decrypted.values(), *cache._in_use.values()])
        assert len(set(secrets)) >= 3
        for secret in secrets:
            forms = [repr(secret)[2:-1], secret.hex(), base64.b64encode(secret).decode().rstrip("=")]
            assert not any(form in shown for form in forms)

    async def test_where_kms_gives_no_key(self, make: Make, item: Item) -> None:
        with pytest.raises(KmsKeyError):
            await make(kms_key_id="alias/none").aadd_messages([HumanMessage(SECRET)])
        assert item() is None


class TestOfficialSdk:
    def test_opens_what_we_encrypted(self, make: Make, item: Item, provider: StrictAwsKmsMasterKeyProvider) -> None:
        history = make()
        messages = [*EVERY_TYPE, HumanMessage("x" * 100_000)]
        history.add_messages(messages)
        decrypted = []
        for element in item()["History"]["L"]:
            plaintext, header = official.decrypt(source=element["B"], key_provider=provider)
            assert header.algorithm is SUITE
            assert header.encryption_context == history.encryption_context
            line, body = plaintext.split(b"\n", 1)
            assert line == b'{"value":"message"}'
            decrypted.append(json.loads(body))
        assert [form["type"] for form in decrypted] == [message.type for message in messages]
        assert [form["data"]["content"] for form in decrypted] == texts(messages)

    def test_encrypts_what_we_open(self, make: Make, update: Any, provider: StrictAwsKmsMasterKeyProvider) -> None:
        history = make()
        form = json.dumps({"type": "human", "data": {"content": "from elsewhere" * 50}}, indent=2)
        text = '{"value":"message"}\n' + form
        for frame_length in (0, 128, 4096):
            encrypted, _ = official.encrypt(
                source=text,
                key_provider=provider,
                encryption_context=history.encryption_context,
                algorithm=SUITE,
                frame_length=frame_length,
            )
            update(History={"L": [{"B": encrypted}]})
            assert history.messages == humans("from elsewhere" * 50)

    @pytest.mark.parametrize("suite", [None, AlgorithmSuite.AES_256_GCM_IV12_TAG16_HKDF_SHA256])
    def test_in_another_suite_is_refused(
        self, make: Make, update: Any, provider: StrictAwsKmsMasterKeyProvider, suite: AlgorithmSuite | None
    ) -> None:
        sdk = aws_encryption_sdk.EncryptionSDKClient(
            commitment_policy=CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT
            if suite
            else official.config.commitment_policy
        )
        history = make()
        context = history.encryption_context
        encrypted, _ = sdk.encrypt(source="{}", key_provider=provider, encryption_context=context, algorithm=suite)
        update(History={"L": [{"B": encrypted}]})
        with pytest.raises(DecryptionError, match="message 0 cannot be decrypted"):
            history.messages  # noqa: B018  # it reads

    def test_under_several_keys_is_refused(self, make: Make, update: Any, kms: Any, kms_key: str) -> None:
        other = kms.create_key()["KeyMetadata"]["Arn"]
        both = StrictAwsKmsMasterKeyProvider(key_ids=[kms_key, other])
        context = make().encryption_context
        encrypted, _ = official.encrypt(source="{}", key_provider=both, encryption_context=context, algorithm=SUITE)
        update(History={"L": [{"B": encrypted}]})
        with pytest.raises(DecryptionError):
            make().messages  # noqa: B018  # it reads


class TestTampering:
    """On elements as they are stored; what is refused here is refused by every read."""

    @pytest.fixture
    async def encrypted(self, make: Make) -> bytes:
        [encrypted] = await cipher_of(make()).encrypt(bound(SECRET.encode()))
        return encrypted

    async def refuse(self, make: Make, element: bytes, *kinds: type[Exception]) -> None:
        with pytest.raises(kinds or DecryptionError) as caught:
            await cipher_of(make()).decrypt({0: (A_MESSAGE, element)})
        assert SECRET not in str(caught.value) + repr(caught.value.__cause__)

    async def test_the_untouched_opens(self, make: Make, encrypted: bytes) -> None:
        assert await cipher_of(make()).decrypt({5: (A_MESSAGE, encrypted)}) == {5: SECRET.encode()}

    @pytest.mark.parametrize("bit", [0x01, 0x80])
    async def test_of_any_byte(self, make: Make, encrypted: bytes, bit: int) -> None:
        # The name of the KMS key is in the clear. Another name may be that of another key, which KMS speaks for.
        name = range(encrypted.index(b"arn:"), encrypted.index(b":key/") + 41)
        encrypted_key = range(name.stop, name.stop + 2 + int.from_bytes(encrypted[name.stop : name.stop + 2], "big"))
        for position in range(0, len(encrypted), 1 if bit == 0x01 else 7):
            flipped = bytearray(encrypted)
            flipped[position] ^= bit
            asked = position in name or position in encrypted_key
            kinds = (DecryptionError, KmsKeyError, AccessDeniedError) if asked else (DecryptionError,)
            await self.refuse(make, bytes(flipped), *kinds)

    async def test_of_the_length(self, make: Make, encrypted: bytes) -> None:
        for length in [*range(0, len(encrypted), 11), len(encrypted) - 1]:
            await self.refuse(make, encrypted[:length])
        await self.refuse(make, encrypted + b"\0")
        await self.refuse(make, encrypted + encrypted)

    async def test_leaves_nothing_of_it_in_what_error_trackers_record(self, make: Make) -> None:
        [encrypted] = await cipher_of(make()).encrypt(bound(SECRET.encode() * 10_000))
        keys = [key.plaintext for key in cipher_of(make())._keys._cache._decrypted.values()]
        for position in (100, len(encrypted) - 60, len(encrypted) - 1):
            flipped = bytearray(encrypted)
            flipped[position] ^= 1
            with pytest.raises((DecryptionError, KmsKeyError, AccessDeniedError)) as caught:
                await cipher_of(make()).decrypt({0: (A_MESSAGE, bytes(flipped))})
            error: BaseException | None = caught.value
            while error is not None:
                # Without this test's own frame, which knows it all.
                frames = error.__traceback__.tb_next if error.__traceback__ else None
                lines = TracebackException(type(error), error, frames, capture_locals=True).format(chain=False)
                recorded = "".join(lines)
                assert SECRET not in recorded
                assert not any(repr(key)[2:-1] in recorded for key in keys)
                error = error.__cause__

    async def test_of_the_header_leaves_no_key_of_the_message_either(self, make: Make, encrypted: bytes) -> None:
        # The SDK raises its error for one of the cipher's, whose frames hold the key that it derives for the message.
        for position in range(len(encrypted) - 120, len(encrypted), 7):
            flipped = bytearray(encrypted)
            flipped[position] ^= 1
            with pytest.raises(DecryptionError) as caught:
                await cipher_of(make()).decrypt({0: (A_MESSAGE, bytes(flipped))})
            chain = [caught.value.__cause__, caught.value.__context__]
            while chain:
                if (error := chain.pop()) is not None:
                    assert error.__traceback__ is None
                    chain += [error.__cause__, error.__context__]

    async def test_of_the_provider_of_the_data_key(self, make: Make) -> None:
        history = make()
        [encrypted] = await cipher_of(history).encrypt(bound(b"x"))
        [key] = [
            key
            for key in cipher_of(history)._keys._cache._decrypted.values()
            if key.encrypted_key.ciphertext in encrypted
        ]
        info = MasterKeyInfo("somebody", key.encrypted_key.key_arn)
        keys = RawKeys(SDKDataKey(info, key.plaintext, key.encrypted_key.ciphertext))
        forged, _ = official.encrypt(
            source="x", materials_manager=keys, encryption_context=history.encryption_context, algorithm=SUITE
        )
        await self.refuse(make, forged)

    async def test_of_one_message_withholds_all(self, make: Make, item: Item, update: Any) -> None:
        await make().aadd_messages(humans(*range(5)))
        elements = item()["History"]["L"]
        elements[3] = {"B": elements[3]["B"][:-1]}
        update(History={"L": elements})
        with pytest.raises(DecryptionError, match="Stored message 3 cannot be decrypted") as caught:
            await make().aget_messages()
        assert caught.value.session_key == make().key
        assert caught.value.__cause__ is not None

    async def test_with_what_is_inside_is_not_a_message(self, make: Make, update: Any) -> None:
        [encrypted] = await cipher_of(make()).encrypt(bound(SECRET.encode()))
        update(History={"L": [{"B": encrypted}]})
        with pytest.raises(UndecodableItemError, match=r"stored message 0 .* not the JSON text of a message"):
            await make().aget_messages()

    @pytest.mark.parametrize("element", [b"", b"\x02", b"not encrypted at all", b"\0" * 1000])
    async def test_with_what_was_never_encrypted(self, make: Make, element: bytes) -> None:
        await self.refuse(make, element)


class TestContext:
    """A value that was encrypted for one session cannot be decrypted in another, though both use the same key."""

    async def copied(self, source: DynamoDBChatMessageHistory, item: Item) -> dict[str, Any]:
        await source.aadd_messages([HumanMessage(SECRET)])
        element: dict[str, Any] = item()["History"]["L"][0]
        return element

    async def test_of_another_session(self, make: Make, item: Item, dynamodb: Any, proxy: Proxy) -> None:
        element = await self.copied(make(), item)
        victim = make(session="victim", kms_endpoint_url=proxy.url)
        dynamodb.put_item(TableName=victim.table_name, Item={"SessionId": {"S": "victim"}, "History": {"L": [element]}})
        with pytest.raises(
            EncryptionContextError, match="message 0 was encrypted for another session or table"
        ) as caught:
            await victim.aget_messages()
        assert SECRET not in str(caught.value)
        assert proxy.operations() == [], "KMS is not asked what can be told without it"

    async def test_of_another_table(self, make: Make, item: Item, encryption: dict[str, Any], session_id: str) -> None:
        element = await self.copied(make(), item)
        other = DynamoDBChatMessageHistory("another-table", session_id, **encryption)
        with pytest.raises(EncryptionContextError):
            await cipher_of(other).decrypt({0: (A_MESSAGE, element["B"])})

    @pytest.mark.parametrize(
        "key", [{"SessionId": 5}, {"SessionId": b"5"}, {"Session": "5"}, {"SessionId": "5", "a": "b"}]
    )
    async def test_of_another_key(self, make: Make, key: dict[str, Any]) -> None:
        [encrypted] = await cipher_of(make(key={"SessionId": "5"})).encrypt(bound(b"x"))
        with pytest.raises(EncryptionContextError):
            await cipher_of(make(key=key)).decrypt({0: (A_MESSAGE, encrypted)})

    async def test_that_was_forged_does_not_get_past_kms(self, make: Make) -> None:
        mine, other = (cipher_of(make(session=name)).context for name in ("mine", "other"))
        [encrypted] = await cipher_of(make(session="mine")).encrypt(bound(b"x"))
        forged = encrypted.replace(mine["session"].encode(), other["session"].encode())
        assert forged != encrypted
        with pytest.raises(DecryptionError, match="KMS cannot decrypt the data key of a stored message") as caught:
            await cipher_of(make(session="other")).decrypt({0: (A_MESSAGE, forged)})
        assert type(caught.value) is DecryptionError

    def test_shows_the_table_and_a_digest(self, make: Make) -> None:
        context = make(session="someone@example.com").encryption_context
        assert context is not None
        assert context["table"] == make().table_name
        assert context["key"] == "SessionId"
        assert set(context) == {"table", "key", "session"}
        assert "example" not in context["session"]
        assert make(kms_key_id=None).encryption_context is None

    def test_stays_what_it_is(self) -> None:
        """It is stored in every message: whoever changes it locks everybody out."""
        assert encryption_context("T", {"SessionId": {"S": "alice"}}) == {
            "table": "T",
            "key": "SessionId",
            "session": "5olPYACqCn6M8tVaMkLc8-k48cB3ENyv9oW41hJZbH4",
        }
        assert encryption_context("T", {"sk": {"N": "-1.50"}, "pk": {"B": b"\xff"}}) == {
            "table": "T",
            "key": "pk,sk",
            "session": "VKcXePQLI47vU64v3OIN79VRQkU8EYtSDBIiThbY27w",
        }

    @pytest.mark.parametrize("same", [Decimal("1.0"), Decimal("1.00"), Decimal("10e-1")])
    def test_is_one_for_one_key(self, make: Make, same: Decimal) -> None:
        assert make(key={"SessionId": 1}).encryption_context == make(key={"SessionId": same}).encryption_context
        zeros = [make(key={"SessionId": zero}).encryption_context for zero in (0, Decimal("-0.0"), Decimal("0e5"))]
        assert zeros[0] == zeros[1] == zeros[2]

    def test_is_one_for_a_tables_name_and_its_arn(self, encryption: dict[str, Any]) -> None:
        arn = "arn:aws:dynamodb:us-east-1:000000000000:table/Chat"
        contexts = [DynamoDBChatMessageHistory(name, "x", **encryption).encryption_context for name in ("Chat", arn)]
        assert contexts[0] == contexts[1]


class TestSwitchedOnMidway:
    async def test_both_kinds_are_read(self, make: Make, item: Item) -> None:
        await make(kms_key_id=None).aadd_messages(humans(1, 2))
        await make().aadd_messages(humans(3))
        await make(kms_key_id=None).aadd_messages(humans(4))
        await make().aadd_messages(humans(5))
        assert texts(await make().aget_messages()) == ["1", "2", "3", "4", "5"]
        assert [next(iter(element)) for element in item()["History"]["L"]] == ["M", "M", "B", "M", "B"]

    async def test_both_kinds_are_trimmed(self, make: Make, item: Item) -> None:
        await make(kms_key_id=None).aadd_messages(humans(*range(150)))
        await make().aadd_messages(humans(*range(150, 300)))
        await make(history_size=160).aadd_messages(humans(300))
        assert texts(await make().aget_messages()) == [str(number) for number in range(141, 301)]
        assert [next(iter(element)) for element in item()["History"]["L"]] == ["M"] * 9 + ["B"] * 151

    async def test_without_a_key_the_encrypted_is_an_error_that_names_the_parameter(self, make: Make) -> None:
        await make(kms_key_id=None).aadd_messages(humans(1))
        await make().aadd_messages(humans(2))
        with pytest.raises(ConfigurationError, match="Stored message 1 is encrypted: give kms_key_id") as caught:
            await make(kms_key_id=None).aget_messages()
        assert caught.value.session_key == make().key

    async def test_without_a_key_an_encrypted_session_can_be_cleared_and_trimmed(self, make: Make, item: Item) -> None:
        await make().aadd_messages(humans(*range(150)))
        await make(kms_key_id=None, history_size=10).aadd_messages(humans("plain"))
        assert texts(await make().aget_messages()) == [*(str(number) for number in range(141, 150)), "plain"]
        await make(kms_key_id=None).aclear()
        assert item() is None


class TestStore:
    async def test_its_sessions_are_encrypted(self, table: str, session_id: str, kms_key: str, item: Item) -> None:
        async with ChatHistoryStore(table, layout="single_item", kms_key_id=kms_key) as store:
            history = store.session(session_id)
            await history.aadd_messages([HumanMessage(SECRET)])
            assert texts(await store.session(session_id).aget_messages()) == [SECRET]
            assert history.kms_key_id == kms_key
        assert list(item()["History"]["L"][0]) == ["B"]

    async def test_opens_its_kms_client_on_entering(self, collection_table: str, kms_key: str, proxy: Proxy) -> None:
        async with ChatHistoryStore(collection_table, kms_key_id=kms_key, kms_endpoint_url=proxy.url) as store:
            assert {holder.service.name for holder in store._settings.clients._all_holders()} == {"dynamodb", "kms"}
        assert not store._settings.clients._all_holders() or all(
            holder._client is None for holder in store._settings.clients._all_holders()
        )


class TestParameter:
    def test_none_stores_in_the_clear(self, make: Make, item: Item) -> None:
        history = make(kms_key_id=None)
        history.add_user_message("plain")
        assert list(item()["History"]["L"][0]) == ["M"]

    def test_that_is_empty_does_not_switch_encryption_off(self, make: Make, table: str) -> None:
        for construct in (lambda: make(kms_key_id=""), lambda: ChatHistoryStore(table, kms_key_id="")):
            with pytest.raises(ValueError, match="kms_key_id is empty"):
                construct()

    def test_must_be_text(self, make: Make, table: str) -> None:
        wrong: Any = b"alias/chat"
        for construct in (
            lambda: make(kms_key_id=wrong),
            lambda: ChatHistoryStore(table, layout="single_item", kms_key_id=wrong),
        ):
            with pytest.raises(TypeError, match="kms_key_id must be a str or None, not bytes"):
                construct()

    def test_needs_an_extra_that_nothing_else_needs(self, table: str) -> None:
        code = """
        import sys
        import chathistory_async
        assert not {"aws_encryption_sdk", "cachetools"} & set(sys.modules)
        sys.modules["aws_encryption_sdk"] = None
        chathistory_async.DynamoDBChatMessageHistory("t", "s")
        try:
            chathistory_async.DynamoDBChatMessageHistory("t", "s", kms_key_id="alias/chat")
        except ModuleNotFoundError as error:
            print(error)
        """
        program = "\n".join(
            line.strip(" ") if not line.startswith(" " * 12) else "    " + line.strip() for line in code.splitlines()
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == "kms_key_id needs the AWS Encryption SDK: pip install 'chathistory-async[kms]'\n", (
            done.stderr
        )


async def test_the_loop_goes_on_while_a_long_history_is_decrypted(make: Make) -> None:
    history = make()
    await cipher_of(history).encrypt(bound(b"x"))
    async with turns_of_another_task() as turns:
        encrypted = await cipher_of(history).encrypt(bound(b"x" * 300) * 800)
        seen = [turns()]
        await cipher_of(history).decrypt(dict(enumerate(bound(*encrypted))))
        seen.append(turns())
    # About 80 µs each, in slices of 2 ms.
    assert seen[0] >= 15
    assert seen[1] - seen[0] >= 15
