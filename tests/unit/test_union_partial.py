"""Partial files: what was written lies in the upper, the rest is read from below until it is filled in."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.union import attributes, syscalls
from layerfs.union.copyup import CopyUp, copy_up
from layerfs.union.extents import reports_extents
from layerfs.union.fillin import FillIn
from layerfs.union.node import File
from layerfs.union.partial import Partial
from layerfs.union.spans import Spans
from layerfs.union.unfinished import finish_tree, make_whole
from tests.unit.union_support import Tree

pytestmark = pytest.mark.root

SIZE = 300_001


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert reports_extents(fd), "the tests need a filesystem that reports extents"
    finally:
        os.close(fd)
    made = Tree(tmp_path)
    (made.lowers[0] / "d").mkdir()
    (made.lowers[0] / "d/big").write_bytes(random.Random(1).randbytes(SIZE))
    os.utime(made.lowers[0] / "d/big", ns=(1, 1_500_000_000_000_000_001))
    yield made
    made.close()


def opened(tree: Tree) -> Tree:
    tree.open()
    tree.union.thin_from = 4096
    return tree


def thin_copy(tree: Tree, path: str, length: int | None = None) -> File:
    """Copy a file up so that it is partial."""
    node = tree.file(path)
    job = CopyUp(tree.union, node, length, thin=True)
    try:
        job.copy()
        job.finish()
    finally:
        job.close()
    assert node.partial is not None
    return node


def partial_of(node: File) -> Partial:
    assert node.partial is not None
    return node.partial


def contents(node: File) -> bytes:
    return partial_of(node).read(0, 1 << 30)


def marks(path: Path) -> set[str]:
    return {name for name in os.listxattr(path) if "overlay" in name and not name.endswith("layerfs.ino")}


def test_spans_equal_a_set_of_numbers() -> None:
    rng = random.Random(5)
    for _ in range(50):
        spans, numbers = Spans(), set[int]()
        for _ in range(60):
            start = rng.randrange(200)
            end = start + rng.randrange(20)
            spans.add(start, end)
            numbers |= set(range(start, end))
            start = rng.randrange(200)
            end = start + rng.randrange(60)
            missing = [number for span in spans.missing(start, end) for number in range(*span)]
            assert missing == [number for number in range(start, end) if number not in numbers]


def test_a_byte_written_to_a_large_file_takes_one_block(tree: Tree) -> None:
    node = thin_copy(opened(tree), "d/big")
    before = (tree.lowers[0] / "d/big").read_bytes()
    partial_of(node).write(100_000, b"!")
    st = (tree.upper / "d/big").stat()
    assert st.st_size == SIZE
    assert st.st_blocks * 512 <= 3 * 4096  # with its attributes
    assert contents(node) == before[:100_000] + b"!" + before[100_001:]
    assert marks(tree.upper / "d/big") == {
        "trusted.overlay.metacopy",
        "trusted.overlay.redirect",
        "trusted.overlay.layerfs.partial",
    }


def test_a_whole_one_is_in_the_form_of_overlayfs(tree: Tree) -> None:
    node = thin_copy(opened(tree), "d/big")
    partial_of(node).write(5, b"new")
    os.utime(tree.upper / "d/big", ns=(2, 1_600_000_000_000_000_001))
    make_whole(tree.union, node)
    wanted = bytearray((tree.lowers[0] / "d/big").read_bytes())
    wanted[5:8] = b"new"
    assert (tree.upper / "d/big").read_bytes() == wanted
    assert marks(tree.upper / "d/big") == set()
    assert (tree.upper / "d/big").stat().st_mtime_ns == 1_600_000_000_000_000_001
    assert node.partial is None
    assert not tree.union.partials
    assert tree.union.is_whole(node)
    tree.write("d/big", b"x", SIZE)
    assert (tree.upper / "d/big").stat().st_size == SIZE + 1


def test_what_was_cut_off_does_not_come_back(tree: Tree) -> None:
    node = thin_copy(opened(tree), "d/big")
    before = (tree.lowers[0] / "d/big").read_bytes()
    attributes.truncate(tree.union, node, 10_000)
    attributes.truncate(tree.union, node, 50_000)
    wanted = before[:10_000].ljust(50_000, b"\0")
    assert contents(node) == wanted
    assert as_after_a_crash(tree, "d/big") == wanted
    make_whole(tree.union, node)
    assert (tree.upper / "d/big").read_bytes() == wanted


def test_a_copy_for_a_cut_is_as_long_as_it_will_be(tree: Tree) -> None:
    node = thin_copy(opened(tree), "d/big", 20_000)
    partial_of(node).write(30_000, b"end")
    wanted = (tree.lowers[0] / "d/big").read_bytes()[:20_000].ljust(30_000, b"\0") + b"end"
    assert contents(node) == wanted
    make_whole(tree.union, node)
    assert (tree.upper / "d/big").read_bytes() == wanted


def as_after_a_crash(tree: Tree, path: str) -> bytes:
    """Return what a file has by its marks and extents alone, as the next process sees it."""
    upper = tree.upper / path
    lower = tree.lowers[0] / os.fsdecode(os.getxattr(upper, "trusted.overlay.redirect"))[1:]
    limit = int(os.getxattr(upper, "trusted.overlay.layerfs.partial"))
    partial = Partial.load(os.open(upper, os.O_RDWR), os.open(lower, os.O_RDONLY), limit)
    try:
        return partial.read(0, 1 << 30)
    finally:
        partial.close()


def test_what_was_allocated_and_read_is_not_there(tree: Tree) -> None:
    node = thin_copy(opened(tree), "d/big")
    partial_of(node).write(100_000, b"!")
    syscalls.fallocate(partial_of(node).fd, 1, 0, SIZE)  # as a fill does, which may be cut short then
    assert (tree.upper / "d/big").read_bytes()[:4096] == bytes(4096)  # and is in the page cache now
    before = (tree.lowers[0] / "d/big").read_bytes()
    assert as_after_a_crash(tree, "d/big") == before[:100_000] + b"!" + before[100_001:]


def random_change(rng: random.Random, tree: Tree, node: File, model: bytearray) -> None:
    """Do one thing to a partial file and to a plain copy of it."""
    partial = partial_of(node)
    what = rng.random()
    if what < 0.6:
        offset = rng.randrange(len(model) + 20_000) if rng.random() < 0.9 else rng.randrange(64) * 4096
        data = rng.randbytes(rng.choice((1, 7, 4095, 4096, 4097, 9000, 40_000)))
        partial.write(offset, data)
        model.extend(bytes(max(0, offset - len(model))))
        model[offset : offset + len(data)] = data
    elif what < 0.75:
        length = rng.choice((rng.randrange(len(model) + 10_000), rng.randrange(80) * 4096))
        attributes.truncate(tree.union, node, length)
        del model[length:]
        model.extend(bytes(length - len(model)))
    else:
        for start, end in partial.left(rng.choice((4096, 8192, 65536)), rng.randrange(SIZE) & ~4095):
            partial.fill(start, end)


@pytest.mark.parametrize("seed", range(6))
def test_at_random_it_equals_a_plain_copy(tree: Tree, seed: int) -> None:
    rng = random.Random(seed)
    with (tree.lowers[0] / "d/big").open("r+b") as lower:  # with holes of its own
        for _ in range(rng.randrange(4)):
            lower.seek(rng.randrange(SIZE))
            lower.truncate(lower.tell() + 1)
            lower.truncate(SIZE)
            lower.write(rng.randbytes(3000))
            lower.seek(rng.randrange(SIZE))
            lower.write(rng.randbytes(3000))
        lower.truncate(SIZE)
    model = bytearray((tree.lowers[0] / "d/big").read_bytes())
    node = thin_copy(opened(tree), "d/big")
    for _ in range(60):
        random_change(rng, tree, node, model)
        offset, size = rng.randrange(len(model) + 5000), rng.randrange(50_000)
        assert partial_of(node).read(offset, size) == model[offset : offset + size]
        if rng.random() < 0.2:
            assert as_after_a_crash(tree, "d/big") == model
    assert contents(node) == model
    assert as_after_a_crash(tree, "d/big") == model
    make_whole(tree.union, node)
    assert (tree.upper / "d/big").read_bytes() == model


@pytest.mark.parametrize("seed", range(4))
def test_a_process_killed_at_any_moment_leaves_what_it_has_done(tree: Tree, seed: int) -> None:
    """A child changes the file at random, says so after each change, and is killed."""
    before = (tree.lowers[0] / "d/big").read_bytes()
    done, told = os.pipe()
    child = os.fork()
    if child == 0:
        node, model, rng = thin_copy(opened(tree), "d/big"), bytearray(before), random.Random(seed)
        while True:
            random_change(rng, tree, node, model)
            os.write(told, b".")
    os.close(told)
    try:
        count = sum(len(os.read(done, 1)) for _ in range(random.Random(seed).randrange(1, 200)))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    count += len(os.read(done, 1 << 20))
    os.close(done)
    found = as_after_a_crash(tree, "d/big")

    (tree.top / "replay").mkdir()
    replay = Tree(tree.top / "replay")
    (replay.lowers[0] / "d").mkdir()
    (replay.lowers[0] / "d/big").write_bytes(before)
    node, model, rng = thin_copy(opened(replay), "d/big"), bytearray(before), random.Random(seed)
    for _ in range(count):
        random_change(rng, replay, node, model)
    last = bytes(model)
    random_change(rng, replay, node, model)
    replay.close()
    assert is_between(found, last, bytes(model))


def is_between(found: bytes, one: bytes, other: bytes) -> bool:
    """Tell whether each byte is that of one of the two, or of a file that is being cut or made longer."""
    if len(found) not in (len(one), len(other)):
        return False
    one, other = (each[: len(found)].ljust(len(found), b"\0") for each in (one, other))
    return found in (one, other) or all(byte in pair for byte, *pair in zip(found, one, other, strict=True))


class TestAfterAKill:
    def left(self, tree: Tree) -> bytes:
        """Leave what a killed process does, and return what the file has to be."""
        (tree.lowers[0] / "other").write_bytes(b"o" * 100_000)
        node = thin_copy(opened(tree), "d/big")
        partial_of(node).write(7777, b"written")
        moved = thin_copy(tree, "other")
        partial_of(moved).write(0, b"first")
        tree.rename("other", "elsewhere")
        tree.rename("d", "e")
        wanted = contents(node)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        for each in list(tree.union.partials):  # what the end of a process does, and no more
            each.drop_partial()
        tree.union.close()
        tree.union = None  # type: ignore[assignment]
        return wanted

    def test_the_next_one_finishes_it(self, tree: Tree) -> None:
        wanted = self.left(tree)
        assert (tree.work / "partial").exists()
        tree.open()
        upper = tree.union.upper
        assert upper is not None
        assert upper.may_have_partial()
        assert finish_tree(upper, upper.make_durable) == []
        assert (tree.upper / "e/big").read_bytes() == wanted
        assert (tree.upper / "elsewhere").read_bytes() == b"first" + b"o" * 99_995
        assert marks(tree.upper / "e/big") == marks(tree.upper / "elsewhere") == set()
        assert tree.read("e/big") == wanted

    def test_what_cannot_be_finished_is_read_and_written_all_the_same(self, tree: Tree) -> None:
        wanted = self.left(tree)
        opened(tree)
        node = tree.file("e/big")
        assert contents(node) == wanted
        partial_of(node).write(0, b"more")
        assert contents(node) == b"more" + wanted[4:]
        make_whole(tree.union, node)
        assert (tree.upper / "e/big").read_bytes() == b"more" + wanted[4:]

    def test_in_a_lower_layer_it_is_an_error_and_never_the_old_contents(self, tree: Tree) -> None:
        self.left(tree)
        upper, work = tree.top / "next", tree.top / "next-work"
        upper.mkdir()
        work.mkdir()
        tree.lowers.append(tree.upper)
        tree.upper, tree.work = upper, work
        tree.open()
        with pytest.raises(OSError, match="Input/output error"):
            tree.file("e/big")

    def test_without_its_file_below_it_is_an_error(self, tree: Tree) -> None:
        self.left(tree)
        (tree.lowers[0] / "d/big").unlink()
        tree.open()
        upper = tree.union.upper
        assert upper is not None
        assert [error.filename for error in finish_tree(upper, upper.make_durable)] == [b"e/big"]
        with pytest.raises(OSError, match="Input/output error"):
            tree.file("e/big")

    def test_a_mark_without_the_other_means_nothing(self, tree: Tree) -> None:
        opened(tree)
        copy_up(tree.union, tree.file("d/big"))
        os.setxattr(tree.upper / "d/big", "trusted.overlay.layerfs.partial", b"100")
        upper = tree.union.upper
        assert upper is not None
        assert finish_tree(upper, upper.make_durable) == []
        assert marks(tree.upper / "d/big") == set()


def test_a_lower_file_that_has_become_shorter_is_an_error(tree: Tree) -> None:
    node = thin_copy(opened(tree), "d/big")
    os.truncate(tree.lowers[0] / "d/big", 1000)
    with pytest.raises(OSError, match="Input/output error"):
        contents(node)
    with pytest.raises(OSError, match="Input/output error"):
        make_whole(tree.union, node)
    assert node.partial is not None
    assert "trusted.overlay.layerfs.partial" in os.listxattr(tree.upper / "d/big")


def test_removed_files_are_not_waited_for(tree: Tree) -> None:
    node = thin_copy(opened(tree), "d/big")
    node.references += 1
    before = (tree.lowers[0] / "d/big").read_bytes()
    tree.unlink("d/big")
    assert not tree.union.partials
    tree.commit()
    partial_of(node).write(1, b"?")
    assert contents(node) == before[:1] + b"?" + before[2:]
    tree.union.forget(node, 1)


def test_an_orderly_end_leaves_no_note(tree: Tree) -> None:
    node = thin_copy(opened(tree), "d/big")
    assert (tree.work / "partial").exists()
    make_whole(tree.union, node)
    tree.close()
    assert not (tree.work / "partial").exists()


def test_files_with_other_names_are_copied_whole(tree: Tree) -> None:
    os.link(tree.lowers[0] / "d/big", tree.lowers[0] / "d/also")
    opened(tree)
    job = CopyUp(tree.union, tree.file("d/big"), thin=True)
    assert not job.is_thin
    job.close()


def test_nothing_is_partial_where_there_is_no_room(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tree)
    real = os.fstatvfs(tree.union.layers[0].root.fd())

    class Full:
        f_bavail, f_frsize, f_bsize = 10, 4096, real.f_bsize

    monkeypatch.setattr(os, "fstatvfs", lambda fd: Full)
    node = tree.file("d/big")
    job = CopyUp(tree.union, node, thin=True)
    job.copy()
    job.finish()
    job.close()
    assert tree.union.is_whole(node)
    assert (tree.upper / "d/big").read_bytes() == (tree.lowers[0] / "d/big").read_bytes()


def test_metadata_alone_becomes_partial_by_the_first_write(tree: Tree) -> None:
    opened(tree)
    tree.union.metacopy = True
    node = tree.file("d/big")
    job = CopyUp(tree.union, node, metadata_only=True, thin=True)
    job.copy()
    job.finish()
    job.close()
    assert node.partial is None
    fill = FillIn(tree.union, node, thin=True)
    fill.copy()
    fill.finish()
    fill.close()
    partial_of(node).write(0, b"new")
    wanted = b"new" + (tree.lowers[0] / "d/big").read_bytes()[3:]
    assert contents(node) == wanted
    assert as_after_a_crash(tree, "d/big") == wanted
    make_whole(tree.union, node)
    assert (tree.upper / "d/big").read_bytes() == wanted
