"""Going back with a mount in use: what its processes see, by name and by what they have open."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from layerfs.client.client import Client
from layerfs.errors import LayerfsError
from tests.conftest import PATIENCE, Layerfs, wait_until

pytestmark = pytest.mark.root
NAME = "agent"


class Live:
    """A mounted image with a checkpoint, and files of each kind."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        tree = layerfs.directory / "tree"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/passwd").write_text("root\n")
        (tree / "d/e").mkdir(parents=True)
        (tree / "d/e/deep").write_text("deep")
        (tree / "file").write_text("old")
        (tree / "same").write_text("same")
        (tree / "gone").write_text("to be removed")
        os.link(tree / "same", tree / "same2")
        os.symlink("file", tree / "link")
        self.mnt = layerfs.directory / "mnt"
        self.mnt.mkdir()
        layerfs.ok("import", tree, "base")
        layerfs.ok("mount", "--image", "base", "--name", NAME, self.mnt)
        self.step = layerfs.ok("checkpoint", NAME)

    def rollback(self, *arguments: str) -> list[str]:
        """Go back; return the ids that are printed."""
        return self.layerfs.ok("rollback", NAME, *arguments).split()

    def checkpoint(self) -> str:
        return self.layerfs.ok("checkpoint", NAME)


@pytest.fixture
def live(layerfs: Layerfs) -> Live:
    return Live(layerfs)


def test_everything_follows_at_once(live: Live) -> None:
    mnt = live.mnt
    (mnt / "file").write_text("new and longer")
    (mnt / "gone").unlink()
    (mnt / "made").mkdir()
    (mnt / "made/inside").write_text("x")
    (mnt / "etc").rename(mnt / "etc2")
    (mnt / "link").unlink()
    os.symlink("made/inside", mnt / "link")
    os.chmod(mnt / "d", 0o700)
    os.setxattr(mnt / "d", "user.x", b"1")
    seen = (sorted(os.listdir(mnt)), (mnt / "file").read_text(), os.path.exists(mnt / "gone"))
    assert seen == (["d", "etc2", "file", "link", "made", "same", "same2"], "new and longer", False)
    step, kept = live.rollback()
    assert step == live.step
    assert sorted(os.listdir(mnt)) == ["d", "etc", "file", "gone", "link", "same", "same2"]
    assert (mnt / "file").read_text() == (mnt / "link").read_text() == "old"
    assert (mnt / "gone").read_text() == "to be removed"
    assert not (mnt / "made").exists()
    assert (mnt / "etc/passwd").read_text() == "root\n"
    assert (mnt / "d").stat().st_mode & 0o777 == 0o755
    assert os.listxattr(mnt / "d") == []
    (mnt / "after").write_text("after")
    assert live.rollback(kept)[0] == kept
    assert (mnt / "file").read_text() == "new and longer"
    assert (mnt / "link").read_text() == "x"
    assert sorted(os.listdir(mnt)) == ["d", "etc2", "file", "link", "made", "same", "same2"]
    assert os.getxattr(mnt / "d", "user.x") == b"1"


def test_numbers_stay(live: Live) -> None:
    before = {path: path.lstat().st_ino for path in live.mnt.iterdir()}
    (live.mnt / "file").write_text("changed")
    os.chmod(live.mnt / "d", 0o700)
    with (live.mnt / "file").open():
        live.rollback()
        after = {path: path.lstat().st_ino for path in live.mnt.iterdir()}
        with os.scandir(live.mnt) as entries:
            listed = {live.mnt / entry.name: entry.inode() for entry in entries}
    if os.environ.get("LAYERFS_EXTENSION") != "0":
        assert after == before == listed


def test_numbers_stay_in_answers_that_take_time(live: Live) -> None:
    """They go another way, by pyfuse3: a copy-up of a file with several names is one, and of a large file."""
    (live.mnt / "big").write_bytes(b"x" * 3_000_000)
    live.checkpoint()
    before = {name: (live.mnt / name).stat().st_ino for name in ("same", "big")}
    os.setxattr(live.mnt / "same2", "user.x", b"1")
    os.chmod(live.mnt / "big", 0o700)
    live.rollback()
    os.link(live.mnt / "same", live.mnt / "same3")
    os.chmod(live.mnt / "big", 0o600)
    os.truncate(live.mnt / "big", 2_000_000)
    after = {name: (live.mnt / name).stat().st_ino for name in ("same", "big")}
    if os.environ.get("LAYERFS_EXTENSION") != "0":
        assert after == before
    assert {(live.mnt / name).stat().st_ino for name in ("same", "same2", "same3")} == {after["same"]}


