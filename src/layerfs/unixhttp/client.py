"""The client's side of HTTP/1.1 over a Unix socket: whole answers, streams, and connections taken over.

It reads what `unixhttp.server` writes, and importing it takes a millisecond. Importing h11 would take a
command eight of the sixty in which it is to be done, and importing the standard library's client ten.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from pathlib import Path

from layerfs.errors import from_os_error
from layerfs.unixhttp.message import Headers, Pairs, Request, Response, Stream, Upload, build_target

_PIECE = 1 << 18
_MAX_HEAD = 1 << 16
"""The largest status line and header together, in bytes."""
_CONTINUE = 100
_DIGITS = b"0123456789abcdefABCDEF"
_NOT_HTTP = "the server answered with something other than HTTP"
_WITHOUT_BODY = (204, 304)
_SEEN_ENOUGH = (BrokenPipeError, ConnectionResetError)
"""How sending fails where the server reads no more; its answer says why."""


class UnreadError(ConnectionResetError):
    """The server has gone before it had read the whole request: it has not begun with it."""


class UnixClient:
    """Asks the server on one socket; a connection a request.

    Where there is no server, `FileNotFoundError` or `ConnectionRefusedError` is raised, and nothing has been
    sent; `UnreadError` where it went before it had read the request. Other `OSError`s leave open what the
    server has done: `TimeoutError`, and `ConnectionResetError` for an answer that ends too early or is none.
    An upload that cannot be read is a `LayerfsError`.
    """

    def __init__(
        self,
        path: Path,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float | None = None,
        wait: Callable[[int], None] | None = None,
    ) -> None:
        """Ask the server that listens on *path*, with *headers* in every request.

        With a *timeout* nothing on the connection waits longer than so many seconds. How long the server may
        work before it answers is *wait*'s to say: it gets the descriptor of the connection, and returns when
        there is something to read; what it raises ends the request.
        """
        self._path = path
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._wait = wait

    def send(self, request: Request) -> Response:
        """Return the whole answer to *request*."""
        answer = self.stream(request)
        return Response(answer.status, b"".join(answer.chunks), answer.headers)

    def stream(self, request: Request) -> Stream:
        """Return the answer to *request* as it comes; its pieces raise `OSError` too."""
        answer = self._ask(request, {})[1]
        return Stream(answer.status, answer.pieces(), answer.headers)

    def take_over(self, request: Request) -> tuple[socket.socket, bytes] | Response:
        """Return the connection that *request* opens, and what has come over it already; or the refusal."""
        connection, answer = self._ask(request, {"Connection": "Upgrade", "Upgrade": "tcp"})
        if answer.status != 101:
            return Response(answer.status, b"".join(answer.pieces()), answer.headers)
        return connection, answer.early

    def _ask(self, request: Request, more: Mapping[str, str]) -> tuple[socket.socket, _Answer]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeout)
            connection.connect(str(self._path))
            return connection, self._answer(connection, request, more)
        except BaseException:
            connection.close()
            raise

    def _answer(self, connection: socket.socket, request: Request, more: Mapping[str, str]) -> _Answer:
        """Send *request* and return its answer, the head of which is there.

        An upload is sent once the server asks for it: one that refuses the request leaves it to others.
        """
        answer = _Answer(connection, request.method)
        with suppress(*_SEEN_ENOUGH):
            connection.sendall(encoded(request, {**self._headers, **request.headers, **more}))
        if request.upload is not None:
            answer.read_head(_CONTINUE)
            if answer.status != _CONTINUE:
                return answer
            with suppress(*_SEEN_ENOUGH):
                _send_chunked(connection, request.upload)
        if self._wait is not None:
            self._wait(connection.fileno())
        answer.read_head()
        return answer


def _send_chunked(connection: socket.socket, upload: Upload) -> None:
    while piece := _read(upload):
        connection.sendall(b"%x\r\n" % len(piece))
        connection.sendall(piece)
        connection.sendall(b"\r\n")
    connection.sendall(b"0\r\n\r\n")


def _read(upload: Upload) -> bytes:
    """Return the next piece of *upload*. Its errors must not pass for those of the connection."""
    try:
        return upload.read(_PIECE)
    except OSError as error:
        raise from_os_error(error, "read what is to be sent") from None


def encoded(request: Request, headers: Mapping[str, str]) -> bytes:
    """Return all of *request*, with *headers*, that is sent at once."""
    headers = {"Host": "localhost", **headers}
    if request.upload is not None:
        headers |= {"Transfer-Encoding": "chunked", "Expect": "100-continue"}
    elif request.body:
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(request.body))}
    elif request.method not in ("GET", "HEAD"):
        headers["Content-Length"] = "0"
    return encoded_head(request.method, request.path, request.query.pairs, headers) + request.body


def encoded_head(method: str, path: str, pairs: Pairs, headers: Mapping[str, str]) -> bytes:
    """Return the request line and *headers*. Raises `ValueError` for what would end a line of them."""
    lines = [f"{method} {build_target(path, pairs)} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    if any(character in line for line in lines for character in "\r\n\0"):
        raise ValueError("a header of a request has a line break in it")
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1", "replace")


def whole_answer(data: bytes) -> Response | None:
    """Return the answer in *data*, which is what has come until now; None if more is to come.

    For answers that tell their length, or have no body. Raises `ConnectionResetError` for what is none.
    """
    answer = _Come(data)
    try:
        answer.read_head()
        return Response(answer.status, answer.body(), answer.headers)
    except _MoreError:
        return None


class _Reader:
    """Reads an answer out of what comes."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = data
        """What has come, and was not taken yet."""
        self.status = 0
        self.headers: Headers = ()

    def read_head(self, *awaited: int) -> None:
        """Wait for the status and header of the answer, or for one of the statuses *awaited* before it.

        Others below 200 are passed over, but for 101, which is an answer.
        """
        self._read_head()
        while 100 <= self.status < 200 and self.status not in (101, *awaited):
            self._read_head()

    def _read_head(self) -> None:
        room = _MAX_HEAD
        first = self._line(room)
        version, _, rest = first.partition(b" ")
        status = rest.partition(b" ")[0]
        if not version.startswith(b"HTTP/1.") or len(status) != 3:
            raise _broken(_NOT_HTTP)
        headers = []
        room -= len(first)
        while line := self._line(room):
            room -= len(line)
            name, _, value = line.partition(b":")
            headers.append((name.decode("latin-1").lower(), value.strip().decode("latin-1")))
        self.status, self.headers = _number(status, 10), tuple(headers)

    def _line(self, most: int) -> bytes:
        """Return the next line, of *most* bytes at most, without its end."""
        while (end := self._data.find(b"\r\n")) < 0 and len(self._data) <= most + 1:
            self._receive()
        if not 0 <= end <= most:
            raise _broken("the server's answer has a header without an end")
        line, self._data = self._data[:end], self._data[end + 2 :]
        return line

    def _exactly(self, size: int) -> Generator[bytes, None, None]:
        """Yield the next *size* bytes as they come."""
        while size:
            if not self._data:
                self._receive()
            piece, self._data = self._data[:size], self._data[size:]
            size -= len(piece)
            yield piece

    def _receive(self) -> None:
        """Have more come. Raises `OSError`."""
        raise NotImplementedError


