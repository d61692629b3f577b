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
        variable: the name of the variable that the function returns.
        make: makes what the library needs from a provider.
    """

    def __init__(self, api: str, getter: str, variable: str, make: Callable[[Any], Made]) -> None:
        self._api = api
        self._getter = getter
        self._variable = variable
        self._make = make
        self._known: tuple[object, Made | None] = self, None

    def now(self) -> Made | None:
        """Return what was made from the global provider, or None if the application has set none."""
        api = sys.modules.get(self._api)
        # Another thread may be importing the module at this moment.
        getter = getattr(api, self._getter, None)
        if getter is None:
            return None
        # The variable is looked at first: while it is None, the function searches the environment, which takes a
        # microsecond. An API without the variable has only the function.
        variables = getattr(getter, "__globals__", {})
        known, made = self._known
        if (variables[self._variable] if self._variable in variables else getter()) is not known:
            provider = getter()
            made = None if self._does_nothing(provider) else self._make(provider)
            # The function may just have set the variable, to a provider that the environment names.
            self._known = variables.get(self._variable, provider), made
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


tracing_now = _Signal("opentelemetry.trace", "get_tracer_provider", "_TRACER_PROVIDER", _tracing).now
instruments_now = _Signal("opentelemetry.metrics", "get_meter_provider", "_METER_PROVIDER", _instruments).now
