"""A full disk under the store: what fails says so, changes nothing, and works once there is room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.conftest import Layerfs, errno_of, fill

pytestmark = pytest.mark.root
NAME = "base-container"


@pytest.fixture
def mnt(layerfs: Layerfs, small: Path) -> Path:
    """A mounted image of a store on a filesystem of 16 MiB."""
    layerfs.root = small / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    tree, mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
    tree.mkdir()
    mnt.mkdir()
    (tree / "file").write_bytes(b"content" * 100_000)
    layerfs.ok("import", tree, "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    return mnt


def images(layerfs: Layerfs) -> int:
    """Return the number of images."""
    return len(layerfs.ok("images", "-q").splitlines())


def test_an_import(layerfs: Layerfs, mnt: Path, small: Path) -> None:
    large = layerfs.directory / "large"
    large.mkdir()
    (large / "file").write_bytes(os.urandom(20 << 20))
    before = set(os.listdir(layerfs.root / "layers"))
    assert "No space left" in layerfs.refused("import", large, "large")
    assert set(os.listdir(layerfs.root / "layers")) == before
    assert images(layerfs) == 1
    assert (mnt / "file").stat().st_size == 700_000


def test_a_copy_up(layerfs: Layerfs, mnt: Path, small: Path) -> None:
    ballast = fill(small, leave=200_000)
    assert errno_of(lambda: os.chmod(mnt / "file", 0o600)) == errno.ENOSPC
    assert (mnt / "file").read_bytes() == b"content" * 100_000
    assert "/file" not in layerfs.ok("diff", NAME)
    ballast.unlink()
    os.chmod(mnt / "file", 0o600)
    assert layerfs.ok("diff", NAME) == "C /file"


def test_a_commit(layerfs: Layerfs, mnt: Path, small: Path) -> None:
    (mnt / "new").write_bytes(b"new" * 1000)
    ballast = fill(small)
    done = layerfs("commit", NAME, "full")
    assert done.stderr.count("\n") == (done.returncode == 1)
    assert (mnt / "new").read_bytes() == b"new" * 1000
    ballast.unlink()
    if done.returncode:  # the usual case; a commit needs so little that it may fit all the same
        assert images(layerfs) == 1
        assert layerfs.ok("diff", NAME) == "A /new"
    (mnt / "more").write_text("more")
    layerfs.ok("commit", NAME, "room")
    layerfs.ok("umount", NAME)
    layerfs.ok("mount", "--image", "room", mnt)
    assert (mnt / "new").read_bytes() == b"new" * 1000
    assert (mnt / "more").read_text() == "more"


def test_a_mount_and_an_unmount(layerfs: Layerfs, mnt: Path, small: Path) -> None:
    layerfs.expect_log("no space")
    (mnt / "new").write_bytes(b"new" * 1000)
    other = layerfs.directory / "other"
    other.mkdir()
    ballast = fill(small)
    second = layerfs("mount", "--image", "base", "--name", "second", other)
    assert second.stderr.count("\n") == (second.returncode == 1)
    assert os.path.ismount(other) == (second.returncode == 0)
    gone = layerfs("umount", NAME)
    assert gone.returncode == 0, gone
    ballast.unlink()
    layerfs.ok("mount", "--name", NAME, mnt)
    assert (mnt / "new").read_bytes() == b"new" * 1000


def test_a_restore(layerfs: Layerfs, mnt: Path, small: Path) -> None:
    (mnt / "file").write_bytes(b"new")
    layerfs.ok("checkpoint", NAME)
    ballast = fill(small, leave=400_000)
    line = layerfs.refused("restore", NAME, "base", "/file")
    assert "No space left" in line
    assert "undoes what was done" in line
    assert (mnt / "file").read_bytes() == b"new"
    assert os.listdir(mnt) == ["file"]
    ballast.unlink()
    layerfs("checkpoint", NAME)  # which says once that something written was lost: the half of a file
    layerfs.ok("restore", NAME, "base", "/file")
    assert (mnt / "file").read_bytes() == b"content" * 100_000


def test_thinning_out(layerfs: Layerfs, mnt: Path, small: Path) -> None:
    for number in range(4):
        (mnt / "file").write_bytes(os.urandom(100_000))
        (mnt / f"d{number}").mkdir()
        for other in range(100):
            (mnt / f"d{number}/{other}").touch()
        layerfs.ok("checkpoint", NAME)
    expected = (mnt / "file").read_bytes()
    layerfs.ok("umount", NAME)
    before = layerfs.ok("log", "--format", "{{.ID}}", NAME)
    for leave in (0, 70_000, 150_000):
        ballast = fill(small, leave=leave)
        done = layerfs("keep", NAME, "--keep-last", "1")
        ballast.unlink()
        if done.returncode:  # the usual case
            assert "space left" in done.stderr.lower()
            assert done.stderr.count("\n") == 1
            assert layerfs.ok("log", "--format", "{{.ID}}", NAME) == before
            assert layerfs.ok("fsck", "--repair") == layerfs.ok("fsck")
    layerfs.ok("keep", NAME, "--keep-last", "1")
    layerfs.ok("mount", "--name", NAME, mnt)
    assert (mnt / "file").read_bytes() == expected
    assert sorted(os.listdir(mnt)) == ["d0", "d1", "d2", "d3", "file"]
