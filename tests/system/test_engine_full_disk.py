"""A full disk under the engine: a request works whole or says one line, and what is there can be removed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Layerfs, fill
from tests.system.apirequests import Answer, Api, engine
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root
LEFT = (0, 20_000, 60_000)
"""Bytes that are left: too few for the first write, for one of those that follow, or enough."""


def archive(size: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        info = tarfile.TarInfo("file")
        info.size = size
        made.addfile(info, io.BytesIO(os.urandom(size)))
    return file.getvalue()


class Place:
    """An engine whose store is on a small disk, with a container that runs and one that does not."""

    def __init__(self, made: Containers, disk: Path) -> None:
        self.made = made
        self.disk = disk
        self.api: Api = engine(made.layerfs)
        for name in ("runs", "rests"):
            assert self.create(name, "sleep", "1000").status == 201
        assert self.api.ask("POST", "/containers/runs/start").status == 204
        assert (
            self.api.ask("POST", "/images/create", archive(300_000), fromSrc="-", repo="other").status == 200
        )
        self.saved = self.api.ask("GET", "/images/other/get").body
        assert self.api.ask("DELETE", "/images/other").status == 200

    def post(self, path: str, body: dict[str, Any], **parameters: str) -> Answer:
        """Send an object."""
        return self.api.ask(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}, **parameters
        )

    def create(self, name: str, *command: str) -> Answer:
        """Make a container."""
        wanted = {"Image": IMAGE, "Cmd": command, "HostConfig": {"NetworkMode": "none"}}
        return self.post("/containers/create", wanted, name=name)

    def run(self) -> Answer:
        """Make a container, run it to its end, and remove it."""
        answer = self.create("new", "sh", "-c", "echo x")
        if answer.status == 201:
            answer = self.api.ask("POST", "/containers/new/start")
            if answer.status == 204:
                assert self.api.ask("POST", "/containers/new/wait").json() == {"StatusCode": 0}
            assert self.api.ask("DELETE", "/containers/new").status == 204
        return answer

    def things(self) -> dict[str, list[str]]:
        """Return what there is."""
        ask = self.api.ask
        return {
            "containers": sorted(it["Names"][0] for it in ask("GET", "/containers/json", all="1").json()),
            "images": sorted(it["Id"] for it in ask("GET", "/images/json", all="1").json()),
            "tags": sorted(tag for it in ask("GET", "/images/json").json() for tag in it["RepoTags"]),
            "volumes": sorted(it["Name"] for it in ask("GET", "/volumes").json()["Volumes"] or ()),
            "networks": sorted(it["Name"] for it in ask("GET", "/networks").json()),
            "scratch": os.listdir(self.made.layerfs.root / "tmp")
            if (self.made.layerfs.root / "tmp").exists()
            else [],
        }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An engine with a store on a disk of 24 MiB."""
    layerfs = Layerfs(tmp_path)
    disk, image = tmp_path / "disk", tmp_path / "disk.ext4"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m0", image], check=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True, timeout=10)
    layerfs.root = disk / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    try:
        with containers(tmp_path, layerfs) as made:
            yield Place(made, disk)
            (disk / "ballast").unlink(missing_ok=True)
    finally:
        layerfs.end()


WORK: dict[str, Callable[[Place], Answer]] = {
    "run": Place.run,
    "commit of one that runs": lambda place: place.api.ask("POST", "/commit", container="runs", repo="new"),
    "commit of one at rest": lambda place: place.api.ask("POST", "/commit", container="rests", repo="new"),
    "load": lambda place: place.api.ask("POST", "/images/load", place.saved),
    "import": lambda place: place.api.ask(
        "POST", "/images/create", archive(100_000), fromSrc="-", repo="new"
    ),
    "tag": lambda place: place.api.ask("POST", f"/images/{IMAGE}/tag", repo="new"),
    "volume": lambda place: place.post("/volumes/create", {"Name": "new"}),
    "network": lambda place: place.post("/networks/create", {"Name": "new"}),
    "rename": lambda place: place.api.ask("POST", "/containers/rests/rename", name="renamed"),
    "update": lambda place: place.post("/containers/rests/update", {"CpuShares": 77}),
    "copy out of one at rest": lambda place: place.api.ask(
        "GET", "/containers/rests/archive", path="/bin/busybox"
    ),
    "copy into one at rest": lambda place: place.api.ask(
        "PUT", "/containers/rests/archive", archive(100_000), path="/root"
    ),
    "copy into one that runs": lambda place: place.api.ask(
        "PUT", "/containers/runs/archive", archive(100_000), path="/root"
    ),
}


def undo(place: Place) -> None:
    for path in ("containers", "images", "volumes", "networks"):
        place.api.ask("DELETE", f"/{path}/new")
    place.api.ask("DELETE", "/images/other")
    place.api.ask("POST", "/containers/renamed/rename", name="rests")


def said(answer: Answer) -> str:
    """Return the error that an answer tells of, "" for none."""
    if answer.status >= 300:
        return answer.message()
    if answer.headers.get("Content-Type") == "application/json" and b'"errorDetail"' in answer.body:
        return str(answer.lines()[-1]["error"])
    return ""


def test_a_request_works_whole_or_says_one_line(place: Place) -> None:
    before = place.things()
    failed = set()
    for name, work in WORK.items():
        for left in LEFT:
            ballast = fill(place.disk, leave=left)
            answer = work(place)
            line = said(answer)
            if line:
                failed.add(name)
                assert answer.status in (200, 507), (name, left, answer)
                assert "no space left" in line.lower(), (name, left, line)
                assert "\n" not in line
                assert place.things() == before, (name, left)
            ballast.unlink()
            undo(place)
            assert place.things() == before, (name, left)
        assert place.made.layerfs.ok("fsck").endswith(": clean"), name
    assert failed == set(WORK)  # each of them was tried where there was not enough
    # A copy into it was not stored: its client was told then, and who commits is told once.
    assert "try again" in said(WORK["commit of one that runs"](place))
    for work in WORK.values():
        assert not said(work(place))
        undo(place)


def test_what_is_there_can_be_removed(place: Place) -> None:
    place.post("/volumes/create", {"Name": "volume"})
    place.create("other", "true")
    requests = (
        ("DELETE", "/volumes/volume"),
        ("POST", "/containers/runs/stop?t=0"),
        ("DELETE", "/containers/runs"),
        ("POST", "/containers/prune"),
        ("DELETE", f"/images/{IMAGE}"),
    )
    for method, path in requests:
        ballast = fill(place.disk)
        answer = place.api.ask(method, path)
        assert answer.status in (200, 204), (path, answer)
        ballast.unlink()
    assert [found for found in place.things().values() if found] == [["bridge", "host", "none"]]
