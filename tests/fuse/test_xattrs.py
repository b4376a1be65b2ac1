"""Extended attributes and access control lists, and the overlay's own attributes, which nobody sees."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Stack, as_user, errno_of, wait_until

pytestmark = pytest.mark.root
ALICE, BOB = 4001, 4002
PRIVATE = "trusted.overlay."
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture
def file(stack: Stack) -> Path:
    """A mounted file of a lower layer with one attribute."""
    (stack.bottom / "file").write_text("x")
    os.setxattr(stack.bottom / "file", "user.old", b"old")
    return stack.mount() / "file"


def test_set_get_list_remove(file: Path, stack: Stack) -> None:
    assert os.listxattr(file) == ["user.old"]
    os.setxattr(file, "user.new", b"\x00\xff" * 100)
    os.setxattr(file, "trusted.t", b"")
    os.removexattr(file, "user.old")
    for path in (file, stack.remount() / "file"):
        assert sorted(os.listxattr(path)) == ["trusted.t", "user.new"]
        assert os.getxattr(path, "user.new") == b"\x00\xff" * 100
        assert os.getxattr(path, "trusted.t") == b""
        assert errno_of(lambda p=path: os.getxattr(p, "user.old")) == errno.ENODATA  # type: ignore[misc]
    assert os.getxattr(stack.bottom / "file", "user.old") == b"old"


def test_flags(file: Path) -> None:
    assert errno_of(lambda: os.setxattr(file, "user.old", b"", os.XATTR_CREATE)) == errno.EEXIST
    assert errno_of(lambda: os.setxattr(file, "user.new", b"", os.XATTR_REPLACE)) == errno.ENODATA
    os.setxattr(file, "user.new", b"1", os.XATTR_CREATE)
    os.setxattr(file, "user.old", b"2", os.XATTR_REPLACE)
    assert [os.getxattr(file, name) for name in ("user.new", "user.old")] == [b"1", b"2"]


def test_reading_and_failing_copies_nothing_up(file: Path, stack: Stack) -> None:
    assert errno_of(lambda: os.removexattr(file, "user.nothing")) == errno.ENODATA
    assert os.getxattr(file, "user.old") == b"old"
    assert os.listdir(stack.upper) == []


def test_directories_links_and_special_files(stack: Stack) -> None:
    (stack.bottom / "dir").mkdir()
    (stack.bottom / "link").symlink_to("dir")
    mnt = stack.mount()
    for name in ("dir", "link"):
        os.setxattr(mnt / name, "trusted.x", name.encode(), follow_symlinks=False)
    for view in (mnt, stack.remount()):
        for name in ("dir", "link"):
            assert os.getxattr(view / name, "trusted.x", follow_symlinks=False) == name.encode()
    assert errno_of(lambda: os.setxattr(mnt / "link", "user.x", b"", follow_symlinks=False)) == errno.EPERM


def test_large_values_and_long_names(file: Path) -> None:
    name = "user." + "n" * 250
    for size in (0, 255, 3000):
        os.setxattr(file, name, b"v" * size)
        assert os.getxattr(file, name) == b"v" * size
    assert errno_of(lambda: os.setxattr(file, name + "n", b"")) == errno.ERANGE
    assert errno_of(lambda: os.setxattr(file, "user.big", bytes(65537))) in (errno.E2BIG, errno.ENOSPC)


@pytest.mark.parametrize("extension", ["0", "1"])
def test_what_was_written_before_takes_no_capability_away(stack: Stack, extension: str) -> None:
    """What unpacks a file may set it before the file is closed, and the kernel may still have the data."""
    stack.layerfs.environment["LAYERFS_EXTENSION"] = extension
    path = stack.mount() / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"x" * 10_000)
        os.setxattr(file.fileno(), "security.capability", CAPABILITY)
        os.fsync(file)
        assert os.getxattr(path, "security.capability") == CAPABILITY
        file.write(b"y")
    assert errno_of(lambda: os.getxattr(path, "security.capability")) == errno.ENODATA
    assert path.read_bytes() == b"x" * 10_000 + b"y"


SETTING = """
import os, sys
data = os.urandom(1 << 20)
while True:
    with open(sys.argv[1], "wb", buffering=0) as file:
        file.write(data)
        os.setxattr(file.fileno(), "security.capability", bytes.fromhex(sys.argv[2]))
