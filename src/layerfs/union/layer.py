"""A layer: one directory tree of the stack, and handles on the directories in it.

Every access goes through a directory's descriptor and one name (`openat` with O_NOFOLLOW), so nothing
in a layer, however hostile, leads outside it: no path of a layer is ever resolved by the kernel.
"""

from __future__ import annotations

import os
from collections import deque

from layerfs.union import whiteout, xattr
from layerfs.union.moves import Moves

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Layer:
    """One tree of the stack.

    `below` are the layers under it, top-most first. A *mutable* layer is the upper: it changes, so
    nothing about it is remembered. `aufs` says that `.wh.` files in it are whiteouts. `on_disk` says that all
    of it is known to be on its disk, as it is of a layer that was sealed some time ago. `moves` are its
    renamed directories.
    """

    __slots__ = ("__weakref__", "aufs", "below", "directories", "moves", "mutable", "on_disk", "path", "root")

    def __init__(
        self, path: str | bytes | os.PathLike[str], *, aufs: bool = False, mutable: bool = False
    ) -> None:
        """Open the tree at *path*. Raises `OSError` when it is no directory or cannot be read."""
        self.path = os.fsencode(path)
        self.aufs = aufs
        self.mutable = mutable
        self.on_disk = not mutable
        self.below: tuple[Layer, ...] = ()
        self.moves = Moves()
        self.directories = DirectoryCache()
        self.root = LayerDir(self, None, b"", os.open(self.path, _OPEN_DIRECTORY & ~os.O_NOFOLLOW))

    def close(self) -> None:
        """Close every descriptor on this layer."""
        self.directories.trim(0)
        self.root.close()


class DirectoryCache:
    """Bounds the open directory descriptors of a stack; least recently used ones go first.

    `trim` is called only between two operations, so that no descriptor goes while one uses it.
    """

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: deque[LayerDir] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, directory: LayerDir) -> None:
        """Count *directory*, which has just been opened."""
        self._open.append(directory)

    def trim(self, most: int) -> None:
        """Close descriptors until at most *most* are open (second chance for those used lately)."""
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


class LayerDir:
    """A directory of one layer: where it is, and its descriptor, opened when first needed.

    It knows its place by parent and name, not by path, so a rename above it in the upper needs no
    visit here, and sealing the upper changes nothing at all.
    """

    __slots__ = (
        "_fd",
        "_kinds",
        "_marks",
        "_xattr_whiteouts",
        "layer",
        "name",
        "parent",
        "pinned",
        "redirect",
        "used",
    )

    def __init__(self, layer: Layer, parent: LayerDir | None, name: bytes, fd: int = -1) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        self.used = True
        self.pinned = False
        self.redirect: bytes | None = None
        self._fd = fd
        self._kinds: dict[bytes, int] | None = None
        self._marks: xattr.Marks | None = None
        self._xattr_whiteouts: bool | None = None

    def fd(self) -> int:
        """Return a descriptor on the directory, good until the next `DirectoryCache.trim`."""
        self.used = True
        if self._fd < 0:
            self._open()
        return self._fd

    def _open(self) -> None:
        closed = []
        directory = self
        while directory._fd < 0 and directory.parent is not None:
            closed.append(directory)
            directory = directory.parent
        fd = directory._fd
        for directory in reversed(closed):  # a loop, not a recursion: trees are deep
            fd = directory._fd = os.open(directory.name, _OPEN_DIRECTORY, dir_fd=fd)
            self.layer.directories.add(directory)

    def pin(self) -> None:
        """Keep the descriptor open: the directory is about to lose its name."""
        self.fd()
        self.pinned = True

    def unpin(self) -> None:
        """Let the descriptor go again: the directory has kept its name."""
        self.pinned = False
        self.layer.directories.add(self)

    def close(self) -> None:
        """Close the descriptor, if open; the next `fd` opens the directory again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def child(self, name: bytes) -> LayerDir:
        """Return a handle on the subdirectory *name*; nothing is opened yet."""
        return LayerDir(self.layer, self, name)

    def move(self, parent: LayerDir, name: bytes) -> None:
        """Note that the directory is now *name* in *parent* (of the same layer)."""
        self.parent = parent
        self.name = name

    def marks(self) -> xattr.Marks:
        """Return the directory's opaque and redirect marks, in whichever form."""
        if self._marks is not None:
            return self._marks
        marks = xattr.read_marks(self.fd())
        if self.layer.aufs and not marks.opaque and whiteout.has_aufs_opaque(self.fd()):
            marks = marks._replace(opaque=True)
        if not self.layer.mutable:
            self._marks = marks
        return marks

    def kind(self, name: bytes) -> int | None:
        """Return what *name* is here (see `whiteout`), or None where the directory has no such name."""
        if not self.layer.mutable:
            return self.kinds().get(name)
        return whiteout.kind_of(self.fd(), name, self._has_xattr_whiteouts())

    def _has_xattr_whiteouts(self) -> bool:
        """Tell whether files here may be whiteouts: remembered, because layerfs never writes that form."""
        if self._xattr_whiteouts is None:
            self._xattr_whiteouts = self.marks().xattr_whiteouts
        return self._xattr_whiteouts

    def kinds(self) -> dict[bytes, int]:
        """Return every name here and what it is. Remembered where the layer does not change."""
        if self._kinds is not None:
            return self._kinds
        kinds = whiteout.scan(self.fd(), aufs=self.layer.aufs, xattr_whiteouts=self._has_xattr_whiteouts())
        if not self.layer.mutable:
            self._kinds = kinds
        return kinds
