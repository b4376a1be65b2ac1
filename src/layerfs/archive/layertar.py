"""A layer's tree as the tar archive of the OCI image specification (layer.md): its changes, and nothing else.

What an archive has no word for is written out: a directory that was renamed, or a file whose metadata alone
is in the layer, stands there with all that the layers below give it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from layerfs.archive import tarformat
from layerfs.archive.streams import PIECE
from layerfs.archive.tar import Kind, Member
from layerfs.errors import LayerfsError
from layerfs.union import merge, whiteout
from layerfs.union.layer import LayerDir
from layerfs.union.marking import Marking
from layerfs.union.stack import Stack

DESCRIPTORS = 64
_ZEROS = bytes(PIECE)
KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}
_OF_THIS_MACHINE = (b"security.selinux", b"security.ima", b"security.evm")
"""Attributes that the machine gives files by its own rules: they are not the image's."""


class _Place:
    """A directory to be written: where it is in its layer, and in the archive.

    `merged` are the directories that it is made of where all of them are to be written, None where only
    what the layer itself has is.
    """

    __slots__ = ("_below", "merged", "own", "parent", "path")

    def __init__(
        self, own: LayerDir, path: bytes, parent: _Place | None, merged: list[LayerDir] | None = None
    ) -> None:
        self.own = own
        self.path = path
        self.parent = parent
        self.merged = merged
        self._below: Sequence[LayerDir] | None = None

    def below(self) -> Sequence[LayerDir]:
        """Return the directories of the layers below that it merges with, top-most first."""
        if self._below is None:
            if self.parent is None:
                self._below = [layer.root for layer in self.own.layer.below]
            else:
                found = merge.resolve([self.parent.own, *self.parent.below()], self.own.name)
                self._below = found[1:] if isinstance(found, list) else []
        return self._below


