"""One aioboto3 client per service, event loop and configuration: who owns it, and how it closes."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, NamedTuple
from weakref import WeakSet

import aioboto3
import boto3
import orjson
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentialResolver, AioCredentials
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.loaders import Loader, create_loader
from botocore.parsers import ResponseParserError

from .._request import DYNAMODB, Service
from .._single_flight import SingleFlight
from .._sync.fork import after_fork_in_child, keep_forever
from .answers import has_shape
from .bounded import bound_answers
from .credentials import AnySession, SessionCredentials, core_of, load_from_boto3, loaded_of
from .fast_path import ITEMS, NoFastPath, fast_path_beside, is_answer, json_object, send_by_sdk, streamed
from .first_append import FirstAppend

# The SDK's pool of 10 starves callers: with fewer connections than callers the slowest of them waited 18 to 73 times
# the median. Connections are opened only as needed, and 512 stay clear of the usual limit of 1,024 open files.
MAX_POOL_CONNECTIONS = 512
# TCP sends what is lost of a handshake again after one second and after three: AWS's own choice for its SDKs.
CONNECT_TIMEOUT_SECONDS = 3.1
# Until the first byte of an answer, and between two: DynamoDB answers within milliseconds. A connection that a server
# or a NAT has let go of without a word, or a request that an overloaded one never reads, holds a caller up so long; the
# SDK's 60 seconds would do so for a minute. The time that it takes to send a request does not count.
READ_TIMEOUT_SECONDS = 5
# Of a call with all its attempts, unless those may take longer. The SDK's waits between ten attempts are 26 s in all.
# Only this bounds an endpoint that does not read what is sent to it, or that sends a byte now and then.
MIN_CALL_SECONDS = 60
# The SDK's for DynamoDB in its default mode; for KMS it makes 5.
_DEFAULT_ATTEMPTS = 10
# Histories without a store share clients by configuration. A boto3_session made for each request must not pile them up.
MAX_SHARED = 64
# Of the configurations and reasons that were logged, these many are remembered.
_MAX_LOGGED = 256

_logger = logging.getLogger("chathistory_async")


class FastPathStatus(NamedTuple):
    """Whether calls to DynamoDB take the fast path now.

    Attributes:
        active: whether they do; None where no client is open yet, so that it is not known.
        reason: why they do not, or why it is not known; None where they do.
    """

    active: bool | None
    reason: str | None


class ReadyClient(NamedTuple):
    """A client for one call.

    Attributes:
        client: the client.
        send: sends a call to it: the method's name and its keyword arguments.
        longest_call_seconds: how long a call may take, with all its attempts; None for as long as it takes.
        fast_path_off: returns why calls do not take the fast path now, None where they do.
    """

    client: Any
    send: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
    longest_call_seconds: float | None
    fast_path_off: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What clients are made of; None leaves the choice to the SDK.

    Attributes:
        fast_path: whether calls to DynamoDB may take the fast path.
    """

    endpoint_url: str | None = None
    kms_endpoint_url: str | None = None
    region_name: str | None = None
    session: AnySession | None = None
    config: Config | None = None
    fast_path: bool = True

    def __post_init__(self) -> None:
        if self.session is not None and not isinstance(self.session, (boto3.Session, AioSession)):
            accepted = "a boto3.Session, an aioboto3.Session or an aiobotocore session"
            raise TypeError(f"boto3_session must be {accepted}, not {type(self.session).__name__}")
        if self.config is not None and not isinstance(self.config, Config):
            raise TypeError(f"config must be a botocore Config, not {type(self.config).__name__}")

    def __deepcopy__(self, memo: dict[int, Any]) -> ClientOptions:
        """Return the options themselves: they are settings, and a deep copy of a session would be another session."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.session is not None:
            raise TypeError(
                "What was given a boto3_session cannot be pickled, because AWS sessions cannot: make it anew in the"
                " other process with a boto3_session of that process, or give none and let the SDK find the credentials"
            )
        return ClientOptions, tuple(getattr(self, field.name) for field in fields(self))

    def sharing_key(self) -> Hashable:
        """Tell which options may share a client: sessions are compared by identity, configs by value."""
        return *self.configuration(), self.session

    def configuration(self) -> tuple[Hashable, ...]:
        """Return the options without the session, as a key."""
        config = None if self.config is None else repr(sorted(vars(self.config).items()))
        return self.endpoint_url, self.kms_endpoint_url, self.region_name, config, self.fast_path

    def endpoint_of(self, service: Service) -> str | None:
        """Return the endpoint that was given for a service, if any: one service's is never another's."""
        return self.endpoint_url if service == DYNAMODB else self.kms_endpoint_url


# Once for each configuration and reason, however many sessions, event loops and calls meet it.
@functools.lru_cache(_MAX_LOGGED)
def _warn_of_slow_path(_: Hashable, reason: str) -> None:
    _logger.warning(
        "Calls to DynamoDB do not take the fast path: %s. With fast_path=False nothing is logged of this.", reason
    )


class ClientHolder:
    """The client of one service on one event loop.

    Attributes:
        service: the service.
        inherited: whether this is a forked child's copy of what the parent still uses.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, service: Service) -> None:
        self.loop = loop
        self.inherited = False
        self.service = service
        self._client: ReadyClient | None = None
        self._keeper: AsyncGenerator[ReadyClient, None] | None = None
        self._lock = asyncio.Lock()
        self._opening = SingleFlight()
        self._calls = 0
        self._idle = asyncio.Event()

    @property
    def client(self) -> ReadyClient | None:
        """The client, None where none is open."""
        return self._client

    @property
    def is_idle(self) -> bool:
        """Whether a client is open that no call has."""
        return self._client is not None and not self._calls

    async def acquire(self, options: ClientOptions) -> ReadyClient:
        """Return the client, opened if need be, which is not closed until it is released."""
        while (client := self._client) is None:
            # Those who come meanwhile wait, and where it fails they fail too: it may have taken seconds to find out.
            await self._opening.run(functools.partial(self._open, options))
        self._calls += 1
        return client

    def release(self) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    async def close(self) -> None:
        """Let the calls under way end, and close the client. Who comes later opens another."""
        async with self._lock:
            client, self._client = self._client, None
            try:
                while self._calls:
                    self._idle.clear()
                    await self._idle.wait()
            except asyncio.CancelledError:
                self._client = client
                raise
            await self.abandon()

    async def abandon(self) -> None:
        """Close the client as it is; its loop may be closed already."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.aclose()

    async def _open(self, options: ClientOptions) -> None:
        async with self._lock:
            if self._client is None:
                keeper = self._keep(options)
                self._client = await keeper.__anext__()
                self._keeper = keeper

    async def _keep(self, options: ClientOptions) -> AsyncGenerator[ReadyClient, None]:
        # A suspended generator is how to be told that a loop shuts down: asyncio.run(), like every other runner,
        # closes those that are left (loop.shutdown_asyncgens), and the client with this one.
        session = _session(options)
        context = _new_client(session, _config(options), options, self.service)
        client = await context.__aenter__()
        try:
            client.meta.events.register(f"before-parse.{self.service.name}", _UNPARSED[self.service.name])
            client.meta.events.register(f"before-send.{self.service.name}", _stream_large_body)
            await bound_answers(client)
            await _check_credentials(client, session)
            ready = await _ready_client(client, session, options, self.service)
            _open_holders.add(self)
            yield ready
        finally:
            _open_holders.discard(self)
            self._client = None
            if not self.inherited:
                await context.__aexit__(None, None, None)


# Operations that can be signed as they are.
_WITHOUT_PARAMETERS = {"dynamodb": "list_tables", "kms": "list_keys"}


async def _check_credentials(client: Any, session: aioboto3.Session | AioSession) -> None:
    """Fail where there are no credentials to sign with: a client that was made without would never have any."""
    if client.meta.config.signature_version is not UNSIGNED and loaded_of(core_of(session)) is None:
        # Signing may be disabled by an event handler; then this passes.
        await client.generate_presigned_url(_WITHOUT_PARAMETERS[client.meta.service_model.service_name])


async def _ready_client(
    client: Any, session: aioboto3.Session | AioSession, options: ClientOptions, service: Service
) -> ReadyClient:
    reason, longest = "fast_path=False", _longest_call_seconds(client.meta.config)
    if options.fast_path and service == DYNAMODB:
        tell = functools.partial(_warn_of_slow_path, options.configuration())
        try:
            fast_path = await fast_path_beside(client, session, tell)
        except NoFastPath as off:
            reason = str(off)
            if not off.fails:
                tell(reason)
        else:
            return ReadyClient(client, fast_path.send, longest, fast_path.off)
    return ReadyClient(client, functools.partial(send_by_sdk, client), longest, lambda: reason)


# An open client is never left to the garbage collector: aiohttp complains of each that is.
_open_holders: set[ClientHolder] = set()


class Lifetime:
    """Whether something is closed, and how many are inside its ``async with``: the last one to leave closes it.

    Attributes:
        closed: whether it was closed and not entered since.
    """

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0

    def enter(self) -> None:
        with _shared_lock:
            self._inside += 1
            self.closed = False

    def leave(self) -> bool:
        """Close it if nobody is left inside, and return whether it is closed."""
        with _shared_lock:
            self._inside = max(0, self._inside - 1)
            self.closed = self.closed or not self._inside
            return self.closed


class Clients:
    """The clients of one configuration, one for each service and event loop, opened on first use.

    Pickled ones become those that histories without a store share in the other process.

    Attributes:
        options: what they are made of.
        first_append: the checks that tables have passed.
        shared: whether histories without a store share them, and not those of one store.
        users: the open histories without a store that share them.
        lifetime: that of the store which owns them.
        credentials: those of a given asynchronous session, None where all loops may load and refresh them at once.
    """

    def __init__(self, options: ClientOptions, *, shared: bool = False) -> None:
        self.options = options
        self.first_append = FirstAppend()
        self.shared = shared
        self.users: WeakSet[object] = WeakSet()
        self.lifetime = Lifetime()
        self.credentials = _credentials_of(options)
        self._lock = threading.Lock()
        # 0 until somebody asks: to merge the configurations takes half a millisecond.
        self._longest_opening_seconds: float | None = 0
        # By the loop itself, not by id(loop): ids are reused.
        self._holders: dict[tuple[asyncio.AbstractEventLoop, Service], ClientHolder] = {}
        _all.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Clients:
        """Return the clients themselves: the copy of a history shares them, as any history with its settings does."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_clients, (self.options,)

    @property
    def retired(self) -> bool:
        """Whether the store that owns them is closed, so that none is to be opened."""
        return self.lifetime.closed

    @property
    def longest_opening_seconds(self) -> float | None:
        """How long a client may take to open, with its credentials; None for as long as it takes.

        As long as a call, by what was given: what the SDK's files and the environment say is known when it is open.
        """
        # No cached_property, whose lock, which all of them share before Python 3.12, a fork may leave locked.
        if self._longest_opening_seconds == 0:
            self._longest_opening_seconds = _longest_call_seconds(_config(self.options))
        return self._longest_opening_seconds

    def longest_call_seconds(self, service: Service) -> float | None:
        """Return how long a call may take, with the opening of its client where none is open; None for no limit."""
        holder = self._holders.get((asyncio.get_running_loop(), service))
        client = None if holder is None else holder.client
        return self.longest_opening_seconds if client is None else client.longest_call_seconds

    def acquire(self, service: Service = DYNAMODB) -> _Acquisition:
        """Acquire the running loop's client of a service for one call.

        Raises:
            botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError: the SDK cannot make one, or
                cannot refresh its credentials.
        """
        return _Acquisition(self, service)

    def fast_path_status(self) -> FastPathStatus:
        """Tell whether the calls of all open clients of DynamoDB take the fast path now, on whatever event loop."""
        if not self.options.fast_path:
            return FastPathStatus(active=False, reason="fast_path=False")
        holders = [
            holder for holder in self._all_holders() if holder.service == DYNAMODB and not holder.loop.is_closed()
        ]
        clients = [holder.client for holder in holders if holder.client is not None]
        if not clients:
            return FastPathStatus(active=None, reason="no client is open yet")
        reason = next(filter(None, (client.fast_path_off() for client in clients)), None)
        return FastPathStatus(active=reason is None, reason=reason)

    async def holder_of(self, service: Service) -> ClientHolder:
        """Return the running loop's holder for a service."""
        loop = asyncio.get_running_loop()
        return self._holders.get((loop, service)) or await self._new_holder(loop, service)

    async def aclose(self) -> None:
        """Close the running loop's clients, and have the other running loops close theirs."""
        here = asyncio.get_running_loop()
        self.close_soon(besides=here)
        for holder in self._all_holders():
            if holder.loop is here:
                await holder.close()

    def close_soon(self, besides: asyncio.AbstractEventLoop | None = None) -> None:
        """Have each running loop close its clients, but for one."""
        for holder in self._all_holders():
            if holder.loop is not besides and holder.loop.is_running():
                # Not waited for: that loop may be blocked by a synchronous call that waits for this one.
                asyncio.run_coroutine_threadsafe(holder.close(), holder.loop)

    def can_close(self) -> bool:
        """Tell whether nobody uses these clients and their loops can close them."""
        return not self.users and all(
            holder.loop.is_running() for holder in self._all_holders() if holder in _open_holders
        )

    def forget_in_child(self) -> None:
        self._lock = threading.Lock()
        self._holders = {}

    async def _new_holder(self, loop: asyncio.AbstractEventLoop, service: Service) -> ClientHolder:
        await _close_left_behind()
        with self._lock:
            # A holder keeps its loop alive: only here the closed ones are let go.
            for closed in [key for key, holder in self._holders.items() if holder.loop.is_closed()]:
                del self._holders[closed]
            return self._holders.setdefault((loop, service), ClientHolder(loop, service))

    def _all_holders(self) -> list[ClientHolder]:
        with self._lock:
            return list(self._holders.values())


