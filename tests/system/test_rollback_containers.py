"""Going back with a container whose process is killed before, and started anew after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import wait_until
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root
SERVER = "echo run >>/runs; echo ready; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, for the whole module."""
    with containers(tmp_path_factory.mktemp("goback")) as made:
        yield made


class Server:
    """A container that notes each of its runs, with a checkpoint during the first."""

    def __init__(self, there: Containers, *options: str) -> None:
        self.there = there
        there.layerfs.ok("run", "-d", "--name", "server", *options, IMAGE, "sh", "-c", SERVER)
        self.wait_for_runs(1)
        self.step = there.layerfs.ok("checkpoint", "server")
        there.layerfs.ok("exec", "server", "sh", "-c", "echo lost >/lost; echo lost >>/runs")

    def wait_for_runs(self, count: int) -> None:
        wait_until(lambda: self.there.run("logs", "server").stdout == "ready\n" * count)

    def cat(self, path: str) -> str:
        return self.there.layerfs.ok("exec", "server", "sh", "-c", f"cat {path} 2>/dev/null || echo none")

    @property
    def pid(self) -> int:
        return int(self.there.inspect("server")["State"]["Pid"])


@pytest.fixture
def server(there: Containers) -> Iterator[Server]:
    yield Server(there)
    there.remove()


def test_restarted_it_begins_anew_in_the_tree_of_then(there: Containers, server: Server) -> None:
    before = server.pid
    step, kept = there.layerfs.ok("rollback", "--restart", "server").split()
    server.wait_for_runs(2)
    assert step == server.step
    assert server.pid != before
    assert (server.cat("/runs"), server.cat("/lost")) == ("run\nrun", "none")
    assert there.layerfs.ok("rollback", "--restart", "server", kept).split()[0] == kept
    server.wait_for_runs(3)
    assert (server.cat("/runs"), server.cat("/lost")) == ("run\nlost\nrun", "lost")


def test_killed_it_stays_stopped(there: Containers, server: Server) -> None:
    there.layerfs.ok("rollback", "--kill", "--discard", "server")
    assert there.state("server") == ("exited", 137)
    there.layerfs.ok("start", "server")
    server.wait_for_runs(2)
    assert (server.cat("/runs"), server.cat("/lost")) == ("run\nrun", "none")


def test_one_that_has_ended_is_started(there: Containers, server: Server) -> None:
    there.layerfs.ok("kill", "server")
    wait_until(lambda: there.state("server")[0] == "exited")
    there.layerfs.ok("rollback", "--restart", "server")
    server.wait_for_runs(2)
    assert server.cat("/runs") == "run\nrun"


def test_its_policy_does_not_start_it_before_it_has_gone_back(there: Containers) -> None:
    server = Server(there, "--restart", "always")
    try:
        there.layerfs.ok("rollback", "--kill", "server")
        assert there.state("server") == ("exited", 137)
        there.layerfs.ok("start", "server")
        server.wait_for_runs(2)
        assert server.cat("/runs") == "run\nrun"
    finally:
        there.remove()


def test_what_is_refused_ends_nothing(there: Containers, server: Server) -> None:
    before, refused = server.pid, there.layerfs.refused
    assert "has no checkpoint nothing" in refused("rollback", "--restart", "server", "nothing")
    assert "choose one of them" in refused("rollback", "--restart", "--kill", "server")
    assert "choose one of them" in refused("rollback", "--restart", "--pause", "server")
    assert server.pid == before
    assert (server.cat("/runs"), server.cat("/lost")) == ("run\nlost", "lost")


def test_one_that_is_removed_at_its_end_is_not_killed(there: Containers) -> None:
    server = Server(there, "--rm")
    try:
        assert "removed when its process ends" in there.layerfs.refused("rollback", "--kill", "server")
        assert server.cat("/lost") == "lost"
    finally:
        there.remove()


def test_one_that_does_not_start_has_gone_back(there: Containers, server: Server) -> None:
    there.layerfs.ok("exec", "server", "mv", "/bin/sh", "/bin/sh2")
    without = there.layerfs.ok("checkpoint", "server")
    there.layerfs.ok("exec", "server", "mv", "/bin/sh2", "/bin/sh")
    line = there.layerfs.refused("rollback", "--restart", "server", without)
    assert f"server has gone back to {without[:12]}, but does not start" in line
    assert there.state("server")[0] == "exited"
    there.layerfs.ok("rollback", "--restart", "server", server.step)
    server.wait_for_runs(2)
    assert server.cat("/runs") == "run\nrun"
