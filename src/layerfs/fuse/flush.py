"""Getting out of the kernel what it has not written to us yet.

Under the writeback cache a write returns before the daemon hears of it. A commit promises that what was
written before it is in the layer, so the kernel is asked first. syncfs(2) has it send everything; but since
Linux 6.18 it does not wait for a FUSE filesystem's data to arrive, and which files had any we do not
know: opening a file costs no request. The kernel sends writes in the order in which it queued them,
though, so one more of our own, to a file that exists for this alone, comes after all of them.
"""

from __future__ import annotations

import os
import stat

from layerfs.fuse.collector import Collector
from layerfs.fuse.filesystem import Filesystem
from layerfs.union.node import File

_ROUNDS = 2
"""What a truncate under way held back in the first round comes in the second."""


async def flush(filesystem: Filesystem, collector: Collector, mountpoint: str, device: int) -> None:
    """Have the kernel write back what was written to the mount (`st_dev` *device*) until now.

    Raises `Conflict` when the mount is not to be found at *mountpoint* any more, or when something that
    was written could not be stored.
    """
    name = b".layerfs-barrier-" + os.urandom(16).hex().encode()
    barrier = _add_barrier(filesystem, name)
    try:
        for _ in range(_ROUNDS):
            await collector.write_back(mountpoint, device, name)
            await filesystem.contents.writes_under_way()
    finally:
        _remove_barrier(filesystem, name, barrier)
    filesystem.late_times.settle_all()


def _add_barrier(filesystem: Filesystem, name: bytes) -> File:
    """Make a file that is in no layer and no listing, and can be opened by a name that nobody guesses."""
    root = filesystem.union.root
    barrier = File(filesystem.union.table.fresh(), stat.S_IFREG, 0, root.dirs[0], b"")
    barrier.pin = os.memfd_create("layerfs-barrier", os.MFD_CLOEXEC)
    barrier.orphan = True
    barrier.references = 1  # ours
    filesystem.union.table.add(barrier)
    root.children[name] = barrier
    return barrier


def _remove_barrier(filesystem: Filesystem, name: bytes, barrier: File) -> None:
    del filesystem.union.root.children[name]
    filesystem.union.forget(barrier, 1)