"""


def test_a_daemon_that_is_killed_meanwhile_leaves_nobody_waiting(stack: Stack) -> None:
    """Its end must not wait for an answer of its own: whoever has the files open hears of the end."""
    mnt = stack.mount()
    words = [sys.executable, "-c", SETTING]
    users = [
        subprocess.Popen([*words, mnt / str(number), CAPABILITY.hex()], stderr=subprocess.DEVNULL)
        for number in range(6)
    ]
    try:
        wait_until(lambda: len(os.listdir(mnt)) == len(users))
        time.sleep(0.2)
        stack.layerfs.kill(stack.name)
        for user in users:
            user.wait(10)
    finally:
        for user in users:
            user.kill()


def test_a_capability_that_is_asked_for_while_it_is_set(stack: Stack) -> None:
    """Setting it takes a copy-up; what is said meanwhile, that there is none, holds until that ends."""
    with (stack.bottom / "large").open("wb") as file:
        for _ in range(32):
            file.write(os.urandom(1 << 20))
    path = stack.mount() / "large"

    def ask() -> int:
        return errno_of(lambda: os.getxattr(path, "security.capability"))

    setting = threading.Thread(target=os.setxattr, args=(path, "security.capability", CAPABILITY))
    setting.start()
    answers = [ask()]
    while setting.is_alive():
        answers.append(ask())
    setting.join()
    assert errno.ENODATA in answers
    assert os.getxattr(path, "security.capability") == CAPABILITY


class TestPrivate:
    """The overlay's own attributes are not shown; those that people set of that name are kept apart."""

    def test_they_are_hidden(self, stack: Stack) -> None:
        (stack.bottom / "dir").mkdir()
        os.setxattr(stack.bottom / "dir", f"{PRIVATE}impure", b"y")
        mnt = stack.mount()
        (mnt / "dir").rename(mnt / "moved")
        assert os.getxattr(stack.upper / "moved", "trusted.overlay.redirect") == b"/dir"
        assert os.listxattr(mnt / "moved") == []
        for name in ("redirect", "impure", "opaque", "layerfs.ino"):
            found = errno_of(lambda n=PRIVATE + name: os.getxattr(mnt / "moved", n))  # type: ignore[misc]
            assert found == errno.ENODATA

    def test_those_that_people_set_mean_nothing_here(self, stack: Stack) -> None:
        (stack.bottom / "dir").mkdir()
        (stack.bottom / "dir/inner").touch()
        mnt = stack.mount()
        os.setxattr(mnt / "dir", PRIVATE + "opaque", b"y")
        for view in (mnt, stack.remount()):
            assert os.listxattr(view / "dir") == [PRIVATE + "opaque"]
            assert os.getxattr(view / "dir", PRIVATE + "opaque") == b"y"
            assert os.listdir(view / "dir") == ["inner"]
        assert os.getxattr(stack.upper / "dir", f"{PRIVATE}overlay.opaque") == b"y"
        (stack.mnt / "dir").rename(stack.mnt / "moved")
        os.removexattr(stack.mnt / "moved", PRIVATE + "opaque")
        assert os.listxattr(stack.mnt / "moved") == []

    def test_they_do_not_survive_a_copy_up(self, stack: Stack) -> None:
        (stack.bottom / "dir").mkdir()
        (stack.bottom / "below").mkdir()
        (stack.bottom / "below/hidden").touch()
        (stack.top / "below").mkdir()
        os.setxattr(stack.top / "below", "trusted.overlay.opaque", b"y")
        mnt = stack.mount()
        (mnt / "below/new").touch()
        assert "trusted.overlay.opaque" not in os.listxattr(stack.upper / "below")
        assert os.listdir(stack.remount() / "below") == ["new"]


