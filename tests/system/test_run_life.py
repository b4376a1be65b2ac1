"""A container's life: detached, listed, looked into, stopped, started again, committed, removed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfs.host.freezer import find
from tests.conftest import mounts_below, wait_until
from tests.system.containers import IMAGE, Containers, Terminal, containers

pytestmark = pytest.mark.root
SERVER = "trap 'echo bye; exit 5' TERM; echo ready; echo error >&2; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, for the whole module."""
    with containers(tmp_path_factory.mktemp("life")) as made:
        yield made


@pytest.fixture
def server(there: Containers) -> Iterator[str]:
    """A container that runs until it is told to end."""
    identifier = there.layerfs.ok("run", "-d", "--name", "server", IMAGE, "sh", "-c", SERVER)
    assert re.fullmatch("[0-9a-f]{64}", identifier)
    wait_until(lambda: there.run("logs", "server").stdout == "ready\n")
    yield "server"
    there.remove()


def test_its_life(there: Containers, server: str) -> None:
    layerfs = there.layerfs
    header, line = layerfs.ok("ps").splitlines()
    assert header.split() == ["MOUNT", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "MOUNTPOINT", "NAMES"]
    assert re.search(r"busybox:1 +\"sh -c trap 'echo by…\" .* ago +Up .* +server$", line)
    found = there.inspect(server)
    assert (found["Path"], found["Args"]) == ("sh", ["-c", SERVER])
    assert (found["State"]["Status"], found["State"]["Running"]) == ("running", True)
    assert found["Config"]["Env"] == ["GREETING=hello"]
    assert Path(f"/proc/{found['State']['Pid']}/cmdline").read_bytes().split(b"\0")[0] == b"sh"
    assert "container is running: stop the container" in layerfs.refused("rm", server)
    assert layerfs.ok("exec", server, "sh", "-c", "echo written >/root/file && sync") == ""

    started = time.monotonic()
    assert layerfs.ok("stop", server) == server
    assert time.monotonic() - started < 8
    assert there.state(server) == ("exited", 5)
    assert layerfs.ok("wait", server) == "5"
    assert mounts_below(layerfs.directory) == []
    assert layerfs.ok("ps", "-q") == ""
    assert re.search(r"Exited \(5\) .* ago", layerfs.ok("ps", "-a"))
    logs = there.run("logs", server)
    assert (logs.stdout, logs.stderr) == ("ready\nbye\n", "error\n")
    assert layerfs.ok("logs", "-n", "1", server) == "bye"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 bye", layerfs.ok("logs", "-t", "-n1", server))

    image = layerfs.ok("commit", "-m", "at rest", server, "rested")
    row = json.loads(layerfs.ok("history", "--format", "json", "--no-trunc", "rested").splitlines()[0])
    assert (row["ID"], row["CreatedBy"], row["Comment"]) == (image, f"sh -c {SERVER}", "at rest")
    assert layerfs.ok("run", "--rm", "rested", "cat", "/root/file") == "written"

    assert layerfs.ok("start", server) == server
    assert layerfs.ok("start", server) == server  # it runs already
    assert there.state(server) == ("running", 0)
    assert layerfs.ok("exec", server, "cat", "/root/file") == "written"
    assert layerfs.ok("kill", "-s", "TERM", server) == server
    assert layerfs.ok("wait", server) == "5"
    layerfs.ok("start", server)
    layerfs.ok("kill", server)
    assert layerfs.ok("wait", server) == "137"
    layerfs.ok("start", server)
    layerfs.ok("rm", "-f", server)
    assert there.names() == []
    assert mounts_below(layerfs.directory) == []
    layerfs.ok("rmi", "rested")


def test_stopping_who_does_not_listen(there: Containers) -> None:
    there.layerfs.ok("run", "-d", "--name", "deaf", IMAGE, "sleep", "60")
    started = time.monotonic()
    there.layerfs.ok("stop", "-t", "1", "deaf")
    assert 1 <= time.monotonic() - started < 8
    assert there.state("deaf") == ("exited", 137)
    assert there.layerfs.ok("stop", "deaf") == "deaf"
    there.remove("deaf")


def test_exec(there: Containers, server: str) -> None:
    script = "id -u; echo $A $GREETING $HOME; echo error >&2; exit 4"
    done = there.run("exec", "-u", "jane", "-w", "/tmp", "-e", "A=1", server, "sh", "-c", script)
    assert (done.stdout, done.stderr, done.returncode) == ("1000\n1 hello /home/jane\n", "error\n", 4)
    assert there.run("exec", "-i", server, "cat", stdin=b"input\n").stdout == "input\n"
    assert there.run("exec", server, "cat", stdin=b"input\n").stdout == ""
    for command, status in ((("no-such-command",), 127), (("/etc/passwd",), 126)):
        done = there.run("exec", server, *command)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    there.layerfs.ok("exec", "-d", server, "sh", "-c", "echo $$ >/tmp/detached; sleep 60")
    wait_until(lambda: there.run("exec", server, "cat", "/tmp/detached").stdout)
    assert "not found" in there.layerfs.refused("exec", "-d", server, "no-such-command", status=127)
    assert "unable to find user nobody" in there.layerfs.refused("exec", "-u", "nobody", server, "true")
    assert "there is no terminal" in there.run("exec", "-t", server, "true").stderr
    there.layerfs.ok("stop", server)
    assert "server is not running: run 'layerfs start server'" in there.layerfs.refused(
        "exec", server, "true"
    )


