"""How a layer says "deleted": whiteouts and opaque directories, in every form that is about.

- a character device 0:0 (overlayfs): NAME is deleted;
- an empty file with the attribute `overlay.whiteout`, in a directory whose `overlay.opaque` is "x"
  (overlayfs since Linux 6.7): NAME is deleted;
- a file `.wh.NAME` (AUFS, the OCI image spec, fuse-overlayfs without mknod): NAME is deleted;
- the attribute `overlay.opaque` = "y", or a file `.wh..wh..opq`: nothing of the layers below shows.

The `.wh.` forms are read only in layers brought by others. A tree written through layerfs holds the
first form, so there a file that somebody calls `.wh.x` is just a file, as on the kernel's overlayfs.
"""

from __future__ import annotations

import os
import stat

from layerfs.union import xattr
from layerfs.union.marking import OPAQUE, Marking

FILE = 0
"""Anything that is not a directory and not a whiteout."""
DIRECTORY = 1
WHITEOUT = 2

AUFS_PREFIX = b".wh."
AUFS_OPAQUE = b".wh..wh..opq"


def is_device_whiteout(st: os.stat_result) -> bool:
    """Tell whether *st* is of a whiteout in overlayfs' first form."""
    return st.st_rdev == 0 and stat.S_ISCHR(st.st_mode)


def make_whiteout(dir_fd: int, name: bytes) -> None:
    """Make a whiteout for *name* in the directory *dir_fd*. Raises `OSError` (EEXIST, ENOSPC, ...)."""
    os.mknod(name, stat.S_IFCHR | 0o000, 0, dir_fd=dir_fd)


def set_opaque(fd: int, marking: Marking) -> None:
    """Mark the layer directory *fd* opaque, with a private attribute of the stack's *marking*."""
    xattr.set_mark(fd, marking.prefix + OPAQUE, b"y")


def kind_of(dir_fd: int, name: bytes, whiteouts: Marking | None = None) -> int | None:
    """Return what *name* in one layer's directory is: FILE, DIRECTORY, WHITEOUT, or None if absent.

    *whiteouts* is the marking of those in xattr form, None where the directory has none.
    """
    try:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(st.st_mode):
        return DIRECTORY
    if is_device_whiteout(st):
        return WHITEOUT
    if (
        whiteouts is not None
        and st.st_size == 0
        and stat.S_ISREG(st.st_mode)
        and whiteouts.is_whiteout(dir_fd, name)
    ):
        return WHITEOUT
    return FILE


def scan(fd: int, *, aufs: bool, whiteouts: Marking | None) -> dict[bytes, int]:
    """Return every name in the layer directory *fd* and what it is: FILE, DIRECTORY or WHITEOUT.

    With *aufs* the `.wh.` forms are understood: `.wh.NAME` appears as the whiteout NAME (unless the
    same layer has a NAME too, which then counts), and the marker files themselves do not appear.
    *whiteouts*: see `kind_of`.
    """
    kinds: dict[bytes, int] = {}
    deleted: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if aufs and name.startswith(AUFS_PREFIX):
                if not name.startswith(AUFS_PREFIX + AUFS_PREFIX):
                    deleted.append(name[len(AUFS_PREFIX) :])
            elif entry.is_dir(follow_symlinks=False):
                kinds[name] = DIRECTORY
            elif entry.is_symlink() or (entry.is_file(follow_symlinks=False) and whiteouts is None):
                kinds[name] = FILE
            else:
                kind = kind_of(fd, name, whiteouts)
                if kind is not None:
                    kinds[name] = kind
    for name in deleted:
        kinds.setdefault(name, WHITEOUT)
    return kinds


def has_aufs_opaque(fd: int) -> bool:
    """Tell whether the layer directory *fd* holds the file `.wh..wh..opq`."""
    return kind_of(fd, AUFS_OPAQUE) is not None
