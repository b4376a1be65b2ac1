"""The clients that people have, unchanged: docker's command line, and docker-py."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
import trio

from layerfs.cli import main
from layerfs.store import Store
from layerfs.store.model import Mount
from tests.unit.control_support import Running, make_tree, running

needs_docker = pytest.mark.skipif(shutil.which("docker") is None, reason="needs docker's command line client")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("LAYERFS_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with Store(tmp_path / "store") as store:
        store.import_image(
            make_tree(tmp_path / "tree"), "debian:12", message="base", changes=['CMD ["bash"]']
        )
    return tmp_path / "store"


@pytest.fixture
def mount(root: Path) -> Mount:
    with Store(root) as store:
        return store.create_mount("base-container", image=store.resolve("debian:12"))


class Docker:
    """Docker's command line on the socket of a mount."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def __call__(self, *words: str) -> str:
        """Run docker with *words*; return what it prints. It must not fail."""
        status, out, err = await self.run(*words)
        assert (status, err) == (0, "")
        return out

    async def fails(self, *words: str) -> str:
        """Run docker with *words*, which must fail; return its error."""
        status, _, err = await self.run(*words)
        assert status == 1
        return err

    async def run(self, *words: str) -> tuple[int, str, str]:
        with trio.fail_after(30):
            done = await trio.run_process(
                ["docker", "-H", f"unix://{self.socket}", *words],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        return done.returncode, done.stdout.decode(), done.stderr.decode()


def write(found: Running) -> None:
    upper = found.live.upper()
    (upper / "node").write_bytes(bytes(226_000))
    (upper / "etc").mkdir()
    (upper / "etc/motd").write_text("changed\n")


@needs_docker
@pytest.mark.docker
async def test_the_walkthrough_with_dockers_command_line(root: Path, mount: Mount) -> None:
    async with running(root, mount, "/mnt/x") as found:
        run = Docker(found.socket)
        write(found)
        assert await run("diff", "base-container") == "C /etc\nC /etc/motd\nA /node\n"
        made = await run(
            "container",
            "commit",
            "-m",
            "Add node",
            "-a",
            "Jane",
            "-c",
            'CMD ["node"]',
            "base-container",
            "node-base",
        )
        assert made.startswith("sha256:")
        assert await run("diff", "base-container") == ""
        header, top, bottom = (await run("image", "history", "node-base")).splitlines()
        assert header.split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
        assert top.startswith(made[7:19])
        assert top.endswith("226kB     Add node")
        assert bottom.endswith("3MB       base")
        listed = await run("images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}")
        assert listed == "node-base:latest 3.23MB\ndebian:12 3MB\n"
        assert await run("images", "-q", "--filter", "reference=debian:*") != ""
        (inspected,) = json.loads(await run("image", "inspect", "node-base"))
        assert (inspected["Author"], inspected["Comment"]) == ("Jane", "Add node")
        assert inspected["Config"]["Cmd"] == ["node"]
        await run("tag", "node-base", "registry:5000/team/node:1")
        assert await run("rmi", "registry:5000/team/node:1") == "Untagged: registry:5000/team/node:1\n"
        assert "(must force) - mount base-container is using" in await run.fails("rmi", "debian:12")
        assert "base-container" in await run("ps", "-a", "--format", "{{.Names}} {{.Image}} {{.Status}}")
        (inspected,) = json.loads(await run("inspect", "base-container"))
        assert inspected["State"]["Running"] is True
        assert "unmount it first" in await run.fails("rm", "base-container")
        assert await run("rm", "-f", "base-container") == "base-container\n"
        with trio.fail_after(5):
            await found.live.ended.wait()
    with Store(root) as store:
        assert store.mounts() == []
        assert len(store.images()) == 2


@needs_docker
@pytest.mark.docker
async def test_dockers_command_line_about_the_daemon(root: Path, mount: Mount) -> None:
    async with running(root, mount, "/mnt/x") as found:
        run = Docker(found.socket)
        assert "layerfs" in await run("version")
        assert "Storage Driver: layerfs" in await run("info")
        await run("system", "df", "-v")
        assert "226kB" not in await run("ps", "-s")
        write(found)
        assert "226kB (virtual 3.23MB)" in await run("ps", "-s")
        soon = str(int(time.time()) + 1)
        lines = await run("events", "--since", "10m", "--until", soon, "--filter", "type=container")
        assert " container create " in lines
        assert " container mount " in lines


@needs_docker
@pytest.mark.docker
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("image", "history", "nothing"), "no such image: nothing"),
        (("commit", "nothing"), "no such mount: nothing"),
        (("commit", "-c", "FROM x", "base-container"), "FROM is not an instruction"),
        (("diff", "nothing"), "no such mount: nothing"),
        (("events", "--until", "0s", "--filter", "color=red"), "invalid filter 'color'"),
        (("secret", "ls"), "This node is not a swarm manager"),
    ],
)
async def test_dockers_command_line_shows_errors(
    root: Path, mount: Mount, words: tuple[str, ...], error: str
) -> None:
    async with running(root, mount, "/mnt/x") as found:
        assert f"Error response from daemon: {error}" in await Docker(found.socket).fails(*words)


