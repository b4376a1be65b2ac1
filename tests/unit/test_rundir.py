"""What the lock of a running mount says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from layerfs.host import rundir
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
