"""How much work the workloads do: what their names say, or less where asked to, or where there is no room."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

GIB = 1 << 30
ROOM = 24 * GIB  # on the disk, for the lower trees and the largest upper
MEMORY = 4 * GIB  # for a warm read of the large file, twice cached


@dataclass(frozen=True)
class Sizes:
    """Numbers of files and operations, and the sizes of large files in MiB."""

    files: int = 10_000
    directories: int = 100
    many: int = 100_000
    layered: int = 2_500
    layered_directories: int = 25
    changed: int = 2_000
    appends: int = 10_000
    each: int = 300
    random_cold: int = 5_000
    random_warm: int = 100_000
    overwrites: int = 20_000
    commit_few: int = 10
    commit_some: int = 10_000
    commit_many: int = 100_000
    large: int = 1024
    huge: int = 4096
    image: int = 200
    step: int = 500
    past_files: int = 50_000
    past_changed: int = 1_000
    expansions: int = 100
    expansion: int = 200
    rollbacks: int = 49

    def scaled(self, factor: float) -> Sizes:
        """Return these sizes times *factor*, none below 1."""
        return Sizes(
            **{field.name: max(1, int(getattr(self, field.name) * factor)) for field in fields(self)}
        )


def room_for(directory: Path) -> float:
    """Return the part (0 to 1) of the full sizes for which the machine and *directory*'s disk have room."""
    disk = os.statvfs(directory)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(1.0, disk.f_bavail * disk.f_frsize / ROOM, memory / MEMORY)
