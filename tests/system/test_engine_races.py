"""Two clients and one container at once: while it is being started, the other one waits its turn."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import mounts_below, wait_until
from tests.system.apirequests import Api, engine
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root


class Place:
    """An engine whose supervisor takes a second to begin, and a container "c" that was not started."""

    def __init__(self, made: Containers) -> None:
        self.made = made
        slow = made.layerfs.directory / "slow"
        slow.mkdir()
        (slow / "conmon").write_text('#!/bin/sh\nsleep 1\nPATH=${PATH#*:}\nexec conmon "$@"\n')
        (slow / "conmon").chmod(0o755)
        environment = made.layerfs.environment
        environment["PATH"] = f"{slow}:{environment['PATH']}"
        self.api: Api = engine(made.layerfs)
        made.layerfs.ok("create", "--name", "c", IMAGE, "sleep", "1000")

    def while_starting(self, method: str, target: str) -> tuple[int, int]:
        """Start "c", send a request in the middle of that, and return the status of both answers."""
        with ThreadPoolExecutor(1) as pool:
            start = pool.submit(self.api.ask, "POST", "/containers/c/start")
            record = self.made.layerfs.run / "containers"
            wait_until(lambda: any(record.glob("*/config.json")))
            status = self.api.ask(method, target).status
            return start.result().status, status


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An engine with a container."""
    with containers(tmp_path) as made:
        yield Place(made)


def test_a_stop_during_a_start_stops_it(place: Place) -> None:
    assert place.while_starting("POST", "/containers/c/stop?t=0") == (204, 204)
    assert place.made.state("c")[0] == "exited"


def test_a_forced_removal_during_a_start_removes_all_of_it(place: Place) -> None:
    assert place.while_starting("DELETE", "/containers/c?force=1") == (204, 204)
    assert place.made.names() == []
    wait_until(lambda: not place.made.supervisors())
    assert mounts_below(place.made.layerfs.directory) == []
    wait_until(lambda: list((place.made.layerfs.run / "containers").iterdir()) == [])


def test_a_removal_during_a_start_is_refused(place: Place) -> None:
    assert place.while_starting("DELETE", "/containers/c") == (204, 409)
    assert place.made.state("c")[0] == "running"


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("POST", "/containers/c/pause", 204),
        ("GET", "/containers/c/top", 200),
        ("POST", "/containers/c/resize?h=1&w=1", 200),
    ],
)
def test_what_needs_a_running_container_waits_for_its_start(
    place: Place, method: str, target: str, status: int
) -> None:
    assert place.while_starting(method, target) == (204, status)


def test_an_exec_during_a_start_waits_for_it(place: Place) -> None:
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(place.api.ask, "POST", "/containers/c/start")
        wait_until(lambda: any((place.made.layerfs.run / "containers").glob("*/config.json")))
        assert place.made.layerfs.ok("exec", "c", "echo", "works") == "works"
        assert start.result().status == 204


def test_a_stop_between_the_record_and_the_end_of_a_start_is_not_forgotten(place: Place) -> None:
    """Else its policy would start it again."""
    place.made.layerfs.ok("update", "--restart", "always", "c")
    for _ in range(5):
        with ThreadPoolExecutor(1) as pool:
            start = pool.submit(place.api.ask, "POST", "/containers/c/start")
            wait_until(lambda: place.made.state("c")[0] == "running")
            assert place.api.ask("POST", "/containers/c/stop?t=0").status == 204
            assert start.result().status == 204
        assert place.made.state("c")[0] == "exited"


def test_a_container_renamed_during_its_start_can_be_used(place: Place) -> None:
    assert place.while_starting("POST", "/containers/c/rename?name=d") == (204, 204)
    assert place.made.layerfs.ok("exec", "d", "echo", "works") == "works"
    assert place.made.layerfs.ok("rm", "-f", "d") == "d"
    assert mounts_below(place.made.layerfs.directory) == []
