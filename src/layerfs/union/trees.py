"""System calls that Python has no function for, and the coreutils that copy and remove trees."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path

from layerfs.errors import LayerfsError
from layerfs.union.marking import Marking

_libc = ctypes.CDLL(None, use_errno=True)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sync_filesystem(fd: int) -> None:
    """Bring everything written to the filesystem of *fd* to its disk (syncfs(2)); raises `OSError`."""
    if _libc.syncfs(fd) != 0:
        raise _failure()


def sync_path(path: Path, *, data_only: bool = False) -> None:
    """Bring one file or directory itself to its disk (fsync(2), or fdatasync(2) if *data_only*).

    A directory's entries are part of it, what they name is not. Raises `OSError`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        (os.fdatasync if data_only else os.fsync)(fd)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """Yield a descriptor on a directory. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@cache
def boot_id() -> str:
    """Return what names this run of the machine: another after each start of the kernel.

    What was written in the same boot is still in the page cache, or on the disk. Raises `OSError`.
    """
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()  # as UTF-8, which is loaded: each commit asks
    finally:
        os.close(fd)


def exchange(first: Path, second: Path) -> None:
    """Swap two directories in one step (renameat2(2), RENAME_EXCHANGE); raises `OSError`."""
    names = os.fsencode(first), os.fsencode(second)
    if _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        raise _failure(first, second)


def _failure(*paths: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), *(str(path) for path in paths[:1]))


def list_xattrs(path: Path | bytes) -> list[str]:
    """Return the names of the extended attributes of *path* itself, sorted; none where there can be none."""
    try:
        return sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def copy_attributes(source: Path, target: Path, marking: Marking) -> None:
    """Give *target* the owner, mode, extended attributes and times of the directory *source*.

    The private attributes of the overlay stay behind. What only root may set is left out for
    others. Raises `OSError`.
    """
    status = source.stat()
    is_root = os.geteuid() == 0
    try:
        os.chown(target, status.st_uid, status.st_gid)
    except PermissionError:
        if is_root:
            raise
    target.chmod(status.st_mode & 0o7777)
    for name in list_xattrs(source):
        if marking.shown_name(os.fsencode(name)) is None:
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except PermissionError:
            if is_root:
                raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def walk(root_fd: int) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield each path below the directory *root_fd*, relative to it, and its `lstat`.

    The root comes first, as `.`; a directory comes before its entries, and these sorted as bytes.
    What goes away meanwhile is passed over. Raises `OSError`.
    """
    pending = [b"."]
    while pending:
        path = pending.pop()
        names: list[bytes] = []
        found: list[tuple[bytes, os.stat_result]] = []
        with suppress(FileNotFoundError):
            status = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(path, flags, dir_fd=root_fd)
                try:
                    names = [os.fsencode(name) for name in os.listdir(fd)]
                finally:
                    os.close(fd)
            found.append((path, status))
        yield from found
        prefix = b"" if path == b"." else path + b"/"
        pending += [prefix + name for name in sorted(names, reverse=True)]


_FEW = 64
"""Entries that a tree may have to be removed by this process: starting another costs as much as so many."""


def remove_trees(*paths: Path) -> None:
    """Remove *paths* and what is below them, as far down as it goes; raises `LayerfsError`."""
    paths = tuple(path for path in paths if not _remove_small(path))
    if not paths:
        return
    for attempt in range(2):
        done = subprocess.run(
            ["rm", "-rf", "--one-file-system", "--", *paths],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
        if done.returncode == 0:
            return
        if attempt == 0 and os.geteuid() != 0:  # directories that their owner may not write to
            subprocess.run(["chmod", "-R", "u+rwX", "--", *paths], capture_output=True, check=False)
    line = done.stderr.decode(errors="replace").partition("\n")[0].removeprefix("rm: ")
    raise LayerfsError(f"cannot remove {paths[0].parent}: {line}")


def _remove_small(path: Path) -> bool:
    """Remove *path* if it is a tree of few entries on one filesystem; return whether it is gone.

    Else some of it may be gone. Everything is one name in a directory that is held open, so nothing that
    others do meanwhile leads outside the tree.
    """
    try:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            return False
        _empty(path, None, status.st_dev, _FEW)
        os.rmdir(path)
    except FileNotFoundError:
        return not os.path.lexists(path)
    except OSError:
        return False
    return True


def _empty(name: Path | str, above: int | None, device: int, allowed: int) -> int:
    """Empty the directory *name* in *above*; return how many more entries are *allowed* to be removed.

    Raises `OSError` where that is not possible: too many entries, another filesystem, no permission.
    """
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        if os.fstat(fd).st_dev != device:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(name))
        with os.scandir(fd) as entries:
            names = [entry.name for entry in islice(entries, allowed + 1)]
        for entry in names:
            allowed -= 1
            if allowed < 0:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), str(name))
            if stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                allowed = _empty(entry, fd, device, allowed)
                os.rmdir(entry, dir_fd=fd)
            else:
                os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    return allowed
