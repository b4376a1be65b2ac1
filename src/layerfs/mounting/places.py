"""Files that a runtime makes for something to be mounted on, which no image is to have.

A container's own /etc/hosts, /etc/hostname and /etc/resolv.conf are bound over the image's. Where that has
none, the runtime makes empty ones, in the upper. dockerd has them in a layer of their own, which it never
commits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from layerfs.union import merge
from layerfs.union.copyup import KeptTimes, copy_up, copy_up_directory
from layerfs.union.generation import refresh
from layerfs.union.layer import Layer
from layerfs.union.mutate import link, unlink
from layerfs.union.node import Directory, File
from layerfs.union.view import Union

DIRECTORY = b"etc"
NAMES = (b"hosts", b"hostname", b"resolv.conf")


def keep_out_of(sealed: Layer, union: Union) -> None:
    """Move such files from *sealed*, the upper until now, to the upper that *union* has since `switch_upper`.

    The layer has not been measured yet, and nobody else changes anything. Raises `OSError`; then, and after a
    kill, some of them are still in the layer, where they do no harm.
    """
    parent = union.lookup(union.root, DIRECTORY)
    if not isinstance(parent, Directory):
        return
    below = [part for part in parent.dirs if part.layer not in (sealed, union.upper)]
    for name in NAMES:
        node = union.lookup(parent, name)
        if not isinstance(node, File) or node.home.layer is not sealed or node.contents is not None:
            continue
        if _is_place(node.stat()) and not merge.exists(below, name):
            home = node.home
            copy_up(union, node)
            with KeptTimes(home):
                os.unlink(name, dir_fd=home.fd())
            home.kinds().pop(name, None)


def of(union: Union) -> list[tuple[bytes, File]]:
    """Return such files of a container that runs, as they are in the upper of *union*. Never raises."""
    found: list[tuple[bytes, File]] = []
    with suppress(OSError):
        parent = union.lookup(union.root, DIRECTORY)
        if not isinstance(parent, Directory):
            return found
        for name in NAMES:
            node = union.lookup(parent, name)
            if isinstance(node, File) and union.is_whole(node) and _is_place(node.stat()):
                found.append((name, node))
    return found


def put_back(files: Sequence[tuple[bytes, File]], union: Union) -> None:
    """Have *files* be there, as the same nodes, after *union* went back: something is mounted on each.

    What the tree of then has by itself under these names, and is no such file, stays as it is. Raises
    `OSError`; then some are missing.
    """
    parent = union.lookup(union.root, DIRECTORY)
    if not isinstance(parent, Directory):
        return
    for name, node in files:
        there = union.lookup(parent, name)
        if there is node or not (there is None or (isinstance(there, File) and _is_place(there.stat()))):
            continue
        refresh(union, node)
        copy_up(union, node)
        with KeptTimes(copy_up_directory(union, parent)):
            if there is not None:
                unlink(union, parent, name)
            link(union, node, parent, name)


def remove_at_rest(upper: Path, lowers: Sequence[Path]) -> None:
    """Remove such files from *upper*, the tree of a container that does not run, above *lowers*.

    The runtime makes them again when it starts. Raises `OSError`.
    """
    for name in NAMES:
        own = _find(upper, name)
        if own is None or not _is_place(own) or any(_find(tree, name) is not None for tree in lowers):
            continue
        directory = os.open(
            os.fsencode(upper) + b"/" + DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )
        try:
            before = os.fstat(directory)
            os.unlink(name, dir_fd=directory)
            os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
        finally:
            os.close(directory)


def _find(tree: Path, name: bytes) -> os.stat_result | None:
    """Return what *name* is in the directory of such files of a layer's tree, None for nothing."""
    try:
        path = os.fsencode(tree) + b"/" + DIRECTORY
        return os.lstat(path + b"/" + name) if stat.S_ISDIR(os.lstat(path).st_mode) else None
    except FileNotFoundError:
        return None


def _is_place(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_size == 0 and found.st_nlink == 1
