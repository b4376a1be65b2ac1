"""The power goes while files are partial: what was synced is there, the rest old or new, never zeros."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from layerfs.union.layer import Layer
from layerfs.union.node import File
from layerfs.union.unfinished import finish_tree, take_up
from layerfs.union.upper import Upper
from layerfs.union.view import Union
from tests.conftest import Layerfs, Stack, wait_until
from tests.system.power import Disk

pytestmark = pytest.mark.root

FILES = 12
SIZE = 3 << 20
STEP = 300_007
"""Between the places in a file that are written to."""


def new(number: int, place: int) -> bytes:
    """Return what is written at a place of a file: its length is no block's, and it has no zeros."""
    return without_zeros(number * 100 + place, 5001)


def old(number: int) -> bytes:
    """Return what it has before."""
    return without_zeros(number, SIZE)


def without_zeros(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size).replace(b"\0", b"\1")


class Writer(threading.Thread):
    """Writes to one place after the other of all files, and syncs some; knows which are on the disk."""

    def __init__(self, mnt: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._mnt = mnt
        self._rng = random.Random(seed)
        self.synced: dict[int, int] = {}
        self.done = 0

    def run(self) -> None:
        try:
            for place in range(SIZE // STEP):
                for number in range(FILES):
                    fd = os.open(self._mnt / f"{number}", os.O_WRONLY)
                    try:
                        os.pwrite(fd, new(number, place), place * STEP)
                        if self._rng.random() < 0.2:
                            os.fsync(fd)
                            self.synced[number] = place
                    finally:
                        os.close(fd)
                    self.done += 1
                    time.sleep(self._rng.random() * 0.02)
        except OSError:
            pass  # the power is gone


def contents(union: Union, number: int) -> bytes:
    node = union.lookup(union.root, b"%d" % number)
    assert isinstance(node, File)
    if node.partial is not None:
        return node.partial.read(0, SIZE)
    return os.pread(union.data(node), SIZE, 0)


def check(found: bytes, number: int, synced: int) -> None:
    """Assert that a file has its old contents with what was written, all that was synced and maybe more."""
    before = old(number)
    assert len(found) == SIZE
    end = 0
    for place in range(SIZE // STEP):
        start = place * STEP
        assert found[end:start] == before[end:start], (number, place)
        written, there = new(number, place), found[start : start + 5001]
        end = start + len(written)
        if place <= synced:
            assert there == written, (number, place, "was synced")
        else:
            pairs = zip(there, written, before[start:end], strict=True)
            assert all(byte in both for byte, *both in pairs), (number, place)
    assert found[end:] == before[end:]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "features"), [("ext4", ()), ("xfs", ("-m", "reflink=0"))])
def test_a_power_cut(layerfs: Layerfs, kind: str, features: tuple[str, ...], seed: int) -> None:
    disk = Disk(layerfs.directory, *features, kind=kind)
    layerfs.directory = disk.path
    layerfs.expect_log("")  # whatever a daemon says whose disk is gone
    stack = Stack(layerfs)
    for number in range(FILES):
        (stack.bottom / f"{number}").write_bytes(old(number))
    os.sync()
    writer = Writer(stack.mount("-o", "partial=fill"), seed)
    writer.start()
    wait_until(lambda: writer.done > random.Random(seed).randrange(FILES, 6 * FILES), 60)
    synced = dict(writer.synced)
    disk.lose_power(layerfs)
    writer.join(30)

    union = Union([Layer(stack.bottom), Layer(stack.top)], Upper(stack.upper, stack.work))
    assert union.upper is not None
    take_up(union)
    for number in range(FILES):
        check(contents(union, number), number, synced.get(number, -1))
    finish_tree(union.upper, union.upper.make_durable)
    for number in range(FILES):
        copy = stack.upper / f"{number}"
        if copy.exists():
            check(copy.read_bytes(), number, synced.get(number, -1))
    union.close()
