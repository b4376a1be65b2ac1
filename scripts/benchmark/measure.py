"""Timing, and the state of the machine's caches before it."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that *work* takes, without Python's garbage collector in between."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    finally:
        gc.enable()


def drop_caches() -> None:
    """Write everything out, then empty the kernel's page, dentry and inode caches."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
