"""A registry on the loopback (Debian's docker-registry), and a line to it that can be cut in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_PATIENCE = 20


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


USER, PASSWORD = "joe", "s3cret"
_USERS = f"{USER}:$2b$04$4QRhaJbrEr2qBxS22iYTkuSn7YHBoBWCMI4apwJ6et4qsAPToCr5q\n"
"""The one user of a guarded registry, as htpasswd(1) has written it, with bcrypt."""


class Registry:
    """A registry that keeps its blobs below *directory*; a *guarded* one takes its one user alone."""

    def __init__(self, directory: Path, program: str, *, guarded: bool = False) -> None:
        self.blobs = directory / "blobs"
        self._users = directory / "users" if guarded else None
        if self._users is not None:
            self._users.write_text(_USERS)
        self._config = directory / "config.yml"
        self._program = program
        self._log = directory / "log"
        for _ in range(5):  # somebody else may take the port first
            self.port = _free_port()
            self._start()
            if self._answers():
                return
            self.kill()
        raise AssertionError(self._log.read_text())

    def _start(self) -> None:
        users = f"auth: {{htpasswd: {{realm: r, path: '{self._users}'}}}}\n" if self._users else ""
        self._config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '127.0.0.1:{self.port}'}}\n"
            f"storage: {{filesystem: {{rootdirectory: '{self.blobs}'}}}}\n"
            f"{users}"
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", self._program, "serve", self._config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _answers(self) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            time.sleep(0.02)
        return False

    @property
    def host(self) -> str:
        """The registry as references name it."""
        return f"127.0.0.1:{self.port}"

    def blob(self, digest: str) -> Path:
        """Return the file with the content of a blob."""
        algorithm, _, digits = digest.partition(":")
        return self.blobs / "docker/registry/v2/blobs" / algorithm / digits[:2] / digits / "data"

    def kill(self) -> None:
        """End the registry at once."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(_PATIENCE)


class Line:
    """A way to a registry which stops after *most* bytes of answers; then `stalled` is set."""

    def __init__(self, registry: Registry, most: int) -> None:
        self._port = registry.port
        self._left = most
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.stalled = threading.Event()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [client, server]
                for source, target, counts in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=(source, target, counts), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if counts:
                    self._left -= len(data)
                    if self._left < 0:
                        self.stalled.set()
                        return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Close every connection, and take no more."""
        self._listener.close()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def _running(directory: Path, *, guarded: bool = False) -> Iterator[Registry]:
    program = shutil.which(
        "docker-registry", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if program is None or shutil.which("skopeo") is None:
        pytest.skip("docker-registry or skopeo is not installed")
    registry = Registry(directory, program, guarded=guarded)
    try:
        yield registry
    finally:
        registry.kill()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry for the tests of a module, each of which uses repositories of its own."""
    with _running(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
def short_lived(tmp_path: Path) -> Iterator[Registry]:
    """A registry of a test's own, which it may break."""
    directory = tmp_path / "registry"
    directory.mkdir()
    with _running(directory) as started:
        yield started


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that wants to know who asks: `USER` with `PASSWORD`."""
    with _running(tmp_path_factory.mktemp("guarded"), guarded=True) as started:
        yield started
