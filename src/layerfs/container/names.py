"""By which names containers find each other and the world: /etc/hosts, /etc/resolv.conf, aliases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from layerfs.store import Store
    from layerfs.store.model import Endpoint, Mount, Network

_PUBLIC = ("8.8.8.8", "8.8.4.4")
"""Where the host itself names no server that a container could reach, as Docker."""
_STUB = "127.0.0.53"
_BEHIND_STUB = Path("/run/systemd/resolve/resolv.conf")


def address(text: str, version: int) -> IPv4Address | IPv6Address:
    """Return the address *text*; raises `BadRequest` if it is none of that version."""
    try:
        found = ip_address(text)
    except ValueError:
        found = None
    if found is None or found.version != version or found.is_unspecified:
        raise BadRequest(f"invalid endpoint settings:\ninvalid IPv{version} address: {text[:80]}")
    return found


def hostname(mount: Mount) -> str:
    """Return the name that a container calls its machine."""
    given = mount.container.get("Hostname") or mount.config.get("Hostname")
    return str(given) if given else mount.id[:12]


def of(mount: Mount, settings: Mapping[str, Any]) -> list[str]:
    """Return the names by which a container is found in a network, besides its own."""
    found = [*(settings.get("Aliases") or ()), mount.id[:12], hostname(mount)]
    return [name for name in dict.fromkeys(found) if name != mount.name]


def hosts(
    store: Store,
    mount: Mount,
    endpoints: Sequence[Endpoint],
    wanted: Iterable[tuple[Network, Mapping[str, Any]]],
) -> list[str]:
    """Return lines for /etc/hosts: the container's own name, and the containers that it has links to."""
    lines = [line for endpoint in endpoints for line in _lines(mount, endpoint)]
    for network, settings in wanted:
        for text in settings.get("Links") or ():
            lines += _link(store, network, text)
    host_config = mount.container.get("HostConfig") or mount.container
    for text in host_config.get("Links") or ():
        for endpoint in endpoints:
            lines += _link(store, store.networks.find(endpoint.network), text)
    return lines


def _lines(mount: Mount, endpoint: Endpoint) -> list[str]:
    found = (endpoint.address, endpoint.address6)
    return [f"{text}\t{hostname(mount)}" for text in found if text]


def links(store: Store, network: Network, texts: Iterable[str]) -> list[tuple[Endpoint, str]]:
    """Return who is meant by links `CONTAINER[:ALIAS]`, and the alias; those that do not run are left out."""
    found = []
    for text in texts:
        name, _, alias = text.partition(":")
        try:
            other = store.mount(name.removeprefix("/"))
        except NotFound:
            continue
        alias = alias.rpartition("/")[2] or other.name
        there = store.networks.endpoints(mount=other.id, network=network.id)
        found += [(endpoint, alias) for endpoint in there if endpoint.address]
    return found


def _link(store: Store, network: Network, text: str) -> list[str]:
    lines = []
    for endpoint, alias in links(store, network, [text]):
        other = store.mount(endpoint.mount)
        words = dict.fromkeys([alias, hostname(other), other.name])
        lines.append(f"{endpoint.address}\t{' '.join(words)}")
    return lines


def add_host(path: Path, mount: Mount, endpoint: Endpoint) -> None:
    """Enter *endpoint* in a container's /etc/hosts. Raises `OSError`."""
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in _lines(mount, endpoint))


def remove_host(path: Path, endpoint: Endpoint) -> None:
    """Remove the lines of *endpoint* from a container's /etc/hosts; all others stay. Raises `OSError`."""
    own = {endpoint.address, endpoint.address6} - {""}
    lines = path.read_text(errors="surrogateescape").splitlines(keepends=True)
    kept = [line for line in lines if not own & set(line.split()[:1])]
    path.write_text("".join(kept), errors="surrogateescape")  # in place: it is mounted in the container


def resolv(
    settings: Mapping[str, Any], joined: Sequence[Network], has_names: Callable[[Network], bool]
) -> str:
    """Return the text of /etc/resolv.conf for a container in the networks *joined*.

    Where containers have names, aardvark-dns answers, on the address of the gateway; it asks the host's
    servers for all else.
    """
    host_config = settings.get("HostConfig") or settings
    servers, search, options = _host()
    given: list[str] = list(host_config.get("Dns") or ())
    named = [network for network in joined if has_names(network)]
    own = [subnet.gateway for network in named for subnet in network.subnets]
    chosen = own or given or [it for it in servers if not _is_local(it)] or list(_PUBLIC)
    words = list(host_config.get("DnsSearch") or search)
    lines = [f"nameserver {server}" for server in chosen[:3]]  # resolv.conf(5): MAXNS
    if words and words != ["."]:
        lines.append(f"search {' '.join(words)}")
    if more := list(host_config.get("DnsOptions") or options or (["ndots:0"] if own else [])):
        lines.append(f"options {' '.join(more)}")
    return "\n".join(lines) + "\n"


def _host() -> tuple[list[str], list[str], list[str]]:
    """Return the host's name servers, search domains and options."""
    found = _parse(Path("/etc/resolv.conf"))
    if found[0] == [_STUB] and _BEHIND_STUB.exists():
        return _parse(_BEHIND_STUB)
    return found


def _parse(path: Path) -> tuple[list[str], list[str], list[str]]:
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    try:
        text = path.read_text(errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["search" | "domain", *words]:
                search = words
            case ["options", *words]:
                options = words
    return servers, search, options


def _is_local(server: str) -> bool:
    try:
        return ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return True
