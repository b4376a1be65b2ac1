"""The routes about mounts: at rest, running in this process, running in another, and dead."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from layerfs.client.client import Client
from layerfs.errors import BadRequest, Conflict, NotFound
from layerfs.host.rundir import RunLock
from layerfs.store import Store
from layerfs.store.model import Mount
from tests.unit.control_support import DirectoryMount, ask, exchange, make_tree, running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    with Store(tmp_path / "store") as store:
        store.import_image(make_tree(tmp_path / "tree"), "debian:12", changes=['CMD ["bash"]'])
    return tmp_path / "store"


@pytest.fixture
def mount(root: Path) -> Mount:
    with Store(root) as store:
        return store.create_mount("base", image=store.resolve("debian:12"))


def write(root: Path, name: str, text: str) -> None:
    with Store(root) as store:
        (store.layer(store.mount("base").upper or "").path / name).write_text(text)


async def call(path: Path, method: str, target: str, body: bytes = b"") -> tuple[int, Any]:
    """Return status and JSON of the answer of the server on *path*."""
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    answer = await exchange(path, head.encode() + body, end=False)
    start, _, rest = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(rest) if rest else None


def test_list_and_inspect(root: Path, mount: Mount) -> None:
    assert ask(root, "GET", "/containers/json") == []
    (found,) = ask(root, "GET", "/containers/json", all=True)
    assert found["Id"] == mount.id
    assert found["Names"] == ["/base"]
    assert found["Image"] == "debian:12"
    assert found["Command"] == "bash"
    assert (found["State"], found["Status"]) == ("created", "Created")
    for name in ("base", "/base", mount.id, mount.id[:12]):
        inspected = ask(root, "GET", f"/containers/{name}/json")
        assert inspected["Id"] == mount.id
    assert inspected["State"]["Running"] is False
    assert inspected["GraphDriver"]["Data"]["UpperDir"].endswith(f"{mount.upper}/fs")
    assert "SizeRw" not in inspected
    write(root, "new", "12345")
    sized = ask(root, "GET", "/containers/base/json", size=True)
    assert (sized["SizeRw"], sized["SizeRootFs"]) == (5, 3_000_011)


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"name": ["bas"]}, 1),
        ({"name": ["/base"]}, 1),
        ({"name": ["other"]}, 0),
        ({"status": ["created"]}, 1),
        ({"status": ["running"]}, 0),
        ({"ancestor": ["debian:12"]}, 1),
        ({"label": ["x"]}, 0),
    ],
)
def test_filters(root: Path, mount: Mount, filters: dict[str, list[str]], count: int) -> None:
    assert len(ask(root, "GET", "/containers/json", all=True, filters=json.dumps(filters))) == count


def test_limits(root: Path, mount: Mount) -> None:
    assert len(ask(root, "GET", "/containers/json", limit="1")) == 1
    assert ask(root, "GET", "/containers/json", limit="-1") == []
    with pytest.raises(BadRequest, match="limit"):
        ask(root, "GET", "/containers/json", limit="many")


def test_unknown_mounts(root: Path) -> None:
    for method, path in (
        ("GET", "/containers/nothing/json"),
        ("GET", "/containers/nothing/changes"),
        ("POST", "/containers/nothing/stop"),
        ("DELETE", "/containers/nothing"),
        ("GET", "/layerfs/status"),
        ("POST", "/layerfs/unmount"),
        ("POST", "/commit"),
    ):
        with pytest.raises(NotFound, match="no such mount: nothing"):
            ask(root, method, path, name="nothing", container="nothing")
    with pytest.raises(BadRequest, match="name of a mount"):
        ask(root, "POST", "/commit")


def test_a_mount_at_rest(root: Path, mount: Mount) -> None:
    write(root, "new", "1")
    assert ask(root, "GET", "/containers/base/changes") == [{"Path": "/new", "Kind": 1}]
    image = ask(
        root,
        "POST",
        "/commit",
        container="base",
        repo="made",
        comment="why",
        author="who",
        changes=["ENV A=1", "USER me\nWORKDIR /w"],
    )
    found = ask(root, "GET", "/images/made/json")
    assert found["Id"] == image["Id"]
    assert (found["Comment"], found["Author"]) == ("why", "who")
    assert found["Config"] == {"Cmd": ["bash"], "Env": ["A=1"], "User": "me", "WorkingDir": "/w"}
    assert [item["Size"] for item in ask(root, "GET", "/images/made/history")] == [1, 3_000_006]
    assert ask(root, "GET", "/containers/base/changes") is None
    for path in ("/layerfs/unmount", "/layerfs/status"):
        with pytest.raises(Conflict, match="base is not mounted; run 'layerfs mount --name base MOUNTPOINT'"):
            ask(root, "POST" if "un" in path else "GET", path, name="base")
    ask(root, "DELETE", "/containers/base")
    assert ask(root, "GET", "/containers/json", all=True) == []


@pytest.mark.parametrize(
    ("parameters", "body"),
    [
        ({"repo": "BAD"}, b""),
        ({"tag": "x"}, b""),
        ({"repo": "a", "tag": "b:c"}, b""),
        ({"changes": ["FROM x"]}, b""),
        ({"changes": ["EXPOSE many"]}, b""),
        ({}, b"{"),
        ({}, b"[]"),
        ({}, b'{"Cmd": 3}'),
        ({}, b'{"Env": ["A=1", 2]}'),
        ({}, b'{"Labels": ["a"]}'),
        ({}, b'{"User": "a\\nCMD b"}'),
        ({}, b"[" * 100_000),
    ],
)
def test_bad_commits_change_nothing(
    root: Path, mount: Mount, parameters: dict[str, Any], body: bytes
) -> None:
    write(root, "new", "1")
    with pytest.raises(BadRequest):
        ask(root, "POST", "/commit", body, container="base", **parameters)
    assert len(ask(root, "GET", "/images/json", all=True)) == 1
    assert ask(root, "GET", "/containers/base/changes") == [{"Path": "/new", "Kind": 1}]
    assert len(list((root / "layers").iterdir())) == 2


def test_a_commit_takes_a_configuration(root: Path, mount: Mount) -> None:
    config = {
        "Cmd": ["a b", "c"],
        "Entrypoint": "/init",
        "Env": ['SAY=it\'s "me" for $5 \\ more', "PATH=/bin", "UNSET"],
        "Labels": {"org.example.text": "two words", "empty": ""},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/var/my data": {}},
        "OnBuild": ["RUN make"],
        "User": "me:us",
        "WorkingDir": "/work here",
        "Hostname": "ignored",
    }
    ask(root, "POST", "/commit", json.dumps(config).encode(), container="base", repo="made")
    assert ask(root, "GET", "/images/made/json")["Config"] == {
        "Cmd": ["a b", "c"],
        "Entrypoint": ["/init"],
        "Env": ['SAY=it\'s "me" for $5 \\ more', "PATH=/bin"],
        "Labels": {"org.example.text": "two words", "empty": ""},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/var/my data": {}},
        "OnBuild": ["RUN make"],
        "User": "me:us",
        "WorkingDir": "/work here",
    }


def test_a_mount_whose_daemon_died(root: Path, mount: Mount, tmp_path: Path) -> None:
    with Store(root) as store:
        store.set_mounted(mount.id, str(tmp_path), datetime.now(UTC))
    line = f"base is not running \\(its daemon ended without unmounting\\); run .* --name base {tmp_path}'"
    for method, path in (("POST", "/commit"), ("GET", "/layerfs/status")):
        with pytest.raises(Conflict, match=line):
            ask(root, method, path, container="base", name="base")
    (found,) = ask(root, "GET", "/containers/json", all=True)
    assert (found["State"], found["Status"]) == ("dead", "Dead")
    ask(root, "POST", "/layerfs/unmount", name="base")
    (found,) = ask(root, "GET", "/containers/json", all=True)
    assert found["State"] == "exited"
    with Store(root) as store:
        store.set_mounted(mount.id, str(tmp_path), datetime.now(UTC))
    ask(root, "DELETE", "/containers/base")
    assert ask(root, "GET", "/containers/json", all=True) == []


def test_a_dead_mount_without_a_name_goes_when_unmounted(root: Path, tmp_path: Path) -> None:
    with Store(root) as store:
        mount = store.create_mount("passing", image=store.resolve("debian:12"), ephemeral=True)
        store.set_mounted(mount.id, str(tmp_path), datetime.now(UTC))
    ask(root, "POST", "/containers/passing/stop")
    assert ask(root, "GET", "/containers/json", all=True) == []


def test_a_running_daemon_that_does_not_answer(root: Path, mount: Mount) -> None:
    with RunLock("base") as lock:
        lock.set_pid(1)
        for method, path in (("DELETE", "/containers/base"), ("GET", "/containers/base/changes")):
            with pytest.raises(Conflict, match="does not answer on /"):
                ask(root, method, path)
    assert ask(root, "GET", "/containers/base/json")["Id"] == mount.id


def test_a_client_needs_a_daemon(root: Path) -> None:
    with pytest.raises(Conflict, match="base is not running"):
        Client.for_mount("base")
    with pytest.raises(BadRequest):
        Client.for_mount("../etc/passwd")


async def test_a_running_mount(root: Path, mount: Mount) -> None:
    async with running(root, mount, "/mnt/x") as found:
        (found.live.upper() / "new").write_text("1")
        for name in ("base", "%2Fbase", mount.id, mount.id[:10]):  # the last by way of the store
            assert await call(found.socket, "GET", f"/containers/{name}/changes") == (
                200,
                [{"Path": "/new", "Kind": 1}],
            )
        status, answer = await call(found.socket, "POST", "/v1.41/commit?container=base&repo=made", b"null")
        assert status == 201
        assert (await call(found.socket, "GET", "/images/made/json"))[1]["Id"] == answer["Id"]
        (listed,) = (await call(found.socket, "GET", "/containers/json"))[1]
        assert (listed["State"], listed["Mountpoint"]) == ("running", "/mnt/x")
        assert listed["Status"].startswith("Up ")
        assert (await call(found.socket, "GET", "/layerfs/status"))[1]["requests"] == {"lookup": 7}
        assert (await call(found.socket, "POST", "/commit?container=base&changes=RUN%20x"))[0] == 400
        assert (await call(found.socket, "DELETE", "/containers/base"))[0] == 409
        found.live.busy = True
        assert (await call(found.socket, "POST", "/layerfs/unmount"))[0] == 409
        assert not found.live.ended.is_set()
        assert await call(found.socket, "POST", "/layerfs/unmount?force=1") == (204, None)
        with trio.fail_after(5):
            await found.live.ended.wait()
    assert ask(root, "GET", "/containers/base/json")["State"]["Status"] == "exited"


async def test_a_call_finds_the_daemon_it_concerns(root: Path, mount: Mount) -> None:
    with Store(root) as store:
        other = store.create_mount("other", image=store.resolve("debian:12"))
    async with running(root, mount, "/mnt/x") as found:
        (found.live.upper() / "new").write_text("1")

        def from_a_command() -> None:
            assert ask(root, "GET", "/containers/base/changes") == [{"Path": "/new", "Kind": 1}]
            made = ask(root, "POST", "/commit", container="base", comment="a & b = ü", changes=["ENV A=1&2"])
            image = ask(root, "GET", f"/images/{made['Id']}/json")
            assert image["Comment"] == "a & b = ü"
            assert image["Config"]["Env"] == ["A=1&2"]
            with pytest.raises(BadRequest, match="invalid reference"):
                ask(root, "POST", "/commit", container="base", repo="BAD")
            assert ask(root, "GET", "/layerfs/status", name="base")["name"] == "base"
            assert Client.for_mount("base").request("GET", "/layerfs/status")["name"] == "base"

        await trio.to_thread.run_sync(from_a_command)
        async with running(root, other, "/mnt/y") as second:
            assert (await call(second.socket, "GET", "/containers/base/changes"))[1] is None
            assert (await call(second.socket, "DELETE", "/containers/base?force=1"))[0] == 204
            with trio.fail_after(5):
                await found.live.ended.wait()
    assert [item["Names"] for item in ask(root, "GET", "/containers/json", all=True)] == [["/other"]]


async def test_mounts_of_another_store_are_left_alone(root: Path, mount: Mount, tmp_path: Path) -> None:
    with Store(tmp_path / "second") as store:
        image = store.import_image(tmp_path / "tree", "debian:12")
        store.create_mount("base", image=image)
    async with running(root, mount, "/mnt/x"):
        with pytest.raises(Conflict, match="belongs to another store"):
            await trio.to_thread.run_sync(
                lambda: ask(tmp_path / "second", "DELETE", "/containers/base", force=True)
            )


def test_the_stand_in_is_a_live_mount(root: Path, mount: Mount) -> None:
    from layerfs.mounting.served import LiveMount

    live: LiveMount = DirectoryMount(root, mount, "/mnt/x")
    assert live.name == "base"
