"""The client of HTTP over a Unix socket: what it makes of what a server says, or fails to say."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from layerfs.errors import LayerfsError
from layerfs.unixhttp.client import UnixClient, encoded_head
from layerfs.unixhttp.message import Query, Request, Response


class Server:
    """Says *said* to each client that has sent a head, a few bytes at a time, and notes what was sent."""

    def __init__(self, path: Path, said: bytes, *, piece: int = 1 << 16, stays: bool = False) -> None:
        self.path = path
        self.heard = b""
        self._said = said
        self._piece = piece
        self._stays = stays
        self._ended = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                while b"\r\n\r\n" not in self.heard:
                    self.heard += connection.recv(65536)
                for at in range(0, len(self._said), self._piece):
                    connection.sendall(self._said[at : at + self._piece])
                if self._stays:
                    self._ended.wait(20)
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(65536):
                    self.heard += data

    def close(self) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)


@contextmanager
def saying(path: Path, said: bytes, *, piece: int = 1 << 16, stays: bool = False) -> Iterator[Server]:
    server = Server(path / "socket", said, piece=piece, stays=stays)
    try:
        yield server
    finally:
        server.close()


def answer_to(path: Path, said: bytes, method: str = "GET", *, piece: int = 1 << 16) -> Response:
    with saying(path, said, piece=piece) as server:
        return UnixClient(server.path, timeout=10).send(Request(method, "/x"))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
@pytest.mark.parametrize(
    ("said", "status", "body"),
    [
        (CHUNKED, 200, b"abc0123456789"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\n\r\n\r\n!", 404, b"\r\n\r\n!"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 200 \r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\n!", 200, b"!"),
        (b"HTTP/1.1 103 Early\r\na: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n!", 200, b"!"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\n!", 201, b"!"),
    ],
)
def test_an_answer_is_read_however_it_is_cut(
    tmp_path: Path, said: bytes, status: int, body: bytes, piece: int
) -> None:
    answer = answer_to(tmp_path, said, piece=piece)
    assert (answer.status, answer.body) == (status, body)


def test_an_answer_to_head_has_no_body(tmp_path: Path) -> None:
    answer = answer_to(tmp_path, b"HTTP/1.1 200 OK\r\nX-Stat: a:b\r\nContent-Length: 70\r\n\r\n", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert dict(answer.headers)["x-stat"] == "a:b"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        CHUNKED.replace(b"3\r\nabc", b"-3\r\nabc"),
        CHUNKED.replace(b"3\r\nabc", b"2\r\nabc"),
        b"HTTP/1.1 2000 OK\r\n\r\n",
        CHUNKED[:-9],
        CHUNKED.replace(b"A;x=y", b"what"),
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n"[:10] + b"x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"many: lines\r\n" * 10_000 + b"\r\n",
    ],
)
def test_an_answer_that_is_none_or_not_whole_is_an_error(tmp_path: Path, said: bytes) -> None:
    with pytest.raises(ConnectionResetError, match="the server"):
        answer_to(tmp_path, said)


def test_a_body_is_sent_with_its_length_and_the_headers(tmp_path: Path) -> None:
    with saying(tmp_path, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as server:
        client = UnixClient(server.path, {"layerfs-root": "/r"})
        client.send(Request("POST", "/a b", Query([("q", "1 &2")]), b"{}", headers={"x": "y"}))
    head, _, body = server.heard.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /a%20b?q=1+%262 HTTP/1.1"
    own = {b"layerfs-root: /r", b"x: y"}
    assert own | {b"Content-Length: 2", b"Content-Type: application/json"} <= set(lines)
    assert body == b"{}"


def test_an_upload_is_sent_in_chunks(tmp_path: Path) -> None:
    said = b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    with saying(tmp_path, said) as server:
        UnixClient(server.path).send(Request("POST", "/", upload=io.BytesIO(b"x" * 300_000)))
    head, _, body = server.heard.partition(b"\r\n\r\n")
    assert b"Expect: 100-continue" in head.split(b"\r\n")
    assert body == b"40000\r\n" + b"x" * 262_144 + b"\r\n93e0\r\n" + b"x" * 37_856 + b"\r\n0\r\n\r\n"


def test_an_upload_is_sent_after_other_words_than_go_on(tmp_path: Path) -> None:
    said = b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    with saying(tmp_path, said) as server:
        assert UnixClient(server.path).send(Request("POST", "/", upload=io.BytesIO(b"x"))).status == 200
    assert server.heard.endswith(b"\r\n\r\n1\r\nx\r\n0\r\n\r\n")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EPIPE, errno.EIO])
def test_an_upload_that_cannot_be_read_is_no_trouble_of_the_connection(tmp_path: Path, number: int) -> None:
    """A command that took ENOENT for a socket which is not there would do everything once more, itself."""

    class Unreadable(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(number, os.strerror(number))

    with (
        saying(tmp_path, b"HTTP/1.1 100 Go on\r\n\r\n", stays=True) as server,
        pytest.raises(LayerfsError, match="cannot read what is to be sent"),
    ):
        UnixClient(server.path, timeout=2).send(Request("POST", "/", upload=Unreadable()))


def test_of_an_upload_that_is_refused_nothing_is_read(tmp_path: Path) -> None:
    archive = io.BytesIO(b"x" * 1000)
    with saying(tmp_path, b"HTTP/1.1 421 No\r\ncontent-length: 0\r\n\r\n") as server:
        answer = UnixClient(server.path).send(Request("POST", "/", upload=archive))
    assert (answer.status, archive.tell()) == (421, 0)


def test_the_answer_to_an_upload_that_is_not_taken_whole_says_why(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nbad")
            connection.shutdown(socket.SHUT_RD)
            time.sleep(0.5)

    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        answer = UnixClient(tmp_path / "socket").send(
            Request("POST", "/", upload=io.BytesIO(bytes(50_000_000)))
        )
        assert (answer.status, answer.body) == (400, b"bad")
    finally:
        thread.join()
        listener.close()


def test_a_connection_is_taken_over_with_what_came_early(tmp_path: Path) -> None:
    said = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly"
    with saying(tmp_path, said, stays=True) as server:
        taken = UnixClient(server.path).take_over(Request("POST", "/"))
        assert not isinstance(taken, Response)
        connection, early = taken
        with connection:
            while early != b"early":
                early += connection.recv(10)
            connection.sendall(b"mine")
    assert server.heard.endswith(b"\r\n\r\nmine")
    assert b"Upgrade: tcp\r\n" in server.heard


def test_a_refusal_to_be_taken_over_is_an_answer(tmp_path: Path) -> None:
    with saying(tmp_path, b"HTTP/1.1 409 Conflict\r\ncontent-length: 2\r\n\r\nno") as server:
        answer = UnixClient(server.path).take_over(Request("POST", "/"))
    assert isinstance(answer, Response)
    assert (answer.status, answer.body) == (409, b"no")


def test_a_server_that_says_nothing_is_waited_for_no_longer_than_was_asked(tmp_path: Path) -> None:
    with saying(tmp_path, b"HTTP/1.1 200 OK\r\n", stays=True) as server:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            UnixClient(server.path, timeout=0.2).send(Request("GET", "/"))
        assert time.monotonic() - started < 5


def test_who_waits_for_the_answer_may_end_the_request(tmp_path: Path) -> None:
    def wait(fd: int) -> None:
        raise KeyError(fd)

    with saying(tmp_path, b"", stays=True) as server, pytest.raises(KeyError):
        UnixClient(server.path, wait=wait).send(Request("GET", "/"))


def test_there_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        UnixClient(tmp_path / "none").send(Request("GET", "/"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(str(tmp_path / "deaf"))
        with pytest.raises(ConnectionRefusedError):
            UnixClient(tmp_path / "deaf").send(Request("GET", "/"))


def test_no_header_smuggles_another_one() -> None:
    with pytest.raises(ValueError, match="line break"):
        encoded_head("GET", "/", (), {"x": "y\r\nz: a"})
