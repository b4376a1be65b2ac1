"""The power goes during copy-ups: what a journalled filesystem has on disk then is what the next mount finds.

What was synced before is in `test_durability`.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time

import pytest

from layerfs.union import durability, syscalls
from tests.conftest import Layerfs, Stack, wait_until
from tests.system.power import Disk

pytestmark = pytest.mark.root
FILES = 400


@pytest.fixture
def disk(layerfs: Layerfs) -> Disk:
    """A disk of 256 MiB with a journal; `layerfs` unmounts it in the end, whatever happens."""
    return Disk(layerfs.directory)


def test_which_filesystems_keep_the_order(disk: Disk) -> None:
    fd = os.open(disk.path, os.O_RDONLY)
    assert durability.settler(fd) is syscalls.write_back
    os.close(fd)
    disk.unplug()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", disk.image], check=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", disk.image, disk.path], check=True, timeout=20)
    fd = os.open(disk.path, os.O_RDONLY)
    assert durability.settler(fd) is os.fsync
    os.close(fd)
    fd = os.open("/dev/shm", os.O_RDONLY)
    assert durability.settler(fd) is os.fsync
    os.close(fd)


def test_a_power_cut_leaves_old_files_or_whole_copies(layerfs: Layerfs, disk: Disk) -> None:
    layerfs.directory = disk.path
    layerfs.expect_log("")  # whatever a daemon says whose disk is gone
    stack = Stack(layerfs)
    contents = [random.Random(number).randbytes(3000 + 40 * number) for number in range(FILES)]
    for number, content in enumerate(contents):
        (stack.bottom / f"{number}").write_bytes(content)
    os.sync()
    mnt = stack.mount()
    done = 0

    def change() -> None:
        nonlocal done
        for number in range(FILES):
            try:
                with (mnt / f"{number}").open("r+b", buffering=0) as file:
                    file.write(b"changed")
            except OSError:
                return  # the power is gone
            done = number
            time.sleep(0.01)

    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    wait_until(lambda: done > FILES // 2, 30)
    disk.cut()
    changing.join(30)
    disk.lose_power(layerfs)
    copies = [path for path in stack.upper.iterdir() if path.is_file()]
    assert copies
    for path in copies:
        old = contents[int(path.name)]
        assert path.read_bytes() in (old, b"changed" + old[7:]), path.name
        assert path.stat().st_size == len(old)
