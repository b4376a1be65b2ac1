"""What a request to create a container asks for, as the container's own processes and the kernel see it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs.container import capabilities
from layerfs.container.settings import described
from layerfs.host import cgroups
from layerfs.store import Store
from tests.conftest import mounts_below
from tests.system.containers import IMAGE, Containers, containers
from tests.system.programs import needs

pytestmark = pytest.mark.root
UNIFIED = cgroups.unified()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, for the whole module."""
    with containers(tmp_path_factory.mktemp("options")) as made:
        yield made


def create(there: Containers, host: dict[str, Any] | None = None, **members: Any) -> str:
    """Make a container as a request would that has these members; return its name."""
    name = f"c-{secrets.token_hex(4)}"
    body = {"HostConfig": host or {}, **members}
    with Store(there.layerfs.root) as store:
        image = store.resolve(IMAGE)
        made = described(image.config, body, default_network="none", find=store.mount)
        options = {"container": made.settings}
        store.create_mount(name, image=image, options=options, config=made.config)
    return name


REFUSED = """
no() { # errexit does not look at what "!" turns round
    if "$@" 2>/dev/null; then echo "worked: $*"; exit 1; fi
}
"""


def sh(there: Containers, script: str, host: dict[str, Any] | None = None, **members: Any) -> str:
    """Run a shell script in a container that a request makes, which must work; return its output."""
    name = create(
        there, {"AutoRemove": True, **(host or {})}, Cmd=["sh", "-euc", REFUSED + script], **members
    )
    return there.layerfs.ok("start", "-a", name)


@pytest.fixture
def sleeper(there: Containers) -> Iterator[Any]:
    """A way to have a container that sleeps, and its control groups."""

    def start(host: dict[str, Any] | None = None, **members: Any) -> tuple[str, cgroups.Groups]:
        name = create(there, host, Cmd=["sleep", "1000"], **members)
        there.layerfs.ok("start", name)
        mount_id = there.inspect(name)["Id"]
        record = look_at(there, mount_id)
        groups = cgroups.of_container(record, mount_id)
        assert groups is not None
        return name, groups

    yield start
    there.remove()


def look_at(there: Containers, mount_id: str) -> int:
    """Return the pid of a container's first process."""
    record = json.loads((there.layerfs.run / "containers" / mount_id / "record").read_bytes())
    return int(record["pid"])


def read(groups: cgroups.Groups, controller: str, old: str, new: str) -> str:
    """Return the text of a file that version 1 calls *old* and version 2 calls *new*."""
    return groups.read(controller, new if UNIFIED else old).strip()