def _credentials_of(options: ClientOptions) -> SessionCredentials | None:
    session = options.session
    if not isinstance(session, (AioSession, aioboto3.Session)):
        return None
    return SessionCredentials(session, options.region_name, options.config)


class _Acquisition:
    """A client for one call: a class, because as two generators this took a tenth of all that a small call costs."""

    __slots__ = ("_clients", "_holder", "_service")

    def __init__(self, clients: Clients, service: Service) -> None:
        self._clients = clients
        self._service = service

    async def __aenter__(self) -> ReadyClient:
        self._holder = await self._clients.holder_of(self._service)
        credentials = self._clients.credentials
        if credentials is not None and credentials.are_due(for_a_first_call=self._holder.client is None):
            await credentials.refresh()
        return await self._holder.acquire(self._clients.options)

    async def __aexit__(self, *_: object) -> None:
        self._holder.release()
        if self._clients.retired and self._holder.is_idle:
            # The store was closed while this call waited for a client: nobody else closes that.
            await self._holder.close()


_all: WeakSet[Clients] = WeakSet()
_shared: OrderedDict[Hashable, Clients] = OrderedDict()
_shared_lock = threading.Lock()


def shared_clients(options: ClientOptions) -> Clients:
    """Return the clients that all histories without a store and with equal options share."""
    key = options.sharing_key()
    with _shared_lock:
        clients = _shared.get(key) or _shared.setdefault(key, Clients(options, shared=True))
        _shared.move_to_end(key)
        _drop_unused_shared()
        return clients


