"""Requests that cannot be granted: each gets one line that helps, the right status, and changes nothing."""

from __future__ import annotations

import ctypes
import os
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import layerfs.mounting.daemon
import layerfs.mounting.launch  # noqa: F401 - the child of `in_child` may not be able to read it
from layerfs import cli
from tests.conftest import NOBODY, Layerfs, Stack, mounts_below

pytestmark = pytest.mark.root
CLONE_NEWNS = 0x20000


@pytest.fixture
def base(layerfs: Layerfs) -> str:
    """The name of an image in the store."""
    tree = layerfs.directory / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    layerfs.ok("import", tree, "base:1")
    return "base:1"


@pytest.fixture
def free(layerfs: Layerfs) -> Path:
    """A directory to mount on."""
    path = layerfs.directory / "free"
    path.mkdir()
    return path


def untouched(layerfs: Layerfs, *, mounts: int = 0) -> bool:
    """Tell whether no mount, no row of one and no layer of one has come into being."""
    rows = layerfs.ok("ps", "-a", "-q").splitlines()
    mounted = [path for path in mounts_below(layerfs.directory) if path.name != "small"]
    uppers = [path for path in (layerfs.root / "layers").glob("*/work") if path.exists()]
    # A mount has its upper, and may have the next one ready.
    return len(rows) == len(mounted) == mounts and len(uppers) <= 2 * mounts


class TestLayers:
    """What a mount is made of."""

    def test_missing(self, stack: Stack, layerfs: Layerfs) -> None:
        stack.bottom.rmdir()
        line = layerfs.refused("mount", f"--lower={stack.top}", f"--lower={stack.bottom}", stack.mnt)
        assert str(stack.bottom) in line
        assert untouched(layerfs)

    def test_no_directory(self, stack: Stack, layerfs: Layerfs) -> None:
        (stack.top / "file").touch()
        assert str(stack.top / "file") in layerfs.refused("mount", f"--lower={stack.top}/file", stack.mnt)
        assert untouched(layerfs)

    def test_an_upper_without_work_and_the_reverse(self, stack: Stack, layerfs: Layerfs) -> None:
        lower = f"--lower={stack.top}"
        for option in (f"--upper={stack.upper}", f"--work={stack.work}"):
            assert "together" in layerfs.refused("mount", lower, option, stack.mnt, status=2)
        uppers = [f"--upper={stack.upper}", f"--work={stack.work}"]
        assert "--lower" in layerfs.refused("mount", *uppers, "--name=x", stack.mnt, status=2)

    def test_work_on_another_filesystem(self, stack: Stack, layerfs: Layerfs) -> None:
        small = layerfs.directory / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", small], check=True)
        options = [f"--lower={stack.top}", f"--upper={stack.upper}", f"--work={small}"]
        line = layerfs.refused("mount", *options, stack.mnt)
        assert str(small) in line
        assert "filesystem" in line
        assert untouched(layerfs)

    def test_work_within_the_upper(self, stack: Stack, layerfs: Layerfs) -> None:
        (stack.upper / "work").mkdir()
        options = [f"--lower={stack.top}", f"--upper={stack.upper}", f"--work={stack.upper}/work"]
        assert "side by side" in layerfs.refused("mount", *options, stack.mnt)
        assert untouched(layerfs)

    def test_an_upper_in_use(self, stack: Stack, layerfs: Layerfs, free: Path) -> None:
        stack.mount()
        other = stack.directory / "other-work"
        other.mkdir()
        options = [f"--lower={stack.top}", f"--upper={stack.upper}"]
        for work in (stack.work, other):
            line = layerfs.refused("mount", *options, f"--work={work}", free)
            assert str(stack.upper) in line
            assert stack.name in line
        assert untouched(layerfs, mounts=1)

    def test_an_upper_in_use_by_a_mount_of_another_store(
        self, stack: Stack, layerfs: Layerfs, free: Path
    ) -> None:
        layerfs.expect_log("already used by another mount")
        stack.mount()
        (stack.mnt / "new").write_text("x")
        options = [f"--lower={stack.top}", f"--upper={stack.upper}", f"--work={stack.work}"]
        line = layerfs.refused("--root", layerfs.directory / "second-store", "mount", *options, free)
        assert "used by another mount" in line
        assert (stack.mnt / "new").read_text() == "x"
        (stack.mnt / "new").write_text("still")

    def test_an_upper_that_is_a_file(self, stack: Stack, layerfs: Layerfs) -> None:
        (stack.directory / "file").touch()
        for upper, work in ((stack.directory / "file", stack.work), (stack.upper, stack.directory / "file")):
            line = layerfs.refused(
                "mount", f"--lower={stack.top}", f"--upper={upper}", f"--work={work}", stack.mnt
            )
            assert "is not a directory" in line


