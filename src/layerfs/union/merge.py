"""The heart of the union: what a name means in a stack of directories.

A merged directory is a list of `LayerDir`s, top-most first, cut off below the first opaque one. The
functions here say what such a list holds; they change nothing and know nothing of inodes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from layerfs.union.layer import Layer, LayerDir
from layerfs.union.whiteout import DIRECTORY, WHITEOUT

Place = tuple[LayerDir, bytes]
"""A name in a directory of a layer."""


def resolve(dirs: Sequence[LayerDir], name: bytes) -> list[LayerDir] | LayerDir | None:
    """Find *name* in the merged directory *dirs*.

    Returns the list of directories that merge under the name; or, for anything but a directory, the
    one layer directory that holds it; or None where the name does not exist or is deleted.
    Raises `OSError` when a layer cannot be read, EINVAL for a redirect that makes no sense, EPERM for one
    that is not to be followed.
    """
    found: list[LayerDir] = []
    for depth, directory in enumerate(dirs):
        kind = directory.kind(name)
        if kind is None:
            continue
        if kind != DIRECTORY:
            if kind != WHITEOUT and not found:
                return directory.holder(name)
            break
        child = directory.child(name)
        found.append(child)
        if not child.layer.below:
            break
        marks = child.marks()
        if marks.opaque:
            break
        if marks.redirect is not None:
            found += _follow(marks.redirect, child, dirs[depth + 1 :])
            break
    return found or None


def _follow(redirect: bytes, directory: LayerDir, siblings: Sequence[LayerDir]) -> list[LayerDir]:
    """Return what *directory*, renamed from *redirect*, merges with in the layers below it.

    An absolute redirect counts from the roots of the layers below, a relative one is a name in the
    same parent (kernel documentation, "overlayfs", "redirect_dir").
    """
    absolute = redirect.startswith(b"/")
    names = _names_in(redirect, directory.name)
    below: list[LayerDir] = [layer.root for layer in directory.layer.below] if absolute else list(siblings)
    directory.redirect = redirect
    for name in names:
        target = resolve(below, name)
        if not isinstance(target, list):
            return []
        below = target
    return below


def contents(below: Sequence[LayerDir], layer: Layer, name: bytes, redirect: bytes | None) -> Place:
    """Return where the contents of a regular file are of which *layer* has the metadata alone.

    *below* are the directories under the one that holds it, *redirect* is where it was renamed from
    (kernel documentation, "overlayfs", "Metadata only copy up"). Raises `OSError`: EIO where no such
    file is below, EINVAL for a redirect that makes no sense.
    """
    if redirect is not None:
        *above, name = _names_in(redirect, name)
        if redirect.startswith(b"/"):
            below = [lower.root for lower in layer.below]
            for part in above:
                target = resolve(below, part)
                below = target if isinstance(target, list) else []
    home = resolve(below, name)
    if not isinstance(home, LayerDir):
        raise OSError(errno.EIO, os.strerror(errno.EIO), name)
    st = os.stat(name, dir_fd=home.fd(), follow_symlinks=False)
    if not stat.S_ISREG(st.st_mode):
        raise OSError(errno.EIO, os.strerror(errno.EIO), name)
    if home.layer.below:
        marks = home.file_marks(name, st)
        if marks.metacopy:
            rest = below[list(below).index(home) + 1 :]
            return contents(rest, home.layer, name, marks.redirect)
    return home, name


def _names_in(redirect: bytes, name: bytes) -> list[bytes]:
    """Return the names that a redirect of *name* is made of; raises EINVAL for what it must not hold."""
    names = redirect[1:].split(b"/") if redirect.startswith(b"/") else [redirect]
    if any(part in (b"", b".", b"..") or b"/" in part for part in names):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return names


def names(dirs: Sequence[LayerDir]) -> list[bytes]:
    """Return the names in the merged directory *dirs*, in no particular order."""
    if len(dirs) == 1:
        return [name for name, kind in dirs[0].kinds().items() if kind != WHITEOUT]
    merged: dict[bytes, int] = {}
    for directory in dirs:
        for name, kind in directory.kinds().items():
            merged.setdefault(name, kind)
    return [name for name, kind in merged.items() if kind != WHITEOUT]


def exists(dirs: Sequence[LayerDir], name: bytes) -> bool:
    """Tell whether *name* exists in the merged directory *dirs*."""
    for directory in dirs:
        kind = directory.kind(name)
        if kind is not None:
            return kind != WHITEOUT
    return False
