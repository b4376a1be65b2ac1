"""How many descriptors a mount takes: as many for a thousand layers as for two."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from layerfs.store import Store
from tests.conftest import Layerfs, Stack, errno_of

pytestmark = pytest.mark.root
LIMIT = 256
"""What a process may have open (RLIMIT_NOFILE) in these tests."""
BOUND = 160
COMMITS = 100
DEPTH = 400


@pytest.fixture(params=["extension", "plain"])
def narrow(request: pytest.FixtureRequest, layerfs: Layerfs) -> Layerfs:
    """The command line with few descriptors to spend."""
    layerfs.words = ["prlimit", f"--nofile={LIMIT}:{LIMIT}", *layerfs.words]
    if request.param == "plain":
        layerfs.environment["LAYERFS_EXTENSION"] = "0"
    return layerfs


def descriptors(layerfs: Layerfs, name: str) -> list[str]:
    """Return what the daemon of the mount *name* has open."""
    found = []
    for fd in Path(f"/proc/{layerfs.pid(name)}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(fd))
    return found


def commit(layerfs: Layerfs, name: str) -> None:
    assert layerfs.ask(name, "POST", f"/commit?container={name}")[0] == 201


def change(mnt: Path, number: int) -> None:
    """Write, copy up, rename and remove: something in each layer that is about to be sealed."""
    (mnt / f"dir{number}/deep").mkdir(parents=True)
    for name in ("file", "deep/file", "gone", "same"):
        (mnt / f"dir{number}" / name).write_text(f"{number} {name}")
    if number:
        before = mnt / f"dir{number - 1}"
        (before / "gone").unlink()
        with (before / "file").open("a") as file:
            file.write(" more")
        (before / "deep").rename(before / "moved")
    (mnt / "shared").mkdir(exist_ok=True)
    (mnt / f"shared/{number}").write_text(str(number))


def is_right(mnt: Path, number: int) -> None:
    directory = mnt / f"dir{number}"
    assert sorted(os.listdir(directory)) == ["file", "moved", "same"]
    assert (directory / "file").read_text() == f"{number} file more"
    assert (directory / "moved/file").read_text() == f"{number} deep/file"
    assert (directory / "same").read_text() == f"{number} same"
    assert (mnt / f"shared/{number}").read_text() == str(number)


def test_a_commit_leaves_none_behind(narrow: Layerfs, tmp_path: Path) -> None:
    tree, mnt = tmp_path / "tree", tmp_path / "mnt"
    tree.mkdir()
    mnt.mkdir()
    (tree / "base").write_text("base")
    narrow.ok("import", tree, "base:1")
    narrow.ok("mount", "--image", "base:1", "--name", "m", mnt)
    (mnt / "removed").mkdir()
    (mnt / "removed/inside").write_text("inside")
    removed = os.open(mnt / "removed", os.O_RDONLY)
    written = os.open(mnt / "written", os.O_RDWR | os.O_CREAT)
    orphan = os.open(mnt / "orphan", os.O_RDWR | os.O_CREAT)
    try:
        counts = []
        for number in range(COMMITS):
            change(mnt, number)
            os.pwrite(written, b"%d" % number, 0)
            os.pwrite(orphan, b"%d" % number, 0)
            if number == 1:  # what is open loses its name in a layer that is not the first
                (mnt / "removed/inside").unlink()
                (mnt / "removed").rmdir()
                (mnt / "orphan").unlink()
            commit(narrow, "m")
            counts.append(len(descriptors(narrow, "m")))
        assert max(counts) < BOUND, counts
        assert os.pread(written, 10, 0) == os.pread(orphan, 10, 0) == b"%d" % (COMMITS - 1)
        assert os.listdir(removed) == []
        os.fchmod(removed, 0o700)
        assert (os.fstat(removed).st_mode & 0o7777, os.fstat(removed).st_nlink) == (0o700, 0)
        assert errno_of(lambda: os.mkdir("in", dir_fd=removed)) != 0
    finally:
        for fd in (removed, written, orphan):
            os.close(fd)
    assert (mnt / "base").read_text() == "base"
    for number in range(COMMITS - 1):
        is_right(mnt, number)
    (mnt / "shared").rename(mnt / "renamed")  # a directory of all the layers
    assert len(os.listdir(mnt / "renamed")) == COMMITS
    shutil.rmtree(mnt / "renamed")
    assert not (mnt / "renamed").exists()
    assert len(descriptors(narrow, "m")) < BOUND
    narrow.ok("umount", "m")
    narrow.ok("mount", "--name", "m", mnt)
    assert not (mnt / "renamed").exists()
    (mnt / "dir7/moved/file").write_text("changed")
    assert (mnt / "dir7/moved/file").read_text() == "changed"


@pytest.fixture
def deep(narrow: Layerfs, tmp_path: Path) -> Path:
    """The mount "deep" of more layers than there may be descriptors, all with something in "dir"."""
    tree, mnt = tmp_path / "tree", tmp_path / "mnt"
    tree.mkdir()
    mnt.mkdir()
    (tree / "dir").mkdir()
    (tree / "dir/0").write_text("0")
    with Store(narrow.root) as store:
        image = store.import_image(tree, "deep:1")
        mount = store.create_mount("deep", image=image)
        for number in range(1, DEPTH):
            assert mount.upper is not None
            upper = store.layer(mount.upper).path
            (upper / "dir").mkdir()
            (upper / f"dir/{number}").write_text(str(number))
            store.commit(mount, store.prepare_upper(mount), reference=None)
            mount = store.mount("deep")
    narrow.ok("mount", "--name", "deep", mnt)
    return mnt


def test_more_layers_than_descriptors(narrow: Layerfs, deep: Path) -> None:
    assert len(descriptors(narrow, "deep")) < BOUND
    assert os.listdir(deep) == ["dir"]
    assert sorted(map(int, os.listdir(deep / "dir"))) == list(range(DEPTH))
    for number in (0, 1, DEPTH // 2, DEPTH - 1, *range(7, DEPTH, 13)):
        assert (deep / f"dir/{number}").read_text() == str(number)
    (deep / f"dir/{DEPTH // 2}").write_text("changed")
    (deep / "dir").rename(deep / "renamed")
    commit(narrow, "deep")
    assert (deep / f"renamed/{DEPTH // 2}").read_text() == "changed"
    assert len(os.listdir(deep / "renamed")) == DEPTH
    assert narrow.ok("diff", "deep") == ""
    (deep / "renamed/1").unlink()
    assert narrow.ok("diff", "deep").splitlines() == ["C /renamed", "D /renamed/1"]
    assert len(descriptors(narrow, "deep")) < BOUND
    narrow.ok("export", "deep", "-o", deep.parent / "deep.tar")


def test_external_layers_stay_open_where_the_mount_covers_them(narrow: Layerfs) -> None:
    """Their path then leads into the mount: to look for them there would be waiting for ourselves."""
    stack = Stack(narrow)
    (stack.bottom / "file").write_text("file")
    stack.mnt = stack.top
    for number in range(100):
        (stack.bottom / f"dir{number}").mkdir()
        (stack.bottom / f"dir{number}/file").write_text("file")
    mnt = stack.mount()
    for number in range(100):
        assert (mnt / f"dir{number}/file").read_text() == "file"
    (mnt / "new").write_text("new")
    assert sorted(os.listdir(mnt))[-2:] == ["file", "new"]
    stack.umount()
