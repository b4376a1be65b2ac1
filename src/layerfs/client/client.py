"""The client of the API: it asks a server, or has the answer made in this process where none runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs import errors
from layerfs.host.rundir import running_pid
from layerfs.unixhttp.message import Answer, Request, Response, build_target, parse_target, to_error

if TYPE_CHECKING:
    from layerfs.api.routes import Place
    from layerfs.mounting.launch import MountRequest

Pairs = Sequence[tuple[str, str]]
Parameter = str | bool | Sequence[str] | None


class Client:
    """Asks the control API; made by `Client.local` or `Client.for_mount`."""

    def __init__(self, send: Callable[[Request], Answer]) -> None:
        """Ask by *send*, which takes a request and returns its answer."""
        self._send = send

    @classmethod
    def local(cls, root: Path) -> Client:
        """Return a client whose requests this process answers, from the store at *root*.

        What only a running mount can do is passed on to the daemon of that mount.
        """

        def send(request: Request) -> Answer:
            from layerfs.api import app

            return app.answer(local_place(root), request)

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

        def send(request: Request) -> Answer:
            from layerfs.mounting.exchange import exchange

            return exchange(name, request.method, request.path, request.query.pairs, request.body)

        return cls(send)

    def request(self, method: str, path: str, *, body: bytes = b"", **parameters: Parameter) -> Any:
        """Send a request and return the JSON of its answer, None for an empty one.

        Raises the `LayerfsError` that the answer's status stands for, with its message.
        """
        target = build_target(path, _pairs(parameters)).encode()
        answer = self._send(Request(method, *parse_target(target), body))
        assert isinstance(answer, Response), "this route streams"
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


def local_place(root: Path) -> Place:
    """Return where requests are answered that this process makes and answers itself."""

    def launch(request: MountRequest) -> str:
        from layerfs.api.server import start_mount

        return start_mount(request)

    from layerfs.api.routes import Place

    return Place(root, launch, alone=True)
