"""A daemon that dies at any moment: the next command says so, `layerfs mount` recovers, nothing is lost."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.conftest import Layerfs, Stack, errno_of, mounts_below

pytestmark = pytest.mark.root
NAME = "base-container"
ROUNDS = 4


class Killed:
    """A mounted image whose daemon is going to die."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        self.tree, self.mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
        self.tree.mkdir()
        self.mnt.mkdir()
        for number in range(200):
            (self.tree / f"f{number}").write_bytes(b"%d" % number * 20_000)
        layerfs.ok("import", self.tree, "base")
        layerfs.ok("mount", "--image", "base", "--name", NAME, self.mnt)

    def kill(self) -> None:
        """Kill the daemon."""
        self.layerfs.kill(NAME)

    def resume(self) -> None:
        """Mount again."""
        done = self.layerfs("mount", "--name", NAME, self.mnt)
        assert done.returncode == 0, done.stderr

    def kill_during(self, work: Callable[[int], object], seconds: float) -> int:
        """Kill the daemon *seconds* after *work* began to be done again and again; return how often it was.

        *work* gets the number of its turn, and ends with an `OSError` or `AssertionError` when it is cut off.
        """
        finished = 0

        def repeat() -> None:
            nonlocal finished
            try:
                while True:
                    work(finished)
                    finished += 1
            except (OSError, AssertionError):
                pass

        thread = threading.Thread(target=repeat)
        thread.start()
        time.sleep(seconds)
        self.kill()
        thread.join()
        return finished


@pytest.fixture
def killed(layerfs: Layerfs) -> Killed:
    """A mounted image."""
    return Killed(layerfs)


def test_the_next_command_says_what_happened(killed: Killed, layerfs: Layerfs) -> None:
    killed.kill()
    assert errno_of(lambda: os.listdir(killed.mnt)) in (errno.ENOTCONN, errno.ECONNABORTED)
    assert layerfs.socket(NAME).exists(), "a stale socket, from here on"
    for command in ("commit", "umount"):
        done = layerfs(command, NAME)
        if command == "commit":
            assert done.returncode == 1
            assert "its daemon ended without unmounting" in done.stderr
            assert f"layerfs mount --name {NAME} {killed.mnt}" in done.stderr
            assert "Dead" in layerfs.ok("ps", "-a")
        else:
            assert done.returncode == 0, done.stderr
    assert mounts_below(layerfs.directory) == []


def test_what_was_written_survives(killed: Killed, layerfs: Layerfs) -> None:
    (killed.mnt / "new").write_text("committed")
    layerfs.ok("commit", NAME, "one")
    (killed.mnt / "new").write_text("after the commit")
    (killed.mnt / "f1").unlink()
    with (killed.mnt / "open").open("wb", buffering=0) as file:
        file.write(b"synced")
        os.fsync(file)
        killed.kill()
        assert errno_of(lambda: os.fsync(file)) in (errno.ENOTCONN, errno.ECONNABORTED)
    killed.resume()
    assert (killed.mnt / "new").read_text() == "after the commit"
    assert (killed.mnt / "open").read_bytes() == b"synced"
    assert not (killed.mnt / "f1").exists()
    assert layerfs.ok("verify", "one").endswith("as its manifest says")
    layerfs.ok("commit", NAME, "two")


def test_a_dead_mount_can_be_unmounted_or_removed(killed: Killed, layerfs: Layerfs) -> None:
    killed.kill()
    layerfs.ok("rm", "-f", NAME)
    assert mounts_below(layerfs.directory) == []
    assert layerfs.ok("ps", "-a", "-q") == ""
    layerfs.ok("mount", "--image", "base", "--name", NAME, killed.mnt)
    assert len(os.listdir(killed.mnt)) == 200


def test_another_mount_at_the_dead_one_s_place(killed: Killed, layerfs: Layerfs) -> None:
    killed.kill()
    layerfs.ok("mount", "--image", "base", "--name", "other", killed.mnt)
    assert len(os.listdir(killed.mnt)) == 200
    assert mounts_below(layerfs.directory) == [killed.mnt]


