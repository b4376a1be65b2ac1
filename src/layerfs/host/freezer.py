"""The cgroup freezer: everything in a container stands still, and goes on as if nothing had been.

Of cgroups, version 2 has `cgroup.freeze` (kernel documentation, admin-guide/cgroup-v2.rst), version 1 a
hierarchy of its own (cgroup-v1/freezer-subsystem.rst).
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from layerfs.host import mounttable


class Freezer(NamedTuple):
    """The files that freeze a cgroup, and what they say."""

    switch: Path
    frozen: str
    thawed: str
    state: Path
    is_frozen: re.Pattern[str]

    def freeze(self) -> None:
        """Ask for everything in the cgroup to stand still. Raises `OSError`."""
        self.switch.write_text(self.frozen)

    def thaw(self) -> None:
        """Let everything go on. Raises `OSError`."""
        self.switch.write_text(self.thawed)

    def stands_still(self) -> bool:
        """Return whether everything does. Raises `OSError`."""
        return self.is_frozen.search(self.state.read_text()) is not None


def find(pid: int, mount_id: str) -> Freezer | None:
    """Return the freezer of the container *mount_id* with the process *pid*.

    None where it has no cgroup of its own: what else is in there must not be frozen.
    """
    places = dict(_hierarchies())
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in sorted(lines, reverse=True):  # version 2, whose number is 0, comes last
        number, controllers, path = line.split(":", 2)
        if mount_id not in path:
            continue
        if "freezer" in controllers.split(",") and "freezer" in places:
            group = places["freezer"] / path.lstrip("/")
            state = group / "freezer.state"
            return Freezer(state, "FROZEN", "THAWED", state, re.compile("^FROZEN"))
        if number == "0" and "" in places:
            group = places[""] / path.lstrip("/")
            return Freezer(
                group / "cgroup.freeze", "1", "0", group / "cgroup.events", re.compile("^frozen 1$", re.M)
            )
    return None


def _hierarchies() -> list[tuple[str, Path]]:
    """Return where the freezer of version 1 ("freezer") and version 2 ("") are mounted."""
    found = []
    for mounted in mounttable.mounts():
        if mounted.type == "cgroup2":
            found.append(("", Path(mounted.place)))
        elif mounted.type == "cgroup" and "freezer" in mounted.flags:
            found.append(("freezer", Path(mounted.place)))
    return found


def is_frozen(pid: int, mount_id: str) -> bool:
    """Return whether the container *mount_id* with the process *pid* stands still."""
    try:
        found = find(pid, mount_id)
        return found is not None and found.stands_still()
    except OSError:  # it has ended
        return False


def thaw(pid: int, mount_id: str) -> None:
    """Let a container go on that somebody froze and could not thaw: signals reach it only then."""
    if freezer := find(pid, mount_id):
        with suppress(OSError):
            freezer.thaw()
