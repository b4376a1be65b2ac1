"""Docker's own clients, unchanged, on the socket of a real mount: the command line and docker-py."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

from tests.conftest import Layerfs, mounts_below, wait_until

pytestmark = [pytest.mark.root, pytest.mark.docker]
NAME = "base-container"


class Served:
    """A mounted image, and the URL of its socket."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        tree, self.mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
        tree.mkdir()
        self.mnt.mkdir()
        (tree / "file").write_text("content")
        (tree / "gone").touch()
        self.base = layerfs.ok("import", tree, "debian:12")
        layerfs.ok("mount", "--image", "debian:12", "--name", NAME, self.mnt)
        self.url = f"unix://{layerfs.socket(NAME)}"


@pytest.fixture
def served(layerfs: Layerfs) -> Served:
    """A mounted image."""
    return Served(layerfs)


class Cli:
    """The docker command line, with a configuration of its own, on a mount's socket."""

    def __init__(self, served: Served) -> None:
        config = served.layerfs.directory / "docker"
        config.mkdir()
        self.words = ["docker", "--config", str(config), "-H", served.url]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `docker ARGUMENTS`."""
        return subprocess.run(
            [*self.words, *arguments], capture_output=True, text=True, timeout=30, check=False
        )

    def ok(self, *arguments: str) -> str:
        """Run `docker ARGUMENTS`, which must work; return its output."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        return done.stdout.rstrip("\n")


@pytest.fixture
def cli(served: Served) -> Cli:
    """The docker command line."""
    if shutil.which("docker") is None:
        pytest.skip("the docker command line client is not installed")
    return Cli(served)


class TestCommandLine:
    """`docker -H unix://SOCKET ...`."""

    def test_commit_and_history(self, served: Served, cli: Cli) -> None:
        (served.mnt / "new").write_text("new" * 100)
        image = cli.ok(
            "container", "commit", "-m", "Add node", "-a", "Jane Roe", "-c", 'CMD ["node"]',
            "-c", "ENV A=1", NAME, "node-base",
        )  # fmt: skip
        assert image.startswith("sha256:")
        header, *rows = cli.ok("image", "history", "node-base").splitlines()
        assert header.split("  ")[0].strip() == "IMAGE"
        assert len(rows) == 2
        assert rows[0].startswith(image.removeprefix("sha256:")[:12])
        assert "Add node" in rows[0]
        assert "300B" in rows[0]
        assert cli.ok("history", "-q", "--no-trunc", "node-base").splitlines() == [image, served.base]
        (inspected,) = json.loads(cli.ok("image", "inspect", "node-base"))
        assert inspected["Config"]["Cmd"] == ["node"]
        assert "A=1" in inspected["Config"]["Env"]
        assert (inspected["Author"], inspected["Comment"]) == ("Jane Roe", "Add node")
        assert inspected["RepoTags"] == ["node-base:latest"]
        (served.mnt / "later").touch()
        assert cli.ok("diff", NAME) == "A /later"

    def test_images_tags_and_removal(self, served: Served, cli: Cli) -> None:
        cli.ok("commit", NAME, "node-base")
        form = "{{.Repository}}:{{.Tag}}"
        assert cli.ok("images", "--format", form).splitlines() == ["node-base:latest", "debian:12"]
        other = "registry.example:5000/a/b"
        cli.ok("tag", "node-base", f"{other}:1")
        assert cli.ok("images", "--format", form, other) == f"{other}:1"
        assert cli.ok("rmi", f"{other}:1") == f"Untagged: {other}:1"
        assert "Deleted: sha256:" in cli.ok("rmi", "node-base")
        refused = cli.run("rmi", "debian:12")
        assert refused.returncode == 1
        assert NAME in refused.stderr

    def test_diff_while_files_are_open(self, served: Served, cli: Cli) -> None:
        with (served.mnt / "open").open("wb", buffering=0) as file:
            file.write(b"x")
            (served.mnt / "file").write_text("changed")
            (served.mnt / "gone").unlink()
            assert sorted(cli.ok("diff", NAME).splitlines()) == ["A /open", "C /file", "D /gone"]

    def test_containers(self, served: Served, cli: Cli) -> None:
        assert cli.ok("ps", "--format", "{{.Names}} {{.Image}} {{.State}}") == f"{NAME} debian:12 running"
        (inspected,) = json.loads(cli.ok("inspect", NAME))
        assert inspected["Name"] == f"/{NAME}"
        assert inspected["Image"] == served.base
        assert inspected["State"]["Running"] is True
        assert inspected["State"]["Pid"] == served.layerfs.pid(NAME)
        assert cli.run("inspect", "other").returncode == 1
        assert "Server" in cli.ok("version")
        assert "Containers: 1" in cli.ok("info")

    def test_rm(self, served: Served, cli: Cli) -> None:
        refused = cli.run("rm", NAME)
        assert refused.returncode == 1
        assert served.mnt in mounts_below(served.layerfs.directory)
        assert cli.ok("rm", "-f", NAME) == NAME
        wait_until(lambda: not served.layerfs.processes())
        assert mounts_below(served.layerfs.directory) == []
        assert served.layerfs.ok("ps", "-a", "-q") == ""
        assert not served.layerfs.socket(NAME).exists()

    def test_save_and_load(self, served: Served, cli: Cli, tmp_path: Path) -> None:
        archive = tmp_path / "images.tar"
        (served.mnt / "new").write_bytes(os.urandom(3_000_000))
        cli.ok("commit", "-m", "Add node", NAME, "node-base")
        cli.ok("save", "-o", str(archive), "node-base", "debian:12")
        served.layerfs.ok("save", "node-base", "debian:12", "-o", tmp_path / "same.tar")
        assert archive.read_bytes() == (tmp_path / "same.tar").read_bytes()
        shown = ("history", "--format", "{{.CreatedBy}}|{{.Size}}|{{.Comment}}", "node-base")
        before = cli.ok(*shown)
        cli.ok("rmi", "node-base")
        layers = sorted((served.layerfs.root / "layers").iterdir())
        assert cli.ok("load", "-i", str(archive)).splitlines() == [
            "Loaded image: node-base:latest",
            "Loaded image: debian:12",
        ]
        assert sorted((served.layerfs.root / "layers").iterdir()) == layers  # the mount has kept them
        assert cli.ok(*shown) == before

    def test_save_and_load_what_is_not_there(self, served: Served, cli: Cli, tmp_path: Path) -> None:
        archive = tmp_path / "broken.tar"
        assert re.search("(?i)no such image", cli.run("save", "-o", str(archive), "other").stderr)
        cli.ok("save", "-o", str(archive), "debian:12")
        before = sorted(served.layerfs.root.rglob("*"))
        for size in (0, 700, 3000):
            os.truncate(archive, size)
            refused = cli.run("load", "-i", str(archive))
            assert refused.returncode == 1, size
            assert refused.stderr.strip()
        archive.write_bytes(os.urandom(5_000_000))
        assert cli.run("load", "-i", str(archive)).returncode == 1
        assert sorted(served.layerfs.root.rglob("*")) == before
        assert cli.ok("ps", "-q")

    def test_errors(self, served: Served, cli: Cli) -> None:
        for arguments, words in (
            (("commit", "other", "x"), "No such container|no such mount"),
            (("commit", NAME, "UPPER"), "invalid reference format"),
            (("commit", "-c", "RUN x", NAME, "x"), "RUN"),
            (("history", "other"), "(?i)no such image"),
        ):
            done = cli.run(*arguments)
            assert done.returncode != 0
            assert re.search(words, done.stderr), done.stderr


