"""Treats the event loops, threads and connections that a forked child inherits."""

from __future__ import annotations

import os
from collections.abc import Callable

_kept_forever: list[object] = []


def after_fork_in_child(callback: Callable[[], None]) -> None:
    """Run a callback in every forked child. Do nothing on a platform without fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)


def keep_forever(inherited: object) -> None:
    """Keep an inherited object in a forked child, so that it is never finalised there.

    An inherited connection shares its socket with the parent, and an inherited loop shares its epoll descriptor. If the
    child closed the connection, it would remove the socket from the shared epoll, and the parent would wait for ever.
    """
    if not _kept_forever:
        # The interpreter empties modules at exit. A reference that is never released outlives that.
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept_forever))
    _kept_forever.append(inherited)
