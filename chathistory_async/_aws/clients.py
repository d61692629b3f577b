"""One aioboto3 client per service, event loop and configuration: its owner, its opening and its closing."""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Hashable
from typing import Any, NamedTuple
from weakref import WeakSet

import aioboto3
from aiobotocore.session import AioSession

from .._request import DYNAMODB, Service
from .._sync.fork import after_fork_in_child, keep_forever
from .._telemetry.gauges import FAST_PATH, Observed, register
from .credentials import SessionCredentials
from .first_append import FirstAppend
from .sdk import ClientOptions, ReadyClient, config_of, longest_call_seconds, new_client, ready_client
from .sdk_sessions import session_of
from .single_flight import SingleFlight

# Histories without a store share clients if their configurations are equal. The bound keeps an application that makes a
# boto3_session for each request from piling up clients.
MAX_SHARED = 64


class FastPathStatus(NamedTuple):
    """Whether calls to DynamoDB take the fast path now.

    Attributes:
        active: True if calls take the fast path, False if not, None if no client is open yet.
        reason: why calls do not take the fast path, or "no client is open yet". None if calls take the fast path.
    """

    active: bool | None
    reason: str | None


class ClientHolder:
    """The client of one service on one event loop.

    Attributes:
        loop: the event loop.
        left_behind: whether the client was to be closed while the loop did not run.
        inherited: whether this is a forked child's copy of a holder that the parent process still uses.
        service: the service.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, service: Service) -> None:
        self.loop = loop
        self.left_behind = False
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
        """The client, or None if none is open."""
        return self._client

    @property
    def is_idle(self) -> bool:
        """Whether a client is open and no call uses it."""
        return self._client is not None and not self._calls

    async def acquire(self, options: ClientOptions) -> ReadyClient:
        """Return the client, and open it first if needed. It is not closed before the caller calls ``release``."""
        while (client := self._client) is None:
            # Concurrent callers wait for the same opening. If it fails, all of them fail at once: a further attempt
            # could again take seconds to fail.
            await self._opening.run(functools.partial(self._open, options))
        self._calls += 1
        return client

    def release(self) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    async def close(self) -> None:
        """Wait for the calls under way, and close the client. A later call opens a new one."""
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
        """Close the client without waiting for its calls. Its loop may be closed already."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.aclose()

    async def _open(self, options: ClientOptions) -> None:
        async with self._lock:
            if self._client is None:
                self.left_behind = False
                keeper = self._keep(options)
                self._client = await keeper.__anext__()
                self._keeper = keeper

    async def _keep(self, options: ClientOptions) -> AsyncGenerator[ReadyClient, None]:
        # A suspended generator learns that its loop shuts down: asyncio.run(), like every other runner, closes the
        # remaining asynchronous generators (loop.shutdown_asyncgens), and this generator then closes the client.
        session = session_of(options.session, options.region_name, options.config)
        context = new_client(session, options, self.service)
        client = await context.__aenter__()
        try:
            ready = await ready_client(client, session, options, self.service)
            _open_holders.add(self)
            yield ready
        finally:
            _open_holders.discard(self)
            self._client = None
            if not self.inherited:
                await context.__aexit__(None, None, None)


# This set keeps open clients from the garbage collector: aiohttp warns of each open session that is collected.
_open_holders: set[ClientHolder] = set()


def _clients_on_the_fast_path() -> Observed:
    """Return how many open clients of DynamoDB take the fast path now, and how many do not."""
    clients = [holder.client for holder in list(_open_holders) if holder.service == DYNAMODB]
    active = [client.fast_path_off() is None for client in clients if client is not None]
    return [(active.count(state), {"chathistory.fast_path.active": state}) for state in (True, False)]


register(FAST_PATH, _clients_on_the_fast_path)


class Lifetime:
    """Whether an object is closed, and how many tasks are inside its ``async with``. The last one to leave closes it.

    Attributes:
        closed: whether the object was closed and has not been entered since.
    """

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0

    def enter(self) -> None:
        with _shared_lock:
            self._inside += 1
            self.closed = False

    def leave(self) -> bool:
        """Count one task that leaves, close the object if no task is left inside, and return whether it is closed."""
        with _shared_lock:
            self._inside = max(0, self._inside - 1)
            self.closed = self.closed or not self._inside
            return self.closed


