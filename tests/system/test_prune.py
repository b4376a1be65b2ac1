"""Room: `layerfs prune` and `df`, and Docker's client asking for the same, on real mounts."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerfs.store import Store
from tests.conftest import Layerfs, mounts_below, wait_until
from tests.system.containers import IMAGE, containers
from tests.system.test_docker_client import NAME, Cli, Served, cli, served
from tests.unit.steps_support import chain

__all__ = ["cli", "served"]

pytestmark = pytest.mark.root


@pytest.fixture
def base(layerfs: Layerfs) -> Path:
    """The directory for mounts; the image "base" has a file."""
    tree = layerfs.directory / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(bytes(1000))
    layerfs.ok("import", tree, "base")
    return layerfs.directory


def mounted(layerfs: Layerfs, name: str | None, image: str = "base") -> Path:
    """Mount *image* as *name* on a directory of its own."""
    place = layerfs.directory / f"mnt-{name}"
    place.mkdir(exist_ok=True)
    layerfs.ok("mount", "--image", image, *(["--name", name] if name else []), place)
    return place


def test_what_is_mounted_stays_whole(layerfs: Layerfs, base: Path) -> None:
    """Commits, tags gone, everything pruned: the mount shows all of it, and commits again."""
    mnt = mounted(layerfs, "used")
    for number in range(3):
        (mnt / f"file{number}").write_bytes(bytes(100))
        layerfs.ok("commit", "used", *(["last"] if number == 2 else []))
    layerfs.ok("umount", "used")
    layerfs.ok("mount", "--name", "used", mnt)
    out = layerfs.ok("prune", "--all", "--mounts", "--force")
    assert "untagged: last:latest" in out
    assert out.endswith("Total reclaimed space: 0B")
    assert sorted(path.name for path in mnt.iterdir()) == ["file", "file0", "file1", "file2"]
    assert (mnt / "file1").read_bytes() == bytes(100)
    (mnt / "after").touch()
    layerfs.ok("commit", "used", "again")
    assert layerfs.ok("verify", "again") == "again: every file is as its manifest says"
    layerfs.ok("umount", "used")
    assert layerfs.ok("prune", "-a", "--mounts", "-f").endswith("Total reclaimed space: 1.3kB")
    assert list((layerfs.root / "layers").iterdir()) == []


def test_a_mount_of_another_run_directory_stays(layerfs: Layerfs, base: Path) -> None:
    mnt = mounted(layerfs, "used")
    reader = base / "reader"
    reader.mkdir()
    layerfs.ok("mount", "--image", "base", "--read-only", "--name", "reader", reader)
    stranger = Layerfs(base)
    stranger.environment["LAYERFS_RUN"] = str(base / "elsewhere")
    assert stranger.ok("prune", "-a", "--mounts", "-f") == "Total reclaimed space: 0B"
    assert (mnt / "file").exists()
    assert (reader / "file").exists()
    assert len(layerfs.ok("ps", "-q").splitlines()) == 2


def test_mounts_without_a_name_whose_daemon_was_killed(layerfs: Layerfs, base: Path) -> None:
    """The next mount, import or prune takes them away, with what was written to them."""
    place = mounted(layerfs, None)
    (place / "written").write_bytes(bytes(500))
    (name,) = (path.stem for path in layerfs.run.glob("*.sock"))
    layerfs.kill(name)
    assert layerfs.ok("ps", "-aq") != ""
    done = layerfs("import", base / "tree", "other")
    assert f"layerfs: removed {name}: a mount without a name whose daemon was killed\n" == done.stderr
    assert layerfs.ok("ps", "-aq") == ""
    assert mounts_below(base) == []
    assert not layerfs.socket(name).exists()
    assert len(list((layerfs.root / "layers").iterdir())) == 2
    assert mounted(layerfs, None) == place


def test_it_asks_on_a_terminal(layerfs: Layerfs, base: Path) -> None:
    layerfs.ok("tag", "base", "spare")
    for answer, remains in (("n", True), ("y", False)):
        controller, terminal = pty.openpty()
        with subprocess.Popen(
            [*layerfs.words, "prune", "--all"], env=layerfs.environment, stdin=terminal, stdout=terminal,
            stderr=terminal, close_fds=True,
        ) as process:  # fmt: skip
            os.close(terminal)
            shown = b""
            while b"[y/N]" not in shown:
                assert select.select([controller], [], [], 20)[0]
                shown += os.read(controller, 4096)
            assert b"This will remove all images that no mount uses" in shown
            os.write(controller, f"{answer}\n".encode())
            status = process.wait(20)
        os.close(controller)
        assert status == (1 if remains else 0)
        assert bool(layerfs.ok("images", "-q")) == remains
    assert "give --force" in layerfs.refused("prune", status=2)


def test_pruning_is_killed_while_mounts_are_in_use(layerfs: Layerfs, base: Path) -> None:
    """Commands are killed at random moments while a mount is written to and committed; nothing is lost."""
    mnt = mounted(layerfs, "used")
    until = time.monotonic() + 5
    number = 0
    while time.monotonic() < until:
        process = subprocess.Popen(
            [sys.executable, "-m", "layerfs", "prune", "--all", "--mounts", "--force"],
            env=layerfs.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        (mnt / f"file{number}").write_text(str(number))
        layerfs.ok("commit", "used", *([f"kept:{number}"] if number % 2 else []))
        layerfs("import", base / "tree", f"more:{number}")
        time.sleep(0.02 * (number % 8))
        process.kill()
        process.wait()
        number += 1
    assert {path.name for path in mnt.iterdir()} == {"file", *(f"file{n}" for n in range(number))}
    layerfs.ok("umount", "used")
    layerfs.ok("mount", "--name", "used", mnt)
    assert all((mnt / f"file{n}").read_text() == str(n) for n in range(number))
    layerfs.ok("commit", "used", "all")
    assert layerfs.ok("verify", "all") == "all: every file is as its manifest says"
    layerfs.ok("umount", "used")
    layerfs("prune", "--all", "--force")
    assert len(list((layerfs.root / "layers").iterdir())) == number + 3


def test_containers(layerfs: Layerfs) -> None:
    """One that runs stays; those that have ended go, also when nobody has cleared away after them yet."""
    with containers(layerfs.directory / "containers") as there:
        run = there.layerfs.ok
        for name, command in (
            ("ended", ("true",)),
            ("killed", ("sleep", "60")),
            ("running", ("sleep", "60")),
        ):
            run("run", "-d", "--name", name, IMAGE, *command)
        wait_until(lambda: there.state("ended") == ("exited", 0))
        os.kill(there.inspect("killed")["State"]["Pid"], signal.SIGKILL)
        run("prune", "--mounts", "--force")
        wait_until(lambda: run("prune", "--mounts", "--force") and there.names() == ["running"])
        assert run("exec", "running", "echo", "alive") == "alive"


@pytest.mark.docker
class TestDockersClient:
    """`docker system df`, `docker image prune` and so on, on a mount's socket."""

    def test_system_df(self, served: Served, cli: Cli) -> None:
        (served.mnt / "new").write_bytes(bytes(100))
        cli.ok("commit", NAME, "made")
        (served.mnt / "newer").write_bytes(bytes(10))
        rows = [json.loads(line) for line in cli.ok("system", "df", "--format", "json").splitlines()]
        assert {row["Type"]: (row["TotalCount"], row["Active"], row["Size"]) for row in rows} == {
            "Images": ("2", "1", "107B"),
            "Containers": ("1", "1", "10B"),
            "Local Volumes": ("0", "0", "0B"),
            "Build Cache": ("0", "0", "0B"),
        }
        images, containers = cli.ok("system", "df", "-v").split("Containers space usage:")
        made = next(line.split() for line in images.splitlines() if line.startswith("made"))
        assert made[-4:] == ["107B", "7B", "100B", "0"]
        assert NAME in containers

    def test_prune(self, served: Served, cli: Cli, tmp_path: Path) -> None:
        layerfs = served.layerfs
        layerfs.ok("import", tmp_path / "tree")
        layerfs.ok("import", tmp_path / "tree", "spare")
        place = tmp_path / "second"
        place.mkdir()
        layerfs.ok("mount", "--image", "debian:12", "--name", "stopped", place)
        (place / "written").write_bytes(bytes(50))
        layerfs.ok("umount", "stopped")
        out = cli.ok("image", "prune", "-f").splitlines()
        assert out[0] == "Deleted Images:"
        assert out[-1] == "Total reclaimed space: 7B"
        assert cli.ok("container", "prune", "-f", "--filter", "until=1h") == "Total reclaimed space: 0B"
        assert cli.ok("container", "prune", "-f").splitlines()[-1] == "Total reclaimed space: 50B"
        assert cli.ok("system", "prune", "-f") == "Total reclaimed space: 0B"
        assert "untagged: spare:latest" in cli.ok("system", "prune", "-af").splitlines()
        assert layerfs.ok("images", "-q", "--no-trunc") == served.base
        assert layerfs.ok("ps", "-a", "--format", "json").count("\n") == 0
        assert (served.mnt / "file").read_text() == "content"

    def test_the_build_cache(self, served: Served, cli: Cli) -> None:
        def prune(*options: str) -> list[str]:
            done = cli.run("builder", "prune", "-f", *options)
            assert done.returncode == 0, done.stderr  # which has a line about buildx
            return done.stdout.splitlines()

        with Store(served.layerfs.root) as store, store.building():
            steps = chain(store, "a", (100, 20, 3))
            store.steps.make_image(steps[0], {}, references=["built"])
            chain(store, "b", (1000,))
        rows = [json.loads(line) for line in cli.ok("system", "df", "--format", "json").splitlines()]
        (row,) = (row for row in rows if row["Type"] == "Build Cache")
        assert (row["TotalCount"], row["Active"], row["Size"]) == ("4", "0", "1.023kB")
        assert "a-2        regular" in cli.ok("system", "df", "-v")
        assert prune("--filter", "until=1h") == ["Total reclaimed space: 0B"]
        assert prune("--keep-storage", "1000")[-1] == "Total reclaimed space: 23B"
        assert prune()[-1] == "Total reclaimed space: 1kB"
        assert "a-0" in prune("--all")
        assert cli.ok("images", "-q", "built") != ""
