"""A union on plain directories, driven without a mount."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from layerfs.union import attributes, mutate, stack
from layerfs.union.generation import Gone, go_back, reuse
from layerfs.union.layer import Layer
from layerfs.union.marking import Marking, of_this_process
from layerfs.union.mutate import Owner
from layerfs.union.node import Directory, File, Node
from layerfs.union.rename import rename
from layerfs.union.stack import Stack
from layerfs.union.upper import Upper
from layerfs.union.view import Union

ME = Owner(os.geteuid(), os.getegid())


def plain_stack(*trees: Path) -> Stack:
    """Return these directories, bottom first, as a stack."""
    return Stack(tuple(stack.Tree(tree) for tree in trees), of_this_process())


class Tree:
    """Layers in a directory of the test, bottom to top, under an upper; paths instead of nodes."""

    def __init__(self, top: Path, lowers: int = 1) -> None:
        self.top = top
        self.lowers = [top / f"lower{number}" for number in range(lowers)]
        self.upper = top / "upper"
        self.work = top / "work"
        for path in (*self.lowers, self.upper, self.work):
            path.mkdir(exist_ok=True)
        self.union: Union = None  # type: ignore[assignment]  # set by `open`

    def open(self, *, aufs: bool = False, marking: Marking | None = None) -> Tree:
        """Open the union over what the directories hold now."""
        self.close()
        lowers = [Layer(path, aufs=aufs, marking=marking) for path in self.lowers]
        self.union = Union(lowers, Upper(self.upper, self.work, marking=marking))
        return self

    def close(self) -> None:
        """Close the union, if it is open."""
        if self.union is not None:
            self.union.close()
        self.union = None  # type: ignore[assignment]

    def commit(self) -> None:
        """Seal the upper and go on with a new one."""
        number = len(self.lowers)
        upper, work = self.top / f"upper{number}", self.top / f"work{number}"
        upper.mkdir()
        work.mkdir()
        fresh = Upper(upper, work)
        self.union.match_root(fresh)
        self.union.switch_upper(fresh)
        self.lowers.append(self.upper)
        self.upper, self.work = upper, work

    def go_back(self, depth: int, *given_up: Path) -> Gone:
        """Show the lowest *depth* layers and those *given_up* before, bottom first, under a new upper."""
        number = len(list(self.top.iterdir()))
        upper, work = self.top / f"upper{number}-", self.top / f"work{number}-"
        upper.mkdir()
        work.mkdir()
        shutil.copystat(given_up[-1] if given_up else self.lowers[depth - 1], upper)
        self.lowers = [*self.lowers[:depth], *given_up]
        layers: list[Layer] = []
        for path in self.lowers:
            layer = reuse(self.union, os.fsencode(path))
            if layer is None:
                layer = Layer(path, directories=self.union.directories)
                layer.below = tuple(reversed(layers))
            layers.append(layer)
        self.upper, self.work = upper, work
        return go_back(self.union, layers, Upper(upper, work, after=self.union.upper))

    def find(self, path: str | bytes) -> Node | None:
        """Return the node at *path*, "" for the root, or None."""
        node: Node | None = self.union.root
        for name in os.fsencode(path).split(b"/") if path else []:
            node = self.union.lookup(node, name) if isinstance(node, Directory) else None
        return node

    def node(self, path: str | bytes) -> Node:
        """Return the node at *path*, which must exist."""
        found = self.find(path)
        assert found is not None, path
        return found

    def file(self, path: str | bytes) -> File:
        """Return the file at *path*."""
        node = self.node(path)
        assert isinstance(node, File)
        return node

    def directory(self, path: str | bytes) -> Directory:
        """Return the directory at *path*."""
        node = self.node(path)
        assert isinstance(node, Directory)
        return node

    def place(self, path: str) -> tuple[Directory, bytes]:
        """Return the directory and the name that *path* is made of."""
        above, _, name = path.rpartition("/")
        return self.directory(above), os.fsencode(name)

    def names(self, path: str | bytes = "") -> list[bytes]:
        """Return the names in the directory *path*, sorted."""
        return sorted(name for _, name in self.union.listing(self.directory(path)))

    def read(self, path: str) -> bytes:
        """Return the contents of the file *path*."""
        return os.pread(self.union.data(self.file(path)), 1 << 20, 0)

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """Write to the file *path*, made if it is not there."""
        node = self.find(path)
        if node is None:
            node, _ = mutate.create(self.union, *self.place(path), 0o644, ME)
        attributes.ensure_upper(self.union, node)
        assert isinstance(node, File)
        os.pwrite(self.union.data(node, write=True), data, offset)

    def mkdir(self, path: str, mode: int = 0o755) -> Directory:
        """Make a directory."""
        return mutate.mkdir(self.union, *self.place(path), mode, ME)[0]

    def unlink(self, path: str) -> None:
        """Remove a file."""
        mutate.unlink(self.union, *self.place(path))

    def rmdir(self, path: str) -> None:
        """Remove a directory."""
        mutate.rmdir(self.union, *self.place(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Rename."""
        rename(self.union, *self.place(old), *self.place(new), flags)

    def snapshot(self) -> dict[bytes, tuple[object, ...]]:
        """Return all that can be seen of the tree: types, modes, owners, sizes, contents, numbers."""
        found: dict[bytes, tuple[object, ...]] = {}
        pending: list[tuple[bytes, Node]] = [(b"", self.union.root)]
        while pending:
            path, node = pending.pop()
            st = self.union.stat(node)
            content: bytes | None = None
            if isinstance(node, Directory):
                for _, name in self.union.listing(node):
                    child = self.union.lookup(node, name)
                    assert child is not None, path + b"/" + name
                    pending.append((path + b"/" + name, child))
            elif stat.S_ISLNK(node.kind):
                content = self.union.readlink(node)
            elif node.is_regular:
                content = os.pread(self.union.data(node), 1 << 20, 0)
            size = 0 if isinstance(node, Directory) else st.st_size
            found[path] = (st.st_mode, st.st_uid, st.st_gid, size, st.st_rdev, content, node.ino)
        return found