def test_a_directory_that_was_removed_while_in_use_is_there_again(live: Live) -> None:
    fd = os.open(live.mnt / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (live.mnt / "d/e/deep").unlink()
        (live.mnt / "d/e").rmdir()
        (live.mnt / "d").rmdir()
        (live.mnt / "d").mkdir()
        live.rollback()
        assert (live.mnt / "d/e/deep").read_text() == "deep"
        assert os.listdir(live.mnt / "d") == ["e"]
    finally:
        os.close(fd)


def test_an_open_file_that_changed_keeps_what_it_was(live: Live) -> None:
    path = live.mnt / "file"
    with path.open("r+b", buffering=0) as file:
        file.write(b"NEW contents")
        with mmap.mmap(file.fileno(), 0) as memory:
            _, kept = live.rollback()
            assert path.read_bytes() == b"old"
            assert os.pread(file.fileno(), 100, 0) == memory[:] == b"NEW contents"
            memory[:3] = b"map"
            memory.flush()
            file.seek(3)
            file.write(b"===")
            os.fsync(file.fileno())
            assert os.pread(file.fileno(), 100, 0) == b"map===ntents"
            assert os.fstat(file.fileno()).st_nlink == 0
    assert path.read_bytes() == b"old"
    live.rollback(kept)
    assert path.read_bytes() == b"NEW contents"


def test_a_file_that_is_the_same_keeps_everything(live: Live) -> None:
    path = live.mnt / "same"
    with path.open("rb", buffering=0) as file:
        number = os.fstat(file.fileno()).st_ino
        fcntl.flock(file, fcntl.LOCK_EX)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            (live.mnt / "file").write_text("changed")
            live.rollback()
            assert memory[:] == b"same"
            assert os.pread(file.fileno(), 10, 0) == b"same"
            assert path.stat().st_ino == number
            with path.open("r+b", buffering=0) as other:
                other.write(b"SAME")
            assert memory[:] == b"SAME"
            locked = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
            done = subprocess.run([sys.executable, "-c", locked, path], stderr=subprocess.PIPE, check=False)
            assert b"BlockingIOError" in done.stderr


def test_a_file_in_a_directory_that_was_renamed_is_the_same(live: Live) -> None:
    with (live.mnt / "d/e/deep").open("r+b", buffering=0) as file:
        (live.mnt / "d").rename(live.mnt / "moved")
        live.rollback()
        os.pwrite(file.fileno(), b"DEEP", 0)
        assert (live.mnt / "d/e/deep").read_bytes() == b"DEEP"
        assert os.fstat(file.fileno()).st_ino == (live.mnt / "d/e/deep").stat().st_ino


def test_link_counts(live: Live) -> None:
    (live.mnt / "same2").unlink()
    os.link(live.mnt / "file", live.mnt / "file2")
    assert [(live.mnt / name).stat().st_nlink for name in ("same", "file")] == [1, 2]
    live.rollback()
    assert [(live.mnt / name).stat().st_nlink for name in ("same", "same2", "file")] == [2, 2, 1]


INSIDE = """
import errno, os, sys
os.chdir(sys.argv[1])
print(len(os.listdir(".")), flush=True)
sys.stdin.readline()
try:
    found = sorted(os.listdir("."))
except OSError as error:
    found = errno.errorcode[error.errno]
try:
    with open("new", "w") as file:
        file.write("new")
    made = "made"
except OSError as error:
    made = errno.errorcode[error.errno]
print(found, made, oct(os.stat(".").st_mode & 0o777), flush=True)
"""


def _inside(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", INSIDE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _go_on(process: subprocess.Popen[str]) -> str:
    return process.communicate("\n", timeout=20)[0].strip()


def test_a_working_directory_that_is_no_more(live: Live) -> None:
    (live.mnt / "made").mkdir()
    (live.mnt / "made/file").touch()
    process = _inside(live.mnt / "made")
    live.rollback()
    assert _go_on(process) in ("[] ENOENT 0o755", "ENOENT ENOENT 0o755")


def test_a_working_directory_that_changed(live: Live) -> None:
    (live.mnt / "d/other").touch()
    os.chmod(live.mnt / "d", 0o700)
    process = _inside(live.mnt / "d")
    live.rollback()
    assert _go_on(process) == "['e'] made 0o755"
    assert (live.mnt / "d/new").read_text() == "new"


def test_a_listing_that_was_begun_before(live: Live) -> None:
    for number in range(3000):
        (live.mnt / f"d/kept-{number:04}").touch()
    live.checkpoint()
    for number in range(3000):
        (live.mnt / f"d/more-{number:04}").touch()
    (live.mnt / "d/kept-0000").unlink()
    with os.scandir(live.mnt / "d") as entries:
        names = [next(entries).name for _ in range(100)]
        live.rollback()
        names += [entry.name for entry in entries]
    assert len(names) == len(set(names))
    assert {f"kept-{number:04}" for number in range(1, 3000)} <= set(names)
    fd = os.open(live.mnt / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert len(os.listdir(fd)) == 3001
    finally:
        os.close(fd)


def test_a_directory_that_somebody_has_open_is_listed_anew(live: Live) -> None:
    fd = os.open(live.mnt / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (live.mnt / "d/other").touch()
        assert sorted(os.listdir(fd)) == sorted(os.listdir(fd)) == ["e", "other"]
        mtime = os.fstat(fd).st_mtime_ns
        live.rollback()
        assert os.listdir(fd) == ["e"]
        assert os.fstat(fd).st_mtime_ns != mtime
    finally:
        os.close(fd)


def test_dirty_pages_belong_to_what_is_given_up(live: Live) -> None:
    with (live.mnt / "file").open("r+b", buffering=0) as file, (live.mnt / "new").open("wb") as new:
        file.write(b"dirty" * 100_000)
        new.write(b"new")
        new.flush()
        _, kept = live.rollback()
        assert (live.mnt / "file").read_bytes() == b"old"
    os.sync()
    assert (live.mnt / "file").read_bytes() == b"old"
    assert not (live.mnt / "new").exists()
    live.rollback(kept)
    assert (live.mnt / "file").read_bytes() == b"dirty" * 100_000
    assert (live.mnt / "new").read_bytes() == b"new"


def test_discarded_is_gone_but_for_who_has_it_open(live: Live) -> None:
    layers = live.layerfs.root / "layers"
    with (live.mnt / "big").open("w+b", buffering=0) as file:
        file.write(b"x" * 1_000_000)
        (live.mnt / "dir").mkdir()
        (live.mnt / "dir/inside").write_text("y")
        inside = (live.mnt / "dir/inside").open("r+")
        directory = os.open(live.mnt / "dir", os.O_RDONLY | os.O_DIRECTORY)
        before = set(os.listdir(layers))
        assert live.rollback("--discard") == [live.step]
        wait_until(lambda: len(before - set(os.listdir(layers))) == 1)
        assert os.pread(file.fileno(), 10, 999_995) == b"xxxxx"
        file.write(b"more")
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == 1_000_004
        assert inside.read() == "y"
        assert os.listdir(directory) == []
        assert os.fstat(directory).st_nlink == 0
        os.close(directory)
        inside.close()
    assert not (live.mnt / "big").exists()
    live.layerfs.ok("umount", NAME)
    assert live.layerfs.ok("fsck").endswith(": clean")


def test_remounts_as_what_it_went_back_to(live: Live) -> None:
    (live.mnt / "file").write_text("new")
    _, kept = live.rollback()
    (live.mnt / "later").touch()
    live.layerfs.ok("umount", NAME)
    step, later = live.rollback()
    assert step == live.step
    live.layerfs.ok("mount", "--name", NAME, live.mnt)
    assert (live.mnt / "file").read_text() == "old"
    assert not (live.mnt / "later").exists()
    live.rollback(kept)
    assert (live.mnt / "file").read_text() == "new"
    live.layerfs.ok("umount", NAME)
    live.rollback(later)
    live.layerfs.ok("rm", NAME)
    assert live.layerfs.ok("fsck").endswith(": clean")


@pytest.fixture
def tmpfs_in(live: Live) -> Iterator[Path]:
    """A directory of the mount with something mounted on it."""
    place = live.mnt / "d/e"
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    yield place
    with suppress(subprocess.CalledProcessError):
        subprocess.run(["umount", place], check=True, stderr=subprocess.PIPE)


def test_what_is_mounted_inside_stays(live: Live, tmpfs_in: Path) -> None:
    (tmpfs_in / "in").write_text("tmpfs")
    (live.mnt / "file").write_text("new")
    (live.mnt / "gone").unlink()
    (live.mnt / "d/other").touch()
    (live.mnt / "made").mkdir()
    assert not os.path.exists(live.mnt / "gone")
    live.rollback()
    assert (tmpfs_in / "in").read_text() == "tmpfs"
    assert (live.mnt / "file").read_text() == "old"
    assert (live.mnt / "gone").read_text() == "to be removed"
    assert os.listdir(live.mnt / "d") == ["e"]
    assert not (live.mnt / "made").exists()


def test_refusals_are_one_line_and_change_nothing(live: Live) -> None:
    (live.mnt / "file").write_text("new")
    refused = live.layerfs.refused
    assert "has no checkpoint nothing" in refused("rollback", NAME, "nothing")
    assert "its past is not that long" in refused("rollback", NAME, "~7")
    assert "no such mount" in refused("rollback", "other")
    assert "no container runs in it" in refused("rollback", "--pause", NAME)
    assert "not a container" in refused("rollback", "--restart", NAME)
    assert "not a container" in refused("rollback", "--kill", NAME)
    status, answer = live.layerfs.ask(NAME, "POST", f"/layerfs/fork?name={NAME}")
    assert (status, "absolute path" in json.loads(answer)["message"]) == (400, True)
    assert (live.mnt / "file").read_text() == "new"


def test_fork(live: Live) -> None:
    (live.mnt / "file").write_text("now")
    with (live.mnt / "file").open("r+") as file:
        for name in ("one", "many"):
            (live.layerfs.directory / name).mkdir()
        one, many = live.layerfs.directory / "one", live.layerfs.directory / "many"
        assert live.layerfs.ok("fork", NAME, "twin", one) == "twin"
        assert live.layerfs.ok("fork", "-n", "3", NAME, "try", many).split() == ["try-1", "try-2", "try-3"]
        file.write("on")
        file.flush()
        trees = [one, *(many / f"try-{number}" for number in (1, 2, 3))]
        for number, tree in enumerate(trees):
            assert (tree / "file").read_text() == "now"
            (tree / "file").write_text(str(number))
    assert [(tree / "file").read_text() for tree in trees] == ["0", "1", "2", "3"]
    assert (live.mnt / "file").read_text() == "onw"
    assert "taken" in live.layerfs.refused("fork", NAME, "twin", one)
    live.layerfs.ok("rm", "-f", "try-2")
    before = live.layerfs.ok("ps", "-a", "-q")
    assert "try-1 is taken" in live.layerfs.refused("fork", "-n", "5", NAME, "try", many)
    assert "does not exist" in live.layerfs.refused("fork", NAME, "new", live.layerfs.directory / "nowhere")
    assert live.layerfs.ok("ps", "-a", "-q") == before
    assert sorted(os.listdir(many)) == ["try-1", "try-2", "try-3"]
    live.layerfs.ok("rm", "-f", NAME, "twin", "try-1", "try-3")
    assert live.layerfs.ok("fsck").endswith(": clean")


@pytest.mark.timeout(300)
def test_killed_at_any_moment_it_is_before_or_after(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon dies some milliseconds into going back: the tree is that of before, or of the checkpoint."""
    monkeypatch.setenv("LAYERFS_RUN", str(live.layerfs.run))
    moments, enough = random.Random(20), time.monotonic() + PATIENCE / 2
    seen: list[bool] = []

    def go_back(body: bytes) -> None:
        with suppress(LayerfsError):
            Client.for_mount(NAME).request("POST", "/layerfs/rollback", body=body, name=NAME)

    for number in range(20):
        (live.mnt / "file").write_text(f"given up {number}")
        (live.mnt / f"new{number}").touch()
        live.layerfs.ok("diff", NAME)  # what was written is in the upper
        body = json.dumps({"Discard": number % 3 == 2}).encode()
        asking = threading.Thread(target=go_back, args=(body,))
        asking.start()
        time.sleep(moments.random() * 0.03)
        live.layerfs.kill(NAME)
        asking.join(60)
        done = live.layerfs("mount", "--name", NAME, live.mnt)
        assert (done.returncode, done.stderr.replace("a layer that nothing uses", "")[:8]) in (
            (0, ""),
            (0, "removed "),  # what was discarded
        )
        found = (live.mnt / "file").read_text(), (live.mnt / f"new{number}").exists()
        assert found in ((f"given up {number}", True), ("old", False))
        seen.append(found == ("old", False))
        live.rollback("--discard")
        assert (live.mnt / "file").read_text() == "old"
        if set(seen) == {True, False} and time.monotonic() > enough:
            break
    assert set(seen) == {True, False}, "every kill came too early, or too late"
    live.layerfs.ok("umount", NAME)
    assert live.layerfs.ok("fsck").endswith(": clean")


def test_killed_right_after_the_answer(live: Live) -> None:
    (live.mnt / "file").write_text("given up")
    _, kept = live.rollback()
    live.layerfs.kill(NAME)
    live.layerfs.ok("mount", "--name", NAME, live.mnt)
    assert (live.mnt / "file").read_text() == "old"
    assert live.rollback(kept) == [kept]
    assert (live.mnt / "file").read_text() == "given up"
