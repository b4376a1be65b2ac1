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
    fairness,
)

__all__ = [
    "bulk",
    "commit",
    "depth",
    "fairness",
    "life",
    "metadata",
    "parallel",
    "real_work",
    "small",
]
