"""What is checked of a table before the first append: DynamoDB takes writes that the reads would then not find."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

from ..errors import AccessDeniedError, ServiceError, ThrottledError


class FirstAppend:
    """The checks that were passed, so that each is made once for the clients that hold this, and not for each append.

    Appends that begin before the first answer check too: that costs a request each, and no lock.
    """

    def __init__(self) -> None:
        self._passed: set[Hashable] = set()

    def record(self, what: Hashable) -> None:
        """Take a check for passed, because another request has shown what it would."""
        self._passed.add(what)

    async def check(self, what: Hashable, read: Callable[[], Awaitable[object]]) -> None:
        """Send a read that fails where the table is not made for what is to be written.

        Args:
            what: names the check and its table.
            read: sends the read.

        Raises:
            ChatHistoryError: what the read raises, but for a throttle and other answers that say nothing of the table:
                they leave the check to the next append.
        """
        if what in self._passed:
            return
        try:
            await read()
        except AccessDeniedError:
            # A writer need not be allowed to read.
            pass
        except (ThrottledError, ServiceError):
            return
        self._passed.add(what)
