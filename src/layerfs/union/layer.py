"""A layer: one directory tree of the stack, and handles on the directories in it.

Every access goes through a directory's descriptor and one name (`openat` with O_NOFOLLOW), so nothing
in a layer, however hostile, leads outside it: no path of a layer is ever resolved by the kernel.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

from layerfs.union import syscalls, whiteout
from layerfs.union.descriptors import OPEN_DIRECTORY, DirectoryCache, Shelf
from layerfs.union.marking import FileMarks, Marking, Marks, Trust, of_this_process
from layerfs.union.moves import Moves

if TYPE_CHECKING:
    from layerfs.union.node import Directory


class Layer:
    """One tree of the stack.

    `below` are the layers under it, top-most first. A *mutable* layer is the upper: it changes, so
    nothing about it is remembered. `aufs` says that `.wh.` files in it are whiteouts, `marking` which
    attributes are the overlay's own, and `trust` whose redirects are followed in it. `identity` are the
    root's `st_dev` and `st_ino`. `on_disk` says that all of it is known to be on its disk, as it is of a
    layer that was sealed some time ago. `moves` are its renamed directories, `hides` how many names it has
    taken away of files with several below it, and `tops`, of one that came to the union later, the nodes of
    which it has, or had, the topmost part.

    Where the tree lies on a *shelf*, its root is closed while it is not used. Other roots stay open: the
    path of a directory that somebody has named may be covered by the very mount that it is a layer of, and
    looking for it there would be waiting for ourselves.
    """

    __slots__ = (
        "__weakref__",
        "_place",
        "aufs",
        "below",
        "directories",
        "hides",
        "identity",
        "marking",
        "moves",
        "mutable",
        "on_disk",
        "path",
        "root",
        "shelf",
        "tops",
        "trust",
    )

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        *,
        aufs: bool = False,
        mutable: bool = False,
        marking: Marking | None = None,
        trust: Trust = Trust.ALL,
        shelf: Shelf | None = None,
        directories: DirectoryCache | None = None,
    ) -> None:
        """Open the tree at *path*, as one of the layers that share *directories*.

        Raises `OSError` when it is no directory or cannot be read.
        """
        self.path = os.fsencode(path)
        self.aufs = aufs
        self.mutable = mutable
        self.marking = marking if marking is not None else of_this_process()
        self.trust = trust
        self.on_disk = not mutable
        self.below: Sequence[Layer] = ()
        self.moves = Moves()
        self.hides: dict[tuple[Layer, int, int], int] = {}
        self.tops: WeakSet[Directory] | None = None
        self.directories = directories if directories is not None else DirectoryCache()
        self.shelf = shelf
        self._place = shelf.place_of(self.path) if shelf is not None else None
        fd = os.open(self.path, OPEN_DIRECTORY & ~os.O_NOFOLLOW)
        if not mutable and self._place is None:
            fd = _without_mounts(fd)
        st = os.fstat(fd)
        self.identity = st.st_dev, st.st_ino
        self.root = LayerDir(self, None, b"", fd)
        self.root.pinned = True
        if shelf is not None and self._place is not None:
            shelf.known[self.path] = self
        if not mutable:
            before = len(self.directories)
            self.let_go()
            self.directories.settle(before)

    @property
    def place_on_shelf(self) -> bytes | None:
        """Where the tree lies on its shelf, None where it lies on none."""
        return self._place

    def share(self, directories: DirectoryCache) -> None:
        """Count the open directories of this layer among *directories* from here on."""
        if self.directories is not directories:
            self.directories.trim(0)
            self.directories = directories

    def let_go(self) -> None:
        """Let the root's descriptor be closed when others are needed more, if it can be opened again."""
        if self._place is not None and self.root.pinned:
            self.root.unpin()

    def moved(self, path: str | bytes | os.PathLike[str]) -> None:
        """Note that the tree lies at *path* now."""
        self.path = os.fsencode(path)
        self._place = self.shelf.place_of(self.path) if self.shelf is not None else None
        if self.shelf is not None and self._place is not None:
            self.shelf.known[self.path] = self
        if self._place is None:
            self.root.pin()
        elif not self.mutable:
            self.let_go()

    def open_root(self) -> int:
        """Return a new descriptor on the root, which is the caller's. Any thread may call it.

        Raises `OSError`, EIO where the tree is not where it was: no name may count as missing then.
        """
        if self.shelf is None or self._place is None:
            return os.open(b".", OPEN_DIRECTORY, dir_fd=self.root.fd())
        try:
            fd = self.shelf.open(self._place)
        except (FileNotFoundError, NotADirectoryError):
            raise self._misplaced() from None
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != self.identity:
            os.close(fd)
            raise self._misplaced()
        return fd

    def _misplaced(self) -> OSError:
        return OSError(errno.EIO, "a layer's tree is not there any more", self.path)

    def apart(self) -> Layer:
        """Return the same layer with handles of its own, for another thread; the caller closes it."""
        fd = self.open_root()
        try:
            own = Layer(b"/proc/self/fd/%d" % fd, aufs=self.aufs, marking=self.marking, trust=self.trust)
        finally:
            os.close(fd)
        own.below = self.below
        return own

    def close(self) -> None:
        """Close every descriptor on this layer."""
        self.directories.trim(0)
        self.root.close()


