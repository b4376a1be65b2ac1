"""Who keeps a filesystem in use: processes that have a file of it open or work in it, and mount namespaces.

What other users' processes do is seen by root alone. Nothing here asks the filesystem itself anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from layerfs.host import mountcalls, mounttable

_SHOWN = 3
"""Processes that a message names."""


class Holder(NamedTuple):
    """A process, and in what way it keeps a filesystem in use."""

    pid: int
    how: str

    def __str__(self) -> str:
        try:
            command = Path(f"/proc/{self.pid}/comm").read_text(errors="replace").strip()
        except OSError:
            command = "ended meanwhile"
        return f"process {self.pid} ({command}) {self.how}"


def describe(holders: list[Holder]) -> str:
    """Return the first of *holders* in words, for a message; "" for none."""
    text = ", ".join(str(holder) for holder in holders[:_SHOWN])
    more = len(holders) - _SHOWN
    return f"{text} and {more} more" if more > 0 else text


def copies(device: int) -> Iterator[tuple[int, list[mounttable.Mounted]]]:
    """Yield a process of each other mount namespace that has the filesystem *device* mounted, and where."""
    seen = {_namespace("self")}
    for pid in _processes():
        namespace = _namespace(pid)
        if namespace is None or namespace in seen:
            continue
        seen.add(namespace)
        if found := mounttable.mounts_of(device, pid):
            yield pid, found


def namespaces(device: int) -> list[Holder]:
    """Return a process of each other mount namespace that has the filesystem *device* mounted."""
    return [Holder(pid, "has it mounted in a mount namespace of its own") for pid, _ in copies(device)]


def users(device: int) -> list[Holder]:
    """Return the processes, but for this one, that use the filesystem *device*, and how."""
    others = (pid for pid in _processes() if pid != os.getpid())
    return [Holder(pid, how) for pid in others if (how := _use(pid, device))]


def _use(pid: int, device: int) -> str | None:
    for link, how in (("cwd", "has its working directory there"), ("root", "has its root directory there")):
        if _lies_on(f"/proc/{pid}/{link}", device):
            return how
    with suppress(OSError):
        if any(_lies_on(f"/proc/{pid}/fd/{name}", device) for name in os.listdir(f"/proc/{pid}/fd")):
            return "has a file open there"
    with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as lines:
        number = b"%02x:%02x" % (os.major(device), os.minor(device))
        if any(line.split(None, 4)[3] == number for line in lines):
            return "has a file of it in its memory"
    return None


def _lies_on(link: str, device: int) -> bool:
    try:
        return mountcalls.identify(link.encode(), follow=True).device == device
    except OSError:
        return False


def _namespace(pid: int | str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
