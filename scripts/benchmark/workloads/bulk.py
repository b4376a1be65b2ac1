"""One large file."""

from __future__ import annotations

import os
import time

from ..fio import random_read, random_write
from ..measure import drop_caches
from ..registry import Row, Stage, workload
from ..targets import COLD_BULK, STREAM, WARM
from ..trees import MIB

AGAIN = 3  # warm passes over a GiB


@workload(
    "large", Row("sequential read of 1 GiB, cold", COLD_BULK), Row("sequential read of 1 GiB, warm", WARM)
)
def read(stage: Stage) -> tuple[float, float]:
    """From the disk, and again from memory."""
    with stage.cold():
        return stage.probe_again("stream", ["large"], passes=AGAIN)


@workload("large", Row("mmap read of 1 GiB, cold"), Row("mmap read of 1 GiB, warm", WARM))
def read_mapped(stage: Stage) -> tuple[float, float]:
    """Mapped anew for each pass; every byte is looked at."""
    with stage.cold():
        return stage.probe_again("map", ["large"], passes=AGAIN)


@workload("large", Row("random read of 4 KiB, cold"))
def random_cold(stage: Stage) -> float:
    """From the disk (fio)."""
    with stage.cold():
        return random_read(stage.top, "large", stage.sizes.random_cold)


@workload("large", Row("random read of 4 KiB, warm"))
def random_warm(stage: Stage) -> float:
    """From memory (fio)."""
    with stage.mounted():
        stage.probe("stream", ["large"])
        return random_read(stage.top, "large", stage.sizes.random_warm)


@workload("empty", Row("sequential write of 1 GiB", STREAM))
def write(stage: Stage) -> float:
    """A new file, until close returns."""
    with stage.mounted():
        return stage.probe("write", ["new"], argument=stage.sizes.large)


@workload("empty", Row("sequential write of 1 GiB, fsync", STREAM))
def write_durable(stage: Stage) -> float:
    """A new file, until the disk has it."""
    with stage.mounted():
        return stage.probe("fsync", ["new"], argument=stage.sizes.large)


@workload("empty", Row("random overwrite of 4 KiB in an upper file, fsync at the end"))
def overwrite(stage: Stage) -> float:
    """20,000 of them (fio)."""
    with stage.mounted():
        stage.probe("fsync", ["new"], argument=stage.sizes.large)
        drop_caches()
        return random_write(stage.top, "new", stage.sizes.overwrites)


@workload(
    "large",
    Row("first byte into a lower file of 1 GiB, until write returns"),
    Row("first byte into a lower file of 1 GiB, until close returns"),
)
def first_byte(stage: Stage) -> tuple[float, float]:
    """Open, write one byte, close: the copy-up of a large file that is in the kernel's memory."""
    stage.prober.run(stage.stack.lowers[0], "stream", ["large"])
    with stage.mounted():
        start = time.perf_counter()
        fd = os.open(stage.path("large"), os.O_WRONLY)
        os.pwrite(fd, b"x", stage.sizes.large * MIB // 2)
        written = time.perf_counter()
        os.close(fd)
        return written - start, time.perf_counter() - start
