"""The routes about volumes, and the commands on them: shapes, filters, statuses, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfs.store import Store
from layerfs.unixhttp.message import Request
from tests.unit.control_support import ask, make_tree, whole_answer
from tests.unit.test_cli_commands import Run, fails, run
from tests.unit.test_networks_routes import answer

__all__ = ["run"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a container called "c" that does not run."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    with Store(tmp_path / "store") as store:
        store.import_image(make_tree(tmp_path / "tree"), "base")
        options = {"container": {"NetworkMode": "host", "Binds": [["used", "/data", "ro"]]}}
        store.create_mount("c", image=store.resolve("base"), options=options)
        store.volumes.create("used")
        store.volumes.claim(store.mount("c").id, "/data", "used")
    return tmp_path / "store"


def create(root: Path, name: str, **members: Any) -> Any:
    status, made = answer(root, "POST", "/volumes/create", {"Name": name, **members})
    assert status == 201, made
    return made


def test_the_shape_of_a_volume(root: Path) -> None:
    made = create(root, "data", Driver="local", Labels={"a": "b"})
    assert made.pop("CreatedAt").endswith("Z")
    assert made == {
        "Driver": "local",
        "Labels": {"a": "b"},
        "Mountpoint": str(root / "volumes/data/_data"),
        "Name": "data",
        "Options": None,
        "Scope": "local",
    }
    found = ask(root, "GET", "/volumes/data")
    assert found.pop("CreatedAt")
    assert found == made
    assert create(root, "data", Labels={"c": "d"})["Labels"] == {"a": "b"}
    unnamed = create(root, "")
    assert (len(unnamed["Name"]), unnamed["Labels"]) == (64, {"com.docker.volume.anonymous": ""})
    listed = ask(root, "GET", "/volumes")
    assert [it["Name"] for it in listed["Volumes"]] == sorted([unnamed["Name"], "data", "used"])
    assert listed["Warnings"] is None


def test_a_container_shows_its_volumes(root: Path) -> None:
    expected = {
        "Type": "volume",
        "Name": "used",
        "Source": str(root / "volumes/used/_data"),
        "Destination": "/data",
        "Driver": "local",
        "Mode": "ro",
        "RW": False,
        "Propagation": "",
    }
    assert ask(root, "GET", "/containers/c/json")["Mounts"] == [expected]
    (listed,) = ask(root, "GET", "/containers/json", all=True)
    assert listed["Mounts"] == [expected]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"Name": 1}, 400, "Name must be a string"),
        ({"Name": "a"}, 400, "create a: volume name is too short"),
        ({"Name": "/etc"}, 400, 'create /etc: "/etc" includes invalid characters for a local volume name'),
        ({"Name": "x", "Driver": "nfs"}, 404, 'error looking up volume plugin nfs: plugin "nfs" not found'),
        ({"Name": "xy", "Driver": []}, 400, "Driver must be a string"),
        ({"Name": "xy", "Labels": {"a": 1}}, 400, "Labels.a must be a string"),
        ({"Name": "xy", "DriverOpts": ["a"]}, 400, "DriverOpts must be an object of strings"),
        ({"Name": "xy", "DriverOpts": {"foo": "bar"}}, 400, 'create xy: invalid option: "foo"'),
        ({"Name": "xy", "DriverOpts": {"size": "1G"}}, 400, "no quota support"),
        ({"Name": "xy", "DriverOpts": {"type": "nfs"}}, 400, 'missing required option: "device"'),
        ({"Name": "xy", "ClusterVolumeSpec": {}}, 503, "not a swarm manager"),
        ({"Name": "xy", "ClusterVolumeSpec": 1}, 400, "ClusterVolumeSpec must be an object"),
        (b"nonsense", 400, "invalid JSON"),
        (b'"x"', 400, "must be an object"),
    ],
)
def test_bad_requests_to_create(root: Path, body: Any, status: int, words: str) -> None:
    found = answer(root, "POST", "/volumes/create", body)
    assert (found[0], words in found[1]["message"]) == (status, True), found
    assert [it["Name"] for it in ask(root, "GET", "/volumes")["Volumes"]] == ["used"]


def test_removing(root: Path) -> None:
    create(root, "data")
    assert answer(root, "DELETE", "/volumes/data") == (204, None)
    assert answer(root, "DELETE", "/volumes/data") == (404, {"message": "get data: no such volume"})
    assert answer(root, "DELETE", "/volumes/data", force="1") == (204, None)
    assert answer(root, "DELETE", "/volumes/../x")[0] == 404
    status, found = answer(root, "DELETE", "/volumes/used", force="1")
    with Store(root) as store:
        identifier = store.mount("c").id
    assert (status, found) == (409, {"message": f"remove used: volume is in use - [{identifier}]"})
    assert answer(root, "PUT", "/volumes/used")[0] == 503


def test_a_container_takes_its_volumes_along(root: Path) -> None:
    with Store(root) as store:
        own = store.volumes.create()
        store.volumes.claim(store.mount("c").id, "/own", own.name)
    assert answer(root, "DELETE", "/containers/c", v="1") == (204, None)
    assert [it["Name"] for it in ask(root, "GET", "/volumes")["Volumes"]] == ["used"]


def test_filters(root: Path) -> None:
    create(root, "data", Labels={"a": "1"})

    def names(**filters: Any) -> list[str]:
        found = ask(root, "GET", "/volumes", filters=json.dumps(filters))
        return [volume["Name"] for volume in found["Volumes"]]

    assert names(name=["dat"]) == names(name=["^data$"]) == ["data"]
    assert names(dangling=["true"]) == ["data"]
    assert names(dangling=["false"]) == ["used"]
    assert names(label=["a=1"]) == ["data"]
    assert names(driver=["other"]) == []
    assert names(driver=["local"]) == ["data", "used"]
    for bad in ({"dangling": ["x"]}, {"color": ["red"]}):
        assert answer(root, "GET", "/volumes", filters=json.dumps(bad))[0] == 400


def test_pruning(root: Path) -> None:
    create(root, "data", Labels={"a": "1"})
    unnamed = create(root, "")["Name"]
    (root / "volumes" / unnamed / "_data/file").write_bytes(bytes(100))

    def prune(**filters: list[str]) -> Any:
        return ask(root, "POST", "/volumes/prune", filters=json.dumps(filters))

    assert prune(label=["a"]) == {"VolumesDeleted": [], "SpaceReclaimed": 0}
    assert prune() == {"VolumesDeleted": [unnamed], "SpaceReclaimed": 100}
    assert prune(**{"label!": ["a"]}, all=["true"]) == {"VolumesDeleted": [], "SpaceReclaimed": 0}
    assert prune(all=["1"])["VolumesDeleted"] == ["data"]
    for bad in ({"until": ["1h"]}, {"all": ["x"]}):
        assert answer(root, "POST", "/volumes/prune", filters=json.dumps(bad))[0] == 400
    create(root, "old")
    found = whole_answer(root, Request("POST", "/v1.41/volumes/prune"))
    assert json.loads(found.body)["VolumesDeleted"] == ["old"]


def test_disk_usage(root: Path) -> None:
    (root / "volumes/used/_data/file").write_bytes(bytes(1000))
    (found,) = ask(root, "GET", "/system/df", type=["volume"])["Volumes"]
    assert found["UsageData"] == {"RefCount": 1, "Size": 1000}


def test_the_commands(run: Run, root: Path) -> None:
    assert run("volume", "create", "data", "--label", "a=b") == (0, "data\n", "")
    assert run("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", "mem")[0] == 0
    assert run("volume", "ls")[1].splitlines() == [
        "DRIVER    VOLUME NAME", "local     data", "local     mem", "local     used",
    ]  # fmt: skip
    assert run("volume", "ls", "-q", "--filter", "label=a")[1] == "data\n"
    row = json.loads(run("volume", "ls", "--format", "json", "--filter", "name=data")[1])
    assert (row["Name"], row["Labels"], row["Mountpoint"]) == (
        "data",
        "a=b",
        str(root / "volumes/data/_data"),
    )
    (found,) = json.loads(run("volume", "inspect", "mem")[1])
    assert found["Options"] == {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    fails(run("volume", "inspect", "missing"), 1, "get missing: no such volume")
    fails(run("volume", "create", "a"), 1, "volume name is too short")
    fails(run("volume", "create", "-o", "=x", "data"), 2, "bad option '=x'")
    fails(run("volume", "rm", "used"), 1, "volume is in use")
    assert run("volume", "rm", "mem")[1] == "mem\n"
    assert run("volume", "rm", "-f", "mem")[1] == "mem\n"
    fails(run("volume", "rm", "mem"), 1, "no such volume")
    fails(run("volume", "prune"), 2, "give --force")
    assert run("volume", "prune", "-f")[1] == "Total reclaimed space: 0B\n"
    assert run("volume", "prune", "-f", "--all")[1].splitlines()[:2] == ["Deleted Volumes:", "data"]
