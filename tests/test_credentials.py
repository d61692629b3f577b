"""The credentials of a given session are loaded and refreshed once, however many tasks, loops and threads need them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import aioboto3
import boto3
import pytest
from aiobotocore.credentials import AioCredentialResolver
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.config import Config
from conftest import Make
from samples import humans
from serving import serving

from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    ConfigurationError,
    DynamoDBChatMessageHistory,
)
from chathistory_async._aws import single_flight
from chathistory_async._aws.credentials import SessionCredentials

KINDS = [aioboto3.Session, AioSession, boto3.Session]
# One of the asynchronous ones, which are alike here.
TWO_KINDS = [aioboto3.Session, boto3.Session]


def session_of(kind: Any, profile: str) -> Any:
    return kind(profile=profile) if kind is AioSession else kind(profile_name=profile)


class Aws:
    """An ECS agent, an STS and a DynamoDB that says yes to everything.

    Attributes:
        url: the endpoint of all three.
        asked: how often the agent was asked, and each role was assumed.
        signed: what the appends were signed with.
        regions: those that STS was asked in.
        is_broken: whether the agent and STS answer 500.
        lifetime: for how long a role's credentials are good.
        answers: set while STS answers.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.signed: list[str] = []
        self.regions: list[str] = []
        self.is_broken = False
        self.lifetime = timedelta(hours=1)
        self.answers = threading.Event()
        self.answers.set()
        aws = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(aws.container)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                signature = self.headers.get("Authorization", "Credential=nobody//")
                access_key, _, region = signature.partition("Credential=")[2].split("/")[:3]
                operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
                if not operation:
                    aws.regions.append(region)
                elif operation in {"PutItem", "UpdateItem"}:
                    aws.signed.append(access_key)
                self.answer((lambda: "{}") if operation else (lambda: aws.role(body)))

            def answer(self, content: Callable[[], str]) -> None:
                # Long enough for other tasks to come in between.
                time.sleep(0.02)
                text = content()
                self.send_response(200 if text else 500)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def container(self) -> str:
        self.asked["container"] += 1
        if self.is_broken:
            return ""
        credentials = {"AccessKeyId": "CONTAINER", "SecretAccessKey": "s", "Token": "t"}
        return json.dumps(credentials | {"Expiration": expiry(timedelta(hours=6))})

    def role(self, body: bytes) -> str:
        role = parse_qs(body.decode())["RoleArn"][0].rpartition("/")[2]
        self.asked[role] += 1
        number = self.asked[role]
        self.answers.wait(10)
        if self.is_broken:
            return ""
        return (
            '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>'
            "<AssumedRoleUser><AssumedRoleId>x:y</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/x/y</Arn>"
            f"</AssumedRoleUser><Credentials><AccessKeyId>{role}{number}</AccessKeyId>"
            f"<SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
            f"<Expiration>{expiry(self.lifetime)}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
        )

    async def is_asked_for(self, role: str, times: int) -> None:
        while self.asked[role] < times:
            await asyncio.sleep(0.005)


def expiry(lifetime: timedelta) -> str:
    return (datetime.now(timezone.utc) + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ")


PROCESS = """
import json, time
with open({runs!r}, "a") as runs:
    runs.write("x")
time.sleep(0.1)
print(json.dumps({{"Version": 1, "AccessKeyId": "PROCESS", "SecretAccessKey": "s", "Expiration": {expiry!r}}}))
"""


SECRET = "a secret key"
_KEYS = f'"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "{SECRET}"'
# Output of a credential_process: cut off, of another JSON type, of another encoding, with values of other types.
STRANGE = [
    f"{{{_KEYS}".encode(),
    f'["{SECRET}"]'.encode(),
    b"null",
    f"{{{_KEYS}}}".encode() + b"\xff",
    f'{{{_KEYS}, "Expiration": 5}}'.encode(),
    f'{{{_KEYS}, "Expiration": "{"9" * 30}"}}'.encode(),
    f'{{{_KEYS}, "SessionToken": 5}}'.encode(),
]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Aws]:
    aws = Aws()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{aws.url}/credentials")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws.url)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    program = tmp_path / "process.py"
    program.write_text(PROCESS.format(runs=str(tmp_path / "runs"), expiry=expiry(timedelta(hours=1))))
    (tmp_path / "config").write_text(
        "[profile outer]\nrole_arn = arn:aws:iam::123456789012:role/outer\nsource_profile = inner\n"
        "[profile inner]\nrole_arn = arn:aws:iam::123456789012:role/inner\ncredential_source = EcsContainer\n"
        f"[profile process]\ncredential_process = {sys.executable} {program}\n"
        "[profile missing]\ncredential_process = /none-such\n"
        f"[profile strange]\ncredential_process = {sys.executable} {tmp_path / 'strange.py'}\n"
    )
    with serving(aws.server):
        yield aws
        aws.answers.set()


