"""Trees that a build copies from: a directory on disk, and the layers of another stage.

Both are read one directory at a time, by descriptors and names, and no symbolic link is followed by the
kernel: `walking` does that, within the tree. So nothing in a tree, however hostile, leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Protocol

from layerfs.errors import BadRequest, Conflict
from layerfs.union import merge, syscalls, xattr
from layerfs.union.marking import Marking
from layerfs.union.node import Directory
from layerfs.union.stack import Stack
from layerfs.union.view import Union

DEEPEST = 256
"""Directories in one another that are read: each takes a descriptor or two, and a call in a call."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DESCRIPTORS = 64
_WITHOUT_XATTRS = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


class Item(NamedTuple):
    """A name in a directory of a source, and its lstat."""

    name: bytes
    st: os.stat_result


class Content(NamedTuple):
    """Where the data of a file is: in the file open as *fd*, from *start* on."""

    fd: int
    start: int


class SourceDirectory(Protocol):
    """An open directory of a source."""

    @property
    def st(self) -> os.stat_result:
        """Its stat."""

    @property
    def implied(self) -> bool:
        """Whether it is there only as the way to something in it: `--parents`."""

    def items(self) -> list[Item]:
        """Return what is in it, sorted by name as bytes. Raises `OSError`."""

    def find(self, name: bytes) -> os.stat_result | None:
        """Return the lstat of *name*, None where there is none. Raises `OSError`."""

    def enter(self, name: bytes) -> SourceDirectory:
        """Return the directory *name* in it, which the caller closes. Raises `OSError`."""

    def open(self, item: Item) -> Content:
        """Return where a regular file can be read; the caller closes the descriptor.

        Raises `BadRequest` where something else has come in its place, and `OSError`.
        """

    def readlink(self, name: bytes) -> bytes:
        """Return the target of a symbolic link. Raises `OSError`."""

    def xattrs(self, name: bytes, fd: int) -> dict[bytes, bytes]:
        """Return the extended attributes that are copied, of *name*, or of the file open as *fd* if not -1.

        With an empty *name*, those of the directory itself.
        """

    def close(self) -> None:
        """Close it."""


class Source(Protocol):
    """A tree that is copied from."""

    keeps_owners: bool
    """Whether what is copied belongs to whom it belongs here, and not to root: so it is with stages."""
    lasting: bool
    """Whether it will be there at the next build: what is in it may then be remembered by inode number."""
    may_change: bool
    """Whether others may change it while it is read."""
    digests: dict[tuple[int, int], bytes]
    """The XXH3-128 of the data of files, as far as known beforehand, by (device, inode)."""
    called: str
    """What people call it: `the build context`, `the stage base`."""

    def root(self) -> SourceDirectory:
        """Return its root, which the caller closes. Raises `OSError`."""


