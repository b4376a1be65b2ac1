"""Modification times: what the mount shows is what is on disk, also where the kernel writes late."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import Stack, wait_until

pytestmark = pytest.mark.root
OLD = 1_234_567_890_123_456_789
_MNT_FORCE = 1
_SYNC_FILE_RANGE_WRITE_AND_WAIT = 7
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


@pytest.fixture(params=["extension", "no extension"])
def either_stack(request: pytest.FixtureRequest, stack: Stack) -> Stack:
    """A stack whose daemon runs with the extension or without it."""
    if request.param == "no extension":
        stack.layerfs.environment["LAYERFS_EXTENSION"] = "0"
    return stack


def umount(mountpoint: Path, flags: int = 0) -> int:
    """Unmount with umount(2) and return the errno: nobody waits for the daemon."""
    return ctypes.get_errno() if _libc.umount2(os.fsencode(mountpoint), flags) else 0


@contextmanager
def written_directly(path: Path) -> Iterator[None]:
    """Have a write to *path* in the file below, with O_DIRECT, of which the kernel tells no time yet."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as page:
            page.write(b"new " * 1024)
            assert os.pwritev(fd, [page], 0) == 4096
        yield
    finally:
        with suppress(OSError):  # the daemon may be dead by now
            os.close(fd)


@contextmanager
def written_back(path: Path) -> Iterator[None]:
    """The same with sync_file_range(2)."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, b"new " * 1024, 0)
        assert _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE_AND_WAIT) == 0
        yield
    finally:
        with suppress(OSError):  # the daemon may be dead by now
            os.close(fd)


def test_new_files_have_the_same_time_after_a_remount(stack: Stack) -> None:
    mnt = stack.mount()
    for number in range(200):
        (mnt / f"f{number}").write_text("new")
    before = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(mnt)}
    stack.remount()
    after = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(mnt)}
    assert before == after


def test_a_time_that_was_set_survives_the_writes_before_it(stack: Stack) -> None:
    (stack.bottom / "lower").write_text("old")
    mnt = stack.mount()
    for name in ("lower", "new"):
        with (mnt / name).open("a") as file:
            file.write("text")
            file.flush()
            os.utime(file.fileno(), ns=(1, 1_234_567_890_123_456_789))
    stack.remount()
    assert {entry.stat().st_mtime_ns for entry in os.scandir(mnt)} == {1_234_567_890_123_456_789}


def test_a_write_after_a_set_time_counts(stack: Stack) -> None:
    mnt = stack.mount()
    with (mnt / "new").open("w") as file:
        os.utime(file.fileno(), ns=(1, 1_234_567_890_123_456_789))
        file.write("text")
    shown = (mnt / "new").stat().st_mtime_ns
    assert shown > 1_700_000_000_000_000_000
    stack.remount()
    assert (mnt / "new").stat().st_mtime_ns == shown


def test_a_commit_takes_the_time_that_is_shown(stack: Stack) -> None:
    mnt = stack.mount()
    with (mnt / "new").open("w") as file:
        file.write("text")
        file.flush()
        stack.commit()
        shown = (mnt / "new").stat().st_mtime_ns
    stack.remount()
    assert (mnt / "new").stat().st_mtime_ns == shown


@pytest.mark.parametrize("write", [written_directly, written_back])
@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_a_killed_daemon_leaves_no_new_contents_with_the_old_time(
    either_stack: Stack, layer: str, write: Callable[[Path], AbstractContextManager[None]]
) -> None:
    stack = either_stack
    path = (stack.upper if layer == "upper" else stack.bottom) / "file"
    path.write_bytes(b"old " * 1024)
    os.utime(path, ns=(OLD, OLD))
    mnt = stack.mount()
    began = time.time_ns()
    with write(mnt / "file"):
        time.sleep(1.5)  # for whatever the daemon does by and by
        stack.layerfs.kill(stack.name)
    assert (stack.upper / "file").read_bytes() == b"new " * 1024
    assert (stack.upper / "file").stat().st_mtime_ns >= began - 10**8  # file times lag behind the clock


def test_a_connection_that_is_cut_leaves_no_new_contents_with_the_old_time(either_stack: Stack) -> None:
    stack = either_stack
    (stack.upper / "file").write_bytes(b"old " * 1024)
    os.utime(stack.upper / "file", ns=(OLD, OLD))
    mnt = stack.mount()
    began = time.time_ns()
    with written_directly(mnt / "file"):
        assert umount(mnt, _MNT_FORCE) == errno.EBUSY
        wait_until(lambda: not stack.layerfs.processes())
    assert (stack.upper / "file").read_bytes() == b"new " * 1024
    assert (stack.upper / "file").stat().st_mtime_ns >= began - 10**8


def test_times_are_in_the_upper_when_umount_returns(either_stack: Stack) -> None:
    stack = either_stack
    names = [f"{kind}{number}" for kind in ("new", "small", "large") for number in range(20)]
    for name in names:
        if not name.startswith("new"):
            (stack.bottom / name).write_bytes(b"old")
            os.utime(stack.bottom / name, ns=(OLD, OLD))
    mnt = stack.mount()
    for name in names:
        with (mnt / name).open("ab", buffering=0) as file:
            for _ in range(20 if name.startswith("large") else 1):
                file.write(b"new" * (50_000 if name.startswith("large") else 1))
    shown = {name: (mnt / name).stat().st_mtime_ns for name in names}
    assert umount(mnt) == 0
    assert {name: (stack.upper / name).stat().st_mtime_ns for name in names} == shown


def test_cutting_a_file_to_the_length_it_has_changes_no_time(either_stack: Stack) -> None:
    stack = either_stack
    (stack.bottom / "file").write_bytes(b"text")
    os.utime(stack.bottom / "file", ns=(OLD, OLD))
    os.truncate(stack.mount() / "file", 4)
    assert (stack.mnt / "file").stat().st_mtime_ns == OLD
    stack.remount()
    assert (stack.mnt / "file").stat().st_mtime_ns == OLD


def test_a_time_told_while_a_copy_up_is_under_way_is_that_of_the_write(either_stack: Stack) -> None:
    stack = either_stack
    (stack.bottom / "file").write_bytes(bytes(32 << 20))
    os.utime(stack.bottom / "file", ns=(OLD, OLD))
    mnt = stack.mount()
    with (mnt / "file").open("r+b", buffering=0) as file:
        file.write(b"new")
        os.utime(file.fileno(), ns=(OLD + 1, OLD + 1))
    assert umount(mnt) == 0
    assert (stack.upper / "file").stat().st_mtime_ns == OLD + 1
