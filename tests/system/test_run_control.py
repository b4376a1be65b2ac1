"""A container that runs, looked at and changed from outside: pause, update, top, stats."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from layerfs.container import pausing, stats, top, update
from layerfs.errors import BadRequest, Conflict, LayerfsError
from layerfs.host import cgroups
from layerfs.store import Store
from layerfs.store.model import Mount
from tests.conftest import wait_until
from tests.system.containers import IMAGE, Containers, containers

pytestmark = pytest.mark.root
UNIFIED = cgroups.unified()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, for the whole module."""
    with containers(tmp_path_factory.mktemp("control")) as made:
        yield made


@pytest.fixture
def mount(there: Containers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Mount]]:
    """A container that counts in a file, as the store knows it now; this process has its run directory."""
    monkeypatch.setenv("LAYERFS_RUN", str(there.layerfs.run))
    script = "i=0; while :; do i=$((i+1)); echo $i >/count; busybox usleep 5000; done"
    there.layerfs.ok("run", "-d", "--name", "counter", IMAGE, "sh", "-c", script)

    def now() -> Mount:
        with Store(there.layerfs.root) as store:
            return store.mount("counter")

    yield now
    there.remove()


def groups_of(there: Containers, mount: Mount) -> cgroups.Groups:
    """Return the control groups of a container that runs."""
    found = cgroups.of_container(there.inspect(mount.name)["State"]["Pid"], mount.id)
    assert found is not None
    return found


def test_a_paused_container_stands_still(there: Containers, mount: Callable[[], Mount]) -> None:
    root, container = there.layerfs.root, mount()
    count = there.directory("counter") / "rootfs/count"
    wait_until(count.exists)
    with pytest.raises(Conflict, match="is not paused"):
        pausing.unpause(root, container)
    pausing.pause(root, container)
    assert there.state("counter")[0] == "paused"
    assert there.inspect("counter")["State"]["Paused"] is True
    assert there.layerfs.ok("ps").splitlines()[1].count("(Paused)") == 1
    before = count.read_text()
    time.sleep(0.3)
    assert count.read_text() == before
    with pytest.raises(Conflict, match="already paused"):
        pausing.pause(root, container)
    there.layerfs.ok("commit", "counter", "of-a-pause")
    assert there.state("counter")[0] == "paused"  # a commit lets go on only what it has frozen
    pausing.unpause(root, container)
    wait_until(lambda: count.read_text() not in ("", before))
    assert there.state("counter")[0] == "running"
    pausing.pause(root, container)
    there.layerfs.ok("stop", "-t", "1", "counter")
    assert there.state("counter")[0] == "exited"
    with pytest.raises(Conflict, match="is not running"):
        pausing.pause(root, container)
    there.layerfs.ok("rmi", "of-a-pause")


def test_other_limits_while_it_runs(there: Containers, mount: Callable[[], Mount]) -> None:
    root, groups = there.layerfs.root, groups_of(there, mount())
    body: dict[str, Any] = {"Memory": 96 << 20, "MemorySwap": -1, "PidsLimit": 33, "NanoCpus": 700_000_000}
    assert update.update(root, mount(), {**body, "RestartPolicy": {"Name": "always"}}) == []
    assert groups.read("memory", "memory.max" if UNIFIED else "memory.limit_in_bytes") == f"{96 << 20}\n"
    assert groups.read("pids", "pids.max") == "33\n"
    if not UNIFIED:
        assert groups.read("cpu", "cpu.cfs_quota_us") == "70000\n"
    host = there.inspect("counter")["HostConfig"]
    assert {name: host[name] for name in body} == body
    assert host["RestartPolicy"] == {"Name": "always", "MaximumRetryCount": 0}

    update.update(root, mount(), {"PidsLimit": -1, "RestartPolicy": {"Name": "no"}})
    assert groups.read("pids", "pids.max") == "max\n"
    assert groups.read("memory", "memory.max" if UNIFIED else "memory.limit_in_bytes") == f"{96 << 20}\n"
    host = there.inspect("counter")["HostConfig"]
    assert (host["PidsLimit"], host["Memory"]) == (None, 96 << 20)

    with pytest.raises(Conflict, match="CPU Quota cannot be updated as NanoCPUs"):
        update.update(root, mount(), {"CpuQuota": 5000})
    with pytest.raises(BadRequest, match=r"^Memory must be a whole number"):
        update.update(root, mount(), {"Memory": "1g"})
    before = mount().container
    with pytest.raises(LayerfsError):
        update.update(root, mount(), {"CpuQuota": 0, "BlkioDeviceReadBps": [{"Path": "/no", "Rate": 1}]})
    assert mount().container == before
    there.layerfs.ok("stop", "-t", "0", "counter")
    update.update(root, mount(), {"PidsLimit": 21})
    there.layerfs.ok("start", "counter")
    assert groups_of(there, mount()).read("pids", "pids.max") == "21\n"