class TestMountpoint:
    """Where a mount goes."""

    def test_missing(self, layerfs: Layerfs, base: str) -> None:
        line = layerfs.refused("mount", "--image", base, layerfs.directory / "nowhere")
        assert "does not exist" in line
        assert untouched(layerfs)

    def test_no_directory(self, layerfs: Layerfs, base: str) -> None:
        (layerfs.directory / "file").touch()
        for path in (layerfs.directory / "file", layerfs.directory / "file/below"):
            assert "ot a directory" in layerfs.refused("mount", "--image", base, path)
        assert untouched(layerfs)

    def test_in_use(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.ok("mount", "--image", base, "--name", "one", free)
        assert "mounted at" in layerfs.refused("mount", "--image", base, "--name", "two", free)
        assert untouched(layerfs, mounts=1)

    def test_not_empty_is_allowed(self, layerfs: Layerfs, base: str, free: Path) -> None:
        (free / "below").touch()
        layerfs.ok("mount", "--image", base, "--name", "one", free)
        assert os.listdir(free) == ["file"]
        layerfs.ok("umount", "one")
        assert os.listdir(free) == ["below"]

    def test_odd_names(self, layerfs: Layerfs, base: str) -> None:
        for name in ("with space", "back\\slash", "tab\t", "comma,", "new\nline", "d\udcff"):
            path = layerfs.directory / name
            path.mkdir()
            layerfs.ok("mount", "--image", base, "--name", "odd", path)
            assert (path / "file").read_text() == "content"
            layerfs.ok("umount", path)
            assert os.listdir(path) == []
            layerfs.ok("rm", "odd")


class TestNames:
    """References, names, options."""

    def test_an_unknown_image(self, layerfs: Layerfs, base: str, free: Path) -> None:
        assert "no such image: other" in layerfs.refused("mount", "--image", "other", free)
        for command in (["history"], ["tag", "x"], ["rmi"], ["verify"]):
            name, *more = command
            assert "no such image" in layerfs.refused(name, "other", *more)
        assert untouched(layerfs)

    def test_a_bad_reference(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.ok("mount", "--image", base, "--name", "one", free)
        for reference in ("UPPER", "a b", "a:b:c", "a/", ":tag", "a:" + "t" * 129, "-"):
            assert "invalid reference format" in layerfs.refused("commit", "one", "--", reference)
            assert "invalid reference format" in layerfs.refused("tag", base, "--", reference)
        assert len(layerfs.ok("images", "-q").splitlines()) == 1

    def test_a_name_that_is_taken(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.ok("mount", "--image", base, "--name", "one", free)
        other = layerfs.directory / "other"
        other.mkdir()
        said = layerfs.refused("mount", "--image", base, "--name", "one", other)
        assert f"one is mounted at {free} already" in said
        layerfs.ok("umount", "one")
        assert "the name one is taken" in layerfs.refused("mount", "--image", base, "--name", "one", other)
        assert len(layerfs.ok("ps", "-a", "-q").splitlines()) == 1

    def test_a_bad_name(self, layerfs: Layerfs, base: str, free: Path) -> None:
        for name in ("-x", "../up", "a/b", "n" * 129, "sp ace"):
            assert "invalid name" in layerfs.refused("mount", "--image", base, f"--name={name}", free)
        assert untouched(layerfs)
        assert not (layerfs.run.parent / "up.lock").exists()

    def test_an_empty_name(self, layerfs: Layerfs, base: str, free: Path) -> None:
        for words in (["--name", ""], ["-o", "name="]):
            line = layerfs.refused("mount", "--image", base, *words, free, status=2)
            assert "name" in line
        assert "needs a value" in layerfs.refused(base, free, "-o", f"image={base},name=", status=2)
        assert "it is empty" in layerfs.refused("mount", "--image", base, "", status=2)
        assert "it is empty" in layerfs.refused("run", "--name", "", base, "true", status=125)
        assert "it is empty" in layerfs.refused("commit", "x", "", status=2)
        assert untouched(layerfs)

    def test_unknown_mounts(self, layerfs: Layerfs, base: str) -> None:
        for command in ("commit", "diff", "rm", "umount", "status"):
            assert "no such mount: other" in layerfs.refused(command, "other")

    def test_a_bad_option(self, layerfs: Layerfs, base: str, free: Path) -> None:
        line = layerfs.refused("mount", "--image", base, "-o", "ro,nonsense=1", free, status=2)
        assert "nonsense=1" in line
        assert "--nonsense" in layerfs.refused("mount", "--nonsense", free, status=2)
        assert untouched(layerfs)

    def test_nothing_to_mount_and_too_much(self, layerfs: Layerfs, base: str, free: Path) -> None:
        assert "nothing to mount" in layerfs.refused("mount", free, status=2)
        both = ["--image", base, f"--lower={free}"]
        assert "not both" in layerfs.refused("mount", *both, free, status=2)
        assert "MOUNTPOINT" in layerfs.refused("mount", "--image", base, status=2)
        assert "no such mount: other" in layerfs.refused("mount", "--name", "other", free)

    def test_a_bad_change(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.ok("mount", "--image", base, "--name", "one", free)
        assert "RUN" in layerfs.refused("commit", "-c", "RUN rm -r /", "one", "new")
        assert len(layerfs.ok("images", "-q").splitlines()) == 1

    def test_a_commit_of_what_is_read_only(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.ok("mount", "--image", base, "--read-only", "--name", "one", free)
        assert "read-only" in layerfs.refused("commit", "one", "new")


class TestSurroundings:
    """The machine is not as it should be."""

    def in_child(self, prepare: Callable[[], object], *arguments: str | Path) -> tuple[int, str]:
        """Run the command in a forked child after *prepare*; return its status and what it complains of."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 255
            try:
                os.dup2(writer, 2)
                sys.stderr = os.fdopen(2, "w")
                prepare()
                status = cli.main([str(argument) for argument in arguments])
                sys.stderr.flush()
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text

    @pytest.fixture(autouse=True)
    def environment(self, layerfs: Layerfs, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point this process, and its children, at the test's store."""
        for name in ("LAYERFS_ROOT", "LAYERFS_RUN"):
            monkeypatch.setenv(name, layerfs.environment[name])

    def hide_device(self, mode: int | None) -> None:
        """Have no /dev/fuse in this process, or one of its own with permissions *mode*."""
        assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev"], check=True)
        os.mknod("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        if mode is not None:
            os.mknod("/dev/fuse", stat.S_IFCHR | mode, os.makedev(10, 229))
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    def test_no_device(self, layerfs: Layerfs, base: str, free: Path) -> None:
        status, line = self.in_child(lambda: self.hide_device(None), "mount", "--image", base, free)
        assert (status, line.count("\n")) == (1, 1)
        assert "/dev/fuse" in line
        assert "modprobe fuse" in line
        assert untouched(layerfs)

    def test_no_permission_for_the_device(self, layerfs: Layerfs, base: str, free: Path) -> None:
        status, line = self.in_child(lambda: self.hide_device(0o600), "mount", "--image", base, free)
        assert (status, line.count("\n")) == (1, 1)
        assert "no permission to open /dev/fuse" in line
        assert untouched(layerfs)

    def test_no_permission_for_the_store(self, layerfs: Layerfs, base: str) -> None:
        def become_nobody() -> None:
            os.setgid(NOBODY)
            os.setuid(NOBODY)

        status, line = self.in_child(become_nobody, "images")
        assert (status, line.count("\n")) == (1, 1)
        assert "ermission denied" in line

    def test_a_store_of_a_newer_version(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.store_is_damaged = True
        with sqlite3.connect(layerfs.root / "layerfs.db") as database:
            database.execute("PRAGMA user_version = 99")
            database.execute("UPDATE compatible SET version = 99")
        database.close()
        for command in (["images"], ["mount", "--image", base, str(free)], ["rmi", base]):
            line = layerfs.refused(*command)
            assert "version 99" in line
            assert "upgrade layerfs" in line
        assert mounts_below(layerfs.directory) == []

    def test_a_commit_to_a_store_that_a_newer_version_has_changed(
        self, layerfs: Layerfs, base: str, free: Path
    ) -> None:
        """The daemon of a mount outlives an upgrade; what it does not know it must not write to."""
        layerfs.ok("mount", "--image", base, "--name", "old", free)
        with closing(sqlite3.connect(layerfs.root / "layerfs.db", isolation_level=None)) as database:
            (known,) = database.execute("PRAGMA user_version").fetchone()
            (compatible,) = database.execute("SELECT version FROM compatible").fetchone()
            database.execute("PRAGMA user_version = 99")
            database.execute("UPDATE compatible SET version = 99")
            status, answer = layerfs.ask("old", "POST", "/commit?container=old&repo=new")
            assert (status, b"upgrade layerfs" in answer) == (409, True)
            database.execute(f"PRAGMA user_version = {known}")
            database.execute("UPDATE compatible SET version = ?", (compatible,))
        assert layerfs("inspect", "new").returncode == 1
        layerfs.ok("umount", "old")

    def test_a_store_that_is_no_store(self, layerfs: Layerfs) -> None:
        layerfs.store_is_damaged = True
        layerfs.root.mkdir()
        (layerfs.root / "layerfs.db").write_bytes(b"no database" * 1000)
        assert str(layerfs.root) in layerfs.refused("images")
        assert (layerfs.root / "layerfs.db").read_bytes() == b"no database" * 1000

    def test_a_run_directory_that_cannot_be_made(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.environment["LAYERFS_RUN"] = str(layerfs.directory / "tree/file/run")
        assert "file/run" in layerfs.refused("mount", "--image", base, free)

    def test_a_stale_socket(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.run.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(layerfs.socket("one")))
        layerfs.ok("mount", "--image", base, "--name", "one", free)
        assert layerfs.ok("commit", "one").startswith("sha256:")

    def test_a_socket_path_that_is_too_long(self, layerfs: Layerfs, base: str, free: Path) -> None:
        layerfs.expect_log("too long for a socket")
        line = layerfs.refused("mount", "--image", base, "--name", "n" * 128, free)
        assert "too long for a socket" in line
        assert untouched(layerfs)
