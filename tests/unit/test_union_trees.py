"""Removing trees: small ones by this process, others by rm(1), and nothing outside them by either."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from layerfs.errors import LayerfsError
from layerfs.union import trees
from layerfs.union.trees import remove_trees


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that is to stay, with a file in it."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "file").write_text("stays")
    return path


def make(path: Path, outside: Path, entries: int) -> Path:
    """Make a tree with directories in directories, so many *entries*, and links that lead *outside*."""
    place = path
    place.mkdir()
    for number in range(entries):
        (place / f"file{number}").write_text("x")
        if number % 20 == 0:
            place /= f"directory{number}"
            place.mkdir()
            (place / "directory").symlink_to(outside, target_is_directory=True)
            (place / "link").symlink_to(outside / "file")
    return path


@pytest.mark.parametrize("entries", [0, 1, 30, 63, 64, 65, 66, 500])
def test_a_tree_goes_with_all_that_is_in_it_and_nothing_else(
    tmp_path: Path, outside: Path, entries: int
) -> None:
    tree = make(tmp_path / "tree", outside, entries)
    remove_trees(tree)
    assert not tree.exists()
    assert (outside / "file").read_text() == "stays"


def test_a_small_tree_is_removed_without_a_process(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    tree = make(tmp_path / "tree", outside, 30)
    monkeypatch.setattr(subprocess, "run", refuse)
    remove_trees(tree, tmp_path / "missing")
    assert not tree.exists()


def test_files_and_what_is_missing_may_be_given(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    remove_trees(file, tmp_path / "missing", tmp_path / "missing/too")
    assert not file.exists()


def test_a_link_in_place_of_a_tree_goes_alone(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "tree").symlink_to(outside, target_is_directory=True)
    remove_trees(tmp_path / "tree")
    assert not os.path.lexists(tmp_path / "tree")
    assert (outside / "file").exists()


@pytest.mark.root
def test_another_filesystem_in_a_tree_stays(tmp_path: Path, outside: Path) -> None:
    tree = make(tmp_path / "tree", outside, 3)
    place = tree / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True, timeout=10)
    try:
        (place / "file").write_text("stays")
        with pytest.raises(LayerfsError, match="cannot remove"):
            remove_trees(tree)
        assert (place / "file").read_text() == "stays"
    finally:
        subprocess.run(["umount", place], check=True, timeout=10)
    remove_trees(tree)
    assert not tree.exists()


def test_the_number_of_entries_removed_by_this_process_is_bounded(tmp_path: Path, outside: Path) -> None:
    tree = make(tmp_path / "tree", outside, 500)
    assert not trees._remove_small(tree)
    assert tree.exists()
