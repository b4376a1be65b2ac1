"""Requests and answers of the API, apart from how they travel.

The server reads requests from a socket, the command line makes them. Both hand them to the same routes.
They are named tuples because every command makes these classes: frozen dataclasses take seven times as long.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from layerfs import __version__
from layerfs.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    LayerfsError,
    NoSpace,
    NotFound,
    NotImplementedHere,
    StoreBusy,
    Unauthorized,
)

if TYPE_CHECKING:
    import socket
    from pathlib import Path

Headers = tuple[tuple[str, str], ...]
Pairs = Sequence[tuple[str, str]]
"""The parameters of a query, decoded."""

API_VERSION = (1, 51)
"""The newest version of the Docker Engine API that is answered."""
MIN_API_VERSION = (1, 24)
"""The oldest version of the Docker Engine API that is answered."""
MAX_BODY = 128 * 1024
"""The largest request body, in bytes: no request of this API needs more, and JSON is decoded in one go."""
COMMON_HEADERS: Headers = (
    ("Api-Version", "{}.{}".format(*API_VERSION)),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"layerfs/{__version__} (linux)"),
)


class Query:
    """The parameters after a target's question mark; a name may occur several times."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Pairs = ()) -> None:
        """Take the decoded *pairs* of names and values."""
        self.pairs = tuple(pairs)

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of *name*, or *default* when it is absent."""
        return next((value for key, value in self.pairs if key == name), default)

    def all(self, name: str) -> list[str]:
        """Return every value of *name*, in order."""
        return [value for key, value in self.pairs if key == name]

    def flag(self, name: str) -> bool:
        """Return *name* as dockerd reads booleans: false if absent, empty, "0", "no", "false" or "none"."""
        return self.get(name).strip().lower() not in ("", "0", "no", "false", "none")


class Upload(Protocol):
    """The body of a request, read piece by piece."""

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, waiting for the client if need be; nothing at the end of the body.

        Raises `BadRequest` if the client stops before the end.
        """


class Request(NamedTuple):
    """One request: *path* is decoded and has no version prefix once it reaches a route."""

    method: str
    path: str
    query: Query = Query()
    body: bytes = b""
    version: tuple[int, int] = API_VERSION
    headers: Mapping[str, str] = MappingProxyType({})
    """The header, with names in lower case."""
    upload: Upload | None = None
    """The body, instead of *body*, where the route asks for it piece by piece."""
    source: Path | BinaryIO | None = None
    """What *upload* is made of, for a route in the process that has it: a directory, a file or a stream."""
    sink: Path | BinaryIO | None = None
    """Where the answer's body is to go, for a route in the same process: then the answer has none."""

    def json(self) -> dict[str, Any]:
        """Return the JSON object of the body, `{}` for none or `null`; raise `BadRequest` for others."""
        if not self.body.strip():
            return {}
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"invalid JSON in the request body: {error}") from None
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise BadRequest("invalid JSON in the request body: it must be an object")
        return value


class Response(NamedTuple):
    """A whole answer, its body in memory."""

    status: int
    body: bytes = b""
    headers: Headers = ()


class Stream(NamedTuple):
    """An answer whose body comes piece by piece.

    *chunks* runs in a thread. While it waits it yields nothing (`b""`) at least every second, so that the
    server notices a client that has gone; then it is closed. A client may go before the first piece, and
    closing a generator that was not started runs none of it: one that is to give something back must have
    been started (`next`).
    """

    status: int
    chunks: Generator[bytes, None, None]
    headers: Headers = ()


def one_piece(data: bytes) -> Generator[bytes, None, None]:
    """Yield *data*: a stream of which all is there."""
    yield data


class Takeover(NamedTuple):
    """An answer after which the connection belongs to *run*: Docker's "hijacking".

    *run* is called in a thread with the socket and what the client has sent ahead, even if the client has
    gone before. It returns when it is done with the connection, and soon after the socket has been shut down.
    The server closes the socket.
    """

    run: Callable[[socket.socket, bytes], None]
    headers: Headers = ()


Answer = Response | Stream | Takeover


class Handling(Protocol):
    """What answers a request."""

    @property
    def upload(self) -> bool:
        """Whether the body is read piece by piece."""

    async def answer(self, request: Request) -> Answer:
        """Return the answer to *request*; errors are answers too. Raises nothing but `Cancelled`."""


class Application(Protocol):
    """What a server serves."""

    def find(self, request: Request) -> Handling:
        """Return what answers *request*, whose head alone has come. Never raises."""


def json_response(value: Any, status: int = 200) -> Response:
    """Return *value* as a JSON answer, ended by a newline as dockerd's are.

    Names on disk need not be UTF-8; what cannot be decoded is shown as U+FFFD, as Go's encoder does.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Response(status, text.encode("utf-8", "replace") + b"\n", (("Content-Type", "application/json"),))


def error_response(status: int, message: str) -> Response:
    """Return an error in the form of Docker's API: a JSON object with the member "message"."""
    return json_response({"message": message}, status)


def parse_target(target: bytes) -> tuple[str, Query]:
    """Split a request target into its decoded path and its query; raise `BadRequest` if it is malformed.

    Names of files need not be UTF-8: the queries of our own routes may have other bytes, decoded as by
    `os.fsdecode`.
    """
    raw_path, _, raw_query = target.partition(b"?")
    errors = "surrogateescape" if raw_path.startswith(b"/layerfs/") else "strict"
    try:
        path = unquote_to_bytes(raw_path).decode()
        pairs = parse_qsl(
            raw_query.decode("ascii"), keep_blank_values=True, errors=errors, max_num_fields=1000
        )
    except ValueError:
        raise BadRequest("malformed request target") from None
    if not path.startswith("/") or "\0" in path:
        raise BadRequest("malformed request target")
    return path, Query(pairs)


def build_target(path: str, pairs: Pairs) -> str:
    """Return the request target of *path* with the parameters *pairs*, names of files in any encoding."""
    target = quote(path, safe="/:@")
    return f"{target}?{urlencode(pairs, errors='surrogateescape')}" if pairs else target


def quoted_root(root: Path) -> str:
    """Return the path of a store as the header `layerfs-root` has it, which takes no other characters."""
    return quote(os.fsencode(root))


def to_error(answer: Response) -> LayerfsError:
    """Return the error that *answer*, of a status of 400 or more, tells of."""
    try:
        message = str(json.loads(answer.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the daemon answered with status {answer.status} and no explanation"
    kinds: Mapping[int, type[LayerfsError]] = {
        kind.http_status: kind
        for kind in (
            BadRequest,
            Unauthorized,
            Forbidden,
            NotFound,
            Conflict,
            NotImplementedHere,
            StoreBusy,
            NoSpace,
        )
    }
    return kinds.get(answer.status, LayerfsError)(message)
