"""testcontainers, the Python library, against the engine: what programs start for their own tests."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from tests.system.apirequests import engine
from tests.system.containers import IMAGE, containers, needs_networks

core = pytest.importorskip("testcontainers.core.container")
strategies = pytest.importorskip("testcontainers.core.wait_strategies")
networks = pytest.importorskip("testcontainers.core.network")

pytestmark = [
    pytest.mark.root,
    needs_networks,
]
SERVER = "sh -c 'mkdir /w; echo $WORD >/w/index.html; echo serving; exec busybox httpd -f -h /w -p 80'"


@pytest.fixture(scope="module", autouse=True)
def _engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An engine with an image, which testcontainers finds."""
    with containers(tmp_path_factory.mktemp("tc")) as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{engine(made.layerfs).path}")
        # Its reaper is an image of the hub's, which removes what a killed test has left.
        patch.setattr("testcontainers.core.config.testcontainers_config.ryuk_disabled", True)
        yield


def test_a_server_is_waited_for_and_goes_with_the_test(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("given\n")
    wanted = core.DockerContainer(IMAGE).with_command(SERVER).with_env("WORD", "hello").with_exposed_ports(80)
    wanted.with_volume_mapping(str(tmp_path), "/given", "ro")
    wanted.waiting_for(strategies.LogMessageWaitStrategy("serving").with_startup_timeout(20))
    with wanted as server:
        with urllib.request.urlopen(
            f"http://{server.get_container_host_ip()}:{server.get_exposed_port(80)}/"
        ) as answer:
            assert answer.read() == b"hello\n"
        found: Any = server.exec(["cat", "/given/given"])
        assert (found.exit_code, found.output) == (0, b"given\n")
        out, err = server.get_logs()
        assert (out, err) == (b"serving\n", b"")
        inner = server.get_wrapped_container()
        assert inner.status == "running"
    with pytest.raises(docker.errors.NotFound):
        inner.reload()


def test_two_containers_in_a_network_of_the_tests_own() -> None:
    with networks.Network() as network:
        server = core.DockerContainer(IMAGE, network=network, network_aliases=["web"]).with_command(SERVER)
        client = core.DockerContainer(IMAGE, network=network).with_command("sleep 100")
        with server.with_env("WORD", "inside"), client:
            words = ["sh", "-c", "until busybox wget -q -O - http://web/; do sleep 0.2; done"]
            found: Any = client.exec(words)
            assert (found.exit_code, found.output.splitlines()[-1]) == (0, b"inside")


def test_an_image_that_is_not_there_is_told_of() -> None:
    with pytest.raises(docker.errors.APIError), core.DockerContainer("127.0.0.1:9/no/such:1"):
        pass
