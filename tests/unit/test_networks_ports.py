"""Which ports of the host are asked for, and who gets them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.container import portbindings, publishing
from layerfs.errors import BadRequest, Conflict, LayerfsError
from layerfs.store import Store
from layerfs.store.model import Mount, Port
from tests.unit.control_support import make_tree


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        store.import_image(make_tree(tmp_path / "tree"), "base")
        yield store


def container(store: Store, name: str) -> Mount:
    return store.create_mount(name, image=store.resolve("base"), options={"container": {"Binds": []}})


def test_options() -> None:
    texts = ["80", "8080:80", "127.0.0.1:53:53/udp", "127.0.0.1::90", "8000-8001:70-71", "[::1]:60:60"]
    assert portbindings.published(texts) == {
        "80/tcp": [{"HostIp": "", "HostPort": ""}, {"HostIp": "", "HostPort": "8080"}],
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}],
        "90/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
        "70/tcp": [{"HostIp": "", "HostPort": "8000"}],
        "71/tcp": [{"HostIp": "", "HostPort": "8001"}],
        "60/tcp": [{"HostIp": "::1", "HostPort": "60"}],
    }
    assert portbindings.published(["8000-8010:80"]) == {"80/tcp": [{"HostIp": "", "HostPort": "8000-8010"}]}
    for bad in ("", "x", "0", "65536", "80/icmp", "90-80", "1:2:3:4:x", "8000-8001:70-73", "x:80", "8080:"):
        with pytest.raises(BadRequest, match="invalid"):
            portbindings.published([bad])


def test_what_is_asked_for() -> None:
    asked = publishing.wanted(
        {
            "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
            "53/udp": None,
        },
        ["80", "90/tcp"],
        publish_all=True,
        host_ip="127.0.0.9",
    )
    assert asked == [
        (Port("tcp", "127.0.0.9", 0, 80), range(8080, 8081)),
        (Port("udp", "127.0.0.9", 0, 53), range(0)),
        (Port("tcp", "127.0.0.9", 0, 90), range(0)),
    ]
    assert publishing.wanted(None) == []
    with pytest.raises(BadRequest):
        publishing.wanted({"70-72": None})


def test_any_free_port_is_noted_and_held(store: Store) -> None:
    one = container(store, "one")
    taken, held = publishing.claim(
        store, one.id, publishing.wanted({"80": None, "53/udp": [{"HostIp": "127.0.0.1"}]})
    )
    assert store.networks.ports(one.id) == sorted(taken, key=lambda port: port.container_port)
    tcp = next(port for port in taken if port.protocol == "tcp")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("0.0.0.0", tcp.host_port))
    publishing.close(held)


def test_a_port_is_taken(store: Store) -> None:
    one, two = container(store, "one"), container(store, "two")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        binding = {"80": [{"HostIp": "127.0.0.1", "HostPort": str(number)}]}
        text = f"failed to bind host port 127.0.0.1:{number}/tcp: address already in use"
        with pytest.raises(Conflict, match=text):
            publishing.claim(store, one.id, publishing.wanted(binding))
    _, held = publishing.claim(store, one.id, publishing.wanted(binding))
    with pytest.raises(Conflict, match=f"Bind for 127.0.0.1:{number} failed: port is already allocated"):
        publishing.claim(store, two.id, publishing.wanted(binding))
    with pytest.raises(Conflict, match=f"Bind for 0.0.0.0:{number} failed: port is already allocated"):
        publishing.claim(store, two.id, publishing.wanted({"80": [{"HostPort": str(number)}]}))
    binding["80"][0]["HostPort"] = f"{number}-{number + 20}"
    ((second,), more) = publishing.claim(store, two.id, publishing.wanted(binding))
    assert second.host_port > number
    publishing.close([*held, *more])


def test_an_address_that_is_not_the_hosts(store: Store) -> None:
    one = container(store, "one")
    for address in ("203.0.113.7", "nonsense"):
        with pytest.raises(LayerfsError, match="failed to bind host port"):
            publishing.claim(store, one.id, publishing.wanted({"80": [{"HostIp": address}]}))
