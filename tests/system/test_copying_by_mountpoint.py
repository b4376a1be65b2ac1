"""`layerfs cp` with a mountpoint in place of a name, as all other commands take one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack

pytestmark = pytest.mark.root


def test_a_mountpoint_stands_for_its_mount(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    layerfs: Layerfs = stack.layerfs
    here = layerfs.directory
    stack.mount()
    (stack.mnt / "inside").write_text("inside")
    layerfs.ok("cp", f"{stack.mnt}:/inside", here / "copy")
    assert (here / "copy").read_text() == "inside"
    layerfs.ok("cp", here / "copy", f"{stack.mnt}:/again")
    assert (stack.mnt / "again").read_text() == "inside"
    monkeypatch.chdir(stack.mnt.parent)
    for name in (stack.mnt.name, f"./{stack.mnt.name}"):
        layerfs.ok("cp", f"{name}:/inside", here / "copy")


def test_a_path_here_comes_first(stack: Stack) -> None:
    layerfs: Layerfs = stack.layerfs
    stack.mount()
    (stack.mnt / "file").write_text("in the mount")
    beside = Path(f"{stack.mnt}:")
    beside.mkdir()
    (beside / "file").write_text("beside it")
    layerfs.ok("cp", f"{beside}/file", f"{stack.name}:/copied")
    assert (stack.mnt / "copied").read_text() == "beside it"
    (beside / "file").unlink()
    os.rmdir(beside)
    layerfs.ok("cp", f"{beside}/file", layerfs.directory / "copy")
    assert (layerfs.directory / "copy").read_text() == "in the mount"
    assert "neither is in a container" in layerfs.refused("cp", f"{stack.top}:/x", "/tmp", status=2)
