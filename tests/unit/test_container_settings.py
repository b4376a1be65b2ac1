"""What a request to create a container may say, and what is made of everything else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layerfs.container import hostconfig, resources, spec
from layerfs.container.settings import Description, described
from layerfs.container.stored import host_config
from layerfs.container.users import User
from layerfs.errors import BadRequest, LayerfsError, NotFound
from layerfs.host.cgroups import Support

IMAGE: dict[str, Any] = {
    "Cmd": ["image-cmd"],
    "Entrypoint": ["/entry"],
    "Env": ["A=1", "B=2"],
    "Labels": {"of": "image"},
    "Volumes": {"/data": {}},
    "ExposedPorts": {"80/tcp": {}},
    "Healthcheck": {"Test": ["CMD", "true"], "Retries": 2},
    "StopSignal": "SIGINT",
}
HERE = Support(cpus="0-1", memory_nodes="0")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with control groups of version 1 that can limit everything."""
    monkeypatch.setattr("layerfs.host.cgroups.support", lambda: HERE)
    monkeypatch.setattr("layerfs.host.cgroups.unified", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("layerfs.container.seccomp.default_filter", lambda rights: None)


def make(host: object = None, **members: Any) -> Description:
    """Return what the container is that these members ask for."""
    return described(IMAGE, {"HostConfig": host, **members})


def host(**members: Any) -> dict[str, Any]:
    """Return the `HostConfig` that comes of these members."""
    return host_config(make(members).settings)


def points(**members: Any) -> list[dict[str, Any]]:
    """Return the mount points that a `HostConfig` asks for, without that of the image."""
    found = make(members).settings["MountPoints"]
    return [point for point in found if point["Destination"] != "/data"]


def refused(line: str, host: object = None, **members: Any) -> None:
    """Check that these members are refused with a line in which *line* is."""
    with pytest.raises(BadRequest) as caught:
        make(host, **members)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_image_speaks_where_the_request_does_not() -> None:
    config = make().config
    assert config == IMAGE
    config = make(
        Env=["B=3", "C=4", "A"],
        Labels={"own": "1"},
        Volumes={"/more": {}},
        ExposedPorts={"53/udp": {}, "90-91": {}},
        Healthcheck={"Interval": 10**9},
        StopTimeout=3,
        User="7:8",
        WorkingDir="/srv/../tmp/",
    ).config
    assert config["Env"] == ["B=3", "C=4", "A"]
    assert config["Labels"] == {"of": "image", "own": "1"}
    assert config["Volumes"] == {"/more": {}, "/data": {}}
    assert sorted(config["ExposedPorts"]) == ["53/udp", "80/tcp", "90/tcp", "91/tcp"]
    assert config["Healthcheck"] == {"Test": ["CMD", "true"], "Retries": 2, "Interval": 10**9}
    assert (config["StopSignal"], config["StopTimeout"]) == ("SIGINT", 3)
    assert (config["User"], config["WorkingDir"]) == ("7:8", "/tmp")
    assert IMAGE["Env"] == ["A=1", "B=2"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, ["/entry", "image-cmd"]),
        ({"Cmd": ["a"]}, ["/entry", "a"]),
        ({"Cmd": "a b"}, ["/entry", "a b"]),
        ({"Cmd": [], "Entrypoint": []}, ["/entry", "image-cmd"]),
        ({"Entrypoint": ["/own"]}, ["/own"]),
        ({"Entrypoint": "/own", "Cmd": ["a"]}, ["/own", "a"]),
        ({"Entrypoint": [""], "Cmd": ["a"]}, ["a"]),
    ],
)
def test_the_command(members: dict[str, Any], words: list[str]) -> None:
    config = make(**members).config
    assert [*config["Entrypoint"], *config["Cmd"]] == words


def test_no_command() -> None:
    refused("no command specified", Entrypoint=[""])


