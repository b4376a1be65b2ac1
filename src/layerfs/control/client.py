"""How the command line asks: the same API, of a mount's daemon or, where none is needed, in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerfs import errors
from layerfs.control.message import (
    Request,
    Response,
    build_target,
    parse_target,
)
from layerfs.runtime import log_path, running_pid, socket_path

Pairs = Sequence[tuple[str, str]]
Parameter = str | bool | Sequence[str] | None


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
            from layerfs.control import table

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


def exchange(name: str, method: str, path: str, query: Pairs, body: bytes = b"") -> Response:
    """Send one request to the daemon of the mount called *name*, and return its answer.

    Raises `LayerfsError` when the daemon does not answer; waits for as long as the answer takes.
    """
    from http.client import HTTPException

    from layerfs.control.transport import UnixConnection

    connection = UnixConnection(socket_path(name))
    try:
        connection.request(
            method, build_target(path, query), body or None, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        return Response(answer.status, answer.read(), (("Content-Type", answer.headers.get_content_type()),))
    except (OSError, HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        silent = f"the daemon of {name} runs, but does not answer on {socket_path(name)} ({reason})"
        raise errors.Conflict(f"{silent}; see {log_path(name)}") from error
    finally:
        connection.close()
