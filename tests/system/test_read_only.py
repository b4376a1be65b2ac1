"""Mounts that write nothing: an upper is shown as it is, and a mount can become read-only and back."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.host import mountcalls
from tests.conftest import PATIENCE, Layerfs, Stack, errno_of, mounts_below
from tests.system.namespaces import commit

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
    layerfs.expect_log("already used by another mount")
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


# -- a mount that is there ----------------------------------------------------------------------------


def remount(layerfs: Layerfs, mnt: Path, options: str) -> None:
    """Do what mount(8) has its helper do."""
    layerfs.ok("none", mnt, "-o", f"remount,{options}")


def is_read_only(mnt: Path) -> bool:
    """Tell whether a mount takes no writes."""
    return bool(os.statvfs(mnt).f_flag & os.ST_RDONLY)


def test_remounted_read_only_with_everything_that_was_written(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount("-onosuid")
    (mnt / "file").write_bytes(b"x" * 3_000_000)
    (mnt / "old").write_bytes(b"x" * 100)
    remount(layerfs, mnt, "ro")
    assert (stack.upper / "file").read_bytes() == b"x" * 3_000_000
    assert is_read_only(mnt)
    assert os.statvfs(mnt).f_flag & os.ST_NOSUID
    assert errno_of((mnt / "new").touch) == errno.EROFS
    assert layerfs.ok("diff", stack.name) == "A /file\nA /old"
    commit(layerfs, stack.name, "image:1")
    remount(layerfs, mnt, "rw,noatime")
    assert not is_read_only(mnt)
    assert os.statvfs(mnt).f_flag & os.ST_NOATIME
    (mnt / "new").write_text("new")
    assert layerfs.ok("diff", stack.name) == "A /new"


def test_writes_by_who_remounts_without_asking_are_kept(stack: Stack, layerfs: Layerfs) -> None:
    """systemd does so at shutdown, busybox always: the kernel is told, the daemon is not."""
    mnt = stack.mount()
    (mnt / "dir/deep").mkdir(parents=True)
    for name in ("one", "dir/two", "dir/deep/three"):
        (mnt / name).write_bytes(b"x" * 3_000_000)
    mountcalls.remount(os.fsencode(mnt), 1)
    commit(layerfs, stack.name, "image:1")
    layerfs.ok("umount", stack.name)
    layerfs.ok("mount", "--image", "image:1", "--name", "again", mnt)
    for name in ("one", "dir/two", "dir/deep/three"):
        assert (mnt / name).read_bytes() == b"x" * 3_000_000


def test_a_file_that_is_written_to_keeps_a_mount_writable(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    with (mnt / "open").open("w"):
        said = layerfs.refused("none", mnt, "-o", "remount,ro")
        assert f"cannot make {mnt} read-only: process {os.getpid()} (" in said
        assert not is_read_only(mnt)
    remount(layerfs, mnt, "ro")


def test_a_mount_without_an_upper_stays_read_only(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount("--read-only")
    said = layerfs.refused("none", mnt, "-o", "remount,rw")
    assert f"{stack.name} was mounted read-only on {mnt}" in said
    assert is_read_only(mnt)
    remount(layerfs, mnt, "ro,nosuid")
    assert os.statvfs(mnt).f_flag & os.ST_NOSUID


def test_remounting_what_is_not_there(stack: Stack, layerfs: Layerfs) -> None:
    said = layerfs.refused("none", stack.mnt, "-o", "remount,ro")
    assert f"no layerfs is mounted on {stack.mnt}" in said
