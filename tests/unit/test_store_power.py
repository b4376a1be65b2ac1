"""What a power cut can leave in a store: rows without what they name, trees without rows, layers not whole.

The states are put together by hand; `tests/system/test_durability.py` makes some with a disk.
"""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfs import oci
from layerfs.store import Store, layers, settle
from layerfs.store.model import Image, Mount
from layerfs.union.trees import exchange


@contextmanager
def rows_lost(root: Path) -> Iterator[Store]:
    """Have the database end as it was, whatever is written in the block: a journal that was never synced."""
    with Store(root) as store:
        store.database.fold_in()
        shutil.copy(root / "layerfs.db", root.parent / "before.db")
        yield store
    os.replace(root.parent / "before.db", root / "layerfs.db")


@pytest.fixture
def next_boot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that starts the machine anew."""

    def boot() -> None:
        identity = str(uuid.uuid4())
        monkeypatch.setattr(layers, "boot_id", lambda: identity)

    return boot


def upper_of(store: Store, name: str) -> Path:
    upper = store.mount(name).upper
    assert upper is not None
    return store.layer(upper).path


def commit(store: Store, name: str, reference: str) -> str:
    """Commit a mount; return the layer that this sealed."""
    mount = store.mount(name)
    store.commit(mount, store.prepare_upper(mount), reference=reference)
    assert mount.upper is not None
    return mount.upper


def lost(root: Path) -> list[Path]:
    return [path for path in (root / "layers").iterdir() if path.name.endswith(layers.LOST)]


# -- trees without rows


def test_a_tree_that_somebody_wrote_to_is_set_aside(root: Path, base: Image, store: Store) -> None:
    store.close()
    with rows_lost(root) as changed:
        changed.create_mount("m", image=base)
        (upper_of(changed, "m") / "file").write_text("precious")
    with Store(root) as after:
        (line,) = after.recover()
        (place,) = lost(root)
        assert line == f"set aside {place}: the database does not know it; `layerfs fsck` says what it is"
        assert (place / "fs/file").read_text() == "precious"
        assert after.recover() == []
        assert (place / "fs/file").read_text() == "precious"


def test_a_tree_that_nobody_wrote_to_is_removed_without_a_word(root: Path, base: Image, store: Store) -> None:
    store.close()
    with rows_lost(root) as changed:
        changed.create_mount("m", image=base)
    with Store(root) as after:
        assert after.recover() == []
    assert lost(root) == []
    assert [path.name for path in (root / "layers").iterdir()] == [*base.layers]


def test_what_was_written_after_a_commit_that_was_lost_is_set_aside(
    root: Path, mount: Mount, store: Store
) -> None:
    store.close()
    with rows_lost(root) as changed:
        (upper_of(changed, mount.name) / "before").write_text("1")
        commit(changed, mount.name, "lost")
        (upper_of(changed, mount.name) / "after").write_text("2")
    with Store(root) as store:
        assert len(store.recover()) == 1
        assert os.listdir(upper_of(store, mount.name)) == ["before"]
    (place,) = lost(root)
    assert (place / "fs/after").read_text() == "2"


def test_a_tree_whose_removal_was_lost_is_there(root: Path, base: Image, store: Store) -> None:
    store.close()
    with rows_lost(root) as changed, changed.database.transaction():
        changed.database.execute("DELETE FROM tags")
        changed.database.execute("DELETE FROM images")
        changed.database.execute("DELETE FROM steps")
        changed.database.execute("DELETE FROM layers")
    with Store(root) as after:
        assert after.recover() == []
        assert list(after.verify(base.id)) == []


def test_a_tree_whose_row_was_removed_is_removed(root: Path, base: Image, store: Store) -> None:
    with store.database.transaction():
        for table in ("tags", "images", "steps", "layers"):
            store.database.execute(f"DELETE FROM {table}")
    (line,) = store.recover()
    assert line == f"removed {base.layers[0][:12]}: a layer that nothing uses"
    assert list((root / "layers").iterdir()) == []
    assert store.recover() == []
    assert store.database.number("SELECT count(*) FROM removable") == 0


def test_names_that_are_not_of_a_layer_are_left_alone(root: Path, store: Store) -> None:
    (root / "layers/lost+found").mkdir()
    (root / "layers" / ("0" * 64)).write_text("a file")
    assert store.recover() == []
    assert sorted(os.listdir(root / "layers")) == ["0" * 64, "lost+found"]


@pytest.mark.parametrize("place", [".", "work", "work/work"])
def test_anything_but_empty_directories_counts_as_written(root: Path, store: Store, place: str) -> None:
    own = root / "layers" / ("a" * 64)
    for path in ("fs", "work/work"):
        (own / path).mkdir(parents=True)
    (own / place / "something").write_text("x")
    store.recover()
    assert (own.with_name(own.name + layers.LOST) / place / "something").exists()


def test_a_directory_that_cannot_be_read_counts_as_written(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = root / "layers" / ("a" * 64)
    (own / "fs").mkdir(parents=True)
    (own / "fs/file").write_text("x")
    listdir = os.listdir

    def refuse(path: Path) -> list[str]:
        if path == own / "fs":
            raise PermissionError(13, "Permission denied")  # as it would be for others than root
        return listdir(path)

    monkeypatch.setattr("layerfs.store.gc.os.listdir", refuse)
    store.recover()
    monkeypatch.undo()
    assert len(lost(root)) == 1


def test_a_plain_directory_whose_lock_was_lost_gets_it_back(root: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    layer = store.external_layer(tmp_path / "plain")
    (root / "layers" / layer.id).rmdir()
    assert store.recover() == []
    assert store.layer_size(layer.id) == 0


# -- layers that may not be whole


def sealed(store: Store, mount: Mount) -> str:
    (upper_of(store, mount.name) / "file").write_text("content")
    return commit(store, mount.name, "x")


def differences(store: Store) -> list[tuple[bytes, str]]:
    return [(found.path, found.what) for found in store.verify("x")]


def test_a_layer_sealed_in_this_boot_is_verified(store: Store, mount: Mount) -> None:
    layer_id = sealed(store, mount)
    assert not store.layer(layer_id).unverified
    assert differences(store) == []
    assert not store.layer(layer_id).unverified


def test_a_layer_settled_before_the_machine_stopped_is_verified(
    store: Store, mount: Mount, next_boot: Callable[[], None]
) -> None:
    layer_id = sealed(store, mount)
    store.settle_layer(layer_id)
    next_boot()
    assert differences(store) == []
    assert not store.layer(layer_id).unverified


def test_a_layer_settled_after_the_machine_stopped_is_unverified_until_accepted(
    store: Store, mount: Mount, next_boot: Callable[[], None]
) -> None:
    layer_id = sealed(store, mount)
    next_boot()
    (store.layer(layer_id).path / "file").write_text("")  # its data was not on disk
    assert store.layer(layer_id).unverified
    store.settle_layer(layer_id)
    for _ in range(2):
        assert differences(store) == [(b"", settle.UNVERIFIED)]
        assert ["not known to be on disk" in problem.what for problem in store.check()] == [True]
        next_boot()
    assert store.layer(layer_id).unverified
    assert store.layer_size(layer_id) == 0
    assert len(store.history(store.resolve("x"))) == 2
    (store.layer(layer_id).path / "file").write_text("damage")
    assert [path for path, _ in differences(store)] == [b"", b"file"]
    (store.layer(layer_id).path / "file").write_text("")
    os.utime(store.layer(layer_id).path / "file", ns=(0, 0))
    store.accept("x")
    assert [path for path, _ in differences(store)] == [b"file"]
    assert list(store.check()) == []
    assert not store.layer(layer_id).unverified


def test_a_manifest_from_before_the_machine_stopped_tells_what_is_damaged(
    store: Store, mount: Mount, next_boot: Callable[[], None]
) -> None:
    layer_id = sealed(store, mount)
    layer = store.layer(layer_id)
    settle.bring_to_rest(layer.path, layer.path.parent)  # and killed before it could say so
    next_boot()
    assert list(store.check()) == []
    assert differences(store) == []
    assert not store.layer(layer_id).unverified


def test_a_manifest_from_after_the_machine_stopped_tells_nothing(
    store: Store, mount: Mount, next_boot: Callable[[], None]
) -> None:
    layer_id = sealed(store, mount)
    layer = store.layer(layer_id)
    next_boot()
    store.settle_layer(layer_id)
    with store.database.transaction():  # as if it had been killed before it could say so
        store.database.execute("UPDATE layers SET manifest_done = 0 WHERE id = ?", (layer_id,))
    assert (layer.path.parent / "manifest").exists()
    next_boot()
    assert differences(store) == [(b"", settle.UNVERIFIED)]


def test_layers_of_an_older_layerfs_that_were_not_settled_are_unverified(store: Store, mount: Mount) -> None:
    layer_id = sealed(store, mount)
    with store.database.transaction():
        store.database.execute("UPDATE layers SET sealed_in = NULL WHERE id = ?", (layer_id,))
    assert differences(store) == [(b"", settle.UNVERIFIED)]


# -- uppers outside the store


@pytest.fixture
def outside(store: Store, base: Image, tmp_path: Path) -> Path:
    """The upper of the mount `out`, which has a file."""
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    store.create_mount("out", image=base, external_upper=(upper, work))
    (upper / "file").write_text("precious")
    return upper


def test_an_exchange_that_was_lost_is_made_again(store: Store, outside: Path) -> None:
    layer_id = commit(store, "out", "x")
    exchange(outside, store.layer(layer_id).path)
    (line,) = store.recover()
    assert line == f"moved what was in {outside} into the store: its commit was cut short"
    assert os.listdir(outside) == []
    assert (store.layer(layer_id).path / "file").read_text() == "precious"
    assert store.recover() == []


def test_an_exchange_that_was_lost_is_made_again_before_its_layer_is_settled(
    store: Store, outside: Path
) -> None:
    layer_id = commit(store, "out", "x")
    exchange(outside, store.layer(layer_id).path)
    assert differences(store) == []
    assert (store.layer(layer_id).path / "file").read_text() == "precious"
    assert store.layer_size(layer_id) == len("precious")
    assert store.recover() == []
    assert list(store.check(contents=True)) == []


@pytest.mark.parametrize("reader", ["size", "stack", "archive"])
def test_an_exchange_that_was_lost_is_made_again_before_its_layer_is_read(
    store: Store, outside: Path, next_boot: Callable[[], None], reader: str
) -> None:
    layer_id = commit(store, "out", "x")
    exchange(outside, store.layer(layer_id).path)
    next_boot()
    if reader == "size":
        assert store.layer_size(layer_id) == len("precious")
    elif reader == "stack":
        tree = store.stack_of(store.resolve("x")).trees[-1].path
        assert os.listdir(tree) == ["file"]
    else:
        archive = io.BytesIO()
        oci.save(store, ["x"], archive)
        assert b"precious" in archive.getvalue()
    assert os.listdir(outside) == []
    assert store.recover() == []


def test_an_exchange_that_is_on_disk_is_made_once(store: Store, outside: Path) -> None:
    layer_id = commit(store, "out", "x")
    (outside / "new").write_text("new")
    store.bring_exchange_to_disk(layer_id)
    assert store.recover() == []
    assert os.listdir(outside) == ["new"]
    assert os.listdir(store.layer(layer_id).path.parent) == ["fs"]


def test_a_commit_that_was_lost_gives_the_upper_back_and_keeps_what_came_after(
    root: Path, store: Store, outside: Path
) -> None:
    store.close()
    with rows_lost(root) as changed:
        commit(changed, "out", "lost")
        (outside / "new").write_text("new")
    with Store(root) as after:
        (line,) = [text for text in after.recover() if "gave" in text]
        (place,) = lost(root)
        kept = f"what was written after that is in {place / 'fs'}"
        assert line == f"gave {outside} its tree back: its commit was cut short; {kept}"
        assert (outside / "file").read_text() == "precious"
        assert (place / "fs/new").read_text() == "new"
        assert after.recover() == []


def test_an_exchange_that_cannot_be_made_again_is_reported(store: Store, outside: Path) -> None:
    layer_id = commit(store, "out", "x")
    exchange(outside, store.layer(layer_id).path)
    outside.rename(outside.with_name("elsewhere"))
    outside.mkdir()
    (line,) = store.recover()
    assert line == f"the layer {layer_id[:12]} is empty: what was in {outside} is not there any more"


def test_an_upper_that_a_link_leads_to_is_brought_to_the_disk(
    store: Store, base: Image, tmp_path: Path
) -> None:
    for name in ("upper", "work"):
        (tmp_path / "there" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("there")
    store.create_mount("out", image=base, external_upper=(tmp_path / "link/upper", tmp_path / "link/work"))
    (tmp_path / "there/upper/file").write_text("precious")
    layer_id = commit(store, "out", "x")
    store.bring_exchange_to_disk(layer_id)
    assert os.listdir(store.layer(layer_id).path.parent) == ["fs"]
    assert (store.layer(layer_id).path / "file").read_text() == "precious"
    assert store.recover() == []


@pytest.mark.parametrize("instead", ["nothing", "a file", "nothing above"])
def test_an_exchange_is_on_disk_also_where_the_upper_has_gone(
    store: Store, base: Image, tmp_path: Path, instead: str
) -> None:
    above = tmp_path / "above"
    for name in ("upper", "work"):
        (above / name).mkdir(parents=True)
    store.create_mount("out", image=base, external_upper=(above / "upper", above / "work"))
    layer_id = commit(store, "out", "x")
    if instead == "nothing":
        (above / "upper").rmdir()
    else:
        shutil.rmtree(above)
        if instead == "a file":
            above.write_text("")
    assert store.recover() == []
    assert os.listdir(store.layer(layer_id).path.parent) == ["fs"]


@pytest.mark.parametrize("instead", ["nothing", "a link", "another one"])
def test_a_lost_commit_is_not_undone_in_the_place_of_something_else(
    root: Path, store: Store, outside: Path, tmp_path: Path, instead: str
) -> None:
    store.close()
    with rows_lost(root) as changed:
        commit(changed, "out", "lost")
    (tmp_path / "machine/upper").mkdir(parents=True)
    (tmp_path / "machine/upper/passwd").write_text("root")
    outside.rmdir()  # afterwards: its inode number, by which it is known, is free then
    if instead == "a link":
        outside.symlink_to("machine/upper")
    elif instead == "another one":
        (tmp_path / "machine/upper").rename(outside)
    with Store(root) as after:
        lines = [text for text in after.recover() if "something else" in text]
        kept = [place for place in lost(root) if (place / "fs/file").exists()]
        assert lines == [
            f"something else is at {outside}: its tree, whose commit was cut short, is in {kept[0] / 'fs'}"
        ]
        assert (kept[0] / "fs/file").read_text() == "precious"
        if instead != "nothing":
            assert os.listdir(outside) == ["passwd"]
        assert after.recover() == []


@pytest.mark.parametrize("ephemeral", [False, True])
def test_a_mount_that_is_removed_leaves_its_upper_what_a_lost_commit_took(
    root: Path,
    store: Store,
    base: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ephemeral: bool,
) -> None:
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    store.create_mount("out", image=base, external_upper=(upper, work), ephemeral=ephemeral)
    (upper / "file").write_text("precious")
    store.close()
    with rows_lost(root) as changed:
        commit(changed, "out", "lost")
    with Store(root) as after:
        if ephemeral:
            after.recover()
        else:
            after.remove_mount(after.mount("out").id)
        assert after.mounts() == []
    assert (upper / "file").read_text() == "precious"


@pytest.mark.parametrize("ephemeral", [False, True])
def test_an_upper_that_cannot_be_reached_keeps_nobody_from_the_store(
    root: Path,
    store: Store,
    base: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ephemeral: bool,
) -> None:
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    above = tmp_path / "above"
    for name in ("upper", "work"):
        (above / name).mkdir(parents=True)
    upper = above / "upper", above / "work"
    store.create_mount("out", image=base, external_upper=upper, ephemeral=ephemeral)
    (above / "upper/file").write_text("precious")
    store.close()
    with rows_lost(root) as changed:
        commit(changed, "out", "lost")
    above.rename(tmp_path / "away")
    above.symlink_to("above")
    with Store(root) as after:
        lines = after.recover()
        assert f"cannot see to the commit of {above / 'upper'}, which was cut short" in "".join(lines)
        above.unlink()
        (tmp_path / "away").rename(above)
        after.recover()
    assert (above / "upper/file").read_text() == "precious"
