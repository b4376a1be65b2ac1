"""Several layers, one upon the other, as one tree that means the same on whatever lies below them.

Nothing is copied: a file is one more name of the file of the layer that shows. What the layers say about
those below them stays said. A name that one of them deletes is deleted in the tree. A directory is opaque
where one of them is, or where something else was in its place between; and where one has renamed a directory
from below, it is renamed from where it lies there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from layerfs.errors import Conflict
from layerfs.union import whiteout, xattr
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.marking import REDIRECT, Marking
from layerfs.union.whiteout import DIRECTORY, WHITEOUT

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Place(NamedTuple):
    """A directory of the layers together."""

    parts: tuple[LayerDir, ...]
    """Its parts, top-most first."""
    below: tuple[bytes, ...] | None
    """Which directory below all of them goes on there, None for none: it is opaque."""


def join(layers: Sequence[Layer], target: int, marking: Marking) -> None:
    """Write *layers*, bottom first and none of them the lowest of its stack, to the empty directory *target*.

    The tree must be on their filesystem, and is not on disk when this returns. Raises `OSError`, and
    `Conflict` for a layer with files of metadata alone, whose contents lie below.
    """
    roots = tuple(layer.root for layer in reversed(layers))
    _Join(layers, marking).directory(_Place(roots, ()), target)


class _Join:
    """The layers, and how they are marked."""

    def __init__(self, layers: Sequence[Layer], marking: Marking) -> None:
        self._layers = list(layers)
        self._marking = marking

    def directory(self, place: _Place, target: int) -> None:
        """Write what is in a directory to *target*, and then its attributes."""
        pending: list[tuple[_Place, int, bool]] = [(place, os.dup(target), False)]
        try:
            while pending:
                place, fd, is_filled = pending.pop()
                if is_filled:
                    try:
                        self._dress(place.parts[0], fd)
                    finally:
                        os.close(fd)
                    continue
                pending.append((place, fd, True))
                for name, child in self._entries(place, fd):
                    inner = os.open(name, _OPEN, dir_fd=fd)
                    pending.append((child, inner, False))
                    self._mark(place, name, child, inner)
        finally:
            for _, fd, _ in pending:
                os.close(fd)

    def _dress(self, part: LayerDir, target: int) -> None:
        """Give the directory *target* what *part* has, but for the overlay's own attributes."""
        self._layers[0].directories.trim()
        source = part.fd()
        st = os.fstat(source)
        os.fchown(target, st.st_uid, st.st_gid)
        self._marking.match(source, target)
        os.fchmod(target, stat.S_IMODE(st.st_mode))
        os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))

    def _entries(self, place: _Place, target: int) -> list[tuple[bytes, _Place]]:
        """Write all but the contents of directories; return the directories."""
        self._layers[0].directories.trim()
        seen: set[bytes] = set()
        directories = []
        for part in place.parts:
            for name, kind in sorted(part.kinds().items()):
                if name in seen:
                    continue
                seen.add(name)
                if kind == DIRECTORY:
                    os.mkdir(name, 0o700, dir_fd=target)
                    directories.append((name, self._child(place, name)))
                elif kind == WHITEOUT:
                    if place.below is not None:
                        whiteout.make_whiteout(target, name)
                else:
                    self._link(part, name, target)
        return directories

    def _link(self, part: LayerDir, name: bytes, target: int) -> None:
        status = os.stat(name, dir_fd=part.fd(), follow_symlinks=False)
        if stat.S_ISREG(status.st_mode) and part.file_marks(name, status).metacopy:
            raise Conflict("it has files whose metadata alone was copied up (metacopy=on)")
        os.link(name, name, src_dir_fd=part.fd(), dst_dir_fd=target, follow_symlinks=False)

    def _child(self, place: _Place, name: bytes) -> _Place:
        """Return the directory *name* of a directory, as far as the layers say."""
        parts: list[LayerDir] = []
        for number, part in enumerate(place.parts):
            kind = part.kind(name)
            if kind is None:
                continue
            if kind != DIRECTORY:
                return _Place(tuple(parts), None)
            child = part.child(name)
            parts.append(child)
            marks = child.marks()
            if marks.opaque:
                return _Place(tuple(parts), None)
            if marks.redirect is not None:
                rest = self._moved(marks.redirect, child, _Place(place.parts[number + 1 :], place.below))
                return _Place((*parts, *rest.parts), rest.below)
        return _Place(tuple(parts), None if place.below is None else (*place.below, name))

    def _moved(self, redirect: bytes, directory: LayerDir, siblings: _Place) -> _Place:
        """Return what a directory, renamed from *redirect*, goes on with in the layers below its own."""
        if not redirect.startswith(b"/"):
            return self._child(siblings, redirect)
        number = self._layers.index(directory.layer)
        place = _Place(tuple(layer.root for layer in reversed(self._layers[:number])), ())
        for name in redirect[1:].split(b"/"):
            place = self._child(place, name)
        return place

    def _mark(self, parent: _Place, name: bytes, child: _Place, fd: int) -> None:
        """Note on the directory *fd* what it goes on with below, where its name does not say that."""
        natural = None if parent.below is None else (*parent.below, name)
        if child.below == natural:
            return
        if child.below is None:
            whiteout.set_opaque(fd, self._marking)
        else:
            path = b"".join(b"/" + part for part in child.below)
            xattr.set_mark(fd, self._marking.prefix + REDIRECT, path)
