"""Containers when something dies: supervisor, daemon, starter, machine; and when the disk is full."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from layerfs.host.freezer import find
from tests.conftest import NOBODY, Layerfs, fill, mounts_below, wait_until
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root
FOREVER = ("sleep", "1000")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, for the whole module."""
    with containers(tmp_path_factory.mktemp("failures")) as made:
        yield made


@pytest.fixture
def box(there: Containers) -> Iterator[str]:
    """A container that runs."""
    there.layerfs.ok("run", "-d", "--name", "box", IMAGE, *FOREVER)
    yield "box"
    there.remove()
    assert mounts_below(there.layerfs.directory) == []
    # Who clears away after it, and finds it removed, has its directory for a moment.
    wait_until(lambda: os.listdir(there.layerfs.run / "containers") == [])


def kill(there: Containers, name: str, file: str) -> int:
    """Kill the process whose pid is in a *file* of a container's directory; return the pid."""
    pid = int((there.directory(name) / file).read_text())
    os.kill(pid, signal.SIGKILL)
    return pid


def test_the_process_is_killed(there: Containers, box: str) -> None:
    kill(there, box, "pid")
    wait_until(lambda: there.state(box) == ("exited", 137))
    wait_until(lambda: mounts_below(there.layerfs.directory) == [])
    there.layerfs.ok("start", box)


def test_the_supervisor_is_killed(there: Containers, box: str) -> None:
    kill(there, box, "conmon.pid")
    wait_until(lambda: not there.supervisors())
    assert there.state(box) == ("running", 0)
    assert there.layerfs.ok("exec", box, "echo", "alive") == "alive"
    there.layerfs.ok("stop", "-t", "0", box)
    assert there.state(box) == ("exited", 255)
    assert "supervisor ended" in there.inspect(box)["State"]["Error"]
    assert mounts_below(there.layerfs.directory) == []
    there.layerfs.ok("start", box)
    kill(there, box, "conmon.pid")
    kill(there, box, "pid")
    wait_until(lambda: not there.supervisors())
    assert there.layerfs.ok("start", box) == box
    assert there.state(box) == ("running", 0)


def test_the_daemon_is_killed(there: Containers, box: str) -> None:
    there.layerfs.kill(box)
    assert there.state(box)[0] == "dead"
    for command in (("exec", box, "true"), ("commit", box)):
        assert f"run 'layerfs stop {box}', then" in there.layerfs.refused(*command)
    there.layerfs.ok("stop", "-t", "0", box)
    assert there.state(box) == ("exited", 137)
    there.layerfs.ok("start", box)
    there.layerfs.kill(box)


def test_who_had_paused_it_is_killed(there: Containers, box: str) -> None:
    """What stands still would not even die: it is let go first."""
    pid = int((there.directory(box) / "pid").read_text())
    freezer = find(pid, there.directory(box).name)
    assert freezer is not None, "the container has no cgroup of its own"
    freezer.freeze()
    wait_until(freezer.stands_still)
    there.layerfs.kill(box)
    there.layerfs.ok("stop", "-t", "0", box)
    assert there.state(box) == ("exited", 137)


def test_the_starter_is_killed(there: Containers, tmp_path: Path) -> None:
    """Killed while the container is being created, at once or politely: the next one finds nothing odd."""
    slow, waiting = tmp_path / "slow", tmp_path / "waiting"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *create*) touch {waiting}; sleep 1;; esac\nexec runc "$@"\n')
    slow.chmod(0o755)
    there.layerfs.environment["LAYERFS_RUNTIME"] = str(slow)
    try:
        for number in (signal.SIGKILL, signal.SIGTERM):
            waiting.unlink(missing_ok=True)
            with there.popen("run", "--name=cut", IMAGE, "echo", "hi", stderr=subprocess.PIPE) as process:
                wait_until(waiting.exists)
                process.send_signal(number)
                process.wait(20)
            wait_until(lambda: not there.supervisors())
            assert there.state("cut")[0] in ("created", "running")
            assert there.layerfs.ok("start", "-a", "cut") == "hi"
            there.remove("cut")
    finally:
        del there.layerfs.environment["LAYERFS_RUNTIME"]
    assert mounts_below(there.layerfs.directory) == []
    wait_until(lambda: os.listdir(there.layerfs.run / "containers") == [])


def test_the_client_is_killed(there: Containers) -> None:
    """What was to be removed at its end is removed, although nobody waits for it any more."""
    with there.popen("run", "--rm", "--name=orphan", IMAGE, *FOREVER) as process:
        wait_until(lambda: not there.gone("orphan") and there.state("orphan")[0] == "running")
        process.kill()
    assert there.state("orphan")[0] == "running"
    kill(there, "orphan", "pid")
    wait_until(lambda: there.gone("orphan"))
    wait_until(lambda: mounts_below(there.layerfs.directory) == [])


