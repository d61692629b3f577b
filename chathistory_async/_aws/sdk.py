"""The parts of a client: its options, its configuration, the SDK's client and the fast path."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import boto3
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.config import Config

from .._request import DYNAMODB, Service
from .._telemetry.providers import tracing_now
from .._version import __version__
from .bounded import bound_answers
from .credentials import AnySession, core_of, loaded_of
from .event_handlers import add_event_handlers
from .fast_path import NoFastPath, fast_path_beside, send_by_sdk
from .sdk_sessions import AsyncSession

# The SDK's pool of 10 starves callers: with fewer connections than callers, the slowest caller waited 18 to 73 times
# the median. Connections are opened only as needed, and 512 stay clear of the usual limit of 1,024 open files.
MAX_POOL_CONNECTIONS = 512
# TCP resends a lost handshake packet after one second and after three. AWS chose 3.1 s for its own SDKs.
CONNECT_TIMEOUT_SECONDS = 3.1
# The limit until the first byte of a response, and between two bytes. DynamoDB responds within milliseconds. If a
# server or a NAT has dropped a connection silently, or an overloaded server never reads a request, a caller waits this
# long. With the SDK's 60 seconds a caller would wait a minute. The time that it takes to send a request does not count.
READ_TIMEOUT_SECONDS = 5
# The limit for a call with all its attempts, unless the attempts' time-outs add up to more. The SDK's waits between ten
# attempts are 26 s in all. Only this limit bounds a call to an endpoint that does not read the request, or that sends a
# byte now and then.
MIN_CALL_SECONDS = 60
# The SDK's number of attempts for DynamoDB in its default retry mode. For KMS it makes 5.
_DEFAULT_ATTEMPTS = 10
# How many logged pairs of configuration and reason are remembered.
_MAX_LOGGED = 256

_logger = logging.getLogger("chathistory_async")


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """The options of clients. None leaves the choice to the SDK.

    Attributes:
        fast_path: whether calls to DynamoDB may take the fast path.
        tracing: "auto" to make spans and metrics where the application has set OpenTelemetry up, or False.
    """

    endpoint_url: str | None = None
    kms_endpoint_url: str | None = None
    region_name: str | None = None
    session: AnySession | None = None
    config: Config | None = None
    fast_path: bool = True
    tracing: Literal["auto", False] = "auto"

    def __post_init__(self) -> None:
        if self.session is not None and not isinstance(self.session, (boto3.Session, AioSession)):
            accepted = "a boto3.Session, an aioboto3.Session or an aiobotocore session"
            raise TypeError(f"boto3_session must be {accepted}, not {type(self.session).__name__}")
        if self.config is not None and not isinstance(self.config, Config):
            raise TypeError(f"config must be a botocore Config, not {type(self.config).__name__}")
        if self.tracing not in ("auto", False):
            raise ValueError(f'tracing must be "auto" or False, not {self.tracing!r}')

    def __deepcopy__(self, memo: dict[int, Any]) -> ClientOptions:
        """Return the options themselves: a deep copy of an SDK session would be a different session."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.session is not None:
            raise TypeError(
                "An object that was given a boto3_session cannot be pickled, because AWS sessions cannot: make it anew"
                " in the other process with a boto3_session of that process, or pass no boto3_session and let the SDK"
                " find the credentials"
            )
        return ClientOptions, tuple(getattr(self, field.name) for field in fields(self))

    def sharing_key(self) -> Hashable:
        """Return a key that is equal for options that may share a client.

        Sessions are compared by identity, configs by value.
        """
        return *self.configuration(), self.session

    def configuration(self) -> tuple[Hashable, ...]:
        """Return the options without the session, as a key."""
        config = None if self.config is None else repr(sorted(vars(self.config).items()))
        return self.endpoint_url, self.kms_endpoint_url, self.region_name, config, self.fast_path, self.tracing

    def traces(self) -> bool:
        """Return whether the library traces calls now."""
        return self.tracing == "auto" and tracing_now() is not None

    def endpoint_of(self, service: Service) -> str | None:
        """Return the endpoint that was given for a service, or None. One service's endpoint never serves the other."""
        return self.endpoint_url if service == DYNAMODB else self.kms_endpoint_url


