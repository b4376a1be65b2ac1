"""`docker pull`, `push`, `login` and `import` over the API, with real registries on the loopback."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Layerfs, wait_until
from tests.system.apirequests import Answer, auth_header, engine
from tests.system.registries import PASSWORD, USER, Line, Registry, guarded, registry, short_lived

__all__ = ["guarded", "registry", "short_lived"]

pytestmark = pytest.mark.root
JOE = auth_header(USER, PASSWORD)


class Store:
    """A store with an image of two layers called "made", and the engine of it."""

    def __init__(self, layerfs: Layerfs, name: str) -> None:
        self.layerfs = layerfs
        directory = layerfs.directory
        for made in ("tree", "mnt"):
            (directory / made).mkdir()
        (directory / "tree/base").write_bytes(os.urandom(3_000_000))
        layerfs.ok("import", directory / "tree", "base")
        layerfs.ok("mount", "--image", "base", "--name", name, directory / "mnt")
        (directory / "mnt/new").write_bytes(os.urandom(1_000_000))
        layerfs.ok("commit", name, "made")
        self.mnt = directory / "mnt"
        self.api = engine(layerfs)

    def pull(self, name: str, tag: str = "1", headers: dict[str, str] | None = None, **more: str) -> Answer:
        """Pull an image."""
        return self.api.ask("POST", "/v1.51/images/create", None, headers, fromImage=name, tag=tag, **more)

    def push(self, name: str, headers: dict[str, str] | None = None, **more: str) -> Answer:
        """Push an image."""
        return self.api.ask("POST", f"/v1.51/images/{name}/push", None, headers, **more)

    def tagged(self, image: str, name: str) -> None:
        """Give an image one more name."""
        self.layerfs.ok("tag", image, name)

    def images(self) -> set[str]:
        """Return the names of all images."""
        rows = self.layerfs.ok("images", "--format", "json").splitlines()
        return {f"{row['Repository']}:{row['Tag']}" for row in map(json.loads, rows)}

    def is_clean(self) -> bool:
        """Return whether nothing half done is there."""
        scratch = self.layerfs.root / "tmp"
        return not scratch.exists() or list(scratch.iterdir()) == []


@pytest.fixture
def here(layerfs: Layerfs) -> Store:
    """A store to push from."""
    return Store(layerfs, "m")


@pytest.fixture
def there(layerfs: Layerfs) -> Iterator[Store]:
    """A store to pull into."""
    directory = layerfs.directory / "there"
    directory.mkdir()
    other = Layerfs(directory)
    try:
        yield Store(other, "other")
        other.check_logs()
        other.check_store()
    finally:
        other.end()


def statuses(answer: Answer) -> list[str]:
    """Return what an answer says, without the steps of a download."""
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    passing = ("Downloading", "Download complete", "Extracting", "Pushing", "Preparing")
    return [line.get("status", "") for line in answer.lines() if line.get("status") not in passing]


def test_pull_and_push_say_what_dockerd_says(here: Store, there: Store, registry: Registry) -> None:
    name = f"{registry.host}/said/made"
    here.tagged("made", f"{name}:1")
    pushed = here.push(name, tag="1")
    digest = pushed.lines()[-1]["aux"]["Digest"]
    assert statuses(pushed) == [
        f"The push refers to repository [{name}]", "Pushed", "Pushed",
        f"1: digest: {digest} size: {pushed.lines()[-1]['aux']['Size']}", "",
    ]  # fmt: skip
    assert pushed.lines()[-1]["aux"]["Tag"] == "1"
    assert statuses(here.push(name, tag="1"))[1:3] == ["Layer already exists"] * 2

    pulled = there.pull(name)
    assert statuses(pulled) == [
        "Pulling from said/made", "Pulling fs layer", "Pulling fs layer", "Pull complete", "Pull complete",
        f"Digest: {digest}", f"Status: Downloaded newer image for {name}:1",
    ]  # fmt: skip
    first, *layers = (line.get("id") for line in pulled.lines()[:3])
    assert first == "1"
    assert {line["id"] for line in pulled.lines() if line.get("status") == "Pull complete"} == set(layers)
    extracted = [line for line in pulled.lines() if line.get("status") == "Extracting"]
    assert all(0 < line["progressDetail"]["current"] <= line["progressDetail"]["total"] for line in extracted)
    assert extracted
    assert statuses(there.pull(name)) == [
        "Pulling from said/made", f"Digest: {digest}", f"Status: Image is up to date for {name}:1",
    ]  # fmt: skip
    place = there.layerfs.directory / "pulled"
    place.mkdir()
    there.layerfs.ok("mount", "--image", f"{name}:1", place)
    assert (place / "new").read_bytes() == (here.mnt / "new").read_bytes()
    assert there.is_clean()


def test_layers_that_are_there_are_not_fetched(here: Store, there: Store, registry: Registry) -> None:
    name = f"{registry.host}/shared/x"
    for image in ("base", "made"):
        here.tagged(image, f"{name}:{image}")
    assert "Pushed" in statuses(here.push(name))  # every tag
    assert statuses(there.pull(name, "base")).count("Pulling fs layer") == 1
    said = statuses(there.pull(name, "made"))
    assert said[1:3] == ["Already exists", "Pulling fs layer"]
    assert said.count("Pull complete") == 1
    there.layerfs.ok("rmi", f"{name}:base", f"{name}:made")
    everything = statuses(there.pull(name, ""))
    assert everything.count("Pulling from shared/x") == 2
    assert everything[-1] == f"Status: Downloaded newer image for {name}"
    assert {f"{name}:base", f"{name}:made"} <= there.images()


def test_by_digest_and_for_a_platform(here: Store, there: Store, registry: Registry) -> None:
    name = f"{registry.host}/exact/x"
    here.tagged("made", f"{name}:1")
    digest = here.push(name, tag="1").lines()[-1]["aux"]["Digest"]
    before = there.images()
    assert f"Digest: {digest}" in statuses(there.pull(name, digest))
    assert there.images() - before == {f"{name}:<none>"}
    assert there.api.ask("GET", f"/images/{name}@{digest}/json").json()["RepoDigests"] == [f"{name}@{digest}"]
    assert digest in there.layerfs.ok("images", "--digests", "--format", "{{.Digest}}").splitlines()
    here.layerfs.ok("rmi", f"{name}:1")
    assert f"{name}@{digest}" not in here.layerfs.ok("images", "--digests", "--format", "{{.Digest}}")
    refused = there.pull(name, platform="linux/s390x")
    assert (refused.status, "does not provide the specified platform" in refused.message()) == (404, True)
    assert there.pull(name, platform="linux/amd64").status == 200
    about = there.api.ask("GET", f"/v1.51/distribution/{name}:1/json").json()
    assert about["Descriptor"]["digest"] == digest
    assert about["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
    assert there.api.ask("GET", f"/v1.51/distribution/{name}@{digest}/json").json() == about


def test_what_is_refused(there: Store, registry: Registry, guarded: Registry) -> None:
    host = registry.host
    for answer, status, said in (
        (there.pull(f"{host}/nothing"), 404, f"manifest for {host}/nothing:1 not found: manifest unknown"),
        (there.pull("127.0.0.1:1/x"), 500, "connection refused"),
        (there.pull(f"{guarded.host}/x"), 404, "may require 'docker login'"),
        (there.pull(f"{guarded.host}/x", headers=auth_header(USER, "wrong")), 401, "unauthorized"),
        (there.pull(f"{guarded.host}/x", headers=JOE), 404, "manifest unknown"),
        (there.pull("UPPER"), 400, "invalid reference format"),
        (there.pull("x", "-bad"), 400, "invalid reference format"),
        (there.pull("x", headers={"X-Registry-Auth": "garbage!"}), 400, "X-Registry-Auth"),
        (there.pull("x", platform="a/b/c/d"), 400, "is no platform"),
        (there.api.ask("POST", "/images/create"), 400, "fromImage"),
        (there.api.ask("POST", "/images/create", fromSrc="http://x/y.tar"), 501, "fetch it yourself"),
        (there.push(f"{host}/x@sha256:{'0' * 64}", tag=""), 400, "digest reference"),
        (there.push("made", {"X-Registry-Auth": "e30=x"}, tag="1"), 400, "X-Registry-Auth"),
        (there.api.ask("GET", f"/distribution/{host}/nothing/json"), 404, "manifest unknown"),
        (there.api.ask("GET", f"/distribution/{guarded.host}/x/json"), 404, "docker login"),
        (there.api.ask("GET", "/images/search", term="x"), 501, "searching is not supported"),
    ):
        assert (answer.status, said in answer.message()) == (status, True), answer
        assert "\n" not in answer.message()
    for answer, said in (
        (there.push(f"{host}/nothing", tag="1"), "An image does not exist locally with the tag"),
        (there.push("made", tag="other"), "tag does not exist"),
    ):
        last = answer.lines()[-1]
        assert said in last["error"]
        assert last["errorDetail"] == {"message": last["error"]}
    there.tagged("made", f"{guarded.host}/x:1")
    assert "docker login" in there.push(f"{guarded.host}/x", tag="1").lines()[-1]["error"]
    there.tagged("made", "127.0.0.1:1/x:1")
    assert "connection refused" in there.push("127.0.0.1:1/x", tag="1").lines()[-1]["error"]
    assert there.is_clean()


def test_login(there: Store, registry: Registry, guarded: Registry) -> None:
    def log_in(body: Any) -> Answer:
        return there.api.ask("POST", "/auth", json.dumps(body).encode(), {"Content-Type": "application/json"})

    good = {"username": USER, "password": PASSWORD, "serveraddress": guarded.host}
    assert log_in(good).json() == {"Status": "Login Succeeded", "IdentityToken": ""}
    assert log_in(good | {"serveraddress": f"http://{guarded.host}/v2/"}).status == 200
    assert log_in(good | {"serveraddress": registry.host}).status == 200  # which takes everybody
    for body, status, said in (
        (good | {"password": "wrong"}, 401, f"{guarded.host}/v2/ failed with status: 401 Unauthorized"),
        (good | {"serveraddress": "127.0.0.1:1"}, 500, "connection refused"),
        (good | {"serveraddress": "no host at all"}, 400, "invalid server address"),
        (good | {"serveraddress": "--help"}, 400, "invalid server address"),
        (good | {"username": ""}, 400, "no username is given"),
        (good | {"username": 3}, 400, "must be a text"),
        ([], 400, "must be an object"),
    ):
        answer = log_in(body)
        assert (answer.status, said in answer.message()) == (status, True), answer
    assert there.is_clean()


def test_credentials_are_seen_by_skopeo_alone(
    here: Store, there: Store, guarded: Registry, tmp_path: Path
) -> None:
    """While a pull goes on, they are on no command line, in no environment and on no disk."""
    name = f"{guarded.host}/secret/x"
    here.tagged("made", f"{name}:1")
    assert here.push(name, JOE, tag="1").lines()[-1]["aux"]
    line = Line(guarded, 2_000_000)
    secrets = [
        PASSWORD.encode(),
        base64.b64encode(f"{USER}:{PASSWORD}".encode()),
        JOE["X-Registry-Auth"].encode(),
    ]
    with there.api.asking(
        "POST", "/images/create", None, JOE, fromImage=f"{line.host}/secret/x", tag="1"
    ) as answer:
        assert answer.status == 200
        assert line.stalled.wait(20)
        seen = [
            Path(f"/proc/{pid}/{file}").read_bytes()
            for pid in there.layerfs.processes()
            for file in ("cmdline", "environ")
        ]
        assert any(b"skopeo" in text for text in seen)
        files = [
            path for path in there.layerfs.directory.rglob("*") if path.is_file() and path.suffix != ".db"
        ]
        seen += [path.read_bytes() for path in files if path.is_relative_to(there.layerfs.root / "tmp")]
        seen += [path.read_bytes() for path in there.layerfs.run.glob("*.log")]
        assert not [text for text in seen for secret in secrets if secret in text]
    wait_until(there.is_clean)
    line.cut()


@pytest.mark.parametrize("end", ["client gone", "skopeo killed", "registry gone", "engine killed"])
def test_a_pull_that_does_not_come_to_its_end(
    here: Store, there: Store, short_lived: Registry, end: str
) -> None:
    name = f"{short_lived.host}/cut/x"
    here.tagged("made", f"{name}:1")
    assert here.push(name, tag="1").lines()[-1]["aux"]
    before = there.images()
    line = Line(short_lived, 2_000_000)
    there.layerfs.expect_log(".*")
    with there.api.asking("POST", "/images/create", fromImage=f"{line.host}/cut/x", tag="1") as answer:
        assert b"Pulling from cut/x" in answer.readline()
        assert line.stalled.wait(20)
        wait_until(lambda: skopeo_of(there))
        [skopeo] = skopeo_of(there)
        if end == "skopeo killed":
            os.kill(skopeo, signal.SIGKILL)
        elif end == "registry gone":
            short_lived.kill()
            line.cut()
        elif end == "engine killed":
            os.kill(int((there.layerfs.run / "engine.lock").read_text().split()[0]), signal.SIGKILL)
        if end in ("skopeo killed", "registry gone"):
            last = json.loads(answer.read().splitlines()[-1])
            assert ("skopeo was killed" in last["error"]) is (end == "skopeo killed")
    if end != "client gone":  # which is enough
        line.cut()
    wait_until(lambda: not skopeo_of(there))
    line.cut()
    if end == "engine killed":
        there.layerfs("prune", "--force")
    wait_until(there.is_clean)
    assert there.images() == before
    if end in ("client gone", "skopeo killed"):
        assert there.pull(name).status == 200


@pytest.mark.parametrize("size", [2, 5])  # the download does not fit, or what is unpacked does not
def test_a_pull_that_does_not_fit(here: Store, registry: Registry, layerfs: Layerfs, size: int) -> None:
    name = f"{registry.host}/large/x{size}"
    (here.mnt / "zeros").write_bytes(os.urandom(1 << 20) * 4)
    layerfs.ok("commit", "m", f"{name}:1")
    assert here.push(name, tag="1").lines()[-1]["aux"]
    directory = layerfs.directory / "full"
    (directory / "store").mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=700", "tmpfs", directory / "store"],
        check=True,
        timeout=10,
    )
    other = Layerfs(directory)
    try:
        api = engine(other)
        answer = api.ask("POST", "/images/create", fromImage=name, tag="1")
        assert answer.status == 200
        assert "no space left" in answer.lines()[-1]["error"].lower(), answer
        assert api.ask("GET", "/images/json").json() == []
        scratch = other.root / "tmp"
        assert not scratch.exists() or list(scratch.iterdir()) == []
        other.check_store()
    finally:
        other.end()


def skopeo_of(store: Store) -> list[int]:
    """Return the pids of skopeo."""
    found = []
    for pid in store.layerfs.processes():
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "skopeo\n":
                found.append(pid)
        except OSError:
            continue
    return found


def test_a_push_whose_client_goes(here: Store, short_lived: Registry) -> None:
    line = Line(short_lived, 100)
    here.tagged("made", f"{line.host}/gone/x:1")
    with here.api.asking("POST", f"/images/{line.host}/gone/x/push", tag="1") as answer:
        assert b"The push refers to" in answer.readline()
        assert line.stalled.wait(20)
    wait_until(lambda: not skopeo_of(here))
    wait_until(here.is_clean)
    line.cut()


def archive(**files: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_import(here: Store) -> None:
    data = archive(hello=b"hello" * 100_000)
    answer = here.api.ask(
        "POST", "/images/create", data, fromSrc="-", repo="imported", tag="2", message="By hand",
        changes=["ENV A=1", 'CMD ["/hello"]'],
    )  # fmt: skip
    image = answer.lines()[-1]["status"]
    about = here.api.ask("GET", "/images/imported:2/json").json()
    assert (about["Id"], about["Comment"]) == (image, "By hand")
    assert (about["Config"]["Env"], about["Config"]["Cmd"]) == (["A=1"], ["/hello"])
    unnamed = here.api.ask("POST", "/images/create", iter([data[:100], data[100:]]), fromSrc="-")
    assert here.api.ask("GET", f"/images/{unnamed.lines()[-1]['status']}/json").json()["RepoTags"] == []
    before = here.images()
    for body, parameters, status, said in (
        (b"garbage" * 1000, {}, 400, "not a tar archive"),
        (data[:200], {}, 400, "damaged"),
        (data, {"repo": "BAD"}, 400, "invalid reference"),
        (data, {"tag": "1"}, 400, "needs a repository"),
        (data, {"changes": ["NONSENSE x"]}, 400, "NONSENSE"),
        (data, {"platform": "windows/amd64"}, 400, "not for windows/amd64"),
    ):
        refused = here.api.ask("POST", "/images/create", body, fromSrc="-", **parameters)
        assert (refused.status, said in refused.message()) == (status, True), refused
    assert here.images() == before


def here_name(name: str) -> str:
    """Return the repository of a name."""
    return name.rpartition(":")[0]


@pytest.mark.docker
def test_the_docker_command(here: Store, there: Store, guarded: Registry) -> None:
    """Login, pull, push and import by docker itself, with the words that people know."""

    def docker(*words: str, store: Store = there, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        config = here.layerfs.directory / "docker"
        config.mkdir(exist_ok=True)
        return subprocess.run(
            ["docker", "--config", config, "-H", f"unix://{store.api.path}", *words],
            input=stdin, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    name = f"{guarded.host}/by/docker:1"
    assert b"docker login" in docker("pull", name).stderr
    wrong = docker("login", "-u", USER, "--password-stdin", guarded.host, stdin=b"wrong")
    assert (wrong.returncode, b"401 Unauthorized" in wrong.stderr) == (1, True)
    done = docker("login", "-u", USER, "--password-stdin", guarded.host, stdin=PASSWORD.encode())
    assert (done.returncode, b"Login Succeeded" in done.stdout) == (0, True), done.stderr
    missing = docker("pull", name)
    assert (missing.returncode, b"not found: manifest unknown" in missing.stderr) == (1, True)
    here.tagged("made", name)
    pushed = docker("push", name, store=here)
    assert (pushed.returncode, b"1: digest: sha256:" in pushed.stdout) == (0, True), pushed.stderr
    pulled = docker("pull", name)
    assert (pulled.returncode, pulled.stdout.splitlines()[-1].decode()) == (0, name), pulled.stderr
    assert f"Status: Downloaded newer image for {name}".encode() in pulled.stdout
    listed = docker("images", "--digests", "--format", "{{.Digest}}", name.rpartition(":")[0])
    (row,) = listed.stdout.decode().split()  # a reference with a tag finds no digest, as with dockerd
    assert f"1: digest: {row} ".encode() in pushed.stdout
    (found,) = json.loads(docker("inspect", f"{here_name(name)}@{row}").stdout)
    assert found["RepoDigests"] == [f"{here_name(name)}@{row}"]
    again = docker("pull", f"{here_name(name)}@{row}")
    assert (again.returncode, b"Image is up to date" in again.stdout) == (0, True), again.stderr
    made = docker("create", f"{here_name(name)}@{row}", "true")
    assert made.returncode == 0, made.stderr
    imported = docker("import", "-m", "By hand", "-", "imported:1", stdin=archive(x=b"x"))
    assert imported.returncode == 0, imported.stderr
    assert {name, "imported:1"} <= there.images()
    assert b"searching is not supported" in docker("search", "x").stderr
