"""Holding what is found after a power cut against what was promised."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from layerfs.store.model import Layer as Row
from layerfs.union.layer import Layer
from layerfs.union.node import Directory, File
from layerfs.union.view import Union
from tests.system.promises.world import ROOT, Node, World

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


class Found(NamedTuple):
    """One object that is there."""

    kind: str
    inode: int
    mode: int
    mtime: int


class Tree(Protocol):
    """What is there. Paths are relative, that of the root is empty; all methods raise `OSError`."""

    def names(self, path: str) -> list[str]: ...
    def look(self, path: str) -> Found: ...
    def read(self, path: str) -> bytes: ...
    def target(self, path: str) -> str: ...
    def xattr(self, path: str, name: str) -> str | None: ...


class Mounted:
    """A tree as the kernel shows it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, path: str) -> list[str]:
        return os.listdir(self._root / path)

    def look(self, path: str) -> Found:
        return _found((self._root / path).lstat())

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def target(self, path: str) -> str:
        return os.readlink(self._root / path)

    def xattr(self, path: str, name: str) -> str | None:
        try:
            return os.getxattr(self._root / path, name, follow_symlinks=False).decode()
        except OSError as error:
            if error.errno == 61:  # ENODATA
                return None
            raise


class Unmounted:
    """A stack of layers, read without a mount."""

    def __init__(self, union: Union) -> None:
        self._union = union

    @classmethod
    def of(cls, rows: list[Row]) -> Unmounted:
        """Open layers of the store, bottom first; `close` closes them. Raises `OSError`."""
        layers: list[Layer] = []
        try:
            for row in rows:
                layers.append(Layer(row.path, aufs=row.state == "external"))  # noqa: PERF401 - closed below
            return cls(Union(layers, None))
        except OSError:
            for layer in layers:
                layer.close()
            raise

    def close(self) -> None:
        """Close all that is open."""
        self._union.close()

    def _node(self, path: str) -> Directory | File:
        node: Directory | File | None = self._union.root
        for part in path.encode().split(b"/") if path else ():
            node = self._union.lookup(node, part) if isinstance(node, Directory) else None
        if node is None:
            raise FileNotFoundError(path)
        return node

    def names(self, path: str) -> list[str]:
        node = self._node(path)
        assert isinstance(node, Directory)
        return [name.decode() for _, name in self._union.listing(node)]

    def look(self, path: str) -> Found:
        return _found(self._union.stat(self._node(path)))

    def read(self, path: str) -> bytes:
        node = self._node(path)
        assert isinstance(node, File)
        return os.pread(self._union.data(node), 1 << 30, 0)

    def target(self, path: str) -> str:
        node = self._node(path)
        assert isinstance(node, File)
        return self._union.readlink(node).decode()

    def xattr(self, path: str, name: str) -> str | None:
        try:
            return self._union.getxattr(self._node(path), name.encode()).decode()
        except OSError as error:
            if error.errno == 61:  # ENODATA
                return None
            raise


def _found(st: os.stat_result) -> Found:
    kind = _KINDS.get(stat.S_IFMT(st.st_mode), "special")
    return Found(kind, st.st_ino, stat.S_IMODE(st.st_mode), st.st_mtime_ns)


class Broken(NamedTuple):
    """A broken promise, in one sentence; `nodes` are the ids of what it is about."""

    sentence: str
    nodes: frozenset[str]