def test_limits_are_in_the_control_groups(there: Containers, sleeper: Any) -> None:
    name, groups = sleeper(
        {
            "Memory": 64 << 20, "MemoryReservation": 32 << 20, "PidsLimit": 77, "NanoCpus": 500_000_000,
            "CpuShares": 512, "CpusetCpus": "0", "OomScoreAdj": 321,
        }
    )  # fmt: skip
    assert read(groups, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert read(groups, "memory", "memory.soft_limit_in_bytes", "memory.low") == str(32 << 20)
    assert read(groups, "pids", "pids.max", "pids.max") == "77"
    assert read(groups, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    if UNIFIED:
        assert groups.read("cpu", "cpu.max").split() == ["50000", "100000"]
        assert 10 < int(groups.read("cpu", "cpu.weight")) < 30
    else:
        assert groups.read("cpu", "cpu.cfs_quota_us") == "50000\n"
        assert groups.read("cpu", "cpu.shares") == "512\n"
        assert groups.read("memory", "memory.memsw.limit_in_bytes") in (f"{128 << 20}\n", "")
    pid = there.inspect(name)["State"]["Pid"]
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "321\n"
    host = there.inspect(name)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (64 << 20, 128 << 20, 77)


def test_too_many_processes_are_refused(there: Containers) -> None:
    script = "set +e; for i in 1 2 3 4 5 6 7 8; do sleep 5 & done 2>&1; echo end"
    name = create(there, {"PidsLimit": 4}, Cmd=["sh", "-c", script])
    done = there.layerfs("start", "-a", name)
    assert "can't fork" in done.stdout + done.stderr
    there.remove(name)


def test_capabilities(there: Containers) -> None:
    def effective(**host: Any) -> int:
        found = sh(there, "grep ^CapEff /proc/self/status", host)
        return int(found.split()[1], 16)

    default = 0xA80425FB
    assert effective(CapDrop=["net_raw", "CAP_MKNOD"]) == default & ~(1 << 13) & ~(1 << 27)
    assert effective(CapAdd=["SYS_PTRACE"]) == default | 1 << 19
    assert effective(CapDrop=["ALL"]) == 0
    assert effective(CapDrop=["ALL"], CapAdd=["CHOWN"]) == 1
    everything = effective(CapAdd=["ALL"])
    assert everything == effective(Privileged=True)
    assert everything.bit_count() == len(capabilities.available())


def test_a_read_only_root_with_places_to_write(there: Containers) -> None:
    script = """
        no touch /x; no touch /etc/x
        touch /dev/shm/x /t/x; echo >/dev/null
        busybox df -k /t | busybox tail -1; busybox stat -c %a /t; grep ' /t ' /proc/mounts
        printf '#!/bin/sh\necho ran\n' >/t/p; busybox chmod +x /t/p; /t/p
        busybox cp /t/p /nox/p; no /nox/p
    """
    lines = sh(
        there, script, {"ReadonlyRootfs": True, "Tmpfs": {"/t": "size=1m,mode=700,exec", "/nox": ""}}
    ).splitlines()
    assert lines[0].split()[1] == "1024"
    assert lines[1] == "700"
    assert "nosuid,nodev" in lines[2]
    assert lines[3] == "ran"


def test_the_size_of_shared_memory_and_ulimits(there: Containers) -> None:
    ulimits = [{"Name": "nofile", "Soft": 100, "Hard": 200}, {"Name": "core", "Soft": 0, "Hard": 0}]
    script = "busybox df -k /dev/shm | busybox tail -1; ulimit -Sn; ulimit -Hn; ulimit -Hc"
    found = sh(there, script, {"ShmSize": 2 << 20, "Ulimits": ulimits}).splitlines()
    assert found[0].split()[1] == "2048"
    assert found[1:] == ["100", "200", "0"]


@needs("tini")
def test_an_init_is_the_first_process(there: Containers) -> None:
    script = "busybox tr '\\0' ' ' </proc/1/cmdline; echo; echo $$; exit 7"
    name = create(there, {"Init": True}, Cmd=["sh", "-c", script])
    done = there.layerfs("start", "-a", name)
    first, own = done.stdout.splitlines()
    assert first.startswith("/sbin/docker-init -- sh -c")
    assert (int(own) > 1, done.returncode) == (True, 7)
    there.remove(name)


def test_names(there: Containers) -> None:
    host = {
        "ExtraHosts": ["db:10.1.2.3", "six:fe80::1"],
        "Dns": ["9.9.9.9", "1.1.1.1"],
        "DnsSearch": ["example.org"],
        "DnsOptions": ["ndots:2"],
    }
    script = "cat /etc/hosts /etc/resolv.conf; hostname; cat /proc/sys/kernel/domainname"
    found = sh(there, script, host, Hostname="box", Domainname="example.net")
    assert "\n10.1.2.3\tdb\nfe80::1\tsix\n" in found
    assert "127.0.1.1\tbox.example.net box\n" in found
    assert "nameserver 9.9.9.9\nnameserver 1.1.1.1\nsearch example.org\noptions ndots:2\n" in found
    assert found.endswith("box\nexample.net")


def test_privileged(there: Containers) -> None:
    script = """
        grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status
        ls /dev/fuse /dev/loop-control 2>/dev/null || true
        mount -t tmpfs tmpfs /srv; touch /srv/x
        grep -E ' (/sys|/sys/fs/cgroup) ' /proc/mounts
        echo privileged >/proc/sys/kernel/domainname
    """
    lines = sh(there, script, {"Privileged": True}).splitlines()
    assert {"Seccomp:\t0", "NoNewPrivs:\t0"} <= set(lines)
    assert ("/dev/fuse" in lines) == Path("/dev/fuse").exists()
    (sys,) = [line for line in lines if line.startswith("sysfs /sys ")]
    assert sys.split()[3].startswith("rw")


def test_devices(there: Containers) -> None:
    device = "/dev/loop-control" if Path("/dev/loop-control").exists() else "/dev/kmsg"
    found = os.stat(device).st_rdev
    numbers = f"{os.major(found):x} {os.minor(found):x}"
    host: dict[str, Any] = {
        "Devices": [{"PathOnHost": device, "PathInContainer": "/dev/mine", "CgroupPermissions": "rw"}]
    }
    script = "busybox stat -c '%t %T' /dev/mine; exec 3</dev/mine; echo opened"
    assert sh(there, script, host) == f"{numbers}\nopened"
    rule = f"c {os.major(found)}:{os.minor(found)} r"
    script = f"busybox mknod /own c {os.major(found)} {os.minor(found)}; (exec 3</own) && echo opened"
    assert sh(there, script, {"DeviceCgroupRules": [rule]}) == "opened"
    name = create(there, Cmd=["sh", "-c", script])
    assert "opened" not in there.layerfs("start", "-a", name).stdout
    there.remove(name)
    name = create(there, {"Devices": [{"PathOnHost": "/dev/no-such"}]}, Cmd=["true"])
    line = there.layerfs.refused("start", name)
    assert 'error gathering device information while adding custom device "/dev/no-such"' in line
    there.remove(name)


def test_security_options(there: Containers) -> None:
    status = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status"
    assert sh(there, status, {"SecurityOpt": ["no-new-privileges", "seccomp=unconfined"]}).splitlines() == [
        "NoNewPrivs:\t1",
        "Seccomp:\t0",
    ]
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    script = f"{status}; mkdir /new"
    name = create(there, {"SecurityOpt": [f"seccomp={json.dumps(profile)}"]}, Cmd=["sh", "-c", script])
    done = there.layerfs("start", "-a", name)
    assert "Seccomp:\t2" in done.stdout
    assert "not supported" in done.stderr
    there.remove(name)


def test_namespaces_of_the_host(there: Containers) -> None:

    script = "for n in pid ipc uts net; do busybox readlink /proc/self/ns/$n; done; hostname"
    host = {"PidMode": "host", "IpcMode": "host", "UTSMode": "host", "NetworkMode": "host"}
    found = sh(there, script, host).splitlines()
    here = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "ipc", "uts", "net")]
    assert found[:5] == [*here, os.uname().nodename]
    own = sh(there, script).splitlines()
    assert not set(own[:4]) & set(here)


