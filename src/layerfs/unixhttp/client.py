"""The client's side of HTTP/1.1 over a Unix socket: whole answers, streams, and connections taken over."""

from __future__ import annotations

import errno
import socket
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

import h11

from layerfs.unixhttp.message import Headers, Request, Response, Stream, build_target

_PIECE = 1 << 18
_Head = h11.Response | h11.InformationalResponse


class UnixClient:
    """Asks the server on one socket; a connection a request."""

    def __init__(self, path: Path, headers: Mapping[str, str] | None = None) -> None:
        """Ask the server that listens on *path*, with *headers* in every request."""
        self._path = path
        self._headers = dict(headers or {})

    def send(self, request: Request) -> Response:
        """Return the whole answer to *request*, waiting for as long as the server takes.

        Raises `FileNotFoundError` and `ConnectionRefusedError` if there is no server, and `OSError`.
        """
        answer = self.stream(request)
        return Response(answer.status, b"".join(answer.chunks), answer.headers)

    def stream(self, request: Request) -> Stream:
        """Return the answer to *request* as it comes. Raises as `send` does; so do the pieces."""
        connection, http, head = self._ask(request)
        return Stream(head.status_code, _pieces(connection, http), _headers(head))

    def take_over(self, request: Request) -> tuple[socket.socket, bytes] | Response:
        """Return the connection that *request* opens, and what has come over it already; or the refusal."""
        request = replace(request, headers={**request.headers, "connection": "Upgrade", "upgrade": "tcp"})
        connection, http, head = self._ask(request)
        if head.status_code != 101:
            return Response(head.status_code, b"".join(_pieces(connection, http)), _headers(head))
        return connection, bytes(http.trailing_data[0])

    def _ask(self, request: Request) -> tuple[socket.socket, h11.Connection, _Head]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self._path))
            http = h11.Connection(h11.CLIENT)
            return connection, http, self._exchange(connection, http, request)
        except BaseException:
            connection.close()
            raise

    def _exchange(self, connection: socket.socket, http: h11.Connection, request: Request) -> _Head:
        headers = [("Host", "localhost"), *self._headers.items(), *request.headers.items()]
        if request.upload is not None:
            headers.append(("Transfer-Encoding", "chunked"))
        elif request.body:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(request.body)))]
        elif request.method not in ("GET", "HEAD"):
            headers.append(("Content-Length", "0"))
        target = build_target(request.path, request.query.pairs)
        self._say(connection, http, h11.Request(method=request.method, target=target, headers=headers))
        try:
            while request.upload is not None and (piece := request.upload.read(_PIECE)):
                self._say(connection, http, h11.Data(data=piece))
            if request.body:
                self._say(connection, http, h11.Data(data=request.body))
            self._say(connection, http, h11.EndOfMessage())
        except BrokenPipeError:
            pass  # the server has seen enough; its answer says why
        head = _next(connection, http)
        while isinstance(head, h11.InformationalResponse) and head.status_code == 100:
            head = _next(connection, http)
        if not isinstance(head, h11.Response | h11.InformationalResponse):
            raise ConnectionResetError(errno.ECONNRESET, "the server ended the connection without an answer")
        return head

    def _say(self, connection: socket.socket, http: h11.Connection, event: h11.Event) -> None:
        data = http.send(event)
        if data:
            connection.sendall(data)


def _next(connection: socket.socket, http: h11.Connection) -> object:
    while True:
        event = http.next_event()
        if event is not h11.NEED_DATA:
            return event
        http.receive_data(connection.recv(_PIECE))


def _pieces(connection: socket.socket, http: h11.Connection) -> Generator[bytes, None, None]:
    with connection:
        while isinstance(event := _next(connection, http), h11.Data):
            yield bytes(event.data)


def _headers(head: _Head) -> Headers:
    return tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers)
