"""How data moves: past the cache and through it, from a cold disk, by threads that a disk holds up."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, errno_of, wait_until

pytestmark = pytest.mark.root
_FREEZE, _THAW = 0xC0045877, 0xC0045878  # FIFREEZE, FITHAW
_IO_SETUP, _IO_DESTROY, _IO_GETEVENTS, _IO_SUBMIT = 206, 207, 208, 209  # of x86-64
_IOCB_PWRITE = 1
_SIZE = 1 << 17
_libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


class Frozen:
    """A filesystem that writes wait for, from `freeze` to `thaw`, half a minute at most; reads do not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._timer = threading.Timer(30, self._thaw)  # a test may fail in a way that waits for a write

    def freeze(self) -> None:
        """Let nothing be written from now on; once."""
        self._timer.start()
        self._ask(_FREEZE)

    def thaw(self) -> None:
        """Let what waits be written, and all that comes."""
        if self._timer.is_alive():
            self._timer.cancel()
            self._timer.join()
            self._thaw()

    def _thaw(self) -> None:
        with suppress(OSError):
            self._ask(_THAW)

    def _ask(self, request: int) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, request, 0)
        finally:
            os.close(fd)


@pytest.fixture
def disk(layerfs: Layerfs, tmp_path: Path) -> Iterator[Frozen]:
    """An ext4 filesystem of its own."""
    path, image = tmp_path / "disk", tmp_path / "disk.ext4"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m0", image], check=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", image, path], check=True, timeout=10)
    made = Frozen(path)
    try:
        yield made
    finally:
        made.thaw()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def has_extension(stack: Stack) -> bool:
    return "not active" not in stack.layerfs.ok("status", stack.name)


class Asynchronous:
    """One write by io_submit(2), which need not wait for its end: io_getevents(2) does."""

    def __init__(self, fd: int, data: mmap.mmap, offset: int) -> None:
        self._context = ctypes.c_ulong()
        assert _libc.syscall(_IO_SETUP, 1, ctypes.byref(self._context)) == 0
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        self._block = ctypes.create_string_buffer(
            struct.pack("=QIIHhIQQqQII", 0, 0, 0, _IOCB_PWRITE, 0, fd, address, len(data), offset, 0, 0, 0)
        )
        self._blocks = (ctypes.c_void_p * 1)(ctypes.addressof(self._block))

    def submit(self) -> None:
        assert _libc.syscall(_IO_SUBMIT, self._context, 1, self._blocks) == 1

    def result(self) -> int:
        """Wait until it is done; return how many bytes were written, or an errno that is negative."""
        event = ctypes.create_string_buffer(32)
        assert _libc.syscall(_IO_GETEVENTS, self._context, 1, 1, event, None) == 1
        assert _libc.syscall(_IO_DESTROY, self._context) == 0
        return int(struct.unpack("=QQqq", event.raw)[2])


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the numbers of system calls there")
def test_a_direct_write_is_seen_by_the_cache_whenever_that_was_filled(stack: Stack, disk: Frozen) -> None:
    """What is read into the cache while an asynchronous O_DIRECT write is under way must not stay there."""
    stack.upper, stack.work = disk.path / "upper", disk.path / "work"
    for path in (stack.upper, stack.work):
        path.mkdir()
    path = stack.mount() / "file"
    if not has_extension(stack):
        pytest.skip("only the extension can ask the kernel for it")
    path.write_bytes(b"o" * _SIZE)
    fd, reader = os.open(path, os.O_RDWR | os.O_DIRECT), os.open(path, os.O_RDONLY)
    os.fsync(fd)
    data = mmap.mmap(-1, _SIZE)
    data[:] = b"n" * _SIZE
    write = Asynchronous(fd, data, 0)
    writer = threading.Thread(target=write.submit)
    writes = requests_to_write(stack)
    disk.freeze()
    try:
        writer.start()
        wait_until(lambda: requests_to_write(stack) > writes)
        assert os.pread(reader, 3, 0) in (b"ooo", b"nnn")  # this is in the cache now
    finally:
        disk.thaw()
        writer.join()
    assert write.result() == _SIZE
    assert os.pread(reader, 2 * _SIZE, 0) == b"n" * _SIZE
    os.close(fd)
    os.close(reader)


def requests_to_write(stack: Stack) -> int:
    """Return how many the daemon has had. Closing a file or starting a program would wait for the disk."""
    status, answer = stack.layerfs.ask(stack.name, "GET", f"/layerfs/status?name={stack.name}")
    assert status == 200, answer
    return int(json.loads(answer)["Requests"].get("write", 0))


