"""Names and attributes of 10,000 files in 100 directories; times are per file."""

from __future__ import annotations

from ..registry import Row, Stage, workload
from ..sizes import Sizes
from ..targets import COLD, WARM
from ..trees import small_names


def missing_names(sizes: Sizes) -> list[str]:
    """Return the names of files that are in no layer."""
    return [f"{name}.missing" for name in small_names(sizes)]


def first_and_warm(stage: Stage, operation: str, names: list[str]) -> tuple[float, float]:
    """Do *operation* on a fresh mount over lower trees that the kernel knows, and again; per file."""
    with stage.first_time():
        first, warm = stage.probe_again(operation, names)
    return first / stage.sizes.files, warm / stage.sizes.files


def cold(stage: Stage, operation: str, names: list[str]) -> float:
    """Do *operation* on a fresh mount with nothing in memory; per file."""
    with stage.cold():
        return stage.probe(operation, names) / stage.sizes.files


@workload("small", Row("stat of a file, first time", COLD), Row("stat of a file, warm", WARM))
def stat(stage: Stage) -> tuple[float, float]:
    """What the union's own lookup costs, and what the kernel's cache does."""
    return first_and_warm(stage, "stat", small_names(stage.sizes))


@workload("small", Row("stat of a file, cold", COLD))
def stat_cold(stage: Stage) -> float:
    """From the disk."""
    return cold(stage, "stat", small_names(stage.sizes))


@workload("small", Row("stat of a missing name, first time", COLD), Row("stat of a missing name, warm", WARM))
def missing(stage: Stage) -> tuple[float, float]:
    """Names that are in no layer, as programs look for along their paths."""
    return first_and_warm(stage, "missing", missing_names(stage.sizes))


@workload("small", Row("stat of a missing name, cold", COLD))
def missing_cold(stage: Stage) -> float:
    """From the disk."""
    return cold(stage, "missing", missing_names(stage.sizes))


@workload("small", Row("walk with lstat, first time", COLD), Row("walk with lstat, warm", WARM))
def walk(stage: Stage) -> tuple[float, float]:
    """Listings, and attributes of what they list."""
    return first_and_warm(stage, "walk", ["."])


@workload("small", Row("walk with lstat, cold", COLD))
def walk_cold(stage: Stage) -> float:
    """From the disk."""
    return cold(stage, "walk", ["."])


@workload("links", Row("readlink, first time"), Row("readlink, warm"))
def readlink(stage: Stage) -> tuple[float, float]:
    """The targets of symbolic links."""
    return first_and_warm(stage, "readlink", small_names(stage.sizes))


@workload("links", Row("readlink, cold"))
def readlink_cold(stage: Stage) -> float:
    """From the disk."""
    return cold(stage, "readlink", small_names(stage.sizes))


@workload("wide", Row("listing a directory of 100,000, cold"), Row("listing a directory of 100,000, warm"))
def list_wide(stage: Stage) -> tuple[float, float]:
    """The names of one very large directory; the time of the whole listing."""
    with stage.cold():
        return stage.probe_again("list", ["wide"], argument=stage.sizes.many)
