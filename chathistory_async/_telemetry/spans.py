"""The spans of one tracer provider. Imports OpenTelemetry, so it is imported only if a provider is set."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context

from .._version import __version__

Attributes: TypeAlias = Mapping[str, Any]

# The instrumentors look for both. The API exports no name for the first.
_SUPPRESSION_KEYS = (getattr(contexts, "_SUPPRESS_INSTRUMENTATION_KEY", ""), "suppress_instrumentation")
_SUPPRESSED = dict.fromkeys(_SUPPRESSION_KEYS, True)


class Tracing:
    """Starts spans.

    Args:
        provider: the application's tracer provider.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("chathistory_async", __version__)
        self._drops_below_dropped = _drops_below_dropped(getattr(provider, "sampler", None))

    @staticmethod
    def is_suppressed() -> bool:
        """Return whether the current context suppresses instrumentation."""
        current = contexts.get_current()
        return bool(current.get(_SUPPRESSION_KEYS[0]) or current.get(_SUPPRESSION_KEYS[1]))

    @staticmethod
    def has_instrumentors() -> bool:
        """Return whether there may be instrumentors, of this process's SDK client or of its HTTP client."""
        return "opentelemetry.instrumentation" in sys.modules

    def operation(self, name: str, layout: str) -> tuple[Span, Context]:
        """Start the span of an operation, and return it with the context of the operation."""
        # The API would look it up three times.
        current = contexts.get_current()
        span = self._tracer.start_span(name, current, SpanKind.INTERNAL, {"chathistory.layout": layout})
        return span, set_span_in_context(span, current)

    def has_calls(self, operation: Span) -> bool:
        """Return whether the calls below an operation's span have spans that may be recorded."""
        return operation.is_recording() or not self._drops_below_dropped

    def call(self, name: str, attributes: Attributes) -> tuple[Span, Context]:
        """Start the span of a call to AWS, and return it with the context of the call; see ``suppressed``."""
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        return span, set_span_in_context(span, self.suppressed())

    @staticmethod
    def suppressed() -> Context:
        """Return the current context with instrumentation suppressed, so that no instrumentor makes a second span."""
        return Context({**contexts.get_current(), **_SUPPRESSED})

    @staticmethod
    def end(span: Span, attributes: Attributes, error: BaseException | None, error_type: str | None) -> None:
        """End a span. It has no exception event, and its status has no text: an error's text may quote content.

        Args:
            span: the span.
            attributes: the span's last attributes.
            error: what was raised, or None. The end of a task, such as a cancellation, does not make the span an error.
            error_type: the kind of ``error``, or None.
        """
        span.set_attributes({**attributes, **({} if error_type is None else {"error.type": error_type})})
        if isinstance(error, Exception):
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    attach = staticmethod(contexts.attach)
    detach = staticmethod(contexts.detach)


def _drops_below_dropped(sampler: Any) -> bool:
    """Return whether a sampler surely drops all spans below one that it has dropped, so that they need no start.

    OpenTelemetry's own samplers do: some drop all or nothing, others drop whole traces. A sampler of the application
    may drop the spans of operations only, and its description may be anything.
    """
    try:
        description = str(sampler.get_description())
    except Exception:  # noqa: BLE001  # an operation must not fail because of its telemetry
        return False
    if description.startswith("ParentBased{"):
        return description.endswith(",localParentNotSampled:AlwaysOffSampler}")
    return description.startswith(("AlwaysOffSampler", "AlwaysOnSampler", "TraceIdRatioBased{"))
