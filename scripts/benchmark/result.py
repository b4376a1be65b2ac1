"""What was measured for one row of the report: medians, ratios, and whether they reach the target."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from .registry import Row

OURS = "layerfs"


def in_units(value: float | None, unit: str) -> str:
    """Return *value* ("s" or "B") in the unit in which people read it, with three digits."""
    if not value:
        return "" if value is None else "0"
    scales = (
        [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")]
        if unit == "s"
        else [(2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")]
    )
    scale, name = next((pair for pair in scales if value >= pair[0]), scales[-1])
    number = value / scale
    return f"{number:.{max(0, 3 - len(str(int(number))))}f} {name}"


@dataclass(frozen=True)
class Verdict:
    """Whether one limit of a target is kept: *figure* is how many times the limit the median or ratio is."""

    limit: str
    figure: float

    @property
    def met(self) -> bool:
        """Whether it is kept."""
        return self.figure <= 1

    def __str__(self) -> str:
        return f"{self.limit} {'met' if self.met else 'missed'}"


@dataclass
class Result:
    """One row, and each peer's value of each round."""

    group: str
    row: Row
    rounds: int
    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, peer: str) -> float | None:
        """Return the median of *peer*'s rounds, or None where it has none."""
        values = self.values.get(peer)
        return median(values) if values else None

    def shown(self, peer: str) -> str:
        """Return *peer*'s median as people read it, "" where it has none."""
        return in_units(self.median(peer), self.row.unit)

    def ratio(self, other: str) -> float | None:
        """Return how many times *other*'s median ours is, where both have one."""
        ours, theirs = self.median(OURS), self.median(other)
        return ours / theirs if ours is not None and theirs else None

    def verdicts(self) -> list[Verdict]:
        """Return what can be said of the row's target: nothing without one, or without the peers it names."""
        target, ours = self.row.target, self.median(OURS)
        if target is None or ours is None:
            return []
        found = [(peer, limit, self.ratio(peer)) for peer, limit in target.ratios.items()]
        verdicts = [
            Verdict(f"{limit:.3g} x {peer}", ratio / limit)
            for peer, limit, ratio in found
            if ratio is not None
        ]
        if target.most is not None:
            over = float(ours > 0) * 2 if target.most == 0 else ours / target.most
            verdicts.append(Verdict(f"{in_units(target.most, self.row.unit)}", over))
        return verdicts
