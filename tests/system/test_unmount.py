"""Unmounting what is ours, and nothing else; every wait for a daemon ends, and says what it waited for."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Layerfs, Stack, errno_of, mounts_below, wait_until
from tests.system.containers import Containers, containers
from tests.system.namespaces import IN_USE, commit, has_ended
from tests.system.programs import needs

pytestmark = pytest.mark.root
ROUNDS = 25


def run(*command: str | Path) -> None:
    """Run a program, which must work."""
    subprocess.run(command, check=True, timeout=PATIENCE)


# -- what is in use -----------------------------------------------------------------------------------


def test_a_busy_mount_names_the_process_that_uses_it(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    with subprocess.Popen(["sleep", "60"], cwd=mnt) as process:
        try:
            said = layerfs.refused("umount", stack.name)
            assert f"{mnt} is busy: process {process.pid} (sleep) has its working directory there" in said
        finally:
            process.kill()
    with (mnt / "open").open("w"):
        said = layerfs.refused("umount", stack.name)
        assert f"process {os.getpid()} (" in said
        assert "has a file open there" in said
    layerfs.ok("umount", stack.name)


def test_a_mount_with_another_below_it_says_which(stack: Stack, layerfs: Layerfs) -> None:
    layerfs.expect_log(*IN_USE)
    mnt = stack.mount()
    (mnt / "inner").mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", mnt / "inner")
    assert f"{mnt} is busy: {mnt}/inner is mounted below it" in layerfs.refused("umount", stack.name)
    layerfs.ok("umount", "--force", stack.name)
    assert mounts_below(layerfs.directory) == []


def test_what_is_written_to_a_busy_mount_is_kept(stack: Stack, layerfs: Layerfs) -> None:
    layerfs.expect_log(*IN_USE)
    mnt = stack.mount()
    with (mnt / "open").open("wb", buffering=0) as file:
        file.write(b"x" * 1_000_000)
        layerfs.ok("umount", "--force", stack.name)
    assert (stack.upper / "open").read_bytes() == b"x" * 1_000_000


def test_a_mount_whose_removal_fails_at_the_store_is_one_that_was_unmounted(layerfs: Layerfs) -> None:
    """Not one whose daemon seems to have been killed."""
    tree, mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
    tree.mkdir()
    mnt.mkdir()
    layerfs.ok("import", tree, "a:1")
    layerfs.ok("mount", "--name", "m", "--image", "a:1", mnt)
    (mnt / "new").touch()
    with closing(sqlite3.connect(layerfs.root / "layerfs.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert "another process is writing" in layerfs.refused("rm", "-f", "m")
        writer.execute("ROLLBACK")
    wait_until(lambda: layerfs("commit", "m", "b:1").returncode == 0)
    layerfs.ok("rm", "m")


def test_writes_to_a_mount_that_was_taken_away_fail(stack: Stack, layerfs: Layerfs) -> None:
    """The kernel would take them, and lose them."""
    layerfs.expect_log(*IN_USE)
    mnt = stack.mount()
    with (mnt / "open").open("wb", buffering=0) as file, (mnt / "other").open("wb", buffering=0) as other:
        file.write(b"x")
        other.write(b"x")
        layerfs.ok("umount", "--force", stack.name)
        assert errno_of(lambda: file.write(b"y")) in (errno.ENOTCONN, errno.ECONNABORTED)
        assert errno_of(lambda: other.write(b"y")) in (errno.ENOTCONN, errno.ECONNABORTED)


def test_a_mount_that_is_bound_elsewhere_is_refused_and_forced(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    bound = stack.directory / "bound"
    bound.mkdir()
    run("mount", "--bind", mnt, bound)
    said = layerfs.refused("umount", stack.name)
    assert f"{stack.name} is mounted on {mnt} and {bound}" in said
    assert mounts_below(layerfs.directory) == [bound, mnt]
    layerfs.ok("umount", "--force", stack.name)
    assert mounts_below(layerfs.directory) == []


def test_a_mount_that_was_moved_is_unmounted_where_it_is(stack: Stack, layerfs: Layerfs) -> None:
    private = stack.directory / "private"
    (private / "before").mkdir(parents=True)
    (private / "after").mkdir()
    run("mount", "--bind", private, private)
    run("mount", "--make-private", private)
    lowers = f"lowerdir={stack.bottom},upperdir={stack.upper},workdir={stack.work}"
    layerfs.ok("none", private / "before", "-o", f"name=moved,{lowers}")
    run("mount", "--move", private / "before", private / "after")
    (private / "after/file").write_text("written")
    commit(layerfs, "moved")
    layerfs.ok("umount", "moved")
    assert mounts_below(layerfs.directory) == [private]


def test_a_mount_below_another_is_not_taken_for_gone(stack: Stack, layerfs: Layerfs) -> None:
    layerfs.expect_log("is hidden by another mount")
    mnt = stack.mount()
    run("mount", "-t", "tmpfs", "tmpfs", mnt)
    assert f"{mnt} is hidden by another mount" in layerfs.refused("umount", stack.name)
    run("umount", mnt)
    (mnt / "new").write_text("new")
    layerfs.ok("umount", stack.name)
    assert (stack.upper / "new").read_text() == "new"


# -- nothing but what is ours -------------------------------------------------------------------------


class Trap:
    """A mountpoint in a user's directory, and a filesystem that the user would like to have unmounted."""

    def __init__(self, stack: Stack) -> None:
        self.layerfs = stack.layerfs
        self.home = stack.directory / "home"
        self.mnt = self.home / "mnt"
        self.mnt.mkdir(parents=True)
        self.victim = stack.directory / "victim"
        (self.victim / "mnt").mkdir(parents=True)
        run("mount", "-t", "tmpfs", "victim", self.victim / "mnt")
        lowers = f"--lower={stack.bottom}", f"--upper={stack.upper}", f"--work={stack.work}"
        self.layerfs.ok("mount", "--name", "ours", *lowers, self.mnt)

    def spring(self) -> None:
        """Do what the owner of the directory above a home may do: put a link in its place."""
        self.home.rename(self.home.with_name("elsewhere"))
        self.home.symlink_to(self.victim)


