"""Layers that fail, with EIO or for want of inodes: people are told, nothing is half done, work goes on."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Stack, errno_of
from tests.fuse.oracle import snapshot
from tests.system.failing_lower import BROKEN_FROM, SIZE, content, mounted

pytestmark = pytest.mark.root
NEVER = 1 << 62


def tree(top: Path) -> snapshot.Snapshot:
    """Return everything below *top* with its attributes, times included."""
    return snapshot.take(os.fsencode(top), NEVER, kernel=False)


def timeless(found: snapshot.Snapshot) -> snapshot.Snapshot:
    """Return a snapshot without times, for what has been written to."""
    return {path: item._replace(mtime=0) for path, item in found.items()}


def in_the_making(stack: Stack) -> list[str]:
    """Return what is left in the work directory, but for the inode that whiteouts share."""
    return [name for name in os.listdir(stack.work / "work") if name != "whiteout"]


class TestBrokenDisk:
    """A lower layer on a filesystem that answers EIO."""

    @pytest.fixture
    def mnt(self, stack: Stack) -> Iterator[Path]:
        """A mounted stack whose lowest layer is broken."""
        lower = stack.directory / "failing"
        lower.mkdir()
        with mounted(lower):
            stack.bottom = lower
            try:
                yield stack.mount()
            finally:
                stack.layerfs.end()

    def test_reading(self, mnt: Path) -> None:
        with (mnt / "read").open("rb", buffering=0) as file:
            assert file.read(1 << 16) == content()[: 1 << 16]
            file.seek(BROKEN_FROM + 4096)
            assert errno_of(lambda: file.read(4096)) == errno.EIO
        for action in (
            lambda: os.stat(mnt / "lookup"),
            lambda: (mnt / "open").read_bytes(),
            lambda: os.readlink(mnt / "readlink"),
            lambda: os.listxattr(mnt / "listxattr"),
            lambda: os.listdir(mnt / "opendir"),
            lambda: os.listdir(mnt / "readdir"),
        ):
            assert errno_of(action) == errno.EIO
        assert (mnt / "sound").read_bytes() == content()

    @pytest.mark.parametrize("name", ["read", "open", "listxattr", "readlink"])
    def test_copying_up(self, mnt: Path, stack: Stack, name: str) -> None:
        """All that needs a copy of what cannot be copied fails, each time, and leaves nothing."""
        path = mnt / name
        before = path.lstat()
        for action in (
            lambda: os.utime(path, ns=(1, 1), follow_symlinks=False),
            lambda: os.chown(path, 1, 1, follow_symlinks=False),
            lambda: path.rename(mnt / "moved"),
            lambda: path.rename(mnt / "sound"),
            lambda: os.link(path, mnt / "linked", follow_symlinks=False),
            lambda: os.utime(path, ns=(1, 1), follow_symlinks=False),
        ):
            assert errno_of(action) == errno.EIO
            assert in_the_making(stack) == []
        if stat.S_ISREG(before.st_mode):
            assert errno_of(lambda: path.write_bytes(b"x")) in (0 if name == "read" else errno.EIO, errno.EIO)
        assert path.lstat().st_ino == before.st_ino
        assert not (mnt / "moved").exists()
        assert not (mnt / "linked").exists()
        assert (mnt / "sound").read_bytes() == content()
        self.goes_on(mnt, stack)

    def test_writing_to_a_file_that_cannot_be_read_to_its_end(self, mnt: Path, stack: Stack) -> None:
        """Neither an open descriptor nor a mapping is harmed; a file that is cut needs no reading."""
        fd = os.open(mnt / "read", os.O_RDWR)
        written = errno_of(lambda: os.pwrite(fd, b"x", 0))
        assert errno.EIO in (written, errno_of(lambda: os.fsync(fd)))
        assert errno_of(lambda: os.close(fd)) in (0, errno.EIO)  # it may be told once more
        assert (mnt / "read").stat().st_size == SIZE
        assert os.listdir(stack.upper) == in_the_making(stack) == []
        os.truncate(mnt / "read", 100)
        assert (mnt / "read").read_bytes() == content()[:100]
        stack.layerfs("commit", stack.name)  # the first one may say that something written was lost
        self.goes_on(mnt, stack)
        assert (mnt / "read").read_bytes() == content()[:100]

    def test_what_cannot_be_listed(self, mnt: Path, stack: Stack) -> None:
        """Whether it is empty cannot be known, so it is not removed; in other places work goes on."""
        for name in ("opendir", "readdir"):
            assert errno_of((mnt / name).rmdir) == errno.EIO
            (mnt / "empty").mkdir()
            assert errno_of(lambda path=mnt / name: (mnt / "empty").rename(path)) == errno.EIO  # type: ignore[misc]
            (mnt / "empty").rmdir()
        assert os.listdir(stack.upper) == []
        assert errno_of((mnt / "lookup").unlink) == errno.EIO
        assert errno_of((mnt / "lookup").touch) == errno.EIO
        self.goes_on(mnt, stack)

    def test_removing_needs_no_reading(self, mnt: Path, stack: Stack) -> None:
        for name in ("read", "open", "listxattr", "readlink"):
            (mnt / name).unlink()
            assert not os.path.lexists(mnt / name)
        self.goes_on(mnt, stack)

    def goes_on(self, mnt: Path, stack: Stack) -> None:
        """Check that the mount can still be used, committed and mounted again."""
        (mnt / "new").write_text("new")
        os.chmod(mnt / "sound", 0o600)
        assert in_the_making(stack) == []
        stack.commit()
        (mnt / "new").unlink()
        stack.remount()
        assert not (mnt / "new").exists()
        assert (mnt / "sound").read_bytes() == content()
        assert stat.S_IMODE((mnt / "sound").stat().st_mode) == 0o600


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "create": lambda mnt: (mnt / "new").write_text("new"),
    "create deep": lambda mnt: (mnt / "a/b/c/new").touch(),
    "create over a whiteout": lambda mnt: (mnt / "gone").touch(),
    "mkdir": lambda mnt: (mnt / "a/new").mkdir(),
    "mkdir over a whiteout": lambda mnt: (mnt / "gone-dir").mkdir(),
    "symlink": lambda mnt: (mnt / "a/link").symlink_to("x" * 200),
    "mknod": lambda mnt: os.mknod(mnt / "a/fifo", stat.S_IFIFO | 0o600),
    "link": lambda mnt: os.link(mnt / "a/b/file", mnt / "a/b/c/linked"),
    "link over a whiteout": lambda mnt: os.link(mnt / "a/file", mnt / "gone"),
    "write": lambda mnt: (mnt / "a/b/file").write_text("changed"),
    "chmod": lambda mnt: os.chmod(mnt / "a/b/c", 0o700),
    "chmod of many names": lambda mnt: os.chmod(mnt / "one", 0o600),
    "setxattr": lambda mnt: os.setxattr(mnt / "a/b/file", "user.note", b"note" * 200),
    "unlink": lambda mnt: (mnt / "a/b/file").unlink(),
    "unlink in the upper": lambda mnt: (mnt / "copied").unlink(),
    "rmdir": lambda mnt: (mnt / "a/empty").rmdir(),
    "rmdir in the upper": lambda mnt: (mnt / "emptied").rmdir(),
    "rename": lambda mnt: (mnt / "a/b/file").rename(mnt / "a/empty/moved"),
    "rename in the upper": lambda mnt: (mnt / "copied").rename(mnt / "a/b/moved"),
    "rename over a lower file": lambda mnt: (mnt / "a/b/file").rename(mnt / "a/file"),
    "rename over a whiteout": lambda mnt: (mnt / "a/b/file").rename(mnt / "gone"),
    "rename a directory": lambda mnt: (mnt / "a/b").rename(mnt / "moved"),
    "rename a directory over a whiteout": lambda mnt: (mnt / "a/b").rename(mnt / "gone-dir"),
    "rename a directory over an emptied one": lambda mnt: (mnt / "a/b").rename(mnt / "emptied"),
}  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_inodes_left(operation: str, stack: Stack) -> None:
    """The operation is tried with no inode left, one, two ...: it fails without a trace until it works."""
    small = make_small_filesystem(stack)
    fill_layers(stack)
    mnt = stack.mount()
    for doomed in ("gone", "gone-dir", "emptied/file"):
        (shutil.rmtree if doomed == "gone-dir" else os.unlink)(mnt / doomed)
    os.utime(mnt / "copied", ns=(1, 1))
    (mnt / "spare").touch()
    before = tree(mnt)
    failures = 0
    with_room = False
    while not with_room:
        exhaust(small, leave=failures)
        code = errno_of(lambda: OPERATIONS[operation](mnt))
        with_room = code == 0
        if not with_room:
            failures += 1
            assert code == errno.ENOSPC
            assert failures < 10
            assert in_the_making(stack) == []
            assert_usable(mnt)
            assert tree(mnt) == before
    after = tree(mnt)
    assert after != before
    shutil.rmtree(small / "ballast")
    assert in_the_making(stack) == []
    (mnt / "spare").write_text("used")
    (mnt / "spare").unlink()
    del after[b"spare"]
    assert timeless(tree(stack.remount())) == timeless(after)


def assert_usable(mnt: Path) -> None:
    """Check, without taking an inode and leaving no trace, that directories in the upper take new names."""
    for directory in [mnt, mnt / "emptied"]:
        if directory.exists():
            times = directory.stat()
            os.link(mnt / "spare", directory / "probe")
            assert (directory / "probe").samefile(mnt / "spare")
            (directory / "probe").unlink()
            os.utime(directory, ns=(times.st_atime_ns, times.st_mtime_ns))


def make_small_filesystem(stack: Stack) -> Path:
    """Put the upper of *stack* on a filesystem with few inodes; return where that is mounted."""
    small, image = stack.directory / "small", stack.directory / "small.ext4"
    small.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m0", "-N64", "-Onone,extents,ext_attr,dir_index", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, small], check=True, timeout=10)
    stack.upper, stack.work = small / "upper", small / "work"
    for path in (stack.upper, stack.work):
        path.mkdir()
    return small


def fill_layers(stack: Stack) -> None:
    """Put something into the lower layers."""
    for directory in ("a/b/c", "a/empty", "gone-dir", "emptied", "names"):
        (stack.bottom / directory).mkdir(parents=True)
    for file in ("a/file", "a/b/file", "copied", "gone", "emptied/file", "one"):
        (stack.bottom / file).write_text(file)
    for name in ("two", "a/three", "names/four"):
        os.link(stack.bottom / "one", stack.bottom / name)


def exhaust(small: Path, *, leave: int) -> None:
    """Use up the inodes of the filesystem at *small* but for *leave*."""
    ballast = small / "ballast"
    ballast.mkdir(exist_ok=True)
    while os.statvfs(small).f_ffree < leave:
        os.unlink(next(ballast.iterdir()))
    while (free := os.statvfs(small).f_ffree) > leave:
        (ballast / f"b{free}").touch()
