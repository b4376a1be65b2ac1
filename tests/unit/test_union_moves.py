"""The table of a layer's renamed directories: held against a plain search, and what is kept of it on disk."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.union import links, moves, syscalls
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.moves import Moves
from layerfs.union.upper import Upper
from tests.unit.union_support import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    made.close()


def found(tree: Tree) -> dict[moves.Path, moves.Path]:
    """Search the upper as it is on disk."""
    assert tree.union.upper is not None
    return {new: old for old, new in links.renamed(tree.union.upper)}


def known(tree: Tree) -> dict[moves.Path, moves.Path]:
    assert tree.union.upper is not None
    assert tree.union.upper.moves.settle()
    return {new: old for old, new in tree.union.upper.moves}


def directories(tree: Tree) -> list[str]:
    paths, pending = [], [""]
    while pending:
        path = pending.pop()
        for name in tree.names(path):
            inner = os.path.join(path, os.fsdecode(name))
            if hasattr(tree.node(inner), "dirs"):
                paths.append(inner)
                pending.append(inner)
    return sorted(paths)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_a_search_finds_whatever_is_renamed_and_removed(tree: Tree, seed: int) -> None:
    draw = random.Random(seed)
    for name in "abcd":
        for inner in "abc":
            (tree.lowers[0] / name / inner / "deep").mkdir(parents=True)
            (tree.lowers[0] / name / inner / "deep/file").touch()
    tree.open()
    for step in range(60):
        paths = directories(tree)
        source, target = draw.choice(paths), draw.choice(paths)
        way = draw.choice(("move", "move", "exchange", "mkdir", "over", "remove"))
        try:
            if way == "move":
                tree.rename(source, os.path.join(target, f"n{step}"))
            elif way == "exchange":
                tree.rename(source, target, syscalls.RENAME_EXCHANGE)
            elif way == "mkdir":
                tree.mkdir(os.path.join(target, f"m{step}"))
            elif way == "over":
                tree.rename(source, target)
            else:
                tree.rmdir(source)
        except OSError:
            continue
        assert known(tree) == found(tree)
        if step % 20 == 10:
            tree.open()
            assert known(tree) == found(tree)
        if step % 20 == 15:
            tree.commit()
            assert known(tree) == {}


def test_where_a_path_is_today_is_told_by_the_innermost_rename() -> None:
    table = Moves(known=True)
    table.rename((b"a",), (b"z",), (b"a",))
    table.rename((b"z", b"b"), (b"z", b"y"), (b"a", b"b"))
    assert table.today((b"a", b"f")) == (b"z", b"f")
    assert table.today((b"a", b"b", b"f")) == (b"z", b"y", b"f")
    assert table.today((b"other",)) == (b"other",)
    table.remove((b"z", b"y"))
    assert table.today((b"a", b"b", b"f")) == (b"z", b"b", b"f")


def test_a_search_during_which_something_was_renamed_does_not_count() -> None:
    table = Moves()
    began = table.begin()
    table.rename((b"a",), (b"z",), (b"a",))
    table.offer(began, [((b"a",), (b"a",))])
    assert not table.settle()
    table.offer(table.begin(), [((b"a",), (b"z",))])
    assert table.settle()
    assert list(table) == [((b"a",), (b"z",))]


class TestOnDisk:
    """What a daemon leaves for the next one."""

    @pytest.fixture
    def renamed(self, tree: Tree) -> Tree:
        """An upper with a renamed directory, closed in order."""
        (tree.lowers[0] / "old\n/in\xff").mkdir(parents=True)
        tree.open()
        tree.rename("old\n", "new")
        tree.rename("new/in\xff", "in")
        tree.close()
        return tree

    def is_known(self, tree: Tree) -> bool:
        tree.open()
        assert tree.union.upper is not None
        is_known = tree.union.upper.moves.known
        if not is_known:
            links.learn_moves([tree.union.upper])
        assert known(tree) == found(tree)
        return is_known

    def test_it_is_known_after_an_orderly_end(self, renamed: Tree) -> None:
        assert self.is_known(renamed)

    def test_it_counts_once(self, renamed: Tree) -> None:
        """What comes after may be cut short, with more renamed."""
        renamed.open()
        assert not (renamed.work / "work/moves").exists()

    def test_another_overlay_empties_the_work_directory(self, renamed: Tree) -> None:
        (renamed.work / "work/moves").unlink()
        assert not self.is_known(renamed)

    @pytest.mark.parametrize("length", [0, 1, 16, 40, -1])
    def test_a_power_cut_leaves_it_cut_short(self, renamed: Tree, length: int) -> None:
        path = renamed.work / "work/moves"
        path.write_bytes(path.read_bytes()[:length])
        assert not self.is_known(renamed)

    def test_a_copy_of_the_trees_has_none(self, renamed: Tree) -> None:
        renamed.upper.rename(renamed.top / "moved")
        renamed.upper.mkdir()
        (renamed.upper / "directory").mkdir()
        assert not self.is_known(renamed)

    def test_anything_else_there_is_passed_over(self, renamed: Tree) -> None:
        path = renamed.work / "work/moves"
        for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/proc/self/mem", path)):
            path.unlink()
            make(path)
            assert not self.is_known(renamed)
            renamed.close()
            assert path.is_file()

    def test_an_empty_upper_has_no_renamed_directories(self, tree: Tree) -> None:
        tree.open()
        tree.close()
        (tree.work / "work/moves").unlink()
        assert self.is_known(tree)


def test_a_copy_up_of_a_file_with_two_names_never_searches_the_upper(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[bytes] = []
    walk = links.directories_of

    def search(layer: Layer) -> Iterator[tuple[LayerDir, moves.Path]]:
        searched.append(layer.path)
        return walk(layer)

    monkeypatch.setattr(links, "directories_of", search)
    (tree.lowers[0] / "d").mkdir()
    for number in range(4):
        (tree.lowers[0] / f"a{number}").touch()
        os.link(tree.lowers[0] / f"a{number}", tree.lowers[0] / f"d/b{number}")
    tree.open()
    tree.rename("d", "e")
    tree.write("a0", b"0")
    assert tree.read("e/b0") == b"0"
    tree.open()
    tree.write("a1", b"1")
    assert tree.read("e/b1") == b"1"
    tree.commit()
    tree.rename("e", "f")
    tree.write("a2", b"2")
    assert tree.read("f/b2") == b"2"
    assert searched == [tree.union.layers[-1].path] * 2  # once for each time it was opened


def test_the_table_of_an_upper_that_was_not_used_is_not_taken_for_that_of_the_next(tmp_path: Path) -> None:
    tree = Tree(tmp_path).open()
    (tree.lowers[0] / "dir").mkdir()
    (tmp_path / "fresh").mkdir()
    Upper(tmp_path / "fresh", tree.work, after=tree.union.upper).close()  # its commit did not come
    tree.union.switch_upper(Upper(tmp_path / "fresh", tree.work, after=tree.union.upper))
    tree.rename("dir", "new")
    assert tree.union.upper is not None
    fcntl.flock(tree.union.upper.root.fd(), fcntl.LOCK_UN)  # as if it had been killed
    again = Upper(tmp_path / "fresh", tree.work)
    again.below = tuple(tree.union.layers[1:])
    links.learn_moves([again])
    assert again.moves.settle()
    assert list(again.moves) == [((b"dir",), (b"new",))]
    again.close()
