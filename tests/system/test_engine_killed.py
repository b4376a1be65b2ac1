"""The engine is killed in each phase of a request: the next one finds the old state or the new one, whole."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Layerfs, wait_until
from tests.system.apirequests import Api, engine
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root
JSON = {"Content-Type": "application/json"}


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for number in range(60):
            info = tarfile.TarInfo(f"file{number}")
            info.size = 50_000
            made.addfile(info, io.BytesIO(os.urandom(info.size)))
    return file.getvalue()


ARCHIVE = archive()
CONTAINER = json.dumps(
    {"Image": IMAGE, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "none"}}
).encode()
WORK: dict[str, tuple[str, str, bytes, tuple[float, ...]]] = {
    "load": ("POST", "/images/load", b"", (0.05, 0.3)),
    "import": ("POST", "/images/create?fromSrc=-&repo=new", ARCHIVE, (0.05, 0.15)),
    "commit of one that runs": ("POST", "/commit?container=runs&repo=new", b"", (0.004, 0.01)),
    "commit of one at rest": ("POST", "/commit?container=rests&repo=new", b"", (0.005, 0.02)),
    "copy into one that runs": ("PUT", "/containers/runs/archive?path=/root", ARCHIVE, (0.01, 0.05)),
    "copy into one at rest": ("PUT", "/containers/rests/archive?path=/root", ARCHIVE, (0.05, 0.2)),
    "network": ("POST", "/networks/create", b'{"Name": "new"}', (0.002, 0.005)),
    "volume": ("POST", "/volumes/create", b'{"Name": "new"}', (0.002, 0.005)),
    "create": ("POST", "/containers/create?name=new", CONTAINER, (0.005,)),
    "start": ("POST", "/containers/rests/start", b"", (0.05, 0.15)),
    "removal": ("DELETE", "/containers/victim?force=1", b"", (0.02, 0.06)),
}


class Place:
    """An engine, a container that runs, and one that does not."""

    def __init__(self, made: Containers) -> None:
        self.layerfs: Layerfs = made.layerfs
        self.api: Api = engine(made.layerfs)
        self.create("rests")
        self.start("runs")
        assert self.api.ask("POST", "/images/create", ARCHIVE, fromSrc="-", repo="other").status == 200
        self.saved = self.api.ask("GET", "/images/other/get").body
        self.undo()
        self.before = self.things()

    def create(self, name: str) -> None:
        """Make a container."""
        assert self.api.ask("POST", "/containers/create", CONTAINER, JSON, name=name).status == 201

    def start(self, name: str) -> None:
        """Make a container and start it."""
        self.create(name)
        assert self.api.ask("POST", f"/containers/{name}/start").status == 204

    def things(self) -> dict[str, list[Any]]:
        """Return what there is."""
        ask = self.api.ask
        listed = ask("GET", "/containers/json", all="1").json()
        scratch = self.layerfs.root / "tmp"
        return {
            "containers": sorted(it["Names"][0] for it in listed),
            "running": sorted(it["Names"][0] for it in listed if it["State"] == "running"),
            "images": sorted(
                tag for it in ask("GET", "/images/json", all="1").json() for tag in it["RepoTags"]
            ),
            "volumes": [it["Name"] for it in ask("GET", "/volumes").json()["Volumes"] or ()],
            "networks": sorted(it["Name"] for it in ask("GET", "/networks").json()),
            "scratch": os.listdir(scratch) if scratch.exists() else [],
        }

    def undo(self) -> None:
        """Take away what the work has made."""
        for path in ("containers/new", "images/new", "volumes/new", "networks/new", "images/other"):
            self.api.ask("DELETE", f"/{path}")
        self.api.ask("DELETE", "/containers/victim", force="1")
        self.api.ask("POST", "/containers/rests/stop", t="0")

    def killed_during(self, method: str, target: str, body: bytes, delay: float) -> None:
        """Send a request, kill the engine after *delay* seconds, and start another one."""

        def ask() -> None:
            with suppress(OSError, HTTPException):
                self.api.ask(method, target, body, JSON if body.startswith(b"{") else {})

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(delay)
        pid = int((self.layerfs.run / "engine.lock").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        asking.join(20)
        assert not asking.is_alive()
        self.api = engine(self.layerfs)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An engine with containers."""
    with containers(tmp_path_factory.mktemp("killed")) as made:
        yield Place(made)


@pytest.mark.parametrize("name", WORK)
def test_killed_during(place: Place, name: str) -> None:
    method, target, body, delays = WORK[name]
    for delay in delays:
        if name == "removal":
            place.start("victim")
        place.killed_during(method, target, place.saved if name == "load" else body, delay)
        found = place.things()
        assert "/runs" in found["running"]
        for kind, there in found.items():
            more = set(there) ^ set(place.before[kind])
            assert more <= {"new", "/new", "new:latest", "other:latest", "/victim", "/rests"}, (delay, kind)
        place.undo()
        assert place.things() == place.before, delay
    assert place.layerfs.ok("fsck").endswith(": clean")
    if name != "removal":
        again = place.api.ask(
            method, target, place.saved if name == "load" else body, JSON if body[:1] == b"{" else {}
        )
        assert again.status < 300
        place.undo()


def test_nothing_is_left_of_what_ran(place: Place) -> None:
    place.undo()
    assert place.api.ask("DELETE", "/containers/runs", force="1").status == 204
    wait_until(lambda: not os.listdir(place.layerfs.run / "containers"))
    socks = sorted(path.name for path in Path(place.layerfs.run).glob("*.sock"))
    assert socks == ["engine.sock"]
