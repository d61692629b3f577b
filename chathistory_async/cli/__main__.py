"""Runs the command line as ``python -m chathistory_async.cli``."""

from . import main

main()
