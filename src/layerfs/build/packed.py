"""A context that comes as an archive: its data in one nameless file, its names in memory, nothing unpacked.

What an archive claims is checked as those of layers are (`archive.unpack`): no name leads out of it, none is
below something that is no directory. Unpacking would make and remove a file for each member in every build,
also where all is in the cache and nothing is copied: and where many files have just been removed, ext4 takes
0.7 ms to make one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import xxhash

from layerfs.archive.limits import Limits
from layerfs.archive.tar import Member, Reader
from layerfs.archive.unpack import parts_of_name, refused
from layerfs.build.sources import Content, Item, SourceDirectory, made_stat

_CHUNK = 1 << 20
_MOST_MEMBERS = 1_000_000
"""Each takes some hundred bytes of memory."""
_KINDS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "character": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


_NO_XATTRS: dict[bytes, bytes] = {}


class _Node:
    """Something in the archive; several names of one file share it."""

    __slots__ = (
        "children",
        "extents",
        "links",
        "mode",
        "mtime_ns",
        "number",
        "rdev",
        "size",
        "target",
        "xattrs",
    )

    def __init__(self, number: int, mode: int, mtime_ns: int) -> None:
        self.number = number
        self.mode = mode
        self.mtime_ns = mtime_ns
        self.links = 1
        self.rdev = self.size = 0
        self.target = b""
        self.xattrs = _NO_XATTRS
        self.children: dict[bytes, _Node] | None = {} if stat.S_ISDIR(mode) else None
        self.extents: tuple[tuple[int, int, int], ...] = ()
        """Of a file: offset in it, length, and offset in the data of all."""

    def stat(self) -> os.stat_result:
        """Return what stat(2) would say of it unpacked. Its blocks are all there unless it is sparse."""
        stored = sum(length for _, length, _ in self.extents)
        return made_stat(
            self.mode,
            self.number,
            links=self.links,
            size=self.size,
            stored=stored,
            mtime_ns=self.mtime_ns,
            rdev=self.rdev,
        )


class Packed:
    """An archive as a source; the caller closes it."""

    keeps_owners = lasting = may_change = False
    called = "the build context"

    def __init__(self, scratch: Path) -> None:
        """Make an empty one, with its data in the directory *scratch*. Raises `OSError`."""
        self.digests: dict[tuple[int, int], bytes] = {}
        self._top = _Node(1, stat.S_IFDIR | 0o755, 0)
        self._count = 1
        self._size = self._stored = 0
        self._last: tuple[tuple[bytes, ...], _Node] = (), self._top
        self._data = _nameless(scratch)
        self._scratch = scratch

    def close(self) -> None:
        """Close the data; no file can be opened any more."""
        if self._data >= 0:
            os.close(self._data)
            self._data = -1

    def root(self) -> SourceDirectory:
        """Return its root."""
        return _Directory(self, self._top)

    def fill(self, reader: Reader, limits: Limits, check: Callable[[], None]) -> None:
        """Take in all that *reader* has. Raises `BadRequest`, `OSError`, and what *check* raises."""
        limits = Limits(limits.size, min(limits.files, _MOST_MEMBERS))
        with open(os.dup(self._data), "wb", buffering=_CHUNK) as data:
            for member in reader:
                check()
                self._size += member.size
                self._count += 1
                limits.check(self._size, self._count)
                self._add(member, reader, data, limits)

    def _add(self, member: Member, reader: Reader, data: BinaryIO, limits: Limits) -> None:
        parts = parts_of_name(member.name.lstrip(b"/") or b".", whiteouts=False)
        if parts and max(map(len, parts)) > 255:
            raise refused(member.name, "a name in its path is longer than 255 bytes")
        if not parts:
            if member.kind != "directory":
                raise refused(member.name, "the root of a context is a directory")
            self._describe(self._top, member)
            return
        above = self._directory(parts[:-1], member, limits)
        name = parts[-1]
        assert above.children is not None
        there = above.children.get(name)
        if member.kind == "link":
            target = self._linked(member, parts)
            if there is not target:
                above.children[name] = target
                target.links += 1
        elif member.kind == "directory" and there is not None and there.children is not None:
            self._describe(there, member)
            return
        else:
            node = _Node(self._count, _KINDS[member.kind] | member.mode, member.mtime_ns)
            self._describe(node, member)
            if member.kind == "file":
                self._store(node, member, reader, data)
            above.children[name] = node
        if there is not None and there is not above.children[name]:
            there.links -= 1
            self._last = (), self._top  # it may have been in what is gone

    def _describe(self, node: _Node, member: Member) -> None:
        node.mode = _KINDS[member.kind] | (0o777 if member.kind == "symlink" else member.mode)
        node.mtime_ns = member.mtime_ns
        node.xattrs = dict(sorted(member.xattrs.items())) if member.xattrs else _NO_XATTRS
        node.target = member.target
        node.size = len(member.target) if member.kind == "symlink" else member.size
        if member.kind in ("character", "block"):
            if member.major >= 1 << 12 or member.minor >= 1 << 20:
                raise refused(member.name, "there are no devices of such numbers")
            node.rdev = os.makedev(member.major, member.minor)

    def _directory(self, parts: tuple[bytes, ...], member: Member, limits: Limits) -> _Node:
        """Return the directory *parts*; those that the archive has not mentioned are made."""
        last, node = self._last
        if parts == last:
            return node
        node = self._top
        for part in parts:
            assert node.children is not None
            below = node.children.get(part)
            if below is None:
                self._count += 1
                limits.check(self._size, self._count)
                below = node.children[part] = _Node(self._count, stat.S_IFDIR | 0o755, 0)
            elif below.children is None:
                raise refused(member.name, "it lies below a link or file, not a directory")
            node = below
        self._last = parts, node
        return node

    def _linked(self, member: Member, parts: tuple[bytes, ...]) -> _Node:
        target = parts_of_name(member.target.lstrip(b"/"), whiteouts=False)
        if target == parts:
            raise refused(member.name, "it is a link to itself")
        node = self._top
        for part in target:
            found = node.children.get(part) if node.children is not None else None
            if found is None:
                raise refused(member.name, "it is a link to something that is not there")
            node = found
        if node.children is not None:
            raise refused(member.name, "it is a link to a directory")
        return node

    def _store(self, node: _Node, member: Member, reader: Reader, data: BinaryIO) -> None:
        """Append a file's data to that of all, and digest it, holes as zeros."""
        digest = xxhash.xxh3_128()
        extents = []
        end = 0
        for offset, length in member.extents if member.extents is not None else [(0, member.size)]:
            if offset > end:
                _hash_zeros(digest, offset - end)
            end = offset + length
            if length:
                extents.append((offset, length, self._stored))
                self._stored += length
            while length:
                piece = reader.some(min(length, _CHUNK))
                digest.update(piece)
                data.write(piece)
                length -= len(piece)
        _hash_zeros(digest, member.size - end)
        node.extents = tuple(extents)
        self.digests[0, node.number] = digest.digest()

    def content(self, node: _Node) -> Content:
        """Return where the data of a file is. Raises `OSError`."""
        if not node.size:
            return Content(os.dup(self._data), 0)
        if len(node.extents) == 1 and node.extents[0][1] == node.size:
            return Content(os.dup(self._data), node.extents[0][2])
        fd = _nameless(self._scratch)  # a sparse file, as it was
        try:
            os.ftruncate(fd, node.size)
            for offset, length, start in node.extents:
                while length:
                    piece = os.pread(self._data, min(length, _CHUNK), start)
                    if not piece:
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                    os.pwrite(fd, piece, offset)
                    offset, length, start = offset + len(piece), length - len(piece), start + len(piece)
        except BaseException:
            os.close(fd)
            raise
        return Content(fd, 0)


