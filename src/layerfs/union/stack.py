"""Trees that lie on each other, and how they are to be read: what everybody opens who reads a stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, overload

from layerfs.union.descriptors import DirectoryCache, Shelf
from layerfs.union.layer import Layer
from layerfs.union.marking import Marking, Trust


class Tree(NamedTuple):
    """A directory that is a layer. With *aufs*, `.wh.` files in it are whiteouts.

    In a *plain* one no directory is opaque or was renamed, which spares the look.
    """

    path: Path
    aufs: bool = False
    trust: Trust = Trust.ALL
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Trees, bottom first, that are marked in one way. Those on the *shelf* take no descriptor each."""

    trees: tuple[Tree, ...]
    marking: Marking
    shelf: Path | None = None

    def up_to(self, depth: int) -> Stack:
        """Return the stack of the lowest *depth* trees."""
        return replace(self, trees=self.trees[:depth])

    def open(self, shelf: Shelf | None, directories: DirectoryCache) -> list[Layer]:
        """Open all trees, bottom first; the caller closes them. Raises `OSError`, then none is open."""
        layers: list[Layer] = []
        try:
            for path, aufs, trust, _ in self.trees:
                layer = Layer(
                    path,
                    aufs=aufs,
                    marking=self.marking,
                    trust=trust,
                    shelf=shelf,
                    directories=directories,
                )
                layer.below = _Below(layers, len(layers))
                layers.append(layer)
        except OSError:
            close_all(layers)
            raise
        return layers

    @contextmanager
    def opened(self, room: int) -> Iterator[list[Layer]]:
        """Open all trees, bottom first, for the block, with about *room* descriptors on directories."""
        shelf = Shelf(self.shelf) if self.shelf is not None else None
        layers: list[Layer] = []
        try:
            layers = self.open(shelf, DirectoryCache(room))
            yield layers
        finally:
            close_all(layers)
            if shelf is not None:
                shelf.close()


class _Below(Sequence[Layer]):
    """The lowest layers of a stack, top-most first. Of thousands, each has one: a tuple is too large."""

    __slots__ = ("_count", "_layers")

    def __init__(self, layers: list[Layer], count: int) -> None:
        """Show the first *count* of *layers*, which are bottom first and get only longer."""
        self._layers = layers
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Layer: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Layer, ...]: ...

    def __getitem__(self, place: int | slice) -> Layer | tuple[Layer, ...]:
        if isinstance(place, slice):
            return tuple(self)[place]
        if not -self._count <= place < self._count:
            raise IndexError(place)
        return self._layers[self._count - 1 - place % self._count]

    def __iter__(self) -> Iterator[Layer]:
        return (self._layers[number] for number in range(self._count - 1, -1, -1))


def close_all(layers: list[Layer]) -> None:
    """Close every layer."""
    for layer in layers:
        layer.close()
