"""What others notice of hard work: the latency of a small request meanwhile, its median and its maximum."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from ..peers import FILESYSTEMS
from ..probe import Running
from ..registry import Row, Stage, workload
from ..trees import small_names
from .commit import request

PAUSE = 0.002  # seconds between two requests
READERS = 8


def latencies(working: Sequence[Running], ask: Iterator[Callable[[], object]]) -> tuple[float, float]:
    """Have *working* begin, and *ask* until all have ended; return the median and the longest of the answers.

    What is asked during the work counts, whenever it is answered.
    """
    seconds: list[float] = []
    gc.collect()
    gc.disable()
    try:
        for probe in working:
            probe.go()
        for one in ask:
            time.sleep(PAUSE)
            if seconds and all(probe.process.poll() is not None for probe in working):
                break
            start = time.perf_counter()
            one()
            seconds.append(time.perf_counter() - start)
    finally:
        gc.enable()
        for probe in working:
            probe.finish()
    return median(seconds), max(seconds)


def stats(stage: Stage, names: Sequence[str]) -> Iterator[Callable[[], object]]:
    """Yield one stat after another, each of a name that was not asked for before."""
    for name in names:
        path = stage.path(name)
        yield lambda path=path: os.stat(path)  # type: ignore[misc]


def control_requests() -> Iterator[Callable[[], object]]:
    """Yield requests for the list of containers, on the control socket of the present mount."""
    [control] = Path(os.environ["LAYERFS_RUN"]).glob("*.sock")
    while True:
        yield lambda: request("GET", "/v1.41/containers/json", control)


@contextmanager
def copying_up(stage: Stage) -> Iterator[list[Running]]:
    """Have a process ready to write the first byte into a lower file of 4 GiB."""
    with stage.cold():
        yield [stage.prober.start(stage.top, "touch", ["huge"])]


@contextmanager
def reading(stage: Stage) -> Iterator[list[Running]]:
    """Have eight processes ready to read four fifths of the small files, from the disk."""
    names = small_names(stage.sizes)
    with stage.cold():
        shares = [names[: len(names) * 4 // 5][place::READERS] for place in range(READERS)]
        yield [stage.prober.start(stage.top, "read", share) for share in shares]


def rows(work: str) -> tuple[Row, Row]:
    """Return the rows of the two values of `latencies`."""
    return Row(f"{work}, median"), Row(f"{work}, longest")


@workload("huge", *rows("stat during the copy-up of 4 GiB"), peers=FILESYSTEMS, costly=True)
def stat_copying(stage: Stage) -> tuple[float, float]:
    """Of uncached names, in other directories."""
    with copying_up(stage) as working:
        return latencies(working, stats(stage, small_names(stage.sizes)))


@workload("huge", *rows("control request during the copy-up of 4 GiB"), peers=("layerfs",), costly=True)
def control_copying(stage: Stage) -> tuple[float, float]:
    """The list of containers."""
    with copying_up(stage) as working:
        return latencies(working, control_requests())


@workload("small", *rows("stat while 8 processes read cold files"), peers=FILESYSTEMS)
def stat_reading(stage: Stage) -> tuple[float, float]:
    """Of uncached names, in other directories."""
    with reading(stage) as working:
        return latencies(working, stats(stage, small_names(stage.sizes)[stage.sizes.files * 4 // 5 :]))


@workload("small", *rows("control request while 8 processes read cold files"), peers=("layerfs",))
def control_reading(stage: Stage) -> tuple[float, float]:
    """The list of containers."""
    with reading(stage) as working:
        return latencies(working, control_requests())
