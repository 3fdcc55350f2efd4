"""Header blocks (HPACK, RFC 7541), with the dynamic table as ``hpack`` keeps it.

``hpack`` spends 2 to 4 us on a field, and a call has twenty in all. Here fields that recur are indexed once,
and what they then encode to is kept until the table changes; fields that vary are literals that never enter
the table. Reading knows both forms, which is all that this library sends, and leaves the rest to ``hpack``.
"""

from __future__ import annotations

import re
from typing import cast

import hpack
from hpack.table import HeaderTable

from dynamo.adapters.request_plane.http2.frames import Code, Violation
from dynamo.adapters.request_plane.http2.settings import MAX_LIST_BYTES

FIELD_COST = 32  # of the size of a list, beyond name and value
Fields = list[tuple[str, str]]

_TABLE_BYTES = 4096
_MOST_RUNS = 256
_INDEXED_RUN = re.compile(rb"[\x81-\xfe]+")  # one byte a field
_NAME = re.compile(r":?[!-9;-@\[-~]+\Z")  # no upper case; RFC 9113, section 8.2.1
_BAD_VALUE = re.compile(r"[\0\r\n]|\A[ \t]|[ \t]\Z")
_OF_CONNECTIONS = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
_PSEUDO = {":method", ":scheme", ":authority", ":path", ":status", ":protocol"}


class Malformed(Exception):
    """A message that is no HTTP (RFC 9113, section 8.1.1): its stream ends, and nothing else."""


class Recurring:
    """Fields that one connection sends again and again; ``block`` is of ``version`` of the dynamic table."""

    __slots__ = ("block", "fields", "size", "version")

    def __init__(self, fields: Fields) -> None:
        self.fields = [
            hpack.NeverIndexedHeaderTuple(name, value) if name == "authorization" else (name, value)
            for name, value in fields
        ]
        self.size = list_size(fields)
        self.block = b""
        self.version = -1


def list_size(fields: Fields) -> int:
    """As RFC 9113, section 6.5.2 counts it."""
    return sum(len(name) + len(value.encode()) + FIELD_COST for name, value in fields)


class FieldEncoder:
    """Blocks must be sent in the order in which they were encoded."""

    def __init__(self) -> None:
        self._encoder = hpack.Encoder()
        self._version = 0

    def limit_table(self, size: int) -> None:
        """As the peer's SETTINGS say."""
        size, encoder = min(size, _TABLE_BYTES), self._encoder
        if size != encoder.header_table_size:
            encoder.header_table_size = size
            self._version += 1
            # The least and the last (RFC 7541, section 4.2): what was between may not be allowed any more.
            least = min(encoder.table_size_changes)
            encoder.table_size_changes = [size] if least == size else [least, size]

    def encode(self, recurring: Recurring) -> bytes:
        if recurring.version == self._version:
            return recurring.block
        table = self._encoder.header_table
        before, resized = _newest(table), table.resized
        block = self._encoder.encode(recurring.fields)
        if _newest(table) is before and not resized:
            recurring.block, recurring.version = block, self._version
        else:
            self._version += 1  # what is indexed moved
        return block

    def encode_once(self, fields: Fields) -> bytes:
        """What will not come again, and should not take the place of what does."""
        change = self._encoder.encode([]) if self._encoder.header_table.resized else b""
        return change + b"".join([literal(name, value) for name, value in fields])


def _newest(table: HeaderTable) -> object:
    return table.dynamic_entries[0] if table.dynamic_entries else None


_PREFIXES: dict[str, bytes] = {}


def literal(name: str, value: str) -> bytes:
    """A field that varies: not indexed. ``name`` is one of a few."""
    prefix = _PREFIXES.get(name)
    if prefix is None:
        prefix = b"\0" + _string(name.encode())
        if len(_PREFIXES) < _MOST_RUNS:  # metadata has names of its own
            _PREFIXES[name] = prefix
    return prefix + _string(value.encode())


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    length = bytearray(b"\x7f")
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return bytes(length) + text


