"""layerfs without root: for an ordinary user, through fusermount3."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NOBODY, Stack, as_user, errno_of
from tests.system.programs import needs
from tests.system.users import User, give, start, works

pytestmark = [pytest.mark.root, needs("fusermount3", "setpriv", "unshare", "nsenter")]
NAME = "base-container"
STRANGER = 4001


@pytest.fixture
def user() -> Iterator[User]:
    """An ordinary user."""
    yield from start(NOBODY)


def test_the_life_of_an_image(user: User) -> None:
    """The walkthrough, by an ordinary user."""
    tree, mnt = user.directory / "tree", user.directory / "mnt"
    (tree / "dir/deep").mkdir(parents=True)
    mnt.mkdir()
    for name in ("file", "doomed", "dir/inner", "dir/deep/inner"):
        (tree / name).write_text(name)
    os.link(tree / "file", tree / "dir/link")
    give(user.directory, user.uid)
    user.ok("import", tree, "base:1")
    user.ok("mount", "--image", "base:1", "--name", NAME, mnt)

    def change() -> None:
        Path("new").write_text("new")
        Path("file").write_text("changed")
        Path("doomed").unlink()
        os.rename("dir", "moved")
        os.link("new", "moved/new")
        assert Path("moved/link").read_text() == "changed"
        assert os.stat("file").st_nlink == 2

    def look() -> None:
        assert sorted(os.listdir()) == ["file", "moved", "new"]
        assert sorted(os.listdir("moved")) == ["deep", "inner", "link", "new"]
        assert Path("moved/deep/inner").read_text() == "dir/deep/inner"
        assert os.stat("moved/new").st_ino == os.stat("new").st_ino
        assert os.stat("moved/link").st_ino == os.stat("file").st_ino
        assert {os.lstat(path).st_uid for path in Path().rglob("*")} == {user.uid}

    works(user, mnt, change, look)
    lines = user.ok("diff", NAME).splitlines()
    assert {"A /new", "C /file", "D /doomed", "D /dir", "A /moved"} <= set(lines)
    user.ok("commit", "-m", "first", NAME, "mine:1")
    assert "first" in user.ok("history", "mine:1")
    assert user.ok("diff", NAME) == ""
    works(user, mnt, look, lambda: Path("later").write_text("later"))
    user.ok("umount", NAME)
    user.ok("mount", "--name", NAME, mnt)
    works(user, mnt, lambda: Path("later").unlink(), look)
    assert user.ok("verify", "mine:1").endswith("as its manifest says")
    assert json.loads(user.ok("inspect", NAME))[0]["State"]["Running"] is True
    user.ok("rm", "-f", NAME)
    user.ok("rmi", "mine:1")
    assert user.ok("ps", "-a", "-q") == ""


@pytest.fixture
def stack(user: User) -> Stack:
    """Directories to mount, for the ordinary user."""
    return Stack(user)


def test_what_is_written(user: User, stack: Stack) -> None:
    """The on-disk form with `user.` attributes, which the kernel reads with its option userxattr."""
    for name in ("old/inner", "replaced/inner"):
        (stack.bottom / name).mkdir(parents=True)
    for name in ("gone", "file", "old/file"):
        (stack.bottom / name).write_text(name)
    give(stack.directory, user.uid)
    mnt = stack.mount()

    def change() -> None:
        os.unlink("gone")
        os.rename("old", "new")
        shutil.rmtree("replaced")
        os.mkdir("replaced")
        os.chmod("file", 0o600)

    def look() -> None:
        assert sorted(os.listdir()) == ["file", "new", "replaced"]
        assert sorted(os.listdir("new")) == ["file", "inner"]
        assert os.listdir("replaced") == []
        for path in (".", "new", "replaced", "file"):
            assert os.listxattr(path) == []

    number = os.stat(stack.bottom / "file").st_ino
    works(user, mnt, change, look)
    assert stat.S_ISCHR((stack.upper / "gone").lstat().st_mode)
    assert (stack.upper / "gone").lstat().st_rdev == 0
    assert os.getxattr(stack.upper / "new", "user.overlay.redirect") == b"/old"
    assert os.getxattr(stack.upper / "replaced", "user.overlay.opaque") == b"y"
    assert os.getxattr(stack.upper / "file", "user.overlay.layerfs.ino").startswith(b"%d:" % number)
    stack.remount()
    works(user, mnt, look)


def test_redirects_of_others_are_not_followed(user: User, stack: Stack) -> None:
    """A user's mount has his rights, and leads nobody with them where somebody else has pointed."""
    for name in ("closed", "also closed"):
        (stack.bottom / name).mkdir()
        (stack.bottom / name / "inside").write_text("inside")
    (stack.bottom / "secret").write_text("secret")
    for name in ("mine", "theirs"):
        (stack.top / name).mkdir()
        os.setxattr(stack.top / name, "user.overlay.redirect", b"/closed")
    (stack.top / "copy").write_bytes(bytes(6))
    for name, value in (("metacopy", b""), ("redirect", b"/secret"), ("layerfs.ino", b"77")):
        os.setxattr(stack.top / "copy", f"user.overlay.{name}", value)
    give(stack.directory, user.uid)
    for name in ("theirs", "copy"):
        os.chown(stack.top / name, STRANGER, STRANGER)
    mnt = stack.mount()

    def look() -> None:
        assert os.listdir("mine") == ["inside"]
        assert errno_of(lambda: os.listdir("theirs")) == errno.EPERM
        assert errno_of(lambda: Path("copy").read_bytes()) == errno.EPERM
        assert {"copy", "mine", "theirs"} <= set(os.listdir())

    works(user, mnt, look)


