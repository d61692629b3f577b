"""How often KMS is asked and how long its answers are kept; which of its endpoints, keys and failures is met."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from conftest import Make
from langchain_core.messages import HumanMessage
from proxy import Fault, Proxy
from samples import A_MESSAGE, bound, humans, texts

from chathistory_async import (
    AccessDeniedError,
    ChatHistoryError,
    DecryptionError,
    DynamoDBChatMessageHistory,
    EndpointError,
    KmsKeyError,
    ServiceError,
    ThrottledError,
)
from chathistory_async._encryption.data_keys import MAX_AGE_SECONDS, MAX_BYTES, MAX_MESSAGES, KeyCache
from chathistory_async._encryption.message_cipher import MessageCipher
from chathistory_async.testing import FakeClock

SECRET = "the launch code is 0000"


@pytest.fixture
def encryption(kms_key: str, proxy: Proxy) -> dict[str, Any]:
    """Each test has a KMS endpoint, and thereby a cache, of its own."""
    return {"kms_key_id": kms_key, "kms_endpoint_url": proxy.url}


def cipher_of(history: DynamoDBChatMessageHistory) -> MessageCipher:
    assert history._session.access.cipher is not None
    return history._session.access.cipher


def forget(history: DynamoDBChatMessageHistory) -> None:
    """Do what another process would find: no key in the cache."""
    cipher_of(history)._keys._cache.forget()


def arn_in(key_arn: str, region: str) -> str:
    return key_arn.replace("us-east-1", region)


class TestCalls:
    async def test_of_an_agent_loop(self, make: Make, proxy: Proxy) -> None:
        for turn in range(30):
            history = make()
            assert len(await history.aget_messages()) == 2 * turn
            await history.aadd_messages(humans(turn, turn))
        assert proxy.operations() == ["GenerateDataKey"]

    async def test_of_another_process_that_goes_on(self, make: Make, proxy: Proxy) -> None:
        await make().aadd_messages(humans(1, 2))
        await make().aadd_messages(humans(3))
        forget(make())
        assert len(await make().aget_messages()) == 3
        await make().aadd_messages(humans(4))
        await make().aget_messages()
        assert proxy.operations() == ["GenerateDataKey", "Decrypt", "GenerateDataKey"]

    async def test_each_session_has_keys_of_its_own(self, make: Make, proxy: Proxy) -> None:
        for session in ("one", "other", "one"):
            await make(session=f"calls-{session}").aadd_messages(humans(1))
        assert proxy.operations() == ["GenerateDataKey"] * 2
        contexts = [seen.body["EncryptionContext"] for seen in proxy.seen]
        assert contexts[0] != contexts[1]
        assert contexts == [make(session=f"calls-{session}").encryption_context for session in ("one", "other")]

    async def test_of_many_at_once_is_one(self, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.DELAY
        await asyncio.gather(*(make().aadd_messages(humans(number)) for number in range(30)))
        assert proxy.operations() == ["GenerateDataKey"]
        forget(make())
        lengths = await asyncio.gather(*(make().aget_messages() for _ in range(30)))
        assert [len(messages) for messages in lengths] == [30] * 30
        assert proxy.operations() == ["GenerateDataKey", "Decrypt"]

    async def test_that_fail_fail_together(self, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.DENIED
        waiting = [make().aadd_messages(humans(number)) for number in range(20)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {AccessDeniedError}
        assert proxy.operations() == ["GenerateDataKey"]
        proxy.schedule = lambda seen: Fault.NONE
        await make().aadd_messages(humans("now"))
        assert proxy.operations() == ["GenerateDataKey"] * 2

    async def test_that_nobody_waits_for_any_more_are_ended(self, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.RESET
        before = set(asyncio.all_tasks())
        tasks = [asyncio.create_task(make().aadd_messages(humans(number))) for number in range(3)]
        while not proxy.seen:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert set(asyncio.all_tasks()) == before
        proxy.schedule = lambda seen: Fault.NONE
        await make().aadd_messages(humans("now"))

    async def test_one_that_is_cancelled_leaves_the_others_to_theirs(self, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.DELAY
        tasks = [asyncio.create_task(make().aadd_messages(humans(number))) for number in range(3)]
        while not proxy.seen:
            await asyncio.sleep(0.001)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(texts(await make().aget_messages())) == ["1", "2"]

    async def test_of_a_session_with_many_data_keys_are_made_together(self, make: Make, proxy: Proxy) -> None:
        for number in range(40):
            forget(make())
            await make().aadd_messages(humans(number))
        forget(make())
        before, proxy.busiest = set(asyncio.all_tasks()), 0
        proxy.schedule = lambda seen: Fault.DELAY
        assert texts(await make().aget_messages()) == [str(number) for number in range(40)]
        assert Counter(proxy.operations()) == {"GenerateDataKey": 40, "Decrypt": 40}
        assert 2 < proxy.busiest <= 16
        assert set(asyncio.all_tasks()) == before

    async def test_that_fail_leave_no_task_behind(self, make: Make, proxy: Proxy) -> None:
        for number in range(8):
            forget(make())
            await make().aadd_messages(humans(number))
        forget(make())
        before = set(asyncio.all_tasks())
        proxy.script(Fault.NONE, *[Fault.THROTTLED] * 8, operation="Decrypt")
        with pytest.raises(ThrottledError):
            await make(config=Config(retries={"total_max_attempts": 1})).aget_messages()
        assert set(asyncio.all_tasks()) == before

    def test_of_several_threads_and_loops(self, make: Make, proxy: Proxy) -> None:
        history = make()

        def own_loop() -> None:
            asyncio.run(history.aadd_messages(humans(1)))

        threads = [threading.Thread(target=own_loop) for _ in range(3)]
        threads += [threading.Thread(target=history.add_messages, args=(humans(1),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(history.messages) == 6
        assert set(proxy.operations()) <= {"GenerateDataKey", "Decrypt"}
        assert proxy.operations().count("GenerateDataKey") <= 4, "one for each loop at most"


class TestBounds:
    """After so many messages, so many bytes or so long, a data key is not used any more."""

    @pytest.fixture
    def cipher(self, make: Make, clock: FakeClock) -> MessageCipher:
        cipher = cipher_of(make())
        cipher._keys._cache = KeyCache(clock.time)
        return cipher

    async def test_of_messages(self, cipher: MessageCipher, proxy: Proxy) -> None:
        await cipher.encrypt(bound(b"x") * (MAX_MESSAGES - 1))
        await cipher.encrypt(bound(b"x"))
        assert len(proxy.seen) == 1
        await cipher.encrypt(bound(b"x") * (MAX_MESSAGES + 1))
        assert len(proxy.seen) == 3

    async def test_of_bytes(self, cipher: MessageCipher, proxy: Proxy) -> None:
        half = b"x" * (MAX_BYTES // 2)
        await cipher.encrypt(bound(half, half))
        assert len(proxy.seen) == 1
        await cipher.encrypt(bound(b"x"))
        assert len(proxy.seen) == 2
        await cipher.encrypt(bound(half + half + b"xx"))
        await cipher.encrypt(bound(b"x"))
        assert len(proxy.seen) == 4, "what is larger than the bound has a key to itself"

    async def test_of_age(self, cipher: MessageCipher, clock: FakeClock, proxy: Proxy) -> None:
        [encrypted] = await cipher.encrypt(bound(b"x"))
        clock.advance(MAX_AGE_SECONDS - 1)
        [other] = await cipher.encrypt(bound(b"y"))
        assert await cipher.decrypt(dict(enumerate(bound(encrypted, other)))) == {0: b"x", 1: b"y"}
        assert proxy.operations() == ["GenerateDataKey"]
        clock.advance(2)
        assert await cipher.decrypt({0: (A_MESSAGE, encrypted)}) == {0: b"x"}
        await cipher.encrypt(bound(b"x"))
        assert proxy.operations() == ["GenerateDataKey", "Decrypt", "GenerateDataKey"]

    async def test_of_age_end_what_kms_has_revoked(self, cipher: MessageCipher, clock: FakeClock, proxy: Proxy) -> None:
        [encrypted] = await cipher.encrypt(bound(b"x"))
        proxy.schedule = lambda seen: Fault.DENIED
        assert await cipher.decrypt({0: (A_MESSAGE, encrypted)}) == {0: b"x"}
        clock.advance(MAX_AGE_SECONDS + 1)
        for attempt in (cipher.decrypt({0: (A_MESSAGE, encrypted)}), cipher.encrypt(bound(b"x"))):
            with pytest.raises(AccessDeniedError):
                await attempt

    async def test_of_number(self, make: Make, monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
        monkeypatch.setattr("chathistory_async._encryption.data_keys.MAX_CACHED", 2)
        cache = KeyCache()
        ciphers = [cipher_of(make(session=f"number-{number}")) for number in range(3)]
        for cipher in ciphers:
            cipher._keys._cache = cache
            await cipher.encrypt(bound(b"x"))
        await ciphers[2].encrypt(bound(b"x"))
        assert len(proxy.seen) == 3
        await ciphers[0].encrypt(bound(b"x"))
        assert len(proxy.seen) == 4
        assert len(cache._decrypted) == len(cache._in_use) == 2


class TestKeys:
    async def test_may_be_given_in_every_form(self, make: Make, kms: Any, kms_key: str, session_id: str) -> None:
        alias = f"alias/{session_id[-20:]}"
        kms.create_alias(AliasName=alias, TargetKeyId=kms_key)
        for key_id in (kms_key, kms_key.rpartition("/")[2], alias, kms_key.rpartition(":")[0] + f":{alias}"):
            await make(kms_key_id=key_id).aadd_messages(humans(key_id))
            forget(make())
            assert make(kms_key_id=key_id).kms_key_id == key_id
        assert len(await make().aget_messages()) == 4

    async def test_may_change(self, make: Make, kms: Any, proxy: Proxy) -> None:
        keys = [kms.create_key()["KeyMetadata"]["Arn"] for _ in range(3)]
        for number, key in enumerate(keys):
            await make(kms_key_id=key).aadd_messages(humans(number))
        forget(make())
        assert texts(await make(kms_key_id=keys[2]).aget_messages()) == ["0", "1", "2"]
        asked = [seen.body["KeyId"] for seen in proxy.seen if seen.operation == "Decrypt"]
        assert sorted(asked) == sorted(keys)

    @pytest.mark.real_engine("moto has no material to rotate")
    async def test_may_be_rotated(self, make: Make, kms: Any) -> None:
        key = kms.create_key()["KeyMetadata"]["Arn"]
        await make(kms_key_id=key).aadd_messages(humans("before"))
        kms.rotate_key_on_demand(KeyId=key)
        forget(make())
        await make(kms_key_id=key).aadd_messages(humans("after"))
        forget(make())
        assert texts(await make(kms_key_id=key).aget_messages()) == ["before", "after"]

    async def test_of_another_region_are_asked_for_there(self, make: Make, kms_in: Any, proxy: Proxy) -> None:
        key = kms_in("eu-west-1").create_key()["KeyMetadata"]["Arn"]
        await make(kms_key_id=key).aadd_messages(humans(1))
        forget(make())
        assert texts(await make().aget_messages()) == ["1"]
        assert [seen.operation for seen in proxy.seen] == ["GenerateDataKey", "Decrypt"]
        assert all("/eu-west-1/kms/" in seen.authorization for seen in proxy.seen)

    @pytest.mark.real_engine("moto's server fails to replicate a key")
    async def test_of_several_regions_are_asked_for_in_our_own(self, make: Make, kms_in: Any, proxy: Proxy) -> None:
        here = kms_in("us-east-1").create_key(MultiRegion=True)["KeyMetadata"]["Arn"]
        kms_in("us-east-1").replicate_key(KeyId=here, ReplicaRegion="eu-central-1")
        there = arn_in(here, "eu-central-1")
        [encrypted] = await cipher_of(make(kms_key_id=here)).encrypt(bound(b"x"))
        forms: list[dict[str, Any]] = [
            {"kms_key_id": there},
            {"kms_key_id": there.rpartition("/")[2], "region_name": "eu-central-1"},
        ]
        for number, options in enumerate(forms):
            forget(make(**options))
            assert await cipher_of(make(**options)).decrypt({0: (A_MESSAGE, encrypted)}) == {0: b"x"}
            decrypt = [seen for seen in proxy.seen if seen.operation == "Decrypt"][number]
            assert decrypt.body["KeyId"] == there
            assert "/eu-central-1/kms/" in decrypt.authorization

    @pytest.mark.parametrize(
        ("named", "reason"),
        [
            (lambda arn: arn_in(arn, "us-fake-1"), "unknown region: us-fake-1"),
            (lambda arn: arn.replace("arn:aws:", "arn:lost:"), "unknown region"),
            (lambda arn: arn.replace(":kms:", ":sqs:"), "does not name a KMS key"),
            (lambda arn: arn[:-1], "the data key was changed, or belongs to a different session|cannot use the key"),
            (lambda arn: "alias/chat", "does not name a KMS key"),
            (lambda arn: "", "does not name a KMS key"),
        ],
    )
    async def test_that_a_message_names_are_not_trusted(
        self, make: Make, kms_key: str, proxy: Proxy, named: Callable[[str], str], reason: str
    ) -> None:
        history = make(region_name="us-east-1")
        [encrypted] = await cipher_of(history).encrypt(bound(SECRET.encode()))
        name = named(kms_key).encode()
        old = len(kms_key).to_bytes(2, "big") + kms_key.encode()
        if named(kms_key).startswith("arn:lost"):
            name = name.replace(b"us-east-1", b"us-east-9")
        forged = encrypted.replace(old, len(name).to_bytes(2, "big") + name)
        assert forged != encrypted
        with pytest.raises((DecryptionError, KmsKeyError), match=reason):
            await cipher_of(history).decrypt({0: (A_MESSAGE, forged)})


class TestEndpoint:
    async def test_is_never_dynamodbs(self, make: Make, engine: Any, proxy: Proxy) -> None:
        history = make(endpoint_url=proxy.url, kms_endpoint_url=None)
        await history.aadd_messages(humans(1))
        assert proxy.operations() == ["UpdateItem"]

    async def test_that_is_given_is_kmss_alone(self, make: Make, proxy: Proxy) -> None:
        await make().aadd_messages(humans(1))
        assert proxy.operations() == ["GenerateDataKey"]

    async def test_is_that_of_the_environment(self, make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", proxy.url)
        # A configuration of its own: the loop's other clients were made in another environment.
        await make(kms_endpoint_url=None, config=Config(user_agent_extra="own")).aadd_messages(humans(1))
        assert proxy.operations() == ["GenerateDataKey"]


class TestFailures:
    """Each has a name, and no append that meets one has written anything."""

    @pytest.fixture
    async def encrypted_session(self, make: Make) -> None:
        await make().aadd_messages([HumanMessage(SECRET)])
        forget(make())

    async def failures(self, kind: type[ChatHistoryError], make: Make, **options: Any) -> list[ChatHistoryError]:
        """Return the errors that a read and an append of a session with one message raise."""
        history, errors = make(config=Config(retries={"total_max_attempts": 2}), **options), []
        for attempt in (history.aget_messages(), history.aadd_messages([HumanMessage(SECRET)])):
            with pytest.raises(kind) as caught:
                await attempt
            assert type(caught.value) is kind
            assert caught.value.session_key == history.key
            assert SECRET not in str(caught.value)
            errors.append(caught.value)
        assert len(await make(kms_endpoint_url=None).aget_messages()) == 1
        return errors

    @pytest.mark.usefixtures("encrypted_session")
    async def test_access_denied(self, make: Make, proxy: Proxy, kms_key: str) -> None:
        proxy.schedule = lambda seen: Fault.DENIED
        for error, operation in zip(await self.failures(AccessDeniedError, make), ("Decrypt", "GenerateDataKey")):
            assert f"AWS refused {operation} with the key {kms_key} (AccessDeniedException)" in str(error)
            assert "their policy, the key's policy and" in str(error)
            assert isinstance(error.__cause__, ClientError)

    @pytest.mark.usefixtures("encrypted_session")
    async def test_throttled(self, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.THROTTLED
        for error in await self.failures(ThrottledError, make):
            assert "KMS's quota" in str(error)
        assert proxy.operations()[1:] == ["Decrypt"] * 2 + ["GenerateDataKey"] * 2

    @pytest.mark.usefixtures("encrypted_session")
    async def test_broken_connection(self, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.RESET
        for error in await self.failures(EndpointError, make):
            assert "KMS's endpoint does not answer" in str(error)

    @pytest.mark.usefixtures("encrypted_session")
    async def test_failing_service(self, make: Make, proxy: Proxy) -> None:
        proxy.schedule = lambda seen: Fault.ERROR_500
        for error in await self.failures(ServiceError, make):
            assert "with HTTP status 500" in str(error)

    @pytest.mark.usefixtures("encrypted_session")
    async def test_that_pass_are_retried(self, make: Make, proxy: Proxy) -> None:
        for fault in (Fault.THROTTLED, Fault.ERROR_500, Fault.RESET, Fault.LOST_RESPONSE):
            forget(make())
            proxy.script(fault, operation="Decrypt")
            assert texts(await make().aget_messages())[0] == SECRET
            proxy.script(fault, operation="GenerateDataKey")
            await make().aadd_messages(humans(1))
        assert len(await make().aget_messages()) == 5

    @pytest.mark.parametrize(
        "body", ["<html>Please log in</html>", "[]", "{}", '{"Plaintext": 5}', '{"Plaintext": "eA=="}']
    )
    @pytest.mark.usefixtures("encrypted_session")
    async def test_an_answer_that_is_not_kmss(self, make: Make, answering: Any, body: str) -> None:
        history = make(kms_endpoint_url=answering(200, body))
        with pytest.raises(ServiceError, match="is not KMS, or its response is damaged: check kms_endpoint_url"):
            await history.aadd_messages([HumanMessage(SECRET)])
        with pytest.raises((ServiceError, DecryptionError)):
            await history.aget_messages()
        assert len(await make().aget_messages()) == 1

    async def test_an_answer_for_another_key(self, make: Make, answering: Any, kms_key: str) -> None:
        [encrypted] = await cipher_of(make()).encrypt(bound(SECRET.encode()))
        body = json.dumps({"KeyId": f"{kms_key[:-4]}0000", "Plaintext": base64.b64encode(bytes(32)).decode()})
        with pytest.raises(DecryptionError, match="KMS decrypted a data key with"):
            await cipher_of(make(kms_endpoint_url=answering(200, body))).decrypt({0: (A_MESSAGE, encrypted)})

    async def test_a_key_store_that_is_not_there(self, make: Make, answering: Any) -> None:
        url = answering(400, '{"__type": "KeyUnavailableException", "message": "no"}')
        with pytest.raises(KmsKeyError, match="KeyUnavailableException"):
            await make(kms_endpoint_url=url).aadd_messages(humans(1))

    @pytest.mark.real_engine("moto lets a disabled key be used")
    @pytest.mark.parametrize(
        ("state", "code"), [("disabled", "DisabledException"), ("deleted", "KMSInvalidStateException")]
    )
    async def test_a_key_that_was_taken_away(self, make: Make, kms: Any, state: str, code: str) -> None:
        key = kms.create_key()["KeyMetadata"]["Arn"]
        await make(kms_key_id=key).aadd_messages([HumanMessage(SECRET)])
        forget(make())
        kms.disable_key(KeyId=key) if state == "disabled" else kms.schedule_key_deletion(KeyId=key)
        for attempt in (make(kms_key_id=key).aget_messages(), make(kms_key_id=key).aadd_messages(humans(1))):
            with pytest.raises(KmsKeyError, match=code) as caught:
                await attempt
            assert f"the key {key}" in str(caught.value)
        if state == "disabled":
            kms.enable_key(KeyId=key)
            assert texts(await make().aget_messages()) == [SECRET]

    @pytest.mark.parametrize("key_id", ["alias/none", "00000000-0000-0000-0000-000000000000", "not a key"])
    async def test_a_key_that_does_not_exist(self, make: Make, item: Any, key_id: str) -> None:
        with pytest.raises(KmsKeyError, match="NotFoundException") as caught:
            await make(kms_key_id=key_id).aadd_messages([HumanMessage(SECRET)])
        assert SECRET not in str(caught.value)
        assert item() is None

    @pytest.mark.real_engine("moto lets a key of any use be used")
    async def test_a_key_for_something_else(self, make: Make, kms: Any, item: Any) -> None:
        key = kms.create_key(KeyUsage="SIGN_VERIFY", KeySpec="RSA_2048")["KeyMetadata"]["Arn"]
        with pytest.raises(KmsKeyError, match="InvalidKeyUsageException"):
            await make(kms_key_id=key).aadd_messages(humans(1))
        assert item() is None


FORKS = """
import os, sys
from langchain_core.messages import HumanMessage
from chathistory_async import DynamoDBChatMessageHistory
table, session, key = sys.argv[1:]
history = DynamoDBChatMessageHistory(table, session, kms_key_id=key)
history.add_user_message("parent")
cache = history._session.access.cipher._keys._cache
held = [cache._lock]
[lock.acquire() for lock in held]
child = os.fork()
if not child:
    assert not cache._in_use, not cache._decrypted
    history.add_user_message("child")
    os._exit(0 if len(history.messages) == 2 else 1)
[lock.release() for lock in held]
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
history.add_user_message("parent again")
print([message.content for message in history.messages])
"""


@pytest.mark.posix
def test_a_forked_child_encrypts_with_keys_of_its_own(make: Make, session_id: str, kms_key: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, make().table_name, session_id, kms_key]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "0\n['parent', 'child', 'parent again']\n", done.stderr
