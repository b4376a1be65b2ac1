"""Locks between processes, on files in any layer."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.conftest import Stack, as_user

pytestmark = pytest.mark.root


@pytest.fixture
def file(stack: Stack) -> Path:
    """A mounted file of a lower layer."""
    (stack.bottom / "file").write_bytes(bytes(100))
    (stack.bottom / "file").chmod(0o666)
    stack.upper.chmod(0o755)
    return stack.mount() / "file"


def elsewhere(file: Path, lock: str) -> bool:
    """Tell whether another process can take the lock that *lock* names at once."""

    def take() -> None:
        fd = os.open(file.name, os.O_RDWR)
        if lock == "flock":
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif lock == "shared flock":
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        else:
            start = int(lock.rpartition(" ")[2])
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)

    return as_user(os.getuid(), take, where=file.parent) == 0


def test_flock(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not elsewhere(file, "flock")
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert not elsewhere(file, "flock")
    assert elsewhere(file, "shared flock")
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert elsewhere(file, "flock")
    os.close(fd)


def test_ranges(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
    assert elsewhere(file, "range 0")
    assert not elsewhere(file, "range 25")
    assert elsewhere(file, "range 30")
    fcntl.lockf(fd, fcntl.LOCK_UN, 5, 20)
    assert elsewhere(file, "range 10")
    assert not elsewhere(file, "range 20")
    os.close(fd)
    assert elsewhere(file, "range 20")


@pytest.mark.parametrize("lock", ["flock", "range 20"])
def test_they_hold_over_copy_up_rename_and_commit(file: Path, stack: Stack, lock: str) -> None:
    fd = os.open(file, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
    os.pwrite(fd, b"copied up", 0)
    assert not elsewhere(file, lock)
    moved = file.rename(file.with_name("moved"))
    assert not elsewhere(moved, lock)
    stack.commit()
    assert not elsewhere(moved, lock)
    assert as_user(os.getuid(), lambda: Path("moved").write_bytes(b"again" * 20), where=moved.parent) == 0
    assert not elsewhere(moved, lock)
    os.close(fd)
    assert elsewhere(moved, lock)


def test_a_lock_on_a_hard_link_is_one_on_the_file(stack: Stack) -> None:
    (stack.bottom / "one").touch()
    os.link(stack.bottom / "one", stack.bottom / "two")
    mnt = stack.mount()
    fd = os.open(mnt / "one", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not elsewhere(mnt / "two", "flock")
    os.close(fd)
