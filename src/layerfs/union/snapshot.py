"""The merged tree of a stack, read by path without a mount: what is there, what is in it, what it holds.

Names are resolved one by one, by the union's own rules (`merge`). Symbolic links are followed here, never by
the kernel, and count from the root of the tree: nothing in a layer leads outside it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from layerfs.union import merge
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.marking import Marking
from layerfs.union.reading import read_at
from layerfs.union.stack import Stack

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ROOM = 64
_MOST_LINKS = 40  # as the kernel (path_resolution(7))


class Entry(NamedTuple):
    """Something in the tree."""

    path: bytes
    """Where it is: absolute, without links."""
    name: bytes
    """Its own name, empty for the root."""
    dirs: Sequence[LayerDir]
    """The parts of a directory, top-most first; empty for anything else."""
    home: LayerDir
    """The directory of a layer that holds it; of a directory, its top-most part."""
    status: os.stat_result
    siblings: Sequence[LayerDir]
    """The parts of the directory that it is in."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return bool(self.dirs)

    @property
    def place(self) -> bytes:
        """A path by which the kernel finds this object itself, until the next `Snapshot.trim`."""
        if self.is_directory:
            return b"/proc/self/fd/%d" % self.home.fd()
        return b"/proc/self/fd/%d/%s" % (self.home.fd(), self.name)


class Snapshot:
    """The tree of opened layers; made by `opened`. Used by one thread. Its methods raise `OSError`."""

    def __init__(self, layers: Sequence[Layer], marking: Marking) -> None:
        """Read *layers*, bottom first, which are marked with *marking*."""
        self.layers = layers
        self.marking = marking
        self._top = layers[-1]

    @property
    def root(self) -> Entry:
        """The root directory."""
        dirs = [self._top.root, *(layer.root for layer in self._top.below)]
        return Entry(b"/", b"", dirs, dirs[0], dirs[0].status(), dirs)

    def trim(self) -> None:
        """Close directories that there are too many of: between two steps of a walk."""
        self._top.directories.trim()

    def find(self, path: bytes, *, follow: bool = False) -> Entry:
        """Return what is at *path*; a link at its end itself, unless *follow*, as lstat(2) and stat(2) do.

        Raises `OSError`: ENOENT, ENOTDIR, ELOOP.
        """
        way = [self.root]
        left = path.split(b"/")[::-1]
        links = 0
        while left:
            name = left.pop()
            if name in (b"", b"."):
                if not way[-1].is_directory:
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                continue
            if name == b"..":
                way[1:] = way[1:-1]
                continue
            found = self.child(way[-1], name)
            if found is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if stat.S_ISLNK(found.status.st_mode) and (follow or left):
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(name, dir_fd=found.home.fd())
                if target.startswith(b"/"):
                    del way[1:]
                left += target.split(b"/")[::-1]
                continue
            if left and not found.is_directory:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            way.append(found)
        return way[-1]

    def at(self, path: bytes) -> Entry | None:
        """Return what is at *path*, in which no name is a link or "..", None where there is nothing."""
        entry = self.root
        for name in path.split(b"/"):
            if name:
                found = self.child(entry, name) if entry.is_directory else None
                if found is None:
                    return None
                entry = found
        return entry

    def child(self, directory: Entry, name: bytes) -> Entry | None:
        """Return the entry *name* of a directory, None where there is none."""
        target = merge.resolve(directory.dirs, name)
        if target is None:
            return None
        path = b"%s/%s" % (directory.path.rstrip(b"/"), name)
        if isinstance(target, list):
            return Entry(path, name, target, target[0], target[0].status(), directory.dirs)
        status = os.stat(name, dir_fd=target.fd(), follow_symlinks=False)
        return Entry(path, name, (), target, status, directory.dirs)

    def children(self, directory: Entry) -> Iterator[Entry]:
        """Yield what is in a directory, in the order of the names' bytes; what vanishes is left out."""
        for name in sorted(merge.names(directory.dirs)):
            self.trim()
            try:
                found = self.child(directory, name)
            except FileNotFoundError:
                continue
            if found is not None:
                yield found

    def walk(self, start: Entry) -> Iterator[Entry]:
        """Yield *start* and all below it, each directory before what is in it."""
        pending = [start]
        while pending:
            entry = pending.pop()
            yield entry
            if entry.is_directory:
                pending += list(self.children(entry))[::-1]

    def open(self, entry: Entry) -> int:
        """Open what the regular file *entry* holds, for reading; the caller closes it."""
        home, name = entry.home, entry.name
        if home.layer.below:
            marks = home.file_marks(name, entry.status)
            if marks.metacopy:
                below = entry.siblings[list(entry.siblings).index(home) + 1 :]
                home, name = merge.contents(below, home.layer, name, marks.redirect)
        return os.open(name, _FILE, dir_fd=home.fd())

    def read(self, entry: Entry, most: int) -> bytes:
        """Return what the regular file *entry* holds, its first *most* bytes at least."""
        fd = self.open(entry)
        try:
            return read_at(fd, min(entry.status.st_size, most), 0)
        finally:
            os.close(fd)

    def link(self, entry: Entry) -> bytes:
        """Return where the symbolic link *entry* points to."""
        return os.readlink(entry.name, dir_fd=entry.home.fd())

    def xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        """Return the extended attributes of *entry*, as people see them: without those of the overlay."""
        place = entry.place
        try:
            stored = os.listxattr(place, follow_symlinks=entry.is_directory)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
                return {}
            raise
        found = {}
        for text in stored:
            shown = self.marking.shown_name(os.fsencode(text))
            if shown is not None:
                found[shown] = os.getxattr(place, text, follow_symlinks=entry.is_directory)
        return found


@contextmanager
def opened(stack: Stack) -> Iterator[Snapshot]:
    """Open the tree of *stack* for the block. Raises `OSError`."""
    with stack.opened(_ROOM) as layers:
        yield Snapshot(layers, stack.marking)
