"""Copy-up: what a file keeps when it moves from a lower layer to the upper."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.conftest import Stack

pytestmark = pytest.mark.root
MIB = 1 << 20


def test_metadata_survives(stack: Stack) -> None:
    file = stack.bottom / "file"
    file.write_bytes(b"content")
    os.chown(file, 1234, 5678)
    file.chmod(0o6751)
    os.setxattr(file, "user.note", b"\x00\xff")
    os.setxattr(file, "trusted.secret", b"t")
    os.setxattr(file, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.utime(file, ns=(1_111_111_111_111_111_111, 1_222_222_222_222_222_222))
    mnt = stack.mount()
    os.setxattr(mnt / "file", "user.new", b"1")  # a change that touches none of these
    for path in (mnt / "file", stack.upper / "file"):
        st = path.stat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1234, 5678, 0o6751)
        assert (st.st_atime_ns, st.st_mtime_ns) == (1_111_111_111_111_111_111, 1_222_222_222_222_222_222)
        assert os.getxattr(path, "user.note") == b"\x00\xff"
        assert os.getxattr(path, "trusted.secret") == b"t"
        assert len(os.getxattr(path, "security.capability")) == 20
    assert (mnt / "file").read_bytes() == b"content"
    assert "user.new" not in os.listxattr(file)


def test_parents_keep_their_metadata_and_times(stack: Stack) -> None:
    deep = stack.bottom / "a/b/c"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    for number, path in enumerate((deep, deep.parent, deep.parent.parent)):
        path.chmod(0o711 + number)
        os.chown(path, 100 + number, 200 + number)
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    mnt = stack.mount()
    before = [(mnt / name).stat() for name in ("a", "a/b", "a/b/c")]
    (mnt / "a/b/c/file").write_text("y")
    after = [(mnt / name).stat() for name in ("a", "a/b", "a/b/c")]
    for old, new in zip(before, after, strict=True):
        for field in ("st_ino", "st_mode", "st_uid", "st_gid", "st_mtime_ns"):
            assert getattr(old, field) == getattr(new, field), field


def test_holes_are_kept(stack: Stack) -> None:
    with (stack.bottom / "sparse").open("wb") as file:
        for offset in (0, 40 * MIB, 100 * MIB):
            file.seek(offset)
            file.write(b"data")
        file.truncate(200 * MIB)
    mnt = stack.mount()
    with (mnt / "sparse").open("r+b") as file:
        file.seek(MIB)
        file.write(b"new")
    copy = stack.upper / "sparse"
    assert copy.stat().st_size == (mnt / "sparse").stat().st_size == 200 * MIB
    assert copy.stat().st_blocks * 512 < MIB
    with (mnt / "sparse").open("rb") as file:
        for offset, data in ((0, b"data"), (MIB, b"new\0"), (40 * MIB, b"data"), (200 * MIB - 4, bytes(4))):
            assert os.pread(file.fileno(), 4, offset) == data


def test_special_files(stack: Stack) -> None:
    kinds = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    for kind in kinds:
        os.mknod(stack.bottom / str(kind), kind | 0o640, os.makedev(1, 3))
    mnt = stack.mount()
    for kind in kinds:
        before = (mnt / str(kind)).stat()
        os.chown(mnt / str(kind), 7, 8)
        after = (mnt / str(kind)).stat()
        assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, kind | 0o640, before.st_rdev)
        assert (after.st_uid, after.st_gid) == (7, 8)


def test_symbolic_links(stack: Stack) -> None:
    (stack.bottom / "link").symlink_to("no/such/place" * 100)
    mnt = stack.mount()
    os.chown(mnt / "link", 7, 8, follow_symlinks=False)
    os.utime(mnt / "link", ns=(5, 6), follow_symlinks=False)
    st = (mnt / "link").lstat()
    assert (os.readlink(mnt / "link"), st.st_uid, st.st_mtime_ns) == ("no/such/place" * 100, 7, 6)
    assert (stack.upper / "link").is_symlink()


def test_a_descriptor_from_before_sees_what_comes_after(stack: Stack) -> None:
    (stack.bottom / "file").write_bytes(b"before")
    mnt = stack.mount()
    reader = os.open(mnt / "file", os.O_RDONLY)
    assert os.read(reader, 100) == b"before"
    (mnt / "file").write_bytes(b"after, and longer")
    assert os.pread(reader, 100, 0) == b"after, and longer"
    assert os.fstat(reader).st_size == 17
    (mnt / "file").rename(mnt / "moved")
    with (mnt / "moved").open("ab") as file:
        file.write(b"!")
    assert os.pread(reader, 100, 0) == b"after, and longer!"
    os.close(reader)


class TestHardLinks:
    """All names of a lower file stay names of one file."""

    @pytest.fixture
    def linked(self, stack: Stack) -> Path:
        """A mounted stack with a file of three names: here, deep below, and deleted."""
        (stack.bottom / "a/b").mkdir(parents=True)
        (stack.bottom / "one").write_bytes(b"old")
        os.link(stack.bottom / "one", stack.bottom / "a/b/two")
        os.link(stack.bottom / "one", stack.bottom / "three")
        return stack.mount()

    def test_names_looked_up_before(self, linked: Path) -> None:
        assert (linked / "a/b/two").stat().st_ino == (linked / "one").stat().st_ino
        (linked / "one").write_bytes(b"new")
        assert (linked / "a/b/two").read_bytes() == (linked / "three").read_bytes() == b"new"
        assert {(linked / name).stat().st_ino for name in ("one", "a/b/two", "three")} == {
            (linked / "one").stat().st_ino
        }
        assert (linked / "one").stat().st_nlink == 3

    def test_names_never_looked_up(self, linked: Path, stack: Stack) -> None:
        (linked / "one").write_bytes(b"new")
        for mnt in (linked, stack.remount()):
            assert (mnt / "a/b/two").read_bytes() == b"new"
            assert (mnt / "three").read_bytes() == b"new"
            assert (mnt / "three").stat().st_nlink == 3
            assert (mnt / "three").samefile(mnt / "a/b/two")

    def test_a_deleted_name_stays_deleted(self, linked: Path, stack: Stack) -> None:
        (linked / "three").unlink()
        (linked / "one").write_bytes(b"new")
        for mnt in (linked, stack.remount()):
            assert sorted(os.listdir(mnt)) == ["a", "one"]
            assert (mnt / "a/b/two").read_bytes() == b"new"
            assert (mnt / "one").stat().st_nlink == 2

    def test_a_moved_name_is_still_one(self, linked: Path, stack: Stack) -> None:
        (linked / "a").rename(linked / "z")
        (linked / "three").rename(linked / "z/four")
        (linked / "z/b/two").write_bytes(b"new")
        for mnt in (linked, stack.remount()):
            assert (mnt / "one").read_bytes() == (mnt / "z/four").read_bytes() == b"new"
            assert (mnt / "one").stat().st_nlink == 3

    def test_over_a_commit(self, linked: Path, stack: Stack) -> None:
        os.chmod(linked / "one", 0o600)
        stack.commit()
        (linked / "three").write_bytes(b"new")
        for mnt in (linked, stack.remount()):
            assert (mnt / "one").read_bytes() == (mnt / "a/b/two").read_bytes() == b"new"
            assert (mnt / "one").stat().st_nlink == 3


def test_two_lower_files_of_one_inode_number_stay_two(stack: Stack) -> None:
    (stack.bottom / "one").write_bytes(b"1")
    mnt = stack.mount()
    (mnt / "one").write_bytes(b"2")
    stack.commit()
    (mnt / "one").write_bytes(b"3")
    (mnt / "two").write_bytes(b"4")
    assert not (mnt / "one").samefile(mnt / "two")


class TestInodeNumbers:
    """`st_ino` is for good."""

    @pytest.fixture
    def numbers(self, stack: Stack) -> dict[str, int]:
        """The numbers of what is in a mounted stack."""
        (stack.bottom / "directory").mkdir()
        for name in ("directory/file", "plain"):
            (stack.bottom / name).write_text(name)
        os.mkfifo(stack.bottom / "fifo")
        (stack.bottom / "link").symlink_to("plain")
        mnt = stack.mount()
        return {
            name: (mnt / name).lstat().st_ino for name in ("directory", "directory/file", "plain", "link")
        }

    def change(self, mnt: Path, numbers: dict[str, int]) -> None:
        """Bring everything into the upper."""
        for name in numbers:
            os.chown(mnt / name, 11, 12, follow_symlinks=False)

    def now(self, mnt: Path, numbers: dict[str, int]) -> dict[str, int]:
        """Return today's numbers."""
        return {name: (mnt / name).lstat().st_ino for name in numbers}

    def test_over_copy_up_and_remount(self, stack: Stack, numbers: dict[str, int]) -> None:
        self.change(stack.mnt, numbers)
        assert self.now(stack.mnt, numbers) == numbers
        assert self.now(stack.remount(), numbers) == numbers

    def test_over_commits(self, stack: Stack, numbers: dict[str, int]) -> None:
        for _ in range(2):
            self.change(stack.mnt, numbers)
            stack.commit()
            assert self.now(stack.mnt, numbers) == numbers
        assert self.now(stack.remount(), numbers) == numbers

    def test_over_renames(self, stack: Stack, numbers: dict[str, int]) -> None:
        (stack.mnt / "plain").rename(stack.mnt / "directory/moved")
        (stack.mnt / "directory").rename(stack.mnt / "elsewhere")
        for mnt in (stack.mnt, stack.remount()):
            assert (mnt / "elsewhere").stat().st_ino == numbers["directory"]
            assert (mnt / "elsewhere/file").stat().st_ino == numbers["directory/file"]
            assert (mnt / "elsewhere/moved").stat().st_ino == numbers["plain"]
