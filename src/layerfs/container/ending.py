"""Ending a container, as seen by those who only ask for it: its process is ended, others clear away."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from layerfs.errors import Conflict
from layerfs.host import freezer
from layerfs.host.record import look, settled

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_PATIENCE = 10.0
"""Seconds that a process may take to end once it was killed."""


def send(mount: Mount, number: int) -> bool:
    """Send a signal to the process of the container *mount*; return whether it runs. Raises `OSError`.

    One that is being started gets it once its start is through: its output is seen before that.
    """
    record = settled(mount.id)
    if record is None:
        return False
    freezer.thaw(record.pid, mount.id)  # who was to let it go on again may have been killed
    return record.signal(number)


def end(mount: Mount, number: int = signal.SIGKILL, patience: float | None = 0.0) -> None:
    """End the process of the container *mount*: signal *number*, and after *patience* seconds SIGKILL.

    None is patience without end. Returns when it has ended, and at once when it does not run. One that is
    being started is ended when it has begun. Raises `Conflict` if it does not end.
    """
    record = settled(mount.id)
    if record is None or not record.alive():
        return
    if number != signal.SIGKILL:
        send(mount, number)
        if record.wait(patience):
            return
    send(mount, signal.SIGKILL)
    if not record.wait(_PATIENCE):
        raise Conflict(f"{mount.name} was killed but does not end: its process waits for something")


def check_unused(mount_id: str, name: str) -> None:
    """Raise `Conflict` if a container runs in the mount *mount_id*, called *name*."""
    record = look(mount_id)
    if record is not None and record.alive():
        raise Conflict(
            f"{name} is the filesystem of a container that runs (process {record.pid}): "
            f"'layerfs stop {name}' ends the container and unmounts it"
        )