def test_defaults_are_dockerds() -> None:
    found = host()
    assert found["NetworkMode"] == "bridge"
    assert found["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert found["LogConfig"] == {"Type": "json-file", "Config": {}}
    assert (found["IpcMode"], found["CgroupnsMode"], found["ShmSize"]) == ("private", "host", 64 << 20)
    assert found["MaskedPaths"] == list(hostconfig.MASKED)
    assert (found["OomKillDisable"], found["PidsLimit"], found["MemorySwappiness"]) == (False, None, None)
    assert host(Memory=64 << 20)["MemorySwap"] == 128 << 20
    assert host(PidsLimit=-1)["PidsLimit"] is None
    privileged = host(Privileged=True)
    assert (privileged["MaskedPaths"], privileged["SecurityOpt"]) == (None, ["label=disable"])
    assert host(NetworkMode="default")["NetworkMode"] == "bridge"
    assert make(NetworkDisabled=True).settings["HostConfig"]["NetworkMode"] == "none"


def test_what_was_given_is_kept() -> None:
    given = {
        "Binds": ["/a:/b:ro"], "CapAdd": ["NET_ADMIN"], "Dns": ["1.1.1.1"], "ExtraHosts": ["a:::1"],
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080-8090"}]},
        "Sysctls": {"net.core.somaxconn": "9"},
        "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}], "Tmpfs": {"/t": "size=1m"}, "Init": True,
        "LogConfig": {"Type": "local", "Config": {"max-size": "10m"}}, "ConsoleSize": [24, 80],
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}, "GroupAdd": ["audio", "12"],
        "Devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rw"}],
        "DeviceCgroupRules": ["c 1:* rwm"], "ReadonlyRootfs": True, "NanoCpus": 10**9, "CgroupParent": "/own",
        "MaskedPaths": [], "OomScoreAdj": -5, "PidMode": "host", "UTSMode": "host", "Annotations": {"a": "b"},
    }  # fmt: skip
    found = host(**given)
    assert {name: found[name] for name in given} == given


def test_modes_of_other_containers_become_their_ids() -> None:
    def find(name: str) -> Any:
        if name != "other":
            raise NotFound(f"No such container: {name}")
        return SimpleNamespace(
            id="f" * 64, config={}, container=make({"Binds": ["/x:/y"]}).settings, name="other"
        )

    body: dict[str, Any] = {"HostConfig": {"NetworkMode": "container:other", "PidMode": "container:later"}}
    found = host_config(described(IMAGE, body, find=find).settings)
    assert (found["NetworkMode"], found["PidMode"]) == (f"container:{'f' * 64}", "container:later")
    body = {"HostConfig": {"VolumesFrom": ["other:ro"]}}
    inherited = described(IMAGE, body, find=find).settings["MountPoints"]
    assert sorted((point["Destination"], point["RW"]) for point in inherited) == [
        ("/data", False),
        ("/y", False),
    ]
    body["HostConfig"]["VolumesFrom"] = ["missing"]
    with pytest.raises(BadRequest, match="No such container: missing"):
        described(IMAGE, body, find=find)


