"""Trees that lie on each other, and how they are to be read: what everybody opens who reads a stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
                layer.below = tuple(reversed(layers))
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


def close_all(layers: list[Layer]) -> None:
    """Close every layer."""
    for layer in layers:
        layer.close()
