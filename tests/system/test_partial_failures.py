"""Partial files whose rest cannot be read, or for which there is no room: nothing is lost or zeros."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, errno_of, fill, wait_until
from tests.system.failing_lower import BROKEN_FROM, SIZE, content, mounted

pytestmark = pytest.mark.root
FILL = ("-o", "partial=fill")
MIB = 1 << 20
PARTIAL = "trusted.overlay.layerfs.partial"


def write_at(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


class TestBrokenDisk:
    """The file below has a part that cannot be read."""

    @pytest.fixture
    def mnt(self, stack: Stack) -> Iterator[Path]:
        """A mounted stack whose lowest layer is broken."""
        lower = stack.directory / "failing"
        lower.mkdir()
        stack.layerfs.expect_log("is a partial copy yet", "stays a partial copy")
        with mounted(lower):
            stack.bottom = lower
            try:
                yield stack.mount(*FILL)
            finally:
                stack.layerfs.end()

    def test_what_is_whole_is_read_and_written(self, mnt: Path, stack: Stack) -> None:
        write_at(mnt / "read", 5, b"new")
        with (mnt / "read").open("rb", buffering=0) as file:
            assert file.read(8) == content()[:5] + b"new"
            file.seek(BROKEN_FROM + 4096)
            assert errno_of(lambda: file.read(4096)) == errno.EIO
        assert errno_of(lambda: write_at(mnt / "read", BROKEN_FROM + 5000, b"part of a block")) == errno.EIO
        write_at(mnt / "read", BROKEN_FROM + 8192, b"b" * 4096)
        assert (mnt / "read").stat().st_size == SIZE
        assert PARTIAL in os.listxattr(stack.upper / "read")

    def test_a_commit_says_which_file_it_is_and_changes_nothing(
        self, mnt: Path, stack: Stack, layerfs: Layerfs
    ) -> None:
        write_at(mnt / "read", 5, b"new")
        said = layerfs.refused("commit", stack.name, "img")
        assert "read" in said
        assert "Input/output error" in said
        assert (mnt / "read").open("rb").read(8) == content()[:5] + b"new"
        (mnt / "read").unlink()
        assert layerfs("commit", stack.name, "img").returncode == 0

    def test_it_can_be_replaced(self, mnt: Path) -> None:
        write_at(mnt / "read", 5, b"new")
        (mnt / "read").write_bytes(b"all new")
        assert (mnt / "read").read_bytes() == b"all new"


class TestFullDisk:
    """An ext4 of 64 MiB for the upper; what is below lies elsewhere."""

    @pytest.fixture
    def disk(self, layerfs: Layerfs) -> Path:
        image, path = layerfs.directory / "disk.ext4", layerfs.directory / "disk"
        path.mkdir()
        with image.open("wb") as file:
            file.truncate(64 * MIB)
        subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=30)
        subprocess.run(["mount", "-o", "loop", image, path], check=True, timeout=20)
        return path

    @pytest.fixture
    def big(self, stack: Stack, disk: Path) -> Stack:
        (stack.bottom / "big").write_bytes(random.Random(1).randbytes(12 * MIB))
        stack.upper, stack.work = disk / "upper", disk / "work"
        stack.upper.mkdir()
        stack.work.mkdir()
        return stack

    def test_it_is_refused_before_anything_is_written(self, big: Stack, disk: Path) -> None:
        mnt = big.mount(*FILL)
        fill(disk, leave=4 * MIB)
        assert errno_of(lambda: write_at(mnt / "big", 0, b"new")) == errno.ENOSPC
        assert not (big.upper / "big").exists()

    def test_what_was_written_stays_when_others_take_the_room(
        self, big: Stack, disk: Path, layerfs: Layerfs
    ) -> None:
        mnt = big.mount("-o", "partial=keep")
        wanted = b"new" + (big.bottom / "big").read_bytes()[3:]
        write_at(mnt / "big", 0, b"new")
        ballast = fill(disk, leave=2 * MIB)
        said = layerfs.refused("commit", big.name, "img")
        assert "No space left" in said
        assert (mnt / "big").read_bytes() == wanted
        big.umount()
        ballast.unlink()
        mnt = big.mount("-o", "partial=keep")
        assert (mnt / "big").read_bytes() == wanted
        assert layerfs.ok("diff", big.name) == "C /big"

    def test_the_fill_goes_on_once_there_is_room(self, big: Stack, disk: Path, layerfs: Layerfs) -> None:
        layerfs.expect_log("is a partial copy yet")
        mnt = big.mount("-o", "partial=keep")
        write_at(mnt / "big", 0, b"new")
        ballast = fill(disk, leave=2 * MIB)
        big.umount()
        mnt = big.mount(*FILL)
        assert (mnt / "big").open("rb").read(3) == b"new"
        ballast.unlink()
        wait_until(lambda: PARTIAL not in os.listxattr(big.upper / "big"), 30)
        assert (big.upper / "big").read_bytes() == b"new" + (big.bottom / "big").read_bytes()[3:]