def test_mount_points(tmp_path: Path) -> None:
    (point,) = points(Binds=["/a/../b:/c/:ro,rslave,z"])
    assert (point["Type"], point["Source"], point["Destination"]) == ("bind", "/b", "/c")
    assert (point["RW"], point["Propagation"], point["Mode"]) == (False, "rslave", "ro,rslave,z")
    (point,) = points(Binds=["named:/c:nocopy"])
    assert (point["Type"], point["Name"], point["Driver"]) == ("volume", "named", "local")
    assert (point["Spec"]["NoCopy"], point["Spec"]["Anonymous"]) == (True, False)
    (point,) = points(Mounts=[{"Type": "bind", "Source": str(tmp_path), "Target": "/c", "ReadOnly": True}])
    assert (point["Source"], point["RW"], point["Propagation"]) == (str(tmp_path), False, "rprivate")
    (point,) = points(
        Mounts=[{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 2 << 20, "Mode": 0o1777}}]
    )
    assert (point["Type"], point["Spec"]["Options"]) == ("tmpfs", "mode=1777,size=2m")
    (point,) = points(
        Mounts=[{"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"Subpath": "in/it"}}]
    )
    assert (point["Name"], point["Spec"]["Subpath"]) == ("v", "in/it")
    own = make({"Binds": ["/mine:/data"]}).settings["MountPoints"]
    assert [(point["Type"], point["Destination"]) for point in own] == [("bind", "/data")]
    (anonymous,) = make().settings["MountPoints"]
    assert (anonymous["Destination"], len(anonymous["Name"])) == ("/data", 64)
    assert make({"Tmpfs": {"/data": ""}}).settings["MountPoints"] == []


@pytest.mark.parametrize(
    ("binds", "line"),
    [
        ([""], 'invalid volume specification: ""'),
        (["/a:/b:ro:x"], "invalid volume specification"),
        (["/a:ro"], "invalid volume specification"),
        (["/a:/"], "destination can't be '/'"),
        (["/a:b"], "mount path must be absolute"),
        (["/a:/b:ro,rw"], 'invalid mode: "ro,rw"'),
        (["/a:/b:rx"], 'invalid mode: "rx"'),
        (["a/b:/c"], "includes invalid characters for a local volume name"),
        (["../x:/c"], "includes invalid characters"),
        (["/a:/b", "/c:/b"], "Duplicate mount point: /b"),
    ],
)
def test_bad_binds(binds: list[str], line: str) -> None:
    refused(line, {"Binds": binds})


@pytest.mark.parametrize(
    ("mount", "line"),
    [
        ({}, "field Target must not be empty"),
        ({"Type": "x", "Target": "/a"}, "mount type unknown"),
        ({"Type": "image", "Target": "/a"}, "not supported"),
        ({"Type": "bind", "Target": "/a"}, "field Source must not be empty"),
        ({"Type": "bind", "Target": "/a", "Source": "/no/such"}, "bind source path does not exist: /no/such"),
        ({"Type": "bind", "Target": "/a", "Source": "x"}, "mount path must be absolute"),
        ({"Type": "bind", "Target": "/", "Source": "/"}, "destination can't be '/'"),
        ({"Type": "bind", "Target": "/a", "Source": "/", "VolumeOptions": {}}, "VolumeOptions must not be"),
        (
            {"Type": "bind", "Target": "/a", "Source": "/", "BindOptions": {"Propagation": "wide"}},
            "invalid propagation mode: wide",
        ),
        ({"Type": "tmpfs", "Target": "/a", "Source": "/x"}, "field Source must not be specified"),
        ({"Type": "tmpfs", "Target": "/a", "TmpfsOptions": {"SizeBytes": -1}}, "SizeBytes"),
        ({"Type": "tmpfs", "Target": "/a", "TmpfsOptions": {"Options": [["suid"]]}}, "invalid option: suid"),
        ({"Type": "volume", "Target": "/a", "VolumeOptions": {"Subpath": "x"}}, "anonymous volumes"),
        ({"Type": "volume", "Target": "/a", "Source": "v", "VolumeOptions": {"Subpath": "../x"}}, "relative"),
        (
            {"Type": "volume", "Target": "/a", "VolumeOptions": {"DriverConfig": {"Name": "nfs"}}},
            'plugin "nfs" not found',
        ),
    ],
)
def test_bad_mounts(mount: dict[str, Any], line: str) -> None:
    refused(line, {"Mounts": [mount]})


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"Memory": 1}, "Minimum memory limit allowed is 6MB"),
        ({"Memory": 8 << 20, "MemorySwap": 7 << 20}, "Minimum memoryswap limit should be larger"),
        ({"MemorySwap": 7 << 20}, "You should always set the Memory limit"),
        ({"Memory": 8 << 20, "MemoryReservation": 9 << 20}, "can not be less than memory reservation"),
        ({"MemoryReservation": 5}, "Minimum memory reservation allowed is 6MB"),
        ({"MemorySwappiness": 101}, "valid memory swappiness range is 0-100"),
        ({"NanoCpus": 3 * 10**9}, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        ({"NanoCpus": -1}, "range of CPUs"),
        ({"NanoCpus": 1, "CpuPeriod": 1000}, "Nano CPUs and CPU Period cannot both be set"),
        ({"NanoCpus": 1, "CpuQuota": 1000}, "Nano CPUs and CPU Quota cannot both be set"),
        ({"CpuPeriod": 999}, "CPU cfs period can not be less than 1ms"),
        ({"CpuQuota": 999}, "CPU cfs quota can not be less than 1ms"),
        ({"CpuShares": -1}, "invalid CPU shares (-1)"),
        ({"CpusetCpus": "0-7"}, "Requested CPUs are not available - requested 0-7, available: 0-1"),
        ({"CpusetCpus": "x"}, "Invalid value x for cpuset cpus"),
        ({"CpusetMems": "1"}, "Requested memory nodes are not available"),
        ({"BlkioWeight": 5}, "Range of blkio weight is from 10 to 1000"),
        ({"BlkioWeightDevice": [{"Path": "/dev/x", "Weight": 1}]}, "invalid weight for device: /dev/x:1"),
        ({"BlkioDeviceReadBps": [{"Path": "/dev/x", "Rate": -1}]}, "invalid rate for device"),
        ({"CpuRealtimeRuntime": 2, "CpuRealtimePeriod": 1}, "cannot be higher"),
        ({"IOMaximumIOps": 1}, "not supported on linux"),
        ({"OomScoreAdj": 1001}, "range for oom score adj is [-1000, 1000]"),
        ({"ShmSize": -1}, "SHM size can not be less than 0"),
        ({"CapAdd": ["NOPE"]}, 'invalid CapAdd: unknown capability: "CAP_NOPE"'),
        ({"CapDrop": ["CAP_CAP_KILL"]}, "invalid CapDrop: unknown capability"),
        ({"IpcMode": "container:"}, "invalid IPC mode: container:"),
        ({"PidMode": "x"}, "invalid PID mode: x"),
        ({"UTSMode": "container:x"}, "invalid UTS mode: container:x"),
        ({"UsernsMode": "private"}, "invalid user namespace mode"),
        ({"CgroupnsMode": "x"}, "invalid cgroup namespace mode: x"),
        ({"RestartPolicy": {"Name": "often"}}, "invalid restart policy: unknown policy 'often'"),
        ({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 1}}, "only be used with 'on-failure'"),
        ({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -1}}, "cannot be negative"),
        ({"RestartPolicy": {"Name": "always"}, "AutoRemove": True}, "can't create 'AutoRemove' container"),
        ({"LogConfig": {"Type": "fluentd"}}, "no log driver named 'fluentd' is registered"),
        ({"LogConfig": {"Type": "local", "Config": {"tag": "x"}}}, "unknown log opt 'tag'"),
        ({"LogConfig": {"Config": {"max-size": "much"}}}, "invalid value for max-size"),
        ({"LogConfig": {"Config": {"max-file": "0"}}}, "max-file must be a positive number"),
        ({"PortBindings": {"0/tcp": []}}, 'invalid port specification: "0/tcp"'),
        ({"PortBindings": {"80/icmp": []}}, "invalid port specification"),
        ({"PortBindings": {"80": [{"HostPort": "99999"}]}}, "invalid port specification"),
        ({"PortBindings": {"80": [{"HostIp": "x"}]}}, "invalid IP address"),
        ({"PortBindings": {"80": {}}}, "HostConfig.PortBindings.80 must be a list"),
        ({"Ulimits": [{"Name": "much"}]}, "invalid ulimit type: much"),
        ({"Ulimits": [{"Name": "core", "Soft": 2, "Hard": 1}]}, "soft limit must be less than or equal"),
        ({"ExtraHosts": ["x"]}, 'bad format for add-host: "x"'),
        ({"ExtraHosts": ["x:y"]}, 'invalid IP address in add-host: "y"'),
        ({"ExtraHosts": ["a\nb:1.1.1.1"]}, "bad format for add-host"),
        ({"Dns": ["x"]}, "invalid DNS address"),
        ({"DnsSearch": ["a b"]}, "invalid DnsSearch"),
        ({"DnsOptions": ["a\nnameserver 6.6.6.6"]}, "invalid DnsOptions"),
        ({"Sysctls": {"kernel.panic": "1"}}, "is not in a separate kernel namespace"),
        ({"Sysctls": {"net.x": "1"}, "NetworkMode": "host"}, "not allowed in host network namespace"),
        ({"Sysctls": {"net/../kernel/panic": "1"}}, "invalid sysctl"),
        ({"Sysctls": {"kernel.shmmax": "1"}, "IpcMode": "host"}, "not allowed in host ipc namespace"),
        ({"DeviceCgroupRules": ["c 1:1"]}, "invalid device cgroup rule format: 'c 1:1'"),
        ({"Devices": [{"PathOnHost": "x"}]}, "the paths of a device must be absolute"),
        ({"Devices": [{"PathOnHost": "/x", "CgroupPermissions": "rx"}]}, "invalid device mode: rx"),
        ({"SecurityOpt": ["x"]}, 'invalid --security-opt 1: "x"'),
        ({"SecurityOpt": ["x=y"]}, 'invalid --security-opt 2: "x=y"'),
        ({"SecurityOpt": ["no-new-privileges=maybe"]}, "invalid --security-opt 2"),
        ({"SecurityOpt": ["seccomp=/no/json"]}, "Decoding seccomp profile failed"),
        ({"SecurityOpt": ["seccomp=[]"]}, "Decoding seccomp profile failed: a profile must be an object"),
        ({"SecurityOpt": ["seccomp={}"]}, "Decoding seccomp profile failed: 'defaultAction' is missing"),
        ({"Tmpfs": {"/": ""}}, "destination can't be '/'"),
        ({"Tmpfs": {"/t": "size=much"}}, 'invalid tmpfs option "size=much"'),
        ({"Tmpfs": {"/t": "wide"}}, 'invalid tmpfs option "wide"'),
        ({"Tmpfs": {"x": ""}}, "mount path must be absolute"),
        ({"Tmpfs": {"/t": ""}, "Binds": ["/a:/t"]}, "Duplicate mount point: /t"),
        ({"Links": ["a:b"]}, "could not get container for a: No such container: a"),
        ({"Links": ["a b"]}, "bad format for links"),
        ({"Links": [], "NetworkMode": "container:x", "PublishAllPorts": True}, "port publishing"),
        ({"StorageOpt": {"size": "1g"}}, "--storage-opt is not supported"),
        ({"DeviceRequests": [{"Count": -1}]}, 'could not select device driver ""'),
        ({"Runtime": "kata"}, "unknown or invalid runtime name: kata"),
        ({"Isolation": "hyperv"}, "invalid isolation"),
        ({"VolumeDriver": "nfs"}, 'plugin "nfs" not found'),
        ({"CgroupParent": "/../x"}, "invalid cgroup parent"),
        ({"ConsoleSize": [1]}, "must be a height and a width"),
        ({"NetworkMode": "container:"}, "invalid container format container:<name|id>"),
        ({"NetworkMode": "container:x", "Dns": ["1.1.1.1"]}, "conflicting options: dns"),
        ({"NetworkMode": "container:x", "PublishAllPorts": True}, "conflicting options: port publishing"),
        ({"MaskedPaths": ["x"]}, "MaskedPaths must be absolute paths"),
    ],
)
def test_dockerds_lines(members: dict[str, Any], line: str) -> None:
    refused(line, members)


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"Hostname": "a" * 65}, "invalid hostname"),
        ({"Hostname": "a/b"}, "invalid hostname"),
        ({"Domainname": "a b"}, "invalid domain name"),
        ({"WorkingDir": "srv"}, "needs to be an absolute path"),
        ({"StopSignal": "NOPE"}, "invalid signal"),
        ({"Env": ["=x"]}, "invalid environment variable: =x"),
        ({"Env": [""]}, "invalid environment variable"),
        ({"ExposedPorts": {"x": {}}}, "invalid port specification"),
        ({"Volumes": {"x": {}}}, "must be an absolute path"),
        ({"Healthcheck": {"Interval": 3}}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"Healthcheck": {"Retries": -1}}, "Retries in Healthcheck cannot be negative"),
        ({"Healthcheck": {"Test": ["RUN"]}}, "Unknown healthcheck type 'RUN'"),
        ({"MacAddress": "x"}, "invalid MAC address"),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": {"IPAMConfig": {"IPv4Address": "::1"}}}}}, "IPv4"),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": []}}}, "EndpointsConfig.n must be an object"),
        ({"Hostname": "a", "HostConfig": {"UTSMode": "host"}}, "hostname and the UTS mode"),
        ({"MacAddress": "2:0:0:0:0:1", "HostConfig": {"NetworkMode": "none"}}, "mac-address"),
    ],
)
def test_lines_about_the_configuration(members: dict[str, Any], line: str) -> None:
    with pytest.raises(BadRequest) as caught:
        described(IMAGE, members)
    assert line in str(caught.value)


