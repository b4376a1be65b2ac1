"""2,500 files in 1, 8, 32 and 128 layers: each has all 25 directories, and its share of the files."""

from __future__ import annotations

from ..peers import FILESYSTEMS
from ..registry import Row, Stage, workload
from ..targets import COLD
from ..trees import DEPTHS, layered_names


def stat(stage: Stage) -> float:
    """Look up files that are in any of the layers; per file."""
    with stage.first_time():
        return stage.probe("stat", layered_names(stage.sizes)) / stage.sizes.layered


def missing(stage: Stage) -> float:
    """Look up names that are in none of the layers; per name."""
    with stage.first_time():
        names = [f"{name}.missing" for name in layered_names(stage.sizes)]
        return stage.probe("missing", names) / stage.sizes.layered


def walk(stage: Stage) -> float:
    """List directories that all layers have, and lstat what is in them; per file."""
    with stage.first_time():
        return stage.probe("walk", ["."]) / stage.sizes.layered


for run, work in (
    (stat, "stat of a file, first time"),
    (missing, "stat of a missing name, first time"),
    (walk, "walk with lstat, first time"),
):
    for depth in DEPTHS:
        row = Row(f"{work}, {depth} {'layers' if depth > 1 else 'layer'}", COLD)
        workload(f"layers{depth}", row, peers=FILESYSTEMS)(run)
