"""What was synced is there after a power cut, whatever was committed meanwhile; what may not be says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from layerfs.fuse.syncing import StoreSync, Syncing
from layerfs.store import Store
from layerfs.union.copyup import CopyUp
from layerfs.union.layer import Layer
from layerfs.union.node import File
from layerfs.union.upper import Upper
from layerfs.union.view import Union
from tests.conftest import Layerfs, Stack, wait_until
from tests.system.power import Disk, later_boot

pytestmark = pytest.mark.root
NAME = "base"
CONTENT = b"precious" * 5000


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, layerfs: Layerfs) -> Disk:
    """A disk with a journal, which the store is on; `layerfs` unmounts it in the end, whatever happens."""
    layerfs.expect_log("")  # whatever a daemon says whose disk is gone
    disk = Disk(layerfs.directory, kind=request.param)
    layerfs.root = disk.path / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    return disk


@pytest.fixture(params=["with the extension", "without"])
def mounted(request: pytest.FixtureRequest, layerfs: Layerfs, disk: Disk) -> Path:
    """A mount of an image in a store that is on the disk; nothing was synced since."""
    if request.param == "without":
        layerfs.environment["LAYERFS_EXTENSION"] = "0"
    return mount_image(layerfs)


def mount_image(layerfs: Layerfs) -> Path:
    tree, mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
    (tree / "directory").mkdir(parents=True)
    (tree / "directory/old").write_bytes(b"old" * 5000)
    mnt.mkdir()
    layerfs.ok("import", tree, "image")
    layerfs.ok("mount", "--image", "image", "--name", NAME, mnt)
    return mnt


def mount_again(layerfs: Layerfs) -> Path:
    """Mount it after the power cut; return where."""
    mnt = layerfs.directory / "mnt"
    done = layerfs("mount", "--name", NAME, mnt)
    assert done.returncode == 0, done.stderr
    return mnt


def commit(layerfs: Layerfs, name: str = NAME) -> None:
    status, answer = layerfs.ask(name, "POST", f"/commit?container={name}")
    assert status == 201, answer


def write(fd: int, content: bytes = CONTENT) -> None:
    assert os.write(fd, content) == len(content)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def test_fsync_of_what_a_commit_has_sealed(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    fd = os.open(mounted / "directory/new", os.O_RDWR | os.O_CREAT)
    write(fd)
    commit(layerfs)
    os.fsync(fd)
    disk.lose_power(layerfs)
    assert (mount_again(layerfs) / "directory/new").read_bytes() == CONTENT


def test_fsyncdir_of_what_a_commit_has_sealed(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    (mounted / "directory/sub").mkdir()
    (mounted / "directory/sub/link").symlink_to("target")
    commit(layerfs)
    sync_directory(mounted / "directory/sub")
    disk.lose_power(layerfs)
    assert os.readlink(mount_again(layerfs) / "directory/sub/link") == "target"


def test_fsync_of_what_was_written_after_a_commit(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    for number in range(5):
        (mounted / f"directory/{number}").write_bytes(CONTENT)
        commit(layerfs)
    with (mounted / "directory/last").open("wb") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
    disk.lose_power(layerfs)
    mnt = mount_again(layerfs)
    assert (mnt / "directory/last").read_bytes() == CONTENT
    with Store(layerfs.root) as store:  # the last commit came before
        assert len(store.images()) == 6


def test_the_modification_time_of_what_was_synced(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    times = {}
    for number in range(20):
        name = f"directory/{number}"
        for size in (200, 140_000):  # closed and opened again: the kernel tells a time now and then
            with (mounted / name).open("ab") as file:
                file.write(bytes(size))
        with (mounted / name).open("rb") as file:
            times[name] = os.fstat(file.fileno()).st_mtime_ns
            os.fsync(file.fileno())
    disk.lose_power(layerfs)
    mnt = mount_again(layerfs)
    assert {name: (mnt / name).stat().st_mtime_ns for name in times} == times


def test_fdatasync_of_a_copied_up_file(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    fd = os.open(mounted / "directory/old", os.O_RDWR)
    write(fd)
    commit(layerfs)
    os.pwrite(fd, b"PRECIOUS", 0)
    os.fdatasync(fd)
    disk.lose_power(layerfs)
    expected = b"PRECIOUS" + CONTENT[8:]
    assert (mount_again(layerfs) / "directory/old").read_bytes()[: len(expected)] == expected


async def test_fdatasync_of_a_copy_whose_data_is_on_disk_but_not_its_name(disk: Disk) -> None:
    lower, upper, work = (disk.path / name for name in ("lower", "upper", "work"))
    for path in (lower, upper, work):
        path.mkdir()
    (lower / "file").write_bytes(CONTENT)
    os.sync()
    union = Union([Layer(lower)], Upper(upper, work))
    node = union.lookup(union.root, b"file")
    assert isinstance(node, File)
    job = CopyUp(union, node)
    job.copy()
    os.sync()
    job.finish()
    job.close()
    os.pwrite(union.data(node, write=True), b"PRECIOUS", 0)
    syncing = Syncing(union, StoreSync())
    assert syncing.descriptor(node) is None  # it takes more than what was asked for
    await syncing.sync(node, data_only=True)
    assert syncing.descriptor(node) is not None
    disk.cut()
    union.close()
    disk.unplug()
    disk.plug_in()
    assert (upper / "file").read_bytes() == b"PRECIOUS" + CONTENT[8:]


def test_writes_of_a_file_opened_to_be_synced(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    fd = os.open(mounted / "directory/new", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    commit(layerfs)
    write(fd)
    disk.lose_power(layerfs)
    assert (mount_again(layerfs) / "directory/new").read_bytes() == CONTENT


def test_fsync_in_a_mount_that_was_made_just_now(layerfs: Layerfs, disk: Disk) -> None:
    with (mount_image(layerfs) / "new").open("wb") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
    disk.lose_power(layerfs)
    assert (mount_again(layerfs) / "new").read_bytes() == CONTENT


@pytest.mark.parametrize("mounted", ["with the extension"], indirect=True)
def test_fsync_in_a_mount_of_what_another_has_committed(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    (mounted / "directory/new").write_bytes(CONTENT)
    commit(layerfs)
    with Store(layerfs.root) as store:
        image = store.images()[0].id
    other = layerfs.directory / "other"
    other.mkdir()
    layerfs.ok("mount", "--image", image, "--name", "other", other)
    fd = os.open(other / "directory/new", os.O_RDONLY)
    os.fsync(fd)
    disk.lose_power(layerfs)
    done = layerfs("mount", "--name", "other", other)
    assert done.returncode == 0, done.stderr
    assert (other / "directory/new").read_bytes() == CONTENT


@pytest.mark.parametrize("mounted", ["with the extension"], indirect=True)
def test_fsync_of_contents_that_a_commit_has_sealed(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    with Store(layerfs.root) as store:
        image = store.resolve("image").id
    other = layerfs.directory / "other"
    other.mkdir()
    layerfs.ok("mount", "--image", image, "--name", "other", "-o", "metacopy=on", other)
    (other / "new").write_bytes(CONTENT)
    commit(layerfs, "other")
    (other / "new").chmod(0o600)
    fd = os.open(other / "new", os.O_RDONLY)
    os.fsync(fd)
    disk.lose_power(layerfs)
    done = layerfs("mount", "--name", "other", other)
    assert done.returncode == 0, done.stderr
    assert (other / "new").read_bytes() == CONTENT
    assert (other / "new").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def outside(layerfs: Layerfs, disk: Disk) -> Stack:
    """A mount with an upper of its own outside the store, on the store's disk."""
    layerfs.directory, before = disk.path, layerfs.directory
    stack = Stack(layerfs)
    layerfs.directory = before
    (stack.bottom / "old").write_bytes(b"old")
    stack.mount()
    return stack


