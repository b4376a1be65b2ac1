"""The kernel's mount table: what is mounted where, and taking mounts of layerfs away.

A mount is told by its device number (`st_dev`), which no other filesystem has while it is mounted. Its path
and its source say nothing: whoever may rename a directory above a mountpoint decides what a path leads to.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from contextlib import suppress

from layerfs.errors import Conflict, LayerfsError, from_os_error
from layerfs.host import mountcalls
from layerfs.union.mountinfo import Mounted as Mounted
from layerfs.union.mountinfo import mounts as mounts

TYPE = "fuse.layerfs"
_ENDING = 1.0
"""Seconds that the connection of a process that ends may take to end after its lock."""
_PATIENCE = 10.0
"""Seconds that a program may take that asks about a mount, or unmounts it."""
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""How a filesystem answers whose daemon has ended, the second if that happens meanwhile."""
_LINKS = 40
"""Symbolic links that a mountpoint may lead through, as in path_resolution(7)."""


def mounted_at(mountpoint: str) -> Mounted | None:
    """Return what is mounted at *mountpoint* (absolute, without links), or None."""
    found = None
    for mounted in mounts():
        if mounted.place == mountpoint:
            found = mounted
    return found


def mounts_of(device: int, pid: int | str = "self") -> list[Mounted]:
    """Return where the filesystem *device* is mounted in the namespace of *pid*; nowhere if it has ended."""
    try:
        return [mounted for mounted in mounts(pid) if mounted.device == device]
    except OSError:
        return []


def resolve(path: str) -> str:
    """Return *path* without links, as a mountpoint is shown in the mount table.

    What is mounted there is not asked: its daemon may be dead, or hang.
    """
    for _ in range(_LINKS):
        parent, name = os.path.split(os.path.abspath(path))
        full = os.path.normpath(os.path.join(os.path.realpath(parent), name))
        try:
            path = os.path.join(os.path.dirname(full), os.readlink(full))
        except OSError:
            return full
    return full


class Place:
    """A mountpoint, held by its directory: nobody can put another directory of that name in its place.

    Raises `OSError` when the directory cannot be opened. Good in every thread of the process until `close`,
    or until the thread ends that made it.
    """

    def __init__(self, mountpoint: str) -> None:
        """Hold *mountpoint* (absolute, without links)."""
        parent, name = os.path.split(mountpoint)
        self.mountpoint = mountpoint
        self._parent = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # By the thread whose descriptor it is: not all have the same table (`fuse.collector`). /proc may
        # belong to another PID namespace, and knows the thread's number there.
        table = b"/proc/%s/fd" % os.readlink(b"/proc/thread-self")
        self.path = b"%s/%d/%s" % (table, self._parent, os.fsencode(name))

    def device(self) -> int:
        """Return the `st_dev` of what is there now; raises `OSError`."""
        return mountcalls.identify(self.path).device

    def unmount(self, device: int, *, lazy: bool) -> None:
        """Unmount the filesystem *device* from here; if *lazy*, out of the tree at once.

        Raises `NotMountedHereError` and leaves all as it is when something else is here. Raises `Conflict`
        when the mount is in use, and other `LayerfsError`s. Not for the loop that serves the mount: it would
        wait for itself.
        """
        try:
            if self.device() != device:
                raise NotMountedHereError(f"{self.mountpoint} is not where the filesystem is mounted")
            if os.geteuid() == 0:
                mountcalls.umount(self.path, lazy=lazy)
                return
        except FileNotFoundError:
            raise NotMountedHereError(f"{self.mountpoint} is gone") from None
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise NotMountedHereError(f"nothing is mounted on {self.mountpoint}") from None
            if error.errno == errno.EBUSY:
                raise Conflict(f"{self.mountpoint} is busy") from None
            raise from_os_error(error, f"unmount {self.mountpoint}") from None
        _fusermount(os.path.dirname(self.path), os.path.basename(self.mountpoint), lazy=lazy)

    def close(self) -> None:
        """Let go of the directory; closing twice is fine."""
        if self._parent >= 0:
            os.close(self._parent)  # in the thread that made it
            self._parent = -1


class NotMountedHereError(Conflict):
    """The filesystem is not mounted where it was: somebody has unmounted or moved it, or covers it."""


def detach(mountpoint: str, device: int | None) -> bool:
    """Take away what a dead daemon left at *mountpoint*: the filesystem *device*, if that is what is there.

    Anything else stays, whatever its name, and False is returned. Raises `LayerfsError` when it stays and
    should not.
    """
    there = mounted_at(mountpoint)
    if device is None or there is None or (there.type, there.device) != (TYPE, device):
        return False
    deadline = time.monotonic() + _ENDING
    while not is_dead(mountpoint):  # the lock of a daemon that ends may go before its connection does
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    try:
        # Held by itself, so that what has been looked at is what goes. A dead root can be opened like this.
        fd = os.open(mountpoint, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"unmount {mountpoint}") from None
    try:
        path = b"/proc/self/fd/%d" % fd
        if mountcalls.identify(path, follow=True).device != device:
            return False
        if os.geteuid() == 0:
            mountcalls.umount(path, lazy=True, follow=True)
            return True
    except OSError as error:
        raise from_os_error(error, f"unmount {mountpoint}") from None
    finally:
        os.close(fd)
    _fusermount(os.fsencode(os.path.dirname(mountpoint)), os.path.basename(mountpoint), lazy=True)
    return True


def _fusermount(directory: bytes, name: str, *, lazy: bool) -> None:
    """Have fusermount3(1) unmount *name* in *directory*: it looks that the mount is this user's."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", name]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise LayerfsError(f"fusermount3 did not unmount {name} within {_PATIENCE:g} seconds") from None
    except OSError as error:
        raise from_os_error(error, "run fusermount3") from None
    if done.returncode != 0:
        said = done.stderr.strip() or "fusermount3 failed"
        raise Conflict(f"cannot unmount {name}: {said.removeprefix('fusermount3: ')}")


def is_dead(mountpoint: str) -> bool:
    """Tell whether the daemon of the FUSE filesystem at *mountpoint* has ended; False if unknown.

    stat(2) may be answered from the kernel's cache; statfs(2) always goes to the daemon. So a process of its
    own asks, within bounds: the daemon may be stopped.
    """
    asking = subprocess.Popen(
        ["stat", "--file-system", "--format=", "--", mountpoint],
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        said = asking.communicate(timeout=_PATIENCE)[1]
    except subprocess.TimeoutExpired:
        asking.kill()
        with suppress(subprocess.TimeoutExpired):
            asking.wait(1)
        return False
    return any(os.strerror(code).encode() in said for code in _DEAD)
