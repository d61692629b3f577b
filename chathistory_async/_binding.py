"""What a sealed value is bound to, pure: the first line of what is encrypted.

The encryption context is one for all values of a session, because each context needs a data key of its own from KMS.
It binds a value to its session, and not to its place in the session. The plaintext does: it is one line of JSON, a
newline, and the body::

    {"value":"message","sort_key":"m#…","encoding":"zlib"}

- value: "message", "title", "metadata", or "migration" for the digests of a migration.
- sort_key: the sort key of the value's item, of the first one where a message has several. A single item has none.
- encoding: "zlib" where the body is zlib data. Without it the body is text in UTF-8, or the digests.

The line has no spaces, the names come in this order, and what does not apply is left out. So a reader compares bytes:
it knows which line belongs into the place that it reads from, and accepts no other.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

import orjson


class Binding(NamedTuple):
    """What a value is, where it is stored, and how its body is encoded."""

    kind: Literal["message", "title", "metadata", "migration"]
    sort_key: str | None = None
    encoding: str = ""

    def name(self, message: int | str) -> str:
        """Return what an error calls the value, a message by its id or its position in the session."""
        return f"message {message}" if self.kind == "message" else self.kind


# A body, opened or sealed, with its binding.
Bound: TypeAlias = "tuple[Binding, bytes]"


class BoundElsewhere(Exception):
    """A value was sealed to be something else, or for another place. The text holds no content."""


def bind(binding: Binding, body: bytes) -> bytes:
    """Return the plaintext of a value."""
    return _line(binding) + body


def body_of(binding: Binding, plaintext: bytes) -> bytes:
    """Return the body of a value that is read where this binding belongs.

    Raises:
        BoundElsewhere: the value has another binding, or none.
    """
    line = _line(binding)
    if plaintext.startswith(line):
        return plaintext[len(line) :]
    found = _FORM.match(plaintext)
    sealed_as = "without a binding" if found is None else f"as {found[1].decode()}"
    raise BoundElsewhere(f"was sealed {sealed_as}, and is stored where {line.decode().rstrip()} belongs")


def _line(binding: Binding) -> bytes:
    fields: dict[str, str] = {"value": binding.kind}
    if binding.sort_key is not None:
        fields["sort_key"] = binding.sort_key
    if binding.encoding:
        fields["encoding"] = binding.encoding
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


# Only a line that we may have written is shown in an error: any other text may be content.
_FORM = re.compile(
    rb'(\{"value":"(?:message|title|metadata|migration)"'
    rb'(?:,"sort_key":"(?:m#[0-9a-f-]{43}|session|migration)")?'
    rb'(?:,"encoding":"zlib")?\})\n'
)
