"""Containers in networks: names, addresses, ports, isolation; and nothing is left, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import mounts_below, wait_until
from tests.system.containers import IMAGE, Containers, containers, needs_networks

pytestmark = [
    pytest.mark.root,
    needs_networks,
]
FOREVER = ("sleep", "1000")
SERVER = ("sh", "-c", "mkdir -p /w && echo $0 >/w/index.html && exec busybox httpd -f -h /w -p 80")
SUBNET = "10.231.{}.0/24"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run, and the network "net", for the whole module."""
    with containers(tmp_path_factory.mktemp("networks")) as made:
        made.layerfs.ok("network", "create", "--subnet", SUBNET.format(1), "net")
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left(there: Containers) -> Iterator[None]:
    """Remove all containers after a test: then nothing of their networks is on the machine."""
    yield
    there.remove()
    assert traces(there) == []


def traces(there: Containers) -> list[str]:
    """Return what there is on the machine of the networks of the tests' store."""
    found = [str(path) for path in mounts_below(there.layerfs.directory)]
    found += [str(path) for name in ("netns", "networks") for path in (there.layerfs.run / name).glob("*")]
    rules = "".join(
        subprocess.run([program], capture_output=True, text=True, check=True).stdout
        for program in ("iptables-save", "ip6tables-save")
    )
    for network in networks(there):
        bridge = f"br-{network['Id'][:12]}"
        # The default network may have the subnet of another store's.
        subnets = [it["Subnet"] for it in network["IPAM"]["Config"] if network["Name"] != "bridge"]
        words = [bridge, network["Id"], *subnets]
        if Path("/sys/class/net", bridge).exists():
            found.append(bridge)
        found += [rule for rule in rules.splitlines() if any(word in rule for word in words)]
        found += [f"{it['Name']} in {network['Name']}" for it in network["Containers"].values()]
    for pid in there.layerfs.processes():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "aardvark-dns\n" and alive(pid):
                found.append(f"aardvark-dns {pid}")
    return found


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


def networks(there: Containers) -> list[dict[str, Any]]:
    names = there.layerfs.ok("network", "ls", "-q", "--filter", "driver=bridge").split()
    found: list[dict[str, Any]] = json.loads(there.layerfs.ok("network", "inspect", *names))
    return found


def run(there: Containers, name: str, *arguments: str, network: str = "net") -> str:
    """Start a container in the background; return its address in *network*."""
    options = [it for it in arguments if it.startswith("--")]
    words = [it for it in arguments if not it.startswith("--")] or list(FOREVER)
    if words == ["serve"]:
        words = [*SERVER, name]
    there.layerfs.ok("run", "-d", "--name", name, f"--network={network}", *options, IMAGE, *words)
    return address(there, name, network)


