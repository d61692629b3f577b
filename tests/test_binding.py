"""An encrypted value opens only as what it is and where it was stored; moved, repeated and relabelled ones do not."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from traceback import walk_tb
from typing import Any

import pytest
from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient, StrictAwsKmsMasterKeyProvider
from aws_encryption_sdk.identifiers import AlgorithmSuite
from conftest import created_table
from engines import ROOT
from langchain_core.messages import BaseMessage, HumanMessage
from samples import humans, texts

from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    DecryptionError,
    DynamoDBChatMessageHistory,
    EncryptionContextError,
    ItemTooLargeError,
    KeySchemaError,
    UndecodableItemError,
)
from chathistory_async._encryption.binding import Binding, BoundElsewhere, bind, body_of

SECRET = "the launch code is 0000"
# An attacker would have the application take this for a message of the system.
FORGED = {"type": "system", "data": {"content": SECRET}}
LONG = [f"{SECRET} {'and so on ' * 600}{number}" for number in range(2)]
# Each takes two items, and together they take more than a page.
NOISE = [secrets.token_bytes(500_000) for _ in range(3)]
SUITE = AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY

official = EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)


class Stored:
    """A session, as who may write to its table reads and changes it."""

    def __init__(self, dynamodb: Any, table: str, session_id: str) -> None:
        self._dynamodb = dynamodb
        self._table = table
        self._session_id = session_id

    def items(self) -> dict[str, dict[str, Any]]:
        pages = self._dynamodb.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="SessionId = :session",
            ExpressionAttributeValues={":session": {"S": self._session_id}},
            ConsistentRead=True,
        )
        return {item["MessageId"]["S"]: item for page in pages for item in page["Items"]}

    def message_items(self) -> list[dict[str, Any]]:
        return [item for key, item in self.items().items() if key.startswith("m#")]

    def put(self, item: dict[str, Any], **changes: Any) -> None:
        changed = {name: value for name, value in (item | changes).items() if value is not None}
        self._dynamodb.put_item(TableName=self._table, Item=changed)

    def put_together(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            self.put(item)

    def change_last(self, **changes: Any) -> None:
        """Change the last message's item; None takes an attribute away."""
        self.put(self.message_items()[-1], **changes)

    def change_session(self, **changes: Any) -> None:
        self.put(self.items()["session"], **changes)


@pytest.fixture(scope="module")
def indexed_table() -> Iterator[str]:
    with created_table(session_index=True) as name:
        yield name


@pytest.fixture
async def store(indexed_table: str, kms_key: str) -> AsyncIterator[ChatHistoryStore]:
    async with ChatHistoryStore(indexed_table, session_index=True, kms_key_id=kms_key) as store:
        yield store


@pytest.fixture
def stored(dynamodb: Any, indexed_table: str, session_id: str) -> Stored:
    return Stored(dynamodb, indexed_table, session_id)


@pytest.fixture
async def session(store: ChatHistoryStore, session_id: str) -> DynamoDBChatMessageHistory:
    """A session with a title and metadata that read as messages, and with messages that read as metadata."""
    history = store.session(session_id)
    for text in (SECRET, *LONG):
        await history.aadd_messages(humans(text))
    await store.set_title(session_id, json.dumps(FORGED))
    await store.update_metadata(session_id, FORGED)
    return history


@pytest.fixture
def handles(
    session: DynamoDBChatMessageHistory, indexed_table: str, session_id: str, kms_key: str
) -> list[DynamoDBChatMessageHistory]:
    """Handles on the session, with and without the index."""
    options: dict[str, Any] = {"sort_key_name": "MessageId", "kms_key_id": kms_key}
    return [session, DynamoDBChatMessageHistory(indexed_table, session_id, **options)]


def recorded(error: BaseException) -> str:
    """Return what an error tracker may record of an error and of all errors in its chain."""
    texts, seen, waiting = list[str](), set[int](), [error]
    while waiting:
        error = waiting.pop()
        seen.add(id(error))
        texts += [str(error), repr(error.args), repr(vars(error))]
        # UnicodeDecodeError and JSONDecodeError keep their input in these attributes.
        texts += [repr(getattr(error, name, None)) for name in ("object", "doc")]
        frames = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_filename != __file__]
        texts += [repr(dict(frame.f_locals)) for frame in frames]
        waiting += [
            other for other in (error.__cause__, error.__context__) if other is not None and id(other) not in seen
        ]
    return "\n".join(texts)


