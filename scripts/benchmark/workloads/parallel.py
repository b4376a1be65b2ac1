"""Several processes at once, each with small files of its own: made, read, renamed and removed."""

from __future__ import annotations

import os

from ..measure import timed
from ..registry import Row, Stage, workload


def work_together(stage: Stage, processes: int) -> float:
    """Have *processes* processes live through 300 files each; return the time, divided by all files."""
    with stage.mounted():
        running = []
        for process in range(processes):
            os.mkdir(stage.path(f"own{process}"))
            names = [f"own{process}/{number:04}" for number in range(stage.sizes.each)]
            running.append(stage.prober.start(stage.top, "life", names))

        def work() -> None:
            for probe in running:
                probe.go()
            for probe in running:
                probe.finish()

        return timed(work) / (processes * stage.sizes.each)


@workload("empty", Row("life of a small file, 1 process"))
def one(stage: Stage) -> float:
    """To compare with."""
    return work_together(stage, 1)


@workload("empty", Row("life of a small file, 2 processes at once"))
def two(stage: Stage) -> float:
    """As many as a small machine has processors."""
    return work_together(stage, 2)


@workload("empty", Row("life of a small file, 4 processes at once"))
def four(stage: Stage) -> float:
    """Twice as many."""
    return work_together(stage, 4)


@workload("empty", Row("life of a small file, 8 processes at once"))
def eight(stage: Stage) -> float:
    """Many more than there is to gain from."""
    return work_together(stage, 8)
