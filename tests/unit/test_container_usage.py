"""What is said of a container that runs: its processes, what it uses, and other limits for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layerfs.container import hostconfig, resources, stats, top
from layerfs.container.members import Members
from layerfs.errors import BadRequest, Conflict
from layerfs.host import cgroups
from layerfs.host.cgroups import Groups, Support

PS = """\
UID          PID    PPID  C STIME TTY          TIME CMD
root          10       1  0 10:00 ?        00:00:00 sh -c sleep 5
root          11      10  0 10:00 ?        00:00:00 evil PID 10
root          12      10  0 10:00 ?        00:00:00 sleep  5
"""


def test_lines_of_other_processes_are_left_out() -> None:
    found = top.parse(PS, [10, 12])
    assert found["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert [process[1] for process in found["Processes"]] == ["10", "12"]
    assert [process[-1] for process in found["Processes"]] == ["sh -c sleep 5", "sleep 5"]
    threads = top.parse("PID LWP\n10 -\n- 10\n11 -\n- 11\n", [10])
    assert threads["Processes"] == [["10", "-"], ["-", "10"]]
    with pytest.raises(BadRequest, match="Couldn't find PID field"):
        top.parse("CMD\nx\n", [1])


@pytest.mark.parametrize(
    "words",
    [
        "-eo args=PID",
        "-o pid,args=PID",
        "--format=args=PID",
        "o comm=PID",
        "-oargs=PID",
        "-o x=aPID",
        "a\0",
        "a\n",
        "x" * 2000,
    ],
)
def test_arguments_that_could_show_others_are_refused(words: str) -> None:
    with pytest.raises(BadRequest):
        top.words_of(words)


def test_arguments() -> None:
    assert top.words_of("") == ["-ef"]
    assert top.words_of("aux") == ["aux"]
    assert top.words_of("-o pid=PID,comm") == ["-o", "pid=PID,comm"]
    assert top.words_of("-eo pid,comm;reboot") == ["-eo", "pid,comm;reboot"]


FILES_1 = {
    "cpuacct.usage": "3000\n", "cpuacct.usage_all": "cpu user system\n0 1000 200\n1 1500 300\n",
    "cpuacct.usage_percpu": "1200 1800 \n", "cpu.stat": "nr_periods 5\nnr_throttled 2\nthrottled_time 77\n",
    "memory.usage_in_bytes": "4096\n", "memory.max_usage_in_bytes": "8192\n", "memory.failcnt": "1\n",
    "memory.limit_in_bytes": "65536\n", "memory.stat": "cache 1\ntotal_inactive_file 512\n",
    "pids.current": "3\n", "pids.max": "max\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
}  # fmt: skip
FILES_2 = {
    "cpu.stat": "usage_usec 30\nuser_usec 20\nsystem_usec 10\n"
    "nr_periods 5\nnr_throttled 2\nthrottled_usec 7\n",
    "memory.current": "4096\n", "memory.max": "max\n", "memory.stat": "anon 1\ninactive_file 512\n",
    "memory.events": "low 0\noom 4\n", "pids.current": "3\n", "pids.max": "9\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:0\n",
}  # fmt: skip


def groups(tmp_path: Path, version: int) -> Groups:
    """Return control groups with the files above."""
    files = FILES_1 if version == 1 else FILES_2
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    names = ("cpu", "cpuacct", "memory", "pids", "blkio") if version == 1 else ("",)
    return Groups(version, dict.fromkeys(names, tmp_path))


def sample(monkeypatch: pytest.MonkeyPatch, found: Groups | None, previous: Any = None) -> dict[str, Any]:
    """Return a sample of a container with these groups."""
    record = SimpleNamespace(pid=1, alive=lambda: found is not None)
    monkeypatch.setattr(stats, "look", lambda mount_id: record)
    monkeypatch.setattr(cgroups, "of_container", lambda pid, mount_id: found)
    container = {"HostConfig": {"NetworkMode": "host"}}
    mount: Any = SimpleNamespace(id="f" * 64, name="c", container=container)
    return stats.sample(mount, previous)


def test_a_sample_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sample(monkeypatch, groups(tmp_path, 1))
    usage = found["cpu_stats"]["cpu_usage"]
    assert usage == {
        "total_usage": 3000,
        "usage_in_kernelmode": 500,
        "usage_in_usermode": 2500,
        "percpu_usage": [1200, 1800],
    }
    assert found["cpu_stats"]["throttling_data"]["throttled_time"] == 77
    assert found["cpu_stats"]["system_cpu_usage"] > 0
    assert found["cpu_stats"]["online_cpus"] >= 1
    memory = found["memory_stats"]
    assert (memory["usage"], memory["limit"], memory["stats"]["total_inactive_file"]) == (4096, 65536, 512)
    assert found["pids_stats"] == {"current": 3, "limit": 2**64 - 1}
    assert found["blkio_stats"]["io_service_bytes_recursive"] == [
        {"major": 8, "minor": 0, "op": "Read", "value": 10},
        {"major": 8, "minor": 0, "op": "Write", "value": 20},
        {"major": 8, "minor": 0, "op": "Total", "value": 30},
    ]
    again = sample(monkeypatch, groups(tmp_path, 1), found)
    assert (again["precpu_stats"], again["preread"]) == (found["cpu_stats"], found["read"])


def test_a_sample_of_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sample(monkeypatch, groups(tmp_path, 2))
    assert found["cpu_stats"]["cpu_usage"] == {
        "total_usage": 30_000, "usage_in_kernelmode": 10_000, "usage_in_usermode": 20_000,
    }  # fmt: skip
    assert found["cpu_stats"]["throttling_data"] == {
        "periods": 5, "throttled_periods": 2, "throttled_time": 7000,
    }  # fmt: skip
    memory = found["memory_stats"]
    assert (memory["usage"], memory["failcnt"], memory["stats"]["inactive_file"]) == (4096, 4, 512)
    assert 0 < memory["limit"] < 2**63
    assert found["pids_stats"] == {"current": 3, "limit": 9}
    entries = found["blkio_stats"]["io_service_bytes_recursive"]
    assert entries[:2] == [
        {"major": 8, "minor": 0, "op": "read", "value": 10},
        {"major": 8, "minor": 0, "op": "write", "value": 20},
    ]


def test_a_container_that_does_not_run_uses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sample(monkeypatch, None)
    assert found["cpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert (found["read"], found["pids_stats"]) == ("0001-01-01T00:00:00Z", {})


def limits(**members: Any) -> dict[str, Any]:
    """Return these limits, with all others."""
    return resources.taken(Members(members))


def test_other_limits_over_those_of_before() -> None:
    before = limits(Memory=64 << 20, MemorySwap=128 << 20, CpuShares=5, PidsLimit=9)
    after = resources.merged(before, limits(CpuShares=7, PidsLimit=-1))
    assert (after["Memory"], after["CpuShares"], after["PidsLimit"]) == (64 << 20, 7, -1)
    clashes: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({"NanoCpus": 1}, {"CpuQuota": 2000}),
        ({"CpuPeriod": 2000}, {"NanoCpus": 1}),
        ({"Memory": 1, "MemorySwap": 2}, {"Memory": 3}),
    )
    for old, new in clashes:
        with pytest.raises(Conflict):
            resources.merged(limits(**old), limits(**new))
    with pytest.raises(BadRequest, match="Minimum memoryswap limit"):
        resources.merged(limits(Memory=8 << 20, MemorySwap=16 << 20), limits(MemorySwap=7 << 20))


def test_limits_for_a_runtime() -> None:
    given = limits(
        Memory=64 << 20, MemorySwap=-1, NanoCpus=1_500_000_000, CpusetCpus="0-1", PidsLimit=0, BlkioWeight=30,
        BlkioDeviceReadBps=[{"Path": "/dev/null", "Rate": 5}], OomKillDisable=True,
    )  # fmt: skip
    assert resources.for_runtime(given) == {
        "memory": {"limit": 64 << 20, "swap": -1, "disableOOMKiller": True},
        "cpu": {"period": 100_000, "quota": 150_000, "cpus": "0-1"},
        "blockIO": {"weight": 30, "throttleReadBpsDevice": [{"major": 1, "minor": 3, "rate": 5}]},
        "pids": {"limit": -1},
    }
    assert resources.for_runtime(limits()) == {}
    assert "disableOOMKiller" not in resources.for_runtime(given, update=True)["memory"]


def test_lists_of_processors() -> None:
    assert list(resources.numbers("0-2,7")) == [0, 1, 2, 7]
    assert list(resources.numbers("")) == []
    for bad in ("x", "1-", "3-1", ",", "1,,2", "0-999999", "²"):
        with pytest.raises(ValueError):
            list(resources.numbers(bad))


def test_the_groups_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount_id = "a" * 64
    texts = {
        1: f"4:memory:/layerfs/{mount_id}\n3:cpu,cpuacct:/mine/{mount_id}/below\n1:name=systemd:/\n0::/\n",
        2: f"0::/system.slice/layerfs-{mount_id}.scope/init\n",
    }
    places = {"": tmp_path / "2", **{name: tmp_path / name for name in ("memory", "cpu", "cpuacct")}}
    monkeypatch.setattr(cgroups, "hierarchies", lambda: places)
    proc = tmp_path / "cgroup"
    monkeypatch.setattr(
        cgroups, "Path", lambda *parts: proc if parts[0] == "/proc/9/cgroup" else Path(*parts)
    )
    for version, text in texts.items():
        proc.write_text(text)
        monkeypatch.setattr(cgroups, "unified", lambda version=version: version == 2)
        found = cgroups.of_container(9, mount_id)
        assert found is not None
        if version == 1:
            assert found.directory("memory") == tmp_path / f"memory/layerfs/{mount_id}"
            assert found.directory("cpuacct") == tmp_path / f"cpuacct/mine/{mount_id}"
            assert found.directory("pids") is None
        else:
            assert found.directory("memory") == tmp_path / f"2/system.slice/layerfs-{mount_id}.scope"
        assert cgroups.of_container(9, "b" * 64) is None


def test_what_this_machine_supports() -> None:
    found = cgroups.support()
    assert isinstance(found, Support)
    assert set(resources.numbers(found.cpus)) >= {0} or not found.cpus
    assert hostconfig.LOG_DRIVERS["none"] == ()
