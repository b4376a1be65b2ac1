"""Changing the networks of a container that there is already: into one more, out of one, off a link."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.container import aliases, files, hostfiles, netavark, networks
from layerfs.container.stored import host_config
from layerfs.errors import BadRequest, Forbidden, LayerfsError, NotFound
from layerfs.host.record import locked
from layerfs.store import Store
from layerfs.store.networks import names_in, network_mode

if TYPE_CHECKING:
    from layerfs.store.model import Endpoint, Mount, Network


def connect(root: Path, mount: Mount, network: Network, settings: Mapping[str, Any]) -> None:
    """Put a container into one more network, at once if it runs, and whenever it starts.

    Raises `LayerfsError`; then it is in the same networks as before.
    """
    mode = network_mode(mount.container)
    if network.driver != "bridge":
        raise networks.private(network.driver)
    if mode in ("host", "none"):
        raise networks.private(mode)
    if mode.startswith("container:"):
        raise Forbidden(
            "container sharing network namespace with another container or host "
            "cannot be connected to any other network"
        )
    networks.check_settings(network, settings)
    with locked(mount.id) as lock, Store(root) as store:
        record = lock.read()
        if record is not None and record.alive():
            if store.networks.endpoints(mount=mount.id, network=network.id):
                raise Forbidden(f"endpoint with name {mount.name} already exists in network {network.name}")
            netavark.check_possible(names=networks.has_names(network))
            others = len(store.networks.endpoints(mount=mount.id))
            try:
                endpoint = networks.join(store, mount, network, settings, None, metric=100 + others)
            except BaseException:
                netavark.tear_down(mount.id, network.id)
                store.networks.leave(mount.id, network.id)
                raise
            _tell(store, root, mount, added=endpoint)
        store.networks.set_wanted(mount.id, network, settings)


def remove_link(root: Path, mount: Mount, alias: str) -> None:
    """Take from a container its link with the name *alias*, from its hosts file too if it runs.

    Raises `NotFound` if it has none.
    """
    with locked(mount.id) as lock, Store(root) as store:
        container = store.mount(mount.id).container
        links = host_config(container)["Links"] or []
        gone = [text for text in links if aliases.name_of(text) == alias]
        if not gone:
            raise NotFound(f"No such container: {mount.name}/{alias}")
        kept = [text for text in links if text not in gone]
        store.update_container(mount.id, None, HostConfig={**container["HostConfig"], "Links": kept or None})
        record = lock.read()
        if record is not None and record.alive():
            addresses = [
                link.address
                for own in store.networks.endpoints(mount=mount.id)
                for link, _ in aliases.links(store, own.network, gone)
                if link.address
            ]
            hostfiles.disconnect(files.directory(root, mount.id), addresses)


def disconnect(root: Path, mount: Mount, network: Network) -> None:
    """Take a container out of a network, at once if it runs, and for all starts to come.

    Raises `LayerfsError`; `Forbidden` for one that is not in it, as dockerd's status 403 or 500 would say.
    """
    if network.driver == "host" or network_mode(mount.container) == "host":
        raise BadRequest(
            "cannot disconnect container from host network - container was created in host network mode"
        )
    with locked(mount.id) as lock, Store(root) as store:
        record = lock.read()
        runs = record is not None and record.alive()
        found = store.networks.endpoints(mount=mount.id, network=network.id)
        wanted = names_in(mount.container) & {network.name, network.id}
        if (runs and not found) or (not runs and not wanted):
            raise LayerfsError(f"container {mount.id} is not connected to network {network.name}")
        published = netavark.known(mount.id).get(network.id, {}).get("port_mappings")
        netavark.tear_down(mount.id, network.id)
        store.networks.leave(mount.id, network.id)
        store.networks.set_wanted(mount.id, network, None)
        if runs and published:
            _move_ports(store, mount, published)
        if runs:
            _tell(store, root, mount, removed=found[0])


def _move_ports(store: Store, mount: Mount, published: Any) -> None:
    """Have the ports of a container that has left the network which they led through lead through another.

    That one is made anew: netavark has no word for ports alone. Raises `LayerfsError`.
    """
    for endpoint in store.networks.endpoints(mount=mount.id):
        told = netavark.known(mount.id).get(endpoint.network)
        if told is not None and not store.networks.find(endpoint.network).internal:
            netavark.tear_down(mount.id, endpoint.network)
            netavark.set_up(mount.id, endpoint.network, {**told, "port_mappings": published})
            return


def _tell(
    store: Store,
    root: Path,
    mount: Mount,
    *,
    added: Endpoint | None = None,
    removed: Endpoint | None = None,
) -> None:
    """Write a change of the networks of a container that runs into its /etc/hosts and /etc/resolv.conf."""
    own, settings = files.directory(root, mount.id), mount.container
    endpoints = store.networks.endpoints(mount=mount.id)
    joined = [store.networks.find(it.network) for it in endpoints]
    with suppress(OSError):
        if removed is not None:
            hostfiles.disconnect(own, networks.addresses_of(removed))
        if added is not None:
            hostfiles.connect(
                own, aliases.hostname(mount), settings.get("Domainname", ""), networks.addresses_of(added)
            )
        hostfiles.write_resolver(own, host_config(settings), networks.resolver(joined, endpoints))