def test_networks() -> None:
    given = {"EndpointsConfig": {"default": {"Aliases": ["db"], "IPAMConfig": {"IPv4Address": "10.0.0.9"}}}}
    found = make(NetworkingConfig=given, MacAddress="2:0:0:0:0:1").settings["NetworkingConfig"]
    endpoint = found["EndpointsConfig"]["bridge"]
    assert (endpoint["Aliases"], endpoint["MacAddress"]) == (["db"], "02:00:00:00:00:01")
    assert endpoint["IPAMConfig"]["IPv4Address"] == "10.0.0.9"


def test_what_the_kernel_cannot_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Support(
        memory=False, swap=False, swappiness=False, reservation=False, oom_kill_disable=False, pids=False,
        cpu_shares=False, cpu_quota=False, cpu_realtime=False, blkio_weight=False, blkio_limits=False,
    )  # fmt: skip
    monkeypatch.setattr("layerfs.host.cgroups.support", lambda: none)
    wanted: dict[str, Any] = {
        "Memory": 64 << 20, "MemorySwappiness": 5, "OomKillDisable": True, "PidsLimit": 5, "CpuShares": 5,
        "CpuPeriod": 2000, "CpuQuota": 2000, "CpusetCpus": "0", "BlkioWeight": 20,
        "BlkioDeviceReadBps": [{"Path": "/dev/x", "Rate": 1}],
    }  # fmt: skip
    made = make(wanted)
    assert len(made.warnings) == len(wanted)
    assert resources.for_runtime(host_config(made.settings)) == {}
    with pytest.raises(BadRequest, match="NanoCPUs can not be set"):
        make({"NanoCpus": 10**9})
    monkeypatch.setattr("layerfs.host.cgroups.support", lambda: Support(swap=False))
    assert host(Memory=64 << 20)["MemorySwap"] == -1


