"""An engine where a program is missing: one line says which, and what needs none of it works."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from layerfs.container import netavark
from layerfs.container.ociruntime import find_program
from tests.conftest import wait_until
from tests.system.apirequests import Answer, Api, answers
from tests.system.containers import IMAGE, Containers, containers, needs_networks

pytestmark = [
    pytest.mark.root,
    needs_networks,
]
HIDING = 'while [ "$1" != -- ]; do mount --bind /dev/null "$1"; shift; done; shift; exec "$@"'


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, and the network "net"."""
    with containers(tmp_path_factory.mktemp("without")) as made:
        made.layerfs.ok("network", "create", "--subnet", "10.231.43.0/24", "net")
        yield made


@contextmanager
def without(there: Containers, *programs: str) -> Iterator[Api]:
    """Start an engine that does not see these programs; it ends with the block."""
    found = [netavark.find(name) for name in programs]
    paths = [os.path.realpath(program) for program in found if program]
    layerfs = there.layerfs
    words = ["unshare", "-m", "--propagation=private", "sh", "-c", HIDING, "sh", *paths, "--", *layerfs.words]
    path = layerfs.run / "engine.sock"
    layerfs.run.mkdir(mode=0o700, exist_ok=True)
    with (layerfs.run / "engine.log").open("wb") as log:
        engine = subprocess.Popen(
            [*words, "engine"], env=layerfs.environment, stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        wait_until(lambda: answers(path))
        yield Api(path)
    finally:
        engine.terminate()
        engine.wait(30)


def run(api: Api, network: str) -> Answer:
    """Start a container in a network and remove it; return the answer of what failed, or of the start."""
    body = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": network}}
    made = api.ask(
        "POST", "/containers/create", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    if made.status != 201:
        return made
    identifier = made.json()["Id"]
    started = api.ask("POST", f"/containers/{identifier}/start")
    assert api.ask("DELETE", f"/containers/{identifier}", force="1").status == 204
    return started


@pytest.mark.parametrize(
    ("programs", "refused", "works", "line"),
    [
        (
            ("runc", "crun"),
            ("none", "host", "net"),
            (),
            "no OCI runtime is installed: install the package runc",
        ),
        (("conmon",), ("none", "host", "net"), (), "conmon is not installed: install the package conmon"),
        (("netavark",), ("bridge", "net"), ("none", "host"), "a bridge network needs netavark: install the"),
        (("iptables",), ("bridge", "net"), ("none", "host"), "a bridge network needs iptables: install the"),
        (("aardvark-dns",), ("net",), ("none", "host", "bridge"), "a network with names needs aardvark-dns"),
        (("skopeo",), (), ("none", "host", "net"), ""),
    ],
)
def test_containers_without(
    there: Containers, programs: Sequence[str], refused: Sequence[str], works: Sequence[str], line: str
) -> None:
    if any(find_program(name) is None and netavark.find(name) is None for name in programs[:1]):
        pytest.skip(f"{programs[0]} is not here either")
    with without(there, *programs) as api:
        for network in refused:
            answer = run(api, network)
            assert answer.status in (404, 500), (network, answer)
            assert answer.message().startswith(line), (network, answer)
            assert "\n" not in answer.message()
        for network in works:
            assert run(api, network).status == 204, network
        assert api.ask("GET", "/containers/json", all="1").json() == []
        assert api.ask("GET", "/info").status == 200


def test_images_without_skopeo(there: Containers) -> None:
    with without(there, "skopeo") as api:
        for target in ("/images/create?fromImage=127.0.0.1:9/x&tag=1", f"/images/{IMAGE}/push"):
            answer = api.ask("POST", target, b"", {"X-Registry-Auth": "e30="})
            text = answer.message() if answer.status >= 300 else answer.lines()[-1]["error"]
            assert "skopeo is not installed" in text, answer
