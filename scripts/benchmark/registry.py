"""What a workload is, and what it gets to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .measure import drop_caches, walk
from .peers import DEFAULT_PEERS, Stack, mounted


@dataclass(frozen=True)
class Stage:
    """One peer's fresh directories for one run of a workload."""

    peer: str
    stack: Stack

    @property
    def top(self) -> str:
        """The mountpoint."""
        return str(self.stack.mountpoint)

    def path(self, name: str) -> str:
        """Return the path of *name* in the mount."""
        return f"{self.stack.mountpoint}/{name}"

    def paths(self, names: list[str]) -> list[str]:
        """Return the paths of *names* in the mount."""
        return [self.path(name) for name in names]

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Have it mounted."""
        with mounted(self.peer, self.stack):
            yield

    @contextmanager
    def first_time(self) -> Iterator[None]:
        """Have it freshly mounted, with nothing known of it but the lower tree's metadata in the kernel."""
        drop_caches()
        walk(str(self.stack.lower))
        with self.mounted():
            yield

    @contextmanager
    def cold(self) -> Iterator[None]:
        """Have it freshly mounted, with nothing of it in memory."""
        with self.mounted():
            drop_caches()
            yield


@dataclass(frozen=True)
class Workload:
    """One measurement: *run* does it once, on one peer, and returns seconds (or bytes: see *unit*)."""

    group: str
    name: str
    tree: str
    run: Callable[[Stage], float]
    unit: str
    peers: tuple[str, ...]


WORKLOADS: list[Workload] = []

Run = Callable[[Stage], float]


def workload(
    name: str, tree: str, *, unit: str = "s", peers: tuple[str, ...] = (*DEFAULT_PEERS, "bare")
) -> Callable[[Run], Run]:
    """Register the decorated function as the workload *name* over the lower tree *tree*.

    *unit* is "s" or "B"; *peers* are those for which it makes sense. The group is the function's module.
    """

    def register(run: Run) -> Run:
        group = run.__module__.rpartition(".")[2]
        WORKLOADS.append(Workload(group, name, tree, run, unit, peers))
        return run

    return register
