"""An HTTP connection over a Unix socket, apart because the standard library's client is slow to import."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path


class UnixConnection(http.client.HTTPConnection):
    """A connection to the server that listens on the socket *path*."""

    def __init__(self, path: Path, timeout: float) -> None:
        """Prepare to connect to *path*; the connection is made with the first request.

        Nothing on it waits longer than *timeout* seconds.
        """
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect; raises `OSError`."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))
