"""The credentials of a session that the caller gave, loaded and refreshed once for all event loops and threads.

The SDK expects a session to load its credentials for one client at a time. If tasks load them at the same time, each
task runs the ``credential_process``, and aiobotocore 2 takes a chain of roles for an infinite loop. Two event loops
cannot wait for the asyncio.Lock of refreshable credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, TypeAlias, Union
from weakref import WeakKeyDictionary

import aioboto3
import boto3
from aiobotocore.credentials import AioRefreshableCredentials
from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError

from .._sync.fork import after_fork_in_child
from .single_flight import SingleFlight

AnySession: TypeAlias = Union[boto3.Session, aioboto3.Session, AioSession]


class SessionCredentials:
    """The credentials of an asynchronous session, shared by all of its clients.

    Args:
        session: the session.
        region_name: the client's region, or None for the SDK's choice.
        config: the client's config.
    """

    def __init__(self, session: AioSession | aioboto3.Session, region_name: str | None, config: Config | None) -> None:
        self._core = core_of(session)
        self._region_name = region_name
        self._config = config
        self._single_flight = _shared(_single_flights, self._core, SingleFlight)

    def are_due(self, *, for_a_first_call: bool) -> bool:
        """Return whether ``refresh`` must load the credentials, for a client's first call only, or refresh them."""
        loaded = loaded_of(self._core)
        # An open client without credentials does not sign, so only a first call has to load them.
        return for_a_first_call if loaded is None else _need_refresh(loaded)

    async def refresh(self) -> None:
        """Load and refresh the credentials, or wait for the task that does so.

        Do not wait if a different task is refreshing the credentials and they can still be used.

        Raises:
            Exception: the SDK's error. Every task that waited raises it.
        """
        if not (self._single_flight.is_running() and self._serve_meanwhile()):
            await self._single_flight.run(self._load_and_refresh)

    async def _load_and_refresh(self) -> None:
        if loaded_of(self._core) is None:
            _prepare_to_load(self._core, self._region_name, self._config)
        credentials = await self._core.get_credentials()
        if _need_refresh(credentials):
            if credentials._refresh_lock.locked() and not _serve_meanwhile(credentials):
                # A task of a different loop has the lock. The synchronous call that this refresh is for may block that
                # loop.
                _unlock(credentials)
            await credentials.get_frozen_credentials()

    def _serve_meanwhile(self) -> bool:
        """Return whether another task is refreshing the credentials and they can be used meanwhile.

        The SDK begins to refresh credentials 15 minutes before they expire. Until 10 minutes before they expire, it
        uses the loaded ones while another task has their lock. Without this check, an STS that does not respond would
        hold up all calls.
        """
        loaded = loaded_of(self._core)
        return (
            isinstance(loaded, AioRefreshableCredentials) and loaded._refresh_lock.locked() and _serve_meanwhile(loaded)
        )


def load_from_boto3(session: boto3.Session, region_name: str | None, config: Config | None) -> Credentials | None:
    """Load and return a boto3 session's credentials, or None if it has none. This blocks.

    Args:
        session: the session.
        region_name: the client's region, or None for the SDK's choice.
        config: the client's config.
    """
    core = core_of(session)
    with _shared(_locks, core, threading.Lock):
        if loaded_of(core) is None:
            _prepare_to_load(core, region_name, config)
        return session.get_credentials()


def core_of(session: AnySession) -> Any:
    """Return the botocore or aiobotocore session of an SDK session."""
    return session if isinstance(session, AioSession) else session._session


def loaded_of(core: Any) -> Any:
    """Return the credentials that a botocore or aiobotocore session has loaded, or None if it has loaded none."""
    return getattr(core, "_credentials", None)


def _need_refresh(credentials: Any) -> bool:
    return isinstance(credentials, AioRefreshableCredentials) and credentials.refresh_needed()


def _serve_meanwhile(credentials: AioRefreshableCredentials) -> bool:
    """Return whether the SDK uses the loaded credentials while another task refreshes them."""
    return not credentials.refresh_needed(credentials._mandatory_refresh_timeout)


def _unlock(credentials: Any) -> None:
    """Give new, unlocked locks to the credentials, and to the credentials that their role is assumed with."""
    while isinstance(credentials, AioRefreshableCredentials):
        credentials._refresh_lock = asyncio.Lock()
        role = getattr(credentials._refresh_using, "__self__", None)
        credentials = getattr(role, "_source_credentials", None)


def _prepare_to_load(core: Any, region_name: str | None, config: Config | None) -> None:
    """Prepare a session to load its credentials as for its first client, and as if no earlier load had failed."""
    with contextlib.suppress(AttributeError, BotoCoreError):
        # The SDK calls STS in the region of that client.
        core._resolve_region_name(region_name, config)
        # After one failure to load a chain of roles, aiobotocore 2 and botocore report it as an infinite loop for ever.
        provider = core.get_component("credential_provider").get_provider("assume-role")
        provider._visited_profiles = [provider._profile_name]


# The keys are weak references to sessions. The values must not refer to their session, or it would never be collected.
# Credentials refer to it, so they are not kept here.
_single_flights: WeakKeyDictionary[Any, SingleFlight] = WeakKeyDictionary()
_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_shared_lock = threading.Lock()


def _shared(things: WeakKeyDictionary[Any, Any], core: Any, make: Any) -> Any:
    with _shared_lock:
        return things.get(core) or things.setdefault(core, make())


def _forget_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    _locks.clear()
    for single_flight in list(_single_flights.values()):
        single_flight.forget_in_child()


after_fork_in_child(_forget_in_child)
