"""The HTTP server: what it understands, what it refuses, and that one client harms no other."""

from __future__ import annotations

import json
import os
import random
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path

import pytest
import trio

from layerfs.api.server import App
from layerfs.errors import Conflict, LayerfsError
from layerfs.unixhttp import connection, server, turns
from layerfs.unixhttp.message import (
    MAX_BODY,
    Answer,
    Handling,
    Request,
    Response,
    Stream,
    Upload,
    json_response,
)
from layerfs.unixhttp.peer import listen
from tests.unit.control_support import connect, exchange, serving

PING = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"


class Handled:
    """What answers a request: a function."""

    def __init__(self, handle: Callable[[Request], Awaitable[Answer]], upload: bool) -> None:
        self._handle = handle
        self.upload = upload

    async def answer(self, request: Request) -> Answer:
        return await self._handle(request)


class Faked(App):
    """Answers by a method of its own, `handle`."""

    def find(self, request: Request) -> Handling:
        return Handled(self.handle, super().find(request).upload)

    async def handle(self, request: Request) -> Answer:
        raise NotImplementedError


class Echo(Faked):
    """Answers with what it was asked, after *delay* seconds."""

    def __init__(self, delay: float = 0) -> None:
        super().__init__(Path("/nonexistent"))
        self.delay = delay
        self.asked = trio.Event()

    async def handle(self, request: Request) -> Answer:
        self.asked.set()
        await trio.sleep(self.delay)
        return json_response({"path": request.path, "pairs": request.query.pairs, "size": len(request.body)})


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "s"


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def message(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    text = json.loads(body)["message"]
    assert isinstance(text, str)
    return text


async def test_ping_has_dockers_headers(sock: Path) -> None:
    async with serving(App(sock.parent), sock):
        answer = await exchange(sock, PING)
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = {line.partition(b":")[0].lower(): line.partition(b": ")[2] for line in head.split(b"\r\n")[1:]}
    assert status(answer) == 200
    assert body == b"OK"
    assert lines[b"api-version"] == b"1.51"
    assert lines[b"docker-experimental"] == b"false"
    assert lines[b"ostype"] == b"linux"
    assert lines[b"server"].startswith(b"layerfs/")


async def test_head_has_no_body(sock: Path) -> None:
    async with serving(App(sock.parent), sock):
        answer = await exchange(sock, PING.replace(b"GET", b"HEAD") + PING)
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert rest.startswith(b"HTTP/1.1 200")


async def test_a_connection_serves_several_requests(sock: Path) -> None:
    async with serving(App(sock.parent), sock):
        answer = await exchange(sock, PING * 3)
        assert answer.count(b"HTTP/1.1 200") == 3
        answer = await exchange(sock, PING.replace(b"Host: x", b"Host: x\r\nConnection: close") + PING)
        assert answer.count(b"HTTP/1.1 200") == 1


async def test_http_1_0_closes(sock: Path) -> None:
    async with serving(App(sock.parent), sock):
        assert status(await exchange(sock, b"GET /_ping HTTP/1.0\r\n\r\n", end=False)) == 200


async def test_targets_and_bodies_arrive_decoded(sock: Path) -> None:
    async with serving(Echo(), sock):
        data = b"POST /images/a%2Fb:c/tag?repo=x%20y&repo=z+&empty= HTTP/1.1\r\nHost: x\r\n"
        answer = await exchange(
            sock, data + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
    found = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert found == {
        "path": "/images/a/b:c/tag",
        "pairs": [["repo", "x y"], ["repo", "z "], ["empty", ""]],
        "size": 5,
    }


async def test_expect_continue_is_answered(sock: Path) -> None:
    async with serving(Echo(), sock), await trio.open_unix_socket(sock) as stream:
        head = b"POST /commit HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        await stream.send_all(head)
        with trio.fail_after(5):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
            await stream.send_all(b"{}")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\n\r\n",  # no Host
        b"GET /_ping HTTP/1.1\r\nHost: x\r\nContent-Length: two\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"GET /_ping HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /_ping?a=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://x/_ping HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /_ping?" + b"a&" * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",  # TLS
    ],
)
async def test_malformed_requests_get_400(sock: Path, data: bytes) -> None:
    async with serving(App(sock.parent), sock):
        answer = await exchange(sock, data)
        assert status(answer) == 400
        assert message(answer)
        assert status(await exchange(sock, PING)) == 200


async def test_noise_harms_nobody(sock: Path) -> None:
    noise = random.Random(4)
    valid = b"POST /commit?container=x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    valid += b"2\r\n{}\r\n0\r\n\r\n"
    async with serving(App(sock.parent), sock):
        for _ in range(300):
            data = bytearray(valid)
            for _ in range(noise.randint(1, 4)):
                data[noise.randrange(len(data))] = noise.randrange(256)
            with trio.fail_after(5):
                answer = await exchange(sock, bytes(data[: noise.randint(1, 2 * len(data))]))
            assert answer == b"" or 400 <= status(answer) <= 501
        assert status(await exchange(sock, PING)) == 200


