"""Volumes of containers: named, unnamed, mounted from elsewhere; what they begin with, and when they end."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import mounts_below, wait_until
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, and one with files at /data, for the whole module."""
    with containers(tmp_path_factory.mktemp("volumes")) as made:
        script = """
            mkdir -p /data/sub && echo first >/data/file
            busybox chown 7:8 /data && busybox chmod 750 /data
        """
        made.layerfs.ok("run", "--name", "maker", IMAGE, "sh", "-c", script)
        made.layerfs.ok("commit", "maker", "full")
        made.remove("maker")
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left(there: Containers) -> Iterator[None]:
    """Remove all containers and volumes after a test: then nothing of them is there."""
    yield
    there.remove()
    there.layerfs.ok("volume", "prune", "-f", "--all")
    assert mounts_below(there.layerfs.directory) == []
    directory = there.layerfs.root / "volumes"
    assert not directory.exists() or os.listdir(directory) == []


def sh(there: Containers, script: str, *options: str, image: str = IMAGE) -> str:
    return there.layerfs.ok("run", "--rm", *options, image, "sh", "-euc", script)


def names(there: Containers) -> list[str]:
    return there.layerfs.ok("volume", "ls", "-q").split()


def test_a_named_volume_outlives_its_containers(there: Containers) -> None:
    sh(there, "echo kept >/v/file", "-v", "keep:/v")
    assert sh(there, "cat /w/file; ! touch /w/x 2>/dev/null", "-v", "keep:/w:ro") == "kept"
    assert names(there) == ["keep"]
    (found,) = json.loads(there.layerfs.ok("volume", "inspect", "keep"))
    assert (Path(found["Mountpoint"]) / "file").read_text() == "kept\n"


def test_a_new_volume_begins_with_what_the_image_has(there: Containers) -> None:
    script = (
        "cat /data/file; ls /data; busybox stat -c '%u:%g %a' /data; echo more >>/data/file; rm -r /data/sub"
    )
    there.layerfs.ok("run", "--name", "box", "-v", "fresh:/data", "full", "sh", "-c", "true")
    assert sh(there, script, "-v", "fresh:/data", image="full").splitlines() == [
        "first", "file", "sub", "7:8 750",
    ]  # fmt: skip
    assert sh(there, "cat /data/file; ls /data", "-v", "fresh:/data", image="full") == "first\nmore\nfile"
    assert sh(there, "ls -a /data", "-v", "bare:/data:nocopy", image="full") == ".\n.."
    sh(there, "rm -r /data/file", "-v", "fresh:/data", image="full")
    assert there.layerfs.ok("start", "-a", "box") == ""  # it was offered once, and is not again
    assert there.layerfs.ok("run", "--rm", "-v", "fresh:/x", IMAGE, "ls", "/x") == ""


def test_a_volume_that_has_something_is_left_alone(there: Containers) -> None:
    sh(there, "echo own >/data/own", "-v", "mine:/data")
    assert sh(there, "ls /data", "-v", "mine:/data", image="full") == "own"


def test_two_containers_see_the_same(there: Containers) -> None:
    there.layerfs.ok("run", "-d", "--name", "one", "-v", "both:/data", IMAGE, "sleep", "1000")
    there.layerfs.ok("run", "-d", "--name", "two", "-v", "both:/data", "full", "sleep", "1000")
    assert there.layerfs.ok("exec", "one", "cat", "/data/file") == "first"
    there.layerfs.ok("exec", "one", "sh", "-c", "echo new >/data/new")
    assert there.layerfs.ok("exec", "two", "cat", "/data/new") == "new"


def test_unnamed_volumes(there: Containers) -> None:
    sh(there, "echo x >/v/x", "-v", "/v")
    assert names(there) == []  # gone with the container
    there.layerfs.ok("run", "--name", "box", "-v", "/v", IMAGE, "sh", "-c", "echo x >>/v/x")
    (name,) = names(there)
    assert there.inspect("box")["Mounts"][0]["Name"] == name
    there.layerfs.ok("start", "-a", "box")
    assert (there.layerfs.root / "volumes" / name / "_data/x").read_text() == "x\nx\n"
    assert "volume is in use" in there.layerfs.refused("volume", "rm", name)
    there.remove("box")
    assert names(there) == [name]
    assert there.layerfs.ok("volume", "prune", "-f").splitlines()[:2] == ["Deleted Volumes:", name]


def test_something_that_is_mounted_when_it_is_used(there: Containers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("outside\n")
    options = ("-o", "type=none", "-o", f"device={tmp_path}")
    there.layerfs.ok("volume", "create", *options, "-o", "o=bind", "bound")
    there.layerfs.ok("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", "mem")
    data = there.layerfs.root / "volumes"
    volumes = ("-v", "bound:/b", "-v", "mem:/m")
    there.layerfs.ok("run", "-d", "--name", "box", *volumes, IMAGE, "sleep", "1000")
    assert {path.parent.name for path in mounts_below(data)} == {"bound", "mem"}
    assert sh(there, "cat /b/file; mount | grep ' /m '; echo x >/m/x", *volumes).startswith("outside\ntmpfs")
    assert there.layerfs.ok("exec", "box", "cat", "/m/x") == "x"
    assert "volume is in use" in there.layerfs.refused("volume", "rm", "mem")
    there.layerfs.ok("stop", "-t", "0", "box")
    assert mounts_below(data) == []
    assert os.listdir(data / "mem/_data") == []
    there.layerfs.ok("start", "box")
    there.remove("box")
    assert (tmp_path / "file").read_text() == "outside\n"


def test_a_device_that_is_not_there(there: Containers) -> None:
    there.layerfs.ok("volume", "create", "-o", "type=ext4", "-o", "device=/dev/missing", "broken")
    line = there.layerfs.refused("run", "--rm", "-v", "broken:/v", IMAGE, "true", status=125)
    assert line.startswith(f"error while mounting volume '{there.layerfs.root}/volumes/broken/_data'")
    assert there.names() == []


def test_a_file_of_the_image_where_a_volume_is_to_be(there: Containers) -> None:
    line = there.layerfs.refused("run", "--rm", "-v", "v1:/etc/passwd", IMAGE, "true", status=125)
    assert line == "the container has a volume at /etc/passwd, but a file is there"


def test_a_killed_container_lets_its_volumes_go(there: Containers) -> None:
    there.layerfs.ok("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "mem")
    there.layerfs.ok("run", "-d", "--name", "box", "-v", "mem:/m", IMAGE, "sleep", "1000")
    directory = there.directory("box")
    for file in ("conmon.pid", "pid"):
        subprocess.run(["kill", "-KILL", (directory / file).read_text().strip()], check=True)
    wait_until(lambda: not there.supervisors())
    there.remove("box")
    assert mounts_below(there.layerfs.root / "volumes") == []
