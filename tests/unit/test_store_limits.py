"""What a store must bear: newer versions, other processes, full disks, damage."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import Conflict, LayerfsError, NoSpace, NotFound
from layerfs.store import Store, marks
from layerfs.store.model import Image, Mount
from layerfs.store.schema import MIGRATIONS
from layerfs.union.marking import USER, Trust, trust_in_others

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")


def test_a_new_store(root: Path) -> None:
    with pytest.raises(NotFound, match=f"no store at {root}"):
        Store(root, create=False)
    assert not root.exists()
    with Store(root) as store:
        assert (store.images(), store.mounts(), store.recover()) == ([], [], [])
    assert (root.stat().st_mode & 0o777, (root / "layers").stat().st_mode & 0o777) == (0o700, 0o700)
    Store(root, create=False).close()


def test_a_store_of_a_newer_version(root: Path) -> None:
    Store(root).close()
    known = len(MIGRATIONS)
    database = sqlite3.connect(root / "layerfs.db", isolation_level=None)
    database.execute(f"PRAGMA user_version = {known + 6}")
    database.execute("UPDATE compatible SET version = ?", (known + 1,))
    database.close()
    with pytest.raises(Conflict) as caught:
        Store(root)
    assert str(caught.value) == (
        f"store {root} is of version {known + 6}, this layerfs knows {known}: upgrade layerfs"
        " (a mount of an older one goes on; unmount it and mount it again to commit)"
    )


def test_a_store_to_which_a_newer_version_has_only_added_is_used(
    root: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the daemon of a mount does that was there before layerfs was upgraded."""
    added = ("CREATE TABLE extra (a TEXT)", "ALTER TABLE images ADD COLUMN more TEXT")
    with Store(root) as store:
        base = store.import_image(tree, "base:1")
        mount = store.create_mount("m", image=base)
    with monkeypatch.context() as patch:
        patch.setattr("layerfs.store.database.MIGRATIONS", (*MIGRATIONS, added))
        Store(root).close()
    with Store(root) as store:
        upper = store.prepare_upper(mount)
        image = store.commit(mount, upper, reference="made:1")
        assert store.resolve("made:1").id == image.id
    with monkeypatch.context() as patch:
        patch.setattr("layerfs.store.database.MIGRATIONS", (*MIGRATIONS, added, ("DROP TABLE extra",)))
        patch.setattr("layerfs.store.database.COMPATIBLE", len(MIGRATIONS) + 2)
        Store(root).close()
    with pytest.raises(Conflict, match="upgrade layerfs"):
        Store(root)


def test_a_migration_that_fails_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(root).close()
    with monkeypatch.context() as patch:
        newer = (*MIGRATIONS, ("CREATE TABLE extra (a TEXT)", "NOT SQL"))
        patch.setattr("layerfs.store.database.MIGRATIONS", newer)
        with pytest.raises(LayerfsError):
            Store(root)
    with Store(root):
        pass
    with monkeypatch.context() as patch:
        patch.setattr("layerfs.store.database.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE extra (a TEXT)",)))
        patch.setattr("layerfs.store.database.COMPATIBLE", len(MIGRATIONS) + 1)
        Store(root).close()
    with pytest.raises(Conflict, match="upgrade layerfs"):
        Store(root)


def test_an_upper_outside_of_an_older_store_is_trusted_as_one_of_today(
    store: Store, base: Image, tmp_path: Path
) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    outside = tmp_path / "upper", tmp_path / "work"
    today = store.create_mount("outside", image=base, external_upper=outside).upper
    own = store.create_mount("own", image=base).upper
    assert today is not None
    assert own is not None
    now = store.layer(today)
    with store.database.transaction():
        store.database.execute("UPDATE layers SET outside = 0, prefix = NULL")
        for table in (
            "checkpoints",
            "build_cache",
            "build_steps",
            "builds",
            "digests",
            "compatible",
            "volume_uses",
            "volumes",
            "ports",
            "endpoints",
            "networks",
            "step_changes",
            "squashed",
            "rebased",
        ):  # of later versions
            store.database.execute(f"DROP TABLE {table}")
        store.database.execute("ALTER TABLE mounts DROP COLUMN build")
        store.database.execute("ALTER TABLE layers DROP COLUMN plain")
        store.database.execute("PRAGMA user_version = 4")
    with Store(store.root) as migrated:
        then = migrated.layer(today)
        assert (then.prefix, migrated.layer(own).outside) == (None, False)
        assert marks.trust(then, USER) == marks.trust(now, USER) == trust_in_others()
        assert marks.trust(migrated.layer(own), USER) == Trust.ALL


