"""The quicker methods of the embedded engine give the responses that moto's own give, whatever the requests."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from chathistory_async import local

STEPS = 250
# Each table's types of partition key and sort key.
TABLES: dict[str, tuple[str, str | None]] = {
    "texts": ("S", "S"),
    "numbers": ("S", "N"),
    "bytes": ("B", "B"),
    "one": ("N", None),
}
KEYS: dict[str, list[dict[str, Any]]] = {
    "S": [{"S": text} for text in "abc"],
    "N": [{"N": number} for number in ("1", "10", "2")],
    "B": [{"B": data} for data in (b"\xff\x00", b"a", b"zz")],
}
SERVER = """
import logging, sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
if sys.argv[1] == "quick":
    from chathistory_async._quick_moto import install
    install()
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
print(server.server_port, flush=True)
server.serve_forever()
"""
VALUES: list[dict[str, Any]] = [
    {"S": ""},
    {"S": "é"},
    {"N": "1.50"},
    {"B": b"\xff\xfe"},
    {"BOOL": True},
    {"NULL": True},
    {"SS": ["a", "b"]},
    {"NS": ["1", "2.5"]},
    {"BS": [b"\xff"]},
    {"L": [{"S": "x"}, {"M": {"a": {"B": b"q"}}}]},
    {"M": {"a": {"N": "1"}, "b": {"L": []}}},
]
UPDATES: list[tuple[str, dict[str, Any]]] = [
    ("SET l = list_append(if_not_exists(l, :e), :v)", {":e": {"L": []}, ":v": {"L": [{"N": "7"}]}}),
    ("SET m.a = :v", {":v": {"S": "new"}}),
    ("ADD n :v", {":v": {"N": "2"}}),
    ("ADD s :v", {":v": {"SS": ["c"]}}),
    ("DELETE s :v", {":v": {"SS": ["a"]}}),
    ("REMOVE l[0], b", {}),
    ("SET b = m", {}),
]
CONDITIONS = [None, None, "attribute_not_exists(b)", "attribute_exists(h)"]


@pytest.fixture(scope="module")
def clients() -> Iterator[list[Any]]:
    """Clients of two servers, of which only the second one has the quicker methods."""
    servers = [
        subprocess.Popen([sys.executable, "-c", SERVER, kind], stdout=subprocess.PIPE, text=True)
        for kind in ("plain", "quick")
    ]
    clients = []
    for server in servers:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        clients.append(boto3.client("dynamodb", endpoint_url=url, config=Config(retries={"total_max_attempts": 1})))
    yield clients
    for client in clients:
        client.close()
    for server in servers:
        server.kill()
        server.communicate()


class Requests:
    """Requests at random."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def table(self) -> str:
        return self.chance.choice(list(TABLES))

    def key(self, table: str) -> dict[str, Any]:
        partition, sort = TABLES[table]
        key = {"h": self.chance.choice(KEYS[partition])}
        return key if sort is None else key | {"r": self.chance.choice(KEYS[sort])}

    def attributes(self) -> dict[str, Any]:
        fixed = {
            "l": VALUES[-2],
            "m": VALUES[-1],
            "n": {"N": "3"},
            "s": {"SS": ["a", "b"]},
            "b": self.chance.choice(VALUES),
        }
        return {name: value for name, value in fixed.items() if self.chance.random() < 0.6}

    def write(self) -> tuple[str, dict[str, Any]]:
        table = self.table()
        kind = self.chance.choice(["Put", "Update", "Update", "Delete"])
        request: dict[str, Any] = {"TableName": table}
        if kind == "Put":
            request["Item"] = self.key(table) | self.attributes()
        else:
            request["Key"] = self.key(table)
        if kind == "Update":
            request["UpdateExpression"], values = self.chance.choice(UPDATES)
            request |= {"ExpressionAttributeValues": values} if values else {}
        if condition := self.chance.choice(CONDITIONS):
            request["ConditionExpression"] = condition
            request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        return kind, request

    def one(self) -> tuple[str, dict[str, Any]]:
        kind = self.chance.choice(["write", "write", "write", "transaction", "get", "query", "scan"])
        if kind == "write":
            name, request = self.write()
            returned = ["NONE", "ALL_OLD", *(["ALL_NEW", "UPDATED_OLD", "UPDATED_NEW"] if name == "Update" else [])]
            return f"{name.lower()}_item", request | {"ReturnValues": self.chance.choice(returned)}
        if kind == "transaction":
            writes = [self.write() for _ in range(self.chance.randint(1, 4))]
            return "transact_write_items", {"TransactItems": [{name: request} for name, request in writes]}
        table = (
            self.chance.choice([name for name, (_, sort) in TABLES.items() if sort])
            if kind == "query"
            else self.table()
        )
        request = {"TableName": table}
        if self.chance.random() < 0.5:
            request["ProjectionExpression"] = self.chance.choice(["h, b, s", "l, none", "m.a, n", "l[1].a"])
        if kind == "get":
            return "get_item", request | {"Key": self.key(table)}
        if kind == "query":
            values = {":h": self.chance.choice(KEYS[TABLES[table][0]])}
            return "query", request | {
                "KeyConditionExpression": "h = :h",
                "ExpressionAttributeValues": values,
                "ScanIndexForward": self.chance.random() < 0.5,
                "Limit": self.chance.randint(1, 4),
            }
        return "scan", request


def response(client: Any, operation: str, request: dict[str, Any]) -> Any:
    try:
        answer = getattr(client, operation)(**request)
    except ClientError as error:
        answer = error.response
    return comparable({name: value for name, value in answer.items() if name != "ResponseMetadata"})


def comparable(value: Any) -> Any:
    """Sets have no order."""
    if isinstance(value, dict):
        return {
            name: sorted(member) if name in {"SS", "NS", "BS"} else comparable(member) for name, member in value.items()
        }
    return [comparable(one) for one in value] if isinstance(value, list) else value


@pytest.mark.sampled("seed")
@pytest.mark.parametrize("seed", [1, 2])
def test_the_responses_are_those_of_moto(clients: list[Any], seed: int) -> None:
    requests = Requests(seed)
    for client in clients:
        for table, (partition, sort) in TABLES.items():
            names = [("h", partition, "HASH"), *([] if sort is None else [("r", sort, "RANGE")])]
            client.create_table(
                TableName=table,
                KeySchema=[{"AttributeName": name, "KeyType": kind} for name, _, kind in names],
                AttributeDefinitions=[{"AttributeName": name, "AttributeType": kind} for name, kind, _ in names],
                BillingMode="PAY_PER_REQUEST",
            )
    for _ in range(STEPS):
        operation, request = requests.one()
        plain, quick = (response(client, operation, request) for client in clients)
        assert quick == plain, (operation, request)
    for client in clients:
        for table in TABLES:
            client.delete_table(TableName=table)


@pytest.mark.parametrize(("release", "known"), [("5.2.0", True), ("5.2.9", True), ("5.1.22", False), ("5.3.0", False)])
def test_they_replace_those_of_a_known_release_only(monkeypatch: pytest.MonkeyPatch, release: str, known: bool) -> None:
    installed: list[bool] = []
    # The module itself imports moto, which closes the fast path of this process for the tests that follow.
    module = SimpleNamespace(install=lambda: installed.append(True))
    monkeypatch.setitem(sys.modules, "chathistory_async._quick_moto", module)
    monkeypatch.setattr(local, "version", lambda package: release)
    local._speed_up_moto()
    assert bool(installed) == known
