"""How the command line asks: the same API, of a mount's daemon or, where none is needed, in place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs import errors
from layerfs.host.polling import readable
from layerfs.host.rundir import is_stopped, log_path, running_pid, socket_path
from layerfs.unixhttp.message import (
    Request,
    Response,
    build_target,
    parse_target,
)

if TYPE_CHECKING:
    import socket

Pairs = Sequence[tuple[str, str]]
Parameter = str | bool | Sequence[str] | None
PATIENCE = 600.0
"""Seconds that a daemon may work on one request: collecting gigabytes from the kernel takes its time."""
PING_PATIENCE = 10.0
"""Seconds after which a daemon that does not answer must at least answer that it is there."""


class Client:
    """Asks the control API; made by `Client.local` or `Client.for_mount`."""

    def __init__(self, send: Callable[[Request], Response]) -> None:
        """Ask by *send*, which takes a request and returns its answer."""
        self._send = send

    @classmethod
    def local(cls, root: Path) -> Client:
        """Return a client that answers in this process, from the store at *root*.

        What only a running mount can do is passed on to that mount's daemon.
        """

        def send(request: Request) -> Response:
            from layerfs.api import table

            return table.answer(root, request)

        return cls(send)

    @classmethod
    def for_mount(cls, name: str) -> Client:
        """Return a client of the daemon that runs the mount called *name*.

        Raises `Conflict` when none does.
        """
        if running_pid(name) is None:
            raise errors.Conflict(
                f"{name} is not running; run 'layerfs mount --name {name} MOUNTPOINT' first"
            )

        def send(request: Request) -> Response:
            return exchange(name, request.method, request.path, request.query.pairs, request.body)

        return cls(send)

    def request(self, method: str, path: str, *, body: bytes = b"", **parameters: Parameter) -> Any:
        """Send a request and return the JSON of its answer, None for an empty one.

        Raises the `LayerfsError` that the answer's status stands for, with its message.
        """
        target = build_target(path, _pairs(parameters)).encode()
        answer = self._send(Request(method, *parse_target(target), body))
        if answer.status >= 400:
            raise to_error(answer)
        return json.loads(answer.body) if answer.body else None


def _pairs(parameters: Mapping[str, Parameter]) -> Pairs:
    """Return *parameters* as pairs: None, False and empty ones left out, a sequence as one pair an item."""
    pairs: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if isinstance(value, str):
            pairs += [(name, value)] if value else []
        elif isinstance(value, bool):
            pairs += [(name, "1")] if value else []
        else:
            pairs += [(name, item) for item in value or ()]
    return pairs


def to_error(answer: Response) -> errors.LayerfsError:
    """Return the error that *answer*, of a status of 400 or more, tells of."""
    try:
        message = str(json.loads(answer.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the daemon answered with status {answer.status} and no explanation"
    kinds: Mapping[int, type[errors.LayerfsError]] = {
        kind.http_status: kind
        for kind in (
            errors.BadRequest,
            errors.Forbidden,
            errors.NotFound,
            errors.Conflict,
            errors.StoreBusy,
            errors.NoSpace,
        )
    }
    return kinds.get(answer.status, errors.LayerfsError)(message)


class NotListeningError(errors.Conflict):
    """Nobody listens on the socket of a daemon: it is just starting, or ending."""


def exchange(name: str, method: str, path: str, query: Pairs, body: bytes = b"") -> Response:
    """Send one request to the daemon of the mount called *name*, and return its answer.

    Raises `Conflict` when there is none, `NotListeningError` where nothing was sent yet. A daemon that works
    on it is waited for, `PATIENCE` seconds at most; one that is stopped, or that answers nobody, is not.
    """
    from http.client import HTTPException

    from layerfs.unixhttp.transport import UnixConnection

    pid = running_pid(name) or 0
    _check_not_stopped(name, pid)
    connection = UnixConnection(socket_path(name), PING_PATIENCE)
    try:
        connection.connect()
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotListeningError(str(_silent(name, pid, str(error.strerror)))) from error
    except OSError as error:
        raise _silent(name, pid, error.strerror or f"waited {PING_PATIENCE:g} seconds") from error
    try:
        connection.request(
            method, build_target(path, query), body or None, {"Content-Type": "application/json"}
        )
        _wait_for_answer(connection.sock, name, pid, f"{method} {path}")
        answer = connection.getresponse()
        return Response(answer.status, answer.read(), (("Content-Type", answer.headers.get_content_type()),))
    except (OSError, HTTPException) as error:
        if isinstance(error, TimeoutError):
            reason = f"waited {PING_PATIENCE:g} seconds"
        else:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _silent(name, pid, reason) from error
    finally:
        connection.close()


def _wait_for_answer(connection: socket.socket, name: str, pid: int, what: str) -> None:
    """Return when there is something to read; raise `Conflict` when none is to be expected any more."""
    deadline = time.monotonic() + PATIENCE
    while not readable([connection.fileno()], PING_PATIENCE):
        _check_not_stopped(name, pid)
        if not _pings(name):
            raise _silent(name, pid, f"waited {PING_PATIENCE:g} seconds for {what}")
        if time.monotonic() > deadline:
            raise _silent(name, pid, f"waited {PATIENCE:g} seconds for {what}, which it is still working on")


def _pings(name: str) -> bool:
    """Tell whether the daemon of *name* answers anything at all."""
    from http.client import HTTPException

    from layerfs.unixhttp.transport import UnixConnection

    connection = UnixConnection(socket_path(name), PING_PATIENCE)
    try:
        connection.request("GET", "/_ping")
        return connection.getresponse().status < 500
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _check_not_stopped(name: str, pid: int) -> None:
    if is_stopped(pid):
        raise errors.Conflict(
            f"the daemon of {name} (process {pid}) is stopped: 'kill -CONT {pid}' lets it go on"
        )


def _silent(name: str, pid: int, reason: str) -> errors.Conflict:
    return errors.Conflict(
        f"the daemon of {name} (process {pid}) runs, but does not answer on {socket_path(name)} ({reason}); "
        f"see {log_path(name)}"
    )
