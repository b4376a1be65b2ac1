"""`layerfs export` and `docker export`: a whole merged tree as one archive, in use or at rest."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, wait_until
from tests.fuse.oracle import snapshot
from tests.system.test_docker_client import Cli, Served, cli, served
from tests.system.test_registry import Here, here, seen

__all__ = ["cli", "here", "served"]

pytestmark = pytest.mark.root


def exported(layerfs: Layerfs, name: str) -> bytes:
    """Return the archive of the mount called *name*."""
    done = subprocess.run(
        [*layerfs.words, "export", name],
        env=layerfs.environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return {member.name: member for member in found}


def test_everything_comes_back(here: Here) -> None:
    """A mount in use, with writes that only the kernel has yet, is exported, imported and mounted again."""
    (here.mnt / "etc/shadow").write_text("later")
    (here.mnt / "elsewhere/file").unlink()
    with (here.mnt / "open").open("wb", buffering=0) as file:
        file.write(b"written" * 1000)
        archive = here.layerfs.directory / "m.tar"
        here.layerfs.ok("export", "m", "-o", archive)
        here.there.ok("import", archive, "back")
        assert snapshot.differences(seen(here.mnt), here.pulled_tree("back")) == []
    assert archive.stat().st_mode & 0o777 == 0o644


def test_the_same_tree_gives_the_same_bytes(here: Here) -> None:
    first = exported(here.layerfs, "m")
    assert exported(here.layerfs, "m") == first
    here.layerfs.ok("commit", "m", "again")
    assert exported(here.layerfs, "m") == first  # how the layers are cut does not show
    here.layerfs.ok("umount", "m")
    assert exported(here.layerfs, "m") == first
    found = members(first)
    assert next(iter(found)) == "."
    assert found["su"].islnk() or found["old/link"].islnk()
    assert found["null"].ischr()
    names = [name for member in found.values() for name in member.pax_headers]
    assert "SCHILY.xattr.trusted.note" in names
    assert not [name for name in names if "overlay" in name]


def test_gnu_tar_reads_it(here: Here, tmp_path: Path) -> None:
    place = tmp_path / "unpacked"
    place.mkdir()
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-", "-C", place],
        input=exported(here.layerfs, "m"), check=True, timeout=60,
    )  # fmt: skip
    assert snapshot.differences(seen(here.mnt), seen(place)) == []


def test_plain_directories(stack: Stack) -> None:
    """Layers that others wrote, with whiteouts of every form, and metadata that was copied up alone."""
    (stack.bottom / "gone").touch()
    (stack.bottom / "hidden").mkdir()
    (stack.bottom / "hidden/below").touch()
    (stack.bottom / "data").write_bytes(b"data" * 5000)
    (stack.top / ".wh.gone").touch()
    (stack.top / "hidden").mkdir()
    (stack.top / "hidden/.wh..wh..opq").touch()
    stack.mount("-o", "metacopy=on")
    (stack.mnt / "data").chmod(0o600)
    (stack.mnt / ".wh.name").write_text("a name like any other")
    os.setxattr(stack.mnt / "hidden", "trusted.overlay.opaque", b"people's own")
    archive = exported(stack.layerfs, stack.name)
    found = members(archive)
    assert sorted(found) == [".", ".wh.name", "data", "hidden"]
    assert found["hidden"].pax_headers["SCHILY.xattr.trusted.overlay.opaque"] == "people's own"
    assert (found["data"].mode, found["data"].size) == (0o600, 20_000)
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        content = opened.extractfile("data")
        assert content is not None
        assert content.read() == b"data" * 5000


def test_a_sparse_file_takes_no_memory(stack: Stack) -> None:
    stack.mount()
    with (stack.mnt / "sparse").open("wb") as file:
        file.seek((1 << 30) - 3)
        file.write(b"end")
    with subprocess.Popen(
        [*stack.layerfs.words, "export", stack.name], env=stack.layerfs.environment, stdout=subprocess.PIPE
    ) as export:
        assert export.stdout is not None
        size = most = 0
        while data := export.stdout.read(1 << 20):
            if size >> 20 == 1000:  # it is not at its end yet
                status = Path(f"/proc/{export.pid}/status").read_text()
                most = int(status.partition("VmHWM:")[2].split()[0])
            size += len(data)
            last = data
    assert export.returncode == 0
    assert (1 << 30) < size < (1 << 30) + 10_000
    assert b"end" in last
    assert 0 < most < 100 << 10  # kB


def test_while_it_is_written_to(stack: Stack) -> None:
    """Files that come, go, grow and shrink do no harm to the archive, or to those that stay."""
    for number in range(300):
        (stack.top / f"steady{number}").write_bytes(bytes([number % 256]) * 3000)
    mnt = stack.mount()
    (mnt / "directory").mkdir()
    stop = threading.Event()

    def disturb() -> None:
        chance = random.Random(3)
        while not stop.is_set():
            name = mnt / "directory" / f"wild{chance.randrange(20)}"
            if chance.random() < 0.3:
                name.unlink(missing_ok=True)
            else:
                name.write_bytes(bytes(chance.randrange(200_000)))
            if chance.random() < 0.05:
                (mnt / "directory").rename(mnt / "other")
                (mnt / "other").rename(mnt / "directory")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(5):
            with tarfile.open(fileobj=io.BytesIO(exported(stack.layerfs, stack.name))) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    data = content.read() if content else b""
                    assert len(data) == member.size
                    if member.name.startswith("steady"):
                        assert data == bytes([int(member.name[6:]) % 256]) * 3000
                assert len([name for name in archive.getnames() if name.startswith("steady")]) == 300
    finally:
        stop.set()
        thread.join()


def test_a_mount_that_is_removed_meanwhile(stack: Stack, tmp_path: Path) -> None:
    for number in range(20):
        (stack.top / f"file{number}").write_bytes(os.urandom(300_000))
    stack.mount()
    (stack.mnt / "written").write_text("x")
    with subprocess.Popen(
        [*stack.layerfs.words, "export", stack.name],
        env=stack.layerfs.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as export:  # fmt: skip
        assert export.stdout is not None
        export.stdout.read(100_000)
        stack.layerfs.ok("rm", "-f", stack.name)
        _, errors = export.communicate(timeout=30)
    assert export.returncode == 1
    assert b"removed while it was being exported" in errors
    assert "no such mount" in stack.layerfs.refused("export", stack.name)


def test_errors(stack: Stack, tmp_path: Path) -> None:
    (stack.top / "file").write_bytes(bytes(100))
    stack.mount()
    assert "/nowhere" in stack.layerfs.refused("export", stack.name, "-o", "/nowhere/x.tar")
    assert "no such mount: other" in stack.layerfs.refused("export", "other", "-o", tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()
    stack.layerfs.ok("export", stack.name, "-o", "/dev/null")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*stack.layerfs.words, "export", stack.name],
            env=stack.layerfs.environment, stdout=full, stderr=subprocess.PIPE, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr


@pytest.mark.docker
def test_dockers_client(served: Served, cli: Cli, tmp_path: Path) -> None:
    (served.mnt / "new").write_bytes(os.urandom(3_000_000))
    cli.ok("export", "-o", str(tmp_path / "out.tar"), "base-container")
    ours = exported(served.layerfs, "base-container")
    assert (tmp_path / "out.tar").read_bytes() == ours
    refused = cli.run("export", "-o", str(tmp_path / "none.tar"), "other")
    assert refused.returncode == 1
    assert "no such mount: other" in refused.stderr
    before = set(served.layerfs.processes())  # the worker that settles a layer may be among them, and end
    with subprocess.Popen([*cli.words, "export", "base-container"], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.read(1000)
        reader.kill()
    wait_until(lambda: before.issuperset(served.layerfs.processes()))
    assert (served.mnt / "file").read_text() == "content"
