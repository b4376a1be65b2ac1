"""The devices of a container: which it has in /dev, and what it may do with any (cgroup-v1/devices.rst)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerfs.container.members import Members
from layerfs.errors import BadRequest

_RULE = re.compile(r"([acb]) (\d{1,9}|\*):(\d{1,9}|\*) ([rwm]{1,3})", re.ASCII)
_HARMLESS = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
"""null, zero, full, random, urandom, tty, console and ptmx."""
_NO_DEVICES = ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev")
"""Directories of /dev that a privileged container is not given: they are other filesystems."""


def taken(members: Members) -> list[dict[str, str]] | None:
    """Return the member `Devices`; raises `BadRequest`."""
    return members.each("Devices", _mapping)


def _mapping(device: Members) -> dict[str, str]:
    host, access = device.text("PathOnHost"), device.text("CgroupPermissions") or "rwm"
    inside = device.text("PathInContainer") or host
    if not host.startswith("/") or not inside.startswith("/"):
        raise BadRequest(f"invalid device {host or inside!r}: the paths of a device must be absolute")
    if not re.fullmatch("[rwm]{1,3}", access) or len(set(access)) != len(access):
        raise BadRequest(f"invalid device mode: {access[:80]}: give some of r, w and m")
    return {"PathOnHost": host, "PathInContainer": os.path.normpath(inside), "CgroupPermissions": access}


def check_rules(rules: list[str] | None) -> None:
    """Raise `BadRequest` unless each of *rules* is one such as "c 1:3 rwm"."""
    for rule in rules or ():
        if not _RULE.fullmatch(rule):
            raise BadRequest(f"invalid device cgroup rule format: '{rule[:80]}'")


def for_runtime(host_config: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the `linux.devices` and the `linux.resources.devices` of a specification.

    Raises `BadRequest` for a device that this machine does not have.
    """
    privileged = host_config["Privileged"]
    made = _all_devices(Path("/dev")) if privileged else []
    access: list[dict[str, Any]] = []
    for mapping in host_config["Devices"] or ():
        host, inside = mapping["PathOnHost"], mapping["PathInContainer"]
        if privileged and host == inside:
            continue
        for device in _devices(host, inside):
            made.append(device)
            numbers = {name: device[name] for name in ("type", "major", "minor")}
            access.append({"allow": True, **numbers, "access": mapping["CgroupPermissions"]})
    if privileged:
        return made, [{"allow": True, "access": "rwm"}]
    rules = [_rule(text) for text in host_config["DeviceCgroupRules"] or ()]
    return made, [{"allow": False, "access": "rwm"}, *_default_access(), *access, *rules]


def _default_access() -> list[dict[str, Any]]:
    """Return what may be done with devices: anything may be made, only the harmless ones opened."""
    return [
        *({"allow": True, "type": kind, "access": "m"} for kind in "cb"),
        *({"allow": True, "type": "c", "major": a, "minor": b, "access": "rwm"} for a, b in _HARMLESS),
        {"allow": True, "type": "c", "major": 136, "access": "rwm"},
    ]


def _rule(text: str) -> dict[str, Any]:
    found = _RULE.fullmatch(text)
    assert found is not None
    kind, major, minor, access = found.groups()
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    numbers = {"major": major, "minor": minor}
    return rule | {name: int(value) for name, value in numbers.items() if value != "*"}


def _devices(host: str, inside: str) -> list[dict[str, Any]]:
    """Return the device *host*, or those in the directory *host*, as they are to be in the container."""
    try:
        real = Path(host).resolve(strict=True)
        if real.is_dir():
            found = _all_devices(real)
            for each in found:
                each["path"] = inside + each["path"].removeprefix(str(real))
            if found:
                return found
        elif device := _device(real):
            return [{**device, "path": inside}]
        reason = "not a device node"
    except OSError as error:
        reason = error.strerror or str(error)
    raise BadRequest(
        f'error gathering device information while adding custom device "{host}": {reason}'
    ) from None


def _all_devices(directory: Path) -> list[dict[str, Any]]:
    found = []
    for parent, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in _NO_DEVICES]
        devices = (_device(Path(parent, name)) for name in names if name != "console")
        found += [device for device in devices if device]
    return found


def _device(path: Path) -> dict[str, Any] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    mode = found.st_mode
    if not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
        return None
    return {
        "path": str(path),
        "type": "c" if stat.S_ISCHR(mode) else "b",
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }
