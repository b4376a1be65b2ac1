"""A partial file: one in the upper whose contents lie partly in it, and partly in the lower file below it.

What was written lies in the upper file, in whole blocks. Where that has a hole, the bytes are those of the
lower file, up to the *limit*; beyond it they are zeros. In memory the blocks that are there are kept as
spans. On disk the file's own extents say the same (`extents`), together with two attributes:
`metacopy`, so that other readers of the form look below or refuse the file, and `layerfs.partial`, which
has the limit. A block never becomes a hole again: whoever would punch one has the file made whole first.

So a power cut can take nothing but what was not synced: a block whose extent was lost is the lower file's
again. The attributes are there before the file has its name, and go only when everything is on the disk.
"""

from __future__ import annotations

import errno
import mmap
import os

from layerfs.union import merge, syscalls
from layerfs.union.extents import KEEP_SIZE, written_extents
from layerfs.union.layer import LayerDir
from layerfs.union.marking import METACOPY, PARTIAL, REDIRECT, FileMarks
from layerfs.union.ranges import copy_range, shorter
from layerfs.union.reading import read_at
from layerfs.union.spans import Span, Spans

_PAGE = mmap.PAGESIZE
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Partial:
    """The contents of one partial file, which are whole once `is_complete` says so.

    `fd` is open on the upper file to read and write, `source` on the lower one to read; both are closed by
    `close`. `limit` is where what comes from below ends. `kept_time` is the modification time that the file
    has for people, in nanoseconds, while bytes from below are put into it; else None. Reads may be made by
    any thread at any time; of writes, fills and cuts one at a time.
    """

    __slots__ = ("__weakref__", "_unit", "fd", "kept_time", "limit", "source", "spans")

    def __init__(self, fd: int, source: int, limit: int, spans: Spans | None = None) -> None:
        self.fd = fd
        self.source = source
        self.limit = limit
        self.spans = spans if spans is not None else Spans()
        self.kept_time: int | None = None
        self._unit = max(_PAGE, os.fstatvfs(fd).f_bsize)  # of the filesystem's holes

    @classmethod
    def load(cls, fd: int, source: int, limit: int) -> Partial:
        """Take up what the attributes and the extents of the upper file *fd* say. Raises `OSError`."""
        made = cls(fd, source, min(limit, os.fstat(fd).st_size))
        for start, end in written_extents(fd, made.limit):
            made.spans.add(made._down(start), made._up(end))
        return made

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.fd)
        os.close(self.source)

    # -- reading --------------------------------------------------------------------------------------

    def only_descriptor(self, offset: int, size: int) -> int | None:
        """Return the descriptor that has all of a range, None where each has some of it."""
        end = offset + size
        missing = self.spans.missing(offset, min(end, self.limit))
        if not missing:
            return self.fd
        return self.source if missing == [(offset, end)] else None

    def read(self, offset: int, size: int, *, fd: int | None = None, source: int | None = None) -> bytes:
        """Return *size* bytes at *offset*, fewer only at the end of the file. Raises `OSError`, never zeros.

        By descriptors *fd* and *source* of the caller's own, if he says so.
        """
        fd = self.fd if fd is None else fd
        source = self.source if source is None else source
        end = min(offset + size, os.fstat(fd).st_size)
        if offset >= end:
            return b""
        missing = self.spans.missing(offset, min(end, self.limit))  # before what is there is read
        data = bytearray(read_at(fd, end - offset, offset))
        for start, stop in missing:
            below = self._below(source, start, stop)
            wanted = min(len(data), stop - offset) - (start - offset)
            if wanted > 0:  # else the file has been cut meanwhile
                data[start - offset : start - offset + wanted] = below[:wanted]
        return bytes(data)

    def _below(self, source: int, start: int, end: int) -> bytes:
        """Return the bytes from *start* to *end* of what is below, zeros from the limit on."""
        upto = max(start, min(end, self.limit))
        data = read_at(source, upto - start, start)
        if len(data) != upto - start:  # somebody has changed the layer
            raise shorter()
        return data.ljust(end - start, b"\0")

    # -- changing -------------------------------------------------------------------------------------

    def needs_below(self, offset: int, size: int) -> bool:
        """Tell whether a write of that range has to read of the lower file first."""
        start, end = self._down(offset), self._up(offset + size)
        return bool(self._missing(start, offset) or self._missing(offset + size, end))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of *data* at *offset*; blocks of which it has a part are merged with what is below.

        Raises `OSError`: then some of it may have been written.
        """
        end = offset + len(data)
        first, last = self._down(offset), self._up(end)
        head = tail = b""
        if self._missing(first, offset):
            head = self._below(self.source, first, offset)
        if self._missing(end, last):
            tail = self._below(self.source, end, max(end, min(last, self.limit)))
        for start, stop in self.spans.missing(first, min(last, self.limit)):
            _allocate(self.fd, start, stop)
        # A block gets there in one piece, or what of it is below would be lost with the process.
        _write_all(self.fd, b"".join((head, data, tail)) if head or tail else data, offset - len(head))
        self.spans.add(first, last)

    def _missing(self, start: int, end: int) -> list[Span]:
        return self.spans.missing(start, min(end, self.limit)) if start < end else []

    def cut(self, length: int, prefix: bytes) -> None:
        """Set the length of the file: what is cut off from below does not come back when it grows again.

        In this order: should only the first get to the disk, the limit is the length anyway.
        """
        os.ftruncate(self.fd, length)
        if length < self.limit:
            os.setxattr(self.fd, prefix + PARTIAL, b"%d" % length)
            self.limit = length

    def keep_time(self, mtime: int) -> None:
        """Note that people have set the modification time, which a fill under way must leave to them."""
        if self.kept_time is not None:
            self.kept_time = mtime

    # -- becoming whole -------------------------------------------------------------------------------

    def is_complete(self) -> bool:
        """Tell whether nothing comes from below any more."""
        return not self.left(1)

    def left(self, most: int, start: int = 0) -> list[Span]:
        """Return what is to be filled next, at most *most* bytes, in whole blocks."""
        found: list[Span] = []
        for begins, ends in self.spans.missing(start, self.limit):
            ends = min(ends, begins + most)
            found.append((begins, ends))
            most -= ends - begins
            if most <= 0:
                break
        return found

    def fill(self, start: int, end: int) -> None:
        """Put the bytes from *start* to *end*, which begin and end with blocks, into the upper file.

        None of them may be there. Holes of the lower file stay holes. Moves the modification time. Raises
        `OSError`.
        """
        end = min(end, self.limit)
        position = start
        while position < end:
            try:
                begins = os.lseek(self.source, position, os.SEEK_DATA)
                ends = min(os.lseek(self.source, begins, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                if os.fstat(self.source).st_size < end:
                    raise shorter() from None
                break
            if begins >= end:
                break
            # Whole blocks: the extents must not say of a block that it is there while half of it is.
            begins, ends = max(self._down(begins), start), min(self._up(ends), end)
            _allocate(self.fd, begins, ends)
            copy_range(self.source, self.fd, begins, ends - begins, at=begins)
            position = ends
        self.spans.add(start, self._up(end))

    def unmark(self, prefix: bytes) -> None:
        """Take the marks from a file that is complete, and on its disk. Raises `OSError`."""
        unmark(self.fd, prefix)

    def _down(self, offset: int) -> int:
        return offset - offset % self._unit

    def _up(self, offset: int) -> int:
        return offset + -offset % self._unit


def open_partial(home: LayerDir, name: bytes, marks: FileMarks) -> Partial:
    """Take up the partial file *name* of *home*. Raises `OSError`, EIO for marks that make no sense."""
    assert marks.partial is not None
    if marks.redirect is None or not marks.redirect.startswith(b"/"):
        raise OSError(errno.EIO, os.strerror(errno.EIO), name)
    below, entry = merge.contents((), home.layer, name, marks.redirect)
    source = os.open(entry, os.O_RDONLY | _SAFELY, dir_fd=below.fd())
    try:
        fd = os.open(name, os.O_RDWR | _SAFELY, dir_fd=home.fd())
        try:
            return Partial.load(fd, source, marks.partial)
        except BaseException:
            os.close(fd)
            raise
    except BaseException:
        os.close(source)
        raise


def mark(fd: int, prefix: bytes, limit: int) -> None:
    """Mark the file *fd*, which has no data and a redirect, as partial. Raises `OSError`."""
    os.setxattr(fd, prefix + PARTIAL, b"%d" % limit)
    os.setxattr(fd, prefix + METACOPY, b"")


def unmark(fd: int, prefix: bytes) -> None:
    """Take the marks of a partial file from *fd*: it is whole. May be done again. Raises `OSError`.

    What says that there is something below goes first: without it, the others mean nothing any more.
    """
    for name in (METACOPY, REDIRECT, PARTIAL):
        try:
            os.removexattr(fd, prefix + name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise


def _allocate(fd: int, start: int, end: int) -> None:
    """Take the room for what is written next, as blocks that count as holes. Raises `OSError`: ENOSPC.

    A write that finds no room in its middle leaves zeros in blocks that it has got (ext4), which would
    pass for contents.
    """
    while True:
        try:
            syscalls.fallocate(fd, KEEP_SIZE, start, end - start)
        except InterruptedError:
            continue
        return


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):  # the next try says why
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)
