"""The kernel's mount table, as it is read: whoever makes a directory chooses the names in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.host import mounttable

LINE = "36 35 98:0 {root} {place} rw,noatime shared:1 master:2 - {type} {source} rw,errors=continue\n"


def table(tmp_path: Path, **words: str) -> list[mounttable.Mounted]:
    """Return what is read of a table of one line, with these *words* in it."""
    line = LINE.format(**{"root": "/", "place": "/mnt", "type": "ext4", "source": "/dev/root", **words})
    (tmp_path / "mountinfo").write_bytes(line.encode())
    return list(mounttable.mounts(f"..{tmp_path}"))


def test_a_line(tmp_path: Path) -> None:
    flags = frozenset({"rw", "noatime", "errors=continue"})
    expected = mounttable.Mounted("/mnt", "ext4", "/dev/root", os.makedev(98, 0), flags)
    assert table(tmp_path) == [expected]


@pytest.mark.parametrize("char", ["\r", "\f", "\v", "\u0085", " ", "\t", "\n", "\\", "#"])
@pytest.mark.parametrize("word", ["root", "place", "source"])
def test_a_name_is_one_field_whatever_is_in_it(tmp_path: Path, char: str, word: str) -> None:
    shown = "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in f"/a{char}/b")  # as mangle() has it
    (mounted,) = table(tmp_path, **{word: shown})
    assert mounted.place == (f"/a{char}/b" if word == "place" else "/mnt")
    assert mounted.source == (f"/a{char}/b" if word == "source" else "/dev/root")
    assert mounted.type == "ext4"


def test_a_source_may_be_empty(tmp_path: Path) -> None:
    (mounted,) = table(tmp_path, source="")
    assert (mounted.source, "errors=continue" in mounted.flags) == ("", True)
