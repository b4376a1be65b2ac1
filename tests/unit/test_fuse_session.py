"""How serving ends, and what becomes of the times that the kernel keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import trio

from layerfs.fuse import session
from layerfs.fuse.filesystem import Filesystem


class LateTimes:
    """Stands for those of a filesystem: counts how often they are settled."""

    def __init__(self) -> None:
        self.settled = 0

    def settle_before(self) -> None:
        """Count."""
        self.settled += 1


class Served:
    """Stands for a filesystem."""

    def __init__(self) -> None:
        self.late_times = LateTimes()


def settled(end: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> int:
    """Serve a filesystem until *end*; return how often its times were settled. It is mounted nowhere then."""
    served = Served()

    async def main(min_tasks: int) -> None:
        end()

    monkeypatch.setattr("pyfuse3.main", main)
    monkeypatch.setattr("pyfuse3.terminate", lambda: None)
    monkeypatch.setattr("layerfs.fuse.busypoll.install", lambda: None)
    trio.run(session.serve, cast(Filesystem, served), lambda: False)
    return served.late_times.settled


def test_times_are_settled_when_the_filesystem_was_unmounted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(lambda: None, monkeypatch) == 1


def test_times_are_not_settled_when_serving_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may not have told the time of the last write, and new contents must not get an older one."""
    assert settled(session.stop, monkeypatch) == 0
