"""Docker's `HostConfig`: how a container is to be run on this machine, checked and complete.

The result has every member that dockerd's has, with its defaults, so that inspect shows what was asked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from layerfs.container import (
    capabilities,
    devices,
    mountpoints,
    namespaces,
    networking,
    portbindings,
    resources,
    security,
    tmpfs,
)
from layerfs.container.members import Members
from layerfs.errors import BadRequest
from layerfs.host import cgroups

SHM_SIZE = 64 << 20
"""Bytes of /dev/shm, if nothing is said of it."""
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
LOG_DRIVERS = {
    "json-file": ("max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag"),
    "local": ("max-size", "max-file", "compress"),
    "journald": ("labels", "labels-regex", "env", "env-regex", "tag"),
    "none": (),
}
"""Where a container's output may go, and the options that dockerd has for it."""
_LOG_SIZE = r"-1|\d{1,15}(\.\d{1,9})?\s?([kKmMgGtT]?i?[bB]?)"
RUNTIMES = ("runc", "crun", "io.containerd.runc.v2")
_RESTART = ("no", "always", "on-failure", "unless-stopped")
_ULIMITS = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
    "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip
_SYSCTLS_IPC = (
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
    "kernel.shmmni", "kernel.shm_rmid_forced",
)  # fmt: skip
_SYSCTL = re.compile(r"[a-zA-Z0-9_.\-/]{1,200}")
_TEXTS = (
    "ContainerIDFile", "VolumeDriver", "CgroupnsMode", "IpcMode", "Cgroup", "PidMode", "UTSMode",
    "UsernsMode", "Isolation", "CgroupParent", "Runtime",
)  # fmt: skip
_LISTS = (
    "Binds", "VolumesFrom", "CapAdd", "CapDrop", "Dns", "DnsOptions", "DnsSearch", "ExtraHosts", "GroupAdd",
    "Links", "SecurityOpt", "DeviceCgroupRules", "MaskedPaths", "ReadonlyPaths",
)  # fmt: skip
_FLAGS = ("AutoRemove", "Privileged", "PublishAllPorts", "ReadonlyRootfs")
_OPTIONAL = ("StorageOpt", "Tmpfs", "Sysctls", "Annotations")
"""Objects of strings that are left out where they are empty."""


def taken(members: Members, default_network: str) -> tuple[dict[str, Any], list[str]]:
    """Return the `HostConfig` in *members* and warnings about it; raises `BadRequest`.

    A container that names no network gets *default_network*.
    """
    found: dict[str, Any] = {name: members.text(name) for name in _TEXTS}
    found |= {name: members.texts(name) for name in _LISTS}
    found |= {name: members.flag(name) for name in _FLAGS}
    found |= {name: pairs for name in _OPTIONAL if (pairs := members.pairs(name))}
    found["NetworkMode"] = members.text("NetworkMode")
    if found["NetworkMode"] in ("", "default"):
        found["NetworkMode"] = default_network
    found["LogConfig"] = _log(members.member("LogConfig"))
    found["PortBindings"] = portbindings.bindings(members)
    found["RestartPolicy"] = restart_policy(members)
    found["ConsoleSize"] = _console_size(members)
    found["OomScoreAdj"] = members.number("OomScoreAdj")
    found["ShmSize"] = members.number("ShmSize")
    found["Devices"] = devices.taken(members)
    found["DeviceRequests"] = _no_requests(members)
    found["Ulimits"] = _ulimits(members)
    if (init := members.optional_flag("Init")) is not None:
        found["Init"] = init
    if mounts := mountpoints.taken(members):
        found["Mounts"] = mounts
    found |= resources.taken(members)
    return _checked(found)


