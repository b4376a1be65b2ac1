"""Long chains of checkpoints on real mounts: read by runs, they are what they were, for everybody."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from layerfs.store import Store, runs
from tests.conftest import Layerfs, fill, wait_until

pytestmark = pytest.mark.root
NAME = "chain"
DEPTH = 34

Seen = dict[bytes, tuple[object, ...]]


class Long:
    """A mounted image whose chain becomes long; two layers or runs become one."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        layerfs.environment["LAYERFS_RUNS"] = "2"
        tree = layerfs.directory / "tree"
        for name in ("a/b/c", "d", "e/f"):
            (tree / name).mkdir(parents=True)
            (tree / name / "file").write_text(name)
        os.link(tree / "d/file", tree / "a/link")
        self.mnt = layerfs.directory / "mnt"
        self.mnt.mkdir()
        layerfs.ok("import", tree, "base")
        layerfs.ok("mount", "--image", "base", "--name", NAME, self.mnt)
        self.source = random.Random(7)
        self.steps: list[str] = []
        self.past: list[Seen] = []

    def change(self) -> None:
        """Do some of what people do, directories renamed, removed and made again among it."""
        mnt, number = self.mnt, len(self.steps)
        (mnt / "counter").write_text(str(number))
        (mnt / f"new{number % 7}").write_text(str(number))
        what = number % 6
        with suppress(OSError):
            if what == 0:
                os.rename(mnt / "a", mnt / "a2") if (mnt / "a").exists() else os.rename(mnt / "a2", mnt / "a")
            elif what == 1:
                shutil.rmtree(mnt / "e")
                (mnt / "e").mkdir()
            elif what == 2:
                (mnt / "e/made").write_text(str(number))
                os.link(mnt / "e/made", mnt / f"d/link{number}")
            elif what == 3:
                os.unlink(mnt / f"new{(number + 3) % 7}")
            elif what == 4:
                os.setxattr(mnt / "d", "user.number", str(number).encode())
                os.chmod(mnt / "d", 0o700 + number % 8)
            else:
                os.symlink(f"target{number}", mnt / f"d/symbolic{number}")

    def grow(self, depth: int) -> None:
        """Make checkpoints until there are *depth*."""
        while len(self.steps) < depth:
            self.change()
            status, answer = self.layerfs.ask(NAME, "POST", f"/layerfs/checkpoint?name={NAME}")
            assert status == 201, answer
            self.steps.append(json.loads(answer)["Step"])
            self.past.append(look(self.mnt))

    def wait(self) -> None:
        """Wait until the background has done what it does."""
        wait_until(lambda: self.status()["LayersToSettle"] == 0, 60)

    def status(self) -> dict[str, object]:
        status, answer = self.layerfs.ask(NAME, "GET", f"/layerfs/status?name={NAME}")
        assert status == 200, answer
        return dict(json.loads(answer))

    def layers(self) -> list[str]:
        layers = self.status()["Layers"]
        assert isinstance(layers, list)
        return layers

    def indexes(self) -> list[Path]:
        return [path for path in self.layerfs.root.glob("layers/*/runs/*") if path.name.isdecimal()]

    def remount(self) -> None:
        self.layerfs.ok("umount", NAME)
        self.layerfs.ok("mount", "--name", NAME, self.mnt)


def look(mnt: Path) -> Seen:
    """Return all that can be seen of a tree; times of access are nobody's."""
    found: Seen = {}
    top = os.fsencode(mnt)
    for above, directories, files in os.walk(top):
        for name in (b".", *directories, *files):
            path = os.path.join(above, name)
            if name != b"." and name in directories and not os.path.islink(path):
                continue
            st = os.lstat(path)
            content: object = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif name == b".":
                content = tuple(sorted(directories + files))
            else:
                content = Path(os.fsdecode(path)).read_bytes()
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            size = 0 if name == b"." else st.st_size
            found[path] = (
                st.st_mode,
                st.st_uid,
                st.st_gid,
                st.st_ino,
                st.st_nlink,
                size,
                st.st_mtime_ns,
                content,
                tuple(sorted(xattrs.items())),
            )
    return found


@pytest.fixture
def long(layerfs: Layerfs) -> Long:
    return Long(layerfs)


