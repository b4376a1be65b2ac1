"""Mounting as mount(8) does: `layerfs SOURCE MOUNTPOINT -o ...`, mount.fuse3(8), and mount(8) itself."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from layerfs.host.mounttable import mounted_at
from tests.conftest import Layerfs, Stack, errno_of, mounts_below, wait_until

pytestmark = pytest.mark.root


def escaped(path: Path) -> str:
    """Return *path* as a part of lowerdir: backslashes, colons and commas escaped, as overlayfs has it."""
    text = str(path).replace("\\", "\\\\")
    return text.replace(":", "\\:").replace(",", "\\,")


def fill(stack: Stack) -> None:
    """Put a file into each layer."""
    (stack.top / "both").write_text("top")
    (stack.bottom / "both").write_text("bottom")
    (stack.bottom / "below").write_text("bottom")


class Mounter:
    """Mounts by calling the command, or the helper that calls it when it finds it on its path."""

    def __init__(self, layerfs: Layerfs, way: str) -> None:
        self.layerfs = layerfs
        self.way = way
        self.commands = layerfs.directory / "commands"
        self.commands.mkdir()
        program = self.commands / "layerfs"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(layerfs.words)} "$@"\n')
        program.chmod(0o755)

    def __call__(self, options: str, mountpoint: Path) -> subprocess.CompletedProcess[str]:
        """Mount on *mountpoint* with *options*."""
        if self.way == "layerfs":
            return self.layerfs("none", mountpoint, "-o", options)
        return subprocess.run(
            ["mount.fuse3", "none", mountpoint, "-t", "fuse.layerfs", "-o", options],
            env={**self.layerfs.environment, "PATH": f"{self.commands}:{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def ok(self, options: str, mountpoint: Path) -> None:
        """Mount, which must work."""
        done = self(options, mountpoint)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(params=["layerfs", "mount.fuse3"])
def mounter(layerfs: Layerfs, request: pytest.FixtureRequest) -> Mounter:
    """Both ways."""
    return Mounter(layerfs, request.param)


def mount_8(layerfs: Layerfs, commands: Path, *commands_there: str, patience: float = 60) -> str:
    """Run a shell script where mount(8) finds our command; return its output.

    mount(8) looks on the system's paths alone: what is there is replaced in a namespace of its own.
    """
    own = 'test ! -e /sbin/mount.fuse.layerfs || mount --bind "$0/layerfs" /sbin/mount.fuse.layerfs'
    script = "\n".join(["set -e", 'mount --bind "$0" /usr/local/sbin', own, *commands_there])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, commands],
        env=layerfs.environment, capture_output=True, text=True, timeout=patience, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_mount_8(stack: Stack, layerfs: Layerfs) -> None:
    fill(stack)
    commands = Mounter(layerfs, "layerfs").commands
    colon = stack.directory / "a:b"
    stack.top.rename(colon)
    lowers = f"{escaped(colon)}:{stack.bottom}"
    options = f"name=one,lowerdir={lowers},upperdir={stack.upper},workdir={stack.work},nosuid"
    words = ["mount", "-t", "fuse.layerfs", "none", str(stack.mnt), "-o", options]
    mount_8(layerfs, commands, shlex.join(words))
    there = Path(f"/proc/{layerfs.pid('one')}/root{stack.mnt}")
    assert (there / "both").read_text() == "top"
    (there / "below").write_text("written")
    layerfs.ok("umount", "one")
    assert (stack.upper / "below").read_text() == "written"


def test_mount_a_recognises_what_is_mounted_already(stack: Stack, layerfs: Layerfs) -> None:
    """mount(8) compares the source and the place in fstab with the mount table."""
    fill(stack)
    commands = Mounter(layerfs, "layerfs").commands
    lowers = f"lowerdir={stack.bottom},upperdir={stack.upper},workdir={stack.work}"
    table = stack.directory / "fstab"
    table.write_text(f"some-source {stack.mnt} fuse.layerfs name=fstab,{lowers} 0 0\n")
    every, mnt = f"mount -a -T {table}", shlex.quote(str(stack.mnt))
    shown = mount_8(
        layerfs,
        commands,
        *(every, every),
        f"findmnt -n -o SOURCE {mnt}",
        f"mount -T {table} -o remount,ro {mnt}",
        f"findmnt -n -o OPTIONS {mnt}",
        f"mount -o remount,rw {mnt}",
        f"findmnt -n -o OPTIONS {mnt}",
        f"umount {mnt}",
    )
    source, read_only, writable = shown.splitlines()
    assert source == "some-source"
    assert "ro" in read_only.split(",")
    assert "rw" in writable.split(",")


def test_a_source_of_any_form_is_shown_as_it_was_given(stack: Stack, layerfs: Layerfs) -> None:
    for source in ("none", "layerfs", "/dev/a b", "with,comma", "back\\slash"):
        layerfs.ok(source, stack.mnt, "-o", f"lowerdir={stack.bottom}")
        there = mounted_at(str(stack.mnt))
        assert there is not None
        assert there.source == source
        subprocess.run(["umount", stack.mnt], check=True, timeout=60)


def test_the_first_lower_directory_is_the_topmost(stack: Stack, mounter: Mounter) -> None:
    fill(stack)
    mounter.ok(f"lowerdir={stack.top}:{stack.bottom},upperdir={stack.upper},workdir={stack.work}", stack.mnt)
    assert (stack.mnt / "both").read_text() == "top"
    assert sorted(os.listdir(stack.mnt)) == ["below", "both"]
    (stack.mnt / "below").write_text("written")
    assert (stack.upper / "below").read_text() == "written"


def test_without_an_upper_it_is_read_only(stack: Stack, mounter: Mounter) -> None:
    fill(stack)
    mounter.ok(f"lowerdir={stack.top}:{stack.bottom}", stack.mnt)
    assert errno_of((stack.mnt / "new").touch) == errno.EROFS
    assert os.statvfs(stack.mnt).f_flag & os.ST_RDONLY


def test_ro_with_an_upper(stack: Stack, mounter: Mounter) -> None:
    fill(stack)
    mounter.ok(
        f"ro,lowerdir={stack.top}:{stack.bottom},upperdir={stack.upper},workdir={stack.work}", stack.mnt
    )
    assert errno_of((stack.mnt / "new").touch) == errno.EROFS


def test_colons_in_paths(stack: Stack, mounter: Mounter) -> None:
    fill(stack)
    odd = stack.directory / "a:b:c"
    stack.top.rename(odd)
    mounter.ok(f"lowerdir={escaped(odd)}:{stack.bottom}", stack.mnt)
    assert (stack.mnt / "both").read_text() == "top"


def test_commas_and_backslashes_in_paths(layerfs: Layerfs, stack: Stack) -> None:
    """Given to the command itself: mount.fuse3(8) has rules of its own for these."""
    fill(stack)
    odd = stack.directory / "a,b\\c:d"
    stack.top.rename(odd)
    Mounter(layerfs, "layerfs").ok(f"lowerdir={escaped(odd)}:{stack.bottom}", stack.mnt)
    assert (stack.mnt / "both").read_text() == "top"


def test_options_of_the_mount(stack: Stack, mounter: Mounter) -> None:
    mounter.ok(f"lowerdir={stack.top}:{stack.bottom},nosuid,nodev,noexec,noatime", stack.mnt)
    flags = os.statvfs(stack.mnt).f_flag
    for flag in (os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC):
        assert flags & flag


def test_a_name_and_mounting_again(stack: Stack, mounter: Mounter, layerfs: Layerfs) -> None:
    options = f"name=fstab,lowerdir={stack.bottom},upperdir={stack.upper},workdir={stack.work},nofail,_netdev"
    for turn in range(2):  # as at every start of the machine
        mounter.ok(options, stack.mnt)
        assert len(os.listdir(stack.mnt)) == turn
        (stack.mnt / f"turn-{turn}").touch()
        layerfs.ok("umount", "fstab")
    assert mounts_below(layerfs.directory) == []


def test_a_mount_made_again_has_the_options_it_is_asked_for_now(
    stack: Stack, mounter: Mounter, layerfs: Layerfs
) -> None:
    options = f"name=fstab,lowerdir={stack.bottom},upperdir={stack.upper},workdir={stack.work}"
    limits = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    for added, flags in (("", 0), (",nosuid,nodev,noexec", limits), (",nosuid", os.ST_NOSUID), ("", 0)):
        mounter.ok(options + added, stack.mnt)
        assert os.statvfs(stack.mnt).f_flag & limits == flags
        layerfs.ok("umount", "fstab")
    mounter.ok(options + ",nosuid", stack.mnt)
    layerfs.ok("umount", "fstab")
    layerfs.ok("mount", "--name", "fstab", stack.mnt)  # by its name alone: as it was
    assert os.statvfs(stack.mnt).f_flag & limits == os.ST_NOSUID


def test_an_option_that_is_refused_leaves_the_mount_as_it_was(
    stack: Stack, mounter: Mounter, layerfs: Layerfs
) -> None:
    options = f"name=fstab,lowerdir={stack.bottom},upperdir={stack.upper},workdir={stack.work}"
    mounter.ok(options + ",noexec", stack.mnt)
    layerfs.ok("umount", "fstab")
    assert "userxattr" in mounter(options + ",userxattr", stack.mnt).stderr  # its marks are root's
    layerfs.ok("mount", "--name", "fstab", stack.mnt)
    assert os.statvfs(stack.mnt).f_flag & os.ST_NOEXEC


def test_an_image(stack: Stack, mounter: Mounter, layerfs: Layerfs) -> None:
    fill(stack)
    layerfs.ok("import", stack.bottom, "base:1")
    mounter.ok("image=base:1,name=from-image", stack.mnt)
    assert (stack.mnt / "both").read_text() == "bottom"


def test_umount_8_ends_the_daemon(stack: Stack, mounter: Mounter, layerfs: Layerfs) -> None:
    mounter.ok(f"name=one,lowerdir={stack.bottom},upperdir={stack.upper},workdir={stack.work}", stack.mnt)
    (stack.mnt / "new").write_text("x" * 100_000)
    subprocess.run(["umount", stack.mnt], check=True, timeout=20)
    wait_until(lambda: not layerfs.processes())
    assert not layerfs.socket("one").exists()
    assert "Exited" in layerfs.ok("ps", "-a")
    assert (stack.upper / "new").read_text() == "x" * 100_000


def test_what_is_wrong_is_said(stack: Stack, mounter: Mounter) -> None:
    for options, words in (
        ("lowerdir=", "needs a value"),
        (f"lowerdir={stack.top}::{stack.bottom}", "empty"),
        (f"lowerdir={stack.top}/missing", "missing"),
        (f"lowerdir={stack.top},upperdir={stack.upper}", "together"),
        (f"lowerdir={stack.top},nonsense", "nonsense"),
        ("ro", "nothing to mount"),
    ):
        done = mounter(options, stack.mnt)
        assert done.returncode != 0
        assert words in done.stderr
        assert mounts_below(stack.directory) == []


@pytest.mark.parametrize("end", ["umount", "layerfs umount", "killed", "rm", "killed and rm"])
def test_nothing_is_left_in_the_run_directory(stack: Stack, layerfs: Layerfs, end: str) -> None:
    fill(stack)
    named = ("--name", "kept") if "rm" in end else ()
    made = layerfs.ok("mount", "--lower", stack.top, *named, stack.mnt)
    name = made or "kept"
    assert {f"{name}.lock", f"{name}.log"} <= set(os.listdir(layerfs.run))
    if "killed" in end:
        layerfs.kill(name)
    if "rm" in end:
        layerfs.ok("rm", "-f", name)
    else:
        layerfs.ok("umount", name) if end != "umount" else subprocess.run(["umount", stack.mnt], check=True)
    wait_until(lambda: not os.listdir(layerfs.run))
    wait_until(lambda: not layerfs.processes())