Handle = Callable[..., DynamoDBChatMessageHistory]


@pytest.fixture
def handle(make: Make, aws: Aws) -> Handle:
    """Makes handles on sessions of their own, in one layout and the other, that have a given session's credentials."""
    numbers = itertools.count()

    def handle(session: Any, **options: Any) -> DynamoDBChatMessageHistory:
        number = next(numbers)
        layout = {"sort_key_name": "MessageId"} if number % 2 else {}
        return make(session=str(number), boto3_session=session, endpoint_url=aws.url, **layout, **options)

    return handle


async def burst(handles: list[DynamoDBChatMessageHistory], size: int = 1) -> None:
    await asyncio.gather(*(one.aadd_messages(humans(1)) for one in handles for _ in range(size)))


def in_threads(*bursts: list[DynamoDBChatMessageHistory]) -> None:
    """Run each burst on an event loop of its own, all at once."""
    barrier = threading.Barrier(len(bursts))

    async def run(handles: list[DynamoDBChatMessageHistory]) -> None:
        barrier.wait()
        await asyncio.wait_for(burst(handles), 20)

    with ThreadPoolExecutor(len(bursts)) as threads:
        list(threads.map(lambda handles: asyncio.run(run(handles)), bursts))


class TestFirstCalls:
    @pytest.mark.sampled
    @pytest.mark.parametrize("fast_path", [True, False])
    @pytest.mark.parametrize("kind", KINDS)
    async def test_assume_a_chain_of_roles_once(self, handle: Handle, aws: Aws, kind: Any, fast_path: bool) -> None:
        session = session_of(kind, "outer")
        await burst([handle(session, fast_path=fast_path) for _ in range(20)])
        assert aws.asked == {"container": 1, "inner": 1, "outer": 1}
        assert aws.signed.count("outer1") == 20

    @pytest.mark.sampled
    @pytest.mark.parametrize("kind", KINDS)
    async def test_run_a_process_once(self, handle: Handle, aws: Aws, kind: Any, tmp_path: Path) -> None:
        session = session_of(kind, "process")
        await burst([handle(session) for _ in range(20)])
        assert (tmp_path / "runs").read_text() == "x"
        assert aws.signed == ["PROCESS"] * 20

    @pytest.mark.parametrize("kind", KINDS)
    def test_on_several_loops_load_once(self, handle: Handle, aws: Aws, kind: Any) -> None:
        session = session_of(kind, "outer")
        in_threads(*([handle(session) for _ in range(5)] for _ in range(3)))
        assert aws.asked == {"container": 1, "inner": 1, "outer": 1}
        assert aws.signed.count("outer1") == 15

    @pytest.mark.parametrize("kind", KINDS)
    async def test_ask_sts_in_the_region_that_was_given(
        self, handle: Handle, aws: Aws, monkeypatch: pytest.MonkeyPatch, kind: Any
    ) -> None:
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        await handle(session_of(kind, "outer"), region_name="ca-west-1").aadd_messages(humans(1))
        assert set(aws.regions) == {"ca-west-1"}
        assert aws.signed == ["outer1"]


