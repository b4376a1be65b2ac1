"""`config.json` for the OCI runtime: what Docker gives to a container that asks for nothing special.

The form is that of the OCI runtime specification 1.0 (config.md, config-linux.md); capabilities, mounts,
masked and read-only paths are those of moby's `oci/defaults.go` and `oci/caps/defaults.go`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerfs.container.seccomp import default_filter
from layerfs.container.settings import absolute, command, environment
from layerfs.container.users import User

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP",
        "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_OPEN_FILES = (1024, 524288)
"""The limit of open files, soft and hard, as systemd gives it to services."""
_SAFE = ("nosuid", "noexec", "nodev")
_MOUNTS = (
    ("/proc", "proc", "proc", _SAFE),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/sys", "sysfs", "sysfs", (*_SAFE, "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", (*_SAFE, "ro")),
    ("/dev/mqueue", "mqueue", "mqueue", _SAFE),
    ("/dev/shm", "tmpfs", "shm", (*_SAFE, "mode=1777", "size=65536k")),
)
Bind = Sequence[str]
"""Host path, destination, and "rw" or "ro"."""


def build(
    *,
    mount_id: str,
    root: Path,
    config: Mapping[str, Any],
    user: User,
    hostname: str,
    network: str,
    terminal: bool,
    binds: Iterable[Bind],
) -> dict[str, Any]:
    """Return the specification of a container *mount_id* whose tree is mounted at *root*.

    *config* is its configuration, *user* who its `User` is in the image; *binds* are mounted in their order.
    """
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": False},
        "hostname": hostname,
        "process": process(config, user, hostname=hostname, terminal=terminal),
        "mounts": [
            *(
                {"destination": destination, "type": kind, "source": source, "options": list(options)}
                for destination, kind, source, options in _MOUNTS
            ),
            *(
                {
                    "destination": destination,
                    "type": "bind",
                    "source": host,
                    "options": ["rbind", "rprivate", mode],
                }
                for host, destination, mode in binds
            ),
        ],
        "linux": {
            "cgroupsPath": f"/layerfs/{mount_id}",
            "namespaces": [{"type": kind} for kind in _namespaces(network)],
            "resources": {"devices": [{"allow": False, "access": "rwm"}, *_allowed_devices()]},
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
            **_seccomp(),
        },
    }


def process(config: Mapping[str, Any], user: User, *, hostname: str, terminal: bool) -> dict[str, Any]:
    """Return the member `process`: what runs, as whom, where, and with what rights."""
    own = [PATH, f"HOSTNAME={hostname}", f"HOME={user.home}", *(["TERM=xterm"] if terminal else [])]
    capabilities: dict[str, list[str]] = {"bounding": list(CAPABILITIES)}
    if user.uid == 0:
        capabilities |= {"effective": list(CAPABILITIES), "permitted": list(CAPABILITIES)}
    soft, hard = _OPEN_FILES
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "terminal": terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": command(config),
        "env": environment(own, config.get("Env") or ()),
        "cwd": absolute(config.get("WorkingDir") or "/"),
        "capabilities": capabilities,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": min(soft, most), "hard": min(hard, most)}],
        "noNewPrivileges": False,
    }


def _namespaces(network: str) -> list[str]:
    own = ["pid", "ipc", "uts", "mount"]
    if network == "none":
        own.append("network")
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        own.append("cgroup")  # Docker's default where there are cgroups of version 2 alone
    return own


def _allowed_devices() -> list[dict[str, Any]]:
    """Return what may be done with devices: anything may be made, only the harmless ones opened."""
    harmless = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
    return [
        *({"allow": True, "type": kind, "access": "m"} for kind in "cb"),
        *({"allow": True, "type": "c", "major": a, "minor": b, "access": "rwm"} for a, b in harmless),
        {"allow": True, "type": "c", "major": 136, "access": "rwm"},
    ]


def _seccomp() -> dict[str, Any]:
    filter_ = default_filter(CAPABILITIES)
    return {"seccomp": filter_} if filter_ else {}