def _drop_unused_shared() -> None:
    """Drop the longest unused while there are more than MAX_SHARED."""
    for key in list(_shared)[: max(0, len(_shared) - MAX_SHARED)]:
        if _shared[key].can_close():
            _shared.pop(key).close_soon()


async def _close_left_behind() -> None:
    """Close the clients of loops that were closed without a shutdown; nothing of theirs needs those loops."""
    with _shared_lock:
        # Of a copy, which is made in one step: other threads open and close clients meanwhile.
        left = [holder for holder in list(_open_holders) if holder.loop.is_closed()]
        _open_holders.difference_update(left)
    for holder in left:
        await holder.abandon()


def _new_client(
    session: aioboto3.Session | AioSession, config: AioConfig, options: ClientOptions, service: Service
) -> AbstractAsyncContextManager[Any]:
    create = session.create_client if isinstance(session, AioSession) else session.client
    client: AbstractAsyncContextManager[Any] = create(
        service.name,
        region_name=service.region_name or options.region_name,
        endpoint_url=options.endpoint_of(service),
        config=config,
    )
    return client


def _session(options: ClientOptions) -> aioboto3.Session | AioSession:
    given = options.session
    if given is None:
        # One session per loop: it caches credentials whose lock belongs to the first loop that has to wait for it.
        return aioboto3.Session(botocore_session=_core_session())
    if isinstance(given, (AioSession, aioboto3.Session)):
        return given
    return _over_boto3(given, functools.partial(load_from_boto3, given, options.region_name, options.config))


