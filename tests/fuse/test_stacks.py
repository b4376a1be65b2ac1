"""Stacks as such: several that share layers, read-only ones, deep ones, full filesystems below."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, errno_of, fill

pytestmark = pytest.mark.root


class Second(Stack):
    """Another stack of the same test."""

    name = "second"


def test_mounts_that_share_lower_layers(stack: Stack, layerfs: Layerfs) -> None:
    second = Second(layerfs)
    (stack.bottom / "file").write_text("shared")
    (stack.bottom / "dir").mkdir()
    (stack.bottom / "dir/inner").touch()
    second.bottom, second.top = stack.bottom, stack.top
    one, two = stack.mount(), second.mount()
    (one / "file").write_text("of the first")
    (one / "dir/inner").unlink()
    (two / "dir").rename(two / "moved")
    assert (two / "file").read_text() == "shared"
    assert os.listdir(one / "dir") == []
    assert os.listdir(two / "moved") == ["inner"]
    stack.umount()
    (two / "file").write_text("of the second")
    assert (stack.bottom / "file").read_text() == "shared"


@pytest.mark.parametrize("reader", ["layerfs", "the kernel"])
def test_what_is_mounted_in_a_lower_directory_is_not_seen(
    stack: Stack, layerfs: Layerfs, reader: str
) -> None:
    for place in (stack.bottom / "dir", stack.top / "later"):
        place.mkdir()
        (place / "covered").write_text("covered")
    tmpfs(stack.bottom / "dir")
    if reader == "layerfs":
        mnt = stack.mount()
    else:
        mnt = stack.mnt
        layers = f"lowerdir={stack.top}:{stack.bottom},upperdir={stack.upper},workdir={stack.work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, mnt], check=True, timeout=10)
    tmpfs(stack.top / "later")
    for place in (mnt / "dir", mnt / "later"):
        assert os.listdir(place) == ["covered"]
        assert (place / "covered").read_text() == "covered"
        (place / "covered").write_text("changed")


def tmpfs(place: Path) -> None:
    """Mount an empty filesystem at *place*, but for a file."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True, timeout=10)
    (place / "over").touch()


def test_figures_of_the_filesystem(mnt: Path, stack: Stack) -> None:
    seen, below = os.statvfs(mnt), os.statvfs(stack.upper)
    assert (seen.f_blocks, seen.f_frsize, seen.f_files) == (below.f_blocks, below.f_frsize, below.f_files)
    assert seen.f_namemax == 255
    assert abs(seen.f_bavail - below.f_bavail) < below.f_blocks // 100
    assert not seen.f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV)


@pytest.mark.parametrize("way", ["no upper", "--read-only", "-oro"])
def test_read_only(layerfs: Layerfs, stack: Stack, way: str) -> None:
    (stack.bottom / "file").write_text("x")
    if way == "no upper":
        layerfs.ok("mount", "--name", stack.name, f"--lower={stack.bottom}", stack.mnt)
    else:
        stack.mount(way)
    mnt = stack.mnt
    assert (mnt / "file").read_text() == "x"
    changes: list[Callable[[], object]] = [
        lambda: (mnt / "new").touch(),
        lambda: (mnt / "file").write_text("y"),
        lambda: (mnt / "file").unlink(),
        lambda: (mnt / "file").rename(mnt / "z"),
        lambda: (mnt / "dir").mkdir(),
        lambda: os.chmod(mnt / "file", 0o600),
        lambda: os.setxattr(mnt / "file", "user.x", b""),
        lambda: os.utime(mnt / "file"),
    ]
    assert [errno_of(change) for change in changes] == [errno.EROFS] * len(changes)
    assert os.statvfs(mnt).f_flag & os.ST_RDONLY
    assert os.listdir(stack.bottom) == ["file"]


