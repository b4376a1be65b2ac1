"""Requests to the API over a real socket, as a client sends them that knows nothing of layerfs."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.conftest import PATIENCE, Layerfs, wait_until


class UnixConnection(HTTPConnection):
    """A connection to the server that listens on the socket *path*."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """Return the JSON of the body."""
        return json.loads(self.body)

    def lines(self) -> list[dict[str, Any]]:
        """Return the JSON of each line of the body."""
        return [json.loads(line) for line in self.body.splitlines()]

    def message(self) -> str:
        """Return what an error says."""
        return str(self.json()["message"])


class Api:
    """The API on the socket *path*."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        /,
        **parameters: str | list[str],
    ) -> Answer:
        """Send a request, and return the answer."""
        with self.asking(method, path, body, headers, **parameters) as answer:
            return Answer(answer.status, answer.read(), dict(answer.headers.items()))

    @contextmanager
    def asking(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        /,
        **parameters: str | list[str],
    ) -> Iterator[HTTPResponse]:
        """Send a request; yield the answer as it comes. The client is gone when the block ends."""
        connection = UnixConnection(self.path, PATIENCE)
        try:
            target = f"{path}?{urlencode(parameters, doseq=True)}" if parameters else path
            connection.request(
                method, target, body, dict(headers or {}), encode_chunked=not isinstance(body, bytes)
            )
            with connection.getresponse() as answer:  # which has the socket by now
                yield answer
        finally:
            connection.close()


def engine(layerfs: Layerfs) -> Api:
    """Start the engine of a store, which ends with the test; return its API."""
    layerfs.run.mkdir(mode=0o700, exist_ok=True)
    path = layerfs.run / "engine.sock"
    with (layerfs.run / "engine.log").open("wb") as log:
        subprocess.Popen(
            [*layerfs.words, "engine"], env=layerfs.environment, stdin=subprocess.DEVNULL, stderr=log
        )
    wait_until(lambda: answers(path))
    return Api(path)


def answers(path: Path) -> bool:
    """Return whether an engine answers on the socket *path*."""
    try:
        return Api(path).ask("GET", "/_ping").status == 200
    except (FileNotFoundError, ConnectionError):  # it is there before anybody listens
        return False
    except ConnectionResetError:  # one that was killed had not ended yet
        return False


def auth_header(username: str, password: str) -> dict[str, str]:
    """Return the header by which Docker's clients say who they are."""
    text = json.dumps({"username": username, "password": password}).encode()
    return {"X-Registry-Auth": base64.urlsafe_b64encode(text).decode()}