def _config(options: ClientOptions) -> AioConfig:
    """Return our config, the session's default merged over it, and the one that was given over both."""
    ours = AioConfig(
        max_pool_connections=MAX_POOL_CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        # The layouts build valid requests; the check costs a walk over every message, and its errors quote them.
        parameter_validation=False,
    )
    given = [config for config in (_default_config(options.session), options.config) if config is not None]
    merged = functools.reduce(AioConfig.merge, given, ours)
    user_agents = (merged.user_agent_extra, _user_agent())
    merged = merged.merge(Config(user_agent_extra=" ".join(filter(None, user_agents))))
    for config in given:
        if isinstance(config, AioConfig):
            # merge() forgets these two.
            merged.connector_args, merged.http_session_cls = config.connector_args, config.http_session_cls
    return merged


def _default_config(session: AnySession | None) -> Config | None:
    """Return what a session has been told to make clients of."""
    config: Config | None = None if session is None else core_of(session).get_default_client_config()
    return config


def _leave_unparsed(
    members: Mapping[str, type],
    operation_model: Any,
    response_dict: dict[str, Any],
    customized_response_dict: dict[str, Any],
    **_: object,
) -> None:
    """Take members out of a response before botocore sees them (an event handler of botocore's ``before-parse``).

    They stay as in the JSON: binary is base64 text.
    """
    # botocore's parser raises whatever comes of a member of another type.
    if response_dict["status_code"] < 300:
        body = json_object(response_dict["body"], members)
        if response_dict["status_code"] != 200 or body is None or not is_answer(body, operation_model):
            # botocore would take a proxy's login page for an empty answer, and an append that it swallowed for done.
            raise ResponseParserError("not the JSON object of an answer")
        known = operation_model.output_shape.members
    else:
        body = json_object(response_dict["body"], {}) or {}
        known = _members_of_error(body, operation_model)
    customized_response_dict.update({name: body[name] for name in members if name in body})
    left = {name: value for name, value in body.items() if name in known and name not in members}
    try:
        response_dict["body"] = orjson.dumps(left)
    except orjson.JSONEncodeError:
        raise ResponseParserError("nested too deeply") from None