def test_namespaces_of_another_container(there: Containers, sleeper: Any) -> None:
    other, _ = sleeper({"IpcMode": "shareable"}, Hostname="shared")
    pid = there.inspect(other)["State"]["Pid"]
    mode = f"container:{other}"
    script = "for n in pid ipc net; do busybox readlink /proc/self/ns/$n; done; cat /etc/hostname"
    there.layerfs.ok("exec", other, "sh", "-c", "echo shared >/dev/shm/file")
    script += "; cat /dev/shm/file; echo more >>/dev/shm/file"
    found = sh(there, script, {"PidMode": mode, "IpcMode": mode, "NetworkMode": mode}).splitlines()
    assert found == [
        *(os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "ipc", "net")),
        "shared",
        "shared",
    ]
    assert there.layerfs.ok("exec", other, "cat", "/dev/shm/file") == "shared\nmore"
    there.layerfs.ok("stop", "-t", "0", other)
    assert mounts_below(there.layerfs.directory) == []
    there.layerfs.ok("start", other)
    there.layerfs.ok("stop", "-t", "0", other)
    private, _ = sleeper()
    name = create(there, {"IpcMode": f"container:{private}"}, Cmd=["true"])
    assert "non-shareable IPC" in there.layerfs.refused("start", name)
    name = create(there, {"PidMode": mode}, Cmd=["true"])
    assert "a non running container" in there.layerfs.refused("start", name)