class Disk:
    """A directory on disk as a source, without its sockets and owners; the caller closes it."""

    keeps_owners = False

    def __init__(self, path: Path | bytes, called: str, *, lasting: bool = False) -> None:
        """Open the directory *path*, the last link followed. Raises `OSError`."""
        self._fd = os.open(path, _DIRECTORY & ~os.O_NOFOLLOW)
        self.called = called
        self.lasting = self.may_change = lasting
        self.digests: dict[tuple[int, int], bytes] = {}

    def root(self) -> SourceDirectory:
        """Return its root, which the caller closes. Raises `OSError`."""
        fd = os.open(b".", _DIRECTORY, dir_fd=self._fd)
        return _DiskDirectory(fd)

    def close(self) -> None:
        """Close the directory; nothing can be opened in it any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _DiskDirectory:
    __slots__ = ("_fd", "st")

    implied = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.st = os.fstat(fd)

    def items(self) -> list[Item]:
        found = []
        with os.scandir(self._fd) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it has just gone
                    st = entry.stat(follow_symlinks=False)
                    if not stat.S_ISSOCK(st.st_mode):
                        found.append(Item(os.fsencode(entry.name), st))
        found.sort(key=itemgetter(0))
        return found

    def find(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def enter(self, name: bytes) -> SourceDirectory:
        return _DiskDirectory(os.open(name, _DIRECTORY, dir_fd=self._fd))

    def open(self, item: Item) -> Content:
        fd = -1
        try:
            fd = os.open(item.name, _FILE, dir_fd=self._fd)
            st = os.fstat(fd)
            if st.st_ino == item.st.st_ino and st.st_dev == item.st.st_dev:
                return Content(fd, 0)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
                raise
        if fd >= 0:
            os.close(fd)
        raise changed(item.name)

    def readlink(self, name: bytes) -> bytes:
        return os.readlink(name, dir_fd=self._fd)

    def xattrs(self, name: bytes, fd: int) -> dict[bytes, bytes]:
        try:
            if fd < 0 and name:
                names = syscalls.listxattrat(self._fd, name)
                if not names:
                    return {}
                path: int | bytes = b"/proc/self/fd/%d/%s" % (self._fd, name)
                return _values(path, names, follow=False)
            fd = fd if fd >= 0 else self._fd
            listed = os.listxattr(fd)
            return _values(fd, [os.fsencode(text) for text in listed]) if listed else {}
        except OSError as error:
            if error.errno in _WITHOUT_XATTRS:
                return {}
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def of_stack(stack: Stack, called: str) -> Iterator[Source]:
    """Yield the merged tree of *stack* as a source that keeps owners. Raises `OSError`."""
    with stack.opened(_DESCRIPTORS) as layers:
        yield _Merged(Union(layers, descriptors=_DESCRIPTORS), called)


class _Merged:
    keeps_owners = True
    lasting = True
    may_change = False

    def __init__(self, union: Union, called: str) -> None:
        self._union = union
        self.called = called
        self.digests: dict[tuple[int, int], bytes] = {}

    def root(self) -> SourceDirectory:
        return _MergedDirectory(self._union, self._union.root)


class _MergedDirectory:
    """A directory of a stack. Its node is kept while it is open; those of files only while they are used."""

    __slots__ = ("_node", "_union", "st")

    implied = False

    def __init__(self, union: Union, node: Directory) -> None:
        self._union = union
        self._node = node
        node.references += 1
        self.st = union.stat(node)

    def items(self) -> list[Item]:
        self._union.trim()
        found = []
        for name in sorted(merge.names(self._node.dirs)):
            st = self.find(name)
            if st is not None:
                found.append(Item(name, st))
        return found

    def find(self, name: bytes) -> os.stat_result | None:
        if len(name) > 255:
            return None
        found = self._union.find(self._node, name)
        if found is None:
            return None
        node, st = found
        self._union.release(node)
        return st

    def enter(self, name: bytes) -> SourceDirectory:
        self._union.trim()
        node = self._union.lookup(self._node, name)
        if not isinstance(node, Directory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        return _MergedDirectory(self._union, node)

    def open(self, item: Item) -> Content:
        self._union.trim()
        node = self._union.lookup(self._node, item.name)
        if node is None or isinstance(node, Directory):
            raise changed(item.name)
        try:
            return Content(node.open_contents(os.O_RDONLY), 0)
        finally:
            self._union.release(node)

    def readlink(self, name: bytes) -> bytes:
        node = self._union.lookup(self._node, name)
        if node is None or isinstance(node, Directory):
            raise changed(name)
        try:
            return self._union.readlink(node)
        finally:
            self._union.release(node)

    def xattrs(self, name: bytes, fd: int) -> dict[bytes, bytes]:
        node = self._union.lookup(self._node, name) if name else self._node
        if node is None:
            raise changed(name)
        try:
            path, follow = self._union.path_for_xattr(node)
            listed = os.listxattr(path, follow_symlinks=follow)
            if not listed:
                return {}
            return _values(path, [os.fsencode(text) for text in listed], self._union.marking, follow=follow)
        except OSError as error:
            if error.errno in _WITHOUT_XATTRS:
                return {}
            raise
        finally:
            if node is not self._node:
                self._union.release(node)

    def close(self) -> None:
        self._union.forget(self._node, 1)


def _values(
    path: int | bytes, names: Sequence[bytes], marking: Marking | None = None, *, follow: bool = True
) -> dict[bytes, bytes]:
    """Return the attributes of *path* that belong to it wherever it is; private ones of *marking* do not."""
    found = {}
    for name in sorted(names):
        shown = marking.shown_name(name) if marking is not None else name
        if shown is not None and _counts(shown):
            with suppress(OSError):  # gone, or not for us to see
                found[shown] = os.getxattr(path, name, follow_symlinks=follow)
    return found


def _counts(name: bytes) -> bool:
    """Tell whether the attribute *name* is a file's own, and no note of this machine's security modules."""
    if name.startswith(b"security."):
        return name == xattr.CAPABILITY
    return not name.startswith(b"system.") or name in (xattr.ACCESS_ACL, xattr.DEFAULT_ACL)


def made_stat(
    mode: int,
    number: int,
    *,
    links: int = 1,
    size: int = 0,
    stored: int = 0,
    mtime_ns: int = 0,
    rdev: int = 0,
) -> os.stat_result:
    """Return the stat of something that is root's, and on no disk."""
    seconds = mtime_ns // 1_000_000_000
    return os.stat_result(
        (mode, number, 0, links, 0, 0, size, seconds, seconds, 0),
        {
            "st_atime_ns": mtime_ns,
            "st_mtime_ns": mtime_ns,
            "st_ctime_ns": 0,
            "st_blocks": -(-stored // 512),
            "st_rdev": rdev,
        },
    )


def changed(name: bytes) -> Conflict:
    """Return the error that says that *name* has become something else while it was read."""
    return Conflict(f"{shown(name)} changed while it was copied: build again")


def shown(path: bytes) -> str:
    """Return *path* as people may read it: no control characters, not too long."""
    text = path[:300].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def too_deep(name: bytes) -> BadRequest:
    """Return the error that says that the directory *name* has too many above it."""
    return BadRequest(f"{shown(name)} lies in more than {DEEPEST} directories: that is not copied")
