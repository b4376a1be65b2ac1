"""Mounts and commits."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from layerfs.errors import BadRequest, Conflict, NoSpace, NotFound, StoreBusy
from layerfs.store import Store
from layerfs.store.database import Value
from layerfs.store.model import Image, Layer, Mount


def upper_of(store: Store, mount: Mount) -> Layer:
    upper = store.mount(mount.name).upper
    assert upper is not None
    return store.layer(upper)


def commit(store: Store, mount: Mount, **more: Any) -> Image:
    mount = store.mount(mount.id)
    return store.commit(mount, store.prepare_upper(mount), **{"reference": None, **more})


def test_a_new_upper_looks_like_the_root_below(store: Store, base: Image, mount: Mount, tree: Path) -> None:
    upper = upper_of(store, mount)
    assert (upper.state, upper.size, upper.manifest_done) == ("active", None, False)
    assert upper.work is not None
    assert upper.work.parent == upper.path.parent
    for path in (upper.path, store.layer(base.layers[0]).path):
        status, wanted = path.stat(), tree.stat()
        assert (status.st_mode, status.st_uid, status.st_mtime_ns) == (
            wanted.st_mode,
            wanted.st_uid,
            wanted.st_mtime_ns,
        )
    assert list(upper.path.iterdir()) == list(upper.work.iterdir()) == []


def test_mounts_are_found(store: Store, base: Image, mount: Mount) -> None:
    for reference in (mount.name, "/" + mount.name, mount.id, mount.id[:7]):
        assert store.mount(reference) == mount
    assert mount.image == base.id
    for reference in ("", "nobody", "0" * 64, "%"):
        with pytest.raises(NotFound, match=r"^no such mount: "):
            store.mount(reference)
    assert [found.id for found in store.mounts()] == [mount.id]


def test_what_a_mount_may_be(store: Store, base: Image, mount: Mount) -> None:
    directories = len(list((store.root / "layers").iterdir()))
    with pytest.raises(Conflict, match="the name base-container is taken"):
        store.create_mount("base-container", image=base)
    for name in ("", "-x", "a/b", "a b", "x" * 129):
        with pytest.raises(BadRequest, match="invalid name"):
            store.create_mount(name, image=base)
    with pytest.raises(BadRequest, match="at least one layer"):
        store.create_mount("empty", image=None)
    with pytest.raises(NotFound, match="no such layer"):
        store.create_mount("missing", image=None, layers=["0" * 64])
    assert len(list((store.root / "layers").iterdir())) == directories


def test_a_read_only_mount_cannot_be_committed(store: Store, base: Image) -> None:
    mount = store.create_mount("ro", image=base, writable=False, options={"ro": True})
    assert mount.upper is None
    assert mount.options == {"ro": True}
    with pytest.raises(Conflict, match="mounted read-only"):
        store.prepare_upper(mount)


def test_commit(store: Store, base: Image, mount: Mount) -> None:
    old = upper_of(store, mount)
    (old.path / "node").write_text("js")
    image = commit(
        store,
        mount,
        reference="node-base",
        comment="Add node",
        author="me",
        changes=['CMD ["node"]', "ENV A=1"],
        created_by="/bin/bash",
    )
    assert store.resolve("node-base") == image
    assert image.layers == (*base.layers, old.id)
    assert image.config == {"Cmd": ["node"], "Env": ["A=1"]}
    assert (image.parent, image.comment, image.author) == (base.id, "Add node", "me")
    assert [step.created_by for step in image.history][1:] == ["/bin/bash"]
    assert [step.layer for step in image.history] == list(image.layers)
    after = store.mount(mount.id)
    assert (after.image, after.layers, after.config) == (base.id, image.layers, {})
    new = upper_of(store, mount)
    assert (new.id != old.id, new.state, store.layer(old.id).state) == (True, "active", "sealed")
    assert (store.layer(old.id).path, store.layer(old.id).work) == (old.path, None)
    assert (old.path / "node").read_text() == "js"
    assert stat.S_IMODE(new.path.stat().st_mode) == 0o751
    again = commit(store, mount)
    assert again.layers == (*image.layers, new.id)
    assert (again.parent, again.tags) == (image.id, ())
    assert [layer.id for layer in store.layers_of(again)] == list(again.layers)


def test_a_rehearsed_commit_leaves_nothing(store: Store, mount: Mount) -> None:
    def everything() -> list[str]:
        return list(store.database.connection.iterdump())

    (upper_of(store, mount).path / "file").write_text("written")
    before, journal = everything(), (store.root / "layerfs.db-wal").read_bytes()
    new = store.prepare_upper(mount)
    for _ in range(2):
        store.rehearse_commit(mount, new)
    assert everything() == before
    assert (store.root / "layerfs.db-wal").read_bytes() == journal
    image = store.commit(mount, new, reference="made")
    assert store.resolve("made").id == image.id
    with pytest.raises(NotFound):
        store.resolve("rehearsal")


def test_a_rehearsal_waits_for_no_other_writer(store: Store, mount: Mount) -> None:
    new = store.prepare_upper(mount)
    with Store(store.root) as other, other.database.transaction(), pytest.raises(StoreBusy):
        store.rehearse_commit(mount, new)
    store.rehearse_commit(mount, new)
    store.abandon_upper(mount, new)


def test_a_bad_commit_changes_nothing(store: Store, mount: Mount) -> None:
    prepared = store.prepare_upper(mount)
    before = store.mount(mount.id), store.images(), store.events()
    bad: list[tuple[str | None, list[str]]] = [("Bad Name", []), (None, ["RUN x"]), ("a@b", [])]
    for reference, changes in bad:
        with pytest.raises(BadRequest):
            store.check_commit(reference, changes)
        with pytest.raises(BadRequest):
            store.commit(mount, prepared, reference=reference, changes=changes)
    store.check_commit("good:1", ["CMD x"])
    assert (store.mount(mount.id), store.images(), store.events()) == before
    store.commit(mount, prepared, reference="good:1")
    with pytest.raises(Conflict, match="was not prepared"):
        store.commit(store.mount(mount.id), prepared, reference=None)
    with pytest.raises(Conflict, match="committed since"):
        store.prepare_upper(mount)


def test_an_abandoned_upper_leaves_nothing(store: Store, mount: Mount) -> None:
    before = sorted((store.root / "layers").iterdir())
    prepared = store.prepare_upper(mount)
    assert prepared.path.is_dir()
    assert store.recover() == []
    assert prepared.path.is_dir()
    store.abandon_upper(mount, prepared)
    assert sorted((store.root / "layers").iterdir()) == before
    assert commit(store, mount).layers[-1] == mount.upper


def test_commit_never_waits_for_another_writer(store: Store, mount: Mount) -> None:
    prepared = store.prepare_upper(mount)
    writer = sqlite3.connect(store.root / "layerfs.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        started = time.monotonic()
        with pytest.raises(StoreBusy, match="try again"):
            store.commit(mount, prepared, reference="x")
        assert time.monotonic() - started < 0.1
    finally:
        writer.close()
    image = store.commit(mount, prepared, reference="x")
    assert image.layers[-1] == mount.upper


def test_commit_takes_no_longer_for_a_large_upper(store: Store, mount: Mount) -> None:
    def fastest(files: int) -> float:
        times = []
        for _ in range(5):
            present = store.mount(mount.id)
            upper = upper_of(store, present)
            for number in range(files):
                (upper.path / str(number)).write_bytes(b"x" * 100)
            prepared = store.prepare_upper(present)
            started = time.perf_counter()
            store.commit(present, prepared, reference="x")
            times.append(time.perf_counter() - started)
        return min(times)

    fastest(1)
    assert fastest(4000) < 0.02  # a stat of each of so many files alone takes longer than that


def test_removing_a_mount_takes_its_upper(store: Store, base: Image, mount: Mount) -> None:
    upper = upper_of(store, mount)
    (upper.path / "sub").mkdir()
    (upper.path / "sub/file").write_text("x")
    store.remove_mount(mount.id)
    assert not upper.path.parent.exists()
    assert store.resolve("debian:12").id == base.id
    assert store.layer(base.layers[0]).path.is_dir()
    for call in (store.remove_mount, store.set_unmounted):
        with pytest.raises(NotFound):
            call(mount.id)
    store.create_mount(mount.name, image=base)


def test_plain_directories_as_layers(store: Store, tmp_path: Path) -> None:
    lowers = [tmp_path / "a", tmp_path / os.fsdecode(b"b\xff")]
    for lower in lowers:
        lower.mkdir()
        (lower / "file").write_text("12345")
    ids = [store.external_layer(lower).id for lower in lowers]
    assert [store.external_layer(lower).id for lower in lowers] == ids
    mount = store.create_mount("plain", image=None, layers=ids)
    assert [layer.path for layer in store.layers_of(mount)] == lowers
    image = commit(store, mount, reference="plain")
    assert store.image_size(image) == 10
    assert len(store.history(image)) == 3
    store.remove_mount(mount.id)
    store.remove_image("plain")
    assert list((store.root / "layers").iterdir()) == []
    assert all((lower / "file").is_file() for lower in lowers)


def test_bad_layers(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot read the layer: No such file"):
        store.external_layer(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match="is not a directory"):
        store.external_layer(tmp_path / "file")


@pytest.fixture
def outside(tmp_path: Path) -> tuple[Path, Path]:
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir(mode=0o711)
    work.mkdir()
    return upper, work


def test_an_upper_outside_the_store(store: Store, base: Image, outside: tuple[Path, Path]) -> None:
    mount = store.create_mount("out", image=base, external_upper=outside)
    first = upper_of(store, mount)
    assert (first.path, first.work, first.state) == (*outside, "active")
    (outside[0] / "one").write_text("1")
    held = os.open(outside[0], os.O_RDONLY)
    try:
        image = commit(store, mount, reference="one")
        assert os.listdir(held) == ["one"]
    finally:
        os.close(held)
    sealed = store.layer(image.layers[-1])
    assert sealed.path == store.root / "layers" / first.id / "fs"
    assert [path.name for path in sealed.path.iterdir()] == ["one"]
    assert list(outside[0].iterdir()) == []
    assert stat.S_IMODE(outside[0].stat().st_mode) == 0o711
    second = upper_of(store, mount)
    assert (second.path, second.work) == outside
    (outside[0] / "two").write_text("2")
    store.abandon_upper(store.mount("out"), store.prepare_upper(store.mount("out")))
    image = commit(store, mount, reference="two")
    assert (store.layer(image.layers[-1]).path / "two").read_text() == "2"
    (outside[0] / "three").write_text("3")
    store.remove_mount(mount.id)
    assert (outside[0] / "three").read_text() == "3"
    assert store.recover() == []


def test_uppers_in_use(store: Store, base: Image, outside: tuple[Path, Path], tmp_path: Path) -> None:
    store.create_mount("out", image=base, external_upper=outside)
    (tmp_path / "other").mkdir()
    for pair in (outside, (outside[0], tmp_path / "other"), (tmp_path / "other", outside[1])):
        with pytest.raises(Conflict, match="in use by the mount out"):
            store.create_mount("second", image=base, external_upper=pair)
    lower = store.external_layer(tmp_path / "other")
    store.create_mount("third", image=None, layers=[lower.id])
    (tmp_path / "w").mkdir()
    with pytest.raises(Conflict, match="in use as a layer"):
        store.create_mount("second", image=base, external_upper=(tmp_path / "other", tmp_path / "w"))
    with pytest.raises(BadRequest, match="is not a directory"):
        store.create_mount("second", image=base, external_upper=(tmp_path / "none", tmp_path / "w"))
    with pytest.raises(BadRequest, match="side by side"):
        store.create_mount("second", image=base, external_upper=(tmp_path, tmp_path / "w"))
    with pytest.raises(Conflict, match="in use by the mount out"):
        store.create_mount("second", image=base, writable=False, external_upper=outside)


def test_an_upper_that_is_only_read_needs_no_work_directory(
    store: Store, base: Image, outside: tuple[Path, Path]
) -> None:
    upper, work = outside
    with pytest.raises(BadRequest, match="no work directory"):
        store.create_mount("out", image=base, external_upper=(upper, None))
    mount = store.create_mount(
        "out", image=base, writable=False, external_upper=(upper, None), options={"ro": True}
    )
    with pytest.raises(Conflict, match="mounted read-only"):
        store.prepare_upper(mount)
    with pytest.raises(BadRequest, match="no work directory"):
        store.set_options(mount.id, {}, None)
    store.set_options(mount.id, {}, work)
    mount = store.mount("out")
    assert mount.options == {}
    assert mount.upper is not None
    assert store.layer(mount.upper).work == work


def test_a_commit_that_fails_gives_the_upper_back(
    store: Store, base: Image, outside: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = store.create_mount("out", image=base, external_upper=outside)
    (outside[0] / "one").write_text("1")
    prepared = store.prepare_upper(mount)

    database = store._db
    execute = database.execute

    def fail_once(sql: str, values: Sequence[Value] = ()) -> sqlite3.Cursor:
        """Do what `Database.execute` does, but for one COMMIT, as on a full disk."""
        if sql == "COMMIT":
            monkeypatch.undo()
            raise NoSpace("the disk is full")
        return execute(sql, values)

    monkeypatch.setattr(database, "execute", fail_once)
    with pytest.raises(NoSpace):
        store.commit(mount, prepared, reference="one")
    assert (outside[0] / "one").read_text() == "1"
    assert upper_of(store, mount).path == outside[0]
    image = store.commit(mount, prepared, reference="one")
    assert (store.layer(image.layers[-1]).path / "one").read_text() == "1"


def test_a_commit_waits_while_a_recovery_looks_at_its_upper(
    store: Store, base: Image, outside: tuple[Path, Path]
) -> None:
    mount = store.create_mount("out", image=base, external_upper=outside)
    assert mount.upper is not None
    lock = os.open(store.root / "layers" / mount.upper, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as recovery takes it, in another command
    release = threading.Timer(0.2, os.close, [lock])
    release.start()
    prepared = store.prepare_upper(mount)
    release.join()
    store.commit(mount, prepared, reference="committed")
    assert store.resolve("committed").layers[-1] == mount.upper
