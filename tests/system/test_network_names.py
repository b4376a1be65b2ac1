"""By which names containers find each other after a rename, and whom they ask for all other names."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import wait_until
from tests.system.containers import IMAGE, Containers, containers, needs_networks
from tests.system.test_networks import SUBNET, address, reaches, run, traces

pytestmark = [
    pytest.mark.root,
    needs_networks,
]
SERVER = r"""
import socket
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("", 53))
while True:
    asked, peer = own.recvfrom(512)
    end = asked.index(b"\0", 12) + 5
    found = b""
    if asked[end - 4:end - 2] == b"\0\1":
        found = b"\xc0\x0c\0\1\0\1" + bytes(4) + b"\0\4\1\2\3\4"
    counts = b"\0\1\0" + bytes([bool(found)]) + bytes(4)
    own.sendto(asked[:2] + b"\x85\x80" + counts + asked[12:end] + found, peer)
"""
"""A nameserver to which every name is 1.2.3.4."""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, and the network "net"."""
    with containers(tmp_path_factory.mktemp("names")) as made:
        made.layerfs.ok("network", "create", "--subnet", SUBNET.format(41), "net")
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left(there: Containers) -> Iterator[None]:
    yield
    there.remove()
    assert traces(there) == []


def test_a_container_is_found_by_its_new_name_and_no_more_by_the_old_one(there: Containers) -> None:
    run(there, "old", "--network-alias=web")
    run(there, "peer", "--publish=127.0.0.1::80")
    there.layerfs.ok("rename", "old", "new")
    there.layerfs.ok("rename", "peer", "looks")
    assert reaches(there, "looks", "new") == ""
    assert reaches(there, "looks", "web") == ""
    assert reaches(there, "new", "looks") == ""
    assert reaches(there, "looks", "old") is None
    names = there.inspect("new")["NetworkSettings"]["Networks"]["net"]["DNSNames"]
    assert names == ["new", "web", there.inspect("new")["Id"][:12]]
    run(there, "old")
    assert reaches(there, "looks", "old") == ""
    there.remove("new")
    assert reaches(there, "looks", "web") is None


def test_an_alias_that_was_the_name_too_stays(there: Containers) -> None:
    run(there, "one", "--network-alias=one")
    run(there, "two")
    there.layerfs.ok("rename", "one", "uno")
    assert reaches(there, "two", "one") == ""
    assert reaches(there, "two", "uno") == ""


def test_the_new_name_holds_after_a_restart(there: Containers) -> None:
    run(there, "old")
    run(there, "peer")
    there.layerfs.ok("rename", "old", "new")
    there.layerfs.ok("restart", "-t", "0", "new")
    assert reaches(there, "peer", "new") == ""
    there.layerfs.ok("stop", "-t", "0", "new")
    assert reaches(there, "peer", "new") is None
    there.layerfs.ok("rename", "new", "newest")
    there.layerfs.ok("start", "newest")
    assert reaches(there, "peer", "newest") == ""


def test_a_rename_that_changes_nothing(there: Containers) -> None:
    run(there, "one")
    line = there.layerfs.refused("rename", "one", "one")
    assert line == "Renaming a container with the same name as its current name"


def test_a_container_asks_the_servers_that_it_was_given(there: Containers) -> None:
    host = [f"--volume={path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]
    # no applet of busybox answers for more than a list of names, so the host's Python does
    run(there, "server", *host, "/usr/bin/python3", "-c", SERVER)
    run(there, "asks", f"--dns={address(there, 'server')}", "--dns=127.0.0.1")
    assert "nameserver 10.231.41.1\n" in there.layerfs.ok("exec", "asks", "cat", "/etc/resolv.conf") + "\n"

    def found() -> bool:
        done = there.run("exec", "asks", "busybox", "nslookup", "some.name.example")
        return "1.2.3.4" in done.stdout

    wait_until(found)
    assert reaches(there, "asks", "server") == ""
    other = ("run", "--rm", "--network=net", IMAGE, "timeout", "3", "busybox", "nslookup", "a.example")
    done = there.run(*other)
    assert "1.2.3.4" not in done.stdout
