"""Syncs that do not forget: what could not be written once is never said to be on the disk later.

The kernel tells each open file once that some of its pages could not be written; then it takes them for
written, and the next fsync(2) of that open file succeeds. Programs have an open file each, and are told
each. Here they share the daemon's, which cannot even tell them apart: OPEN costs no request. So whatever
failed fails again for everybody, until the file is cut to nothing (then what was lost is given up)
or the mount ends.

`_lost.c` does the same for the extension, which answers most syncs itself.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

from layerfs.fuse import wire
from layerfs.union import syscalls


class Lost(Protocol):
    """Files and directories that could not be synced. Any thread may call the methods."""

    def sync(self, fd: int, data_only: bool, /) -> None:
        """Bring what *fd* is open on to its disk: fsync(2), or fdatasync(2) if *data_only*.

        Raises `OSError`, also where an earlier sync of the same object has.
        """

    def has_lost(self) -> bool:
        """Tell whether there is anything whose sync has failed."""

    def forgive(self, fd: int, /) -> None:
        """Forget that syncs of what *fd* is open on have failed: it was cut to nothing. Raises `OSError`."""


class PlainLost:
    """`Lost` without the extension."""

    def __init__(self) -> None:
        self._failed: dict[syscalls.Identity, int] = {}
        self._under_way: dict[int, syscalls.Identity] = {}
        self._last = 0
        self._changed = threading.Condition()

    def sync(self, fd: int, data_only: bool, /) -> None:
        """See `Lost.sync`."""
        thing = syscalls.identity(fd)
        with self._changed:
            self._last += 1
            own = self._last
            self._under_way[own] = thing
        failure = 0
        try:
            (os.fdatasync if data_only else os.fsync)(fd)
        except OSError as error:
            failure = error.errno or 0
            raise
        finally:
            with self._changed:
                if failure:
                    self._failed.setdefault(thing, failure)
                del self._under_way[own]
                self._changed.notify_all()
        with self._changed:  # it may be one of the others whom the kernel has told
            until = self._last
            self._changed.wait_for(lambda: not self._is_synced(thing, until))
            if thing in self._failed:
                raise OSError(self._failed[thing], os.strerror(self._failed[thing]))

    def _is_synced(self, thing: syscalls.Identity, until: int) -> bool:
        return any(other == thing and number <= until for number, other in self._under_way.items())

    def has_lost(self) -> bool:
        """See `Lost.has_lost`."""
        return bool(self._failed)

    def forgive(self, fd: int, /) -> None:
        """See `Lost.forgive`."""
        with self._changed:
            self._failed.pop(syscalls.identity(fd), None)


lost: Lost = PlainLost() if wire.extension is None else wire.extension
"""That of this process, which serves one mount."""
