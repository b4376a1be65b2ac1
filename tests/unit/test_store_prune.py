"""Pruning, and what must stay through it: whatever is in use, however many do what they like meanwhile."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

from layerfs.errors import NotFound, StoreBusy
from layerfs.host.rundir import RunLock
from layerfs.store import Store, images, layers, stacks
from layerfs.store.model import HistoryEntry, Image, now, to_datetime
from tests.unit.test_store_crash import check, dies_at
from tests.unit.test_store_usage import committed

Result = TypeVar("Result")


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory of the test's own."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    return tmp_path / "run"


def names(store: Store) -> set[str]:
    return {tag for image in store.images() for tag in image.tags or ("-",)}


def test_images_without_a_name(store: Store, base: Image) -> None:
    store.create_mount("m", image=base)
    first = committed(store, "m", 100, None)
    second = committed(store, "m", 10, None)
    committed(store, "m", 1, "kept")
    removals, freed = store.prune_images(tagged=False)
    assert (removals, freed) == ([], 0)  # "kept" was made from them
    store.untag("kept")
    removals, freed = store.prune_images(tagged=False)
    assert [item.deleted for item in removals if item.deleted][-1] == f"sha256:{first.id}"
    assert f"sha256:{second.id}" in [item.deleted for item in removals]
    assert freed == 0  # the mount goes on with the layers
    assert names(store) == {"debian:12"}
    mount = store.mount("m")
    assert len(mount.layers) == 4
    assert all(layer.path.is_dir() for layer in store.layers_of(mount))
    assert committed(store, "m", 1, "next").parent == base.id


def test_every_image_that_no_mount_uses(store: Store, base: Image, tree: Path) -> None:
    store.import_image(tree / "etc", "other:1")
    store.import_image(tree / "etc", None)
    store.tag(store.resolve("other:1").id, "more:1")
    store.create_mount("m", image=base)
    removals, freed = store.prune_images(tagged=True)
    assert [item.untagged for item in removals if item.untagged] == ["more:1", "other:1"]
    assert freed == 2 * (tree / "etc/passwd").stat().st_size
    assert names(store) == {"debian:12"}
    check(store.root)


def test_what_is_not_wanted_stays(store: Store, base: Image) -> None:
    store.create_mount("m", image=base)
    old = committed(store, "m", 100, "old")
    new = committed(store, "m", 10, "new")
    store.prune_images(tagged=True, wanted=lambda image: image.id == old.id)
    assert names(store) == {"debian:12", "old:latest", "new:latest"}  # "new" was made from it
    store.prune_images(tagged=True, wanted=lambda image: image.id == new.id)
    assert names(store) == {"debian:12", "old:latest"}
    assert store.prune_mounts(wanted=lambda mount: False) == ([], 0)


def test_mounts_that_run_stay(store: Store, base: Image) -> None:
    here, elsewhere, stopped = (store.create_mount(name, image=base) for name in ("here", "elsewhere", "off"))
    (store.layer(stopped.upper or "").path / "file").write_bytes(bytes(70))
    upper = os.open(store.layer(elsewhere.upper or "").path, os.O_RDONLY)
    fcntl.flock(upper, fcntl.LOCK_EX)  # as the daemon of another run directory does
    with RunLock(here.name):
        removed, freed = store.prune_mounts()
    os.close(upper)
    assert ([mount.name for mount in removed], freed) == (["off"], 70)
    assert {mount.name for mount in store.mounts()} == {"here", "elsewhere"}
    check(store.root)


def test_mounts_without_a_name_go_with_their_daemon(store: Store, base: Image) -> None:
    alive = store.create_mount("mount-alive", image=base, ephemeral=True)
    dead = store.create_mount("mount-dead", image=base, ephemeral=True)
    reader = store.create_mount("mount-reader", image=base, writable=False, ephemeral=True)
    named = store.create_mount("named", image=base)
    for mount in (alive, dead, reader, named):
        store.set_mounted(mount.id, "/nowhere", datetime.now(UTC))
    with RunLock(alive.name):
        lines = store.recover()
    assert sorted(line.split(":")[0] for line in lines) == ["removed mount-dead", "removed mount-reader"]
    assert {mount.name for mount in store.mounts()} == {"mount-alive", "named"}


def test_pruning_is_killed(root: Path, store: Store, base: Image) -> None:
    """At every second step: what is left is whole, and pruning again gets to the end."""
    store.create_mount("keeper", image=base)
    step = 0
    killed = True
    while killed:
        prune(store)
        store.create_mount("one", image=base)
        committed(store, "one", 10, "one")
        killed = dies_at(step := step + 2, root, prune)
        check(root)
        assert "keeper" in {mount.name for mount in store.mounts()}
        assert "debian:12" in names(store)
    assert step > 40
    assert names(store) == {"debian:12"}
    assert {mount.name for mount in store.mounts()} == {"keeper"}


def prune(store: Store) -> None:
    store.prune_mounts(wanted=lambda mount: mount.name != "keeper")
    store.prune_images(tagged=True)


@contextmanager
def child(action: Callable[[], object]) -> Iterator[int]:
    """Do *action* over and over in another process while the block lasts; it must never fail."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                action()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the child has failed"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def busy_with(root: Path, tree: Path, name: str) -> None:
    """Import, mount, commit and remove once, and look at every layer that is in use."""
    with Store(root) as store, suppress(NotFound):  # the image may be pruned at any time
        with RunLock(name):
            mount = store.create_mount(name, image=store.import_image(tree, f"{name}:1"))
            prepared = patiently(lambda: store.prepare_upper(mount))
            patiently(lambda: store.commit(mount, prepared, reference=f"{name}:2"))
            mount = store.mount(name)
            for layer in [*store.layers_of(mount), store.layer(mount.upper or "")]:
                assert layer.path.is_dir(), f"layer {layer.id} was removed while in use"
            assert (store.layers_of(mount)[0].path / "passwd").read_text()
            store.remove_mount(mount.id)
        store.remove_image(f"{name}:2")


