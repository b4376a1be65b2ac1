"""Docker's command line on a terminal: keys that detach, Ctrl-C, sizes, coming back; logs, stop, wait."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from tests.conftest import wait_until
from tests.system.apirequests import engine
from tests.system.containers import IMAGE, Terminal, containers
from tests.system.test_engine import Docker

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker client is not installed"),
]
TRAP = "trap 'echo interrupted; exit 9' INT; echo ready; while true; do sleep 0.1; done"


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """The docker command, on an engine with an image."""
    with containers(tmp_path_factory.mktemp("terminal")) as there:
        yield Docker(there, engine(there.layerfs))


@pytest.fixture(autouse=True)
def _nothing_runs_after_a_test(docker: Docker) -> Iterator[None]:
    yield
    docker.there.remove()


def on_a_terminal(docker: Docker, *words: str) -> Terminal:
    """Run `docker WORDS` on a terminal of its own."""
    return Terminal(docker.there, (), command=["docker", *words], env=docker.environment)


def interrupt(terminal: Terminal) -> None:
    """Type Ctrl-C until the shell asks again: a process that was just forked may not hear the first one."""
    for _ in range(3):
        terminal.type("\x03")
        time.sleep(0.4)
    terminal.wait_for("# ")


def state(docker: Docker, name: str) -> str:
    return docker.ok("inspect", "-f", "{{.State.Status}}", name)


def test_detached_by_its_keys_and_attached_again(docker: Docker) -> None:
    with on_a_terminal(docker, "run", "-it", "--name=box", "--network=none", IMAGE) as terminal:
        terminal.wait_for("# ")
        terminal.type("cd /srv; stty size\r")
        terminal.wait_for("33 101")
        terminal.type("\x10\x11")
        assert terminal.end() == 0
        assert terminal.is_as_it_was()
    assert state(docker, "box") == "running"
    with on_a_terminal(docker, "attach", "--detach-keys=ctrl-a,x", "box") as terminal:
        time.sleep(0.5)  # until it is raw
        terminal.type("echo I am in $PWD\r")
        terminal.wait_for("I am in /srv")
        terminal.resize(12, 34)
        terminal.type("while ! stty size | grep '12 34'; do sleep 0.1; done\r")
        terminal.wait_for("\r\n12 34\r\n")
        terminal.type("\x01x")
        terminal.wait_for("read escape sequence")
        assert terminal.end() == 1
    assert state(docker, "box") == "running"
    with on_a_terminal(docker, "attach", "box") as terminal:
        time.sleep(0.5)
        terminal.type("echo $((40 + 2)); sleep 100\r")
        terminal.wait_for("42\r\n")
        interrupt(terminal)
        terminal.type("echo $?; exit 3\r")
        terminal.wait_for("130\r\n")
        assert terminal.end() == 3
    with on_a_terminal(docker, "start", "-ai", "box") as terminal:
        terminal.wait_for("# ")
        terminal.type("exit 4\r")
        assert terminal.end() == 4


def test_exec_on_a_terminal(docker: Docker) -> None:
    docker.ok("run", "-d", "--name=box", "--network=none", IMAGE, "sleep", "1000")
    with on_a_terminal(docker, "exec", "-it", "box", "sh") as terminal:
        terminal.wait_for("# ")
        terminal.resize(12, 34)
        terminal.type("while ! stty size | grep '12 34'; do sleep 0.1; done; sleep 100\r")
        terminal.wait_for("\r\n12 34\r\n")
        interrupt(terminal)
        terminal.type("exit 5\r")
        assert terminal.end() == 5
    with on_a_terminal(docker, "exec", "-it", "--detach-keys=d,e", "box", "sh") as terminal:
        terminal.wait_for("# ")
        terminal.type("de")
        terminal.wait_for("read escape sequence")
        assert terminal.end() == 1
    assert state(docker, "box") == "running"


@pytest.mark.parametrize("options", [(), ("-t",), ("-i",), ("-i", "-t")])
def test_control_c(docker: Docker, options: tuple[str, ...]) -> None:
    words = ("run", *options, "--rm", "--network=none", IMAGE, "sh", "-c", TRAP)
    with on_a_terminal(docker, *words) as terminal:
        terminal.wait_for("ready")
        terminal.type("\x03")
        terminal.wait_for("interrupted")
        assert terminal.end() == 9


def test_logs_are_followed_until_the_end(docker: Docker) -> None:
    script = "echo run; trap 'echo bye; exit 0' TERM; while true; do sleep 0.1; done"
    docker.ok("run", "-d", "--name=box", "--network=none", IMAGE, "sh", "-c", script)
    with on_a_terminal(docker, "logs", "-f", "box") as terminal:
        terminal.wait_for("run")
        docker.ok("restart", "box")
        terminal.wait_for("bye")
        assert terminal.end() == 0
    wait_until(lambda: docker.ok("logs", "box").split() == ["run", "bye", "run"])
    with on_a_terminal(docker, "logs", "-f", "--tail=1", "box") as terminal:
        terminal.wait_for("run")
        terminal.type("\x03")
        terminal.end()
    assert state(docker, "box") == "running"


def test_logs_in_detail(docker: Docker) -> None:
    chosen = ("--log-opt=labels=a,b", "--log-opt=env-regex=^E", "--label=a=b c", "--label=z=y")
    docker.ok("run", "--name=box", "--network=none", *chosen, "-e=E1=x", "-e=F=y", IMAGE, "echo", "hi")
    assert docker.ok("logs", "--details", "box") == "E1=x,a=b+c hi"
    assert docker.ok("logs", "--details", "-t", "box").split(" ", 1)[1] == "E1=x,a=b+c hi"
    docker.ok("run", "--name=plain", "--network=none", IMAGE, "echo", "hi")
    assert docker.ok("logs", "--details", "plain") == " hi"


def test_patience_and_signal_of_a_stop(docker: Docker) -> None:
    own = ("run", "-d", "--network=none")
    docker.ok(*own, "--name=patient", "--stop-timeout=1", IMAGE, "sleep", "1000")
    script = "trap 'exit 5' USR1; echo ready; while true; do sleep 0.1; done"
    docker.ok(*own, "--name=own", "--stop-signal=USR1", IMAGE, "sh", "-c", script)
    wait_until(lambda: docker.ok("logs", "own") == "ready")
    begun = time.monotonic()
    docker.ok("stop", "patient")
    assert 1 < time.monotonic() - begun < 8
    docker.ok("stop", "own")
    assert docker.ok("inspect", "-f", "{{.State.ExitCode}}", "patient", "own") == "137\n5"


def test_a_wait_for_several(docker: Docker) -> None:
    for number in (1, 2, 3):
        script = f"sleep 0.{9 - number}; exit {number}"
        docker.ok("run", "-d", f"--name=w{number}", "--network=none", IMAGE, "sh", "-c", script)
    assert docker.ok("wait", "w1", "w2", "w3") == "1\n2\n3"
    done = docker("wait", "w1", "none", "w3")
    assert (done.returncode, done.stdout.split()) == (1, ["1", "3"])
    assert "no such" in done.stderr.lower()
