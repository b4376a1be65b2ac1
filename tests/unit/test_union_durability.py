"""What is read of the filesystem that a layer lies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.host import freezer
from layerfs.host.mounttable import Mounted
from layerfs.union import durability

DEVICE = 1
"""Of minor number 1 and major number 0."""


def test_a_mountpoint_of_any_name_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user can mount something on a directory with a carriage return in its name."""
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"30 1 0:9 / /home/u/a\rb rw - fuse.other other rw,user_id=1000\n"
        b"31 1 0:8 / /home/u/c\fd rw - tmpfs  rw\n"
        b"32 1 0:1 / /srv rw shared:1 - xfs /dev/vda rw,noquota\n"
    )
    monkeypatch.setattr(durability, "_MOUNTS", str(table))
    assert durability._described(DEVICE) == ("xfs", "rw,noquota")


def test_a_freezer_is_found_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [
        Mounted("/home/u/a\rb", "fuse.other", "", 9, frozenset({"rw"})),
        Mounted("/sys/fs/cgroup", "cgroup2", "cgroup2", 8, frozenset({"rw"})),
        Mounted("/sys/fs/cgroup/freezer", "cgroup", "cgroup", 7, frozenset({"rw", "freezer"})),
    ]
    monkeypatch.setattr("layerfs.host.mounttable.mounts", lambda: iter(table))
    assert freezer._hierarchies() == [
        ("", Path("/sys/fs/cgroup")),
        ("freezer", Path("/sys/fs/cgroup/freezer")),
    ]