def test_its_processes(there: Containers, mount: Callable[[], Mount]) -> None:
    there.layerfs.ok("exec", "-d", "counter", "sleep", "987")
    wait_until(lambda: any("sleep 987" in line[-1] for line in top.top(mount())["Processes"]))
    found = top.top(mount())
    assert found["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    pid = there.inspect("counter")["State"]["Pid"]
    assert str(pid) in [line[1] for line in found["Processes"]]
    assert not any("pytest" in line[-1] for line in found["Processes"])
    aux = top.top(mount(), "aux")
    assert (aux["Titles"][0], len(aux["Processes"]) >= 2) == ("USER", True)
    assert top.top(mount(), "-eo pid,comm f")["Titles"] == ["PID", "COMMAND"]
    with pytest.raises(BadRequest, match="Couldn't find PID"):
        top.top(mount(), "-o comm")
    with pytest.raises(BadRequest, match=r"^ps: "):
        top.top(mount(), "--no-such-option")
    there.layerfs.ok("stop", "-t", "0", "counter")
    with pytest.raises(Conflict, match="is not running"):
        top.top(mount())


def test_what_it_uses(there: Containers, mount: Callable[[], Mount]) -> None:
    first = stats.sample(mount())
    time.sleep(0.5)
    second = stats.sample(mount(), first)
    used = second["cpu_stats"]["cpu_usage"]["total_usage"]
    assert 0 < first["cpu_stats"]["cpu_usage"]["total_usage"] < used < 10**11
    assert second["precpu_stats"] == first["cpu_stats"]
    assert second["cpu_stats"]["system_cpu_usage"] > first["cpu_stats"]["system_cpu_usage"]
    assert 10_000 < second["memory_stats"]["usage"] < second["memory_stats"]["limit"]
    assert 1 <= second["pids_stats"]["current"] < 10
    assert second["name"] == "/counter"
    assert "networks" not in second
    there.layerfs.ok("stop", "-t", "0", "counter")
    assert stats.sample(mount())["memory_stats"] == {}


def test_interfaces_of_a_container() -> None:
    words = [
        "unshare",
        "--net",
        "sh",
        "-c",
        "ip link add v0 type veth peer v1 && ip link set v0 up && exec sleep 100",
    ]
    process = subprocess.Popen(words)
    try:
        wait_until(lambda: "v0" in stats.networks(process.pid))
        found = stats.networks(process.pid)
        assert set(found) == {"v0", "v1"}
        assert set(found["v0"]) == {
            "rx_bytes", "rx_packets", "rx_errors", "rx_dropped",
            "tx_bytes", "tx_packets", "tx_errors", "tx_dropped",
        }  # fmt: skip
    finally:
        process.kill()
        process.wait(10)


def test_a_detached_exec_outlives_the_command_that_made_it(
    there: Containers, mount: Callable[[], Mount]
) -> None:
    there.layerfs.ok("exec", "-d", "counter", "sh", "-c", "sleep 0.5; echo >/outlived; sleep 100")
    place = there.directory("counter") / "rootfs/outlived"
    wait_until(place.exists)
    assert mount().name == "counter"
    done = there.layerfs("exec", "-d", "counter", "no-such-program")
    assert done.returncode != 0
    assert "not found" in done.stderr


@pytest.mark.timeout(120)
def test_a_container_goes_back_with_all_that_is_mounted_in_it(
    there: Containers, mount: Callable[[], Mount]
) -> None:
    count = there.directory("counter") / "rootfs/count"
    wait_until(count.exists)
    run = ("exec", "counter", "sh", "-c")
    there.layerfs.ok(*run, "echo then >/state; mkdir /d")
    there.layerfs.ok("checkpoint", "counter")
    there.layerfs.ok(
        *run, "echo now >/state; rmdir /d; echo x >/new; busybox ls /new /etc/hosts /d 2>/dev/null || :"
    )
    step, kept = there.layerfs.ok("rollback", "--pause", "counter").split()
    mounted = "test -s /etc/hosts && test -d /proc/1 && echo yes"
    seen = f"cat /state; busybox ls -d /d; test -e /new || echo no; {mounted}"
    assert there.layerfs.ok(*run, seen).split() == ["then", "/d", "no", "yes"]
    before = count.read_text()
    wait_until(lambda: count.exists() and count.read_text() not in ("", before))  # it goes on
    assert there.layerfs.ok("rollback", "counter", kept).split()[0] == kept
    assert there.layerfs.ok(*run, "cat /state /new; test -s /etc/hosts && echo yes").split() == [
        "now",
        "x",
        "yes",
    ]
    assert step != kept
    assert mount().upper is not None