@pytest.mark.parametrize("damage", [b"this is not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database(root: Path, damage: bytes) -> None:
    root.mkdir()
    (root / "layerfs.db").write_bytes(damage)
    with pytest.raises(LayerfsError) as caught:
        Store(root)
    assert "\n" not in str(caught.value)
    assert (root / "layerfs.db").read_bytes() == damage


def test_a_root_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file/store"):
        with pytest.raises(LayerfsError, match="cannot open the store"):
            Store(path)


def _work(root: Path, tree: Path, number: int, failures: multiprocessing.Queue[str]) -> None:
    try:
        with Store(root) as store:
            for turn in range(6):
                image = store.import_image(tree / "etc", f"p{number}:{turn}")
                mount = store.create_mount(f"m{number}-{turn}", image=image)
                for _ in range(3):
                    mount = store.mount(mount.id)
                    prepared = store.prepare_upper(mount)
                    while True:
                        try:
                            store.commit(mount, prepared, reference=f"c{number}")
                            break
                        except LayerfsError as error:
                            if error.http_status != 503:
                                raise
                store.recover()
                store.history(store.resolve(f"c{number}"))
                store.remove_mount(mount.id)
                store.remove_image(f"p{number}:{turn}", force=True)
    except BaseException as error:
        failures.put(f"{number}: {error!r}")
        raise


def test_many_processes_at_once(root: Path, tree: Path) -> None:
    """They even race for making the store; none disturbs what another is making."""
    context = multiprocessing.get_context("fork")
    failures: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_work, args=(root, tree, number, failures)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
        if worker.is_alive():
            worker.kill()
    assert [worker.exitcode for worker in workers] == [0] * 6, failures.get(timeout=1)
    with Store(root) as store:
        assert store.recover() == []
        assert {tag for image in store.images() for tag in image.tags} == {f"c{n}:latest" for n in range(6)}
        owned = {layer for image in store.images() for layer in image.layers}
        assert {path.name for path in (root / "layers").iterdir()} == owned


def test_recovery_leaves_a_layer_that_is_being_made(store: Store, mount: Mount) -> None:
    prepared = store.prepare_upper(mount)
    with Store(store.root) as other:
        assert other.recover() == []
    store.commit(mount, prepared, reference="x")


def test_recovery_names_what_it_does(store: Store, mount: Mount) -> None:
    (store.root / "layers" / ("a" * 64)).mkdir()
    (store.root / "layers" / ("a" * 64) / "fs/half").mkdir(parents=True)
    with store.database.transaction():
        store.database.execute("INSERT INTO removable (layer) VALUES (?)", ("a" * 64,))
    (store.root / "layers/stray").write_text("x")
    assert mount.upper is not None
    upper = store.layer(mount.upper).path
    upper.rename(upper.with_name("moved"))
    done = store.recover()
    assert len(done) == 2
    assert "has lost its tree" in done[0]
    assert "removed aaaaaaaaaaaa" in done[1]
    assert (store.root / "layers/stray").read_text() == "x"  # not of layerfs' making
    upper.with_name("moved").rename(upper)
    assert store.recover() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a filesystem of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "layerfs-test", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as filler:
        for size in (65536, 4096):
            try:
                while filler.write(b"x" * size):
                    pass
            except OSError:
                continue


@needs_root
@pytest.mark.root
def test_an_import_that_does_not_fit(small_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(4 << 20))
    with tarfile.open(tmp_path / "big.tar", "w") as archive:
        archive.add(source, ".")
    with Store(small_disk / "store") as store:
        for path in (source, tmp_path / "big.tar"):
            with pytest.raises(NoSpace, match="No space left") as caught:
                store.import_image(path, "x")
            assert "file" in str(caught.value)
            assert store.images() == []
            assert list((store.root / "layers").iterdir()) == []
        (source / "file").write_bytes(b"small")
        store.import_image(source, "x")


@needs_root
@pytest.mark.root
def test_commits_on_a_full_disk(small_disk: Path, tree: Path) -> None:
    """Each commit takes place or says that there is no space, and in both cases nothing is lost."""
    (tree / "sparse").unlink()
    with Store(small_disk / "store") as store:
        mount = store.create_mount("m", image=store.import_image(tree, "base"))
        assert mount.upper is not None
        (store.layer(mount.upper).path / "file").write_text("precious")
        fill(small_disk)
        done: list[Image] = []
        failed = ""
        while not failed and len(done) < 500:
            mount = store.mount("m")
            try:
                prepared = store.prepare_upper(mount)
            except NoSpace as error:
                failed = str(error)
                break
            try:
                done.append(store.commit(mount, prepared, reference="x", comment="c" * 3000))
            except NoSpace as error:
                failed = str(error)
                store.abandon_upper(mount, prepared)
        assert "o space left" in failed
        assert store.mount("m") == mount
        assert [image.id for image in store.images()] == [
            *(image.id for image in reversed(done)),
            store.resolve("base").id,
        ]
        (small_disk / "filler").unlink()
        image = store.commit(mount, store.prepare_upper(mount), reference="x")
        assert (store.layer(image.layers[1]).path / "file").read_text() == "precious"
        assert store.recover() == []
        assert list(store.verify("x")) == []