class FieldDecoder:
    """Blocks must be read in the order in which they came, those of messages that nobody wants too."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(MAX_LIST_BYTES)
        self._runs: dict[bytes, tuple[dict[str, str], int]] = {}
        self._names: dict[bytes, str] = {}

    def decode(self, block: bytes) -> dict[str, str]:
        """The fields by name. Raises Violation, and Malformed once all of the block was read."""
        start = _INDEXED_RUN.match(block)
        found: dict[str, str]
        if start is None:
            found, size, at = {}, 0, 0
        else:
            at = start.end()
            run = self._runs.get(start.group()) or self._read_run(start.group())
            if run is None:  # malformed
                return self._read_rest({}, block, 0, 0)
            found, size = dict(run[0]), run[1]
        end, names = len(block), self._names
        while at < end and not block[at]:
            name_at = at + 2
            value_at = name_at + block[at + 1] + 1 if name_at < end else end + 1
            if value_at > end or block[at + 1] > 126 or block[value_at - 1] > 126:
                break
            after = value_at + block[value_at - 1]
            if after > end:
                break
            name = names.get(block[name_at : value_at - 1])
            if name is None or name in found:
                break
            try:
                value = block[value_at:after].decode()
            except UnicodeDecodeError:
                break
            if not value.isprintable() or value[:1] == " " or value[-1:] == " ":
                break
            found[name] = value
            size += after - at + FIELD_COST
            at = after
        if at < end:
            return self._read_rest(found, block, at, size)
        if size > MAX_LIST_BYTES:
            raise _too_long()
        return found

    def _read_run(self, run: bytes) -> tuple[dict[str, str], int] | None:
        try:
            found = self._read_rest({}, run, 0, 0)
        except Malformed:
            return None
        if len(self._runs) >= _MOST_RUNS:
            self._runs.clear()
        kept = self._runs[run] = found, list_size(list(found.items()))
        return kept

    def _read_rest(self, found: dict[str, str], block: bytes, at: int, size: int) -> dict[str, str]:
        decoder, table = self._decoder, self._decoder.header_table
        before = _newest(table)
        decoder.max_header_list_size = MAX_LIST_BYTES - size
        if at and block[at] & 0xE0 == 0x20:
            raise Violation(Code.COMPRESSION_ERROR, "a table size update within a header block")
        try:
            raw = cast("list[tuple[bytes, bytes]]", decoder.decode(block[at:], raw=True))
        except hpack.OversizedHeaderListError:
            raise _too_long() from None
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise Violation(Code.COMPRESSION_ERROR, str(error) or type(error).__name__) from error
        finally:
            if _newest(table) is not before or table.resized:
                self._runs.clear()
                table.resized = False
        regular = not all(name.startswith(":") for name in found)
        for raw_name, raw_value in raw:
            name, value = self._checked(raw_name, raw_value)
            if name.startswith(":"):
                if regular or name in found:
                    raise Malformed(f"the field {name} comes twice, or after others")
                found[name] = value
            else:
                regular = True
                found[name] = f"{found[name]}, {value}" if name in found else value
        return found

    def _checked(self, raw_name: bytes, raw_value: bytes) -> tuple[str, str]:
        name, value = raw_name.decode(errors="replace"), raw_value.decode(errors="replace")
        if raw_name not in self._names:
            if not _NAME.match(name) or (name.startswith(":") and name not in _PSEUDO):
                raise Malformed(f"a field of the name {name!r:.80}")
            if name in _OF_CONNECTIONS:
                raise Malformed(f"{name} is not for HTTP/2")
            if len(self._names) < _MOST_RUNS and not name.startswith(":") and name != "te":
                self._names[raw_name] = name
        if _BAD_VALUE.search(value) or (name == "te" and value != "trailers"):
            raise Malformed(f"{name} with the value {value!r:.80}")
        return name, value


def _too_long() -> Violation:
    return Violation(Code.ENHANCE_YOUR_CALM, f"header fields of more than {MAX_LIST_BYTES} bytes")
