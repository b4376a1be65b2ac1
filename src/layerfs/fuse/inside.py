"""The mount as its own daemon reaches it: to collect writes, and to unmount it.

Everything here that touches the mount happens in the thread of `Collector`, and so do the descriptors that
are mentioned.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import trio

from layerfs.errors import Conflict, LayerfsError, from_os_error
from layerfs.fuse.collector import Collector
from layerfs.host import holders, mountcalls, mounttable
from layerfs.union import syscalls

_T = TypeVar("_T")


class GoneError(Conflict):
    """The filesystem is mounted nowhere that this process can reach: it ends."""


class Inside:
    """The filesystem with `st_dev` *device*, which was mounted at *place*.

    It is found wherever it is mounted: at its place, elsewhere in this mount namespace, or in another one.
    """

    def __init__(self, collector: Collector, place: mounttable.Place, device: int) -> None:
        self.place = place
        self.device = device
        self._collector = collector
        self._kept = -1
        """A copy of the mount that is mounted nowhere, from its unmounting to `release`."""

    async def is_answered(self) -> None:
        """Return once the daemon has answered a first request. Raises `OSError`."""
        await self._collector.run(lambda: os.stat(self.place.path))

    async def write_back(self, barrier: bytes, begins: Callable[[int], bool]) -> bool:
        """Have the kernel send what was written to the mount, and then *barrier*; return whether it did.

        This is done again while *begins* says so, which is called before each time, with the number of those
        done, in another thread: it must not wait.

        *barrier* is the name of a file in the root of the mount: when a write to it has been answered, the
        daemon has heard of all that was written before. False says that the filesystem was remounted
        read-only: what was written before that is on its way, and *barrier* cannot be written. Raises
        `GoneError` when the filesystem is mounted nowhere, `Conflict` when something that was written could
        not be stored.
        """
        return await self._collect(lambda: self._write_back(barrier, begins))

    async def wait_for(self, files: Sequence[bytes]) -> None:
        """Return when what was written to *files*, paths in the mount, has come; raises as `write_back`."""
        await self._collect(lambda: self._wait_for(files))

    async def _collect(self, work: Callable[[], _T]) -> _T:
        try:
            return await self._collector.run(work)
        except OSError as error:
            text = error.strerror or "unknown error"
            if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                raise Conflict(
                    f"something written to {self.place.mountpoint} before could not be stored ({text}); "
                    f"try again to go on without it"
                ) from None
            if error.errno == errno.ESTALE:
                if mounttable.mounts_of(self.device):
                    raise self.hidden() from None
                raise GoneError(
                    f"{self.place.mountpoint} is not mounted any more, nor is a copy of it to be found: "
                    f"what the kernel still has of it cannot be collected"
                ) from None
            raise from_os_error(error, f"collect what was written to {self.place.mountpoint}") from None

    async def unmount(self, *, lazy: bool) -> None:
        """Unmount the filesystem from its place, or from where it was moved to; keep it until `release`.

        Raises `NotMountedHereError` when it is mounted nowhere in this mount namespace, `Conflict` when it
        is in use, unless *lazy*, and other `LayerfsError`s. Then all is as it was.
        """
        try:
            if os.geteuid() == 0:
                await self._collector.run(lambda: self._unmount(lazy))
            else:  # fusermount3(1) does it, a process of its own
                if lazy:
                    await self._collector.run(self._keep_root)
                await trio.to_thread.run_sync(self._unmount, lazy)
        except LayerfsError:
            await self.release()
            raise

    async def release(self) -> None:
        """Keep the filesystem no more: it ends now, unless somebody else has it mounted or uses it."""
        await self._collector.run(self._release)

    def unmount_now(self) -> None:
        """Take away a mount whose filesystem is not served any more."""
        with suppress(mounttable.NotMountedHereError):
            self.place.unmount(self.device, lazy=True)

    def hidden(self) -> Conflict:
        """Return the error for a filesystem that is mounted, but where it cannot be reached."""
        return Conflict(f"{self.place.mountpoint} is hidden by another mount: unmount that one first")

    # -- in the collector's thread --------------------------------------------------------------------

    def _write_back(self, barrier: bytes, begins: Callable[[int], bool]) -> bool:
        last = -1
        root = self._open_root()
        try:
            done = 0
            while begins(done):
                syscalls.syncfs(root)
                if last < 0:
                    last = os.open(barrier, os.O_WRONLY | os.O_CLOEXEC, dir_fd=root)
                os.pwrite(last, b"\0", 0)
                syscalls.write_back(last)
                done += 1
        except OSError as error:
            if error.errno == errno.EROFS:
                return False
            raise
        finally:
            for fd in (last, root):
                if fd >= 0:
                    os.close(fd)
        return True

    def _wait_for(self, files: Sequence[bytes]) -> None:
        root = self._open_root()
        try:
            for path in files:
                # One that is gone is of no interest any more.
                with suppress(FileNotFoundError, NotADirectoryError):
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    fd = os.open(path, flags, dir_fd=root)
                    try:
                        syscalls.write_back(fd)
                    finally:
                        os.close(fd)
        finally:
            os.close(root)

    def _unmount(self, lazy: bool) -> None:
        here = self._place_now()
        try:
            if self._kept < 0 and os.geteuid() == 0:  # others flush before, or through a copy
                with suppress(OSError):
                    self._kept = self._keep(here)
            here.unmount(self.device, lazy=lazy)
        finally:
            if here is not self.place:
                here.close()

    def _place_now(self) -> mounttable.Place:
        """Return where the filesystem is mounted in this namespace: it may have been moved."""
        with suppress(OSError):
            if self.place.device() == self.device:
                return self.place
        for mounted in reversed(mounttable.mounts_of(self.device)):
            with suppress(OSError):
                place = mounttable.Place(mounted.place)
                with suppress(OSError):
                    if place.device() == self.device:
                        return place
                place.close()
        raise mounttable.NotMountedHereError(f"{self.place.mountpoint} is not mounted any more")

    def _keep(self, here: mounttable.Place) -> int:
        root = os.open(here.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if mountcalls.identify(_path(root), follow=True).device != self.device:
                return -1
            return syscalls.clone_tree(root)
        finally:
            os.close(root)

    def _keep_root(self) -> None:
        """Keep the root open, where there can be no copy of the mount: a mount that goes lazily lets us."""
        if self._kept < 0:
            with suppress(OSError):
                self._kept = self._open_root()

    def _release(self) -> None:
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1

    def _open_root(self) -> int:
        """Return a descriptor of the root of the filesystem; raises `OSError`, ESTALE where there is none."""
        for root in self._found():
            with suppress(OSError):
                try:
                    if mountcalls.identify(_path(root), follow=True).device == self.device:
                        return os.open(_path(root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                finally:
                    os.close(root)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _found(self) -> Iterator[int]:
        """Yield descriptors, to be closed, of what may be the root of the filesystem in one of its mounts."""
        for path in self._ways():
            with suppress(OSError):
                yield os.open(path, os.O_PATH | os.O_CLOEXEC)
        for pid, found in holders.copies(self.device):
            with suppress(OSError):
                root = os.open(b"/proc/%d/root" % pid, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    for mounted in found:
                        # Others decide what is mounted there on the way, and it may never answer.
                        with suppress(OSError):
                            yield mountcalls.open_cached(root, os.fsencode(mounted.place))
                finally:
                    os.close(root)

    def _ways(self) -> Iterator[bytes]:
        """Yield paths in this namespace that may lead to the root of the filesystem."""
        if self._kept >= 0:
            yield _path(self._kept)
        yield self.place.path
        for mounted in mounttable.mounts_of(self.device):
            yield os.fsencode(mounted.place)


def _path(fd: int) -> bytes:
    """Return a path for a descriptor of this thread's own table."""
    return b"/proc/thread-self/fd/%d" % fd
