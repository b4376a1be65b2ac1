"""The default seccomp filter: the machine's profile for containers, as strict as Docker's, for a runtime.

The file has the form of Docker's profiles (moby's `seccomp.Seccomp`): rules with conditions on the
architecture, the kernel and the capabilities. A runtime wants those that apply, without conditions
(OCI runtime specification, config-linux.md, "Seccomp").

The profile that Debian installs is Podman's, which relies on a user namespace around each container: it
allows the kernel's keyrings and new namespaces. Our containers run as the host's root, so what dockerd
reserves for capabilities is taken out of it (`restrict`). An administrator's own profile is used as it is.
"""

from __future__ import annotations

import errno
import gzip
import json
import platform
import re
import socket
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from layerfs.errors import BadRequest, LayerfsError

OWN_PROFILE = Path("/etc/containers/seccomp.json")
"""The profile that an administrator has written (containers.conf(5))."""
PACKAGED_PROFILE = Path("/usr/share/containers/seccomp.json")
"""The profile of the package golang-github-containers-common."""
UNFILTERED = (
    "warning: no seccomp profile is installed, so containers may use every system call of the kernel: "
    "install the package golang-github-containers-common"
)
_MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
}
"""For each machine, as uname(2) names it, its name in conditions and its name for libseccomp."""
_X32 = "SCMP_ARCH_X32"
_NAMESPACES = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
"""The flags of clone(2) that make namespaces: mount, cgroup, UTS, IPC, user, pid, network."""
_WORD = (1 << 64) - 1
_FAMILIES = 64
"""More than there are families of sockets: Linux 6.18 has 46."""
_HOLDERS = (
    # Keys belong to a user id, which a container shares with the host: no namespace but a user's parts them.
    ((), "add_key keyctl request_key pivot_root"),
    (
        ("CAP_SYS_ADMIN",),
        "fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules"
        " lsm_set_self_attr mount mount_setattr move_mount open_tree quotactl quotactl_fd setdomainname"
        " sethostname setns umount umount2 unshare",
    ),
    (("CAP_SYS_ADMIN", "CAP_BPF"), "bpf"),
    (("CAP_SYS_ADMIN", "CAP_PERFMON"), "perf_event_open"),
    (("CAP_SYS_ADMIN", "CAP_SYSLOG"), "syslog"),
    (("CAP_DAC_READ_SEARCH",), "open_by_handle_at"),
    (("CAP_SYS_BOOT",), "reboot"),
    (("CAP_SYS_CHROOT",), "chroot"),
    (("CAP_SYS_MODULE",), "delete_module finit_module init_module"),
    (("CAP_SYS_NICE",), "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (("CAP_SYS_PACCT",), "acct"),
    (("CAP_SYS_PTRACE",), "kcmp pidfd_getfd process_madvise"),
    (("CAP_SYS_RAWIO",), "ioperm iopl"),
    (("CAP_SYS_TIME",), "clock_settime clock_settime64 settimeofday stime"),
    (("CAP_SYS_TTY_CONFIG",), "vhangup"),
)
_RESERVED = {name: holders for holders, names in _HOLDERS for name in names.split()}
"""For each call that dockerd's default profile reserves, the capabilities of which any one opens it."""


def is_missing() -> bool:
    """Return whether this machine has no profile, so that containers run without a filter."""
    return platform.machine() not in _MACHINES or not (OWN_PROFILE.exists() or PACKAGED_PROFILE.exists())


def default_filter(capabilities: Collection[str]) -> dict[str, Any] | None:
    """Return the `linux.seccomp` of a process that may have *capabilities* ("CAP_CHOWN").

    None where `is_missing`. Raises `LayerfsError` for a file that is no profile.
    """
    if is_missing():
        return None
    machine, architecture = _MACHINES[platform.machine()]
    own = OWN_PROFILE.exists()
    path = OWN_PROFILE if own else PACKAGED_PROFILE
    try:
        profile = json.loads(path.read_bytes())
        found = convert(profile, capabilities, machine, architecture, platform.release())
        if own:
            return found
        # A third of the time that a container takes to begin is the filter's, and half of that is this one's.
        found["architectures"] = [it for it in found["architectures"] if it != _X32 or has_x32()]
        return restrict(found, capabilities, machine)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LayerfsError(f"{path} is not a seccomp profile: {error}") from None


@cache
def has_x32() -> bool:
    """Return whether the kernel may have x86's third set of system calls, which most are built without.

    It is not tried out: a filter around this process could end it for that.
    """
    text = b""
    with suppress(OSError, EOFError, zlib.error):
        text = gzip.decompress(Path("/proc/config.gz").read_bytes())
    with suppress(OSError):
        text = text or Path(f"/boot/config-{platform.release()}").read_bytes()
    if not text:
        return True
    if re.search(rb"^CONFIG_X86_X32(_ABI)?=y$", text, re.MULTILINE) is None:
        return False
    if b"\nCONFIG_X86_X32_DISABLED=y\n" not in text:  # Debian's: then it is a matter of the boot loader
        return True
    return re.search(r"\bsyscall\.x32=[y1]", Path("/proc/cmdline").read_text()) is not None


def given_filter(text: str, capabilities: Collection[str]) -> dict[str, Any]:
    """Return the `linux.seccomp` that the profile *text* means for a process that may have *capabilities*.

    Nothing is taken out of it: whoever gives one decides. Raises `BadRequest` for a text that is no profile,
    and for a machine that has no filters.
    """
    if platform.machine() not in _MACHINES:
        raise BadRequest(f"seccomp profiles are not supported on {platform.machine()}")
    try:
        profile = json.loads(text)
        if not isinstance(profile, dict):
            raise TypeError("a profile must be an object")
        result = convert(profile, capabilities, *_MACHINES[platform.machine()], platform.release())
        if profile.get("architectures"):
            result["architectures"] = [str(name) for name in profile["architectures"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BadRequest(f"Decoding seccomp profile failed: {what}") from None
    return result


def convert(
    profile: dict[str, Any], capabilities: Collection[str], machine: str, architecture: str, kernel: str
) -> dict[str, Any]:
    """Return what *profile*, in Docker's form, means for *capabilities* on a *machine* with a *kernel*.

    *machine* is its name in conditions ("amd64"), *architecture* that of libseccomp, *kernel* a release
    ("6.1.0-13-amd64"). Raises `KeyError`, `TypeError` and the like where the form is another.
    """
    others = [entry for entry in profile.get("archMap") or () if entry["architecture"] == architecture]
    subordinate = [name for entry in others for name in entry.get("subArchitectures") or ()]
    result = {
        "defaultAction": profile["defaultAction"],
        "architectures": [architecture, *subordinate],
        "syscalls": [
            _rule(rule)
            for rule in profile.get("syscalls") or ()
            if _applies(rule, frozenset(capabilities), machine, kernel)
        ],
    }
    if "defaultErrnoRet" in profile:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return result


def restrict(filter_: dict[str, Any], capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """Return *filter_* without what dockerd's default profile reserves for capabilities that are not given.

    What is taken out fails with EPERM, as there, but for clone3: ENOSYS has the C library use clone, whose
    flags a filter can see.
    """
    refused = {name for name, holders in _RESERVED.items() if not set(holders) & set(capabilities)}
    own: list[dict[str, Any]] = [*_socket_rules()]
    if "CAP_SYS_ADMIN" not in capabilities:
        own += _clone_rules(1 if machine in ("s390", "s390x") else 0)
    replaced = refused | {name for rule in own for name in rule["names"]}
    kept = [
        {**rule, "names": names}
        for rule in filter_["syscalls"]
        if (names := [name for name in rule["names"] if name not in replaced])
    ]
    refusal = {"names": sorted(refused), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    return {**filter_, "syscalls": [*kept, refusal, *own]}


def _socket_rules() -> Iterator[dict[str, Any]]:
    """Yield the rules for socket(2): every family but the kernel's crypto and the hypervisor's sockets.

    A filter compares 64 bits, of which the kernel takes 32. So what is allowed has an upper bound: the rest,
    the two families with a bit beyond those 32 among it, is refused.
    """
    yield _when("socket", "SCMP_CMP_LT", socket.AF_ALG)
    for first, end in ((socket.AF_ALG + 1, socket.AF_VSOCK), (socket.AF_VSOCK + 1, _FAMILIES)):
        for block, size in _blocks(first, end):  # every rule costs each container time to begin
            yield _when("socket", "SCMP_CMP_MASKED_EQ", _WORD ^ size - 1, block)
    for family in (socket.AF_ALG, socket.AF_VSOCK):
        yield _when("socket", "SCMP_CMP_EQ", family, refused=True)


def _blocks(first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the numbers from *first* to *end* as blocks: its first, and a power of two that divides it."""
    while first < end:
        size = first & -first
        while first + size > end:
            size //= 2
        yield first, size
        first += size


def _clone_rules(index: int) -> Iterator[dict[str, Any]]:
    """Yield the rules for clone(2), whose flags are its argument *index*: anything but a new namespace."""
    yield _when("clone", "SCMP_CMP_MASKED_EQ", sum(_NAMESPACES), 0, index=index)
    for flag in _NAMESPACES:
        yield _when("clone", "SCMP_CMP_MASKED_EQ", flag, flag, index=index, refused=True)
    yield {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}


def _when(
    name: str, op: str, value: int, second: int = 0, *, index: int = 0, refused: bool = False
) -> dict[str, Any]:
    """Return the rule that a call is allowed, or *refused*, when its argument *index* compares so."""
    rule: dict[str, Any] = {"names": [name], "action": "SCMP_ACT_ALLOW"}
    if refused:
        rule |= {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    return {**rule, "args": [{"index": index, "value": value, "valueTwo": second, "op": op}]}


def _applies(rule: dict[str, Any], capabilities: frozenset[str], machine: str, kernel: str) -> bool:
    needed, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
    return (
        (not needed.get("arches") or machine in needed["arches"])
        and capabilities.issuperset(needed.get("caps") or ())
        and _version(kernel) >= _version(needed.get("minKernel") or "0.0")
        and machine not in (unwanted.get("arches") or ())
        and capabilities.isdisjoint(unwanted.get("caps") or ())
        and not (unwanted.get("minKernel") and _version(kernel) >= _version(unwanted["minKernel"]))
    )


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    result = {"names": rule.get("names") or [rule["name"]], "action": rule["action"]}
    if rule.get("errnoRet") is not None:
        result["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        members = ("index", "value", "valueTwo", "op")
        result["args"] = [{name: arg[name] for name in members if name in arg} for arg in rule["args"]]
    return result


def _version(release: str) -> tuple[int, ...]:
    """Return the version and patch level that a kernel's *release* begins with."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
