"""The lower trees that the workloads run on: each made once, on demand, and then only read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .chroot import make_debian

MIB = 1 << 20
FILES = 10_000
DIRECTORIES = 100
BULK_BYTES = 512 * MIB
WALK_FILES = 100_000


def file_names(directories: int = DIRECTORIES, files: int = FILES) -> list[str]:
    """Return the relative paths of the files of a tree of this shape, directory by directory."""
    each = files // directories
    return [f"d{place:04}/f{number:04}" for place in range(directories) for number in range(each)]


def make_files(top: Path, names: list[str], content: bytes) -> None:
    """Create the files *names* below *top*, each with *content*."""
    for directory in sorted({os.path.dirname(name) for name in names}):
        (top / directory).mkdir(parents=True)
    for name in names:
        (top / name).write_bytes(content)


def make_empty(top: Path) -> None:
    """Make a tree of one file."""
    make_files(top, ["d/f"], b"content\n")


def make_small(top: Path) -> None:
    """Make 10,000 files of 2 KiB in 100 directories."""
    make_files(top, file_names(), os.urandom(2048))


def make_many(top: Path) -> None:
    """Make 100,000 empty files in 1,000 directories."""
    make_files(top, file_names(1000, WALK_FILES), b"")


def make_bulk(top: Path) -> None:
    """Make one file of 512 MiB that no filesystem can store in less."""
    with open(top / "bulk", "wb") as file:
        for _ in range(BULK_BYTES // MIB):
            file.write(os.urandom(MIB))


TREES: dict[str, Callable[[Path], None]] = {
    "empty": make_empty,
    "small": make_small,
    "many": make_many,
    "bulk": make_bulk,
    "debian": make_debian,
}


def lower_tree(kind: str, directory: Path) -> Path:
    """Return the tree of this *kind* (a key of `TREES`) below *directory*, made if it is not there."""
    top = directory / kind
    if not top.exists():
        partial = directory / f"{kind}.partial"
        partial.mkdir(parents=True)
        TREES[kind](partial)
        partial.rename(top)
    return top
