"""Power cuts while a mount goes back: the disk has what was before, or what was gone back to."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from layerfs.client.client import Client
from layerfs.errors import LayerfsError
from layerfs.store import Store
from tests.conftest import Layerfs
from tests.system.power import Disk, later_boot
from tests.system.promises.checker import Unmounted
from tests.system.promises.images import MAY_SAY

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
NAME = "agent"
CUTS = int(os.environ.get("LAYERFS_ROLLBACK_CUTS", "4"))


@pytest.fixture(params=["ext4", "xfs"])
def disk(layerfs: Layerfs, request: pytest.FixtureRequest) -> Disk:
    """A disk that can lose its power, with the store on it."""
    made = Disk(layerfs.directory, kind=request.param)
    layerfs.root = made.path / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    layerfs.expect_log("")  # whatever a daemon says whose disk is gone
    layerfs.store_is_damaged = True  # it is held against itself here
    return made


def tree_of(layerfs: Layerfs) -> dict[str, bytes]:
    """Return the files of the mount as they are on the disk."""
    with Store(layerfs.root) as store:
        mount = store.mount(NAME)
        assert mount.upper is not None
        rows = [*store.layers_of(mount), store.layer(mount.upper)]
        with closing(Unmounted.of(rows)) as tree:
            return {name: tree.read(name) for name in tree.names("")}


def recover(layerfs: Layerfs, mnt: Path) -> None:
    """Mount after a cut, as the next boot does, and unmount; nothing may be wrong with the store then."""
    with later_boot(layerfs, layerfs.directory):
        done = layerfs("mount", "--name", NAME, mnt)
        assert done.returncode == 0, done.stderr
        done = layerfs("fsck")
        lines = (done.stdout + done.stderr).splitlines()
        assert [line for line in lines if not MAY_SAY.search(line)] == []
        layerfs.ok("umount", NAME)


def test_after_a_cut_it_is_before_or_after(
    layerfs: Layerfs, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERFS_RUN", str(layerfs.run))
    moments = random.Random(disk.kind)
    tree, mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
    for directory in (tree, mnt):
        directory.mkdir()
    (tree / "file").write_text("old")
    layerfs.ok("import", tree, "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    before, after = {"file": b"given up", "new": b"new"}, {"file": b"old"}
    for number in range(CUTS):
        for name, content in before.items():
            with (mnt / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        root = os.open(mnt, os.O_RDONLY)
        os.fsync(root)
        os.close(root)
        promised = threading.Event()
        body = b'{"Discard": true}' if number % 2 else b"{}"

        def go_back(body: bytes = body, promised: threading.Event = promised) -> None:
            with suppress(LayerfsError, OSError):
                Client.for_mount(NAME).request("POST", "/layerfs/rollback", body=body, name=NAME)
                with (mnt / "file").open("rb") as file:
                    os.fsync(file.fileno())
                promised.set()

        asking = threading.Thread(target=go_back, daemon=True)
        asking.start()
        time.sleep(moments.choice((0.01, 0.05, 0.3)) * moments.random())
        kept = promised.is_set()
        disk.lose_power(layerfs)
        asking.join(30)
        recover(layerfs, mnt)
        found = tree_of(layerfs)
        assert found == after if kept else found in (before, after), (kept, found)
        layerfs.ok("mount", "--name", NAME, mnt)
        layerfs.ok("rollback", "--discard", NAME, "base")


def test_a_checkpoint_is_there_after_a_cut_once_something_was_synced(layerfs: Layerfs, disk: Disk) -> None:
    tree, mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
    for directory in (tree, mnt):
        directory.mkdir()
    (tree / "file").write_text("old")
    layerfs.ok("import", tree, "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    with (mnt / "file").open("w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
        step = layerfs.ok("checkpoint", NAME)
        file.write(" and more")
        file.flush()
        os.fsync(file.fileno())
    disk.lose_power(layerfs)
    recover(layerfs, mnt)
    assert tree_of(layerfs) == {"file": b"kept and more"}
    layerfs.ok("rollback", NAME, step)
    assert tree_of(layerfs) == {"file": b"kept"}
