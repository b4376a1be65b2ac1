"""What the results of checks say of a container's health."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from layerfs.container.health import STARTING, Check, Result, after, check_of, merged

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
CHECK = Check(("true",), interval=30, timeout=30, start_period=10, start_interval=5, retries=2)


def run(*codes: int, every: float = 20, first: float = 20) -> dict[str, Any]:
    """Return the health of a container whose checks came to *codes*, the first some time after its start."""
    health = STARTING
    for number, code in enumerate(codes):
        moment = BEGUN + timedelta(seconds=first + number * every)
        health = after(health, CHECK, Result(moment, moment, code, f"check {number}"), BEGUN)
    return health


@pytest.mark.parametrize(
    ("codes", "status", "streak"),
    [
        ((), "starting", 0),
        ((0,), "healthy", 0),
        ((1,), "starting", 1),
        ((1, 1), "unhealthy", 2),
        ((1, 0, 1), "healthy", 1),
        ((0, 1, -1, 7), "unhealthy", 3),
        ((1, 1, 1, 0), "healthy", 0),
    ],
)
def test_so_many_failures_in_a_row_make_it_unhealthy(
    codes: tuple[int, ...], status: str, streak: int
) -> None:
    health = run(*codes)
    assert (health["Status"], health["FailingStreak"]) == (status, streak)


def test_failures_while_it_starts_do_not_count() -> None:
    health = run(1, 1, 1, first=1, every=2)
    assert (health["Status"], health["FailingStreak"], len(health["Log"])) == ("starting", 0, 3)
    assert run(0, 1, 1, first=1, every=2)["Status"] == "unhealthy"  # once it was healthy, they do


def test_the_last_five_results_are_kept() -> None:
    health = run(*range(8))
    assert [entry["Output"] for entry in health["Log"]] == [f"check {number}" for number in range(3, 8)]
    assert set(health["Log"][0]) == {"Start", "End", "ExitCode", "Output"}
    long = after(STARTING, CHECK, Result(BEGUN, BEGUN, 0, "x" * 9000), BEGUN)
    assert long["Log"][0]["Output"] == "x" * 4096 + "..."
    assert STARTING["Log"] == []


def test_how_a_container_is_checked() -> None:
    assert check_of({}) is None
    assert check_of({"Healthcheck": {"Test": ["NONE"]}}) is None
    assert check_of({"Healthcheck": {"Test": ["CMD"]}}) is None
    found = check_of({"Healthcheck": {"Test": ["CMD-SHELL", "exit 1"], "Interval": 2 * 10**9}})
    assert found == Check(("/bin/sh", "-c", "exit 1"), 2.0, 30.0, 0.0, 5.0, 3)
    found = check_of({"Shell": ["ash", "-c"], "Healthcheck": {"Test": ["CMD-SHELL", "x"], "Retries": 7}})
    assert found is not None
    assert (found.command, found.retries) == (("ash", "-c", "x"), 7)
    assert CHECK.wait("starting", 3) == 5
    assert CHECK.wait("starting", 30) == CHECK.wait("healthy", 3) == 30


def test_what_a_request_leaves_out_the_image_says() -> None:
    image = {"Test": ["CMD", "x"], "Interval": 5, "Retries": 1}
    assert merged(None, None) is None
    assert merged(None, image) == image
    assert merged({"Interval": 9}, image) == {**image, "Interval": 9}
    assert merged({"Test": ["NONE"]}, image) == {**image, "Test": ["NONE"]}
