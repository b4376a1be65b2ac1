"""One large file."""

from __future__ import annotations

import os

from ..measure import read_all, timed
from ..registry import Stage, workload
from ..trees import BULK_BYTES, MIB


def write_all(path: str, *, durable: bool) -> None:
    """Write 512 MiB, a MiB at a time, and wait for the disk where *durable*."""
    block = os.urandom(MIB)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for _ in range(BULK_BYTES // MIB):
        os.write(fd, block)
    if durable:
        os.fsync(fd)
    os.close(fd)


@workload("sequential read of 512 MiB, cold", "bulk")
def read_cold(stage: Stage) -> float:
    """From the disk."""
    with stage.cold():
        return timed(lambda: read_all(stage.path("bulk")))


@workload("sequential read of 512 MiB, warm", "bulk")
def read_warm(stage: Stage) -> float:
    """The second time."""
    with stage.mounted():
        read_all(stage.path("bulk"))
        return timed(lambda: read_all(stage.path("bulk")))


@workload("sequential write of 512 MiB", "empty")
def write(stage: Stage) -> float:
    """Until close returns."""
    with stage.mounted():
        return timed(lambda: write_all(stage.path("written"), durable=False))


@workload("sequential write of 512 MiB, fsync", "empty")
def write_durable(stage: Stage) -> float:
    """Until the disk has it."""
    with stage.mounted():
        return timed(lambda: write_all(stage.path("written"), durable=True))


@workload("first byte written into a lower file of 512 MiB", "bulk")
def first_byte(stage: Stage) -> float:
    """Open, write one byte, close: the copy-up of a large file."""
    with stage.mounted():

        def touch_byte() -> None:
            fd = os.open(stage.path("bulk"), os.O_WRONLY)
            os.pwrite(fd, b"x", BULK_BYTES // 2)
            os.close(fd)

        return timed(touch_byte)
