"""Routes that show what a container writes, as it comes or from its log, and that pass on what is typed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from layerfs.api.routes import Call, route
from layerfs.api.running import the_container
from layerfs.api.times import parse_time
from layerfs.container import files, logs
from layerfs.container.attachment import STDERR, STDOUT, Wanted, bridge, detach_keys, frame, is_closed
from layerfs.container.stored import host_config
from layerfs.container.tickets import Ticket
from layerfs.errors import BadRequest, LayerfsError
from layerfs.host.record import look
from layerfs.store import imageconfig
from layerfs.unixhttp.message import Answer, Headers, Stream, Takeover

if TYPE_CHECKING:
    from layerfs.container.logs import Piece
    from layerfs.store.model import Mount

_PAUSE = 0.25
_STREAMS = {b"stdout": STDOUT, b"stderr": STDERR}


def form(call: Call, *, terminal: bool) -> Headers:
    """Return the header that says in which form output comes."""
    multiplexed = not terminal and call.request.version >= (1, 42)
    kind = "multiplexed" if multiplexed else "raw"
    return (("Content-Type", f"application/vnd.docker.{kind}-stream"),)


def attach(call: Call) -> Answer:
    """Pass on between the client and a container: output, and input if it takes any.

    A container that does not run yet is waited for. With `logs` what it wrote before comes first.
    """
    row = the_container(call)
    terminal = bool(row.container.get("Tty"))
    query = call.query
    wanted = Wanted(
        stdin=query.flag("stdin") and bool(row.container.get("OpenStdin")),
        stdout=query.flag("stdout"),
        stderr=query.flag("stderr"),
        terminal=terminal,
        keys=detach_keys(query.get("detachKeys")),
    )
    ticket = Ticket(row.id, attach=query.flag("stream"))
    log = files.log_path(call.root, row.id)

    def run(client: socket.socket, early: bytes) -> None:
        with ticket, suppress(OSError):
            if query.flag("logs"):
                for piece in filter(None, logs.read(log)):
                    client.sendall(wanted.encoded(_STREAMS[piece.stream], piece.text))
            if query.flag("stream"):
                _stream(row, ticket, client, early, wanted)

    return Takeover(run, form(call, terminal=terminal))


def _stream(row: Mount, ticket: Ticket, client: socket.socket, early: bytes, wanted: Wanted) -> None:
    with suppress(LayerfsError):
        while not ticket.wait(_PAUSE):
            if is_closed(client):  # a client that has no input ends that direction alone
                return
        if ticket.connection is not None:
            bridge(client, early, ticket.connection, wanted)


def show_logs(call: Call) -> Answer:
    """Return what a container wrote, and with `follow` what it writes until its end."""
    row = the_container(call)
    query = call.query
    streams = {name for name in (b"stdout", b"stderr") if query.flag(name.decode())}
    if not streams:
        raise BadRequest("Bad parameters: you must choose at least one stream")
    tail = query.get("tail") or "all"
    if tail != "all" and not tail.isascii():
        raise BadRequest(f"invalid tail {tail[:100]!r}: give a number of lines, or all")
    try:
        lines = None if tail == "all" or int(tail) < 0 else int(tail)
    except ValueError:
        lines = None  # as dockerd
    since, until = (parse_time(query.get(name), name) for name in ("since", "until"))
    terminal = bool(row.container.get("Tty"))
    details = _details(row) if query.flag("details") else b""

    def encoded(piece: Piece) -> bytes:
        if piece.stream not in streams or not _is_between(piece, since, until):
            return b""
        text = details + piece.text
        text = piece.time + b" " + text if query.flag("timestamps") else text
        return text if terminal else frame(_STREAMS[piece.stream], text)

    def goes_on() -> bool:
        record = look(row.id)
        return record is not None and record.alive() and (until is None or time.time_ns() < until)

    pieces = logs.read(
        files.log_path(call.root, row.id), tail=lines, goes_on=goes_on if query.flag("follow") else None
    )
    return Stream(200, _encoded(pieces, encoded), form(call, terminal=terminal))


def _details(row: Mount) -> bytes:
    options = host_config(row.container)["LogConfig"]["Config"]
    return logs.details(options, imageconfig.labels(row.config), row.config.get("Env") or ())


def _encoded(
    pieces: Generator[Piece | None, None, None], encoded: Callable[[Piece], bytes]
) -> Generator[bytes, None, None]:
    try:
        for piece in pieces:
            yield b"" if piece is None else encoded(piece)
    finally:
        pieces.close()


def _is_between(piece: Piece, since: int | None, until: int | None) -> bool:
    """Return whether *piece* was written at the time, or between the times, in nanoseconds."""
    if since is None and until is None:
        return True
    moment = datetime.fromisoformat(_microseconds(piece.time.decode("ascii", "replace")))
    written = int(moment.astimezone(UTC).timestamp() * 1e6) * 1000
    return (since is None or written >= since) and (until is None or written <= until)


def _microseconds(text: str) -> str:
    """Return an RFC 3339 time with nine digits of a second with six of them, which Python can read."""
    before, point, after = text.partition(".")
    return f"{before}.{after[:6]}{after[9:]}" if point else text


ROUTES = (
    route("POST", "/containers/{name}/attach", attach),
    route("GET", "/containers/{name}/logs", show_logs),
)
