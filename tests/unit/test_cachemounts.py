"""The directories of `RUN --mount=type=cache` while others prune them, and after kills."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layerfs.build import cachemounts
from layerfs.store import Store, scratch

_OWNER = cachemounts.Owner(0o755, os.geteuid(), os.getegid())


@pytest.fixture
def stage(store: Store, root: Path) -> Any:
    """Something with what a stage has that a cache needs."""
    return SimpleNamespace(building=SimpleNamespace(root=root, check=lambda: None))


def test_a_cache_that_is_pruned_while_it_is_made_is_made_again(
    stage: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    pruned: list[bool] = []

    def flock(fd: int, kind: int) -> None:
        if kind & fcntl.LOCK_SH and not pruned:  # between the two, nobody holds it
            real(fd, fcntl.LOCK_UN)
            pruned.append(True)
            (mount,) = cachemounts.every(root)
            assert cachemounts.remove(mount)
        real(fd, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with cachemounts.taken(stage, "c", "shared", _OWNER, None, "/") as path:
        assert path.is_dir()
        (mount,) = cachemounts.every(root)
        assert mount.in_use
    assert pruned


def test_a_prune_that_is_killed_leaves_nothing_that_recovery_does_not_find(
    stage: Any, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cachemounts.taken(stage, "c", "locked", _OWNER, None, "/") as path:
        (path / "file").write_text("x")
    (mount,) = cachemounts.every(root)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(scratch, "remove_trees", lambda *paths: os._exit(9))
        cachemounts.remove(mount)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    store.recover()
    assert cachemounts.every(root) == []
    assert list(cachemounts.directory(root).iterdir()) == []
    assert list((root / "tmp").iterdir()) == []
