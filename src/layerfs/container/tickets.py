"""Who waits for a container that has not begun: to attach before its first output, or to learn how it ends.

Docker's client attaches, and waits, before it starts. A ticket is taken then. The start of the container
calls them all when its process exists but has not begun, so no output and no end is missed. Tickets are those
of one process: where the container is started by another one, a ticket finds out by looking.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from contextlib import suppress

from layerfs.container.attachment import connect
from layerfs.errors import LayerfsError
from layerfs.host.record import Record, Watch, directory, look

_lock = threading.Lock()
_tickets: dict[str, list[Ticket]] = defaultdict(list)
_LOOK = 0.25
"""Seconds between two looks for a start by another process."""


class Ticket:
    """The place of somebody who waits for the start of a container; a context manager."""

    def __init__(self, mount_id: str, *, attach: bool) -> None:
        """Wait for the start of the container *mount_id*, and *attach* to it then."""
        self.watch: Watch | None = None
        """The record of the container, once it is being started."""
        self.connection: socket.socket | None = None
        """The connection to its supervisor, once it is being started and if that was wanted."""
        self.record: Record | None = None
        """Its first process, once it is being started."""
        self._mount_id = mount_id
        self._attach = attach
        self._called = threading.Event()
        with _lock:
            _tickets[mount_id].append(self)

    def wait(self, seconds: float) -> bool:
        """Wait for the start, *seconds* at most; return whether it has come. Raises `LayerfsError`."""
        deadline = time.monotonic() + seconds
        while not self._called.wait(max(0.0, min(_LOOK, deadline - time.monotonic()))):
            record = look(self._mount_id)
            if record is not None and record.alive():
                self.call(record)
            elif time.monotonic() > deadline:
                return False
        return True

    def call(self, record: Record) -> None:
        """Say that the first process is there. Raises `LayerfsError` if it cannot be attached to."""
        with _lock:
            if self._called.is_set():
                return
            with suppress(FileNotFoundError):
                self.watch = Watch(self._mount_id)
            self.record = record
            if self._attach:
                self.connection = connect(directory(self._mount_id))
            self._called.set()

    def __enter__(self) -> Ticket:
        """Return the ticket itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Give the ticket back, and close what it has opened."""
        with _lock:
            waiting = _tickets[self._mount_id]
            if self in waiting:
                waiting.remove(self)
            if not waiting:
                del _tickets[self._mount_id]
        if self.watch is not None:
            self.watch.close()
        if self.connection is not None:
            self.connection.close()


def call(mount_id: str, record: Record) -> None:
    """Say that the first process of the container *mount_id* is there, and has not begun."""
    with _lock:
        waiting = list(_tickets.get(mount_id, ()))
    for ticket in waiting:
        with suppress(LayerfsError):  # the one who waits finds out
            ticket.call(record)
