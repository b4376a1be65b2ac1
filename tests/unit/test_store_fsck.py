"""Damage is planted in a store, and `layerfs fsck` finds it; what is sound, or at work, it leaves alone."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.errors import LayerfsError
from layerfs.store import Store, layers
from layerfs.store.model import Image
from tests.unit.test_store_usage import committed


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory of the test's own."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))


@pytest.fixture
def image(store: Store, base: Image) -> Image:
    """The image "one": "debian:12" and a commit of the mount "m", all of it settled."""
    store.create_mount("m", image=base)
    image = committed(store, "m", 100, "one")
    store.settle_layer(image.layers[-1])
    return image


def lines(store: Store, **how: bool) -> list[str]:
    return [f"{problem.subject}: {problem.what}" for problem in store.check(**how)]


def test_a_sound_store_has_no_problems(store: Store, image: Image) -> None:
    assert lines(store) == lines(store, contents=True) == lines(store, repair=True) == []


def test_an_empty_store_has_no_problems(store: Store) -> None:
    assert lines(store, contents=True) == []


def test_directories_that_links_lead_to_are_there(store: Store, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / "there" / name).mkdir(parents=True)
        (tmp_path / name).symlink_to(f"there/{name}")
    lower = store.external_layer(tmp_path / "lower")
    upper = tmp_path / "upper", tmp_path / "work"
    store.create_mount("m", image=None, layers=[lower.id], external_upper=upper)
    assert lines(store) == []
    (tmp_path / "there/lower").rmdir()
    assert lines(store) == [f"layer {lower.id[:12]}: its tree {tmp_path / 'lower'} is missing"]


Plant = Callable[[Store, Image], object]


def top(store: Store, image: Image) -> Path:
    """Return the directory of the image's topmost layer."""
    return layers.directory(store.database, image.layers[-1])


def sql(text: str) -> Plant:
    def plant(store: Store, image: Image) -> None:
        store.database.execute("PRAGMA foreign_keys = OFF")
        store.database.execute(text, (image.id,) if "?" in text else ())
        store.database.execute("PRAGMA foreign_keys = ON")

    return plant


def swap_tree_for_link(store: Store, image: Image) -> None:
    tree = top(store, image) / "fs"
    tree.rename(tree.with_name("elsewhere"))
    tree.symlink_to("elsewhere")


