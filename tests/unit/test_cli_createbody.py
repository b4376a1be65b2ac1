"""The options of run and create: the body that they make of docker's words, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfs.cli.booleans import without_values
from layerfs.cli.createbody import body, limits, variables
from layerfs.cli.quantities import cpus, duration, moment, size
from layerfs.cli.run import create_command, run_command
from layerfs.container.settings import described
from layerfs.errors import LayerfsError, UsageError

IMAGE = {"Cmd": ["image-cmd"], "Entrypoint": ["/entry"], "Env": ["A=1", "B=2"], "Labels": {"x": "y"}}


def options(*words: str) -> dict[str, Any]:
    """Return the parameters that run has for *words*."""
    found = list(without_values(run_command, [*words, "image"]))
    return run_command.make_context("run", found).params


def made(*words: str, command: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the body for run with the options *words*."""
    given = options(*words)
    return body(given, command, network="host", detached=given["detach"])


def host(*words: str) -> dict[str, Any]:
    """Return its `HostConfig`."""
    result: dict[str, Any] = made(*words)["HostConfig"]
    return result


@pytest.mark.parametrize(
    ("words", "command", "line"),
    [
        ((), (), ["/entry", "image-cmd"]),
        ((), ("a", "b"), ["/entry", "a", "b"]),
        (("--entrypoint", "/other"), (), ["/other"]),
        (("--entrypoint", "/other"), ("a",), ["/other", "a"]),
        (("--entrypoint", ""), ("a",), ["a"]),
    ],
)
def test_the_command(words: tuple[str, ...], command: tuple[str, ...], line: list[str]) -> None:
    config = described(IMAGE, made(*words, command=command)).config
    assert [*config["Entrypoint"], *config["Cmd"]] == line
    assert config["Labels"] == {"x": "y"}
    assert IMAGE["Cmd"] == ["image-cmd"]


def test_nothing_asks_for_what_docker_has_by_default() -> None:
    found = described(IMAGE, made())
    assert found.warnings == []
    assert found.settings["HostConfig"] == described(IMAGE, {"HostConfig": {"NetworkMode": "host"}}).settings[
        "HostConfig"
    ] | {"Dns": [], "DnsOptions": [], "DnsSearch": [], "Devices": []}


def test_streams() -> None:
    def streams(*words: str) -> str:
        found = made(*words)
        names = ("AttachStdin", "AttachStdout", "AttachStderr", "OpenStdin", "StdinOnce", "Tty")
        return "".join(str(int(found[name])) for name in names)

    assert streams() == "011000"
    assert streams("-i") == "111110"
    assert streams("-ti") == "111111"
    assert streams("-ti", "-d") == "000101"
    assert streams("-a", "stdout") == "010000"
    assert streams("-a", "STDIN", "-a", "stderr", "-i") == "101110"
    assert streams("-it=false", "--interactive=true") == "111110"
    with pytest.raises(UsageError, match="invalid stream 'x'"):
        made("-a", "x")
    with pytest.raises(UsageError, match="cannot specify both --attach and --detach"):
        made("-d", "-a", "stdout")


def test_variables_come_from_files_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "h")
    monkeypatch.delenv("NOWHERE", raising=False)
    file = tmp_path / "env"
    file.write_text("# comment\n\n  A=1\nHERE\nNOWHERE\nB=b # c = d\nE=\n")
    assert made("--env-file", str(file), "-e", "A=2", "-e", "HERE", "-e", "NOWHERE", "-e", "C=")["Env"] == [
        "A=1", "HERE=h", "B=b # c = d", "E=", "A=2", "HERE=h", "NOWHERE", "C=",
    ]  # fmt: skip
    assert described(IMAGE, made("-e", "A=9")).config["Env"] == ["A=9", "B=2"]
    for bad in ("=x", "A=\0"):
        with pytest.raises(UsageError, match="invalid environment variable"):
            made("-e", bad)
    for text in ("A B=1\n", "=1\n", "\t=\n"):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"env, line 1: the variable"):
            variables([str(file)], [])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        variables([str(file)], [])
    with pytest.raises(UsageError, match="No such file"):
        variables([str(tmp_path / "none")], [])
    with pytest.raises(UsageError, match="Is a directory"):
        variables([str(tmp_path)], [])


