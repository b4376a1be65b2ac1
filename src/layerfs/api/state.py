"""Whether a mount runs, in Docker's words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from layerfs.api.times import duration
from layerfs.host import freezer
from layerfs.host.record import directory, is_changing, look
from layerfs.host.rundir import running_pid

if TYPE_CHECKING:
    from layerfs.store.model import Mount


@dataclass(frozen=True, slots=True)
class MountState:
    """The state of a mount: *pid* of its daemon, None when none runs; *dead* when it ended in mid-air.

    In a container, *pid* is that of the process which it runs.
    """

    pid: int | None
    dead: bool
    state: str
    status: str


def state_of(mount: Mount) -> MountState:
    """Return the state of *mount* now: its run lock is the truth, the store says what was meant to be."""
    pid = running_pid(mount.name)
    if mount.container and (state := _container_state(mount, pid)):
        return state
    if pid is not None:
        return MountState(pid, False, "running", f"Up {_age(mount.started or datetime.now(UTC))}")
    if mount.started is not None:
        return MountState(None, True, "dead", "Dead")
    if mount.mountpoint is None:
        return MountState(None, False, "created", "Created")
    return MountState(None, False, "exited", "Exited (0)")


def _container_state(mount: Mount, daemon: int | None) -> MountState | None:
    """Return the state of a container, None when it is no more than a mount at the moment."""
    known, record = mount.container, look(mount.id)
    if record is not None and record.alive():
        if daemon is None:
            return MountState(record.pid, True, "dead", "Dead (the daemon of its files has ended)")
        since = f"Up {_age(known.get('StartedAt') or mount.created)}"
        if freezer.is_frozen(record.pid, mount.id):
            return MountState(record.pid, False, "paused", f"{since} (Paused)")
        if health := known.get("Health"):
            word = "health: starting" if health["Status"] == "starting" else health["Status"]
            since += f" ({word})"
        return MountState(record.pid, False, "running", since)
    if daemon is not None:
        if mount.mountpoint not in (None, str(directory(mount.id) / "rootfs")):
            return None  # somebody has mounted it to look into it
        if record is not None and record.exit_code is None:  # it has ended just now
            return MountState(daemon, False, "running", f"Up {_age(known.get('StartedAt') or mount.created)}")
    if record is not None and record.exit_code is None and is_changing(mount.id):  # it has ended just now
        return MountState(0, False, "running", f"Up {_age(known.get('StartedAt') or mount.created)}")
    if known.get("Restarting"):
        status = f"Restarting ({known['ExitCode']}) {_age(known['FinishedAt'])} ago"
        return MountState(None, False, "restarting", status)
    if not known.get("StartedAt"):
        return MountState(None, False, "created", "Created")
    if not known.get("FinishedAt"):  # the machine was switched off, or its supervisor was killed
        return MountState(None, False, "exited", "Exited (255)")
    return MountState(None, False, "exited", f"Exited ({known['ExitCode']}) {_age(known['FinishedAt'])} ago")


def _age(since: datetime | str) -> str:
    moment = datetime.fromisoformat(since) if isinstance(since, str) else since
    return duration((datetime.now(UTC) - moment).total_seconds())