DAMAGE: dict[str, tuple[Plant, str]] = {
    "a tag of no image": (
        sql("INSERT INTO tags VALUES ('a:b', 'c')"),
        "a row of the table tags refers to a row of images that is not there",
    ),
    "an image changed in place": (
        sql("UPDATE images SET author = 'Mallory' WHERE id = ?"),
        "its id is not the digest of what it says",
    ),
    "a configuration that is no object": (
        sql("UPDATE images SET config = '[1]' WHERE id = ?"),
        "its configuration is not a JSON object",
    ),
    "a configuration that is no JSON": (
        sql("UPDATE images SET config = '{' WHERE id = ?"),
        "its configuration is not a JSON object",
    ),
    "a document that is another one": (
        sql("UPDATE images SET document = x'00', digest = id WHERE id = ?"),
        "its document does not have the digest noted for it",
    ),
    "a step changed in place": (
        sql("UPDATE steps SET comment = 'other' WHERE parent IS NOT NULL"),
        "its id is not the digest of what it says",
    ),
    "an upper that is sealed": (
        sql("UPDATE layers SET state = 'sealed' WHERE state = 'active'"),
        "its upper is sealed",
    ),
    "a layer of a history that is active": (
        sql("UPDATE layers SET state = 'active' WHERE state = 'sealed'"),
        "is still being written to",
    ),
    "a mount with a path for a name": (
        sql("UPDATE mounts SET name = '../../etc'"),
        "'../../etc' is no name for a mount",
    ),
    "options that are no object": (sql("UPDATE mounts SET options = '7'"), "its options are not"),
    "a layer's directory is missing": (lambda store, image: top(store, image).rename("gone"), "is missing"),
    "a tree is missing": (
        lambda store, image: (top(store, image) / "fs").rename("gone"),
        "is missing",
    ),
    "a tree is a link": (swap_tree_for_link, "is missing"),
    "a work directory is missing": (
        lambda store, image: (
            layers.directory(store.database, store.mount("m").upper or "") / "work"
        ).rmdir(),
        "its work directory",
    ),
    "a manifest is missing": (
        lambda store, image: (top(store, image) / "manifest").unlink(),
        "manifest is missing",
    ),
    "a manifest is cut short": (
        lambda store, image: os.truncate(top(store, image) / "manifest", 40),
        "manifest is damaged",
    ),
    "something that layerfs did not put there": (
        lambda store, image: (top(store, image) / "notes.txt").touch(),
        "notes.txt has no place in its directory",
    ),
    "a file among the layers": (
        lambda store, image: (store.root / "layers/abc").write_text("a note"),
        "no row names it",
    ),
    "a store that others may change": (
        lambda store, image: store.root.chmod(0o777),
        "others than its owner may change it",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_no_repair_hides_it(
    store: Store, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    plant, line = DAMAGE[name]
    plant(store, image)
    before = lines(store)
    assert any(line in found for found in before), before
    after = [problem for problem in store.check(repair=True) if line in problem.what]
    assert after
    assert not after[0].repaired
    assert all(problem.remedy for problem in after)


def test_a_changed_file_is_found_when_contents_are_read(store: Store, image: Image) -> None:
    file = top(store, image) / "fs/file100"
    file.write_bytes(b"longer than it was" * 10)
    assert lines(store) == []
    found = lines(store, contents=True)
    assert [line.partition(": ")[2] for line in found] == [
        "file100: mtime " + found[0].partition("mtime ")[2],
        "has 180 bytes, and had 100",
    ]


LEFTOVERS: dict[str, Plant] = {
    "a tree that no row names": lambda store, image: (store.root / "layers/abc/fs").mkdir(parents=True),
    "a removal cut short": lambda store, image: (store.root / "layers/abc.gone/fs").mkdir(parents=True),
    "a manifest that was not finished": lambda store, image: (top(store, image) / "manifest.tmp").touch(),
    "scratch": lambda store, image: (store.root / "tmp/abc").mkdir(parents=True),
    "a container's directory": lambda store, image: (store.root / "containers/abc").mkdir(parents=True),
    "a step that nothing refers to": sql(
        "INSERT INTO steps SELECT hex(randomblob(32)), id, NULL, 0, '', '', '' FROM steps LIMIT 1"
    ),
    "a layer that nothing refers to": sql(
        "INSERT INTO layers (id, state, created) VALUES (hex(randomblob(32)), 'sealed', 0)"
    ),
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_are_found_and_repaired(store: Store, image: Image, name: str) -> None:
    LEFTOVERS[name](store, image)
    assert lines(store) != []
    found = [problem for problem in store.check(repair=True) if not problem.repaired]
    assert [
        problem for problem in found if "digest" not in problem.what and "missing" not in problem.what
    ] == []
    assert lines(store, contents=True) == []
    assert store.resolve("one").id == image.id


def test_what_somebody_is_making_is_no_problem(store: Store, image: Image) -> None:
    made = layers.begin(store.database, "fs")
    scratch = store.root / "tmp/abc"
    scratch.mkdir(parents=True)
    lock = os.open(scratch, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert lines(store) == []
    finally:
        os.close(lock)
        layers.discard(store.database, made)
        scratch.rmdir()


def test_a_damaged_database_file_is_one_line(root: Path, store: Store, image: Image) -> None:
    store.close()
    with sqlite3.connect(root / "layerfs.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'layers'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with (root / "layerfs.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    try:
        with Store(root) as damaged:
            found = lines(damaged)
    except LayerfsError as error:
        found = [str(error)]
    assert found
    assert all("SQLite says" in line or "damaged" in line for line in found), found