def test_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text("a=1\nb\n")
    assert made("--label-file", str(file), "-l", "b=2", "--label", "c")["Labels"] == {
        "a": "1",
        "b": "2",
        "c": "",
    }
    with pytest.raises(UsageError, match="invalid label format"):
        made("-l", "=x")


def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = made("-v", "/only", "-v", "/a:/b", "-v", "./a:/c:ro", "-v", "name:/d", "-v", ".:/e")
    assert found["Volumes"] == {"/only": {}}
    assert found["HostConfig"]["Binds"] == [
        "/a:/b", f"{tmp_path}/a:/c:ro", "name:/d", f"{tmp_path}:/e",
    ]  # fmt: skip
    for bad in (":", "/a:", ":/b", "name"):
        with pytest.raises(UsageError, match="invalid volume"):
            made("-v", bad)
    for bad in ("/a:b", "/a:/", "/a:/b/..", "/a://", "/a:/b:rx", "/a:/b:ro,"):
        with pytest.raises(LayerfsError, match="invalid"):
            described(IMAGE, made("-v", bad))


def test_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def mount(text: str) -> dict[str, Any]:
        (found,) = host("--mount", text)["Mounts"]
        return dict(found)

    assert mount("type=bind,src=./a,dst=/b,readonly,bind-propagation=rslave") == {
        "Type": "bind", "Source": f"{tmp_path}/a", "Target": "/b", "ReadOnly": True,
        "BindOptions": {"Propagation": "rslave"},
    }  # fmt: skip
    assert mount("target=/b") == {"Type": "volume", "Target": "/b"}
    assert mount('"source=a,b",destination=/x,ro=false,type=BIND') == {
        "Type": "bind", "Source": "a,b", "Target": "/x", "ReadOnly": False,
    }  # fmt: skip
    assert mount("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770")["TmpfsOptions"] == {
        "SizeBytes": 64 << 20, "Mode": 0o1770,
    }  # fmt: skip
    driver = "volume-driver=local,volume-opt=type=nfs,volume-opt=o=a"
    assert mount(f"dst=/v,{driver},volume-label=x=y,volume-nocopy") == {
        "Type": "volume", "Target": "/v",
        "VolumeOptions": {
            "DriverConfig": {"Name": "local", "Options": {"type": "nfs", "o": "a"}},
            "Labels": {"x": "y"}, "NoCopy": True,
        },
    }  # fmt: skip
    assert mount("type=bind,src=/a,dst=/b,bind-recursive=disabled")["BindOptions"] == {"NonRecursive": True}
    for bad, line in (
        ("type=bind,source=/a", "target is required"),
        ("x", "must be a key=value pair"),
        ("target=/a,wrong=1", "unexpected key 'wrong'"),
        ("target=/a,ro=maybe", "invalid value for ro"),
        ("target=/a,tmpfs-size=1m", "cannot mix 'tmpfs-"),
        ("type=tmpfs,target=/a,tmpfs-mode=9", "invalid value for tmpfs-mode"),
        ("type=tmpfs,target=/a,tmpfs-size=x", "invalid size"),
        ("type=bind,target=/a,src=/b,bind-recursive=x", "invalid value for bind-recursive"),
        ('"unclosed', "invalid mount"),
    ):
        with pytest.raises(UsageError, match=line):
            mount(bad)
    assert host("--tmpfs", "/run:size=1m,mode=700", "--tmpfs", "/tmp")["Tmpfs"] == {
        "/run": "size=1m,mode=700", "/tmp": "",
    }  # fmt: skip


