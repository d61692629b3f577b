"""The bodies of records: encode, compress and encrypt values to store them, and the reverse to read them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from .._codec.attribute_values import Undecodable
from .._codec.compression import MAX_BYTES, MIN_BYTES, compressed, decompressed
from .._codec.format import LANGCHAIN_NAME, Format, is_name
from .._cooperative import SLICE_SECONDS, Slices
from .._encryption.binding import Binding, Bound
from .._session import Access, leaves_no_plaintext, reads_stored
from ..errors import FormatError, ItemTooLargeError, UndecodableItemError
from .layout import MAX_TRANSACTION_BYTES
from .records import ENCRYPTED, Body, PlainRecord, Record, Wanted, as_bytes, text_of
from .sort_keys import MAX_VALUES, SortKey, message_id_of

_ZLIB = "zlib"
_KNOWN_ENCODINGS = {"", _ZLIB, ENCRYPTED, f"{_ZLIB},{ENCRYPTED}"}
# How many characters of a stored attribute an error quotes: a damaged attribute may have any length.
_LONGEST_QUOTE = 40
# orjson writes no line break inside a JSON text, so a record can be split and changed without being parsed.
_BETWEEN = b",\n"
# Parsing 128 KB at once blocks the event loop for half a millisecond.
_PARSED_AT_ONCE = 128 * 1024
_DIVIDED_AT_ONCE = 1024 * 1024

Value = TypeVar("Value")


class Bodies(Generic[Value]):
    """Encodes and decodes the bodies of one session's records.

    Args:
        access: the session's access to its table.
        format_: the format of the values.
    """

    __slots__ = ("access", "format", "format_name")

    def __init__(self, access: Access, format_: Format) -> None:
        self.access = access
        self.format = format_
        self.format_name = "" if format_.name == LANGCHAIN_NAME else format_.name

    async def encode(self, values: Sequence[Value]) -> list[bytes]:
        """Return the JSON texts of values. Each text has been proved to read back.

        Raises:
            MessageNotStorableError: a value cannot be stored.
        """
        return await self.access.encode(self.format, values)

    def types_of(self, values: Iterable[Value]) -> list[str]:
        """Return the types of values. Values without a type are left out."""
        return [kind for value in values if (kind := self.format.type_of(value)) is not None]

    async def pack(self, key: SortKey, texts: Sequence[bytes], positions: Sequence[int], types: Sequence[str]) -> Body:
        """Return the body of a record.

        Args:
            key: the record's sort key.
            texts: the values' JSON texts.
            positions: the values' positions in the record.
            types: the values' types. They are not stored if the body is encrypted.

        Raises:
            ItemTooLargeError: the texts have more than MAX_BYTES or are more than MAX_VALUES, so that the record could
                not be read again.
            ChatHistoryError: KMS returned no data key.
        """
        size = sum(map(len, texts)) + len(_BETWEEN) * len(texts)
        if size > MAX_BYTES or len(texts) > MAX_VALUES:
            raise self.too_large(len(texts), size)
        data, encoding = await _packed(texts[0] if len(texts) == 1 else b"[%b]" % _BETWEEN.join(texts))
        if self.access.cipher is None:
            return Body(data if encoding else _in_the_clear(data), encoding, positions, self.format_name, types)
        binding = Binding("record", key, encoding, self.format_name, len(positions), text_of(positions))
        [encrypted] = await self.access.cipher.encrypt([(binding, data)])
        encoding = ",".join(filter(None, (encoding, ENCRYPTED)))
        return Body(encrypted, encoding, positions, self.format_name, ())

    def record_of(self, plain: PlainRecord) -> Record:
        """Return a plain record as a record."""
        key, text, count = plain
        return Record(SortKey.of(key), text, parts=1, length=count, format=self.format_name)

    def too_large(self, number: int, size: int) -> ItemTooLargeError:
        """Return the error for a record that does not fit into one transaction."""
        return ItemTooLargeError(
            f"A record of {number:,} values has {size:,} bytes and does not fit into one transaction, for which"
            f" DynamoDB's limit is {MAX_TRANSACTION_BYTES:,} bytes after compression; nothing was written. Append"
            " smaller batches, or store large content elsewhere",
            self.access.ref,
        )

    @leaves_no_plaintext
    @reads_stored
    async def texts(self, record: Record) -> list[bytes]:
        """Return the JSON texts of a record's values."""
        [content] = (await self._contents([record])).values()
        text = await self._text_in(record, content)
        return [text] if record.length == 1 else await self._divided(record, text)

    @leaves_no_plaintext
    @reads_stored
    async def decode_plain(self, records: Sequence[PlainRecord]) -> list[Value]:
        """Return the values of plain records, in order."""
        values: list[Value] = []
        decode, clock = self.format.decode, time.perf_counter
        slices, over = Slices(), clock() + SLICE_SECONDS
        try:
            for key, text, count in records:
                if count == 1:
                    values.append(decode(text, message_id_of(key, 0)))
                elif (several := self._array(text, count)) is not None:
                    values += several
                else:
                    record = Record(SortKey.of(key), length=count)
                    values += await self._one_by_one(Wanted(record), text.encode())
                if clock() > over:
                    await slices.checkpoint()
                    over = clock() + SLICE_SECONDS
        except UndecodableItemError as error:
            raise self.access.located(error) from None
        return values

    @leaves_no_plaintext
    @reads_stored
    async def decode(self, wanted: Sequence[Wanted]) -> list[list[Value]]:
        """Return the wanted values, one list per record."""
        results, slices = list[list[Value]](), Slices()
        contents = await self._contents([one.record for one in wanted])
        # Each record is decompressed and decoded before the next one. The bodies of a page may grow a hundredfold when
        # they are decompressed, so they must not all be in memory at once beside the values.
        for one in wanted:
            text = await self._text_in(one.record, contents.pop(one.record.id))
            results.append(await self._values(one, text))
            await slices.checkpoint()
        return results

    async def _contents(self, records: Sequence[Record]) -> dict[str, bytes]:
        """Return the bodies of records by record id. Encrypted bodies are decrypted."""
        slices = Slices()
        for record in records:
            self._check(record)
            await slices.checkpoint()
        contents = {record.id: as_bytes(record.content or b"") for record in records}
        encrypted = {record.id: self._bound(record) for record in records if record.is_encrypted}
        return contents | await self.access.decrypt(encrypted)

    def _check(self, record: Record) -> None:
        if record.encoding not in _KNOWN_ENCODINGS:
            raise self.undecodable(record, f"its encoding is {record.encoding[:_LONGEST_QUOTE]!r}")
        if record.format and not is_name(record.format):
            raise self.undecodable(record, f"its format is {record.format[:_LONGEST_QUOTE]!r}")
        if record.format != self.format_name:
            stored, ours = (name or LANGCHAIN_NAME for name in (record.format, self.format_name))
            call = "session(...)" if stored == LANGCHAIN_NAME else f"json_session(..., format={stored!r})"
            text = f"stored {record.name} has the format {stored!r}, and was read as {ours!r}: ChatHistoryStore"
            raise FormatError(f"{text}.{call} reads it", self.access.ref, record.id)
        if record.all_positions() is None:
            raise self.undecodable(record, "the number or the positions of its messages are damaged")

    def _bound(self, record: Record) -> Bound:
        """Return a record's encrypted body with the binding that its sort key and attributes require."""
        encoding = record.encoding.removesuffix(ENCRYPTED).rstrip(",")
        binding = Binding("record", record.key, encoding, record.format, record.length, record.positions)
        return binding, as_bytes(record.content or b"")

    async def _text_in(self, record: Record, content: bytes) -> bytes:
        if not record.encoding.startswith(_ZLIB):
            return content
        try:
            return await decompressed(content)
        except ValueError as error:
            raise self.undecodable(record, f"it cannot be decompressed: {error}") from None

    async def _values(self, wanted: Wanted, text: bytes) -> list[Value]:
        record = wanted.record
        if record.length == 1:
            return await self._decoded(wanted, [text])
        if wanted.indexes is None and len(text) <= _PARSED_AT_ONCE:
            values = self._array(text, record.length)
            if values is not None:
                return values
        return await self._one_by_one(wanted, text)

    def _array(self, text: str | bytes, count: int) -> list[Value] | None:
        """Parse a record at once. Return its values, or None if one cannot be decoded or their number is wrong."""
        try:
            values = self.format.decode_array(text)
        except Undecodable:
            return None
        return values if len(values) == count else None

    async def _one_by_one(self, wanted: Wanted, text: bytes) -> list[Value]:
        return await self._decoded(wanted, await self._divided(wanted.record, text))

    async def _decoded(self, wanted: Wanted, texts: Sequence[bytes]) -> list[Value]:
        record = wanted.record
        indexes = range(len(texts)) if wanted.indexes is None else wanted.indexes
        positions = record.all_positions() or ()

        def decode(index: int, _: int) -> Value:
            value: Value = self.format.decode(texts[index], message_id_of(record.key, positions[index]))
            return value

        return await self.access.in_slices(decode, indexes)

    async def _divided(self, record: Record, text: bytes) -> list[bytes]:
        """Split a record's JSON array into the texts of its values."""
        texts, slices = list[bytes](), Slices()
        start, end = 1, len(text) - 1
        while start <= end:
            stop = end
            if end - start > _DIVIDED_AT_ONCE:
                stop = text.rfind(_BETWEEN, start, start + _DIVIDED_AT_ONCE)
                if stop == -1:
                    # The line is longer than _DIVIDED_AT_ONCE.
                    stop = text.find(_BETWEEN, start, end)
                stop = end if stop == -1 else stop
            texts += text[start:stop].split(_BETWEEN)
            start = stop + len(_BETWEEN)
            await slices.checkpoint()
        if len(texts) != record.length or text[:1] != b"[" or text[-1:] != b"]":
            raise self.undecodable(record, f"it is not an array with a line for each of {record.length:,} messages")
        return texts

    def undecodable(self, record: Record, reason: str) -> UndecodableItemError:
        """Return the error for a record that cannot be read. ``adelete_messages`` accepts its ``message_id``."""
        return self.access.undecodable(record.name, record.id, reason)


def _in_the_clear(data: bytes) -> str | bytes:
    """Return an unencrypted body as text, or as bytes if it is not UTF-8: a damaged value may stay in the record."""
    with suppress(UnicodeDecodeError):
        return data.decode()
    return data


async def _packed(text: bytes) -> tuple[bytes, str]:
    """Return a body and its encoding. A body of MIN_BYTES and more is compressed if that makes it smaller."""
    if len(text) < MIN_BYTES:
        return text, ""
    smaller_text = await compressed(text)
    return (smaller_text, _ZLIB) if len(smaller_text) < len(text) else (text, "")
