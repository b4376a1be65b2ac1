"""Going back in the store: what a mount stands on, what is kept for it, and what a reference means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.errors import BadRequest, Conflict, NotFound
from layerfs.mounting.find import mount_of
from layerfs.mounting.mount import Checkpoint, Commit, Mount, Rollback
from layerfs.store import Store
from layerfs.store.model import Image
from layerfs.store.model import Mount as Row

pytestmark = pytest.mark.usefixtures("base")


def problems(store: Store) -> list[str]:
    return [f"{problem.subject}: {problem.what}" for problem in store.check()]


def upper(store: Store, mount: Row) -> Path:
    row = store.mount(mount.id)
    assert row.upper is not None
    return store.layer(row.upper).path


def at_rest(store: Store, mount: Row) -> Mount:
    return mount_of(store, store.mount(mount.id))


def checkpoints(store: Store, mount: Row, count: int) -> list[str]:
    """Make checkpoints, the n-th of a file called fN."""
    steps = []
    for number in range(count):
        (upper(store, mount) / f"f{number}").write_text(str(number))
        steps.append(at_rest(store, mount).checkpoint(Checkpoint()))
    return steps


def seen(store: Store, mount: Row) -> set[str]:
    """Return the names of the files that a mount shows, of those that the tests make."""
    row = store.mount(mount.id)
    trees = [*(layer.path for layer in store.layers_of(row)), upper(store, mount)]
    return {name for tree in trees for name in os.listdir(tree) if name.startswith("f") and len(name) < 4}


def test_goes_back_to_the_last_checkpoint_and_keeps_what_was_written(store: Store, mount: Row) -> None:
    (step,) = checkpoints(store, mount, 1)
    (upper(store, mount) / "f9").write_text("given up")
    went = at_rest(store, mount).rollback(Rollback())
    assert went.step == step == store.mount(mount.id).step
    assert seen(store, mount) == {"f0"}
    assert went.kept is not None
    assert problems(store) == []
    again = at_rest(store, mount).rollback(Rollback(went.kept))
    assert (again.step, again.kept) == (went.kept, None)
    assert seen(store, mount) == {"f0", "f9"}
    assert problems(store) == []


def test_nothing_is_kept_of_nothing_or_where_that_is_wanted(store: Store, mount: Row) -> None:
    checkpoints(store, mount, 1)
    before = upper(store, mount)
    assert at_rest(store, mount).rollback(Rollback()).kept is None
    assert not before.exists()
    (upper(store, mount) / "f9").write_text("discarded")
    before = upper(store, mount)
    assert at_rest(store, mount).rollback(Rollback(discard=True)).kept is None
    assert not before.exists()
    assert problems(store) == []


def test_what_it_stood_on_stays_until_the_mount_is_removed(store: Store, mount: Row) -> None:
    first, second, third = checkpoints(store, mount, 3)
    at_rest(store, mount).rollback(Rollback(first, discard=True))
    assert seen(store, mount) == {"f0"}
    assert at_rest(store, mount).rollback(Rollback(third)).step == third
    assert at_rest(store, mount).rollback(Rollback(f"{third}~1")).step == second
    assert problems(store) == []
    layers = {path.name for path in (store.root / "layers").iterdir()}
    store.remove_mount(mount.id)
    assert len(layers - {path.name for path in (store.root / "layers").iterdir()}) == 4
    assert problems(store) == []


def test_what_references_mean(store: Store, mount: Row) -> None:
    first, second, third = checkpoints(store, mount, 3)
    row = store.mount(mount.id)
    meaning = {
        "": third,
        mount.name: third,
        "~": second,
        "~2": first,
        f"{mount.name}~0": third,
        f"{second}~": first,
        second[:12]: second,
        first: first,
    }
    assert {given: store.resolve_checkpoint(row, given) for given in meaning} == meaning
    image = at_rest(store, mount).commit(Commit("app:1")).image
    now = store.mount(mount.id)
    assert now.step == store.resolve_checkpoint(now, "app:1") == store.resolve_checkpoint(now, image[:12])
    for wrong in ("~99", "nothing", "0" * 64, "a/b:c~1", "~x", "-"):
        with pytest.raises(NotFound):
            store.resolve_checkpoint(now, wrong)


def test_an_ambiguous_reference_is_refused(store: Store, mount: Row) -> None:
    steps = checkpoints(store, mount, 20)
    firsts = [step[0] for step in steps]
    twice = next(digit for digit in firsts if firsts.count(digit) > 1)
    with pytest.raises(BadRequest, match="give more of it"):
        at_rest(store, mount).rollback(Rollback(twice))


def test_a_checkpoint_of_another_mount_is_none(store: Store, mount: Row, base: Image) -> None:
    other = store.create_mount("other", image=base)
    (step,) = checkpoints(store, other, 1)
    with pytest.raises(NotFound, match="has no checkpoint"):
        at_rest(store, mount).rollback(Rollback(step))


def test_refuses_mounts_without_an_upper_or_with_one_outside(
    store: Store, base: Image, tmp_path: Path
) -> None:
    read_only = store.create_mount("ro", image=base, writable=False)
    with pytest.raises(Conflict, match="read-only"):
        at_rest(store, read_only).rollback(Rollback())
    outside = (tmp_path / "up", tmp_path / "wk")
    for path in outside:
        path.mkdir()
    external = store.create_mount("out", image=base, external_upper=outside)
    with pytest.raises(Conflict, match="outside the store"):
        at_rest(store, external).rollback(Rollback())


def test_the_new_upper_has_the_root_of_then(store: Store, mount: Row) -> None:
    checkpoints(store, mount, 1)
    mode = upper(store, mount).stat().st_mode
    upper(store, mount).chmod(0o700)
    went = at_rest(store, mount).rollback(Rollback())
    assert went.kept is not None
    assert upper(store, mount).stat().st_mode == mode
    at_rest(store, mount).rollback(Rollback(went.kept))
    assert upper(store, mount).stat().st_mode & 0o777 == 0o700


def test_a_kept_checkpoint_outlives_its_image(store: Store, mount: Row) -> None:
    checkpoints(store, mount, 2)
    at_rest(store, mount).commit(Commit("app:1"))
    at_rest(store, mount).rollback(Rollback("~2"))
    store.remove_image("app:1", force=True)
    store.recover()
    assert problems(store) == []
    assert store.mount(mount.id).step is not None
