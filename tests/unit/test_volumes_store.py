"""Volumes in the store: names, options, uses, removal, recovery."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import BadRequest, Conflict, NotFound
from layerfs.store import Store, volumes
from layerfs.store.model import Mount
from tests.unit.control_support import make_tree


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        store.import_image(make_tree(tmp_path / "tree"), "base")
        yield store


def container(store: Store, name: str) -> Mount:
    return store.create_mount(name, image=store.resolve("base"), options={"container": {"Binds": []}})


def test_a_volume_is_a_directory_of_the_store(store: Store) -> None:
    made = store.volumes.create("data", labels={"a": "b"})
    assert made.path == store.root / "volumes/data/_data"
    assert made.path.is_dir()
    assert (made.labels, made.options, made.anonymous) == ({"a": "b"}, {}, False)
    assert store.volumes.find("data") == made
    assert store.volumes.create("data", labels={"other": "labels"}) == made
    assert [event.action for event in store.events() if event.type == "volume"] == ["create"]
    with pytest.raises(NotFound, match="get other: no such volume"):
        store.volumes.find("other")


def test_one_without_a_name_gets_one(store: Store) -> None:
    made = store.volumes.create()
    assert len(made.name) == 64
    assert made.anonymous
    assert made.labels == {"com.docker.volume.anonymous": ""}
    assert store.volumes.create().name != made.name


@pytest.mark.parametrize(
    "name", ["a", "a b", "-x", ".x", "_x", "a/b", "/a", "../a", "x" * 231, "ä", "ab\n", "a\0b"]
)
def test_bad_names(store: Store, name: str) -> None:
    with pytest.raises(BadRequest, match=r"^create "):
        store.volumes.create(name)
    assert store.volumes.every() == []
    assert not (store.root / "volumes").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foo": "bar"}, 'invalid option: "foo"'),
        ({"size": "10G"}, "quota size requested but no quota support"),
        ({"type": "nfs"}, 'missing required option: "device"'),
        ({"device": "/dev/sda"}, 'missing required option: "type"'),
        ({"o": "ro"}, 'missing required option: "device"'),
        ({"o": "ro", "device": "x", "type": ""}, 'missing required option: "type"'),
    ],
)
def test_bad_options(store: Store, options: dict[str, str], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        store.volumes.create("data", options=options)


def test_a_volume_in_use_stays(store: Store) -> None:
    store.volumes.create("data")
    mount = container(store, "c")
    store.volumes.claim(mount.id, "/data", "data")
    store.volumes.claim(mount.id, "/data", "data")
    with pytest.raises(Conflict, match=rf"remove data: volume is in use - \[{mount.id}\]"):
        store.volumes.remove("data")
    assert store.volumes.prune(lambda volume: True) == ([], 0)
    store.remove_mount(mount.id)
    store.volumes.remove("data")
    assert list((store.root / "volumes").iterdir()) == []
    with pytest.raises(NotFound):
        store.volumes.remove("data")
    with pytest.raises(NotFound):
        store.volumes.claim(mount.id, "/data", "data")


def test_volumes_without_a_name_go_with_their_container(store: Store) -> None:
    one, two = container(store, "one"), container(store, "two")
    own, shared, named = store.volumes.create(), store.volumes.create(), store.volumes.create("named")
    for destination, volume in (("/own", own), ("/shared", shared), ("/named", named)):
        store.volumes.claim(one.id, destination, volume.name)
    store.volumes.claim(two.id, "/shared", shared.name)
    store.remove_mount(one.id, volumes=True)
    assert {volume.name for volume in store.volumes.every()} == {shared.name, "named"}
    store.remove_mount(two.id)
    assert {volume.name for volume in store.volumes.every()} == {shared.name, "named"}


def test_who_has_a_volume_mounted_is_known_for_this_boot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.volumes.create("data")
    one, two = container(store, "one"), container(store, "two")
    for mount in (one, two):
        store.volumes.claim(mount.id, "/data", "data")
        store.volumes.set_up(mount.id, "/data")
    assert store.volumes.set_down(one.id) == []
    assert store.volumes.is_up("data")
    assert store.volumes.set_down(two.id) == ["data"]
    assert store.volumes.set_down(two.id) == []
    assert [event.action for event in store.events() if event.type == "volume"] == [
        "create", "mount", "mount", "unmount", "unmount",
    ]  # fmt: skip
    store.volumes.set_up(one.id, "/data")
    monkeypatch.setattr(volumes, "boot_id", lambda: "another")
    assert not store.volumes.is_up("data")


def test_prune_tells_what_it_freed(store: Store) -> None:
    (store.volumes.create("big").path / "file").write_bytes(bytes(1000))
    store.volumes.create("kept", labels={"keep": ""})
    gone, freed = store.volumes.prune(lambda volume: "keep" not in volume.labels)
    assert ([volume.name for volume in gone], freed) == (["big"], 1000)


def test_a_removal_that_was_cut_short_before_its_commit_is_undone(store: Store) -> None:
    made = store.volumes.create("data-01234567")
    (made.path / "file").write_text("precious")
    made.path.parent.rename(made.path.parent.with_name(".removed-data-01234567-89abcdef"))
    assert [problem.subject for problem in store.check()] == ["volume data-01234567"]
    assert store.recover() == ["put back the volume data-01234567, whose removal was cut short"]
    assert (made.path / "file").read_text() == "precious"
    assert list(store.check()) == []


def test_a_removal_that_was_cut_short_after_its_commit_is_finished(store: Store) -> None:
    left = store.root / "volumes/.removed-data-89abcdef"
    (left / "_data").mkdir(parents=True)
    store.volumes.create("data")
    assert store.recover() == [f"removed {left}: its volume is gone"]
    assert not left.exists()
    assert store.volumes.find("data").path.is_dir()


def test_a_removal_that_fails_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store.volumes.create("data")
    (made.path / "file").write_text("precious")

    def fail(*arguments: object, **more: object) -> None:
        raise Conflict("no")

    with monkeypatch.context() as patch:
        patch.setattr(volumes.Volumes, "record", fail)
        with pytest.raises(Conflict, match="no"):
            store.volumes.remove("data")
    assert (store.volumes.find("data").path / "file").read_text() == "precious"


def test_fsck_knows_volumes(store: Store) -> None:
    made = store.volumes.create("data")
    made.path.rmdir()
    assert [(it.subject, it.what) for it in store.check()] == [
        ("volume data", f"its directory {made.path} is missing")
    ]
    made.path.mkdir()
    (store.root / "volumes/stranger/_data").mkdir(parents=True)
    assert [(it.subject, it.what) for it in store.check()] == [("volumes/stranger", "no row names it")]
    store.volumes.create("stranger")
    store.database.execute("UPDATE volumes SET labels = '7' WHERE name = 'data'")
    assert [it.what for it in store.check()] == ["its labels are not a JSON object of texts"]


def test_recovery_removes_what_a_creation_that_was_killed_has_made(store: Store) -> None:
    store.volumes.create("data")
    for name in ("begun", "made/_data", "kept/_data"):
        (store.root / "volumes" / name).mkdir(parents=True)
    (store.root / "volumes/kept/_data/file").touch()
    store.recover()
    assert sorted(os.listdir(store.root / "volumes")) == ["data", "kept"]


def test_a_volume_whose_directory_is_gone_can_be_removed(store: Store) -> None:
    made = store.volumes.create("data")
    made.path.rmdir()
    made.path.parent.rmdir()
    store.volumes.remove("data")
    assert store.volumes.every() == []
