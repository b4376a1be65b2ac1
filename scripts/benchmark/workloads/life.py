"""The life of a mount: mounting, unmounting, and what its daemon needs meanwhile."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from ..measure import timed
from ..peers import FILESYSTEMS, PEERS, daemon_pid, unmount
from ..registry import Row, Stage, workload
from ..targets import IDLE, INODE, MOUNT, RESIDENT

DAEMONS = ("layerfs", "fuse-overlayfs")
SETTLE = 1.0  # seconds until a mount that nobody uses counts as idle
WATCH = 5.0


@workload("empty", Row("mount until usable", MOUNT), Row("unmount"), peers=FILESYSTEMS)
def mount(stage: Stage) -> tuple[float, float]:
    """The mount command and the first stat of a file in it; then the command umount."""

    def mount_and_look() -> None:
        PEERS[stage.peer](stage.stack)
        os.stat(stage.path("d/f"))

    try:
        mounting = timed(mount_and_look)
    except BaseException:
        unmount(stage.stack.mountpoint)
        raise
    return mounting, timed(lambda: unmount(stage.stack.mountpoint))


def resident(pid: int) -> int:
    """Return the resident memory of the process *pid*, in bytes."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@workload(
    "many",
    Row("resident memory of an idle daemon", RESIDENT, "B"),
    Row("resident memory after a walk over 100,000 files", unit="B"),
    Row("resident memory of a cached inode", INODE, "B"),
    peers=DAEMONS,
)
def memory(stage: Stage) -> tuple[float, float, float]:
    """The kernel keeps the inodes cached, so the daemon has to know them all."""
    with stage.mounted():
        idle = resident(daemon_pid())
        stage.probe("walk", ["."])
        walked = resident(daemon_pid())
        return idle, walked, (walked - idle) / stage.sizes.many


def processor_time(pid: int) -> float:
    """Return the seconds for which all threads of the process *pid* have run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@workload("empty", Row("processor time of an idle mount in 5 s", IDLE), peers=DAEMONS)
def idle(stage: Stage) -> float:
    """Some use, a second's rest, and then nothing."""
    with stage.mounted():
        stage.probe("walk", ["."])
        time.sleep(SETTLE)
        before = processor_time(daemon_pid())
        time.sleep(WATCH)
        return processor_time(daemon_pid()) - before
