"""From results to tables, JSON, and the page for the documentation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from .machine import machine, versions
from .result import OURS, Result
from .targets import Target

GROUPS = {
    "metadata": "Names and attributes",
    "depth": "The same in many layers",
    "small": "Small files",
    "parallel": "Several processes at once",
    "bulk": "A large file",
    "real_work": "Real work in a chroot",
    "life": "The life of a mount",
    "commit": "Commits",
    "timetravel": "Checkpoints, going back, forks",
    "images": "Images in and out",
    "builds": "Builds",
    "engine": "With an engine",
    "fairness": "What others notice of hard work",
}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that reads well in a terminal too: the first column left, the others right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        return f"| {' | '.join(cells)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def in_digits(ratio: float | None) -> str:
    """Return *ratio* with the digits that matter."""
    if ratio is None:
        return ""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.2f}"


def table(results: Sequence[Result], peers: Sequence[str]) -> str:
    """Return the table of medians, ratios and targets; *peers* that have no value in it get no column."""
    present = [peer for peer in peers if any(peer in result.values for result in results)]
    others = [peer for peer in present if peer != OURS and OURS in present]
    header = ["", *present, *(f"{OURS} / {other}" for other in others), "target"]
    rows = []
    for result in results:
        ratios = [result.ratio(other) for other in others]
        rows.append(
            [
                result.row.name,
                *(result.shown(peer) for peer in present),
                *map(in_digits, ratios),
                ", ".join(map(str, result.verdicts())),
            ]
        )
    return markdown_table(header, rows)


def target_table(results: Sequence[Result]) -> str:
    """Return for each target how many rows meet it, and the row that is farthest from it."""
    by_target: dict[tuple[Target, str], list[tuple[float, Result]]] = {}
    for result in results:
        for verdict in result.verdicts():
            assert result.row.target
            by_target.setdefault((result.row.target, verdict.limit), []).append((verdict.figure, result))
    rows = []
    for (target, limit), found in by_target.items():
        met = sum(figure <= 1 for figure, _ in found)
        figure, worst = max(found, key=lambda pair: pair[0])
        farthest = "" if figure <= 1 else f"{worst.row.name} ({worst.shown(OURS)})"
        rows.append([target.work, f"at most {limit}", f"{met} of {len(found)}", farthest])
    return markdown_table(["work", "target", "rows that meet it", "farthest from it"], rows)


@dataclass
class Report:
    """One run: what was measured, how, and where."""

    directory: Path
    peers: Sequence[str]
    rounds: int
    scale: float
    arguments: Sequence[str]
    results: list[Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def facts(self) -> dict[str, str]:
        """Return what the figures depend on, as names and values."""
        facts = {
            "date": self.started.date().isoformat(),
            **machine(self.directory),
            **versions(self.peers),
            "command": shlex.join(["scripts/bench", *self.arguments]),
            "rounds": str(self.rounds),
        }
        return (
            facts if self.scale == 1 else {**facts, "sizes": f"{self.scale:.3g} of those that the names say"}
        )

    def as_json(self) -> str:
        """Return everything, each round's value included."""
        results = [
            {
                "group": result.group,
                "name": result.row.name,
                "unit": result.row.unit,
                "values": result.values,
                "medians": {peer: result.median(peer) for peer in result.values},
                "targets": {verdict.limit: verdict.met for verdict in result.verdicts()},
            }
            for result in self.results
        ]
        return json.dumps({"facts": self.facts(), "results": results, "failures": self.failures}, indent=2)

    def as_markdown(self) -> str:
        """Return the page for the documentation."""
        parts = [INTRODUCTION]
        parts.append(
            markdown_table(["", "this run"], [[name, value] for name, value in self.facts().items()])
        )
        if once := [result.row.name for result in self.results if result.rounds < self.rounds]:
            parts.append(f"Fewer rounds ({max(1, self.rounds // 3)}), as they take long: {', '.join(once)}.")
        if self.failures:
            parts.append("Failed: " + "; ".join(self.failures) + ".")
        parts.append(f"## Targets\n\n{target_table(self.results)}")
        for group in dict.fromkeys(result.group for result in self.results):
            rows = [result for result in self.results if result.group == group]
            parts.append(f"## {GROUPS[group]}\n\n{table(rows, self.peers)}")
        return "\n\n".join(parts) + "\n"


INTRODUCTION = """# Benchmarks

Written by `scripts/bench`. Every figure is the median over the rounds; in each round every filesystem does
the same work in turn, on lower trees that all share and on fresh upper directories of one filesystem.
Times of names, attributes and small files are per file; a ratio below 1 means that layerfs is faster, or
smaller. *First time* is a fresh mount over lower trees whose metadata the kernel has in memory; *cold* is
a mount after the kernel's caches were dropped; *warm* is the median of some repetitions.
What takes microseconds is done by a small C program (`scripts/benchmark/probe.c`) or by fio; each
command of the real work is a whole `chroot TREE COMMAND`."""
