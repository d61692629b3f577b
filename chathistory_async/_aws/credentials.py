"""The credentials of a session that was given, loaded and refreshed once for all event loops and threads.

The SDK expects that a session loads its credentials for one client at a time. Tasks that load them at once each run the
``credential_process``, and aiobotocore 2 takes a chain of roles for an infinite loop. The asyncio.Lock of refreshable
credentials cannot be waited for on two event loops.
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

from .._single_flight import SingleFlight
from .._sync.fork import after_fork_in_child

AnySession: TypeAlias = Union[boto3.Session, aioboto3.Session, AioSession]


class SessionCredentials:
    """The credentials of an asynchronous session, whichever of its clients asks for them.

    Args:
        session: the session.
        region_name: the client's region, None for the SDK's choice.
        config: the client's config.
    """

    def __init__(self, session: AioSession | aioboto3.Session, region_name: str | None, config: Config | None) -> None:
        self._core = core_of(session)
        self._region_name = region_name
        self._config = config
        self._flight = _shared(_flights, self._core, SingleFlight)

    def are_due(self, *, for_a_first_call: bool) -> bool:
        """Tell whether they are to be loaded, as for a client's first call alone, or to be refreshed."""
        loaded = loaded_of(self._core)
        # A client that was made without credentials does not sign, and never asks for any.
        return for_a_first_call if loaded is None else _need_refresh(loaded)

    async def refresh(self) -> None:
        """Load and refresh them, or wait for the task that does.

        Raises:
            Exception: the SDK's error, for all who waited for that task.
        """
        if not (self._flight.is_running() and self._serve_meanwhile()):
            await self._flight.run(self._load_and_refresh)

    async def _load_and_refresh(self) -> None:
        if loaded_of(self._core) is None:
            _prepare_to_load(self._core, self._region_name, self._config)
        credentials = await self._core.get_credentials()
        if _need_refresh(credentials):
            if credentials._refresh_lock.locked() and not _serve_meanwhile(credentials):
                # By a task of another loop, which may be held up by the very call that this is for.
                _unlock(credentials)
            await credentials.get_frozen_credentials()

    def _serve_meanwhile(self) -> bool:
        """Tell whether the credentials can be used while another task refreshes them.

        The SDK refreshes them from 15 minutes before they expire, and until 10 minutes before it uses what it has while
        another task has their lock. Otherwise an STS that does not answer would hold up all calls.
        """
        loaded = loaded_of(self._core)
        return (
            isinstance(loaded, AioRefreshableCredentials) and loaded._refresh_lock.locked() and _serve_meanwhile(loaded)
        )


def load_from_boto3(session: boto3.Session, region_name: str | None, config: Config | None) -> Credentials | None:
    """Return a boto3 session's credentials, None where there are none; blocks.

    Args:
        session: the session.
        region_name: as for ``SessionCredentials``.
        config: likewise.
    """
    core = core_of(session)
    with _shared(_locks, core, threading.Lock):
        if loaded_of(core) is None:
            _prepare_to_load(core, region_name, config)
        return session.get_credentials()


def core_of(session: AnySession) -> Any:
    """Return the session of botocore or aiobotocore that a session is, or is made over."""
    return session if isinstance(session, AioSession) else session._session


def loaded_of(core: Any) -> Any:
    """Return the credentials that a session of botocore or aiobotocore has loaded, None where it has none."""
    return getattr(core, "_credentials", None)


def _need_refresh(credentials: Any) -> bool:
    return isinstance(credentials, AioRefreshableCredentials) and credentials.refresh_needed()


def _serve_meanwhile(credentials: AioRefreshableCredentials) -> bool:
    """Tell whether the SDK uses the credentials as they are while another task refreshes them."""
    return not credentials.refresh_needed(credentials._mandatory_refresh_timeout)


def _unlock(credentials: Any) -> None:
    """Give credentials, and those that a role is assumed with, locks that nobody has."""
    while isinstance(credentials, AioRefreshableCredentials):
        credentials._refresh_lock = asyncio.Lock()
        role = getattr(credentials._refresh_using, "__self__", None)
        credentials = getattr(role, "_source_credentials", None)


def _prepare_to_load(core: Any, region_name: str | None, config: Config | None) -> None:
    """Have a session load its credentials as for its first client, and as if it had not failed to before."""
    with contextlib.suppress(AttributeError, BotoCoreError):
        # STS is asked in the region of that client.
        core._resolve_region_name(region_name, config)
        # aiobotocore 2 and botocore take a chain of roles that they failed to load for an infinite loop ever after.
        provider = core.get_component("credential_provider").get_provider("assume-role")
        provider._visited_profiles = [provider._profile_name]


# Neither refers to the session, which would never be let go of; nor do credentials stand here, which refer to it.
_flights: WeakKeyDictionary[Any, SingleFlight] = WeakKeyDictionary()
_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_shared_lock = threading.Lock()


def _shared(things: WeakKeyDictionary[Any, Any], core: Any, make: Any) -> Any:
    with _shared_lock:
        return things.get(core) or things.setdefault(core, make())


def _forget_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    _locks.clear()
    for flight in list(_flights.values()):
        flight.forget_in_child()


after_fork_in_child(_forget_in_child)