def test_ports() -> None:
    found = made(
        "-p", "80", "-p", "8080:80", "-p", "127.0.0.1:5353:53/udp", "-p", "[::1]::99", "-p", "1-2:7-8",
        "--expose", "3-4/tcp", "-P",
    )  # fmt: skip
    assert found["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": ""}, {"HostIp": "", "HostPort": "8080"}],
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "5353"}],
        "99/tcp": [{"HostIp": "::1", "HostPort": ""}],
        "7/tcp": [{"HostIp": "", "HostPort": "1"}],
        "8/tcp": [{"HostIp": "", "HostPort": "2"}],
    }
    assert set(found["ExposedPorts"]) == {"80/tcp", "53/udp", "99/tcp", "7/tcp", "8/tcp", "3/tcp", "4/tcp"}
    assert found["HostConfig"]["PublishAllPorts"] is True
    assert host("-p", "target=80,published=8080,protocol=udp")["PortBindings"] == {
        "80/udp": [{"HostIp": "", "HostPort": "8080"}]
    }
    assert host("-p", "8000-8010:80")["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8000-8010"}]}
    for bad in ("x", "80:", "70000", "1-3:1-2", "80/icmp", "2-1", "127.0.0.1:80", "a=b", "1:2:3:4", "9" * 99):
        with pytest.raises(UsageError, match="invalid"):
            made("-p", bad)
    for bad in ("x", "1-", "70000", "1/x"):
        with pytest.raises(UsageError, match="invalid"):
            made("--expose", bad)


