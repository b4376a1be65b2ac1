"""What `layerfs diff` says of an upper."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.union.changes import changes
from tests.unit.union_support import Tree, plain_stack

pytestmark = pytest.mark.root


def diff(tree: Tree) -> list[tuple[str, bytes]]:
    return [(change.kind, change.path) for change in changes(plain_stack(*tree.lowers, tree.upper))]


def make(top: Path) -> Tree:
    tree = Tree(top)
    (tree.lowers[0] / "etc/deep").mkdir(parents=True)
    (tree.lowers[0] / "etc/passwd").write_text("root")
    (tree.lowers[0] / "etc/deep/x").write_text("x")
    (tree.lowers[0] / "gone").write_text("1")
    return tree.open()


def test_added_changed_deleted_with_the_directories_above(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.write("etc/passwd", b"me")
    tree.write("etc/deep/new", b"1")
    tree.mkdir("opt")
    tree.write("opt/tool", b"1")
    tree.unlink("gone")
    assert diff(tree) == [
        ("C", b"/etc"),
        ("C", b"/etc/deep"),
        ("A", b"/etc/deep/new"),
        ("C", b"/etc/passwd"),
        ("D", b"/gone"),
        ("A", b"/opt"),
        ("A", b"/opt/tool"),
    ]
    tree.union.close()


def test_nothing_written_is_no_change(tmp_path: Path) -> None:
    tree = make(tmp_path)
    assert diff(tree) == []
    tree.write("new", b"")
    tree.unlink("new")
    assert diff(tree) == []
    tree.union.close()


def test_replaced_directory(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.unlink("etc/deep/x")
    tree.rmdir("etc/deep")
    tree.mkdir("etc/deep")
    tree.write("etc/deep/y", b"")
    assert diff(tree) == [
        ("C", b"/etc"),
        ("C", b"/etc/deep"),
        ("D", b"/etc/deep/x"),
        ("A", b"/etc/deep/y"),
    ]
    tree.union.close()


def test_renamed_directory_shows_all_that_it_holds(tmp_path: Path) -> None:
    tree = make(tmp_path)
    tree.rename("etc", "conf")
    assert diff(tree) == [
        ("A", b"/conf"),
        ("A", b"/conf/deep"),
        ("A", b"/conf/deep/x"),
        ("A", b"/conf/passwd"),
        ("D", b"/etc"),
    ]
    tree.union.close()
