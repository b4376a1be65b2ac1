"""The client of the API: it asks the engine where one runs, or has the answer made in this process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from layerfs import errors
from layerfs.host.rundir import engine_socket, running_pid
from layerfs.unixhttp.message import (
    Pairs,
    Query,
    Request,
    Response,
    Stream,
    Takeover,
    Upload,
    one_piece,
    quoted_root,
    to_error,
)

if TYPE_CHECKING:
    from layerfs.api.routes import Place
    from layerfs.mounting.request import MountRequest
    from layerfs.unixhttp.client import UnixClient

    Launch = Callable[[MountRequest], str]

_A = TypeVar("_A")
Parameter = str | bool | Sequence[str] | None
Taken = tuple[socket.socket, bytes]
"""A connection that was taken over, and what has come over it already."""


class Transport(Protocol):
    """How requests travel."""

    @property
    def in_place(self) -> bool:
        """Whether this process answers itself."""

    def send(self, request: Request) -> Response:
        """Return the whole answer to *request*."""

    def stream(self, request: Request) -> Stream:
        """Return the answer to *request* as it comes."""

    def take_over(self, request: Request) -> Taken | Response:
        """Return the connection that *request* opens, or the refusal."""


class Client:
    """Asks the API; made by `Client.of`, `Client.local` or `Client.for_mount`."""

    def __init__(self, transport: Transport) -> None:
        """Ask by *transport*."""
        self._transport = transport

    @property
    def in_place(self) -> bool:
        """Whether this process answers itself."""
        return self._transport.in_place

    @classmethod
    def of(cls, root: Path, launch: Callable[[], Launch] | None = None) -> Client:
        """Return a client for the store at *root*: of its engine if one runs here, else `Client.local`.

        *launch* is called when this process is about to answer itself, if it does, and returns what mounts
        then. `$LAYERFS_ENGINE` is the socket of the engine where it is set, and "none" for none.
        """
        given = os.environ.get("LAYERFS_ENGINE")
        if given == "none":
            return cls(_InPlace(root, launch))
        try:
            path = Path(given) if given else engine_socket()
            return cls(_EngineOrInPlace(path, root, launch) if path.exists() else _InPlace(root, launch))
        except (errors.LayerfsError, OSError):  # whoever needs the run directory says what is wrong with it
            return cls(_InPlace(root, launch))

    @classmethod
    def local(cls, root: Path) -> Client:
        """Return a client whose requests this process answers, from the store at *root*.

        What only a running mount can do is passed on to the daemon of that mount.
        """
        return cls(_InPlace(root))

    @classmethod
    def for_mount(cls, name: str) -> Client:
        """Return a client of the daemon that runs the mount called *name*.

        Raises `Conflict` when none does.
        """
        if running_pid(name) is None:
            raise errors.Conflict(
                f"{name} is not running; run 'layerfs mount --name {name} MOUNTPOINT' first"
            )
        return cls(_Daemon(name))

    def request(
        self,
        method: str,
        path: str,
        /,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        **parameters: Parameter,
    ) -> Any:
        """Send a request and return the JSON of its answer, None for an empty one.

        Raises the `LayerfsError` that the answer's status stands for, with its message.
        """
        answer = self._transport.send(_request(method, path, body, headers, parameters))
        if answer.status >= 400:
            raise to_error(answer)
        return json.loads(answer.body) if answer.body else None

    def stream(
        self,
        method: str,
        path: str,
        /,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        upload: Upload | None = None,
        source: Path | BinaryIO | None = None,
        sink: Path | BinaryIO | None = None,
        **parameters: Parameter,
    ) -> Stream:
        """Send a request and return the answer as it comes; some of its pieces are empty.

        *source* and *sink* are for an answer in this process: see `Request`. Raises the `LayerfsError` that
        the answer's status stands for, with its message.
        """
        request = _request(method, path, body, headers, parameters)
        request = request._replace(upload=upload, source=source, sink=sink)
        answer = self._transport.stream(request)
        if answer.status >= 400:
            raise to_error(Response(answer.status, b"".join(answer.chunks)))
        return answer

    def take_over(self, method: str, path: str, /, *, body: bytes = b"", **parameters: Parameter) -> Taken:
        """Send a request after which the connection is a channel; return that, and what has come already.

        Raises the `LayerfsError` that the answer's status stands for, with its message.
        """
        answer = self._transport.take_over(_request(method, path, body, None, parameters))
        if isinstance(answer, Response):
            raise to_error(answer)
        return answer


def _request(
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str] | None,
    parameters: Mapping[str, Parameter],
) -> Request:
    return Request(method, path, Query(_pairs(parameters)), body, headers=headers or {})


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


class _InPlace:
    """Answers in this process."""

    in_place = True

    def __init__(self, root: Path, launch: Callable[[], Launch] | None = None) -> None:
        self._root = root
        self._launch = launch

    def _place(self) -> Place:
        return local_place(self._root, self._launch() if self._launch else None)

    def send(self, request: Request) -> Response:
        """See `Transport`."""
        from layerfs.api import app

        answer = app.answer(self._place(), request)
        if isinstance(answer, Stream):
            return Response(answer.status, b"".join(answer.chunks), answer.headers)
        assert isinstance(answer, Response)
        return answer

    def stream(self, request: Request) -> Stream:
        """See `Transport`."""
        from layerfs.api import app

        answer = app.answer(self._place(), request)
        if isinstance(answer, Response):
            return Stream(answer.status, one_piece(answer.body), answer.headers)
        assert isinstance(answer, Stream)
        return answer

    def take_over(self, request: Request) -> Taken | Response:
        """See `Transport`."""
        from layerfs.api import app

        answer = app.answer(self._place(), request)
        if isinstance(answer, Response):
            return answer
        assert isinstance(answer, Takeover)
        import threading

        ours, theirs = socket.socketpair()
        threading.Thread(target=_run_and_close, args=(answer, theirs), daemon=True).start()
        return ours, b""


def _run_and_close(answer: Takeover, connection: socket.socket) -> None:
    with connection:
        answer.run(connection, b"")


class _EngineOrInPlace:
    """Asks the engine on a socket if it has the same store and mounts; else answers in place."""

    in_place = False
    """True once it turned out that no engine answers."""

    def __init__(self, path: Path, root: Path, launch: Callable[[], Launch] | None) -> None:
        from layerfs.unixhttp.client import UnixClient

        namespace = os.readlink("/proc/self/ns/mnt")
        self._engine = UnixClient(path, {"layerfs-root": quoted_root(root), "layerfs-namespace": namespace})
        self._in_place = _InPlace(root, launch)

    def send(self, request: Request) -> Response:
        """See `Transport`."""
        return self._asked(lambda one: one.send(request))

    def stream(self, request: Request) -> Stream:
        """See `Transport`."""
        answer = self._asked(lambda one: one.stream(request))
        return answer if self.in_place else answer._replace(chunks=_explained(answer.chunks))

    def take_over(self, request: Request) -> Taken | Response:
        """See `Transport`."""
        return self._asked(lambda one: one.take_over(request))

    def _asked(self, ask: Callable[[UnixClient | _InPlace], _A]) -> _A:
        """Return what *ask* gets from the engine, or from this process where that does not answer for us."""
        try:
            answer = ask(self._engine)
        except _NOBODY:
            pass
        except OSError as error:
            raise _lost(error) from None
        else:
            if getattr(answer, "status", None) != errors.OtherStore.http_status:
                return answer
        self.in_place = True
        return ask(self._in_place)


_NOBODY = (FileNotFoundError, ConnectionRefusedError, PermissionError)
"""How connecting fails where no engine listens, or one of another user."""


def _explained(pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """Yield *pieces* that come from the engine; raises `LayerfsError` where it ends."""
    try:
        yield from pieces
    except OSError as error:
        raise _lost(error) from None


def _lost(error: OSError) -> errors.LayerfsError:
    return errors.LayerfsError(
        f"the engine ended the connection ({error.strerror or error}): see 'layerfs ps -a' for what was done"
    )


class _Daemon:
    """Asks the daemon of a mount."""

    in_place = False

    def __init__(self, name: str) -> None:
        self._name = name

    def send(self, request: Request) -> Response:
        """See `Transport`."""
        from layerfs.mounting.exchange import exchange

        return exchange(self._name, request.method, request.path, request.query.pairs, request.body)

    def stream(self, request: Request) -> Stream:
        """See `Transport`."""
        answer = self.send(request)
        return Stream(answer.status, one_piece(answer.body), answer.headers)

    def take_over(self, request: Request) -> Taken | Response:
        """See `Transport`."""
        return Response(501, b'{"message": "this socket is that of one mount: ask the engine"}')


def local_place(root: Path, launch: Launch | None = None) -> Place:
    """Return where requests are answered that this process makes and answers itself; *launch* mounts."""
    from layerfs.api.routes import Place, launch_here

    return Place(root, launch or launch_here, alone=True)
