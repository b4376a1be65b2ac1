"""What could not be written back is lost, and nothing says afterwards that it is on the disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, errno_of, wait_until
from tests.system.thin import ThinDisk

pytestmark = pytest.mark.root
LOST = (errno.ENOSPC, errno.EIO)
LARGE = bytes(range(256)) * 32768


@pytest.fixture
def thin(layerfs: Layerfs) -> ThinDisk:
    """A disk that can refuse what it has taken; `layerfs` unmounts it in the end."""
    return ThinDisk(layerfs.directory)


@pytest.fixture(params=["with the extension", "without"])
def mnt(request: pytest.FixtureRequest, layerfs: Layerfs, stack: Stack, thin: ThinDisk) -> Path:
    """A mount whose upper is on that disk, and the store, too."""
    if request.param == "without":
        layerfs.environment["LAYERFS_EXTENSION"] = "0"
    layerfs.root = thin.path / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    stack.upper, stack.work = thin.path / "upper", thin.path / "work"
    for path in (stack.upper, stack.work):
        path.mkdir()
    return stack.mount()


def open_to_write(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


def sync(fd: int) -> Callable[[], None]:
    return lambda: os.fsync(fd)


def lose(thin: ThinDisk, fd: int) -> None:
    """Write to a file what the disk refuses, and have a program be told."""
    thin.run_dry()
    assert os.pwrite(fd, LARGE, 0) == len(LARGE)
    assert errno_of(sync(fd)) in LOST
    thin.refill()


def test_a_sync_that_failed_fails_again_for_everybody(thin: ThinDisk, mnt: Path) -> None:
    first, second, sound = (open_to_write(mnt / name) for name in ("file", "file", "sound"))
    os.write(sound, LARGE)
    lose(thin, first)
    later = open_to_write(mnt / "file")
    for fd in (first, second, later) * 2:
        assert errno_of(sync(fd)) in LOST
        assert errno_of(lambda fd=fd: os.fdatasync(fd)) in LOST  # type: ignore[misc]
    os.fsync(sound)


def test_what_is_written_anew_counts(thin: ThinDisk, mnt: Path) -> None:
    fd = open_to_write(mnt / "file")
    lose(thin, fd)
    os.ftruncate(fd, 0)
    os.write(fd, LARGE)
    os.fsync(fd)
    (mnt / "other").write_bytes(LARGE)
    fd = open_to_write(mnt / "other")
    os.replace(mnt / "other", mnt / "file")
    os.fsync(fd)


def test_a_commit_makes_nothing_of_it_good(thin: ThinDisk, mnt: Path, layerfs: Layerfs, stack: Stack) -> None:
    layerfs.expect_log("cannot settle layer")
    layerfs.store_is_damaged = True  # a layer is not verified, and `fsck` says so
    fd = open_to_write(mnt / "file")
    lose(thin, fd)
    assert layerfs("commit", stack.name, "committed").returncode == 0
    wait_until(
        lambda: json.loads(layerfs.ask(stack.name, "GET", "/layerfs/status")[1])["LayersToSettle"] == 0
    )
    assert errno_of(sync(fd)) in LOST
    for _ in range(2):
        done = layerfs("verify", "committed")
        assert done.returncode == 1, done
        assert "unverified: the machine stopped, or the disk refused a write" in done.stdout
