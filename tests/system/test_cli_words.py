"""Docker's words as `layerfs` words, on real containers: with no engine, and through one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.system.containers import IMAGE, Containers, Terminal, containers

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=["in place", "engine"])
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, for the whole module; with an engine or without one."""
    with containers(tmp_path_factory.mktemp("words")) as made:
        if request.param == "in place":
            yield made
            return
        engine = made.popen("engine", stderr=subprocess.DEVNULL)
        try:
            wait_until((made.layerfs.run / "engine.sock").exists, 30)
            yield made
        finally:
            made.remove()
            engine.terminate()
            assert engine.wait(30) == 0


@pytest.fixture
def box(there: Containers) -> Iterator[str]:
    """A container that sleeps."""
    there.layerfs.ok("run", "-d", "--name", "box", "--label", "role=test", IMAGE, "sleep", "1000")
    yield "box"
    there.remove()


def inspect(there: Containers, form: str, name: str = "box") -> str:
    return there.layerfs.ok("inspect", "--format", form, name).strip()


def test_a_container_is_made_and_started_later(there: Containers, tmp_path: Path) -> None:
    ids = tmp_path / "id"
    made = there.layerfs.ok(
        "create", "--name", "made", "--cidfile", str(ids), "-e", "A=1", IMAGE, "sh", "-c", "echo $A"
    )
    assert ids.read_text() == made.strip() == inspect(there, "{{.Id}}", "made")
    assert inspect(there, "{{.State.Status}}", "made") == "created"
    assert there.layerfs.ok("start", "-a", "made") == "1"
    refused = there.layerfs.refused("create", "--cidfile", str(ids), IMAGE)
    assert "container ID file found" in refused
    there.remove("made")


def test_a_file_for_the_id_is_not_left_where_there_is_none(there: Containers, tmp_path: Path) -> None:
    there.layerfs.refused("create", "--cidfile", str(tmp_path / "id"), "--pull", "never", "nothing")
    assert not (tmp_path / "id").exists()


def test_lists_have_what_a_template_asks_for(there: Containers, box: str) -> None:
    ok = there.layerfs.ok
    short = inspect(there, "{{.Id}}")[:12]
    assert (
        ok("ps", "--format", '{{.ID}} {{.Names}} {{.State}} {{.Label "role"}}') == f"{short} box running test"
    )
    header, line = ok("ps", "--format", r"table {{.Names}}\t{{.Image}}").splitlines()
    assert (header.split(), line.split()) == (["NAMES", "IMAGE"], ["box", IMAGE])
    assert json.loads(ok("ps", "--format", "json"))["Names"] == "box"
    assert json.loads(ok("container", "ls", "--format", "{{json .}}"))["Labels"] == "role=test"
    assert ok("ps", "-q", "-f", "name=box") == f"{short}"
    assert ok("ps", "-aq", "--filter", "status=exited") == ""
    assert ok("ps", "-lq") == ok("ps", "-qn", "1") == f"{short}"
    assert "(virtual " in ok("ps", "-s")
    assert "there is no field Nothing" in there.layerfs.refused("ps", "--format", "{{.Nothing}}", status=2)
    assert ok("image", "ls", "--format", "{{.Repository}}:{{.Tag}}") == f"{IMAGE}"


def test_inspecting_by_kind_and_format(there: Containers, box: str) -> None:
    assert inspect(there, "{{.State.Status}} {{len .Mounts}}") == "running 0"
    assert json.loads(inspect(there, "{{json .Config.Labels}}"))["role"] == "test"
    assert inspect(there, "{{range .Config.Env}}{{println .}}{{end}}").startswith("GREETING=hello")
    for kind, name in (("image", "box"), ("container", IMAGE)):
        done = there.layerfs(kind, "inspect", name)
        assert (done.returncode, done.stdout) == (1, "[]\n")
        assert done.stderr == f"layerfs: no such {kind}: {name}\n"
    assert "unclosed action" in there.layerfs.refused("inspect", "-f", "{{.Id", "box", status=2)


def test_pausing_and_going_on(there: Containers, box: str) -> None:
    assert there.layerfs.ok("pause", box) == "box"
    assert inspect(there, "{{.State.Status}}") == "paused"
    assert "is already paused" in there.layerfs.refused("pause", box)
    assert there.layerfs.ok("unpause", box) == "box"
    assert inspect(there, "{{.State.Status}}") == "running"


def test_a_container_that_runs_gets_another_name_and_another_life(there: Containers, box: str) -> None:
    before = inspect(there, "{{.State.Pid}}")
    there.layerfs.ok("exec", box, "touch", "/root/mine")
    there.layerfs.ok("rename", box, "other")
    there.layerfs.ok("restart", "-t", "0", "other")
    assert inspect(there, "{{.State.Pid}}", "other") != before
    assert there.layerfs.ok("exec", "other", "ls", "/root") == "mine"
    there.layerfs.ok("commit", "other", "renamed")
    there.layerfs.ok("rmi", "renamed")
    there.remove("other")
    assert not list(there.layerfs.run.glob("*.lock"))[1:]  # the engine's own


def test_limits_are_changed_while_it_runs(there: Containers, box: str) -> None:
    assert (
        there.layerfs.ok("update", "--memory", "64m", "--memory-swap", "-1", "--restart", "always", box)
        == "box"
    )
    assert inspect(there, "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}") == f"{64 << 20} always"
    assert "say what is to be changed" in there.layerfs.refused("update", box, status=2)


