"""Networks in the store: names, subnets, addresses, ports."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path

import pytest

from layerfs.errors import BadRequest, Conflict, Forbidden, LayerfsError, NotFound
from layerfs.host import subnets
from layerfs.store import Store, addressing
from layerfs.store import networks as networks_of_store
from layerfs.store.model import Mount, Port, Subnet
from tests.unit.control_support import make_tree


@pytest.fixture(autouse=True)
def _no_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subnets that the tests' machine uses are none of the tests' business."""
    monkeypatch.setattr(networks_of_store, "routed", lambda: [IPv4Network("192.0.2.0/24")])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        store.import_image(make_tree(tmp_path / "tree"), "base")
        yield store


def container(store: Store, name: str) -> Mount:
    options = {"container": {"NetworkMode": "bridge", "Binds": []}}
    return store.create_mount(name, image=store.resolve("base"), options=options)


def actions(store: Store, kind: str) -> list[str]:
    return [event.action for event in store.events() if event.type == kind]


def test_the_predefined_networks_are_always_there(store: Store) -> None:
    found = {network.name: network for network in store.networks.every()}
    assert {name: network.driver for name, network in found.items()} == {
        "bridge": "bridge", "host": "host", "none": "null",
    }  # fmt: skip
    assert found["bridge"].subnets == (Subnet("172.17.0.0/16", "172.17.0.1"),)
    assert store.networks.find("bridge").id == found["bridge"].id
    for network in found.values():
        with pytest.raises(Forbidden, match=f"{network.name} is a pre-defined network and cannot be removed"):
            store.networks.remove(network.id)
        with pytest.raises(Forbidden, match=f"operation is not permitted on predefined {network.name}"):
            store.networks.create(network.name)


def test_a_subnet_that_the_machine_has_a_route_to_is_not_chosen(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks_of_store, "routed", lambda: [IPv4Network("172.16.0.0/14")])
    assert store.networks.find("bridge").subnets[0].subnet == "172.20.0.0/16"
    assert store.networks.create("n").subnets[0].subnet == "172.21.0.0/16"


def test_the_default_network_moves_out_of_the_way_while_it_is_empty(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.networks.settle_default().subnets[0].subnet == "172.17.0.0/16"
    monkeypatch.setattr(networks_of_store, "routed", lambda: [IPv4Network("172.17.4.0/24")])
    moved = store.networks.settle_default()
    assert moved.subnets == (Subnet("172.18.0.0/16", "172.18.0.1"),)
    store.networks.join(container(store, "c").id, moved.id)
    monkeypatch.setattr(networks_of_store, "routed", lambda: [IPv4Network("172.18.0.0/16")])
    assert store.networks.settle_default() == moved


def test_routes_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "broken\n"
    )
    assert subnets.routed(table) == [IPv4Network("192.0.2.0/24")]
    assert subnets.routed(tmp_path / "missing") == []


def test_a_network_is_found_by_name_id_and_beginning(store: Store) -> None:
    made = store.networks.create("mine", labels={"a": "b"}, options={"o": "p"}, internal=True)
    for reference in ("mine", made.id, made.id[:12]):
        assert store.networks.find(reference) == made
    assert (made.labels, made.options, made.internal, made.ipv6) == ({"a": "b"}, {"o": "p"}, True, False)
    assert store.networks.every()[0] == made
    with pytest.raises(NotFound, match="network other not found"):
        store.networks.find("other")
    with pytest.raises(NotFound):
        store.networks.find("")
    with pytest.raises(Conflict, match="network with name mine already exists"):
        store.networks.create("mine")
    store.networks.remove(made.id)
    with pytest.raises(NotFound):
        store.networks.remove(made.id)
    assert actions(store, "network") == ["create"] * 4 + ["destroy"]


def test_an_ambiguous_beginning_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    identifiers = iter(["ab", "ac"])
    monkeypatch.setattr("os.urandom", lambda size: bytes.fromhex(next(identifiers)) + bytes(size - 1))
    store.database.execute("DELETE FROM networks")
    monkeypatch.setattr(networks_of_store.Networks, "_add_predefined", lambda self: None)
    store.networks.create("one")
    store.networks.create("two")
    with pytest.raises(BadRequest, match="network a is ambiguous"):
        store.networks.find("a")


