"""Telling the service manager how the daemon is doing: the protocol of sd_notify(3).

A service of `Type=notify` finds in `$NOTIFY_SOCKET` the datagram socket on which its manager listens,
and sends it lines of `NAME=VALUE`. Started by hand there is no such variable, and nothing is sent.
"""

from __future__ import annotations

import os
import socket

SEND_TIMEOUT = 1.0  # seconds; the manager's queue is full only when the manager itself hangs


class Notifier:
    """Sends the state of this process to the service manager.

    Each method returns whether its message was sent: a manager that cannot be reached is no reason to
    stop serving, so no error is raised.
    """

    def __init__(self, address: str | None) -> None:
        """Send to *address*: a path, or `@NAME` for Linux's abstract namespace; None: send nothing."""
        self.address = address

    @classmethod
    def from_environment(cls) -> Notifier:
        """Return the notifier for `$NOTIFY_SOCKET`, and take that variable out of the environment.

        Processes started later are not the service, and must not speak for it.
        """
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

    def ready(self, status: str) -> bool:
        """Say that the service answers, that this process is its main one, and *status* (one line)."""
        return self._send(READY="1", MAINPID=str(os.getpid()), STATUS=status)

    def stopping(self, status: str) -> bool:
        """Say that the service is about to end, and *status*."""
        return self._send(STOPPING="1", STATUS=status)

    def status(self, status: str) -> bool:
        """Say *status*: the line that `systemctl status` shows."""
        return self._send(STATUS=status)

    def _send(self, **fields: str) -> bool:
        # Only these two kinds of address are sockets of this machine; sd_notify(3) also knows vsock.
        if not self.address or self.address[0] not in "/@":
            return False
        address = os.fsencode(self.address)
        if address.startswith(b"@"):
            address = b"\0" + address[1:]
        message = "\n".join(f"{name}={' '.join(value.splitlines())}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_TIMEOUT)
                sender.sendto(message.encode(errors="surrogateescape"), address)
        except OSError:
            return False
        return True
