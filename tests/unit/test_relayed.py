"""What a loop asks of the daemon of a mount, and what it makes of one that ends, or says nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from layerfs.errors import BadRequest, Conflict
from layerfs.host.rundir import RunLock, socket_path
from layerfs.mounting import exchange, relayed, remote
from layerfs.mounting.exchange import NotListeningError
from layerfs.mounting.mount import Commit, Committed, Mount, NotReachedError
from layerfs.mounting.relayed import Relayed
from layerfs.mounting.remote import Remote

NAME = "base"
ID = "ab" * 32
MADE = b'HTTP/1.1 201 Created\r\nContent-Length: 23\r\n\r\n{"Id":"sha256:abc123"}\r\n'
MISSING = b'HTTP/1.1 404 Not Found\r\nContent-Length: 31\r\n\r\n{"message":"no such mount: ab"}'
REFUSED = b'HTTP/1.1 400 Bad Request\r\nContent-Length: 17\r\n\r\n{"message":"bad"}'
Client = Callable[[socket.socket], None]


class Daemon:
    """Holds the lock of the mount, listens on its socket, and does to each connection what it is told."""

    def __init__(self, *steps: Client) -> None:
        self.asked: list[bytes] = []
        self._steps = steps
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(socket_path(NAME)))
        self._listener.listen(len(steps))
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for step in self._steps:
            connection, _ = self._listener.accept()
            with connection:
                step(connection)
        self._listener.close()
        socket_path(NAME).unlink()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(20)
        assert not self._thread.is_alive()


def read(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    return data


def saying(said: bytes, piece: int = 1 << 16) -> Client:
    """Read a request, and answer it in pieces."""

    def answer(connection: socket.socket) -> None:
        read(connection)
        for at in range(0, len(said), piece):
            connection.sendall(said[at : at + piece])

    return answer


def unread(connection: socket.socket) -> None:
    """End without having read what was sent."""
    while not connection.recv(1, socket.MSG_PEEK):
        pass


def silent(connection: socket.socket) -> None:
    """End after having read all that was sent."""
    read(connection)


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The mount seems to run, in this process."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    with RunLock(NAME) as held:
        held.set_pid(os.getpid())
        yield


async def commit(tmp_path: Path) -> Committed:
    return await Relayed(tmp_path, NAME, ID).commit(Commit(reference="made:1"))


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
async def test_an_answer_may_come_in_pieces(tmp_path: Path, piece: int) -> None:
    daemon = Daemon(saying(MADE, piece))
    assert await commit(tmp_path) == Committed("abc123")
    daemon.join()


async def test_what_the_daemon_refuses_is_raised(tmp_path: Path) -> None:
    daemon = Daemon(saying(REFUSED), saying(MISSING))
    with pytest.raises(BadRequest, match=r"^bad$"):
        await commit(tmp_path)
    with pytest.raises(Conflict, match="belongs to another store"):
        await commit(tmp_path)
    daemon.join()


async def test_nothing_was_asked_where_nobody_listens_or_has_read(tmp_path: Path) -> None:
    with pytest.raises(NotReachedError):
        await commit(tmp_path)
    daemon = Daemon(unread)
    with pytest.raises(NotReachedError):
        await commit(tmp_path)
    daemon.join()


async def test_nothing_is_asked_of_a_daemon_that_too_many_wait_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(str(socket_path(NAME)))
        deaf.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(str(socket_path(NAME)))
            with pytest.raises(NotReachedError):
                await commit(tmp_path)


@pytest.mark.parametrize("said", [b"", MADE[:10], MADE[:-5]])
async def test_a_request_that_may_have_been_begun_is_not_sent_again(tmp_path: Path, said: bytes) -> None:
    daemon = Daemon(saying(said), saying(MADE))
    with pytest.raises(Conflict, match="does not answer"):
        await commit(tmp_path)
    assert await commit(tmp_path) == Committed("abc123")  # the second connection is that of this one
    daemon.join()


async def test_what_is_no_answer_is_said_to_be_none(tmp_path: Path) -> None:
    daemon = Daemon(saying(b"SSH-2.0-server\r\n" * 3))
    with pytest.raises(Conflict, match="other than HTTP"):
        await commit(tmp_path)
    daemon.join()


async def test_a_daemon_that_answers_nobody_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (exchange, relayed):
        monkeypatch.setattr(module, "PING_PATIENCE", 0.1)

    def slow(connection: socket.socket) -> None:
        read(connection)
        time.sleep(0.5)

    daemon = Daemon(slow)
    with pytest.raises(Conflict, match=r"waited 0\.1 seconds for POST /commit"):
        await commit(tmp_path)
    daemon.join()


async def test_one_that_works_on_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relayed, "PING_PATIENCE", 0.01)
    monkeypatch.setattr(relayed, "check_works", lambda *arguments: None)

    def slow(connection: socket.socket) -> None:
        read(connection)
        time.sleep(0.1)
        connection.sendall(MADE)

    daemon = Daemon(slow)
    assert await commit(tmp_path) == Committed("abc123")
    daemon.join()


def test_a_thread_asks_again_where_the_request_was_not_read(tmp_path: Path) -> None:
    def none() -> Mount:
        raise AssertionError

    daemon = Daemon(unread, saying(MADE))
    assert Remote(tmp_path, NAME, ID, none).commit(Commit()) == Committed("abc123")
    daemon.join()


def test_a_thread_does_not_ask_again_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Mount:
        raise AssertionError

    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    daemon = Daemon(silent, unread)
    with pytest.raises(Conflict, match="does not answer"):
        Remote(tmp_path, NAME, ID, none).commit(Commit())
    with pytest.raises(NotListeningError):
        Remote(tmp_path, NAME, ID, none).commit(Commit())
    daemon.join()
