"""Which directories of a stack's layers are open, and how the roots of its layers are found again."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from layerfs.union import syscalls

if TYPE_CHECKING:
    from layerfs.union.layer import Layer, LayerDir

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Shelf:
    """A directory that trees lie in as NAME/NAME, and that nobody but layerfs may write to.

    It is held open, so whatever happens to the path that leads to it, the trees are found. Any thread may
    use it.
    """

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        """Open the directory *path*. Raises `OSError`."""
        self.path = os.fsencode(path)
        self.fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.device = os.fstat(self.fd).st_dev
        self.known: WeakValueDictionary[bytes, Layer] = WeakValueDictionary()
        """The layers on it that somebody has in use, by path: a union has one object for each."""

    def place_of(self, tree: bytes) -> bytes | None:
        """Return where the path *tree* lies on the shelf, None where it does not."""
        above, _, name = tree.rpartition(b"/")
        shelf, _, first = above.rpartition(b"/")
        return first + b"/" + name if shelf == self.path else None

    def tree_of(self, layer_id: str) -> bytes:
        """Return the path of the tree of a layer of the store."""
        return b"%s/%s/fs" % (self.path, layer_id.encode("ascii"))

    def id_of(self, tree: bytes) -> str | None:
        """Return the layer of the store whose tree has the path *tree*, None where it has none."""
        place = self.place_of(tree)
        if place is None or not place.endswith(b"/fs"):
            return None
        return place[:-3].decode("ascii", "replace")

    def open_below(self, place: bytes, names: Sequence[bytes]) -> int:
        """Return a new descriptor on the directory with the path *names* in a tree. Raises `OSError`.

        No link is followed, and nothing leads outside the tree.
        """
        try:
            path = b"/".join((place, *names))
            return syscalls.openat2(self.fd, path, OPEN_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.ENOSYS):
                raise
        fd = self.open(place)
        for name in names:
            above = fd
            try:
                fd = os.open(name, OPEN_DIRECTORY, dir_fd=above)
            finally:
                os.close(above)
        return fd

    def open(self, place: bytes) -> int:
        """Return a new descriptor on a tree; the caller looks whether it is the right one."""
        return os.open(place, OPEN_DIRECTORY, dir_fd=self.fd)

    def may_have(self, path: bytes) -> bool:
        """Tell whether there may be something at *path* on the shelf, or a file or a link in its way.

        No link is followed. Raises `OSError` where the shelf cannot be read.
        """
        try:
            os.close(syscalls.openat2(self.fd, path, _LOOK, syscalls.RESOLVE_NO_SYMLINKS))
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENOSYS, errno.EACCES):
                raise
        return True

    def close(self) -> None:
        """Close the descriptor: trees are not to be opened any more."""
        os.close(self.fd)


_FOR_A_MOMENT = 64
"""Directories that may be open before those that were needed only for a moment are closed."""


class DirectoryCache:
    """Bounds the open directory descriptors of a stack; least recently used ones go first.

    `trim` is called only between two operations, so that no descriptor goes while one uses it. One operation
    may look at a directory of every layer, and there may be more layers than descriptors: where it needs a
    directory only for a moment it calls `settle`, and what was opened for that stays open for one such moment
    more, since the next may be about something in it.
    """

    __slots__ = ("_momentary", "_open", "_room")

    def __init__(self, room: int = 64) -> None:
        """Keep at most *room* directories open between two operations."""
        self._open: deque[LayerDir] = deque()
        self._momentary: list[LayerDir] = []
        self._room = room

    def __len__(self) -> int:
        return len(self._open)

    def add(self, directory: LayerDir) -> None:
        """Count *directory*, which has just been opened."""
        self._open.append(directory)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for more."""
        return len(self._open) >= self._room

    def take_back(self) -> None:
        """Close what was added last: it was the way to something else, and nobody has its descriptor."""
        self._open.pop().close()

    def settle(self, before: int) -> None:
        """Take back what was opened since `len` was *before*, where there is no room for it.

        Nobody but the caller can have its descriptors: they were closed when it began. They are closed at the
        next call, unless somebody has asked for them until then.
        """
        if len(self._open) <= min(self._room, _FOR_A_MOMENT):
            return
        opened = [self._open.pop() for _ in range(len(self._open) - before)]
        for directory in self._momentary:
            if directory.used:
                self._open.append(directory)
            else:
                directory.close()
        for directory in opened:
            directory.used = False
        self._momentary = opened

    def trim(self, most: int | None = None) -> None:
        """Close descriptors until there is room (second chance for those used lately), or *most* are open."""
        if self._momentary:
            self._open.extend(self._momentary)
            self._momentary = []
        if most is None:
            most = self._room
        spared = 0
        while len(self._open) > most:
            directory = self._open.popleft()
            if directory.pinned:
                continue  # removed: its node closes it
            if directory.used and spared < most:
                directory.used = False
                spared += 1
                self._open.append(directory)
            else:
                directory.close()
