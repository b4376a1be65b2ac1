"""The build cache: what it keeps, what goes when it is pruned, and what crashes may leave of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from layerfs.errors import BadRequest
from layerfs.store import Store, settle, stacks
from layerfs.store.buildcache import CacheEntry
from layerfs.store.cacheusage import CacheUsage
from layerfs.store.model import HistoryEntry, Image, now
from tests.conftest import wait_until
from tests.unit.control_support import ask
from tests.unit.steps_support import THEN, chain, layer_directories, make_step, problems
from tests.unit.test_store_crash import dies_at
from tests.unit.test_store_power import lost, next_boot, rows_lost

__all__ = ["next_boot"]


def keys(store: Store) -> set[str]:
    return {entry.key for entry in store.build_cache.entries()}


@contextmanager
def later(monkeypatch: pytest.MonkeyPatch, hours: float) -> Iterator[None]:
    """Let what is used in the block have been used some hours from now."""
    with monkeypatch.context() as patch:
        patch.setattr("layerfs.store.buildcache.now", lambda: now() + int(hours * 3600e9) // 1000 * 1000)
        yield


def test_pruning_frees_what_no_image_has(store: Store) -> None:
    with store.building():
        steps = chain(store, "a", (100, 20, 3))
        store.steps.make_image(steps[1], {}, references=["kept"])
    assert store.build_cache.prune() == (["a-2"], 3)
    assert keys(store) == {"a-0", "a-1"}
    assert store.build_cache.prune(everything=True) == (["a-1", "a-0"], 0)
    assert len(store.resolve("kept").layers) == 2
    assert problems(store) == []


def test_an_image_that_goes_leaves_its_steps_to_the_cache(store: Store) -> None:
    with store.building():
        steps = chain(store, "a", (100, 20))
        store.steps.make_image(steps[1], {}, references=["x"])
    assert store.prune_images(tagged=True)[1] == 0
    assert store.usage().freed(images=True) == 0
    assert store.build_cache.get("a-1") is not None
    assert store.build_cache.prune() == (["a-1", "a-0"], 120)
    assert layer_directories(store) == set()


def test_an_image_with_the_same_layers_in_a_history_of_its_own_shares_them(store: Store) -> None:
    with store.building():
        steps = chain(store, "a", (100, 20))
        below = None
        for row in store.steps.layers_of_step(steps[1]):
            entry = HistoryEntry(THEN, "RUN again", "", "", False, row.id)
            with store.database.transaction():
                below = stacks.add(store.database, below, entry)
        assert below is not None
        store.steps.make_image(below, {}, references=["kept"])
        chain(store, "b", (3,))
    assert {used.entry.key: used.shared for used in store.build_cache.usage()} == {
        "a-0": True,
        "a-1": True,
        "b-0": False,
    }
    assert store.build_cache.prune() == (["b-0"], 3)
    assert store.build_cache.prune(everything=True) == (["a-1", "a-0"], 0)
    assert len(store.resolve("kept").layers) == 2


def test_what_a_build_uses_stays(store: Store) -> None:
    with store.building():
        chain(store, "a", (100, 20, 3))
    with store.building() as build:
        with Store(store.root, build=build.id) as thread:
            entry = thread.build_cache.get("a-1")
        assert entry is not None
        assert [used.in_use for used in store.build_cache.usage()] == [True, False, True]
        assert store.build_cache.prune(everything=True) == (["a-2"], 3)
        assert len(store.steps.layers_of_step(entry.step)) == 2
    assert store.build_cache.prune() == (["a-1", "a-0"], 120)


def test_what_was_used_last_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.building():
        chain(store, "old", (100, 20))
        with later(monkeypatch, 1):
            chain(store, "new", (1000,))
            below = store.build_cache.get("old-0")  # a part of it is still of use
    assert below is not None
    assert store.build_cache.prune(keep=1110) == (["old-1"], 20)
    assert store.build_cache.prune(keep=1100) == ([], 0)
    assert store.build_cache.prune(keep=1) == (["new-0", "old-0"], 1100)


def test_an_entry_is_as_fresh_as_what_is_built_on_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.building():
        chain(store, "a", (100, 20))
        with later(monkeypatch, 2):
            store.build_cache.get("a-1")
    limit = datetime.now(UTC) + timedelta(hours=1)
    until = int(limit.timestamp() * 1e9)
    assert store.build_cache.prune(wanted=lambda used: used.used < until) == ([], 0)
    assert keys(store) == {"a-0", "a-1"}


def test_what_builds_keep_besides_is_counted_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.building(), later(monkeypatch, 2):
        chain(store, "a", (100, 20))
    gone: list[str] = []

    def remove(name: str) -> bool:
        gone.append(name)
        return True

    def beside(name: str, hours: int, size: int) -> tuple[CacheUsage, Callable[[], bool]]:
        moment = now() + hours * 3600 * 10**9
        entry = CacheEntry(name, "", "exec.cachemount", "", THEN, THEN, 1)
        return CacheUsage(entry, (), (), size, False, False, moment), partial(remove, name)

    others = [beside("old", 1, 1000), beside("new", 3, 1000)]
    assert store.build_cache.prune(keep=1120, beside=others) == (["old"], 1000)
    assert store.build_cache.prune(keep=1100, beside=others[1:]) == (["a-1"], 20)
    assert store.build_cache.prune(beside=others[1:]) == (["a-0", "new"], 1100)
    assert gone == ["old", "new"]


def test_prune_by_dockers_request(store: Store) -> None:
    with store.building():
        steps = chain(store, "abc", (100, 20))
        chain(store, "xyz", (3,))
        store.steps.make_image(steps[0], {}, references=["kept"])

    def prune(query: dict[str, Any], **filters: list[str]) -> tuple[list[str] | None, int]:
        answer = ask(store.root, "POST", "/build/prune", filters=json.dumps(filters), **query)
        return answer["CachesDeleted"], answer["SpaceReclaimed"]

    assert prune({}, id=["nothing"]) == (None, 0)
    assert prune({}, until=["1h"]) == (None, 0)
    assert prune({}, **{"unused-for": ["1h"]}) == (None, 0)
    assert prune({}, label=["x"]) == (None, 0)
    assert prune({}, inuse=["true"]) == (None, 0)
    assert prune({}, type=["source.local"]) == (None, 0)
    assert prune({"keep-storage": "1000"}) == (None, 0)
    assert prune({}, id=["yz-"]) == (["xyz-0"], 3)
    assert prune({}, until=["0s"], private=["1"]) == (["abc-1"], 20)
    assert prune({"all": "1"}, **{"label!": ["x"]}) == (["abc-0"], 0)
    for wrong in ({"until": ["1h"], "unused-for": ["1h"]}, {"id": ["a", "b"]}, {"colour": ["red"]}):
        with pytest.raises(BadRequest, match="filter"):
            prune({}, **wrong)
    with pytest.raises(BadRequest, match="is not a number of bytes"):
        prune({"keep-storage": "10GB"})


def test_df_shows_the_cache(store: Store, base: Image) -> None:
    with store.building():
        steps = chain(store, "a", (100, 20), below=store.steps.step_of(base))
        store.steps.make_image(steps[0], {}, references=["kept"], parent=base.id)
    assert store.build_cache.get("a-1") is not None
    second, first = ask(store.root, "GET", "/system/df")["BuildCache"]
    assert {name: second[name] for name in ("ID", "Parents", "Size", "Shared", "InUse", "UsageCount")} == {
        "ID": "a-1",
        "Parents": ["a-0"],
        "Size": 20,
        "Shared": False,
        "InUse": False,
        "UsageCount": 1,
    }
    assert (first["Shared"], first["Size"], first["LastUsedAt"], first["Parents"]) == (True, 100, None, [])
    assert (first["Description"], first["Type"]) == ("RUN a 0", "regular")
    summary = ask(store.root, "GET", "/layerfs/df")["Summary"]
    assert summary["BuildCache"] == {"Active": 0, "Size": 20, "Reclaimable": 20}
    assert summary["Layers"]["Reclaimable"] == 0  # what the cache has does not go with the images


def test_what_may_not_be_whole_is_not_handed_out(store: Store, next_boot: Callable[[], None]) -> None:
    with store.building():
        steps = chain(store, "a", (100, 20, 3))
        store.steps.make_image(steps[1], {}, references=["kept"])
        settle.settle(store.database, store.steps.layers_of_step(steps[0])[0].id)
        settling = [row.id for row in store.steps.layers_of_step(steps[2])[1:]]
        for layer in settling:
            lock = os.open(store.root / "layers" / layer, os.O_RDONLY)
            os.close(lock)
    # Whatever is settled in the background: of these two it is not known.
    with store.database.transaction():
        store.database.execute("UPDATE layers SET manifest_done = 0 WHERE id IN (?, ?)", settling)
    next_boot()
    assert store.build_cache.get("a-0") is not None
    assert store.build_cache.get("a-1") is None
    assert store.build_cache.get("a-2") is None
    assert store.recover() == ["forgot 2 entries of the build cache: their layers may not be whole"]
    assert keys(store) == {"a-0"}
    assert len(layer_directories(store)) == 2  # the image has the second layer
    assert store.recover() == []


def test_a_layer_that_lost_its_tree_is_not_handed_out(store: Store) -> None:
    with store.building():
        (step,) = chain(store, "a", (100,))
        (layer,) = store.steps.layers_of_step(step)
    layer.path.rename(store.root / "moved")
    assert store.build_cache.get("a-0") is None
    assert any("build cache" in line for line in store.recover())
    assert keys(store) == set()
    assert problems(store) == []


@pytest.mark.parametrize("sealed", [False, True])
def test_what_a_power_cut_takes_the_rows_of_is_removed(store: Store, base: Image, sealed: bool) -> None:
    before = layer_directories(store)
    store.close()
    with rows_lost(store.root) as changed:
        if sealed:
            make_step(changed, None, "one")
        else:
            new = changed.steps.new_layer(None)
            (new.__enter__().path / "file").write_text("half")
            layer = (layer_directories(changed) - before).pop()
            (store.root / "layers" / layer).rename(store.root / "layers" / ("a" * 64))  # nobody holds it now
            os.mkdir(store.root / "layers" / layer)
            new.__exit__(None, None, None)
            with changed.database.transaction():
                changed.database.execute("DELETE FROM removable")
    with Store(store.root) as after:
        after.recover()
        assert lost(store.root) == []
        assert layer_directories(after) == before


def test_a_build_is_killed_at_every_step(root: Path, tree: Path) -> None:
    with Store(root) as store:
        base = store.import_image(tree, "base")

    def build(store: Store) -> None:
        with store.building():
            below = store.steps.step_of(base)
            for number in range(2):
                entry = store.build_cache.get(f"key-{number}")
                if entry is None:
                    below = make_step(store, below, f"file-{number}")
                    store.build_cache.put(f"key-{number}", below)
                else:
                    below = entry.step
            store.steps.make_image(below, {}, references=["built"])

    step, killed = 0, True
    while killed:
        killed = dies_at(step := step + 1, root, build)
        with Store(root) as store:
            store.recover()
            assert problems(store) == []
            owned = {layer for image in store.images() for layer in image.layers}
            for entry in store.build_cache.entries():
                owned |= {row.id for row in store.steps.layers_of_step(entry.step)}
            assert layer_directories(store) == owned
            assert list((root / "tmp").iterdir()) == [] if (root / "tmp").exists() else True
            if step % 2:
                store.build_cache.prune(everything=True)
            if any("built:latest" in image.tags for image in store.images()):
                assert len(store.resolve("built").layers) == 3
                store.remove_image("built")
    assert step > 60


def test_pruning_the_cache_is_killed_at_every_step(root: Path) -> None:
    step, killed = 0, True
    while killed:
        with Store(root) as store, store.building():
            chain(store, "a", (100, 20))
        killed = dies_at(step := step + 1, root, lambda store: store.build_cache.prune())
        with Store(root) as store:
            wait_until(lambda: not (list(store.recover()), problems(store))[1])
            assert len(layer_directories(store)) == len(keys(store))
            assert all(store.build_cache.get(key) for key in keys(store))
    assert step > 10


def test_cost_follows_what_changed(store: Store) -> None:
    """With 10,000 entries, what concerns one of them costs what it does with 100."""
    with store.building():
        (step,) = chain(store, "a", (100,))
        add_entries(store, range(100))
        few = [work(store, do) for do in on_one_entry(store, step, "few")]
        add_entries(store, range(100, 10_000))
        many = [work(store, do) for do in on_one_entry(store, step, "many")]
    assert all(later < 3 * before + 10 for before, later in zip(few, many, strict=True)), (few, many)


def add_entries(store: Store, numbers: range) -> None:
    """Write entries of the build cache with these *numbers*, in chains of 20 steps."""
    with store.database.transaction():
        moment = now()
        for number in numbers:
            step = f"{number:064x}"
            row = (step, f"{number - 1:064x}" if number % 20 else None, None, moment, "", "", "")
            store.database.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            entry = (f"k{number}", step, "regular", "", moment, moment + number * 1000, 0)
            store.database.execute("INSERT INTO build_cache VALUES (?, ?, ?, ?, ?, ?, ?)", entry)


def on_one_entry(store: Store, step: str, name: str) -> list[Callable[[], object]]:
    """Return what is done to one entry of the build cache."""
    return [
        lambda: store.build_cache.get("k59"),
        lambda: store.build_cache.put(f"new-{name}", step, kind="regular", description=""),
        lambda: store.build_cache.get("nothing"),
    ]


def work(store: Store, do: Callable[[], object]) -> int:
    """Return how many times ten instructions of SQLite's machine *do* takes."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    store.database.connection.set_progress_handler(count, 10)
    try:
        do()
    finally:
        store.database.connection.set_progress_handler(None, 10)
    return counted
