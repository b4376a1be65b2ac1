"""The routes about networks, and the commands on them: shapes, filters, statuses, bad input."""

from __future__ import annotations

import json
import time
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from layerfs.api import app
from layerfs.client.client import local_place
from layerfs.store import Store
from layerfs.store import networks as networks_of_store
from layerfs.store.model import Mount, Port
from layerfs.unixhttp.message import Query, Request, Stream
from tests.unit.control_support import ask, make_tree, whole_answer
from tests.unit.test_cli_commands import Run, fails, run

__all__ = ["run"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a container called "c" that does not run, and a mount called "m"."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(networks_of_store, "routed", lambda: [IPv4Network("192.0.2.0/24")])
    with Store(tmp_path / "store") as store:
        store.import_image(make_tree(tmp_path / "tree"), "base", changes=["EXPOSE 80 53/udp"])
        options = {"container": {"NetworkMode": "bridge", "Binds": []}}
        store.create_mount("c", image=store.resolve("base"), options=options)
        store.create_mount("m", image=store.resolve("base"))
    return tmp_path / "store"


def answer(root: Path, method: str, path: str, body: Any = None, **query: str) -> tuple[int, Any]:
    """Return the status and the JSON of the answer to a request."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    found = whole_answer(root, Request(method, path, Query(tuple(query.items())), text))
    return found.status, json.loads(found.body) if found.body else None


def create(root: Path, name: str, **members: Any) -> str:
    status, made = answer(root, "POST", "/networks/create", {"Name": name, **members})
    assert status == 201, made
    identifier: str = made["Id"]
    return identifier


def container(store: Store) -> Mount:
    return store.mount("c")


def test_the_shape_of_a_network(root: Path) -> None:
    config = {
        "Subnet": "10.0.0.0/16",
        "IPRange": "10.0.5.0/24",
        "Gateway": "10.0.5.254",
        "AuxiliaryAddresses": {"a": "10.0.5.1"},
    }
    identifier = create(
        root,
        "n",
        Driver="bridge",
        Attachable=True,
        Labels={"l": "v"},
        Options={"com.docker.network.driver.mtu": "1400", "mine": "yes"},
        IPAM={"Driver": "default", "Config": [config], "Options": {"foo": "bar"}},
        CheckDuplicate=True,
    )
    status, found = answer(root, "GET", "/networks/n")
    assert (status, found["Id"], len(identifier)) == (200, identifier, 64)
    assert found.pop("Created").endswith("Z")
    assert found == {
        "Name": "n",
        "Id": identifier,
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": {"foo": "bar"}, "Config": [config]},
        "Internal": False,
        "Attachable": True,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Options": {"com.docker.network.driver.mtu": "1400", "mine": "yes"},
        "Labels": {"l": "v"},
        "Containers": {},
    }
    listed = {network["Name"]: network for network in ask(root, "GET", "/networks")}
    assert set(listed) == {"n", "bridge", "host", "none"}
    assert "Containers" not in listed["n"]
    assert answer(root, "GET", "/networks/")[0] == 200
    old = whole_answer(root, Request("GET", "/v1.27/networks"))
    assert all("Containers" in network for network in json.loads(old.body))


def test_who_is_in_a_network(root: Path) -> None:
    create(root, "n", IPAM={"Config": [{"Subnet": "10.0.0.0/16"}]})
    with Store(root) as store:
        mount = container(store)
        endpoint = store.networks.join(mount.id, store.networks.find("n").id)
        store.networks.publish(mount.id, [Port("tcp", "0.0.0.0", 8080, 80)])
        store.networks.set_wanted(mount.id, store.networks.find("n"), {"Aliases": ["x"]})
    assert ask(root, "GET", "/networks/n")["Containers"] == {
        mount.id: {
            "Name": "c",
            "EndpointID": endpoint.id,
            "MacAddress": "02:42:0a:00:00:02",
            "IPv4Address": "10.0.0.2/16",
            "IPv6Address": "",
        }
    }
    settings = ask(root, "GET", "/containers/c/json")["NetworkSettings"]
    assert settings["Ports"] == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "53/udp": None}
    own = settings["Networks"]["n"]
    assert (own["IPAddress"], own["IPPrefixLen"], own["Gateway"]) == ("10.0.0.2", 16, "10.0.0.1")
    assert own["DNSNames"] == ["c", "x", mount.id[:12]]
    assert settings["Networks"]["bridge"]["IPAddress"] == ""
    (listed,) = [it for it in ask(root, "GET", "/containers/json", all=True) if it["Names"] == ["/c"]]
    assert {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"} in listed["Ports"]
    assert set(listed["NetworkSettings"]["Networks"]) == {"n", "bridge"}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "invalid network name ''"),
        ({"Name": 7}, 400, "Name must be a string"),
        ({"Name": "a\nb"}, 400, "invalid network name"),
        ({"Name": "bridge"}, 403, "operation is not permitted on predefined bridge network"),
        ({"Name": "n", "Driver": 1}, 400, "Driver must be a string"),
        ({"Name": "n", "Driver": "host"}, 403, 'only one instance of "host" network is allowed'),
        ({"Name": "n", "Driver": "macvlan"}, 404, 'plugin "macvlan" not found'),
        ({"Name": "n", "Scope": "swarm"}, 403, "not a swarm manager"),
        ({"Name": "n", "Ingress": True}, 403, "not a swarm manager"),
        ({"Name": "n", "Ingress": "yes"}, 400, "Ingress must be true or false"),
        ({"Name": "n", "ConfigOnly": True}, 400, "not supported"),
        ({"Name": "n", "ConfigFrom": {"Network": "x"}}, 400, "not supported"),
        ({"Name": "n", "ConfigFrom": "x"}, 400, "ConfigFrom must be an object"),
        ({"Name": "n", "CheckDuplicate": 1}, 400, "CheckDuplicate must be true or false"),
        ({"Name": "n", "Internal": "true"}, 400, "Internal must be true or false"),
        ({"Name": "n", "Attachable": []}, 400, "Attachable must be true or false"),
        ({"Name": "n", "EnableIPv6": 1}, 400, "EnableIPv6 must be true or false"),
        ({"Name": "n", "EnableIPv4": False}, 400, "without IPv4 is not supported"),
        ({"Name": "n", "Labels": ["a"]}, 400, "Labels must be an object of strings"),
        ({"Name": "n", "Labels": {"a": 1}}, 400, "Labels.a must be a string"),
        ({"Name": "n", "Options": {"a": 1}}, 400, "Options.a must be a string"),
        ({"Name": "n", "IPAM": []}, 400, "IPAM must be an object"),
        ({"Name": "n", "IPAM": {"Driver": "x"}}, 404, 'plugin "x" not found'),
        ({"Name": "n", "IPAM": {"Options": [1]}}, 400, "IPAM.Options must be an object of strings"),
        ({"Name": "n", "IPAM": {"Config": {}}}, 400, "IPAM.Config must be a list of objects"),
        ({"Name": "n", "IPAM": {"Config": ["10.0.0.0/8"]}}, 400, "IPAM.Config[0] must be an object"),
        ({"Name": "n", "IPAM": {"Config": [{"Subnet": 1}]}}, 400, r"IPAM.Config[0].Subnet must be a string"),
        ({"Name": "n", "IPAM": {"Config": [{"Subnet": "x"}]}}, 400, "invalid subnet x"),
        ({"Name": "n", "IPAM": {"Config": [{"Subnet": "172.17.1.0/24"}]}}, 403, "Pool overlaps with other"),
        ({"Name": "n", "Options": {"com.docker.network.driver.mtu": "x"}}, 400, "give 68 to 65535"),
        ({"Name": "n", "Options": {"com.docker.network.driver.mtu": "67"}}, 400, "give 68 to 65535"),
        ({"Name": "n", "Options": {"com.docker.network.bridge.name": "a/b"}}, 400, "no name of an interface"),
        ({"Name": "n", "Options": {"com.docker.network.bridge.name": "lo"}}, 403, "lo exists already"),
        ({"Name": "n", "Options": {"com.docker.network.bridge.enable_icc": "false"}}, 400, "not supported"),
        ({"Name": "n", "Options": {"com.docker.network.bridge.unheard_of": "1"}}, 400, "not supported"),
        (
            {"Name": "n", "Options": {"com.docker.network.bridge.host_binding_ipv4": "x"}},
            400,
            "invalid IPv4 address",
        ),
        (b"[", 400, "invalid JSON"),
        (b"[]", 400, "must be an object"),
        (b"7", 400, "must be an object"),
    ],
)
def test_bad_requests_to_create(root: Path, body: Any, status: int, words: str) -> None:
    found = answer(root, "POST", "/networks/create", body)
    assert found[0] == status, found
    assert words in found[1]["message"]
    assert len(ask(root, "GET", "/networks")) == 3


def test_names_are_unique(root: Path) -> None:
    create(root, "n")
    status, found = answer(root, "POST", "/networks/create", {"Name": "n"})
    assert (status, found) == (409, {"message": "network with name n already exists"})


def test_removing(root: Path) -> None:
    identifier = create(root, "n")
    assert answer(root, "DELETE", f"/networks/{identifier[:10]}") == (204, None)
    assert answer(root, "DELETE", "/networks/n") == (404, {"message": "network n not found"})
    assert answer(root, "GET", "/networks/n")[0] == 404
    for name in ("bridge", "host", "none"):
        message = f"{name} is a pre-defined network and cannot be removed"
        assert answer(root, "DELETE", f"/networks/{name}") == (403, {"message": message})


def test_a_network_that_a_dead_container_left_can_be_removed(root: Path) -> None:
    create(root, "n")
    with Store(root) as store:
        store.networks.join(container(store).id, store.networks.find("n").id)
    assert answer(root, "DELETE", "/networks/n") == (204, None)


def test_filters(root: Path) -> None:
    create(root, "alpha", Labels={"a": "1"})
    create(root, "beta")
    with Store(root) as store:
        beta = store.networks.find("beta")
        store.networks.set_wanted(container(store).id, beta, {})

    def names(**filters: Any) -> set[str]:
        found = ask(root, "GET", "/networks", filters=json.dumps(filters))
        return {network["Name"] for network in found}

    everything = {"alpha", "beta", "bridge", "host", "none"}
    assert names() == everything
    assert names(name=["alph"]) == {"alpha"}
    assert names(name=["^beta$"]) == {"beta"}
    assert names(name=["^bet"]) == {"beta"}
    assert names(name=["eta$"]) == {"beta"}
    assert names(name={"alpha": True, "beta": False}) == {"alpha"}
    assert names(id=[beta.id[:8]]) == {"beta"}
    assert names(driver=["null", "host"]) == {"host", "none"}
    assert names(label=["a"]) == names(label=["a=1"]) == {"alpha"}
    assert names(scope=["swarm"]) == set()
    assert names(type=["custom"]) == {"alpha", "beta"}
    assert names(type=["builtin"]) == everything - {"alpha", "beta"}
    assert names(dangling=["true"]) == {"alpha"}
    assert names(dangling=["0"]) == everything - {"alpha"}
    for bad in ({"type": ["x"]}, {"dangling": ["x"]}, {"color": ["red"]}, {"name": "x"}):
        status, found = answer(root, "GET", "/networks", filters=json.dumps(bad))
        assert (status, "filter" in found["message"]) == (400, True)


def test_pruning(root: Path) -> None:
    create(root, "alpha", Labels={"a": "1"})
    create(root, "beta")
    with Store(root) as store:
        store.networks.set_wanted(container(store).id, store.networks.find("beta"), {})

    def prune(**filters: list[str]) -> Any:
        return ask(root, "POST", "/networks/prune", filters=json.dumps(filters))["NetworksDeleted"]

    assert prune(until=["1h"]) is None
    assert prune(label=["b"]) is None
    assert prune(**{"label!": ["a"]}) is None
    assert prune(label=["a=1"]) == ["alpha"]
    assert prune() is None
    for bad in ({"until": ["x"]}, {"until": ["1h", "2h"]}, {"name": ["x"]}):
        assert answer(root, "POST", "/networks/prune", filters=json.dumps(bad))[0] == 400
    request = Request(
        "GET", "/events", Query((("since", "1"), ("until", f"{time.time():.6f}"), ("filters", NETWORKS)))
    )
    events = app.answer(local_place(root), request)
    assert isinstance(events, Stream)
    found = [json.loads(line) for line in b"".join(events.chunks).splitlines()]
    assert [event["Action"] for event in found if event["Actor"]["Attributes"].get("name") == "alpha"] == [
        "create", "destroy",
    ]  # fmt: skip
    assert found[-1]["Action"] == "prune"


NETWORKS = '{"type": ["network"]}'


def test_connecting_a_container_that_does_not_run(root: Path) -> None:
    create(root, "n", IPAM={"Config": [{"Subnet": "10.0.0.0/16"}]})
    wanted = {
        "Aliases": ["web"],
        "IPAMConfig": {"IPv4Address": "10.0.0.9", "LinkLocalIPs": ["169.254.1.1"]},
        "Links": ["other:o"],
        "MacAddress": "02:00:00:00:00:AA",
        "DriverOpts": {"a": "b"},
        "GwPriority": 3,
        "NetworkID": "what dockerd says itself",
        "IPAddress": "1.2.3.4",
    }
    body = {"Container": "c", "EndpointConfig": wanted}
    assert answer(root, "POST", "/networks/n/connect", body) == (200, None)
    own = ask(root, "GET", "/containers/c/json")["NetworkSettings"]["Networks"]
    assert set(own) == {"bridge", "n"}
    assert own["n"]["IPAMConfig"] == wanted["IPAMConfig"]
    assert (own["n"]["Links"], own["n"]["Aliases"], own["n"]["IPAddress"]) == (["other:o"], ["web"], "")
    assert answer(root, "POST", "/networks/n/disconnect", {"Container": "/c", "Force": True}) == (200, None)
    assert set(ask(root, "GET", "/containers/c/json")["NetworkSettings"]["Networks"]) == {"bridge"}
    status, found = answer(root, "POST", "/networks/n/disconnect", {"Container": "c"})
    assert (status, "is not connected to network n" in found["message"]) == (500, True)
    assert not (root.parent / "run/containers").exists() or not list(
        (root.parent / "run/containers").iterdir()
    )


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("x", "EndpointConfig must be an object"),
        ({"Aliases": "x"}, "EndpointConfig.Aliases must be a list of strings"),
        ({"Aliases": [1]}, "EndpointConfig.Aliases[0] must be a string"),
        ({"Aliases": ["a b"]}, "invalid alias 'a b'"),
        ({"Aliases": ["a\nb"]}, "invalid alias"),
        ({"Links": {}}, "EndpointConfig.Links must be a list of strings"),
        ({"IPAMConfig": []}, "EndpointConfig.IPAMConfig must be an object"),
        ({"IPAMConfig": {"IPv4Address": 1}}, "IPAMConfig.IPv4Address must be a string"),
        ({"IPAMConfig": {"IPv4Address": "x"}}, "invalid IPv4 address: x"),
        ({"IPAMConfig": {"IPv4Address": "fd00::1"}}, "invalid IPv4 address: fd00::1"),
        ({"IPAMConfig": {"IPv4Address": "0.0.0.0"}}, "invalid IPv4 address: 0.0.0.0"),
        ({"IPAMConfig": {"IPv6Address": "10.0.0.1"}}, "invalid IPv6 address"),
        ({"IPAMConfig": {"IPv4Address": "10.1.0.1"}}, "no configured subnet contains IP address 10.1.0.1"),
        ({"IPAMConfig": {"LinkLocalIPs": ["x"]}}, "invalid link-local IP address: x"),
        ({"MacAddress": "x"}, "invalid MAC address: x"),
        ({"MacAddress": 1}, "EndpointConfig.MacAddress must be a string"),
        ({"DriverOpts": ["a"]}, "EndpointConfig.DriverOpts must be an object of strings"),
        ({"GwPriority": "1"}, "EndpointConfig.GwPriority must be a whole number"),
        ({"GwPriority": True}, "EndpointConfig.GwPriority must be a whole number"),
    ],
)
def test_bad_endpoints(root: Path, endpoint: Any, words: str) -> None:
    create(root, "n", IPAM={"Config": [{"Subnet": "10.0.0.0/16"}]})
    body = {"Container": "c", "EndpointConfig": endpoint}
    status, found = answer(root, "POST", "/networks/n/connect", body)
    assert (status, words in found["message"]) == (400, True), found


@pytest.mark.parametrize(
    ("network", "body", "status", "words"),
    [
        ("n", {}, 400, "give the member Container"),
        ("n", {"Container": 1}, 400, "Container must be a string"),
        ("n", {"Container": "x"}, 404, "x"),
        ("n", {"Container": "m"}, 409, "m is a mount, not a container"),
        ("x", {"Container": "c"}, 404, "network x not found"),
        ("host", {"Container": "c"}, 403, "host network"),
        ("none", {"Container": "c"}, 403, "private (none) mode"),
        ("bridge", {"Container": "c", "EndpointConfig": {"Aliases": ["a"]}}, 400, "user-defined networks"),
        (
            "bridge",
            {"Container": "c", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "172.17.0.9"}}},
            400,
            "on user defined networks only",
        ),
    ],
)
def test_bad_connects(root: Path, network: str, body: Any, status: int, words: str) -> None:
    create(root, "n")
    found = answer(root, "POST", f"/networks/{network}/connect", body)
    assert (found[0], words in found[1]["message"]) == (status, True), found


@pytest.mark.parametrize(("mode", "status"), [("host", 403), ("none", 403), ("container:x", 403)])
def test_a_container_without_a_bridge_cannot_be_connected(root: Path, mode: str, status: int) -> None:
    create(root, "n")
    with Store(root) as store:
        options = {"container": {"NetworkMode": mode, "Binds": []}}
        store.create_mount("d", image=store.resolve("base"), options=options)
    assert answer(root, "POST", "/networks/n/connect", {"Container": "d"})[0] == status


def test_bad_disconnects(root: Path) -> None:
    create(root, "n")
    for body, status in (({"Container": "c", "Force": 1}, 400), ({"Container": "x"}, 404), ([], 400)):
        assert answer(root, "POST", "/networks/n/disconnect", body)[0] == status


def test_the_commands(run: Run, root: Path) -> None:
    assert run("network", "ls", "--filter", "type=builtin")[1].splitlines()[0].split() == [
        "NETWORK", "ID", "NAME", "DRIVER", "SCOPE",
    ]  # fmt: skip
    status, out, _ = run(
        "network", "create", "--subnet", "10.0.0.0/16", "--subnet", "fd00::/64", "--ipv6", "--gateway",
        "10.0.0.9", "--ip-range", "10.0.1.0/24", "--aux-address", "a=10.0.1.1", "--label", "l=v", "-o",
        "com.docker.network.driver.mtu=1400", "--internal", "--attachable", "mine",
    )  # fmt: skip
    assert (status, len(out)) == (0, 65)
    (found,) = json.loads(run("network", "inspect", "mine")[1])
    assert found["IPAM"]["Config"] == [
        {
            "Subnet": "10.0.0.0/16",
            "IPRange": "10.0.1.0/24",
            "Gateway": "10.0.0.9",
            "AuxiliaryAddresses": {"a": "10.0.1.1"},
        },
        {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
    ]
    assert (found["Internal"], found["Attachable"], found["Labels"]) == (True, True, {"l": "v"})
    (row,) = [
        json.loads(line)
        for line in run("network", "ls", "--format", "json", "--filter", "name=mine")[1].splitlines()
    ]
    assert (row["Name"], row["IPv6"], row["Internal"], row["Labels"]) == ("mine", "true", "true", "l=v")
    assert run("network", "ls", "-q", "--no-trunc", "--filter", "label=l")[1] == out
    assert run("network", "connect", "--alias", "web", "--ip", "10.0.1.7", "mine", "c")[0] == 0
    fails(run("network", "connect", "mine", "missing"), 1, "missing")
    assert run("network", "disconnect", "mine", "c")[0] == 0
    fails(run("network", "disconnect", "mine", "c"), 1, "is not connected to network mine")
    assert run("network", "rm", "mine")[1] == "mine\n"
    fails(run("network", "rm", "mine"), 1, "network mine not found")
    assert run("network", "rm", "-f", "mine") == (0, "", "")
    fails(run("network", "inspect", "mine"), 1, "network mine not found")
    fails(run("network", "create", ""), 2, "is empty")
    fails(
        run("network", "create", "n", "--gateway", "10.0.0.1"), 2, "no matching subnet for gateway 10.0.0.1"
    )
    fails(run("network", "create", "n", "--label", "=x"), 2, "bad label '=x'")
    fails(run("network", "ls", "--filter", "x"), 2, "bad filter 'x'")
    fails(run("network", "prune"), 2, "give --force")
    run("network", "create", "gone")
    assert run("network", "prune", "-f")[1] == "Deleted Networks:\ngone\n"
    assert run("network", "prune", "-f") == (0, "", "")