async def test_a_client_that_breaks_off_gets_nothing(sock: Path) -> None:
    async with serving(App(sock.parent), sock):
        assert await exchange(sock, b"") == b""
        for data in (b"GET /_pi", b"POST /commit HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"):
            assert b"HTTP/1.1 200" not in await exchange(sock, data)
        stream = await trio.open_unix_socket(sock)
        await stream.send_all(b"POST /commit HTTP/1.1\r\nHost: x\r\n")
        await stream.aclose()
        assert status(await exchange(sock, PING)) == 200


async def test_large_headers_get_431(sock: Path) -> None:
    async with serving(App(sock.parent), sock):
        answer = await exchange(sock, b"GET /_ping HTTP/1.1\r\nX: " + b"x" * 200_000)
        assert status(answer) == 431
        assert message(answer)


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_bodies_get_413(sock: Path, chunked: bool) -> None:
    body = b"x" * (MAX_BODY + 100_000)
    head = b"POST /commit HTTP/1.1\r\nHost: x\r\n"
    if chunked:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        data = head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    async with serving(Echo(), sock):
        answer = await exchange(sock, data)
        assert status(answer) == 413
        assert str(MAX_BODY) in message(answer)
        fits = head + b"Content-Length: %d\r\n\r\n%s" % (MAX_BODY, body[:MAX_BODY])
        assert status(await exchange(sock, fits)) == 200


