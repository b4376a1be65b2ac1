"""Bringing single files and trees back into a mount, in use or at rest, and undoing that."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Layerfs
from tests.system.test_past_diff import plain

pytestmark = pytest.mark.root
NAME = "agent"


@pytest.fixture
def mnt(layerfs: Layerfs, tmp_path: Path) -> Path:
    """A live mount with a checkpoint of files of each kind."""
    tree, mnt = tmp_path / "tree", tmp_path / "mnt"
    (tree / "d/e").mkdir(parents=True)
    mnt.mkdir()
    (tree / "d/e/deep").write_text("deep")
    (tree / "d/same").write_text("same")
    (tree / "d/file").write_text("old")
    os.link(tree / "d/file", tree / "d/file2")
    (tree / "d/link").symlink_to("file")
    (tree / "lib").symlink_to("d")
    os.mkfifo(tree / "d/fifo")
    os.chown(tree / "d/file", 12, 34)
    os.setxattr(tree / "d/e", "user.x", b"1")
    (tree / "other").write_text("other")
    layerfs.ok("import", tree, "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    return mnt


def ruin(mnt: Path) -> None:
    """Change all there is below d, and beside it."""
    shutil.rmtree(mnt / "d/e")
    (mnt / "d/e").write_text("a file now")
    (mnt / "d/file").write_text("new")
    (mnt / "d/link").unlink()
    (mnt / "d/link/made").mkdir(parents=True)
    (mnt / "d/extra/more").mkdir(parents=True)
    (mnt / "d/extra/more/file").write_text("x")
    (mnt / "d/fifo").unlink()
    (mnt / "d").chmod(0o700)
    (mnt / "other").write_text("stays as it is")


def test_a_tree_comes_back_and_the_rest_stays_and_all_is_undone(
    layerfs: Layerfs, mnt: Path, tmp_path: Path
) -> None:
    then = tmp_path / "then"
    shutil.copytree(tmp_path / "tree", then, symlinks=True, ignore=lambda *_: ["fifo"])
    ruin(mnt)
    ruined = plain(mnt)
    with (mnt / "d/file").open() as held, (mnt / "d/same").open() as same:
        number = os.fstat(same.fileno()).st_ino
        step = layerfs.ok("restore", NAME, "base", "/d")
        assert held.read() == "new"
        assert os.stat(mnt / "d/same").st_ino == number
    assert (mnt / "other").read_text() == "stays as it is"
    assert {path: what for path, what in plain(mnt).items() if path != "/other"} == {
        path: what for path, what in plain(tmp_path / "tree").items() if path != "/other"
    }
    assert os.getxattr(mnt / "d/e", "user.x") == b"1"
    assert os.stat(mnt / "d/file").st_nlink == 2
    assert (os.stat(mnt / "d/file").st_uid, os.stat(mnt / "d/file").st_gid) == (12, 34)
    for path in ("d", "d/e", "d/e/deep", "d/file"):
        assert os.stat(mnt / path).st_mtime_ns == os.stat(tmp_path / "tree" / path).st_mtime_ns, path
    layerfs.ok("rollback", NAME, step)
    assert plain(mnt) == ruined


def test_files_come_back_by_their_paths_of_then_into_directories_that_are_gone(
    layerfs: Layerfs, mnt: Path
) -> None:
    shutil.rmtree(mnt / "d")
    layerfs.ok("restore", NAME, "base", "lib/e/deep", "/other", "/lib")
    assert (mnt / "d/e/deep").read_text() == "deep"
    assert os.getxattr(mnt / "d/e", "user.x") == b"1"
    assert sorted(os.listdir(mnt / "d")) == ["e"]
    assert os.readlink(mnt / "lib") == "d"


def test_a_mount_at_rest_is_restored_too(layerfs: Layerfs, mnt: Path) -> None:
    ruin(mnt)
    layerfs.ok("umount", NAME)
    layerfs.ok("restore", NAME, f"{NAME}~0", "/d/file")
    assert layerfs.ok("cat", f"{NAME}:/d/file") == "old"
    layerfs.ok("mount", "--name", NAME, mnt)
    assert (mnt / "d/e").read_text() == "a file now"


def test_what_cannot_be_restored_changes_nothing(layerfs: Layerfs, mnt: Path, tmp_path: Path) -> None:
    before = layerfs.ok("log", "--format", "{{.ID}}", NAME)
    assert "/nothing is not in base" in layerfs.refused("restore", NAME, "base", "/d/file", "/nothing")
    assert "called nowhere" in layerfs.refused("restore", NAME, "nowhere", "/d/file")
    assert layerfs.ok("log", "--format", "{{.ID}}", NAME) == before
    tree, upper, work = (str(tmp_path / name) for name in ("tree", "upper", "work"))
    kinds = {
        "ro": ("--image", "base", "--read-only"),
        "outside": ("--lower", tree, "--upper", upper, "--work", work),
    }
    for name in (upper, work):
        Path(name).mkdir()
    for name, options in kinds.items():
        (tmp_path / name).mkdir()
        layerfs.ok("mount", *options, "--name", name, tmp_path / name)
        layerfs.refused("restore", name, "base", "/d/file")
    assert os.listdir(upper) == []


def test_nothing_is_written_through_a_link_or_into_another_mount(
    layerfs: Layerfs, mnt: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(mnt / "d")
    (mnt / "d").symlink_to(outside)
    line = layerfs.refused("restore", NAME, "base", "/d/e/deep")
    assert "cannot restore /d/e: a directory above it is a file or a link now" in line
    assert "layerfs rollback agent" in line
    assert os.listdir(outside) == []
    layerfs.ok("restore", NAME, "base", "/d")
    assert (mnt / "d/e/deep").read_text() == "deep"
