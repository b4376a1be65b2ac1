"""Getting out of the kernel what it has not written to us yet.

Under the writeback cache a write returns before the daemon hears of it. A commit promises that what
was written before it is in the layer, so the kernel is asked first: for the times and whatever else
it will give on syncfs(2), and then file by file, with sync_file_range(2), which waits for the data.
syncfs alone will not do: since Linux 6.18 it does not wait for a FUSE filesystem's writes. A file
that nobody has open needs no asking, the kernel writes it back when it is closed.

These functions use the mount, so they run in threads, never in the event loop.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable

import trio

from layerfs.errors import Conflict
from layerfs.fuse.operations import Operations
from layerfs.union import syscalls
from layerfs.union.node import File

_log = logging.getLogger(__name__)
_ROUNDS = 5


async def flush(operations: Operations, mountpoint: str, device: int) -> None:
    """Have the kernel write back what was written to the mount (`st_dev` *device*) until now.

    Raises `Conflict` when the mount is not to be found at *mountpoint* any more.
    """
    await trio.to_thread.run_sync(_sync_mount, mountpoint, device)
    pending = set(operations.writing)
    for _ in range(_ROUNDS):  # a rename on the way makes a path wrong: then ask for it again
        paths = [(file, path) for file in pending if (path := operations.union.path_of(file))]
        if not paths:
            return
        pending = await trio.to_thread.run_sync(_write_back, mountpoint, paths)
    _log.warning("%d files kept moving while their writes were collected", len(pending))


def _sync_mount(mountpoint: str, device: int) -> None:
    root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(root).st_dev != device:
            raise Conflict(f"{mountpoint} is hidden by another mount: unmount that one first")
        syscalls.syncfs(root)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
        raise Conflict(
            f"something written to {mountpoint} before could not be stored ({error.strerror}); "
            f"try again to go on without it"
        ) from None
    finally:
        os.close(root)


def _write_back(mountpoint: str, paths: Iterable[tuple[File, bytes]]) -> set[File]:
    """Write back each file at its path below the mountpoint; return those that are not there."""
    missed: set[File] = set()
    for file, path in paths:
        try:
            fd = _open_below(mountpoint, path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            missed.add(file)
            continue
        try:
            syscalls.write_back(fd)
        finally:
            os.close(fd)
    return missed


def _open_below(mountpoint: str, path: bytes) -> int:
    """Open *path* one name at a time, so that it may be longer than PATH_MAX."""
    fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    *above, last = path.split(b"/")
    for name, flags in [*((name, os.O_PATH | os.O_DIRECTORY) for name in above), (last, os.O_RDONLY)]:
        try:
            below = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd
