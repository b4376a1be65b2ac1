"""Programs that move and keep whole trees: tar, rsync, git. On a mount they do as on a plain directory."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Stack
from tests.system.programs import needs, run

pytestmark = pytest.mark.root
NET_BIND_SERVICE = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""The attribute `security.capability`, revision 2, for cap_net_bind_service=ep (linux/capability.h)."""
ACL = struct.pack("<IHHIHHIHHIHHIHHI", 2, 1, 6, -1 & 0xFFFFFFFF, 2, 7, 4001, 4, 4, -1 & 0xFFFFFFFF,
                  0x10, 7, -1 & 0xFFFFFFFF, 0x20, 0, -1 & 0xFFFFFFFF)  # fmt: skip
"""The attribute `system.posix_acl_access`: user::rw-, user:4001:rwx, group::r--, mask::rwx, other::---."""


def make_tree(top: Path) -> Path:
    """Make a tree with everything in it that an archive can hold; return it."""
    for directory in ("dir/deep/deeper", "empty", "set-gid"):
        (top / directory).mkdir(parents=True)
    (top / "set-gid").chmod(0o3775)
    (top / "file").write_bytes(b"content\n" * 5000)
    (top / "dir/deep/deeper/small").write_text("small")
    (top / "nothing").touch()
    (top / "dir" / ("n" * 200)).write_text("a long name")
    (top / "odd \\ \n\udcff name").write_text("an odd name")
    with (top / "sparse").open("wb") as file:
        for offset in (1 << 20, 3 << 20):
            file.seek(offset)
            file.write(b"island" * 1000)
        file.truncate(8 << 20)
    for name in ("link", "dir/link", "dir/deep/link"):
        os.link(top / "file", top / name)
    (top / "symlink").symlink_to("dir/deep")
    (top / "dangling").symlink_to("/nowhere/" + "far/" * 40)
    os.link(top / "dangling", top / "dir/dangling", follow_symlinks=False)
    os.mkfifo(top / "fifo")
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o640, os.makedev(250, 259))
    shutil.copy("/usr/bin/id", top / "program")
    os.chown(top / "program", 4001, 4002)
    (top / "program").chmod(0o6755)
    (top / "capable").write_text("#!/bin/sh\n")
    os.setxattr(top / "capable", "security.capability", NET_BIND_SERVICE)
    os.setxattr(top / "dir", "user.note", b"\x00\xff")
    os.setxattr(top / "file", "trusted.note", b"trusted")
    os.setxattr(top / "nothing", "system.posix_acl_access", ACL)
    os.chown(top / "symlink", 4003, 4003, follow_symlinks=False)
    os.chown(top / "dir/deep", 4001, 0)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number), follow_symlinks=False)
    os.utime(top, ns=(1, 10**18 + 123456789))
    return top


