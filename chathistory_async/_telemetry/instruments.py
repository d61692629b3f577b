"""The metrics of one meter provider. Imports OpenTelemetry, so it is imported only if a provider is set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from .._version import __version__
from .gauges import DATA_KEYS, FAST_PATH, observed

# The semantic conventions prescribe these.
_DURATION_BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


class Instruments:
    """Records measurements.

    Args:
        provider: the application's meter provider.
    """

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("chathistory_async", __version__)
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of calls to DynamoDB, with the SDK's retries.",
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDARIES,
        )
        self._calls = meter.create_counter("chathistory.calls", "{call}", "Calls to DynamoDB and KMS.")
        self._retries = meter.create_counter("chathistory.retries", "{retry}", "Requests that were sent again.")
        self._conflicts = meter.create_counter("chathistory.conflicts", "{conflict}", "Lost races with other writers.")
        self._throttles = meter.create_counter("chathistory.throttles", "{request}", "Requests that AWS throttled.")
        self._bytes = meter.create_counter("chathistory.bytes", "By", "Stored bytes that were read or written.")
        meter.create_observable_gauge(
            FAST_PATH, [_observing(FAST_PATH)], "{client}", "Open clients of DynamoDB, on or off the fast path."
        )
        meter.create_observable_gauge(DATA_KEYS, [_observing(DATA_KEYS)], "{key}", "Data keys in the cache.")

    def call(self, attributes: Mapping[str, Any], seconds: float, error_type: str | None) -> None:
        """Record a call to AWS and its duration."""
        if error_type is not None:
            attributes = {**attributes, "error.type": error_type}
        self._calls.add(1, attributes)
        if "db.system.name" in attributes:
            self._duration.record(seconds, attributes)

    def retry(self, reason: str) -> None:
        self._retries.add(1, {"chathistory.retry.reason": reason})

    def conflict(self) -> None:
        self._conflicts.add(1)

    def throttle(self, service: str) -> None:
        self._throttles.add(1, {"chathistory.service": service})

    def traffic(self, read: int, written: int) -> None:
        """Record stored bytes."""
        for direction, number in (("read", read), ("write", written)):
            if number:
                self._bytes.add(number, {"chathistory.direction": direction})


def _observing(gauge: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(number, attributes) for number, attributes in observed(gauge)]
