"""Real work in a chroot of a Debian tree."""

from __future__ import annotations

from ..chroot import inside, system_mounts
from ..measure import drop_caches, timed
from ..registry import Stage, workload


@workload("apt-get install nodejs in a chroot", "debian")
def install_node(stage: Stage) -> float:
    """With the packages in apt's cache: the network is not measured."""
    with stage.mounted(), system_mounts(stage.stack.mountpoint):
        drop_caches()
        seconds = timed(lambda: inside(stage.stack.mountpoint, "apt-get", "install", "-y", "nodejs"))
        assert inside(stage.stack.mountpoint, "node", "-e", "console.log(6 * 7)") == "42\n"
        return seconds