@pytest.fixture
def trap(stack: Stack) -> Trap:
    """One that has not been sprung."""
    return Trap(stack)


@pytest.mark.parametrize("way", ["umount", "umount --force", "rm --force", "SIGTERM"])
def test_a_link_leads_no_unmount_to_another_filesystem(trap: Trap, layerfs: Layerfs, way: str) -> None:
    trap.spring()
    pid = layerfs.pid("ours")
    if way == "SIGTERM":
        os.kill(pid, signal.SIGTERM)
    else:
        assert f"no mount of this store is mounted on {trap.mnt}" in layerfs.refused("umount", trap.mnt)
        layerfs.ok(*way.split(), "ours")
    assert has_ended(layerfs, pid)
    assert mounts_below(layerfs.directory) == [trap.victim / "mnt"]


@pytest.mark.parametrize("way", ["umount", "rm --force", "mount", "mount elsewhere"])
def test_a_link_leads_no_clearing_away_to_another_filesystem(
    trap: Trap, stack: Stack, layerfs: Layerfs, way: str
) -> None:
    layerfs.kill("ours")
    trap.spring()
    words = {"mount": ["mount", "--name"], "mount elsewhere": ["mount", "--name"]}.get(way, way.split())
    layerfs.ok(*words, "ours", *([stack.mnt] if "mount" in words else []))
    assert trap.victim / "mnt" in mounts_below(layerfs.directory)


def test_a_dead_mount_is_told_by_its_filesystem_not_by_its_name(stack: Stack, layerfs: Layerfs) -> None:
    """Somebody else's filesystem that says that it is called so stays."""
    mnt = stack.mount()
    layerfs.kill(stack.name)
    run("umount", mnt)
    run("mount", "-t", "tmpfs", stack.name, mnt)
    layerfs.ok("rm", "--force", stack.name)
    assert mounts_below(layerfs.directory) == [mnt]


def test_a_link_at_the_mountpoint_is_followed_when_it_is_mounted_and_not_later(
    stack: Stack, layerfs: Layerfs
) -> None:
    link = stack.directory / "link"
    link.symlink_to(stack.mnt)
    layerfs.ok("mount", "--name", "linked", f"--lower={stack.bottom}", link)
    assert mounts_below(layerfs.directory) == [stack.mnt]
    link.unlink()
    layerfs.ok("umount", "linked")
    assert mounts_below(layerfs.directory) == []


