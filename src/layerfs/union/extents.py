"""Which parts of a file have been written, as its filesystem has it (FIEMAP, filesystems/fiemap.rst).

lseek(2) with SEEK_DATA will not do: where room was allocated and not written to, it tells what is in the page
cache, and zeros get there by reading.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

from layerfs.union import syscalls
from layerfs.union.durability import described
from layerfs.union.spans import Span

KEEP_SIZE = 1
"""fallocate(2): allocate, and leave the length as it is."""

_FIEMAP = 0xC020660B
_HEADER = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQ16xI12x")
_SYNC = 1
_LAST, _UNKNOWN, _UNWRITTEN = 1, 2, 0x800
_AT_ONCE = 256
_ZERO_NEIGHBOURS = {"dioread_lock", "nodioread_nolock", "data=journal"}
"""Options of ext4 with which a write may fill allocated blocks beside it with zeros."""
_PROBE = 1 << 20


def written_extents(fd: int, end: int) -> Iterator[Span]:
    """Yield what has been written of the first *end* bytes of a file, once it is on the disk.

    Raises `OSError`, also where that cannot be written.
    """
    for start, length, flags in _extents(fd, end, _SYNC):
        if not flags & (_UNWRITTEN | _UNKNOWN):
            yield start, start + length


def reports_extents(directory: int) -> bool:
    """Tell whether the filesystem that *directory* lies on says which blocks of a file have been written.

    ext4 and XFS do, and no block counts as written there that was but allocated: on ext4 where blocks are
    written to before they count (dioread_nolock, the default). Tried with a file that has no name.
    """
    type_, options = described(os.fstat(directory).st_dev)
    if type_ not in ("ext4", "xfs") or options & _ZERO_NEIGHBOURS:
        return False
    try:
        if os.fstatvfs(directory).f_bsize > mmap.PAGESIZE:
            return False  # a block could be written in part
        fd = os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError:
        return False
    try:
        os.ftruncate(fd, 2 * _PROBE)
        syscalls.fallocate(fd, KEEP_SIZE, 0, _PROBE)
        found = list(_extents(fd, 2 * _PROBE, 0))
        return sum(length for _, length, _ in found) == _PROBE and all(
            flags & _UNWRITTEN for _, _, flags in found
        )
    except OSError:
        return False
    finally:
        os.close(fd)


def _extents(fd: int, end: int, flags: int) -> Iterator[tuple[int, int, int]]:
    """Yield offset, length and flags of each extent of a file before *end*."""
    start = 0
    while start < end:
        request = bytearray(_HEADER.size + _AT_ONCE * _EXTENT.size)
        _HEADER.pack_into(request, 0, start, end - start, flags, 0, _AT_ONCE, 0)
        fcntl.ioctl(fd, _FIEMAP, request)
        count = _HEADER.unpack_from(request)[3]
        if not count:
            return
        for number in range(count):
            start, _, length, told = _EXTENT.unpack_from(request, _HEADER.size + number * _EXTENT.size)
            yield start, length, told
            start += length
            if told & _LAST:
                return
