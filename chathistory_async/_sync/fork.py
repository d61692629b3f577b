"""What must happen in a forked child to the event loops, threads and connections that it inherits."""

from __future__ import annotations

import os
from collections.abc import Callable

_kept_forever: list[object] = []


def after_fork_in_child(callback: Callable[[], None]) -> None:
    """Run a callback in every forked child, where the platform has fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)


def keep_forever(inherited: object) -> None:
    """Keep what a child inherited from being finalised in it, ever.

    An inherited connection shares its socket with the parent, and an inherited loop its epoll descriptor: closing
    the one from the child takes it out of the other, and the parent waits for ever.
    """
    if not _kept_forever:
        # The interpreter empties modules as it exits. A reference that is never given back outlives that.
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept_forever))
    _kept_forever.append(inherited)
