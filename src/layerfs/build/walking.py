"""Going about in a source: where a path leads, its links followed within the tree."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from layerfs.build.sources import DEEPEST, Item, Source, SourceDirectory, too_deep

_LINKS = 255
"""Symbolic links that are followed in one path, as by BuildKit."""


class Place(NamedTuple):
    """Where a path leads in a source: names without links, the last one not a link either."""

    parts: tuple[bytes, ...]
    st: os.stat_result | None
    """None where there is nothing: then only the last name is missing, or names after a missing one."""


def parts_of(path: bytes) -> list[bytes]:
    """Return the names that *path* is made of, `.` left out."""
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def follow(source: Source, path: bytes) -> Place:
    """Find out where *path* leads in *source*, the root of which is `/` and `..` of it.

    Raises `OSError`: ENOTDIR, and ELOOP where too many links were met.
    """
    with Walk(source) as walk:
        pending = parts_of(path)[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                walk.up()
                continue
            st = walk.here.find(part)
            if st is None:
                return Place((*walk.parts, part, *reversed(pending)), None)
            if stat.S_ISLNK(st.st_mode):
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = walk.here.readlink(part)
                if target.startswith(b"/"):
                    walk.to_root()
                pending += parts_of(target)[::-1]
            elif stat.S_ISDIR(st.st_mode):
                walk.down(part)
            elif pending:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            else:
                return Place((*walk.parts, part), st)
        return Place(tuple(walk.parts), walk.here.st)


@contextmanager
def opened(source: Source, place: Place) -> Iterator[tuple[int, int]]:
    """Yield a descriptor of the file at *place*, where `follow` found one, and where its data begins there.

    Raises `OSError`.
    """
    assert place.st is not None
    with Walk(source) as walk:
        for part in place.parts[:-1]:
            walk.down(part)
        fd, start = walk.here.open(Item(place.parts[-1], place.st))
    try:
        yield fd, start
    finally:
        os.close(fd)


class Walk:
    """Goes about in a source, one directory at a time; a context manager that closes what it has opened."""

    def __init__(self, source: Source) -> None:
        self._open = [source.root()]
        self.parts: list[bytes] = []

    def __enter__(self) -> Walk:
        """Return the walk, at the root."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Close everything."""
        for directory in reversed(self._open):
            directory.close()

    @property
    def here(self) -> SourceDirectory:
        """The directory where it is."""
        return self._open[-1]

    def down(self, name: bytes) -> SourceDirectory:
        """Go into the directory *name*. Raises `OSError` and `BadRequest`."""
        if len(self._open) > DEEPEST:
            raise too_deep(name)
        self._open.append(self.here.enter(name))
        self.parts.append(name)
        return self.here

    def up(self) -> None:
        """Go to the directory above; from the root, nowhere."""
        if self.parts:
            self._open.pop().close()
            self.parts.pop()

    def to_root(self) -> None:
        """Go back to the root."""
        while self.parts:
            self.up()