class TestRefresh:
    @pytest.mark.sampled
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_made_once_for_all_loops(self, handle: Handle, aws: Aws, kind: Any) -> None:
        aws.lifetime = timedelta(minutes=5)
        session = session_of(kind, "outer")
        in_threads([handle(session)])
        before = aws.asked["outer"]
        aws.lifetime = timedelta(hours=1)
        in_threads(*([handle(session) for _ in range(5)] for _ in range(3)))
        assert aws.asked["outer"] == before + 1
        assert aws.signed.count(f"outer{before + 1}") == 15

    @pytest.mark.parametrize("kind", TWO_KINDS)
    async def test_does_not_hold_up_calls_while_the_credentials_are_good(
        self, handle: Handle, aws: Aws, kind: Any
    ) -> None:
        session = session_of(kind, "outer")
        aws.lifetime = timedelta(minutes=12)
        await handle(session).aadd_messages(humans(1))
        aws.answers.clear()
        before = aws.asked["inner"]
        first = asyncio.create_task(handle(session).aadd_messages(humans(1)))
        await aws.is_asked_for("inner", times=before + 1)
        await burst([handle(session) for _ in range(5)])
        await asyncio.to_thread(in_threads, [handle(session)])
        assert not first.done()
        aws.answers.set()
        await first

    async def test_is_not_waited_for_where_none_is_needed(
        self, handle: Handle, aws: Aws, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = aioboto3.Session(profile_name="outer")
        await handle(session).aadd_messages(humans(1))
        monkeypatch.setattr(SessionCredentials, "refresh", pytest.fail)
        await burst([handle(session)], size=3)


class TestFailures:
    @pytest.mark.parametrize("kind", KINDS)
    async def test_are_told_to_all_who_waited_and_tried_again_by_the_next(
        self, handle: Handle, aws: Aws, kind: Any
    ) -> None:
        session = session_of(kind, "outer")
        handles = [handle(session) for _ in range(10)]
        aws.is_broken = True
        failures = await asyncio.gather(*(one.aadd_messages(humans(1)) for one in handles), return_exceptions=True)
        assert {type(failure) for failure in failures} == {ConfigurationError}
        # The SDK tries three times.
        assert aws.asked == {"container": 3}
        aws.is_broken = False
        await burst(handles)
        assert aws.signed.count("outer1") == 10

    @pytest.mark.parametrize("kind", TWO_KINDS)
    async def test_to_get_any_that_are_not_expired_are_tried_again(self, handle: Handle, aws: Aws, kind: Any) -> None:
        one = handle(session_of(kind, "outer"))
        aws.lifetime = timedelta(minutes=-1)
        with pytest.raises(ChatHistoryError):
            await one.aadd_messages(humans(1))
        aws.lifetime = timedelta(hours=1)
        await one.aadd_messages(humans(1))

    @pytest.mark.parametrize("kind", [None, *KINDS])
    async def test_to_find_any_are_tried_again(
        self, handle: Handle, aws: Aws, monkeypatch: pytest.MonkeyPatch, kind: Any
    ) -> None:
        monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        one = handle(None if kind is None else kind())
        for failure in await asyncio.gather(*(one.aadd_messages(humans(1)) for _ in range(5)), return_exceptions=True):
            assert isinstance(failure, ConfigurationError)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{aws.url}/credentials")
        await one.aadd_messages(humans(1))
        assert aws.signed == ["CONTAINER"]

    @pytest.mark.parametrize("kind", TWO_KINDS)
    async def test_to_run_a_process_are_errors_of_ours(self, handle: Handle, aws: Aws, kind: Any) -> None:
        with pytest.raises(ConfigurationError):
            await handle(session_of(kind, "missing")).aadd_messages(humans(1))

    @pytest.mark.sampled
    @pytest.mark.parametrize("fast_path", [True, False])
    @pytest.mark.parametrize("output", STRANGE)
    @pytest.mark.parametrize("kind", TWO_KINDS)
    async def test_to_understand_a_process_are_errors_of_ours_without_what_it_said(
        self, handle: Handle, aws: Aws, kind: Any, tmp_path: Path, output: bytes, fast_path: bool
    ) -> None:
        (tmp_path / "strange.py").write_text(f"import sys; sys.stdout.buffer.write({output!r})")
        with pytest.raises(ConfigurationError) as caught:
            await handle(session_of(kind, "strange"), fast_path=fast_path).aadd_messages(humans(1))
        below = caught.value.__cause__
        assert below is not None
        while below is not None:
            assert below.__traceback__ is None
            assert SECRET not in f"{below!r} {below.args} {vars(below)} {getattr(below, 'object', None)}"
            below = below.__cause__ or below.__context__


class TestCancellation:
    @pytest.mark.parametrize("kind", TWO_KINDS)
    async def test_of_the_task_that_loads_harms_no_other(self, handle: Handle, aws: Aws, kind: Any) -> None:
        session = session_of(kind, "outer")
        aws.answers.clear()
        first, *others = [asyncio.create_task(handle(session).aadd_messages(humans(1))) for _ in range(6)]
        await aws.is_asked_for("inner", times=1)
        first.cancel()
        others[0].cancel()
        await asyncio.wait([first, others[0]])
        aws.answers.set()
        await asyncio.gather(*others[1:])
        assert first.cancelled()
        assert others[0].cancelled()
        assert len([one for one in aws.signed if one.startswith("outer")]) == 4

    async def test_of_a_whole_loop_harms_no_other(self, handle: Handle, aws: Aws) -> None:
        session = aioboto3.Session(profile_name="outer")
        aws.answers.clear()
        others_wait = threading.Event()

        async def begin() -> None:
            task = asyncio.create_task(handle(session).aadd_messages(humans(1)))
            await aws.is_asked_for("inner", times=1)
            others_wait.wait(10)
            # It ends with the loop.
            assert not task.done()

        loop = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(begin())))
        await aws.is_asked_for("inner", times=1)
        waiting = asyncio.create_task(handle(session).aadd_messages(humans(1)))
        await asyncio.sleep(0.05)
        others_wait.set()
        await loop
        aws.answers.set()
        await waiting


