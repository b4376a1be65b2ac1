"""fio: random reads and writes of one file."""

from __future__ import annotations

import json
from typing import Any

from .peers import command


def fio(directory: str, name: str, operation: str, count: int, *options: str) -> dict[str, Any]:
    """Do *count* random 4 KiB reads or writes of the file *name*; return fio's statistics of them.

    Every block is taken at most once, in the same order whenever the file has the same size.
    """
    printed = command(
        "fio",
        "--name=bench",
        f"--filename={directory}/{name}",
        f"--rw={operation}",
        "--bs=4k",
        f"--number_ios={count}",
        "--ioengine=psync",
        "--randrepeat=1",
        "--invalidate=0",
        "--allow_file_create=0",
        "--output-format=json",
        *options,
    )
    job = json.loads(printed[printed.index("{") :])["jobs"][0]
    statistics: dict[str, Any] = job[operation.removeprefix("rand")]
    assert statistics["total_ios"] > 0
    return statistics


def random_read(directory: str, name: str, count: int) -> float:
    """Return the mean seconds of a random 4 KiB read of *name*."""
    nanoseconds: float = fio(directory, name, "randread", count, "--readonly")["lat_ns"]["mean"]
    return nanoseconds / 1e9


def random_write(directory: str, name: str, count: int) -> float:
    """Return the mean seconds of a random 4 KiB write to *name*, with its part of the fsync at the end."""
    statistics = fio(directory, name, "randwrite", count, "--end_fsync=1")
    milliseconds, writes = int(statistics["runtime"]), int(statistics["total_ios"])
    return milliseconds / 1e3 / writes
