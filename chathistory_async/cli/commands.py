"""All commands, in the order of the help."""

from __future__ import annotations

import logging

import click

from .._version import __version__
from .delete import delete, delete_message, purge
from .demo import demo
from .doctor import doctor
from .errors import Commands
from .export import export
from .importing import import_
from .migrate import migrate
from .policy import policy
from .sessions import info, list_, stats, title
from .show import show, tail
from .tables import create_table


@click.group(cls=Commands, context_settings={"max_content_width": 100})
@click.version_option(__version__)
def chathistory() -> None:
    """Conversations on DynamoDB: read, list, export, erase and migrate them, and set up their table."""
    # Errors are shown as one line. Without a handler, Python would also write the library's log records to stderr.
    logging.getLogger("chathistory_async").addHandler(logging.NullHandler())


for command in (
    show,
    tail,
    list_,
    info,
    title,
    stats,
    export,
    import_,
    delete,
    delete_message,
    purge,
    create_table,
    policy,
    doctor,
    migrate,
    demo,
):
    chathistory.add_command(command)
