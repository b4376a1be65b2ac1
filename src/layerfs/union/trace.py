"""One path followed down through the trees of a stack: which of them say something about it, and what.

The cost is a look at that one path in each tree; only a tree that has a part of it is opened. Names that a
directory or a file had before it was renamed are followed:

- of a directory, by its redirect;
- of a file, by the number that its copy-up has noted (`marking.INODE`), or else by contents, of one that is
  small: what was deleted in the same tree and held the same is what it was called before. A file whose old
  name was given to another one in the same tree is not followed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

from layerfs.union.changes import ADDED, CHANGED, DELETED
from layerfs.union.descriptors import DirectoryCache
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.snapshot import Entry, Snapshot, opened
from layerfs.union.stack import Stack
from layerfs.union.whiteout import DIRECTORY, FILE, WHITEOUT

RENAMED = "R"
_SMALL = 1 << 20
"""Bytes of a file whose contents are compared to find out what it was called."""
_ROOM = 64


class Touch(NamedTuple):
    """What one tree says about the path."""

    depth: int
    """Which tree it is, from 0 for the lowest."""
    kind: str
    """A, C, D or R: added, changed, deleted, renamed (and perhaps changed)."""
    path: bytes
    """What it is called in that tree, absolute."""
    source: bytes | None = None
    """What it was called before, of one that was renamed."""


class _Said(NamedTuple):
    """What a tree says about a path, if anything."""

    present: bool
    absent: bool
    below: bytes | None
    """Where what is below goes on, if not at the same path."""


class _Pending(NamedTuple):
    """A tree that has said something which depends on what is below."""

    depth: int
    path: bytes
    said: _Said


class Trees(Protocol):
    """The trees of a stack, of which there may be many thousands: what is not asked for is not looked up."""

    @property
    def count(self) -> int:
        """How many there are."""

    def may_have(self, depth: int, path: bytes) -> bool:
        """Tell at little cost whether a tree may have something to say about *path*."""

    def up_to(self, depth: int) -> Stack:
        """Return the stack of the lowest *depth* trees."""

    def tree(self, depth: int) -> Stack:
        """Return one tree alone, as it is to be read within the stack."""


class Plain:
    """The trees of a stack that is all there."""

    def __init__(self, stack: Stack) -> None:
        """Take the trees of *stack*."""
        self._stack = stack

    @property
    def count(self) -> int:
        """See `Trees`."""
        return len(self._stack.trees)

    def may_have(self, depth: int, path: bytes) -> bool:
        """See `Trees`."""
        return True

    def up_to(self, depth: int) -> Stack:
        """See `Trees`."""
        return self._stack.up_to(depth)

    def tree(self, depth: int) -> Stack:
        """See `Trees`."""
        return replace(self._stack, trees=self._stack.trees[depth : depth + 1])


def trace(trees: Trees, path: bytes) -> Iterator[Touch]:
    """Yield what *trees* say about *path* (absolute, no links in it), top-most first.

    Raises `OSError` where a tree cannot be read.
    """
    return _Trace(trees).follow(path)


class _Trace:
    """The trees, each opened for the moment in which it is looked at."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    def follow(self, path: bytes) -> Iterator[Touch]:
        """Yield what the trees say about *path*."""
        pending: list[_Pending] = []
        depth = self._trees.count - 1
        while depth >= -1:
            said = self._look(depth, path) if depth >= 0 else _Said(False, True, None)
            if said is None:
                depth -= 1
                continue
            if said.present or said.absent:
                source = None
                if pending and pending[0].said.present and not said.present:
                    source = self._source(pending[0])
                if source is not None:  # it goes on below where it was renamed, with the name of then
                    first = pending[0]
                    yield Touch(first.depth, RENAMED, first.path, source)
                    pending, path, depth = [], source, first.depth - 1
                    continue
                yield from _settled(pending, said.present)
                pending = []
            pending.append(_Pending(depth, path, said))
            path = said.below or path
            depth -= 1

    def _look(self, depth: int, path: bytes) -> _Said | None:
        """Return what one tree says about *path*, None for nothing."""
        if not self._trees.may_have(depth, path):
            return None
        with self._opened(depth) as layer:
            return _look(layer, path)

    @contextmanager
    def _opened(self, depth: int) -> Iterator[Layer]:
        # As one that changes: it then asks for single names, and lists no directory.
        stack = self._trees.tree(depth)
        (tree,) = stack.trees
        layer = Layer(
            tree.path,
            aufs=tree.aufs,
            mutable=not tree.aufs,
            marking=stack.marking,
            trust=tree.trust,
            directories=DirectoryCache(_ROOM),
        )
        try:
            yield layer
        finally:
            layer.close()

    def _source(self, new: _Pending) -> bytes | None:
        """Return what the file that a tree has added was called before, None for one that is new."""
        if new.depth == 0:
            return None
        with self._opened(new.depth) as layer:
            deleted = list(_deleted(layer))
        if not deleted:
            return None
        stacks = self._trees.up_to(new.depth + 1), self._trees.up_to(new.depth)
        with opened(stacks[0]) as now, opened(stacks[1]) as before:
            added = now.find(new.path)
            if added.is_directory:
                return None
            candidates = []
            for path in deleted:
                try:
                    candidates.append(before.find(path))
                except OSError:
                    continue
                before.trim()
            origin = _origin(now, added)
            for entry in candidates:
                if origin is not None and origin == (_origin(before, entry) or entry.status.st_ino):
                    return entry.path
            for entry in candidates:
                if _holds_the_same(now, added, before, entry):
                    return entry.path
        return None