HOSTILE: tuple[Any, ...] = (
    0, 1, -1, 2**63, -(2**63) - 1, 10**400, 1.5, float("nan"), True, False, "", "x", "a\0b", "\ud800", "\n",
    "/", "x" * 100_000, [], [None], [1], [""], ["a\0"], [[]], [{}], {}, {"": None}, {"a": 1}, {"a": {}},
    {"\0": ""}, {"/x": None}, [{"Name": 1}], [{"Type": []}], {"a": [{}]}, {"80": [{"HostPort": 1}]},
)  # fmt: skip


def nested(depth: int) -> Any:
    """Return a list in a list, so many times."""
    result: list[Any] = []
    for _ in range(depth):
        result = [result]
    return result


@pytest.mark.parametrize("hostile", [*HOSTILE, nested(10_000)], ids=lambda value: type(value).__name__)
def test_no_value_of_any_member_is_taken_unseen(hostile: Any) -> None:
    complete = make().settings
    own = ("Hostname", "User", "Env", "Cmd", "Entrypoint", "Labels", "Volumes", "ExposedPorts", "Healthcheck",
           "StopSignal", "StopTimeout", "WorkingDir", "Shell", "OnBuild", "MacAddress", "NetworkingConfig",
           "Image", "Tty", "Domainname", "HostConfig")  # fmt: skip
    bodies: list[Any] = [hostile, *({name: hostile} for name in own)]
    of_host = (*complete["HostConfig"], "Mounts", "Init", "Tmpfs", "Sysctls", "StorageOpt", "Annotations")
    bodies += [{"HostConfig": {name: hostile}} for name in of_host]
    for name in ("Mounts", "Devices", "Ulimits", "BlkioWeightDevice", "DeviceRequests"):
        for member in (
            "Type",
            "Target",
            "Source",
            "PathOnHost",
            "Name",
            "Soft",
            "Path",
            "Weight",
            "BindOptions",
        ):
            bodies.append({"HostConfig": {name: [{member: hostile}]}})
    for body in bodies:
        line = outcome(body)
        assert "\n" not in line
        assert len(line) < 1000


def outcome(body: Any) -> str:
    """Return the line that *body* is refused with, an empty one if what it asks for can be stored."""
    try:
        made = described(IMAGE, body)
    except BadRequest as error:
        return str(error)
    json.dumps([made.config, made.settings], allow_nan=False).encode()
    ready = [{**point, "Source": point["Source"] or "/volume"} for point in made.settings["MountPoints"]]
    try:
        built = spec.build(
            mount_id="0" * 64,
            root=Path("/tree"),
            config=made.config,
            settings=made.settings,
            user=User(0, 0),
            points=ready,
        )
    except LayerfsError as error:
        return str(error)
    json.dumps(built, allow_nan=False).encode()
    return ""


def test_settings_of_an_older_layerfs() -> None:
    old = {
        "Tty": False,
        "Hostname": "",
        "NetworkMode": "none",
        "Binds": [["/a", "/b", "ro"]],
        "AutoRemove": True,
    }
    found = host_config(old)
    assert (found["NetworkMode"], found["Binds"], found["AutoRemove"]) == ("none", ["/a:/b:ro"], True)
