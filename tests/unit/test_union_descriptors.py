"""Descriptors on the roots of layers: closed when not used, and found again, or an error."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfs.union import merge
from layerfs.union.descriptors import DirectoryCache, Shelf
from layerfs.union.layer import Layer
from layerfs.union.upper import Upper
from layerfs.union.view import Union
from tests.unit.union_support import plain_stack

ROOM = 8


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """A shelf in the directory of the test."""
    found = Shelf(tmp_path)
    yield found
    found.close()


def tree(top: Path, name: str, *files: str) -> Path:
    """Make a tree on the shelf *top* with *files*."""
    path = top / name / "fs"
    path.mkdir(parents=True)
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(f"{name} {file}")
    return path


def count_open() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Let this process open no more than some that a cache may hold, and some more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + ROOM + 8, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_one_look_at_many_layers_takes_few_descriptors(tmp_path: Path, shelf: Shelf) -> None:
    before = count_open()
    directories = DirectoryCache(ROOM)
    layers = [
        Layer(tree(tmp_path, f"l{number}", f"dir/{number}"), shelf=shelf, directories=directories)
        for number in range(100)
    ]
    union = Union(layers, directories=directories)
    with few_descriptors():
        found = merge.resolve(union.root.dirs, b"dir")
        assert isinstance(found, list)
        assert len(merge.names(found)) == len({part.status().st_ino for part in found}) == 100
    union.trim()
    assert count_open() <= before + ROOM + 1
    union.close()
    assert count_open() == before


def test_the_way_to_a_deep_directory_takes_few_descriptors(tmp_path: Path, shelf: Shelf) -> None:
    depth = 200
    path = tree(tmp_path, "layer", "/".join(["d"] * depth) + "/file")
    layer = Layer(path, shelf=shelf, directories=DirectoryCache(ROOM))
    deepest = layer.root
    for _ in range(depth):
        deepest = deepest.child(b"d")
    with few_descriptors():
        assert list(deepest.kinds()) == [b"file"]
        assert os.fstat(deepest.fd())
    layer.close()


def test_what_somebody_holds_is_not_closed_under_him(tmp_path: Path, shelf: Shelf) -> None:
    directories = DirectoryCache(1)
    layers = [
        Layer(tree(tmp_path, f"l{number}", "dir/x"), shelf=shelf, directories=directories)
        for number in range(5)
    ]
    held = []
    for layer in layers:
        layer.root.kinds()
        child = layer.root.child(b"dir")
        child.marks()
        held.append((layer.root.fd(), layer.identity))
        held.append((child.fd(), (child.status().st_dev, child.status().st_ino)))
        child.kinds()
    for fd, identity in held:
        st = os.fstat(fd)
        assert (st.st_dev, st.st_ino) == identity
    for layer in layers:
        layer.close()


@pytest.mark.parametrize("how", ["gone", "replaced", "a link", "a file"])
def test_a_layer_that_is_not_there_any_more_is_an_error(tmp_path: Path, shelf: Shelf, how: str) -> None:
    """Its names must not count as missing: whoever copies the tree would lose them without a word."""
    path = tree(tmp_path, "layer", "file", "dir/inner")
    layer = Layer(path, shelf=shelf)
    union = Union([layer])
    union.directories.trim(0)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if how == "replaced":
        shutil.copytree(elsewhere, path)
    elif how == "a link":
        path.symlink_to(elsewhere)
    elif how == "a file":
        path.touch()
    for look in (lambda: union.lookup(union.root, b"file"), lambda: union.listing(union.root), layer.apart):
        with pytest.raises(OSError) as caught:
            look()
        assert caught.value.errno == errno.EIO
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    elsewhere.rename(path)
    assert union.lookup(union.root, b"file") is not None
    union.close()


def test_a_directory_that_somebody_named_stays_open(tmp_path: Path, shelf: Shelf) -> None:
    outside = tmp_path / "a/b/c"
    outside.mkdir(parents=True)
    (outside / "file").touch()
    layer = Layer(outside, shelf=shelf)
    layer.directories.trim(0)
    outside.rename(tmp_path / "moved")
    assert list(layer.root.kinds()) == [b"file"]
    own = layer.apart()
    assert list(own.root.kinds()) == [b"file"]
    own.close()
    layer.close()


def test_an_upper_holds_its_root_until_it_is_sealed_and_its_work_until_copies_end(
    tmp_path: Path, shelf: Shelf
) -> None:
    lower = Layer(tree(tmp_path, "lower", "file"), shelf=shelf)
    for name in ("one", "two"):
        tree(tmp_path, name)
        (tmp_path / name / "work").mkdir()
    before = count_open()
    upper = Upper(tmp_path / "one/fs", tmp_path / "one/work", shelf=shelf)
    union = Union([lower], upper)
    union.directories.trim(0)
    with pytest.raises(OSError, match="another mount"):
        Upper(tmp_path / "one/fs", tmp_path / "one/work")
    upper.begin_copy()
    after = Upper(tmp_path / "two/fs", tmp_path / "two/work", after=upper)
    union.match_root(after)
    union.switch_upper(after)
    union.directories.trim(0)
    assert os.fstat(upper.work)
    upper.end_copy()
    assert upper.work < 0
    assert count_open() <= before + 2  # the root and the work directory of today's upper
    assert union.lookup(union.root, b"file") is not None
    union.close()


def test_what_is_below_each_layer_of_a_stack(tmp_path: Path) -> None:
    trees = [tmp_path / str(number) for number in range(4)]
    for tree in trees:
        tree.mkdir()
    with plain_stack(*trees).opened(16) as layers:
        for depth, layer in enumerate(layers):
            expected = tuple(reversed(layers[:depth]))
            below = layer.below
            assert (tuple(below), len(below), bool(below)) == (expected, depth, depth > 0)
            assert [below[place] for place in range(-depth, depth)] == [*expected, *expected]
            assert below[1:] == expected[1:]
            for place in (depth, -depth - 1):
                with pytest.raises(IndexError):
                    below[place]