def _settled(pending: list[_Pending], exists: bool) -> Iterator[Touch]:
    """Yield what *pending* trees have done, now that it is known whether something was there before."""
    for depth, path, said in pending:
        if said.present and not exists:
            yield Touch(depth, ADDED, path)
        elif not exists:
            continue
        elif said.below is not None:
            yield Touch(depth, RENAMED, path, said.below)
        else:
            yield Touch(depth, CHANGED if said.present else DELETED, path)


def _look(layer: Layer, path: bytes) -> _Said | None:
    directory = layer.root
    names = path.split(b"/")[1:]
    below: list[bytes] = []
    moved = hidden = False
    for number, name in enumerate(names):
        kind = directory.kind(name)
        if kind is None:
            if hidden:
                return _Said(False, True, None)
            rest = b"".join(b"/" + part for part in (*below, *names[number:]))
            return _Said(False, False, rest) if moved else None
        if kind == WHITEOUT or (kind == FILE and number < len(names) - 1):
            return _Said(False, True, None)
        if kind == FILE:
            below.append(name)
            break
        directory = directory.child(name)
        marks = directory.marks()
        if marks.opaque:
            hidden = True
        if marks.redirect is None or hidden:
            below.append(name)
            continue
        moved = True
        if marks.redirect.startswith(b"/"):
            below = marks.redirect.split(b"/")[1:]
        else:
            below.append(marks.redirect)
    return _Said(True, False, b"".join(b"/" + part for part in below) if moved and not hidden else None)


def _deleted(layer: Layer) -> Iterator[bytes]:
    """Yield the paths of the whiteouts in a tree."""
    pending: list[tuple[bytes, LayerDir]] = [(b"", layer.root)]
    while pending:
        layer.directories.trim()
        path, directory = pending.pop()
        for name, kind in directory.kinds().items():
            if kind == WHITEOUT:
                yield b"%s/%s" % (path, name)
            elif kind == DIRECTORY:
                pending.append((b"%s/%s" % (path, name), directory.child(name)))


def _origin(tree: Snapshot, entry: Entry) -> int | None:
    """Return the number of the file that *entry* is a copy-up of, None for one that is no copy."""
    if entry.is_directory:
        return None
    digits = (entry.home.file_marks(entry.name, entry.status).inode or b"").partition(b":")[0]
    return int(digits) if digits.isdigit() else None


def _holds_the_same(one: Snapshot, entry: Entry, other: Snapshot, before: Entry) -> bool:
    a, b = entry.status, before.status
    if (
        stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode)
        or not 0 < a.st_size <= _SMALL
        or a.st_size != b.st_size
    ):
        return False
    if stat.S_ISLNK(a.st_mode):
        return one.link(entry) == other.link(before)
    return stat.S_ISREG(a.st_mode) and one.read(entry, _SMALL) == other.read(before, _SMALL)
