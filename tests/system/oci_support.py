"""Images with all that a filesystem can hold, changed in every way that a mount allows, and other tools."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from tests.conftest import Layerfs
from tests.fuse.oracle import snapshot

NAME = "work"
NEVER = 1 << 63
CAPABILITY = b"\x01\0\0\x02\0\x20" + bytes(14)
ACL = bytes.fromhex(
    "0200000001000700ffffffff0200060001000000040005 00ffffffff10000700ffffffff20000500ffffffff".replace(
        " ", ""
    )
)
LONG = "a-name-of-some-length-" * 10
NOT_TEXT = os.fsdecode(b"not \xff\xfe text\n=%3D\\")
TOOL_PATIENCE = 50


def make_everything(tree: Path, *, odd: bool = True) -> Path:
    """Fill *tree* with one of everything; return it.

    *odd* are attributes that tools written in Go cannot put into an archive.
    """
    for name in (
        "etc",
        "bin",
        f"deep/{LONG}/{LONG}",
        "moves/inner",
        "replaced",
        "emptied/with",
        "dev",
        "big",
    ):
        (tree / name).mkdir(parents=True)
    for name in (
        "etc/passwd",
        "etc/group",
        "moves/a",
        "moves/b",
        "moves/inner/c",
        "moves/inner/d",
        "replaced/old",
    ):
        (tree / name).write_text(f"this is {name}\n")
    for name in (
        "emptied/one",
        "emptied/with/two",
        "gone",
        "becomes-a-directory",
        f"deep/{LONG}/{LONG}/file",
    ):
        (tree / name).write_text(name)
    (tree / "becomes-a-file").mkdir()
    (tree / "becomes-a-file/inside").touch()
    os.link(tree / "moves/a", tree / "moves/inner/linked")
    (tree / "bin/su").write_bytes(b"\x7fELF" + b"\0" * 10_000 + b"end")
    (tree / "bin/su").chmod(0o4755)
    os.link(tree / "bin/su", tree / "bin/sudo")
    (tree / "bin/ping").write_bytes(b"\x7fELF")
    os.setxattr(tree / "bin/ping", "security.capability", CAPABILITY)
    os.chown(tree / "etc/group", 3_000_000, 4_000_000_000)
    os.setxattr(tree / "etc/passwd", "user.note", b"\0\xff\n=")
    if odd:
        os.setxattr(tree / "etc/passwd", "user.a=b%3D%25c", b"odd")
        os.setxattr(tree / "etc/passwd", "user.empty", b"")
    os.setxattr(tree / "etc", "trusted.note", b"1")
    os.setxattr(tree / "etc/group", "system.posix_acl_access", ACL)
    os.setxattr(tree / "etc", "system.posix_acl_default", ACL)
    (tree / "lib").symlink_to("usr/lib")
    (tree / "far").symlink_to("/" + LONG + "/x")
    os.lchown(tree / "lib", 12, 34)
    os.mkfifo(tree / "dev/pipe", 0o620)
    os.mknod(tree / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "dev/disk", stat.S_IFBLK | 0o660, os.makedev(259, 1_048_575))
    (tree / NOT_TEXT).write_text("odd")
    (tree / "Case").write_text("upper")
    (tree / "case").write_text("lower")
    (tree / "caf\u00e9").write_text("composed")
    (tree / "cafe\u0301").write_text("decomposed")
    with (tree / "big/sparse").open("wb") as sparse:
        sparse.seek(5 << 20)
        sparse.write(b"middle")
        sparse.truncate(9 << 20)
    (tree / "big/solid").write_bytes(os.urandom(3_000_001))
    (tree / "big/empty").touch()
    tree.chmod(0o751)
    times = [1_600_000_000_123_456_789, 1_234_567_890, 5_000_000_000 * 10**9, 2_000_000_000 * 10**9]
    paths = sorted(tree.rglob("*"), key=lambda path: (-len(path.parts), path))
    for number, path in enumerate(path for path in paths if path.name not in ("ping", "group")):
        os.utime(path, ns=(1, times[number % 4] + number), follow_symlinks=False)
    os.utime(tree, ns=(1, 1_400_000_000_000_000_001))
    return tree


def change_much(mnt: Path) -> None:
    """Change a mount of that in every way that makes a layer look different."""
    (mnt / "gone").unlink()
    shutil.rmtree(mnt / "emptied")
    (mnt / "emptied").mkdir()
    (mnt / "emptied/new").write_text("new")
    (mnt / "becomes-a-directory").unlink()
    (mnt / "becomes-a-directory").mkdir()
    (mnt / "becomes-a-directory/x").touch()
    shutil.rmtree(mnt / "becomes-a-file")
    (mnt / "becomes-a-file").write_text("file")
    (mnt / "moves/b").unlink()
    (mnt / "moves/inner/d").write_text("changed before the move")
    (mnt / "moves").rename(mnt / "moved")
    (mnt / "moved/inner").rename(mnt / "moved/inward")
    (mnt / "moved/added").write_text("added after the move")
    (mnt / "replaced/old").rename(mnt / "replaced/renamed")
    (mnt / "etc/passwd").chmod(0o600)
    os.setxattr(mnt / "etc/passwd", "trusted.overlay.mine", b"escaped")
    (mnt / "bin/sudo").write_bytes(b"changed through one of two names")
    os.mknod(mnt / "socket", stat.S_IFSOCK | 0o600)


def change_more(mnt: Path) -> None:
    """Change what has been changed, in a layer above."""
    (mnt / "moved").rename(mnt / "replaced/moved again")
    (mnt / "replaced/moved again/inward/c").unlink()
    (mnt / "moved").mkdir()
    (mnt / "moved/other").write_text("another one")
    (mnt / "etc/passwd").chmod(0o640)
    os.truncate(mnt / "big/sparse", 12 << 20)


class Images:
    """A store with the image `all:2`, of three layers, made by committing a mount."""

    def __init__(self, layerfs: Layerfs, *options: str) -> None:
        self.layerfs = layerfs
        self.directory = layerfs.directory
        tree = self.directory / "tree"
        tree.mkdir()
        layerfs.ok("import", make_everything(tree), "all:0", "-c", 'CMD ["sh"]', "-c", "ENV A=b")
        mnt = self.directory / "mnt"
        mnt.mkdir()
        layerfs.ok("mount", "--image", "all:0", "--name", NAME, *options, mnt)
        change_much(mnt)
        layerfs.ok("commit", NAME, "all:1")
        change_more(mnt)
        layerfs.ok("commit", "-m", "more", "-c", "LABEL x=y", NAME, "all:2")
        self.expected = snapshot.take(os.fsencode(mnt), NEVER, kernel=False)
        del self.expected[b"socket"]  # which no archive can hold
        layerfs.ok("rm", "-f", NAME)


def another(layerfs: Layerfs, name: str = "another") -> Layerfs:
    """Return the command line on another store of the same test."""
    other = Layerfs(layerfs.directory)
    other.root = layerfs.directory / name
    other.environment["LAYERFS_ROOT"] = str(other.root)
    return other


def view(layerfs: Layerfs, image: str, name: str) -> snapshot.Snapshot:
    """Return what an image looks like when it is mounted."""
    mnt = layerfs.directory / f"view-{name}"
    mnt.mkdir()
    layerfs.ok("mount", "--image", image, "--name", name, "--read-only", mnt)
    try:
        return snapshot.take(os.fsencode(mnt), NEVER, kernel=False)
    finally:
        layerfs.ok("rm", "-f", name)


def assert_same(one: snapshot.Snapshot, two: snapshot.Snapshot) -> None:
    """Compare two trees in every attribute."""
    lines = snapshot.differences(one, two)
    assert not lines, "\n".join(lines)


def tool(*words: str | os.PathLike[str]) -> str:
    """Run another tool; return what it prints."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TOOL_PATIENCE, check=False
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout
