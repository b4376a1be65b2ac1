"""Which namespaces a container has of its own, and which it shares: `PidMode`, `IpcMode` and the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from layerfs.errors import BadRequest

_MODES = {
    "PidMode": ("PID", ("", "private", "host"), True),
    "IpcMode": ("IPC", ("", "private", "shareable", "host", "none"), True),
    "UTSMode": ("UTS", ("", "private", "host"), False),
    "UsernsMode": ("user namespace", ("", "host"), False),
    "CgroupnsMode": ("cgroup namespace", ("", "private", "host"), False),
}
"""For each member its name in messages, what it may be, and whether another container's may be joined."""
_KINDS = {"NetworkMode": ("network", "net"), "IpcMode": ("ipc", "ipc"), "PidMode": ("pid", "pid")}
"""For each namespace that can be joined, its names for a runtime and in /proc/PID/ns."""


def container_of(mode: str) -> str | None:
    """Return whose namespace a *mode* "container:NAME" means, None for any other mode."""
    kind, colon, name = mode.partition(":")
    return name if colon and kind == "container" else None


def check(host_config: Mapping[str, Any]) -> None:
    """Raise `BadRequest` for a mode that there is not."""
    for member, (words, modes, joinable) in _MODES.items():
        given = host_config[member]
        if given not in modes and not (joinable and container_of(given)):
            raise BadRequest(f"invalid {words} mode: {given[:80]}")


def check_network(config: Mapping[str, Any], host_config: Mapping[str, Any]) -> None:
    """Raise `BadRequest` for what goes with no network of the chosen kind: moby's `validateNetMode`.

    *config* has the members Hostname and ExposedPorts.
    """
    mode = host_config["NetworkMode"]
    if mode == "host" and host_config["Links"]:
        raise BadRequest(
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior"
        )
    if host_config["UTSMode"] == "host" and config["Hostname"]:
        raise BadRequest("conflicting options: hostname and the UTS mode")
    if mode != "container" and container_of(mode) is None:
        return
    if not container_of(mode):
        raise BadRequest("invalid network mode: invalid container format container:<name|id>")
    conflicts = (
        (config["Hostname"], "hostname and the network mode"),
        (
            host_config["Links"],
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (host_config["Dns"], "dns and the network mode"),
        (host_config["ExtraHosts"], "custom host-to-IP mapping and the network mode"),
        (
            host_config["PortBindings"] or host_config["PublishAllPorts"],
            "port publishing and the container type network mode",
        ),
        (config["ExposedPorts"], "port exposing and the container type network mode"),
    )
    for given, line in conflicts:
        if given:
            raise BadRequest(f"conflicting options: {line}")


def joined(host_config: Mapping[str, Any], pid_of: Callable[[str], int]) -> dict[str, str]:
    """Return the namespaces of other containers that a container joins: paths by their kind ("ipc").

    *pid_of* returns the pid of the container that it is given the name or id of, or raises `LayerfsError`.
    """
    found = {}
    for member, (kind, name) in _KINDS.items():
        if other := container_of(host_config[member]):
            found[kind] = f"/proc/{pid_of(other)}/ns/{name}"
    return found


def for_runtime(host_config: Mapping[str, Any], joins: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the `linux.namespaces` of a specification; *joins* has the paths of those that exist already."""
    shared = {
        "network": host_config["NetworkMode"] == "host",
        "pid": host_config["PidMode"] == "host",
        "ipc": host_config["IpcMode"] == "host",
        "uts": host_config["UTSMode"] == "host",
        "cgroup": host_config["CgroupnsMode"] != "private",
        "mount": False,
    }
    return [
        {"type": kind, **({"path": joins[kind]} if kind in joins else {})}
        for kind, with_host in shared.items()
        if not with_host
    ]
