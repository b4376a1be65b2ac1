"""Hard links: which names are names of one file, whatever layers they are in, and what the count says."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from layerfs.union import syscalls
from tests.conftest import Stack

pytestmark = pytest.mark.root

_AT_FDCWD = -100


def forget(mnt: Path) -> None:
    """Have the kernel drop what it has cached of the mount and nobody uses."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"none", os.fsencode(mnt), b"none", 32, b"") == 0, os.strerror(ctypes.get_errno())


def name_again(fd: int, path: Path) -> None:
    """Give an open file another name, as open(2) says of O_TMPFILE."""
    parent = os.open(path.parent, os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=parent, follow_symlinks=True)
    os.close(parent)


class TestLayersThatShareInodes:
    """Two lower layers may hold one inode, as layers that were copied with `cp -al` do."""

    @pytest.fixture
    def shared(self, stack: Stack) -> Stack:
        """Two pairs of files, each pair one inode in two layers."""
        for number in ("1", "2"):
            (stack.bottom / f"a{number}").write_text(f"contents {number}")
            os.link(stack.bottom / f"a{number}", stack.top / f"b{number}")
        stack.mount()
        return stack

    def test_two_files_never_become_one_at_a_remount(self, shared: Stack) -> None:
        for name in ("a1", "b1"):
            (shared.mnt / name).stat()
        (shared.mnt / "b1").chmod(0o600)
        mnt = shared.remount()
        for name in ("b1", "a2", "b2"):
            (mnt / name).stat()
        assert (mnt / "b1").read_text() == "contents 1"
        (mnt / "b1").write_text("written!!!")
        assert [(mnt / name).read_text() for name in ("a1", "b1", "a2", "b2")] == [
            "contents 1",
            "written!!!",
            "contents 2",
            "contents 2",
        ]

    def test_a_change_in_one_layer_is_none_in_the_other(self, shared: Stack) -> None:
        for name in ("a1", "b1"):
            (shared.mnt / name).stat()
        (shared.mnt / "b1").write_text("written")
        assert (shared.mnt / "a1").read_text() == "contents 1"
        (shared.mnt / "a1").write_text("other")
        forget(shared.mnt)
        assert (shared.mnt / "b1").read_text() == "written"
        assert (shared.bottom / "a1").read_text() == (shared.top / "b1").read_text() == "contents 1"

    def test_the_names_within_a_layer_stay_names_of_one_file(self, stack: Stack) -> None:
        (stack.bottom / "a").write_text("old")
        for name in ("b", "c"):
            os.link(stack.bottom / "a", stack.top / name)
        mnt = stack.mount()
        assert [(mnt / name).stat().st_size for name in "abc"] == [3, 3, 3]
        assert (mnt / "b").samefile(mnt / "c")
        assert not (mnt / "a").samefile(mnt / "b")
        with (mnt / "b").open("r+") as file:
            file.write("new")
        assert [(mnt / name).read_text() for name in "abc"] == ["old", "new", "new"]
        mnt = stack.remount()
        assert (mnt / "b").samefile(mnt / "c")
        assert [(mnt / name).read_text() for name in "abc"] == ["old", "new", "new"]


class TestNumbersInAttributes:
    """The number that a copied-up file brings along is taken from disk, where anybody may have been."""

    ATTRIBUTE = "trusted.overlay.layerfs.ino"

    @pytest.fixture
    def recorded(self, stack: Stack) -> bytes:
        """What is recorded on `file`, which was copied up; `other` was not."""
        for name in ("file", "other"):
            (stack.bottom / name).write_text(name)
        (stack.mount() / "file").chmod(0o600)
        stack.umount()
        return os.getxattr(stack.upper / "file", self.ATTRIBUTE)

    def mount_again(self, stack: Stack) -> Path:
        stack.layerfs.ok("mount", "--name", stack.name, stack.mnt)
        return stack.mnt

    def test_it_counts_on_the_file_that_it_was_written_to(self, stack: Stack, recorded: bytes) -> None:
        assert (self.mount_again(stack) / "file").stat().st_ino == (stack.bottom / "file").stat().st_ino

    def test_it_counts_on_no_copy_of_that_file(self, stack: Stack, recorded: bytes) -> None:
        (stack.upper / "copy").write_text("copy")
        os.setxattr(stack.upper / "copy", self.ATTRIBUTE, recorded)
        number = (self.mount_again(stack) / "copy").stat().st_ino
        assert number == (stack.upper / "copy").stat().st_ino
        assert not (stack.mnt / "copy").samefile(stack.mnt / "file")

    @pytest.mark.parametrize(
        "value",
        [
            b"1",
            b"%d" % ((1 << 60) + 1),
            b"%d" % (1 << 64),
            b"9" * 3000,
            b"%d" % (250 << 48 | 12),
            b"-5",
            b"",
            b"12:zzzzzzzz",
            b"\xb2",
            b"12\n",
        ],
    )
    def test_nonsense_is_passed_over(self, stack: Stack, recorded: bytes, value: bytes) -> None:
        os.setxattr(stack.upper / "file", self.ATTRIBUTE, value)
        mnt = self.mount_again(stack)
        assert (mnt / "file").stat().st_ino == (stack.upper / "file").stat().st_ino
        assert [(mnt / name).read_text() for name in ("file", "other")] == ["file", "other"]
        assert mnt.is_dir()

    def test_the_number_of_another_file_makes_no_link_to_it(self, stack: Stack, recorded: bytes) -> None:
        for name in ("file", "other"):  # the forger is thorough: type and link count look right
            os.link(
                (stack.upper if name == "file" else stack.bottom) / name, stack.directory / f"{name}-link"
            )
        number = (stack.bottom / "other").stat().st_ino
        for value in (b"%d" % number, b"%d" % number + recorded[recorded.find(b":") :]):
            os.setxattr(stack.upper / "file", self.ATTRIBUTE, value)
            mnt = self.mount_again(stack)
            assert [(mnt / name).read_text() for name in ("other", "file")] == ["other", "file"]
            (mnt / "file").write_text("FILE")
            assert [(mnt / name).read_text() for name in ("other", "file")] == ["other", "FILE"]
            (mnt / "file").write_text("file")
            stack.umount()


