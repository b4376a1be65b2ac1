"""Hard links within a lower layer: which names one file has, and where in the union those are today.

A copy-up must give every name of a file the same copy, also names that nobody has looked up yet. So the
layer is searched once, when the first file with names that are not known is copied up from it. The layers
above it say by their tables of renamed directories (`moves`) where the names went; a table that is not known
yet is made once, from a search of that layer's directories.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakKeyDictionary

from layerfs.union.layer import Layer, LayerDir
from layerfs.union.moves import Move, Moves, Path
from layerfs.union.whiteout import DIRECTORY, WHITEOUT

_DESCRIPTORS = 64
_links: WeakKeyDictionary[Layer, dict[int, list[Path]]] = WeakKeyDictionary()
_lock = threading.Lock()


def names_in(layer: Layer, inode: int) -> list[Path]:
    """Return the names of file *inode* (`st_ino`) in *layer*, which no longer changes.

    Reads the whole layer at the first call (0.3 s for 100,000 files), and again for a file that had several
    names and has one left. Any thread may call it.
    """
    with _lock:
        links = _links.get(layer)
        if links is None:
            links = _links[layer] = {}
            for path, st in _files(layer):
                if st.st_nlink > 1:
                    links.setdefault(st.st_ino, []).append(path)
    names = links.get(inode)
    return [path for path, st in _files(layer) if st.st_ino == inode] if names is None else names


class Renamed(NamedTuple):
    """Some of the layers of a run, as `today` needs them: what has been renamed in them is known."""

    moves: Moves


def learn_moves(layers: Sequence[Layer | Renamed]) -> None:
    """Find out which directories were renamed in those *layers* where that is not known.

    Reads their directories. Any thread may call it; `today` then has nothing to wait for.
    """
    with _lock:
        for layer in layers:
            if isinstance(layer, Layer) and not layer.moves.known:
                began = layer.moves.begin()
                layer.moves.offer(began, list(renamed(layer)))


def today(path: Path, above: Sequence[Layer | Renamed]) -> Path:
    """Return where in the union what has *path* in a layer would stand today.

    *above* are the layers over it, top-most first. It may have been deleted or replaced since: whoever asks
    looks. For the thread that owns the union.
    """
    for layer in reversed(above):
        if not layer.moves.settle():  # not asked for, or a directory was renamed during the search: now, then
            learn_moves([layer])
            layer.moves.settle()
        path = layer.moves.today(path)
    return path


def _files(layer: Layer) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the path and the stat of everything in *layer* that is neither directory nor whiteout."""
    for directory, path in directories_of(layer):
        for name, kind in directory.kinds().items():
            if kind not in (DIRECTORY, WHITEOUT):
                with suppress(OSError):
                    yield (*path, name), os.stat(name, dir_fd=directory.fd(), follow_symlinks=False)


def renamed(layer: Layer) -> Iterator[Move]:
    """Yield where each renamed directory of *layer* came from and where it is. Reads its directories."""
    if not layer.below:
        return
    origins: dict[Path, Path] = {}
    for directory, path in directories_of(layer):
        redirect = None
        if path:
            with suppress(OSError):
                redirect = directory.marks().redirect
        if redirect is None:
            continue
        if redirect.startswith(b"/"):
            old = tuple(redirect[1:].split(b"/"))
        else:
            old = (*_origin(path[:-1], origins), redirect)
        origins[path] = old
        yield old, path


def _origin(path: Path, origins: dict[Path, Path]) -> Path:
    """Return what the layers below call the directory *path*, by the renamed ones above it."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]] + path[length:]
    return path


def directories_of(layer: Layer) -> Iterator[tuple[LayerDir, Path]]:
    """Yield every directory of *layer* with its path, parents first.

    The handles are the walk's own: the union's are for the thread that owns it. A directory that goes
    meanwhile, or cannot be read, is left out: its names are nobody's to see.
    """
    own = layer.apart()
    try:
        pending: list[tuple[LayerDir, Path]] = [(own.root, ())]
        while pending:
            own.directories.trim(_DESCRIPTORS)
            directory, path = pending.pop()
            try:
                kinds = directory.kinds()
            except OSError:
                continue
            yield directory, path
            pending += [(directory.child(name), (*path, name)) for name in kinds if kinds[name] == DIRECTORY]
    finally:
        own.close()
