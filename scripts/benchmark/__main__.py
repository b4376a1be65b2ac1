"""`scripts/bench`: run the workloads in interleaved rounds and report them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import workloads  # noqa: F401  (registers them)
from .peers import DEFAULT_PEERS, PEERS, Stack, remove, wait_for_daemons
from .registry import WORKLOADS, Stage, Workload
from .report import Report, Result, in_units, table
from .trees import lower_tree

DOCUMENT = Path(__file__).parents[2] / "docs/benchmarks.md"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure layerfs beside the kernel's overlayfs and fuse-overlayfs.",
        epilog="Without --only and --peers the report is also written to docs/benchmarks.md.",
    )
    parser.add_argument(
        "--peers", default=",".join(DEFAULT_PEERS), help=f"of {','.join(PEERS)} (%(default)s)"
    )
    parser.add_argument(
        "--only", default="", help="workloads with one of these comma-separated words in group or name"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each workload runs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every round's value")
    parser.add_argument("--list", action="store_true", help="only name the workloads")
    parser.add_argument("--output", type=Path, help="write the report here too")
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"), help="where to work (%(default)s)"
    )
    options = parser.parse_args(arguments)
    options.peers = options.peers.split(",")
    if unknown := sorted(set(options.peers) - PEERS.keys()):
        parser.error(f"unknown peer {unknown[0]!r}: choose from {', '.join(PEERS)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not options.output and not options.only and tuple(options.peers) == DEFAULT_PEERS:
        options.output = DOCUMENT
    return options


def chosen(words: str, peers: Sequence[str]) -> list[Workload]:
    """Return the workloads in whose group or name one of the comma-separated *words* is (all for "").

    Those that make no sense for any of the *peers* are left out.
    """
    return [
        workload
        for workload in WORKLOADS
        if any(word in f"{workload.group} {workload.name}" for word in words.split(","))
        and not set(peers).isdisjoint(workload.peers)
    ]


def run_once(workload: Workload, peer: str, directory: Path) -> float:
    """Run *workload* on *peer* with fresh directories; they are removed afterwards."""
    lower = lower_tree(workload.tree, directory / "trees")
    fresh = Path(tempfile.mkdtemp(prefix="run.", dir=directory))
    try:
        os.sync()  # what the run before has written is not this one's work
        return workload.run(Stage(peer, Stack.make(fresh, lower)))
    finally:
        wait_for_daemons()
        remove(fresh)


def measure(
    workload: Workload, peers: Sequence[str], rounds: int, directory: Path
) -> tuple[Result, list[str]]:
    """Run *workload* in interleaved rounds; return the result, and what failed.

    The order of the peers moves on by one a round, so that none always comes first.
    """
    able = [peer for peer in peers if peer in workload.peers]
    result, failures = Result(workload), []
    for turn in range(rounds):
        for peer in [able[(turn + place) % len(able)] for place in range(len(able))]:
            try:
                result.values.setdefault(peer, []).append(run_once(workload, peer, directory))
            except (OSError, RuntimeError, AssertionError) as error:
                failures.append(f"{workload.name}, {peer}: {error!r}")
    return result, failures


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit code."""
    options = parse(arguments)
    selected = chosen(options.only, options.peers)
    if not selected:
        print("scripts/bench: no such workload: see scripts/bench --list", file=sys.stderr)
        return 2
    if options.list:
        print(*(f"{workload.group}: {workload.name}" for workload in selected), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what follows is cleaned up
    directory = Path(tempfile.mkdtemp(prefix="layerfs-bench.", dir=options.directory))
    os.environ |= {"LAYERFS_ROOT": f"{directory}/store", "LAYERFS_RUN": f"{directory}/run"}
    report = Report(directory, options.peers, options.rounds, arguments, [])
    failures: list[str] = []
    try:
        for workload in selected:
            result, failed = measure(workload, options.peers, options.rounds, directory)
            report.results.append(result)
            failures += failed
            medians = [f"{peer} {in_units(result.median(peer), workload.unit)}" for peer in result.values]
            print(f"{workload.group}: {workload.name}: {', '.join(medians)}", file=sys.stderr)
        print(report.as_json() if options.json else table(report.results, options.peers))
        if options.output:
            options.output.write_text(report.as_markdown())
    finally:
        remove(directory)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