@pytest.mark.parametrize("name", ["a b", "-x", "a/b", "ä", "a:b"])
def test_a_name_may_have_what_docker_lets_it_have(store: Store, name: str) -> None:
    made = store.networks.create(name)
    assert store.networks.find(name).id == made.id


def test_an_ip_range_may_be_written_in_more_than_one_way(store: Store) -> None:
    given = Subnet("2001:389::/64", "", "2001:389:0::0/96")
    assert store.networks.create("n", subnets=[given], ipv6=True).subnets


@pytest.mark.parametrize("name", ["", " ", "x" * 129, "a\n", "a\0"])
def test_bad_names(store: Store, name: str) -> None:
    with pytest.raises(BadRequest, match="invalid network name"):
        store.networks.create(name)


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (Subnet("10.0.0.1/24", ""), r"invalid subnet 10.0.0.1/24: it should be 10.0.0.0/24"),
        (Subnet("10.0.0.0/33", ""), "none in CIDR notation"),
        (Subnet("10.0.0.0", ""), "none in CIDR notation"),
        (Subnet("nonsense", ""), "none in CIDR notation"),
        (Subnet("10.0.0.0/24", "10.0.1.1"), "invalid gateway 10.0.1.1: parent subnet 10.0.0.0/24 doesn't"),
        (Subnet("10.0.0.0/24", "fd00::1"), "invalid gateway fd00::1: parent subnet is an IPv4 block"),
        (Subnet("10.0.0.0/24", "x"), "invalid gateway x: it is no address"),
        (Subnet("10.0.0.0/24", "", "10.0.0.0/16"), "CIDR block is bigger than its parent subnet"),
        (Subnet("10.0.0.0/24", "", "10.0.1.0/25"), "doesn't contain ip-range"),
        (Subnet("10.0.0.0/24", "", "10.0.0.1/25"), "it should be 10.0.0.0/25"),
        (Subnet("10.0.0.0/24", "", "fd00::/64"), "parent subnet is an IPv4 block"),
        (Subnet("10.0.0.0/24", "", "x"), "invalid ip-range x"),
        (Subnet("10.0.0.0/24", "", reserved={"r": "10.1.0.1"}), "invalid auxiliary address r: parent subnet"),
        (Subnet("", "10.0.0.1"), "give the subnet of the gateway"),
        (Subnet("10.0.0.0/32", "", reserved={"r": "10.0.0.0"}), "no room for a gateway"),
    ],
)
def test_bad_subnets(store: Store, subnet: Subnet, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        store.networks.create("n", subnets=[subnet])
    assert [network.name for network in store.networks.every() if not network.predefined] == []


def test_subnets_must_not_overlap(store: Store) -> None:
    store.networks.create("n", subnets=[Subnet("10.0.0.0/16", "")])
    for subnet in ("10.0.0.0/16", "10.0.4.0/24", "10.0.0.0/8", "172.17.3.0/24"):
        with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space"):
            store.networks.create("m", subnets=[Subnet(subnet, "")])
    with pytest.raises(Forbidden, match="Pool overlaps"):
        store.networks.create("m", subnets=[Subnet("10.1.0.0/16", ""), Subnet("10.1.2.0/24", "")])


def test_subnets_run_out(store: Store) -> None:
    for number in range(len(list(addressing.pools())) - 1):
        store.networks.create(f"n{number}")
    with pytest.raises(LayerfsError, match="all predefined address pools have been fully subnetted"):
        store.networks.create("last")
    store.networks.create("last", subnets=[Subnet("10.0.0.0/24", "")])


def test_ipv6_is_asked_for(store: Store) -> None:
    wanted = [Subnet("10.0.0.0/24", ""), Subnet("fd00:1::/64", "")]
    assert [it.subnet for it in store.networks.create("four", subnets=wanted).subnets] == ["10.0.0.0/24"]
    store.networks.remove(store.networks.find("four").id)
    both = store.networks.create("both", subnets=wanted, ipv6=True)
    assert [it.gateway for it in both.subnets] == ["10.0.0.1", "fd00:1::1"]
    own = store.networks.create("own", ipv6=True).subnets[1]
    assert ip_network(own.subnet).is_private
    endpoint = store.networks.join(container(store, "c").id, both.id)
    assert (endpoint.address, endpoint.address6) == ("10.0.0.2", "fd00:1::2")


def test_addresses_are_the_lowest_that_are_free(store: Store) -> None:
    subnet = Subnet("10.0.0.0/24", "", "10.0.0.8/29", {"printer": "10.0.0.9"})
    network = store.networks.create("n", subnets=[subnet])
    assert network.subnets[0].gateway == "10.0.0.8"
    mounts = [container(store, f"c{number}") for number in range(7)]
    found = [store.networks.join(mount.id, network.id) for mount in mounts[:6]]
    assert [it.address for it in found] == [f"10.0.0.{number}" for number in range(10, 16)]
    assert found[0].mac == "02:42:0a:00:00:0a"
    with pytest.raises(LayerfsError, match="no available IPv4 addresses on this network's address pools: n"):
        store.networks.join(mounts[6].id, network.id)
    store.networks.leave(mounts[2].id)
    assert store.networks.join(mounts[6].id, network.id).address == "10.0.0.12"
    assert store.networks.join(mounts[6].id, network.id).address == "10.0.0.12"  # its own is given up first


def test_an_address_that_is_asked_for(store: Store) -> None:
    network = store.networks.create("n", subnets=[Subnet("10.0.0.0/24", "")])
    one, two = container(store, "one"), container(store, "two")
    assert store.networks.join(one.id, network.id, address="10.0.0.77", mac="02:00:00:00:00:0A").mac == (
        "02:00:00:00:00:0a"
    )
    for taken in ("10.0.0.77", "10.0.0.1"):
        with pytest.raises(Forbidden, match="Address already in use"):
            store.networks.join(two.id, network.id, address=taken)
    with pytest.raises(BadRequest, match=r"no configured subnet contains IP address 10\.0\.1\.1"):
        store.networks.join(two.id, network.id, address="10.0.1.1")
    with pytest.raises(BadRequest, match="invalid IP address"):
        store.networks.join(two.id, network.id, address="x")
    assert [it.mount_name for it in store.networks.endpoints(network=network.id)] == ["one"]


def test_no_two_containers_get_the_same_address(store: Store) -> None:
    network = store.networks.create("n")
    mounts = [container(store, f"c{number}") for number in range(8)]
    found: list[str] = []

    def join(mount_id: str) -> None:
        with Store(store.root) as own:
            found.append(own.networks.join(mount_id, network.id).address)

    threads = [threading.Thread(target=join, args=(mount.id,)) for mount in mounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(mounts)
    assert all(ip_address(text) in ip_network(network.subnets[0].subnet) for text in found)


def test_interfaces_are_numbered_in_a_container(store: Store) -> None:
    mount = container(store, "c")
    made = [store.networks.create(name) for name in ("a", "b", "c")]
    assert [store.networks.join(mount.id, network.id).interface for network in made] == [
        "eth0", "eth1", "eth2",
    ]  # fmt: skip
    store.networks.leave(mount.id, made[1].id)
    assert store.networks.join(mount.id, made[1].id).interface == "eth1"
    store.networks.leave(mount.id)
    store.networks.leave(mount.id)
    assert store.networks.endpoints() == []


def test_a_network_in_use_stays(store: Store) -> None:
    network = store.networks.create("n")
    mount = container(store, "c")
    endpoint = store.networks.join(mount.id, network.id)
    with pytest.raises(Forbidden, match=f'network n has active endpoints \\(name:"c" id:"{endpoint.id[:12]}'):
        store.networks.remove(network.id)
    store.networks.leave(mount.id)
    store.networks.remove(network.id)
    assert actions(store, "network")[-4:] == ["create", "connect", "disconnect", "destroy"]


def test_what_a_removed_container_had_is_free(store: Store) -> None:
    network = store.networks.create("n")
    mount = container(store, "c")
    store.networks.join(mount.id, network.id)
    store.networks.publish(mount.id, [Port("tcp", "0.0.0.0", 80, 80)])
    store.remove_mount(mount.id)
    assert (store.networks.endpoints(), store.networks.ports()) == ([], [])


def test_another_boot_leaves_no_address_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    network = store.networks.create("n")
    one, two = container(store, "one"), container(store, "two")
    store.networks.join(one.id, network.id, address=network.subnets[0].gateway[:-1] + "2")
    store.networks.publish(one.id, [Port("tcp", "0.0.0.0", 80, 80)])
    monkeypatch.setattr(networks_of_store, "boot_id", lambda: "another")
    assert (store.networks.endpoints(), store.networks.ports()) == ([], [])
    store.networks.check_free(Port("tcp", "0.0.0.0", 80, 80))
    assert store.networks.join(two.id, network.id).address.endswith(".2")
    store.networks.leave(two.id)
    store.networks.remove(network.id)


def test_ports_lead_to_one_container(store: Store) -> None:
    one, two = container(store, "one"), container(store, "two")
    store.networks.publish(one.id, [Port("tcp", "127.0.0.1", 80, 8080), Port("udp", "0.0.0.0", 53, 53)])
    for port in (
        Port("tcp", "127.0.0.1", 80, 1),
        Port("tcp", "0.0.0.0", 80, 1),
        Port("udp", "127.0.0.1", 53, 1),
    ):
        text = f"Bind for {port.host_ip}:{port.host_port} failed: port is already allocated"
        with pytest.raises(Conflict, match=text):
            store.networks.publish(two.id, [Port("tcp", "0.0.0.0", 81, 1), port])
    free = [Port("tcp", "127.0.0.2", 80, 1), Port("tcp", "0.0.0.0", 53, 1), Port("tcp", "::", 80, 1)]
    store.networks.publish(two.id, free)
    assert store.networks.ports(one.id) == [
        Port("udp", "0.0.0.0", 53, 53), Port("tcp", "127.0.0.1", 80, 8080),
    ]  # fmt: skip
    assert len(store.networks.ports()) == 5
    store.networks.leave(two.id)
    assert store.networks.ports(two.id) == []


def test_prune_keeps_what_a_container_has(store: Store) -> None:
    kept, gone = store.networks.create("kept"), store.networks.create("gone", labels={"a": "b"})
    mount = container(store, "c")
    store.networks.set_wanted(mount.id, kept, {"Aliases": ["x"]})
    assert store.networks.prune(lambda network: network.labels == {}) == []
    assert [it.id for it in store.networks.prune(lambda network: True)] == [gone.id]
    assert store.mount(mount.id).container["NetworkingConfig"]["EndpointsConfig"] == {
        "bridge": {},
        "kept": {"Aliases": ["x"]},
    }
    store.networks.set_wanted(mount.id, kept, None)
    assert [it.id for it in store.networks.prune(lambda network: True)] == [kept.id]


def test_unknown_containers(store: Store) -> None:
    network = store.networks.create("n")
    with pytest.raises(NotFound):
        store.networks.join("0" * 64, network.id)
    with pytest.raises(NotFound):
        store.networks.set_wanted("0" * 64, network, {})


@pytest.mark.parametrize(
    ("column", "value", "subject", "what"),
    [
        ("subnets", "{}", "network n", "its subnets are none"),
        ("subnets", '[{"subnet": "x", "gateway": ""}]', "network n", "its subnets are none"),
        ("labels", "[]", "network n", "its labels are not a JSON object of texts"),
        ("options", '{"a": 1}', "network n", "its options are not a JSON object of texts"),
        ("name", " ", "network ", "' ' is no name for a network"),
    ],
)
def test_fsck_knows_networks(store: Store, column: str, value: str, subject: str, what: str) -> None:
    store.networks.create("n")
    assert list(store.check()) == []
    store.database.execute(f"UPDATE networks SET {column} = ? WHERE name = 'n'", (value,))
    (problem,) = store.check()
    assert problem.subject.startswith(subject)
    assert problem.what == what
