"""Other mount namespaces hold the mount: it ends all the same, and nothing that was written is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import NOBODY, Layerfs, Stack, errno_of, mounts_below, wait_until
from tests.system.namespaces import IN_USE, PATIENCE, commit, elsewhere, has_ended
from tests.system.programs import needs
from tests.system.users import User, give, start, works

pytestmark = [pytest.mark.root, needs("unshare")]
SIZE = 3_000_000


def log_of(layerfs: Layerfs, name: str) -> str:
    """Return what the daemon of *name* has logged."""
    return (layerfs.run / f"{name}.log").read_text()


def ends(stack: Stack) -> dict[str, Callable[[], object]]:
    """Return the ways to end a mount, by what people call them."""
    layerfs, name = stack.layerfs, stack.name
    return {
        "umount": lambda: layerfs.ok("umount", name),
        "umount --force": lambda: layerfs.ok("umount", "--force", name),
        "stop": lambda: layerfs.ask(name, "POST", f"/containers/{name}/stop"),
        "rm --force": lambda: layerfs.ok("rm", "--force", name),
        "SIGTERM": lambda: os.kill(layerfs.pid(name), signal.SIGTERM),
    }


@pytest.mark.parametrize("way", ["umount", "umount --force", "stop", "rm --force", "SIGTERM"])
def test_a_mount_ends_although_another_namespace_has_it(stack: Stack, layerfs: Layerfs, way: str) -> None:
    mnt = stack.mount()
    pid = layerfs.pid(stack.name)
    with elsewhere(layerfs) as other:
        (mnt / "here").write_bytes(b"h" * SIZE)
        (other.at(mnt) / "there").write_bytes(b"t" * SIZE)
        ends(stack)[way]()
        assert has_ended(layerfs, pid)
        assert mounts_below(layerfs.directory) == []
        assert errno_of(lambda: os.listdir(other.at(mnt))) in (errno.ENOTCONN, errno.ECONNABORTED)
        if "rm" not in way:
            assert f"process {other.pid} (sleep) has it mounted" in log_of(layerfs, stack.name)
    assert (stack.upper / "here").read_bytes() == b"h" * SIZE
    assert (stack.upper / "there").read_bytes() == b"t" * SIZE


def test_what_is_written_during_the_grace_is_kept(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    pid = layerfs.pid(stack.name)
    kept: list[int] = []

    with elsewhere(layerfs) as other:

        def write() -> None:
            try:
                with (other.at(mnt) / "late").open("wb", buffering=0) as file:
                    while "ends, although" not in log_of(layerfs, stack.name):
                        file.write(b"x" * 1000)
                        if "ends, although" not in log_of(layerfs, stack.name):
                            kept.append(1000)
            except OSError:
                pass  # the end of the filesystem

        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: kept)
        layerfs.ok("umount", stack.name)
        assert has_ended(layerfs, pid)
        writer.join(PATIENCE)
    assert (stack.upper / "late").stat().st_size >= sum(kept)


def test_a_filesystem_that_hangs_in_another_namespace_holds_nobody_up(stack: Stack, layerfs: Layerfs) -> None:
    """Its owner decides what is mounted there on the way to the copy."""
    mnt = stack.mount()
    pid = layerfs.pid(stack.name)
    with elsewhere(layerfs, ("unshare", "--mount", "--propagation", "private")) as other:
        enter = ["nsenter", "--mount", f"--target={other.pid}", *layerfs.words]
        over = [*enter, "mount", "--name", "hung", f"--lower={stack.bottom}", str(mnt.parent)]
        subprocess.run(over, env=layerfs.environment, check=True, timeout=PATIENCE)
        hung = layerfs.pid("hung")
        os.kill(hung, signal.SIGSTOP)
        try:
            subprocess.run(["umount", mnt], check=True, timeout=PATIENCE)
            layerfs.ok("umount", stack.name)
            assert has_ended(layerfs, pid)
        finally:
            os.kill(hung, signal.SIGCONT)
            layerfs.kill("hung")


def test_a_mount_unmounted_by_umount_8_can_still_be_committed(stack: Stack, layerfs: Layerfs) -> None:
    """The other namespace goes on with it, as with any filesystem."""
    mnt = stack.mount()
    with elsewhere(layerfs) as other:
        subprocess.run(["umount", mnt], check=True, timeout=PATIENCE)
        (other.at(mnt) / "there").write_bytes(b"t" * SIZE)
        commit(layerfs, stack.name, "image:1")
        (other.at(mnt) / "after").write_bytes(b"a" * SIZE)
        assert layerfs.ok("diff", stack.name) == "A /after"
        layerfs.ok("umount", stack.name)
    layerfs.ok("mount", "--image", "image:1", "--name", "again", mnt)
    assert (mnt / "there").read_bytes() == b"t" * SIZE
    assert (stack.upper / "after").read_bytes() == b"a" * SIZE


def test_mounting_again_says_who_still_uses_it(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    with elsewhere(layerfs) as other:
        subprocess.run(["umount", mnt], check=True, timeout=PATIENCE)
        with (other.at(mnt) / "open").open("w"):
            said = layerfs.refused("mount", "--name", stack.name, mnt)
            assert f"process {os.getpid()} (" in said
            assert "has a file open there" in said
            assert f"layerfs umount {stack.name}" in said
            layerfs.ok("umount", stack.name)
    layerfs.ok("mount", "--name", stack.name, mnt)


def test_mounting_again_takes_over_from_copies_that_nobody_uses(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    with elsewhere(layerfs) as other:
        subprocess.run(["umount", mnt], check=True, timeout=PATIENCE)
        (other.at(mnt) / "there").write_bytes(b"t" * SIZE)
        layerfs.ok("mount", "--name", stack.name, mnt)
        assert (mnt / "there").read_bytes() == b"t" * SIZE
        assert errno_of(lambda: os.listdir(other.at(mnt))) in (errno.ENOTCONN, errno.ECONNABORTED)


def test_mounting_again_waits_for_a_namespace_that_goes(stack: Stack, layerfs: Layerfs) -> None:
    mnt = stack.mount()
    with elsewhere(layerfs) as other:
        subprocess.run(["umount", mnt], check=True, timeout=PATIENCE)
        (other.at(mnt) / "there").write_bytes(b"t" * SIZE)
        again = subprocess.Popen(
            [*layerfs.words, "mount", "--name", stack.name, mnt], env=layerfs.environment
        )
    assert again.wait(PATIENCE) == 0
    assert (mnt / "there").read_bytes() == b"t" * SIZE


@pytest.fixture
def user() -> Iterator[User]:
    """An ordinary user."""
    yield from start(NOBODY)


@needs("fusermount3", "setpriv", "nsenter")
def test_what_is_written_to_an_ordinary_users_busy_mount_is_kept(user: User) -> None:
    """During the grace, too: the daemon keeps the root open, where it may not copy a mount."""
    user.expect_log(*IN_USE)
    stack = Stack(user)
    give(stack.directory, user.uid)
    stack.mount()
    pid = user.pid(stack.name)
    with subprocess.Popen(
        [*user.enter, "sh", "-c", 'cd "$0" && : >late && while echo line >>late; do :; done', stack.mnt],
        stderr=subprocess.DEVNULL,
    ) as writer:
        try:
            wait_until(lambda: (stack.upper / "late").exists())
            user.ok("umount", "--force", stack.name)
            assert has_ended(user, pid)
            writer.wait(PATIENCE)
        finally:
            writer.kill()
    assert set((stack.upper / "late").read_text().splitlines()) == {"line"}
    assert "is in use: unmounted it lazily" in log_of(user, stack.name)


@needs("fusermount3", "setpriv", "nsenter")
def test_an_ordinary_users_mount_ends_although_another_namespace_has_it(user: User) -> None:
    stack = Stack(user)
    give(stack.directory, user.uid)
    mnt = stack.mount()
    pid = user.pid(stack.name)
    with elsewhere(user, [*user.enter, "unshare", "--user", "--mount"]) as other:
        works(user, mnt, lambda: Path("here").write_bytes(b"h" * SIZE))
        user.ok("umount", stack.name)
        assert has_ended(user, pid)
        assert f"process {other.pid} (sleep)" in log_of(user, stack.name)
    assert (stack.upper / "here").read_bytes() == b"h" * SIZE