async def refuse(attempt: Coroutine[Any, Any, Any], *kinds: type[ChatHistoryError], match: str | None = None) -> Any:
    """Return the error that an attempt meets, after checking that it holds no plaintext."""
    with pytest.raises(kinds or EncryptionContextError, match=match) as caught:
        await attempt
    assert SECRET not in recorded(caught.value)
    return caught.value


async def all_of(history: DynamoDBChatMessageHistory) -> list[BaseMessage]:
    return [message async for message in history.aiter()]


READS: list[Callable[[DynamoDBChatMessageHistory], Coroutine[Any, Any, Any]]] = [
    lambda history: history.aget_messages(),
    lambda history: history.aget_messages(limit=1),
    lambda history: history.apage(3),
    lambda history: all_of(history),
    lambda history: history.apop_message(),
    lambda history: history.acopy_to("a copy"),
    lambda history: asyncio.to_thread(history.get_messages),
    lambda history: asyncio.to_thread(lambda: list(history.iter())),
    lambda history: asyncio.to_thread(history.pop_message),
]


async def refuse_all(
    handles: list[DynamoDBChatMessageHistory], *kinds: type[ChatHistoryError], match: str | None = None
) -> None:
    indexed, unindexed = handles
    for read in READS:
        await refuse(read(indexed), *kinds, match=match)
    await refuse(unindexed.aget_messages(), *kinds, match=match)


def forget_data_keys(history: DynamoDBChatMessageHistory) -> None:
    assert history._session.access.cipher is not None
    history._session.access.cipher._keys._cache.forget()


A_KEY = f"m#{0:016x}-{2:016x}-00"
NO_KEY = "not a sort key"
BINDINGS = [
    Binding(kind, sort_key, encoding)
    for kind in ("record", "message", "title", "metadata", "migration")
    for sort_key in (None, "session", "migration", A_KEY, A_KEY.replace("2", "3"), NO_KEY)
    for encoding in ("", "zlib")
] + [
    Binding("record", A_KEY, encoding, *rest)
    for encoding in ("", "zlib")
    for rest in (
        ("json",),
        ("other",),
        ("", 2),
        ("", 3),
        ("", 2, "0,2"),
        ("", 2, "0,3"),
        ("", 1, "1"),
        ("json", 2, "1-2"),
    )
]


class TestLine:
    def test_stays_what_it_is(self) -> None:
        """It is in all that is encrypted: whoever changes it locks everybody out."""
        assert bind(Binding("message"), b"x") == b'{"value":"message"}\nx'
        assert bind(Binding("title", "session"), b"") == b'{"value":"title","sort_key":"session"}\n'
        whole = Binding("record", A_KEY, "zlib", "json", 2, "0,2")
        assert bind(whole, b"\n\xff") == (
            b'{"value":"record","sort_key":"m#0000000000000000-0000000000000002-00","encoding":"zlib",'
            b'"format":"json","count":2,"positions":"0,2"}\n\n\xff'
        )

    def test_opens_for_no_other_binding(self) -> None:
        for mine, other in itertools.product(BINDINGS, repeat=2):
            plaintext = bind(mine, SECRET.encode())
            if mine == other:
                assert body_of(other, plaintext) == SECRET.encode()
                continue
            with pytest.raises(BoundElsewhere) as caught:
                body_of(other, plaintext)
            expected, found = (bind(binding, b"").decode().rstrip() for binding in (other, mine))
            bound_as = "without a binding" if mine.sort_key == NO_KEY else f"as {found}"
            assert str(caught.value) == f"was encrypted {bound_as}, and is stored where {expected} belongs"

    @pytest.mark.parametrize(
        "plaintext",
        [
            b"",
            b"\n",
            SECRET.encode(),
            json.dumps({"value": SECRET}).encode() + b"\n",
            b'{"value":"message","sort_key":"' + SECRET.encode() + b'"}\n',
            b'{"value":"message"}' + SECRET.encode(),
            b'{"value": "message"}\n' + SECRET.encode(),
            b'{"value":"message","format":"' + SECRET.encode() + b'"}\n',
            b"\n" + bind(Binding("message"), SECRET.encode()),
        ],
    )
    def test_that_is_none_is_not_shown(self, plaintext: bytes) -> None:
        with pytest.raises(BoundElsewhere, match="was encrypted without a binding, and is stored where") as caught:
            body_of(Binding("message"), plaintext)
        assert SECRET not in str(caught.value)

    def test_is_the_first_one_only(self) -> None:
        title, message = Binding("title", "session"), Binding("record", A_KEY)
        forged = bind(message, json.dumps(FORGED).encode())
        assert body_of(title, bind(title, forged)) == forged
        with pytest.raises(BoundElsewhere):
            body_of(message, bind(title, forged))


