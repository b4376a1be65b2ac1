"""The merged tree of a stack as one tar archive, as `docker export` gives it: no layers, no whiteouts.

The tree may be in use meanwhile. What is removed before its turn comes is left out, and of a file that
becomes shorter while it is read the rest is zeros; everything that stays as it is comes as it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from layerfs.archive import layertar, tarformat
from layerfs.archive.streams import PIECE
from layerfs.archive.tar import Member
from layerfs.union import merge
from layerfs.union.layer import LayerDir
from layerfs.union.marking import Marking
from layerfs.union.partial import Partial, open_partial
from layerfs.union.stack import Stack

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def merged_tar(stack: Stack) -> Iterator[bytes]:
    """Yield the archive of what the trees of *stack* show together, in pieces.

    The same tree gives the same bytes:
    a directory, the files in it sorted by name, then the directories in it. Raises `OSError`.
    """
    files = _Files(stack.marking)
    with stack.opened(layertar.DESCRIPTORS) as layers:
        top = layers[-1]
        pending = [(b"", [top.root, *(layer.root for layer in top.below)])]
        while pending:
            top.directories.trim()
            path, dirs = pending.pop()
            try:
                fd = dirs[0].fd()
                yield tarformat.header(
                    layertar.member_at(path or b".", "directory", os.fstat(fd), fd, stack.marking)
                )
                names = sorted(merge.names(dirs))
            except FileNotFoundError:
                continue
            below = []
            for name in names:
                inside = b"%b/%b" % (path, name) if path else name
                top.directories.trim()
                try:
                    found = merge.resolve(dirs, name)
                    entry = files.open(inside, dirs, found, name) if isinstance(found, LayerDir) else None
                except FileNotFoundError:
                    continue
                if isinstance(found, list):
                    below.append((inside, found))
                elif entry is not None:
                    yield from entry.pieces()
            pending += reversed(below)
    yield tarformat.END


class _Entry:
    """Anything but a directory, ready to be written: a regular file is open."""

    def __init__(self, member: Member, contents: int | Partial | None) -> None:
        self._member = member
        self._contents = contents

    def pieces(self) -> Iterator[bytes]:
        size = self._member.size
        try:
            yield tarformat.header(self._member)
            if isinstance(self._contents, Partial):
                yield from _pieces_of_partial(self._contents, size)
            elif self._contents is not None:
                yield from layertar.content(self._contents, self._member.name, size, fill=True)
        finally:
            if isinstance(self._contents, Partial):
                self._contents.close()
            elif self._contents is not None:
                os.close(self._contents)


def _pieces_of_partial(partial: Partial, size: int) -> Iterator[bytes]:
    """Yield what a file has that has been changed since what was written was collected for the archive."""
    for at in range(0, size, PIECE):
        wanted = min(size - at, PIECE)
        yield partial.read(at, wanted).ljust(wanted, b"\0")
    yield tarformat.padding(size)


class _Files:
    """Looks at files, and knows which of them are further names of one that was there before."""

    def __init__(self, marking: Marking) -> None:
        self._marking = marking
        self._links: dict[tuple[int, int], bytes] = {}

    def open(self, path: bytes, dirs: Sequence[LayerDir], home: LayerDir, name: bytes) -> _Entry | None:
        """Return the entry *name* of *home*, one of the directories *dirs*; None for a socket."""
        status = os.stat(name, dir_fd=home.fd(), follow_symlinks=False)
        kind = layertar.KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return None
        identity = status.st_dev, status.st_ino
        if status.st_nlink > 1 and identity in self._links:
            kind = "link"
        place = b"/proc/self/fd/%d/%b" % (home.fd(), name)
        member = layertar.member_at(path, kind, status, place, self._marking)
        contents: int | Partial | None = None
        if kind == "link":
            member.target = self._links[identity]
        elif kind == "symlink":
            member.target = os.readlink(name, dir_fd=home.fd())
        elif kind == "file":
            contents = _open_contents(dirs, home, name, status)
        if status.st_nlink > 1:
            self._links.setdefault(identity, path)
        return _Entry(member, contents)


def _open_contents(
    dirs: Sequence[LayerDir], home: LayerDir, name: bytes, status: os.stat_result
) -> int | Partial:
    """Open what a file holds, which lies below where its metadata alone has been copied up."""
    if home.layer.below:
        marks = home.file_marks(name, status)
        if marks.metacopy and marks.partial is not None:
            return open_partial(home, name, marks)
        if marks.metacopy:
            below = dirs[list(dirs).index(home) + 1 :]
            home, name = merge.contents(below, home.layer, name, marks.redirect)
    return os.open(name, _FILE, dir_fd=home.fd())
