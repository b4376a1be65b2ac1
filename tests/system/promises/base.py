"""What lies in the lower layers before any program runs, on disk for good."""

from __future__ import annotations

import os
from pathlib import Path

from tests.system.promises.world import ROOT, Contents, Node, World, data

PROGRAMS = 4
"""Each has a directory of its own: `p0`, `p1` ..."""
_SIZES = (0, 100, 4096, 5000, 16384, 70000, 300_000)
_MTIME = 1_600_000_000_123_456_789


def make(world: World, path: Path | None) -> World:
    """Add the lower tree to *world* and, if *path* is given, make it there."""
    for program in range(PROGRAMS):
        top = _directory(world, path, ROOT, f"p{program}")
        for number, size in enumerate(_SIZES):
            _file(world, path, top, f"l{number}", size)
        below = _directory(world, path, top, "sub")
        for number, size in enumerate((2000, 9000, 40000)):
            _file(world, path, below, f"s{number}", size)
        _directory(world, path, below, "deep")
        _file(world, path, f"{below}/deep", "d0", 3000)
        twice = _file(world, path, top, "h0", 6000)
        _name(world, below, "h1", twice)
        link = world.nodes[f"{top}/sym"] = Node(f"{top}/sym", "link")
        link.target = "l1"
        _name(world, top, "sym", link)
        if path is not None:
            os.link(path / world.path(top) / "h0", path / world.path(below) / "h1")
            (path / world.path(top) / "sym").symlink_to("l1")
    world.promise_all()
    return world


def _name(world: World, directory: str, name: str, node: Node) -> None:
    world._bind(directory, name, node.id)


def _directory(world: World, path: Path | None, parent: str, name: str) -> str:
    id_ = f"{parent}/{name}".replace("//", "/")
    node = world.nodes[id_] = Node(id_, "dir")
    node.mode.set(0o755)
    _name(world, parent, name, node)
    if path is not None:
        (path / world.path(id_)).mkdir(mode=0o755)
    return id_


def _file(world: World, path: Path | None, parent: str, name: str, size: int) -> Node:
    id_ = f"{parent}/{name}"
    node = world.nodes[id_] = Node(id_, "file")
    node.contents = Contents(data(hash_of(id_), size))
    node.mode.set(0o644)
    node.mtime.set(_MTIME)
    _name(world, parent, name, node)
    if path is not None:
        place = path / world.path(id_)
        place.write_bytes(node.contents.promised)
        place.chmod(0o644)
        os.utime(place, ns=(_MTIME, _MTIME))
    return node


def hash_of(text: str) -> int:
    """Return a number for *text* that is the same in every process."""
    return int.from_bytes(text.encode(), "big") % (1 << 61)
