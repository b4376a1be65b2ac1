"""What is read of the filesystem that a layer lies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.host import freezer
from layerfs.host.mounttable import Mounted
from layerfs.union import durability

DEVICE = 1
"""Of minor number 1 and major number 0."""


@pytest.mark.parametrize("option", ["nobarrier", "barrier=0"])
def test_a_filesystem_whose_journal_waits_for_no_disk_keeps_no_order(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    for options, keeps in ((["rw", "noquota"], True), (["rw", "noquota", option], False)):
        table = [
            Mounted("/home/u/a\rb", "fuse.other", "other", 9, frozenset({"rw", "nobarrier"})),
            Mounted("/srv", "xfs", "/dev/vda", DEVICE, frozenset(options)),
        ]
        monkeypatch.setattr("layerfs.union.mountinfo.mounts", lambda table=table: iter(table))
        assert durability.described(DEVICE) == ("xfs", frozenset(options))
        assert durability._keeps_order(DEVICE) is keeps


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
