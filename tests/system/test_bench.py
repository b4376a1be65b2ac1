"""The benchmark: that it measures what it says, on real mounts, and judges as the targets say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from scripts.benchmark.registry import Row
from scripts.benchmark.report import GROUPS, table, target_table
from scripts.benchmark.result import Result
from scripts.benchmark.targets import Target
from tests.conftest import mounts_below
from tests.system.programs import needs

CHECKOUT = Path(__file__).parents[2]
DOCUMENT = CHECKOUT / "docs/benchmarks.md"
SOME = (
    "depth: walk with lstat, first time, 32 layers",
    "metadata: listing",
    "small: open + read + close of 2 KiB, cold",
    "small: copy-up",
    "4 processes",
    "bulk: mmap",
    "bulk: first byte",
    "life: mount",
    "commit: commit request, 10 files",
    "fairness: stat during",
    "fairness: control request while",
)


def bench(*words: str | Path) -> CompletedProcess[str]:
    """Run the benchmark as `scripts/bench WORDS` does once everything is installed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["timeout", "100", sys.executable, "-B", "-m", "benchmark", *words],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT / "scripts")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.root
@needs("gcc")
def test_measures(tmp_path: Path) -> None:
    """Workloads of most kinds run on layerfs and the kernel's overlayfs; nothing of them is left."""
    before = DOCUMENT.read_bytes()
    report = tmp_path / "report.md"
    only = ("--only", ",".join(SOME), "--peers", "layerfs,overlay")
    size = ("--rounds", "1", "--scale", "0.002")
    done = bench(*only, *size, "--json", "--directory", tmp_path, "--output", report)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["failures"] == []
    assert found["facts"]["sizes"].startswith("0.002 ")
    rows = {f"{row['group']}: {row['name']}": row for row in found["results"]}
    for word in SOME:
        assert any(word in name for name in rows), word
    for name, row in rows.items():
        alone = "control" in name or row["group"] == "commit"
        assert row["values"].keys() == ({"layerfs"} if alone else {"layerfs", "overlay"}), name
        assert all(0 < value < 60 for [value] in row["values"].values()), name
    for row in found["results"]:
        assert row["name"] in report.read_text()
    assert DOCUMENT.read_bytes() == before
    assert mounts_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == [report]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--peers", "layerfs,zfs"), "unknown peer 'zfs'"),
        (("--rounds", "0"), "--rounds must be at least 1"),
        (("--scale", "2"), "--scale must be above 0, and at most 1"),
        (("--only", "no such work"), "no such workload"),
        (("--only", "metadata", "--peers", "buildah"), "no such workload"),
    ],
)
def test_refuses(words: tuple[str, ...], complaint: str) -> None:
    """What cannot be measured is said before anything is made."""
    done = bench(*words)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_names_every_workload() -> None:
    """--list names the rows that --only takes, each once."""
    names = bench("--list").stdout.splitlines()
    assert len(names) == len(set(names)) > 60
    assert bench("--list", "--only", names[-1]).stdout.splitlines()[-1] == names[-1]


def test_every_group_has_a_heading() -> None:
    """The report is written at the end of hours: nothing may be missing then."""
    groups = {line.partition(":")[0] for line in bench("--list").stdout.splitlines()}
    assert groups == set(GROUPS)


def test_judges() -> None:
    """A row meets its target when each ratio of medians, and its own median, is within the limit."""
    target = Target("work", {"overlay": 2.0, "fuse-overlayfs": 0.5}, most=0.010)
    values = {
        "layerfs": [0.009, 0.5, 0.001],
        "overlay": [0.004, 0.0045, 9.0],
        "fuse-overlayfs": [0.02, 0.01, 0.001],
    }
    result = Result("small", Row("row", target), 3, values)
    assert [str(verdict) for verdict in result.verdicts()] == [
        "2 x overlay met",
        "0.5 x fuse-overlayfs missed",
        "10.0 ms met",
    ]
    lines = table([result], ["layerfs", "overlay", "fuse-overlayfs", "buildah"]).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-2]] == [
        "row",
        "9.00 ms",
        "4.50 ms",
        "10.0 ms",
        "2.00",
        "0.90",
    ]
    assert "| 1 of 1 |" in " ".join(target_table([result]).splitlines()[2].split())
    assert "| 0 of 1 | row (9.00 ms) |" in " ".join(target_table([result]).splitlines()[3].split())
    assert not Result("small", Row("row", target), 3, {"overlay": [1.0]}).verdicts()
    nothing = Target("idle", most=0)
    assert [
        verdict.met
        for value in (0.0, 1e-9)
        for verdict in Result("life", Row("row", nothing), 1, {"layerfs": [value]}).verdicts()
    ] == [True, False]
