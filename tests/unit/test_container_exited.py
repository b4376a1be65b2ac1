"""What a supervisor runs when its container has ended: how it asks an engine, and when it does so in vain."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from layerfs.container import exited

DONE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n4\r\ndone\r\n0\r\n\r\n"


def asked(path: Path, said: bytes, piece: int) -> bool:
    """Return what `ask` makes of a server that says *said*, *piece* bytes at a time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                for at in range(0, len(said), piece):
                    connection.sendall(said[at : at + piece])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return exited.ask("id", str(path), "/store")
        finally:
            thread.join(20)


@pytest.mark.parametrize("piece", [1, 10, 70, 4096])
def test_an_answer_counts_however_it_is_cut(tmp_path: Path, piece: int) -> None:
    assert asked(tmp_path / "socket", DONE, piece)


@pytest.mark.parametrize("said", [b"", DONE[:-5], DONE.replace(b"200 OK", b"421 No")])
def test_an_answer_that_is_not_whole_or_no_good_does_not_count(tmp_path: Path, said: bytes) -> None:
    assert not asked(tmp_path / "socket", said, 4096)


def test_an_engine_that_is_stopped_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exited, "_PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        answers: list[bool] = []
        thread = threading.Thread(
            target=lambda: answers.append(exited.ask("id", str(tmp_path / "socket"), "/store")), daemon=True
        )
        thread.start()
        thread.join(10)
    assert answers == [False]
