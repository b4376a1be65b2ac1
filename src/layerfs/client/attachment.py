"""The terminal or the pipes of whoever runs a command, joined to a process in a container."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from layerfs.container.attachment import Detach
from layerfs.errors import LayerfsError
from layerfs.host import terminal
from layerfs.host.polling import readable

_PIECE = 65536
_INSISTENCE = 3
"""How often a container's process may ignore SIGINT and SIGTERM before we leave it alone, as docker does."""
_PROXIED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


class Demultiplexer:
    """Writes what a process has written to our standard output and standard error."""

    def __init__(self, *, tty: bool) -> None:
        """Take output as it comes from a *tty*, otherwise in Docker's multiplexed form."""
        self._tty = tty
        self._received = b""

    def feed(self, data: bytes) -> None:
        """Write *data*, as far as it is whole. Raises `OSError`."""
        if self._tty:
            _write(1, data)
            return
        self._received += data
        while len(self._received) >= 8:
            stream, length = struct.unpack(">BxxxI", self._received[:8])
            if len(self._received) < 8 + length:
                return
            _write(2 if stream == 2 else 1, self._received[8 : 8 + length])
            self._received = self._received[8 + length :]


class Joined:
    """A connection to a process, with our input and output."""

    def __init__(
        self,
        connection: socket.socket,
        early: bytes,
        *,
        tty: bool,
        stdin: bool,
        resize: Callable[[int, int], None],
        pass_on: Callable[[int], None],
        keys: bytes = b"\x10\x11",
    ) -> None:
        """Join *connection*, over which *early* has come already.

        *tty*: the process has a terminal, so output comes as it is; otherwise in Docker's multiplexed form.
        *stdin*: our input is for it; typing *keys* leaves it alone. *resize* is called with rows and columns,
        *pass_on* with signals.
        """
        self._connection = connection
        self._early = early
        self._output = Demultiplexer(tty=tty)
        self._tty = tty
        self._stdin = stdin
        self._resize = resize
        self._pass_on = pass_on
        self._insisted = 0
        self._detach = Detach(keys if tty else b"")
        self._left = False

    def run(self) -> bool:
        """Pass on input, output and signals until the other side ends; return False if the user left before.

        Raises `OSError`, for one if our own output is closed, and `LayerfsError` after too many interrupts.
        """
        descriptor = self._connection.fileno()
        readers = [descriptor, *([0] if self._stdin else [])]
        keys = self._tty and self._stdin
        with _signals() as (waker, received), terminal.raw(0) if keys else nullcontext():
            readers.append(waker)
            self._output.feed(self._early)
            if self._tty:
                self._tell_size()
            while True:
                ready = readable(readers)
                if waker in ready:
                    with suppress(BlockingIOError):
                        os.read(waker, 4096)
                    while received:
                        self._signal(received.pop(0))
                if descriptor in ready:
                    try:
                        data = self._connection.recv(_PIECE)
                    except ConnectionResetError:
                        data = b""
                    if not data:
                        return True
                    self._output.feed(data)
                if 0 in ready and not self._send():
                    if self._left:
                        return False
                    readers.remove(0)

    def _send(self) -> bool:
        """Send what there is to read; return False at its end."""
        try:
            data = os.read(0, _PIECE)
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal is gone
                raise
            data = b""
        try:
            if data:
                data, self._left = self._detach.feed(data)
                self._connection.sendall(data)
                return not self._left
            self._connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError, OSError):
            pass
        return False

    def _signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._tty:
                self._tell_size()
            return
        self._insisted += number in (signal.SIGINT, signal.SIGTERM)
        if self._insisted >= _INSISTENCE:
            raise LayerfsError("interrupted three times: the container is left running")
        with suppress(LayerfsError):  # it may have ended
            self._pass_on(number)

    def _tell_size(self) -> None:
        found = next((found for fd in (0, 1, 2) if (found := terminal.size(fd))), None)
        if found is not None:
            with suppress(LayerfsError):
                self._resize(*found)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


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
