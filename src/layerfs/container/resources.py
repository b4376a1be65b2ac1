"""A container's limits: the members of Docker's `Resources`, checked, and as an OCI runtime takes them.

Rules and messages are those of moby's `verifyPlatformContainerResources`. What the kernel cannot limit is
taken out with a warning, as there. A runtime translates to the control groups' version 2 where need be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from layerfs.container.members import Members
from layerfs.errors import BadRequest, Conflict, from_os_error
from layerfs.host.cgroups import Support

NUMBERS = (
    "CpuShares", "Memory", "NanoCpus", "BlkioWeight", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod",
    "CpuRealtimeRuntime", "MemoryReservation", "MemorySwap", "CpuCount", "CpuPercent", "IOMaximumIOps",
    "IOMaximumBandwidth",
)  # fmt: skip
OPTIONAL_NUMBERS = ("MemorySwappiness", "PidsLimit")
WEIGHT_DEVICES = "BlkioWeightDevice"
RATE_DEVICES = {
    "BlkioDeviceReadBps": "throttleReadBpsDevice",
    "BlkioDeviceWriteBps": "throttleWriteBpsDevice",
    "BlkioDeviceReadIOps": "throttleReadIOPSDevice",
    "BlkioDeviceWriteIOps": "throttleWriteIOPSDevice",
}
"""Limits of one device each, and the runtime's names for them."""
_LEAST_MEMORY = 6 << 20
_LEAST_NANO = 10**7
"""A hundredth of a processor: of the period, that is the least quota that the kernel takes."""
_PERIOD = 100_000
"""Microseconds within which a share of the processors is counted: the kernel's default."""
_NO_LIMIT = "or the cgroup is not mounted. "


def taken(members: Members) -> dict[str, Any]:
    """Return the limits in *members*, with every one that there is; raises `BadRequest` for wrong types."""
    found: dict[str, Any] = {name: members.number(name) for name in NUMBERS}
    found |= {name: members.optional_number(name) for name in OPTIONAL_NUMBERS}
    found["CpusetCpus"] = members.text("CpusetCpus")
    found["CpusetMems"] = members.text("CpusetMems")
    found["OomKillDisable"] = members.optional_flag("OomKillDisable")
    found[WEIGHT_DEVICES] = members.each(WEIGHT_DEVICES, lambda device: _device(device, "Weight"))
    found |= {name: members.each(name, lambda device: _device(device, "Rate")) for name in RATE_DEVICES}
    for name in ("IOMaximumIOps", "IOMaximumBandwidth"):
        if found[name]:
            raise BadRequest(f"invalid option: {name} is not supported on linux")
    return found


def _device(device: Members, limit: str) -> dict[str, Any]:
    return {"Path": device.text("Path"), limit: device.number(limit)}


def check(limits: dict[str, Any], here: Support, *, update: bool = False) -> list[str]:
    """Check *limits*, take out what *here* does not support, and return warnings; raises `BadRequest`."""
    warnings: list[str] = []

    def discard(name: str, empty: Any, supported: bool, words: str) -> None:
        if limits[name] not in (None, 0, "", [], False) and not supported:
            warnings.append(f"Your kernel does not support {words}")
            limits[name] = empty

    _check_memory(limits, here, warnings, update=update)
    discard("PidsLimit", None, here.pids, f"PIDs limit capabilities {_NO_LIMIT}PIDs limit discarded.")
    _check_processors(limits, here)
    discard("CpuShares", 0, here.cpu_shares, f"CPU shares {_NO_LIMIT}Shares discarded.")
    for name in ("CpuPeriod", "CpuQuota"):
        discard(name, 0, here.cpu_quota, "CPU CFS scheduler. CPU period/quota discarded.")
    if limits["CpuPercent"]:
        warnings.append("linux does not support CPU percent. Percent discarded.")
        limits["CpuPercent"] = 0
    for name in ("CpusetCpus", "CpusetMems"):
        discard(name, "", bool(here.cpus), f"cpuset {_NO_LIMIT}Cpuset discarded.")
    _check_set(limits["CpusetCpus"], here.cpus, "cpuset cpus", "CPUs")
    _check_set(limits["CpusetMems"], here.memory_nodes, "cpuset mems", "memory nodes")
    weight = limits["BlkioWeight"]
    if weight and not 10 <= weight <= 1000:
        raise BadRequest("Range of blkio weight is from 10 to 1000")
    discard("BlkioWeight", 0, here.blkio_weight, f"Block I/O weight {_NO_LIMIT}Weight discarded.")
    discard(
        WEIGHT_DEVICES, [], here.blkio_weight, f"Block I/O weight_device {_NO_LIMIT}Weight-device discarded."
    )
    for name in RATE_DEVICES:
        discard(name, [], here.blkio_limits, f"limits of block devices {_NO_LIMIT}{name} discarded.")
    for device in limits[WEIGHT_DEVICES] or ():
        if not 10 <= device["Weight"] <= 1000:
            raise BadRequest(f"invalid weight for device: {device['Path']}:{device['Weight']}")
    for name in RATE_DEVICES:
        for device in limits[name] or ():
            if device["Rate"] < 0:
                raise BadRequest(f"invalid rate for device: {device['Path']}:{device['Rate']}")
    return warnings


