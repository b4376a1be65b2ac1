"""Real work in a chroot of a Debian tree."""

from __future__ import annotations

from statistics import median

from ..chroot import PARTS, inside, system_mounts
from ..measure import drop_caches, timed
from ..registry import Row, Stage, workload
from ..targets import REAL

AGAIN = 3  # warm runs of a command, of which the median counts


def cold_and_warm(stage: Stage, *words: str, between: tuple[str, ...] = ("true",)) -> tuple[float, float]:
    """Run a command in the tree with nothing in memory, and then again, *between* in between; in seconds."""
    root = stage.stack.mountpoint
    drop_caches()
    times = [timed(lambda: inside(root, *words))]
    for _ in range(AGAIN):
        inside(root, *between)
        times.append(timed(lambda: inside(root, *words)))
    return times[0], median(times[1:])


@workload("debian", Row("apt-get install nodejs", REAL))
def install(stage: Stage) -> float:
    """With the packages in apt's cache: the network is not measured."""
    with stage.mounted(), system_mounts(stage.stack.mountpoint):
        drop_caches()
        seconds = timed(lambda: inside(stage.stack.mountpoint, "apt-get", "install", "-y", "nodejs"))
        assert inside(stage.stack.mountpoint, "node", "-e", "console.log(6 * 7)") == "42\n"
        return seconds


@workload("workshop", Row("tar x of a source tree", REAL))
def unpack(stage: Stage) -> float:
    """Some thousands of sources, from an archive in the lower tree."""
    with stage.cold():
        return timed(lambda: inside(stage.stack.mountpoint, "tar", "xf", "/srv/sources.tar", "-C", "/opt"))


@workload("workshop", Row("git status, cold", REAL), Row("git status, warm", REAL))
def status(stage: Stage) -> tuple[float, float]:
    """In a repository whose index git has brought up to date with the mount's inode numbers."""
    words = ("git", "-C", "/srv/repository", "status", "--short")
    with stage.mounted():
        assert inside(stage.stack.mountpoint, *words) == ""
        return cold_and_warm(stage, *words)


@workload("workshop", Row("git clone of a local repository", REAL))
def clone(stage: Stage) -> float:
    """With its work tree."""
    with stage.cold():
        words = ("git", "clone", "-q", "/srv/repository", "/opt/clone")
        return timed(lambda: inside(stage.stack.mountpoint, *words))


@workload(
    "workshop", Row("make of a small C program, cold", REAL), Row("make of a small C program, warm", REAL)
)
def build(stage: Stage) -> tuple[float, float]:
    """Twenty files, and nothing in parallel."""
    with stage.mounted():
        make = ("make", "-s", "-C", "/srv/program")
        seconds = cold_and_warm(stage, *make, between=(*make, "clean"))
        assert inside(stage.stack.mountpoint, "sh", "-c", "ls /srv/program/*.o").count("\n") == PARTS + 1
        return seconds


@workload(
    "workshop", Row("python3 -c 'import sympy', cold", REAL), Row("python3 -c 'import sympy', warm", REAL)
)
def import_package(stage: Stage) -> tuple[float, float]:
    """A package of more than a thousand modules."""
    with stage.mounted():
        return cold_and_warm(stage, "python3", "-c", "import sympy")


@workload("workshop", Row("node -e 0, cold", REAL), Row("node -e 0, warm", REAL))
def start_node(stage: Stage) -> tuple[float, float]:
    """One large binary."""
    with stage.mounted():
        return cold_and_warm(stage, "node", "-e", "0")


@workload("workshop", Row("find / -xdev into wc, cold", REAL), Row("find / -xdev into wc, warm", REAL))
def find(stage: Stage) -> tuple[float, float]:
    """Every name of the tree."""
    with stage.mounted():
        return cold_and_warm(stage, "sh", "-c", "find / -xdev | wc")


@workload("workshop", Row("du -sx /, cold", REAL), Row("du -sx /, warm", REAL))
def usage(stage: Stage) -> tuple[float, float]:
    """The attributes of every file of the tree."""
    with stage.mounted():
        return cold_and_warm(stage, "du", "-sx", "/")