class TestRemovedWhileOpen:
    """A name goes while a descriptor stays: what is done with that reaches the names that are left."""

    @pytest.fixture(params=["lower", "sealed", "upper"])
    def where(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def mnt(self, stack: Stack, where: str) -> Path:
        """A mount with a file called `a` and `d/b`, and nobody has looked for either."""
        directory = stack.bottom if where == "lower" else stack.upper
        (directory / "d").mkdir()
        (directory / "a").write_text("content")
        os.link(directory / "a", directory / "d/b")
        mnt = stack.mount()
        if where == "sealed":
            stack.commit()
        return mnt

    def test_a_write_is_seen_through_the_other_name(self, mnt: Path, stack: Stack) -> None:
        fd = os.open(mnt / "a", os.O_RDWR)
        os.unlink(mnt / "a")
        os.pwrite(fd, b"CON", 0)
        assert (mnt / "d/b").read_text() == "CONtent"
        os.pwrite(fd, b"con", 0)
        assert (mnt / "d/b").read_text() == "content"
        assert (mnt / "d/b").stat().st_ino == os.fstat(fd).st_ino
        assert os.fstat(fd).st_nlink == (mnt / "d/b").stat().st_nlink == 1
        (mnt / "d/b").write_text("other")
        assert os.pread(fd, 10, 0) == b"other"
        os.close(fd)
        mnt = stack.remount()
        assert (mnt / "d/b").read_text() == "other"
        assert sorted(os.listdir(mnt)) == ["d"]

    @pytest.mark.parametrize("what", ["truncate", "chmod", "chown", "utime", "setxattr"])
    def test_so_is_every_other_change(self, mnt: Path, stack: Stack, what: str) -> None:
        fd = os.open(mnt / "a", os.O_RDWR)
        (mnt / "other").touch()
        (mnt / "other").rename(mnt / "a")
        if what == "truncate":
            os.ftruncate(fd, 3)
        elif what == "chmod":
            os.fchmod(fd, 0o604)
        elif what == "chown":
            os.fchown(fd, 11, 12)
        elif what == "utime":
            os.utime(fd, ns=(5, 7))
        else:
            os.setxattr(fd, "user.new", b"value")
        os.close(fd)
        for root in (mnt, stack.remount()):
            st = (root / "d/b").stat()
            found = {
                "truncate": st.st_size == 3,
                "chmod": st.st_mode & 0o777 == 0o604,
                "chown": (st.st_uid, st.st_gid) == (11, 12),
                "utime": st.st_mtime_ns == 7,
                "setxattr": "user.new" in os.listxattr(root / "d/b"),
            }
            assert found[what]

    def test_a_commit_between_changes_nothing(self, mnt: Path, stack: Stack) -> None:
        fd = os.open(mnt / "a", os.O_RDWR)
        os.unlink(mnt / "a")
        stack.commit()
        os.pwrite(fd, b"CON", 0)
        stack.commit()
        os.pwrite(fd, b"TENT", 3)
        assert (mnt / "d/b").read_text() == "CONTENT"
        assert os.fstat(fd).st_nlink == 1
        os.close(fd)
        assert (stack.remount() / "d/b").read_text() == "CONTENT"

    def test_it_can_have_a_new_name(self, mnt: Path, stack: Stack) -> None:
        fd = os.open(mnt / "a", os.O_RDWR)
        os.unlink(mnt / "a")
        name_again(fd, mnt / "c")
        os.pwrite(fd, b"CON", 0)
        assert (mnt / "d/b").read_text() == (mnt / "c").read_text() == "CONtent"
        assert os.fstat(fd).st_nlink == 2
        stack.commit()
        os.pwrite(fd, b"con", 0)
        os.close(fd)
        mnt = stack.remount()
        assert (mnt / "d/b").read_text() == (mnt / "c").read_text() == "content"
        assert (mnt / "d/b").samefile(mnt / "c")


def test_a_removed_file_with_a_name_outside_of_its_layer_can_be_linked_and_committed(stack: Stack) -> None:
    (stack.bottom / "a").write_text("content")
    os.link(stack.bottom / "a", stack.directory / "outside")
    mnt = stack.mount()
    fd = os.open(mnt / "a", os.O_RDWR)
    os.unlink(mnt / "a")
    os.pwrite(fd, b"CON", 0)
    name_again(fd, mnt / "b")
    stack.commit()
    sealed = stack.layerfs.root / "layers"
    os.pwrite(fd, b"TENT", 3)
    os.fsync(fd)
    os.close(fd)
    assert (mnt / "b").read_text() == "CONTENT"
    assert [path.read_text() for path in sealed.glob("*/fs/b")] == ["CONtent"]
    assert (stack.directory / "outside").read_text() == "content"


class TestCounts:
    """`st_nlink` counts the names in the mount."""

    @pytest.fixture(params=["lower", "sealed", "upper"])
    def mnt(self, request: pytest.FixtureRequest, stack: Stack) -> Path:
        """A mount with a file of three names, in a layer of each kind."""
        directory = stack.bottom if request.param == "lower" else stack.upper
        (directory / "a").write_text("content")
        for name in "bc":
            os.link(directory / "a", directory / name)
        mnt = stack.mount()
        if request.param == "sealed":
            stack.commit()
        return mnt

    @pytest.mark.parametrize("seen", [True, False])
    def test_a_replaced_name_counts_no_more(self, mnt: Path, seen: bool) -> None:
        if seen:
            assert (mnt / "a").stat().st_nlink == 3
        (mnt / "other").touch()
        (mnt / "other").rename(mnt / "b")
        assert (mnt / "a").stat().st_nlink == 2
        (mnt / "c").unlink()
        assert (mnt / "a").stat().st_nlink == 1
        forget(mnt)
        assert (mnt / "a").stat().st_nlink == 1

    def test_a_removed_name_counts_no_more_whatever_follows(self, mnt: Path, stack: Stack) -> None:
        (mnt / "b").unlink()
        forget(mnt)
        assert (mnt / "a").stat().st_nlink == 2
        stack.commit()
        assert (mnt / "a").stat().st_nlink == 2
        (mnt / "b").write_text("another file")
        assert (mnt / "a").stat().st_nlink == 2
        os.link(mnt / "a", mnt / "d")
        assert (mnt / "c").stat().st_nlink == 3
        assert (stack.remount() / "c").stat().st_nlink == 3

    def test_the_last_one_of_an_open_file(self, mnt: Path) -> None:
        fd = os.open(mnt / "a", os.O_RDONLY)
        for left, name in ((2, "b"), (1, "a"), (0, "c")):
            os.unlink(mnt / name)
            assert os.fstat(fd).st_nlink == left
        os.close(fd)


def test_exchange_with_a_directory_that_holds_another_name_of_the_file(stack: Stack) -> None:
    (stack.bottom / "d/deep").mkdir(parents=True)
    (stack.bottom / "a").write_text("content")
    os.link(stack.bottom / "a", stack.bottom / "d/deep/b")
    mnt = stack.mount()
    assert (mnt / "d/deep/b").samefile(mnt / "a")
    for first, second in ((mnt / "a", mnt / "d"), (mnt / "a", mnt / "d")):  # there and back
        syscalls.renameat2(
            _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), syscalls.RENAME_EXCHANGE
        )
        file, directory = (mnt / "d", mnt / "a") if (mnt / "a").is_dir() else (mnt / "a", mnt / "d")
        assert file.samefile(directory / "deep/b")
        assert file.read_text() == "content"
