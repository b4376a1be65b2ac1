"""What clients say of images and of themselves, what skopeo shows of its work, and what registries refuse."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from layerfs.distribution.credentials import Credentials, server
from layerfs.distribution.named import Named
from layerfs.distribution.progress import Downloads, Uploads
from layerfs.distribution.refusals import of_pull, of_push
from layerfs.errors import BadRequest, Forbidden, LayerfsError, NoSpace, NotFound, Unauthorized
from layerfs.oci.media import Descriptor

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("name", "tag", "shown", "path"),
    [
        ("debian", "12", "debian:12", "library/debian"),
        ("debian:11", "12", "debian:12", "library/debian"),
        ("debian:", "", "debian", "library/debian"),
        ("docker.io/library/debian", "12", "debian:12", "library/debian"),
        ("me/tool", "latest", "me/tool:latest", "me/tool"),
        ("localhost:5000/a/b", "1", "localhost:5000/a/b:1", "a/b"),
        ("localhost:5000/a/b:2", "1", "localhost:5000/a/b:1", "a/b"),
        ("localhost:5000/a/b", "", "localhost:5000/a/b", "a/b"),
        ("debian", DIGEST, f"debian@{DIGEST}", "library/debian"),
        (f"debian@{DIGEST}", "", f"debian@{DIGEST}", "library/debian"),
        (f"debian:12@{DIGEST}", "", f"debian@{DIGEST}", "library/debian"),
    ],
)
def test_names_of_images(name: str, tag: str, shown: str, path: str) -> None:
    named = Named.parse(name, tag)
    assert (str(named), named.path) == (shown, path)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("", ""), (":", ""), ("UPPER", "1"), ("a b", "1"), ("debian", "b@d"), ("debian", "-x"),
        ("x" * 300, "1"), ("debian@sha256:12", ""), ("debian", "sha256:12"), ("debian@", ""),
        ("--option", "1"), ("a\0b", "1"),
    ],
)  # fmt: skip
def test_names_that_are_refused(name: str, tag: str) -> None:
    with pytest.raises(BadRequest):
        Named.parse(name, tag)


def test_registries_on_this_machine_need_no_tls() -> None:
    for name, local in (
        ("localhost:5000/x", True),
        ("127.0.0.1:5000/x", True),
        ("127.1.2.3/x", True),
        ("localhost.example/x", False),
        ("127.0.0.1.example/x", False),
        ("x", False),
    ):
        assert Named.parse(name, "1").is_local is local, name


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def test_credentials_of_a_header() -> None:
    for text in ("", "e30=", "e30", encoded(None)):
        assert not Credentials.of_header(text).are_given
    given = Credentials.of_header(encoded({"username": "joe", "password": "s3\u00fc?~", "email": None}))
    assert (given.username, given.password) == ("joe", "s3\u00fc?~")
    both = Credentials.of_header(encoded({"auth": base64.b64encode(b"joe:a:b").decode()}))
    assert (both.username, both.password) == ("joe", "a:b")
    token = Credentials.of_header(encoded({"identitytoken": "t", "serveraddress": "https://x.example/v2/"}))
    assert (token.identity_token, token.server) == ("t", "x.example")
    for shown in (given, both, token):
        assert "joe" not in repr(shown)
        assert "s3" not in repr(shown)


@pytest.mark.parametrize(
    "text",
    [
        "garbage!",
        encoded([1]),
        encoded({"username": 3}),
        encoded({"username": "a:b", "password": "c"}),
        encoded({"auth": "AA=="}),
        encoded({"auth": base64.b64encode(b"nocolon").decode()}),
        encoded({"registrytoken": "x"}),
        encoded({"username": "a", "password": "b\0"}),
        encoded({"username": "a", "serveraddress": "-option"}),
        "A" * 100_000,
        "_" * 7,
    ],
)
def test_credentials_that_make_no_sense(text: str) -> None:
    with pytest.raises(BadRequest):
        Credentials.of_header(text)


def test_registries_by_their_address() -> None:
    assert server("https://index.docker.io/v1/") == server("") == server("docker.io") == "docker.io"
    assert server("http://localhost:5000/v2/") == server("localhost:5000") == "localhost:5000"
    for bad in ("--x", "a b", "host:port", "@", "host:99999999", "host\n"):
        with pytest.raises(BadRequest):
            server(f"https://{bad}/v2/")


def test_the_file_of_credentials_is_nowhere_on_disk() -> None:
    with Credentials("joe", "s3cret").file("x.example") as fd:
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert os.fstat(fd).st_nlink == 0
        content = json.loads(Path(f"/proc/self/fd/{fd}").read_bytes())
    assert content == {"auths": {"x.example": {"auth": base64.b64encode(b"joe:s3cret").decode()}}}
    with Credentials().file("x.example") as fd:  # not those of the user who runs the engine
        assert json.loads(Path(f"/proc/self/fd/{fd}").read_bytes()) == {"auths": {}}
    with pytest.raises(OSError):
        os.fstat(fd)


class Said:
    """A `Report` that notes what is said."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, int, int]] = []

    def say(self, status: str, id: str = "", *, current: int = -1, total: int = 0) -> None:
        self.lines.append((status, id, current, total))

    def check(self) -> None:
        pass

    def new(self) -> list[tuple[str, str, int, int]]:
        lines, self.lines = self.lines, []
        return lines


