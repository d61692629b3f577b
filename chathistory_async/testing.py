"""A pytest plugin: stores with tables of their own, a clock for expiry, and a proxy that injects faults.

pytest loads the plugin wherever this library is installed. All fixtures are synchronous, so they work in plain tests,
under pytest-asyncio in both modes, and under anyio. ``pytest --fixtures`` lists them.

The fixtures use the endpoint in ``--chathistory-endpoint-url``, in the ini option ``chathistory_endpoint_url``, or in
CHATHISTORY_ENDPOINT_URL, AWS_ENDPOINT_URL_DYNAMODB or AWS_ENDPOINT_URL, in this order. Without these, they use
LocalStack if it runs, or else an embedded engine of the run's own (extra ``local``).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    import aioboto3

    from ._testing.clock import FakeClock
    from ._testing.proxy import Fault, FaultProxy, Seen
    from .store import ChatHistoryStore

__all__ = ["FakeClock", "Fault", "FaultProxy", "Seen", "StoreFactory"]

# pytest imports this module at every start: nothing else is imported before a fixture or one of these names is used.
_MODULES = {"FakeClock": "clock", "Fault": "proxy", "FaultProxy": "proxy", "Seen": "proxy"}


class StoreFactory(Protocol):
    """Makes stores, each with a new table of its own."""

    def __call__(self, **options: Any) -> ChatHistoryStore:
        """Create a table, and return a store on it.

        Args:
            options: the arguments of ``ChatHistoryStore`` besides the table's name. An ``endpoint_url`` may be that of
                a proxy before ``chathistory_endpoint_url``; the table is created and deleted without it.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the ini option for the endpoint."""
    text = "DynamoDB's endpoint for the fixtures of chathistory_async. Default: the environment, LocalStack or embedded"
    parser.getgroup("chathistory_async").addoption("--chathistory-endpoint-url", metavar="URL", help=text)
    parser.addini("chathistory_endpoint_url", text)


@pytest.fixture(scope="session")
def chathistory_endpoint_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """Return the URL of a DynamoDB, for ``endpoint_url``: the engine that the plugin finds or starts.

    An embedded engine belongs to the test run, or with pytest-xdist to the worker, and ends with it. LocalStack and the
    embedded engine are KMS endpoints too, for ``kms_endpoint_url``.
    """
    from ._testing.endpoint import endpoint_in_environment, running_localstack
    from .local import local_engine

    option, ini = pytestconfig.getoption("--chathistory-endpoint-url"), pytestconfig.getini("chathistory_endpoint_url")
    if url := option or ini or endpoint_in_environment() or running_localstack():
        yield url
    else:
        with local_engine() as url:
            yield url


@pytest.fixture(scope="session")
def chathistory_boto3_session() -> aioboto3.Session:
    """Return an aioboto3 session with made-up credentials and the region us-east-1, for ``boto3_session``.

    Nothing that uses this session can reach a table on AWS. Override this fixture to run tests there.
    """
    import aioboto3

    return aioboto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")


@pytest.fixture
def chathistory_store_factory(
    chathistory_endpoint_url: str, chathistory_boto3_session: aioboto3.Session
) -> Iterator[StoreFactory]:
    """Return a function that makes stores: ``chathistory_store_factory(ttl=60, session_index=True)``.

    Each store has a new table, which is deleted after the test. The function takes the arguments of
    ``ChatHistoryStore`` besides the table's name. By default, DynamoDB and KMS are at ``chathistory_endpoint_url``, and
    the session is ``chathistory_boto3_session``.
    """
    with ExitStack() as after_the_test:

        def make(**options: Any) -> ChatHistoryStore:
            engine = {"endpoint_url": chathistory_endpoint_url, "kms_endpoint_url": chathistory_endpoint_url}
            options = {**engine, "boto3_session": chathistory_boto3_session, **options}
            return after_the_test.enter_context(_store_on_a_new_table(chathistory_endpoint_url, options))

        yield make


@contextmanager
def _store_on_a_new_table(endpoint_url: str, options: dict[str, Any]) -> Iterator[ChatHistoryStore]:
    from uuid import uuid4

    from ._aws.clients import shared_clients
    from ._sync.bridge import run
    from .store import ChatHistoryStore

    name = f"chathistory-{uuid4().hex}"
    store = ChatHistoryStore(name, **options)
    # The store of the test may go through a proxy, and may be closed when the test ends. To open a client takes longer
    # than to create a table, so the owners of all tables share theirs.
    owner = ChatHistoryStore(name, **(options | {"endpoint_url": endpoint_url}))
    owner._settings = replace(owner._settings, clients=shared_clients(owner._settings.clients.options))
    owner.create_table_sync()
    try:
        yield store
    finally:
        store.close()
        run(owner.delete_table)


@pytest.fixture
def chathistory_store(chathistory_store_factory: StoreFactory) -> ChatHistoryStore:
    """Return a ``ChatHistoryStore`` with default settings and a new table, which is deleted after the test."""
    return chathistory_store_factory()


@pytest.fixture
def chathistory_clock() -> Iterator[FakeClock]:
    """Return a clock that stands still until ``chathistory_clock.advance(seconds)``. Messages expire by this clock.

    ``FakeClock`` says what follows the clock, and what does not.
    """
    from ._testing.clock import FakeClock

    with FakeClock() as clock:
        yield clock


@pytest.fixture
def chathistory_proxy(chathistory_endpoint_url: str) -> Iterator[FaultProxy]:
    """Return a proxy before ``chathistory_endpoint_url`` that records requests and makes them fail: a ``FaultProxy``.

    Make a store with ``chathistory_store_factory(endpoint_url=chathistory_proxy.url)``, and say which requests fail:
    ``chathistory_proxy.script(Fault.LOST_RESPONSE, operation="PutItem")``.
    """
    from ._testing.proxy import FaultProxy

    with FaultProxy(chathistory_endpoint_url) as proxy:
        yield proxy


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"._testing.{_MODULES[name]}", __package__), name)
    globals()[name] = value
    return value
