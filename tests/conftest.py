from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Generator, Iterator, MutableMapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import boto3
import localstack_client.session
import pytest
from browser import CHROMIUM
from engines import Engine, found_engine, started
from hypothesis import HealthCheck, settings
from proxy import Proxy, retries
from serving import serving
from variants import SINGLE_ITEM_VARIANTS

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async._item_collection.session import ItemCollectionSession
from chathistory_async._sync.bridge import run
from chathistory_async.testing import FakeClock

# How long an example takes depends on the machine.
settings.register_profile("of any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("of any speed")

ENGINE = pytest.StashKey[Engine]()
STOP = pytest.StashKey[ExitStack]()
# A project of its own, which test_testing.py runs.
collect_ignore = ["users_project"]
EMBEDDED = "the embedded engine cannot honestly hold this: "
NO_POSIX = "this system has no fork and no POSIX signals, and starts no scripts"
NO_BROWSER = "there is no chromium here: apt-get install chromium"

# In debug mode the futures, tasks and handles keep the stacks of their creation, which took a third of the suite's CPU.
# They ask get_debug(). The loop's own checks, of the calling thread and of slow callbacks, do not.
asyncio.BaseEventLoop.get_debug = lambda self: False  # type: ignore[method-assign]

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    # One certificate, which nothing here is signed by: the SDK takes 50 ms to load the usual ones, for each client.
    "AWS_CA_BUNDLE": str(Path(__file__).parent / "authority.pem"),
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

# Other packages of this environment bring plugins along that take seconds to import.
OUR_PLUGIN_ALONE = ["--disable-plugin-autoload", "-p", "chathistory_async.testing"]


# For fixtures of a wider scope, which may start while a test has taken its settings away.
AWS_SETTINGS: dict[str, str] = {}


def set_aws_settings(environment: MutableMapping[str, str], engine: Engine) -> None:
    """Leave no AWS setting of whoever runs the tests: a profile of theirs is not in the tests' empty config file."""
    for name in [name for name in environment if name.startswith("AWS_")]:
        del environment[name]
    environment.update(CREDENTIALS | engine.settings())


def pytest_configure(config: pytest.Config) -> None:
    stop = config.stash[STOP] = ExitStack()
    worker = getattr(config, "workerinput", None)
    engine = stop.enter_context(found_engine()) if worker is None else Engine(**worker["engine"])
    # With pytest-xdist only the workers run tests.
    if config.getoption("dist", "no") == "no":
        gc.disable()
        engine = stop.enter_context(started(engine))
    config.stash[ENGINE] = engine
    set_aws_settings(os.environ, config.stash[ENGINE])
    AWS_SETTINGS.update((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist what was found."""
    node.workerinput["engine"] = asdict(node.config.stash[ENGINE])


def pytest_unconfigure(config: pytest.Config) -> None:
    # A socket of a tracer is found open at the end of the process where it is still frozen then.
    gc.unfreeze()
    config.stash[STOP].close()


def pytest_report_header(config: pytest.Config) -> str:
    engine = config.stash[ENGINE]
    return f"engine: {engine.name}, {engine.endpoint_url or 'one for each worker'}"


def pytest_collection_finish() -> None:
    """Keep garbage collections away from the modules and tests, which stay: they took a fifth of the suite's CPU."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_to_stress(items)
    if CHROMIUM is None:
        skip(items, "browser", NO_BROWSER)
    if os.name != "posix":
        skip(items, "posix", NO_POSIX)
    if config.stash[ENGINE].embedded:
        for item in items:
            if marker := item.get_closest_marker("real_engine"):
                item.add_marker(pytest.mark.skip(reason=EMBEDDED + marker.args[0]))


def skip(items: list[pytest.Item], mark: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(mark):
            item.add_marker(pytest.mark.skip(reason=reason))


def leave_to_stress(items: list[pytest.Item]) -> None:
    """Mark most parameter sets of the tests that are ``sampled`` as stress."""
    sampled = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and item.get_closest_marker("sampled") and not item.get_closest_marker("stress"):
            sampled[item.nodeid.partition("[")[0]].append(item)
    for sets in sampled.values():
        for item in set(sets) - set(sample(sets)):
            item.add_marker(pytest.mark.stress)


def sample(sets: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Choose parameter sets of a test until each value occurs, but one is enough of those that the mark names."""
    values = {item: set(values_of(item)) for item in sets}
    missing = set.union(*values.values())
    while missing or len(values) == len(sets):
        # The first of those with the most.
        chosen = max(values, key=lambda item: len(values[item] & missing))
        missing -= values.pop(chosen)
        yield chosen


def values_of(item: pytest.Item) -> Iterator[tuple[str, str]]:
    sampled = item.get_closest_marker("sampled")
    for name, value in item.callspec.params.items():  # type: ignore[attr-defined]
        if name not in sampled.args:  # type: ignore[union-attr]
            yield name, repr(value)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of ``variant`` runs for each of its module's VARIANTS, by default for those of the single item."""
    if "variant" in metafunc.fixturenames:
        variants = getattr(metafunc.module, "VARIANTS", SINGLE_ITEM_VARIANTS)
        metafunc.parametrize("variant", variants, ids=lambda variant: variant.__name__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip for any other reason than the limits of the engine or the system, or a missing browser, is a failure."""
    report = yield
    is_allowed = any(reason in str(report.longrepr) for reason in (EMBEDDED, NO_POSIX, NO_BROWSER))
    if report.skipped and not hasattr(report, "wasxfail") and not is_allowed:
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.config.stash[ENGINE]


@pytest.fixture(scope="session")
def dynamodb(engine: Engine) -> Any:
    """A plain client, to see and to make what the library does not."""
    return boto3.client("dynamodb", endpoint_url=engine.endpoint_url)


@pytest.fixture(scope="session")
def kms() -> Any:
    """A plain client, to make keys and to take them away."""
    return localstack_client.session.Session().client("kms")


@pytest.fixture(scope="session")
def kms_in() -> Callable[[str], Any]:
    """Makes plain clients of any region."""
    return lambda region: localstack_client.session.Session(region_name=region).client("kms")


@pytest.fixture(scope="session")
def kms_key(kms: Any) -> str:
    """The ARN of a key that every test may encrypt with, and none may change."""
    arn: str = kms.create_key()["KeyMetadata"]["Arn"]
    return arn


@pytest.fixture(scope="session")
def table(engine: Engine) -> Iterator[str]:
    with created_table(layout="single_item") as name:
        yield name


@pytest.fixture(scope="module")
def collection_table(engine: Engine) -> Iterator[str]:
    """A table of item collections, which has the session index for those who use it."""
    with created_table(session_index=True) as name:
        yield name


@contextmanager
def created_table(**options: Any) -> Iterator[str]:
    store = ChatHistoryStore(f"chat-{uuid.uuid4().hex}", **options)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AWS_SETTINGS.items():
            patch.setenv(name, value)
        run(store.create_table)
    yield store._layout.table_name
    run(store.delete_table)
    store.close()


@pytest.fixture
def session_id() -> str:
    # Without the name of the test: errors tell the session, and would tell of what a test expects in its parameters.
    return f"session-{uuid.uuid4().hex[:12]}"


class Make(Protocol):
    def __call__(self, *, session: str = ..., **options: Any) -> DynamoDBChatMessageHistory: ...


@pytest.fixture
def encryption(request: pytest.FixtureRequest, kms_key: str) -> dict[str, Any]:
    """The handle's options for encryption, as the test's variant asks."""
    encrypted = "variant" in request.fixturenames and request.getfixturevalue("variant").encrypted
    return {"kms_key_id": kms_key} if encrypted else {}


@pytest.fixture
def path(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The handle's option for the path of its requests, as the test's variant asks."""
    if "variant" in request.fixturenames and not request.getfixturevalue("variant").fast_path:
        return {"fast_path": False}
    return {}


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The table, and what a handle needs beside it, to be in the layout that the test's variant asks for."""
    variant = request.getfixturevalue("variant") if "variant" in request.fixturenames else None
    if variant is not None and variant.collection:
        indexed = {"session_index": True} if variant.indexed else {}
        return {"table_name": request.getfixturevalue("collection_table"), "sort_key_name": "MessageId", **indexed}
    return {"table_name": request.getfixturevalue("table")}


@pytest.fixture
def make(layout: dict[str, Any], session_id: str, encryption: dict[str, Any], path: dict[str, Any]) -> Make:
    """Makes handles on the test's own session."""

    def make(*, session: str = session_id, **options: Any) -> DynamoDBChatMessageHistory:
        return a_handle(session, **(layout | encryption | path | options))

    return make


def a_handle(session_id: str, **options: Any) -> DynamoDBChatMessageHistory:
    """A handle on a session; with ``session_index``, which only a store has, one of a store's."""
    if "session_index" in options:
        options.pop("coerce_float_to_decimal", None)
        key = options.pop("key", None)
        return ChatHistoryStore(**options).session(session_id, key=key, owner="somebody")
    return DynamoDBChatMessageHistory(session_id=session_id, **options)


@pytest.fixture
def item(dynamodb: Any, table: str, session_id: str) -> Callable[[], dict[str, Any] | None]:
    """Reads the raw item of the test's own session."""

    def item() -> dict[str, Any] | None:
        answer = dynamodb.get_item(TableName=table, Key={"SessionId": {"S": session_id}}, ConsistentRead=True)
        found: dict[str, Any] | None = answer.get("Item")
        return found

    return item


@pytest.fixture
def items_in(dynamodb: Any, session_id: str) -> Callable[[str], list[dict[str, Any]]]:
    """Reads the raw items of the test's own session in a table."""

    def items_in(table: str) -> list[dict[str, Any]]:
        pages = dynamodb.get_paginator("query").paginate(
            TableName=table,
            KeyConditionExpression="SessionId = :session",
            ExpressionAttributeValues={":session": {"S": session_id}},
            ConsistentRead=True,
        )
        return [item for page in pages for item in page["Items"]]

    return items_in


@pytest.fixture
def items(
    items_in: Callable[[str], list[dict[str, Any]]], layout: dict[str, Any]
) -> Callable[[], list[dict[str, Any]]]:
    """Reads the raw items of the test's own session, in whatever layout."""
    return lambda: items_in(layout["table_name"])


@pytest.fixture
def stored(items: Callable[[], list[dict[str, Any]]], layout: dict[str, Any]) -> Callable[..., list[Any]]:
    """Reads the raw messages of the test's own session, in whatever layout, from an attribute."""

    def stored(name: str = "History") -> list[Any]:
        found = [item for item in items() if name in item]
        if "sort_key_name" not in layout:
            return [element for item in found for element in item[name]["L"]]
        # A record stands for each of its messages: it may be compressed or encrypted.
        return [item[name] for item in found for _ in range(int(item.get("Count", {"N": "1"})["N"]))]

    return stored


@pytest.fixture
def update(dynamodb: Any, table: str, session_id: str) -> Callable[..., None]:
    """Sets raw attributes in the item of the test's own session."""

    def update(**attributes: dict[str, Any]) -> None:
        dynamodb.update_item(
            TableName=table,
            Key={"SessionId": {"S": session_id}},
            UpdateExpression="SET " + ", ".join(f"#{index} = :{index}" for index in range(len(attributes))),
            ExpressionAttributeNames={f"#{index}": name for index, name in enumerate(attributes)},
            ExpressionAttributeValues={f":{index}": value for index, value in enumerate(attributes.values())},
        )

    return update


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    """The clock that the library reads. It stands still until the test advances it."""
    with FakeClock() as clock:
        yield clock


@pytest.fixture
def proxy(engine: Engine) -> Iterator[Proxy]:
    with Proxy(engine.endpoint_url, engine.kms_endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, make: Make) -> Callable[..., DynamoDBChatMessageHistory]:
    """Makes handles that reach the engine through the proxy, with few retries."""

    def through(attempts: int = 4, **options: Any) -> DynamoDBChatMessageHistory:
        config = retries(attempts)
        history = make(endpoint_url=proxy.url, config=config, **options)
        if isinstance(history._session, ItemCollectionSession):
            # As in a process that has appended before: the first append reads once, to see if there is a sort key.
            history._session._reader.has_sort_key()
        return history

    return through


@pytest.fixture(params=["plain", "encrypted", "indexed", "sdk"])
def storage(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The options of a store for sessions of this kind."""
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": dict,
        "encrypted": lambda: {"kms_key_id": request.getfixturevalue("kms_key")},
        "indexed": lambda: {"session_index": True},
        "sdk": lambda: {"fast_path": False},
    }
    return kinds[request.param]()


@pytest.fixture
def store(collection_table: str) -> ChatHistoryStore:
    """A store with a session index, for the sessions that commands work on."""
    return ChatHistoryStore(collection_table, session_index=True)


@pytest.fixture
def options(collection_table: str) -> list[str]:
    """The options that name the same table on the command line."""
    return ["--table", collection_table]


class NewStore(Protocol):
    def __call__(self, **options: Any) -> ChatHistoryStore: ...


@pytest.fixture
async def new_store(collection_table: str) -> AsyncIterator[NewStore]:
    """Makes stores with a session index."""
    stores = []

    def new_store(**options: Any) -> ChatHistoryStore:
        stores.append(ChatHistoryStore(collection_table, session_index=True, **options))
        return stores[-1]

    yield new_store
    for store in stores:
        await store.aclose()


@pytest.fixture
def store_through(new_store: NewStore, proxy: Proxy) -> NewStore:
    """Makes such stores that reach the engine through the proxy, with few retries."""

    def store_through(attempts: int = 4, **options: Any) -> ChatHistoryStore:
        config = retries(attempts)
        return new_store(endpoint_url=proxy.url, config=config, **options)

    return store_through


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records how long the library and the SDK would sleep if chance chose the longest. Replaces ``asyncio.sleep``."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float, *arguments: Any) -> None:
        if seconds:
            pauses.append(seconds)
        await sleep(0, *arguments)

    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    monkeypatch.setattr(asyncio, "sleep", record)
    return pauses


@asynccontextmanager
async def turns_of_another_task() -> AsyncIterator[Callable[[], int]]:
    """Run a task beside the block, and yield a function that returns how many turns of the event loop it has had."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(other())
    try:
        yield lambda: turns
    finally:
        task.cancel()


def cpu_seconds() -> float:
    """The CPU time of this thread. Where the system tells it, without its own time.

    A virtual machine takes up to 90 ms of that for four megabytes of memory that no process has used before.
    """
    if sys.platform != "linux":
        return time.thread_time()
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_utime


@pytest.fixture
def long_steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which steps of event loops took over 50 ms of CPU time: the time of the clock also has what other processes took.

    Full garbage collections are kept out, since they take longer the more tests have run before.
    """
    run = asyncio.Handle._run
    found: list[str] = []

    def measured(handle: asyncio.Handle) -> None:
        before = cpu_seconds()
        run(handle)
        if cpu_seconds() - before > 0.05:
            found.append(repr(handle))

    monkeypatch.setattr(asyncio.Handle, "_run", measured)
    gc.collect()
    gc.freeze()
    return found


@pytest.fixture
def started_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that start meanwhile, also of those that end again."""
    start, names = threading.Thread.start, list[str]()

    def recorded(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", recorded)
    return names


@pytest.fixture
def owner() -> str:
    return f"owner-{uuid.uuid4().hex}"


@pytest.fixture
def fast_path_always_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every call begin on the fast path, however many have just failed there."""
    monkeypatch.setattr("chathistory_async._aws.fast_path.CLOSED_SECONDS", (0, 0))


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], str]]:
    """Starts a server that gives one answer to everything."""
    servers = ExitStack()

    def start(status: int, body: str) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.enter_context(serving(server))
        return f"http://127.0.0.1:{server.server_port}"

    with servers:
        yield start
