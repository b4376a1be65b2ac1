"""Builds that nobody means well with: requests of no client, Dockerfiles of no person."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, wait_until
from tests.system.apirequests import Api
from tests.system.builds import HEAD, Builds, builds

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Builds, Api]]:
    """Builds by an engine, and the engine."""
    with builds(tmp_path_factory.mktemp("builds")) as (made, api):
        assert api is not None
        yield made, api
        made.layerfs.check_store()


@pytest.mark.parametrize(
    "fields",
    [
        *({name: value} for name in ("secrets", "ssh") for value in (3, ["a"], {"a": 1})),
        *({name: value} for name in ("directory", "archive", "url") for value in (5, ["x"], "/tmp/\0")),
        *({"directory": "/", name: 7} for name in ("dockerfile", "dockerfile_path", "dockerfile_text")),
    ],
    ids=str,
)
def test_fields_of_the_wrong_type_are_refused(served: tuple[Builds, Api], fields: dict[str, object]) -> None:
    _, api = served
    answer = api.ask("POST", "/build", json.dumps(fields).encode(), {"content-type": "application/json"})
    assert answer.status == 400
    assert "must be" in answer.message()


def test_many_stages_need_few_descriptors(tmp_path: Path) -> None:
    stages = "".join(f"FROM s{number} AS s{number + 1}\nLABEL a{number}=b\n" for number in range(200))
    with builds(tmp_path, served=False) as (alone, _):
        context = alone.context(f"{HEAD.strip()} AS s0\nRUN sleep 2\n{stages}")
        words = [*alone.layerfs.words, "build", "--network", "none", str(context)]
        done = subprocess.run(
            ["prlimit", "--nofile=256", *words],
            env=alone.layerfs.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-500:]
        assert alone.left() == []


def test_no_path_that_a_command_can_change_is_followed_for_the_next_container(
    served: tuple[Builds, Api],
) -> None:
    made, _ = served
    context = made.context(
        f"{HEAD}RUN sleep 3\n"
        "RUN cat /etc/hosts; grep -c ' /etc/' /proc/mounts\n"
        "RUN mv /etc /moved && mkdir /etc && ln -s ../moved/group /etc/hosts\n"
        "RUN ls -lL /etc/hosts; grep -c ' /moved/group \\| /etc/resolv.conf ' /proc/mounts\n"
    )
    words = [*made.layerfs.words, "build", "--network", "none", "--add-host", "here:10.1.2.3", str(context)]
    with subprocess.Popen(words, env=made.layerfs.environment, stderr=subprocess.PIPE, text=True) as process:
        bundles = made.layerfs.run / "builds"
        wait_until(lambda: len(list(bundles.glob("*/private/bundles/*/config.json"))) == 2)
        configs = sorted(
            bundles.glob("*/private/bundles/*/config.json"), key=lambda it: it.stat().st_mtime_ns
        )
        mounts = json.loads(configs[-1].read_text())["mounts"]
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert [it["destination"] for it in mounts if it["destination"].startswith("/etc")] == []
    assert "10.1.2.3\there" in said
    assert [line.split()[-1] for line in said.splitlines() if line.split()[-1:] == ["2"]] == ["2", "2"]
    assert made.left() == []
