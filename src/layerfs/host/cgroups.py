"""Control groups: of which version they are here, what they can limit, and where a process is in them.

Version 1 has a hierarchy for each controller (cgroup-v1/cgroups.rst), version 2 one for all
(admin-guide/cgroup-v2.rst). A machine that has both (systemd's "hybrid") limits by version 1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs.host import mounttable

_MOUNTED = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "hugetlb")


def unified() -> bool:
    """Return whether this machine has control groups of version 2 alone."""
    return (_MOUNTED / "cgroup.controllers").exists()


def hierarchies() -> dict[str, Path]:
    """Return where each controller of version 1 is mounted, and with the name "" where version 2 is."""
    found: dict[str, Path] = {}
    for mounted in mounttable.mounts():
        if mounted.type == "cgroup2":
            found.setdefault("", Path(mounted.place))
        elif mounted.type == "cgroup":
            for controller in mounted.flags.intersection(_CONTROLLERS):
                found.setdefault(controller, Path(mounted.place))
    return found


@dataclass(frozen=True, slots=True)
class Groups:
    """The directories of one container's control groups."""

    version: int
    directories: dict[str, Path]
    """By controller for version 1; version 2 has the one named ""."""

    def directory(self, controller: str) -> Path | None:
        """Return where the files of *controller* are, None where this machine has no such controller."""
        return self.directories.get("" if self.version == 2 else controller)

    def read(self, controller: str, name: str) -> str:
        """Return the text of a file of *controller*, empty where there is no such file."""
        directory = self.directory(controller)
        if directory is not None:
            with suppress(OSError):
                return (directory / name).read_text(errors="replace")
        return ""

    def processes(self) -> list[int]:
        """Return the pids of all processes in the groups, those of groups below among them."""
        found: set[int] = set()
        for controller in ("", "pids", "devices", "memory"):
            directory = self.directories.get(controller)
            if directory is None:
                continue
            for parent, _, _ in os.walk(directory):
                with suppress(OSError):
                    found.update(map(int, Path(parent, "cgroup.procs").read_text().split()))
            break
        return sorted(found)


def of_container(pid: int, mount_id: str) -> Groups | None:
    """Return the groups of the container *mount_id* with the process *pid*.

    None when it has ended, or has none of its own: what else is in there is no business of its.
    """
    places = hierarchies()
    version = 2 if unified() else 1
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found: dict[str, Path] = {}
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if mount_id not in path:
            continue
        own = re.match(f".*?/[^/]*{mount_id}[^/]*", path)  # the process may be in a group below
        group = (own[0] if own else path).lstrip("/")
        for controller in controllers.split(",") if version == 1 else [""] if number == "0" else []:
            if controller in places:
                found[controller] = places[controller] / group
    return Groups(version, found) if found else None


def has_run_out_of_memory(path: str) -> bool:
    """Return whether the kernel has killed a process of the groups at *path* for want of memory."""
    version = 2 if unified() else 1
    place = hierarchies().get("" if version == 2 else "memory")
    if place is None:
        return False
    groups = Groups(version, {"" if version == 2 else "memory": place / path.lstrip("/")})
    text = groups.read("memory", "memory.events" if version == 2 else "memory.oom_control")
    found = re.search(r"^oom_kill (\d+)$", text, re.M)
    return found is not None and int(found[1]) > 0


@dataclass(frozen=True, slots=True)
class Support:
    """What the control groups of a machine can limit."""

    memory: bool = True
    swap: bool = True
    swappiness: bool = True
    reservation: bool = True
    oom_kill_disable: bool = True
    pids: bool = True
    cpu_shares: bool = True
    cpu_quota: bool = True
    cpu_realtime: bool = True
    cpus: str = ""
    """Those that a process may be bound to, such as "0-3"; empty where none can be bound."""
    memory_nodes: str = ""
    blkio_weight: bool = True
    blkio_limits: bool = True


def support() -> Support:
    """Return what can be limited here."""
    if unified():
        return _support_unified(set((_MOUNTED / "cgroup.controllers").read_text().split()))
    places = hierarchies()

    def has(controller: str, name: str) -> bool:
        return controller in places and (places[controller] / name).exists()

    def text(name: str) -> str:
        with suppress(KeyError, OSError):
            return (places["cpuset"] / name).read_text().strip()
        return ""

    return Support(
        memory=has("memory", "memory.limit_in_bytes"),
        swap=has("memory", "memory.memsw.limit_in_bytes"),
        swappiness=has("memory", "memory.swappiness"),
        reservation=has("memory", "memory.soft_limit_in_bytes"),
        oom_kill_disable=has("memory", "memory.oom_control"),
        pids="pids" in places,
        cpu_shares=has("cpu", "cpu.shares"),
        cpu_quota=has("cpu", "cpu.cfs_quota_us"),
        cpu_realtime=has("cpu", "cpu.rt_period_us"),
        cpus=text("cpuset.cpus"),
        memory_nodes=text("cpuset.mems"),
        blkio_weight=has("blkio", "blkio.weight") or has("blkio", "blkio.bfq.weight"),
        blkio_limits=has("blkio", "blkio.throttle.read_bps_device"),
    )


def _support_unified(controllers: Collection[str]) -> Support:
    def text(name: str) -> str:
        with suppress(OSError):
            return (_MOUNTED / name).read_text().strip()
        return ""

    own = Path("/proc/self/cgroup").read_text().partition("0::")[2].partition("\n")[0].lstrip("/")
    # The root has no limits of its own: there the kernel's word for swap counts.
    swap = Path("/proc/swaps") if not own else _MOUNTED / own / "memory.swap.max"
    cpuset = "cpuset" in controllers
    return Support(
        memory="memory" in controllers,
        swap="memory" in controllers and swap.exists(),
        swappiness=False,
        reservation="memory" in controllers,
        oom_kill_disable=False,
        pids="pids" in controllers,
        cpu_shares="cpu" in controllers,
        cpu_quota="cpu" in controllers,
        cpu_realtime=False,
        cpus=text("cpuset.cpus.effective") if cpuset else "",
        memory_nodes=text("cpuset.mems.effective") if cpuset else "",
        blkio_weight="io" in controllers,
        blkio_limits="io" in controllers,
    )