@needs_docker
@pytest.mark.docker
@pytest.mark.parametrize(
    "words",
    [
        ("history", "node-base"),
        ("history", "--no-trunc", "node-base"),
        ("history", "--human=false", "-q", "node-base"),
        ("images",),
        ("images", "--no-trunc", "debian"),
        ("images", "-q"),
        ("diff", "base-container"),
    ],
)
async def test_layerfs_prints_what_docker_prints(
    root: Path, mount: Mount, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(root, mount, "/mnt/x") as found:
        write(found)
        run = Docker(found.socket)
        await run("commit", "-m", "Add node", "base-container", "node-base")
        (found.live.upper() / "more").write_text("more")
        for _ in range(5):  # ages change while they are compared
            theirs = await run(*words)
            assert await trio.to_thread.run_sync(main, words) == 0
            if (ours := capsys.readouterr().out) == theirs:
                break
        assert ours == theirs


async def test_docker_py(root: Path, mount: Mount) -> None:
    async with running(root, mount, "/mnt/x") as found:
        write(found)
        with trio.fail_after(30):
            await trio.to_thread.run_sync(use_docker_py, found.socket)
            await found.live.ended.wait()
    with Store(root) as store:
        assert store.mounts() == []


def use_docker_py(socket: Path) -> None:
    client = docker.DockerClient(base_url=f"unix://{socket}")
    try:
        assert client.ping()
        assert client.version()["ApiVersion"] == "1.51"
        assert client.info()["Driver"] == "layerfs"
        container = client.containers.get("base-container")
        assert container.status == "running"
        assert container.image.tags == ["debian:12"]
        assert [change["Path"] for change in container.diff()] == ["/etc", "/etc/motd", "/node"]
        image = container.commit(
            repository="node-base",
            tag="1",
            message="Add node",
            author="Jane",
            changes='CMD ["node"]\nENV A=1',
        )
        assert image.tags == ["node-base:1"]
        assert image.attrs["Config"] == {"Cmd": ["node"], "Env": ["A=1"]}
        top, bottom = image.history()
        assert (top["Comment"], top["Size"], bottom["Comment"]) == ("Add node", 226_008, "base")
        configured = container.commit(repository="conf", conf={"Cmd": ["sh"], "Labels": {"a": "b c"}})
        assert configured.labels == {"a": "b c"}
        assert {tag for image in client.images.list() for tag in image.tags} == {
            "conf:latest",
            "debian:12",
            "node-base:1",
        }
        assert client.images.list(filters={"dangling": True}) == []
        assert image.tag("registry:5000/x/y", "2")
        client.images.remove("registry:5000/x/y:2")
        with pytest.raises(docker.errors.ImageNotFound):
            client.images.get("nothing")
        with pytest.raises(docker.errors.NotFound):
            client.containers.get("nothing")
        with pytest.raises(docker.errors.APIError, match="invalid reference format"):
            container.commit(repository="BAD")
        now = datetime.now(UTC).replace(tzinfo=None)
        past: list[dict[str, Any]] = list(
            client.events(since=now - timedelta(minutes=10), until=now + timedelta(seconds=1), decode=True)
        )
        assert "commit" in [event["Action"] for event in past]
        assert client.df()["LayersSize"] > 3_000_000
        started = time.monotonic()
        container.remove(force=True)
        assert time.monotonic() - started < 5
    finally:
        client.close()
