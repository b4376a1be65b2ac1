"""The engine under Docker's own client: the walkthrough word for word, streams, and its own end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, wait_until
from tests.system.apirequests import Api, engine
from tests.system.containers import IMAGE, Containers, containers

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker client is not installed"),
]


class Docker:
    """The docker client, and the engine that it talks to."""

    def __init__(self, there: Containers, api: Api) -> None:
        self.there = there
        self.api = api
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{api.path}"}

    def __call__(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker", *words],
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        # Every byte is a character, and none is changed: not as `text=True` takes ends of lines.
        stdout, stderr = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
        return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)

    def ok(self, *words: str, stdin: bytes = b"") -> str:
        """Run a command that has to succeed; return what it prints."""
        done = self(*words, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, ""), (words, done)
        return done.stdout.rstrip("\n")

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what is known of a container."""
        found: dict[str, Any] = json.loads(self.ok("inspect", name))[0]
        return found

    def on_a_terminal(self, *words: str, typed: bytes = b"") -> str:
        """Run a command on a terminal of its own, with keys *typed*; return what it shows."""
        command = "stty rows 31 cols 97; exec docker " + " ".join(f"'{word}'" for word in words)
        done = subprocess.run(
            ["script", "-qec", command, "/dev/null"],
            env=self.environment,
            input=typed,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout.decode(errors="replace").replace("\r\n", "\n")


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    """The docker client with an engine of its own, and the image that containers are made of."""
    with containers(tmp_path) as there:
        yield Docker(there, engine(there.layerfs))


def test_the_walkthrough_word_for_word(docker: Docker) -> None:
    docker.ok("tag", IMAGE, "ubuntu")
    shown = docker.on_a_terminal(
        "run",
        "--network=host",
        "--name=base-container",
        "-ti",
        "ubuntu",
        "sh",
        "-c",
        "echo made >/srv/node; tty",
    )
    assert "/dev/pts/" in shown
    made = docker.ok("container", "commit", "-m", "Add node", "base-container", "node-base")
    assert made.startswith("sha256:")
    history = docker.ok("image", "history", "node-base")
    assert "Add node" in history
    again = docker.ok("run", "--rm", "--network=host", "node-base", "cat", "/srv/node")
    assert again == "made"
    assert docker.ok("rm", "-f", "base-container") == "base-container"
    assert docker.ok("ps", "-aq") == ""


def test_output_comes_by_its_stream_and_the_exit_code_too(docker: Docker) -> None:
    done = docker("run", "--rm", "--network=none", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_command_that_is_not_there_is_127_and_one_that_is_no_program_126(docker: Docker) -> None:
    missing = docker("run", "--rm", "--network=none", IMAGE, "nothing")
    assert missing.returncode == 127
    assert "executable file not found" in missing.stderr
    assert docker("run", "--rm", "--network=none", IMAGE, "/etc/passwd").returncode == 126
    assert docker.ok("ps", "-aq") == ""


def test_input_reaches_a_container_and_its_end_too(docker: Docker) -> None:
    data = bytes(range(256)) * 4096
    done = docker("run", "-i", "--rm", "--network=none", IMAGE, "cat", stdin=data)
    assert (done.returncode, done.stdout.encode("latin-1")) == (0, data)


def test_exec_has_its_own_streams_terminal_and_exit_code(docker: Docker) -> None:
    docker.ok("run", "-d", "--network=none", "--name", "box", IMAGE, "sleep", "600")
    done = docker("exec", "box", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert docker.ok("exec", "-i", "box", "cat", stdin=b"typed") == "typed"
    assert "31 97" in docker.on_a_terminal("exec", "-ti", "box", "sh", "-c", "sleep 0.5; stty size")
    assert docker.ok("exec", "-e", "A=b", "-w", "/srv", "box", "sh", "-c", "echo $A; pwd") == "b\n/srv"


def test_what_was_attached_before_the_start_misses_nothing(docker: Docker) -> None:
    for number in range(10):
        assert docker.ok("run", "--rm", "--network=none", IMAGE, "echo", str(number)) == str(number)


def test_logs_are_those_that_were_written(docker: Docker) -> None:
    docker.ok("run", "--network=none", "--name", "box", IMAGE, "sh", "-c", "for n in 1 2 3; do echo $n; done")
    assert docker.ok("logs", "box") == "1\n2\n3"
    assert docker.ok("logs", "--tail", "2", "box") == "2\n3"
    assert docker.ok("logs", "-f", "box") == "1\n2\n3"
    assert docker.ok("logs", "-t", "box").splitlines()[0].endswith("Z 1") or "T" in docker.ok(
        "logs", "-t", "box"
    )


def test_a_killed_engine_leaves_containers_and_a_new_one_finds_them(docker: Docker) -> None:
    docker.ok("run", "-d", "--network=none", "--name", "box", IMAGE, "sh", "-c", "echo begun; exec sleep 600")
    before = docker.inspect("box")["State"]["Pid"]
    os.kill(int((docker.there.layerfs.run / "engine.lock").read_text().split()[0]), signal.SIGKILL)
    wait_until(lambda: docker("version").returncode != 0)
    assert Path(f"/proc/{before}").exists()
    docker.api.path.unlink()
    engine(docker.there.layerfs)
    assert docker.inspect("box")["State"]["Pid"] == before
    assert docker.ok("logs", "box") == "begun"
    assert docker.ok("exec", "box", "echo", "there") == "there"
    docker.ok("commit", "box", "again")
    docker.ok("rm", "-f", "box")
    assert docker.ok("ps", "-aq") == ""


def test_a_container_is_started_again_as_its_policy_says(docker: Docker) -> None:
    docker.ok(
        "run",
        "-d",
        "--network=none",
        "--name",
        "box",
        "--restart",
        "on-failure:2",
        IMAGE,
        "sh",
        "-c",
        "exit 1",
    )
    wait_until(lambda: docker.inspect("box")["State"]["Status"] == "exited")
    assert docker.inspect("box")["RestartCount"] == 2
    docker.ok("run", "-d", "--network=none", "--name", "on", "--restart", "always", IMAGE, "sleep", "600")
    first = docker.inspect("on")["State"]["Pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: docker.inspect("on")["State"]["Pid"] not in (0, first))
    docker.ok("stop", "-t", "0", "on")
    assert docker.inspect("on")["State"]["Status"] == "exited"


def test_a_health_check_runs_in_the_container(docker: Docker) -> None:
    docker.ok(
        "run", "-d", "--network=none", "--name", "box", "--health-cmd", "test -e /tmp/well",
        "--health-interval", "200ms", "--health-retries", "2", IMAGE, "sleep", "600",
    )  # fmt: skip
    wait_until(lambda: docker.inspect("box")["State"]["Health"]["Status"] == "unhealthy")
    docker.ok("exec", "box", "touch", "/tmp/well")
    wait_until(lambda: docker.inspect("box")["State"]["Health"]["Status"] == "healthy")
    assert "(healthy)" in docker.ok("ps")


def test_events_come_as_they_happen(docker: Docker) -> None:
    with docker.api.asking("GET", "/events") as answer:
        docker.ok("tag", IMAGE, "later")
        assert json.loads(answer.readline())["Action"] == "tag"


def test_a_mount_is_made_through_the_engine(docker: Docker, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    layerfs = docker.there.layerfs
    layerfs.ok("mount", "--image", IMAGE, "--name", "by-engine", mountpoint)
    (mountpoint / "file").write_text("written")
    layerfs.ok("commit", "by-engine", "mounted")
    assert docker.ok("run", "--rm", "--network=none", "mounted", "cat", "/file") == "written"
    layerfs.ok("umount", mountpoint)


def test_an_engine_that_nobody_asks_sleeps(docker: Docker) -> None:
    docker.ok("run", "-d", "--network=none", "--name", "box", IMAGE, "sleep", "600")
    pid = int((docker.there.layerfs.run / "engine.lock").read_text().split()[0])

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def sleeps() -> bool:
        before = ticks()
        time.sleep(1)
        return ticks() == before

    wait_until(sleeps)