def _members_of_error(body: Mapping[str, Any], operation_model: Any) -> Collection[str]:
    """Return what can be taken of an error's JSON: its code, its text, and the members of its class."""
    texts = [name for name in ("__type", "message", "Message") if isinstance(body.get(name), str)]
    code = body["__type"].rpartition("#")[2] if "__type" in texts else ""
    shape = operation_model.service_model.shape_for_error_code(code)
    return {*texts, *shape.members} if shape is not None and has_shape(body, shape, ITEMS) else texts


def _stream_large_body(request: AWSPreparedRequest, **_: object) -> None:
    if isinstance(request.body, bytes):
        request.body = streamed(request.body)


_UNPARSED = {
    "dynamodb": functools.partial(_leave_unparsed, ITEMS),
    # botocore writes the body that it parses into its DEBUG log, and a data key does not belong there.
    "kms": functools.partial(_leave_unparsed, {"Plaintext": str}),
}


def _longest_call_seconds(config: Config) -> float | None:
    """Return how long all attempts of a call may take, which is no less than their time-outs allow them."""
    if config.connect_timeout is None or config.read_timeout is None:
        return None
    # An open client's has the total, which the SDK has found out.
    attempts = (config.retries or {}).get("total_max_attempts", _DEFAULT_ATTEMPTS)
    longest: float = attempts * (config.connect_timeout + config.read_timeout)
    return max(MIN_CALL_SECONDS, longest)


