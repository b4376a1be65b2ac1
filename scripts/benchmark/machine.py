"""The machine and the versions of the programs on which the figures depend."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from .peers import command

PROGRAMS = ("layerfs", "fuse-overlayfs", "buildah", "podman")


def first_match(pattern: str, text: str) -> str:
    """Return the first group of *pattern* in *text*, or "unknown"."""
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "unknown"


def machine(directory: Path) -> dict[str, str]:
    """Return what the figures depend on; *directory* is where the work was done."""
    memory = first_match(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    system = first_match(r'^PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    return {
        "processor": f"{os.cpu_count()} x "
        + first_match(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text()),
        "memory": f"{int(memory) / 2**20:.0f} GiB" if memory.isdigit() else memory,
        "filesystem": command("findmnt", "-no", "FSTYPE", "-T", directory).strip(),
        "system": f"{system}, Linux {platform.release()}",
        "python": platform.python_version(),
    }


def versions(peers: Sequence[str]) -> dict[str, str]:
    """Return the versions of the programs among *peers*."""
    return {
        f"{peer} version": first_match(rf"{peer}.*? (\d+\.[\w.-]+)", command(peer, "--version"))
        for peer in PROGRAMS
        if peer in peers
    }
