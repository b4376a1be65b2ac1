"""Two trees held against each other: what is in one and not in the other, or is another thing there.

The cost follows what differs. The lowest layers that both have are one and the same, so only names are looked
at of which another layer has a part; and of two objects that are one inode nothing is compared.

Files differ by type, mode, owner, extended attributes and contents, not by times alone. Directories differ by
all of these but contents: what is in them speaks for itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from layerfs.union import merge
from layerfs.union.changes import ADDED, CHANGED, DELETED
from layerfs.union.layer import LayerDir
from layerfs.union.reading import read_at
from layerfs.union.snapshot import Entry, Snapshot

_CHUNK = 1 << 20


class Difference(NamedTuple):
    """One path that differs: `kind` is A, C or D, as in `changes`."""

    kind: str
    before: Entry | None
    """What was there, None for a path that was added."""
    after: Entry | None

    @property
    def path(self) -> bytes:
        """The path, absolute."""
        entry = self.after or self.before
        assert entry is not None
        return entry.path


class Comparison:
    """Two opened trees; its methods raise `OSError`."""

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        """Compare *before* with *after*, which may be open in the same way or not."""
        self.before = before
        self.after = after
        self._shared = set()
        for one, other in zip(before.layers, after.layers, strict=False):
            if one.path != other.path:
                break
            self._shared.add(one.path)

    def differences(self, before: Entry | None, after: Entry | None) -> Iterator[Difference]:
        """Yield what differs at and below two entries of the same path, parents before children.

        Names come in the order of their bytes. What is in a directory that was added or deleted comes too.
        """
        pending: list[tuple[Entry | None, Entry | None]] = [(before, after)]
        while pending:
            before, after = pending.pop()
            self.before.trim()
            self.after.trim()
            if before is None or after is None:
                if before is not None or after is not None:
                    yield Difference(ADDED if before is None else DELETED, before, after)
            elif not self._same(before, after):
                yield Difference(CHANGED, before, after)
            pending += list(self._children(before, after))[::-1]

    def _children(
        self, before: Entry | None, after: Entry | None
    ) -> Iterator[tuple[Entry | None, Entry | None]]:
        """Yield what may differ in two directories, either of which may be something else, or nothing."""
        old, new = (entry.dirs if entry is not None else () for entry in (before, after))
        for name in sorted(self._names(old, new)):
            self.before.trim()
            self.after.trim()
            yield _child(self.before, before, name), _child(self.after, after, name)

    def _names(self, old: Sequence[LayerDir], new: Sequence[LayerDir]) -> set[bytes]:
        """Return the names in two merged directories that may differ."""
        shared = [[_key(part) for part in parts if part.layer.path in self._shared] for parts in (old, new)]
        if not old or not new or shared[0] != shared[1]:
            return {name for parts in (old, new) if parts for name in merge.names(parts)}
        own = [part for part in (*old, *new) if part.layer.path not in self._shared]
        return {name for part in own for name in part.kinds()}

    def _same(self, before: Entry, after: Entry) -> bool:
        one, other = before.status, after.status
        if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino):
            return True
        if (one.st_mode, one.st_uid, one.st_gid) != (other.st_mode, other.st_uid, other.st_gid):
            return False
        kind = stat.S_IFMT(one.st_mode)
        if kind == stat.S_IFREG and one.st_size != other.st_size:
            return False
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and one.st_rdev != other.st_rdev:
            return False
        if kind == stat.S_IFLNK and self.before.link(before) != self.after.link(after):
            return False
        if self.before.xattrs(before) != self.after.xattrs(after):
            return False
        return kind != stat.S_IFREG or self._hold_the_same(before, after)

    def _hold_the_same(self, before: Entry, after: Entry) -> bool:
        fds = [self.before.open(before)]
        try:
            fds.append(self.after.open(after))
            for offset in range(0, before.status.st_size, _CHUNK):
                if read_at(fds[0], _CHUNK, offset) != read_at(fds[1], _CHUNK, offset):
                    return False
        finally:
            for fd in fds:
                os.close(fd)
        return True


def _key(part: LayerDir) -> tuple[bytes, tuple[bytes, ...]]:
    return part.layer.path, part.place()


def _child(tree: Snapshot, directory: Entry | None, name: bytes) -> Entry | None:
    if directory is None or not directory.is_directory:
        return None
    try:
        return tree.child(directory, name)
    except FileNotFoundError:
        return None  # it has just gone, of a mount that is in use
