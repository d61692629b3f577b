"""What a client is made of: options, configuration, the SDK's client and the fast path beside it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, NamedTuple

import boto3
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.config import Config

from .._request import DYNAMODB, Service
from .bounded import bound_answers
from .credentials import AnySession, core_of, loaded_of
from .event_handlers import add_event_handlers
from .fast_path import NoFastPath, fast_path_beside, send_by_sdk
from .sessions import AsyncSession

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
# Of the configurations and reasons that were logged, these many are remembered.
_MAX_LOGGED = 256

_logger = logging.getLogger("chathistory_async")


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


def new_client(session: AsyncSession, options: ClientOptions, service: Service) -> AbstractAsyncContextManager[Any]:
    """Return the context in which a client is open."""
    create = session.create_client if isinstance(session, AioSession) else session.client
    client: AbstractAsyncContextManager[Any] = create(
        service.name,
        region_name=service.region_name or options.region_name,
        endpoint_url=options.endpoint_of(service),
        config=config_of(options),
    )
    return client


async def ready_client(client: Any, session: AsyncSession, options: ClientOptions, service: Service) -> ReadyClient:
    """Return an open client, ready for calls.

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
            fast_path = await fast_path_beside(client, session, tell)
        except NoFastPath as off:
            reason = str(off)
            if not off.fails:
                tell(reason)
        else:
            return ReadyClient(client, fast_path.send, longest, fast_path.off)
    return ReadyClient(client, functools.partial(send_by_sdk, client), longest, lambda: reason)


# Operations that can be signed as they are.
_WITHOUT_PARAMETERS = {"dynamodb": "list_tables", "kms": "list_keys"}


async def _check_credentials(client: Any, session: AsyncSession) -> None:
    """Fail where there are no credentials to sign with: a client that was made without would never have any."""
    if client.meta.config.signature_version is not UNSIGNED and loaded_of(core_of(session)) is None:
        # Signing may be disabled by an event handler; then this passes.
        await client.generate_presigned_url(_WITHOUT_PARAMETERS[client.meta.service_model.service_name])


# Once for each configuration and reason, however many sessions, event loops and calls meet it.
@functools.lru_cache(_MAX_LOGGED)
def _warn_of_slow_path(_: Hashable, reason: str) -> None:
    _logger.warning(
        "Calls to DynamoDB do not take the fast path: %s. With fast_path=False nothing is logged of this.", reason
    )


def config_of(options: ClientOptions) -> AioConfig:
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


def longest_call_seconds(config: Config) -> float | None:
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