def blob(letter: str, size: int) -> Descriptor:
    return Descriptor("", "sha256:" + letter * 64, size)


def test_downloads_are_told_by_the_files_that_skopeo_writes(tmp_path: Path) -> None:
    said = Said()
    look = Downloads(tmp_path, [blob("a", 10), blob("b", 1000), blob("c", 5)], said)
    look(0, "")
    assert said.new() == []
    (tmp_path / "oci-put-blob1").write_bytes(bytes(100))  # too much for a
    look(0, "")
    look(0, "")
    assert said.new() == [("Downloading", "b" * 12, 100, 1000)]
    (tmp_path / "oci-put-blob2").write_bytes(bytes(4))
    look(0, "")
    assert said.new() == [("Downloading", "a" * 12, 4, 10)]
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "oci-put-blob2").rename(tmp_path / "blobs/sha256" / ("c" * 64))  # it was another one
    (tmp_path / "oci-put-blob1").rename(tmp_path / "blobs/sha256" / ("b" * 64))
    look(0, "")
    assert sorted(said.new()) == [
        ("Download complete", "b" * 12, 0, 0),
        ("Download complete", "c" * 12, 0, 0),
    ]
    (tmp_path / "oci-put-blob3").write_bytes(bytes(2000))  # the configuration: no layer is so large
    look(0, "")
    assert said.new() == []


def test_uploads_are_told_by_how_far_blobs_are_read(tmp_path: Path) -> None:
    said = Said()
    look = Uploads([blob("a", 10), blob("b", 20)], ["first", "second"], said)
    place = tmp_path / "blobs/sha256" / ("a" * 64)
    place.parent.mkdir(parents=True)
    place.write_bytes(bytes(10))
    with place.open("rb", buffering=0) as file:
        file.read(3)
        look(os.getpid(), "")
        look(os.getpid(), "")
        assert said.new() == [("Pushing", "first", 3, 10)]
    log = f'msg="Skipping blob sha256:{"b" * 64} (already present):"\n'
    look(0, log)
    log += f'msg="Upload of layer sha256:{"a" * 64} complete"\n'
    look(0, log)
    look(0, log)
    assert said.new() == [("Layer already exists", "second", 0, 0), ("Pushed", "first", 0, 0)]


READING = 'Error parsing image name "docker://host/x:1": reading manifest 1 in host/x: '


@pytest.mark.parametrize(
    ("why", "kind", "line"),
    [
        (
            f"{READING}manifest unknown: manifest unknown",
            NotFound,
            "manifest for host/x:1 not found: manifest unknown: manifest unknown",
        ),
        (
            f"{READING}name unknown: repository name not known to registry",
            NotFound,
            "repository host/x not found: name unknown: repository name not known to registry",
        ),
        (
            f"{READING}errors:\ndenied: requested access to the resource is denied\nunauthorized: x",
            NotFound,
            "pull access denied for host/x, repository does not exist or may require 'docker login': "
            "denied: requested access to the resource is denied unauthorized: x",
        ),
        (
            f"{READING}unauthorized: authentication required",
            Unauthorized,
            "unauthorized: authentication required: log in first, with 'docker login host.example'",
        ),
        (
            'initializing source docker://host/x:1: pinging container registry host: Get "https://host/v2/"',
            LayerfsError,
            'Get "https://host/v2/"',
        ),
        ("writing blob: write /a: no space left on device", NoSpace, "writing blob: write /a: no space left"),
    ],
)
def test_refusals_of_registries(why: str, kind: type[LayerfsError], line: str) -> None:
    named = Named.parse("host.example/x", "1")
    why = why.replace("host/", "host.example/").replace(" host:", " host.example:")
    found = of_pull(
        (NoSpace if kind is NoSpace else LayerfsError)(f"cannot pull {named}: {why}"), named, anonymous=False
    )
    assert type(found) is kind
    assert str(found).startswith(line.replace("host/", "host.example/"))


def test_who_is_nobody_is_not_asked_for_a_password() -> None:
    named = Named.parse("host.example/x", "1")
    refused = LayerfsError(f"cannot pull {named}: {READING}unauthorized: authentication required")
    found = of_pull(refused, named, anonymous=True)
    assert type(found) is NotFound
    assert str(found) == (
        "pull access denied for host.example/x, repository does not exist or may require 'docker login': "
        "unauthorized: authentication required"
    )


def test_refusals_of_a_push_and_our_own_errors() -> None:
    named = Named.parse("host.example/x", "1")
    denied = LayerfsError(f"cannot push {named}: trying to reuse blob at destination: denied: not you")
    assert (type(of_push(denied, named)), str(of_push(denied, named))) == (Forbidden, "denied: not you")
    for own in (LayerfsError("no space"), LayerfsError(f"cannot pull {named}: skopeo was killed (SIGKILL)")):
        assert of_pull(own, named, anonymous=True) is own
        assert of_push(own, named) is own
