"""A container's supervisor and a client's connection: output and input, in Docker's two forms.

conmon listens on a SOCK_SEQPACKET socket. What comes from it begins with a byte that names the stream (2 is
standard output, 3 standard error); what goes to it is input. A client gets what a terminal shows as it is.
Without one, each piece has a header of 8 bytes before it: the stream (1 or 2), three zeros, and the length
(Docker Engine API, ContainerAttach, "Stream format").
"""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs.container.ociruntime import ContainerError
from layerfs.errors import BadRequest
from layerfs.host.polling import readable

PIECE = 8192
"""conmon's own unit."""
STDOUT, STDERR = 1, 2
_ACCEPT_PATIENCE = 2.0
"""Seconds that a supervisor may take to accept a connection."""
_LOOK = 1.0
"""Seconds between two looks whether a client that has ended its input is still there for the output."""
_STREAMS = {2: STDOUT, 3: STDERR}
_DETACH = "ctrl-p,ctrl-q"
"""Docker's default keys to leave a container running."""


def frame(stream: int, data: bytes) -> bytes:
    """Return *data* of the *stream* in Docker's multiplexed form."""
    return struct.pack(">BxxxI", stream, len(data)) + data


def connect(bundle: Path) -> socket.socket:
    """Return a connection to the supervisor of the container whose directory is *bundle*.

    Raises `ContainerError`.
    """
    directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = _sockets(bundle)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"/proc/self/fd/{directory}/attach")  # its own path may be too long
    except OSError as error:
        connection.close()
        raise ContainerError(f"cannot attach to the container: {error.strerror}") from None
    finally:
        os.close(directory)
    # connect(2) returns before conmon accepts, and what the container writes in between would not come.
    deadline = time.monotonic() + _ACCEPT_PATIENCE
    while _sockets(bundle) <= before and time.monotonic() < deadline:
        time.sleep(0.001)
    return connection


def _sockets(bundle: Path) -> int:
    """Return how many sockets the supervisor of the container whose directory is *bundle* has open."""
    try:
        descriptors = Path("/proc", (bundle / "conmon.pid").read_text().strip(), "fd")
        return sum(os.readlink(path).startswith("socket:") for path in descriptors.iterdir())
    except OSError:  # it ends
        return 0


def resize(bundle: Path, rows: int, columns: int) -> None:
    """Give the terminal of a container a size. Raises `ContainerError` if it has none or does not run."""
    try:
        fifo = os.open(bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ContainerError(f"cannot resize the terminal: {error.strerror}") from None
    try:
        os.write(fifo, b"1 %d %d\n" % (rows, columns))
    finally:
        os.close(fifo)


def detach_keys(text: str) -> bytes:
    """Return the bytes of a sequence of keys such as "ctrl-p,ctrl-q" or "a,ctrl-[". Raises `BadRequest`."""
    keys = b""
    for key in (text or _DETACH).split(","):
        if len(key) == 1 and key.isascii():
            keys += key.encode()
        elif key.lower() == "del":
            keys += b"\x7f"
        elif (
            key.lower().startswith("ctrl-")
            and len(key) == 6
            and ("a" <= key[5].lower() <= "z" or key[5] in "@[\\]^_")
        ):
            keys += bytes([ord(key[5].upper()) - 64])
        else:
            raise BadRequest(f"invalid detach keys {text[:100]!r}: use letters, or ctrl- and a letter")
    return keys


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client wants of an attachment."""

    stdin: bool
    stdout: bool
    stderr: bool
    terminal: bool
    """Whether the container has one: output is as it is then, and the keys to detach count."""
    keys: bytes = b"\x10\x11"

    def encoded(self, stream: int, data: bytes) -> bytes:
        """Return what the client gets of *data*, nothing if it does not want it."""
        if not (self.stdout if stream == STDOUT else self.stderr):
            return b""
        return data if self.terminal else frame(stream, data)


class Detach:
    """Looks for the keys to detach in what is typed."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return what of the keys typed so far is input for sure, and whether the client leaves."""
        if not self._keys:
            return data, False
        data = self._held + data
        at = data.find(self._keys)
        if at >= 0:
            return data[:at], True
        held = next(
            n
            for n in range(min(len(self._keys) - 1, len(data)), -1, -1)
            if self._keys.startswith(data[len(data) - n :])
        )
        self._held = data[len(data) - held :]
        return data[: len(data) - held], False


def bridge(client: socket.socket, early: bytes, supervisor: socket.socket, wanted: Wanted) -> bool:
    """Pass on between *client*, which has sent *early* already, and *supervisor* until one of them ends.

    Returns False if the client left by its keys or ended the connection; then the container goes on.
    """
    detach = Detach(wanted.keys if wanted.terminal else b"")
    sending = wanted.stdin
    if sending and early and not _send(supervisor, detach, early):
        return False
    readers = [supervisor.fileno(), client.fileno()]
    while True:
        ready = readable(readers, _LOOK)
        if not ready and is_closed(client):
            return False
        if supervisor.fileno() in ready:
            try:
                piece = supervisor.recv(PIECE + 1)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return True
            stream = STDOUT if wanted.terminal else _STREAMS.get(piece[0], STDOUT)
            try:
                client.sendall(wanted.encoded(stream, piece[1:]))
            except OSError:
                return False
        if client.fileno() in ready:
            try:
                data = client.recv(PIECE)
            except OSError:
                return False
            if not data:
                readers.remove(client.fileno())  # it may have closed one direction alone
                if sending:
                    _close_input(supervisor)
                if is_closed(client):
                    return False
            elif sending and not _send(supervisor, detach, data):
                return False


def _send(supervisor: socket.socket, detach: Detach, data: bytes) -> bool:
    """Send *data* as input; return False if the client leaves. Input that nobody takes is dropped."""
    rest, leaves = detach.feed(data)
    try:
        for start in range(0, len(rest), PIECE):
            supervisor.send(rest[start : start + PIECE])
    except (BrokenPipeError, ConnectionResetError):
        pass
    return not leaves


def _close_input(supervisor: socket.socket) -> None:
    with suppress(OSError):
        supervisor.shutdown(socket.SHUT_WR)


def is_closed(client: socket.socket) -> bool:
    """Return whether *client* has closed both directions, not just the one to us."""
    from select import POLLERR, POLLHUP, poll

    looker = poll()
    looker.register(client.fileno(), 0)
    return any(events & (POLLHUP | POLLERR) for _, events in looker.poll(0))