def test_limits() -> None:
    found = host(
        "-m", "512m", "--memory-swap", "-1", "--memory-reservation", "1.5g", "--cpus", "1.5", "--cpu-shares",
        "512", "--cpuset-cpus", "0-1", "--pids-limit", "-1", "--ulimit", "nofile=10:20",
        "--ulimit", "core=-1",
        "--shm-size", "1g", "--device-read-bps", "/dev/sda:1m", "--device-write-iops", "/dev/sda:9",
        "--blkio-weight-device", "/dev/sda:100", "--oom-score-adj", "-500",
    )  # fmt: skip
    assert (found["Memory"], found["MemorySwap"], found["MemoryReservation"]) == (512 << 20, -1, 3 << 29)
    assert (found["NanoCpus"], found["CpuShares"], found["CpusetCpus"]) == (1_500_000_000, 512, "0-1")
    assert (found["PidsLimit"], found["ShmSize"], found["OomScoreAdj"]) == (-1, 1 << 30, -500)
    assert found["Ulimits"] == [
        {"Name": "nofile", "Soft": 10, "Hard": 20}, {"Name": "core", "Soft": -1, "Hard": -1},
    ]  # fmt: skip
    assert found["BlkioDeviceReadBps"] == [{"Path": "/dev/sda", "Rate": 1 << 20}]
    assert found["BlkioDeviceWriteIOps"] == [{"Path": "/dev/sda", "Rate": 9}]
    assert found["BlkioWeightDevice"] == [{"Path": "/dev/sda", "Weight": 100}]
    assert limits(options()) == {}
    for words in (
        ("-m", "lots"), ("-m", "-1"), ("--cpus", "x"), ("--cpus", "0.0000000001"), ("--cpus", "nan"),
        ("--ulimit", "nofile"), ("--ulimit", "nofile=a"), ("--device-read-bps", "sda:1"),
        ("--device-read-iops", "/dev/sda:1m"), ("--blkio-weight-device", "/dev/sda"), ("--shm-size", "x"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="invalid"):
            made(*words)


def test_rights(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{\n "defaultAction": "SCMP_ACT_ALLOW"\n}')
    found = host(
        "--cap-add", "SYS_PTRACE", "--cap-drop", "ALL", "--security-opt", f"seccomp={profile}",
        "--security-opt", "no-new-privileges", "--security-opt", "systempaths=unconfined", "--group-add", "7",
        "--device", "/dev/fuse", "--device", "/dev/null:/dev/x:r", "--device", "/dev/zero:rw", "--privileged",
        "--read-only", "--init", "--pid", "host", "--ipc", "shareable", "--uts", "host", "--userns", "host",
        "--cgroupns", "private", "--sysctl", "net.ipv4.ip_forward=1",
    )  # fmt: skip
    assert (found["CapAdd"], found["CapDrop"], found["GroupAdd"]) == (["SYS_PTRACE"], ["ALL"], ["7"])
    assert found["SecurityOpt"] == ['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}', "no-new-privileges"]
    assert (found["MaskedPaths"], found["ReadonlyPaths"]) == ([], [])
    assert [tuple(device.values()) for device in found["Devices"]] == [
        ("/dev/fuse", "/dev/fuse", "rwm"), ("/dev/null", "/dev/x", "r"), ("/dev/zero", "/dev/zero", "rw"),
    ]  # fmt: skip
    assert [found[name] for name in ("Privileged", "ReadonlyRootfs", "Init")] == [True] * 3
    modes = ("PidMode", "IpcMode", "UTSMode", "UsernsMode", "CgroupnsMode")
    assert [found[name] for name in modes] == ["host", "shareable", "host", "host", "private"]
    assert found["Sysctls"] == {"net.ipv4.ip_forward": "1"}
    profile.write_text("{")
    for words in (
        ("--security-opt", f"seccomp={profile}"), ("--security-opt", f"seccomp={tmp_path}/none"),
        ("--security-opt", "nonsense"), ("--device", "a:b:c:d"), ("--device", ":x"), ("--sysctl", "=1"),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            made(*words)
    assert host("--gpus", "all")["DeviceRequests"] == [{"Count": -1, "Capabilities": [["gpu"]]}]
    with pytest.raises(UsageError, match="invalid --gpus"):
        made("--gpus", "some")


def test_networks() -> None:
    def network(*words: str) -> tuple[str, Any]:
        found = made(*words)
        return found["HostConfig"]["NetworkMode"], found.get("NetworkingConfig", {}).get("EndpointsConfig")

    assert network() == ("host", None)
    assert network("--net", "none") == ("none", None)
    words = ("--network-alias", "db", "--ip", "10.0.0.2", "--mac-address", "02:1:2:3:4:5")
    assert network("--network", "mine", *words) == (
        "mine",
        {
            "mine": {
                "Aliases": ["db"],
                "IPAMConfig": {"IPv4Address": "10.0.0.2"},
                "MacAddress": "02:1:2:3:4:5",
            }
        },
    )  # fmt: skip
    assert network("--network", "name=a,alias=x,alias=y,ip6=::2,driver-opt=o=1", "--network", "b") == (
        "a",
        {
            "a": {"Aliases": ["x", "y"], "IPAMConfig": {"IPv6Address": "::2"}, "DriverOpts": {"o": "1"}},
            "b": {},
        },
    )
    for wrong, line in (
        (("--network", "a", "--network", "a"), "specified multiple times"),
        (("--network", "a", "--network", "host"), "go with no other network"),
        (("--network", "alias=x"), "is not specified"),
        (("--network", "name=a,wrong=1"), "invalid field 'wrong'"),
    ):
        with pytest.raises(UsageError, match=line):
            made(*wrong)
    found = host(
        "--add-host",
        "a:1.2.3.4",
        "--add-host",
        "b=[::1]",
        "--dns",
        "1.1.1.1",
        "--dns-search",
        "x",
        "--dns-opt",
        "y",
    )
    assert (found["ExtraHosts"], found["Dns"]) == (["a:1.2.3.4", "b:::1"], ["1.1.1.1"])
    assert (found["DnsSearch"], found["DnsOptions"]) == (["x"], ["y"])
    with pytest.raises(UsageError, match="bad format for add-host"):
        made("--add-host", "a")
    assert host("--link", "other:alias")["Links"] == ["other:alias"]


def test_health() -> None:
    found = made(
        "--health-cmd", "true", "--health-interval", "1m30s", "--health-timeout", "500ms", "--health-retries",
        "2", "--health-start-period", "0", "--health-start-interval", "1.5s",
    )["Healthcheck"]  # fmt: skip
    assert found == {
        "Test": ["CMD-SHELL", "true"], "Interval": 90 * 10**9, "Timeout": 5 * 10**8, "Retries": 2,
        "StartPeriod": 0, "StartInterval": 15 * 10**8,
    }  # fmt: skip
    assert made()["Healthcheck"] is None
    assert made("--no-healthcheck")["Healthcheck"] == {"Test": ["NONE"]}
    for words in (
        ("--no-healthcheck", "--health-cmd", "x"), ("--health-interval", "1"), ("--health-interval", "x"),
        ("--health-retries", "-1"),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            made(*words)


def test_life() -> None:
    found = made(
        "--restart", "on-failure:3", "--stop-signal", "INT", "--stop-timeout", "3", "--log-driver", "none",
        "--log-opt", "max-size=1m", "--rm=false", "--cidfile", "/x", "--volumes-from", "other:ro",
    )  # fmt: skip
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert (found["StopSignal"], found["StopTimeout"]) == ("INT", 3)
    assert found["HostConfig"]["LogConfig"] == {"Type": "none", "Config": {"max-size": "1m"}}
    assert (found["HostConfig"]["AutoRemove"], found["HostConfig"]["VolumesFrom"]) == (False, ["other:ro"])
    assert host("--rm")["AutoRemove"] is True
    with pytest.raises(UsageError, match="retry count must be an integer"):
        made("--restart", "on-failure:x")
    with pytest.raises(LayerfsError, match="unknown policy"):
        described(IMAGE, made("--restart", "sometimes"))
    with pytest.raises(LayerfsError, match="needs to be an absolute path"):
        described(IMAGE, made("-w", "srv"))
    for name in ("-a", "a b", "a" * 65, "ä", "a/b"):
        with pytest.raises(LayerfsError, match="invalid hostname"):
            described(IMAGE, made(f"--hostname={name}"))


def test_create_has_the_options_of_run_but_those_of_running() -> None:
    names = [{parameter.name for parameter in command.params} for command in (run_command, create_command)]
    assert names[1] <= names[0]
    assert names[0] - names[1] == {"detach", "detach_keys", "sig_proxy"}


def test_the_body_is_json_whatever_is_given() -> None:
    json.dumps(made("-ti", "-e", "A=\udcff"))


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--rm=true", "-d=1", "x"], ["--rm", "-d", "x"]),
        (["--rm=false", "--tty=0", "x"], ["x"]),
        (["--rm", "--rm=false", "x"], ["x"]),
        (["-tid=false", "x"], ["-ti", "x"]),
        (["-ti=true", "x"], ["-t", "-i", "x"]),
        (["--sig-proxy=false", "x"], ["--no-sig-proxy", "x"]),
        (["-e", "--rm=false", "x"], ["-e", "--rm=false", "x"]),
        (["-tie", "--rm=false", "x"], ["-tie", "--rm=false", "x"]),
        (["-eA", "--rm=false", "x"], ["-eA", "x"]),
        (["x", "--rm=false"], ["x", "--rm=false"]),
        (["--", "--rm=false"], ["--", "--rm=false"]),
        (["--rm=maybe", "x"], ["--rm=maybe", "x"]),
        (["--name=true", "x"], ["--name=true", "x"]),
    ],
)
def test_flags_with_a_value(words: list[str], kept: list[str]) -> None:
    assert without_values(run_command, words) == kept


def test_amounts() -> None:
    assert [size(text, "x") for text in ("1", "1k", "1KB", "1 kib", "1.5m", "2g", "", None)] == [
        1, 1024, 1024, 1024, 3 << 19, 2 << 30, 0, 0,
    ]  # fmt: skip
    assert [cpus(text) for text in ("1", "0.5", "2.000000001")] == [10**9, 5 * 10**8, 2 * 10**9 + 1]
    assert duration("-1h1m1s1ms", "x") == -3661001 * 10**6
    for text in ("", "1", "1d", "s", "1s2", "9" * 30 + "h"):
        with pytest.raises(UsageError):
            duration(text, "x")


def test_moments() -> None:
    assert [moment(text, "x") for text in (None, "", "0", "17.5")] == [None, "", "0", "17.5"]
    assert moment("2026-01-31T12:00:00Z", "x") == "1769860800.000000000"
    assert moment("2026-01-31T12:00:00.123456789Z", "x") == "1769860800.123456000"
    before, after = (float(moment(text, "x") or 0) for text in ("10m", "0s"))
    assert 599 < after - before < 602
    assert moment("9999999h", "x") == "0.000000001"
    for text in ("yesterday", "2026-13-01", "-", "99999-01-01"):
        with pytest.raises(UsageError, match="invalid time"):
            moment(text, "x")
