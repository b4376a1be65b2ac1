"""What a container's network is to be, where netavark is missing, and what is written into its files."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from layerfs.container import aliases, hostconfig, hostfiles, netavark, networks, rewiring
from layerfs.container.members import Members
from layerfs.errors import Forbidden, LayerfsError, NotFound
from layerfs.host import netns
from layerfs.store import Store
from layerfs.store import networks as networks_of_store
from layerfs.store.model import Mount
from layerfs.union.changes import Change
from tests.unit.control_support import make_tree


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(networks_of_store, "routed", lambda: [IPv4Network("192.0.2.0/24")])
    with Store(tmp_path / "store") as store:
        store.import_image(make_tree(tmp_path / "tree"), "base")
        yield store


def container(store: Store, name: str, **settings: Any) -> Mount:
    options = {"container": {"NetworkMode": "bridge", "Binds": [], **settings}}
    return store.create_mount(name, image=store.resolve("base"), options=options)


@pytest.mark.parametrize(
    ("missing", "names", "package"),
    [
        ("netavark", False, "netavark"),
        ("aardvark-dns", True, "aardvark-dns"),
        ("iptables", False, "iptables"),
    ],
)
def test_one_line_says_which_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, missing: str, names: bool, package: str
) -> None:
    def find(name: str) -> str | None:
        return None if name == missing else f"/bin/{name}"

    monkeypatch.setattr(netavark, "find", find)
    monkeypatch.setattr(netavark, "find_program", find)
    with pytest.raises(NotFound, match=f"install the package {package}, or use --network") as caught:
        netavark.check_possible(names=names)
    assert "\n" not in str(caught.value)
    if names:
        netavark.check_possible(names=False)


def test_without_netavark_nothing_is_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netavark, "find", lambda name: None)
    mount = container(store, "c")
    with pytest.raises(NotFound, match="install the package netavark"):
        networks.set_up(store.root, mount)
    assert store.networks.endpoints() == []
    networks.take_down(store.root, mount.id)
    for mode in ("host", "none"):
        prepared = networks.set_up(store.root, container(store, mode, NetworkMode=mode))
        assert (prepared.namespace, prepared.files) == (None, hostfiles.Network())


def test_which_networks_a_container_is_to_be_in(store: Store) -> None:
    for name in ("a", "b"):
        store.networks.create(name)

    def wanted(**settings: Any) -> list[str]:
        if (given := settings.pop("Networks", None)) is not None:
            settings["NetworkingConfig"] = {"EndpointsConfig": given}
        found = networks.wanted_networks(store, {"NetworkMode": "b", **settings})
        return [network.name for network, _ in found]

    assert wanted() == ["b"]
    assert wanted(Networks={"a": {}, "b": None}) == ["b", "a"]
    assert wanted(Networks={store.networks.find("a").id: {}}) == ["a"]
    assert wanted(NetworkMode="default") == ["bridge"]
    assert wanted(NetworkMode="none") == wanted(NetworkMode="container:x") == []
    assert wanted(Networks={}) == []
    with pytest.raises(NotFound, match="network gone not found"):
        wanted(Networks={"gone": {}})


def test_a_container_with_a_bridge_and_without_one(store: Store) -> None:
    mount = container(store, "c", NetworkingConfig={"EndpointsConfig": {"bridge": {}, "host": {}}})
    with pytest.raises(Forbidden, match="connected to host network"):
        networks.set_up(store.root, mount)


def test_resolv_conf(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"/etc/resolv.conf": "nameserver 127.0.0.1\nnameserver 192.0.2.9\nsearch x\noptions rotate\n"}
    monkeypatch.setattr(hostfiles, "_text", lambda path: machine.get(path, ""))
    own = store.networks.create("own")

    def resolv(*joined: str, **wanted: Any) -> str:
        host, _ = hostconfig.taken(Members(wanted), "bridge")
        told = networks.resolver([store.networks.find(name) for name in joined], [])
        hostfiles.write_resolver(tmp_path, host, told)
        return (tmp_path / "resolv.conf").read_text()

    assert resolv("bridge") == "nameserver 192.0.2.9\nsearch x\noptions rotate\n"
    assert resolv("own") == f"nameserver {own.subnets[0].gateway}\nsearch x\noptions rotate\n"
    given = {"Dns": ["192.0.2.1"], "DnsSearch": ["."], "DnsOptions": ["ndots:2"]}
    assert resolv("bridge", **given) == "nameserver 192.0.2.1\noptions ndots:2\n"
    machine["/etc/resolv.conf"] = "nameserver 127.0.0.1\nnameserver ::1\n"
    assert resolv("bridge") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"
    assert resolv("own").endswith("\noptions ndots:0\n")
    machine |= {
        "/etc/resolv.conf": "nameserver 127.0.0.53\n",
        hostfiles._BEHIND_STUB: "nameserver 192.0.2.3\n",
    }
    assert resolv("bridge") == "nameserver 192.0.2.3\n"


def test_hosts(store: Store, tmp_path: Path) -> None:
    network = store.networks.create("n")
    one, two = container(store, "one", Hostname="first"), container(store, "two")
    there = store.networks.join(one.id, network.id)
    own = store.networks.join(two.id, network.id)
    links = aliases.linked(store, two, [own], [(network, {"Links": ["one:db", "/one", "missing:x"]})])
    assert links == [(there.address, "db first one"), (there.address, "one first")]
    host, _ = hostconfig.taken(Members({}), "n")
    hostfiles.write(tmp_path, "box", "", host, networks.resolver([network], [own], links))
    assert (tmp_path / "hosts").read_text().splitlines()[-3:] == [
        f"{there.address}\tdb first one",
        f"{there.address}\tone first",
        f"{own.address}\tbox",
    ]
    with (tmp_path / "hosts").open("a") as file:
        file.write("# mine\n")
    hostfiles.connect(tmp_path, "box", "example.org", ["192.0.2.8"])
    hostfiles.disconnect(tmp_path, [own.address])
    text = (tmp_path / "hosts").read_text()
    assert text.endswith(f"{there.address}\tone first\n# mine\n192.0.2.8\tbox.example.org box\n")


def test_what_netavark_says_is_one_line() -> None:
    assert netavark._said('[DEBUG x]\n{"error":"it\\n failed"}\n') == "it failed"
    assert netavark._said("no\njson") == "no json"
    assert netavark._said("") == "it failed without a word"


def test_what_was_told_is_known_until_it_is_undone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def run(command: str, namespace: Path, told: netavark.Told) -> str:
        calls.append(command)
        return "no" if command == "setup" else ""

    monkeypatch.setattr(netavark, "_run", run)
    monkeypatch.setattr(netavark, "_LOCK", tmp_path / "lock")
    monkeypatch.setattr(netavark, "_keep_isolation", lambda told: None)
    monkeypatch.setattr(netns, "is_one", lambda path: True)
    with pytest.raises(LayerfsError, match="netavark: no"):
        netavark.set_up("c", "n", {"a": 1})
    assert netavark.known("c") == {"n": {"a": 1}}
    (tmp_path / "run/networks/c/cut").write_text('{"a"')
    assert netavark.known("c") == {"n": {"a": 1}}
    netavark.tear_down("c", "n")
    netavark.tear_down("c", "n")
    assert netavark.known("c") == {}
    assert calls == ["setup", "teardown"]


@pytest.mark.root
def test_a_namespace_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "netns/one"
    netns.make(path)
    try:
        assert netns.is_one(path)
        with pytest.raises(FileExistsError):
            netns.make(path)
        assert not netns.is_one(tmp_path)
        assert not netns.is_one(tmp_path / "missing")
    finally:
        netns.remove(path)
    netns.remove(path)
    assert not path.exists()


def test_a_link_on_the_default_bridge_tells_what_the_other_container_is(store: Store) -> None:
    bridge = store.networks.find("bridge")
    one = store.create_mount(
        "one",
        image=store.resolve("base"),
        config={
            "Env": ["FOO=1", "PATH=/bin", "HOME=/", "ALONE"],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        },
        options={"container": {"NetworkMode": "bridge"}},
    )
    host = {"HostConfig": {"Links": ["one:my-db", "missing:x"]}}
    two = store.create_mount("two", image=store.resolve("base"), options={"container": host})
    address = store.networks.join(one.id, bridge.id).address
    assert aliases.variables(store, two, bridge.id) == [
        f"MY_DB_PORT=tcp://{address}:80",
        f"MY_DB_PORT_80_TCP=tcp://{address}:80",
        f"MY_DB_PORT_80_TCP_ADDR={address}",
        "MY_DB_PORT_80_TCP_PORT=80",
        "MY_DB_PORT_80_TCP_PROTO=tcp",
        f"MY_DB_PORT_53_UDP=udp://{address}:53",
        f"MY_DB_PORT_53_UDP_ADDR={address}",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_NAME=/two/my-db",
        "MY_DB_ENV_FOO=1",
    ]


def test_a_link_can_be_removed_by_its_name(store: Store) -> None:
    one = container(store, "one")
    two = container(store, "two", HostConfig={"Links": ["one:db", "/one"]})
    rewiring.remove_link(store.root, two, "db")
    assert store.mount(two.id).container["HostConfig"]["Links"] == ["/one"]
    with pytest.raises(NotFound, match="two/db"):
        rewiring.remove_link(store.root, two, "db")
    assert store.mount(one.id).name == "one"


def test_the_places_of_mounts_are_no_changes() -> None:
    def shown(*changes: tuple[str, bytes]) -> list[bytes]:
        return [change.path for change in hostfiles.without_places([Change(*change) for change in changes])]

    made = (("C", b"/etc"), ("A", b"/etc/hosts"), ("A", b"/etc/resolv.conf"))
    assert shown(*made, ("A", b"/proc"), ("A", b"/test")) == [b"/test"]
    assert shown(*made, ("A", b"/etc/own")) == [b"/etc", b"/etc/own"]
    assert shown(("C", b"/etc"), ("C", b"/dev"), ("A", b"/dev/x")) == [b"/etc", b"/dev", b"/dev/x"]