def test_forty_layers(layerfs: Layerfs, tmp_path: Path) -> None:
    lowers = []
    for number in range(40):
        layer = tmp_path / f"layer-{number}"
        (layer / "dir").mkdir(parents=True)
        (layer / f"dir/of-{number}").write_text(str(number))
        (layer / "dir/all").write_text(str(number))
        lowers += ["--lower", str(layer)]
    (tmp_path / "mnt").mkdir()
    layerfs.ok("mount", "--name", "deep", *lowers, tmp_path / "mnt")
    assert len(os.listdir(tmp_path / "mnt/dir")) == 41
    assert (tmp_path / "mnt/dir/all").read_text() == "0"  # the first that is given is the topmost
    assert (tmp_path / "mnt/dir/of-39").read_text() == "39"


def test_a_path_as_long_as_paths_may_be(mnt: Path) -> None:
    back = os.open(".", os.O_RDONLY)
    os.chdir(mnt)
    try:
        for _ in range(30):  # far beyond PATH_MAX, one step at a time
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("file").write_text("deep")
        assert Path("file").read_text() == "deep"
        inode = os.stat("file").st_ino
        os.rename("file", "moved")
        assert os.stat("moved").st_ino == inode
    finally:
        os.fchdir(back)
        os.close(back)


def test_a_deep_tree_of_a_lower_layer_is_copied_up(stack: Stack) -> None:
    deep = stack.bottom
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "file").write_text("old")
    mnt = stack.mount()
    path = mnt / deep.relative_to(stack.bottom) / "file"
    path.write_text("new")
    assert path.read_text() == (stack.upper / deep.relative_to(stack.bottom) / "file").read_text() == "new"


class TestFull:
    """A full filesystem below: the errno comes through, nothing changes, the mount goes on."""

    @pytest.fixture
    def mnt(self, stack: Stack, small: Path) -> Path:
        """A mounted stack whose upper is on a filesystem of 16 MiB."""
        stack.upper, stack.work = small / "upper", small / "work"
        stack.upper.mkdir()
        stack.work.mkdir()
        (stack.bottom / "large").write_bytes(b"large" * (4 << 20))
        (stack.bottom / "small").write_bytes(b"small")
        (stack.bottom / "dir").mkdir()
        return stack.mount()

    def goes_on(self, mnt: Path, stack: Stack) -> None:
        """Assert that nothing was left in the work directory, and that the mount can be written."""
        assert os.listdir(stack.work / "work") == []
        (mnt / "small").write_bytes(b"goes on")
        (mnt / "dir/new").write_bytes(b"new")
        stack.remount()
        assert (mnt / "small").read_bytes() == b"goes on"

    def test_in_the_middle_of_a_copy_up(self, mnt: Path, stack: Stack) -> None:
        assert errno_of(lambda: os.chmod(mnt / "large", 0o600)) == errno.ENOSPC
        assert (mnt / "large").stat().st_mode & 0o777 != 0o600
        assert (mnt / "large").read_bytes() == b"large" * (4 << 20)
        assert not (stack.upper / "large").exists()
        self.goes_on(mnt, stack)

    def test_while_writing(self, mnt: Path, stack: Stack, small: Path) -> None:
        stack.layerfs.expect_log("could not be stored")
        ballast = fill(small, leave=1 << 20)
        fd = os.open(mnt / "new", os.O_WRONLY | os.O_CREAT)

        def write() -> None:
            for _ in range(64):
                os.write(fd, bytes(1 << 16))
            os.fsync(fd)

        assert errno_of(write) == errno.ENOSPC
        ballast.unlink()
        os.pwrite(fd, b"again", 0)
        os.fsync(fd)
        os.close(fd)
        assert (mnt / "new").read_bytes()[:5] == b"again"
        self.goes_on(mnt, stack)

    def test_while_making_names(self, mnt: Path, stack: Stack, small: Path) -> None:
        ballast = fill(small)
        made = []

        def make() -> None:
            for number in range(100_000):
                path = mnt / f"dir/{'n' * 200}-{number}"
                path.symlink_to("t" * 1000)
                made.append(path.name)

        assert errno_of(make) == errno.ENOSPC
        assert sorted(os.listdir(mnt / "dir")) == sorted(made)
        ballast.unlink()
        self.goes_on(mnt, stack)