def archive(directory: Path) -> bytes:
    """Return the archive of *directory* that tar makes, without what no copy can keep."""
    options = ["--sort=name", "--format=pax", "--xattrs", "--xattrs-include=*", "--acls"]
    pax = "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"
    done = subprocess.run(
        ["tar", *options, "--sparse", "--sparse-version=0.0", "--hole-detection=raw", pax, "-cf", "-", "."],
        cwd=directory,
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def unpack(content: bytes, target: Path) -> Path:
    """Unpack an archive into the new directory *target*; return it."""
    target.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--acls", "--same-owner", "-p"]
    done = subprocess.run(
        ["tar", *options, "-xf", "-"], cwd=target, input=content, capture_output=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return target


def copy_of(source: Path, target: Path) -> Path:
    """Copy a tree with all that is in it to *target*, which exists; return it."""
    run("cp", "-a", "--sparse=always", f"{source}/.", target)
    return target


class TestTar:
    """A whole tree, compared bit for bit."""

    def test_out_of_the_mount(self, stack: Stack) -> None:
        copy_of(make_tree(stack.directory / "plain"), stack.bottom)
        plain = archive(stack.bottom)
        shutil.copystat(stack.bottom, stack.upper)
        mnt = stack.mount()
        assert archive(mnt) == plain
        for path in mnt.rglob("*"):
            st = path.lstat()
            os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)
        assert (stack.upper / "file").exists(), "all has been copied up"
        assert archive(mnt) == plain
        stack.commit()
        assert archive(stack.remount()) == plain
        assert archive(stack.bottom) == plain

    def test_into_the_mount(self, stack: Stack) -> None:
        content = archive(make_tree(stack.directory / "plain"))
        plain = archive(unpack(content, stack.directory / "unpacked"))
        mnt = stack.mount()
        assert archive(unpack(content, mnt / "unpacked")) == plain
        blocks = (mnt / "unpacked/sparse").stat().st_blocks
        assert blocks == (stack.directory / "unpacked/sparse").stat().st_blocks
        assert archive(stack.remount() / "unpacked") == plain
        assert archive(stack.upper / "unpacked") == plain

    def test_over_what_is_there(self, stack: Stack) -> None:
        """Each object takes the place of one of a lower layer, of its own or of another type."""
        content = archive(make_tree(stack.directory / "plain"))
        old = copy_of(stack.directory / "plain", stack.bottom)
        (old / "file").unlink()
        (old / "file").symlink_to("elsewhere")
        (old / "symlink").unlink()
        (old / "symlink").write_text("old")
        (old / "empty").rmdir()
        (old / "empty").write_text("old")
        (old / "nothing").write_text("not nothing")
        mnt = stack.mount()
        done = subprocess.run(
            ["tar", "--xattrs", "--xattrs-include=*", "--acls", "-p", "-xf", "-"],
            cwd=mnt, input=content, capture_output=True, timeout=50, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert archive(mnt) == content
        assert archive(stack.remount()) == content


@needs("rsync")
class TestRsync:
    """rsync -aHAX, by which backups are made."""

    def differences(self, source: Path, target: Path) -> str:
        """Return what rsync would do to make *target* equal to *source*, contents compared."""
        options = ["-aHAXn", "--checksum", "--delete", "--itemize-changes", "--devices", "--specials"]
        return run("rsync", *options, f"{source}/", f"{target}/")

    def test_into_and_out_of_the_mount(self, stack: Stack) -> None:
        plain = make_tree(stack.directory / "plain")
        mnt = stack.mount()
        run("rsync", "-aHAXS", f"{plain}/", f"{mnt}/copy/")
        assert archive(mnt / "copy") == archive(plain)
        back = stack.directory / "back"
        run("rsync", "-aHAXS", f"{stack.remount()}/copy/", f"{back}/")
        assert archive(back) == archive(plain)
        assert self.differences(mnt / "copy", plain) == ""

    def test_bringing_a_lower_tree_up_to_date(self, stack: Stack) -> None:
        plain = make_tree(stack.directory / "plain")
        copy_of(plain, stack.bottom)
        (plain / "file").write_text("changed")  # all four of its names
        (plain / "dir/deep/deeper/small").unlink()
        (plain / "dir/deep").rename(plain / "dir/moved")
        shutil.rmtree(plain / "set-gid")
        (plain / "new").write_text("new")
        (plain / "capable").chmod(0o700)
        for changed in (plain, plain / "dir", plain / "dir/moved", plain / "dir/moved/deeper"):
            os.utime(changed, ns=(10**18, 10**18))  # rsync does not mind less than a second's difference
        mnt = stack.mount()
        run("rsync", "-aHAX", "--delete", f"{plain}/", f"{mnt}/")
        assert self.differences(plain, mnt) == ""
        assert archive(stack.remount()) == archive(plain)


@needs("git")
def test_git(stack: Stack) -> None:
    """A repository in a lower layer, worked in; and a clone of it, which shares objects by hard links."""
    settings = {"HOME": str(stack.directory), "GIT_CONFIG_NOSYSTEM": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        settings |= {f"GIT_{role}_NAME": "A U Thor", f"GIT_{role}_EMAIL": "author@example.org"}

    def git(directory: Path, *arguments: str) -> str:
        return run("git", "-C", directory, *arguments, variables=settings)

    def commit(directory: Path, number: int) -> None:
        for name in ("one", "two", f"sub/{number % 3}/file{number}"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            with (directory / name).open("a") as file:
                file.write(f"line {number}\n" * 20)
        git(directory, "add", "-A")
        git(directory, "commit", "-q", "-m", f"commit {number}")

    lower = stack.bottom / "repository"
    lower.mkdir()
    git(lower, "init", "-q", "-b", "main")
    for number in range(3):
        commit(lower, number)
    mnt = stack.mount()
    repository, clone = mnt / "repository", mnt / "clone"
    for number in range(3, 6):
        commit(repository, number)
    git(mnt, "clone", "-q", "repository", "clone")
    git(clone, "checkout", "-q", "-b", "work")
    commit(clone, 6)
    stack.commit()
    git(clone, "gc", "-q", "--prune=now")
    git(repository, "pull", "-q", "--no-edit", "../clone", "work")
    git(repository, "checkout", "-q", "HEAD~2")
    git(repository, "checkout", "-q", "main")
    git(repository, "gc", "-q", "--aggressive", "--prune=now")
    stack.remount()
    for directory in (repository, clone):
        assert "dangling" not in git(directory, "fsck", "--full", "--strict")
        assert git(directory, "status", "--porcelain") == ""
    heads = [git(repository, "rev-parse", "main"), git(clone, "rev-parse", "work")]
    assert heads[0] == heads[1]
    assert git(repository, "rev-list", "--count", "main") == "7\n"
    assert git(lower, "rev-list", "--count", "main") == "3\n"