def _checked(found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    if found["AutoRemove"] and found["RestartPolicy"]["Name"] != "no":
        raise BadRequest("can't create 'AutoRemove' container with restart policy")
    for text in found["ExtraHosts"] or ():
        _check_host(text)
    for text in found["Links"] or ():
        networking.check_link(text)
    for member in ("CapAdd", "CapDrop"):
        capabilities.normalized(found[member] or (), member)
    if found["Isolation"].lower() not in ("", "default"):
        raise BadRequest(f"invalid isolation ({found['Isolation'][:80]}): linux only supports 'default'")
    if "" in found.get("Annotations", {}):
        raise BadRequest("invalid Annotations: the empty string is not permitted as an annotation key")
    warnings = resources.check(found, cgroups.support())
    namespaces.check(found)
    _check_names(found)
    if found["ShmSize"] < 0:
        raise BadRequest("SHM size can not be less than 0")
    if not -1000 <= found["OomScoreAdj"] <= 1000:
        raise BadRequest(f"Invalid value {found['OomScoreAdj']}, range for oom score adj is [-1000, 1000]")
    if found["NetworkMode"] == "host" and found["PortBindings"]:
        warnings.append("Published ports are discarded when using host network mode")
    for options in found.get("Tmpfs", {}).values():
        tmpfs.merged(options)
    _check_sysctls(found)
    devices.check_rules(found["DeviceCgroupRules"])
    security.parse(found["SecurityOpt"] or ())
    _refuse(found)
    return _completed(found), warnings


def _completed(found: dict[str, Any]) -> dict[str, Any]:
    """Fill in what dockerd does."""
    if found["Memory"] > 0 and found["MemorySwap"] == 0:
        found["MemorySwap"] = found["Memory"] * 2
    found["ShmSize"] = found["ShmSize"] or SHM_SIZE
    found["IpcMode"] = found["IpcMode"] or "private"
    found["Runtime"] = found["Runtime"] or "runc"
    if not found["CgroupnsMode"]:
        found["CgroupnsMode"] = "private" if cgroups.unified() else "host"
    if found["OomKillDisable"] is None and cgroups.support().oom_kill_disable:
        found["OomKillDisable"] = False
    if found["PidsLimit"] is not None and found["PidsLimit"] <= 0:
        found["PidsLimit"] = None
    labelled = any(option.startswith("label=") for option in found["SecurityOpt"] or ())
    if not labelled and (found["Privileged"] or "host" in (found["IpcMode"], found["PidMode"])):
        found["SecurityOpt"] = [*(found["SecurityOpt"] or ()), "label=disable"]
    if not found["Privileged"]:
        for member, paths in (("MaskedPaths", MASKED), ("ReadonlyPaths", READ_ONLY)):
            if found[member] is None:
                found[member] = list(paths)
    return found


def _log(members: Members | None) -> dict[str, Any]:
    driver = (members.text("Type") if members else "") or "json-file"
    options = (members.pairs("Config") if members else None) or {}
    if driver not in LOG_DRIVERS:
        raise BadRequest(f"logger: no log driver named '{driver[:80]}' is registered")
    for name in options:
        if name not in (*LOG_DRIVERS[driver], "mode", "max-buffer-size"):
            raise BadRequest(f"unknown log opt '{name[:80]}' for {driver} log driver")
    if not re.fullmatch(_LOG_SIZE, size := options.get("max-size", "-1"), re.ASCII):
        raise BadRequest(f"invalid value for max-size: '{size[:80]}': give a size such as 10m")
    if not re.fullmatch(r"0*[1-9]\d{0,5}", count := options.get("max-file", "1"), re.ASCII):
        raise BadRequest(f"max-file must be a positive number, not '{count[:80]}'")
    if options.get("mode", "blocking") not in ("blocking", "non-blocking"):
        raise BadRequest(f"logger: logging mode not supported: {options['mode'][:80]}")
    return {"Type": driver, "Config": options}


def log_limit(host_config: Mapping[str, Any]) -> int | None:
    """Return the bytes that a container's log may have; None for any number, 0 where there is to be none."""
    log = host_config["LogConfig"]
    found = re.match(r"([\d.]+)\s?([kmgt]?)", log["Config"].get("max-size", "").lower())
    if log["Type"] == "none":
        return 0
    return max(1, int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))) if found else None


