"""The C extension between the kernel and Python, by its functions: files and sockets stand for /dev/fuse."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import errno_of

_wire = pytest.importorskip("layerfs.fuse._wire")
HEADER = struct.Struct("=IiQ")
"""struct fuse_out_header: length, error (negative), unique."""
UNIQUE = 77


class Device:
    """Stands for /dev/fuse: takes a message at a time, and refuses one that is too large."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self._wire = ctypes.CDLL(_wire.__file__)

    def answer(self, error: int, payload: bytes = b"") -> None:
        """Answer the request `UNIQUE`."""
        self._wire.answer(self.ours.fileno(), ctypes.c_uint64(UNIQUE), error, payload, len(payload))

    def received(self) -> list[tuple[int, bytes]]:
        """Return the answers that came: errno and payload."""
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                message = self.theirs.recv(1 << 21)
            except BlockingIOError:
                return found
            length, error, unique = HEADER.unpack_from(message)
            assert (length, unique) == (len(message), UNIQUE)
            found.append((-error, message[HEADER.size :]))


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.ours.close()
    made.theirs.close()


def test_answers(device: Device) -> None:
    device.answer(0, b"payload")
    device.answer(errno.ENOENT)
    device.answer(0)
    assert device.received() == [(0, b"payload"), (errno.ENOENT, b""), (0, b"")]


@pytest.mark.parametrize("error", [512, 524, 4095, -1, 1 << 30])
def test_an_errno_that_the_kernel_does_not_take_is_answered_with_one_that_it_does(
    device: Device, capfd: pytest.CaptureFixture[str], error: int
) -> None:
    device.answer(error)
    assert device.received() == [(errno.EIO, b"")]
    assert "answering EIO" in capfd.readouterr().err


def test_an_answer_that_is_refused_becomes_an_error(
    device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    device.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    device.answer(0, bytes(1 << 20))
    assert device.received() == [(errno.EIO, b"")]
    assert "Message too long" in capfd.readouterr().err


def test_an_answer_waits_for_a_moment_where_there_is_no_room(device: Device) -> None:
    device.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while errno_of(lambda: device.ours.send(HEADER.pack(HEADER.size, 0, UNIQUE))) != errno.EAGAIN:
        pass
    reader = threading.Timer(0.01, lambda: device.theirs.recv(4096))
    reader.start()
    device.answer(errno.EPERM)
    reader.join()
    assert device.received()[-1] == (errno.EPERM, b"")


def in_another_process(program: str) -> str:
    """Run *program* in an interpreter of its own, which may crash; return its output."""
    prelude = """
        import ctypes, os, struct, sys
        from layerfs.fuse import wire
        library = ctypes.PyDLL(wire.extension.__file__)
    """
    words = [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(program)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


def test_nothing_is_answered_once_the_session_is_closed() -> None:
    output = in_another_process(
        """
        ours, theirs = os.pipe()[::-1]
        os.set_blocking(theirs, False)
        wire.extension.stop_answering()
        library.answer(ours, ctypes.c_uint64(1), 0, b"late", 4)
        try:
            print(os.read(theirs, 100))
        except BlockingIOError:
            print("nothing")
        """
    )
    assert output == "nothing"


def test_requests_may_become_larger_than_the_first() -> None:
    """The FUSE library enlarges its buffer once it has agreed with the kernel on the size of writes."""
    output = in_another_process(
        """
        library.read_request.restype = ctypes.c_ssize_t
        small, large = 8192, 64 << 20
        device = os.memfd_create("requests")
        header = struct.Struct("=IIQQIIIHH")
        opcode = 60  # that nobody answers here
        for size in (small, large, small):
            request = header.pack(size, opcode, 1, 1, 0, 0, 0, 0, 0)
            os.write(device, request + bytes([size % 251]) * (size - len(request)))
        os.lseek(device, 0, os.SEEK_SET)
        for size in (small, large, small):
            buffer = ctypes.create_string_buffer(size)
            assert library.read_request(device, buffer, ctypes.c_size_t(size), None) == size
            assert buffer.raw[header.size :] == bytes([size % 251]) * (size - header.size)
        print("good")
        """
    )
    assert output == "good"


def test_reading_ahead_goes_as_far_as_reading_has_gone_on() -> None:
    library = ctypes.CDLL(_wire.__file__)
    library.bytes_ahead.restype = ctypes.c_uint32

    def ahead(inode: int, offset: int, size: int) -> int:
        found = library.bytes_ahead(ctypes.c_uint64(inode), ctypes.c_uint64(offset), ctypes.c_uint32(size))
        return int(found)

    piece, gap = 1 << 17, 1 << 30
    for number in range(100):
        assert ahead(1, (number * 7919 % 100) * gap, piece) == 0, "it was read at random"
    two_readers = [(ahead(2, at, piece), ahead(2, gap + at, piece)) for at in range(0, 100 * piece, piece)]
    assert two_readers[:3] == [(0, 0), (2 * piece, 2 * piece), (4 * piece, 4 * piece)]
    assert two_readers[-1] == (8 << 20, 8 << 20)
    assert ahead(2, 50 * piece, piece) == 0
    assert ahead(3, 100 * piece, piece) == 0, "another file"
