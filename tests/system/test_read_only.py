"""Mounts that write nothing: an upper is shown as it is, and a mount can become read-only and back."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Layerfs, Stack, errno_of, mounts_below

pytestmark = pytest.mark.root


def tree(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return everything below *top*: mode, modification time, and contents."""
    found = {}
    for path in sorted(top.rglob("*")):
        st = path.lstat()
        found[str(path.relative_to(top))] = (
            st.st_mode,
            st.st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
    return found


@pytest.fixture
def written(stack: Stack) -> Stack:
    """A stack whose upper has been written to: files that are new, changed, removed, renamed."""
    for name in ("gone", "changed", "kept", "dir/inner", "replaced/old"):
        (stack.bottom / name).parent.mkdir(exist_ok=True)
        (stack.bottom / name).write_text(name)
    mnt = stack.mount()
    (mnt / "gone").unlink()
    (mnt / "changed").write_text("by the upper")
    (mnt / "new").write_text("new")
    (mnt / "dir").rename(mnt / "moved")
    (mnt / "replaced/old").unlink()
    (mnt / "replaced").rmdir()
    (mnt / "replaced").mkdir()
    stack.umount()
    return stack


def look(mnt: Path) -> None:
    """See that the written stack is there whole, and takes no writes."""
    assert sorted(os.listdir(mnt)) == ["changed", "kept", "moved", "new", "replaced"]
    assert (mnt / "changed").read_text() == "by the upper"
    assert (mnt / "moved/inner").read_text() == "dir/inner"
    assert os.listdir(mnt / "replaced") == []
    attempts: list[Callable[[], object]] = [
        lambda: (mnt / "more").touch(),
        lambda: (mnt / "new").write_text("x"),
        lambda: (mnt / "kept").unlink(),
        lambda: (mnt / "moved").rename(mnt / "dir"),
        lambda: (mnt / "kept").chmod(0o600),
    ]
    assert [errno_of(attempt) for attempt in attempts] == [errno.EROFS] * len(attempts)
    assert os.statvfs(mnt).f_flag & os.ST_RDONLY


def test_ro_shows_the_upper_and_leaves_it_alone(written: Stack, layerfs: Layerfs) -> None:
    written.layerfs.ok("rm", written.name)
    before = tree(written.upper)
    options = f"ro,lowerdir={written.top}:{written.bottom},upperdir={written.upper}"
    layerfs.ok("none", written.mnt, "-o", options)
    look(written.mnt)
    subprocess.run(["umount", written.mnt], check=True, timeout=PATIENCE)
    assert tree(written.upper) == before
    assert os.listdir(written.work) == ["work"], "as the mount before left it"


def test_the_same_mount_read_only_and_to_write_to_in_turn(written: Stack, layerfs: Layerfs) -> None:
    """As fstab's options change."""
    options = f"name=stack,lowerdir={written.top}:{written.bottom},upperdir={written.upper}"
    for turn in range(2):
        layerfs.ok("none", written.mnt, "-o", f"ro,{options}")
        if turn == 0:
            look(written.mnt)
        assert "mounted read-only" in layerfs.refused("commit", "stack")
        assert layerfs.ok("status", "stack")
        layerfs.ok("umount", "stack")
        assert "mounted read-only" in layerfs.refused("commit", "stack")
        layerfs.ok("none", written.mnt, "-o", f"{options},workdir={written.work}")
        (written.mnt / "later").write_text("later")
        layerfs.ok("umount", "stack")
        assert (written.upper / "later").read_text() == "later"


def test_resumed_by_name(written: Stack, layerfs: Layerfs) -> None:
    layerfs.ok("mount", "--name", "stack", "--read-only", written.mnt)
    look(written.mnt)
    assert "A /new" in layerfs.ok("diff", "stack")
    layerfs.ok("umount", "stack")
    layerfs.ok("mount", "--name", "stack", written.mnt)
    (written.mnt / "later").write_text("later")
    layerfs.ok("umount", "stack")
    layerfs.ok("rm", "stack")
    lowers = f"--lower={written.top}", f"--lower={written.bottom}", f"--upper={written.upper}"
    layerfs.ok("mount", "--name", "other", "--read-only", *lowers, written.mnt)
    layerfs.ok("umount", "other")
    layerfs.ok("mount", "--name", "other", written.mnt)
    assert (written.mnt / "later").read_text() == "later"
    assert errno_of((written.mnt / "more").touch) == errno.EROFS


def test_an_upper_without_a_work_directory_is_only_read(written: Stack, layerfs: Layerfs) -> None:
    layerfs.ok("rm", written.name)
    options = f"name=stack,lowerdir={written.bottom},upperdir={written.upper}"
    layerfs.ok("none", written.mnt, "-o", f"ro,{options}")
    layerfs.ok("umount", "stack")
    assert "work directory" in layerfs.refused("none", written.mnt, "-o", options, status=2)
    assert mounts_below(layerfs.directory) == []


def test_one_upper_is_read_or_written_to_not_both(written: Stack, layerfs: Layerfs) -> None:
    layerfs.ok("mount", "--name", "stack", "--read-only", written.mnt)
    lowers = f"--lower={written.bottom}", f"--upper={written.upper}", f"--work={written.work}"
    other = written.directory / "other"
    other.mkdir()
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.directory / "another-store")
    said = layerfs.refused("mount", "--name", "writer", *lowers, other)
    assert f"{written.upper} is already used by another mount" in said


def test_an_image_that_was_mounted_read_only(written: Stack, layerfs: Layerfs) -> None:
    layerfs.ok("import", written.bottom, "base:1")
    layerfs.ok("mount", "--image", "base:1", "--name", "image", "--read-only", written.mnt)
    assert (written.mnt / "changed").read_text() == "changed"
    assert errno_of((written.mnt / "more").touch) == errno.EROFS
    assert "read-only" in layerfs.refused("commit", "image")
    layerfs.ok("umount", "image")
    layerfs.ok("mount", "--name", "image", written.mnt)
    assert errno_of((written.mnt / "more").touch) == errno.EROFS