@pytest.mark.parametrize("as_encrypted", ["aws-encryption-sdk", "zlib,aws-encryption-sdk"])
class TestMovedIntoAMessage:
    async def check(
        self, handles: list[DynamoDBChatMessageHistory], stored: Stored, what: str, *kinds: type[ChatHistoryError]
    ) -> None:
        before = stored.items()
        await refuse_all(handles, *kinds, match=what)
        forget_data_keys(handles[0])
        await refuse(handles[0].aget_messages(), *kinds, match=what)
        assert stored.items() == before, "no read has changed anything"

    @pytest.mark.parametrize("name", ["Title", "Metadata"])
    async def test_a_title_or_metadata(
        self, handles: list[DynamoDBChatMessageHistory], stored: Stored, as_encrypted: str, name: str
    ) -> None:
        stored.change_last(History=stored.items()["session"][name], Encoding={"S": as_encrypted})
        binding = rf'{{"value":"{name.lower()}","sort_key":"session"}}'
        what = rf"Stored message \S+ was encrypted as {binding}, and is stored where"
        await self.check(handles, stored, what)

    @pytest.mark.parametrize("other", [0, 1])
    async def test_another_message(
        self, handles: list[DynamoDBChatMessageHistory], stored: Stored, as_encrypted: str, other: int
    ) -> None:
        moved = stored.message_items()[other]
        stored.change_last(History=moved["History"], Encoding={"S": as_encrypted})
        await self.check(handles, stored, f'was encrypted as {{"value":"record","sort_key":"{moved["MessageId"]["S"]}"')


class TestMovedWithinASession:
    async def test_a_message_under_a_new_key(
        self, handles: list[DynamoDBChatMessageHistory], stored: Stored, store: ChatHistoryStore, session_id: str
    ) -> None:
        [first, *_, last] = stored.message_items()
        other_nonce = "0" if last["MessageId"]["S"][-4] == "f" else "f"
        for key in (last["MessageId"]["S"][:-4] + f"{other_nonce}-00", last["MessageId"]["S"].replace("m#0", "m#1")):
            stored.put(first, MessageId={"S": key})
            for history in handles:
                match = f"as .*{first['MessageId']['S']}.* where .*{key}"
                error = await refuse(history.aget_messages(), match=match)
            await store.session(session_id).adelete_messages([error.message_id])
        assert texts(await handles[0].aget_messages()) == [SECRET, *LONG]

    async def test_all_parts_of_a_message(self, store: ChatHistoryStore, stored: Stored, session_id: str) -> None:
        history = store.session(session_id)
        large = [HumanMessage(SECRET, additional_kwargs={"noise": noise}) for noise in NOISE]
        for message in (HumanMessage(SECRET), *large):
            await history.aadd_messages([message])
        intact = stored.message_items()
        *_, first, first_rest, second, second_rest = intact
        assert len(intact) == 1 + 2 * len(large)
        assert await history.aget_messages() == [HumanMessage(SECRET), *large]
        stored.put(second_rest, History=first_rest["History"])
        await refuse(history.aget_messages(), DecryptionError, match=r"Stored message \S+ cannot be decrypted")
        stored.put(second, History=first["History"])
        # The page before was decrypted whole. aiter() is left out: its caller has the messages that it has yielded.
        for attempt in (history.aget_messages(), history.acopy_to("a copy"), asyncio.to_thread(history.get_messages)):
            await refuse(attempt, match=r"Stored message \S+ was encrypted as")
        stored.put_together(intact)
        assert len(await history.aget_messages()) == len(intact) - len(large)

    @pytest.mark.parametrize("name", ["Title", "Metadata"])
    async def test_into_the_title_or_the_metadata(
        self, session: DynamoDBChatMessageHistory, store: ChatHistoryStore, stored: Stored, session_id: str, name: str
    ) -> None:
        intact = stored.items()["session"]
        short, long, _ = stored.message_items()
        other = intact["Metadata" if name == "Title" else "Title"]
        for moved in (short["History"], long["History"], other):
            stored.change_session(**{name: moved})
            what = rf'Stored {name.lower()} was encrypted as .*, and is stored where {{"value":"{name.lower()}",'
            await refuse(store.get_session_info(session_id), match=what)
            if name == "Metadata":
                await refuse(store.update_metadata(session_id, {"a": 1}), match=what)
            forget_data_keys(session)
            await refuse(store.get_session_info(session_id), match=what)
        stored.put(intact)
        info = await store.get_session_info(session_id)
        assert info is not None
        assert (info.title, info.metadata) == (json.dumps(FORGED), FORGED)

    @pytest.mark.parametrize(
        ("encoding", "kind", "what"),
        [
            ("aws-encryption-sdk", EncryptionContextError, '"encoding":"zlib"}, and is stored where .*-00"} belongs'),
            ("zlib", UndecodableItemError, "cannot be decompressed"),
            (None, UndecodableItemError, "not the JSON text of a message"),
            ("aws-encryption-sdk,zlib", UndecodableItemError, "its encoding is 'aws-encryption-sdk,zlib'"),
        ],
    )
    async def test_another_encoding(
        self,
        handles: list[DynamoDBChatMessageHistory],
        stored: Stored,
        encoding: str | None,
        kind: type[ChatHistoryError],
        what: str,
    ) -> None:
        stored.change_last(Encoding=None if encoding is None else {"S": encoding})
        for history in handles:
            await refuse(history.aget_messages(), kind, match=what)

    async def test_a_whole_item_into_another_session(
        self, session: DynamoDBChatMessageHistory, store: ChatHistoryStore, stored: Stored, session_id: str
    ) -> None:
        other = f"{session_id}-other"
        for item in stored.items().values():
            stored.put(item, SessionId={"S": other})
        await refuse(
            store.session(other).aget_messages(), match=r"message \S+ was encrypted for another session or table"
        )
        await refuse(store.get_session_info(other), match="title was encrypted for another session or table")