def restart_policy(members: Members) -> dict[str, Any]:
    """Return the member `RestartPolicy`, "no" by default; raises `BadRequest`."""
    policy = members.member("RestartPolicy")
    name = (policy.text("Name") if policy else "") or "no"
    count = policy.number("MaximumRetryCount") if policy else 0
    if name not in _RESTART:
        raise BadRequest(
            f"invalid restart policy: unknown policy '{name[:80]}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if name != "on-failure" and count and policy and policy.text("Name"):
        more = " and cannot be negative" if count < 0 else ""
        raise BadRequest(
            f"invalid restart policy: maximum retry count can only be used with 'on-failure'{more}"
        )
    if count < 0:
        raise BadRequest("invalid restart policy: maximum retry count cannot be negative")
    return {"Name": name, "MaximumRetryCount": count}


def _console_size(members: Members) -> list[int]:
    found = members.numbers("ConsoleSize") or [0, 0]
    if len(found) != 2 or not all(0 <= size < 65536 for size in found):
        raise BadRequest(f"{members.path('ConsoleSize')} must be a height and a width, such as [24, 80]")
    return found


def _no_requests(members: Members) -> list[Any] | None:
    requests = members.each(
        "DeviceRequests", lambda request: (request.text("Driver"), request.lists("Capabilities") or [])
    )
    if requests:
        driver, kinds = requests[0]
        wanted = " ".join(f"[{' '.join(kind)}]" for kind in kinds)
        raise BadRequest(f'could not select device driver "{driver[:80]}" with capabilities: [{wanted[:80]}]')
    return None if requests is None else []


def _ulimits(members: Members) -> list[dict[str, Any]] | None:
    found = members.each("Ulimits", _ulimit)
    for limit in found or ():
        name, soft, hard = limit["Name"], limit["Soft"], limit["Hard"]
        if name not in _ULIMITS:
            raise BadRequest(f"invalid ulimit type: {name[:80]}")
        if min(soft, hard) < -1:
            raise BadRequest(f"invalid ulimit {name}: limits are numbers, or -1 for none")
        if hard != -1 and (soft == -1 or soft > hard):
            shown = "soft: -1 (unlimited), hard:" if soft == -1 else f"{soft} >"
            raise BadRequest(f"ulimit soft limit must be less than or equal to hard limit: {shown} {hard}")
    return found


def _ulimit(limit: Members) -> dict[str, Any]:
    return {"Name": limit.text("Name"), "Hard": limit.number("Hard"), "Soft": limit.number("Soft")}


def _check_host(text: str) -> None:
    """Raise `BadRequest` unless *text* is `NAME:ADDRESS`, "host-gateway" for the address of this machine."""
    name, colon, address = text.partition(":")
    if not colon or not name or not re.fullmatch(r"[^\s#]{1,255}", name):
        raise BadRequest(f'bad format for add-host: "{text[:80]}"')
    if address != "host-gateway":
        try:
            ipaddress.ip_address(address.strip("[]"))
        except ValueError:
            raise BadRequest(f'invalid IP address in add-host: "{address[:80]}"') from None


def _check_names(found: Mapping[str, Any]) -> None:
    for text in found["Dns"] or ():
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise BadRequest(f"invalid DNS address: {text[:80]!r} is no IP address") from None
    for member in ("DnsSearch", "DnsOptions"):
        for text in found[member] or ():
            if not re.fullmatch(r"[^\s]{1,255}", text):
                raise BadRequest(f"invalid {member}: {text[:80]!r} has blanks, or nothing at all")
    for text in found["GroupAdd"] or ():
        if not text or ":" in text:
            raise BadRequest(f"Unable to find group {text[:80]!r}: give a name or a number")
    for member in ("MaskedPaths", "ReadonlyPaths"):
        for text in found[member] or ():
            if not text.startswith("/"):
                raise BadRequest(f"{member} must be absolute paths, not {text[:80]!r}")
    parent = found["CgroupParent"]
    if ".." in parent.split("/") or re.search(r"[\s\\]", parent):
        raise BadRequest(f"invalid cgroup parent {parent[:80]!r}: give a path such as /mine")


def _check_sysctls(found: Mapping[str, Any]) -> None:
    """Let nothing be set that is the host's: only what a namespace of the container's own has."""
    for name in found.get("Sysctls", {}):
        dotted = name.replace("/", ".")
        if not _SYSCTL.fullmatch(name) or ".." in dotted:
            raise BadRequest(f"invalid sysctl {name[:80]!r}")
        if dotted.startswith("net."):
            if found["NetworkMode"] == "host":
                raise BadRequest(f"sysctl {name!r} not allowed in host network namespace")
        elif dotted in _SYSCTLS_IPC or dotted.startswith("fs.mqueue."):
            if found["IpcMode"] == "host":
                raise BadRequest(f"sysctl {name!r} not allowed in host ipc namespace")
        elif dotted != "kernel.domainname" or found["UTSMode"] == "host":
            raise BadRequest(f"sysctl {name!r} is not in a separate kernel namespace")


def _refuse(found: Mapping[str, Any]) -> None:
    """Refuse what layerfs does not do, rather than not doing it."""
    if found.get("StorageOpt"):
        raise BadRequest("--storage-opt is not supported: a container's layer is limited by its filesystem")
    if found["Cgroup"]:
        raise BadRequest("invalid option: Cgroup is not supported")
    if found["Runtime"] and found["Runtime"] not in RUNTIMES:
        raise BadRequest(f"unknown or invalid runtime name: {found['Runtime'][:80]}")
