"""Making, linking, moving and removing names, and what that leaves in the upper."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from tests.conftest import Stack, errno_of

pytestmark = pytest.mark.root
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
REDIRECT, OPAQUE = "trusted.overlay.redirect", "trusted.overlay.opaque"
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> int:
    """Rename with *flags*; return the errno."""
    at_cwd = -100
    done = _libc.renameat2(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), flags)
    return ctypes.get_errno() if done else 0


def is_whiteout(path: Path) -> bool:
    """Tell whether *path* in a layer is a whiteout."""
    st = path.lstat()
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def tree(top: Path) -> dict[str, str]:
    """Return every path below *top*, with the contents of files."""
    return {str(path.relative_to(top)): path.read_text() if path.is_file() else "" for path in top.rglob("*")}


@pytest.fixture
def mnt(stack: Stack) -> Path:
    """A mounted stack: files and directories of a lower layer, of two, and of the upper."""
    for layer in (stack.bottom, stack.top, stack.upper):
        (layer / "merged").mkdir()
        (layer / f"merged/{layer.name}").write_text(layer.name)
        (layer / layer.name).mkdir()
        (layer / layer.name / "inner").mkdir()
        (layer / layer.name / "inner/file").write_text(layer.name)
    (stack.bottom / "file").write_text("lower")
    (stack.bottom / "empty").mkdir()
    return stack.mount()


class TestMaking:
    def test_every_type(self, mnt: Path, stack: Stack) -> None:
        (mnt / "file2").write_text("x")
        (mnt / "dir").mkdir(0o750)
        (mnt / "link").symlink_to("file2")
        os.mkfifo(mnt / "fifo", 0o620)
        os.mknod(mnt / "socket", stat.S_IFSOCK | 0o600)
        os.mknod(mnt / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(mnt / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 0))
        os.mknod(mnt / "regular", stat.S_IFREG | 0o640)
        for name in ("file2", "dir", "link", "fifo", "socket", "null", "loop", "regular"):
            seen, below = (mnt / name).lstat(), (stack.upper / name).lstat()
            assert (seen.st_mode, seen.st_rdev) == (below.st_mode, below.st_rdev)

    def test_names_that_are_taken(self, mnt: Path) -> None:
        for name in ("file", "merged", "empty", "bottom"):
            assert errno_of((mnt / name).mkdir) == errno.EEXIST
            assert errno_of(lambda n=name: (mnt / n).symlink_to("x")) == errno.EEXIST  # type: ignore[misc]
            assert errno_of(lambda n=name: os.link(mnt / "file", mnt / n)) == errno.EEXIST  # type: ignore[misc]

    def test_names_of_255_bytes_and_of_bytes_that_are_no_text(self, mnt: Path) -> None:
        for raw in (b"\xff" * 255, b"\x80\n\x01"):
            path = Path(os.fsdecode(os.fsencode(mnt) + b"/" + raw))
            path.write_text("1")
            path.rename(mnt / "other")
            (mnt / "other").rename(path)
            assert raw in os.listdir(os.fsencode(mnt))
        assert errno_of((mnt / ("n" * 256)).touch) == errno.ENAMETOOLONG

    def test_umask_and_modes(self, mnt: Path) -> None:
        old = os.umask(0o027)
        try:
            (mnt / "made").touch(0o666)
            (mnt / "dir").mkdir(0o7777)
        finally:
            os.umask(old)
        assert stat.S_IMODE((mnt / "made").stat().st_mode) == 0o640
        assert stat.S_IMODE((mnt / "dir").stat().st_mode) & 0o777 == 0o750

    def test_a_link_to_a_lower_file(self, mnt: Path, stack: Stack) -> None:
        os.link(mnt / "file", mnt / "merged/link")
        (mnt / "merged/link").write_text("both")
        for view in (mnt, stack.remount()):
            assert (view / "file").read_text() == "both"
            assert (view / "file").samefile(view / "merged/link")
            assert (view / "file").stat().st_nlink == 2

    def test_a_directory_over_a_whiteout_is_opaque(self, mnt: Path, stack: Stack) -> None:
        (mnt / "bottom/inner/file").unlink()
        (mnt / "bottom/inner").rmdir()
        (mnt / "bottom/inner").mkdir()
        assert os.getxattr(stack.upper / "bottom/inner", OPAQUE) == b"y"
        assert os.listdir(mnt / "bottom/inner") == os.listdir(stack.remount() / "bottom/inner") == []

    def test_a_file_over_a_whiteout(self, mnt: Path, stack: Stack) -> None:
        (mnt / "file").unlink()
        (mnt / "file").write_text("new")
        assert (mnt / "file").read_text() == (stack.remount() / "file").read_text() == "new"

    def test_a_whiteout_cannot_be_made_by_hand(self, mnt: Path) -> None:
        assert errno_of(lambda: os.mknod(mnt / "w", stat.S_IFCHR, 0)) == errno.EPERM


class TestRemoving:
    def test_a_lower_file(self, mnt: Path, stack: Stack) -> None:
        (mnt / "file").unlink()
        assert is_whiteout(stack.upper / "file")
        assert errno_of((mnt / "file").lstat) == errno.ENOENT
        assert "file" not in os.listdir(stack.remount())

    def test_an_upper_file_leaves_nothing(self, mnt: Path, stack: Stack) -> None:
        (mnt / "upper/inner/file").unlink()
        (mnt / "upper/inner").rmdir()
        assert os.listdir(stack.upper / "upper") == []

    def test_a_copied_up_file_leaves_a_whiteout(self, mnt: Path, stack: Stack) -> None:
        (mnt / "file").write_text("copied")
        (mnt / "file").unlink()
        assert is_whiteout(stack.upper / "file")

    def test_directories(self, mnt: Path, stack: Stack) -> None:
        assert errno_of((mnt / "merged").rmdir) == errno.ENOTEMPTY
        for name in ("bottom", "top", "upper"):
            (mnt / "merged" / name).unlink()
        (mnt / "merged").rmdir()
        (mnt / "empty").rmdir()
        for name in ("merged", "empty"):
            assert is_whiteout(stack.upper / name)
            assert name not in os.listdir(mnt)
        assert sorted(os.listdir(stack.remount())) == ["bottom", "file", "top", "upper"]

    def test_the_wrong_call(self, mnt: Path) -> None:
        assert errno_of((mnt / "file").rmdir) == errno.ENOTDIR
        assert errno_of((mnt / "empty").unlink) == errno.EISDIR
        assert errno_of((mnt / "nothing").unlink) == errno.ENOENT


class TestRenaming:
    def test_a_lower_file(self, mnt: Path, stack: Stack) -> None:
        (mnt / "file").rename(mnt / "merged/moved")
        assert is_whiteout(stack.upper / "file")
        for view in (mnt, stack.remount()):
            assert (view / "merged/moved").read_text() == "lower"
            assert not (view / "file").exists()

    @pytest.mark.parametrize("name", ["bottom", "top", "upper", "merged"])
    def test_a_directory(self, mnt: Path, stack: Stack, name: str) -> None:
        before = tree(mnt / name)
        (mnt / name).rename(mnt / "moved")
        (mnt / "moved").rename(mnt / "empty/again")
        for view in (mnt, stack.remount()):
            assert tree(view / "empty/again") == before
            assert not (view / name).exists()
        if name != "upper":
            assert os.getxattr(stack.upper / "empty/again", REDIRECT) == b"/" + name.encode()
            assert is_whiteout(stack.upper / name)

    def test_what_is_below_a_renamed_directory_changes(self, mnt: Path, stack: Stack) -> None:
        (mnt / "bottom").rename(mnt / "moved")
        (mnt / "moved/inner/file").write_text("changed")
        (mnt / "moved/inner").rename(mnt / "deep")
        (mnt / "bottom").mkdir()
        (mnt / "bottom/new").touch()
        for view in (mnt, stack.remount()):
            assert tree(view / "deep") == {"file": "changed"}
            assert (tree(view / "moved"), tree(view / "bottom")) == ({}, {"new": ""})

    def test_over_a_file_and_over_an_empty_directory(self, mnt: Path, stack: Stack) -> None:
        (mnt / "upper/inner/file").rename(mnt / "file")
        (mnt / "upper/inner").rename(mnt / "empty")
        (mnt / "bottom").rename(mnt / "upper")
        for view in (mnt, stack.remount()):
            assert (view / "file").read_text() == "upper"
            assert tree(view / "upper") == {"inner": "", "inner/file": "bottom"}
            assert os.listdir(view / "empty") == []

    def test_what_is_refused(self, mnt: Path) -> None:
        before = tree(mnt)
        assert errno_of(lambda: (mnt / "file").rename(mnt / "empty")) == errno.EISDIR
        assert errno_of(lambda: (mnt / "empty").rename(mnt / "file")) == errno.ENOTDIR
        assert errno_of(lambda: (mnt / "empty").rename(mnt / "merged")) == errno.ENOTEMPTY
        assert errno_of(lambda: (mnt / "bottom").rename(mnt / "bottom/inner/x")) == errno.EINVAL
        assert errno_of(lambda: (mnt / "nothing").rename(mnt / "x")) == errno.ENOENT
        assert renameat2(mnt / "upper", mnt / "file", NOREPLACE) == errno.EEXIST
        assert renameat2(mnt / "upper", mnt / "nothing", EXCHANGE) == errno.ENOENT
        assert renameat2(mnt / "bottom", mnt / "bottom/inner", EXCHANGE) == errno.EINVAL
        assert renameat2(mnt / "file", mnt / "x", WHITEOUT) != 0
        assert tree(mnt) == before

    def test_without_replacing(self, mnt: Path) -> None:
        assert renameat2(mnt / "file", mnt / "free", NOREPLACE) == 0
        assert (mnt / "free").read_text() == "lower"

    @pytest.mark.parametrize(
        ("one", "two"),
        [("file", "upper/inner/file"), ("bottom", "merged"), ("file", "top"), ("upper", "top/inner")],
    )
    def test_exchange(self, mnt: Path, stack: Stack, one: str, two: str) -> None:
        def what(path: Path) -> object:
            return tree(path) if path.is_dir() else path.read_text()

        first, second = what(mnt / one), what(mnt / two)
        assert renameat2(mnt / one, mnt / two, EXCHANGE) == 0
        for view in (mnt, stack.remount()):
            assert (what(view / one), what(view / two)) == (second, first)

    def test_to_another_name_of_the_same_file_does_nothing(self, mnt: Path) -> None:
        os.link(mnt / "file", mnt / "link")
        os.rename(mnt / "file", mnt / "link")
        assert (mnt / "file").samefile(mnt / "link")
