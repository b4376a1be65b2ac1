"""What a workload is, and what it gets to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from .measure import drop_caches
from .peers import FILESYSTEMS, Stack, mounted
from .probe import Probe
from .sizes import Sizes
from .targets import Target

PASSES = 5  # of warm work, of which the median counts


@dataclass(frozen=True)
class Stage:
    """One peer's fresh directories for one run of a workload, and what the work is done with."""

    peer: str
    stack: Stack
    sizes: Sizes
    prober: Probe

    @property
    def top(self) -> str:
        """The mountpoint."""
        return str(self.stack.mountpoint)

    def path(self, name: str) -> str:
        """Return the path of *name* in the mount."""
        return f"{self.stack.mountpoint}/{name}"

    def probe(self, operation: str, names: Sequence[str], *, argument: int | str = "") -> float:
        """Do a probe's *operation* on *names* in the mount; return the seconds that all of it takes."""
        return self.prober.run(self.top, operation, names, argument=argument)[0]

    def probe_again(
        self, operation: str, names: Sequence[str], *, argument: int | str = "", passes: int = PASSES
    ) -> tuple[float, float]:
        """Do *operation* on *names* again and again; return the seconds of the first and of a later pass."""
        times = self.prober.run(self.top, operation, names, passes=1 + passes, argument=argument)
        return times[0], median(times[1:])

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Have it mounted."""
        with mounted(self.peer, self.stack):
            yield

    @contextmanager
    def first_time(self) -> Iterator[None]:
        """Have it freshly mounted, with nothing known of it but the lower trees' metadata in the kernel."""
        drop_caches()
        self.prober.run("/", "walk", [str(lower) for lower in self.stack.lowers])
        with self.mounted():
            yield

    @contextmanager
    def cold(self) -> Iterator[None]:
        """Have it freshly mounted, with nothing of it in memory."""
        with self.mounted():
            drop_caches()
            yield


@dataclass(frozen=True)
class Row:
    """One line of the report: what was measured, in "s" or "B", and what layerfs is to reach."""

    name: str
    target: Target | None = None
    unit: str = "s"


Run = Callable[[Stage], float | tuple[float, ...]]


@dataclass(frozen=True)
class Workload:
    """Work that *run* does once, on one peer, over the lower tree *tree*, for a value for each of *rows*.

    Work that takes very long is *costly*: it gets a third of the rounds.
    """

    group: str
    tree: str
    rows: tuple[Row, ...]
    run: Run
    peers: tuple[str, ...]
    costly: bool

    def values(self, stage: Stage) -> tuple[float, ...]:
        """Run it, and return one value for each row."""
        done = self.run(stage)
        values = done if isinstance(done, tuple) else (done,)
        assert len(values) == len(self.rows)
        return values


WORKLOADS: list[Workload] = []


def workload(
    tree: str, *rows: Row, peers: tuple[str, ...] = (*FILESYSTEMS, "bare"), costly: bool = False
) -> Callable[[Run], Run]:
    """Register the decorated function as the workload that measures *rows* over the lower tree *tree*.

    *peers* are those for which it makes sense. The group is the function's module.
    """

    def register(run: Run) -> Run:
        group = run.__module__.rpartition(".")[2]
        WORKLOADS.append(Workload(group, tree, rows, run, peers, costly))
        return run

    return register
