"""Which directories of a layer have been renamed, and from where: its redirects as one table.

Whoever knows where something lay in the layers below finds with it where that is now, without a look at the
layer. The upper keeps its table in step with every rename; nothing else changes a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import xxhash

Path = tuple[bytes, ...]
"""A path from the root of a layer or of the union, as names."""
Move = tuple[Path, Path]
"""Where a directory stood in the layers below, and where it stands in this one."""

_FORM = b"layerfs-moves 1"


class _Place:
    """A directory on the way to renamed ones, or one of these itself: then `old` is where it came from."""

    __slots__ = ("children", "name", "old", "parent")

    def __init__(self, parent: _Place | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.children: dict[bytes, _Place] = {}
        self.old: Path | None = None

    def path(self) -> Path:
        names: list[bytes] = []
        place = self
        while place.parent is not None:
            names.append(place.name)
            place = place.parent
        return tuple(reversed(names))


class Moves:
    """The renamed directories of one layer. The cost of everything depends on the depth of paths alone.

    Not `known` at first: what is noted then is only that something changed. The thread that owns the union
    has it to itself, except for `offer`.
    """

    __slots__ = ("_by_old", "_changes", "_offered", "_root", "known")

    def __init__(self, *, known: bool = False) -> None:
        self.known = known
        self._root = _Place(None, b"")
        self._by_old: dict[Path, _Place] = {}
        self._changes = 0
        self._offered: tuple[int, Sequence[Move]] = (-1, ())

    def __iter__(self) -> Iterator[Move]:
        for old, place in self._by_old.items():
            yield old, place.path()

    def today(self, path: Path) -> Path:
        """Return where in this layer stands what has *path* in the layers below, unless it was removed."""
        if self._by_old:
            for length in range(len(path), 0, -1):  # the innermost rename counts
                place = self._by_old.get(path[:length])
                if place is not None:
                    return place.path() + path[length:]
        return path

    # -- changes --------------------------------------------------------------------------------

    def rename(self, path: Path, new: Path, old: Path | None) -> None:
        """Note that the directory *path* is now *new*. If it has a redirect, that leads to *old*."""
        self._changes += 1
        self._put(new, self._take(path))
        self._redirect(new, old)

    def exchange(self, one: Path, other: Path, old_of_one: Path | None, old_of_other: Path | None) -> None:
        """Note that *one* and *other*, directories or not, have changed places; see `rename`."""
        self._changes += 1
        first, second = self._take(one), self._take(other)
        self._put(other, first)
        self._put(one, second)
        self._redirect(other, old_of_one)
        self._redirect(one, old_of_other)

    def remove(self, path: Path) -> None:
        """Note that there is no directory *path* any more.

        That a search may have found it does no harm: whoever asks for what was below looks, and finds none.
        """
        self._put(path, None)

    def _redirect(self, path: Path, old: Path | None) -> None:
        if old is None or not self.known:
            return
        place = self._root
        for name in path:
            if name not in place.children:
                place.children[name] = _Place(place, name)
            place = place.children[name]
        if place.old is not None and self._by_old.get(place.old) is place:
            del self._by_old[place.old]
        place.old = old
        self._by_old[old] = place

    def _take(self, path: Path) -> _Place | None:
        """Cut off and return what is known at and below *path*."""
        place = self._root
        for name in path:
            if name not in place.children:
                return None
            place = place.children[name]
        child = place
        while child.parent is not None:
            parent, child.parent = child.parent, None
            del parent.children[child.name]
            if parent.children or parent.old is not None:
                break
            child = parent
        return place

    def _put(self, path: Path, place: _Place | None) -> None:
        """Let *place* be what is known at and below *path*, in place of what is."""
        replaced = self._take(path)
        pending = [] if replaced is None else [replaced]
        while pending:
            gone = pending.pop()
            pending += gone.children.values()
            if gone.old is not None and self._by_old.get(gone.old) is gone:
                del self._by_old[gone.old]
        if place is not None:
            parent = self._root
            for name in path[:-1]:
                if name not in parent.children:
                    parent.children[name] = _Place(parent, name)
                parent = parent.children[name]
            place.parent, place.name = parent, path[-1]
            parent.children[path[-1]] = place

    # -- what others find out -------------------------------------------------------------------

    def begin(self) -> int:
        """Return what `offer` is to be told: how far the changes had come when a search began."""
        return self._changes

    def offer(self, changes: int, moves: Sequence[Move]) -> None:
        """Hand over all that a search has found; any thread may do it."""
        self._offered = changes, moves

    def settle(self) -> bool:
        """Tell whether the table is known, perhaps since the last search, during which nothing changed."""
        if not self.known:
            changes, moves = self._offered
            if changes == self._changes:
                self._fill(moves)
        return self.known

    def _fill(self, moves: Sequence[Move]) -> None:
        self.known = True
        self._offered = (-1, ())
        for old, new in moves:
            self._redirect(new, old)

    # -- on disk --------------------------------------------------------------------------------

    def dump(self, inode: int) -> bytes:
        """Return the table as bytes, for the layer whose root is *inode* (`st_ino`)."""
        fields = [_FORM, b"%d" % inode]
        for move in self:
            fields += [b"/".join(path) for path in move]
        body = b"".join(field + b"\0" for field in fields)
        return body + b"%016x\0" % xxhash.xxh3_64_intdigest(body)

    @classmethod
    def load(cls, data: bytes, inode: int) -> Moves | None:
        """Return the table that `dump` made bytes of; None if it is not whole, or another layer's."""
        body, checksum = data[:-17], data[-17:]
        *fields, last = body.split(b"\0")
        whole = checksum == b"%016x\0" % xxhash.xxh3_64_intdigest(body) and last == b""
        if not whole or len(fields) % 2 or fields[:2] != [_FORM, b"%d" % inode]:
            return None
        paths = [tuple(field.split(b"/")) for field in fields[2:]]
        moves = cls(known=True)
        for old, new in zip(paths[::2], paths[1::2], strict=True):
            moves._redirect(new, old)
        return moves


class MovesInTurn(Moves):
    """The renamed directories of several layers, which do not change any more."""

    __slots__ = ("_tables",)

    def __init__(self, tables: Sequence[Sequence[Move]]) -> None:
        """Take what each of the layers says, the lowest one first."""
        super().__init__(known=True)
        self._tables = []
        for table in tables:
            moves = Moves()
            moves._fill(table)
            self._tables.append(moves)

    def __iter__(self) -> Iterator[Move]:
        for moves in self._tables:
            yield from moves

    def today(self, path: Path) -> Path:
        """See `Moves.today`."""
        for moves in self._tables:
            path = moves.today(path)
        return path
