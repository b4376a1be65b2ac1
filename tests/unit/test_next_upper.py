"""The next upper of a mount is made, and opened, before a commit needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from layerfs.mounting.next_upper import NextUpper
from layerfs.store import Store
from layerfs.store.model import Mount
from layerfs.union.upper import Upper


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    """A mount of an image, which no daemon runs."""
    tree = tmp_path / "tree"
    tree.mkdir()
    with Store(tmp_path / "store") as store:
        return store.create_mount("base", image=store.import_image(tree, "base"))


@pytest.fixture
def upper(tmp_path: Path, mount: Mount) -> Iterator[Upper]:
    """What takes the writes of *mount* now."""
    with Store(tmp_path / "store") as store:
        assert mount.upper is not None
        own = store.layer(mount.upper)
        assert own.work is not None
        opened = Upper(own.path, own.work)
        yield opened
        opened.close()


def layers(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "store/layers"))


def open_in(tmp_path: Path) -> list[str]:
    """Return what this process has open in the store."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(path for path in found if path.startswith(f"{tmp_path}/store/layers/"))


async def test_it_is_ready_once_it_was_begun(tmp_path: Path, mount: Mount, upper: Upper) -> None:
    ahead = NextUpper(tmp_path / "store")
    ahead.begin(mount, upper)
    prepared = await ahead.get(mount, upper)
    assert prepared.upper.path == os.fsencode(prepared.row.path)
    assert ahead.ready == prepared
    ahead.close()
    assert ahead.ready is None


async def test_one_that_is_not_used_leaves_nothing(tmp_path: Path, mount: Mount, upper: Upper) -> None:
    before, held = layers(tmp_path), open_in(tmp_path)
    ahead = NextUpper(tmp_path / "store")
    await ahead.get(mount, upper)
    await ahead.abandon()
    assert (layers(tmp_path), open_in(tmp_path)) == (before, held)
    await ahead.get(mount, upper)
    ahead.close()
    assert (layers(tmp_path), open_in(tmp_path)) == (before, held)


async def test_no_table_of_renamed_directories_is_saved_for_one_that_is_not_used(
    tmp_path: Path, mount: Mount, upper: Upper
) -> None:
    prepared = await NextUpper(tmp_path / "store").get(mount, upper)
    prepared.upper.give_up()
    assert os.listdir(prepared.row.path.parent / "work/work") == []  # so no tree has to be removed


async def test_one_that_cannot_be_opened_is_removed_and_the_next_try_makes_another(
    tmp_path: Path, mount: Mount, upper: Upper, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = layers(tmp_path)
    ahead = NextUpper(tmp_path / "store")
    with monkeypatch.context() as patched:
        patched.setattr(Upper, "_check_work", lambda self: (_ for _ in ()).throw(OSError(24, "too many")))
        ahead.begin(mount, upper)
        with pytest.raises(OSError, match="too many"):
            await ahead.get(mount, upper)
    assert layers(tmp_path) == before
    prepared = await ahead.get(mount, upper)
    assert prepared.row.path.is_dir()
    ahead.close()
