"""Routes that start and end the process of a container, and that wait for its end."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from layerfs.api.containers import NO_CONTENT, NOT_MODIFIED, clear_away, how_to_end
from layerfs.api.routes import Call, route
from layerfs.container import ending, lifecycle, tickets
from layerfs.container.afterwards import follow_up
from layerfs.container.attachment import resize as resize_terminal
from layerfs.container.stored import host_config
from layerfs.container.tickets import Ticket
from layerfs.errors import BadRequest, Conflict, LayerfsError, NotFound
from layerfs.host.record import directory, look, settled
from layerfs.unixhttp.message import Answer, Response, Stream, one_piece

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_CONDITIONS = ("not-running", "next-exit", "removed")
_PAUSE = 0.5
_REMOVAL = 60.0
"""Seconds that the removal of a container may take after its end."""


def the_container(call: Call) -> Mount:
    """Return the row of the container that the path names; raises `Conflict` for a mount that is none."""
    row = call.row(call.names["name"])
    if not row.container:
        raise Conflict(f"{row.name} is a mount, not a container: 'layerfs run' makes containers")
    return row


def start(call: Call) -> Response:
    """Start the process of a container."""
    row = the_container(call)
    call.close()  # an SQLite connection must not live across the fork of a daemon
    began = lifecycle.start(call.root, row, call.place.launch, lambda record: tickets.call(row.id, record))
    return NO_CONTENT if began else NOT_MODIFIED


def restart(call: Call) -> Response:
    """End the process of a container if it runs, as stop does, and start it."""
    row = the_container(call)
    if directory(row.id).exists():
        ending.end(row, *how_to_end(call, row))
        clear_away(call, row)
    return start(call)


def wait(call: Call) -> Answer:
    """Wait for the end of a container, and return its exit code; the answer begins when we are waiting."""
    row = the_container(call)
    condition = call.query.get("condition") or _CONDITIONS[0]
    if condition not in _CONDITIONS:
        raise BadRequest(f"invalid condition: {condition[:100]!r}: use one of {', '.join(_CONDITIONS)}")
    ticket = Ticket(row.id, attach=False)
    record = look(row.id)
    if record is not None and record.exit_code is None:  # it runs, or nobody has cleared away after it yet
        ticket.call(record)
    elif condition == _CONDITIONS[0]:
        ticket.__exit__()
        code = row.container.get("ExitCode") or 0
        return Stream(200, one_piece(_exited(code)), (("Content-Type", "application/json"),))
    pieces = _waited(call, row, ticket, condition)
    next(pieces)  # from here on, closing it gives the ticket back
    return Stream(200, pieces, (("Content-Type", "application/json"),))


def _waited(call: Call, row: Mount, ticket: Ticket, condition: str) -> Generator[bytes, None, None]:
    with ticket:
        yield b""
        while not ticket.wait(_PAUSE):
            yield b""
            if not _exists(call, row.id):
                yield _exited(0)
                return
        code: int | None = None
        if ticket.record is not None and ticket.watch is not None:
            while not ticket.record.wait(_PAUSE):
                yield b""
            try:
                code = lifecycle.wait(call.root, row, ticket.watch)
            except LayerfsError as error:  # it has ended, and clearing away has failed
                yield _exited(lifecycle.UNKNOWN, str(error))
                return
        if condition == "removed" and host_config(row.container)["AutoRemove"]:
            deadline = time.monotonic() + _REMOVAL
            while _exists(call, row.id) and time.monotonic() < deadline:
                time.sleep(0.01)
        yield _exited(lifecycle.UNKNOWN if code is None else code)


def _exited(code: int, error: str = "") -> bytes:
    found: dict[str, Any] = {"StatusCode": code}
    if error:
        found["Error"] = {"Message": error}
    return json.dumps(found).encode() + b"\n"


def _exists(call: Call, mount_id: str) -> bool:
    try:
        call.store.mount(mount_id)
    except NotFound:
        return False
    return True


def resize(call: Call) -> Response:
    """Give the terminal of a container a size."""
    row = the_container(call)
    if settled(row.id) is None:
        raise Conflict(f"cannot resize a stopped container: {row.name} is not running")
    resize_terminal(directory(row.id), *size(call))
    return Response(200)


def size(call: Call) -> tuple[int, int]:
    """Return the rows and columns that the query has; raises `BadRequest`."""
    try:
        rows, columns = int(call.query.get("h")), int(call.query.get("w"))
    except ValueError:
        raise BadRequest("give the height h and the width w of the terminal, in characters") from None
    if not (0 <= rows < 65536 and 0 <= columns < 65536):
        raise BadRequest("a terminal has at most 65535 rows and columns")
    return rows, columns


def exited(call: Call) -> Stream:
    """Clear away after a container whose process has ended, and start it again if its policy says so.

    For what its supervisor runs (`layerfs.container.exited`). An answer that is whole says that all is done.
    Raises `BadRequest` for what is no id.
    """
    directory(call.names["id"])
    return Stream(200, _followed_up(call))


def _followed_up(call: Call) -> Generator[bytes, None, None]:
    work = _logged(follow_up(call.root, call.names["id"], call.place.launch), call.names["id"])
    yield b""
    try:
        for _ in work:
            yield b"."  # who asks sees that somebody is at it
    except GeneratorExit:  # who asked was killed: nobody else would start the container again
        threading.Thread(target=lambda: list(work), name="restarts", daemon=True).start()
        raise
    yield b"done"


def _logged(work: Iterator[None], mount_id: str) -> Iterator[None]:
    try:
        yield from work
    except (LayerfsError, OSError) as error:
        # Not for the caller to try again: it would fail in the same way.
        logging.getLogger(__name__).error("cannot clear away after %s: %s", mount_id[:12], error)


ROUTES = (
    route("POST", "/layerfs/containers/{id}/exited", exited, waits=True),
    route("POST", "/containers/{name}/start", start, waits=True),
    route("POST", "/containers/{name}/restart", restart, waits=True),
    route("POST", "/containers/{name}/wait", wait, waits=True),
    route("POST", "/containers/{name}/resize", resize),
)