def test_processes_and_what_they_use(there: Containers, box: str) -> None:
    lines = there.layerfs.ok("top", box, "-o", "pid,args").splitlines()
    assert lines[0].split() == ["PID", "COMMAND"]
    assert lines[1].endswith("sleep 1000")
    header, line = there.layerfs.ok("stats", "--no-stream").splitlines()
    assert header.startswith("CONTAINER ID")
    assert line.split()[1] == "box"
    assert there.layerfs.ok("stats", "--no-stream", "--format", "{{.Name}}: {{.PIDs}}", box) == "box: 1"


def test_attaching_and_leaving_by_keys_of_ones_own(there: Containers) -> None:
    there.layerfs.ok("run", "-tid", "--name", "shell", IMAGE)
    with Terminal(there, ["attach", "--detach-keys", "ctrl-a,x", "shell"]) as terminal:
        terminal.type("echo $((6*7))\n")
        terminal.wait_for("42")
        terminal.type("\x01x")
        assert terminal.end() == 0
    assert inspect(there, "{{.State.Running}}", "shell") == "true"
    with Terminal(there, ["attach", "shell"]) as terminal:
        terminal.type("exit 3\n")
        assert terminal.end() == 3
    assert "cannot attach to a stopped container" in there.layerfs.refused("attach", "shell")
    there.remove()


def test_exec_with_files_and_rights(there: Containers, box: str, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nA=1\nB=2\n")
    shown = there.layerfs.ok("exec", "--env-file", str(file), "-e", "B=3", box, "sh", "-c", "echo $A$B")
    assert shown == "13"
    rights = "grep CapEff /proc/self/status"
    few, all_ = (
        int(there.layerfs.ok("exec", *words, box, "sh", "-c", rights).split()[1], 16)
        for words in ((), ("--privileged",))
    )
    assert few != all_
    assert few | all_ == all_


def test_logs_of_a_time(there: Containers) -> None:
    there.layerfs.ok("run", "--name", "talks", IMAGE, "sh", "-c", "echo one; sleep 2; echo two")
    first, _ = (line.split() for line in there.layerfs.ok("logs", "-t", "talks").splitlines())
    later = there.layerfs.ok("logs", "--since", first[0].replace("+00:00", "Z"), "talks").splitlines()
    assert later[-1] == "two"
    assert there.layerfs.ok("logs", "--until", "10m", "talks") == ""
    assert there.layerfs.ok("logs", "--since", "10m", "--tail", "1", "talks") == "two"
    assert "invalid time" in there.layerfs.refused("logs", "--since", "yesterday", "talks", status=2)
    there.remove()


def test_events_as_they_happen(there: Containers) -> None:
    with there.popen("events", "--format", "{{.Type}} {{.Action}}", stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        try:
            seen: list[bytes] = []
            there.layerfs.ok("run", "--rm", IMAGE, "true")
            while b"container destroy\n" not in seen:
                seen.append(events.stdout.readline())
        finally:
            events.kill()
    past = there.layerfs.ok("events", "--since", "10m", "--until", "0s", "-f", "event=die").splitlines()
    assert "exitCode=0" in past[-1]
    assert " container die " in past[-1]


def test_a_mountpoint_stands_for_its_mount(there: Containers, tmp_path: Path) -> None:
    layerfs = there.layerfs
    (tmp_path / "mnt").mkdir()
    layerfs.ok("mount", "--image", IMAGE, "--name", "base", str(tmp_path / "mnt"))
    (tmp_path / "mnt/new").write_text("1")

    def here(*words: str) -> subprocess.CompletedProcess[str]:
        done = layerfs(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    assert here("diff", "mnt").stdout == here("diff", "./mnt").stdout == "A /new\n"
    assert here("diff", str(tmp_path / "mnt/")).stdout == here("diff", "/base").stdout == "A /new\n"
    assert here("inspect", "-f", "{{.Name}}", "../" + tmp_path.name + "/mnt").stdout == "/base\n"
    assert here("status", "mnt").stdout.startswith("Name: base\n")
    here("commit", "mnt", "from-directory")
    assert "no mount of this store is mounted on ./none" in layerfs("diff", "./none", cwd=tmp_path).stderr
    assert here("rm", "-f", "mnt").stdout.strip()
    layerfs.ok("rmi", "from-directory")
    assert there.names() == []


def test_what_the_machine_and_the_store_are(there: Containers) -> None:
    versions: dict[str, Any] = json.loads(there.layerfs.ok("version", "--format", "json"))
    assert versions["Client"]["Version"] == versions["Server"]["Version"]
    assert there.layerfs.ok("version", "-f", "{{.Server.Os}}") == "linux"
    assert there.layerfs.ok("system", "info", "--format", "{{.Driver}}") == "layerfs"
    assert "Storage Driver: layerfs" in there.layerfs.ok("info")
    kinds = there.layerfs.ok("system", "df", "--format", "{{.Type}}").splitlines()
    assert kinds == ["Images", "Mounts", "Layers", "Build Cache"]


def test_pruning_by_kind(there: Containers) -> None:
    there.layerfs.ok("run", "--name", "done", IMAGE, "true")
    there.layerfs.ok("commit", "done")
    assert "Deleted Mounts:" in there.layerfs.ok("container", "prune", "-f")
    assert "deleted: sha256:" in there.layerfs.ok("image", "prune", "--force")
    assert there.layerfs.ok("system", "prune", "-f") == "Total reclaimed space: 0B"
    assert there.names() == []