def _without_mounts(fd: int) -> int:
    """Return a descriptor of the directory *fd*, which is closed, in which nothing is mounted.

    A layer is one filesystem's, as for the kernel's overlayfs: what is mounted in a lower directory is
    other people's business, and may change. Who may not mount gets *fd* itself.
    """
    try:
        tree = syscalls.clone_tree(fd)
    except OSError:
        return fd
    try:
        return os.open(b".", OPEN_DIRECTORY, dir_fd=tree)
    finally:
        os.close(tree)
        os.close(fd)


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
        self._marks: Marks | None = None
        self._xattr_whiteouts: bool | None = None

    def fd(self) -> int:
        """Return a descriptor on the directory, good until the next `DirectoryCache.trim`."""
        self.used = True
        return self._momentary()

    def _momentary(self) -> int:
        """Return a descriptor on the directory, good until the next `DirectoryCache.settle`."""
        if self._fd < 0:
            self._open()
        return self._fd

    def _open(self) -> None:
        closed = []
        directory: LayerDir | None = self
        while directory is not None and directory._fd < 0:
            closed.append(directory)
            directory = directory.parent
        fd = directory._fd if directory is not None else -1
        directories = self.layer.directories
        for directory in reversed(closed):  # a loop, not a recursion: trees are deep
            if directory.parent is not None:
                directory._fd = os.open(directory.name, OPEN_DIRECTORY, dir_fd=fd)
            else:
                directory._fd = self.layer.open_root()
            if directory is not closed[-1] and directories.is_full:
                directories.take_back()  # the directory above, which was closed until now
            fd = directory._fd
            directories.add(directory)

    def status(self) -> os.stat_result:
        """Return the directory's stat; of many in a row, only as many stay open as there is room for."""
        before = len(self.layer.directories)
        try:
            return os.fstat(self._momentary())
        finally:
            self.layer.directories.settle(before)

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

    def holder(self, name: bytes) -> LayerDir:
        """Return the directory of a layer that has the file *name* of this one: it does itself."""
        return self

    def lowest(self) -> LayerDir:
        """Return the lowest directory of a layer that this one is made of: that is itself."""
        return self

    @property
    def is_merged(self) -> bool:
        """Whether several layers have a part in it."""
        return False

    def place(self) -> tuple[bytes, ...]:
        """Return the names that lead here from the layer's root."""
        names: list[bytes] = []
        directory = self
        while directory.parent is not None:
            names.append(directory.name)
            directory = directory.parent
        return tuple(reversed(names))

    def move(self, parent: LayerDir, name: bytes) -> None:
        """Note that the directory is now *name* in *parent* (of the same layer)."""
        self.parent = parent
        self.name = name

    def marks(self) -> Marks:
        """Return the directory's opaque and redirect marks, in whichever form.

        Raises `OSError`, EPERM for a redirect of somebody whom the layer's `trust` does not cover.
        """
        marks = self._read_marks()
        if marks.redirect is not None and not self.layer.trust.covers(self.status().st_uid):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), self.name)
        return marks

    def _read_marks(self) -> Marks:
        if self._marks is not None:
            return self._marks
        layer = self.layer
        if layer.mutable:
            return layer.marking.read(self.fd())
        before = len(layer.directories)
        try:
            marks = layer.marking.read(self._momentary())
            if layer.aufs and not marks.opaque and whiteout.has_aufs_opaque(self._momentary()):
                marks = marks._replace(opaque=True)
        finally:
            layer.directories.settle(before)
        self._marks = marks
        return marks

    def where(self, name: bytes) -> tuple[int, bytes]:
        """Return a descriptor and a path from there, to look at the attributes of the file *name*."""
        return self.fd(), name

    def stat_file(self, name: bytes) -> os.stat_result:
        """Return the stat of the file *name*, which the directory has. Raises `OSError`."""
        return os.stat(name, dir_fd=self.fd(), follow_symlinks=False)

    def has_marks(self, name: bytes) -> bool:
        """Tell whether the file *name* may have marks of the overlay's own."""
        return bool(self.layer.below)

    def file_marks(self, name: bytes, st: os.stat_result) -> FileMarks:
        """Return the marks of *name*, anything but a directory, whose stat is *st*.

        Raises `OSError`, EPERM for a file of metadata alone that the layer's `trust` does not cover: whose
        inode number counts as not written.
        """
        marks = self.layer.marking.read_file(self.fd(), name)
        if self.layer.trust.covers(st.st_uid):
            return marks
        if marks.metacopy:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), name)
        return FileMarks()

    def kind(self, name: bytes) -> int | None:
        """Return what *name* is here (see `whiteout`), or None where the directory has no such name."""
        if not self.layer.mutable:
            return self.kinds().get(name)
        return whiteout.kind_of(self.fd(), name, self._whiteout_marking())

    def _whiteout_marking(self) -> Marking | None:
        """Return the marking of files that may be whiteouts here; None where none may be.

        Remembered, because layerfs never writes that form.
        """
        if self._xattr_whiteouts is None:
            self._xattr_whiteouts = self._read_marks().xattr_whiteouts
        return self.layer.marking if self._xattr_whiteouts else None

    def kinds(self) -> dict[bytes, int]:
        """Return every name here and what it is. Remembered where the layer does not change."""
        if self._kinds is not None:
            return self._kinds
        layer = self.layer
        if layer.mutable:
            return whiteout.scan(self.fd(), aufs=layer.aufs, whiteouts=self._whiteout_marking())
        whiteouts = self._whiteout_marking()
        before = len(layer.directories)
        try:
            kinds = self._kinds = whiteout.scan(self._momentary(), aufs=layer.aufs, whiteouts=whiteouts)
        finally:
            layer.directories.settle(before)
        return kinds
