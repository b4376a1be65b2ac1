"""Builds that fail, are given up or killed: what is said, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, fill, wait_until
from tests.system.apirequests import engine
from tests.system.builds import HEAD, Builds, builds
from tests.system.containers import containers

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """Builds by an engine."""
    with builds(tmp_path_factory.mktemp("failures")) as (made, _):
        yield made
        made.layerfs.check_store()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Builds]:
    """Builds in a store of the test's own, without an engine."""
    with builds(tmp_path, served=False) as (made, _):
        yield made
        made.layerfs.check_store()


def test_a_command_that_fails_says_where_how_and_what_it_wrote_last(served: Builds) -> None:
    done = served.run(HEAD + "RUN true\nRUN echo before; echo problem >&2; exit 7\nRUN echo never\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "layerfs: Dockerfile:3: The command '/bin/sh -c echo before; echo problem >&2; exit 7' "
        "returned a non-zero code: 7"
    )
    shown = done.stderr.partition("------")[2].partition("------")[0].splitlines()
    assert shown[1].startswith(" > [3/4] RUN echo before")
    assert sorted(shown[2:]) == ["before", "problem"]
    assert "never" not in done.stderr.partition("------")[2]
    assert served.left() == []


@pytest.mark.parametrize(
    ("dockerfile", "line"),
    [
        ("RUN true\n", "Dockerfile:1:1: expected FROM"),
        (HEAD + "RUNX true\n", "Dockerfile:2:1: RUNX is not an instruction: did you mean RUN?"),
        ("FROM nosuchstage.invalid/x\n", "nosuchstage.invalid"),
        (
            f"{HEAD.strip()} AS a\nCOPY --from=later / /\n{HEAD.strip()} AS later\nFROM a\n",
            "stage 'later' comes only later",
        ),
        (HEAD + "COPY missing /\n", "missing"),
        (HEAD + "COPY ../outside /\n", "outside"),
        (HEAD + "USER nobody-here\nRUN true\n", "unable to find user nobody-here"),
        (HEAD + 'RUN ["/no/such"]\n', "returned a non-zero code: 127"),
        (HEAD + "RUN sh -c 'kill -9 $$'; exit $?\n", "returned a non-zero code: 137"),
        (HEAD + "RUN --security=insecure true\n", "insecure"),
        (HEAD + "RUN --network=host true\n", "Dockerfile:2: RUN --network=host: this build may not use"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(served: Builds, dockerfile: str, line: str) -> None:
    assert line in served.fails(dockerfile)


def test_the_network_of_the_host_is_for_a_dockerfile_that_may_have_it(served: Builds) -> None:
    mine = os.readlink("/proc/self/ns/net")
    dockerfile = (
        HEAD + "RUN --network=host readlink /proc/self/ns/net\nRUN echo not $(readlink /proc/self/ns/net)\n"
    )
    log = served.ok(dockerfile, "--allow", "network.host").log
    assert f" {mine}\n" in log
    assert f"not {mine}" not in log
    line = served.fails(HEAD + "RUN true\n", "--allow", "security.insecure")
    assert line == "--allow security.insecure: only network.host can be allowed"


def test_a_target_that_there_is_not(served: Builds) -> None:
    assert "target stage 'x' could not be found" in served.fails(HEAD, "--target", "x")


def test_daemons_of_a_command_end_with_it(served: Builds) -> None:
    begun = time.monotonic()
    built = served.ok(
        HEAD + "RUN (sleep 987 & sleep 987 </dev/null >/dev/null 2>&1 &) ; sh -c 'sleep 987 &'; echo done\n"
    )
    assert time.monotonic() - begun < 30
    assert "done" in built.log
    found = subprocess.run(["pgrep", "-f", "^sleep 987$"], capture_output=True, check=False)
    assert found.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["engine", "place"])
def test_a_build_ends_when_its_client_is_interrupted(
    request: pytest.FixtureRequest, number: int, where: str
) -> None:
    made: Builds = request.getfixturevalue("served" if where == "engine" else "own")
    with _running(made, HEAD + "RUN echo started; touch /x; sleep 986\n") as process:
        process.send_signal(number)
        assert process.wait(20) == 1
    wait_until(lambda: made.left() == [], 20)
    assert _sleepers("986") == []
    made.ok(HEAD + "RUN echo after\n")


def test_a_build_ends_when_its_client_is_killed(served: Builds) -> None:
    with _running(served, HEAD + "RUN echo started; sleep 985\n") as process:
        process.kill()
        process.wait(20)
    wait_until(lambda: served.left() == [], 20)
    assert _sleepers("985") == []


def test_a_command_whose_runtime_is_killed_ends_with_it(served: Builds) -> None:
    with _running(served, HEAD + "RUN echo started; sleep 981\n") as process:
        (bundle,) = served.layerfs.run.glob("builds/*/private/bundles/*")
        found = subprocess.run(
            ["pgrep", "-f", f"run --bundle {bundle} "], capture_output=True, text=True, check=True
        )
        os.kill(int(found.stdout), signal.SIGKILL)
        said = process.communicate(timeout=30)[1].decode()
    assert "the OCI runtime of the command was killed by signal 9" in said
    assert _sleepers("981") == []
    assert served.left() == []


def test_a_stage_whose_filesystem_is_killed_fails_and_leaves_nothing(served: Builds) -> None:
    command = "echo started; while ! test -e /go; do sleep 0.1 || exit 3; done"
    with _running(served, HEAD + f"RUN {command}\nRUN true\n") as process:
        (place,) = served.layerfs.run.glob("builds/*/mounts/*")
        served.layerfs.kill(place.name)
        said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("layerfs: ")
    assert served.left() == []


class _running:
    """A build that goes on, once its command has written "started"."""

    def __init__(self, made: Builds, dockerfile: str, *options: str) -> None:
        self._words = ["build", "--network", "none", *options, str(made.context(dockerfile))]
        self._made = made

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = self._made.containers.popen(*self._words, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.strip().endswith(b" started"):
                break
        return self._process

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        assert self._process.stderr is not None
        self._process.stderr.close()


def _sleepers(seconds: str) -> list[str]:
    found = subprocess.run(["pgrep", "-f", f"^sleep {seconds}$"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def test_a_killed_build_is_cleared_away_by_prune(own: Builds) -> None:
    with _running(own, HEAD + "RUN touch /x\nRUN echo started; sleep 983\nRUN true\n") as process:
        process.kill()
        process.wait(20)
    assert own.left() != []
    assert "cleared away after the build" in own.layerfs.ok("prune", "-f")
    assert own.left() == []
    assert _sleepers("983") == []


def test_a_killed_build_is_cleared_away_by_the_next(own: Builds) -> None:
    with _running(own, HEAD + "RUN touch /x\nRUN echo started; sleep 984\n") as process:
        process.kill()
        process.wait(20)
    assert own.left() != []
    assert own.ok(HEAD + "RUN touch /x\nRUN echo next\n").cached == ["[2/3] RUN touch /x"]
    assert _sleepers("984") == []


@pytest.mark.parametrize(
    ("delay", "network"),
    [*((delay, "none") for delay in (0.0, 0.15, 0.3, 0.5, 0.9, 1.4)), (0.6, "bridge"), (1.2, "bridge")],
)
def test_an_engine_that_is_killed_leaves_nothing_for_the_next(
    tmp_path: Path, delay: float, network: str
) -> None:
    dockerfile = (
        f"{HEAD.strip()} AS one\nCOPY . /files\nRUN echo 1 > /1\nRUN echo 2 > /2\n"
        "RUN --mount=type=cache,target=/c touch /c/x\n"
        + HEAD
        + "WORKDIR /w\nRUN echo 3 > /3\nCOPY --from=one /files /files\nRUN echo 4 > /4\n"
    )
    with containers(tmp_path) as there:
        made = Builds(there)
        engine(there.layerfs)
        context = made.context(dockerfile, {f"f{number}": "x" * 1000 for number in range(50)})
        client = there.popen("build", "--network", network, str(context), stderr=subprocess.DEVNULL)
        time.sleep(delay)
        pid = int((there.layerfs.run / "engine.lock").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        client.wait(PATIENCE)
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))
        engine(there.layerfs)
        assert made.left() == []
        assert made.layerfs.ok("fsck", "--contents").endswith("clean")
        made.ok(dockerfile, files={f"f{number}": "x" * 1000 for number in range(50)})
        there.layerfs.expect_log(r"WARNING layerfs\.engine", r"killed")
        made.layerfs.check_store()


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_full_disk(small: Path) -> None:
    with containers(small) as there:
        made = Builds(there)
        made.ok(HEAD + "RUN echo 1 > /1\n")
        ballast = fill(small, leave=3 << 20)
        line = made.fails(HEAD + "RUN dd if=/dev/zero of=/big bs=1M count=64\n")
        assert "returned a non-zero code" in line or "no space left" in line
        ballast.unlink()
        made.ok(HEAD + "RUN echo 1 > /1\nRUN echo 2 > /2\n")
        there.layerfs.expect_log("No space left|full|ENOSPC")
        there.layerfs.check_store()


def test_of_two_builds_of_one_tag_the_last_has_it(served: Builds) -> None:
    contexts = [served.context(HEAD + f"RUN sleep {n}; echo {n} > /n\n") for n in (1, 2)]
    running = [
        served.containers.popen(
            "build", "--network", "none", "-q", "-t", "both", str(context), stdout=subprocess.PIPE
        )
        for context in contexts
    ]
    images = [process.communicate(timeout=PATIENCE)[0].decode().strip() for process in running]
    assert all(image.startswith("sha256:") for image in images)
    assert served.inspect("both")["Id"] in images
    assert served.output("both", "cat", "/n").strip() in ("1", "2")
    assert served.left() == []


def test_debug_opens_a_shell_where_a_command_failed(served: Builds) -> None:
    context = served.context(HEAD + "WORKDIR /w\nENV A=b\nRUN echo half > done; exit 3\n")
    done = served.command(
        "build", "--network", "none", "--debug", str(context), stdin=b"cat done; pwd; echo $A; exit 5\n"
    )
    assert done.stdout.split() == ["half", "/w", "b"]
    assert done.returncode == 1
    assert "returned a non-zero code: 3" in done.stderr.splitlines()[-1]
    assert served.left() == []
    images = [json.loads(line) for line in served.layerfs.ok("images", "--format", "json").splitlines()]
    assert not [it for it in images if it["Tag"] == "<none>" and "failed" in str(it)]


def test_an_engine_that_ends_in_order_ends_its_builds(tmp_path: Path) -> None:
    with builds(tmp_path) as (made, _):
        with _running(made, HEAD + "RUN echo started; sleep 982\n") as process:
            pid = int((made.layerfs.run / "engine.lock").read_text().split()[0])
            os.kill(pid, signal.SIGTERM)
            assert process.wait(30) == 1
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), 30)
        assert made.left() == []
        assert _sleepers("982") == []
        made.layerfs.check_store()


def test_a_build_goes_on_after_a_checkpoint_that_nobody_waits_for(own: Builds) -> None:
    """What a command wrote before the build was killed is in its layer, or the command runs again."""
    dockerfile = HEAD + "".join(f"RUN echo {number} > /{number}\n" for number in range(12))
    context = own.context(dockerfile)
    for delay in (0.9, 1.1, 1.3):
        process = own.containers.popen("build", "--network", "none", str(context), stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait(PATIENCE)
    built = own.ok(dockerfile)
    assert built.run("sh", "-c", "cat /[0-9]*").split() == sorted(map(str, range(12)))
