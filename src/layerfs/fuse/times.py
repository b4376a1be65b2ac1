"""Modification times that the kernel keeps and the disk would lose.

Under the writeback cache the kernel keeps a file's modification time and tells it in a SETATTR. The data it
sends when it likes, before or after the time that belongs to it, and a write moves the time on disk to the
moment at which the daemon does it. Such a file is *late* until its time is on disk again.

A time that the kernel tells is true of every write that it sent before. It need not be true of one that comes
after, whose time the kernel may tell half a minute later (O_DIRECT, sync_file_range(2)). To set the time told
before would then hide the change from make(1) and rsync(1), for good if the daemon were killed meanwhile. So
the disk keeps the moment of the daemon's write, which is newer, until

- the kernel tells a time again, or
- the kernel has nothing more to tell: it asks for an fsync, forgets the inode, has written back everything,
  or is unmounted.

A write that comes within a few clock ticks of the time told last gets that time at once: a file that is made
and written to in one tick has no other. Should it have one after all, it is a few ticks off until it is told.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from layerfs.fuse import wire
from layerfs.union import attributes
from layerfs.union.node import File
from layerfs.union.view import Union

_log = logging.getLogger(__name__)
_NS = 1_000_000_000
_MOMENT = 8_000_000
"""Nanoseconds by which times of files may lag behind: some clock ticks."""
_EVERY_ROUND = (1 << 32) - 1


_EVERYWHERE = 315_532_800 * _NS, (1 << 31) * _NS
"""The times from and to which every filesystem holds times: FAT begins in 1980, 32 bits end in 2038."""


def is_everywhere(mtime: int) -> bool:
    """Tell whether every filesystem holds the time *mtime*, nanoseconds since the epoch."""
    return _EVERYWHERE[0] <= mtime < _EVERYWHERE[1]


class _Late:
    """What is known of a late file: the time that the kernel told last, and the round of the last write.

    `under_way` counts writes of ours that have not ended, `told` says that the kernel has told the time since
    the last of them began.
    """

    __slots__ = ("round", "shown", "told", "under_way")

    def __init__(self, shown: int, last_round: int) -> None:
        self.shown = shown
        self.round = last_round
        self.under_way = 0
        self.told = False


class LateTimes:
    """The late files of one union. The extension minds those that are vouched for, as long as they are."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._files: dict[File, _Late] = {}
        self._round = 0
        if wire.extension is not None:
            wire.extension.set_take_late(self._take)
            wire.extension.begin_round(0)

    # -- writes -----------------------------------------------------------------------------------

    def written(self, node: File) -> None:
        """Note that *node* is about to be written to, by the extension."""
        self._begin(node)

    @contextmanager
    def writing(self, node: File) -> Iterator[None]:
        """Note that *node* is written to while the block lasts; a copy-up may be part of that."""
        late = self._begin(node)
        late.under_way += 1
        try:
            yield
        finally:
            late.under_way -= 1
            if late.told or 0 <= time.time_ns() - late.shown < _MOMENT:
                self._set(node, late.shown)
                if not late.under_way:
                    self._files.pop(node, None)

    def _begin(self, node: File) -> _Late:
        late = self._files.get(node)
        if late is None:
            kept = node.partial.kept_time if node.partial is not None else None
            shown = node.stat().st_mtime_ns if kept is None else kept
            late = self._files[node] = _Late(shown, self._round)
        late.round = self._round
        late.told = False
        return late

    # -- what the kernel tells --------------------------------------------------------------------

    def set(self, node: File, atime: int | None, mtime: int) -> None:
        """Give *node* in the upper the times that the kernel tells. Raises `OSError`."""
        pending = wire.extension is not None and wire.extension.tell_writes(node.ino, *divmod(mtime, _NS))
        if not (pending and atime is None and is_everywhere(mtime)):
            attributes.utime(self._union, node, atime, mtime)  # else a write sets it, which may hold a lock
        late = self._files.get(node)
        if late is None:
            return
        if late.under_way or pending:
            late.shown = mtime
            late.told = True
        else:
            del self._files[node]

    def settle(self, node: File) -> None:
        """Give *node* on disk the time that the kernel told last: it has no other to tell."""
        late = self._files.get(node)
        if late is not None and not late.under_way:
            del self._files[node]
            self._set(node, late.shown)

    def begin_round(self) -> int:
        """Return a number for `settle_before`: of writes from now on."""
        self._round += 1
        if wire.extension is not None:
            wire.extension.begin_round(self._round)
        return self._round

    def settle_before(self, first_round: int = _EVERY_ROUND) -> None:
        """Do what `settle` does for all files that were last written to before a round began."""
        for node in [node for node, late in self._files.items() if late.round < first_round]:
            self.settle(node)
        if wire.extension is not None:
            wire.extension.settle_times(first_round)

    def _set(self, node: File, mtime: int) -> None:
        if not self._union.in_upper(node) or node.orphan:
            return
        try:
            attributes.utime(self._union, node, None, mtime)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                _log.warning("cannot set the time of inode %d: %s", node.ino, error)

    # -- the extension's files --------------------------------------------------------------------

    def vouch(self, node: File, *, is_new: bool = False) -> bool:
        """Let the extension answer for *node*, and mind its time; tell whether it does.

        One that *is_new* has no capabilities, for which the kernel asks before a write.
        """
        extension, late = wire.extension, self._files.get(node)
        assert extension is not None
        if late is not None and late.under_way:
            return False
        if not extension.vouch(node.ino, node.fd, 0, True, is_new):
            return False
        if late is not None and extension.set_late(node.ino, late.round, *divmod(late.shown, _NS)):
            del self._files[node]
        return True

    def _take(self, ino: int, seconds: int, nanoseconds: int) -> None:
        """Mind the time of a file that the extension does not vouch for any more."""
        node = self._union.table.nodes.get(ino)
        if isinstance(node, File) and node not in self._files:
            self._files[node] = _Late(seconds * _NS + nanoseconds, self._round)
