"""What layerfs is to reach: the ratio of its median to another's, or a time or size of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """A limit on *work*: at most these *ratios* to the peers' medians, and at most *most* s or B."""

    work: str
    ratios: Mapping[str, float] = field(default_factory=dict, hash=False)
    most: float | None = None


WARM = Target("warm stat, walk, sequential and mmap reads", {"overlay": 1.15})
WARM_OPEN = Target("warm open + read", {"overlay": 1.15, "fuse-overlayfs": 1 / 10})
COLD = Target("cold stat, missing names, walk", {"fuse-overlayfs": 1 / 1.5})
COLD_OPEN = Target("cold open + read of small files", {"fuse-overlayfs": 1 / 1.5})
COLD_BULK = Target("1 GiB cold read", {"overlay": 4, "fuse-overlayfs": 1})
CHANGES = Target(
    "create + write + close, rename, unlink, copy-up of small files",
    {"overlay": 2.5, "fuse-overlayfs": 1 / 1.3},
)
STREAM = Target("append, sequential write", {"overlay": 2, "fuse-overlayfs": 1})
REAL = Target(
    "package installation in a chroot, and the other real work", {"overlay": 1.25, "fuse-overlayfs": 1 / 1.2}
)
REQUEST = Target("commit request, any upper", most=0.010)
CHECKPOINT = Target("checkpoint request", most=0.005)
ROLLBACK = Target("rollback request, where 1,000 files changed", most=0.0018)
FORK = Target("fork of a mount in use until usable, with an engine", most=0.040)
ENGINE_MOUNT = Target("mount until usable, with an engine", most=0.040)
RUN = Target("run a container", {"podman": 1}, most=0.350)
LIST = Target("list what there is, with an engine", most=0.060)
COMMAND = Target("the commit command", most=0.200)
MOUNT = Target("mount until usable", most=0.300)
RESIDENT = Target("resident memory, idle", most=60 * MIB)
INODE = Target("memory of a cached inode", most=512)
IDLE = Target("processor time of an idle mount", most=0)
LOAD = Target("load an image", {"umoci": 1})
SAVE = Target("save an image", {"buildah": 1})
BUILD = Target("build an image", {"buildah": 1 / 3})
BUILD_STEP = Target("the builder's own time for a step", most=0.060)
BUILD_UNCHANGED = Target("a build of which nothing has changed", most=0.300)
BUILD_CHANGED = Target("a build of which the last step has changed", most=0.600)
BUILD_COMMIT = Target("the builder's own time for a step of any size", {"buildah": 1 / 10}, most=0.500)