class ReadyClient(NamedTuple):
    """An open client, with what its calls need.

    Attributes:
        client: the SDK's client.
        send: sends a call, by the name of a client method and its keyword arguments, and returns the response.
        longest_call_seconds: how many seconds a call may take, with all its attempts; None for no limit.
        fast_path_off: returns why calls do not take the fast path now, or None if they do.
    """

    client: Any
    send: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
    longest_call_seconds: float | None
    fast_path_off: Callable[[], str | None]


def new_client(session: AsyncSession, options: ClientOptions, service: Service) -> AbstractAsyncContextManager[Any]:
    """Return a context manager that opens an SDK client, and closes it on exit."""
    create = session.create_client if isinstance(session, AioSession) else session.client
    client: AbstractAsyncContextManager[Any] = create(
        service.name,
        region_name=service.region_name or options.region_name,
        endpoint_url=options.endpoint_of(service),
        config=config_of(options),
    )
    return client


async def ready_client(client: Any, session: AsyncSession, options: ClientOptions, service: Service) -> ReadyClient:
    """Prepare an open SDK client for calls: its event handlers, its bound on responses, and its fast path if possible.

    Raises:
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError: there are no credentials, or
            they cannot be refreshed.
    """
    add_event_handlers(client, service)
    await bound_answers(client)
    await _check_credentials(client, session)
    reason, longest = "fast_path=False", longest_call_seconds(client.meta.config)
    if options.fast_path and service == DYNAMODB:
        tell = functools.partial(_warn_of_slow_path, options.configuration())
        try:
            fast_path = await fast_path_beside(client, session, tell, options.traces)
        except NoFastPath as off:
            reason = str(off)
            if not off.fails:
                tell(reason)
        else:
            return ReadyClient(client, fast_path.send, longest, fast_path.off)
    return ReadyClient(client, functools.partial(send_by_sdk, client), longest, lambda: reason)


# Operations that can be signed without parameters.
_WITHOUT_PARAMETERS = {"dynamodb": "list_tables", "kms": "list_keys"}


async def _check_credentials(client: Any, session: AsyncSession) -> None:
    """Raise the SDK's error if there are no credentials to sign with.

    A client that was made without credentials would never get any.
    """
    if client.meta.config.signature_version is not UNSIGNED and loaded_of(core_of(session)) is None:
        # If an event handler disables signing, this passes.
        await client.generate_presigned_url(_WITHOUT_PARAMETERS[client.meta.service_model.service_name])


# The cache limits the warning to one for each configuration and reason, over all sessions, event loops and calls.
@functools.lru_cache(_MAX_LOGGED)
def _warn_of_slow_path(_: Hashable, reason: str) -> None:
    _logger.warning("Calls to DynamoDB do not take the fast path: %s. fast_path=False turns this warning off.", reason)


def config_of(options: ClientOptions) -> AioConfig:
    """Return the library's config, with the session's default config merged over it, and the given config over both.

    The library's User-Agent is appended to the merged ``user_agent_extra``.
    """
    ours = AioConfig(
        max_pool_connections=MAX_POOL_CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        # The layouts build valid requests. The SDK's check would walk over every message, and its errors would quote
        # messages.
        parameter_validation=False,
    )
    given = [config for config in (_default_config(options.session), options.config) if config is not None]
    merged = functools.reduce(AioConfig.merge, given, ours)
    user_agents = (merged.user_agent_extra, f"chathistory-async/{__version__}")
    merged = merged.merge(Config(user_agent_extra=" ".join(filter(None, user_agents))))
    for config in given:
        if isinstance(config, AioConfig):
            # merge() drops these two.
            merged.connector_args, merged.http_session_cls = config.connector_args, config.http_session_cls
    return merged


def _default_config(session: AnySession | None) -> Config | None:
    """Return the default client config of a session, or None if it has none."""
    config: Config | None = None if session is None else core_of(session).get_default_client_config()
    return config


def longest_call_seconds(config: Config) -> float | None:
    """Return how many seconds a call may take with all its attempts, or None if ``config`` has a time-out of None.

    The limit is the sum of the attempts' time-outs, and at least MIN_CALL_SECONDS.
    """
    if config.connect_timeout is None or config.read_timeout is None:
        return None
    # The config of an open client has total_max_attempts, which the SDK has determined.
    attempts = (config.retries or {}).get("total_max_attempts", _DEFAULT_ATTEMPTS)
    longest: float = attempts * (config.connect_timeout + config.read_timeout)
    return max(MIN_CALL_SECONDS, longest)
