"""The kernel's mount table: what is mounted where, and taking it away."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from typing import NamedTuple

from layerfs.errors import Conflict, from_os_error
from layerfs.union import syscalls

TYPE = "fuse.layerfs"


class Mounted(NamedTuple):
    """What is mounted at a directory: the type of the filesystem and its source."""

    type: str
    source: str


def mounted_at(mountpoint: str) -> Mounted | None:
    """Return what is mounted at *mountpoint* (absolute, without links), or None (proc_pid_mountinfo(5)).

    The directory itself is not touched: its daemon may be dead, or this very process.
    """
    wanted = os.fsencode(mountpoint)
    found = None
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            place, _, what = line.partition(b" - ")
            if _unescape(place.split()[4]) == wanted:
                type_, source, *_ = what.split()
                found = Mounted(os.fsdecode(type_), os.fsdecode(_unescape(source)))
    return found


def is_mounted(device: int) -> bool:
    """Tell whether the filesystem *device* (`st_dev`) is mounted anywhere in this mount namespace."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    with open("/proc/self/mountinfo", "rb") as lines:
        return any(line.split(maxsplit=3)[2] == wanted for line in lines)


def detach(mountpoint: str, name: str) -> None:
    """Take away what the dead daemon of the mount called *name* left at *mountpoint*, if anything.

    The mount table is asked, not the directory: the kernel may still have it cached and show no fault.
    Raises `LayerfsError` when it stays.
    """
    if mounted_at(mountpoint) == (TYPE, name):
        unmount(mountpoint, lazy=True)


def _unescape(path: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), path)


def unmount(mountpoint: str, *, lazy: bool) -> None:
    """Unmount *mountpoint*; if *lazy*, out of the tree at once, and for good when its last user is gone.

    Not for the loop that serves the mount: it would wait for itself. Raises `Conflict` when the mount is
    in use, and other `LayerfsError`s.
    """
    if os.geteuid() == 0:
        try:
            syscalls.umount(os.fsencode(mountpoint), lazy=lazy)
        except OSError as error:
            if error.errno == errno.EINVAL and mounted_at(mountpoint) is None:
                return  # somebody else was quicker
            if error.errno == errno.EBUSY:
                raise Conflict(
                    f"{mountpoint} is busy: a process has a file or its directory there; "
                    f"end it, or unmount with --force"
                ) from None
            raise from_os_error(error, f"unmount {mountpoint}") from None
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Conflict(f"cannot unmount {mountpoint}: {done.stderr.strip() or 'fusermount3 failed'}")
