"""What takes room: shared and unique bytes, and what removing things would free."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.store import Store
from layerfs.store.commit import Wording
from layerfs.store.model import Image
from layerfs.store.usage import Usage


@pytest.fixture
def base(store: Store, tmp_path: Path) -> Image:
    """An image of one layer of 1,000 bytes."""
    return imported(store, tmp_path / "base", 1000, "base")


def imported(store: Store, tree: Path, size: int, reference: str | None) -> Image:
    tree.mkdir()
    (tree / "file").write_bytes(bytes(size))
    return store.import_image(tree, reference)


def committed(store: Store, name: str, size: int, reference: str | None) -> Image:
    """Write a file of *size* bytes to the mount called *name*, and commit it."""
    written(store, name, size)
    mount = store.mount(name)
    return store.commit(mount, store.prepare_upper(mount), reference=reference)


def written(store: Store, name: str, size: int) -> None:
    upper = store.mount(name).upper
    assert upper is not None
    (store.layer(upper).path / f"file{size}").write_bytes(bytes(size))


def shared_and_unique(usage: Usage) -> dict[str, tuple[int, int]]:
    return {
        image.tags[0]: (usage.shared_size(image), usage.size(image.layers) - usage.shared_size(image))
        for image in usage.images
    }


def test_an_empty_store(store: Store) -> None:
    usage = store.usage()
    assert (usage.images, usage.mounts, dict(usage.layers)) == ((), (), {})
    assert usage.freed(images=True) == 0


def test_shared_and_unique(store: Store, base: Image, tmp_path: Path) -> None:
    store.create_mount("m", image=base)
    committed(store, "m", 200, "one")
    committed(store, "m", 30, "two")
    imported(store, tmp_path / "other", 4, "other")
    usage = store.usage()
    assert shared_and_unique(usage) == {
        "other:latest": (0, 4),
        "two:latest": (1200, 30),
        "one:latest": (1200, 0),
        "base:latest": (1000, 0),
    }
    assert {image.tags[0]: usage.mounts_of(image) for image in usage.images} == {
        "other:latest": 0, "two:latest": 0, "one:latest": 0, "base:latest": 1,
    }  # fmt: skip
    by_layer = [(used.size, used.images, used.mounts) for used in usage.layers.values()]
    assert sorted(by_layer) == [(0, 0, 1), (4, 1, 0), (30, 1, 1), (200, 2, 1), (1000, 3, 1)]
    assert usage.owned_size(usage.layers) == 1234


def test_what_removing_would_free_is_what_pruning_frees(store: Store, base: Image, tmp_path: Path) -> None:
    store.create_mount("m", image=base)
    committed(store, "m", 200, "one")
    written(store, "m", 30)
    imported(store, tmp_path / "other", 4, "other")
    (mount,) = store.mounts()
    usage = store.usage()
    images = usage.freed(images=True)
    both = usage.freed(images=True, mounts=[mount.id])
    assert (images, usage.freed(images=False, mounts=[mount.id]), both) == (4, 30, 1234)
    assert store.prune_images(tagged=True)[1] == images
    store_without_images = store.usage()
    assert store_without_images.freed(images=True) == 0
    assert store_without_images.freed(images=False, mounts=[mount.id]) == 230  # "one" went, its layer stayed
    assert store.prune_mounts()[1] + store.prune_images(tagged=True)[1] == both - images
    assert dict(store.usage().layers) == {}


def test_an_image_that_a_mounted_one_was_made_from_is_not_to_be_freed(store: Store, base: Image) -> None:
    store.create_mount("m", image=base)
    store.create_mount("n", image=committed(store, "m", 200, "one"))
    store.remove_mount(store.mount("m").id)
    assert store.usage().freed(images=True) == 0
    store.prune_images(tagged=True)
    assert len(store.images()) == 2


def test_directories_outside_are_nobodys_to_free(store: Store, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(50))
    lower = store.external_layer(tmp_path / "lower")
    upper = (tmp_path / "upper", tmp_path / "work")
    mount = store.create_mount("m", image=None, layers=[lower.id], external_upper=upper)
    usage = store.usage()
    assert usage.size([lower.id, mount.upper or ""]) == 100
    assert usage.owned_size(usage.layers) == 0
    assert usage.freed(images=True, mounts=[mount.id]) == 0
    assert store.prune_mounts()[1] == 0
    assert (tmp_path / "upper/file").exists()


def test_a_layer_whose_tree_is_lost_counts_nothing(store: Store, base: Image) -> None:
    mount = store.create_mount("m", image=base)
    upper = store.layer(mount.upper or "").path
    upper.rename(upper.with_name("elsewhere"))
    assert store.usage().layers[mount.upper or ""].size == 0


def test_what_a_mount_can_go_back_to_is_not_to_be_freed_but_with_the_mount(store: Store, base: Image) -> None:
    mount = store.create_mount("m", image=base)
    written(store, "m", 200)
    step = store.resolve_checkpoint(mount, "")
    went = store.rollback(mount, store.prepare_upper(mount), step, Wording(), keep=True)
    usage = store.usage()
    assert went.kept is not None
    assert mount.upper is not None
    assert usage.layers[mount.upper].mounts == 1
    assert usage.freed(images=True) == 0
    assert usage.freed(images=True, mounts={mount.id}) == 1200
    store.remove_mount(mount.id)
    assert list(store.usage().layers) == list(base.layers)
