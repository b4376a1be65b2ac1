"""Hard links within a lower layer: which names one file has, and where in the union those are today.

A copy-up must give every name of a file the same copy, also names that nobody has looked up yet. So the
layer is searched once, when the first file with several names is copied up from it, and the layers above
it for directories that have been renamed since.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple
from weakref import WeakKeyDictionary

from layerfs.union.layer import Layer, LayerDir
from layerfs.union.whiteout import DIRECTORY, WHITEOUT

Path = tuple[bytes, ...]
"""A path from the root of a layer or of the union, as names."""

_DESCRIPTORS = 64
_known: WeakKeyDictionary[Layer, _Found] = WeakKeyDictionary()
_lock = threading.Lock()


class _Found(NamedTuple):
    """What a search found: the names of each file with several, and (old, new) of renamed directories."""

    links: dict[int, list[Path]]
    moves: list[tuple[Path, Path]]


def other_names(layer: Layer, inode: int, above: tuple[Layer, ...]) -> list[Path]:
    """Return where in the union the names of file *inode* (`st_ino`) of *layer* would stand today.

    *above* are the layers over *layer*, top-most first. A name may have been deleted or replaced since:
    whoever asks looks. Reads the whole layer at the first call (0.3 s for 100,000 files), and an upper
    that has renamed directories at each. Any thread may call it.
    """
    with _lock:
        names = _search(layer).links.get(inode, [])
        for higher in reversed(above):
            moves = _search(higher).moves
            names = [_moved(name, moves) for name in names]
        return names


def _moved(name: Path, moves: list[tuple[Path, Path]]) -> Path:
    """Return where *name* stands after the innermost of the renames that concern it."""
    concerned = [move for move in moves if name[: len(move[0])] == move[0]]
    if not concerned:
        return name
    old, new = max(concerned, key=lambda move: len(move[0]))
    return new + name[len(old) :]


def _search(layer: Layer) -> _Found:
    found = _known.get(layer)
    if found is not None:
        return found
    found = _walk(layer)
    if not layer.mutable:
        _known[layer] = found
    return found


def _walk(layer: Layer) -> _Found:
    """Search *layer* through handles of its own: the union's are for the thread that owns it."""
    found = _Found({}, [])
    own = Layer(b"/proc/self/fd/%d" % layer.root.fd(), aufs=layer.aufs)
    own.below = layer.below
    try:
        pending: list[tuple[LayerDir, Path, Path]] = [(own.root, (), ())]
        while pending:
            own.directories.trim(_DESCRIPTORS)
            directory, path, before = pending.pop()
            try:
                before = _before(directory, path, before, found)
                pending += _look_into(directory, path, before, found)
            except OSError:
                continue  # gone meanwhile, or not to be read: its names are then nobody's to see
    finally:
        own.close()
    return found


def _before(directory: LayerDir, path: Path, before: Path, found: _Found) -> Path:
    """Return where *directory* stood in the layers below, and note it if that was elsewhere."""
    redirect = directory.marks().redirect if directory.layer.below and path else None
    if redirect is None:
        return before
    before = tuple(redirect[1:].split(b"/")) if redirect.startswith(b"/") else (*before[:-1], redirect)
    found.moves.append((before, path))
    return before


def _look_into(
    directory: LayerDir, path: Path, before: Path, found: _Found
) -> list[tuple[LayerDir, Path, Path]]:
    """Note the files with several names in *directory*; return its subdirectories, to be searched too."""
    below = []
    for name, kind in directory.kinds().items():
        if kind == DIRECTORY:
            below.append((directory.child(name), (*path, name), (*before, name)))
        elif kind != WHITEOUT:
            st = os.stat(name, dir_fd=directory.fd(), follow_symlinks=False)
            if st.st_nlink > 1:
                found.links.setdefault(st.st_ino, []).append((*path, name))
    return below
