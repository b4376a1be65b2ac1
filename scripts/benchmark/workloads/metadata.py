"""Names and attributes of 10,000 files in 100 directories; times are per file."""

from __future__ import annotations

import os

from ..measure import timed, walk
from ..registry import Stage, workload
from ..trees import FILES, file_names

MISSING = [f"{name}.missing" for name in file_names()]


def stat_all(paths: list[str]) -> None:
    """Look each path up, and get its attributes."""
    for path in paths:
        os.stat(path)


def stat_missing(paths: list[str]) -> None:
    """Look up paths that do not exist."""
    for path in paths:
        assert not os.path.lexists(path)


@workload("stat of a file, first time", "small")
def stat_first(stage: Stage) -> float:
    """A fresh mount over a lower tree that the kernel knows: what the union's own lookup costs."""
    with stage.first_time():
        paths = stage.paths(file_names())
        return timed(lambda: stat_all(paths), FILES)


@workload("stat of a file, cold", "small")
def stat_cold(stage: Stage) -> float:
    """The same with nothing in memory."""
    with stage.cold():
        paths = stage.paths(file_names())
        return timed(lambda: stat_all(paths), FILES)


@workload("stat of a file, warm", "small")
def stat_warm(stage: Stage) -> float:
    """The second time."""
    with stage.mounted():
        paths = stage.paths(file_names())
        stat_all(paths)
        return timed(lambda: stat_all(paths), FILES)


@workload("stat of a missing name, first time", "small")
def missing_first(stage: Stage) -> float:
    """Names that are in no layer."""
    with stage.first_time():
        paths = stage.paths(MISSING)
        return timed(lambda: stat_missing(paths), FILES)


@workload("stat of a missing name, warm", "small")
def missing_warm(stage: Stage) -> float:
    """The second time."""
    with stage.mounted():
        paths = stage.paths(MISSING)
        stat_missing(paths)
        return timed(lambda: stat_missing(paths), FILES)


@workload("walk with lstat, a file, first time", "small")
def walk_first(stage: Stage) -> float:
    """Listings, and attributes of what they list."""
    with stage.first_time():
        return timed(lambda: walk(stage.top), FILES)


@workload("walk with lstat, a file, cold", "small")
def walk_cold(stage: Stage) -> float:
    """The same with nothing in memory."""
    with stage.cold():
        return timed(lambda: walk(stage.top), FILES)


@workload("walk with lstat, a file, warm", "small")
def walk_warm(stage: Stage) -> float:
    """The second time."""
    with stage.mounted():
        walk(stage.top)
        return timed(lambda: walk(stage.top), FILES)
