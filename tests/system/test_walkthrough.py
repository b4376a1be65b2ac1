"""The walkthrough of the README on a tree made from busybox: import, mount, change, commit, history, rm."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.conftest import Layerfs, mounts_below, wait_until

pytestmark = pytest.mark.root
NAME = "base-container"
APPLETS = ("sh", "ls", "cat", "cp", "mkdir", "rm", "ln", "chmod", "chown", "find", "sed", "sleep", "mv")


def run_in(root: Path, script: str) -> str:
    """Run a shell script within *root*, which must work without complaint; return its output."""
    done = subprocess.run(
        ["chroot", root, "/bin/sh", "-euc", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def tree(layerfs: Layerfs) -> Path:
    """A root filesystem: a static busybox under several names, a few directories and files."""
    busybox = shutil.which("busybox")
    assert busybox, "install busybox-static"
    top = layerfs.directory / "debian-tree"
    for name in ("bin", "etc", "tmp", "root", "usr/share/doc"):
        (top / name).mkdir(parents=True)
    (top / "tmp").chmod(0o1777)
    shutil.copy(busybox, top / "bin/busybox")
    for applet in APPLETS:
        os.link(top / "bin/busybox", top / "bin" / applet)
    (top / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (top / "usr/share/doc/README").write_text("to be deleted\n")
    return top


def make_mountpoint(layerfs: Layerfs, name: str) -> Path:
    """Return a new directory."""
    path = layerfs.directory / name
    path.mkdir()
    return path


def test_the_walkthrough(layerfs: Layerfs, tree: Path) -> None:
    base = layerfs.ok("import", tree, "debian:12")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", base)
    mnt, other = make_mountpoint(layerfs, "mnt"), make_mountpoint(layerfs, "other")
    layerfs.ok("mount", "--image", "debian:12", "--name", NAME, mnt)

    script = r"""
        mkdir -p /opt/node/bin && printf '#!/bin/sh\nexec cat "$@"\n' > /opt/node/bin/node
        chmod +x /opt/node/bin/node && ln -s /opt/node/bin/node /bin/node && node /etc/passwd
        sed -i 's/root/toor/' /etc/passwd && rm -r /usr/share/doc && mv /opt /srv
        ln -sf /srv/node/bin/node /bin/node && echo 'Hello world!' > /root/hello && node /root/hello
    """
    assert run_in(mnt, script) == "root:x:0:0::/root:/bin/sh\nHello world!\n"

    image = layerfs.ok("commit", "-m", "Add node", "-a", "Jane Roe", NAME, "node-base")
    assert run_in(mnt, "node /root/hello; echo more > /root/more; cat /root/more") == "Hello world!\nmore\n"

    rows = layerfs.ok("history", "node-base").splitlines()
    assert re.split(r"  +", rows[0].strip()) == ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]
    assert len(rows) == 3
    assert rows[1].startswith(image.removeprefix("sha256:")[:12])
    assert rows[1].endswith("Add node")
    assert "Imported from" in rows[2]

    layerfs.ok("mount", "--image", "node-base", "--name", "second", other)
    assert run_in(other, "node /root/hello; ls /usr/share /root /srv") == (
        "Hello world!\n/root:\nhello\n\n/srv:\nnode\n\n/usr/share:\n"
    )
    assert run_in(other, "cat /etc/passwd") == "toor:x:0:0::/root:/bin/sh\n"
    assert layerfs.ok("diff", NAME).splitlines() == ["C /root", "A /root/more"]

    assert layerfs.ok("rm", "-f", NAME) == NAME
    assert mounts_below(layerfs.directory) == [other]
    assert os.listdir(mnt) == []
    assert [row["Names"] for row in json_lines(layerfs, "ps", "-a")] == ["second"]
    assert {row["Repository"] for row in json_lines(layerfs, "images")} == {"debian", "node-base"}
    assert run_in(other, "node /root/hello") == "Hello world!\n"
    layerfs.ok("umount", "second")
    layerfs.ok("rm", "second")
    assert "node-base" in layerfs.ok("rmi", "node-base")
    assert "debian:12" in layerfs.ok("rmi", "debian:12")
    wait_until(lambda: os.listdir(layerfs.root / "layers") == [])


def json_lines(layerfs: Layerfs, *command: str) -> list[dict[str, str]]:
    """Return the objects that a command prints with --format json."""
    return [json.loads(line) for line in layerfs.ok(*command, "--format", "json").splitlines()]


@pytest.mark.parametrize("form", ["tar", "gzip", "zstd", "stdin"])
def test_a_tar_becomes_the_same_image_as_the_directory(layerfs: Layerfs, tree: Path, form: str) -> None:
    plain = layerfs.directory / "tree.tar"
    with tarfile.open(plain, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tree, ".")
    if form == "gzip":
        source = plain.with_suffix(".tgz")
        source.write_bytes(gzip.compress(plain.read_bytes(), 1))
    elif form == "zstd":
        source = plain.with_suffix(".zst")
        zstandard = pytest.importorskip("zstandard")
        source.write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    else:
        source = plain
    if form == "stdin":
        with source.open("rb") as file:
            subprocess.run(
                [*layerfs.words, "import", "-", "busybox"],
                stdin=file, env=layerfs.environment, check=True, capture_output=True, timeout=60,
            )  # fmt: skip
    else:
        layerfs.ok("import", source, "busybox")
    mnt = make_mountpoint(layerfs, "mnt")
    layerfs.ok("mount", "--image", "busybox", mnt)
    assert run_in(mnt, "cat /etc/passwd") == "root:x:0:0::/root:/bin/sh\n"
    assert (mnt / "bin/sh").samefile(mnt / "bin/busybox")
    assert (mnt / "bin/sh").stat().st_nlink == len(APPLETS) + 1
    assert (mnt / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_unmounting_and_resuming(layerfs: Layerfs, tree: Path) -> None:
    layerfs.ok("import", tree, "debian:12")
    mnt, elsewhere = make_mountpoint(layerfs, "mnt"), make_mountpoint(layerfs, "elsewhere")
    layerfs.ok("mount", "--image", "debian:12", "--name", NAME, mnt)
    run_in(mnt, "echo kept > /root/kept; rm /etc/passwd; mv /usr /moved")
    layerfs.ok("umount", NAME)
    assert os.listdir(mnt) == []
    assert layerfs.ok("diff", NAME).splitlines()[-1] == "D /usr"
    layerfs.ok("mount", "--name", NAME, elsewhere)
    assert run_in(elsewhere, "cat /root/kept; find /etc /moved") == (
        "kept\n/etc\n/moved\n/moved/share\n/moved/share/doc\n/moved/share/doc/README\n"
    )
    layerfs.ok("umount", str(elsewhere))
    layerfs.ok("commit", NAME, "at-rest")
    layerfs.ok("mount", "--image", "at-rest", "--read-only", mnt)
    assert run_in(mnt, "cat /root/kept") == "kept\n"


def test_images_that_are_in_use_stay(layerfs: Layerfs, tree: Path) -> None:
    layerfs.ok("import", tree, "debian:12")
    mnt = make_mountpoint(layerfs, "mnt")
    layerfs.ok("mount", "--image", "debian:12", "--name", NAME, mnt)
    assert NAME in layerfs.refused("rmi", "debian:12")
    assert "mounted" in layerfs.refused("rm", NAME)
    layerfs.ok("tag", "debian:12", "other:1")
    assert layerfs.ok("rmi", "other:1") == "Untagged: other:1"
    layerfs.ok("rmi", "-f", "debian:12")
    assert run_in(mnt, "cat /etc/passwd")  # the mount keeps its layers
    layerfs.ok("umount", NAME)
    layerfs.ok("mount", "--name", NAME, mnt)
    assert run_in(mnt, "cat /etc/passwd")


def test_a_busy_mount(layerfs: Layerfs, tree: Path) -> None:
    layerfs.ok("import", tree, "debian:12")
    mnt = make_mountpoint(layerfs, "mnt")
    layerfs.ok("mount", "--image", "debian:12", "--name", NAME, mnt)
    with subprocess.Popen(["chroot", mnt, "/bin/sleep", "60"]) as process:
        try:
            wait_until(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("/bin/sleep"))
            assert f"{mnt} is busy" in layerfs.refused("umount", NAME)
            assert run_in(mnt, "cat /etc/passwd")
            (mnt / "root/unwritten").write_text("x" * 10_000)
            layerfs.ok("umount", "--force", NAME)
            assert mounts_below(layerfs.directory) == []
        finally:
            process.kill()
    layerfs.ok("mount", "--name", NAME, mnt)
    assert (mnt / "root/unwritten").read_text() == "x" * 10_000


def test_a_mount_without_a_name_is_forgotten(layerfs: Layerfs, tree: Path) -> None:
    layerfs.ok("import", tree, "debian:12")
    mnt = make_mountpoint(layerfs, "mnt")
    layerfs.ok("mount", "--image", "debian:12", mnt)
    (mnt / "new").touch()
    layerfs.ok("umount", str(mnt))
    wait_until(lambda: layerfs.ok("ps", "-a", "-q") == "")
    assert len(os.listdir(layerfs.root / "layers")) == 1
