"""Moving sessions from single items into an item collection: read, copy, compare, delete.

No message is lost. The source is deleted only by an attempt that has compared all messages which it read with their
copies, and only on condition that the source still has these messages. A message that is appended meanwhile therefore
stays in the source, and the next attempt copies it. A copy may be missing only if it was removed, trimmed or has
expired since. It was stored: one transaction stored it with the checkpoint that counts it.

No message is copied twice: see ``checkpoint``. The checkpoint is read before the source, so it never describes a later
state of the source than the one that is compared with it. If another writer changes the checkpoint, the source or the
session's item in the index after the attempt has read them, the condition of the attempt's next write fails, and the
next attempt reads them again. Only such a change makes the migration attempt again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import suppress

from .._aws.errors import aws_error_of
from .._codec.keys import KeyValue
from .._cooperative import in_order
from .._session import leaves_no_plaintext
from ..errors import (
    AccessDeniedError,
    ChatHistoryError,
    ConfigurationError,
    FormatError,
    ItemTooLargeError,
    KmsKeyError,
    MessageNotStorableError,
    ServiceError,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)
from .checkpoint import Checkpoint
from .outcome import ConcurrentChange, Ended, MigrationResult, Outcome
from .source import Found, Source
from .target import Target

# Each migration holds its session's 400 KB in memory several times, and blocks the event loop while the SDK writes a
# request.
_SESSIONS_AT_ONCE = 8
_DELETED = (
    "the source is not deleted, because the session was deleted in the target and nothing is left to compare it with:"
    " clear the source yourself if it is not needed"
)
_DIVERGED = (
    "the source does not continue the messages that were copied from it: compare both sessions, append the missing"
    " messages to the target, and clear the source"
)
_OF_ONE_SESSION = (
    FormatError,
    ItemTooLargeError,
    KmsKeyError,
    MessageNotStorableError,
    UndecodableItemError,
    WriteConflictError,
    WriteOutcomeUnknownError,
)


def _is_of_one_session(error: ChatHistoryError) -> bool:
    """Return whether an error concerns one session only. Any other error would affect the other sessions too."""
    operation, code = aws_error_of(error)
    if isinstance(error, ConfigurationError):
        # Without a cause it does not come from the SDK: a message is encrypted, and there is no kms_key_id.
        return error.__cause__ is None
    if isinstance(error, AccessDeniedError):
        # KMS refused to decrypt with the key that a stored message names.
        return operation == "Decrypt"
    if isinstance(error, ServiceError):
        # DynamoDB refused to update a damaged item, such as one whose count is text.
        return code in {"ValidationException", "TransactionCanceledException"}
    return isinstance(error, _OF_ONE_SESSION)


class SessionMigration:
    """The migration of one session. It may need several attempts.

    Attributes:
        copied: how many messages this migration has copied.
        total: how many messages all migrations of the session have copied.
    """

    def __init__(self, source: Source, target: Target) -> None:
        self.copied = 0
        self.total = 0
        self._source = source
        self._target = target

    @leaves_no_plaintext
    async def run(self, *, dry_run: bool, delete_source: bool) -> Outcome:
        attempts = self._source.access.attempts(reads_first=True)
        while True:
            await attempts.begin()
            with suppress(ConcurrentChange):
                return await self._attempt(dry_run, delete_source)

    async def _attempt(self, dry_run: bool, delete_source: bool) -> Outcome:
        # The order matters: see the module's docstring.
        checkpoint = await self._target.checkpoint()
        self.total = 0 if checkpoint is None else checkpoint.total
        found = await self._source.look()
        if checkpoint is not None and checkpoint.deleted:
            if delete_source and not dry_run and not isinstance(found, str):
                raise self._ended("kept", _DELETED)
            return "deleted"
        if isinstance(found, str):
            if checkpoint is not None and not dry_run:
                await self._target.note_absence(checkpoint)
            return found
        checkpoint = checkpoint or await self._target.begin()
        known = checkpoint.known(found.digests)
        if known is None:
            raise self._ended("diverged", _DIVERGED)
        if dry_run:
            return await self._would_copy(found, known, checkpoint)
        checkpoint = await self._copy_and_verify(found, known, checkpoint, again=delete_source)
        if not delete_source:
            return "copied" if self.copied else "unchanged"
        await self._source.delete(found)
        await self._target.note_absence(checkpoint)
        return "moved"

    async def _would_copy(self, found: Found, known: int, checkpoint: Checkpoint) -> Outcome:
        """Check that the source's new messages can be stored. The arguments are those of ``_copy_and_verify``."""
        self.copied = (await self._target.prepare(found, known, checkpoint)).number
        if not self.copied:
            return "unchanged"
        await self._target.check_format()
        return "would_copy"

    async def _copy_and_verify(self, found: Found, known: int, checkpoint: Checkpoint, *, again: bool) -> Checkpoint:
        """Copy the source's new messages, and compare messages with their copies.

        Args:
            found: the content of the source.
            known: how many of the source's first messages were copied before.
            checkpoint: the current checkpoint.
            again: compare all messages, instead of only those that were not compared before.
        """
        new = checkpoint.total
        originals = {
            index: message
            for index, message in enumerate(found.messages, new - known)
            if again or index >= checkpoint.verified
        }
        copy = await self._target.prepare(found, known, checkpoint)
        if copy.number:
            after = checkpoint.after_copying(copy.number, found.digests)
            await self._target.copy(copy, checkpoint, after, found.expiry)
            checkpoint = after
            self.copied += copy.number
            self.total = checkpoint.total
        return await self._target.verify(originals, checkpoint, new)

    def _ended(self, outcome: Outcome, reason: str) -> Ended:
        return Ended(outcome, f"{reason} [{self._source.access.ref}]")


def migrate(
    session_ids: Iterable[KeyValue] | AsyncIterable[KeyValue],
    open_session: Callable[[KeyValue], tuple[Source, Target]],
    *,
    dry_run: bool,
    delete_source: bool,
) -> AsyncGenerator[MigrationResult, None]:
    """Move sessions, up to 8 at once, and yield their results in the order of ``session_ids``."""

    async def migrate_one(session_id: KeyValue) -> MigrationResult:
        try:
            one = SessionMigration(*open_session(session_id))
        except (TypeError, ValueError) as failure:
            return MigrationResult(session_id, "failed", 0, 0, f"{type(failure).__name__}: {failure}")
        outcome: Outcome
        error = None
        try:
            outcome = await one.run(dry_run=dry_run, delete_source=delete_source)
        except Ended as end:
            outcome, error = end.outcome, end.reason
        except ChatHistoryError as failure:
            if not _is_of_one_session(failure):
                raise
            outcome, error = "failed", f"{type(failure).__name__}: {failure}"
        return MigrationResult(session_id, outcome, one.copied, one.total, error)

    return in_order(_SESSIONS_AT_ONCE, migrate_one, session_ids)
