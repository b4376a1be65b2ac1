"""Steps that builds make, the cache that keeps them, and what a build holds."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from layerfs.errors import Conflict, NotFound
from layerfs.mounting.find import mount_of
from layerfs.mounting.mount import Checkpoint
from layerfs.store import Store
from layerfs.store.model import Image, Mount
from tests.unit.steps_support import THEN, layer_directories, make_step, problems


def test_a_sealed_layer_is_a_step_of_its_own(store: Store, base: Image, tree: Path) -> None:
    with store.building():
        below = store.steps.step_of(base)
        step = make_step(store, below, "one")
        rows = store.steps.layers_of_step(step)
        assert [row.id for row in rows[:-1]] == list(base.layers)
        assert (rows[-1].state, rows[-1].unverified) == ("sealed", False)
        top = rows[-1].path.stat()
        assert (top.st_mode, top.st_uid) == (tree.stat().st_mode, tree.stat().st_uid)
        assert [entry.created_by for entry in store.steps.history_of_step(step)][-1] == "COPY one"
        assert len(store.steps.stack_of_step(step).trees) == 2


def test_a_layer_that_is_not_sealed_goes(store: Store) -> None:
    with store.steps.new_layer() as new:
        (new.path / "file").touch()
    assert layer_directories(store) == set()
    with pytest.raises(Conflict, match="is not being filled"):
        store.steps.seal_layer(new, None, created=THEN, created_by="")


def test_the_same_image_is_made_again_of_the_same_step(store: Store, base: Image) -> None:
    with store.building():
        step = make_step(store, store.steps.step_of(base), "one")
        empty = store.steps.empty_step(step, created=THEN, created_by="CMD x")
        assert store.steps.empty_step(step, created=THEN, created_by="CMD x") == empty
        made = store.steps.make_image(empty, {"Cmd": ["x"]}, references=["app", "app:2"])
        again = store.steps.make_image(empty, {"Cmd": ["x"]}, references=["app:3"])
    assert made.id == again.id
    assert store.resolve("app").tags == ("app:2", "app:3", "app:latest")
    assert made.created == THEN
    assert [entry.empty_layer for entry in made.history] == [False, False, True]
    assert problems(store) == []


def test_what_a_build_made_goes_with_it_unless_it_has_an_owner(store: Store, base: Image) -> None:
    before = layer_directories(store)
    with store.building():
        below = store.steps.step_of(base)
        kept = make_step(store, below, "kept")
        make_step(store, kept, "gone")
        store.build_cache.put("key", kept, kind="regular", description="COPY kept")
    entry = store.build_cache.get("key")
    assert entry is not None
    assert (entry.step, entry.description, entry.uses) == (kept, "COPY kept", 1)
    assert len(layer_directories(store)) == len(before) + 1
    assert problems(store) == []


def test_what_a_killed_build_held_is_let_go(store: Store, base: Image) -> None:
    before = layer_directories(store)
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with Store(store.root) as own, own.building():
            step = make_step(own, own.steps.step_of(base), "one")
            own.create_mount("of-a-build", image=None, step=step)
            with own.steps.new_layer() as new:
                (new.path / "half").touch()
                os.write(done, b"x")
                signal.pause()
    os.read(ready, 1)
    assert store.recover() == []  # nothing that a live process needs
    assert problems(store) == []
    assert len(layer_directories(store)) == len(before) + 3
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(done)
    assert any("its process was killed, and it still holds steps" in line for line in problems(store))
    assert [line.partition(":")[0] for line in store.recover() if "of-a-build" in line] == [
        "removed of-a-build"
    ]
    assert layer_directories(store) == before
    assert list((store.root / "tmp").iterdir()) == []
    assert store.mounts() == []
    assert problems(store) == []


def test_a_step_of_a_build_that_has_ended_cannot_be_built_on(store: Store) -> None:
    with store.building() as build:
        step = make_step(store, None, "one")
    with pytest.raises(NotFound, match="no such step"):
        make_step(store, step, "two")
    with Store(store.root, build=build.id) as late, pytest.raises(NotFound, match="it has ended"):
        make_step(late, None, "two")
    assert layer_directories(store) == set()


def test_an_entry_is_replaced_and_its_layers_go(store: Store) -> None:
    with store.building():
        for name in ("one", "two"):
            store.build_cache.put("key", make_step(store, None, name))
    entry = store.build_cache.get("key")
    assert entry is not None
    rows = store.steps.layers_of_step(entry.step)
    assert os.listdir(rows[0].path) == ["two"]
    assert layer_directories(store) == {rows[0].id}


def test_a_checkpoint_of_a_mount_at_rest(store: Store, mount: Mount, base: Image) -> None:
    assert mount.upper is not None
    (store.layer(mount.upper).path / "file").write_text("x")
    with store.building() as build:
        wanted = Checkpoint(created_by="RUN x", comment="buildkit", created=THEN, build=build.id)
        step = mount_of(store, mount).checkpoint(wanted)
        assert [entry.created_by for entry in store.steps.history_of_step(step)][1:] == ["RUN x"]
        assert store.mount(mount.id).layers == (*base.layers, mount.upper)
        store.remove_mount(mount.id)
        assert [row.id for row in store.steps.layers_of_step(step)] == [*base.layers, mount.upper]
        again = store.create_mount("again", image=None, step=step, config={"Cmd": ["sh"]}, ephemeral=True)
        assert (again.step, again.build, again.config) == (step, build.id, {"Cmd": ["sh"]})
        store.remove_mount(again.id)
    assert [image.id for image in store.images()] == [base.id]
    assert layer_directories(store) == set(base.layers)
