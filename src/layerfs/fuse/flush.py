"""Getting out of the kernel what it has not written to us yet.

Under the writeback cache a write returns before the daemon hears of it. A commit promises that what was
written before it is in the layer, so the kernel is asked first. syncfs(2) has it send everything; but since
Linux 6.18 it does not wait for a FUSE filesystem's data to arrive, and which files had any we do not
know: opening a file costs no request. The kernel sends writes in the order in which it queued them,
though, so one more of our own, to a file that exists for this alone, comes after all of them.

These functions use the mount, so they run in a thread, never in the event loop.
"""

from __future__ import annotations

import errno
import os

import trio

from layerfs.errors import Conflict
from layerfs.fuse import wire
from layerfs.fuse.filesystem import Filesystem
from layerfs.union import syscalls
from layerfs.union.node import File

_ROUNDS = 2
"""What a truncate under way held back in the first round comes in the second."""


async def flush(filesystem: Filesystem, mountpoint: str, device: int) -> None:
    """Have the kernel write back what was written to the mount (`st_dev` *device*) until now.

    Raises `Conflict` when the mount is not to be found at *mountpoint* any more, or when something that
    was written could not be stored.
    """
    name = b".layerfs-barrier-" + os.urandom(16).hex().encode()
    barrier = _add_barrier(filesystem, name)
    try:
        for _ in range(_ROUNDS):
            await trio.to_thread.run_sync(_write_back, mountpoint, device, name)
            await filesystem.contents.writes_under_way()
            wire.wait_for_writes()
    finally:
        _remove_barrier(filesystem, name, barrier)
    filesystem.late_times.settle_all()


def _add_barrier(filesystem: Filesystem, name: bytes) -> File:
    """Make a file that is in no layer and no listing, and can be opened by a name that nobody guesses."""
    root = filesystem.union.root
    barrier = File(filesystem.union.table.fresh(), 0o100000, 0, root.dirs[0], b"")
    barrier.pin = os.memfd_create("layerfs-barrier", os.MFD_CLOEXEC)
    barrier.orphan = True
    barrier.references = 1  # ours
    filesystem.union.table.add(barrier)
    root.children[name] = barrier
    return barrier


def _remove_barrier(filesystem: Filesystem, name: bytes, barrier: File) -> None:
    del filesystem.union.root.children[name]
    filesystem.union.forget(barrier, 1)


def _write_back(mountpoint: str, device: int, barrier: bytes) -> None:
    root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(root).st_dev != device:
            raise Conflict(f"{mountpoint} is hidden by another mount: unmount that one first")
        syscalls.syncfs(root)
        last = os.open(barrier, os.O_WRONLY | os.O_CLOEXEC, dir_fd=root)
        try:
            os.pwrite(last, b"\0", 0)
            syscalls.write_back(last)
        finally:
            os.close(last)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
        raise Conflict(
            f"something written to {mountpoint} before could not be stored ({error.strerror}); "
            f"try again to go on without it"
        ) from None
    finally:
        os.close(root)
