"""Copy-ups in the event loop and in threads: which go where."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.fuse.contents import Contents
from layerfs.union.upper import Upper
from tests.conftest import errno_of
from tests.unit.union_support import Tree

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    for number in range(20):
        (made.lowers[0] / f"small{number}").write_bytes(b"x" * 2000)
    with (made.lowers[0] / "small0").open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError:
            pytest.skip("this filesystem does not say what is in memory")
    yield made
    if made.union is not None:
        made.union.close()


def test_little_data_in_memory_is_copied_at_once(tree: Tree) -> None:
    os.symlink("target", tree.lowers[0] / "link")
    os.mkfifo(tree.lowers[0] / "fifo")
    (tree.lowers[0] / "empty").touch()
    tree.open()
    contents = Contents(tree.union, durable=False)  # a disk may be slow
    names = ("small1", "link", "fifo", "empty")
    for name in names:
        assert contents.bring_in_place(tree.file(name))
        assert (tree.upper / name).lstat().st_mode == (tree.lowers[0] / name).lstat().st_mode
    assert (tree.upper / "small1").read_bytes() == b"x" * 2000
    assert contents.copies == len(names)
    assert contents.bring_in_place(tree.file("small1"))
    assert contents.copies == len(names)


def test_a_cut_copies_what_is_left(tree: Tree) -> None:
    tree.open()
    assert Contents(tree.union).bring_in_place(tree.file("small1"), 10)
    assert (tree.upper / "small1").read_bytes() == b"x" * 10


def test_much_data_and_links_are_left_to_a_thread(tree: Tree) -> None:
    (tree.lowers[0] / "large").write_bytes(bytes(100_000))
    os.link(tree.lowers[0] / "small2", tree.lowers[0] / "other")
    tree.open()
    contents = Contents(tree.union)
    for name in ("large", "small2", "other"):
        assert not contents.bring_in_place(tree.file(name))
    assert contents.copies == 0
    assert os.listdir(tree.upper) == []


def test_data_that_is_not_in_memory_is_left_to_a_thread(tree: Tree) -> None:
    with (tree.lowers[0] / "small1").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    tree.open()
    assert not Contents(tree.union).bring_in_place(tree.file("small1"))


async def test_a_slow_disk_is_waited_for_in_threads(tree: Tree) -> None:
    os.symlink("target", tree.lowers[0] / "link")
    tree.open()
    contents = Contents(tree.union)
    upper = tree.union.upper
    assert isinstance(upper, Upper)
    quick = upper.make_durable
    upper.make_durable = lambda fd: time.sleep(0.02)
    assert contents.bring_in_place(tree.file("link"))  # has nothing to wait for
    assert contents.bring_in_place(tree.file("small0"))  # nobody knows yet
    assert not contents.bring_in_place(tree.file("small1"))
    assert contents.is_in_place(tree.file("small0"))
    upper.make_durable = lambda fd: None
    for number in range(1, 19):
        await contents.copy_up(tree.file(f"small{number}"))
    upper.make_durable = quick
    assert contents.bring_in_place(tree.file("small19"))
    assert contents.copies == 21


def test_a_failure_leaves_everything_as_it_was(tree: Tree) -> None:
    tree.open()
    contents = Contents(tree.union)
    upper = tree.union.upper
    assert isinstance(upper, Upper)

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    upper.make_durable = fail
    assert errno_of(lambda: contents.bring_in_place(tree.file("small1"))) == errno.ENOSPC
    assert os.listdir(tree.upper) == []
    assert os.listdir(upper.work) == []
    assert not contents.is_in_place(tree.file("small1"))
    assert contents.copies == 0
