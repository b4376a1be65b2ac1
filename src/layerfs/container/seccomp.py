"""The default seccomp filter: the profile that comes with Debian's containers-common, for a runtime.

The file has the form of Docker's profiles (moby's `seccomp.Seccomp`): rules with conditions on the
architecture, the kernel and the capabilities. A runtime wants those that apply, without conditions
(OCI runtime specification, config-linux.md, "Seccomp").
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from layerfs.errors import LayerfsError

PROFILES = (Path("/etc/containers/seccomp.json"), Path("/usr/share/containers/seccomp.json"))
"""Where profiles are: the administrator's own, then the package's (containers.conf(5))."""
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


def default_filter(capabilities: Collection[str]) -> dict[str, Any] | None:
    """Return the `linux.seccomp` of a process that may have *capabilities* ("CAP_CHOWN").

    None where no profile is installed, or none knows this machine. Raises `LayerfsError` for a file that
    is no profile.
    """
    path = next((path for path in PROFILES if path.exists()), None)
    machine = _MACHINES.get(platform.machine())
    if path is None or machine is None:
        return None
    try:
        profile = json.loads(path.read_bytes())
        return convert(profile, capabilities, *machine, platform.release())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LayerfsError(f"{path} is not a seccomp profile: {error}") from None


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
            for rule in profile["syscalls"]
            if _applies(rule, frozenset(capabilities), machine, kernel)
        ],
    }
    if "defaultErrnoRet" in profile:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return result


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
