"""System calls about mounts and descriptor tables that the standard library does not offer.

All raise `OSError` with the call's errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

# The same numbers on every architecture, as all system calls since 5.1.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_CLOSE_RANGE = 436
_OPENAT2 = 437

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REMOUNT = 32
_CLOSE_RANGE_UNSHARE = 2
_MOST = 0xFFFFFFFF

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_NO_AUTOMOUNT = 0x800
_AT_STATX_DONT_SYNC = 0x4000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_FROM_EMPTY, _MOVE_MOUNT_TO_EMPTY = 4, 0x40
_RESOLVE_IN_ROOT = 0x10
_RESOLVE_CACHED = 0x20
_TRIES = 10
_STATX_SIZE = 256
_STATX_MNT_ID = 0x1000


class Identity(NamedTuple):
    """Which filesystem something lies on, and through which mount it was found."""

    device: int
    """The filesystem's `st_dev`."""
    mount: int
    """The mount's id, the first column of /proc/PID/mountinfo; -1 before Linux 5.8."""


def identify(path: bytes, *, follow: bool = False) -> Identity:
    """Return on which mount *path* lies; for a mountpoint that is what is mounted there.

    The filesystem itself is asked nothing, so a dead or stopped daemon holds nobody up: statx(2) with an
    empty mask.
    """
    flags = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC | (0 if follow else _AT_SYMLINK_NOFOLLOW)
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    _check(_libc.statx(_AT_FDCWD, path, flags, 0, answer), path)
    major, minor = (int.from_bytes(answer.raw[at : at + 4], sys.byteorder) for at in (0x88, 0x8C))
    known = int.from_bytes(answer.raw[:4], sys.byteorder) & _STATX_MNT_ID
    mount = int.from_bytes(answer.raw[0x90:0x98], sys.byteorder) if known else -1
    return Identity(os.makedev(major, minor), mount)


def umount(path: bytes, *, lazy: bool, follow: bool = False) -> None:
    """Unmount *path*: umount2(2), with MNT_DETACH if *lazy*, with UMOUNT_NOFOLLOW unless *follow*."""
    flags = (_MNT_DETACH if lazy else 0) | (0 if follow else _UMOUNT_NOFOLLOW)
    _check(_libc.umount2(path, flags), path)


def remount(path: bytes, flags: int) -> None:
    """Change the flags of the mount at *path*, and of its filesystem, to *flags*: mount(2), MS_REMOUNT."""
    _check(_libc.mount(None, path, None, ctypes.c_ulong(_MS_REMOUNT | flags), None), path)


def mount_tmpfs(path: bytes, options: bytes) -> None:
    """Mount a tmpfs with *options* at *path*, from which nothing can be executed: mount(2)."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _check(_libc.mount(b"shm", path, b"tmpfs", ctypes.c_ulong(flags), options), path)


def open_cached(root: int, path: bytes) -> int:
    """Return an O_PATH descriptor of *path*, with the directory *root* for its root: openat2(2).

    Only what the kernel knows already is followed, as it does the way to a mountpoint: no filesystem on the
    way is asked for anything, whoever mounted it. Raises `OSError`, EAGAIN where one would have to be asked,
    EINVAL before Linux 5.12.
    """
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_CACHED)
    for _ in range(_TRIES):  # what is being mounted or renamed anywhere can get in the way
        fd = int(_syscall(_OPENAT2, root, path, how, len(how)))
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    _check(min(fd, 0), path)
    return fd


def clone_tree(path: bytes) -> int:
    """Return a descriptor of a mount of *path* that is attached nowhere yet: open_tree(2)."""
    fd = int(_syscall(_OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC))
    _check(min(fd, 0), path)
    return fd


def attach(mount: int, place: int) -> None:
    """Attach what `clone_tree` has returned to the file or directory *place*, a descriptor: move_mount(2)."""
    flags = _MOVE_MOUNT_FROM_EMPTY | _MOVE_MOUNT_TO_EMPTY
    _check(int(_syscall(_MOVE_MOUNT, mount, b"", place, b"", flags)))


def keep_only(fd: int) -> None:
    """Give this thread a descriptor table of its own with *fd* and 0 to 2 alone in it: close_range(2)."""
    _check(_syscall(_CLOSE_RANGE, fd + 1, _MOST, _CLOSE_RANGE_UNSHARE))
    if fd > 3:
        _check(_syscall(_CLOSE_RANGE, 3, fd - 1, 0))


def _check(result: int, name: bytes | None = None) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