@pytest.mark.parametrize(
    "data", [b"GET /_p", PING[:-2], b"POST /commit HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab"]
)
async def test_slow_clients_get_408(sock: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RECEIVE_SECONDS", 0.1)
    async with serving(App(sock.parent), sock), await trio.open_unix_socket(sock) as slow:
        await slow.send_all(data)
        assert status(await exchange(sock, PING)) == 200  # nobody waits for the slow one
        with trio.fail_after(5):
            answer = await slow.receive_some()
        assert status(answer) == 408
        assert message(answer)


async def test_idle_connections_are_closed(sock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.1)
    async with serving(App(sock.parent), sock):
        with trio.fail_after(5):
            assert await exchange(sock, b"", end=False) == b""
            assert status(await exchange(sock, PING, end=False)) == 200


async def test_a_client_that_does_not_read_is_dropped(sock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.2)

    class Large(Faked):
        async def handle(self, request: Request) -> Response:
            return Response(200, bytes(8_000_000) if request.path == "/large" else b"OK")

    async with serving(Large(sock.parent), sock):
        deaf = connect(sock)
        deaf.sendall(PING.replace(b"_ping", b"large"))
        assert status(await exchange(sock, PING)) == 200
        await trio.sleep(0.5)
        got = 0
        deaf.settimeout(5)
        while part := await trio.to_thread.run_sync(deaf.recv, 1_000_000):
            got += len(part)
        deaf.close()
        assert 0 < got < 8_000_000


async def test_too_many_connections_get_503(sock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    async with serving(App(sock.parent), sock):
        idle = [connect(sock), connect(sock)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        answer = await exchange(sock, PING)
        assert status(answer) == 503
        assert message(answer)
        for one in idle:
            one.close()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert status(await exchange(sock, PING)) == 200


async def test_a_failing_app_costs_its_connection_alone(sock: Path) -> None:
    class Failing(Faked):
        async def handle(self, request: Request) -> Response:
            raise ZeroDivisionError

    async with serving(Failing(sock.parent), sock):
        assert await exchange(sock, PING) == b""
        assert await exchange(sock, PING) == b""


async def test_cancelling_the_server_lets_answers_end(sock: Path) -> None:
    app = Echo(delay=0.3)
    async with serving(app, sock) as scope, await trio.open_unix_socket(sock) as stream:
        idle = connect(sock)
        await stream.send_all(PING)
        await app.asked.wait()
        scope.cancel()
        with trio.fail_after(5):
            assert status(await stream.receive_some()) == 200
            assert await stream.receive_some() == b""
        with pytest.raises(OSError):
            connect(sock)
        assert idle.recv(1) == b""
        idle.close()


async def test_cancelling_the_server_does_not_wait_for_ever(
    sock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GRACE", 0.1)
    app = Echo(delay=60)
    with trio.fail_after(5):
        async with serving(app, sock) as scope, await trio.open_unix_socket(sock) as stream:
            await stream.send_all(PING)
            await app.asked.wait()
            scope.cancel()
            assert await stream.receive_some() == b""


async def test_streams_are_chunked_and_end_with_their_client(sock: Path) -> None:
    closed = trio.Event()

    class Streaming(Faked):
        async def handle(self, request: Request) -> Stream:
            return Stream(200, self.chunks())

        def chunks(self) -> Generator[bytes, None, None]:
            try:
                while True:
                    yield b"tick\n"
                    time.sleep(0.01)
            finally:
                trio.from_thread.run_sync(closed.set)

    async with serving(Streaming(sock.parent), sock):
        with trio.fail_after(5):
            stream = await trio.open_unix_socket(sock)
            await stream.send_all(PING)
            got = b""
            while got.count(b"5\r\ntick\n\r\n") < 3:
                got += await stream.receive_some()
            assert b"transfer-encoding: chunked" in got.lower()
            await stream.aclose()
            await closed.wait()


async def test_a_socket_is_private_and_replaces_a_stale_one(sock: Path) -> None:
    async with serving(App(sock.parent), sock):
        assert os.stat(sock).st_mode & 0o777 == 0o600
    assert os.stat(sock)  # stale now
    async with serving(App(sock.parent), sock):
        assert status(await exchange(sock, PING)) == 200


async def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(Conflict):
        listen(file)
    assert file.read_text() == "mine"
    with pytest.raises(LayerfsError, match="too long"):
        listen(tmp_path / ("x" * 120))


def ask_as(uid: int, path: Path) -> bytes:
    """Return what the server on *path* answers to a process of the user *uid*."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(uid)
            with connect(path) as client:
                client.sendall(PING)
                client.shutdown(socket.SHUT_WR)
                while part := client.recv(65536):
                    os.write(into, part)
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as answer:
        data = answer.read()
    os.waitpid(child, 0)
    return data


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_other_users_get_403() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "s")
        async with serving(App(Path(directory)), path):
            os.chmod(directory, 0o755)
            assert (
                await trio.to_thread.run_sync(ask_as, 65534, path) == b""
            )  # the socket's mode keeps them out
            os.chmod(path, 0o666)
            answer = await trio.to_thread.run_sync(ask_as, 65534, path)
            assert status(answer) == 403
            assert "permission denied" in message(answer)
            assert status(await trio.to_thread.run_sync(ask_as, 0, path)) == 200


def chunked(target: str, pieces: int) -> bytes:
    """Return a request whose body comes in *pieces* of one byte."""
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"1\r\na\r\n" * pieces + b"0\r\n\r\n"


@pytest.mark.parametrize("target", ["/commit", "/images/load"])
async def test_the_loop_goes_on_between_the_pieces_of_a_body(
    sock: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Each piece is a turn here, and after each turn everybody else has one."""
    monkeypatch.setattr(turns, "SLICE", 0.0)
    monkeypatch.setattr(turns, "_LONGEST_PAUSE", 0.0)
    turns_of_others = 0
    pieces = 3000

    async def others() -> None:
        nonlocal turns_of_others
        while True:
            await trio.lowlevel.checkpoint()
            turns_of_others += 1

    def read(upload: Upload) -> None:
        while upload.read(65536):
            pass

    class Reading(Echo):
        async def handle(self, request: Request) -> Answer:
            if request.upload is not None:
                await trio.to_thread.run_sync(read, request.upload)
            return await super().handle(request)

    async with serving(Reading(), sock), trio.open_nursery() as nursery:
        nursery.start_soon(others)
        answer = await exchange(sock, chunked(target, pieces), end=False)
        nursery.cancel_scope.cancel()
    assert status(answer) == 200
    assert turns_of_others >= pieces


async def test_connections_take_turns_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one pauses for the filesystem, none of the others works."""
    monkeypatch.setattr(turns, "SLICE", 0.0)
    monkeypatch.setattr(turns, "_LONGEST_PAUSE", 0.0)
    shared = turns.Turns()
    order: list[str] = []

    async def client(name: str) -> None:
        for _ in range(3):
            async with shared:
                order.append(name)
            order.append("paused")

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(client, name)
    assert len(order) == 18
    assert set(order[1::2]) == {"paused"}


async def test_a_body_in_countless_pieces_is_refused(sock: Path) -> None:
    async with serving(Echo(), sock):
        for pieces in (connection.FREE_PIECES * 2, 400_000):
            answer = await exchange(sock, chunked("/commit", pieces), end=False)
            assert status(answer) == 400
            assert "send it in larger chunks" in message(answer)


async def test_a_header_of_many_lines_is_refused(sock: Path) -> None:
    async with serving(Echo(), sock):
        lines = b"GET /_ping HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 3000
        answer = await exchange(sock, lines, end=False)
        assert status(answer) == 431
        assert "more than 200 lines" in message(answer)
        usual = b"GET /_ping HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n"
        assert status(await exchange(sock, usual)) == 200


async def test_few_are_told_why_they_are_refused(sock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(server, "MAX_REFUSALS", 1)
    async with serving(App(sock.parent), sock):
        with connect(sock), connect(sock) as refused:
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert await exchange(sock, b"", end=False) == b""
            assert status(refused.recv(4096)) == 503
