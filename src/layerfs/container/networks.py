"""A container's network: which it is to be in, made before its process starts, and taken away after its end.

The namespace is made first, and is mounted on a file below `RUN/netns`. A runtime could make it too, but that
one would end with the last process of the container: netavark, which undoes its work from inside, would find
nothing there after `kill -9`, and what runs between "created" and "started" (hooks) would see a network that
is not there yet. One with a name is there for as long as we want.

Without a bridge (`host`, `none`, `container:NAME`) nothing of this needs to be installed.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.container import aliases, hostfiles, netavark, networking, publishing
from layerfs.container.stored import host_config
from layerfs.errors import BadRequest, Forbidden, LayerfsError, NotFound, from_os_error
from layerfs.host import netns
from layerfs.host.record import directory, look
from layerfs.store import Store, addressing
from layerfs.store.networks import default_network, endpoints_in, names_in

if TYPE_CHECKING:
    from layerfs.store.model import Endpoint, Mount, Network, Port

MTU = "com.docker.network.driver.mtu"
BRIDGE_NAME = "com.docker.network.bridge.name"
HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"


@dataclass(slots=True)
class Prepared:
    """A network that is ready for a container's process."""

    namespace: str | None = None
    """The path of the namespace to enter; None where there is no bridge."""
    files: hostfiles.Network = field(default_factory=hostfiles.Network)
    """What it adds to the container's /etc/hosts and /etc/resolv.conf."""
    sockets: list[socket.socket] = field(default_factory=list)
    """What the supervisor has to hold: see `publishing`."""
    variables: list[str] = field(default_factory=list)
    """What it adds to the environment: what links on the default bridge say."""

    def close(self) -> None:
        """Give up the sockets: who inherited them has them still."""
        publishing.close(self.sockets)
        self.sockets.clear()


def set_up(root: Path, mount: Mount) -> Prepared:
    """Make the network of a container that is about to start; the caller holds its `Lock`.

    Raises `LayerfsError`; then, and at the container's end, `take_down` takes away what there is.
    """
    if not default_network(mount.container):
        return Prepared()
    with Store(root) as store:
        return _set_up_bridges(store, mount)


def wanted_networks(store: Store, settings: Mapping[str, Any]) -> list[tuple[Network, dict[str, Any]]]:
    """Return the networks that a container is to be in, the mode's first, and its `EndpointSettings` there.

    Raises `NotFound`.
    """
    mode = default_network(settings)
    wanted: dict[str, tuple[Network, dict[str, Any]]] = {}
    for name, endpoint in sorted(endpoints_in(settings).items()):
        network = store.networks.find(name)
        wanted[network.id] = (network, endpoint)
    with suppress(NotFound):
        first = store.networks.find(mode).id if mode else ""
        return sorted(wanted.values(), key=lambda item: item[0].id != first)
    return list(wanted.values())


def _set_up_bridges(store: Store, mount: Mount) -> Prepared:
    if "bridge" in names_in(mount.container):
        store.networks.settle_default()
    chosen = wanted_networks(store, mount.container)
    if other := next((it for it, _ in chosen if it.driver != "bridge"), None):
        raise private(other.driver)
    for network, endpoint in chosen:
        check_settings(network, endpoint)
    netavark.check_possible(names=any(has_names(network) for network, _ in chosen))
    path = netavark.namespace_path(mount.id)
    try:
        netns.make(path)
    except OSError as error:
        raise from_os_error(error, "make a network namespace") from None
    prepared = Prepared(namespace=str(path))
    for number, (network, endpoint) in enumerate(chosen):
        join(store, mount, network, endpoint, prepared if number == 0 else None, metric=100 + number)
    endpoints = store.networks.endpoints(mount=mount.id)
    links = aliases.linked(store, mount, endpoints, chosen)
    prepared.files = resolver([network for network, _ in chosen], endpoints, links)
    for network in (network for network, _ in chosen if network.predefined):
        prepared.variables += aliases.variables(store, mount, network.id)
    return prepared


