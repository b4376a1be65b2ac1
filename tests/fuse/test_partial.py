"""Large files that are changed: what the mount shows, and how much the upper holds, now and in the end."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, wait_until

pytestmark = pytest.mark.root

MIB = 1 << 20
SIZE = 6 * MIB + 5
PARTIAL = "trusted.overlay.layerfs.partial"
METACOPY = "trusted.overlay.metacopy"


@pytest.fixture
def big(stack: Stack) -> Stack:
    """A stack with a large file in its lowest layer, in a directory."""
    (stack.bottom / "d").mkdir()
    (stack.bottom / "d/big").write_bytes(random.Random(1).randbytes(SIZE))
    os.utime(stack.bottom / "d/big", ns=(1, 1_500_000_000_000_000_001))
    return stack


def is_partial(path: Path) -> bool:
    return bool({PARTIAL, METACOPY} & set(os.listxattr(path)))


def write_at(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


def test_one_byte_costs_a_block_and_then_the_file_gets_whole(big: Stack) -> None:
    mnt = big.mount("-o", "partial=fill")
    wanted = bytearray((big.bottom / "d/big").read_bytes())
    write_at(mnt / "d/big", 3 * MIB + 7, b"!")
    wanted[3 * MIB + 7] = ord("!")
    upper = big.upper / "d/big"
    assert upper.stat().st_size == SIZE
    assert (mnt / "d/big").read_bytes() == wanted
    wait_until(lambda: not is_partial(upper))
    assert upper.read_bytes() == wanted
    assert (mnt / "d/big").read_bytes() == wanted
    assert os.listxattr(upper) == ["trusted.overlay.layerfs.ino"]


def test_the_time_of_the_last_write_stays(big: Stack) -> None:
    mnt = big.mount("-o", "partial=fill")
    write_at(mnt / "d/big", 5, b"new")
    os.utime(mnt / "d/big", ns=(2, 1_600_000_000_000_000_001))
    wait_until(lambda: not is_partial(big.upper / "d/big"))
    assert (big.upper / "d/big").stat().st_mtime_ns == 1_600_000_000_000_000_001
    big.remount()
    assert (mnt / "d/big").stat().st_mtime_ns == 1_600_000_000_000_000_001


def test_changed_mode_alone_copies_nothing_at_once(big: Stack) -> None:
    mnt = big.mount("-o", "partial=fill")
    (mnt / "d/big").chmod(0o600)
    assert (mnt / "d/big").read_bytes() == (big.bottom / "d/big").read_bytes()
    wait_until(lambda: not is_partial(big.upper / "d/big"))
    assert (big.upper / "d/big").read_bytes() == (big.bottom / "d/big").read_bytes()
    assert (big.upper / "d/big").stat().st_mtime_ns == 1_500_000_000_000_000_001


@pytest.mark.parametrize("seed", range(2))
def test_at_random_the_mount_shows_what_a_plain_file_would(big: Stack, seed: int) -> None:
    mnt = big.mount("-o", "partial=fill")
    plain = big.directory / "plain"
    plain.write_bytes((big.bottom / "d/big").read_bytes())
    rng = random.Random(seed)
    fds = [os.open(path, os.O_RDWR) for path in (plain, mnt / "d/big")]
    direct = os.open(mnt / "d/big", os.O_RDWR | os.O_DIRECT)
    try:
        for _ in range(100):
            what, offset = rng.random(), rng.randrange(SIZE + MIB)
            if what < 0.5:
                data = rng.randbytes(rng.choice((1, 100, 4096, 5000, 70_000, 600_000)))
                for fd in fds:
                    os.pwrite(fd, data, offset)
            elif what < 0.6:
                page = mmap.mmap(-1, 16384)
                page.write(rng.randbytes(16384))
                os.pwrite(fds[0], page, offset & ~4095)
                os.pwritev(direct, [page], offset & ~4095)
            elif what < 0.7:
                for fd in fds:
                    os.ftruncate(fd, SIZE - offset % (2 * MIB))
            elif what < 0.72:
                for fd in fds:
                    os.fsync(fd)
            else:
                one, other = (os.pread(fd, 200_000, offset) for fd in fds)
                assert one == other
        assert (mnt / "d/big").read_bytes() == plain.read_bytes()
        for fd in fds:
            with mmap.mmap(fd, 1 * MIB) as area:
                area[5000:5005] = b"12345"
        wanted = plain.read_bytes()
        assert (mnt / "d/big").read_bytes() == wanted
    finally:
        for fd in (*fds, direct):
            os.close(fd)
    big.remount()
    assert (mnt / "d/big").read_bytes() == wanted
    assert (big.upper / "d/big").read_bytes() == wanted
    assert not is_partial(big.upper / "d/big")


def test_holes_are_punched_in_whole_files(big: Stack) -> None:
    mnt = big.mount("-o", "partial=fill")
    wanted = bytearray((big.bottom / "d/big").read_bytes())
    write_at(mnt / "d/big", 0, b"x")
    subprocess.run(
        ["fallocate", "--punch-hole", "--offset", str(MIB), "--length", str(MIB), mnt / "d/big"], check=True
    )
    wanted[0] = ord("x")
    wanted[MIB : 2 * MIB] = bytes(MIB)
    assert (mnt / "d/big").read_bytes() == wanted
    assert (big.upper / "d/big").read_bytes() == wanted


def test_names_that_come_and_go_meanwhile(big: Stack) -> None:
    mnt = big.mount("-o", "partial=fill")
    wanted = b"new" + (big.bottom / "d/big").read_bytes()[3:]
    write_at(mnt / "d/big", 0, b"new")
    (mnt / "d/big").rename(mnt / "moved")
    os.link(mnt / "moved", mnt / "d/also")
    (mnt / "d").rename(mnt / "e")
    assert (mnt / "moved").read_bytes() == (mnt / "e/also").read_bytes() == wanted
    (mnt / "moved").unlink()
    wait_until(lambda: not is_partial(big.upper / "e/also"))
    big.remount()
    assert (mnt / "e/also").read_bytes() == (big.upper / "e/also").read_bytes() == wanted


def test_a_removed_one_is_readable_while_it_is_open(big: Stack) -> None:
    mnt = big.mount("-o", "partial=fill")
    wanted = (big.bottom / "d/big").read_bytes()
    fd = os.open(mnt / "d/big", os.O_RDWR)
    try:
        os.pwrite(fd, b"new", 0)
        (mnt / "d/big").unlink()
        big.commit()
        os.pwrite(fd, b"more", 2 * MIB)
        found = b"".join(os.pread(fd, MIB, at) for at in range(0, SIZE, MIB))
    finally:
        os.close(fd)
    assert found == b"new" + wanted[3 : 2 * MIB] + b"more" + wanted[2 * MIB + 4 :]


def test_a_commit_seals_whole_files(big: Stack, layerfs: Layerfs) -> None:
    mnt = big.mount("-o", "partial=fill")
    wanted = b"new" + (big.bottom / "d/big").read_bytes()[3:]
    write_at(mnt / "d/big", 0, b"new")
    big.commit()
    sealed = [path for path in layerfs.directory.rglob("fs/d/big") if path.is_file()]
    assert [path.read_bytes() == wanted and not is_partial(path) for path in sealed] == [True]
    assert (mnt / "d/big").read_bytes() == wanted
    write_at(mnt / "d/big", 1, b"E")
    assert (mnt / "d/big").read_bytes() == b"nEw" + wanted[3:]


def test_commits_while_large_files_are_written_to(big: Stack, layerfs: Layerfs) -> None:
    for number in range(6):
        (big.bottom / f"{number}").write_bytes(random.Random(number).randbytes(3 * MIB))
    mnt = big.mount("-o", "partial=fill")
    models = [bytearray((big.bottom / f"{number}").read_bytes()) for number in range(6)]
    stop = threading.Event()

    def write() -> None:
        rng = random.Random(7)
        while not stop.is_set():
            number, offset = rng.randrange(6), rng.randrange(3 * MIB - 10)
            data = rng.randbytes(10)
            write_at(mnt / f"{number}", offset, data)
            models[number][offset : offset + 10] = data

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            big.commit()
    finally:
        stop.set()
        writer.join()
    big.remount()
    for number in range(6):
        assert (mnt / f"{number}").read_bytes() == models[number]
    assert not [path for path in layerfs.directory.rglob("*") if path.is_file() and is_partial(path)]


def test_an_export_has_what_was_written(big: Stack, layerfs: Layerfs) -> None:
    mnt = big.mount("-o", "partial=fill")
    write_at(mnt / "d/big", 0, b"new")
    archive = big.directory / "out.tar"
    layerfs.ok("export", "-o", archive, big.name)
    found = subprocess.run(["tar", "xOf", archive, "d/big"], check=True, capture_output=True).stdout
    assert found == b"new" + (big.bottom / "d/big").read_bytes()[3:]


def test_off_copies_whole(big: Stack) -> None:
    mnt = big.mount("-o", "partial=off")
    write_at(mnt / "d/big", 0, b"new")
    assert not is_partial(big.upper / "d/big")
    assert (big.upper / "d/big").read_bytes() == b"new" + (big.bottom / "d/big").read_bytes()[3:]


class TestAfterAKill:
    def killed(self, big: Stack) -> bytes:
        """Write to large files, have the daemon killed before they are whole; return what one has."""
        mnt = big.mount("-o", "partial=keep")
        pid = big.layerfs.pid(big.name)
        fd = os.open(mnt / "d/big", os.O_RDWR)
        os.pwrite(fd, b"new", 0)
        os.pwrite(fd, b"far", 5 * MIB)
        os.fsync(fd)
        os.kill(pid, signal.SIGKILL)
        with suppress(ConnectionAbortedError):
            os.close(fd)
        assert is_partial(big.upper / "d/big")
        lower = (big.bottom / "d/big").read_bytes()
        return b"new" + lower[3 : 5 * MIB] + b"far" + lower[5 * MIB + 3 :]

    def test_the_next_daemon_goes_on(self, big: Stack) -> None:
        wanted = self.killed(big)
        mnt = big.mount("-o", "partial=fill")
        assert (mnt / "d/big").read_bytes() == wanted
        wait_until(lambda: not is_partial(big.upper / "d/big"))
        assert (big.upper / "d/big").read_bytes() == wanted
        big.umount()
        assert not (big.work / "partial").exists()

    def test_a_commit_at_rest_seals_whole_files(self, big: Stack, layerfs: Layerfs) -> None:
        wanted = self.killed(big)
        layerfs.ok("umount", big.name)
        assert layerfs("commit", big.name, "img").returncode == 0
        sealed = [path for path in layerfs.directory.rglob("fs/d/big") if path.is_file()]
        assert [path.read_bytes() == wanted and not is_partial(path) for path in sealed] == [True]

    def test_an_export_at_rest_has_what_was_written(self, big: Stack, layerfs: Layerfs) -> None:
        wanted = self.killed(big)
        layerfs.ok("umount", big.name)
        archive = big.directory / "out.tar"
        layerfs.ok("export", "-o", archive, big.name)
        found = subprocess.run(["tar", "xOf", archive, "d/big"], check=True, capture_output=True).stdout
        assert found == wanted

    def test_a_read_only_mount_shows_it(self, big: Stack) -> None:
        wanted = self.killed(big)
        mnt = big.mount("-o", "ro")
        assert (mnt / "d/big").read_bytes() == wanted
