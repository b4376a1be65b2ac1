"""The options of `layerfs run` and `create`, as the body of Docker's `POST /containers/create`.

What a text means is decided here as docker's own client does it; whether it can be done, by the API.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerfs.cli import createlists as lists
from layerfs.cli.quantities import cpus, duration, size
from layerfs.cli.shared import parsed_pairs
from layerfs.errors import UsageError

_ALONE = ("host", "none")
"""Networks that go with no other one."""
_RATES = {
    "device_read_bps": "BlkioDeviceReadBps",
    "device_write_bps": "BlkioDeviceWriteBps",
    "device_read_iops": "BlkioDeviceReadIOps",
    "device_write_iops": "BlkioDeviceWriteIOps",
}


def body(given: Mapping[str, Any], command: Sequence[str], *, network: str, detached: bool) -> dict[str, Any]:
    """Return the body that the options *given* and *command* ask for; raises `UsageError`.

    A container for which no network is given gets *network*. Reads the files that options name.
    """
    streams = [stream.lower() for stream in given["attach"]]
    for stream in streams:
        if stream not in ("stdin", "stdout", "stderr"):
            raise UsageError(f"invalid stream {stream!r}: attach to stdin, stdout or stderr")
    if streams and detached:
        raise UsageError("conflicting options: cannot specify both --attach and --detach")
    stdin = (given["interactive"] or "stdin" in streams) and not detached
    volumes, binds = lists.volumes(given["volume"])
    exposed, bindings = lists.published(given["publish"])
    exposed |= lists.exposed(given["expose"])
    result = {
        "Hostname": given["hostname"],
        "Domainname": given["domainname"],
        "User": given["user"],
        "Tty": given["tty"],
        "OpenStdin": given["interactive"],
        "StdinOnce": given["interactive"] and stdin,
        "AttachStdin": stdin,
        "AttachStdout": not detached and (not streams or "stdout" in streams),
        "AttachStderr": not detached and (not streams or "stderr" in streams),
        "Cmd": list(command),
        "Entrypoint": None if given["entrypoint"] is None else [given["entrypoint"]],
        "Env": variables(given["env_file"], given["env"]),
        "WorkingDir": given["workdir"],
        "Labels": labels(given["label_file"], given["label"]),
        "Volumes": {path: {} for path in volumes},
        "ExposedPorts": {port: {} for port in sorted(exposed)},
        "StopSignal": given["stop_signal"],
        "StopTimeout": given["stop_timeout"],
        "Healthcheck": _health(given),
        "HostConfig": _host_config(given, binds, bindings),
    }
    mode, endpoints = _networks(given, network)
    result["HostConfig"]["NetworkMode"] = mode
    if endpoints:
        result["NetworkingConfig"] = {"EndpointsConfig": endpoints}
    return result


def _host_config(given: Mapping[str, Any], binds: list[str], bindings: dict[str, Any]) -> dict[str, Any]:
    security, unmasked = _security(given["security_opt"])
    result: dict[str, Any] = {
        "Binds": binds or None,
        "ContainerIDFile": given["cidfile"] or "",
        "PortBindings": bindings,
        "PublishAllPorts": given["publish_all"],
        "AutoRemove": given.get("rm", False),
        "RestartPolicy": restart_policy(given["restart"]),
        "VolumeDriver": given["volume_driver"],
        "VolumesFrom": list(given["volumes_from"]) or None,
        "CapAdd": list(given["cap_add"]) or None,
        "CapDrop": list(given["cap_drop"]) or None,
        "Dns": list(given["dns"]),
        "DnsOptions": list(given["dns_option"]),
        "DnsSearch": list(given["dns_search"]),
        "ExtraHosts": [lists.host(text) for text in given["add_host"]] or None,
        "GroupAdd": list(given["group_add"]) or None,
        "Links": list(given["link"]) or None,
        "Privileged": given["privileged"],
        "ReadonlyRootfs": given["read_only"],
        "SecurityOpt": security or None,
        "ShmSize": size(given["shm_size"], "--shm-size"),
        "Sysctls": parsed_pairs(given["sysctl"], "invalid sysctl"),
        "StorageOpt": parsed_pairs(given["storage_opt"], "invalid storage option"),
        "Annotations": parsed_pairs(given["annotation"], "invalid annotation"),
        "Tmpfs": dict(text.partition(":")[::2] for text in given["tmpfs"]),
        "Mounts": [lists.mount(text) for text in given["mount"]],
        "Devices": [lists.device(text) for text in given["device"]],
        "DeviceCgroupRules": list(given["device_cgroup_rule"]) or None,
        "DeviceRequests": [lists.gpus(given["gpus"])] if given["gpus"] else None,
        "Ulimits": [lists.ulimit(text) for text in given["ulimit"]] or None,
        "LogConfig": {
            "Type": given["log_driver"],
            "Config": parsed_pairs(given["log_opt"], "invalid log option"),
        },
        "OomScoreAdj": given["oom_score_adj"],
        "OomKillDisable": True if given["oom_kill_disable"] else None,
        "Init": True if given["init"] else None,
        "PidMode": given["pid"],
        "IpcMode": given["ipc"],
        "UTSMode": given["uts"],
        "UsernsMode": given["userns"],
        "CgroupnsMode": given["cgroupns"],
        "CgroupParent": given["cgroup_parent"],
        "Isolation": given["isolation"],
        "Runtime": given["runtime"],
        **limits(given),
    }
    for option, member in _RATES.items():
        if texts := given[option]:
            result[member] = [lists.rate(text, option, in_bytes=member.endswith("Bps")) for text in texts]
    if texts := given["blkio_weight_device"]:
        result["BlkioWeightDevice"] = [lists.weight(text) for text in texts]
    if unmasked:
        result |= {"MaskedPaths": [], "ReadonlyPaths": []}
    return result


def limits(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the options say that `run`, `create` and `update` have, as members of a `HostConfig`.

    What is not said is left out.
    """
    sizes = {"memory": "Memory", "memory_reservation": "MemoryReservation", "memory_swap": "MemorySwap"}
    numbers = {
        "blkio_weight": "BlkioWeight",
        "cpu_period": "CpuPeriod",
        "cpu_quota": "CpuQuota",
        "cpu_rt_period": "CpuRealtimePeriod",
        "cpu_rt_runtime": "CpuRealtimeRuntime",
        "cpu_shares": "CpuShares",
        "cpuset_cpus": "CpusetCpus",
        "cpuset_mems": "CpusetMems",
        "memory_swappiness": "MemorySwappiness",
        "pids_limit": "PidsLimit",
    }
    found: dict[str, Any] = {}
    for option, member in sizes.items():
        if text := given[option]:
            unlimited = text == "-1" and option == "memory_swap"
            found[member] = -1 if unlimited else size(text, f"--{option.replace('_', '-')}")
    for option, member in numbers.items():
        if given.get(option) not in (None, ""):
            found[member] = given[option]
    if given["cpus"]:
        found["NanoCpus"] = cpus(given["cpus"])
    return found