class TestStillPossible:
    """The documentation says that a writer with access to the table can do this."""

    async def test_what_is_plain_is_read(
        self, session: DynamoDBChatMessageHistory, store: ChatHistoryStore, stored: Stored, session_id: str
    ) -> None:
        stored.change_last(History={"S": json.dumps(FORGED)}, Encoding=None)
        stored.change_session(Title={"S": "plain"})
        assert texts(await session.aget_messages())[-1] == SECRET
        info = await store.get_session_info(session_id)
        assert info is not None
        assert info.title == "plain"

    async def test_an_older_version_comes_back(self, session: DynamoDBChatMessageHistory, stored: Stored) -> None:
        older = stored.message_items()[-1]
        message_id = (await session.apage(1)).messages[0].id
        await session.areplace_message(message_id, HumanMessage("newer"))
        assert texts(await session.aget_messages())[-1] == "newer"
        stored.put(older)
        assert texts(await session.aget_messages())[-1] == LONG[-1]

    async def test_a_single_item_can_be_reordered(
        self, table: str, session_id: str, kms_key: str, item: Any, update: Any
    ) -> None:
        history = DynamoDBChatMessageHistory(table, session_id, kms_key_id=kms_key)
        await history.aadd_messages(humans(1, 2))
        first, second = item()["History"]["L"]
        update(History={"L": [second, first, second]})
        assert texts(await history.aget_messages()) == ["2", "1", "2"]


