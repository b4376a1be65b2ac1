"""Many small files: opened, read, made, changed, renamed and removed; times are per file, or per line."""

from __future__ import annotations

import os

from ..measure import timed
from ..registry import Stage, workload
from ..trees import FILES, file_names

CHANGED = 2_000  # files that a changing workload touches
APPENDS = 10_000
LINE = b"2025-01-01T00:00:00Z host program[1234]: a line of a log, 72 bytes long\n"


def read_files(paths: list[str]) -> None:
    """Open, read and close each file."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 1 << 16)
        os.close(fd)


def write_files(paths: list[str], content: bytes) -> None:
    """Create each file with *content*."""
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, content)
        os.close(fd)


def new_paths(stage: Stage) -> list[str]:
    """Return the paths of files that are not there yet, in one directory of the upper layer."""
    os.mkdir(stage.path("new"))
    return [stage.path(f"new/{number:04}") for number in range(CHANGED)]


@workload("open + read + close of 2 KiB, cold", "small")
def read_cold(stage: Stage) -> float:
    """With nothing in memory."""
    with stage.cold():
        paths = stage.paths(file_names())
        return timed(lambda: read_files(paths), FILES)


@workload("open + read + close of 2 KiB, warm", "small")
def read_warm(stage: Stage) -> float:
    """The second time."""
    with stage.mounted():
        paths = stage.paths(file_names())
        read_files(paths)
        return timed(lambda: read_files(paths), FILES)


@workload("create + write 4 KiB + close", "small")
def create(stage: Stage) -> float:
    """New files in a new directory."""
    with stage.mounted():
        paths = new_paths(stage)
        content = os.urandom(4096)
        return timed(lambda: write_files(paths, content), CHANGED)


@workload("append of 72 bytes", "small")
def append(stage: Stage) -> float:
    """One write a line to a file that stays open, as programs log."""
    with stage.mounted():
        fd = os.open(stage.path("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

        def write_lines() -> None:
            for _ in range(APPENDS):
                os.write(fd, LINE)

        try:
            return timed(write_lines, APPENDS)
        finally:
            os.close(fd)


@workload("rename of a new file", "small")
def rename(stage: Stage) -> float:
    """Within a directory of the upper layer."""
    with stage.mounted():
        paths = new_paths(stage)
        write_files(paths, b"content\n")

        def rename_all() -> None:
            for path in paths:
                os.rename(path, f"{path}.renamed")

        return timed(rename_all, CHANGED)


@workload("unlink of a new file", "small")
def unlink_new(stage: Stage) -> float:
    """Files of the upper layer: they are just gone."""
    with stage.mounted():
        paths = new_paths(stage)
        write_files(paths, b"content\n")
        return timed(lambda: unlink_all(paths), CHANGED)


@workload("unlink of a lower file", "small")
def unlink_lower(stage: Stage) -> float:
    """Files of the lower layer: a whiteout for each."""
    with stage.mounted():
        paths = stage.paths(file_names()[:CHANGED])
        return timed(lambda: unlink_all(paths), CHANGED)


def unlink_all(paths: list[str]) -> None:
    """Remove each file."""
    for path in paths:
        os.unlink(path)


@workload("copy-up of a 2 KiB file", "small")
def copy_up(stage: Stage) -> float:
    """One byte written into each of 2,000 lower files."""
    with stage.mounted():
        paths = stage.paths(file_names()[:CHANGED])

        def touch_byte() -> None:
            for path in paths:
                fd = os.open(path, os.O_WRONLY)
                os.pwrite(fd, b"x", 100)
                os.close(fd)

        return timed(touch_byte, CHANGED)