class Check:
    """One comparison of a *tree* with a *world*."""

    def __init__(self, world: World, tree: Tree) -> None:
        self._world = world
        self._tree = tree
        self._numbers: dict[str, dict[str, int]] = {}
        """The inode numbers under which each node was found, by path."""
        self._fits: dict[tuple[str, str], str | None] = {}

    def broken(self) -> list[Broken]:
        """Return all promises that are broken."""
        found = list(self._directory("", self._world.node(ROOT)))
        known = frozenset[str]().union(*(broken.nodes for broken in found))
        found += [lost for lost in self._lost() if not lost.nodes & known]
        return [*found, *self._parted()]

    def _directory(self, path: str, node: Node) -> Iterator[Broken]:
        names = set(self._tree.names(path))
        for name in sorted(names | set(node.entries)):
            entry = node.entries.get(name)
            where = f"{path}/{name}".lstrip("/")
            if entry is None:
                yield Broken(f"{where} is there, and nobody made it", frozenset((node.id,)))
                continue
            allowed = [entry.promised, *entry.later]
            about = frozenset((node.id, *(one for one in allowed if one is not None)))
            if name not in names:
                if None not in allowed:
                    yield Broken(f"{where} is gone", about)
                continue
            yield from self._object(where, [one for one in allowed if one is not None], about)

    def _object(self, path: str, allowed: list[str], about: frozenset[str]) -> Iterator[Broken]:
        if not allowed:
            yield Broken(f"{path} is there again", about)
            return
        objections = []
        for id_ in dict.fromkeys(reversed(allowed)):
            node = self._world.node(id_)
            objection = self._objection(path, node)
            if objection is None:
                self._numbers.setdefault(id_, {})[path] = self._tree.look(path).inode
                if node.kind == "dir":
                    yield from self._directory(path, node)
                return
            objections.append(objection)
        yield Broken(f"{path} " + ", or ".join(objections), about)

    def _objection(self, path: str, node: Node) -> str | None:
        """Say why what is at *path* is not *node*; None where it may be."""
        if (path, node.id) not in self._fits:
            try:
                self._fits[path, node.id] = self._look_for_objection(path, node)
            except OSError as error:
                self._fits[path, node.id] = f"cannot be read: {error.strerror}"
        return self._fits[path, node.id]

    def _look_for_objection(self, path: str, node: Node) -> str | None:
        found = self._tree.look(path)
        if found.kind != node.kind:
            return f"is a {found.kind}, not a {node.kind}"
        if node.kind == "link":
            target = self._tree.target(path)
            return None if target == node.target else f"is a link to {target!r}, not to {node.target!r}"
        if node.kind == "file":
            objection = node.contents.objection(self._tree.read(path))
            if objection:
                return objection
        if node.mode.promised is not None and not node.mode.allows(found.mode):
            return f"has mode {found.mode:o}, not {node.mode.promised:o}"
        for name, value in node.xattrs.items():
            actual = self._tree.xattr(path, name)
            if not value.allows(actual):
                return f"has {name}={actual}, not {value.promised}"
        if node.mtime.promised is not None and not node.mtime.later and node.mtime.promised != found.mtime:
            return f"was modified at {found.mtime}, not at {node.mtime.promised} as promised"
        return None

    def _lost(self) -> Iterator[Broken]:
        """Find what has none of the names that it had, and had one at every moment."""
        for node in self._world.nodes.values():
            if node.id == ROOT or node.id in self._numbers or not all(node.places):
                continue
            places = frozenset[tuple[str, str]]().union(*node.places)
            if any(self._world.node(directory).entries[name].now != node.id for directory, name in places):
                # Found is only the first that fits, and another node may fit there as well.
                paths = [f"{self._world.path(directory)}/{name}".lstrip("/") for directory, name in places]
                if any(self._is_at(path, node) for path in paths):
                    continue
            if all(self._world.node(directory).places[-1] or directory == ROOT for directory, _ in places):
                yield Broken(
                    f"{self._world.path(node.id)} is lost: it has none of its names", frozenset((node.id,))
                )

    def _is_at(self, path: str, node: Node) -> bool:
        return self._objection(path, node) is None

    def _parted(self) -> Iterator[Broken]:
        """Find names of one file that have become names of two."""
        for id_, numbers in self._numbers.items():
            node = self._world.node(id_)
            if node.kind == "file" and len(node.places) == 1 and len(set(numbers.values())) > 1:
                yield Broken(f"{' and '.join(sorted(numbers))} are two files, not one", frozenset((id_,)))
