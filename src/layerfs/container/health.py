"""A container's health: how it is checked, and what the results of the checks say (moby's `health.go`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from layerfs.container.members import Members
from layerfs.errors import BadRequest

_LEAST = 1_000_000
"""Nanoseconds: what is shorter was meant to be something else."""
_DURATIONS = ("Interval", "Timeout", "StartPeriod", "StartInterval")
_DEFAULTS = {"Interval": 30.0, "Timeout": 30.0, "StartPeriod": 0.0, "StartInterval": 5.0}
_RETRIES = 3
_KEPT = 5
"""Results that are remembered."""
OUTPUT_LIMIT = 4096
"""Bytes of a check's output that are kept."""


def taken(members: Members) -> dict[str, Any] | None:
    """Return the member `Healthcheck`, None where there is none; raises `BadRequest`."""
    given = members.member("Healthcheck")
    if given is None:
        return None
    found: dict[str, Any] = {"Test": given.texts("Test")} if given.given("Test") else {}
    for name in _DURATIONS:
        value = given.number(name)
        if value and value < _LEAST:
            raise BadRequest(f"{name} in Healthcheck cannot be less than 1ms")
        if value:
            found[name] = value
    retries = given.number("Retries")
    if retries < 0:
        raise BadRequest("Retries in Healthcheck cannot be negative")
    if retries:
        found["Retries"] = retries
    if (test := found.get("Test")) and test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise BadRequest(f"Unknown healthcheck type '{test[0][:80]}' (expected 'CMD' or 'CMD-SHELL')")
    return found


def merged(own: Mapping[str, Any] | None, image: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the check that a container makes which asks for *own*, of an image that has *image*."""
    if not own and not image:
        return None if own is None else {}
    result = dict(image or {})
    result |= {name: value for name, value in (own or {}).items() if value}
    return result


@dataclass(frozen=True, slots=True)
class Check:
    """How a container is checked, times in seconds."""

    command: tuple[str, ...]
    interval: float
    timeout: float
    start_period: float
    start_interval: float
    retries: int

    def wait(self, status: str, since_start: float) -> float:
        """Return the seconds until the next check of a container with a *status*, started so long ago."""
        starting = status == "starting" and since_start < self.start_period
        return self.start_interval if starting else self.interval


def check_of(config: Mapping[str, Any]) -> Check | None:
    """Return how the container with the configuration *config* is checked, None if it is not."""
    given = config.get("Healthcheck") or {}
    kind, *words = given.get("Test") or ["NONE"]
    if kind not in ("CMD", "CMD-SHELL") or not words:
        return None
    if kind == "CMD-SHELL":
        words = [*(config.get("Shell") or ("/bin/sh", "-c")), *words]
    interval, timeout, period, at_start = (
        (given.get(name) or 0) / 1e9 or _DEFAULTS[name] for name in _DURATIONS
    )
    return Check(tuple(words), interval, timeout, period, at_start, given.get("Retries") or _RETRIES)


@dataclass(frozen=True, slots=True)
class Result:
    """What one check came to."""

    start: datetime
    end: datetime
    exit_code: int
    """0 for a container in good health; -1 for a check that did not end in time, or could not be started."""
    output: str


STARTING: dict[str, Any] = {"Status": "starting", "FailingStreak": 0, "Log": []}
"""The health of a container that has just been started."""


def after(health: Mapping[str, Any], check: Check, result: Result, started: datetime) -> dict[str, Any]:
    """Return the member `State.Health` that follows *health* once a check has had a *result*.

    *started* is when the container was. A failure counts for nothing while it starts, until its start period
    is over or a check has succeeded.
    """
    log = [*health["Log"], _entry(result)][-_KEPT:]
    status, streak = health["Status"], health["FailingStreak"]
    if result.exit_code == 0:
        return {"Status": "healthy", "FailingStreak": 0, "Log": log}
    if status != "starting" or result.start - started >= timedelta(seconds=check.start_period):
        streak += 1
        if streak >= check.retries:
            status = "unhealthy"
    return {"Status": status, "FailingStreak": streak, "Log": log}


def _entry(result: Result) -> dict[str, Any]:
    output = result.output if len(result.output) <= OUTPUT_LIMIT else result.output[:OUTPUT_LIMIT] + "..."
    return {
        "Start": result.start.isoformat(),
        "End": result.end.isoformat(),
        "ExitCode": result.exit_code,
        "Output": output,
    }
