"""A run: sealed layers that follow each other, read as one layer by their index.

To the union it is one more layer: its directories have whiteouts, are opaque, or have redirects. But no file
is in it. A file is in the layer that it was sealed in, as before, and so is the directory whose attributes
count. So whoever has a file in use is not concerned when the union begins to read its layer as part of a run,
and nothing that people see depends on it.

The layers of a run are opened when somebody needs an object in them. All lie on one shelf.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from layerfs.union.descriptors import DirectoryCache, Shelf
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.marking import FileMarks, Marking, Marks, Trust
from layerfs.union.moves import Move, Moves, MovesInTurn, Path
from layerfs.union.runindex import Record, RunIndex
from layerfs.union.whiteout import DIRECTORY

if TYPE_CHECKING:
    from weakref import WeakSet

    from layerfs.union.node import Directory

_KIND = 3
_LAYER_SHIFT = 2
_LONGEST = 4096
"""PATH_MAX: what no system call takes."""


class CoveredLayer(Layer):
    """A layer of a run: nothing of it is open until something in it is needed."""

    __slots__ = ("_own_moves", "_own_root")

    def __init__(self, path: bytes, shelf: Shelf, marking: Marking, directories: DirectoryCache) -> None:
        """Name the tree at *path*, which lies on *shelf*. Nothing is opened."""
        self.path = path
        self.aufs = self.mutable = False
        self.marking = marking
        self.trust = Trust.ALL
        self.on_disk = True
        self.below = ()
        self._own_moves: Moves | None = None
        self._own_root: LayerDir | None = None
        self.hides = {}
        self.tops = None
        self.directories = directories
        self.shelf = shelf
        self._place = shelf.place_of(path)
        self.identity = (0, 0)

    @property
    def root(self) -> LayerDir:  # type: ignore[override]
        """See `Layer`; made when it is needed, since most of many layers need none."""
        if self._own_root is None:
            self._own_root = LayerDir(self, None, b"")
        return self._own_root

    @property
    def moves(self) -> Moves:  # type: ignore[override]
        """See `Layer`."""
        if self._own_moves is None:
            self._own_moves = Moves()
        return self._own_moves

    def open_root(self) -> int:
        """See `Layer.open_root`: its identity is what was found the first time."""
        assert self.shelf is not None
        assert self._place is not None
        try:
            fd = self.shelf.open(self._place)
        except (FileNotFoundError, NotADirectoryError):
            raise self._misplaced() from None
        st = os.fstat(fd)
        if self.identity == (0, 0):
            self.identity = st.st_dev, st.st_ino
        elif self.identity != (st.st_dev, st.st_ino):
            os.close(fd)
            raise self._misplaced()
        return fd


class CoveredDir(LayerDir):
    """A directory of a layer of a run. Its index says where it is, so it is opened with one call.

    To look at attributes it is not opened at all: a chain may have each file of a directory in another layer.
    That the way consists of directories was seen when the index was made, and sealed layers do not change.
    Should somebody change one, attributes of something else may be shown. What is opened is opened safely.
    """

    __slots__ = ("_names", "inodes")

    def __init__(self, layer: Layer, names: Path) -> None:
        super().__init__(layer, None, names[-1] if names else b"")
        self._names = names
        self.inodes: dict[bytes, bytes | None] = {}
        """Of the files that it was asked for: what they have in `overlay.layerfs.ino`."""

    def where(self, name: bytes) -> tuple[int, bytes]:
        """See `LayerDir.where`."""
        layer = self.layer
        place = layer.place_on_shelf
        if self._fd < 0 and layer.shelf is not None and place is not None:
            path = b"/".join((place, *self._names, name))
            if len(path) < _LONGEST:
                return layer.shelf.fd, path
        return self.fd(), name

    def stat_file(self, name: bytes) -> os.stat_result:
        """See `LayerDir.stat_file`."""
        fd, path = self.where(name)
        try:
            return os.stat(path, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return super().stat_file(name)  # EIO where the layer has gone

    def has_marks(self, name: bytes) -> bool:
        """See `LayerDir.has_marks`: the index knows."""
        return self.inodes.get(name, b"") is not None

    def file_marks(self, name: bytes, st: os.stat_result) -> FileMarks:
        """See `LayerDir.file_marks`."""
        return FileMarks(self.inodes[name]) if name in self.inodes else super().file_marks(name, st)

    def place(self) -> Path:
        """See `LayerDir.place`."""
        return self._names

    def _open(self) -> None:
        layer = self.layer
        if not self._names:
            self._fd = layer.open_root()
        else:
            place = layer.place_on_shelf
            assert layer.shelf is not None
            assert place is not None
            try:
                self._fd = layer.shelf.open_below(place, self._names)
            except FileNotFoundError:
                raise OSError(errno.EIO, "a layer's tree is not whole any more", layer.path) from None
        layer.directories.add(self)


class Run(Layer):
    """The layers *ids* as one. `first` is how many layers lie below the lowest of them."""

    __slots__ = ("_moves", "count", "first", "ids", "index")

    def __init__(
        self,
        index: RunIndex,
        ids: Sequence[str],
        first: int,
        *,
        shelf: Shelf,
        directories: DirectoryCache | None = None,
    ) -> None:
        """Read the layers *ids* (bottom first), which lie on *shelf*, by *index*."""
        self.path = index.path
        self.aufs = self.mutable = False
        self.marking = index.marking
        self.trust = Trust.ALL
        self.on_disk = True
        self.below = ()
        self.hides = {}
        self.tops: WeakSet[Directory] | None = None
        self.directories = directories if directories is not None else DirectoryCache()
        self.shelf = shelf
        self._place = None
        self.identity = shelf.device, 0
        self.index = index
        self.ids = ids
        self.first = first
        self.count = len(ids)
        self._moves = index.moves()
        self.moves = self.moves_above(-1)
        self.root: LayerDir = RunDir(self, None, b"", 0)

    def let_go(self) -> None:
        """See `Layer.let_go`: nothing is open."""

    def apart(self) -> Layer:
        """See `Layer.apart`."""
        raise NotImplementedError("the layers of a run are searched, not the run")

    def layer(self, number: int) -> Layer:
        """Return one of its layers; the lowest has the number 0."""
        assert self.shelf is not None
        path = self.shelf.tree_of(self.ids[number])
        layer = self.shelf.known.get(path)
        if layer is None:
            layer = CoveredLayer(path, self.shelf, self.marking, self.directories)
            layer.below = (self,) if self.first + number else ()
            self.shelf.known[path] = layer
        return layer

    def number_of(self, layer: Layer) -> int | None:
        """Return which of its layers *layer* is, None if it is none of them."""
        shelf = self.shelf
        assert shelf is not None
        name = shelf.id_of(layer.path)
        return self.ids.index(name) if name is not None and name in self.ids else None

    def moves_above(self, number: int) -> Moves:
        """Return the renamed directories of those of its layers that lie above its layer *number*."""
        tables: dict[int, list[Move]] = {}
        for layer, old, new in self._moves:
            if layer > number:
                tables.setdefault(layer, []).append((old, new))
        return MovesInTurn([tables[layer] for layer in sorted(tables)])


class RunDir(LayerDir):
    """A directory of a run: what the layers of the run give it together."""

    __slots__ = ("_holders", "_positions", "_record", "number")

    layer: Run

    def __init__(self, run: Run, parent: RunDir | None, name: bytes, number: int) -> None:
        super().__init__(run, parent, name)
        self.number = number
        self._record: Record | None = None
        self._positions: dict[bytes, int] = {}
        self._holders: dict[tuple[int, Path | None], CoveredDir] = {}

    def record(self) -> Record:
        """Return what the index says of it."""
        if self._record is None:
            record = self.layer.index.record(self.number)
            self._positions = {name: position for position, name in enumerate(record.names)}
            self._record = record
        return self._record

    def top(self) -> LayerDir:
        """Return its topmost part, which has its attributes."""
        return self._at(*self.record().top)

    def lowest(self) -> LayerDir:
        """See `LayerDir.lowest`."""
        return self._at(*self.record().lowest)

    @property
    def is_merged(self) -> bool:
        """Whether it has more than one part."""
        record = self.record()
        return record.top != record.lowest

    @property
    def depth(self) -> int:
        """How many layers lie below that of its topmost part."""
        return self.layer.first + self.record().top[0]

    def names_since(self, depth: int) -> Iterator[bytes]:
        """Yield the names of which a layer that has *depth* layers below it, or more, says something."""
        record = self.record()
        for name, value in zip(record.names, record.values, strict=True):
            if self.layer.first + (value >> _LAYER_SHIFT) >= depth:
                yield name

    def depth_of_name(self, name: bytes) -> int:
        """Return how many layers lie below the topmost one that says something of *name*, which it has."""
        return self.layer.first + (self.record().values[self._positions[name]] >> _LAYER_SHIFT)

    def entry(self, name: bytes) -> tuple[int, int, Path | None]:
        """Return kind, layer and place of a *name* that it has; the place of a directory is None."""
        record = self.record()
        position = self._positions[name]
        value = record.values[position]
        is_file = value & _KIND != DIRECTORY
        place = self.layer.index.place(record.references[position]) if is_file else None
        return value & _KIND, value >> _LAYER_SHIFT, place

    def holder(self, name: bytes) -> LayerDir:
        """See `LayerDir.holder`."""
        _, layer, place = self.entry(name)
        directory = self._at(layer, place)
        directory.inodes[name] = self.inode_of(name)
        return directory

    def inode_of(self, name: bytes) -> bytes | None:
        """Return what a file that it has has in `overlay.layerfs.ino`, None for nothing."""
        return self.layer.index.inode(self.record().inodes[self._positions[name]])

    def _at(self, layer: int, place: Path | None) -> CoveredDir:
        directory = self._holders.get((layer, place))
        if directory is None:
            names = self.place() if place is None else place
            directory = self._holders[layer, place] = CoveredDir(self.layer.layer(layer), names)
        return directory

    def fd(self) -> int:
        """See `LayerDir.fd`: that of its topmost part."""
        return self.top().fd()

    def _momentary(self) -> int:
        return self.top()._momentary()

    def pin(self) -> None:
        """See `LayerDir.pin`."""
        self.pinned = True
        self.top().pin()

    def unpin(self) -> None:
        """See `LayerDir.unpin`."""
        self.pinned = False
        self.top().unpin()

    def close(self) -> None:
        """See `LayerDir.close`."""
        if self.pinned:
            self.top().close()

    def child(self, name: bytes) -> LayerDir:
        """See `LayerDir.child`."""
        return RunDir(self.layer, self, name, self.record().references[self._positions[name]])

    def _read_marks(self) -> Marks:
        record = self.record()
        return Marks(record.opaque, False, record.redirect)

    def marks(self) -> Marks:
        """See `LayerDir.marks`."""
        return self._read_marks()

    def kind(self, name: bytes) -> int | None:
        """See `LayerDir.kind`."""
        record = self._record or self.record()
        position = self._positions.get(name)
        return None if position is None else record.values[position] & _KIND

    def kinds(self) -> dict[bytes, int]:
        """See `LayerDir.kinds`."""
        record = self.record()
        return {name: value & _KIND for name, value in zip(record.names, record.values, strict=True)}