def test_reading_here_and_there_reads_little_more_than_that_from_the_disk(stack: Stack) -> None:
    file = stack.bottom / "large"
    with file.open("wb") as written:
        for _ in range(128):
            written.write(os.urandom(1 << 20))
        os.fsync(written)
    mnt = stack.mount()
    pid = stack.layerfs.pid(stack.name)

    def read_from_disk() -> int:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))

    with file.open("rb") as below:
        os.posix_fadvise(below.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    places = random.Random(1).sample(range(0, 128 << 20, _SIZE), 12)
    before = read_from_disk()
    with (mnt / "large").open("rb", buffering=0) as above:
        for place in places:
            assert len(os.pread(above.fileno(), _SIZE, place)) == _SIZE
    if read_from_disk() == before:
        pytest.skip("this filesystem reads from no disk, or does not say so")
    assert read_from_disk() - before <= 4 * 12 * _SIZE


def test_many_small_allocations_and_writes_between_them(stack: Stack) -> None:
    (stack.bottom / "lower").write_bytes(b"x" * 10_000)
    mnt = stack.mount()
    if not has_extension(stack):
        pytest.skip("fallocate comes by way of the extension")
    for name, start in (("lower", 10_000), ("new", 0)):
        with (mnt / name).open("r+b" if start else "w+b", buffering=0) as file:
            for number in range(500):
                offset = start + number * 1000
                fallocate(file.fileno(), KEEP_SIZE if number % 3 == 0 else 0, offset, 1000)
                if number % 5 == 0:
                    os.pwrite(file.fileno(), b"data", offset)
            expected = b"x" * start + b"".join(
                (b"data" if number % 5 == 0 else b"").ljust(1000, b"\0") for number in range(500)
            )
            assert os.pread(file.fileno(), 1 << 20, 0) == expected
            fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, start, 4096)
            fallocate(file.fileno(), ZERO_RANGE, start + 5000, 4 << 20)
            assert os.fstat(file.fileno()).st_size == start + 5000 + (4 << 20)
            expected = expected[:start] + bytes(4096) + expected[start + 4096 : start + 5000]
            assert os.pread(file.fileno(), 8 << 20, 0) == expected + bytes(4 << 20)
            mtime = os.fstat(file.fileno()).st_mtime_ns
        assert (mnt / name).stat().st_mtime_ns == mtime
        stack.remount()
        assert (mnt / name).read_bytes() == expected + bytes(4 << 20)
        assert (mnt / name).stat().st_mtime_ns == mtime


def test_allocating_more_than_there_is_room_for(stack: Stack, small: Path) -> None:
    stack.upper, stack.work = small / "upper", small / "work"
    for path in (stack.upper, stack.work):
        path.mkdir()
    mnt = stack.mount()
    if not has_extension(stack):
        pytest.skip("fallocate comes by way of the extension")
    with (mnt / "file").open("wb") as file:
        assert errno_of(lambda: fallocate(file.fileno(), 0, 0, 1 << 30)) == errno.ENOSPC
        fallocate(file.fileno(), 0, 0, 1 << 20)


class Job(ctypes.Structure):
    """What a thread of the extension is to do: struct job of `_wire.h`."""

    _fields_ = (
        ("next", ctypes.c_void_p),
        ("opcode", ctypes.c_uint32),
        ("device", ctypes.c_int),
        ("file", ctypes.c_int),
        ("unique", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("serial", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("ahead", ctypes.c_uint32),
        ("flags", ctypes.c_int),
        ("request", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("time", ctypes.c_void_p),
    )


def test_a_commit_waits_for_what_a_thread_allocates(disk: Frozen) -> None:
    """`wait_for_writes` is what it waits with: it returns once the disk has let the thread go on."""
    extension = pytest.importorskip("layerfs.fuse._wire")
    library = ctypes.CDLL(extension.__file__)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    done = threading.Event()

    def wait() -> None:
        extension.wait_for_writes()
        done.set()

    waiter = threading.Thread(target=wait)
    with ours, theirs, (disk.path / "file").open("wb", buffering=0) as file:
        disk.freeze()
        try:
            job = Job(opcode=43, device=ours.fileno(), file=file.fileno(), unique=1, length=8192)
            assert library.hand_over(job)
            assert extension.pending_writes() == 1
            waiter.start()
            assert not done.wait(0.1)
        finally:
            disk.thaw()
        waiter.join()
        assert os.fstat(file.fileno()).st_size == 8192
        assert struct.unpack("=IiQ", theirs.recv(100)) == (16, 0, 1)
    assert extension.pending_writes() == 0
