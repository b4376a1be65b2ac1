"""docker-compose 1.29, as Debian has it, against the engine: two services, a volume, a port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.system.apirequests import Api, engine
from tests.system.containers import IMAGE, Containers, Terminal, containers, needs_networks
from tests.system.test_networks import traces

pytestmark = [
    pytest.mark.root,
    needs_networks,
    pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed"),
]
PROJECT = f"""
version: "3.8"
services:
  web:
    image: {IMAGE}
    command: sh -c 'echo starting; echo hello >/data/index.html; exec busybox httpd -f -h /data -p 80'
    ports: ["127.0.0.1::80"]
    volumes: ["data:/data", "/anonymous"]
    healthcheck: {{test: ["CMD", "ls", "/data/index.html"], interval: 1s}}
    stop_grace_period: 1s
  client:
    image: {IMAGE}
    command: sh -c 'while true; do busybox wget -q -O - http://web/ http://www/; sleep 1; done'
    volumes: ["data:/data:ro", "./:/project:ro"]
    depends_on: {{web: {{condition: service_healthy}}}}
    links: ["web:www"]
    hostname: asks
    stop_grace_period: 1s
networks: {{default: {{ipam: {{config: [{{subnet: 10.231.42.0/24}}]}}}}}}
volumes: {{data: {{}}}}
"""
BASE = ("docker-compose", "--no-ansi")


class Project:
    """A directory with a project, and docker-compose to run it."""

    def __init__(self, made: Containers, directory: Path) -> None:
        self.made = made
        self.api: Api = engine(made.layerfs)
        self.directory = directory
        (directory / "docker-compose.yml").write_text(PROJECT)
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{self.api.path}", "HOME": str(directory)}

    def compose(self, *words: str) -> str:
        """Run docker-compose, which must work; return what it prints."""
        done = subprocess.run(
            [*BASE, *words],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return the state of each container that there is."""
        filters = json.dumps({"label": ["com.docker.compose.project=project"]})
        found = self.api.ask("GET", "/containers/json", all="1", filters=filters).json()
        return {it["Labels"]["com.docker.compose.service"]: it["State"] for it in found}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project that was not started; nothing of it is left after the test."""
    directory = tmp_path / "project"
    directory.mkdir()
    with containers(tmp_path) as made:
        yield Project(made, directory)
        made.remove()
        assert traces(made) == []


def test_two_services_from_up_to_down(project: Project) -> None:
    project.compose("up", "-d")
    assert project.states() == {"web": "running", "client": "running"}
    listed = project.compose("ps")
    assert "project_web_1" in listed
    assert "Up (healthy)" in listed
    with urllib.request.urlopen(f"http://{project.compose('port', 'web', '80').strip()}/") as answer:
        assert answer.read() == b"hello\n"
    words = ("exec", "-T", "client", "sh", "-c", "hostname; cat /data/index.html; ls /project")
    assert project.compose(*words) == "asks\nhello\ndocker-compose.yml\n"
    wait_until(lambda: "hello\nhello\n" in project.compose("logs", "--no-log-prefix", "client"))
    assert "starting" in project.compose("logs", "web")
    project.compose("stop")
    assert project.states() == {"web": "exited", "client": "exited"}
    project.compose("start")
    project.compose("down", "-v")
    assert project.states() == {}
    names = [it["Name"] for it in project.api.ask("GET", "/networks").json()]
    assert sorted(names) == ["bridge", "host", "none"]
    assert not project.api.ask("GET", "/volumes").json()["Volumes"]


def test_a_service_made_anew_keeps_its_volumes(project: Project) -> None:
    project.compose("up", "-d", "web")
    project.compose("exec", "-T", "web", "sh", "-c", "echo kept >/anonymous/file")
    project.compose("up", "-d", "--force-recreate", "web")
    assert project.compose("exec", "-T", "web", "cat", "/anonymous/file") == "kept\n"
    assert project.compose(
        "run", "--rm", "-T", "--name=asks", "client", "busybox", "wget", "-q", "-O-", "http://web/"
    ) == ("hello\n")
    project.compose("up", "-d", "--scale", "client=2")
    found = project.compose("ps", "-q", "client").split()
    assert len(found) == 2
    project.compose("down", "-v")


def test_up_in_the_foreground_until_somebody_has_enough(project: Project) -> None:
    with Terminal(
        project.made, (), command=[*BASE, "up"], cwd=project.directory, env=project.environment
    ) as up:
        up.wait_for("hello")
        up.type("\x03")
        up.wait_for("Gracefully stopping...")
        assert up.end() == 0
    assert project.states() == {"web": "exited", "client": "exited"}
    project.compose("up", "-d")
    words = [*BASE, "exec", "web", "sh"]
    with Terminal(project.made, (), command=words, cwd=project.directory, env=project.environment) as inside:
        inside.wait_for("/ # ")
        inside.type("stty size; exit 7\r")
        inside.wait_for("33 101")
        assert inside.end() == 7
    project.compose("down", "-v")