def patiently(action: Callable[[], Result]) -> Result:
    """Do *action*, which gives up at once when another process writes to the store, until it works."""
    while True:
        with suppress(StoreBusy):
            return action()
        time.sleep(0.001)


def test_others_are_at_work(root: Path, tree: Path) -> None:
    """While two processes prune, a third one's mounts keep all their layers, and its commits succeed."""
    Store(root).close()

    def prune_all() -> None:
        with Store(root) as store:
            store.prune_mounts()
            store.prune_images(tagged=True)
            store.recover()

    with child(prune_all), child(prune_all):
        until = time.monotonic() + 3
        rounds = 0
        while time.monotonic() < until:
            busy_with(root, tree / "etc", "worker")
            rounds += 1
    assert rounds > 5
    check(root)


def test_killed_while_others_are_at_work(root: Path, tree: Path) -> None:
    """Pruning is killed at random moments, and so may be what it competes with."""
    Store(root).close()
    chance = random.Random(5)
    with child(lambda: busy_with(root, tree / "etc", "worker")):
        for _ in range(30):
            pid = os.fork()
            if pid == 0:
                try:
                    with Store(root) as store:
                        while True:
                            store.prune_mounts()
                            store.prune_images(tagged=True)
                finally:
                    os._exit(1)
            time.sleep(chance.uniform(0.005, 0.1))
            os.kill(pid, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with Store(root) as store:
        store.prune_mounts()
    check(root)


def test_scratch_directories(store: Store) -> None:
    def fails() -> None:
        with store.scratch() as scratch:
            (scratch.path / "blobs").mkdir()
            assert scratch.path.stat().st_mode & 0o777 == 0o700
            assert scratch.path.stat().st_dev == store.root.stat().st_dev
            with Store(store.root) as other:
                assert other.recover() == []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert list((store.root / "tmp").iterdir()) == []


def test_a_scratch_directory_whose_maker_was_killed(store: Store) -> None:
    """It goes once nobody writes to it any more."""
    read, write = os.pipe()
    maker = os.fork()
    if maker == 0:
        with Store(store.root) as own, own.scratch() as scratch:
            sleep = subprocess.Popen(["sleep", "60"], pass_fds=[scratch.lock])
            os.write(write, str(sleep.pid).encode())
            time.sleep(60)
        os._exit(1)
    writer = int(os.read(read, 32))
    os.kill(maker, signal.SIGKILL)
    os.waitpid(maker, 0)
    assert store.recover() == []
    os.kill(writer, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not (lines := store.recover()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(lines) == 1
    assert "was not finished" in lines[0]
    assert list((store.root / "tmp").iterdir()) == []
    os.close(read)
    os.close(write)


class TestLongChains:
    """Images made one from the other, as an agent that commits after each step leaves them."""

    @pytest.mark.parametrize("length", [1, 1200])
    def test_pruning_removes_a_whole_chain(self, store: Store, base: Image, length: int) -> None:
        chain(store, base, length)
        removals, freed = store.prune_images(tagged=False)
        assert len([item for item in removals if item.deleted]) == 2 * length
        assert freed == length
        assert names(store) == {"debian:12"}
        check(store.root)

    def test_removing_the_last_image_removes_the_chain_below(self, store: Store, base: Image) -> None:
        last = chain(store, base, 1200)
        removals = store.remove_image(last)
        assert len([item for item in removals if item.deleted]) == 2 * 1200
        assert names(store) == {"debian:12"}
        check(store.root)

    def test_the_statements_of_a_prune_grow_with_the_images_alone(self, store: Store, base: Image) -> None:
        counts = []
        for length in (100, 300):
            chain(store, base, length)
            statements: list[str] = []
            store.database.connection.set_trace_callback(statements.append)
            store.prune_images(tagged=False)
            store.database.connection.set_trace_callback(None)
            counts.append(len(statements))
        assert counts[1] < 3.5 * counts[0]


def chain(store: Store, base: Image, length: int) -> str:
    """Write what *length* commits of one byte each, one upon the other, leave; return the last image's id."""
    db = store.database
    step, parent = str(db.scalar("SELECT step FROM images WHERE id = ?", (base.id,))), base.id
    with db.transaction():
        for number in range(length):
            layer = os.urandom(32).hex()
            (db.layers / layer / "fs").mkdir(parents=True)
            (db.layers / layer / "fs/file").write_bytes(b"x")
            layers.insert(db, layer, "sealed", None, size=1)
            entry = HistoryEntry(to_datetime(now()), f"commit {number}", "", "", False, layer)
            step = stacks.add(db, step, entry)
            image = images.insert(
                db, step=step, history=(entry,), config={}, author="", comment="", parent=parent
            )
            parent = image.id
    return parent