def test_an_image_can_be_used_while_its_maker_is_dead(killed: Killed, layerfs: Layerfs) -> None:
    (killed.mnt / "new").write_text("committed")
    layerfs.ok("commit", NAME, "one")
    killed.kill()
    other = layerfs.directory / "other"
    other.mkdir()
    layerfs.ok("mount", "--image", "one", other)
    assert (other / "new").read_text() == "committed"


def test_killed_while_committing(killed: Killed, layerfs: Layerfs) -> None:
    """Every commit that was answered is whole; and what was closed before the kill is in the mount."""
    committed = 0
    chance = random.Random(2)
    for turn in range(ROUNDS):
        started = committed

        def work(number: int, start: int = started) -> None:
            (killed.mnt / f"new-{start + number}").write_bytes(b"%d" % (start + number) * 1000)
            status, _ = layerfs.ask(NAME, "POST", f"/commit?container={NAME}&repo=c{start + number}")
            assert status == 201

        committed += killed.kill_during(work, 0.05 + chance.random() / 4)
        killed.resume()
        for number in range(committed):
            assert (killed.mnt / f"new-{number}").read_bytes() == b"%d" % number * 1000
        names = layerfs.ok("images", "--format", "json")
        for number in range(committed):
            assert f'"c{number}"' in names, turn
        (killed.mnt / f"new-{committed}").unlink(missing_ok=True)
    assert committed > ROUNDS
    assert layerfs.ok("verify", f"c{committed - 1}").endswith("as its manifest says")
    owned = len(layerfs.ok("history", "-q", f"c{committed - 1}").splitlines())
    uncounted = 2 + ROUNDS  # the upper, the next one, and commits that were done but not answered
    assert owned < len(os.listdir(layerfs.root / "layers")) <= owned + uncounted


def test_killed_while_copying_up(killed: Killed) -> None:
    """Each file is as it was or as it was made, never in between; nothing is left in the work directory."""
    chance = random.Random(1)
    changed = 0
    for _ in range(ROUNDS):
        start = changed

        def work(number: int, start: int = start) -> None:
            with (killed.mnt / f"f{start + number}").open("r+b", buffering=0) as file:
                file.write(b"!")

        changed += killed.kill_during(work, 0.01 + chance.random() / 20)
        killed.resume()
        for number in range(200):
            old = b"%d" % number * 20_000
            found = (killed.mnt / f"f{number}").read_bytes()
            if number < changed:
                assert found == b"!" + old[1:]
            else:
                assert found in (old, b"!" + old[1:])
        for work_directory in killed.layerfs.root.glob("layers/*/work/work"):  # the next upper has one, too
            assert os.listdir(work_directory) == []
    assert changed > ROUNDS


def test_killed_while_names_change(stack: Stack) -> None:
    """Renames of directories and files: each name is at one of its places, whole."""
    (stack.bottom / "a/inner").mkdir(parents=True)
    (stack.bottom / "a/inner/file").write_text("content")
    (stack.bottom / "x").write_text("x")
    mnt = stack.mount()
    stop = threading.Event()

    def rename() -> None:
        try:
            while not stop.is_set():
                (mnt / "a").rename(mnt / "b")
                (mnt / "x").rename(mnt / "b/x")
                (mnt / "b/x").rename(mnt / "x")
                (mnt / "b").rename(mnt / "a")
        except OSError:
            pass

    for seconds in (0.02, 0.05, 0.11):
        thread = threading.Thread(target=rename)
        thread.start()
        time.sleep(seconds)
        stack.layerfs.kill(stack.name)
        stop.set()
        thread.join()
        stop.clear()
        stack.layerfs.ok("mount", "--name", stack.name, stack.mnt)
        here = next(name for name in ("a", "b") if (mnt / name).exists())
        assert sorted(path.name for path in mnt.rglob("*")) == sorted([here, "inner", "file", "x"])
        assert (mnt / here / "inner/file").read_text() == "content"
        if here == "b":
            x = mnt / "b/x"
            if x.exists():
                x.rename(mnt / "x")
            (mnt / "b").rename(mnt / "a")