def test_the_machine_starts_again(there: Containers, box: str) -> None:
    """Nothing lives, nothing is mounted, and the run directory is empty."""
    run = there.layerfs.run
    pids = [int((there.directory(box) / name).read_text()) for name in ("conmon.pid", "pid")]
    for pid in (*pids, there.layerfs.pid(box)):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not there.layerfs.processes())
    for mountpoint in mounts_below(run):
        subprocess.run(["umount", "-l", mountpoint], check=True, timeout=10)
    subprocess.run(
        ["runc", "--root", run / "runtime/runc", "delete", "-f", there.inspect(box)["Id"]], check=True
    )
    subprocess.run(["rm", "-rf", "--one-file-system", run], check=True)
    assert there.state(box) == ("exited", 255)
    assert there.layerfs.ok("start", box) == box
    assert there.layerfs.ok("exec", box, "echo", "alive") == "alive"


def test_two_starts_at_once(there: Containers, box: str) -> None:
    there.layerfs.ok("stop", "-t", "0", box)
    starters = [there.popen("start", box, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    ends = [(*starter.communicate(timeout=40), starter.returncode) for starter in starters]
    assert ends == [(b"box\n", b"", 0)] * 3
    assert len(there.supervisors()) == 1
    assert there.layerfs.ok("exec", box, "echo", "alive") == "alive"


def test_runtimes(there: Containers, tmp_path: Path) -> None:
    """The first that works is taken; the first one's complaint is shown where none does."""
    broken = tmp_path / "bin/runc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho broken here >&2\nexit 1\n")
    broken.chmod(0o755)
    working = broken.with_name("crun")
    working.write_text('#!/bin/sh\nPATH=${PATH#*:}\nexec runc "$@"\n')
    working.chmod(0o755)
    path = there.layerfs.environment["PATH"]
    there.layerfs.environment["PATH"] = f"{broken.parent}:{path}"
    try:
        assert there.layerfs.ok("run", "--rm", IMAGE, "echo", "works") == "works"
        there.layerfs.environment["LAYERFS_RUNTIME"] = "runc"
        assert "broken here" in there.layerfs.refused("run", "--rm", IMAGE, "true", status=125)
        there.layerfs.environment["LAYERFS_RUNTIME"] = "no-such"
        assert "is no program" in there.layerfs.refused("run", "--rm", IMAGE, "true", status=125)
    finally:
        there.layerfs.environment.pop("LAYERFS_RUNTIME", None)
        there.layerfs.environment["PATH"] = path
    assert there.names() == []


def test_a_full_disk(layerfs: Layerfs, small: Path) -> None:
    """A container whose upper is full goes on; one that cannot be started leaves nothing behind."""
    layerfs.expect_log("could not be stored")  # the container was told by fsync(2)
    layerfs.root = small / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    with containers(layerfs.directory, layerfs) as there:
        there.layerfs.ok("run", "-d", "--name", "full", IMAGE, *FOREVER)
        ballast = fill(small)
        try:
            done = there.run(
                "exec", "full", "dd", "if=/dev/zero", "of=/root/x", "bs=64k", "count=1", "conv=fsync"
            )
            assert (done.returncode, "No space left" in done.stderr) == (1, True)
            done = there.run("run", "--rm", IMAGE, "true")
            assert (done.returncode, done.stderr.count("\n")) == (125, 1)
            assert there.state("full")[0] == "running"
        finally:
            ballast.unlink()
        assert there.names() == ["full"]
        there.layerfs.ok("exec", "full", "sh", "-c", "echo x >/root/x")
        there.layerfs.ok("stop", "-t", "0", "full")
        wait_until(lambda: os.listdir(layerfs.run / "containers") == [])


def test_as_an_ordinary_user(there: Containers) -> None:
    with there.popen(
        "run", IMAGE, "true", stderr=subprocess.PIPE, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/"
    ) as process:
        _, said = process.communicate(timeout=20)
    assert process.returncode == 125
    assert b"running containers needs root" in said


@pytest.mark.parametrize(
    ("member", "value"), [("User", 5), ("WorkingDir", [1]), ("Cmd", "str"), ("Env", [5]), ("Labels", 7)]
)
def test_an_image_that_an_earlier_version_took_unchecked(
    there: Containers, member: str, value: object
) -> None:
    """Its rows are in the store: it is listed, and running it says what is wrong."""
    there.layerfs.ok("tag", IMAGE, "odd:1")
    config = json.dumps({"Cmd": ["sh"], member: value})
    database = there.layerfs.root / "layerfs.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        [before] = connection.execute("SELECT config FROM images").fetchone()
        connection.execute("UPDATE images SET config = ?", (config,))
    try:
        done = there.run("run", "--name", "odd", "odd:1", "true")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        assert f"{member} in the image's configuration must be" in done.stderr
        mnt = there.layerfs.directory / "odd"
        mnt.mkdir(exist_ok=True)
        there.layerfs.ok("mount", "--image", "odd:1", "--name", "odd", mnt)
        assert "odd" in there.layerfs.ok("ps")
        there.layerfs.ok("images")
        there.layerfs.ok("inspect", "odd", "odd:1")
        assert f"{member} in the image's configuration must be" in there.layerfs.refused("commit", "odd")
        there.layerfs.ok("rm", "-f", "odd")
    finally:
        there.remove()
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE images SET config = ?", (before,))
        there.layerfs.ok("rmi", "odd:1")
