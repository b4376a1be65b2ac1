"""The headers of the tar archives that layerfs writes: ustar, and pax where ustar cannot say it.

The same member always gives the same bytes: no user names, no access times, records sorted by key.
"""

from __future__ import annotations

from layerfs.archive.pax import format_records, xattr_key
from layerfs.archive.tar import BLOCK, Member

_TYPES = {
    "file": b"0",
    "link": b"1",
    "symlink": b"2",
    "character": b"3",
    "block": b"4",
    "directory": b"5",
    "fifo": b"6",
}
_MOST_ID = 0o7777777
_MOST_SIZE = 0o77777777777
END = bytes(2 * BLOCK)


def header(member: Member) -> bytes:
    """Return the header of *member*, after which its content comes, if it is a file, and `padding`."""
    name = member.name + b"/" if member.kind == "directory" else member.name
    records = [(xattr_key(key), value) for key, value in member.xattrs.items()]
    seconds, fraction = divmod(member.mtime_ns, 10**9)
    if fraction or not 0 <= seconds <= _MOST_SIZE:
        records.append((b"mtime", _seconds(member.mtime_ns)))
        seconds = min(max(seconds, 0), _MOST_SIZE)
    if len(name) > 100:
        records.append((b"path", name))
    if len(member.target) > 100:
        records.append((b"linkpath", member.target))
    ids = []
    for key, value in ((b"uid", member.uid), (b"gid", member.gid)):
        if value > _MOST_ID:
            records.append((key, b"%d" % value))
        ids.append(min(value, _MOST_ID))
    size = member.size if member.kind == "file" else 0
    if size > _MOST_SIZE:
        records.append((b"size", b"%d" % size))
    block = _block(
        name[:100],
        _TYPES[member.kind],
        member.mode,
        (ids[0], ids[1]),
        min(size, _MOST_SIZE),
        seconds,
        member.target[:100],
        (member.major, member.minor),
    )
    if not records:
        return block
    extra = format_records(sorted(records))
    about = _block(
        b"PaxHeaders.0/" + name[-80:].lstrip(b"/"), b"x", 0o644, (0, 0), len(extra), 0, b"", (0, 0)
    )
    return b"".join((about, extra, padding(len(extra)), block))


def padding(size: int) -> bytes:
    """Return what fills content of *size* bytes up to whole blocks."""
    return bytes(-size % BLOCK)


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    owner: tuple[int, int],
    size: int,
    seconds: int,
    target: bytes,
    device: tuple[int, int],
) -> bytes:
    fields = b"%-100b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%-100bustar\00000%64b%07o\0%07o\0%167b" % (
        name.ljust(100, b"\0"),
        mode,
        *owner,
        size,
        seconds,
        kind,
        target.ljust(100, b"\0"),
        bytes(64),
        *device,
        bytes(167),
    )
    return b"%b%06o\0 %b" % (fields[:148], sum(fields), fields[156:])


def _seconds(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    whole, fraction = divmod(abs(nanoseconds), 10**9)
    return b"%b%d.%09d" % (sign, whole, fraction) if fraction else b"%b%d" % (sign, whole)
