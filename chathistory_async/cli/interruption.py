"""Ctrl-C. This module imports nothing slow, because Ctrl-C may come while the command line is still importing."""

from __future__ import annotations

import sys
from typing import NoReturn

# The exit code of a process that SIGINT ended.
_INTERRUPTED = 130


def end_interrupted() -> NoReturn:
    """End the process after Ctrl-C, without a traceback."""
    sys.stderr.write("Interrupted.\n")
    sys.exit(_INTERRUPTED)
