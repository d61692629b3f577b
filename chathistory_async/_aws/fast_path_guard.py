"""Detects a tracer, a mock or an event handler that watches or replaces one of the SDK's clients.

The fast path bypasses the client. A tracer that patches the client would not see the calls, and a mock would not
intercept them. OpenTelemetry, X-Ray, Datadog and New Relic patch the SDK's classes; moto, aiomoto, Sentry and
botocore's ``Stubber`` register event handlers. Code of unknown origin, and an SDK with unknown internals, count as
found.

OpenTelemetry's instrumentor is no finding while the library makes the spans itself.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from aiobotocore.client import AioBaseClient
from aiobotocore.endpoint import AioEndpoint
from aiobotocore.hooks import AioHierarchicalEmitter
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.signers import AioRequestSigner
from botocore.history import get_global_history_recorder
from botocore.hooks import EventAliaser

# The methods that a call of the SDK's client goes through.
_METHODS = (
    *((AioBaseClient, name) for name in ("_make_api_call", "_make_request", "_emit_api_params")),
    *((AioBaseClient, name) for name in ("_resolve_endpoint_ruleset", "_convert_to_request_dict")),
    *((AioEndpoint, name) for name in ("make_request", "create_request", "prepare_request", "_send_request")),
    *((AioEndpoint, name) for name in ("_get_response", "_do_get_response", "_needs_retry", "_send")),
    *((AIOHTTPSession, name) for name in ("send",)),
    *((AioRequestSigner, name) for name in ("handler", "sign")),
    *((AioHierarchicalEmitter, name) for name in ("emit", "emit_until_response", "_emit")),
)
# The events of a call.
_EVENTS = (
    "provide-client-params",
    "before-parameter-build",
    "before-endpoint-resolution",
    "before-call",
    "request-created",
    "choose-signer",
    "before-sign",
    "before-send",
    "before-parse",
    "response-received",
    "needs-retry",
    "after-call",
    "after-call-error",
)
_OWN_PACKAGES = ("aiobotocore.", "botocore.", f"{__package__}.")
# The SDK's own mock, and its client-side monitoring.
_WATCHERS_OF_THE_SDK = {"botocore.stub", "botocore.monitoring"}
# Its wrappers do nothing while instrumentation is suppressed, as it is during a call that the library traces.
_INSTRUMENTOR = "opentelemetry.instrumentation.botocore"
_UNKNOWN = "the internals of the SDK's client are not the known ones"

_recorder = get_global_history_recorder()


class Guard:
    """Detects a tracer, a mock or an event handler that watches or replaces one client.

    Args:
        client: the SDK's client.
        operations: the operations that the fast path sends: the client's methods, and their names in the API.
        traces: returns whether the library traces the client's calls itself.
    """

    def __init__(self, client: Any, operations: Mapping[str, str], traces: Callable[[], bool] = lambda: False) -> None:
        self._client = client
        self._operations = operations
        self._traces = traces
        # The methods that a call goes through in the class that the SDK made for this client.
        self._own_methods = [*operations, *(name for kind, name in _METHODS if kind is AioBaseClient)]
        self._last: tuple[list[object], str | None] = [], None

    def found(self) -> str | None:
        """Return what watches or replaces the client now, or None if nothing does.

        If nothing has changed since the last call, this takes 2 to 3 µs, of the 200 µs of a DynamoDB call. After a
        change, it searches, and that takes 0.2 ms.
        """
        try:
            traces = _INSTRUMENTOR in sys.modules and self._traces()
            state = self._state(traces)
            last, found = self._last
            if len(last) != len(state) or not all(map(operator.is_, state, last)):
                found = next(self._search(traces), None)
                self._last = state, found
        except (AttributeError, LookupError, TypeError):
            return _UNKNOWN
        return found

    def _state(self, traces: bool) -> list[object]:
        """Return objects, of which at least one is a different one after something was patched or registered.

        Args:
            traces: whether the library traces the calls and may be instrumented: the finding depends on it.
        """
        client = self._client
        endpoint, own = client._endpoint, type(client)
        state: list[object] = [getattr(kind, name) for kind, name in _METHODS]
        state += [getattr(own, name) for name in self._own_methods]
        if traces:
            state = [method if type(method) is FunctionType else _lasting(method) for method in state]
        state += (
            traces,
            endpoint,
            endpoint.http_session,
            client._request_signer,
            # An emitter makes a new cache whenever a handler is registered or removed.
            client.meta.events._emitter._lookup_cache,
            _recorder._enabled,
            # A method that is patched on an instance adds an attribute to it.
            len(vars(client)),
            len(vars(endpoint)),
            len(vars(endpoint.http_session)),
        )
        return state

    def _search(self, traces: bool) -> Iterator[str]:
        client = self._client
        endpoint, emitter = client._endpoint, client.meta.events._emitter
        kind = type(client)
        for owner, name in _METHODS:
            method = getattr(owner, name)
            yield from _foreign(_instrumented(method) if traces else method, f"{owner.__name__}.{name} is replaced")
        if kind.__mro__[1:] != AioBaseClient.__mro__:
            yield f"{kind.__name__} has base classes that are not the SDK's"
        for name, value in vars(kind).items():
            if callable(value):
                yield from _foreign(value, f"{kind.__name__}.{name} is replaced")
        for part, known in (
            (endpoint, AioEndpoint),
            (endpoint.http_session, AIOHTTPSession),
            (client._request_signer, AioRequestSigner),
            (client.meta.events, EventAliaser),
            (emitter, AioHierarchicalEmitter),
        ):
            if type(part) is not known:
                yield f"{_origin(part)}.{type(part).__name__} stands in for the SDK's {known.__name__}"
        for part in (client, endpoint, endpoint.http_session, client._request_signer, emitter):
            for name, value in vars(part).items():
                if callable(getattr(type(part), name, None)):
                    yield f"{type(part).__name__}.{name} is replaced on the instance, by {_origin(value)}"
        service = client.meta.service_model.service_id.hyphenize()
        for event in _EVENTS:
            for operation in self._operations.values():
                for handler in emitter._handlers.prefix_search(f"{event}.{service}.{operation}") or ():
                    yield from _foreign(handler, f"{event} has an event handler")
        if _recorder._enabled:
            yield "botocore's history recorder is enabled"


def _lasting(method: object) -> object:
    """Return an object that lasts for a wrapper: each access to the method makes another wrapper."""
    return getattr(method, "_self_wrapper", method)


def _instrumented(method: Any) -> object:
    """Return the method that OpenTelemetry's instrumentor wraps, or the method itself if it does not."""
    while hasattr(type(method), "_self_wrapper") and _origin(method) == _INSTRUMENTOR:
        method = method.__wrapped__
    return method


def _foreign(function: object, finding: str) -> Iterator[str]:
    """Yield a finding if a function is not the SDK's own, or is part of the SDK's mock or monitoring."""
    origin = _origin(function)
    if not origin.startswith(_OWN_PACKAGES) or origin in _WATCHERS_OF_THE_SDK:
        yield f"{finding}, by {origin}"


def _origin(value: object) -> str:
    """Return the module of a function or other object. For a wrapper, return the module of the wrapper itself."""
    # The checks are of exact types, because wrapt's wrappers imitate the type and the module of the wrapped object.
    if type(value) is functools.partial:
        return _origin(value.func)
    if type(value) is MethodType:
        return _origin(value.__func__)
    if type(value) is FunctionType:
        return str(value.__globals__.get("__name__"))
    if hasattr(type(value), "_self_wrapper"):
        return _origin(value._self_wrapper)  # type: ignore[attr-defined]
    return type(value).__module__
