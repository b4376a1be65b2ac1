"""The kernel's mount table, as it is read: proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple


class Mounted(NamedTuple):
    """One line of a mount table."""

    place: str
    """The mountpoint, as the process sees it whose table this is."""
    type: str
    source: str
    device: int
    """The filesystem's `st_dev`."""
    flags: frozenset[str]
    """The options of the mount and of its filesystem."""


def mounts(pid: int | str = "self") -> Iterator[Mounted]:
    """Yield what is mounted in the namespace of the process *pid*, the last mounted last. Raises `OSError`.

    No filesystem is touched: a daemon may be dead, or this very process.
    """
    with open(f"/proc/{pid}/mountinfo", "rb") as lines:
        for line in lines:
            # A blank alone ends a field: the kernel shows a carriage return in a name as it is.
            before, _, after = line.removesuffix(b"\n").partition(b" - ")
            fields, (type_, source, *options) = before.split(b" "), after.split(b" ")
            major, _, minor = fields[2].partition(b":")
            place = os.fsdecode(_unescape(fields[4]))
            device = os.makedev(int(major), int(minor))
            flags = frozenset(os.fsdecode(b",".join([fields[5], *options])).split(","))
            yield Mounted(place, os.fsdecode(type_), os.fsdecode(_unescape(source)), device, flags)


def _unescape(path: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), path)