class LayerTar:
    """The archive of the topmost tree of *stack*.

    Iterate over `pieces`; afterwards `alone` tells whether they are what the topmost tree says, whatever lies
    below it.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._links: dict[tuple[int, int], bytes] = {}
        self.alone = True

    def pieces(self) -> Iterator[bytes]:
        """Yield the archive. Raises `LayerfsError` for what it cannot hold, and `OSError`."""
        with self._stack.opened(DESCRIPTORS) as layers:
            layer = layers[-1]
            pending = [_Place(layer.root, b"", None)]
            while pending:
                place = pending.pop()
                layer.directories.trim()
                below: list[_Place] = []
                yield from self._directory(place, below)
                pending += reversed(below)
        yield tarformat.END

    def _directory(self, place: _Place, pending: list[_Place]) -> Iterator[bytes]:
        """Yield a directory and all in it but other directories, which are added to *pending*."""
        own, path = place.own, place.path
        fd = own.fd()
        yield tarformat.header(member_at(path or b".", "directory", os.fstat(fd), fd, self._stack.marking))
        marks = own.marks()
        if place.merged is None:
            moved = marks.redirect is not None and place.parent is not None and bool(own.layer.below)
            if moved:
                self.alone = False
                place.merged = [own, *place.below()]
            if moved or marks.opaque:
                yield _marker(path, whiteout.AUFS_OPAQUE)
        kinds = own.kinds()
        for name in sorted(kinds if place.merged is None else merge.names(place.merged)):
            inside = b"%b/%b" % (path, name) if path else name
            own.layer.directories.trim()
            if name.startswith(whiteout.AUFS_PREFIX):
                raise LayerfsError(
                    f"{os.fsdecode(inside)!r} cannot be in an image: a name that begins with .wh."
                    " means a deleted file there"
                )
            if place.merged is not None:
                found = merge.resolve(place.merged, name)
                if isinstance(found, list):
                    pending.append(_Place(found[0], inside, place, found))
                elif found is not None:
                    below = place.merged[place.merged.index(found) + 1 :]
                    yield from self._file(found, name, inside, partial(list, below))
            elif kinds[name] == whiteout.DIRECTORY:
                pending.append(_Place(own.child(name), inside, place))
            elif kinds[name] != whiteout.WHITEOUT:
                yield from self._file(own, name, inside, place.below)
            else:
                yield _marker(path, whiteout.AUFS_PREFIX + name)

    def _file(
        self, home: LayerDir, name: bytes, path: bytes, below: Callable[[], Sequence[LayerDir]]
    ) -> Iterator[bytes]:
        """Yield anything but a directory; *below* returns where to look for what its metadata belongs to."""
        status = os.stat(name, dir_fd=home.fd(), follow_symlinks=False)
        kind = KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return  # a socket: nobody listens on it in the image
        identity = status.st_dev, status.st_ino
        if status.st_nlink > 1 and identity in self._links:
            kind = "link"
        place = b"/proc/self/fd/%d/%b" % (home.fd(), name)
        # A link has the attributes of its file, which some tools give to the file again.
        member = member_at(path, kind, status, place, self._stack.marking)
        if kind == "link":
            member.target = self._links[identity]
            yield tarformat.header(member)
            return
        if kind == "symlink":
            member.target = os.readlink(name, dir_fd=home.fd())
        yield tarformat.header(member)
        if status.st_nlink > 1:
            self._links[identity] = path
        if kind == "file" and status.st_size:
            if home.layer.below and (marks := home.file_marks(name, status)).metacopy:
                if marks.partial is not None:  # in no layer that was sealed in order
                    raise OSError(errno.EIO, os.strerror(errno.EIO), name)
                self.alone = False
                home, name = merge.contents(below(), home.layer, name, marks.redirect)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=home.fd())
            try:
                yield from content(fd, path, status.st_size)
            finally:
                os.close(fd)


def member_at(
    path: bytes, kind: Kind, status: os.stat_result, place: int | bytes, marking: Marking
) -> Member:
    """Return the member for what is at *place*, a descriptor or a path; private attributes are left out."""
    attributes = {
        shown: os.getxattr(place, stored, follow_symlinks=isinstance(place, int))
        for stored in _xattrs(place)
        if (shown := marking.shown_name(stored)) is not None and shown not in _OF_THIS_MACHINE
    }
    return member(path, kind, status, attributes)


def member(path: bytes, kind: Kind, status: os.stat_result, attributes: dict[bytes, bytes]) -> Member:
    """Return the member *path* of a *kind* for what has the *status* and the extended *attributes*."""
    found = Member(
        path,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        attributes,
    )
    if kind == "file":
        found.size = status.st_size
    elif kind in ("character", "block"):
        found.major, found.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return found


def _xattrs(place: int | bytes) -> list[bytes]:
    try:
        return [os.fsencode(name) for name in os.listxattr(place, follow_symlinks=isinstance(place, int))]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _marker(path: bytes, name: bytes) -> bytes:
    """Return the empty file that says that something is deleted."""
    return tarformat.header(Member(b"%b/%b" % (path, name) if path else name, "file", 0, 0, 0, 0))


def content(fd: int, path: bytes, size: int, *, fill: bool = False) -> Iterator[bytes]:
    """Yield the first *size* bytes of a file, filled up to whole blocks; holes are not read.

    With *fill*, zeros stand for what is missing of a file that became shorter; else it is a `LayerfsError`.
    """
    sparse = os.fstat(fd).st_blocks * 512 < size
    at = 0
    while at < size:
        if sparse and (hole := min(_next_data(fd, at, size) - at, PIECE)):
            if not fill and os.fstat(fd).st_size < size:  # what is behind the end looks like a hole, too
                raise _shorter(path)
            yield _ZEROS[:hole]
            at += hole
            continue
        data = os.pread(fd, min(size - at, PIECE), at)
        if not data and not fill:
            raise _shorter(path)
        data = data or _ZEROS[: min(size - at, PIECE)]
        yield data
        at += len(data)
    yield tarformat.padding(size)


def _shorter(path: bytes) -> LayerfsError:
    return LayerfsError(f"{os.fsdecode(path)!r} became shorter while it was being read: try again")


def _next_data(fd: int, at: int, size: int) -> int:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size  # a hole up to the end
        if error.errno == errno.EINVAL:
            return at  # the filesystem does not know
        raise