class TestDockerPy:
    """docker-py, as people's scripts use it."""

    @pytest.fixture
    def client(self, served: Served) -> Iterator[docker.DockerClient]:
        """A client of the mount's socket."""
        client = docker.DockerClient(base_url=served.url, timeout=30)
        yield client
        client.close()

    def test_commit_and_history(self, served: Served, client: docker.DockerClient) -> None:
        (served.mnt / "new").write_text("new")
        container = client.containers.get(NAME)
        image = container.commit("node-base", "v1", message="Add node", author="Jane Roe", changes="CMD node")
        assert image.tags == ["node-base:v1"]
        rows = image.history()
        assert rows[0]["Comment"] == "Add node"
        assert [row["Id"] for row in rows] == [image.id, served.base]
        assert rows[0]["Size"] == 3
        assert client.images.get("node-base:v1").attrs["Config"]["Cmd"] == ["/bin/sh", "-c", "node"]
        assert {tag for each in client.images.list() for tag in each.tags} == {"node-base:v1", "debian:12"}

    def test_containers(self, served: Served, client: docker.DockerClient) -> None:
        assert client.ping()
        (container,) = client.containers.list()
        assert (container.name, container.status) == (NAME, "running")
        (served.mnt / "gone").unlink()
        assert container.diff() == [{"Path": "/gone", "Kind": 2}]
        container.remove(force=True)
        wait_until(lambda: not served.layerfs.processes())
        assert mounts_below(served.layerfs.directory) == []

    def test_save_and_load(self, served: Served, client: docker.DockerClient) -> None:
        image = client.images.get("debian:12")
        data = b"".join(image.save(named=True))
        (loaded,) = client.images.load(data)
        assert loaded.id == image.id
        with pytest.raises(docker.errors.ImageLoadError, match="ends too early"):
            client.images.load(data[: len(data) // 2])

    def test_errors(self, client: docker.DockerClient) -> None:
        with pytest.raises(docker.errors.ImageNotFound):
            client.images.get("other")
        with pytest.raises(docker.errors.NotFound):
            client.containers.get("other")
        with pytest.raises(docker.errors.APIError, match=NAME):
            client.images.remove("debian:12")


def test_a_load_that_its_client_gives_up_leaves_nothing(served: Served, tmp_path: Path) -> None:
    layerfs = served.layerfs
    layerfs.ok("save", "debian:12", "-o", tmp_path / "image.tar")
    archive = (tmp_path / "image.tar").read_bytes()
    before = sorted(layerfs.root.rglob("*"))
    processes = set(layerfs.processes())
    for part in (0, len(archive) // 2, len(archive) - 1):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(layerfs.socket(NAME)))
            head = f"POST /v1.45/images/load HTTP/1.1\r\nHost: x\r\nContent-Length: {len(archive)}\r\n\r\n"
            client.sendall(head.encode() + archive[:part])
            wait_until(lambda: set(layerfs.processes()) > processes)
        wait_until(lambda: processes.issuperset(layerfs.processes()))
    assert sorted(layerfs.root.rglob("*")) == before
    layerfs.ok("commit", NAME, "still-there")


def test_the_socket_is_closed_to_others(served: Served) -> None:
    path, directory = served.layerfs.socket(NAME), Path(served.layerfs.run)
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
