"""The workloads, one module a group; importing this package registers them all, in the report's order."""

from . import (  # noqa: I001  (the report's order)
    metadata,
    depth,
    small,
    parallel,
    bulk,
    real_work,
    life,
    commit,
    engine,
    timetravel,
    images,
    builds,
    fairness,
)

__all__ = [
    "builds",
    "bulk",
    "commit",
    "depth",
    "engine",
    "fairness",
    "images",
    "life",
    "metadata",
    "parallel",
    "real_work",
    "small",
    "timetravel",
]
