"""A context that is not unpacked is what it would be if it were."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from layerfs.archive.limits import Limits
from layerfs.archive.streams import Feed, plain
from layerfs.archive.tar import Reader
from layerfs.archive.unpack import Unpacker
from layerfs.build.packed import Packed
from layerfs.build.sources import Disk, Source, SourceDirectory
from layerfs.errors import BadRequest
from tests.build.archives import archive, directory, file, link

pytestmark = pytest.mark.root

Seen = dict[bytes, tuple[object, ...]]


def reader(data: bytes) -> Reader:
    return Reader(Feed(plain(io.BytesIO(data).read)), needs_end=False)


def packed(data: bytes, scratch: Path, limits: Limits = Limits()) -> Seen:  # noqa: B008 (it is frozen)
    source = Packed(scratch)
    try:
        source.fill(reader(data), limits, lambda: None)
        return seen(source)
    finally:
        source.close()


def unpacked(data: bytes, tree: Path) -> Seen:
    tree.mkdir()
    with Unpacker(tree, whiteouts=False) as unpacker:
        members = reader(data)
        for member in members:
            unpacker.add(member, members)
        unpacker.finish()
    source = Disk(tree, "a directory")
    try:
        return seen(source)
    finally:
        source.close()


def seen(source: Source) -> Seen:
    """Return all that is in *source*; inodes by the first name that has them."""
    found: Seen = {}
    first: dict[int, bytes] = {}

    def look(place: SourceDirectory, prefix: bytes) -> None:
        for item in place.items():
            path, st = prefix + item.name, item.st
            if stat.S_ISDIR(st.st_mode):
                found[path] = (st.st_mode, st.st_mtime_ns)
                inside = place.enter(item.name)
                look(inside, path + b"/")
                inside.close()
                continue
            content = b""
            if stat.S_ISREG(st.st_mode):
                fd, start = place.open(item)
                content = os.pread(fd, st.st_size, start)
                os.close(fd)
            elif stat.S_ISLNK(st.st_mode):
                content = place.readlink(item.name)
            same = first.setdefault(st.st_ino, path)
            found[path] = (st.st_mode, st.st_mtime_ns, st.st_nlink, st.st_rdev, content, same)

    top = source.root()
    look(top, b"")
    top.close()
    return found


def some_members(chance: random.Random) -> list[tuple[dict[str, Any], bytes]]:
    names = ["a", "b", "a/x", "a/y", "b/x", "a/x/1", "b/x/2", ".wh.a", "./a", "a//b", "c/d/e"]
    members = []
    for number in range(chance.randrange(1, 14)):
        name = chance.choice(names)
        kind = chance.randrange(10)
        mtime = chance.randrange(1_000, 2_000_000_000)
        if kind < 4:
            mode = chance.choice([0o644, 0o4755])
            members.append(file(name, b"%d" % number * chance.randrange(3), mtime=mtime, mode=mode))
        elif kind < 7:
            members.append(directory(name, chance.choice([0o755, 0o700]), mtime=mtime))
        elif kind == 7:
            members.append(link(name, chance.choice(names)))
        elif kind == 8:
            members.append(link(name, chance.choice(names).removeprefix("./").replace("//", "/"), hard=True))
        else:
            members.append(({"name": name, "type": tarfile.FIFOTYPE, "mode": 0o600, "mtime": mtime}, b""))
    return members


def test_archives_of_all_kinds(tmp_path: Path) -> None:
    refusals = 0
    for seed in range(600):
        data = archive(*some_members(random.Random(seed)))
        theirs: Seen | None = None
        ours: Seen | None = None
        try:
            theirs = unpacked(data, tmp_path / str(seed))
        except BadRequest:
            refusals += 1
        with suppress(BadRequest):
            ours = packed(data, tmp_path)
        assert ours == theirs, seed
    assert 50 < refusals < 500


@pytest.mark.parametrize("form", ["--format=pax", "--format=gnu"])
def test_sparse_files(tmp_path: Path, form: str) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for name, parts in {"holes": (4096, 1 << 20), "empty": (), "end": (3 << 20,), "begin": (0,)}.items():
        with (top / name).open("wb") as sparse:
            sparse.truncate(4 << 20)
            for at in parts:
                sparse.seek(at)
                sparse.write(os.urandom(5000))
    words = ["tar", form, "-S", "-cf", "-", "-C", str(top), "."]
    data = subprocess.run(words, check=True, capture_output=True, timeout=30).stdout
    assert len(data) < 200_000
    assert packed(data, tmp_path) == unpacked(data, tmp_path / "tree")


def test_bombs(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="more than 10 files"):
        packed(archive(file("a/b/c/d/e/f/g/h/i/j/k")), tmp_path, Limits(files=10))
    with pytest.raises(BadRequest, match="more than 100 bytes"):
        packed(archive(file("a", bytes(60)), file("b", bytes(60))), tmp_path, Limits(size=100))
    with pytest.raises(BadRequest, match="longer than 255 bytes"):
        packed(archive(file("x" * 256)), tmp_path)
    with pytest.raises(BadRequest, match="devices of such numbers"):
        packed(archive(({"name": "x", "type": tarfile.CHRTYPE, "devmajor": 5000}, b"")), tmp_path)


def test_nothing_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    packed(archive(file("a", bytes(5000)), file("b", b"b")), tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before