def test_a_mount_in_use_is_read_by_runs_and_nobody_sees_it(long: Long) -> None:
    long.grow(3)
    held = os.open(long.mnt / "d/file", os.O_RDONLY)
    removed = os.open(long.mnt / "new1", os.O_RDONLY)
    os.unlink(long.mnt / "new1")
    os.chdir(long.mnt / "d")
    try:
        numbers = {path: os.lstat(long.mnt / path).st_ino for path in ("d", "d/file", "counter")}
        long.grow(DEPTH)
        long.wait()
        wait_until(lambda: len(long.layers()) < 14)
        assert any("/runs/" in layer for layer in long.layers())
        assert look(long.mnt) == long.past[-1]
        assert {path: os.lstat(long.mnt / path).st_ino for path in numbers} == numbers
        assert os.pread(held, 9, 0) == b"d"
        assert os.fstat(removed).st_nlink == 0
        assert os.pread(removed, 9, 0) == b"1"
        assert "symbolic5" in os.listdir(".")
        Path("here").write_text("x")
        assert (long.mnt / "d/here").read_text() == "x"
    finally:
        os.chdir("/")
        os.close(held)
        os.close(removed)


def test_mounted_again_it_is_what_it_was_with_runs_and_without(long: Long) -> None:
    long.grow(DEPTH)
    long.wait()
    long.remount()
    assert len(long.layers()) < 14
    with_runs = look(long.mnt)
    indexes = long.indexes()
    assert {path.name for path in indexes} >= {"2", "4", "8", "16"}
    long.layerfs.ok("umount", NAME)
    for path in indexes:
        path.unlink()
    long.layerfs.environment["LAYERFS_RUNS"] = "0"
    long.layerfs.ok("mount", "--name", NAME, long.mnt)
    assert len(long.layers()) == DEPTH + 2
    assert look(long.mnt) == with_runs
    assert without_links(with_runs) == without_links(long.past[-1])


def without_links(seen: Seen) -> Seen:
    """Leave out what a remount changes of lower files with several names: numbers, and counts of names."""
    return {path: (*what[:3], *what[5:]) for path, what in seen.items()}


def test_it_goes_back_to_any_checkpoint(long: Long) -> None:
    long.grow(DEPTH)
    long.wait()
    for depth in (30, 17, 8, 1, 20):
        long.layerfs.ok("rollback", NAME, long.steps[depth - 1])
        assert without_links(look(long.mnt)) == without_links(long.past[depth - 1]), depth
        assert len(long.layers()) < 20
        (long.mnt / "written after").write_text(str(depth))
        long.layerfs.ok("checkpoint", NAME)
    long.wait()
    long.remount()
    assert (long.mnt / "written after").read_text() == "20"


def test_a_fork_reads_the_same_runs(long: Long) -> None:
    long.grow(DEPTH)
    long.wait()
    place = long.layerfs.directory / "fork"
    place.mkdir()
    long.layerfs.ok("fork", NAME, "other", place)
    found = {path.removeprefix(os.fsencode(place)): what for path, what in without_links(look(place)).items()}
    here = {
        path.removeprefix(os.fsencode(long.mnt)): what for path, what in without_links(look(long.mnt)).items()
    }
    assert found == here


def test_an_image_leaves_the_store_as_it_was_committed(long: Long) -> None:
    long.grow(DEPTH)
    long.wait()
    long.remount()
    assert len(long.layers()) < 14
    long.layerfs.ok("commit", NAME, "image")
    first, second = long.layerfs.directory / "first.tar", long.layerfs.directory / "second.tar"
    long.layerfs.ok("save", "image", "-o", first)
    ids = diff_ids(long)
    assert len(ids) == DEPTH + 2
    for path in long.indexes():
        path.unlink()
    with Store(long.layerfs.root) as store:
        store.database.execute("UPDATE layers SET diff_id = NULL, chain_id = NULL")
        store.database.execute("UPDATE images SET digest = NULL, document = NULL")
    long.layerfs.ok("save", "image", "-o", second)
    assert diff_ids(long) == ids


def diff_ids(long: Long) -> list[str]:
    found: list[str] = json.loads(long.layerfs.ok("inspect", "image"))[0]["RootFS"]["Layers"]
    return found


