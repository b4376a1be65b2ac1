"""The run directory, and what the lock of a running mount says."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from layerfs.container import renaming
from layerfs.errors import Conflict
from layerfs.host import rundir
from layerfs.store import Store
from layerfs.store.model import Mount
from tests.conftest import errno_of


def test_a_lock_that_cannot_be_written_says_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with rundir.RunLock("name") as lock:
        lock.set_pid(os.getpid())
        lock.set_device(os.makedev(0, 7))
        monkeypatch.setattr(os, "pwrite", full)
        for record in (lambda: lock.set_pid(1), lambda: lock.set_device(None)):
            assert errno_of(record) == errno.ENOSPC
            assert rundir.running("name") == (os.getpid(), os.makedev(0, 7))


def test_of_two_renames_that_looked_the_name_up_at_once_both_count(
    store: Store, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERFS_RUN", str(store.root / "run"))
    with rundir.RunLock(mount.name) as lock:
        lock.set_pid(os.getpid())
        renaming.rename(store.root, mount, "second")
        renaming.rename(store.root, mount, "third")
        assert store.mount(mount.id).name == "third"
        assert [rundir.running_pid(name) for name in ("second", "third")] == [None, os.getpid()]


def test_a_mount_whose_new_name_was_taken_meanwhile_keeps_the_old_one(
    store: Store, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERFS_RUN", str(store.root / "run"))
    rename = store.rename_mount

    class Racing(Store):
        def rename_mount(self, mount_id: str, name: str) -> None:
            rename(mount_id, name)
            if name == "taken":
                self.other = rundir.RunLock(name)

    monkeypatch.setattr(renaming, "Store", Racing)
    with pytest.raises(Conflict, match="the name taken is in use"):
        renaming.rename(store.root, mount, "taken")
    assert store.mount(mount.id).name == mount.name


def test_making_the_run_directory_leaves_the_umask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads share it: two that change it at once leave the wrong one behind."""
    wanted = tmp_path / "above/run"
    monkeypatch.setenv("LAYERFS_RUN", str(wanted))
    before = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", refuse)
            assert rundir.make_run_dir() == wanted
            assert rundir.make_run_dir() == wanted
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (wanted, wanted.parent)] == [0o700, 0o700]


def refuse(mask: int) -> int:
    raise AssertionError("the umask was changed")
