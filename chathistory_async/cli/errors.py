"""Errors as one line, in the command line's words, and the exit codes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import click

from ..errors import ChatHistoryError
from .interruption import end_interrupted
from .output import in_one_line

# The exit code of a failure. click ends with 2 after wrong usage.
FAILED = 1

# The library's advice on a key that does not fit the table.
ADVICE_ON_KEYS = (
    'check primary_key_name, key and sort_key_name (or layout="single_item"), and the types of their values'
)
# The library's words, and what a user of the command line has in their place.
WORDS = {
    ADVICE_ON_KEYS: "check --primary-key-name, --sort-key-name and --layout",
    ', with layout="single_item" for a DynamoDBChatMessageHistory without sort_key_name': " of the same --layout",
    "ChatHistoryStore.create_table()": "chathistory create-table",
    "call again to wait longer": "run the command again to wait longer",
    "make it with session_index=True": "run chathistory create-table --session-index",
    "adelete_messages([error.message_id])": "chathistory delete-message with that id",
    "aclear()": "chathistory delete",
    "delete_session()": "chathistory delete",
    "set_title()": "chathistory title",
    "list_sessions": "chathistory list",
    "update_metadata()": "the application's update_metadata()",
    "give a boto3_session, or set": "give --profile, or set",
    "a table with a sort key, and sort_key_name": "a table with a sort key, and --layout item_collection",
    "pass None to store": "leave it out to store",
    "or the retries in config": "or AWS_MAX_ATTEMPTS",
    "Set history_size, store": "Store",
    "kms_endpoint_url": "AWS_ENDPOINT_URL_KMS",
    "history_messages_key": "--history-messages-key",
    "endpoint_url": "--endpoint-url",
    "kms_key_id": "--kms-key-id",
    "region_name": "--region",
    "primary_key_name": "--primary-key-name",
    "sort_key_name": "--sort-key-name",
    "ttl_key_name": "--ttl-key-name",
    "table_name": "--table",
}


class Failed(click.ClickException):
    """The command failed: exit code 1."""

    exit_code = FAILED

    def show(self, file: Any = None) -> None:
        """Write the error as one line."""
        click.echo(f"Error: {in_one_line(self.message)}", file=file, err=True)


class Misused(Failed):
    """The command was used wrongly: exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """Commands that show an error as one line, never as a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which the commands were added."""
        return [*self.commands]

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, and end with an error line where its output or its file fails."""
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            Failed(error.strerror or type(error).__name__).show()
            _discard_output()
            sys.exit(FAILED)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and map what it raises to an error line and an exit code."""
        # Characters that the terminal or the pipe cannot encode are escaped.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # click's own text has four lines.
            path = (error.ctx or ctx).command_path
            raise Misused(f"{error.format_message().rstrip('.')}: see {path} --help") from error
        except ChatHistoryError as error:
            raise Failed(in_own_words(error)) from error
        except ValueError as error:
            # The library has refused an argument.
            raise Misused(in_own_words(error)) from error
        except click.Abort as error:
            # The user gave no answer to a question, which is still in the last line.
            click.echo(err=True)
            raise Failed("Nothing was done") from error
        except KeyboardInterrupt:
            end_interrupted()
        except BrokenPipeError:
            # The reader of the output has ended.
            _discard_output()
            sys.exit(FAILED)


def _discard_output() -> None:
    """Discard what standard output still holds: the interpreter flushes it at exit, which must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def in_own_words(error: object, words: Mapping[str, str] | None = None) -> str:
    """Return the text of a library's error in the command line's words.

    The names of the table and of the session, which the text ends with, stay as they are.

    Args:
        error: the error, or its text.
        words: words of one command, which come before WORDS.
    """
    text, bracket, where = str(error).rpartition(" [table ")
    own = {**WORDS, **(words or {})}
    said, rest = (text, bracket + where) if bracket else (where, "")
    pattern = "|".join(rf"(?<![\w-]){re.escape(word)}" for word in sorted(own, key=len, reverse=True))
    return re.sub(pattern, lambda found: own[found[0]], said) + rest
