"""A client of a container's supervisor: its output here, our input there, and our signals to its process.

conmon listens on a SOCK_SEQPACKET socket. What comes from it begins with a byte that names the stream
(2 is standard output, 3 standard error); what goes to it is input. Sizes of the terminal go to a fifo.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from layerfs.container import terminal
from layerfs.container.ociruntime import ContainerError
from layerfs.host.polling import readable
from layerfs.host.record import Record

DETACH = b"\x10\x11"
"""Ctrl-P Ctrl-Q, typed at a terminal, leaves the container running (Docker's default)."""
_PIECE = 8192
"""conmon's own unit."""
_OUTPUT = {2: 1, 3: 2}
"""For the byte before a piece of output, the descriptor it goes to."""
_INSISTENCE = 3
"""How often a container's process may ignore SIGINT and SIGTERM before we leave it alone, as docker does."""
_PROXIED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


class Attachment:
    """A connection to a container's supervisor; a context manager."""

    def __init__(self, bundle: Path, record: Record, *, tty: bool, stdin: bool) -> None:
        """Connect; *tty* says that the container has a terminal, *stdin* that our input is for it.

        Raises `ContainerError`.
        """
        self._bundle = bundle
        self._record = record
        self._tty = tty
        self._stdin = stdin
        self._typed = b""
        self._insisted = 0
        directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/attach")  # its own path may be too long
        except OSError as error:
            self._socket.close()
            raise ContainerError(f"cannot attach to the container: {error.strerror}") from None
        finally:
            os.close(directory)
        if tty:
            self._resize()

    def run(self) -> bool:
        """Pass on input, output and signals until the container has ended; return False if we left it before.

        Raises `OSError`, for one if our own output is closed.
        """
        readers = [self._socket.fileno(), *([0] if self._stdin else [])]
        keys = self._tty and self._stdin
        with _signals() as (waker, received), terminal.raw(0) if keys else nullcontext():
            readers.append(waker)
            while True:
                ready = readable(readers)
                if waker in ready:
                    with suppress(BlockingIOError):
                        os.read(waker, 4096)
                    while received:
                        self._pass_on(received.pop(0))
                if self._socket.fileno() in ready and not self._show():
                    return True
                if 0 in ready and (more := self._send()) is not True:
                    if more is None:
                        return False
                    readers.remove(0)

    def _show(self) -> bool:
        """Write what the container wrote; return False at the end."""
        try:
            piece = self._socket.recv(_PIECE + 1)
        except ConnectionResetError:
            return False
        if not piece:
            return False
        rest = memoryview(piece)[1:]
        while rest:
            rest = rest[os.write(_OUTPUT.get(piece[0], 1), rest) :]
        return True

    def _send(self) -> bool | None:
        """Send what there is to read; return False at its end, None when the keys to detach were typed."""
        try:
            data = os.read(0, _PIECE)
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal is gone
                raise
            data = b""
        try:
            if not data:
                self._socket.shutdown(socket.SHUT_WR)
                return False
            if self._tty and DETACH in (keys := self._typed + data):
                if before := keys.partition(DETACH)[0][len(self._typed) :]:
                    self._socket.send(before)
                return None
            self._typed = data[-1:]
            self._socket.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._tty:
                self._resize()
            return
        self._insisted += number in (signal.SIGINT, signal.SIGTERM)
        if self._insisted >= _INSISTENCE:
            raise ContainerError("interrupted three times: the container is left running")
        self._record.signal(number)

    def _resize(self) -> None:
        """Give the container's terminal the size of ours."""
        found = next((found for fd in (0, 1, 2) if (found := terminal.size(fd))), None)
        if found is not None:
            with suppress(OSError):
                fifo = os.open(self._bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    os.write(fifo, b"1 %d %d\n" % found)
                finally:
                    os.close(fifo)

    def __enter__(self) -> Attachment:
        """Return the connection itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connection; the container goes on."""
        self._socket.close()


@contextmanager
def _signals() -> Iterator[tuple[int, list[int]]]:
    """Collect signals while the block lasts, in a list, with a descriptor that can be read when one came."""
    received: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    numbers = (*_PROXIED, signal.SIGWINCH)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader, received
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