class _Answer(_Reader):
    """An answer as it comes over a connection."""

    def __init__(self, connection: socket.socket, method: str) -> None:
        super().__init__()
        self._connection = connection
        self._method = method

    @property
    def early(self) -> bytes:
        """What has come behind the head."""
        return self._data

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the body, and close the connection after it."""
        told = dict(self.headers)
        with self._connection:
            if self._method == "HEAD" or self.status in _WITHOUT_BODY:
                return
            if "transfer-encoding" in told:
                if told["transfer-encoding"].lower() != "chunked":
                    raise _broken(_NOT_HTTP)
                while size := _number(self._line(_MAX_HEAD), 16):
                    yield from self._exactly(size)
                    if self._line(0):
                        raise _broken(_NOT_HTTP)
            elif "content-length" in told:
                yield from self._exactly(_number(told["content-length"].encode(), 10))
            else:
                if self._data:
                    yield self._data
                while piece := self._connection.recv(_PIECE):
                    yield piece

    def _receive(self) -> None:
        data = received(self._connection, begun=bool(self._data or self.status))
        if not data:
            raise _broken("the server ended the connection without an answer, or in the middle of one")
        self._data += data


def received(connection: socket.socket, *, begun: bool) -> bytes:
    """Return what comes next on *connection*, nothing at its end; an answer may have *begun* to come.

    Raises `UnreadError` if none has and none will, `OSError` if nothing more comes otherwise.
    """
    try:
        return connection.recv(_PIECE)
    except ConnectionResetError as error:
        if begun:
            raise
        # The kernel says so of a peer that closes, or ends, and has not read all (net/unix/af_unix.c).
        # One that had would just be gone.
        raise UnreadError(error.errno, error.strerror) from None


class _MoreError(Exception):
    """There is more of an answer to come."""


class _Come(_Reader):
    """An answer of which no more is read than has come."""

    def body(self) -> bytes:
        """Return the body. Raises `_MoreError`."""
        if self.status in _WITHOUT_BODY:
            return b""
        length = dict(self.headers).get("content-length", "none")
        return b"".join(self._exactly(_number(length.encode("latin-1"), 10)))

    def _receive(self) -> None:
        raise _MoreError


def _number(text: bytes, base: int) -> int:
    """Return the number in *text*, behind which there may be an extension of a chunk."""
    digits = text.partition(b";")[0].strip()
    try:
        if digits.strip(_DIGITS) == b"":  # int() takes signs, too
            return int(digits, base)
    except ValueError:
        pass
    raise _broken(_NOT_HTTP)


def _broken(why: str) -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, why)
