"""From measurements to a table: units, medians, ratios, and the machine they were taken on."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from .peers import command
from .registry import Workload

GROUPS = {
    "metadata": "Names and attributes",
    "small": "Small files",
    "bulk": "A large file",
    "packages": "Real work",
    "life": "The life of a mount",
}
RATIOS = (("layerfs", "overlay"), ("layerfs", "fuse-overlayfs"))


@dataclass
class Result:
    """What was measured for one workload: each peer's value of each round."""

    workload: Workload
    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, peer: str) -> float | None:
        """Return the median of *peer*'s rounds, or None where it has none."""
        values = self.values.get(peer)
        return median(values) if values else None


def in_units(value: float | None, unit: str) -> str:
    """Return *value* ("s" or "B") in the unit in which people read it, with three digits."""
    if value is None:
        return ""
    scales = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")] if unit == "s" else [(2.0**20, "MiB"), (2.0**10, "KiB")]
    scale, name = next((pair for pair in scales if value >= pair[0]), scales[-1])
    number = value / scale
    return f"{number:.{max(0, 2 - len(str(int(number))) + 1)}f} {name}"


def ratio(result: Result, one: str, other: str) -> str:
    """Return how many times *other*'s median *one*'s is."""
    ours, theirs = result.median(one), result.median(other)
    return f"{ours / theirs:.2f}" if ours is not None and theirs else ""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that reads well in a terminal too: the first column left, the others right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        return f"| {' | '.join(cells)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def table(results: Sequence[Result], peers: Sequence[str]) -> str:
    """Return the table of medians and ratios."""
    ratios = [(one, other) for one, other in RATIOS if one in peers and other in peers]
    header = ["", *peers, *(f"{one} / {other}" for one, other in ratios)]
    rows = [
        [
            result.workload.name,
            *(in_units(result.median(peer), result.workload.unit) for peer in peers),
            *(ratio(result, one, other) for one, other in ratios),
        ]
        for result in results
    ]
    return markdown_table(header, rows)


def first_match(pattern: str, text: str) -> str:
    """Return the first group of *pattern* in *text*, or "unknown"."""
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "unknown"


def machine(directory: Path) -> dict[str, str]:
    """Return what the figures depend on; *directory* is where the work was done."""
    memory = first_match(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    system = first_match(r'^PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    disk = command("findmnt", "-no", "FSTYPE", "-T", directory).strip()
    return {
        "processor": f"{os.cpu_count()} x "
        + first_match(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text()),
        "memory": f"{int(memory) / 2**20:.0f} GiB" if memory.isdigit() else memory,
        "filesystem": disk,
        "system": f"{system}, Linux {platform.release()}",
        "python": platform.python_version(),
    }


def versions(peers: Sequence[str]) -> dict[str, str]:
    """Return the versions of the programs among *peers*."""
    programs = [peer for peer in peers if peer in ("layerfs", "fuse-overlayfs")]
    return {peer: first_match(rf"{peer}.* (\d+\.\S+)", command(peer, "--version")) for peer in programs}


@dataclass
class Report:
    """One run: what was measured, how, and where."""

    directory: Path
    peers: Sequence[str]
    rounds: int
    arguments: Sequence[str]
    results: list[Result]
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def facts(self) -> dict[str, str]:
        """Return what the figures depend on, as names and values."""
        programs = {f"{name} version": version for name, version in versions(self.peers).items()}
        run = shlex.join(["scripts/bench", *self.arguments])
        return {
            "date": self.started.date().isoformat(),
            **machine(self.directory),
            **programs,
            "command": run,
            "rounds": str(self.rounds),
        }

    def as_json(self) -> str:
        """Return everything, each round's value included."""
        results = [
            {
                "group": result.workload.group,
                "name": result.workload.name,
                "unit": result.workload.unit,
                "values": result.values,
                "medians": {peer: result.median(peer) for peer in result.values},
            }
            for result in self.results
        ]
        return json.dumps({"facts": self.facts(), "results": results}, indent=2)

    def as_markdown(self) -> str:
        """Return the page for the documentation."""
        facts = markdown_table(["", "this run"], [[name, value] for name, value in self.facts().items()])
        groups = dict.fromkeys(result.workload.group for result in self.results)
        sections = [
            f"## {GROUPS[group]}\n\n"
            + table([result for result in self.results if result.workload.group == group], self.peers)
            for group in groups
        ]
        return "\n\n".join([INTRODUCTION, facts, *sections]) + "\n"


INTRODUCTION = """# Benchmarks

Written by `scripts/bench`. Every figure is the median over the rounds; in each round every filesystem does
the same work in turn, on a lower tree that all share and on fresh upper directories of one filesystem.
Times of names, attributes and small files are per file; a ratio below 1 means that layerfs is faster, or
smaller. *First time* is a fresh mount over a lower tree whose metadata the kernel has in memory; *cold* is
a fresh mount after the kernel's caches were dropped; *warm* is the second time."""
