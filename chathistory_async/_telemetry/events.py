"""Retries, conflicts and throttles: logged without content and keys, and counted for the current operation."""

from __future__ import annotations

import logging
import threading
import time
from typing import Literal, TypeAlias

from .._sync.fork import after_fork_in_child
from .operations import current

# "stale": the handle did not know what is stored. "failed": the connection broke, or the response was HTTP 5xx or no
# response of the service.
Reason: TypeAlias = Literal["conflict", "stale", "throttled", "failed"]

_LOGGER = logging.getLogger("chathistory_async")
# A table that throttles may throttle thousands of requests a minute.
LOGGED_EVERY_SECONDS = 60.0


def retried(what: str, reason: Reason) -> None:
    """Log and count that something is tried again.

    Args:
        what: an operation of AWS, or a table.
        reason: why the last attempt failed.
    """
    _LOGGER.debug("%s: the next attempt follows (%s)", what, reason)
    operation = current()
    if operation is not None:
        operation.retried(reason)


def conflicted() -> None:
    """Count an attempt that failed because another writer was faster."""
    operation = current()
    if operation is not None:
        operation.conflicted()


def throttled(service: str, operation_name: str) -> None:
    """Count a request that AWS throttled, and warn of it unless the last warning was less than a minute ago."""
    operation = current()
    if operation is not None:
        operation.throttled(service)
    _throttles.see(service, operation_name)


class _Throttles:
    """Warns of throttled requests, at most once in LOGGED_EVERY_SECONDS."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._logs_at = 0.0

    def see(self, service: str, operation_name: str) -> None:
        with self._lock:
            self._number += 1
            if time.monotonic() < self._logs_at:
                return
            number, self._number = self._number, 0
            self._logs_at = time.monotonic() + LOGGED_EVERY_SECONDS
        text = "AWS throttles: %d requests since the last such warning, the latest %s of %s. Raise the capacity"
        _LOGGER.warning(text, number, operation_name, service)


_throttles = _Throttles()
after_fork_in_child(_throttles.forget)
