"""Polling for requests: what it must leave alone."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Stack, wait_until

pytestmark = pytest.mark.root

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def _processor_time(pid: int) -> float:
    """Return the seconds that the processors have spent on *pid*."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * _TICK


def _stream(mnt: Path, seconds: float) -> None:
    """Make one request after the other."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError):
            os.getxattr(mnt / "file", "user.none")


def _rests(pid: int) -> bool:
    before = _processor_time(pid)
    time.sleep(0.3)
    return _processor_time(pid) - before <= _TICK


def test_a_mount_rests_when_requests_end(stack: Stack, mnt: Path) -> None:
    (mnt / "file").write_bytes(b"")
    pid = stack.layerfs.pid(stack.name)
    for _ in range(3):
        before = _processor_time(pid)
        _stream(mnt, 0.3)
        assert _processor_time(pid) - before > 0.05
        wait_until(lambda: _rests(pid))


def test_who_is_confined_stays_so(stack: Stack, mnt: Path) -> None:
    (mnt / "file").write_bytes(b"")
    pid = stack.layerfs.pid(stack.name)
    only = min(os.sched_getaffinity(pid))
    os.sched_setaffinity(pid, {only})
    _stream(mnt, 0.3)
    assert os.sched_getaffinity(pid) == {only}


def test_others_are_answered_while_one_streams(stack: Stack, mnt: Path) -> None:
    (mnt / "file").write_bytes(b"")
    child = os.fork()
    if child == 0:
        _stream(mnt, 60)
        os._exit(0)
    try:
        for number in range(100):
            (mnt / f"new{number}").write_bytes(b"x")
            assert (mnt / f"new{number}").read_bytes() == b"x"
            time.sleep(0.005)
        stack.commit()
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
