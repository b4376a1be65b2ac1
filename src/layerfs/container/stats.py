"""What a container uses of processors, memory, disks and network: one sample, in Docker's form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.container.stored import host_config
from layerfs.host import cgroups
from layerfs.host.cgroups import Groups
from layerfs.host.record import look

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_NEVER = "0001-01-01T00:00:00Z"
_SECOND = 10**9
_UNLIMITED = (1 << 64) - 1
_BLKIO = {
    "io_service_bytes_recursive": "io_service_bytes_recursive",
    "io_serviced_recursive": "io_serviced_recursive",
    "io_queue_recursive": "io_queued_recursive",
    "io_service_time_recursive": "io_service_time_recursive",
    "io_wait_time_recursive": "io_wait_time_recursive",
    "io_merged_recursive": "io_merged_recursive",
    "io_time_recursive": "time_recursive",
    "sectors_recursive": "sectors_recursive",
}
"""Docker's members, and the kernel's names of files for them in version 1."""
_NETWORK = (
    "rx_bytes", "rx_packets", "rx_errors", "rx_dropped", None, None, None, None,
    "tx_bytes", "tx_packets", "tx_errors", "tx_dropped",
)  # fmt: skip
"""The columns of /proc/net/dev."""


def sample(mount: Mount, previous: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what the container *mount* uses now; all is 0 for one that does not run.

    A client computes the load of processors from two samples: *previous* is the one before, if there is.
    """
    record = look(mount.id)
    groups = cgroups.of_container(record.pid, mount.id) if record and record.alive() else None
    result: dict[str, Any] = {
        "name": f"/{mount.name}",
        "id": mount.id,
        "os_type": "linux",
        "read": _NEVER,
        "preread": previous["read"] if previous else _NEVER,
        "cpu_stats": _idle(),
        "precpu_stats": previous["cpu_stats"] if previous else _idle(),
        "memory_stats": {},
        "pids_stats": {},
        "blkio_stats": dict.fromkeys(_BLKIO),
        "num_procs": 0,
        "storage_stats": {},
    }
    if groups is None or record is None:
        return result
    result["read"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    version_2 = groups.version == 2
    result["cpu_stats"] = {**(_cpu_2(groups) if version_2 else _cpu_1(groups)), **_machine()}
    result["memory_stats"] = _memory_2(groups) if version_2 else _memory_1(groups)
    result["pids_stats"] = _pids(groups)
    result["blkio_stats"] |= _blkio_2(groups) if version_2 else _blkio_1(groups)
    if host_config(mount.container)["NetworkMode"] != "host" and (found := networks(record.pid)):
        result["networks"] = found
    return result


def _idle() -> dict[str, Any]:
    return _processors(0, 0, 0, {})


def _processors(total: int, kernel: int, user: int, throttled: Mapping[str, int]) -> dict[str, Any]:
    names = ("periods", "throttled_periods", "throttled_time")
    return {
        "cpu_usage": {"total_usage": total, "usage_in_kernelmode": kernel, "usage_in_usermode": user},
        "throttling_data": {name: throttled.get(name, 0) for name in names},
    }


def _machine() -> dict[str, int]:
    """Return the processor time of the whole machine, in nanoseconds, and how many processors it has."""
    first, *others = Path("/proc/stat").read_text().splitlines()
    ticks = sum(int(text) for text in first.split()[1:8])
    online = sum(1 for line in others if line.startswith("cpu"))
    return {"system_cpu_usage": ticks * _SECOND // os.sysconf("SC_CLK_TCK"), "online_cpus": online}


def _cpu_1(groups: Groups) -> dict[str, Any]:
    per_cpu = [line.split() for line in groups.read("cpuacct", "cpuacct.usage_all").splitlines()[1:]]
    user, kernel = (sum(int(line[column]) for line in per_cpu) for column in (1, 2))
    stat = _pairs(groups.read("cpu", "cpu.stat"))
    throttled = {
        "periods": stat.get("nr_periods", 0),
        "throttled_periods": stat.get("nr_throttled", 0),
        "throttled_time": stat.get("throttled_time", 0),
    }
    total = _number(groups.read("cpuacct", "cpuacct.usage"))
    result = _processors(total, kernel, user, throttled)
    result["cpu_usage"]["percpu_usage"] = [
        int(text) for text in groups.read("cpuacct", "cpuacct.usage_percpu").split()
    ]
    return result


def _cpu_2(groups: Groups) -> dict[str, Any]:
    stat = {name: value * 1000 for name, value in _pairs(groups.read("cpu", "cpu.stat")).items()}
    throttled = {
        "periods": stat.get("nr_periods", 0) // 1000,
        "throttled_periods": stat.get("nr_throttled", 0) // 1000,
        "throttled_time": stat.get("throttled_usec", 0),
    }
    return _processors(
        stat.get("usage_usec", 0), stat.get("system_usec", 0), stat.get("user_usec", 0), throttled
    )


def _memory_1(groups: Groups) -> dict[str, Any]:
    def number(name: str) -> int:
        return _number(groups.read("memory", f"memory.{name}"))

    return {
        "usage": number("usage_in_bytes"),
        "max_usage": number("max_usage_in_bytes"),
        "failcnt": number("failcnt"),
        "limit": min(number("limit_in_bytes") or _UNLIMITED, _memory_of_the_machine()),
        "stats": _pairs(groups.read("memory", "memory.stat")),
    }


def _memory_2(groups: Groups) -> dict[str, Any]:
    return {
        "usage": _number(groups.read("memory", "memory.current")),
        "failcnt": _pairs(groups.read("memory", "memory.events")).get("oom", 0),
        "limit": min(
            _number(groups.read("memory", "memory.max"), _UNLIMITED) or _UNLIMITED, _memory_of_the_machine()
        ),
        "stats": _pairs(groups.read("memory", "memory.stat")),
    }


def _memory_of_the_machine() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _pids(groups: Groups) -> dict[str, int]:
    limit = _number(groups.read("pids", "pids.max"), _UNLIMITED)
    return {"current": _number(groups.read("pids", "pids.current")), "limit": limit or _UNLIMITED}


def _blkio_1(groups: Groups) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for member, name in _BLKIO.items():
        texts = (groups.read("blkio", f"blkio.{kind}{name}") for kind in ("", "throttle.", "bfq."))
        result[member] = _blkio_entries(next(filter(None, texts), ""))
    return result


def _blkio_entries(text: str) -> list[dict[str, Any]]:
    """Return the lines "8:0 Read 4096" of *text*; the last one, of all devices, has no number."""
    entries = []
    for line in text.splitlines():
        device, *words = line.split()
        major, colon, minor = device.partition(":")
        if colon and words:
            op = words[0] if len(words) == 2 else ""
            entries.append({"major": int(major), "minor": int(minor), "op": op, "value": int(words[-1])})
    return entries


def _blkio_2(groups: Groups) -> dict[str, Any]:
    result: dict[str, list[dict[str, Any]]] = {"io_service_bytes_recursive": [], "io_serviced_recursive": []}
    members = {"io_service_bytes_recursive": "bytes", "io_serviced_recursive": "ios"}
    for line in groups.read("io", "io.stat").splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        values = dict(word.split("=", 1) for word in words if "=" in word)
        for member, kind in members.items():
            result[member] += [
                {
                    "major": int(major),
                    "minor": int(minor),
                    "op": op,
                    "value": int(values.get(f"{op[0]}{kind}", 0)),
                }
                for op in ("read", "write")
            ]
    return result


def networks(pid: int) -> dict[str, dict[str, int]]:
    """Return what went through the interfaces that the process *pid* sees, but for its loopback."""
    found: dict[str, dict[str, int]] = {}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
            name, _, numbers = line.partition(":")
            if name.strip() != "lo":
                values = zip(_NETWORK, numbers.split(), strict=False)
                found[name.strip()] = {member: int(value) for member, value in values if member}
    return found


def _pairs(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(text: str, otherwise: int = 0) -> int:
    return int(text) if text.strip().isdecimal() else otherwise
