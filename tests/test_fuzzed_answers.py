"""An endpoint that answers with damaged JSON: whatever it says, a call ends, with a result or with an error of ours."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.config import Config
from langchain_core.messages import HumanMessage
from proxy import Fault, Proxy
from samples import humans
from serving import serving

from chathistory_async import ChatHistoryError, ChatHistoryStore, DynamoDBChatMessageHistory

# For each operation. More are tried by hand: FUZZED_ANSWERS=1000 pytest tests/test_fuzzed_answers.py
CASES = int(os.environ.get("FUZZED_ANSWERS", "2"))
SECONDS = 20
SESSION, OWNER = "fuzzed", "owner"

Operation = Callable[[ChatHistoryStore], Awaitable[object]]


def handle(store: ChatHistoryStore) -> DynamoDBChatMessageHistory:
    return store.session(SESSION, owner=OWNER if store._session_index else None)


async def append(store: ChatHistoryStore) -> None:
    history = handle(store)
    await history.aadd_messages(humans("one"))
    await history.aadd_messages(humans("two", "three"))


async def read(store: ChatHistoryStore) -> None:
    await handle(store).aget_messages()
    await handle(store).aget_messages(limit=2)


async def stream(store: ChatHistoryStore) -> None:
    assert [message async for message in handle(store).aiter()]


async def clear(store: ChatHistoryStore) -> None:
    await handle(store).aclear()


async def page(store: ChatHistoryStore) -> None:
    await handle(store).apage(2)


async def replace(store: ChatHistoryStore) -> None:
    await handle(store).areplace_message((await handle(store).apage(1)).messages[0].id, HumanMessage("new"))


async def delete(store: ChatHistoryStore) -> None:
    await handle(store).adelete_messages([one.id for one in (await handle(store).apage(2)).messages])


async def pop(store: ChatHistoryStore) -> None:
    await handle(store).apop_message()


async def copy_to(store: ChatHistoryStore) -> None:
    await handle(store).acopy_to(f"{SESSION}-copy")


async def list_sessions(store: ChatHistoryStore) -> None:
    await store.list_sessions(OWNER, limit=1)


async def info(store: ChatHistoryStore) -> None:
    await store.get_session_info(SESSION)


async def title(store: ChatHistoryStore) -> None:
    await store.set_title(SESSION, "title")


async def metadata(store: ChatHistoryStore) -> None:
    await store.update_metadata(SESSION, {"a": 1})


async def delete_session(store: ChatHistoryStore) -> None:
    await store.delete_session(SESSION)


async def purge(store: ChatHistoryStore) -> None:
    await store.purge_owner(OWNER)


async def create_table(store: ChatHistoryStore) -> None:
    await store.create_table(wait_seconds=1)


@asynccontextmanager
async def source_of(store: ChatHistoryStore) -> AsyncIterator[ChatHistoryStore]:
    options = store._settings.clients.options
    async with ChatHistoryStore(
        f"{store._layout.table_name}-source",
        layout="single_item",
        endpoint_url=options.endpoint_url,
        config=options.config,
        fast_path=options.fast_path,
    ) as source:
        yield source


async def migrate(store: ChatHistoryStore) -> None:
    async with source_of(store) as source:
        ids = source.scan_session_ids()
        [one async for one in store.migrate_from(source, ids, delete_source=True)]


CHAT: list[Operation] = [append, read, stream, clear]
COLLECTION: list[Operation] = [*CHAT, page, replace, delete, pop, copy_to]
INDEX: list[Operation] = [*COLLECTION, list_sessions, info, title, metadata, delete_session, purge]


@dataclass
class Endpoint:
    """Gives recorded answers, of which one, or each from one on, is damaged."""

    recorded: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    damage: Callable[[Any], Any] = lambda answer: answer
    damaged: int = 0
    endlessly: bool = False
    url: str = ""
    requests: int = 0

    def answer(self, operation: str) -> tuple[int, bytes]:
        answers = self.recorded.get(operation) or [(200, {})]
        status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
        number, self.requests = self.requests, self.requests + 1
        if number == self.damaged or (self.endlessly and number > self.damaged):
            answer = self.damage(copy.deepcopy(answer))
        return status, json.dumps(answer).encode()

    @property
    def handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, body = endpoint.answer(self.headers["X-Amz-Target"].split(".")[1])
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        return Handler


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    server = ThreadingHTTPServer(("127.0.0.1", 0), endpoint.handler)
    server.daemon_threads = True
    # Connections are cut short.
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield endpoint


def nodes(answer: Any) -> list[tuple[Any, Any]]:
    """All places in an answer: what holds each, and where."""
    found = [([answer], 0)] if not isinstance(answer, (dict, list)) else []
    waiting = [answer]
    while waiting:
        holder = waiting.pop()
        places = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, place) for place in places]
        waiting += [holder[place] for place in places]
    return found


def nested(levels: int) -> Any:
    value: Any = {"S": "x"}
    for _ in range(levels):
        value = {"L": [value]}
    return value


VALUES: list[Any] = [
    *[None, True, 0, -1, 10**40, 1e300, "", "x" * 1000, "\ud800", "\0", [], {}, [[]], [{}], [None], {"x": None}],
    *[{"S": 5}, {"S": None}, {"S": "x"}, {"N": "NaN"}, {"N": "1e999"}, {"N": "9" * 5000}, {"N": "x"}, {"B": "!"}],
    *[{"B": 5}, {"L": [5]}, {"L": {}}, {"L": [{"N": "x"}]}, {"M": 5}, {"M": {"x": 5}}, {"NULL": 1}, {"BOOL": "x"}],
    *[{"S": "x", "N": "1"}, {"Z": "x"}, {"SS": [5]}, nested(30), nested(300), "m#", "9999-99-99T99:99:99Z", "{}"],
]


def damaged(answer: Any, chance: random.Random) -> Any:
    """One node of an answer is another value, is missing, has another name, or is there twice."""
    places = nodes(answer)
    if not places:
        return chance.choice(VALUES)
    holder, place = chance.choice(places)
    kind = chance.randrange(6)
    if kind == 0:
        del holder[place]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice(["S", "N", "B", "L", "M", "x", ""])] = holder.pop(place)
    elif kind == 1:
        holder.append(copy.deepcopy(holder[place]))
    elif kind == 2 and isinstance(answer, dict):
        names = ["Items", "Item", "Attributes", "LastEvaluatedKey", "UnprocessedItems", "Table", "Count", "__type"]
        answer[chance.choice(names)] = chance.choice([*VALUES, holder[place]])
    else:
        holder[place] = chance.choice(VALUES)
    return answer


async def tried(operation: Operation, store: ChatHistoryStore) -> str:
    """Run an operation and return its outcome as text. It names an exception only if the exception is ours."""
    try:
        await asyncio.wait_for(operation(store), SECONDS)
    except ChatHistoryError as error:
        return f"ChatHistoryError: {type(error).__name__}"
    except asyncio.TimeoutError:
        return "endless"
    except (AssertionError, IndexError) as error:
        # The operation's own, of a result that is empty.
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        return "a result" if raised_in == __file__ else repr(error)
    except Exception as error:  # noqa: BLE001
        return "".join(traceback.format_exception(error)[-3:])
    return "a result"


@asynccontextmanager
async def made(url: str, table: str, *, fast_path: bool, **options: Any) -> AsyncIterator[ChatHistoryStore]:
    config = Config(retries={"total_max_attempts": 2}, read_timeout=5)
    kms: dict[str, Any] = {"kms_endpoint_url": url} if "kms_key_id" in options else {}
    async with ChatHistoryStore(table, endpoint_url=url, config=config, fast_path=fast_path, **kms, **options) as store:
        yield store


LAYOUTS: dict[str, tuple[dict[str, Any], list[Operation]]] = {
    "single_item": ({"layout": "single_item"}, [*CHAT, create_table]),
    "single_item-history_size": ({"layout": "single_item", "history_size": 3}, CHAT),
    "collection": ({}, [*COLLECTION, create_table, migrate]),
    "collection-history_size": ({"history_size": 2}, CHAT),
    "indexed": ({"session_index": True}, [*INDEX, create_table, migrate]),
    "encrypted": ({"session_index": True, "encrypted": True}, [append, read, replace, pop, info, title, metadata]),
}


@pytest.mark.sampled("layout")
@pytest.mark.usefixtures("fast_path_always_open")
@pytest.mark.parametrize(
    "fast_path", [pytest.param(True, id="fast"), pytest.param(False, id="sdk", marks=pytest.mark.stress)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_end_in_an_error_of_ours_or_not_at_all(
    layout: str, fast_path: bool, proxy: Proxy, endpoint: Endpoint, kms_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which takes several times as long.
    asyncio.get_running_loop().set_debug(False)
    # Nobody waits before a retry.
    monkeypatch.setattr(random, "uniform", lambda low, high: 0)
    monkeypatch.setattr("chathistory_async._aws.calls.MAX_CONFLICTS", 3)
    options, operations = dict(LAYOUTS[layout][0]), LAYOUTS[layout][1]
    if options.pop("encrypted", False):
        options["kms_key_id"] = kms_key
    table = f"fuzzed-{uuid.uuid4().hex}"
    failures: dict[str, str] = {}
    async with (
        made(proxy.url, table, fast_path=fast_path, **options) as real,
        made(endpoint.url, table, fast_path=fast_path, **options) as fuzzed,
    ):
        await real.create_table()
        async with source_of(real) as source:
            await source.create_table()
        for operation in operations:
            for lost in (Fault.NONE, Fault.LOST_RESPONSE):
                await append(real)
                if operation is migrate:
                    async with source_of(real) as source:
                        await append(source)
                recorded = await recorded_answers(proxy, operation, real, lost)
                for seed in range(CASES):
                    chance = random.Random(f"{layout}{operation.__name__}{lost}{seed}")
                    endpoint.recorded = copy.deepcopy(recorded)
                    endpoint.requests = 0
                    endpoint.damaged = chance.randrange(sum(map(len, recorded.values())))
                    endpoint.endlessly = chance.random() < 0.2
                    state = chance.getstate()

                    def damage(answer: Any, state: Any = state) -> Any:
                        chance = random.Random()
                        chance.setstate(state)
                        return damaged(answer, chance)

                    endpoint.damage = damage
                    outcome = await tried(operation, fuzzed)
                    if outcome != "a result" and not outcome.startswith("ChatHistoryError"):
                        failures[f"{operation.__name__} {lost.name} {seed}"] = outcome
        await real.delete_table()
        async with source_of(real) as source:
            await source.delete_table()
    assert not failures, "\n".join(f"{case}: {outcome}" for case, outcome in failures.items())


async def recorded_answers(
    proxy: Proxy, operation: Operation, store: ChatHistoryStore, lost: Fault
) -> dict[str, list[tuple[int, Any]]]:
    """Return the engine's answers to an operation. With ``lost``, the answer to the first write is lost."""
    proxy.answers.clear()
    writes = ("UpdateItem", "TransactWriteItems", "PutItem", "DeleteItem")
    left = [lost]
    proxy.schedule = lambda seen: left.pop() if left and seen.operation in writes else Fault.NONE
    await operation(store)
    proxy.schedule = lambda seen: Fault.NONE
    recorded: dict[str, list[tuple[int, Any]]] = {}
    for name, status, body in proxy.answers:
        recorded.setdefault(name, []).append((status, json.loads(body)))
    return recorded
