"""Many clients at once: containers by the dozen, one name that several want, one container that they end."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.system.apirequests import Answer, Api, engine
from tests.system.containers import IMAGE, Containers, containers, needs_networks
from tests.system.test_networks import traces

pytestmark = [
    pytest.mark.root,
    needs_networks,
]
MANY = 16


class Place:
    """An engine and its API."""

    def __init__(self, made: Containers) -> None:
        self.made = made
        self.api: Api = engine(made.layerfs)

    def post(self, path: str, body: dict[str, Any], **parameters: str) -> Answer:
        """Send an object."""
        given = json.dumps(body).encode()
        return self.api.ask("POST", path, given, {"Content-Type": "application/json"}, **parameters)

    def create(self, name: str, network: str = "none", **host: Any) -> Answer:
        """Make a container."""
        wanted = {"Image": IMAGE, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": network, **host}}
        return self.post("/containers/create", wanted, name=name)

    def run(self, name: str, network: str) -> int:
        """Make a container and start it; return the status of what failed, or of the start."""
        made = self.create(name, network)
        return made.status if made.status != 201 else self.api.ask("POST", f"/containers/{name}/start").status


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An engine."""
    with containers(tmp_path_factory.mktemp("crowd")) as made:
        made.layerfs.ok("network", "create", "--subnet", "10.231.44.0/24", "net")
        yield Place(made)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Do all of *works* at once, each in a thread; return what came of each."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [one.result() for one in [pool.submit(work) for work in works]]


@pytest.mark.parametrize("network", ["none", "net"])
def test_many_containers_at_once(place: Place, network: str) -> None:
    names = [f"c{number}" for number in range(MANY)]
    assert at_once(*(lambda name=name: place.run(name, network) for name in names)) == [204] * MANY
    found = [place.api.ask("GET", f"/containers/{name}/json").json() for name in names]
    assert all(one["State"]["Running"] for one in found)
    if network != "none":
        addresses = {one["NetworkSettings"]["Networks"][network]["IPAddress"] for one in found}
        assert len(addresses) == MANY
    remove = [lambda name=name: place.api.ask("DELETE", f"/containers/{name}", force="1") for name in names]
    assert [answer.status for answer in at_once(*remove)] == [204] * MANY
    assert place.api.ask("GET", "/containers/json", all="1").json() == []
    wait_until(lambda: os.listdir(place.made.layerfs.run / "containers") == [])
    assert traces(place.made) == []


def test_several_want_one_name(place: Place) -> None:
    for make, path in (
        (lambda: place.create("wanted"), "/containers/wanted"),
        (lambda: place.post("/networks/create", {"Name": "wanted"}), "/networks/wanted"),
    ):
        answers = at_once(*[make] * 8)
        assert Counter(answer.status for answer in answers) == {201: 1, 409: 7}
        for answer in answers:
            assert answer.status == 201 or "\n" not in answer.message()
        assert place.api.ask("DELETE", path).status == 204
    # A volume that is there is what was wanted, as dockerd has it.
    answers = at_once(*[lambda: place.post("/volumes/create", {"Name": "wanted"})] * 8)
    assert [answer.status for answer in answers] == [201] * 8
    assert place.api.ask("DELETE", "/volumes/wanted").status == 204


def test_several_want_one_port(place: Place) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    binding = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": port}]}
    names = [f"p{number}" for number in range(4)]
    for name in names:
        assert place.create(name, "net", PortBindings=binding).status == 201
    answers = at_once(
        *(lambda name=name: place.api.ask("POST", f"/containers/{name}/start") for name in names)
    )
    assert sorted(answer.status for answer in answers)[0] == 204
    for answer in answers:
        assert answer.status == 204 or answer.message().endswith(
            f"Bind for 127.0.0.1:{port} failed: port is already allocated"
        )
    assert Counter(answer.status == 204 for answer in answers) == {True: 1, False: 3}
    in_use = place.api.ask("DELETE", "/networks/net")
    assert (in_use.status, "has active endpoints" in in_use.message()) == (403, True)
    place.made.remove()
    assert traces(place.made) == []


def test_several_end_one_container(place: Place) -> None:
    assert place.run("box", "net") == 204
    ends = (
        lambda: place.api.ask("POST", "/containers/box/stop", t="0"),
        lambda: place.api.ask("POST", "/containers/box/kill"),
        lambda: place.api.ask("POST", "/containers/box/restart", t="0"),
        lambda: place.api.ask("POST", "/containers/box/start"),
        lambda: place.api.ask("DELETE", "/containers/box", force="1"),
        lambda: place.api.ask("DELETE", "/containers/box", force="1"),
    )
    for answer in at_once(*ends):
        assert answer.status in (204, 304, 404, 409), answer
    last = place.api.ask("DELETE", "/containers/box", force="1")
    assert last.status in (204, 404), (last.status, last.message())
    assert place.api.ask("GET", "/containers/json", all="1").json() == []
    # Who clears away after it, and finds it removed, has its directory for a moment.
    wait_until(lambda: os.listdir(place.made.layerfs.run / "containers") == [])
    assert traces(place.made) == []