def test_what_is_write_protected(user: User, stack: Stack) -> None:
    """Owners may change what they may not write to: mode, times, names."""
    for name in ("dir/inner", "other"):
        (stack.bottom / name).mkdir(parents=True)
    (stack.bottom / "dir/inner/file").write_text("file")
    for name in ("read-only", "executable"):
        (stack.bottom / name).write_text(name)
        os.setxattr(stack.bottom / name, "user.note", b"note")
        (stack.bottom / name).chmod(0o444 if name == "read-only" else 0o555)
    (stack.bottom / "dir/inner").chmod(0o555)
    give(stack.directory, user.uid)
    mnt = stack.mount()

    def change() -> None:
        os.utime("read-only", ns=(1, 1))
        os.chmod("executable", 0o500)
        os.rename("read-only", "other/read-only")
        os.utime("dir/inner", ns=(1, 1))
        os.rename("dir/inner", "dir/renamed")
        os.rename("dir", "moved")

    def look() -> None:
        assert (
            os.getxattr("other/read-only", "user.note") == os.getxattr("executable", "user.note") == b"note"
        )
        assert os.stat("moved/renamed").st_mtime_ns == os.stat("other/read-only").st_mtime_ns == 1
        assert stat.S_IMODE(os.stat("other/read-only").st_mode) == 0o444
        assert Path("moved/renamed/file").read_text() == "file"
        assert os.path.exists("dir") is False

    works(user, mnt, change, look)
    stack.remount()
    works(user, mnt, look)


def test_what_is_refused(user: User, stack: Stack) -> None:
    (stack.bottom / "file").write_text("file")
    (stack.bottom / "roots").write_text("root's")
    (stack.bottom / "secret").write_text("root's")
    give(stack.directory, user.uid)
    for name in ("roots", "secret"):
        os.chown(stack.bottom / name, 0, 0)
    (stack.bottom / "secret").chmod(0o600)
    mnt = stack.mount()
    for action in (
        lambda: os.chown("file", 0, -1),
        lambda: os.chown("file", -1, 0),
        lambda: os.setxattr("file", "trusted.t", b""),
        lambda: os.setxattr("file", "security.capability", b"\1\0\0\2" + bytes(16)),
        lambda: os.mknod("device", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        lambda: os.chmod("roots", 0o777),
        lambda: os.chown("roots", NOBODY, NOBODY),
        lambda: os.utime("roots", ns=(1, 1)),
        lambda: os.rename("roots", "moved"),  # its copy could not belong to root
        lambda: os.link("roots", "linked"),
    ):
        assert user.do(action, where=mnt) == errno.EPERM
    for forbidden in (
        lambda: Path("roots").write_text("x"),
        lambda: Path("secret").read_text(),
        lambda: os.truncate("roots", 0),
    ):
        assert user.do(forbidden, where=mnt) == errno.EACCES
    assert os.listdir(stack.upper) == []
    assert os.listdir(stack.work / "work") == []

    def allowed() -> None:
        assert Path("roots").read_text() == "root's"
        os.chown("file", user.uid, user.uid)
        os.chmod("file", 0o4755)
        os.mkfifo("fifo")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
        os.unlink("roots")  # as in any directory of one's own

    works(user, mnt, allowed)
    assert stat.S_IMODE((stack.upper / "file").stat().st_mode) == 0o4755


def test_nobody_else_sees_it(user: User, stack: Stack) -> None:
    give(stack.directory, user.uid)
    mnt = stack.mount()

    def look_as_somebody_else() -> None:
        enter = f"/proc/{user.holder.pid}/root{mnt}"
        assert errno_of(lambda: os.listdir(enter)) == errno.EACCES
        assert as_user(STRANGER, lambda: os.listdir(enter), where=Path("/")) == errno.EACCES

    look_as_somebody_else()
    assert "no such mount" in user.refused("umount", "other")
    user.ok("umount", stack.name)
