"""What follows the end of a container's process: an engine does it, and without one a process of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs.store import Store
from tests.conftest import Layerfs, wait_until
from tests.system.apirequests import Api, engine
from tests.system.containers import IMAGE, containers

pytestmark = pytest.mark.root


@pytest.fixture
def layerfs(tmp_path: Path) -> Iterator[Layerfs]:
    """The command line with an engine, and the image that containers are made of."""
    with containers(tmp_path) as there:
        engine(there.layerfs)
        yield there.layerfs


def inspect(layerfs: Layerfs, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(layerfs.ok("inspect", name))[0]
    return found


def programs(layerfs: Layerfs, word: str) -> list[int]:
    """Return the processes with *word* and the store of *layerfs* in their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in line and os.fsencode(layerfs.root) in line:
                found.append(int(entry.name))
    return found


def kill_engine(layerfs: Layerfs) -> None:
    os.kill(int((layerfs.run / "engine.lock").read_text().split()[0]), signal.SIGKILL)


def restarts(layerfs: Layerfs) -> int:
    return int(inspect(layerfs, "box")["RestartCount"])


def test_an_engine_clears_away_after_a_container_that_nobody_waits_for(layerfs: Layerfs) -> None:
    layerfs.ok("run", "-d", "--rm", "--network=none", "--name", "box", IMAGE, "true")
    wait_until(lambda: layerfs.ok("ps", "-aq") == "")
    wait_until(lambda: not list((layerfs.run / "containers").iterdir()))


def test_an_engine_starts_again_what_its_policy_says(layerfs: Layerfs) -> None:
    layerfs.ok(
        "run", "-d", "--network=none", "--name", "box", "--restart", "always", IMAGE, "sh", "-c", "exit 1"
    )
    wait_until(lambda: restarts(layerfs) >= 4)  # the pauses are longer than a second from here on
    wait_until(lambda: bool(programs(layerfs, "exited.py")))
    assert programs(layerfs, "layerfs.engine.finish") == []
    layerfs.ok("rm", "-f", "box")
    wait_until(lambda: not programs(layerfs, "exited.py"))


def test_restarts_go_on_when_the_engine_is_killed_between_two(layerfs: Layerfs) -> None:
    layerfs.ok(
        "run", "-d", "--network=none", "--name", "box", "--restart", "always", IMAGE, "sh", "-c", "exit 1"
    )
    wait_until(lambda: restarts(layerfs) >= 3)
    kill_engine(layerfs)
    before = restarts(layerfs)
    wait_until(lambda: restarts(layerfs) >= before + 2)
    layerfs.ok("rm", "-f", "box")
    wait_until(lambda: not programs(layerfs, "layerfs.engine.finish"))


def test_a_container_that_outlives_the_engine_is_cleared_away(layerfs: Layerfs) -> None:
    layerfs.ok("run", "-d", "--rm", "--network=none", "--name", "box", IMAGE, "sleep", "600")
    kill_engine(layerfs)
    os.kill(inspect(layerfs, "box")["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: layerfs.ok("ps", "-aq") == "")
    wait_until(lambda: not list((layerfs.run / "containers").iterdir()))


def in_a_pause(layerfs: Layerfs, policy: str = "always") -> None:
    """Have a container "box" that ends at once, and pauses for some seconds before it is started again."""
    layerfs.ok(
        "run",
        "-d",
        "--network=none",
        "--name",
        "box",
        "--restart",
        policy,
        IMAGE,
        "sh",
        "-c",
        "sleep 1; exit 1",
    )
    with Store(layerfs.root) as store:  # as if it had ended so often before
        store.update_container(store.mount("box").id, None, RestartCount=5)
    wait_until(lambda: inspect(layerfs, "box")["State"]["Status"] == "restarting")


def test_a_container_is_restarted_though_what_asks_for_it_was_killed(layerfs: Layerfs) -> None:
    in_a_pause(layerfs)
    wait_until(lambda: bool(programs(layerfs, "exited.py")))
    for pid in programs(layerfs, "exited.py"):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: restarts(layerfs) == 6)
    layerfs.ok("rm", "-f", "box")


def test_an_engine_takes_up_a_restart_that_nobody_waits_for(layerfs: Layerfs) -> None:
    """And counts it, as each of them does, once."""
    in_a_pause(layerfs)
    kill_engine(layerfs)
    wait_until(lambda: bool(programs(layerfs, "layerfs.engine.finish")))
    for pid in programs(layerfs, "layerfs.engine.finish"):
        os.kill(pid, signal.SIGKILL)
    engine(layerfs)
    wait_until(lambda: inspect(layerfs, "box")["State"]["Status"] == "running", 20)
    assert restarts(layerfs) == 6
    layerfs.ok("rm", "-f", "box")


def test_restarts_are_counted_once_though_two_see_to_them(layerfs: Layerfs) -> None:
    in_a_pause(layerfs)
    kill_engine(layerfs)
    wait_until(lambda: bool(programs(layerfs, "layerfs.engine.finish")))
    engine(layerfs)
    wait_until(lambda: inspect(layerfs, "box")["State"]["Status"] == "running", 20)
    assert restarts(layerfs) == 6
    layerfs.ok("rm", "-f", "box")


def test_starts_that_fail_count_as_restarts(layerfs: Layerfs) -> None:
    layerfs.expect_log("")
    source = layerfs.directory / "source"
    source.mkdir()
    layerfs.ok(
        "run", "-d", "--network=none", "--name", "box", "--restart", "on-failure:2",
        "--mount", f"type=bind,source={source},target=/srv", IMAGE, "sh", "-c", "sleep 1; exit 1",
    )  # fmt: skip
    source.rmdir()  # a start fails from here on
    wait_until(lambda: inspect(layerfs, "box")["State"]["Status"] == "exited", 20)
    assert restarts(layerfs) == 2
    assert inspect(layerfs, "box")["State"]["Restarting"] is False


@pytest.mark.parametrize("id", ["..", "/precious", "../../precious"])
def test_what_is_no_id_is_refused_and_nothing_is_cleared_away(layerfs: Layerfs, id: str) -> None:
    """Who clears away after a container removes what is in its directory."""
    precious = layerfs.directory / "precious"
    precious.mkdir(mode=0o700)
    (precious / "file").touch()
    if id.startswith("/"):
        id = str(precious)
    before = sorted(path.name for path in layerfs.run.iterdir())
    answer = Api(layerfs.run / "engine.sock").ask("POST", f"/layerfs/containers/{id}/exited")
    assert (answer.status, answer.message()) == (400, f"invalid container id {id!r}: give the full id")
    assert [path.name for path in precious.iterdir()] == ["file"]
    assert sorted(path.name for path in layerfs.run.iterdir()) == before
