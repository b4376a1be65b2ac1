"""A power cut during a build: the cache leads to nothing that is not whole, and nothing strange is left."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerfs.store import Store, layers
from tests.conftest import Layerfs, wait_until
from tests.system.power import Disk

pytestmark = pytest.mark.root

STEPS = 30
CONTENT = b"precious" * 20_000
BUILD = f"""
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from layerfs.store import Store

with Store(Path(sys.argv[1])) as store:
    with store.building():
        step = None
        for number in range({STEPS}):
            with store.steps.new_layer(step) as new:
                for name in range(5):
                    (new.path / f"{{number}}-{{name}}").write_bytes(b"precious" * 20_000)
                step = store.steps.seal_layer(new, step, created=datetime.now(UTC), created_by=str(number))
            store.build_cache.put(str(number), step)
            if number == 20:
                store.sync()  # as anybody may: the rows are on the disk, not what they speak of
                print("synced", flush=True)
            print(number, flush=True)
        store.steps.make_image(step, {{}}, references=["built"])
    print("built", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, layerfs: Layerfs) -> Disk:
    """A disk with a journal, which the store is on."""
    disk = Disk(layerfs.directory, kind=request.param)
    layerfs.root = disk.path / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    Store(layerfs.root).close()
    return disk


@pytest.mark.parametrize("moment", ["3", "17", "synced", "built", "settled"])
def test_the_cache_leads_to_what_is_whole(
    layerfs: Layerfs, disk: Disk, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUILD, layerfs.root],
        env=layerfs.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        while said != ("built" if moment == "settled" else moment):
            said = process.stdout.readline().strip()
        if moment == "settled":
            wait_until(lambda: is_settled(layerfs.root), 60)
        time.sleep(0.3 if moment == "17" else 0)
        disk.lose_power(layerfs)
    monkeypatch.setattr(layers, "boot_id", lambda: "another")
    with Store(layerfs.root) as store:
        forgotten = any("of the build cache" in line for line in store.recover())
        doubtful = {
            row.id[:12] for image in store.images() for row in store.layers_of(image) if row.unverified
        }
        for problem in store.check():  # the image may have come through, without all of its layers
            assert problem.subject.removeprefix("layer ") in doubtful, problem
        assert not list((layerfs.root / "layers").glob("*.lost"))
        if moment == "synced":
            assert forgotten
        found = [number for number in range(STEPS) if is_whole(store, number)]
        assert found == list(range(len(found)))
        if moment == "settled":
            assert len(found) == STEPS
            assert len(store.resolve("built").layers) == STEPS
        store.remove_image("built", force=True) if store.images() else None
        store.build_cache.prune(everything=True)
        assert list((layerfs.root / "layers").iterdir()) == []


def is_settled(root: Path) -> bool:
    with Store(root) as store:
        return all(layer.manifest_done for layer in layers.every(store.database))


def is_whole(store: Store, number: int) -> bool:
    """Tell whether the cache has a step; assert that it is what was sealed, then."""
    entry = store.build_cache.get(str(number))
    if entry is None:
        return False
    rows = store.steps.layers_of_step(entry.step)
    assert len(rows) == number + 1
    for below, row in enumerate(rows):
        assert {path.name: path.read_bytes() for path in row.path.iterdir()} == {
            f"{below}-{name}": CONTENT for name in range(5)
        }
    return True
