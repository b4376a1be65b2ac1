"""One path followed down through layers, and trees read by path without a mount."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from layerfs.union import snapshot
from layerfs.union.trace import Plain, Touch, trace
from tests.unit.union_support import plain_stack


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, 0)


def file(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def trees(top: Path, count: int) -> list[Path]:
    found = [top / str(number) for number in range(count)]
    for path in found:
        path.mkdir()
    return found


pytestmark = pytest.mark.root


def told(layers: list[Path], path: bytes) -> list[tuple[int, str, bytes]]:
    return [(touch.depth, touch.kind, touch.path) for touch in trace(Plain(plain_stack(*layers)), path)]


def test_added_changed_deleted_and_added_again(tmp_path: Path) -> None:
    layers = trees(tmp_path, 6)
    file(layers[0] / "other")
    file(layers[1] / "d/f")
    file(layers[2] / "d/f", "y")
    whiteout(layers[3] / "d")
    file(layers[5] / "d/f", "z")
    assert told(layers, b"/d/f") == [
        (5, "A", b"/d/f"),
        (3, "D", b"/d/f"),
        (2, "C", b"/d/f"),
        (1, "A", b"/d/f"),
    ]
    assert told(layers, b"/nothing") == []
    assert told(layers, b"/d") == [(5, "A", b"/d"), (3, "D", b"/d"), (2, "C", b"/d"), (1, "A", b"/d")]


def test_an_opaque_directory_deletes_what_it_does_not_hold(tmp_path: Path) -> None:
    layers = trees(tmp_path, 2)
    file(layers[0] / "d/gone")
    file(layers[0] / "d/kept")
    file(layers[1] / "d/kept", "y")
    os.setxattr(layers[1] / "d", "trusted.overlay.opaque", b"y")
    assert told(layers, b"/d/gone") == [(1, "D", b"/d/gone"), (0, "A", b"/d/gone")]
    assert told(layers, b"/d/kept") == [(1, "C", b"/d/kept"), (0, "A", b"/d/kept")]
    assert told(layers, b"/d/never") == []


def test_a_file_in_place_of_a_directory_deletes_what_was_in_it(tmp_path: Path) -> None:
    layers = trees(tmp_path, 2)
    file(layers[0] / "d/f")
    file(layers[1] / "d")
    assert told(layers, b"/d/f") == [(1, "D", b"/d/f"), (0, "A", b"/d/f")]


def test_directories_renamed_twice_one_above_the_other(tmp_path: Path) -> None:
    layers = trees(tmp_path, 4)
    file(layers[0] / "a/b/f")
    (layers[1] / "a/c").mkdir(parents=True)
    os.setxattr(layers[1] / "a/c", "trusted.overlay.redirect", b"b")
    whiteout(layers[1] / "a/b")
    file(layers[2] / "a/c/f", "y")
    (layers[3] / "z").mkdir()
    os.setxattr(layers[3] / "z", "trusted.overlay.redirect", b"/a/c")
    whiteout(layers[3] / "a")
    found = list(trace(Plain(plain_stack(*layers)), b"/z/f"))
    assert found == [
        Touch(3, "R", b"/z/f", b"/a/c/f"),
        Touch(2, "C", b"/a/c/f"),
        Touch(1, "R", b"/a/c/f", b"/a/b/f"),
        Touch(0, "A", b"/a/b/f"),
    ]


def test_a_small_file_is_followed_by_its_contents(tmp_path: Path) -> None:
    layers = trees(tmp_path, 2)
    file(layers[0] / "old", "the same in both")
    file(layers[0] / "another", "something else!!")
    file(layers[1] / "new", "the same in both")
    whiteout(layers[1] / "another")
    whiteout(layers[1] / "old")
    assert list(trace(Plain(plain_stack(*layers)), b"/new")) == [
        Touch(1, "R", b"/new", b"/old"),
        Touch(0, "A", b"/old"),
    ]


def test_links_lead_nowhere_but_into_the_tree(tmp_path: Path) -> None:
    layers = trees(tmp_path, 2)
    file(layers[0] / "d/f", "inside")
    (layers[1] / "etc").symlink_to("/")
    (layers[1] / "up").symlink_to("../../../d")
    (layers[1] / "long").symlink_to("up/../etc/d/./f")
    with snapshot.opened(plain_stack(*layers)) as tree:
        for path in (b"/d/f", b"/etc/d/f", b"/up/f", b"/long", b"d//f", b"/../d/f", b"/etc/up/../d/f"):
            entry = tree.find(path, follow=True)
            assert (entry.path, tree.read(entry, 100)) == (b"/d/f", b"inside"), path
        assert tree.link(tree.find(b"/long")) == b"up/../etc/d/./f"
        for path in (b"/etc/passwd", b"/d/g", b"/up/../x"):
            with pytest.raises(FileNotFoundError):
                tree.find(path)
        with pytest.raises(NotADirectoryError):
            tree.find(b"/d/f/")
        walked = [entry.path for entry in tree.walk(tree.root)]
    assert walked == [b"/", b"/d", b"/d/f", b"/etc", b"/long", b"/up"]
    assert told(layers, b"/etc/passwd") == []


def test_private_attributes_are_not_shown(tmp_path: Path) -> None:
    (layer,) = trees(tmp_path, 1)
    file(layer / "f")
    os.setxattr(layer / "f", "user.x", b"1")
    os.setxattr(layer / "f", "trusted.overlay.layerfs.ino", b"1")
    with snapshot.opened(plain_stack(layer)) as tree:
        assert tree.xattrs(tree.find(b"/f")) == {b"user.x": b"1"}
