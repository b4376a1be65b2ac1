"""Which of the superuser's rights a container has (capabilities(7)): moby's `oci/caps`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from layerfs.errors import BadRequest

_NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""By their numbers: linux/capability.h."""
DEFAULT = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP",
        "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip
"""What a container has that asks for nothing else."""
_ALL = "ALL"


def available() -> list[str]:
    """Return those that this process can give away: what its bounding set has."""
    status = Path("/proc/self/status").read_text(errors="replace")
    found = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.M)
    mask = int(found[1], 16) if found else 0
    return [f"CAP_{name}" for number, name in enumerate(_NAMES) if mask >> number & 1]


def normalized(names: Iterable[str], member: str) -> list[str]:
    """Return *names* in the form "CAP_CHOWN", or "ALL"; raises `BadRequest` with the name of the *member*."""
    result = []
    here = available()
    for given in names:
        name = given.upper()
        if name != _ALL:
            name = f"CAP_{name.removeprefix('CAP_')}"
            if name.removeprefix("CAP_") not in _NAMES:
                raise BadRequest(f'invalid {member}: unknown capability: "{name[:80]}"')
            if name not in here:
                raise BadRequest(
                    f"invalid {member}: capability not supported by your kernel or not available "
                    f'in the current environment: "{name}"'
                )
        result.append(name)
    return result


def of(host_config: Mapping[str, Any]) -> list[str]:
    """Return the capabilities of a container with the settings *host_config*; raises `BadRequest`."""
    if host_config["Privileged"]:
        return available()
    added = normalized(host_config["CapAdd"] or (), "CapAdd")
    dropped = normalized(host_config["CapDrop"] or (), "CapDrop")
    if _ALL in added:
        return [name for name in available() if name not in dropped]
    if _ALL in dropped:
        return list(dict.fromkeys(added))
    kept = [name for name in DEFAULT if name not in dropped]
    return list(dict.fromkeys([*kept, *added]))
