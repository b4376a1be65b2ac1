"""What is asked of a filesystem less often: direct I/O, allocation, watches, capabilities, many layers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import subprocess
import termios
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, detach, errno_of

pytestmark = pytest.mark.root

_libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
IN_CREATE, IN_DELETE, IN_CLOSE_WRITE = 0x100, 0x200, 0x8


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def test_direct_io(stack: Stack) -> None:
    (stack.bottom / "f").write_bytes(b"a" * 8192)
    mnt = stack.mount()
    fd = os.open(mnt / "f", os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        assert os.preadv(fd, [page], 4096) == 4096
        assert page[:] == b"a" * 4096
        page[:] = b"b" * 4096
        assert os.pwritev(fd, [page], 0) == 4096
    os.close(fd)
    assert (mnt / "f").read_bytes() == b"b" * 4096 + b"a" * 4096
    assert (stack.bottom / "f").read_bytes() == b"a" * 8192


def test_no_file_is_a_terminal(stack: Stack) -> None:
    (stack.bottom / "f").write_bytes(b"a")
    mnt = stack.mount()
    for path in (mnt / "f", mnt):
        fd = os.open(path, os.O_RDONLY)
        assert not os.isatty(fd)
        for request in (termios.TCGETS, 0x4004_FF99):
            assert errno_of(partial(fcntl.ioctl, fd, request, bytes(60))) == errno.ENOTTY
        os.close(fd)


def test_fallocate(stack: Stack) -> None:
    (stack.bottom / "f").write_bytes(b"x" * 65536)
    mnt = stack.mount()
    if "not active" in stack.layerfs.ok("status", stack.name):
        pytest.skip("fallocate comes by way of the extension")
    with (mnt / "f").open("r+b") as file:
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 4096, 8192)
        fallocate(file.fileno(), 0, 65536, 1 << 20)
        assert os.fstat(file.fileno()).st_size == 65536 + (1 << 20)
        with pytest.raises(OSError) as caught:
            fallocate(file.fileno(), PUNCH_HOLE, 0, 4096)  # which has to keep the size
        assert caught.value.errno == errno.EOPNOTSUPP
    data = (mnt / "f").read_bytes()
    assert data[:65536] == b"x" * 4096 + b"\0" * 8192 + b"x" * (65536 - 12288)
    assert (stack.bottom / "f").read_bytes() == b"x" * 65536


def test_seeking_holes_never_skips_data(stack: Stack) -> None:
    mnt = stack.mount()
    with (mnt / "f").open("w+b") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"here")
        file.flush()
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) <= 1 << 19
        assert os.lseek(file.fileno(), 1 << 19, os.SEEK_HOLE) >= (1 << 19) + 4


def test_copy_file_range(stack: Stack) -> None:
    (stack.bottom / "from").write_bytes(os.urandom(200_000))
    mnt = stack.mount()
    with (mnt / "from").open("rb") as source, (mnt / "to").open("wb") as target:
        done = 0
        while count := os.copy_file_range(source.fileno(), target.fileno(), 200_000 - done):
            done += count
    assert (mnt / "to").read_bytes() == (stack.bottom / "from").read_bytes()


def test_programs_scripts_and_capabilities_run(stack: Stack) -> None:
    program, setcap = shutil.which("true"), shutil.which("setcap")
    mnt = stack.mount()
    assert program is not None
    shutil.copy(program, mnt / "program")
    (mnt / "script").write_text("#!/bin/sh\necho run by $0\n")
    for name in ("program", "script"):
        (mnt / name).chmod(0o755)
    subprocess.run([mnt / "program"], check=True, timeout=20)
    done = subprocess.run([mnt / "script"], check=True, timeout=20, capture_output=True, text=True)
    assert done.stdout == f"run by {mnt / 'script'}\n"
    raw = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw+ep (capability.h, vfs_cap_data)
    os.setxattr(mnt / "program", "security.capability", raw)
    subprocess.run([mnt / "program"], check=True, timeout=20)
    stack.remount()
    assert os.getxattr(mnt / "program", "security.capability") == raw
    if setcap:
        shown = subprocess.run([setcap, "-v", "cap_net_raw=ep", mnt / "program"], check=False, timeout=20)
        assert shown.returncode == 0
    with (mnt / "program").open("ab") as file:
        file.write(b"\0")
    assert "security.capability" not in os.listxattr(mnt / "program")


def test_inotify(stack: Stack) -> None:
    (stack.bottom / "old").write_text("1")
    mnt = stack.mount()
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert _libc.inotify_add_watch(fd, bytes(mnt), IN_CREATE | IN_DELETE | IN_CLOSE_WRITE) >= 0
    with (mnt / "old").open("a") as file:
        file.write("2")
    (mnt / "new").write_text("3")
    (mnt / "old").unlink()
    events = os.read(fd, 4096)
    os.close(fd)
    seen = []
    while events:
        _, mask, _, length = struct.unpack_from("iIII", events)
        seen.append((mask, events[16 : 16 + length].rstrip(b"\0")))
        events = events[16 + length :]
    assert seen == [
        (IN_CLOSE_WRITE, b"old"),
        (IN_CREATE, b"new"),
        (IN_CLOSE_WRITE, b"new"),
        (IN_DELETE, b"old"),
    ]


def test_paths_as_long_as_they_may_be(stack: Stack) -> None:
    mnt = stack.mount()
    room = 4095 - len(bytes(mnt)) - 1
    names = ["n" * 250] * (room // 251)
    deep = mnt.joinpath(*names)
    deep.mkdir(parents=True)
    last = deep / ("f" * (4095 - len(bytes(deep)) - 1))
    last.write_text("deep")
    assert len(bytes(last)) == 4095
    stack.remount()
    assert last.read_text() == "deep"
    with pytest.raises(OSError) as caught:
        Path(f"{last}x").write_text("")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_five_hundred_layers(layerfs: Layerfs) -> None:
    lowers = []
    for number in range(500):
        lower = layerfs.directory / f"l{number}"
        (lower / "d").mkdir(parents=True)
        (lower / f"only{number}").write_text(str(number))
        (lower / "d" / f"x{number % 10}").write_text(str(number))
        lowers.append(f"--lower={lower}")
    for name in ("upper", "work", "mnt"):
        (layerfs.directory / name).mkdir()
    mnt = layerfs.directory / "mnt"
    uppers = (f"--upper={layerfs.directory / 'upper'}", f"--work={layerfs.directory / 'work'}")
    layerfs.ok("mount", "--name", "many", *reversed(lowers), *uppers, mnt)
    assert len(list(mnt.iterdir())) == 501
    assert (mnt / "only0").read_text() == "0"
    assert sorted(path.read_text() for path in (mnt / "d").iterdir()) == [str(n) for n in range(490, 500)]
    (mnt / "d/x3").unlink()
    assert len(list((mnt / "d").iterdir())) == 9
    layerfs.ok("umount", "many")


def test_an_overlay_of_the_kernel_on_top_is_refused_or_works(stack: Stack) -> None:
    mnt = stack.mount()
    for name in ("lower", "upper", "work", "merged"):
        (mnt / name).mkdir()
    (mnt / "lower/f").write_text("1")
    merged = mnt / "merged"
    options = f"lowerdir={mnt / 'lower'},upperdir={mnt / 'upper'},workdir={mnt / 'work'}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
    done = subprocess.run(command, check=False, timeout=20, capture_output=True)
    if done.returncode == 0:
        try:
            (merged / "f").write_text("2")
            assert (mnt / "upper/f").read_text() == "2"
        finally:
            detach(merged)
    assert (mnt / "lower/f").read_text() == "1"
    options = f"lowerdir={mnt / 'lower'}:{mnt / 'upper'}"  # below an overlay, layerfs serves well
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True, timeout=20)
    try:
        assert (merged / "f").exists()
    finally:
        detach(merged)


@pytest.mark.parametrize("extension", ["1", "0"])
def test_a_fifo_in_the_place_of_a_lower_file_holds_nobody_up(stack: Stack, extension: str) -> None:
    """Who owns a lower directory may put one there; the daemon must not wait for somebody to write to it."""
    stack.layerfs.environment["LAYERFS_EXTENSION"] = extension
    for name in ("read", "written", "other"):
        (stack.bottom / name).write_text(name)
    mnt = stack.mount()
    for name in ("read", "written"):
        assert (mnt / name).stat().st_size > 0
        (stack.bottom / name).unlink()
        os.mkfifo(stack.bottom / name)
    assert errno_of(lambda: (mnt / "read").read_bytes()) != 0
    assert errno_of(lambda: (mnt / "written").write_bytes(b"x")) == errno.EIO
    assert os.listdir(stack.upper) == []
    assert (mnt / "other").read_text() == "other"