class TestAccessControlLists:
    """POSIX ACLs (acl(5)) hold, are inherited, and go along."""

    def setfacl(self, *arguments: str | Path) -> None:
        """Run setfacl."""
        subprocess.run(["setfacl", *arguments], check=True, timeout=20)

    def getfacl(self, path: Path) -> list[str]:
        """Return the entries of *path*, numbers for names."""
        command: list[str | Path] = ["getfacl", "--numeric", "--omit-header", "--absolute-names", path]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
        return [line.split("\t")[0] for line in done.stdout.splitlines() if line]

    def test_a_named_user_is_let_in(self, stack: Stack) -> None:
        (stack.bottom / "file").write_text("x")
        (stack.bottom / "file").chmod(0o600)
        stack.upper.chmod(0o755)
        mnt = stack.mount()
        self.setfacl("-m", f"u:{ALICE}:r", mnt / "file")
        for view in (mnt, stack.remount()):
            assert as_user(ALICE, lambda: Path("file").read_text(), where=view) == 0
            assert as_user(BOB, lambda: Path("file").read_text(), where=view) == errno.EACCES
            assert as_user(ALICE, lambda: Path("file").write_text("y"), where=view) == errno.EACCES
            assert f"user:{ALICE}:r--" in self.getfacl(view / "file")

    def test_one_in_a_lower_layer_holds_before_and_after_copy_up(self, stack: Stack) -> None:
        file = stack.bottom / "file"
        file.write_text("x")
        file.chmod(0o600)
        self.setfacl("-m", f"u:{ALICE}:rw", file)
        stack.upper.chmod(0o755)
        mnt = stack.mount()
        assert as_user(ALICE, lambda: Path("file").read_text(), where=mnt) == 0
        assert as_user(ALICE, lambda: Path("file").write_text("hers"), where=mnt) == 0
        assert as_user(BOB, lambda: Path("file").read_text(), where=mnt) == errno.EACCES
        assert self.getfacl(mnt / "file") == self.getfacl(file) == self.getfacl(stack.upper / "file")

    def test_the_mode_and_the_mask_are_one(self, stack: Stack) -> None:
        mnt = stack.mount()
        (mnt / "file").touch(0o600)
        self.setfacl("-m", f"u:{ALICE}:rwx", mnt / "file")
        assert stat.S_IMODE((mnt / "file").stat().st_mode) == 0o670
        (mnt / "file").chmod(0o640)
        assert "mask::r--" in self.getfacl(mnt / "file")
        self.setfacl("-b", mnt / "file")
        assert len(self.getfacl(mnt / "file")) == 3

    def test_a_default_list_is_inherited(self, stack: Stack) -> None:
        mnt = stack.mount()
        (mnt / "dir").mkdir()
        self.setfacl("-d", "-m", f"u:{ALICE}:rwx,o::-", mnt / "dir")
        old = os.umask(0o077)  # with a default list it does not count
        try:
            (mnt / "dir/file").touch(0o666)
            (mnt / "dir/inner").mkdir()
        finally:
            os.umask(old)
        for view in (mnt, stack.remount()):
            assert f"user:{ALICE}:rwx" in self.getfacl(view / "dir/file")
            assert stat.S_IMODE((view / "dir/file").stat().st_mode) == 0o660
            assert f"default:user:{ALICE}:rwx" in self.getfacl(view / "dir/inner")

    def test_nonsense_is_refused(self, stack: Stack) -> None:
        (stack.bottom / "file").touch()
        mnt = stack.mount()
        nonsense = struct.pack("<IHHI", 2, 0x40, 7, 0)
        assert (
            errno_of(lambda: os.setxattr(mnt / "file", "system.posix_acl_access", nonsense)) == errno.EINVAL
        )
        assert os.listdir(stack.upper) == []
