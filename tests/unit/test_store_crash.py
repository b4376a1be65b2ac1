"""Kill the process at every step of everything that changes the store, and look at what is left.

The steps are found from outside: a child process counts the audit events that Python raises (files
opened, directories made and moved, programs started) and the statements it sends to the database, and
kills itself with SIGKILL at the n-th.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.store import Store
from layerfs.store.database import Database

Action = Callable[[Store], object]


def dies_at(step: int, root: Path, action: Action) -> bool:
    """Run *action* in a child that kills itself at the given step; tell whether it got there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store = Store(root)
            count = 0

            def tick(*_: object) -> None:
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            original = Database.execute

            def execute(self: Database, *arguments: object) -> object:
                tick()
                result = original(self, *arguments)  # type: ignore[arg-type]
                tick()
                return result

            Database.execute = execute  # type: ignore[method-assign, assignment]
            sys.addaudithook(tick)
            action(store)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"step {step}: the child failed"
    return status != 0


def check(root: Path) -> None:
    """Recover, and assert that every row has its tree, every tree its row, and every image its files."""
    with Store(root) as store:
        deadline = time.monotonic() + 10
        while True:
            store.recover()
            owned = {layer for image in store.images() for layer in image.layers}
            owned |= {layer for mount in store.mounts() for layer in (*mount.layers, mount.upper) if layer}
            present = {path.name for path in (root / "layers").iterdir()}
            if present == owned or time.monotonic() > deadline:
                break
            time.sleep(0.02)  # the copy that the killed process had started still holds its tree
        assert present == owned
        for layer_id in owned:
            layer = store.layer(layer_id)
            assert layer.path.is_dir()
            assert layer.state in ("sealed", "active", "external")
        for image in store.images()[:1]:  # its layers are those of the older ones and one more
            assert list(store.verify(image.id)) == []
            assert len(store.history(image)) == len(image.layers)
        for mount in store.mounts():
            if mount.upper:
                upper = store.layer(mount.upper)
                assert (upper.state, upper.work is not None and upper.work.is_dir()) == ("active", True)
        assert store.recover() == []


def write(store: Store, text: str) -> None:
    upper = store.mount("m").upper
    assert upper is not None
    (store.layer(upper).path / "file").write_text(text)


def commit(store: Store) -> None:
    mount = store.mount("m")
    store.commit(mount, store.prepare_upper(mount), reference="committed")


def test_import(root: Path, tree: Path) -> None:
    step = 0
    Store(root).close()
    while dies_at(step := step + 1, root, lambda store: store.import_image(tree, "x")):
        check(root)
        with Store(root) as store:
            if store.images():  # killed after the transaction
                assert store.resolve("x").layers
                store.remove_image("x")
    assert step > 30
    check(root)


def test_import_of_an_archive(root: Path, tree: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-cf", tmp_path / "x.tar", "-C", tree, "."], check=True)
    Store(root).close()
    step = 0
    while dies_at(step := step + 1, root, lambda store: store.import_image(tmp_path / "x.tar", "x")):
        check(root)
        with Store(root) as store:
            if store.images():
                store.remove_image("x")
    assert step > 50


@pytest.mark.parametrize("outside", [False, True])
def test_commit(root: Path, tree: Path, tmp_path: Path, outside: bool) -> None:
    upper = (tmp_path / "upper", tmp_path / "work") if outside else None
    with Store(root) as store:
        image = store.import_image(tree, "x")
    step = done = 0
    killed = True
    while killed:
        for path in upper or ():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        with Store(root) as store:
            mount = store.create_mount("m", image=image, external_upper=upper)
            write(store, "precious")
        killed = dies_at(step := step + 1, root, commit)
        check(root)
        with Store(root) as store:
            if store.mount("m").layers == mount.layers:
                assert killed
                commit(store)  # it did not take place, and nothing stands in its way
            else:
                done += 1
            present = store.mount("m")
            assert present.layers == (*mount.layers, mount.upper)
            assert present.upper is not None
            assert list(store.layer(present.upper).path.iterdir()) == []
            top = store.layer(store.resolve("committed").layers[-1])
            assert (top.path / "file").read_text() == "precious"
            store.remove_image("committed")
            store.remove_mount(mount.id)
    assert step > 30
    assert done > 1


@pytest.mark.parametrize("outside", [False, True])
def test_mounts_come_and_go(root: Path, tree: Path, tmp_path: Path, outside: bool) -> None:
    upper = (tmp_path / "upper", tmp_path / "work") if outside else None
    for path in upper or ():
        path.mkdir()
    with Store(root) as store:
        image = store.import_image(tree, "x")

    def come_and_go(store: Store) -> None:
        store.remove_mount(store.create_mount("m", image=image, external_upper=upper).id)

    step = 0
    while dies_at(step := step + 1, root, come_and_go):
        check(root)
        with Store(root) as store:
            for mount in store.mounts():
                store.remove_mount(mount.id)
    check(root)
    assert step > 20


def test_removal(root: Path, tree: Path) -> None:
    step = 0
    killed = True
    while killed:
        with Store(root) as store:
            if not store.images():
                store.import_image(tree, "x")
        killed = dies_at(step := step + 1, root, lambda store: store.remove_image("x"))
        check(root)
    assert step > 10


def test_settling(root: Path, tree: Path) -> None:
    with Store(root) as store:
        store.create_mount("m", image=store.import_image(tree, "x"))
        write(store, "x")
        commit(store)
        layer = store.resolve("committed").layers[-1]
    step = 0
    while dies_at(step := step + 1, root, lambda store: store.settle_layer(layer)):
        with Store(root) as store:
            assert store.recover() == []
            if store.layer(layer).manifest_done:
                assert list(store.verify("committed")) == []
    assert step > 15
    check(root)


def test_recovery(root: Path, tree: Path) -> None:
    """Recovery itself may be killed as well."""

    def leave_rubbish() -> None:
        dies_at(12, root, lambda store: store.import_image(tree, "x"))
        (root / "layers" / ("0" * 64)).mkdir()
        (root / "layers" / ("1" * 64 + ".gone")).mkdir()

    Store(root).close()
    step = 0
    killed = True
    while killed:
        leave_rubbish()
        killed = dies_at(step := step + 1, root, lambda store: store.recover())
        check(root)
    assert step > 5


def test_random_moments(root: Path, tree: Path) -> None:
    """A process that does everything in turn is killed at any time; what it said was done, is."""
    with Store(root) as store:
        store.create_mount("m", image=store.import_image(tree, "x"))
    chance = random.Random(2)
    for _ in range(25):
        read, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(read)
                store = Store(root)
                while True:
                    write(store, "x")
                    commit(store)
                    os.write(write_end, f"{store.resolve('committed').id}\n".encode())
                    store.import_image(tree, "y")
                    other = store.create_mount("other", image=store.resolve("y"))
                    store.remove_mount(other.id)
                    store.remove_image("y")
            finally:
                os._exit(1)
        os.close(write_end)
        time.sleep(chance.uniform(0.005, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(read) as said:
            done = said.read().split()
        check(root)
        with Store(root) as store:
            known = {image.id for image in store.images()}
            assert set(done) <= known
            for mount in store.mounts():
                if mount.name == "other":
                    store.remove_mount(mount.id)
