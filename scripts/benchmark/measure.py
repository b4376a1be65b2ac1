"""Timing, and the state of the machine's caches before it."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path


def timed(work: Callable[[], object], operations: int = 1) -> float:
    """Return the seconds that *work* takes, per operation, without Python's garbage collector in between."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) / operations
    finally:
        gc.enable()


def drop_caches() -> None:
    """Write everything out, then empty the kernel's page, dentry and inode caches."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def walk(top: str) -> int:
    """Visit every file below *top* with lstat, as `find -ls` does; return how many there are."""
    count = 0
    directories = [top]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                os.lstat(entry.path)
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
    return count


def read_all(path: str, block: int = 1 << 20) -> int:
    """Read the file *path* from begin to end, *block* bytes at a time; return its size."""
    buffer = bytearray(block)
    size = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            size += count
    return size
