"""Layers joined to one: whatever they are, it says the same on what lies below them."""

from __future__ import annotations

import os
import random
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from layerfs.errors import Conflict
from layerfs.union import joining, snapshot
from layerfs.union.snapshot import Snapshot
from tests.unit.union_support import Tree, plain_stack

pytestmark = pytest.mark.root


def shown(tree: Snapshot) -> dict[bytes, tuple[object, ...]]:
    """Return all that people see of a tree."""
    found: dict[bytes, tuple[object, ...]] = {}
    for entry in tree.walk(tree.root):
        st = entry.status
        what: object = None
        if stat.S_ISLNK(st.st_mode):
            what = tree.link(entry)
        elif stat.S_ISREG(st.st_mode):
            what = (st.st_ino, tree.read(entry, 1000))
        times = st.st_mtime_ns
        found[entry.path] = (st.st_mode, st.st_uid, times, what, tuple(sorted(tree.xattrs(entry).items())))
    return found


def join(layers: list[Path], target: Path) -> None:
    """Join *layers*, bottom first, to *target*."""
    target.mkdir()
    stack = replace(plain_stack(*layers), shelf=target.parent.parent)  # as in a store: links need one mount
    fd = os.open(target, os.O_RDONLY)
    try:
        with stack.opened(64) as opened:
            joining.join(opened, fd, stack.marking)
    finally:
        os.close(fd)


def change(tree: Tree, chance: random.Random) -> None:
    """Do something at random in a union; what is refused is refused."""
    directories = ["", "a", "b", "a/x", "b/x", "c", "a/x/y"]
    names = ["f", "g", "x", "y", "a", "b", "c"]
    one, other = (f"{chance.choice(directories)}/{chance.choice(names)}".strip("/") for _ in range(2))
    try:
        match chance.randrange(7):
            case 0 | 1:
                tree.write(one, f"{chance.randrange(9)}".encode())
            case 2:
                tree.mkdir(one)
            case 3 | 4:
                tree.rename(one, other)
            case 5:
                tree.unlink(one)
            case 6:
                tree.rmdir(one)
    except (OSError, AssertionError):  # the kernel asks for no such thing
        pass


@pytest.mark.parametrize("seed", range(25))
def test_any_layers_joined_say_the_same(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    tree = Tree(tmp_path, 1)
    for name in ("a/x/y", "b/x", "c"):
        (tree.lowers[0] / name).mkdir(parents=True)
        (tree.lowers[0] / name / "f").write_text(name)
    tree.open()
    for _ in range(5):
        for _ in range(14):
            change(tree, chance)
        tree.commit()
    layers = [Path(os.fsdecode(layer.path)) for layer in reversed(tree.union.layers)]
    tree.close()
    with snapshot.opened(plain_stack(*layers)) as whole:
        expected = shown(whole)
        for first in range(1, 5):
            last = chance.randrange(first + 1, 6)
            target = tmp_path / f"joined{first}"
            join(layers[first : last + 1], target)
            stack = plain_stack(*layers[:first], target, *layers[last + 1 :])
            with snapshot.opened(stack) as joined:
                assert shown(joined) == expected, (seed, first, last)


def test_files_of_metadata_alone_are_refused(tmp_path: Path) -> None:
    layers = [tmp_path / str(number) for number in range(3)]
    for layer in layers:
        layer.mkdir()
        (layer / "f").write_text("x")
    os.setxattr(layers[2] / "f", "trusted.overlay.metacopy", b"")
    with pytest.raises(Conflict, match="metadata alone"):
        join(layers[1:], tmp_path / "joined")
