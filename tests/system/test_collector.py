"""The daemon's thread that uses its own mount: it costs little, and never keeps the daemon from ending."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, mounts_below
from tests.system.namespaces import IN_USE, has_ended

pytestmark = pytest.mark.root
ROUNDS = 6
COMMITS = 15


@pytest.fixture(params=["", "0"], ids=["extension", "no extension"])
def levers(request: pytest.FixtureRequest, layerfs: Layerfs) -> None:
    """With the extension and without it."""
    if request.param:
        layerfs.environment["LAYERFS_EXTENSION"] = request.param


@pytest.fixture
def writer(stack: Stack) -> Iterator[None]:
    """Somebody who writes to the mount whenever it is there."""
    done = threading.Event()
    stack.layerfs.expect_log(*IN_USE)

    def write() -> None:
        number = 0
        while not done.wait(0.001):
            number += 1
            with suppress(OSError):  # no mount is there at the moment
                (stack.mnt / f"file-{number % 8}").write_bytes(os.urandom(1000) * 4000)

    stack.mount()
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        stack.layerfs.end()
        thread.join(60)


def test_a_mount_is_one_process(stack: Stack, layerfs: Layerfs) -> None:
    stack.mount()
    (stack.mnt / "file").write_text("new")
    assert layerfs.ok("diff", stack.name) == "A /file"
    assert layerfs.processes() == [layerfs.pid(stack.name)]


def test_the_daemon_keeps_no_file_of_its_mount_open(stack: Stack, layerfs: Layerfs) -> None:
    stack.mount()
    (stack.mnt / "file").write_text("new")
    layerfs.ok("diff", stack.name)
    device = os.stat(stack.mnt).st_dev
    tasks = Path(f"/proc/{layerfs.pid(stack.name)}/task")
    for link in [link for task in tasks.iterdir() for link in (task / "fd").iterdir()]:
        assert os.stat(link).st_dev != device, link


@pytest.mark.usefixtures("levers", "writer")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_ends_while_it_collects_writes(stack: Stack, layerfs: Layerfs, end: signal.Signals) -> None:
    """The thread waits in the kernel for an answer that the ending daemon does not give."""
    for _ in range(ROUNDS):
        pid = layerfs.pid(stack.name)
        with subprocess.Popen(
            [*layerfs.words, "commit", stack.name],
            env=layerfs.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ):
            time.sleep(random.uniform(0.2, 0.6))
            os.kill(pid, end)
            assert has_ended(layerfs, pid)
        again = layerfs("mount", "--name", stack.name, stack.mnt)  # may say that it removed the next upper
        assert again.returncode == 0, again.stderr
    layerfs.ok("umount", "--force", stack.name)
    assert mounts_below(layerfs.directory) == []


@pytest.mark.usefixtures("levers", "writer")
def test_processes_are_started_while_it_collects_writes(stack: Stack, layerfs: Layerfs) -> None:
    """Each commit starts a process that settles what was sealed, while the next one already collects."""
    for number in range(COMMITS):
        assert layerfs("commit", stack.name, f"image:{number}").returncode == 0
    assert len(layerfs.ok("images", "-q").splitlines()) == COMMITS
