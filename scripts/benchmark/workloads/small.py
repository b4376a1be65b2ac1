"""Many small files: opened, read, made, changed, renamed and removed; times are per file, or per line."""

from __future__ import annotations

import os

from ..registry import Row, Stage, workload
from ..targets import CHANGES, COLD_OPEN, STREAM, WARM_OPEN
from ..trees import small_names


def new_names(stage: Stage) -> list[str]:
    """Return the names of what is not there yet, in one new directory of the upper layer."""
    os.mkdir(stage.path("new"))
    return [f"new/{number:04}" for number in range(stage.sizes.changed)]


@workload("small", Row("open + read + close of 2 KiB, cold", COLD_OPEN))
def read_cold(stage: Stage) -> float:
    """From the disk."""
    with stage.cold():
        return stage.probe("read", small_names(stage.sizes)) / stage.sizes.files


@workload("small", Row("open + read + close of 2 KiB, warm", WARM_OPEN))
def read_warm(stage: Stage) -> float:
    """Files that have been read before."""
    with stage.mounted():
        return stage.probe_again("read", small_names(stage.sizes))[1] / stage.sizes.files


@workload("small", Row("create + write 4 KiB + close", CHANGES))
def create(stage: Stage) -> float:
    """New files in a new directory."""
    with stage.mounted():
        return stage.probe("create", new_names(stage)) / stage.sizes.changed


@workload("empty", Row("append of 72 bytes", STREAM))
def append(stage: Stage) -> float:
    """One write a line to a file that stays open, as programs log."""
    with stage.mounted():
        return stage.probe("append", ["log"], argument=stage.sizes.appends) / stage.sizes.appends


@workload("small", Row("rename of a new file", CHANGES))
def rename(stage: Stage) -> float:
    """Within a directory of the upper layer."""
    with stage.mounted():
        names = new_names(stage)
        stage.probe("create", names)
        return stage.probe("rename", names) / stage.sizes.changed


@workload("small", Row("unlink of a new file", CHANGES))
def unlink_new(stage: Stage) -> float:
    """Files of the upper layer: they are just gone."""
    with stage.mounted():
        names = new_names(stage)
        stage.probe("create", names)
        return stage.probe("unlink", names) / stage.sizes.changed


@workload("small", Row("unlink of a lower file", CHANGES))
def unlink_lower(stage: Stage) -> float:
    """Files of the lower layer: a whiteout for each."""
    with stage.mounted():
        return stage.probe("unlink", small_names(stage.sizes)[: stage.sizes.changed]) / stage.sizes.changed


@workload("empty", Row("mkdir"), Row("rmdir"))
def directories(stage: Stage) -> tuple[float, float]:
    """New directories in a new directory, and their removal."""
    with stage.mounted():
        names = new_names(stage)
        made = stage.probe("mkdir", names)
        return made / stage.sizes.changed, stage.probe("rmdir", names) / stage.sizes.changed


@workload("small", Row("copy-up of a 2 KiB file", CHANGES), costly=True)
def copy_up(stage: Stage) -> float:
    """One byte written into each of 10,000 lower files."""
    with stage.mounted():
        return stage.probe("touch", small_names(stage.sizes)) / stage.sizes.files
