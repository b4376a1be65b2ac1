"""By which names other containers of a network find a container, and which it has links to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layerfs.container.stored import host_config
from layerfs.errors import NotFound

if TYPE_CHECKING:
    from layerfs.store import Store
    from layerfs.store.model import Endpoint, Mount, Network


def hostname(mount: Mount) -> str:
    """Return the name that a container calls its machine."""
    return str(mount.container.get("Hostname") or mount.id[:12])


def of(mount: Mount, settings: Mapping[str, Any]) -> list[str]:
    """Return the names by which a container is found in a network, besides its own.

    *settings* are its `EndpointSettings` there.
    """
    found = [*(settings.get("Aliases") or ()), mount.id[:12], hostname(mount)]
    return [name for name in dict.fromkeys(found) if name != mount.name]


def linked(
    store: Store,
    mount: Mount,
    endpoints: Sequence[Endpoint],
    wanted: Iterable[tuple[Network, Mapping[str, Any]]],
) -> list[tuple[str, str]]:
    """Return the addresses and names of the containers that *mount* has links to, and that run.

    *wanted* are its networks, and its `EndpointSettings` in each.
    """
    found = []
    for network, settings in wanted:
        for text in settings.get("Links") or ():
            found += _link(store, network.id, text)
    for text in host_config(mount.container)["Links"] or ():
        for endpoint in endpoints:
            found += _link(store, endpoint.network, text)
    return found


def name_of(link: str) -> str:
    """Return by which name the container that `CONTAINER[:ALIAS]` links to is known."""
    name, _, alias = link.partition(":")
    return alias.rpartition("/")[2] or name.removeprefix("/")


def links(store: Store, network: str, texts: Iterable[str]) -> list[tuple[Endpoint, str]]:
    """Return whom the links `CONTAINER[:ALIAS]` mean in a network, and the alias; only those that run."""
    found = []
    for text in texts:
        name = text.partition(":")[0]
        try:
            other = store.mount(name.removeprefix("/"))
        except NotFound:
            continue
        there = store.networks.endpoints(mount=other.id, network=network)
        found += [(endpoint, name_of(text)) for endpoint in there if endpoint.address]
    return found


def variables(store: Store, mount: Mount, network: str) -> list[str]:
    """Return what the environment of *mount* says of the containers that it has links to: moby's `links`.

    *network* is the id of the default bridge: on other networks a link is no more than a name.
    """
    found: list[str] = []
    for endpoint, alias in links(store, network, host_config(mount.container)["Links"] or ()):
        config, prefix = store.mount(endpoint.mount).config, alias.upper().replace("-", "_")
        found += _ports(prefix, endpoint.address or "", config.get("ExposedPorts") or ())
        found.append(f"{prefix}_NAME=/{mount.name}/{alias}")
        found += [
            f"{prefix}_ENV_{text}"
            for text in config.get("Env") or ()
            if "=" in text and not text.startswith(("HOME=", "PATH="))
        ]
    return found


def _ports(prefix: str, address: str, exposed: Iterable[str]) -> Iterator[str]:
    split = ((text.partition("/")[0], text.partition("/")[2] or "tcp") for text in exposed)
    ports = sorted(
        ((int(number), kind) for number, kind in split), key=lambda port: (port[1] != "tcp", *port[::-1])
    )
    for number, kind in ports[:1]:
        yield f"{prefix}_PORT={kind}://{address}:{number}"
    for number, kind in ports:
        name = f"{prefix}_PORT_{number}_{kind.upper()}"
        yield f"{name}={kind}://{address}:{number}"
        yield from (f"{name}_ADDR={address}", f"{name}_PORT={number}", f"{name}_PROTO={kind}")


def _link(store: Store, network: str, text: str) -> list[tuple[str, str]]:
    found = []
    for endpoint, alias in links(store, network, [text]):
        other = store.mount(endpoint.mount)
        words = dict.fromkeys([alias, hostname(other), other.name])
        found.append((endpoint.address, " ".join(words)))
    return found
