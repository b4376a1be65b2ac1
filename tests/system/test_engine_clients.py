"""Clients of the engine that go away in the middle: nothing of them is left, and the container goes on."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, wait_until
from tests.system.apirequests import Api, engine
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root
CLIENTS = 4
UPGRADE = "Connection: Upgrade\r\nUpgrade: tcp\r\n"


class Place:
    """An engine, and containers called "runs" and "waits" (which was not started)."""

    def __init__(self, made: Containers) -> None:
        self.made = made
        self.api = engine(made.layerfs)
        made.layerfs.ok("run", "-d", "--name", "runs", IMAGE, "sleep", "1000")
        made.layerfs.ok(
            "create", "--name", "waits", IMAGE, "sh", "-c", "head -c 3000000 /dev/zero; mkdir /done"
        )
        self.pid = int((made.layerfs.run / "engine.lock").read_text().split()[0])

    def descriptors(self) -> int:
        """Return how many descriptors the engine has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def children(self) -> list[str]:
        """Return the pids of the engine's children."""
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()

    def asked(self, method: str, target: str, body: bytes = b"", more: str = UPGRADE) -> socket.socket:
        """Send a request, and return the connection."""
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(PATIENCE)
        peer.connect(str(self.api.path))
        start = f"{method} {target} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        peer.sendall(start.encode() + body)
        return peer

    def execute(self, *command: str, terminal: bool = False) -> socket.socket:
        """Run a command in the container that runs, and return the connection."""
        wanted = {"Cmd": command, "Tty": terminal} | dict.fromkeys(
            ("AttachStdin", "AttachStdout", "AttachStderr"), True
        )
        made = self.api.ask("POST", "/containers/runs/exec", json.dumps(wanted).encode()).json()["Id"]
        return self.asked("POST", f"/exec/{made}/start", json.dumps({"Tty": terminal}).encode())

    def leftovers(self) -> list[str]:
        """Return the names of directories of processes in containers."""
        return [path.name for path in (self.made.layerfs.run / "containers").glob("exec-*")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An engine with containers."""
    with containers(tmp_path) as made:
        yield Place(made)


def _leave(peer: socket.socket, *, rudely: bool) -> None:
    if rudely:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


LONG: dict[str, Callable[[Place], socket.socket]] = {
    "wait": lambda place: place.asked("POST", "/containers/runs/wait", more=""),
    "wait for the next exit": lambda place: place.asked(
        "POST", "/containers/waits/wait?condition=next-exit", more=""
    ),
    "exec": lambda place: place.execute(
        "sh", "-c", "while true; do echo y; sleep 0.1; done & sleep 2; kill $!"
    ),
    "exec that reads": lambda place: place.execute("cat"),
    "exec on a terminal": lambda place: place.execute("sleep", "1", terminal=True),
    "attach": lambda place: place.asked("POST", "/containers/runs/attach?stream=1&stdout=1&stdin=1"),
    "attach ahead": lambda place: place.asked("POST", "/containers/waits/attach?stream=1&stdout=1"),
    "export": lambda place: place.asked("GET", "/containers/runs/export", more=""),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_client_that_leaves_leaves_nothing(place: Place, kind: str) -> None:
    def come_and_go() -> None:
        for number in range(CLIENTS):
            peer = LONG[kind](place)
            if number % 2 and "wait for" not in kind:
                peer.settimeout(0.3)
                with suppress(TimeoutError):
                    peer.recv(100)
            _leave(peer, rudely=number % 3 == 0)
        wait_until(lambda: not place.leftovers())
        wait_until(lambda: len(place.children()) == 1)  # the zygote

    for _ in range(3):
        come_and_go()
    # SQLite keeps descriptors of closed connections for later ones, as many as there were at once.
    before = place.descriptors()
    for _ in range(3):
        come_and_go()
    wait_until(lambda: place.descriptors() < before + 2 * CLIENTS)
    assert place.made.state("runs") == ("running", 0)


def test_a_process_goes_on_without_its_client(place: Place) -> None:
    script = "seq 200000; touch /tmp/ended"
    peer = place.execute("sh", "-c", script)
    peer.recv(1)
    peer.close()
    tree = place.made.directory("runs") / "rootfs"
    wait_until(lambda: (tree / "tmp/ended").exists())


def test_those_who_left_before_the_start_do_not_hold_it_up(place: Place) -> None:
    """What nobody takes from the supervisor would fill its socket, and then the container waits for ever."""
    for _ in range(CLIENTS):
        place.asked("POST", "/containers/waits/attach?stream=1&stdout=1").close()
    assert place.api.ask("POST", "/containers/waits/start").status == 204
    assert place.api.ask("POST", "/containers/waits/wait").json() == {"StatusCode": 0}


def test_what_a_killed_engine_left_of_processes_is_removed(place: Place) -> None:
    peer = place.execute("sleep", "1000")
    peer.recv(1)
    assert place.leftovers()
    os.kill(place.pid, 9)
    peer.close()
    wait_until(lambda: not _listens(place.api))
    place.api.path.unlink()
    place.api = engine(place.made.layerfs)
    wait_until(lambda: not place.leftovers())
    assert place.made.layerfs.ok("exec", "runs", "echo", "works") == "works"


def _listens(api: Api) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        return peer.connect_ex(str(api.path)) == 0


def test_a_refused_head_gets_its_status_and_no_traceback(place: Place) -> None:
    for target in ("/containers/runs/archive?path=%FF", "/containers/%00/archive"):
        peer = place.asked("HEAD", target, more="")
        answer = peer.recv(10_000)
        peer.close()
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert answer.endswith(b"\r\n\r\n")
    assert "Traceback" not in (place.made.layerfs.run / "engine.log").read_text()


def test_half_a_character_in_a_password_is_no_internal_error(place: Place) -> None:
    body = b'{"username": "\\ud800", "password": "x", "serveraddress": "127.0.0.1:1"}'
    assert "internal error" not in place.api.ask("POST", "/auth", body).message()
    assert "Traceback" not in (place.made.layerfs.run / "engine.log").read_text()
