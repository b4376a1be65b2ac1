"""What the kernel keeps of a mount, made stale when that goes back to another tree.

Names, those of nothing too, go with one message: it says that all told so far is to be asked for again
(FUSE_NOTIFY_INC_EPOCH, Linux 6.16). It takes some microseconds, holds at once and waits for nobody. But a
stale dentry goes when it is looked up again, and with it whatever is mounted on it. So where something is
mounted in the mount, as in the root of a container, and on older kernels, each name that differs is dropped
by itself. That, like dropping the attributes and listings of directories, takes locks of the kernel that
somebody may hold who waits for an answer of ours: a thread does it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress

import pyfuse3
from pyfuse3 import FileNameT, InodeT

_DEVICE = os.makedev(10, 229)
_HEADER = struct.Struct("=IiQ")
_PRUNE = struct.Struct("=IIQ")
_NOTIFY_INC_EPOCH = 8
_NOTIFY_PRUNE = 9
_AT_A_TIME = 500

Name = tuple[int, bytes]
"""A name in the directory of that number."""


def make_names_stale() -> bool:
    """Have the kernel ask for every name again; tell whether it can. Never raises."""
    return _notify(_NOTIFY_INC_EPOCH, b"")


_can_make_stale: bool | None = None


def can_make_names_stale() -> bool:
    """Tell whether `make_names_stale` does something: the first call tries, and makes them stale."""
    global _can_make_stale
    if _can_make_stale is None:
        _can_make_stale = os.environ.get("LAYERFS_EPOCH") != "0" and make_names_stale()
    return _can_make_stale


def drop(names: Iterable[Name], directories: Iterable[int], files: Iterable[int]) -> None:
    """Have the kernel forget *names*, what it knows of *directories*, and the attributes of *files*.

    For a thread: it may wait for answers of the mount.
    """
    for directory, name in names:
        with suppress(OSError):  # it does not know that one, or not any more
            pyfuse3.invalidate_entry(InodeT(directory), FileNameT(name))
    for inode in directories:
        with suppress(OSError):
            pyfuse3.invalidate_inode(InodeT(inode), attr_only=False)
    for inode in files:
        with suppress(OSError):
            pyfuse3.invalidate_inode(InodeT(inode), attr_only=True)


def prune(inodes: Sequence[int]) -> None:
    """Have the kernel forget those of *inodes* that nobody uses, if it can (Linux 6.18). For a thread."""
    for start in range(0, len(inodes), _AT_A_TIME):
        some = inodes[start : start + _AT_A_TIME]
        body = _PRUNE.pack(len(some), 0, 0) + struct.pack(f"={len(some)}Q", *some)
        if not _notify(_NOTIFY_PRUNE, body):
            return


def _notify(code: int, body: bytes) -> bool:
    message = _HEADER.pack(_HEADER.size + len(body), code, 0) + body
    device = _device()
    if device < 0:
        return False
    try:
        os.write(device, message)
    except OSError:
        return False  # an older kernel says EINVAL
    return True


_known_device = -1


def _device() -> int:
    """Return the descriptor of this process by which the session talks to the kernel, -1 if there is none."""
    global _known_device
    if _known_device < 0 or not _is_device(_known_device):
        found = (int(name) for name in os.listdir("/proc/self/fd"))
        _known_device = next((fd for fd in found if _is_device(fd)), -1)
    return _known_device


def _is_device(fd: int) -> bool:
    try:
        st = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == _DEVICE
