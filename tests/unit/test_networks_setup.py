"""What a container's network is to be, where netavark is missing, and what is written into its files."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from layerfs.container import names, netavark, networks
from layerfs.errors import BadRequest, Conflict, Forbidden, LayerfsError, NotFound
from layerfs.host import netns
from layerfs.store import Store
from layerfs.store import networks as networks_of_store
from layerfs.store.model import Mount
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
        assert (prepared.mode, prepared.namespace, prepared.resolv) == (mode, None, None)


def test_the_namespaces_of_a_specification() -> None:
    def kinds(prepared: networks.Prepared) -> list[dict[str, str]]:
        spec: dict[str, Any] = {"linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]}}
        prepared.enter(spec)
        found: list[dict[str, str]] = spec["linux"]["namespaces"]
        return found

    assert kinds(networks.Prepared("host")) == [{"type": "pid"}]
    assert kinds(networks.Prepared("none")) == [{"type": "pid"}, {"type": "network"}]
    own = networks.Prepared("bridge", namespace="/n")
    assert kinds(own) == [{"type": "pid"}, {"type": "network", "path": "/n"}]


def test_which_networks_a_container_is_to_be_in(store: Store) -> None:
    for name in ("a", "b"):
        store.networks.create(name)

    def wanted(**settings: Any) -> list[str]:
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


def test_the_network_of_another_container(store: Store) -> None:
    container(store, "other")
    for name, kind, words in (
        ("missing", NotFound, "joining network namespace of container: No such container: missing"),
        ("other", Conflict, "cannot join network namespace of a non running container: container other"),
        ("c", BadRequest, "cannot join own network namespace"),
    ):
        with pytest.raises(kind, match=words):
            networks.set_up(store.root, container(store, "c", NetworkMode=f"container:{name}"))
        store.remove_mount(store.mount("c").id)


def test_a_container_with_a_bridge_and_without_one(store: Store) -> None:
    mount = container(store, "c", Networks={"bridge": {}, "host": {}})
    with pytest.raises(Forbidden, match="connected to host network"):
        networks.set_up(store.root, mount)


def test_resolv_conf(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_host", lambda: (["127.0.0.1", "192.0.2.9"], ["example.org"], ["rotate"]))
    bridge, own = store.networks.find("bridge"), store.networks.create("own")
    assert names.resolv({}, [bridge], networks.has_names) == (
        "nameserver 192.0.2.9\nsearch example.org\noptions rotate\n"
    )
    assert names.resolv({}, [own], networks.has_names).startswith(f"nameserver {own.subnets[0].gateway}\n")
    given = {"Dns": ["192.0.2.1"], "DnsSearch": ["."], "DnsOptions": ["ndots:2"]}
    assert names.resolv(given, [bridge], networks.has_names) == "nameserver 192.0.2.1\noptions ndots:2\n"
    assert names.resolv({"HostConfig": given}, [bridge], networks.has_names).startswith(
        "nameserver 192.0.2.1"
    )
    monkeypatch.setattr(names, "_host", lambda: (["127.0.0.1", "::1"], [], []))
    assert names.resolv({}, [bridge], networks.has_names) == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_hosts(store: Store, tmp_path: Path) -> None:
    network = store.networks.create("n")
    one, two = container(store, "one", Hostname="first"), container(store, "two")
    there = store.networks.join(one.id, network.id)
    own = store.networks.join(two.id, network.id)
    links = [(network, {"Links": ["one:db", "/one", "missing:x"]})]
    assert names.hosts(store, two, [own], links) == [
        f"{own.address}\t{two.id[:12]}",
        f"{there.address}\tdb first one",
        f"{there.address}\tone first",
    ]
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1\tlocalhost\n# mine\n")
    names.add_host(path, two, own)
    assert path.read_text().endswith(f"# mine\n{own.address}\t{two.id[:12]}\n")
    names.remove_host(path, own)
    assert path.read_text() == "127.0.0.1\tlocalhost\n# mine\n"


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
