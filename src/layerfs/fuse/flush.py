"""Getting out of the kernel what it has not written to us yet.

Under the writeback cache a write returns before the daemon hears of it. A commit promises that what was
written before it is in the layer, so the kernel is asked first. syncfs(2) has it send everything; but since
Linux 6.18 it does not wait for a FUSE filesystem's data to arrive, and which files had any we do not
know: opening a file costs no request. The kernel sends writes in the order in which it queued them,
though, so one more of our own, to a file that exists for this alone, comes after all of them. It is one file
for the life of the mount: the kernel keeps what it knows of a file until it needs the memory.

A filesystem that was remounted read-only takes none of our own. It cannot be written to either, so what
remains is little: each file that the kernel knows is waited for.
"""

from __future__ import annotations

import os
import stat

from layerfs.fuse.filesystem import Filesystem
from layerfs.fuse.inside import Inside
from layerfs.union.node import File

_ROUNDS = 2
"""What a truncate under way held back in the first round comes in the second."""


async def get_ready(filesystem: Filesystem, inside: Inside) -> None:
    """Have the kernel know of what `flush` needs, and the daemon in memory: the first is as quick as others.

    To be called before anybody uses the mount: the root of it is open for a moment. Raises as `flush`.
    """
    filesystem.barrier = _add_barrier(filesystem)
    await inside.write_back(filesystem.barrier, lambda after: not after)


async def flush(filesystem: Filesystem, inside: Inside) -> None:
    """Have the kernel write back what was written to the mount *inside* until now.

    Raises `Conflict` when the mount is not to be found any more, or when something that was written could
    not be stored.
    """
    if filesystem.barrier is None:
        filesystem.barrier = _add_barrier(filesystem)
    rounds = _Rounds(filesystem)
    while rounds.left:
        if not await inside.write_back(filesystem.barrier, rounds.begins):
            await inside.wait_for(_known_files(filesystem))
        await filesystem.contents.writes_under_way()
    # Of what was written since, the kernel may know a time to tell yet.
    filesystem.late_times.settle_before(rounds.written_since)


class _Rounds:
    """The rounds of collecting that are left. One follows the other at once if no write is being done."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem = filesystem
        self.left = _ROUNDS
        self.written_since = 0

    def begins(self, after: int) -> bool:
        """Note that a round begins, *after* so many without a pause, or say that it must not. Any thread."""
        if not self.left or (after and self._filesystem.contents.is_writing):
            return False
        self.left -= 1
        self.written_since = self._filesystem.late_times.begin_round()
        return True


def _add_barrier(filesystem: Filesystem) -> bytes:
    """Make a file that is in no layer and no listing; return its name, which nobody guesses."""
    name = b".layerfs-barrier-" + os.urandom(16).hex().encode()
    root = filesystem.union.root
    barrier = File(filesystem.union.table.fresh(), stat.S_IFREG, root.dirs[0], b"")
    barrier.pin = os.memfd_create("layerfs-barrier", os.MFD_CLOEXEC)
    os.fchmod(barrier.pin, 0o600)
    barrier.orphan = True
    barrier.references = 1  # ours
    filesystem.union.table.add(barrier)
    root.children[name] = barrier
    return name


def _known_files(filesystem: Filesystem) -> list[bytes]:
    """Return the paths of the regular files that the kernel knows by a name."""
    paths = []
    for node in filesystem.union.table.nodes.values():
        if isinstance(node, File) and node.is_regular and node.names:
            directory, name = node.names[0]
            above = [parent.name for parent in directory.ancestors()][-2::-1]  # without the root's
            paths.append(b"/".join([*above, name]))
    return paths
