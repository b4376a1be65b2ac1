"""The sd_notify protocol, seen by a real datagram socket in the manager's place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.host.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address of each kind, as the manager writes it into the environment."""
    return str(tmp_path / "notify") if request.param == "path" else f"@layerfs-test-{os.getpid()}"


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    """The manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0") if address.startswith("@") else address)
        listener.settimeout(5)
        yield listener


def test_ready_names_the_main_process(manager: socket.socket, address: str) -> None:
    assert Notifier(address).ready("web on /srv/web")
    assert manager.recv(4096).decode().split("\n") == [
        "READY=1",
        f"MAINPID={os.getpid()}",
        "STATUS=web on /srv/web",
    ]


def test_status_and_stopping(manager: socket.socket, address: str) -> None:
    notifier = Notifier(address)
    assert notifier.status("committing")
    assert notifier.stopping("unmounting /srv/web")
    assert manager.recv(4096) == b"STATUS=committing"
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=unmounting /srv/web"


def test_a_status_cannot_add_fields(manager: socket.socket, address: str) -> None:
    assert Notifier(address).status("/mnt/a\nMAINPID=1\r\nb")
    assert manager.recv(4096) == b"STATUS=/mnt/a MAINPID=1 b"


def test_names_that_are_not_utf8_arrive_unchanged(manager: socket.socket, address: str) -> None:
    assert Notifier(address).status(os.fsdecode(b"/mnt/\xff"))
    assert manager.recv(4096) == b"STATUS=/mnt/\xff"


def test_only_the_daemon_speaks(
    monkeypatch: pytest.MonkeyPatch, manager: socket.socket, address: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier.from_environment()
    child = [sys.executable, "-c", "import os; print(os.environ.get('NOTIFY_SOCKET'))"]
    assert subprocess.run(child, capture_output=True, text=True, check=True).stdout == "None\n"
    assert notifier.ready("")
    assert manager.recv(4096).startswith(b"READY=1\n")


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not Notifier.from_environment().ready("alone")


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nowhere/notify", "/" + "x" * 200])
def test_a_manager_out_of_reach_is_no_error(address: str) -> None:
    assert not Notifier(address).ready("still serving")


def test_a_hanging_manager_does_not_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("layerfs.host.notify.SEND_TIMEOUT", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "notify"))
        notifier = Notifier(str(tmp_path / "notify"))
        assert notifier.status("heard")
        assert not all(notifier.status("never read") for _ in range(10_000))