async def test_a_session_is_let_go_of(collection_table: str, aws: Aws) -> None:
    session = aioboto3.Session(profile_name="outer")
    async with ChatHistoryStore(collection_table, boto3_session=session, endpoint_url=aws.url) as store:
        await store.session("x").aadd_messages(humans(1))
    gone = weakref.ref(session._session)
    del session, store
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("refreshed", [False, True])
async def test_a_synchronous_call_does_not_wait_for_ever_for_the_loop_that_it_blocks(
    handle: Handle, aws: Aws, monkeypatch: pytest.MonkeyPatch, refreshed: bool
) -> None:
    monkeypatch.setattr(single_flight, "HELD_UP_SECONDS", 0.1)
    session = aioboto3.Session(profile_name="outer")
    if refreshed:
        aws.lifetime = timedelta(minutes=5)
        await handle(session).aadd_messages(humans(1))
        aws.lifetime = timedelta(hours=1)
    before = aws.asked.copy()
    aws.answers.clear()
    loading = asyncio.create_task(handle(session).aadd_messages(humans(1)))
    await aws.is_asked_for("inner", times=before["inner"] + 1)
    aws.answers.set()
    handle(session).add_messages(humans(1))
    await loading
    await burst([handle(session)])
    assert aws.asked["outer"] == before["outer"] + 2


async def test_credentials_that_nobody_needs_are_not_looked_for_at_each_call(handle: Handle, aws: Aws) -> None:
    class Nobodys:
        METHOD = "nobodys"
        asked = 0

        async def load(self) -> None:
            self.asked += 1

    session, provider = AioSession(), Nobodys()
    session.register_component("credential_provider", AioCredentialResolver([provider]))
    one = handle(session, config=Config(signature_version=UNSIGNED), fast_path=False)
    await one.aadd_messages(humans(1))
    asked = provider.asked
    await one.aadd_messages(humans(1))
    assert provider.asked == asked
    assert aws.signed == ["nobody", "nobody"]
