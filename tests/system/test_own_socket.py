"""What is asked of a mount's own socket that its process, which has threads, has another one do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Layerfs
from tests.system.apirequests import Api
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root


@pytest.fixture
def made(layerfs: Layerfs) -> Iterator[Containers]:
    """Containers, which end with the test, and the mount "m"."""
    with containers(layerfs.directory, layerfs) as started:
        (layerfs.directory / "mnt").mkdir()
        layerfs.ok("mount", "--image", IMAGE, "--name", "m", layerfs.directory / "mnt")
        yield started


def forked_from(layerfs: Layerfs, name: str) -> str:
    """Return the command line of the process that the daemon of a mount was forked from."""
    pid = int((layerfs.run / f"{name}.lock").read_text().split()[0])
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_container_is_started_by_another_process(made: Containers) -> None:
    layerfs = made.layerfs
    own = Api(layerfs.socket("m"))
    layerfs.ok("create", "--name", "c", IMAGE, "sleep", "1000")
    for route in ("start", "restart"):
        answer = own.ask("POST", f"/containers/c/{route}", None, None, t="0")
        assert (answer.status, answer.body) == (204, b"")
        assert made.state("c")[0] == "running"
        assert "layerfs.api.apart" in forked_from(layerfs, "c")
    assert "layerfs.api.apart" not in forked_from(layerfs, "m")
    layerfs.ok("rm", "-f", "c")


def test_a_mount_is_made_by_another_process(made: Containers, tmp_path: Path) -> None:
    layerfs = made.layerfs
    own = Api(layerfs.socket("m"))
    place = layerfs.directory / "second"
    place.mkdir()
    body = b'{"mountpoint": "%s", "image": "%s", "name": "n"}' % (str(place).encode(), IMAGE.encode())
    answer = own.ask("POST", "/layerfs/mounts", body)
    assert (answer.status, answer.json()) == (201, {"Name": "n"})
    assert "layerfs.api.apart" in forked_from(layerfs, "n")
    again = own.ask("POST", "/layerfs/mounts", body)
    assert (again.status, again.message().count("\n")) == (409, 0)
    layerfs.ok("umount", "m")
    assert (place / "bin").exists()  # it goes on without the mount that was asked
    layerfs.ok("umount", place)