def test_fsync_in_an_upper_outside_the_store(layerfs: Layerfs, disk: Disk, outside: Stack) -> None:
    with (outside.mnt / "sealed").open("wb") as sealed, (outside.mnt / "new").open("wb") as new:
        sealed.write(CONTENT)
        sealed.flush()
        outside.commit()
        os.fsync(sealed.fileno())
        new.write(CONTENT)
        new.flush()
        os.fsync(new.fileno())
    disk.lose_power(layerfs)
    done = layerfs("mount", "--name", outside.name, outside.mnt)
    assert done.returncode == 0, done.stderr
    for name in ("sealed", "new"):
        assert (outside.mnt / name).read_bytes() == CONTENT
    assert (outside.upper / "new").exists()


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_a_commit_of_an_upper_outside_is_undone_as_a_whole(
    layerfs: Layerfs, disk: Disk, outside: Stack
) -> None:
    (outside.mnt / "sealed").write_bytes(CONTENT)
    os.sync()
    outside.commit()
    (outside.mnt / "new").write_bytes(CONTENT)
    disk.lose_power(layerfs)
    done = layerfs("mount", "--name", outside.name, outside.mnt)
    assert done.returncode == 0, done.stderr
    assert (outside.mnt / "sealed").read_bytes() == CONTENT
    for lost in (layerfs.root / "layers").glob(
        "*.lost"
    ):  # what was written since, if any of that was on disk
        assert os.listdir(lost / "fs") == ["new"]
        shutil.rmtree(lost)