class TestWhatCannotBeDecoded:
    """An error about authentic content, or about content beside it, holds no plaintext either."""

    @pytest.mark.parametrize(
        ("body", "encoding"),
        [
            (SECRET.encode(), ""),
            (json.dumps({"type": "human", "data": {"content": {SECRET: SECRET}}}).encode(), ""),
            (json.dumps({"type": SECRET, "data": {"content": SECRET}}).encode(), ""),
            (SECRET.encode() + b"\xff", ""),
            (SECRET.encode(), "zlib"),
            (zlib.compress(SECRET.encode() * 1000)[:-4], "zlib"),
        ],
        ids=["no JSON", "no message", "no type", "no text", "no zlib", "cut short"],
    )
    async def test_a_message(
        self, handles: list[DynamoDBChatMessageHistory], stored: Stored, body: bytes, encoding: str
    ) -> None:
        [*_, last] = stored.message_items()
        assert handles[0]._session.access.cipher is not None
        [encrypted] = await handles[0]._session.access.cipher.encrypt(
            [(Binding("record", last["MessageId"]["S"], encoding), body)]
        )
        as_encrypted = ",".join(filter(None, [encoding, "aws-encryption-sdk"]))
        stored.change_last(History={"B": encrypted}, Encoding={"S": as_encrypted})
        await refuse_all(handles, UndecodableItemError)

    async def test_a_message_of_a_single_item(self, table: str, session_id: str, kms_key: str, update: Any) -> None:
        history = DynamoDBChatMessageHistory(table, session_id, kms_key_id=kms_key)
        assert history._session.access.cipher is not None
        good = bind(Binding("message"), json.dumps(FORGED).encode()).partition(b"\n")[2]
        for binding, body, kind in (
            (Binding("message"), SECRET.encode(), UndecodableItemError),
            (Binding("title", "session"), json.dumps(FORGED).encode(), EncryptionContextError),
            (Binding("record", A_KEY), good, EncryptionContextError),
            (Binding("message", None, "zlib"), zlib.compress(good), EncryptionContextError),
        ):
            encrypted = await history._session.access.cipher.encrypt([(Binding("message"), good), (binding, body)])
            update(History={"L": [{"B": data} for data in encrypted]})
            await refuse(history.aget_messages(), kind, match="message 1 ")
            await refuse(asyncio.to_thread(lambda: history.messages), kind)

    async def test_a_plain_message_beside_encrypted_ones(
        self, handles: list[DynamoDBChatMessageHistory], stored: Stored
    ) -> None:
        stored.change_last(History={"S": "no message"}, Encoding=None)
        await refuse_all(handles, UndecodableItemError)

    @pytest.mark.parametrize(
        ("name", "body"),
        [("title", SECRET.encode() + b"\xff"), ("metadata", SECRET.encode()), ("metadata", f'"{SECRET}"'.encode())],
        ids=["no text", "no JSON", "no object"],
    )
    async def test_a_title_or_metadata(
        self, session: DynamoDBChatMessageHistory, store: ChatHistoryStore, stored: Stored, name: Any, body: bytes
    ) -> None:
        assert session._session.access.cipher is not None
        [encrypted] = await session._session.access.cipher.encrypt([(Binding(name, "session"), body)])
        stored.change_session(**{name.capitalize(): {"B": encrypted}})
        await refuse(store.get_session_info(session.key["SessionId"]), UndecodableItemError, match="is damaged")  # type: ignore[arg-type]


class TestMigration:
    @pytest.fixture
    async def source(self, table: str, kms_key: str) -> AsyncIterator[ChatHistoryStore]:
        async with ChatHistoryStore(table, layout="single_item", kms_key_id=kms_key) as store:
            yield store

    async def test_digests_are_bound_too(
        self, source: ChatHistoryStore, store: ChatHistoryStore, stored: Stored, session_id: str
    ) -> None:
        async def run() -> list[tuple[str, str | None]]:
            return [(done.outcome, done.error) async for done in store.migrate_from(source, [session_id])]

        await source.session(session_id).aadd_messages(humans(SECRET, SECRET))
        assert await run() == [("copied", None)]
        await store.set_title(session_id, SECRET)
        assert await run() == [("unchanged", None)]
        items = stored.items()
        checkpoint, last = items["migration"], stored.message_items()[-1]
        state = checkpoint["Migration"]["M"]
        for moved in (items["session"]["Title"], last["History"]):
            stored.put(checkpoint, Migration={"M": state | {"Encrypted": moved}})
            [(outcome, error)] = await run()
            assert outcome == "failed"
            assert str(error).startswith("EncryptionContextError: Stored migration was encrypted as")
            assert SECRET not in str(error)
        stored.put(checkpoint)
        stored.put(last, History=state["Encrypted"])
        as_digests = 'was encrypted as {"value":"migration","sort_key":"migration"}'
        await refuse(store.session(session_id).aget_messages(), match=as_digests)
        stored.put(last)
        stored.change_session(Title=state["Encrypted"])
        await refuse(store.get_session_info(session_id), match=as_digests)