def address(there: Containers, name: str, network: str = "net") -> str:
    return str(there.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"])


def reaches(there: Containers, name: str, target: str, port: int | None = None) -> str | None:
    """Return what a container gets from *target*: the page at *port*, or "" for a pong; or None."""
    words = ["ping", "-c", "1", "-W", "1", target]
    if port is not None:
        # not wget -T, at which Debian's busybox crashes
        words = ["timeout", "3", "busybox", "wget", "-q", "-O", "-", f"http://{target}:{port}/"]
    deadline = time.monotonic() + 3
    while True:
        done = there.run("exec", name, "busybox", *words)
        if done.returncode == 0:
            return done.stdout.strip() if port is not None else ""
        # The server, or what aardvark-dns knows, may be only just there.
        if time.monotonic() > deadline or not re.search("refused|bad address", done.stderr):
            return None


def fetch(port: int, host: str = "127.0.0.1") -> str:
    """Return what a container's server answers on a port of the host."""
    deadline = time.monotonic() + 5
    while True:
        try:
            with socket.create_connection((host, port), timeout=2) as peer:
                peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b""
                while part := peer.recv(4096):
                    answer += part
                return answer.partition(b"\r\n\r\n")[2].decode().strip()
        except OSError:
            if time.monotonic() > deadline:
                raise


def published(there: Containers, name: str, inside: str) -> int:
    return int(there.inspect(name)["NetworkSettings"]["Ports"][inside][0]["HostPort"])


def test_the_gateway_keeps_its_hardware_address(there: Containers) -> None:
    run(there, "one")
    network = there.layerfs.ok("network", "inspect", "--format={{.Id}}", "net")
    bridge = Path("/sys/class/net", f"br-{network[:12]}", "address")
    before = bridge.read_text()
    run(there, "two")
    there.remove("one")
    assert bridge.read_text() == before
    assert reaches(there, "two", "10.231.1.1") == ""


def test_containers_find_each_other_by_name(there: Containers) -> None:
    one = run(there, "one", "--network-alias=web", "--network-alias=www", "serve")
    two = run(there, "two")
    assert (one, two) == ("10.231.1.2", "10.231.1.3")
    identifier = there.inspect("one")["Id"][:12]
    for name in ("one", "web", "www", identifier, one):
        assert reaches(there, "two", name) == "", name
    assert reaches(there, "two", "web", 80) == "one"
    assert reaches(there, "one", "two") == ""
    assert reaches(there, "two", "nobody") is None
    there.remove("one")
    assert reaches(there, "two", "web") is None


def test_what_a_container_sees(there: Containers) -> None:
    run(there, "box", "--hostname=inside")
    files = there.layerfs.ok("exec", "box", "cat", "/etc/hosts", "/etc/resolv.conf")
    assert "\n10.231.1.2\tinside\n" in files
    assert "\nnameserver 10.231.1.1\n" in files
    route = there.layerfs.ok("exec", "box", "ip", "route")
    assert route.startswith("default via 10.231.1.1 dev eth0")
    assert reaches(there, "box", "10.231.1.1") == ""


def test_the_default_network_has_no_names(there: Containers) -> None:
    one = run(there, "one", network="bridge")
    run(there, "two", network="bridge")
    assert reaches(there, "two", one) == ""
    assert reaches(there, "two", "one") is None


def test_networks_do_not_reach_each_other(there: Containers) -> None:
    there.layerfs.ok("network", "create", "--subnet", SUBNET.format(2), "other")
    there.layerfs.ok("network", "create", "--subnet", SUBNET.format(3), "third")
    one = run(there, "one")
    run(there, "two", network="other")
    run(there, "three", network="third")
    assert reaches(there, "two", one) is None
    there.remove("three")  # netavark 1.4 would end the isolation of all with that of one
    assert reaches(there, "two", one) is None
    there.remove()
    there.layerfs.ok("network", "rm", "other", "third")


def test_nothing_leads_out_of_an_internal_network(there: Containers) -> None:
    there.layerfs.ok("network", "create", "--internal", "--subnet", SUBNET.format(4), "inner")
    one = run(there, "one", network="inner")
    run(there, "two", network="inner")
    assert "default" not in there.layerfs.ok("exec", "two", "ip", "route")
    assert reaches(there, "two", "one") == ""
    run(there, "outside")
    assert reaches(there, "outside", one) is None
    there.remove()
    there.layerfs.ok("network", "rm", "inner")


def test_options_of_a_network(there: Containers) -> None:
    wanted = (
        "--ipv6",
        "--subnet",
        SUBNET.format(5),
        "--subnet",
        "fd00:231::/64",
        "--ip-range",
        "10.231.5.64/26",
    )
    there.layerfs.ok("network", "create", *wanted, "-o", "com.docker.network.driver.mtu=1400", "six")
    one = run(there, "one", "--network-alias=web", "serve", network="six")
    assert one == "10.231.5.65"
    run(there, "two", "--ip=10.231.5.7", network="six")
    assert " mtu 1400 " in there.layerfs.ok("exec", "two", "ip", "link", "show", "eth0")
    found = there.inspect("two")["NetworkSettings"]["Networks"]["six"]
    assert (found["IPAddress"], found["GlobalIPv6Address"]) == ("10.231.5.7", "fd00:231::3")
    assert reaches(there, "two", "fd00:231::2") == ""
    assert reaches(there, "two", "web", 80) == "one"
    there.remove()
    there.layerfs.ok("network", "rm", "six")


def test_published_ports(there: Containers) -> None:
    run(there, "tcp", "--publish=127.0.0.1::80", "--publish=80", "serve")
    ports = there.inspect("tcp")["NetworkSettings"]["Ports"]["80/tcp"]
    assert {it["HostIp"] for it in ports} == {"127.0.0.1", "0.0.0.0"}
    for binding in ports:
        assert fetch(int(binding["HostPort"])) == "tcp"
    (listed,) = [
        json.loads(line)
        for line in there.layerfs.ok("ps", "--format", "json").splitlines()
        if json.loads(line)["Names"] == "tcp"
    ]
    assert listed["Names"] == "tcp"


def test_a_published_udp_port(there: Containers) -> None:
    script = """
import socket
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("", 53))
open("/tmp/heard", "wb").write(own.recv(100))
input()
"""
    host = [f"--volume={path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]
    # no applet of busybox answers UDP, so the host's Python does
    run(there, "udp", "--publish=127.0.0.1::53/udp", "--interactive", *host, "/usr/bin/python3", "-c", script)
    port = published(there, "udp", "53/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:

        def heard() -> bool:
            peer.sendto(b"hello\n", ("127.0.0.1", port))
            time.sleep(0.1)
            return "hello" in there.run("exec", "udp", "cat", "/tmp/heard").stdout

        wait_until(heard)


def test_all_exposed_ports_are_published(there: Containers) -> None:
    there.layerfs.ok("run", "--name", "maker", IMAGE, "true")
    there.layerfs.ok("commit", "-c", "EXPOSE 80 81", "maker", "exposing")
    there.layerfs.ok(
        "run", "-d", "--name", "all", "--network=net", "--publish-all", "exposing", *SERVER, "all"
    )
    ports = there.inspect("all")["NetworkSettings"]["Ports"]
    assert set(ports) == {"80/tcp", "81/tcp"}
    assert fetch(published(there, "all", "80/tcp")) == "all"
    there.remove()
    there.layerfs.ok("rmi", "exposing")


def test_a_port_that_is_taken(there: Containers) -> None:
    run(there, "one", "--publish=127.0.0.1::80")
    port = published(there, "one", "80/tcp")
    words = ("run", "--name", "two", "--network=net", f"--publish=127.0.0.1:{port}:80", IMAGE, "true")
    line = there.layerfs.refused(*words, status=125)
    assert line.startswith("driver failed programming external connectivity on endpoint two (")
    assert line.endswith(f"Bind for 127.0.0.1:{port} failed: port is already allocated")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))  # a program of the host does not get it either
    there.remove("one")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        line = there.layerfs.refused("start", "-a", "two", status=125)
        assert line.endswith(f"failed to bind host port 127.0.0.1:{port}/tcp: address already in use")
    there.layerfs.ok("start", "-a", "two")


def test_networks_of_a_container_that_runs(there: Containers) -> None:
    there.layerfs.ok("network", "create", "--subnet", SUBNET.format(6), "more")
    run(there, "box")
    run(there, "other", network="more")
    assert reaches(there, "box", "other") is None
    there.layerfs.ok("network", "connect", "--alias", "moved", "--ip", "10.231.6.9", "more", "box")
    assert reaches(there, "box", "other") == ""
    assert reaches(there, "other", "moved") == ""
    assert "\n10.231.6.9\t" in there.layerfs.ok("exec", "box", "cat", "/etc/hosts")
    there.layerfs.refused("network", "connect", "more", "box")
    there.layerfs.refused("network", "rm", "more")
    there.layerfs.ok("network", "disconnect", "net", "box")
    assert "10.231.1." not in there.layerfs.ok("exec", "box", "cat", "/etc/hosts", "/etc/resolv.conf")
    assert reaches(there, "box", "other") == ""
    there.layerfs.ok("stop", "-t", "0", "box")
    there.layerfs.ok("start", "box")
    assert set(there.inspect("box")["NetworkSettings"]["Networks"]) == {"more"}
    assert address(there, "box", "more") == "10.231.6.9"
    there.remove()
    there.layerfs.ok("network", "rm", "more")


def test_ports_move_with_the_networks(there: Containers) -> None:
    there.layerfs.ok("network", "create", "--subnet", SUBNET.format(8), "more")
    run(there, "box", "--publish=127.0.0.1::80", "serve")
    port = published(there, "box", "80/tcp")
    there.layerfs.ok("network", "connect", "more", "box")
    assert fetch(port) == "box"
    there.layerfs.ok("network", "disconnect", "net", "box")
    assert published(there, "box", "80/tcp") == port
    assert fetch(port) == "box"
    there.remove()
    there.layerfs.ok("network", "rm", "more")


def test_links(there: Containers) -> None:
    one = run(there, "one")
    run(there, "two")
    there.layerfs.ok("network", "disconnect", "net", "two")
    there.layerfs.ok("network", "connect", "--link", "one:db", "net", "two")
    assert reaches(there, "two", "db") == ""
    there.remove("two")
    run(there, "two")
    assert reaches(there, "two", "one") == ""
    assert reaches(there, "two", "db") is None
    assert one == address(there, "one")


def test_what_a_link_leads_to_may_start_later(there: Containers) -> None:
    run(there, "two")
    there.layerfs.ok("network", "disconnect", "net", "two")
    there.layerfs.ok("network", "connect", "--link", "later:db", "net", "two")
    assert reaches(there, "two", "db") is None
    run(there, "later")
    assert reaches(there, "two", "db") == ""


def test_the_network_of_another_container(there: Containers) -> None:
    one = run(there, "one", "serve")
    out = there.layerfs.ok("run", "--rm", "--network=container:one", IMAGE, "ip", "address")
    assert f"inet {one}/24" in out
    assert reaches(there, "one", "127.0.0.1", 80) == "one"
    there.layerfs.ok("stop", "-t", "0", "one")
    line = there.layerfs.refused("run", "--rm", "--network=container:one", IMAGE, "true", status=125)
    assert "cannot join network namespace of a non running container" in line


def test_addresses_are_used_again(there: Containers) -> None:
    for _ in range(3):
        assert "10.231.1.2/24" in there.layerfs.ok("run", "--rm", "--network=net", IMAGE, "ip", "address")


def test_a_network_that_is_gone(there: Containers) -> None:
    there.layerfs.ok("network", "create", "--subnet", SUBNET.format(7), "gone")
    there.layerfs.ok("run", "--name", "box", "--network=gone", IMAGE, "true")
    there.layerfs.ok("network", "rm", "gone")
    assert there.layerfs.refused("start", "-a", "box", status=125) == "network gone not found"


def kill(there: Containers, name: str, *files: str) -> None:
    """Kill the processes whose pids are in *files* of a container's directory, at once."""
    directory = there.directory(name)
    for pid in [int((directory / file).read_text()) for file in files]:
        os.kill(pid, signal.SIGKILL)


def test_the_process_is_killed(there: Containers) -> None:
    run(there, "box", "--publish=127.0.0.1::80")
    kill(there, "box", "pid")
    wait_until(lambda: traces(there) == [])
    there.layerfs.ok("start", "box")
    assert address(there, "box") == "10.231.1.2"


def test_the_process_and_its_supervisor_are_killed(there: Containers) -> None:
    run(there, "box", "--publish=127.0.0.1::80")
    kill(there, "box", "conmon.pid", "pid")
    wait_until(lambda: not there.supervisors())
    assert traces(there) != []  # nobody has noticed
    there.layerfs.ok("start", "box")
    assert address(there, "box") == "10.231.1.2"


def test_the_namespace_is_gone(there: Containers) -> None:
    run(there, "box", "--publish=127.0.0.1::80")
    identifier = there.inspect("box")["Id"]
    subprocess.run(["umount", "-l", there.layerfs.run / "netns" / identifier], check=True)
    there.remove("box")
    assert traces(there) == []


def test_the_name_server_is_killed(there: Containers) -> None:
    run(there, "one")
    note = there.layerfs.run / "dns/aardvark-dns/aardvark.pid"
    os.kill(int(note.read_text()), signal.SIGKILL)
    run(there, "two")
    assert reaches(there, "two", "one") == ""


@pytest.mark.parametrize("delay", [0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7])
def test_who_starts_it_is_killed(there: Containers, delay: float) -> None:
    words = ("run", "-d", "--name", "box", "--network=net", "--publish=127.0.0.1::80", IMAGE, *FOREVER)
    process = there.popen(*words, stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    if there.names():
        time.sleep(0.5)  # a supervisor that has been started may be at its end
        there.remove("box")
    assert traces(there) == []
    assert address_of_the_next(there) == "10.231.1.2"


def address_of_the_next(there: Containers) -> str:
    return run(there, "next")


def test_two_starters_at_once(there: Containers) -> None:
    for number in range(4):
        there.layerfs.ok("run", "--name", f"c{number}", "--network=net", IMAGE, "true")
    there.remove()
    started = [
        there.popen("run", "-d", "--name", f"c{number}", "--network=net", IMAGE, *FOREVER, stdout=-1)
        for number in range(4)
    ]
    for process in started:
        process.communicate(timeout=60)
        assert process.returncode == 0
    found = {address(there, f"c{number}") for number in range(4)}
    assert len(found) == 4
