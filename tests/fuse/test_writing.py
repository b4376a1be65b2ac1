"""Writing to new files and to files of lower layers: every way to open, extend, cut and map them."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from tests.conftest import Stack, errno_of

pytestmark = pytest.mark.root
OLD = b"old content\n"
GIB = 1 << 30


@pytest.fixture
def lower(stack: Stack) -> Path:
    """A mounted file of a lower layer."""
    (stack.bottom / "file").write_bytes(OLD)
    return stack.mount() / "file"


def opened(path: Path, flags: int) -> int:
    """Open *path* and return the descriptor."""
    return os.open(path, flags | os.O_CLOEXEC, 0o644)


def test_append_to_a_lower_file(lower: Path, stack: Stack) -> None:
    with lower.open("ab") as file:
        file.write(b"more\n")
    assert lower.read_bytes() == OLD + b"more\n"
    assert (stack.bottom / "file").read_bytes() == OLD
    assert (stack.upper / "file").read_bytes() == OLD + b"more\n"


def test_two_that_append_never_overwrite_each_other(mnt: Path) -> None:
    one, two = (opened(mnt / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2))
    for number in range(200):
        os.write(one, b"one %d\n" % number)
        os.write(two, b"two %d\n" % number)
    os.close(one)
    os.close(two)
    lines = (mnt / "log").read_bytes().splitlines()
    assert lines == [text % number for number in range(200) for text in (b"one %d", b"two %d")]


def test_truncating_open_of_a_lower_file(lower: Path, stack: Stack) -> None:
    fd = opened(lower, os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    os.write(fd, b"new")
    os.close(fd)
    assert lower.read_bytes() == (stack.upper / "file").read_bytes() == b"new"


def test_exclusive_creation(lower: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    assert errno_of(lambda: opened(lower, flags)) == errno.EEXIST
    lower.unlink()
    os.close(opened(lower, flags))
    assert errno_of(lambda: opened(lower, flags)) == errno.EEXIST
    assert lower.read_bytes() == b""


def test_opening_to_write_copies_nothing(lower: Path, stack: Stack) -> None:
    fd = opened(lower, os.O_RDWR)
    assert os.pread(fd, 100, 0) == OLD
    assert not (stack.upper / "file").exists()
    os.pwrite(fd, b"OLD", 0)
    assert os.pread(fd, 100, 0) == b"OLD content\n"
    os.close(fd)
    assert (stack.upper / "file").read_bytes() == b"OLD content\n"


def test_truncating_lower_files(stack: Stack) -> None:
    lengths = (0, 3, len(OLD), 10_000)
    for length in lengths:
        (stack.bottom / str(length)).write_bytes(OLD)
    mnt = stack.mount()
    for length in lengths:
        os.truncate(mnt / str(length), length)
        expected = OLD[:length].ljust(length, b"\0")
        assert (mnt / str(length)).read_bytes() == (stack.upper / str(length)).read_bytes() == expected
        assert (mnt / str(length)).stat().st_size == length


def test_a_cut_takes_cached_data_along(mnt: Path) -> None:
    fd = opened(mnt / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 10_000)
    os.ftruncate(fd, 5000)
    os.ftruncate(fd, 10_000)
    assert os.pread(fd, 20_000, 0) == b"x" * 5000 + bytes(5000)
    os.close(fd)
    assert (mnt / "file").read_bytes() == b"x" * 5000 + bytes(5000)


def test_holes_stay_holes(mnt: Path, stack: Stack) -> None:
    with (mnt / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    st = (mnt / "sparse").stat()
    assert st.st_size == (64 << 20) + 3
    assert st.st_blocks * 512 < 1 << 20
    assert (stack.upper / "sparse").stat().st_blocks * 512 < 1 << 20


def test_past_4_gib(mnt: Path, stack: Stack) -> None:
    fd = opened(mnt / "huge", os.O_RDWR | os.O_CREAT)
    for number, offset in enumerate((2 * GIB - 2, 4 * GIB - 2, 6 * GIB + 5)):  # 31, 32 bits
        os.pwrite(fd, b"%04d" % number, offset)
    os.fsync(fd)
    for number, offset in enumerate((2 * GIB - 2, 4 * GIB - 2, 6 * GIB + 5)):
        assert os.pread(fd, 4, offset) == b"%04d" % number
        with (stack.upper / "huge").open("rb") as below:
            assert os.pread(below.fileno(), 4, offset) == b"%04d" % number
    assert os.pread(fd, 100, 6 * GIB) == bytes(5) + b"0002"
    os.close(fd)
    assert (mnt / "huge").stat().st_size == 6 * GIB + 9


def test_a_private_mapping_changes_nothing(lower: Path, stack: Stack) -> None:
    with lower.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        assert mapped[:] == OLD
        mapped[:3] = b"XXX"
        assert mapped[:4] == b"XXX "
    assert lower.read_bytes() == OLD
    assert not (stack.upper / "file").exists()


def test_a_shared_mapping_of_a_lower_file(lower: Path, stack: Stack) -> None:
    with lower.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:3] = b"NEW"
        assert lower.read_bytes() == b"NEW content\n"
        mapped.flush()
        assert (stack.upper / "file").read_bytes() == b"NEW content\n"
        mapped[4:7] = b"CON"
        os.pwrite(file.fileno(), b"!", 11)
        assert mapped[:] == b"NEW CONtent!"
    assert (stack.bottom / "file").read_bytes() == OLD
    stack.umount()
    assert (stack.upper / "file").read_bytes() == b"NEW CONtent!"


def test_a_mapping_outlives_its_descriptor_and_its_name(mnt: Path) -> None:
    (mnt / "file").write_bytes(bytes(8192))
    with (mnt / "file").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    (mnt / "file").unlink()
    mapped[4096:4100] = b"here"
    mapped.flush()
    assert mapped[4090:4104] == bytes(6) + b"here" + bytes(4)
    mapped.close()


def test_a_mapping_sees_what_is_written_after_copy_up(lower: Path) -> None:
    with lower.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:3] == b"old"
        with lower.open("r+b") as writer:
            writer.write(b"NEW")
        assert mapped[:] == b"NEW content\n"


def test_times_after_a_write(lower: Path) -> None:
    before = lower.stat()
    os.utime(lower, ns=(1, 1_000_000_007))
    assert lower.stat().st_mtime_ns == 1_000_000_007
    with lower.open("ab") as file:
        file.write(b"x")
    after = lower.stat()
    assert after.st_mtime_ns >= before.st_ctime_ns
    assert after.st_ctime_ns >= before.st_ctime_ns


def test_times_to_the_nanosecond(stack: Stack) -> None:
    times = (0, 1, -1, 999_999_999, 4_102_444_800_123_456_789, -2_000_000_000_000_000_001)
    for number in range(len(times)):
        (stack.bottom / str(number)).touch()
    mnt = stack.mount()
    for number, ns in enumerate(times):
        os.utime(mnt / str(number), ns=(ns, ns))
    for view in (mnt, stack.remount()):
        for number, ns in enumerate(times):
            st = (view / str(number)).stat()
            assert (st.st_atime_ns, st.st_mtime_ns) == (ns, ns)


def test_a_write_through_one_name_is_read_through_another_descriptor(mnt: Path) -> None:
    writer = opened(mnt / "file", os.O_WRONLY | os.O_CREAT)
    reader = opened(mnt / "file", os.O_RDONLY)
    for number in range(50):
        os.write(writer, b"%03d\n" % number)
        assert os.pread(reader, 4, number * 4) == b"%03d\n" % number
    os.close(writer)
    os.close(reader)


def test_directories_and_read_only_descriptors_are_not_written(lower: Path) -> None:
    fd = opened(lower, os.O_RDONLY)
    assert errno_of(lambda: os.write(fd, b"x")) == errno.EBADF
    os.close(fd)
    assert errno_of(lambda: opened(lower.parent, os.O_WRONLY)) == errno.EISDIR
