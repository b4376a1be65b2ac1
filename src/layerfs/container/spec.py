"""`config.json` for the OCI runtime: what the configuration and the settings of a container come to.

The form is that of the OCI runtime specification 1.0 (config.md, config-linux.md); what is made of Docker's
members is that of moby's `daemon/oci_linux.go`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerfs.container import capabilities, devices, mounting, namespaces, resources, security
from layerfs.container.mountpoints import Point
from layerfs.container.ociruntime import find_program
from layerfs.container.settings import absolute, command, environment
from layerfs.container.stored import host_config
from layerfs.container.users import User
from layerfs.errors import NotFound

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT = "/sbin/docker-init"
"""Where the init of a container is, as in Docker's."""
_INITS = ("docker-init", "tini-static", "tini", "catatonit", "dumb-init")
_OPEN_FILES = (1024, 524288)
"""The limit of open files, soft and hard, as systemd gives it to services."""
_UNLIMITED = (1 << 64) - 1
_SYSCTLS = {"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"}
"""What every network of a container's own allows its users: to ping, and any port."""


def build(
    *,
    mount_id: str,
    root: Path,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    user: User,
    points: Iterable[Point],
    joins: Mapping[str, str] | None = None,
    variables: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the specification of a container *mount_id* whose tree is mounted at *root*.

    *config* and *settings* are what `settings.described` made of them, *user* who its `User` is in the image.
    All *points* have a path as their source. *joins* are the paths of the namespaces that exist already, by
    their kind ("network"): those of other containers (`namespaces.joined`), or a network made for this one.
    *variables* are below the container's own. Raises `LayerfsError` for what this machine has not: a device,
    an init.
    """
    host = host_config(settings)
    rights = capabilities.of(host)
    options = security.parse(host["SecurityOpt"] or ())
    hostname = hostname_of(mount_id, settings)
    init = _init(host)
    mounts, propagation = mounting.for_runtime(
        host, [*points, *init[1]], writable_cgroups=options.writable_cgroups
    )
    made, access = devices.for_runtime(host)
    process_ = process(config, settings, user, hostname=hostname, rights=rights, variables=variables)
    process_["args"] = [*init[0], *process_["args"]]
    linux: dict[str, Any] = {
        "cgroupsPath": cgroups_path(mount_id, host),
        "namespaces": namespaces.for_runtime(host, joins or {}),
        "devices": made,
        "resources": {"devices": access, **resources.for_runtime(host)},
        "maskedPaths": host["MaskedPaths"] or [],
        "readonlyPaths": host["ReadonlyPaths"] or [],
        "sysctl": _sysctls(settings, host),
    }
    if propagation:
        linux["rootfsPropagation"] = propagation
    if filter_ := options.filter(rights, privileged=host["Privileged"]):
        linux["seccomp"] = filter_
    result: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": host["ReadonlyRootfs"]},
        "process": process_,
        "mounts": mounts,
        "linux": linux,
    }
    if host["UTSMode"] != "host":
        result["hostname"] = hostname
    if host.get("Annotations"):
        result["annotations"] = host["Annotations"]
    return result


def hostname_of(mount_id: str, settings: Mapping[str, Any]) -> str:
    """Return the name that a container has for itself: the machine's if it shares that, else by its id."""
    if host_config(settings)["UTSMode"] == "host":
        return os.uname().nodename
    return str(settings.get("Hostname") or mount_id[:12])


def cgroups_path(mount_id: str, host: Mapping[str, Any]) -> str:
    """Return the place of a container among the control groups."""
    return os.path.normpath(f"/{host['CgroupParent'].strip('/') or 'layerfs'}/{mount_id}")


def process(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    user: User,
    *,
    hostname: str,
    rights: Sequence[str],
    variables: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the member `process`: what runs, as whom, where, and with what *rights*."""
    host = host_config(settings)
    terminal = settings["Tty"]
    options = security.parse(host["SecurityOpt"] or ())
    own = [PATH, f"HOSTNAME={hostname}", f"HOME={user.home}", *(["TERM=xterm"] if terminal else [])]
    result: dict[str, Any] = {
        "terminal": terminal,
        "user": identity(user),
        "args": command(config),
        "env": environment([*own, *variables], config.get("Env") or ()),
        "cwd": absolute(config.get("WorkingDir") or "/"),
        "capabilities": given_rights(user, rights),
        "rlimits": _limits(host),
        "noNewPrivileges": options.no_new_privileges,
    }
    height, width = host["ConsoleSize"]
    if terminal and height and width:
        result["consoleSize"] = {"height": height, "width": width}
    if host["OomScoreAdj"]:
        result["oomScoreAdj"] = host["OomScoreAdj"]
    if profile := options.apparmor_profile():
        result["apparmorProfile"] = profile
    return result


def identity(user: User) -> dict[str, Any]:
    """Return the member `user` of a process.

    Its own group is among the further ones: a program that changes the former keeps what that group may not
    do (CVE-2022-36109).
    """
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(dict.fromkeys([user.gid, *user.groups]))}


def given_rights(user: User, rights: Sequence[str]) -> dict[str, list[str]]:
    """Return the member `capabilities` of a process: root has them, others may get them (capabilities(7))."""
    kinds = ("bounding", "effective", "permitted") if user.uid == 0 else ("bounding",)
    return {kind: list(rights) for kind in kinds}


def _limits(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    soft, hard = _OPEN_FILES
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = {"nofile": (min(soft, most), min(hard, most))}
    limits |= {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"] or ()}
    return [
        {"type": f"RLIMIT_{name.upper()}", "soft": soft & _UNLIMITED, "hard": hard & _UNLIMITED}
        for name, (soft, hard) in limits.items()
    ]


def _init(host: Mapping[str, Any]) -> tuple[list[str], list[Point]]:
    """Return the words before the command of a container that has an init, and what is mounted for it."""
    if not host.get("Init") or host["PidMode"] not in ("", "private"):
        return [], []
    for name in _INITS:
        if path := find_program(name) or _beside(name):
            spec = {"NonRecursive": True, "ReadOnlyNonRecursive": True}
            point = {
                "Type": "bind", "Source": path, "Destination": INIT, "RW": False, "Propagation": "rprivate",
                "Spec": spec,
            }  # fmt: skip
            return [INIT, "--"], [point]
    raise NotFound("no init for containers is installed (--init): install the package tini or catatonit")


def _beside(name: str) -> str | None:
    """Return the path of a program that packages put where no PATH leads."""
    places = (f"{directory}/{name}" for directory in ("/usr/libexec/podman", "/usr/libexec/docker"))
    return next((path for path in places if os.access(path, os.X_OK)), None)


def _sysctls(settings: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    mode = host["NetworkMode"]
    if mode != "host" and namespaces.container_of(mode) is None:
        found = {
            name: value
            for name, value in _SYSCTLS.items()
            if os.path.exists(f"/proc/sys/{name.replace('.', '/')}")
        }
    if settings.get("Domainname") and host["UTSMode"] != "host":
        found["kernel.domainname"] = settings["Domainname"]
    own: dict[str, str] = host.get("Sysctls", {})
    return found | own
