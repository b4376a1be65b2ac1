"""System calls that the standard library does not offer. All raise `OSError` with the call's errno."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_FICLONE = 0x40049409
_SYNC_FILE_RANGE_WRITE_AND_WAIT = 7
_MNT_DETACH = 2
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_INO_AND_BTIME = 0x100 | 0x800
_STATX_SIZE = 256
_UTIME_OMIT = (1 << 30) - 2
_NS = 1_000_000_000

_OPEN_TREE = 428
_OPEN_TREE_CLONE = 1
_OPENAT2 = 437
RESOLVE_NO_SYMLINKS = 4
_LISTXATTRAT = 465  # on every architecture, as all system calls since 5.1
_has_listxattrat = True
_NAMES_SIZE = 512
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_renameat2 = _libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_utimensat = _libc.utimensat
_utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
_futimens = _libc.futimens
_futimens.argtypes = [ctypes.c_int, ctypes.c_void_p]
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class Identity(NamedTuple):
    """An object of a filesystem: not the next one that gets its inode number."""

    device: int
    inode: int
    born: tuple[int, int]
    """When it was made, in seconds and nanoseconds; zeros where the filesystem does not say."""


def identity(fd: int) -> Identity:
    """Return which object *fd* is open on: statx(2)."""
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    _check(_libc.statx(fd, b"", flags, _STATX_INO_AND_BTIME, answer))
    (inode,) = struct.unpack_from("=Q", answer, 0x20)
    born = struct.unpack_from("=qI", answer, 0x50)
    major, minor = struct.unpack_from("=II", answer, 0x88)
    return Identity(os.makedev(major, minor), inode, born)


def _check(result: int, name: bytes | None = None) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """Rename *old* in directory *old_dir* to *new* in *new_dir* with *flags*: renameat2(2)."""
    _check(_renameat2(old_dir, old, new_dir, new, flags), old)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, or with *mode* punch or zero, *length* bytes of a file from *offset*: fallocate(2)."""
    _check(_fallocate(fd, mode, offset, length))


def utimensat(fd: int, name: bytes | None, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the times of *name*, not followed, in the directory *fd*, or those of *fd* itself: utimensat(2).

    Times are nanoseconds since the epoch; None leaves one as it is.
    """
    atime = (0, _UTIME_OMIT) if atime_ns is None else divmod(atime_ns, _NS)
    mtime = (0, _UTIME_OMIT) if mtime_ns is None else divmod(mtime_ns, _NS)
    times = (ctypes.c_int64 * 4)(*atime, *mtime)
    if name is None:
        _check(_futimens(fd, times))
    else:
        _check(_utimensat(fd, name, times, _AT_SYMLINK_NOFOLLOW), name)


def syncfs(fd: int) -> None:
    """Write back everything of the filesystem that *fd* lies on: syncfs(2)."""
    _check(_libc.syncfs(fd))


def write_back(fd: int) -> None:
    """Write a file's dirty pages to the filesystem below and wait for them: sync_file_range(2).

    Unlike fsync(2) it asks the filesystem for nothing more, so no disk is waited for.
    """
    _check(_sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE_AND_WAIT))


def umount(path: bytes, *, lazy: bool) -> None:
    """Unmount *path*: umount2(2), with MNT_DETACH if *lazy*."""
    _check(_libc.umount2(ctypes.c_char_p(path), _MNT_DETACH if lazy else 0), path)


def clone_tree(fd: int) -> int:
    """Return a descriptor of a copy of the mount that *fd* lies on, with *fd* for its root: open_tree(2).

    The copy is mounted nowhere, and has nothing mounted in it: it keeps the filesystem, and not the mount. It
    is gone when nobody has a descriptor in it. Raises `OSError`: EPERM without CAP_SYS_ADMIN, EINVAL where
    that would show what is hidden from this user namespace.
    """
    result = int(_syscall(_OPEN_TREE, fd, b"", _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH))
    _check(min(result, 0))
    return result


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open *path* in the directory *dir_fd*, with restrictions on how it is resolved: openat2(2).

    ELOOP is what a link in the way gives, ENOSYS a kernel before 5.6.
    """
    how = struct.pack("=QQQ", flags, 0, resolve)
    result = int(_syscall(_OPENAT2, dir_fd, path, how, len(how)))
    _check(min(result, 0), path)
    return result


def listxattrat(dir_fd: int, name: bytes) -> list[bytes]:
    """Return the names of the extended attributes of *name*, not followed, in the directory *dir_fd*.

    By listxattrat(2), which is there since Linux 6.13, or else by way of /proc, which takes longer.
    """
    global _has_listxattrat
    if _has_listxattrat:
        names = ctypes.create_string_buffer(_NAMES_SIZE)
        size = _syscall(_LISTXATTRAT, dir_fd, name, _AT_SYMLINK_NOFOLLOW, names, _NAMES_SIZE)
        if size == 0:
            return []
        if size > 0:
            return names.raw[:size].split(b"\0")[:-1]
        code = ctypes.get_errno()
        if code == errno.ENOSYS:
            _has_listxattrat = False
        elif code != errno.ERANGE:
            raise OSError(code, os.strerror(code), name)
    path = b"/proc/self/fd/%d/%s" % (dir_fd, name)
    return [os.fsencode(text) for text in os.listxattr(path, follow_symlinks=False)]


def clone_file(source: int, target: int) -> bool:
    """Share the blocks of *source* with the empty file *target* (FICLONE, ioctl_ficlone(2)).

    Returns whether the filesystem can; any other failure is raised.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            return False
        raise
    return True
