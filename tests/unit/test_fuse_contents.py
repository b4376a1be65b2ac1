"""Copy-ups in the event loop and in threads: which go where, and what a commit has to do with it."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from layerfs.fuse.contents import Contents
from layerfs.union import links, syscalls
from layerfs.union.layer import Layer
from layerfs.union.moves import Move
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


async def test_the_loop_searches_no_layer_where_a_directory_isrenamed_during_a_search(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.lowers[0] / "dir").mkdir()
    (tree.lowers[0] / "moved").mkdir()
    os.link(tree.lowers[0] / "small1", tree.lowers[0] / "dir/other")
    (tree.upper / "not-empty").touch()  # or it would be known that nothing was renamed
    tree.open()
    searches: list[threading.Thread] = []
    search = links.renamed

    def renamed(layer: Layer) -> Iterator[Move]:
        if layer is tree.union.upper:
            searches.append(threading.current_thread())
        yield from search(layer)
        if len(searches) == 1:
            tree.rename("dir", "moved/dir")  # the loop waits for this thread: it is as if that did it

    monkeypatch.setattr(links, "renamed", renamed)
    await Contents(tree.union).copy_up(tree.file("small1"))
    assert len(searches) == 2
    assert threading.main_thread() not in searches
    assert (tree.upper / "moved/dir/other").samefile(tree.upper / "small1")


class Held:
    """Takes the place of a function that a thread calls, and calls it when told to."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        self._begun = threading.Event()
        self._go_on = threading.Event()

    def __call__(self, *arguments: object) -> object:
        self._begun.set()
        assert self._go_on.wait(30)
        return self._function(*arguments)

    async def begun(self) -> None:
        """Return once a thread makes the call."""
        assert await trio.to_thread.run_sync(self._begun.wait, 30)

    def go_on(self) -> None:
        """Let it be made."""
        self._go_on.set()


@pytest.mark.parametrize("change", ["fallocate", "filling in"])
async def test_a_commit_waits_for_what_a_thread_changes(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    tree.open()
    contents, node, order = Contents(tree.union), tree.file("small1"), list[str]()
    upper = tree.union.upper
    assert isinstance(upper, Upper)
    if change == "fallocate":
        await contents.copy_up(node)
        held = Held(syscalls.fallocate)
        monkeypatch.setattr(syscalls, "fallocate", held)
    else:
        tree.union.metacopy = True
        await contents.copy_up(node, metadata_only=True)
        held = Held(upper.make_durable)
        monkeypatch.setattr(upper, "make_durable", held)

    async def make_change() -> None:
        if change == "fallocate":
            await contents.fallocate(node, 0, 0, 1 << 20)
        else:
            await contents.copy_up(node)
        order.append("changed")

    async def seal() -> None:
        async with contents.unchanging():
            order.append("sealed")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_change)
            await held.begun()
            nursery.start_soon(seal)
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            held.go_on()
    assert order == ["changed", "sealed"]


@pytest.mark.parametrize("change", ["fallocate", "filling in"])
async def test_what_comes_during_a_commit_changes_the_next_upper(tree: Tree, change: str) -> None:
    tree.open()
    contents, node, sealed = Contents(tree.union), tree.file("small1"), tree.upper / "small1"
    tree.union.metacopy = change == "filling in"
    await contents.copy_up(node, metadata_only=change == "filling in")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, contents.unchanging():
            before = sealed.stat(), os.listxattr(sealed), sealed.read_bytes()
            if change == "fallocate":
                nursery.start_soon(contents.fallocate, node, 0, 0, 1 << 20)
            else:
                nursery.start_soon(contents.copy_up, node)
            await trio.testing.wait_all_tasks_blocked()
            tree.commit()
    assert (sealed.stat().st_mtime_ns, sealed.stat().st_size) == (before[0].st_mtime_ns, before[0].st_size)
    assert (os.listxattr(sealed), sealed.read_bytes()) == before[1:]
    size = 1 << 20 if change == "fallocate" else 2000
    assert (tree.upper / "small1").read_bytes() == (b"x" * 2000).ljust(size, b"\0")


class Extension:
    """Takes the place of the extension: one of its threads writes until it is told to go on."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.revoked = 0

    def pending_writes(self) -> int:
        """Return how many threads write."""
        return not self.free.is_set()

    def wait_for_writes(self) -> None:
        """Return when they are done."""
        assert self.free.wait(30)

    def revoke_all(self) -> None:
        """Count."""
        self.revoked += 1


async def test_the_loop_goes_on_while_a_commit_waits_for_writes_and_no_write_begins(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension, order = Extension(), list[str]()
    monkeypatch.setattr("layerfs.fuse.wire.extension", extension)
    tree.open()
    contents, node = Contents(tree.union), tree.file("small1")
    await contents.copy_up(node)

    async def seal() -> None:
        async with contents.unchanging():
            assert not extension.pending_writes()
            order.append("sealed")
            tree.commit()

    async def write() -> None:
        await contents.write(node, 0, b"new")
        order.append("written")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(seal)
            await trio.testing.wait_all_tasks_blocked()
            assert not contents.lets_write
            assert extension.revoked
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            extension.free.set()
    assert order == ["sealed", "written"]
    assert (tree.upper / "small1").read_bytes()[:3] == b"new"
    assert tree.union.layers[1].path == os.fsencode(tree.lowers[-1])
    assert (tree.lowers[-1] / "small1").read_bytes() == b"x" * 2000
