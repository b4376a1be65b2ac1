"""Containers in the control API, and the cgroup freezer."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from layerfs.container.ending import end, send
from layerfs.errors import BadRequest, Conflict
from layerfs.host.freezer import find, thaw
from layerfs.host.record import Lock, Record, born, look
from layerfs.host.rundir import RunLock
from layerfs.store import Store
from layerfs.store.model import Mount
from tests.conftest import wait_until
from tests.unit.control_support import ask, make_tree

SETTINGS = {
    "Tty": True,
    "OpenStdin": True,
    "StdinOnce": True,
    "Hostname": "box",
    "NetworkMode": "none",
    "Binds": [["/a", "/b", "ro"]],
    "AutoRemove": False,
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a container that was never started, and a run directory of the test's own."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    with Store(tmp_path / "store") as store:
        image = store.import_image(make_tree(tmp_path / "tree"), "debian:12", changes=['CMD ["image"]'])
        config = {**image.config, "Cmd": ["sh", "-c", "exit"], "Env": ["A=1"]}
        store.create_mount("box", image=image, options={"container": SETTINGS}, config=config)
    return tmp_path / "store"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def note(root: Path, **values: Any) -> Mount:
    """Note *values* about the container; return it."""
    with Store(root) as store:
        store.update_container(store.mount("box").id, "die", **values)
        return store.mount("box")


def state(root: Path) -> tuple[str, str, int, int]:
    """Return the container's state in words, for people, its exit code and its pid."""
    (listed,) = ask(root, "GET", "/containers/json", all=True)
    inspected = ask(root, "GET", "/containers/box/json")["State"]
    assert listed["State"] == inspected["Status"]
    return listed["State"], listed["Status"], inspected["ExitCode"], inspected["Pid"]


def test_what_is_known_of_it(root: Path) -> None:
    found = ask(root, "GET", "/containers/box/json")
    assert (found["Path"], found["Args"]) == ("sh", ["-c", "exit"])
    assert found["Config"]["Env"] == ["A=1"]
    assert (found["Config"]["Tty"], found["Config"]["Hostname"]) == (True, "box")
    assert found["HostConfig"]["NetworkMode"] == "none"
    assert found["HostConfig"]["Binds"] == ["/a:/b:ro"]
    assert [mount["RW"] for mount in found["Mounts"]] == [False]
    assert found["Options"] == {}


def test_a_commit_passes_its_configuration_on(root: Path) -> None:
    ask(root, "POST", "/commit", container="box", repo="made", changes="USER jane")
    config = ask(root, "GET", "/images/made/json")["Config"]
    assert config == {"Cmd": ["sh", "-c", "exit"], "Env": ["A=1"], "User": "jane"}
    assert ask(root, "GET", "/images/made/history")[0]["CreatedBy"] == "sh -c exit"


def test_its_states(root: Path, sleeper: subprocess.Popen[bytes]) -> None:
    assert state(root) == ("created", "Created", 0, 0)
    note(root, ExitCode=127)
    assert state(root) == ("created", "Created", 127, 0)
    started = datetime.now(UTC) - timedelta(minutes=10)
    mount = note(root, StartedAt=started.isoformat(), FinishedAt=None, ExitCode=0)
    assert state(root) == ("exited", "Exited (255)", 255, 0)
    with Lock(mount.id) as lock:
        lock.write(Record(sleeper.pid, born(sleeper.pid) or 0, "runc"))
    assert state(root) == ("dead", "Dead (the daemon of its files has ended)", 0, sleeper.pid)
    with RunLock("box") as daemon:
        daemon.set_pid(os.getpid())
        assert state(root) == ("running", "Up 10 minutes", 0, sleeper.pid)
    with pytest.raises(Conflict, match='cannot remove container "box": container is running'):
        ask(root, "DELETE", "/containers/box")
    sleeper.kill()
    sleeper.wait()
    note(root, FinishedAt=(datetime.now(UTC) - timedelta(hours=3)).isoformat(), ExitCode=3)
    assert state(root) == ("exited", "Exited (3) 3 hours ago", 3, 0)


def test_signals(root: Path, sleeper: subprocess.Popen[bytes]) -> None:
    with pytest.raises(Conflict, match="box is not running"):
        ask(root, "POST", "/containers/box/kill")
    with pytest.raises(BadRequest, match="invalid signal 'NOTHING'"):
        ask(root, "POST", "/containers/box/kill", signal="NOTHING")
    with Store(root) as store:
        mount = store.mount("box")
    assert not send(mount, 15)
    end(mount)
    with Lock(mount.id) as lock:
        lock.write(Record(sleeper.pid, born(sleeper.pid) or 0, "runc"))
    with pytest.raises(BadRequest, match="invalid time 'soon'"):
        ask(root, "POST", "/containers/box/stop", t="soon")
    assert sleeper.poll() is None
    ask(root, "POST", "/containers/box/kill", signal="USR1")
    assert sleeper.wait(5) == -10
    assert look(mount.id) is not None


@pytest.mark.root
@pytest.mark.parametrize("version", [1, 2])
def test_the_freezer(sleeper: subprocess.Popen[bytes], version: int) -> None:
    """On real cgroups, of whichever version this machine has."""
    mount_id = secrets.token_hex(32)
    group = _cgroup(version) / f"test-{mount_id}"
    group.mkdir()
    try:
        assert find(sleeper.pid, mount_id) is None
        (group / "cgroup.procs").write_text(str(sleeper.pid))
        freezer = find(sleeper.pid, mount_id)
        assert freezer is not None
        assert freezer.switch.parent == group
        assert not freezer.stands_still()
        freezer.freeze()
        wait_until(freezer.stands_still)
        thaw(sleeper.pid, mount_id)
        wait_until(lambda: not freezer.stands_still())
        sleeper.kill()
        sleeper.wait()
        thaw(sleeper.pid, mount_id)
        assert find(sleeper.pid, mount_id) is None
    finally:
        sleeper.kill()
        sleeper.wait()
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def _cgroup(version: int) -> Path:
    """Return where the hierarchy with a freezer is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, what = line.partition(" - ")
        kind, _, options = what.split()
        wanted = kind == "cgroup2" if version == 2 else kind == "cgroup" and "freezer" in options.split(",")
        if wanted and os.access(place.split()[4], os.W_OK):
            return Path(place.split()[4])
    pytest.skip(f"there are no cgroups of version {version} with a freezer here")
