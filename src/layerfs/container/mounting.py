"""The mounts of a container for its runtime: what every one has, and its own mount points over that."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from layerfs.container import tmpfs
from layerfs.container.mountpoints import Point, bind
from layerfs.errors import BadRequest

_SAFE = ("nosuid", "noexec", "nodev")
_ALWAYS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
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
    ("/dev/shm", "tmpfs", "shm", (*_SAFE, "mode=1777")),
)
"""Moby's `oci/defaults.go`."""
_RECURSIVE = (5, 12)
"""The first kernel that makes all mounts below a directory read-only at once: mount_setattr(2)."""


def for_runtime(
    host_config: Mapping[str, Any], points: Iterable[Point], *, writable_cgroups: bool | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the `mounts` of a specification, and its `linux.rootfsPropagation` if it needs another.

    The sources of all *points* are paths by now. Raises `BadRequest` for a propagation that the source of a
    mount does not have.
    """
    own = [*points, *_temporary(host_config)]
    own.sort(key=lambda point: (point["Destination"].count("/"), point["Destination"]))  # the deeper later
    taken = {point["Destination"] for point in own}
    privileged = host_config["Privileged"]
    if writable_cgroups is None:
        writable_cgroups = privileged
    mounts = []
    for destination, kind, source, options in _ALWAYS:
        if destination in taken or ("/dev" in taken and destination.startswith("/dev/")):
            continue
        if destination == "/dev/shm":
            if host_config["IpcMode"] == "none":
                continue
            options = (*options, f"size={host_config['ShmSize']}")
        if (destination == "/sys" and privileged) or (kind == "cgroup" and writable_cgroups):
            options = tuple(option for option in options if option != "ro")
        if destination == "/dev/shm" and host_config["IpcMode"] == "host":
            mounts.append(_mount(bind("/dev/shm", "/dev/shm")))
            continue
        mounts.append({"destination": destination, "type": kind, "source": source, "options": list(options)})
    propagation = None
    for point in own:
        if point["Propagation"].lstrip("r") in ("shared", "slave"):
            propagation = _root_propagation(point, propagation)
        mounts.append(_mount(point))
    return mounts, propagation


def _temporary(host_config: Mapping[str, Any]) -> list[Point]:
    return [
        {
            "Type": "tmpfs",
            "Destination": os.path.normpath(path),
            "Propagation": "",
            "RW": True,
            "Spec": {"Options": text},
        }
        for path, text in host_config.get("Tmpfs", {}).items()
    ]


def _mount(point: Point) -> dict[str, Any]:
    destination, spec = point["Destination"], point["Spec"]
    if point["Type"] == "tmpfs":
        options = tmpfs.merged(spec.get("Options", ""))
        return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}
    options = ["bind" if spec.get("NonRecursive") else "rbind", point["Propagation"] or "rprivate"]
    if not point["RW"]:
        recursive = not spec.get("ReadOnlyNonRecursive") and _can_be_recursive()
        if spec.get("ReadOnlyForceRecursive") and not recursive:
            raise BadRequest("this kernel cannot make mounts recursively read-only: it needs Linux 5.12")
        options.append("rro" if recursive else "ro")
    return {"destination": destination, "type": "bind", "source": point["Source"], "options": options}


def _can_be_recursive() -> bool:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return bool(found) and (int(found[1]), int(found[2])) >= _RECURSIVE  # type: ignore[index]


def _root_propagation(point: Point, before: str | None) -> str | None:
    """Return the propagation that the root needs for a mount that is shared, or gets what is mounted later.

    Raises `BadRequest` if its source is no such mount: then it could not be what was asked for.
    """
    shared = point["Propagation"].lstrip("r") == "shared"
    place, tags = _mount_of(point["Source"])
    if not any(tag.startswith("shared:") or (tag.startswith("master:") and not shared) for tag in tags):
        kind = "a shared mount" if shared else "a shared or slave mount"
        raise BadRequest(f"path {point['Source']} is mounted on {place} but it is not {kind}")
    return "shared" if shared else before or "rslave"


def _mount_of(source: str) -> tuple[str, list[str]]:
    """Return where the mount is that holds the path *source*, and its tags: proc_pid_mountinfo(5)."""
    real = os.path.realpath(source)
    found: tuple[str, list[str]] = ("/", [])
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.partition(" - ")[0].split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found[0]):
            found = (place, fields[6:])
    return found
