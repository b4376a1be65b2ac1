"""Modification times that the kernel keeps and the disk would lose.

Under the writeback cache the kernel keeps a file's modification time and sends it in a SETATTR. The data
it sends when it likes, so a write may come after the time that belongs to it: the file on disk then has
the moment of the write(2) by the daemon, which nobody should see.
"""

from __future__ import annotations

import errno
import logging

import trio

from layerfs.fuse import wire
from layerfs.union import attributes
from layerfs.union.node import File
from layerfs.union.view import Union

_log = logging.getLogger(__name__)
_DELAY = 1.0
"""Seconds after which a file that nobody asks for gets its time back: a crash should find it right."""


class LateTimes:
    """The files that were written to since the kernel last told their time, and the time it was."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._times: dict[File, int] = {}
        self._some = trio.Event()

    def written(self, node: File) -> None:
        """Note that *node* is about to be written to."""
        if node not in self._times:
            self._times[node] = node.stat().st_mtime_ns
            if len(self._times) == 1:
                self._some.set()

    def told(self, node: File, mtime: int) -> None:
        """Note that the kernel has told *node*'s time, which has been set; a write under way may move it."""
        if wire.extension is not None and node in self._times and wire.extension.pending_writes():
            self._times[node] = mtime
        else:
            self._times.pop(node, None)

    def settle(self, node: File) -> None:
        """Give *node* on disk the time that the kernel shows."""
        mtime = self._times.pop(node, None)
        if mtime is None or not self._union.in_upper(node) or node.orphan:
            return
        try:
            attributes.utime(self._union, node, None, mtime)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                _log.warning("cannot set the time of inode %d: %s", node.ino, error)

    def settle_all(self) -> None:
        """Do so for every file: before a commit, and at the end."""
        for node in list(self._times):
            self.settle(node)
        if wire.extension is not None:
            wire.extension.settle_times()

    async def settle_later(self) -> None:
        """Do so for ever, some time after each write."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            await trio.sleep(_DELAY)
            self.settle_all()
