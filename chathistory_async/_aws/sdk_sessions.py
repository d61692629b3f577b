"""The SDK sessions that make clients."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Callable
from typing import Any, TypeAlias, Union

import aioboto3
import boto3
from aiobotocore.credentials import AioCredentialResolver, AioCredentials
from aiobotocore.hooks import AioHierarchicalEmitter
from aiobotocore.session import AioSession
from botocore import handlers
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.hooks import EventAliaser
from botocore.loaders import Loader, create_loader

from .credentials import AnySession, load_from_boto3

AsyncSession: TypeAlias = Union[aioboto3.Session, AioSession]


def session_of(given: AnySession | None, region_name: str | None, config: Config | None) -> AsyncSession:
    """Return the asynchronous session that makes clients.

    Args:
        given: the caller's session, or None for the SDK's default credentials.
        region_name: the region, or None for the SDK's choice.
        config: the config of the client for which a boto3 session loads its credentials.
    """
    if given is None:
        # Each loop has its own session: a session caches credentials, and the first loop that waits for their lock
        # owns the lock from then on.
        return aioboto3.Session(botocore_session=_core_session())
    if isinstance(given, (AioSession, aioboto3.Session)):
        return given
    return _over_boto3(given, functools.partial(load_from_boto3, given, region_name, config))


async def known_regions(service_name: str, partition: str) -> list[str]:
    """Return the regions in which the SDK knows a service."""
    if (service_name, partition) not in _regions:
        # This takes 4 ms.
        regions = await _core_session().get_available_regions(service_name, partition_name=partition)
        _regions[service_name, partition] = regions
    return _regions[service_name, partition]


_regions: dict[tuple[str, str], list[str]] = {}


def _core_session(profile: str | None = None) -> AioSession:
    # The list is the cache's key: a mock such as moto's adds its handler to the list.
    event_hooks = copy.copy(_with_builtin_handlers(tuple(map(tuple, handlers.BUILTIN_HANDLERS))))
    core = AioSession(event_hooks=event_hooks, include_builtin_handlers=False, profile=profile)
    core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
    return core


@functools.lru_cache(1)
def _with_builtin_handlers(specs: tuple[tuple[Any, ...], ...]) -> AioHierarchicalEmitter:
    # To register the handlers takes 13 ms, and to copy the emitter takes 1 ms. The rest of a client takes 9 ms.
    # An AioSession would also register the handlers of botocore.register_initializer(), as each session does itself.
    event_hooks = AioHierarchicalEmitter()
    events = EventAliaser(event_hooks)
    register = {handlers.REGISTER_FIRST: events.register_first, handlers.REGISTER_LAST: events.register_last}
    for event_name, handler, *when in specs:
        register.get(when[0] if when else None, events.register)(event_name, handler)
    return event_hooks


@functools.cache
def _loader(data_path: str | None) -> Loader:
    # A loader keeps the service models that it has parsed. Without them a client takes 40 to 80 ms longer to make.
    return create_loader(data_path)


def _over_boto3(session: boto3.Session, load: Callable[[], Credentials | None]) -> aioboto3.Session:
    profile = None if session.profile_name == "default" else session.profile_name
    core = _core_session(profile)
    core.register_component("credential_provider", AioCredentialResolver([_Boto3Provider(load)]))
    return aioboto3.Session(botocore_session=core, region_name=session.region_name)


class _Boto3Provider:
    """A provider for aiobotocore's credential chain. It loads the credentials of a boto3 session."""

    METHOD = "boto3-session"

    def __init__(self, load: Callable[[], Credentials | None]) -> None:
        self._load = load

    async def load(self) -> AioCredentials | None:
        # boto3 may call STS or the instance metadata service here, and would block the loop.
        source = await asyncio.to_thread(self._load)
        return None if source is None else _Boto3Credentials(source)


class _Boto3Credentials(AioCredentials):  # type: ignore[misc]  # aiobotocore is not typed
    """The credentials of a boto3 session, which refreshes them. Only a refresh uses a thread."""

    def __init__(self, source: Credentials) -> None:
        # The fields of the base class are not used: requests are signed with get_frozen_credentials().
        super().__init__(access_key="", secret_key="", method=source.method)
        self._source = source

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        source = self._source
        if isinstance(source, RefreshableCredentials) and source.refresh_needed():
            return await asyncio.to_thread(source.get_frozen_credentials)
        return source.get_frozen_credentials()