class TestWhatWasOpenedBefore:
    """It is in no frame of the error that comes after it."""

    async def test_the_page_that_cannot_be_decrypted(
        self, store: ChatHistoryStore, session_id: str, stored: Stored
    ) -> None:
        history = store.session(session_id)
        for _ in range(40):
            await history.aadd_messages(humans(SECRET))
        stored.change_last(History={"B": stored.message_items()[-1]["History"]["B"][:-1]})
        met = 0

        async def iterate() -> None:
            nonlocal met
            async for _ in history.aiter():
                met += 1

        await refuse(iterate(), DecryptionError)
        assert met

    async def test_a_change_of_metadata_that_fails(
        self, store: ChatHistoryStore, session: DynamoDBChatMessageHistory, session_id: str
    ) -> None:
        await refuse(store.update_metadata(session_id, {"large": "x" * 70_000}), ItemTooLargeError)

    async def test_a_migration_that_fails(
        self, store: ChatHistoryStore, table: str, session_id: str, kms_key: str
    ) -> None:
        async with ChatHistoryStore(table, layout="single_item", kms_key_id=kms_key) as source:
            await source.session(session_id).aadd_messages(humans(SECRET))

            async def migrate(target: ChatHistoryStore) -> None:
                async for _ in target.migrate_from(source, [session_id]):
                    pass

            with created_table() as name:
                # The table has no such index, which is found out once the source was read.
                await refuse(migrate(ChatHistoryStore(name, session_index=True)), KeySchemaError)


class TestOfficialSdk:
    @pytest.fixture
    def provider(self, kms_key: str) -> StrictAwsKmsMasterKeyProvider:
        return StrictAwsKmsMasterKeyProvider(key_ids=[kms_key])

    @pytest.fixture
    def body_in(self) -> Callable[[bytes, dict[str, str]], bytes]:
        """The documentation's own reader."""
        page = (ROOT / "docs" / "guides" / "encryption.md").read_text()
        [example] = re.findall(r"```python\n([^`]*?def body_in.*?)```", page, re.DOTALL)
        names: dict[str, Any] = {}
        exec(example, names)
        reader: Callable[[bytes, dict[str, str]], bytes] = names["body_in"]
        return reader

    async def test_opens_what_we_encrypted(
        self,
        session: DynamoDBChatMessageHistory,
        stored: Stored,
        provider: StrictAwsKmsMasterKeyProvider,
        body_in: Callable[[bytes, dict[str, str]], bytes],
    ) -> None:
        def decrypted(value: dict[str, Any], place: dict[str, str]) -> bytes:
            plaintext, header = official.decrypt(source=value["B"], key_provider=provider)
            assert header.encryption_context == session.encryption_context
            with pytest.raises(ValueError, match="another place"):
                body_in(plaintext, place | {"sort_key": "elsewhere"})
            return body_in(plaintext, place)

        for item, text in zip(stored.message_items(), [SECRET, *LONG], strict=True):
            place = {"value": "record", "sort_key": item["MessageId"]["S"]}
            assert json.loads(decrypted(item["History"], place))["data"]["content"] == text
        index = stored.items()["session"]
        assert json.loads(decrypted(index["Title"], {"value": "title", "sort_key": "session"})) == FORGED
        assert json.loads(decrypted(index["Metadata"], {"value": "metadata", "sort_key": "session"})) == FORGED

    async def test_encrypts_what_we_open(
        self, session: DynamoDBChatMessageHistory, stored: Stored, provider: StrictAwsKmsMasterKeyProvider
    ) -> None:
        def encrypted(text: bytes) -> dict[str, bytes]:
            ciphertext, _ = official.encrypt(
                source=text, key_provider=provider, encryption_context=session.encryption_context, algorithm=SUITE
            )
            return {"B": ciphertext}

        key, form = stored.message_items()[-1]["MessageId"]["S"], json.dumps(FORGED).encode()
        line = f'{{"value":"record","sort_key":"{key}"'.encode()
        stored.change_last(History=encrypted(line + b"}\n" + form), Encoding={"S": "aws-encryption-sdk"})
        assert texts(await session.aget_messages(limit=1)) == [SECRET]
        packed = encrypted(line + b',"encoding":"zlib"}\n' + zlib.compress(form))
        stored.change_last(History=packed, Encoding={"S": "zlib,aws-encryption-sdk"})
        assert texts(await session.aget_messages(limit=1)) == [SECRET]
        stored.change_last(History=encrypted(form), Encoding={"S": "aws-encryption-sdk"})
        await refuse(session.aget_messages(limit=1), match="was encrypted without a binding")
