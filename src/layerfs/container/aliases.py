"""By which names other containers of a network find a container, and which it has links to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def links(store: Store, network: str, texts: Iterable[str]) -> list[tuple[Endpoint, str]]:
    """Return whom the links `CONTAINER[:ALIAS]` mean in a network, and the alias; only those that run."""
    found = []
    for text in texts:
        name, _, alias = text.partition(":")
        try:
            other = store.mount(name.removeprefix("/"))
        except NotFound:
            continue
        alias = alias.rpartition("/")[2] or other.name
        there = store.networks.endpoints(mount=other.id, network=network)
        found += [(endpoint, alias) for endpoint in there if endpoint.address]
    return found


def _link(store: Store, network: str, text: str) -> list[tuple[str, str]]:
    found = []
    for endpoint, alias in links(store, network, [text]):
        other = store.mount(endpoint.mount)
        words = dict.fromkeys([alias, hostname(other), other.name])
        found.append((endpoint.address, " ".join(words)))
    return found
