"""Tar archives as a sequence of members: ustar, GNU and pax, with all forms of sparse files.

POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format"; tar(5); GNU tar's manual, "Basic
Tar Format" and "Storing Sparse Files". Extended attributes are pax records `SCHILY.xattr.NAME`.
`tarfile` is not used: it takes damage for the end, and costs more time than writing the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from layerfs.archive.pax import Records, parse_records
from layerfs.archive.sparse import Extents, gnu_extents, numbers_in_data, pax_extents, pax_size
from layerfs.archive.streams import Damaged, Feed

BLOCK = 512
HEADER_LIMIT = 1 << 20
"""Bytes of a long name or of pax records; as many as Go's reader, and so Docker, takes."""

Kind = Literal["file", "directory", "symlink", "link", "character", "block", "fifo"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "link",
    b"2": "symlink",
    b"3": "character",
    b"4": "block",
    b"5": "directory",
    b"D": "directory",
    b"6": "fifo",
}
_WITHOUT_CONTENT = b"123456"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_END_OF_TIME = 1 << 62
"""Seconds from the epoch that no system call takes."""
_TIME = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?")


@dataclass(slots=True)
class Member:
    """One thing to be written, as the archive describes it."""

    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    target: bytes = b""
    """Of a symlink or hard link."""
    major: int = 0
    minor: int = 0
    size: int = 0
    """Of a file, holes included."""
    extents: Extents | None = None
    """Offset and length of what a sparse file holds, in ascending order; None for other files."""


class Reader:
    """Iterates over the members of an archive; between two of them, `some` reads the first one's content.

    Everything but the content that was read goes to *keep*, in order. Unless *needs_end*, an archive may
    stop after a whole member, without its end marker. Raises `Damaged`.
    """

    def __init__(
        self, feed: Feed, *, keep: Callable[[bytes], object] | None = None, needs_end: bool = True
    ) -> None:
        self._feed = feed
        self._keep = keep
        self._needs_end = needs_end
        self._left = 0
        self._padding = 0
        self._globals = Records()

    def __iter__(self) -> Iterator[Member]:
        """Yield the members; at the end the whole stream has been read."""
        while (member := self._next()) is not None:
            yield member
        while rest := self._feed.some(1 << 20):  # down to the checksum of what compressed it
            self._kept(rest)

    def some(self, size: int) -> memoryview:
        """Return between one and *size* bytes of the member's content; none only at its end."""
        data = self._feed.some(min(size, self._left)) if self._left else memoryview(b"")
        if self._left and not data:
            raise Damaged("it ends too early")
        self._left -= len(data)
        return data

    def _next(self) -> Member | None:
        if self._keep is None:
            self._feed.skip(self._left + self._padding)
            self._left = self._padding = 0
        while self._left:
            self._kept(self.some(1 << 20))
        self._exactly(self._padding)
        records = self._globals
        name = target = b""
        first = True
        while True:
            block = self._block(first)
            if block is None:
                return None
            first = False
            kind = block[156:157]
            size = _number(block[124:136])
            if kind in b"xXgLK":
                data = self._extra(size)
                if kind in b"xX":
                    records = parse_records(data, self._globals)
                elif kind == b"g":
                    self._globals = records = parse_records(data, self._globals)
                elif kind == b"L":
                    name = data.rstrip(b"\0")
                else:
                    target = data.rstrip(b"\0")
            elif kind == b"V":  # the name of a volume
                self._extra(size)
            else:
                return self._member(block, size, records, name, target)

    def _member(self, block: bytes, size: int, records: Records, name: bytes, target: bytes) -> Member:
        kind = _KINDS.get(block[156:157])
        name = records.get(b"path") or name or _name(block)
        if kind is None:
            raise Damaged(f"{name!r} is of a type that is not known: {block[156:157]!r}")
        if kind == "file" and block[156:157] == b"\0" and name.endswith(b"/"):
            kind = "directory"  # as it was said before there was a type for it
        member = Member(
            name,
            kind,
            _number(block[100:108]) & 0o7777,
            _owner(records.get(b"uid"), block[108:116]),
            _owner(records.get(b"gid"), block[116:124]),
            _mtime(records.get(b"mtime"), block[136:148]),
            records.xattrs,
        )
        if b"size" in records:
            size = pax_size(records[b"size"])
        if kind in ("link", "symlink"):
            member.target = records.get(b"linkpath") or target or block[157:257].partition(b"\0")[0]
        elif kind in ("character", "block"):
            member.major, member.minor = _number(block[329:337]), _number(block[337:345])
        self._left = 0 if block[156] in _WITHOUT_CONTENT else size
        self._padding = -self._left % BLOCK
        if kind == "file":
            member.size = size
            self._find_holes(member, block, records)
        if b"\0" in member.name or b"\0" in member.target:
            raise Damaged(f"the name {member.name!r} has a zero byte in it")
        return member

    def _find_holes(self, member: Member, block: bytes, records: Records) -> None:
        stored = self._left
        if block[156:157] == b"S":
            member.size = _number(block[483:495])
            member.extents = gnu_extents(block, lambda: self._exactly(BLOCK), _number)
        elif records.get(b"GNU.sparse.major", b"0") != b"0":
            member.extents = numbers_in_data(lambda: bytes(self._data(BLOCK)))
            member.size = pax_size(records.get(b"GNU.sparse.realsize", b""))
            stored = self._left
        elif b"GNU.sparse.size" in records:
            member.extents = pax_extents(records)
            member.size = pax_size(records[b"GNU.sparse.size"])
        else:
            return
        member.name = records.get(b"GNU.sparse.name") or member.name
        end = 0
        for offset, length in member.extents:
            if offset < end:
                raise Damaged(f"{member.name!r} is sparse, and its parts overlap")
            end = offset + length
            stored -= length
        if end > member.size or stored != 0:
            raise Damaged(f"{member.name!r} is sparse, and its parts do not fit its size")

    def _data(self, size: int) -> bytes:
        """Return *size* bytes of the content, which are none: they go to *keep*."""
        if self._left < size:
            raise Damaged("a sparse file has no map")
        self._left -= size
        return self._exactly(size)

    def _extra(self, size: int) -> bytes:
        if size > HEADER_LIMIT:
            raise Damaged("a header is larger than 1 MiB")
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        return data

    def _block(self, first: bool) -> bytes | None:
        """Return the next header, None at the end."""
        block = self._feed.exactly(BLOCK)
        self._kept(block)
        if len(block) < BLOCK:
            if not block and first and not self._needs_end:
                return None
            raise Damaged("it ends too early")
        if block == _END:
            if first:
                return None
            raise Damaged("it ends after a header that belongs to the next member")
        expected = _number(block[148:156])
        if sum(block) - sum(block[148:156]) + 256 != expected and _signed_sum(block) != expected:
            raise Damaged("a header has a bad checksum")
        return block

    def _exactly(self, size: int) -> bytes:
        if not size:
            return b""
        data = self._feed.exactly(size)
        if len(data) < size:
            raise Damaged("it ends too early")
        self._kept(data)
        return data

    def _kept(self, data: bytes | memoryview) -> None:
        if self._keep is not None and data:
            self._keep(bytes(data))