def test_exec_on_a_terminal(there: Containers, server: str) -> None:
    with Terminal(there, ["exec", "-it", server, "sh"]) as terminal:
        terminal.wait_for("# ")
        terminal.type("stty size; tty; echo $((40 + 2)); exit 3\n")
        assert "33 101\r\n/dev/pts/" in terminal.wait_for("\r\n42\r\n")
        assert terminal.end() == 3
        assert terminal.is_as_it_was()


def test_following_a_log(there: Containers) -> None:
    script = "echo one; while ! [ -e /go ]; do sleep 0.05; done; printf two"
    there.layerfs.ok("run", "-d", "--name", "writer", IMAGE, "sh", "-c", script)
    with there.popen("logs", "-f", "writer", stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"one\n"
        there.layerfs.ok("exec", "writer", "touch", "/go")
        assert process.stdout.read() == b"two"
        assert process.wait(10) == 0
    there.remove("writer")


def test_a_commit_that_pauses(there: Containers) -> None:
    """One process counts in two files, always in the same order: a paused commit cuts both at one moment."""
    script = """
        n=0; exec 3>>/srv/first 4>>/srv/second; echo ready
        while :; do n=$((n + 1)); echo $n >&3; echo $n >&4; done
    """
    layerfs = there.layerfs
    layerfs.ok("run", "-d", "--name", "counter", IMAGE, "sh", "-c", script)
    wait_until(lambda: layerfs.ok("logs", "counter") == "ready")
    with standing_still(there, "counter") as moments:
        for number in range(3):
            layerfs.ok("commit", "--pause", "counter", f"paused:{number}")
    assert moments, "it never stood still"
    with standing_still(there, "counter") as moments:
        layerfs.ok("commit", "counter", "running")
    assert moments == []
    for query, paused in (("", True), ("&pause=0", False), ("&pause=1", True)):  # as dockerd
        with standing_still(there, "counter") as moments:
            for _ in range(20 if paused else 1):  # it is short: who looks may miss it
                assert (
                    layerfs.ask("counter", "POST", f"/commit?container=counter&repo=asked{query}")[0] == 201
                )
                if moments:
                    break
        assert bool(moments) == paused, query
    for number in range(3):
        layers = there.inspect(f"paused:{number}")["GraphDriver"]["Data"]["LowerDir"].split(":")
        first, second = (
            int(Path(layers[0], "srv", name).read_text().splitlines()[-1]) for name in ("first", "second")
        )
        assert 0 <= first - second <= 1
    assert there.state("counter") == ("running", 0)
    there.remove("counter")
    layerfs.ok("rmi", "-f", "running", "asked", *(f"paused:{number}" for number in range(3)))


@contextmanager
def standing_still(there: Containers, name: str) -> Iterator[list[float]]:
    """Collect, while the block lasts, the moments at which a container was seen to stand still."""
    directory = there.directory(name)
    freezer = find(int((directory / "pid").read_text()), directory.name)
    assert freezer is not None, "the container has no cgroup of its own"
    moments: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.0005):
            if freezer.stands_still():
                moments.append(time.monotonic())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield moments
    finally:
        over.set()
        thread.join()


def test_what_is_no_container(there: Containers) -> None:
    mnt = there.layerfs.directory / "mnt"
    mnt.mkdir()
    there.layerfs.ok("mount", "--image", IMAGE, "--name", "plain", mnt)
    for command in (("exec", "plain", "true"), ("start", "plain"), ("stop", "plain"), ("logs", "plain")):
        assert "plain is a mount, not a container" in there.layerfs.refused(*command)
    assert "plain is a mount, not a container" in there.layerfs.refused("commit", "--pause", "plain")
    assert "no such mount: nothing" in there.layerfs.refused("exec", "nothing", "true")
    there.layerfs.ok("rm", "-f", "plain")


def test_a_container_can_be_mounted_by_hand(there: Containers) -> None:
    mnt = there.layerfs.directory / "by-hand"
    mnt.mkdir()
    there.layerfs.ok("run", "--name", "ended", IMAGE, "sh", "-c", "echo x >/root/x")
    there.layerfs.ok("mount", "--name", "ended", mnt)
    assert (mnt / "root/x").read_text() == "x\n"
    assert "ended is mounted on" in there.layerfs.refused("start", "ended")
    there.layerfs.ok("umount", "ended")
    there.layerfs.ok("start", "-a", "ended")
    there.layerfs.ok("rm", "ended")


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs the docker command line client")
def test_the_docker_client(there: Containers, server: str) -> None:
    """Docker's own client, on the socket of the container's mount."""
    socket = there.layerfs.socket(server)

    def docker(*arguments: str) -> str:
        done = subprocess.run(
            ["docker", "--config", str(there.layerfs.directory), "-H", f"unix://{socket}", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    assert docker("ps", "--format", "{{.Names}} {{.State}} {{.Command}}").startswith('server running "sh -c')
    assert (
        docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.Path}}", server) == "running 0 sh"
    )
    assert docker("commit", server, "by-docker").startswith("sha256:")
    assert docker("stop", server) == server
    wait_until(lambda: there.state(server) == ("exited", 5))
    there.layerfs.ok("start", server)
    assert docker("rm", "-f", server) == server
    wait_until(lambda: there.gone(server))
    wait_until(lambda: not there.supervisors())
    assert mounts_below(there.layerfs.directory) == []
    there.layerfs.ok("rmi", "by-docker")
