"""What docker-py's own integration tests found in the engine, asked by docker-py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import docker
import docker.errors
import pytest

from tests.conftest import PATIENCE, wait_until
from tests.system.apirequests import engine
from tests.system.containers import IMAGE, containers

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of an engine that has an image to run."""
    with containers(tmp_path_factory.mktemp("docker-py")) as there:
        path = engine(there.layerfs).path
        with closing(docker.DockerClient(f"unix://{path}", version="auto", timeout=int(PATIENCE))) as client:
            yield client.api


@pytest.fixture
def run(api: Any) -> Iterator[Any]:
    """Start a container and return its id; it goes with the test."""
    made = []

    def start(command: Any, **options: Any) -> str:
        host = api.create_host_config(network_mode="none", **options.pop("host", {}))
        made.append(api.create_container(IMAGE, command, host_config=host, **options)["Id"])
        api.start(made[-1])
        return str(made[-1])

    yield start
    for one in made:
        with suppress(docker.errors.NotFound):
            api.remove_container(one, force=True)


def test_a_container_has_ended_when_kill_answers(api: Any, run: Any) -> None:
    one = run(["sleep", "999"])
    api.kill(one)
    state = api.inspect_container(one)["State"]
    assert (state["Running"], state["ExitCode"]) == (False, 137)
    api.remove_container(one)


def test_what_runs_or_is_about_to_run_again_is_not_removed(api: Any, run: Any) -> None:
    running = run(["sleep", "999"])
    with pytest.raises(docker.errors.APIError, match="container is running: stop the container before"):
        api.remove_container(running)
    api.pause(running)
    with pytest.raises(docker.errors.APIError, match="paused and must be unpaused first"):
        api.remove_container(running)
    again = run(["true"], host={"restart_policy": {"Name": "always"}})
    api.wait(again)
    with pytest.raises(docker.errors.APIError, match="stop the container before removing"):
        api.remove_container(again)


def test_output_of_a_terminal_comes_in_frames_if_the_start_does_not_say_tty(api: Any, run: Any) -> None:
    one = run(["sleep", "999"])
    words = ["sh", "-c", "echo out; echo err >&2"]
    on_a_terminal, plain = api.exec_create(one, words, tty=True), api.exec_create(one, words)
    assert api.exec_start(on_a_terminal) == b"out\r\nerr\r\n"
    assert api.exec_start(plain, demux=True) == (b"out\n", b"err\n")
    assert api.exec_start(api.exec_create(one, words, tty=True), tty=True) == b"out\r\nerr\r\n"


def test_health_is_starting_from_the_first_look_on(api: Any, run: Any) -> None:
    one = run(["sleep", "999"], healthcheck={"test": ["CMD", "true"], "interval": 10**12})
    assert api.inspect_container(one)["State"]["Health"]["Status"] == "starting"


def test_a_diff_has_nothing_that_was_made_to_mount_on(api: Any, run: Any) -> None:
    one = run(["touch", "/test"])
    api.wait(one)
    assert api.diff(one) == [{"Path": "/test", "Kind": 1}]


def test_a_variable_without_a_value_is_shown_and_not_set(api: Any, run: Any) -> None:
    one = run(["sh", "-c", "echo ${GREETING-none} ${HOME-none}"], environment={"GREETING": None, "A": "1"})
    api.wait(one)
    assert "GREETING" in api.inspect_container(one)["Config"]["Env"]
    assert api.logs(one) == b"none /root\n"


def test_a_list_has_the_name_that_a_container_was_made_by(api: Any, run: Any) -> None:
    api.tag(IMAGE, "other", "latest")
    one = run(["true"])
    api.wait(one)
    assert [it["Image"] for it in api.containers(all=True) if it["Id"] == one] == [IMAGE]
    api.remove_image("other")


def test_a_load_that_fails_says_so_in_its_last_line(api: Any) -> None:
    (line,) = api.load_image(b"no archive")
    assert "archive" in line["errorDetail"]["message"]
    assert line["error"] == line["errorDetail"]["message"]


def test_a_commit_has_nothing_that_was_made_to_mount_on(api: Any, run: Any) -> None:
    one = run(["sh", "-c", "mkdir /mine; echo made; sleep 999"])
    wait_until(lambda: api.logs(one) == b"made\n")
    for running in (True, False):
        image = api.commit(one)["Id"]
        made = api.create_container(image, ["true"], host_config=api.create_host_config(network_mode="none"))
        api.get_archive(made, "/mine")
        for name in ("hosts", "hostname", "resolv.conf"):
            with pytest.raises(docker.errors.NotFound):
                api.get_archive(made, f"/etc/{name}")
        api.remove_container(made)
        hosts = api.exec_start(api.exec_create(one, ["cat", "/etc/hosts"])) if running else b"127.0.0.1"
        assert hosts.startswith(b"127.0.0.1")
        api.stop(one, timeout=0)
    api.start(one)
    assert api.exec_start(api.exec_create(one, ["cat", "/etc/hosts"])).startswith(b"127.0.0.1")


@pytest.mark.parametrize(
    ("limits", "status", "line"),
    [
        ({"Memory": 7 << 20, "MemorySwap": 7 << 20}, 409, "unable to set memory limit to 7340032"),
        ({"MemorySwap": 8 << 20}, 400, "Minimum memoryswap limit should be larger than memory limit"),
        ({"NanoCpus": 10**6}, 400, "range of CPUs is from 0.01"),
        ({"PidsLimit": 10**12}, 400, "the kernel refuses 1000000000000 for pids.max: invalid argument"),
        ({"CpuQuota": 2**62}, 400, "the kernel refuses"),
    ],
)
def test_an_update_that_cannot_be(api: Any, run: Any, limits: Any, status: int, line: str) -> None:
    words = ["sh", "-c", "dd if=/dev/zero of=/dev/shm/used bs=1M count=20; echo used; sleep 999"]
    one = run(words, host={"mem_limit": 64 << 20})
    wait_until(lambda: b"used" in api.logs(one))
    before = api.inspect_container(one)["HostConfig"]
    answer = api._post_json(api._url("/containers/{0}/update", one), data=limits)
    if status == 409 and api.info()["CgroupVersion"] == "2":
        pytest.skip("version 2 of control groups takes memory away until the limit fits")
    assert answer.status_code == status
    assert line in answer.json()["message"]
    assert "\n" not in answer.json()["message"]
    assert "/sys/fs" not in answer.json()["message"]
    assert api.inspect_container(one)["HostConfig"] == before
