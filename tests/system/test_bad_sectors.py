"""A lower layer with bad sectors, wherever in a request they lie: good data or an error, never zeros.

The kernel fills a short answer with zeros and keeps them as what is in the file, so these tests read in all
the ways that lead to other requests: large and small, past the cache, through a mapping, with reading ahead.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.conftest import Stack, errno_of, wait_until
from tests.system.failing_lower import SIZE, SPOTS, content, mounted

pytestmark = pytest.mark.root
PAGE = 4096
CONTENT = content()
NAMES = [name.decode() for name in SPOTS]


class Broken(NamedTuple):
    """A mounted stack, and the standard input and output of who serves its lowest layer."""

    mnt: Path
    stack: Stack
    input: IO[bytes]
    output: IO[bytes]


@pytest.fixture(params=["extension", "no extension"])
def broken(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Broken]:
    """A stack whose lowest layer has bad sectors."""
    if request.param == "no extension":
        stack.layerfs.environment["LAYERFS_EXTENSION"] = "0"
    lower = stack.directory / "failing"
    lower.mkdir()
    with mounted(lower) as (go_on, output):
        stack.bottom = lower
        try:
            yield Broken(stack.mount(), stack, go_on, output)
        finally:
            go_on.close()
            stack.layerfs.end()


def bad_page(name: str) -> int:
    """Return where the page begins that cannot be read: errors are kept by the page."""
    return SPOTS[name.encode()] // PAGE * PAGE


def read(fd: int, memory: mmap.mmap, offset: int) -> tuple[int, int]:
    """Read into *memory* from *offset*; return an errno, 0 if it works, and how many bytes it was."""
    try:
        return 0, os.preadv(fd, [memory], offset)
    except OSError as error:
        return error.errno or -1, 0


def read_around(fd: int, name: str, size: int) -> int:
    """Read all of *fd* by *size* bytes, on behind what cannot be read; return how many bytes were good."""
    good = at = 0
    memory = mmap.mmap(-1, size)  # O_DIRECT wants whole pages
    while at < SIZE:
        code, count = read(fd, memory, at)
        if code:
            assert code == errno.EIO
            assert at <= bad_page(name) < at + size
            at += size
        else:
            assert count > 0, "the file ended too early"
            assert memory[:count] == CONTENT[at : at + count]
            good += count
            at += count
    return good


def test_what_is_read_is_right_or_an_error(broken: Broken) -> None:
    for name in NAMES:
        for size in (1 << 20, 1 << 17, 3 * PAGE):
            with (broken.mnt / name).open("rb", buffering=0) as file:
                assert SIZE - PAGE - size <= read_around(file.fileno(), name, size) <= SIZE - PAGE
                assert read_around(file.fileno(), name, PAGE) == SIZE - PAGE, "a good page could not be read"
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_the_same_past_the_cache(broken: Broken) -> None:
    for name in NAMES:
        for size in (1 << 20, 1 << 17, PAGE):
            fd = os.open(broken.mnt / name, os.O_RDONLY | os.O_DIRECT)
            try:
                assert SIZE - PAGE - size <= read_around(fd, name, size) <= SIZE - PAGE
            finally:
                os.close(fd)


def test_a_mapping_of_a_bad_sector_is_a_bus_error(broken: Broken) -> None:
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:\n"
        "    sys.stdout.buffer.write(memory[int(sys.argv[2]) : int(sys.argv[3])])"
    )

    def through_mapping(name: str, start: int, end: int) -> subprocess.CompletedProcess[bytes]:
        words = [sys.executable, "-c", program, str(broken.mnt / name), str(start), str(end)]
        return subprocess.run(words, capture_output=True, timeout=30, check=False)

    for name in NAMES:
        bad = bad_page(name)
        assert through_mapping(name, bad, bad + 1).returncode == -signal.SIGBUS
        for start, end in ((0, bad), (bad + PAGE, SIZE)):
            assert through_mapping(name, start, end).stdout == CONTENT[start:end]


def test_a_bad_sector_is_never_copied_up_as_zeros(broken: Broken) -> None:
    upper, work = broken.stack.upper, broken.stack.work / "work"
    for name in NAMES:
        path, bad = broken.mnt / name, bad_page(name)
        actions = (partial(os.chmod, path, 0o600), partial(os.truncate, path, bad + PAGE))
        for action in actions:
            assert errno_of(action) == errno.EIO
            assert not (upper / name).exists()
            assert set(os.listdir(work)) <= {"whiteout"}
        os.truncate(path, bad)  # for this much, nothing bad has to be read
        assert path.read_bytes() == (upper / name).read_bytes() == CONTENT[:bad]


def test_reads_that_a_disk_holds_up_stop_no_writes(broken: Broken) -> None:
    """There are more of them than threads to read, and fewer than the kernel's own limit, which is 12."""
    fd = os.open(broken.mnt / "slow", os.O_RDONLY | os.O_DIRECT)
    goes_on = threading.Event()

    def read_slowly(offset: int) -> None:
        assert read(fd, mmap.mmap(-1, PAGE), offset) == (0, PAGE)

    def go_on() -> None:
        goes_on.set()
        broken.input.write(b"go on")
        broken.input.flush()

    relief = threading.Timer(30, go_on)  # who waits for the disk cannot be killed
    relief.start()
    with ThreadPoolExecutor(10) as threads:
        reading = [threads.submit(read_slowly, number << 17) for number in range(10)]
        for _ in range(4):
            assert broken.output.readline() == b"reading\n"
        for size in (1 << 20, 100):
            with (broken.mnt / f"new-{size}").open("wb") as file:
                file.write(b"x" * size)
                os.fsync(file.fileno())
        broken.stack.commit()
        assert not goes_on.is_set(), "it was waited for the disk"
        relief.cancel()
        go_on()
        for done in reading:
            done.result(30)
    os.close(fd)
    assert (broken.mnt / f"new-{1 << 20}").stat().st_size == 1 << 20


@pytest.mark.parametrize("broken", ["extension"], indirect=True)  # without, the daemon waits for the read
def test_who_waits_for_a_disk_is_let_go_when_the_mount_ends(broken: Broken) -> None:
    """A disk may take for ever; the device is closed all the same, and the late answer goes nowhere."""
    broken.stack.layerfs.expect_log("is in use: unmounted it lazily", "ends, although process")
    program = "import sys; open(sys.argv[1], 'rb', buffering=0).read(100)"
    words = [sys.executable, "-c", program, str(broken.mnt / "slow")]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as reader:
        try:
            assert broken.output.readline() == b"reading\n"
            status, answer = broken.stack.layerfs.ask("stack", "POST", "/layerfs/unmount?force=1")
            assert (status, answer) == (204, b"")
            message = reader.communicate(timeout=30)[1].splitlines()[-1]
            assert message.startswith((b"OSError: [Errno 107]", b"ConnectionAbortedError")), message
        finally:
            broken.input.write(b"go on")
            broken.input.flush()
            reader.kill()
    wait_until(lambda: not broken.stack.layerfs.processes())
