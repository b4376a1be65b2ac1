"""Builds as Docker's own clients ask for them: the command line without BuildKit, and docker-py."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from tests.conftest import PATIENCE, wait_until
from tests.system.apirequests import Api
from tests.system.builds import HEAD, Builds, builds

pytestmark = [pytest.mark.root, pytest.mark.docker]


class Clients:
    """Docker's clients of an engine that builds."""

    def __init__(self, made: Builds, api: Api) -> None:
        self.made = made
        self.api = api
        self.docker = docker.DockerClient(f"unix://{api.path}", version="auto", timeout=int(PATIENCE))
        config = made.layerfs.directory / "docker"
        config.mkdir()
        self._environment = {
            **os.environ, "DOCKER_BUILDKIT": "0", "DOCKER_CONFIG": str(config), "DOCKER_HOST": f"unix://{api.path}"
        }  # fmt: skip

    def run(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run `docker WORDS`."""
        return subprocess.run(
            ["docker", *words],
            env=self._environment,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )

    def ok(self, *words: str, stdin: bytes = b"") -> str:
        """Run `docker WORDS`, which must work; return its output."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """The clients of an engine that has an image to begin with."""
    with builds(tmp_path_factory.mktemp("clients")) as (made, api):
        assert api is not None
        found = Clients(made, api)
        with closing(found.docker):
            yield found
        made.layerfs.check_store()


def _tar(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    return buffer.getvalue()


def test_docker_build_looks_as_it_does_with_docker(clients: Clients) -> None:
    context = clients.made.context(
        HEAD + "ARG A\nENV B=$A\nCOPY file /\nRUN cat /file; echo err >&2\nCMD cat /file\n",
        {"file": "hello\n", "ignored": "x", ".dockerignore": "ignored\n"},
    )
    words = ("build", "--network", "none", "--build-arg", "A=1", "-t", "mine:1", "-t", "mine:2")
    first = clients.ok(*words, str(context))
    assert re.sub(r"[0-9a-f]{12}", "ID", first.partition("\n")[2]) == (
        "Step 1/6 : FROM busybox:1\n ---> ID\nStep 2/6 : ARG A\n ---> ID\nStep 3/6 : ENV B=$A\n ---> ID\n"
        "Step 4/6 : COPY file /\n ---> ID\nStep 5/6 : RUN cat /file; echo err >&2\n"
        "hello\n\x1b[91merr\n\x1b[0m ---> ID\nStep 6/6 : CMD cat /file\n ---> ID\n"
        "Successfully built ID\nSuccessfully tagged mine:1\nSuccessfully tagged mine:2\n"
    )
    again = clients.ok(*words, str(context))
    assert again.count(" ---> Using cache\n") == 5
    assert again.splitlines()[-3] == first.splitlines()[-3]
    assert clients.ok("run", "--rm", "--network", "none", "mine:2") == "hello\n"
    quiet = clients.ok(*words, "-q", str(context)).strip()
    assert quiet == clients.ok("image", "inspect", "-f", "{{.Id}}", "mine:1").strip()
    assert clients.made.left() == []


def test_docker_build_takes_a_dockerfile_alone_and_an_archive(clients: Clients) -> None:
    alone = clients.ok("build", "--network", "none", "-", stdin=(HEAD + "RUN echo alone\n").encode())
    assert "alone\n" in alone
    archive = _tar({"sub/Dockerfile": HEAD + "COPY x /x\nRUN cat /x\n", "x": "archived\n"})
    assert "archived\n" in clients.ok(
        "build", "--network", "none", "-f", "sub/Dockerfile", "-", stdin=archive
    )


def test_docker_build_writes_the_id(clients: Clients, tmp_path: Path) -> None:
    context = clients.made.context(HEAD + "RUN true\n")
    clients.ok("build", "--network", "none", "--iidfile", str(tmp_path / "id"), "-t", "ids", str(context))
    assert (tmp_path / "id").read_text() == clients.ok("image", "inspect", "-f", "{{.Id}}", "ids").strip()


def test_docker_build_ends_with_the_code_of_the_command(clients: Clients) -> None:
    context = clients.made.context(HEAD + "RUN echo said; exit 9\n")
    done = clients.run("build", "--network", "none", str(context))
    assert done.returncode == 9
    assert b"The command '/bin/sh -c echo said; exit 9' returned a non-zero code: 9" in done.stderr
    quiet = clients.run("build", "--network", "none", "-q", str(context))
    assert quiet.returncode == 9
    assert b"said" in quiet.stdout + quiet.stderr


def test_a_dockerfile_that_cannot_be_read_is_an_error_before_there_is_an_answer(clients: Clients) -> None:
    answer = clients.api.ask("POST", "/build", _tar({"Dockerfile": "FROM x\nRUNN y\n"}))
    assert answer.status == 400
    assert answer.message() == "Dockerfile:2:1: RUNN is not an instruction: did you mean RUN?"
    answer = clients.api.ask("POST", "/build", _tar({"Dockerfile": HEAD}), t="Bad:Tag")
    assert answer.status == 400
    assert "invalid reference format" in answer.message()
    assert clients.api.ask("POST", "/build", _tar({"Dockerfile": HEAD}), version="2").status == 400
    assert clients.api.ask("POST", "/build", b"", buildargs="[1]").status == 400


def test_stages_are_shown_one_after_the_other(clients: Clients) -> None:
    context = clients.made.context(
        f"{HEAD.strip()} AS slow\nRUN sleep 0.5; echo slow\n{HEAD.strip()} AS quick\nRUN echo quick\n"
        f"{HEAD}COPY --from=slow /bin /a\nCOPY --from=quick /bin /b\n"
    )
    said = clients.ok("build", "--network", "none", "--no-cache", str(context))
    assert [line for line in said.splitlines() if line in ("slow", "quick")] == ["slow", "quick"], said
    steps = [line for line in said.splitlines() if line.startswith("Step ")]
    assert [line.split()[1] for line in steps] == [f"{number}/7" for number in range(1, 8)]


def test_docker_py_builds(clients: Clients) -> None:
    api: Any = clients.docker
    context = clients.made.context(HEAD + "ARG X\nLABEL from=file\nRUN echo $X > /x\n")
    image, log = api.images.build(
        path=str(context),
        tag="py:1",
        buildargs={"X": "value"},
        labels={"more": "label"},
        network_mode="none",
        extra_hosts={"there": "1.2.3.4"},
        shmsize=16 << 20,
        container_limits={"memory": 64 << 20},
    )
    assert "py:1" in image.tags
    assert image.labels == {"from": "file", "more": "label"}
    assert any("Successfully built" in line.get("stream", "") for line in log)
    assert api.containers.run(image, "cat /x", remove=True, network_mode="none") == b"value\n"
    with pytest.raises(docker.errors.BuildError, match="returned a non-zero code: 3"):
        api.images.build(fileobj=io.BytesIO((HEAD + "RUN exit 3\n").encode()), network_mode="none")
    with pytest.raises(docker.errors.APIError, match="has no Dockerfile"):
        api.images.build(fileobj=io.BytesIO(_tar({"x": ""})), custom_context=True)
    assert clients.made.left() == []


def test_limits_and_hosts_of_a_build_are_those_of_its_commands(clients: Clients) -> None:
    context = clients.made.context(
        HEAD
        + "RUN cat /etc/hosts; grep ' /dev/shm ' /proc/mounts\n"
        + "RUN cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max\n"
    )
    limits = ("--add-host", "there:1.2.3.4", "--shm-size", "16m", "-m", "64m")
    said = clients.ok("build", "--network", "none", *limits, str(context))
    assert "1.2.3.4\tthere\n" in said
    assert "size=16384k" in said
    assert f"{64 << 20}\n" in said


def test_a_build_has_a_network_of_its_own(clients: Clients) -> None:
    context = clients.made.context(
        HEAD + "RUN ip -4 addr show eth0 | grep inet\nRUN ip -4 addr show eth0 | grep inet\n"
        "RUN --network=none ! ip addr show eth0\n"
    )
    said = clients.ok("build", str(context))
    addresses = re.findall(r"inet ([0-9.]+)/", said)
    assert len(addresses) == 2
    assert len(set(addresses)) == 1  # one namespace for the commands of a stage
    assert clients.made.left() == []


def test_only_the_images_named_are_a_cache(clients: Clients) -> None:
    context = clients.made.context(HEAD + "ENV A=b\nRUN touch 1\nRUN touch 2\n")
    clients.ok("build", "--network", "none", "-t", "source", str(context))
    words = ("build", "--network", "none", "--cache-from")
    assert clients.ok(*words, "source", str(context)).count("Using cache") == 3
    assert clients.ok(*words, "nosuchimage", str(context)).count("Using cache") == 0


def test_a_client_that_goes_ends_its_build(clients: Clients) -> None:
    archive = _tar({"Dockerfile": HEAD + "RUN echo begun; sleep 983\n"})
    with clients.api.asking("POST", "/build", archive, networkmode="none") as answer:
        while b"begun\\n" not in (line := answer.readline()):
            assert line
    wait_until(lambda: clients.made.left() == [], 20)
    found = subprocess.run(["pgrep", "-f", "^sleep 983$"], capture_output=True, check=False)
    assert found.returncode == 1


def test_credentials_that_make_no_sense_are_refused(clients: Clients) -> None:
    header = base64.urlsafe_b64encode(json.dumps(["x"]).encode()).decode()
    answer = clients.api.ask("POST", "/build", _tar({"Dockerfile": HEAD}), {"X-Registry-Config": header})
    assert answer.status == 400
