"""Whether a mount runs, in Docker's words; and how what a dead daemon left behind is taken away."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from layerfs import mounttable
from layerfs.control.times import duration
from layerfs.errors import Conflict
from layerfs.runtime import running_pid

if TYPE_CHECKING:
    from layerfs.store.model import Mount


@dataclass(frozen=True, slots=True)
class MountState:
    """The state of a mount: *pid* of its daemon, None when none runs; *dead* when it ended in mid-air."""

    pid: int | None
    dead: bool
    state: str
    status: str


def state_of(mount: Mount) -> MountState:
    """Return the state of *mount* now: its run lock is the truth, the store says what was meant to be."""
    pid = running_pid(mount.name)
    if pid is not None:
        since = mount.started or datetime.now(UTC)
        return MountState(
            pid, False, "running", f"Up {duration((datetime.now(UTC) - since).total_seconds())}"
        )
    if mount.started is not None:
        return MountState(None, True, "dead", "Dead")
    if mount.mountpoint is None:
        return MountState(None, False, "created", "Created")
    return MountState(None, False, "exited", "Exited (0)")


def not_running(mount: Mount) -> Conflict:
    """Return the error for *mount*, whose daemon is needed and does not run."""
    resume = f"run 'layerfs mount --name {mount.name} {mount.mountpoint or 'MOUNTPOINT'}' to resume"
    if mount.started is not None:
        return Conflict(f"{mount.name} is not running (its daemon ended without unmounting); {resume}")
    return Conflict(f"{mount.name} is not mounted; {resume}")


def detach(mountpoint: str, name: str) -> None:
    """Take away what the dead daemon of the mount called *name* left at *mountpoint*, if anything.

    The mount table is asked, not the directory: the kernel may still have it cached and show no fault.
    Raises `LayerfsError` when it stays.
    """
    if mounttable.mounted_at(mountpoint) == (mounttable.TYPE, name):
        mounttable.unmount(mountpoint, lazy=True)
