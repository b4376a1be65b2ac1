"""Files that were made only to mount on are in no commit; what the image has, and what people wrote, is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.mounting import places
from tests.unit.union_support import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path, lowers=2)
    etc = made.lowers[0] / "etc"
    etc.mkdir()
    (etc / "hostname").touch()
    yield made
    made.close()


def keep_out(tree: Tree) -> None:
    tree.commit()
    places.keep_out_of(tree.union.layers[1], tree.union)


def test_a_live_commit_leaves_them_to_the_next_upper(tree: Tree) -> None:
    tree.open()
    for name in ("hosts", "resolv.conf", "other"):
        tree.write(f"etc/{name}", b"")
    tree.write("etc/hosts.allow", b"kept")
    node, times = tree.file("etc/hosts"), os.stat(tree.upper / "etc").st_mtime_ns
    for _ in range(3):
        keep_out(tree)
        assert tree.file("etc/hosts") is node
        assert sorted(os.listdir(tree.upper / "etc")) == ["hosts", "resolv.conf"]
    assert sorted(os.listdir(tree.lowers[2] / "etc")) == ["hosts.allow", "other"]
    assert os.stat(tree.lowers[2] / "etc").st_mtime_ns == times
    names = [b"hostname", b"hosts", b"hosts.allow", b"other", b"resolv.conf"]
    assert tree.names("etc") == names
    tree.unlink("etc/hosts")
    assert not os.path.lexists(tree.upper / "etc/hosts")  # no whiteout: nothing is below
    assert tree.names("etc") == [name for name in names if name != b"hosts"]
    tree.open()
    assert tree.names("etc") == [name for name in names if name != b"hosts"]


def test_what_somebody_wrote_is_committed(tree: Tree) -> None:
    tree.open()
    tree.write("etc/hosts", b"1.2.3.4 x\n")
    tree.write("etc/hostname", b"")  # the image has it
    node = tree.file("etc/hostname")
    assert (tree.upper / "etc/hostname").exists()
    keep_out(tree)
    assert (tree.lowers[2] / "etc/hosts").read_bytes() == b"1.2.3.4 x\n"
    assert (tree.lowers[2] / "etc/hostname").exists()
    assert tree.file("etc/hostname") is node
    assert not (tree.upper / "etc").exists()


def test_at_rest_they_are_removed(tree: Tree) -> None:
    etc = tree.upper / "etc"
    etc.mkdir()
    for name in ("hosts", "hostname", "other"):
        (etc / name).touch()
    (etc / "resolv.conf").write_text("nameserver 1.2.3.4\n")
    times = os.stat(etc).st_mtime_ns
    places.remove_at_rest(tree.upper, tree.lowers)
    assert sorted(os.listdir(etc)) == ["hostname", "other", "resolv.conf"]
    assert os.stat(etc).st_mtime_ns == times


def test_where_there_is_no_such_directory(tree: Tree, tmp_path: Path) -> None:
    places.remove_at_rest(tree.upper, tree.lowers)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hosts").touch()
    (tree.upper / "etc").symlink_to(outside)
    places.remove_at_rest(tree.upper, tree.lowers)
    assert (outside / "hosts").exists()
