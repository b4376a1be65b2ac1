"""A filesystem in an image file, which can lose its power."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN, and XFS_IOC_GOINGDOWN
_NO_LOG_FLUSH = struct.pack("=I", 2)
_MNT_DETACH = 2
_PATIENCE = 20
_libc = ctypes.CDLL(None, use_errno=True)

SIZES = {"ext4": 128 << 20, "xfs": 320 << 20}
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,nodiscard", "-J", "size=8"],
    "xfs": ["mkfs.xfs", "-q", "-K"],
}
_OPTIONS = {"ext4": "loop,commit=1", "xfs": "loop,nouuid"}


class Disk:
    """A disk of *kind* (`ext4` or `xfs`) at *directory*`/disk`, not plugged in yet."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.kind = kind
        self.image = directory / f"disk.{kind}"
        self.path = directory / "disk"
        self.path.mkdir(exist_ok=True)

    def make(self) -> None:
        """Make the filesystem, empty."""
        with self.image.open("wb") as file:
            file.truncate(SIZES[self.kind])
        subprocess.run([*_MAKE[self.kind], str(self.image)], check=True, timeout=60)

    def copy_from(self, other: Disk) -> None:
        """Have the same on this disk as on *other*, which is not plugged in."""
        command = ["cp", "--sparse=always", "--reflink=auto", str(other.image), str(self.image)]
        subprocess.run(command, check=True, timeout=60)

    def plug_in(self) -> None:
        """Mount it; the filesystem recovers from a cut."""
        command = ["mount", "-t", self.kind, "-o", _OPTIONS[self.kind], str(self.image), str(self.path)]
        subprocess.run(command, check=True, timeout=60)

    def cut(self) -> None:
        """Have nothing reach the image from now on."""
        cut_power(self.path)

    def unplug(self) -> None:
        """Unmount it; all who used it have ended. Raises `OSError`.

        The mount tables of processes that have been killed go a moment later: they are waited for.
        """
        deadline = time.monotonic() + _PATIENCE
        while _libc.umount2(os.fsencode(self.path), 0):
            code = ctypes.get_errno()
            if code != errno.EBUSY or time.monotonic() > deadline:
                raise OSError(code, os.strerror(code), self.path)
            time.sleep(0.002)
        while self._is_attached():
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "is mounted elsewhere", self.image)
            time.sleep(0.002)

    def _is_attached(self) -> bool:
        for file in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # it has just been detached
                if file.read_text().strip() == str(self.image):
                    return True
        return False


def cut_power(path: Path) -> None:
    """Have nothing more that is written to the filesystem at *path* reach its disk, its journal included.

    As xfstests do it. What has reached the disk by then is all there is after it is mounted again.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
    finally:
        os.close(fd)


def detach(path: Path) -> None:
    """Unmount whatever is mounted at *path*, lazily, if anything is."""
    _libc.umount2(os.fsencode(path), _MNT_DETACH)