@functools.cache
def _user_agent() -> str:
    # 2 ms.
    return f"chathistory-async/{version('chathistory-async')}"


async def known_regions(service_name: str, partition: str) -> list[str]:
    """Return the regions in which the SDK knows a service."""
    if (service_name, partition) not in _regions:
        # 4 ms.
        regions = await _core_session().get_available_regions(service_name, partition_name=partition)
        _regions[service_name, partition] = regions
    return _regions[service_name, partition]


_regions: dict[tuple[str, str], list[str]] = {}


def _core_session(profile: str | None = None) -> AioSession:
    core = AioSession(profile=profile)
    core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
    return core


@functools.cache
def _loader(data_path: str | None) -> Loader:
    # It keeps the service models that it has parsed: a client takes 50 to 90 ms to make without them, and 10 with.
    return create_loader(data_path)


def _over_boto3(session: boto3.Session, load: Callable[[], Credentials | None]) -> aioboto3.Session:
    profile = None if session.profile_name == "default" else session.profile_name
    core = _core_session(profile)
    core.register_component("credential_provider", AioCredentialResolver([_Boto3Provider(load)]))
    return aioboto3.Session(botocore_session=core, region_name=session.region_name)


class _Boto3Provider:
    """A provider of aiobotocore's credential chain that loads those of a boto3 session."""

    METHOD = "boto3-session"

    def __init__(self, load: Callable[[], Credentials | None]) -> None:
        self._load = load

    async def load(self) -> AioCredentials | None:
        # boto3 may ask STS or the instance's metadata here, and would hold the loop.
        source = await asyncio.to_thread(self._load)
        return None if source is None else _Boto3Credentials(source)


class _Boto3Credentials(AioCredentials):  # type: ignore[misc]  # aiobotocore is not typed
    """The credentials of a boto3 session, refreshed through it. Only a refresh takes a thread."""

    def __init__(self, source: Credentials) -> None:
        # The parent's own fields are not used: what is signed with comes from get_frozen_credentials().
        super().__init__(access_key="", secret_key="", method=source.method)
        self._source = source

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        source = self._source
        if isinstance(source, RefreshableCredentials) and source.refresh_needed():
            return await asyncio.to_thread(source.get_frozen_credentials)
        return source.get_frozen_credentials()


def _close_at_exit() -> None:
    """Close the clients of loops that were never shut down, as scripts of the old style leave them."""
    for holder in list(_open_holders):
        if holder.loop.is_closed():
            asyncio.run(holder.abandon())
        elif not holder.loop.is_running():
            holder.loop.run_until_complete(holder.abandon())


def _forget_in_child() -> None:
    global _shared_lock, _open_holders
    _shared_lock = threading.Lock()
    for holder in _open_holders:
        # A child that unwinds an inherited asyncio.run() shuts the parent's loop down, generators and all.
        # The client by itself too: the generator that holds it ends there, and lets go of it.
        holder.inherited = True
        keep_forever((holder, holder._client))
    _open_holders = set()
    for clients in list(_all):
        clients.forget_in_child()


atexit.register(_close_at_exit)
after_fork_in_child(_forget_in_child)
