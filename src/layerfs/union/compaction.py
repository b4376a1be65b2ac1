"""Making the index of a run: from the trees of its layers, or from the indexes of shorter runs.

The index is what the layers mean together, by the same rules by which a union reads them (`merge.resolve`),
but with nothing below. What a directory merges with below the run is said once: all of the same path, nothing
(opaque), or what has another path there (a redirect).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from layerfs.union import links
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.marking import Trust
from layerfs.union.moves import Path
from layerfs.union.run import Run, RunDir
from layerfs.union.runindex import IndexWriter
from layerfs.union.whiteout import DIRECTORY, FILE

MOST_NAMES = 10_000
"""Names that a layer may have to become part of a run: an image's layers are few, and large."""
_DESCRIPTORS = 64
_LARGEST_LAYER = 1 << 29
"""Layers that a number in an index can tell apart."""


class CannotIndex(Exception):
    """A layer holds what no index can say, or too much of it; `layer` is that one."""

    def __init__(self, layer: Layer, why: str) -> None:
        super().__init__(why)
        self.layer = layer


class _Merged(NamedTuple):
    """A directory of the run: its parts, topmost first, and where it goes on below the run, if it does."""

    parts: Sequence[LayerDir]
    below: Path | None


def compact(
    layers: Sequence[Layer], ids: Sequence[str], rest: Callable[[], None] = lambda: None
) -> tuple[bytes, int]:
    """Return the index of *layers*, bottom first, and how many directories it has.

    They are sealed layers of one store with the ids *ids*, or runs of such. The cost depends on how many
    names they hold. *rest* is called now and then. Raises `CannotIndex`, `OSError`.
    """
    return _Compaction(layers, ids, rest).run()


