"""Waiting for a lock of another process: within bounds, and never for one that is stopped."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import Conflict
from layerfs.store.waiting import take


class Held:
    """A file that another process has locked."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.process = subprocess.Popen(
            ["flock", path, "sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.fd = os.open(path, os.O_RDWR)

    def release(self) -> None:
        """Have the process give the lock up."""
        self.process.communicate(b"\n", timeout=20)

    def end(self) -> None:
        """End everything."""
        os.close(self.fd)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.release()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    """A file with another process's lock."""
    made = Held(tmp_path / "lock")
    yield made
    made.end()


def test_a_lock_is_taken_once_its_holder_gives_it_up(held: Held) -> None:
    waiting = threading.Thread(target=take, args=(held.fd, fcntl.LOCK_EX, "works", 20))
    waiting.start()
    held.release()
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_wait_has_an_end_and_says_for_whom_it_was(held: Held) -> None:
    with pytest.raises(Conflict, match=f"^waited 0.05 seconds for process {held.process.pid}, which works$"):
        take(held.fd, fcntl.LOCK_SH, "works", 0.05)


def test_a_stopped_process_is_not_waited_for(held: Held) -> None:
    os.kill(held.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, held.process.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(Conflict, match=f"^process {held.process.pid} works, and is stopped: 'kill -CONT"):
        take(held.fd, fcntl.LOCK_EX, "works", 60)
