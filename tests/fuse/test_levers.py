"""What people do, with every part that is only there for speed on and off.

The other tests of this directory run with everything on. Here the main behaviours run through the kernel
in each combination; a mount says which it is.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import NOBODY, Layerfs, Stack, as_user, errno_of, wait_until

pytestmark = pytest.mark.root

LEVERS = {
    "everything": {},
    "no extension": {"LAYERFS_EXTENSION": "0"},
    "no polling": {"LAYERFS_BUSYPOLL": "0"},
    "neither": {"LAYERFS_EXTENSION": "0", "LAYERFS_BUSYPOLL": "0"},
}


@pytest.fixture(params=LEVERS)
def levers(request: pytest.FixtureRequest) -> str:
    """The name of a combination."""
    name: str = request.param
    return name


@pytest.fixture
def stack(layerfs: Layerfs, levers: str) -> Stack:
    """Directories to mount with that combination."""
    layerfs.environment |= LEVERS[levers]
    stack = Stack(layerfs)
    (stack.bottom / "d").mkdir()
    (stack.bottom / "d/low").write_bytes(b"from below" * 1000)
    os.link(stack.bottom / "d/low", stack.bottom / "d/alias")
    (stack.bottom / "both").write_bytes(b"bottom")
    (stack.top / "both").write_bytes(b"top")
    (stack.bottom / "target").symlink_to("d/low")
    return stack


def test_status_says_what_is_at_work(stack: Stack, levers: str) -> None:
    stack.mount()
    lines = dict(
        line.split(": ", 1) for line in stack.layerfs.ok("status", stack.name).splitlines() if ": " in line
    )
    off = "switched off by "
    if "LAYERFS_EXTENSION" in LEVERS[levers]:
        assert lines["Extension"] == f"not active: {off}LAYERFS_EXTENSION=0"
    else:
        assert lines["Extension"].startswith("active")
    if "LAYERFS_BUSYPOLL" in LEVERS[levers]:
        assert lines["Busy polling"] == f"not active: {off}LAYERFS_BUSYPOLL=0"
    else:
        assert lines["Busy polling"].startswith(
            "active" if len(os.sched_getaffinity(0)) > 1 else "not active"
        )


def test_reading(stack: Stack) -> None:
    mnt = stack.mount()
    assert sorted(os.listdir(mnt)) == ["both", "d", "target"]
    assert (mnt / "both").read_bytes() == b"top"
    assert (mnt / "target").read_bytes() == b"from below" * 1000
    assert (mnt / "target").readlink() == Path("d/low")
    assert (mnt / "d/low").stat().st_nlink == 2
    assert errno_of(lambda: (mnt / "none").lstat()) == errno.ENOENT
    with (mnt / "d/low").open("rb") as file:
        with closing(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)) as memory:
            assert memory[10_000 - 5 :] == b"below"
        assert os.pread(file.fileno(), 100, 9_990) == b"from below"
        assert os.pread(file.fileno(), 100, 10_000) == b""


def _told(fd: int) -> tuple[int, int, int, int, int]:
    """Return what fstat(2) says once the kernel has been given a reason to ask: a close."""
    os.close(os.dup(fd))
    st = os.fstat(fd)
    return st.st_ino, st.st_nlink, st.st_size, st.st_blocks, stat.S_IMODE(st.st_mode)


def test_attributes_of_a_lower_file_until_it_changes(stack: Stack) -> None:
    (stack.bottom / "lone").write_bytes(b"x" * 9000)
    (stack.bottom / "gone").write_bytes(b"y" * 9000)
    mnt = stack.mount()
    lone, gone, low = (os.open(mnt / name, os.O_RDONLY) for name in ("lone", "gone", "d/low"))
    before = _told(lone)
    assert before == _told(lone) == _told(lone)
    assert before[1:3] == (1, 9000)
    assert before[3] > 0
    (mnt / "lone").chmod(0o600)
    assert _told(lone) == (*before[:4], 0o600)
    with (mnt / "lone").open("ab") as file:
        file.write(b"x")
    assert _told(lone)[1:3] == (1, 9001)
    os.link(mnt / "lone", mnt / "second")
    assert _told(lone)[1] == 2

    assert _told(gone)[1] == _told(gone)[1] == 1
    (mnt / "gone").unlink()
    assert _told(gone)[1:3] == (0, 9000)
    assert _told(low)[1] == _told(low)[1] == 2
    (mnt / "d/alias").rename(mnt / "d/other")
    assert _told(low)[1] == 2
    (mnt / "both").rename(mnt / "d/other")
    assert _told(low)[1] == 1
    assert os.pread(gone, 3, 0) == b"yyy"
    for fd in (lone, gone, low):
        os.close(fd)


def test_a_large_file(stack: Stack) -> None:
    data = os.urandom(1 << 20) * 9 + b"end"
    (stack.bottom / "large").write_bytes(data)
    with open("/proc/sys/vm/drop_caches", "w") as caches:
        caches.write("1")  # so that reads have to wait
    mnt = stack.mount()
    assert (mnt / "large").read_bytes() == data
    (mnt / "copy").write_bytes(data)
    assert (stack.upper / "copy").read_bytes() == data
    with (mnt / "large").open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"changed")
    changed = data[:5_000_000] + b"changed" + data[5_000_007:]
    assert (mnt / "large").read_bytes() == changed == (stack.upper / "large").read_bytes()
    assert (stack.bottom / "large").read_bytes() == data


def test_writing(stack: Stack) -> None:
    mnt = stack.mount()
    fd = os.open(mnt / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    assert os.write(fd, b"0123456789") == 10
    assert os.pread(fd, 4, 3) == b"3456"
    os.ftruncate(fd, 5)
    os.fsync(fd)
    os.fdatasync(fd)
    assert (stack.upper / "new").read_bytes() == b"01234"
    directory = os.open(mnt / "d", os.O_RDONLY)
    lower = os.open(mnt / "both", os.O_RDONLY)
    for each in (directory, lower):
        os.fsync(each)
        os.close(each)
    os.close(fd)
    assert errno_of(lambda: os.close(os.open(mnt / "new", os.O_CREAT | os.O_EXCL))) == errno.EEXIST
    with (mnt / "new").open("ab") as file:
        file.write(b"56")
    with (mnt / "both").open("wb") as file:  # cuts a lower file
        file.write(b"x")
    with (mnt / "d/low").open("r+b") as file:
        file.write(b"FROM")
    assert (mnt / "new").read_bytes() == b"0123456"
    assert (mnt / "d/alias").read_bytes()[:10] == b"FROM below"
    mnt = stack.remount()
    assert (mnt / "new").read_bytes() == b"0123456"
    assert stat.S_IMODE((mnt / "new").stat().st_mode) == 0o640
    assert (mnt / "both").read_bytes() == b"x"
    assert (mnt / "d/low").read_bytes()[:10] == b"FROM below"
    assert (mnt / "d/low").samefile(mnt / "d/alias")
    assert (stack.top / "both").read_bytes() == b"top"


def test_names(stack: Stack) -> None:
    mnt = stack.mount()
    (mnt / "dir").mkdir(0o750)
    (mnt / "dir/a").write_text("a")
    (mnt / "dir/link").symlink_to("a")
    os.link(mnt / "dir/a", mnt / "dir/b")
    os.mkfifo(mnt / "dir/fifo")
    os.mknod(mnt / "dir/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(mnt / "dir/socket"))
    (mnt / "dir/a").rename(mnt / "dir/c")
    (mnt / "d/low").rename(mnt / "dir/low")
    (mnt / "d").rename(mnt / "e")
    (mnt / "both").unlink()
    assert errno_of(lambda: os.rmdir(mnt / "dir")) == errno.ENOTEMPTY
    for _ in range(2):
        assert sorted(os.listdir(mnt)) == ["dir", "e", "target"]
        assert sorted(os.listdir(mnt / "dir")) == ["b", "c", "fifo", "link", "low", "null", "socket"]
        assert os.listdir(mnt / "e") == ["alias"]
        assert (mnt / "dir/b").stat().st_nlink == 2
        assert (mnt / "dir/null").stat().st_rdev == os.makedev(1, 3)
        assert (mnt / "e/alias").samefile(mnt / "dir/low")
        assert errno_of((mnt / "both").lstat) == errno.ENOENT
        mnt = stack.remount()
    for entry in os.listdir(mnt / "dir"):
        (mnt / "dir" / entry).unlink()
    (mnt / "dir").rmdir()
    assert not (stack.upper / "dir").exists()


def test_attributes(stack: Stack) -> None:
    mnt = stack.mount()
    path = mnt / "d/low"
    path.chmod(0o6755)
    os.chown(path, 12, 34)  # takes the set-id bits
    os.utime(path, ns=(1_000_000_001, -5_000_000_002))
    os.setxattr(path, "user.colour", b"blue")
    os.truncate(path, 7)
    os.utime(path, ns=(1_000_000_001, -5_000_000_002))
    for _ in range(2):
        st = path.stat()
        assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_size) == (0o755, 12, 34, 7)
        assert (st.st_atime_ns, st.st_mtime_ns) == (1_000_000_001, -5_000_000_002)
        assert os.listxattr(path) == ["user.colour"]
        assert os.getxattr(path, "user.colour") == b"blue"
        with pytest.raises(OSError, match="No data"):
            os.getxattr(path, "user.none")
        path = stack.remount() / "d/low"


def test_a_time_outlives_the_writes_before_it(stack: Stack) -> None:
    mnt = stack.mount()
    with (mnt / "file").open("wb") as file:
        file.write(bytes(4 << 20))
        os.utime(file.fileno(), ns=(5_000_000_000, 6_000_000_007))
    assert (mnt / "file").stat().st_mtime_ns == 6_000_000_007
    assert (stack.remount() / "file").stat().st_mtime_ns == 6_000_000_007
    assert (stack.upper / "file").stat().st_mtime_ns == 6_000_000_007


def test_removed_and_in_use(stack: Stack) -> None:
    mnt = stack.mount()
    for name in ("d/low", "mine"):
        with (mnt / name).open("a+b", buffering=0) as file:
            file.write(b"more")
            size = os.fstat(file.fileno()).st_size
            for other in (mnt / "d/alias", mnt / name):
                other.unlink(missing_ok=True)
            file.write(b" and more")
            assert os.fstat(file.fileno()).st_size == size + 9
            assert os.pread(file.fileno(), 100, size - 4) == b"more and more"
    assert os.listdir(mnt / "d") == []


def test_others_may_do_what_the_mode_says(stack: Stack) -> None:
    mnt = stack.mount()
    (mnt / "theirs").mkdir()
    os.chown(mnt / "theirs", NOBODY, NOBODY)
    assert as_user(NOBODY, lambda: Path("theirs/file").write_text("x"), where=mnt) == 0
    assert as_user(NOBODY, lambda: Path("file").write_text("x"), where=mnt) == errno.EACCES
    assert as_user(NOBODY, lambda: Path("both").chmod(0o777), where=mnt) == errno.EPERM
    assert (mnt / "theirs/file").stat().st_uid == NOBODY


def test_a_commit_has_what_is_open_and_unsynced(stack: Stack) -> None:
    mnt = stack.mount()
    files = [os.open(mnt / f"file{number}", os.O_RDWR | os.O_CREAT) for number in range(20)]
    low = os.open(mnt / "d/low", os.O_RDWR)
    for number, fd in enumerate(files):
        os.write(fd, b"%d" % number * 200_000)
    os.pwrite(low, b"FROM", 0)
    before = stack.layerfs.ok("status", stack.name)
    stack.commit()
    layers = [
        Path(line.strip())
        for line in stack.layerfs.ok("status", stack.name).splitlines()
        if line[:3] == "  /"
    ]
    committed = next(path for path in layers if f"  {path}\n" not in before and (path / "file0").exists())
    sealed = [(committed / f"file{number}").stat() for number in range(20)]
    for fd in (*files, low):
        os.pwrite(fd, b"after", 0)
        os.fsync(fd)
        os.close(fd)
    for number in range(20):
        assert (committed / f"file{number}").read_bytes() == b"%d" % number * 200_000
        assert (committed / f"file{number}").stat().st_ctime_ns == sealed[number].st_ctime_ns
        assert (mnt / f"file{number}").read_bytes()[:5] == b"after"
    assert (committed / "d/low").read_bytes() == b"FROM below" + b"from below" * 999
    assert (mnt / "d/low").read_bytes()[:10] == b"afterbelow"


def test_many_at_once(stack: Stack) -> None:
    mnt = stack.mount()
    failures: list[object] = []

    def work(number: int) -> None:
        try:
            directory = mnt / f"by-{number}"
            directory.mkdir()
            for step in range(60):
                path = directory / f"{step}"
                path.write_bytes(b"%d" % step * 1000)
                path.rename(directory / f"{step}.renamed")
                assert (directory / f"{step}.renamed").read_bytes() == b"%d" % step * 1000
                assert (mnt / "d/low").read_bytes()[:4] == b"from"
                if step % 2:
                    (directory / f"{step}.renamed").unlink()
            assert len(os.listdir(directory)) == 30
        except (OSError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), 50)
    assert not failures


def test_an_idle_mount_uses_no_processor(stack: Stack) -> None:
    mnt = stack.mount()
    for number in range(200):
        (mnt / f"{number}").write_text("x")
    time.sleep(1.5)  # times are settled, polling has stopped

    def ticks() -> int:
        fields = Path(f"/proc/{stack.layerfs.pid(stack.name)}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1)
    assert ticks() - before <= 1
