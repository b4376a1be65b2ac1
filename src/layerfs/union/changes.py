"""What an upper changed, as `docker diff` tells it."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from layerfs.union import merge
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.stack import Stack
from layerfs.union.whiteout import DIRECTORY, WHITEOUT

ADDED = "A"
CHANGED = "C"
DELETED = "D"
_DESCRIPTORS = 64


class Change(NamedTuple):
    """One line of a diff: `kind` is A, C or D, `path` absolute in the merged tree."""

    kind: str
    path: bytes


def changes(stack: Stack) -> Iterator[Change]:
    """Yield what the topmost tree of *stack*, the upper, changes in those below, parents before children.

    Names come in the order of their bytes. A directory that was there before is changed if something
    in it is, or its own mode, owner or time. Contents are not compared: what has been copied up counts
    as changed, as in Docker. Raises `OSError` when a tree cannot be read; names that vanish while it
    reads are left out.
    """
    with stack.opened(_DESCRIPTORS) as layers:
        yield from changes_of(layers[-1])


def changes_of(layer: Layer) -> Iterator[Change]:
    """Yield what an opened layer changes in those below it, as `changes` does."""
    yield from _in_directory(layer.root, [lower.root for lower in layer.below], b"")


def _in_directory(directory: LayerDir, below: Sequence[LayerDir], path: bytes) -> Iterator[Change]:
    directory.layer.directories.trim()
    try:
        kinds = sorted(directory.kinds().items())
    except FileNotFoundError:
        return
    for name, kind in kinds:
        here = b"%s/%s" % (path, name)
        before = merge.resolve(below, name)
        if kind == WHITEOUT:
            if before is not None:
                yield Change(DELETED, here)
        elif kind != DIRECTORY:
            yield Change(ADDED if before is None else CHANGED, here)
        else:
            yield from _directory(directory, below, name, before, here)


def _directory(
    parent: LayerDir,
    below: Sequence[LayerDir],
    name: bytes,
    before: list[LayerDir] | LayerDir | None,
    path: bytes,
) -> Iterator[Change]:
    parts = merge.resolve([parent, *below], name)
    if not isinstance(parts, list):
        return  # gone meanwhile
    if not isinstance(before, list):
        yield Change(ADDED if before is None else CHANGED, path)
        yield from _all_of(parts, path)
        return
    if _same_place(parts[1:], before):
        inside = _in_directory(parts[0], before, path)
        first = next(inside, None)
        if first is not None or _differs(parts[0], before[0]):
            yield Change(CHANGED, path)
        if first is not None:
            yield first
        yield from inside
        return
    yield Change(CHANGED, path)  # opaque, or another directory renamed to this name
    old, new = set(merge.names(before)), set(merge.names(parts))
    for inner in sorted(old | new):
        here = b"%s/%s" % (path, inner)
        if inner not in new:
            yield Change(DELETED, here)
            continue
        yield Change(CHANGED if inner in old else ADDED, here)
        target = merge.resolve(parts, inner)
        if isinstance(target, list):
            yield from _all_of(target, here)


def _all_of(dirs: Sequence[LayerDir], path: bytes) -> Iterator[Change]:
    """Yield everything in the merged directory *dirs* as added."""
    dirs[0].layer.directories.trim()
    for name in sorted(merge.names(dirs)):
        here = b"%s/%s" % (path, name)
        yield Change(ADDED, here)
        target = merge.resolve(dirs, name)
        if isinstance(target, list):
            yield from _all_of(target, here)


def _same_place(parts: Sequence[LayerDir], before: Sequence[LayerDir]) -> bool:
    return [_identity(part) for part in parts] == [_identity(part) for part in before]


def _identity(part: LayerDir) -> tuple[int, int]:
    st = part.status()
    return st.st_dev, st.st_ino


def _differs(upper: LayerDir, lower: LayerDir) -> bool:
    one, two = upper.status(), lower.status()
    return stat.S_IMODE(one.st_mode) != stat.S_IMODE(two.st_mode) or (
        one.st_uid,
        one.st_gid,
        one.st_mtime_ns,
    ) != (two.st_uid, two.st_gid, two.st_mtime_ns)
