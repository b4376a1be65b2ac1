"""Restart policies: whether a container that has ended is to run again, and when."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfs.store.model import Mount

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 60.0
LONG_RUN = 10.0
"""Seconds after which a run counts as good: the next pause is the first one again. dockerd's figures."""


def policy(row: Mount) -> tuple[str, int]:
    """Return the policy of the container *row*, and how many restarts it allows (0: any number)."""
    host: dict[str, Any] = row.container.get("HostConfig") or {}
    found = host.get("RestartPolicy") or {}
    return found.get("Name") or "no", found.get("MaximumRetryCount") or 0


def wants_restart(row: Mount, code: int) -> bool:
    """Return whether the container *row*, which ended with *code*, is to run again.

    Not if somebody has stopped it.
    """
    name, most = policy(row)
    if row.container.get("Stopped"):
        return False
    if name == "on-failure":
        return code != 0 and (not most or row.container.get("RestartCount", 0) < most)
    return name in ("always", "unless-stopped")


def wants_to_run(row: Mount) -> bool:
    """Return whether the container *row*, which does not run, is to be started with the engine."""
    name, _ = policy(row)
    started = bool(row.container.get("StartedAt"))
    if name == "always":
        return started
    return name == "unless-stopped" and started and not row.container.get("Stopped")


def pause(row: Mount) -> float:
    """Return the seconds to wait before the next run of the container *row*."""
    started, finished = (row.container.get(name) for name in ("StartedAt", "FinishedAt"))
    if started and finished:
        ran = datetime.fromisoformat(finished) - datetime.fromisoformat(started)
        if ran.total_seconds() >= LONG_RUN:
            return FIRST_PAUSE
    count = int(row.container.get("RestartCount", 0))
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(count, 16)))
