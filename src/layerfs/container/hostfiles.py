"""The files by which a container's processes find names: /etc/hosts, /etc/hostname and /etc/resolv.conf.

They lie in the container's directory in the store, and are bound over the image's: a commit has the image's.
Where that has none, a runtime makes them, empty: `layerfs.mounting.places` keeps those out of a commit.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.container import mountpoints
from layerfs.container.namespaces import container_of
from layerfs.errors import BadRequest
from layerfs.union.changes import ADDED

if TYPE_CHECKING:
    from layerfs.union.changes import Change

_LOCAL = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_NAMES = ("hosts", "hostname", "resolv.conf")
_FILES = frozenset(b"/etc/" + name.encode() for name in _NAMES)
_DIRECTORIES = (b"/dev", b"/proc", b"/sys")
_NAMESERVERS = ("8.8.8.8", "8.8.4.4")
"""What dockerd takes where a machine's own nameserver cannot be reached from a container."""
_STUB = "127.0.0.53"
_BEHIND_STUB = "/run/systemd/resolve/resolv.conf"
_MOST_SERVERS = 3
"""resolv.conf(5): MAXNS."""


@dataclass(frozen=True, slots=True)
class Network:
    """What the network that a container is connected to adds to these files."""

    addresses: Sequence[str] = ()
    """The container's own."""
    nameservers: Sequence[str] = ()
    """Those of the network itself, which know the names of other containers."""
    gateway: str = ""
    """The address of this machine, as containers reach it: "host-gateway"."""
    hosts: Sequence[tuple[str, str]] = ()
    """More addresses and their names."""


def write(
    own: Path, hostname: str, domain: str, host_config: Mapping[str, Any], network: Network = Network()
) -> list[mountpoints.Point]:
    """Write the files into the directory *own* and return where to mount them.

    On the host's network they say what the host's do. Raises `BadRequest` and `OSError`.
    """
    contents = {
        "hosts": _hosts(_full(hostname, domain), host_config, network),
        "hostname": f"{hostname}\n",
        "resolv.conf": _resolver(host_config, network),
    }
    for name, content in contents.items():
        path = own / name
        path.write_text(content, errors="surrogateescape")
        path.chmod(0o644)
    return points(own)


def points(own: Path) -> list[mountpoints.Point]:
    """Return where the files in *own* are to be mounted: those of the container whose network is joined."""
    return [mountpoints.bind(str(own / name), f"/etc/{name}") for name in _NAMES]


def without_places(found: Sequence[Change]) -> list[Change]:
    """Return *found*, what a container changed, without the places that were made to mount on.

    dockerd keeps these in a layer of their own below the container's, so no diff of its shows them. Nothing
    else changes them: something is mounted there whenever the container runs.
    """
    kept = [
        change
        for change in found
        if change.path not in _FILES and not (change.path in _DIRECTORIES and change.kind == ADDED)
    ]
    if len(kept) < len(found) and not any(change.path.startswith(b"/etc/") for change in kept):
        kept = [change for change in kept if change.path != b"/etc"]
    return kept


def connect(own: Path, hostname: str, domain: str, addresses: Iterable[str]) -> None:
    """Enter *addresses* that a container which runs has got in its hosts file. Raises `OSError`."""
    with (own / "hosts").open("a") as file:
        file.writelines(f"{address}\t{_full(hostname, domain)}\n" for address in addresses)


def disconnect(own: Path, addresses: Iterable[str]) -> None:
    """Remove the lines of *addresses* from a container's hosts file; all others stay. Raises `OSError`."""
    gone = set(addresses)
    path = own / "hosts"
    lines = path.read_text(errors="surrogateescape").splitlines(keepends=True)
    kept = [line for line in lines if not gone & set(line.split()[:1])]
    path.write_text("".join(kept), errors="surrogateescape")  # in place: it is mounted in the container


def write_resolver(own: Path, host_config: Mapping[str, Any], network: Network) -> None:
    """Write a container's resolv.conf anew, while it runs too. Raises `OSError`."""
    text = _resolver(host_config, network)
    (own / "resolv.conf").write_text(text, errors="surrogateescape")  # in place, as above


def _full(hostname: str, domain: str) -> str:
    return f"{hostname}.{domain} {hostname}" if domain else hostname


def _hosts(full: str, host_config: Mapping[str, Any], network: Network) -> str:
    shared = host_config["NetworkMode"] == "host"
    lines = [(_text("/etc/hosts") if shared else _LOCAL).rstrip()]
    for text in host_config["ExtraHosts"] or ():
        name, _, address = text.partition(":")
        if address == "host-gateway":
            address = "127.0.0.1" if shared else network.gateway
        if not address:
            raise BadRequest("unable to derive the IP value for host-gateway")
        lines.append(f"{address.strip('[]')}\t{name}")
    lines += [f"{address}\t{name}" for address, name in network.hosts]
    own = network.addresses or ("127.0.1.1",)
    return "\n".join([*lines, *(f"{address}\t{full}" for address in own)]) + "\n"


def _resolver(host_config: Mapping[str, Any], network: Network) -> str:
    """Return a resolv.conf(5): the machine's, with what the container wants otherwise."""
    mode = host_config["NetworkMode"]
    servers, search, options = host_config["Dns"], host_config["DnsSearch"], host_config["DnsOptions"]
    connected = mode not in ("host", "none") and container_of(mode) is None
    here = "" if mode == "none" else _text("/etc/resolv.conf")
    if not (servers or search or options or connected):
        return here
    found = _machine() if connected else _parsed(here)
    if connected:
        # The machine's resolver on its own loopback is no resolver in there.
        found["nameserver"] = [text for text in found["nameserver"] if not _is_loopback(text)]
        found["nameserver"] = found["nameserver"] or list(_NAMESERVERS)
    if servers:
        found["nameserver"] = list(servers)
    if network.nameservers:
        found["nameserver"] = list(network.nameservers)[:_MOST_SERVERS]
        found["options"] = found["options"] or ["ndots:0"]
    if search:
        found["search"] = [text for text in search if text != "."]
    if options:
        found["options"] = list(options)
    lines = [f"nameserver {server}" for server in found["nameserver"]]
    lines += [f"{kind} {' '.join(found[kind])}" for kind in ("search", "options") if found[kind]]
    return "".join(f"{line}\n" for line in lines)


def _machine() -> dict[str, list[str]]:
    """Return what the machine's resolv.conf says, or the one behind systemd's resolver if it names that."""
    found = _parsed(_text("/etc/resolv.conf"))
    if found["nameserver"] == [_STUB] and (text := _text(_BEHIND_STUB)):
        return _parsed(text)
    return found


def _parsed(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in text.splitlines():
        kind, *words = line.split() or [""]
        if kind == "nameserver":
            found[kind] += words[:1]
        elif kind in ("search", "domain"):
            found["search"] = words
        elif kind == "options":
            found[kind] += words
    return found


def _is_loopback(text: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    return False


def servers(host_config: Mapping[str, Any]) -> list[str]:
    """Return whom a network's own nameserver asks for a container, if not the machine's servers: its `Dns`.

    Without those on the container's own loopback, which the nameserver does not reach.
    """
    return [text for text in host_config["Dns"] or () if not _is_loopback(text)]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""