_END = bytes(BLOCK)


def _signed_sum(block: bytes) -> int:
    """Return the checksum as some old systems computed it, from signed bytes."""
    rest = block[:148] + b"        " + block[156:]
    return sum(rest) - 256 * sum(byte > 127 for byte in rest)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        end = 476 if block[508:512] == b"tar\0" else 500  # star keeps times behind a shorter prefix
        prefix = block[345:end].partition(b"\0")[0]
        if prefix:
            return prefix + b"/" + name
    return name


def _number(text: bytes) -> int:
    """Return a header's number: octal digits, or, after a byte of 0x80, binary ones. Raises `Damaged`."""
    digits = text.rstrip(b" \0").lstrip(b" ")
    if digits.isdigit() and not (b"8" in digits or b"9" in digits):
        return int(digits, 8)  # as nearly all are; the rest takes three times as long
    if text[0] & 0x80:
        value = int.from_bytes(text, "big", signed=False) - (0x80 << 8 * (len(text) - 1))
        if text[0] == 0x80 and value < 1 << 63:
            return value
    elif found := _OCTAL.match(text):
        rest = text[found.end() :]
        if not rest or b"\0" in text[: found.end()]:
            return int(found[1] or b"0", 8)
    raise Damaged(f"{text!r} is no number")


def _owner(record: bytes | None, text: bytes) -> int:
    value = pax_size(record) if record is not None else _number(text)
    if value >= (1 << 32) - 1:
        raise Damaged(f"{value} is no owner")
    return value


def _mtime(record: bytes | None, text: bytes) -> int:
    """Return a time in nanoseconds since the epoch."""
    fraction = 0
    if record is not None:
        found = _TIME.fullmatch(record)
        if found is None:
            raise Damaged(f"{record[:30]!r} is no time")
        fraction = int((found[3] or b"").ljust(9, b"0")[:9])
        seconds = -int(found[2]) if found[1] else int(found[2])
        fraction = -fraction if found[1] else fraction
    elif text[0] == 0xFF:  # before the epoch
        seconds = int.from_bytes(text, "big", signed=True)
    else:
        seconds = _number(text)
    if abs(seconds) >= _END_OF_TIME:
        raise Damaged(f"{seconds} is no time")
    return seconds * 10**9 + fraction
