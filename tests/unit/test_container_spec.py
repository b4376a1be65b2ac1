"""What is made of an image's configuration and of options, and what an OCI runtime is told."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from layerfs.container import capabilities, mountpoints, seccomp, spec
from layerfs.container.settings import described, environment
from layerfs.container.users import User
from layerfs.errors import BadRequest, LayerfsError
from layerfs.host.signals import signal_number

IMAGE = {"Cmd": ["image-cmd"], "Entrypoint": ["/entry"], "Env": ["A=1", "B=2"], "Labels": {"x": "y"}}


def test_no_command() -> None:
    for image, body in (({}, {}), ({"Cmd": None}, {}), (IMAGE, {"Entrypoint": [""]})):
        with pytest.raises(BadRequest, match="no command specified"):
            described(image, body)


def test_a_name_alone_unsets_a_variable_whatever_the_engine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "h")
    own = ["A=1", "B=2", "NOWHERE=3"]
    assert environment(own, ["B=b=c", "C=", "HERE", "NOWHERE"]) == ["A=1", "B=b=c", "C="]
    for bad in ("=x", "", "A=\0"):
        with pytest.raises(BadRequest, match="invalid environment variable"):
            environment([], [bad])


def test_signals() -> None:
    assert [signal_number(text) for text in ("TERM", "SIGKILL", "int", "9", "SIGRTMIN")] == [15, 9, 2, 9, 34]
    assert [signal_number(text) for text in ("SIGRTMIN+3", "rtmax-1", "SIGRTMAX")] == [37, 63, 64]
    for bad in ("", "0", "65", "-1", "NOTHING", "SIG", "²", "RTMIN+31", "RTMAX-31", "RTMIN+", "9" * 5000):
        with pytest.raises(BadRequest, match="invalid signal"):
            signal_number(bad)


ROOT = User(0, 0)


def build(user: User = ROOT, network: str = "host", **config: Any) -> dict[str, Any]:
    """Return a specification."""
    body = {"Hostname": "host", "HostConfig": {"NetworkMode": network}}
    return spec.build(
        mount_id="0" * 64,
        root=Path("/tree"),
        config={"Cmd": ["true"], **config},
        settings=described({"Cmd": ["true"]}, body).settings,
        user=user,
        points=[mountpoints.bind("/a", "/b", writable=False)],
    )


def test_rights() -> None:
    of_root, of_jane = build()["process"], build(User(1000, 100, (10,), "/home/jane"))["process"]
    assert of_root["capabilities"]["effective"] == list(capabilities.DEFAULT)
    assert "CAP_SYS_ADMIN" not in of_root["capabilities"]["bounding"]
    assert of_jane["capabilities"] == {"bounding": list(capabilities.DEFAULT)}
    assert of_jane["user"] == {"uid": 1000, "gid": 100, "additionalGids": [100, 10]}
    assert "HOME=/home/jane" in of_jane["env"]


def test_what_the_image_says_comes_first() -> None:
    process = build(Env=["PATH=/own", "HOME=/elsewhere"], WorkingDir="/srv")["process"]
    assert process["env"] == ["PATH=/own", "HOSTNAME=host", "HOME=/elsewhere"]
    assert process["cwd"] == "/srv"
    assert build(WorkingDir="")["process"]["cwd"] == "/"
    with pytest.raises(BadRequest, match="absolute path"):
        build(WorkingDir="srv")


def test_mounts_and_namespaces() -> None:
    built = build()
    assert [mount["destination"] for mount in built["mounts"]][:2] == ["/proc", "/dev"]
    assert built["mounts"][-1]["options"] == ["rbind", "rprivate", "ro"]
    assert "ro" in next(mount for mount in built["mounts"] if mount["destination"] == "/sys")["options"]
    assert {"type": "network"} not in built["linux"]["namespaces"]
    assert built["linux"]["sysctl"] == {}
    assert {"type": "network"} in build(network="none")["linux"]["namespaces"]
    assert built["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}


PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": None, "includes": {}, "excludes": {}},
        {"name": "old", "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {
            "names": ["mount"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
        {"names": ["breakpoint"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm", "arm64"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["no-ptrace"], "action": "SCMP_ACT_ERRNO", "excludes": {"minKernel": "4.8"}},
        {
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "comment": "",
            "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ", "more": 1}],
        },
    ],
}


def allowed(filter_: dict[str, Any], action: str = "SCMP_ACT_ALLOW") -> set[str]:
    """Return the names of the calls that *filter_* has rules with *action* for."""
    return {name for rule in filter_["syscalls"] if rule["action"] == action for name in rule["names"]}


def test_a_profile_becomes_a_filter() -> None:
    found = seccomp.convert(PROFILE, {"CAP_CHOWN"}, "amd64", "SCMP_ARCH_X86_64", "6.1.0-13-amd64")
    assert allowed(found) == {"read", "old", "ptrace", "personality"}
    assert allowed(found, "SCMP_ACT_ERRNO") == {"mount"}
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert (found["defaultAction"], found["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert found["syscalls"][-1]["args"] == [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]
    admin = seccomp.convert(PROFILE, {"CAP_SYS_ADMIN"}, "arm64", "SCMP_ARCH_AARCH64", "4.7.1")
    assert allowed(admin) == {"read", "old", "mount", "breakpoint", "personality"}
    assert allowed(admin, "SCMP_ACT_ERRNO") == {"no-ptrace"}


def test_the_installed_profile() -> None:
    found = seccomp.default_filter(capabilities.DEFAULT)
    assert found is not None, "install golang-github-containers-common"
    assert {"read", "openat", "clone", "chroot"} <= allowed(found)
    assert {"bpf", "init_module"} <= allowed(found, "SCMP_ACT_ERRNO") - allowed(found)
    keys, namespaces = {"add_key", "keyctl", "request_key"}, {"clone3", "mount", "setns", "unshare"}
    assert keys | namespaces <= allowed(found, "SCMP_ACT_ERRNO") - allowed(found)
    json.dumps(found)


def test_x32_is_filtered_where_the_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (False, True):
        monkeypatch.setattr(seccomp, "has_x32", lambda has=has: has)
        found = seccomp.default_filter(capabilities.DEFAULT)
        assert found is not None
        assert ("SCMP_ARCH_X32" in found["architectures"]) == (has and platform.machine() == "x86_64")


def rules(filter_: dict[str, Any], name: str) -> list[tuple[Any, ...]]:
    """Return the rules of *filter_* for the call *name*: action, errno, and the conditions on arguments."""
    return [
        (
            rule["action"].removeprefix("SCMP_ACT_"),
            rule.get("errnoRet"),
            *((arg["index"], arg["op"], arg["value"], arg["valueTwo"]) for arg in rule.get("args", ())),
        )
        for rule in filter_["syscalls"]
        if name in rule["names"]
    ]


def is_allowed_family(filter_: dict[str, Any], family: int) -> bool:
    """Return whether *filter_* allows sockets of a family; no two rules may contradict each other."""

    def meets(op: str, value: int, second: int) -> bool:
        if op == "SCMP_CMP_MASKED_EQ":
            return family & value == second
        return family < value if op == "SCMP_CMP_LT" else family == value

    found = {action for action, _, (_, *condition) in rules(filter_, "socket") if meets(*condition)}
    assert len(found) <= 1
    return found == {"ALLOW"}


def test_no_profile_opens_more_than_dockers() -> None:
    names = ["read", "clone", "clone3", "socket", "keyctl", "unshare", "bpf"]
    every = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": [], "syscalls": [
        {"names": names, "action": "SCMP_ACT_ALLOW"},
        {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22},
    ]}  # fmt: skip
    found = seccomp.restrict(every, {"CAP_CHOWN"}, "amd64")
    assert rules(found, "read") == [("ALLOW", None)]
    for name in ("keyctl", "add_key", "request_key", "unshare", "bpf"):
        assert rules(found, name) == [("ERRNO", 1)]
    assert rules(found, "clone3") == [("ERRNO", 38)]
    assert rules(found, "clone")[0] == ("ALLOW", None, (0, "SCMP_CMP_MASKED_EQ", 0x7E020000, 0))
    assert rules(found, "socket")[0] == ("ALLOW", None, (0, "SCMP_CMP_LT", 38, 0))
    assert ("ERRNO", 1, (0, "SCMP_CMP_EQ", 40, 0)) in rules(found, "socket")
    assert len(rules(found, "socket")) < 10  # a dozen more is five milliseconds more for each container
    families = {
        family for family in (*range(70), 1 << 32 | 38, 1 << 32 | 1) if is_allowed_family(found, family)
    }
    assert families == {*range(64)} - {38, 40}
    on_s390 = seccomp.restrict(every, {"CAP_CHOWN"}, "s390x")
    assert {rule[2][0] for rule in rules(on_s390, "clone")} == {1}
    admin = seccomp.restrict(every, {"CAP_SYS_ADMIN"}, "amd64")
    for name in ("clone", "clone3", "unshare"):
        assert rules(admin, name) == [("ALLOW", None)]
    assert rules(admin, "keyctl") == [("ERRNO", 1)]


def test_the_profile_of_an_administrator_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "seccomp.json"
    monkeypatch.setattr(seccomp, "OWN_PROFILE", own)
    own.write_text(json.dumps({**PROFILE, "syscalls": [{"names": ["keyctl"], "action": "SCMP_ACT_ALLOW"}]}))
    found = seccomp.default_filter(capabilities.DEFAULT)
    assert found is not None
    assert rules(found, "keyctl") == [("ALLOW", None)]
    own.write_text("[" * 100_000)
    with pytest.raises(LayerfsError, match="is not a seccomp profile"):
        seccomp.default_filter(capabilities.DEFAULT)
