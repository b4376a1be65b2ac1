"""`scripts/bench`: run the workloads in interleaved rounds and report them."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import workloads  # noqa: F401  (registers them)
from .peers import ALL_PEERS, DEFAULT_PEERS, Stack, missing, patience, remove, wait_for_daemons
from .probe import Probe
from .registry import WORKLOADS, Stage, Workload
from .report import Report, table
from .result import Result
from .sizes import Sizes, room_for
from .trees import lower_trees

DOCUMENT = Path(__file__).parents[2] / "docs/benchmarks.md"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure layerfs beside the kernel's overlayfs, fuse-overlayfs and buildah.",
        epilog="Without --only, --peers and --scale the report is also written to docs/benchmarks.md.",
    )
    parser.add_argument(
        "--peers", default=",".join(DEFAULT_PEERS), help=f"of {','.join(ALL_PEERS)} (%(default)s)"
    )
    parser.add_argument(
        "--only", default="", help="workloads with one of these comma-separated words in group or name"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each workload runs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every round's value")
    parser.add_argument("--list", action="store_true", help="only name the workloads")
    parser.add_argument("--output", type=Path, help="write the report here too")
    parser.add_argument(
        "--scale", type=float, default=1, help="do this part of the work, to try it out (%(default)s)"
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"), help="where to work (%(default)s)"
    )
    options = parser.parse_args(arguments)
    options.peers = options.peers.split(",")
    if unknown := sorted(set(options.peers) - set(ALL_PEERS)):
        parser.error(f"unknown peer {unknown[0]!r}: choose from {', '.join(ALL_PEERS)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not 0 < options.scale <= 1:
        parser.error("--scale must be above 0, and at most 1")
    if (
        not options.output
        and not options.only
        and options.scale == 1
        and tuple(options.peers) == DEFAULT_PEERS
    ):
        options.output = DOCUMENT
    return options


def chosen(words: str, peers: Sequence[str]) -> list[Workload]:
    """Return the workloads with one of the comma-separated *words* in "GROUP: NAME" of a row (all for "").

    A comma before a space is part of a word, as it is of names. Workloads that make no sense for any of
    the *peers* are left out.
    """
    wanted = re.split(",(?! )", words)
    return [
        workload
        for workload in WORKLOADS
        if any(word in f"{workload.group}: {row.name}" for word in wanted for row in workload.rows)
        and not set(peers).isdisjoint(workload.peers)
    ]


@dataclass(frozen=True)
class Bench:
    """Where the work is done, how much of it, and what with."""

    directory: Path
    sizes: Sizes
    prober: Probe

    def run_once(self, workload: Workload, peer: str) -> tuple[float, ...]:
        """Run *workload* on *peer* with fresh directories; they are removed afterwards."""
        lowers = lower_trees(workload.tree, self.directory / "trees", self.sizes)
        fresh = Path(tempfile.mkdtemp(prefix="run.", dir=self.directory))
        try:
            os.sync()  # what the run before has written is not this one's work
            stack = Stack.make(fresh, lowers)
            with patience(stack.mountpoint):
                return workload.values(Stage(peer, stack, self.sizes, self.prober))
        finally:
            wait_for_daemons()
            remove(fresh)

    def measure(
        self, workload: Workload, peers: Sequence[str], rounds: int
    ) -> tuple[list[Result], list[str]]:
        """Run *workload* in interleaved rounds; return the result of each row, and what failed.

        The order of the peers moves on by one a round, so that none always comes first.
        """
        able = [peer for peer in peers if peer in workload.peers]
        rounds = max(1, rounds // 3) if workload.costly else rounds
        results = [Result(workload.group, row, rounds) for row in workload.rows]
        failures = []
        for turn in range(rounds):
            for peer in [able[(turn + place) % len(able)] for place in range(len(able))]:
                try:
                    values = self.run_once(workload, peer)
                except (OSError, RuntimeError, AssertionError) as error:
                    failures.append(f"{workload.rows[0].name}, {peer}: {error!r}")
                    continue
                for result, value in zip(results, values, strict=True):
                    result.values.setdefault(peer, []).append(value)
        return results, failures


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit code."""
    options = parse(arguments)
    selected = chosen(options.only, options.peers)
    if not selected:
        print("scripts/bench: no such workload: see scripts/bench --list", file=sys.stderr)
        return 2
    if options.list:
        print(*(f"{workload.group}: {row.name}" for workload in selected for row in workload.rows), sep="\n")
        return 0
    for peer in list(options.peers):
        if (program := missing(peer)) is not None:
            print(f"scripts/bench: {peer} is left out: {program} is not installed", file=sys.stderr)
            options.peers.remove(peer)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what follows is cleaned up
    directory = Path(tempfile.mkdtemp(prefix="layerfs-bench.", dir=options.directory))
    os.environ |= {"LAYERFS_ROOT": f"{directory}/store", "LAYERFS_RUN": f"{directory}/run"}
    scale = min(options.scale, room_for(directory))
    report = Report(directory, options.peers, options.rounds, scale, arguments)
    began = time.monotonic()
    try:
        bench = Bench(directory, Sizes().scaled(scale), Probe.build(directory))
        for workload in selected:
            results, failed = bench.measure(workload, options.peers, options.rounds)
            report.results += results
            report.failures += failed
            for result in results:
                medians = ", ".join(f"{peer} {result.shown(peer)}" for peer in result.values)
                elapsed = time.monotonic() - began
                print(f"{elapsed:4.0f} s  {result.group}: {result.row.name}: {medians}", file=sys.stderr)
        print(report.as_json() if options.json else table(report.results, options.peers))
        if options.output:
            options.output.write_text(report.as_markdown())
    finally:
        remove(directory)
    for failure in report.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