def _hash_zeros(digest: xxhash.xxh3_128, count: int) -> None:
    while count > 0:
        digest.update(bytes(min(count, _CHUNK)))
        count -= _CHUNK


def _nameless(directory: Path) -> int:
    """Return a descriptor on a file of which nothing is left when it is closed. Raises `OSError`."""
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
    path = directory / f"data-{os.urandom(6).hex()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd


class _Directory:
    __slots__ = ("_children", "_node", "_packed", "st")

    implied = False

    def __init__(self, packed: Packed | None, node: _Node) -> None:
        self._packed = packed
        self._node = node
        self._children = node.children if node.children is not None else {}
        self.st = node.stat()

    def items(self) -> list[Item]:
        return [Item(name, node.stat()) for name, node in sorted(self._children.items())]

    def find(self, name: bytes) -> os.stat_result | None:
        node = self._children.get(name)
        return node.stat() if node is not None else None

    def _child(self, name: bytes) -> _Node:
        node = self._children.get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return node

    def enter(self, name: bytes) -> SourceDirectory:
        node = self._child(name)
        if node.children is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        return _Directory(self._packed, node)

    def open(self, item: Item) -> Content:
        node = self._child(item.name)
        assert self._packed is not None
        return self._packed.content(node)

    def readlink(self, name: bytes) -> bytes:
        return self._child(name).target

    def xattrs(self, name: bytes, fd: int) -> dict[bytes, bytes]:
        return (self._child(name) if name else self._node).xattrs

    def close(self) -> None:
        pass


EMPTY: SourceDirectory = _Directory(None, _Node(1, stat.S_IFDIR | 0o755, 0))
"""A directory with nothing in it."""