class Clients:
    """The clients of one configuration, one for each service and event loop, opened on first use.

    Unpickling returns the clients that the histories without a store share in the unpickling process.

    Attributes:
        options: the options of every client.
        first_append: the checks that tables have passed.
        shared: True if histories without a store share the clients, False if the clients belong to one store.
        users: the open histories without a store that share the clients.
        lifetime: the lifetime of the store that owns the clients.
        credentials: the credentials of a given asynchronous session, loaded once for all loops. None if no such session
            was given: the loops may then load and refresh credentials at the same time.
    """

    def __init__(self, options: ClientOptions, *, shared: bool = False) -> None:
        self.options = options
        self.first_append = FirstAppend()
        self.shared = shared
        self.users: WeakSet[object] = WeakSet()
        self.lifetime = Lifetime()
        self.credentials = _credentials_of(options)
        self._lock = threading.Lock()
        # 0 until it is first read: merging the configurations takes half a millisecond.
        self._longest_opening_seconds: float | None = 0
        # The key holds the loop itself, not id(loop): ids are reused.
        self._holders: dict[tuple[asyncio.AbstractEventLoop, Service], ClientHolder] = {}
        _all.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Clients:
        """Return the clients themselves: a copied history shares them, as does any history with the same settings."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_clients, (self.options,)

    @property
    def retired(self) -> bool:
        """Whether the store that owns the clients is closed. Then no client may be opened."""
        return self.lifetime.closed

    @property
    def longest_opening_seconds(self) -> float | None:
        """How many seconds opening a client and loading its credentials may take, or None for no limit.

        The limit is that of a call, by the given config alone: the settings in the SDK's files and in the environment
        are known only when a client is open.
        """
        # Not a cached_property: before Python 3.12 all instances share its lock, and a fork may leave the lock locked.
        if self._longest_opening_seconds == 0:
            self._longest_opening_seconds = longest_call_seconds(config_of(self.options))
        return self._longest_opening_seconds

    def longest_call_seconds(self, service: Service) -> float | None:
        """Return how many seconds a call may take, including the opening of its client if needed; None for no limit."""
        holder = self._holders.get((asyncio.get_running_loop(), service))
        client = None if holder is None else holder.client
        return self.longest_opening_seconds if client is None else client.longest_call_seconds

    def acquire(self, service: Service = DYNAMODB) -> _Acquisition:
        """Acquire the running loop's client of a service for one call.

        Raises:
            botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError: when entered, if the SDK
                cannot make a client or cannot refresh its credentials.
        """
        return _Acquisition(self, service)

    def fast_path_status(self) -> FastPathStatus:
        """Return whether the calls of all open DynamoDB clients, on all event loops, take the fast path now."""
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
        """Close the running loop's clients. Tell the other running loops to close theirs, and do not wait for them."""
        here = asyncio.get_running_loop()
        self.close_soon(besides=here)
        for holder in self._all_holders():
            if holder.loop is here:
                await holder.close()

    def close_soon(self, besides: asyncio.AbstractEventLoop | None = None) -> None:
        """Tell each loop except ``besides`` to close its clients, and do not wait for it.

        A loop that does not run closes them when it opens another client, or when it shuts down.
        """
        for holder in self._all_holders():
            if holder.loop is besides:
                continue
            if holder.loop.is_running():
                # Not waited for: that loop may be blocked by a synchronous call that waits for this one.
                asyncio.run_coroutine_threadsafe(holder.close(), holder.loop)
            else:
                holder.left_behind = True

    def can_close(self) -> bool:
        """Return whether no open history uses these clients, and every loop with an open client is running."""
        return not self.users and all(
            holder.loop.is_running() for holder in self._all_holders() if holder in _open_holders
        )

    def forget_in_child(self) -> None:
        self._lock = threading.Lock()
        self._holders = {}

    async def _new_holder(self, loop: asyncio.AbstractEventLoop, service: Service) -> ClientHolder:
        await _close_left_behind()
        with self._lock:
            # A holder keeps its loop alive. Holders of closed loops are removed only here.
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
    """Acquires a client for one call. A class, because two generators took a tenth of the time of a small call."""

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
            # The store was closed while this call waited for the client, so only this call can close the client.
            await self._holder.close()


_all: WeakSet[Clients] = WeakSet()
_shared: OrderedDict[Hashable, Clients] = OrderedDict()
_shared_lock = threading.Lock()


def shared_clients(options: ClientOptions) -> Clients:
    """Return the clients that all histories without a store share if their options are equal."""
    key = options.sharing_key()
    with _shared_lock:
        clients = _shared.get(key) or _shared.setdefault(key, Clients(options, shared=True))
        _shared.move_to_end(key)
        _drop_unused_shared()
        return clients


def _drop_unused_shared() -> None:
    """If there are more than MAX_SHARED, close and drop the least recently used ones that can be closed."""
    for key in list(_shared)[: max(0, len(_shared) - MAX_SHARED)]:
        if _shared[key].can_close():
            _shared.pop(key).close_soon()


async def _close_left_behind() -> None:
    """Close the clients of loops that were closed without a shutdown, and the running loop's that were left behind.

    Closing a client does not need its loop.
    """
    here = asyncio.get_running_loop()
    with _shared_lock:
        # list() copies the set in one step: other threads open and close clients meanwhile.
        left = [
            holder
            for holder in list(_open_holders)
            if holder.loop.is_closed() or (holder.left_behind and holder.loop is here and holder.is_idle)
        ]
        _open_holders.difference_update(left)
    for holder in left:
        await (holder.abandon() if holder.loop.is_closed() else holder.close())


def _close_at_exit() -> None:
    """Close the clients of loops that were never shut down, such as those of scripts without asyncio.run()."""
    for holder in list(_open_holders):
        if holder.loop.is_closed():
            asyncio.run(holder.abandon())
        elif not holder.loop.is_running():
            holder.loop.run_until_complete(holder.abandon())


def _forget_in_child() -> None:
    global _shared_lock, _open_holders
    _shared_lock = threading.Lock()
    for holder in _open_holders:
        # A child that unwinds an inherited asyncio.run() shuts down its copy of the parent's loop, and closes that
        # loop's generators. The client is kept separately, because its generator then drops its reference to it.
        holder.inherited = True
        keep_forever((holder, holder._client))
    _open_holders = set()
    for clients in list(_all):
        clients.forget_in_child()


atexit.register(_close_at_exit)
after_fork_in_child(_forget_in_child)
