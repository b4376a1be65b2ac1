"""What has lost its name while somebody uses it: files, directories, and the space they take."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Stack, errno_of, wait_until

pytestmark = pytest.mark.root


@pytest.fixture(params=["lower", "copied", "upper"])
def file(request: pytest.FixtureRequest, stack: Stack) -> Path:
    """A mounted file in a lower layer, in both, in the upper alone; its content is "content"."""
    if request.param != "upper":
        (stack.bottom / "file").write_bytes(b"before!" if request.param == "copied" else b"content")
    path = stack.mount() / "file"
    if request.param != "lower":
        path.write_bytes(b"content")
    return path


def use(fd: int) -> None:
    """Read, write, cut and look at a file without a name."""
    assert os.pread(fd, 100, 0) == b"content"
    os.pwrite(fd, b"CON", 0)
    os.ftruncate(fd, 5)
    os.fchmod(fd, 0o600)
    os.pwrite(fd, b"far", 100_000)
    os.fsync(fd)
    assert os.pread(fd, 7, 0) == b"CONte\0\0"
    st = os.fstat(fd)
    assert (st.st_size, st.st_nlink, st.st_mode & 0o777) == (100_003, 0, 0o600)


@pytest.mark.parametrize("way", ["unlink", "replace"])
def test_an_open_file_without_a_name(file: Path, stack: Stack, way: str) -> None:
    fd = os.open(file, os.O_RDWR)
    if way == "unlink":
        file.unlink()
    else:
        (stack.mnt / "other").write_text("other")
        (stack.mnt / "other").rename(file)
    use(fd)
    if way == "replace":
        assert file.read_text() == "other"
    else:
        assert errno_of(file.stat) == errno.ENOENT
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(again, 3) == b"CON"
    os.close(again)
    os.close(fd)
    assert os.listdir(stack.mnt) == ([] if way == "unlink" else ["file"])


def test_over_a_commit(file: Path, stack: Stack) -> None:
    fd = os.open(file, os.O_RDWR)
    file.unlink()
    stack.commit()
    use(fd)
    stack.commit()
    assert os.pread(fd, 3, 0) == b"CON"
    os.close(fd)
    assert os.listdir(stack.remount()) == []


def test_a_file_that_only_a_descriptor_reads(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    file.unlink()
    file.write_bytes(b"another of the same name")
    assert os.pread(fd, 100, 0) == b"content"
    os.close(fd)


def test_its_last_name_of_two(file: Path) -> None:
    os.link(file, file.with_name("link"))
    fd = os.open(file, os.O_RDWR)
    file.unlink()
    os.pwrite(fd, b"CON", 0)
    assert file.with_name("link").read_bytes() == b"CONtent"
    assert os.fstat(fd).st_nlink == 1
    file.with_name("link").rename(file)
    assert file.read_bytes() == b"CONtent"
    file.unlink()
    assert os.fstat(fd).st_nlink == 0
    assert os.pread(fd, 100, 0) == b"CONtent"
    os.close(fd)


def test_files_made_without_a_name_are_not_offered(mnt: Path) -> None:
    """Programs that ask for O_TMPFILE fall back when it is EOPNOTSUPP (open(2))."""
    assert errno_of(lambda: os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o600)) == errno.EOPNOTSUPP
    assert os.listdir(mnt) == []


def test_the_space_comes_back(mnt: Path, stack: Stack) -> None:
    def backing() -> list[str]:
        fds = f"/proc/{stack.layerfs.pid(stack.name)}/fd"
        targets = []
        for fd in os.listdir(fds):
            with suppress(FileNotFoundError):  # closed meanwhile
                targets.append(os.readlink(f"{fds}/{fd}"))
        return [target for target in targets if target.endswith("/file (deleted)")]

    fd = os.open(mnt / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(1 << 20))
    os.unlink(mnt / "file")
    assert backing()
    os.close(fd)
    wait_until(lambda: not backing())


@pytest.mark.parametrize("where", ["bottom", "upper"])
def test_a_removed_working_directory(stack: Stack, where: str) -> None:
    inner = (stack.bottom if where == "bottom" else stack.upper) / "dir/inner"
    inner.mkdir(parents=True)
    mnt = stack.mount()
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir(mnt / "dir/inner")
        os.rmdir(mnt / "dir/inner")
        os.rmdir(mnt / "dir")
        assert os.listdir(".") == []
        assert os.stat(".").st_nlink == 0
        assert errno_of(lambda: Path("new").touch()) == errno.ENOENT
        assert errno_of(lambda: os.mkdir("new")) == errno.ENOENT
        assert errno_of(os.getcwd) == errno.ENOENT
        stack.commit()
        assert os.listdir(".") == []
        (mnt / "dir").mkdir()
        (mnt / "dir/inner").mkdir()
        assert errno_of(lambda: Path("new").touch()) == errno.ENOENT
    finally:
        os.fchdir(back)
        os.close(back)
    assert os.listdir(mnt / "dir/inner") == []


def test_a_renamed_working_directory(stack: Stack) -> None:
    (stack.bottom / "dir/inner").mkdir(parents=True)
    mnt = stack.mount()
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir(mnt / "dir/inner")
        (mnt / "dir").rename(mnt / "moved")
        assert Path.cwd() == mnt / "moved/inner"
        stack.commit()
        Path("new").write_text("new")
    finally:
        os.fchdir(back)
        os.close(back)
    assert (mnt / "moved/inner/new").read_text() == "new"