def _check_memory(limits: dict[str, Any], here: Support, warnings: list[str], *, update: bool) -> None:
    memory, swap, reservation = limits["Memory"], limits["MemorySwap"], limits["MemoryReservation"]
    if memory != 0 and memory < _LEAST_MEMORY:
        raise BadRequest("Minimum memory limit allowed is 6MB")
    if memory > 0 and not here.memory:
        warnings.append(
            f"Your kernel does not support memory limit capabilities {_NO_LIMIT}Limitation discarded."
        )
        memory, swap = 0, -1
    if memory > 0 and swap != -1 and not here.swap:
        warnings.append(
            f"Your kernel does not support swap limit capabilities {_NO_LIMIT}Memory limited without swap."
        )
        swap = -1
    if memory > 0 and 0 < swap < memory:
        raise BadRequest("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory == 0 and swap > 0 and not update:
        raise BadRequest("You should always set the Memory limit when using Memoryswap limit, see usage")
    if swap < -1:
        raise BadRequest(f"invalid MemorySwap {swap}: give a number of bytes, or -1 for no limit")
    swappiness = limits["MemorySwappiness"]
    if swappiness == -1:  # what clients of old send for the kernel's own
        swappiness = None
    if swappiness is not None and not 0 <= swappiness <= 100:
        raise BadRequest(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if swappiness is not None and not here.swappiness:
        warnings.append(
            f"Your kernel does not support memory swappiness capabilities {_NO_LIMIT}"
            "Memory swappiness discarded."
        )
        swappiness = None
    if reservation > 0 and not here.reservation:
        warnings.append(
            f"Your kernel does not support memory soft limit capabilities {_NO_LIMIT}Limitation discarded."
        )
        reservation = 0
    if reservation != 0 and reservation < _LEAST_MEMORY:
        raise BadRequest("Minimum memory reservation allowed is 6MB")
    if 0 < memory < reservation:
        raise BadRequest("Minimum memory limit can not be less than memory reservation limit, see usage")
    if limits["OomKillDisable"] is not None and not here.oom_kill_disable:
        if limits["OomKillDisable"]:
            warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        limits["OomKillDisable"] = None
    if limits["OomKillDisable"] and memory == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, "
            "this can result in the system running out of resources."
        )
    limits |= {
        "Memory": memory, "MemorySwap": swap, "MemorySwappiness": swappiness,
        "MemoryReservation": reservation,
    }  # fmt: skip


def _check_processors(limits: Mapping[str, Any], here: Support) -> None:
    nano, period, quota = limits["NanoCpus"], limits["CpuPeriod"], limits["CpuQuota"]
    if limits["CpuShares"] < 0:
        raise BadRequest(f"invalid CPU shares ({limits['CpuShares']}): value must be a positive integer")
    if nano > 0 and period > 0:
        raise BadRequest("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano > 0 and quota > 0:
        raise BadRequest("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if nano > 0 and not here.cpu_quota:
        raise BadRequest(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler "
            "or the cgroup is not mounted"
        )
    count = os.cpu_count() or 1
    if nano and not _LEAST_NANO <= nano <= count * 10**9:
        raise BadRequest(
            f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        )
    if period and not 1000 <= period <= 1_000_000:
        raise BadRequest(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < quota < 1000:
        raise BadRequest("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    realtime, runtime = limits["CpuRealtimePeriod"], limits["CpuRealtimeRuntime"]
    if (realtime or runtime) and not here.cpu_realtime:
        raise BadRequest("kernel does not support CPU real-time scheduler")
    if realtime < 0 or runtime < 0:
        raise BadRequest("cpu real-time period and runtime must not be negative")
    if realtime and runtime > realtime:
        raise BadRequest("cpu real-time runtime cannot be higher than cpu real-time period")


def _check_set(given: str, available: str, what: str, things: str) -> None:
    try:
        wanted = set(numbers(given))
    except ValueError:
        raise BadRequest(f"Invalid value {given[:80]} for {what}") from None
    if not wanted <= set(numbers(available)):
        raise BadRequest(
            f"Requested {things} are not available - requested {given[:80]}, available: {available}"
        )


def numbers(text: str) -> Iterator[int]:
    """Yield the numbers in a list such as "0-2,7" (cpuset(7)); raises `ValueError`."""
    for part in text.split(",") if text else ():
        found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part, re.ASCII)
        if not found:
            raise ValueError(part)
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(part)
        yield from range(first, last + 1)


def for_runtime(limits: Mapping[str, Any], *, update: bool = False) -> dict[str, Any]:
    """Return *limits* as the member `linux.resources` of a specification, without devices.

    With *update*, as `runc update` takes them. Raises `LayerfsError` for a block device that is not there.
    """
    memory = {
        "limit": limits["Memory"] or None,
        "reservation": limits["MemoryReservation"] or None,
        "swap": limits["MemorySwap"] or None,
        "swappiness": limits["MemorySwappiness"],
        "disableOOMKiller": limits["OomKillDisable"] or None,
    }
    if limits["MemorySwap"] == -1 and not limits["Memory"]:
        memory["swap"] = None
    nano = limits["NanoCpus"]
    cpu = {
        "shares": limits["CpuShares"] or None,
        "period": limits["CpuPeriod"] or (_PERIOD if nano else None),
        "quota": limits["CpuQuota"] or (nano * _PERIOD // 10**9 if nano else None),
        "realtimePeriod": limits["CpuRealtimePeriod"] or None,
        "realtimeRuntime": limits["CpuRealtimeRuntime"] or None,
        "cpus": limits["CpusetCpus"] or None,
        "mems": limits["CpusetMems"] or None,
    }
    block: dict[str, Any] = {
        "weight": limits["BlkioWeight"] or None,
        "weightDevice": [
            {**_numbers_of(device["Path"]), "weight": device["Weight"]}
            for device in limits[WEIGHT_DEVICES] or ()
        ],
    }
    for name, of_runtime in RATE_DEVICES.items():
        block[of_runtime] = [
            {**_numbers_of(device["Path"]), "rate": device["Rate"]} for device in limits[name] or ()
        ]
    pids = limits["PidsLimit"]
    result = {
        "memory": memory if not update else {**memory, "disableOOMKiller": None, "swappiness": None},
        "cpu": cpu,
        "blockIO": block,
        "pids": {"limit": None if pids is None else pids if pids > 0 else -1},
    }
    return {kind: kept for kind, values in result.items() if (kept := _without_none(values))}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != []}


def _numbers_of(path: str) -> dict[str, int]:
    try:
        number = os.stat(path).st_rdev
    except OSError as error:
        raise from_os_error(error, "limit a device") from None
    return {"major": os.major(number), "minor": os.minor(number)}


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits *old* with those of *new* over them that are given.

    As moby's `UpdateContainer` does: 0, an empty text and null leave a limit as it is. Raises `Conflict` for
    two that go against each other, `BadRequest` for a sum of memory and swap below the memory alone.
    """
    clashes = (
        ("NanoCpus", "CpuPeriod", "Nano CPUs cannot be updated as CPU Period has already been set"),
        ("NanoCpus", "CpuQuota", "Nano CPUs cannot be updated as CPU Quota has already been set"),
        ("CpuPeriod", "NanoCpus", "CPU Period cannot be updated as NanoCPUs has already been set"),
        ("CpuQuota", "NanoCpus", "CPU Quota cannot be updated as NanoCPUs has already been set"),
    )
    for given, before, line in clashes:
        if new[given] > 0 and old[before] > 0:
            raise Conflict(f"Conflicting options: {line}")
    if new["Memory"] > old["MemorySwap"] > 0 and new["MemorySwap"] == 0:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, "
            "update the memoryswap at the same time"
        )
    kept = {
        name: value
        for name, value in new.items()
        if (value is not None and value not in (0, "")) or (name == "PidsLimit" and value is not None)
    }
    after = {**old, **kept}
    if 0 < after["MemorySwap"] < after["Memory"]:
        raise BadRequest("Minimum memoryswap limit should be larger than memory limit, see usage")
    return after
