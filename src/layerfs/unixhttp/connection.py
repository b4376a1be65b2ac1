"""One connection of a server: requests are read, answered in turn, and answered in full."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import trio
from trio import from_thread, to_thread

from layerfs.errors import BadRequest, LayerfsError
from layerfs.unixhttp.message import (
    COMMON_HEADERS,
    MAX_BODY,
    Headers,
    Request,
    Response,
    Stream,
    Takeover,
    error_response,
    parse_target,
)
from layerfs.unixhttp.turns import Turns

if TYPE_CHECKING:
    from layerfs.unixhttp.message import Application, Handling

log = logging.getLogger(__name__)

MAX_HEADER = 32 * 1024
"""The largest request line and header together, in bytes."""
MAX_HEADER_LINES = 200
"""The most lines of a header, which are parsed in one go. A client sends about six."""
FREE_PIECES = 4096
"""Pieces that a body may come in, however small. After that they must have `MEAN_PIECE` bytes on average."""
MEAN_PIECE = 64
"""What a piece of a body costs does not depend on its size; clients send some thousand bytes in each."""
IDLE_SECONDS = 60.0
"""How long a connection may wait between requests."""
RECEIVE_SECONDS = 10.0
"""How long a client may take to send its header, and again its body."""
UPLOAD_SECONDS = 600.0
"""How long a client may take to send one more piece of an archive: it may wait for a network itself."""
SEND_SECONDS = 30.0
"""How long a client may take to receive one piece of an answer."""
LINGER_SECONDS = 2.0
"""How long a refused client may go on sending, so that it reads why instead of a broken pipe."""
CHUNK = 64 * 1024
HEADER_CHUNK = 4 * 1024
"""Bytes to receive at once while a header is expected."""


STREAMS = trio.CapacityLimiter(1000)
"""Answers that come piece by piece, and connections taken over, each of which keeps a thread."""


class _RefusedError(Exception):
    """The request cannot be read; the answer says why, and the connection ends."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.response = error_response(status, message)


class _Pieces:
    """Counts the pieces that a body comes in."""

    def __init__(self) -> None:
        self._pieces = self._bytes = 0

    def add(self, pieces: int, size: int) -> None:
        """Count *pieces* of *size* bytes together. Raises `BadRequest` when they are many and tiny."""
        self._pieces += pieces
        self._bytes += size
        if self._pieces > FREE_PIECES and self._bytes < self._pieces * MEAN_PIECE:
            raise BadRequest(
                f"the body comes in pieces of less than {MEAN_PIECE} bytes: send it in larger chunks"
            )


def _body_in(events: Sequence[h11.Event]) -> tuple[bytes, bool]:
    """Return the part of a body that is in *events*, and whether it ends with them."""
    data = b"".join(event.data for event in events if isinstance(event, h11.Data))
    return data, not isinstance(events[-1], h11.Data)


