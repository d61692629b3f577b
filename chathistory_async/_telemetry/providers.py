"""Finds the tracer provider and the meter provider that the application has set. Never imports OpenTelemetry first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from .instruments import Instruments
    from .spans import Tracing

Made = TypeVar("Made")


class _Signal(Generic[Made]):
    """One of OpenTelemetry's signals: traces or metrics.

    Args:
        api: the name of the API's module.
        getter: the name of the module's function that returns the global provider.
        make: makes what the library needs from a provider.
    """

    def __init__(self, api: str, getter: str, make: Callable[[Any], Made]) -> None:
        self._api = api
        self._getter = getter
        self._make = make
        self._known: tuple[object, Made | None] = None, None

    def now(self) -> Made | None:
        """Return what was made from the global provider, or None if the application has set none."""
        api = sys.modules.get(self._api)
        # Another thread may be importing the module at this moment.
        getter = getattr(api, self._getter, None)
        if getter is None:
            return None
        provider = getter()
        known, made = self._known
        if provider is not known:
            made = None if self._does_nothing(provider) else self._make(provider)
            self._known = provider, made
        return made

    def _does_nothing(self, provider: object) -> bool:
        """Return whether a provider is one of the API's own. Those only stand for a provider that is not set."""
        return f"{type(provider).__module__}.".startswith(f"{self._api}.")


def _tracing(provider: Any) -> Tracing:
    from .spans import Tracing

    return Tracing(provider)


def _instruments(provider: Any) -> Instruments:
    from .instruments import Instruments

    return Instruments(provider)


tracing_now = _Signal("opentelemetry.trace", "get_tracer_provider", _tracing).now
instruments_now = _Signal("opentelemetry.metrics", "get_meter_provider", _instruments).now