def test_binds_and_their_modes(there: Containers, tmp_path: Path) -> None:
    (tmp_path / "in/below").mkdir(parents=True)
    (tmp_path / "slave").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "in/below"], check=True, timeout=10)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "slave"], check=True, timeout=10)
    subprocess.run(["mount", "--make-shared", tmp_path / "slave"], check=True, timeout=10)
    try:
        host = {
            "Binds": [f"{tmp_path}/in:/in:ro", f"{tmp_path}/slave:/slave:rslave"],
            "Mounts": [{"Type": "bind", "Source": f"{tmp_path}/in", "Target": "/mnt", "ReadOnly": False}],
        }
        script = """
            no touch /in/x; no touch /in/below/x; touch /mnt/x /mnt/below/y
            grep ' /slave ' /proc/self/mountinfo
        """
        assert "master:" in sh(there, script, host)
        assert os.listdir(tmp_path / "in/below") == ["y"]
        name = create(there, {"Binds": [f"{tmp_path}/in:/in:shared"]}, Cmd=["true"])
        shared = "is not a shared mount" in there.layerfs("start", name).stderr
        assert shared or "shared:" in Path("/proc/self/mountinfo").read_text()
    finally:
        subprocess.run(["umount", tmp_path / "in/below", tmp_path / "slave"], check=True, timeout=10)
        there.remove()


def test_groups_sysctls_and_paths(there: Containers) -> None:
    host = {
        "GroupAdd": ["wheel", "1234"],
        "Sysctls": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4242"},
        "MaskedPaths": [],
        "ReadonlyPaths": ["/etc"],
    }
    script = """
        id -G; cd /proc/sys
        cat net/ipv4/ip_forward kernel/msgmax net/ipv4/ip_unprivileged_port_start
        grep -E ' /etc ro|/etc [^ ]+ ro' /proc/mounts | grep -c .; grep -c ' /proc/' /proc/mounts || true
    """
    found = sh(there, script, host, User="jane").splitlines()
    assert set(found[0].split()) >= {"10", "1234"}
    assert found[1:] == ["1", "4242", "0", "1", "0"]


def test_a_named_volume_that_is_not_there_is_made(there: Containers) -> None:
    name = create(there, {"Binds": ["something:/x"]}, Cmd=["touch", "/x/file"])
    there.layerfs.ok("start", "-a", name)
    assert (there.layerfs.root / "volumes/something/_data/file").exists()
    assert there.inspect(name)["Mounts"][0]["Source"] == str(there.layerfs.root / "volumes/something/_data")
    there.remove(name)
    there.layerfs.ok("volume", "rm", "something")


def test_inspect_shows_what_was_asked_for(there: Containers) -> None:
    given = {"Binds": ["/tmp:/x:ro"], "CapAdd": ["NET_ADMIN"], "RestartPolicy": {"Name": "always"}}
    name = create(there, given, Hostname="box", Labels={"a": "b"}, Env=["X=1"])
    found = there.inspect(name)
    assert found["HostConfig"]["Binds"] == ["/tmp:/x:ro"]
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "always", "MaximumRetryCount": 0}
    assert (found["Config"]["Hostname"], found["Config"]["Env"]) == ("box", ["X=1", "GREETING=hello"])
    (point,) = found["Mounts"]
    assert point == {
        "Type": "bind", "Source": "/tmp", "Destination": "/x", "Mode": "ro", "RW": False,
        "Propagation": "rprivate",
    }  # fmt: skip
    there.remove(name)


def test_a_container_that_runs_out_of_memory_says_so(there: Containers) -> None:
    script = "a=$(dd if=/dev/zero bs=1M count=60 2>/dev/null | busybox tr '\\0' x); echo never"
    host = {"Memory": 8 << 20, "MemorySwap": 8 << 20}
    name = create(there, host, Cmd=["sh", "-c", script])
    assert there.layerfs("start", "-a", name).returncode == 137
    assert there.inspect(name)["State"]["OOMKilled"] is True
    there.remove(name)


def test_logs(there: Containers) -> None:
    for driver, written in (("none", False), ("local", True)):
        name = create(there, {"LogConfig": {"Type": driver, "Config": {}}}, Cmd=["echo", "said"])
        assert there.layerfs.ok("start", "-a", name) == "said"
        assert ("said" in there.layerfs.ok("logs", name)) == written
    log = {"Type": "json-file", "Config": {"max-size": "20k"}}
    name = create(there, {"LogConfig": log}, Cmd=["seq", "10000"])
    assert there.layerfs.ok("start", "-a", name).endswith("\n10000")
    kept = there.layerfs.ok("logs", name).splitlines()
    assert kept[-1] == "10000"
    assert len(kept) < 5000
    there.remove()