def restart_policy(text: str | None) -> dict[str, Any]:
    """Return the policy that *text* means, such as "on-failure:3"; raises `UsageError`."""
    name, colon, count = (text or "").partition(":")
    if colon and not re.fullmatch(r"-?\d{1,18}", count, re.ASCII):
        raise UsageError("invalid restart policy format: maximum retry count must be an integer")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def variables(files: Iterable[str], texts: Iterable[str]) -> list[str]:
    """Return the environment variables that *files* and then *texts* say; raises `UsageError`.

    A name alone means the value that this process has; one that it does not have takes the image's away, and
    is nothing in a file.
    """
    found = []
    for file in files:
        for name, equals, value in _lines(file):
            if equals:
                found.append(f"{name}={value}")
            elif name in os.environ:
                found.append(f"{name}={os.environ[name]}")
    for text in texts:
        name, equals, _ = text.partition("=")
        if not name or "\0" in text:
            raise UsageError(f"invalid environment variable {text!r}: give NAME=VALUE or NAME")
        found.append(f"{name}={os.environ[name]}" if not equals and name in os.environ else text)
    return found


def labels(files: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """Return the labels that *files* and then *texts* say; raises `UsageError`."""
    found = {name: value for file in files for name, _, value in _lines(file)}
    for text in texts:
        name, _, value = text.partition("=")
        if not name:
            raise UsageError(f"invalid label format: {text!r}")
        found[name] = value
    return found


def _lines(file: str) -> Iterable[tuple[str, str, str]]:
    """Yield the lines `NAME=VALUE` of *file*, which may have comments, in three parts."""
    for number, line in enumerate(read_file(file).removeprefix("\ufeff").splitlines(), 1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not name or re.search(r"\s", name):
            raise UsageError(f"{file}, line {number}: the variable {name!r} has blanks in it, or no name")
        yield name, equals, value


def read_file(path: str) -> str:
    """Return the text of the file *path*; raises `UsageError`."""
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8") from None


def _health(given: Mapping[str, Any]) -> dict[str, Any] | None:
    times = {
        "health_interval": "Interval",
        "health_timeout": "Timeout",
        "health_start_period": "StartPeriod",
        "health_start_interval": "StartInterval",
    }
    found: dict[str, Any] = {}
    for option, member in times.items():
        if text := given[option]:
            found[member] = duration(text, f"--{option.replace('_', '-')}")
    if given["health_retries"]:
        if given["health_retries"] < 0:
            raise UsageError("--health-retries cannot be negative")
        found["Retries"] = given["health_retries"]
    if given["health_cmd"]:
        found["Test"] = ["CMD-SHELL", given["health_cmd"]]
    if given["no_healthcheck"]:
        if found:
            raise UsageError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    return found or None


def _security(texts: Iterable[str]) -> tuple[list[str], bool]:
    """Return what --security-opt says, with profiles from files, and whether to hide no path."""
    found, unmasked = [], False
    for text in texts:
        name, separator, value = re.fullmatch(r"([^=:]*)([=:]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        if text == "systempaths=unconfined":
            unmasked = True
            continue
        if not separator and name != "no-new-privileges":
            raise UsageError(f"invalid --security-opt: {text!r}")
        if name == "seccomp" and value not in ("unconfined", "builtin"):
            try:
                text = f"seccomp={json.dumps(json.loads(read_file(value)), separators=(',', ':'))}"
            except (ValueError, RecursionError):
                raise UsageError(f"opening seccomp profile ({value}) failed: it is no JSON") from None
        found.append(text)
    return found, unmasked


def _networks(given: Mapping[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    """Return the network mode, and how the container is connected; raises `UsageError`."""
    named = [_network(text) for text in given["network"] or (default,)]
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"network {name!r} is specified multiple times")
        if len(names) > 1 and (name in _ALONE or name.startswith("container:")):
            raise UsageError("conflicting options: host, none and container: go with no other network")
    first = named[0][1]
    if given["network_alias"]:
        first.setdefault("Aliases", []).extend(given["network_alias"])
    addresses = {"IPv4Address": given["ip"], "IPv6Address": given["ip6"]}
    addresses |= {"LinkLocalIPs": list(given["link_local_ip"])}
    if given_addresses := {name: value for name, value in addresses.items() if value}:
        first["IPAMConfig"] = {**first.get("IPAMConfig", {}), **given_addresses}
    if given["mac_address"]:
        first["MacAddress"] = given["mac_address"]
    return names[0], dict(named) if len(named) > 1 or first else {}


def _network(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings in an option --network: `NAME`, or `name=NAME,alias=...`."""
    if "=" not in text:
        return text, {}
    name, found = "", dict[str, Any]()
    for key, _, value in (field.partition("=") for field in next(csv.reader([text]))):
        key = key.strip().lower()
        if key == "name":
            name = value
        elif key == "alias":
            found.setdefault("Aliases", []).append(value)
        elif key in ("ip", "ip6"):
            found.setdefault("IPAMConfig", {})["IPv4Address" if key == "ip" else "IPv6Address"] = value
        elif key == "link-local-ip":
            found.setdefault("IPAMConfig", {}).setdefault("LinkLocalIPs", []).append(value)
        elif key == "mac-address":
            found["MacAddress"] = value
        elif key == "gw-priority" and re.fullmatch(r"-?\d{1,9}", value, re.ASCII):
            found["GwPriority"] = int(value)
        elif key == "driver-opt":
            option, _, wanted = value.partition("=")
            found.setdefault("DriverOpts", {})[option] = wanted
        else:
            raise UsageError(f"invalid field {key!r} in --network {text!r}")
    if not name:
        raise UsageError(f"network name/id is not specified: --network {text!r}")
    return name, found
