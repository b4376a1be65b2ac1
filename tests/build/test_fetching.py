"""Files and repositories from elsewhere, from servers that behave and that do not."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from layerfs.build import context, fetching
from layerfs.errors import BadRequest, LayerfsError, NotFound, Unauthorized
from tests.build.archives import archive, compressed, file
from tests.build.stages import Stage
from tests.build.test_context import names
from tests.build.test_copying import paths

MOMENT = 1_500_000_000
DATA = os.urandom(700_000)
ARCHIVE = compressed(archive(file("Dockerfile", b"FROM a"), file("inside", b"inside")), "gzip")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        known = {
            "/data.bin": DATA,
            "/sub/x.tar.gz": ARCHIVE,
            "/Dockerfile": b"FROM url\n",
            "/a%2Fb": b"odd",
            "/": b"root",
        }
        if path in known:
            self.answer(200, known[path])
        elif path == "/moved":
            self.answer(302, b"", Location="/data.bin")
        elif path == "/to-file":
            self.answer(302, b"", Location="file:///etc/passwd")
        elif path == "/loop":
            self.answer(302, b"", Location="/loop")
        elif path == "/private":
            wanted = "Basic " + b64encode(b"me:s3cret word").decode()
            self.answer(200 if self.headers["Authorization"] == wanted else 401, b"private")
        elif path == "/leak":
            self.answer(302, b"", Location="/headers")
        elif path == "/headers":
            self.answer(200, str(self.headers).encode())
        elif path == "/broken":
            self.answer(500, b"")
        elif path == "/short":
            self.answer(200, b"short", **{"Content-Length": "100"})
        elif path == "/drip":
            self.answer(200, b"", **{"Content-Length": "1000000"})
            for _ in range(1000):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
                time.sleep(0.02)
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Length": str(len(body)),
            "Last-Modified": formatdate(MOMENT, usegmt=True),
            **headers,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.root
def test_add_a_file_by_its_address(stage: Stage, server: str) -> None:
    stage.copy(f"{server}/data.bin?x=y", to="/d/", word="ADD")
    stage.copy(f"{server}/moved", to="/name", word="ADD", chmod="644", chown="5:6")
    seen = stage.see()
    assert paths(seen) == {b"d", b"d/data.bin", b"name"}
    item = seen[b"d/data.bin"]
    assert (item.content, item.mode, item.uid, item.mtime) == (DATA, 0o600, 0, MOMENT * 10**9)
    assert (seen[b"name"].mode, seen[b"name"].uid, seen[b"name"].gid) == (0o644, 5, 6)


@pytest.mark.root
def test_archives_by_address_are_unpacked_on_request(stage: Stage, server: str) -> None:
    stage.copy(f"{server}/sub/x.tar.gz", to="/whole/", word="ADD")
    stage.copy(f"{server}/sub/x.tar.gz", to="/unpacked/", word="ADD", unpack=True)
    assert paths(stage.see()) >= {b"whole/x.tar.gz", b"unpacked/inside"}


@pytest.mark.root
def test_copy_fetches_nothing(stage: Stage, server: str) -> None:
    with pytest.raises(BadRequest, match="use ADD"):
        stage.copy(f"{server}/data.bin", to="/")


@pytest.mark.root
def test_checksums(stage: Stage, server: str) -> None:
    right = hashlib.sha256(DATA).hexdigest()
    stage.copy(f"{server}/data.bin", to="/x", word="ADD", checksum=f"sha256:{right}")
    with pytest.raises(BadRequest, match=f"has the digest sha256:{right}, not sha256:00"):
        stage.copy(f"{server}/data.bin", to="/x", word="ADD", checksum=f"sha256:{'0' * 64}")
    for wrong in ("sha256:12", "md5:" + "0" * 32, right):
        with pytest.raises(BadRequest, match="invalid checksum"):
            stage.copy(f"{server}/data.bin", to="/x", word="ADD", checksum=wrong)
    with pytest.raises(BadRequest, match="for URLs"):
        stage.copy("Dockerfile", to="/x", word="ADD", checksum=f"sha256:{right}")


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("/missing", NotFound, "404"),
        ("/private", Unauthorized, "401"),
        ("/broken", LayerfsError, "500"),
        ("/loop", LayerfsError, "302"),
        ("/to-file", LayerfsError, "cannot fetch"),
        ("/short", LayerfsError, "ended too early"),
    ],
)
def test_servers_that_do_not_answer_well(
    tmp_path: Path, server: str, path: str, kind: type[LayerfsError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        fetching.fetch_file(server + path, tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_passwords_are_for_their_server_and_shown_to_nobody(tmp_path: Path, server: str) -> None:
    address = server.replace("://", "://me:s3cret%20word@")
    fetching.fetch_file(f"{address}/private", tmp_path / "private")
    assert (tmp_path / "private").read_bytes() == b"private"
    fetching.fetch_file(f"{address}/leak", tmp_path / "headers")
    assert b"Authorization" not in (tmp_path / "headers").read_bytes()
    for path in ("/missing", "/short", "/to-file"):
        with pytest.raises(LayerfsError) as caught:
            fetching.fetch_file(address + path, tmp_path / path[1:])
        assert "s3cret" not in str(caught.value)
        assert server in str(caught.value)


def test_nobody_answers(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(LayerfsError, match="Connection refused"):
        fetching.fetch_file(f"http://127.0.0.1:{port}/x", tmp_path / "x")


def test_a_slow_server_does_not_keep_the_build(tmp_path: Path, server: str) -> None:
    class Stopped(Exception):
        pass

    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > 0.3:
            raise Stopped

    with pytest.raises(Stopped):
        fetching.fetch_file(f"{server}/drip", tmp_path / "x", check=check)
    assert time.monotonic() - began < 3


def test_names_of_files() -> None:
    for url, name in {
        "http://h/a/b.txt?q#f": b"b.txt",
        "http://h/": b"__unnamed__",
        "http://h": b"__unnamed__",
        "http://h/a%2Fb": b"b",
        "http://h/%2E%2E": b"__unnamed__",
        "http://h/a%00b": b"__unnamed__",
        "http://h/%FFx": b"\xffx",
    }.items():
        assert fetching.file_name(url) == name, url


def test_what_is_a_repository() -> None:
    for text in ("https://h/x.git", "https://h/x.git#ref:dir", "git@h:x/y", "git://h/x", "ssh://git@h/x"):
        assert fetching.is_git(text), text
        assert fetching.is_elsewhere(text), text
    assert fetching.is_git("github.com/a/b")
    assert not fetching.is_elsewhere("github.com/a/b")
    for text in ("https://h/x.tar", "https://h/x?y=.git", "a/b", "x.git", "user@host/x"):
        assert not fetching.is_git(text), text


def test_a_context_by_address(tmp_path: Path, server: str) -> None:
    with context.from_url(f"{server}/sub/x.tar.gz", tmp_path) as opened:
        assert names(opened.source) == {b"Dockerfile", b"inside"}
    (tmp_path / "again").mkdir()
    with context.from_url(f"{server}/Dockerfile", tmp_path / "again") as opened:
        assert opened.dockerfile == "FROM url\n"
    assert context.is_url(server + "/x")
    assert not context.is_url("./http")
