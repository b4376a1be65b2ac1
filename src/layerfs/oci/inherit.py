"""Directories of which a layer's archive says nothing, though something is in them: they stay as below.

An archive need not have an entry for each directory above its files. Whoever unpacks all layers into
one directory leaves such a directory as it is; in a stack, the topmost layer's counts.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from layerfs.archive.directories import Directories, Parts, is_real_root
from layerfs.oci.unpacking import INHERITING
from layerfs.store import manifest
from layerfs.union import merge
from layerfs.union.layer import LayerDir
from layerfs.union.marking import Marking
from layerfs.union.stack import Stack

_DESCRIPTORS = 64


def inherit(layer: Path, below: Stack) -> None:
    """Give directories of the unpacked *layer* the attributes that the trees *below* have.

    Raises `OSError`.
    """
    note = layer / INHERITING
    paths = note.read_bytes().split(b"\0")[:-1]
    own = Directories(layer / "fs")
    try:
        with below.opened(_DESCRIPTORS) as opened:
            roots = [lower.root for lower in reversed(opened)]
            for path in paths:
                parts = tuple(path.split(b"/")) if path != b"." else ()
                if found := _find(roots, parts):
                    _copy(found[0].fd(), own.open(parts, create=False), below.marking)
                    found[0].layer.directories.trim()
    finally:
        own.close()
    if below.trees:
        manifest.renew(layer / "fs", layer / "manifest", set(paths))
    note.unlink()


def _find(roots: Sequence[LayerDir], parts: Parts) -> Sequence[LayerDir]:
    found = roots
    for name in parts:
        below = merge.resolve(found, name)
        if not isinstance(below, list):
            return []
        found = below
    return found


def _copy(source: int, target: int, marking: Marking) -> None:
    """Give the directory *target* the owner, mode, attributes and times of the directory *source*."""
    status = os.fstat(source)
    try:
        os.fchown(target, status.st_uid, status.st_gid)
    except OSError as error:
        if is_real_root() or error.errno not in (errno.EPERM, errno.EINVAL):
            raise
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    marking.copy(b"/proc/self/fd/%d" % source, b"/proc/self/fd/%d/." % target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
