"""layerfs within a user namespace: many owners, and owners that have no id there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import NOBODY, Stack, errno_of
from tests.system.programs import needs
from tests.system.users import User, give, start, works

pytestmark = [pytest.mark.root, needs("setpriv", "unshare", "nsenter")]
NAME = "base-container"
FIRST = 100_000
"""The root of the user namespaces, which have the ids from here on."""
STRANGER = 4001


@pytest.fixture
def many() -> Iterator[User]:
    """The root of a user namespace with 1000 ids."""
    yield from start(FIRST, 1000)


@pytest.fixture(params=[1, 1000, 65536])
def contained(request: pytest.FixtureRequest) -> Iterator[User]:
    """The root of a user namespace, alone in it or with other ids."""
    yield from start(FIRST, request.param)


def test_many_owners(many: User) -> None:
    """Owners are kept through copy-up, commit and remount, as the numbers that they are outside."""
    tree, mnt = many.directory / "tree", many.directory / "mnt"
    ids = (0, 1, 65, 999)
    tree.mkdir()
    mnt.mkdir()
    for number in ids:
        (tree / f"dir{number}").mkdir()
        (tree / f"dir{number}/file").write_text("content")
        (tree / f"dir{number}/link").symlink_to("file")
        give(tree / f"dir{number}", FIRST + number)
    (tree / "dir65/file").chmod(0o4750)
    for path in (many.directory, tree, mnt):
        os.chown(path, FIRST, FIRST)
    many.ok("import", tree, "base")
    many.ok("mount", "--image", "base", "--name", NAME, mnt)

    def owners() -> None:
        for number in ids:
            for path in (f"dir{number}", f"dir{number}/file", f"dir{number}/link"):
                st = os.lstat(path)
                assert (st.st_uid, st.st_gid) == (number, number), path

    def change() -> None:
        for number in ids:
            os.utime(f"dir{number}/file", ns=(1, 1))
            os.utime(f"dir{number}/link", ns=(1, 1), follow_symlinks=False)
            os.setxattr(f"dir{number}", "user.note", b"x")
        Path("given").write_text("x")
        os.chown("given", 33, 44)
        os.mkdir("setgid")
        os.chown("setgid", 1, 65)
        os.chmod("setgid", 0o2775)
        Path("setgid/file").touch()

    def changed() -> None:
        owners()
        assert (os.stat("given").st_uid, os.stat("given").st_gid) == (33, 44)
        assert (os.stat("setgid/file").st_uid, os.stat("setgid/file").st_gid) == (0, 65)
        assert stat.S_IMODE(os.stat("dir65/file").st_mode) == 0o4750
        assert os.stat("dir999/file").st_mtime_ns == 1

    works(many, mnt, owners, change, changed)
    (found,) = many.root.glob("layers/*/fs/given")
    assert (found.stat().st_uid, found.stat().st_gid) == (FIRST + 33, FIRST + 44)
    many.ok("commit", NAME, "changed")
    works(many, mnt, changed, lambda: os.chown("given", 1, 1), lambda: os.chown("given", 33, 44))
    many.ok("rm", "-f", NAME)
    many.ok("mount", "--image", "changed", "--name", NAME, mnt)
    works(many, mnt, changed)
    assert many.ok("verify", "changed").endswith("as its manifest says")


def test_other_users_of_the_namespace(many: User) -> None:
    """They may use the mount, and are held to its permissions."""
    stack = Stack(many)
    (stack.bottom / "dir").mkdir()
    (stack.bottom / "closed").write_text("closed")
    give(stack.directory, FIRST)
    os.chown(stack.bottom / "dir", FIRST + 5, FIRST + 5)
    mnt = stack.mount()

    def as_five() -> None:
        os.setresgid(5, 5, 5)
        os.setresuid(5, 5, 5)
        Path("dir/file").write_text("mine")
        assert errno_of(lambda: Path("closed").write_text("x")) == errno.EACCES

    works(many, mnt, as_five)
    assert (stack.upper / "dir/file").stat().st_uid == FIRST + 5


def test_redirects_in_directories_that_others_may_write_to_are_not_followed(many: User) -> None:
    """The root of a namespace has the rights of all users in it, so what one of them wrote is not obeyed."""
    stack = Stack(many)
    for path in (stack.bottom / "closed", stack.bottom / "old", stack.top / "way"):
        path.mkdir()
        (path / "inside").write_text("inside")
    os.setxattr(stack.top / "way", "user.overlay.redirect", b"/closed")
    (stack.bottom / "closed").chmod(0o700)
    give(stack.directory, FIRST)
    os.chown(stack.top / "way", FIRST + 5, FIRST + 5)
    mnt = stack.mount()

    def look() -> None:
        assert errno_of(lambda: os.listdir("way")) == errno.EPERM
        assert errno_of(lambda: os.rename("old", "new")) == errno.EXDEV  # as the kernel's overlayfs there

    works(many, mnt, look)


def test_what_only_layerfs_writes_to_is_followed(many: User) -> None:
    """Renamed directories of an image are there again after a commit and a remount."""
    tree, mnt = many.directory / "tree", many.directory / "mnt"
    (tree / "old").mkdir(parents=True)
    (tree / "old/inside").write_text("inside")
    mnt.mkdir()
    give(tree, FIRST)
    os.chown(mnt, FIRST, FIRST)
    many.ok("import", tree, "base")
    many.ok("mount", "--image", "base", "--name", NAME, mnt)

    def look() -> None:
        assert os.listdir() == ["new"]
        assert Path("new/inside").read_text() == "inside"

    works(many, mnt, lambda: os.rename("old", "new"), lambda: os.chown("new", 5, 5), look)
    many.ok("umount", NAME)
    many.ok("mount", "--name", NAME, mnt)
    works(many, mnt, look)
    many.ok("commit", NAME, "changed")
    many.ok("rm", "-f", NAME)
    many.ok("mount", "--image", "changed", "--name", NAME, mnt)
    works(many, mnt, look)


def append(path: str) -> None:
    """Write to the end of a file, and wait until that has happened."""
    with open(path, "ab", buffering=0) as file:
        file.write(b"x")
        os.fsync(file)


ACTIONS: dict[str, Callable[[], object]] = {
    "owner": lambda: check((os.stat("strange").st_uid, os.stat("strange").st_gid) == (NOBODY, NOBODY)),
    "read": lambda: Path("strange").read_text(),
    "list": lambda: os.listdir("strange-dir"),
    "write": lambda: Path("strange").write_text("x"),
    "append": lambda: append("strange-open"),
    "truncate": lambda: os.truncate("strange-open", 0),
    "chmod": lambda: os.chmod("strange", 0o777),
    "chown": lambda: os.chown("strange", 0, 0),
    "utime": lambda: os.utime("strange", ns=(1, 1)),
    "touch": lambda: os.utime("strange-open"),
    "setxattr": lambda: os.setxattr("strange-open", "user.note", b"x"),
    "link": lambda: os.link("strange", "linked"),
    "create": lambda: Path("strange-dir/new").touch(),
    "mkdir": lambda: os.mkdir("strange-dir/new"),
    "unlink in": lambda: os.unlink("strange-dir/mapped"),
    "chmod in": lambda: os.chmod("strange-dir/mapped", 0o600),
    "write in": lambda: Path("strange-dir/mapped").write_text("x"),
    "move out": lambda: os.rename("strange-dir/mapped", "out"),
    "move in": lambda: os.rename("mapped", "strange-dir/in"),
    "rename": lambda: os.rename("strange", "renamed"),
    "rename link": lambda: os.rename("strange-link", "renamed-link"),
    "rename directory": lambda: os.rename("strange-dir", "renamed-dir"),
    "give away": lambda: os.chown("mapped", 200_000, -1),
}


def check(true: bool) -> None:
    """Fail when *true* is not."""
    assert true


def test_owners_that_are_not_mapped(contained: User) -> None:
    """What belongs to nobody in the namespace is refused as by the kernel's overlayfs, and stays as it is."""
    stacks = []
    for name in ("layerfs", "kernel"):
        stack = Stack(contained)
        stack.directory = contained.directory / name
        for part in ("top", "bottom", "upper", "work", "mnt"):
            path = stack.directory / part
            path.mkdir(parents=True)
            setattr(stack, part, path)
        for directory in ("strange-dir", "strange-empty"):
            (stack.bottom / directory).mkdir()
        for file in ("mapped", "strange-dir/mapped", "strange", "strange-open"):
            (stack.bottom / file).write_text(file)
        (stack.bottom / "strange-open").chmod(0o666)
        (stack.bottom / "strange-dir").chmod(0o777)
        (stack.bottom / "strange-link").symlink_to("mapped")
        give(stack.directory, FIRST)
        for path in stack.bottom.iterdir():
            if path.name.startswith("strange"):
                os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
        stacks.append(stack)
    layerfs, kernel = stacks
    layerfs.mount()
    options = f"lowerdir={kernel.top}:{kernel.bottom},upperdir={kernel.upper},workdir={kernel.work}"
    contained.program("mount", "-t", "overlay", "-o", f"{options},userxattr", "overlay", kernel.mnt)
    answers = {
        label: [errno.errorcode.get(contained.do(action, where=stack.mnt), "ok") for stack in stacks]
        for label, action in ACTIONS.items()
        if label != "rename link" or contained.ids <= NOBODY  # whose owner may be nobody, in truth
    }
    # Which errno it is, is often not for layerfs to say: the kernel refuses for FUSE before it asks.
    wrong = [
        f"{label}: layerfs {ours}, kernel {kernels}"
        for label, (ours, kernels) in answers.items()
        if ours != kernels and ("ok" in (ours, kernels) or ours not in ("EACCES", "EPERM", "EOVERFLOW"))
    ]
    assert not wrong, "\n".join(wrong)
    listings = [contained.program("find", stack.mnt, "-printf", "%P %M %U %G\\n") for stack in stacks]
    assert sorted(listings[0].splitlines()) == sorted(listings[1].splitlines())
    for stack in stacks:
        owners = {path.lstat().st_uid for path in stack.upper.rglob("*")}
        assert owners <= {FIRST, STRANGER}
    # Removing them is the kernel's to refuse: may_delete() in fs/namei.c, which overlayfs passes.
    expected = 0 if contained.ids > NOBODY else errno.EOVERFLOW
    for remove in (lambda: os.unlink("strange"), lambda: os.rmdir("strange-empty")):
        assert contained.do(remove, where=layerfs.mnt) == expected