class _Compaction:
    def __init__(self, layers: Sequence[Layer], ids: Sequence[str], rest: Callable[[], None]) -> None:
        self._layers = layers
        self._rest = rest
        self._bases: dict[Layer, int] = {}
        self._positions = {layer: position for position, layer in enumerate(layers)}
        count = 0
        for layer in layers:
            self._bases[layer] = count
            count += layer.count if isinstance(layer, Run) else 1
        if count != len(ids) or count > _LARGEST_LAYER:
            raise ValueError("as many ids as layers")
        self._names = dict.fromkeys(layers, 0)
        self._writer = IndexWriter(ids, layers[0].marking)

    def run(self) -> tuple[bytes, int]:
        for layer in self._layers:
            if layer.aufs or layer.mutable or layer.trust is not Trust.ALL:
                raise CannotIndex(layer, "others than layerfs may have written to it")
            if layer.marking != self._layers[0].marking:
                raise CannotIndex(layer, "it is marked in another way")
        moves = [move for layer in self._layers for move in self._moves(layer)]
        roots = tuple(layer.root for layer in reversed(self._layers))
        pending: deque[tuple[Path, _Merged, bytes | None]] = deque([((), _Merged(roots, ()), None)])
        records = 0
        while pending:
            here, merged, redirect = pending.popleft()
            self._add(here, merged, redirect, records + 1, pending)
            records += 1
            merged.parts[0].layer.directories.trim(_DESCRIPTORS)
            self._rest()
        return self._writer.finish(moves), records

    def _moves(self, layer: Layer) -> list[tuple[int, Path, Path]]:
        base = self._bases[layer]
        if isinstance(layer, Run):
            return [(base + number, old, new) for number, old, new in layer.index.moves()]
        return [(base, old, new) for old, new in links.renamed(layer)]

    def _add(
        self,
        here: Path,
        merged: _Merged,
        redirect: bytes | None,
        next_record: int,
        pending: deque[tuple[Path, _Merged, bytes | None]],
    ) -> None:
        """Write the record of one directory, and have those in it follow."""
        first: dict[bytes, tuple[LayerDir, int]] = {}
        inodes: dict[tuple[LayerDir, bytes], bytes] = {}
        for part in merged.parts:
            kinds = part.kinds()
            if not isinstance(part, RunDir):
                inodes.update(self._look_at(part, kinds))
            for name, kind in kinds.items():
                first.setdefault(name, (part, kind))
        entries = []
        record = next_record + len(pending)
        for name in sorted(first):
            part, kind = first[name]
            layer, place = self._where(part, name, kind)
            reference = inode = 0
            if kind == FILE:
                reference = self._writer.reference(place, here)
                text = part.inode_of(name) if isinstance(part, RunDir) else inodes.get((part, name))
                inode = self._writer.inode(text)
            elif kind == DIRECTORY:
                child = self._step(merged, name)
                assert isinstance(child, _Merged)
                plain = None if merged.below is None else (*merged.below, name)
                away = child.below is not None and child.below != plain
                redirected = b"/" + b"/".join(child.below) if away and child.below else None
                pending.append(((*here, name), child, redirected))
                reference, record = record, record + 1
            entries.append((name, layer << 2 | kind, reference, inode))
        top, lowest = self._top(merged.parts[0]), self._lowest(merged.parts[-1])
        self._writer.add(
            (top[0], self._writer.reference(top[1], here)),
            (lowest[0], self._writer.reference(lowest[1], here)),
            redirect,
            entries,
            opaque=merged.below is None and bool(here),
        )

    def _look_at(
        self, part: LayerDir, kinds: Mapping[bytes, int]
    ) -> Iterator[tuple[tuple[LayerDir, bytes], bytes]]:
        """Yield the numbers that files in the directory *part* of a layer had before they were copied up.

        Raises `CannotIndex` where it holds what an index cannot say.
        """
        layer = part.layer
        self._names[layer] += len(kinds)
        if self._names[layer] > MOST_NAMES:
            raise CannotIndex(layer, f"it has more than {MOST_NAMES} names")
        for name, kind in kinds.items():
            if kind != FILE:
                continue
            marks = layer.marking.read_file(part.fd(), name)
            if marks.metacopy:
                raise CannotIndex(layer, "it has files of metadata alone")
            if marks.inode is not None:
                yield (part, name), marks.inode

    def _where(self, part: LayerDir, name: bytes, kind: int) -> tuple[int, Path]:
        """Return which layer of the run has *name*, which *part* has, and where its directory is there."""
        base = self._bases[part.layer]
        if not isinstance(part, RunDir):
            return base, part.place() if kind == FILE else ()
        _, layer, place = part.entry(name)
        return base + layer, part.place() if place is None else place

    def _top(self, part: LayerDir) -> tuple[int, Path]:
        return self._located(part, part.record().top if isinstance(part, RunDir) else (0, None))

    def _lowest(self, part: LayerDir) -> tuple[int, Path]:
        return self._located(part, part.record().lowest if isinstance(part, RunDir) else (0, None))

    def _located(self, part: LayerDir, found: tuple[int, Path | None]) -> tuple[int, Path]:
        layer, place = found
        return self._bases[part.layer] + layer, part.place() if place is None else place

    def _step(self, merged: _Merged, name: bytes) -> _Merged | None:
        """Return the directory *name* of *merged*, None where there is a file, or it was deleted.

        A directory that no layer of the run has has no parts.
        """
        found: list[LayerDir] = []
        for part in merged.parts:
            kind = part.kind(name)
            if kind is None:
                continue
            if kind != DIRECTORY:
                return _Merged(found, None) if found else None
            child = part.child(name)
            found.append(child)
            marks = child.marks()
            if marks.opaque:
                return _Merged(found, None)
            if marks.redirect is not None:
                there = self._follow(child.layer, marks.redirect)
                return _Merged([*found, *there.parts], there.below)
        return _Merged(found, None if merged.below is None else (*merged.below, name))

    def _follow(self, layer: Layer, redirect: bytes) -> _Merged:
        """Return the directory that a *redirect* of a directory in *layer* leads to."""
        names = tuple(redirect[1:].split(b"/"))
        if not redirect.startswith(b"/") or any(name in (b"", b".", b"..") for name in names):
            raise CannotIndex(layer, "it has a redirect that is not absolute")
        below = self._layers[: self._positions[layer]]
        there = _Merged([lower.root for lower in reversed(below)], ())
        for name in names:
            next_one = self._step(there, name)
            if next_one is None:
                return _Merged([], None)
            there = next_one
        return there