@pytest.mark.parametrize("reading", [False, True])
def test_a_sync_of_the_store_while_somebody_reads(layerfs: Layerfs, disk: Disk, reading: bool) -> None:
    with Store(layerfs.root) as store, Store(layerfs.root) as reader:
        (layerfs.directory / "tree").mkdir()
        image = store.import_image(layerfs.directory / "tree", "image")
        store.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if reading:
            reader.database.execute("BEGIN")
            reader.database.execute("SELECT * FROM tags").fetchall()
        store.tag(image.id, "precious")
        store.sync()
        disk.cut()
    disk.unplug()
    disk.plug_in()
    with Store(layerfs.root) as store:
        assert store.resolve("precious").id == image.id


def test_what_was_imported_is_there(layerfs: Layerfs, disk: Disk) -> None:
    tree = layerfs.directory / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(CONTENT)
    layerfs.ok("import", tree, "image")
    disk.lose_power(layerfs)
    assert layerfs.ok("verify", "image") == "image: every file is as its manifest says"


def test_a_removal_is_there_or_everything_that_was_to_be_removed(layerfs: Layerfs, disk: Disk) -> None:
    tree = layerfs.directory / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(CONTENT)
    layerfs.ok("import", tree, "image")
    layerfs.ok("tag", "image", "other")
    layerfs.ok("rmi", "other", "image")
    disk.lose_power(layerfs)
    with Store(layerfs.root) as store:
        store.recover()
        for image in store.images():
            assert list(store.verify(image.id)) == []


@pytest.mark.parametrize("mounted", ["with the extension"], indirect=True)
@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_a_layer_that_was_not_on_disk_is_unverified(layerfs: Layerfs, disk: Disk, mounted: Path) -> None:
    (mounted / "directory/new").write_bytes(CONTENT)
    fd = os.open(mounted / "synced", os.O_RDWR | os.O_CREAT)
    layerfs.ok("commit", NAME, "committed")
    os.fsync(fd)
    disk.lose_power(layerfs)
    with later_boot(layerfs, layerfs.directory):
        for _ in range(2):  # a manifest of what is there now changes nothing
            done = layerfs("verify", "committed")
            assert (done.returncode, done.stderr) == (1, "")
            (line,) = done.stdout.splitlines()
            assert "  unverified: the machine stopped, or the disk refused a write, before this layer" in line
        assert layerfs.ok("verify", "image").endswith("every file is as its manifest says")
        assert "committed" in layerfs.ok("images")
        assert len(layerfs.ok("history", "-q", "committed").splitlines()) == 2
        assert layerfs.ok("verify", "--accept", "committed").endswith("every file is as its manifest says")
    assert layerfs.ok("verify", "committed").endswith("every file is as its manifest says")


def test_that_a_mount_has_ended_after_a_removal_that_was_refused(
    layerfs: Layerfs, disk: Disk, mounted: Path
) -> None:
    """For the removal nothing would have had to reach the disk; unmounted by umount(8), it has to.

    Another mount has the database open: who is the last to close it brings it to the disk.
    """
    (layerfs.directory / "other").mkdir()
    layerfs.ok("mount", "--image", "image", "--name", "other", layerfs.directory / "other")
    with (mounted / "directory/new").open("wb"):
        status, answer = layerfs.ask(NAME, "POST", "/layerfs/unmount?discard=1")
        assert (status, b"is busy" in answer) == (409, True)
    pid = layerfs.pid(NAME)
    subprocess.run(["umount", mounted], check=True, timeout=20)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    disk.lose_power(layerfs)
    layerfs.ok("commit", NAME, "after")  # refused where a daemon seems to have been killed