def resolver(
    joined: Sequence[Network], endpoints: Iterable[Endpoint], links: Sequence[tuple[str, str]] = ()
) -> hostfiles.Network:
    """Return what the networks *joined* add to a container's /etc/hosts and /etc/resolv.conf.

    Where containers have names, aardvark-dns answers, on the address of the gateway; it asks the host's
    servers for all else.
    """
    return hostfiles.Network(
        addresses=[text for endpoint in endpoints for text in addresses_of(endpoint)],
        nameservers=[it.gateway for network in joined if has_names(network) for it in network.subnets],
        gateway=next((text for network in joined for text in _gateways(network, 4)), ""),
        hosts=links,
    )


def addresses_of(endpoint: Endpoint) -> list[str]:
    """Return the addresses of *endpoint*, IPv4's first."""
    return [text for text in (endpoint.address, endpoint.address6) if text]


def private(kind: str) -> Forbidden:
    """Return the error for a container or a network of a *kind*, "host" or none, that goes with no other."""
    if kind == "host":
        return Forbidden("container cannot be disconnected from host network or connected to host network")
    return Forbidden(
        "container cannot be connected to multiple networks with one of the networks in private (none) mode"
    )


def has_names(network: Network) -> bool:
    """Return whether containers find each other by name there: as Docker's, on all but the default bridge."""
    return network.driver == "bridge" and not network.predefined


def _gateways(network: Network, version: int) -> list[str]:
    return [subnet.gateway for subnet in network.subnets if subnet.version == version]


def interface_exists(name: str) -> bool:
    """Return whether the host has a network interface called *name*."""
    return Path("/sys/class/net", name).exists()


def namespace_of(mount_id: str) -> str:
    """Return the path of the network namespace of a container that runs in a network with a bridge."""
    return str(netavark.namespace_path(mount_id))


def clear_away(store: Store, network: Network, clear: Callable[[Mount], None]) -> None:
    """Have *clear* clear away after the containers in *network* that have ended, if nobody did so yet."""
    for endpoint in store.networks.endpoints(network=network.id):
        record = look(endpoint.mount)
        if record is None or not record.alive():
            with suppress(NotFound):  # it has just been removed
                clear(store.mount(endpoint.mount))
            if not directory(endpoint.mount).exists():  # nothing is left of it but the row, if that
                store.networks.leave(endpoint.mount)


def bridge_name(network: Network) -> str:
    """Return the name of the bridge of *network* on the host."""
    return network.options.get(BRIDGE_NAME) or f"br-{network.id[:12]}"


def join(
    store: Store,
    mount: Mount,
    network: Network,
    settings: Mapping[str, Any],
    prepared: Prepared | None,
    *,
    metric: int,
) -> Endpoint:
    """Put the container into *network*; with *prepared*, its ports lead there. Raises `LayerfsError`."""
    addresses = settings.get("IPAMConfig") or {}
    endpoint = store.networks.join(
        mount.id,
        network.id,
        address=addresses.get("IPv4Address") or "",
        address6=addresses.get("IPv6Address") or "",
        mac=settings.get("MacAddress") or "",
        names=aliases.of(mount, settings),
    )
    published: Sequence[Port] = ()
    if prepared is not None:
        try:
            published, prepared.sockets = publishing.claim(store, mount.id, _asked_ports(mount, network))
        except LayerfsError as error:
            text = f"driver failed programming external connectivity on endpoint {mount.name}"
            raise type(error)(f"{text} ({endpoint.id}): {error}") from None
    netavark.set_up(mount.id, network.id, _told(mount, network, endpoint, published, metric))
    for text in addresses.get("LinkLocalIPs") or ():
        _add_address(mount.id, endpoint.interface, text)
    if has_names(network):
        _add_links(store, network, mount, settings, lambda link: True)
        for other in store.networks.endpoints(network=network.id):
            if other.mount != mount.id:
                # It may have been linked to this one before this one was there.
                linking = store.mount(other.mount)
                there = {it.id: given for it, given in wanted_networks(store, linking.container)}
                _add_links(
                    store, network, linking, there.get(network.id, {}), lambda link: link.mount == mount.id
                )
    return endpoint


def _add_links(
    store: Store,
    network: Network,
    mount: Mount,
    settings: Mapping[str, Any],
    wanted: Callable[[Endpoint], bool],
) -> None:
    """Have *mount* find in *network* what its *settings* there link it to, by the names of the links."""
    for link, alias in aliases.links(store, network.id, settings.get("Links") or ()):
        if wanted(link):
            try:
                netavark.add_name(network.id, mount.id, link.mount, link.address, alias)
            except OSError as error:
                raise from_os_error(error, f"link {mount.name} to {alias}") from None