class Connection:
    """The server's side of one connection."""

    def __init__(self, stream: trio.SocketStream, app: Application, turns: Turns) -> None:
        """Prepare to serve *stream* with *app*; *turns* are those of all connections of the server."""
        self._stream = stream
        self._app = app
        self._turns = turns
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)
        self._answering = trio.CancelScope(shield=True)
        self._head_only = False
        """Whether the request that was read last wants the start of its answer alone."""

    def finish_within(self, seconds: float) -> None:
        """Give the request that is being answered, if any, so many *seconds* to end."""
        self._answering.deadline = min(self._answering.deadline, trio.current_time() + seconds)

    async def refuse(self, response: Response) -> None:
        """Answer *response* without having read a request, and end the connection."""
        await self._send_response(response, head=self._head_only, close=True)
        await self._linger()

    async def run(self) -> None:
        """Serve requests until the connection ends."""
        while True:
            try:
                read = await self._read_request()
            except _RefusedError as refused:
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self.refuse(refused.response)
                return
            if read is None:
                return
            request, handling = read
            self._answering = trio.CancelScope(shield=True, deadline=math.inf)
            with self._answering:
                answer = await handling.answer(request)
                if isinstance(answer, Response):
                    await self._send_response(answer, head=self._head_only)
            if self._answering.cancelled_caught:
                return
            if isinstance(answer, Stream):
                await self._send_stream(answer, head=self._head_only)
                return
            if isinstance(answer, Takeover):
                await self._hand_over(answer, upgrade="upgrade" in request.headers)
                return
            if request.upload is not None and self._http.their_state is h11.SEND_BODY:
                await self._linger()
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _read_request(self) -> tuple[Request, Handling] | None:
        """Return the next request and what answers it, None when the client has left or was idle too long."""
        if not self._http.trailing_data[0]:
            data = b""
            with trio.move_on_after(IDLE_SECONDS):
                data = bytes(await self._stream.receive_some(HEADER_CHUNK))
            if not data:
                return None
            self._http.receive_data(data)
        try:
            with trio.fail_after(RECEIVE_SECONDS):
                [head] = await self._next_events()
            if not isinstance(head, h11.Request):
                return None
            self._head_only = head.method == b"HEAD"
            async with self._turns:
                path, query = parse_target(head.target)
                headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
                request = Request(head.method.decode("ascii"), path, query, headers=headers)
                handling = self._app.find(request)
            if handling.upload:
                return request._replace(upload=_Upload(self)), handling
            with trio.fail_after(RECEIVE_SECONDS):
                return request._replace(body=await self._read_body(head)), handling
        except trio.TooSlowError:
            text = f"the request took longer than {RECEIVE_SECONDS:g} seconds to arrive"
            raise _RefusedError(408, text) from None
        except h11.RemoteProtocolError as error:
            raise _RefusedError(error.error_status_hint, f"malformed HTTP request: {error}") from None
        except LayerfsError as error:
            raise _RefusedError(error.http_status, str(error)) from None

    async def next_piece(self, counter: _Pieces) -> tuple[bytes, bool]:
        """Return the next piece of a body that a route reads, and whether it is the last."""
        try:
            with trio.fail_after(UPLOAD_SECONDS):
                events = await self._next_events()
        except trio.TooSlowError:
            raise BadRequest(f"nothing more came for {UPLOAD_SECONDS:g} seconds") from None
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            raise BadRequest("the request ended before its body did") from None
        data, ended = _body_in(events)
        counter.add(len(events), len(data))
        return data, ended

    async def _read_body(self, head: h11.Request) -> bytes:
        """Return the body that follows *head*, at most `MAX_BODY` bytes."""
        length = next((int(value) for name, value in head.headers if name == b"content-length"), 0)
        body = bytearray()
        counter = _Pieces()
        while length <= MAX_BODY and len(body) <= MAX_BODY:
            events = await self._next_events()
            data, ended = _body_in(events)
            body += data
            if ended and len(body) <= MAX_BODY:
                return bytes(body)
            counter.add(len(events), len(data))
        raise _RefusedError(413, f"the request body is larger than {MAX_BODY} bytes")

    async def _next_events(self) -> list[h11.Event]:
        """Return h11's next events, one at least, receiving as much as it takes.

        Those are a head alone, or what a body has before its end, that too, as far as a turn goes.
        """
        lines = 0
        while True:
            async with self._turns:
                in_head = self._http.their_state is h11.IDLE
                events = self._parsed()
            if events:
                return events
            if self._http.they_are_waiting_for_100_continue:
                go_ahead = h11.InformationalResponse(status_code=100, headers=[])
                await self._send(self._http.send(go_ahead) or b"")
            data = await self._stream.receive_some(HEADER_CHUNK if in_head else CHUNK)
            lines += data.count(b"\n") if in_head else 0
            if lines > MAX_HEADER_LINES:
                raise _RefusedError(431, f"the header has more than {MAX_HEADER_LINES} lines")
            self._http.receive_data(data)

    def _parsed(self) -> list[h11.Event]:
        """Return the events in what was received, as many as this turn has time for."""
        events: list[h11.Event] = []
        while True:
            event = self._http.next_event()
            if not isinstance(event, h11.Event):
                return events
            events.append(event)
            if not isinstance(event, h11.Data) or self._turns.is_over():
                return events

    def _head(self, status: int, headers: Headers, *, close: bool) -> bytes:
        """Return the encoded start of an answer."""
        ours = [*COMMON_HEADERS, ("Date", formatdate(usegmt=True)), *headers]
        if close:
            ours.append(("Connection", "close"))
        reason = HTTPStatus(status).phrase.encode()
        return self._http.send(h11.Response(status_code=status, headers=ours, reason=reason)) or b""

    async def _send_response(self, response: Response, *, head: bool = False, close: bool = False) -> None:
        """Send *response*, or of it the start alone."""
        headers = response.headers
        if response.status not in (204, 304):
            headers = (*headers, ("Content-Length", str(len(response.body))))
        data = self._head(response.status, headers, close=close)
        if not head:
            data += self._http.send(h11.Data(data=response.body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        await self._send(data)

    async def _send_stream(self, answer: Stream, *, head: bool) -> None:
        """Send the pieces of *answer* as they come, until they or the client end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_end, nursery.cancel_scope)
            try:
                await self._send(self._head(answer.status, answer.headers, close=True))
                await to_thread.run_sync(self._push, answer, head, limiter=STREAMS)
                await self._send(self._http.send(h11.EndOfMessage()) or b"")
            except trio.BrokenResourceError:
                pass  # the client went away
            except LayerfsError as error:
                log.error("a streamed answer failed: %s", error)  # its end is missing, which tells the client
            except Exception:
                log.exception("a streamed answer failed")
            finally:
                answer.chunks.close()  # a client that went away before the first piece has had nothing pushed
            nursery.cancel_scope.cancel()

    def _push(self, answer: Stream, head: bool) -> None:
        """Send the pieces of *answer*, in a thread, until they end or the loop has no more use for them."""
        with contextlib.closing(answer.chunks) as chunks:
            if head:
                return
            for chunk in chunks:
                if chunk:
                    from_thread.run(self._send_piece, chunk)
                else:
                    from_thread.check_cancelled()

    async def _send_piece(self, data: bytes) -> None:
        await self._send(self._http.send(h11.Data(data=data)) or b"")

    async def _hand_over(self, answer: Takeover, *, upgrade: bool) -> None:
        """Give the connection to *answer*, and wait until it is done with it.

        Even if the client has gone already: *answer* has made a process, or has a place in a queue, and sees
        that nobody is there.
        """
        start = "HTTP/1.1 101 UPGRADED" if upgrade else "HTTP/1.1 200 OK"
        headers = [*answer.headers]
        if upgrade:
            headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")]
        with contextlib.suppress(trio.BrokenResourceError):
            await self._send(
                "".join([start, *(f"\r\n{k}: {v}" for k, v in headers), "\r\n\r\n"]).encode("ascii")
            )
        early = bytes(self._http.trailing_data[0])
        # A descriptor of its own: trio closes its own whenever it likes.
        taken = socket.socket(fileno=os.dup(self._stream.socket.fileno()))
        with taken:
            taken.setblocking(True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._shut_down_when_cancelled, taken)
                with trio.CancelScope(shield=True):
                    await to_thread.run_sync(answer.run, taken, early, limiter=STREAMS)
                nursery.cancel_scope.cancel()

    async def _shut_down_when_cancelled(self, taken: socket.socket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with contextlib.suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)

    async def _send(self, data: bytes) -> None:
        """Send *data*; a client that does not take it in time counts as gone."""
        try:
            with trio.fail_after(SEND_SECONDS):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            raise trio.BrokenResourceError("the client does not read its answer") from None

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        """Cancel *scope* when the client ends the connection; what it sends meanwhile is dropped."""
        with contextlib.suppress(trio.BrokenResourceError):
            while await self._stream.receive_some(CHUNK):
                pass
        scope.cancel()

    async def _linger(self) -> None:
        """Drop what the client still sends, for a moment."""
        with trio.move_on_after(LINGER_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            await self._stream.send_eof()
            while await self._stream.receive_some(CHUNK):
                pass


class _Upload:
    """A body as a route reads it, in the thread that answers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._counter = _Pieces()
        self._data = memoryview(b"")
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """See `Upload`."""
        while not self._data and not self._ended:
            piece, self._ended = from_thread.run(self._connection.next_piece, self._counter)
            self._data = memoryview(piece)
        part, self._data = bytes(self._data[:size]), self._data[size:]
        return part