def test_killed_at_any_moment_indexes_are_whole_or_not_there(long: Long) -> None:
    long.layerfs.environment["LAYERFS_RUNS"] = "0"
    long.grow(DEPTH)
    long.wait()
    with Store(long.layerfs.root) as store:
        last = store.mount(NAME).layers[-1]
    words = [sys.executable, "-c", EXTEND, str(long.layerfs.root), last]
    moments = random.Random(3)
    for _ in range(8):
        process = subprocess.Popen(words, env={**long.layerfs.environment, "LAYERFS_RUNS": "2"})
        time.sleep(0.1 + moments.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert long.layerfs.ok("fsck", "--contents").endswith(": clean")
    long.remount()
    assert without_links(look(long.mnt)) == without_links(long.past[-1])
    long.layerfs.environment["LAYERFS_RUNS"] = "2"
    subprocess.run(words, env=long.layerfs.environment, check=True, timeout=60)
    assert {path.name for path in long.indexes()} >= {"2", "4", "8", "16"}
    assert long.layerfs.ok("fsck", "--contents").endswith(": clean")


EXTEND = """
import sys
from pathlib import Path
from layerfs.store import Store, runs
with Store(Path(sys.argv[1])) as store:
    runs.extend(store.database, sys.argv[2])
"""


def test_a_damaged_index_is_not_used_and_told_of(long: Long) -> None:
    long.grow(DEPTH)
    long.wait()
    long.layerfs.ok("umount", NAME)
    for number, path in enumerate(sorted(long.indexes())):
        data = bytearray(path.read_bytes())
        data[number * 37 % len(data)] ^= 1
        path.write_bytes(data)
    long.layerfs.ok("mount", "--name", NAME, long.mnt)
    assert without_links(look(long.mnt)) == without_links(long.past[-1])
    said = long.layerfs("fsck")
    assert said.returncode != 0
    assert "is an index that is not whole" in said.stdout
    long.layerfs("fsck", "--repair")
    assert long.layerfs.ok("fsck").endswith(": clean")
    assert long.indexes() == []


def test_an_index_that_says_something_else_than_its_layers_is_found(long: Long) -> None:
    long.grow(8)
    long.wait()
    path = next(path for path in long.indexes() if path.name == "2")
    with Store(long.layerfs.root) as store:
        chain = runs.chain(store.database, path.parent.parent.name, 2)
        other = next(each for each in long.indexes() if each.name == "2" and each != path)
        data = bytearray(other.read_bytes())
        path.write_bytes(forged(bytes(data), chain))
    assert long.layerfs.ok("fsck").endswith(": clean")
    said = long.layerfs("fsck", "--contents")
    assert "says something else than its layers" in said.stdout
    long.layerfs("fsck", "--contents", "--repair")
    assert long.layerfs.ok("fsck", "--contents").endswith(": clean")


def forged(data: bytes, ids: list[str]) -> bytes:
    """Return an index that claims to be of other layers."""
    import struct

    import xxhash

    from layerfs.union import runindex

    changed = bytearray(data)
    changed[32:64] = runindex.digest(ids)
    changed[16:24] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(changed[24:])))
    return bytes(changed)


def test_removed_with_the_mount_nothing_is_left(long: Long) -> None:
    long.grow(10)
    long.wait()
    assert long.indexes()
    long.layerfs.ok("rm", "-f", NAME)
    wait_until(lambda: len(list(long.layerfs.root.glob("layers/*"))) == 1)
    assert long.indexes() == []


def test_on_a_full_disk_no_index_is_made_and_nothing_is_left(layerfs: Layerfs, small: Path) -> None:
    layerfs.root = small / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    long = Long(layerfs)
    layerfs.environment["LAYERFS_RUNS"] = "0"
    long.remount()
    long.grow(10)
    long.wait()
    with Store(layerfs.root) as store:
        last = store.mount(NAME).layers[-1]
        ballast = fill(small)
        assert runs.extend(store.database, last, span=2) == 0
        assert [path for path in layerfs.root.glob("layers/*/runs/*") if path.name != "none"] == []
        ballast.unlink()
        assert runs.extend(store.database, last, span=2) > 0
    long.remount()
    assert without_links(look(long.mnt)) == without_links(long.past[-1])


def test_squashed_layers_are_read_no_more(long: Long) -> None:
    long.grow(24)
    long.wait()
    long.layerfs.ok("umount", NAME)
    for step in long.steps[5:12]:
        long.layerfs.ok("squash", step)
    assert long.layerfs.ok("fsck", "--contents").endswith(": clean")
    long.layerfs.ok("mount", "--name", NAME, long.mnt)
    assert without_links(look(long.mnt)) == without_links(long.past[-1])
    long.layerfs.ok("rollback", NAME, long.steps[14])
    assert without_links(look(long.mnt)) == without_links(long.past[14])