# -- mounting again at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "same"])
def test_the_same_upper_can_be_mounted_right_after_umount_8(
    stack: Stack, layerfs: Layerfs, name: str
) -> None:
    """What podman, buildah and containerd do."""
    options = f"lowerdir={stack.bottom},upperdir={stack.upper},workdir={stack.work}"
    words = [*layerfs.words, "none", str(stack.mnt), "-o", f"{options},name={name}" if name else options]
    once = f"{shlex.join(words)} && touch $0/$number && umount $0"
    script = f"for number in $(seq {ROUNDS}); do {once} || exit; done"
    done = subprocess.run(
        ["sh", "-c", script, stack.mnt], env=layerfs.environment, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(os.listdir(stack.upper)) == ROUNDS


def test_a_mount_can_be_used_right_after_umount_8(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    for number in range(ROUNDS // 5):
        (mnt / f"file-{number}").write_text("new")
        run("umount", mnt)
        commit(layerfs, stack.name, f"image:{number}")
        layerfs.ok("mount", "--name", stack.name, mnt)
        assert (mnt / f"file-{number}").read_text() == "new"


# -- a daemon that does not answer --------------------------------------------------------------------


def test_commands_say_that_a_daemon_is_stopped(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    pid = layerfs.pid(stack.name)
    os.kill(pid, signal.SIGSTOP)
    try:
        for command in ("status", "commit", "diff", "umount"):
            said = layerfs.refused(command, stack.name)
            assert f"the daemon of {stack.name} (process {pid}) is stopped: 'kill -CONT {pid}'" in said
        assert f"{stack.name} is mounted at {mnt} already" in layerfs.refused(
            "mount", "--name", stack.name, mnt
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    layerfs.ok("umount", stack.name)


def test_a_daemon_stopped_during_a_request_is_not_waited_for(stack: Stack, layerfs: Layerfs) -> None:
    stack.mount()
    pid = layerfs.pid(stack.name)
    os.kill(pid, signal.SIGSTOP)
    try:
        # The socket takes the request all the same.
        asking = "from layerfs.mounting import exchange; exchange._check_not_stopped = lambda *a: None; "
        asking += "exchange.PING_PATIENCE = 1.0; "
        asking += f"exchange.exchange({stack.name!r}, 'GET', '/layerfs/status', ())"
        done = subprocess.run(
            [layerfs.words[0], "-c", asking], env=layerfs.environment, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert "Conflict: the daemon of stack" in done.stderr
        assert "waited 1 seconds for GET /layerfs/status" in done.stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    layerfs.ok("umount", stack.name)


# -- containers ---------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Containers]:
    """Containers."""
    with containers(tmp_path) as those:
        yield those


@needs("runc", "conmon", "busybox")
def test_unmounting_a_containers_filesystem_says_what_to_do(made: Containers) -> None:
    layerfs = made.layerfs
    layerfs.ok("run", "-d", "--name", "box", "busybox:1", "sh", "-c", "echo new > /new; exec sleep 100")
    wait_until(lambda: "A /new" in layerfs.ok("diff", "box"))
    for options in ((), ("--force",)):
        said = layerfs.refused("umount", *options, "box")
        assert "box is the filesystem of a container that runs" in said
        assert "'layerfs stop box'" in said
    layerfs.ok("commit", "box", "boxed:1")
    layerfs.ok("stop", "-t", "1", "box")
    assert mounts_below(layerfs.directory) == []


@needs("runc", "conmon", "busybox")
def test_a_container_can_be_committed_and_stopped_without_its_mount_on_the_host(made: Containers) -> None:
    layerfs = made.layerfs
    layerfs.ok("run", "-d", "--name", "box", "busybox:1", "sh", "-c", "echo new > /new; exec sleep 100")
    wait_until(lambda: "A /new" in layerfs.ok("diff", "box"))
    run("umount", made.directory("box") / "rootfs")
    layerfs.ok("commit", "box", "boxed:1")
    layerfs.ok("stop", "-t", "1", "box")
    wait_until(lambda: mounts_below(layerfs.directory) == [])
    layerfs.ok("run", "--rm", "boxed:1", "cat", "/new")
