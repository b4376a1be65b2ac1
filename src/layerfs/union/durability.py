"""What must be on the disk before a copy may take its place.

After a power cut the upper must hold the old file or the whole new one, never an empty one. What counts are
the contents: owner, mode, times and attributes are set afterwards, as the kernel's overlayfs does it, and the
journal keeps them before the name. fsync(2) sees to the contents, and to more: it has the journal
committed, which is most of what a small copy-up costs. On a filesystem whose journal keeps the order of
metadata it is enough that the data was written and waited for (sync_file_range(2)): its blocks are then
recorded in the journal before the name is, and if the name is lost in a power cut, then as if nobody had
copied yet.

- ext4 with a journal: the end of writeback of a page comes after its extent was converted
  (fs/ext4/page-io.c, ext4_release_io_end), in this transaction of the journal or an earlier one;
- XFS: likewise, the log is in the order of the changes (fs/xfs/xfs_aops.c, xfs_end_ioend).

Others, such as btrfs, end writeback before they record the blocks: there it is fsync.

The same order decides what an fsync of a file does for the names that lead to it: where the journal keeps it,
all changes of names that came before are on the disk as well. Elsewhere each directory has to be synced.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from layerfs.union import mountinfo, syscalls


def settler(fd: int) -> Callable[[int], None]:
    """Return what makes a copy safe to be put in place, on the filesystem that *fd* lies on.

    It is called with the copy's descriptor, and raises `OSError` when its data cannot be written.
    """
    return syscalls.write_back if _keeps_order(os.fstat(fd).st_dev) else os.fsync


def syncs_names(fd: int) -> bool:
    """Tell whether fsync(2), on the filesystem that *fd* lies on, brings all earlier changes to the disk.

    Where nothing is ever on a disk, it does too.
    """
    device = os.fstat(fd).st_dev
    return _keeps_order(device) or described(device)[0] in ("tmpfs", "ramfs")


def _keeps_order(device: int) -> bool:
    type_, options = described(device)
    if options & {"nobarrier", "barrier=0"}:
        return False
    return type_ == "xfs" or (type_ == "ext4" and _has_journal(device))


def described(device: int) -> tuple[str, frozenset[str]]:
    """Return type and options of the filesystem that is *device*, from the mount table; "" where unknown."""
    with suppress(OSError):
        for mounted in mountinfo.mounts():
            if mounted.device == device:
                return mounted.type, mounted.flags
    return "", frozenset()


def _has_journal(device: int) -> bool:
    """Tell whether the ext4 filesystem on a block device has a journal at work (proc(5), fs/jbd2)."""
    try:
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve(strict=True)
        return any(entry.name.rpartition("-")[0] == block.name for entry in Path("/proc/fs/jbd2").iterdir())
    except OSError:
        return False