def _add_address(mount_id: str, interface: str, address: str) -> None:
    """Give an interface of a container one more address, of its link alone. Raises `LayerfsError`."""
    length = 64 if ":" in address else 16
    inside = ("nsenter", f"--net={netavark.namespace_path(mount_id)}")
    try:
        done = subprocess.run(
            [*inside, "ip", "address", "add", f"{address}/{length}", "dev", interface],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LayerfsError(f"cannot add the address {address}: {error}") from None
    if done.returncode != 0 and "File exists" not in done.stderr:
        raise LayerfsError(f"cannot add the address {address}: {done.stderr.strip()[:200]}")


def _asked_ports(mount: Mount, network: Network) -> list[tuple[Port, range]]:
    host = host_config(mount.container)
    address = network.options.get(HOST_BINDING) or "0.0.0.0"
    asked = publishing.wanted(
        host["PortBindings"],
        (mount.config.get("ExposedPorts") or {}).keys(),
        publish_all=host["PublishAllPorts"],
        host_ip=address,
    )
    return [] if network.internal else asked


def _told(
    mount: Mount, network: Network, endpoint: Endpoint, published: Sequence[Port], metric: int
) -> dict[str, Any]:
    """Return what netavark has to know: its own documentation has the members."""
    options = {"isolate": "true", "metric": str(metric)}
    servers = hostfiles.servers(host_config(mount.container)) if has_names(network) else []
    if mtu := network.options.get(MTU):
        options["mtu"] = mtu
    # A named network's own DNS server answers on the gateway's address.
    return {
        "container_id": mount.id,
        "container_name": mount.name,
        "networks": {
            network.id: {
                "static_ips": addresses_of(endpoint),
                "static_mac": endpoint.mac,
                "aliases": list(endpoint.names),
                "interface_name": endpoint.interface,
            }
        },
        "network_info": {
            network.id: {
                "name": network.id,
                "id": network.id,
                "driver": "bridge",
                "network_interface": bridge_name(network),
                "subnets": [
                    {"subnet": subnet.subnet, "gateway": subnet.gateway} for subnet in network.subnets
                ],
                "ipv6_enabled": network.ipv6,
                "internal": network.internal,
                "dns_enabled": has_names(network),
                "options": options,
                "ipam_options": {"driver": "host-local"},
            }
        },
        "port_mappings": [
            {
                "container_port": port.container_port,
                "host_port": port.host_port,
                "host_ip": "" if port.host_ip in ("0.0.0.0", "::") else port.host_ip,
                "protocol": port.protocol,
                "range": 1,
            }
            for port in published
        ]
        or None,
        "dns_servers": servers or None,
    }


def take_down(root: Path, mount_id: str) -> None:
    """Take away the network of a container, as much of it as there is; the caller holds its `Lock`.

    May be repeated, also after the container's row is gone. Raises `LayerfsError` when something may be left.
    """
    for network_id in netavark.known(mount_id):
        netavark.tear_down(mount_id, network_id)
    try:
        netavark.forget(mount_id)
    except OSError as error:
        raise from_os_error(error, "remove a network namespace") from None
    with Store(root) as store:
        store.networks.leave(mount_id)


def check_settings(network: Network, settings: Mapping[str, Any]) -> None:
    """Raise `BadRequest` for `EndpointSettings` that cannot be in *network*."""
    addresses = settings.get("IPAMConfig") or {}
    for member, version in (("IPv4Address", 4), ("IPv6Address", 6)):
        text = addresses.get(member) or ""
        if not text:
            continue
        if network.predefined:
            raise BadRequest(
                f"invalid config for network {network.name}: invalid endpoint settings:\n"
                "user specified IP address is supported on user defined networks only"
            )
        subnets = [subnet for subnet in network.subnets if subnet.version == version]
        addressing.check_within(network.name, subnets, ip_address(networking.address(text, version)))
    if network.predefined and settings.get("Aliases"):
        raise BadRequest(
            f"invalid config for network {network.name}: invalid endpoint settings:\n"
            "network-scoped aliases are only supported for user-defined networks"
        )
