"""How Docker's API shows networks, and what a container has of them."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from layerfs.api.times import timestamp
from layerfs.container import aliases, networks
from layerfs.store.networks import endpoints_in, network_mode

if TYPE_CHECKING:
    from layerfs.store import Store
    from layerfs.store.model import Endpoint, Mount, Network, Subnet

BRIDGE = "com.docker.network.bridge."
"""What the names of a bridge's options begin with."""
ICC, MASQUERADE = f"{BRIDGE}enable_icc", f"{BRIDGE}enable_ip_masquerade"


def shape(store: Store, network: Network, *, containers: bool) -> dict[str, Any]:
    """Return what is said of a network, with its *containers* if wanted."""
    options = dict(network.options)
    if network.name == "bridge":
        options |= {f"{BRIDGE}default_bridge": "true", ICC: "true", MASQUERADE: "true"}
        options |= {networks.HOST_BINDING: "0.0.0.0", networks.BRIDGE_NAME: networks.bridge_name(network)}
    found: dict[str, Any] = {
        "Name": network.name,
        "Id": network.id,
        "Created": timestamp(network.created),
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": True,
        "EnableIPv6": network.ipv6,
        "IPAM": {
            "Driver": "default",
            "Options": network.ipam or None,
            "Config": [_config(subnet) for subnet in network.subnets],
        },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Options": options,
        "Labels": network.labels,
    }
    if containers:
        found["Containers"] = {
            it.mount: _resource(network, it) for it in store.networks.endpoints(network=network.id)
        }
    return found


def _config(subnet: Subnet) -> dict[str, Any]:
    config: dict[str, Any] = {"Subnet": subnet.subnet}
    if subnet.range:
        config["IPRange"] = subnet.range
    config["Gateway"] = subnet.gateway
    if subnet.reserved:
        config["AuxiliaryAddresses"] = subnet.reserved
    return config


def _resource(network: Network, endpoint: Endpoint) -> dict[str, str]:
    return {
        "Name": endpoint.mount_name,
        "EndpointID": endpoint.id,
        "MacAddress": endpoint.mac,
        "IPv4Address": _with_prefix(network, endpoint.address),
        "IPv6Address": _with_prefix(network, endpoint.address6),
    }


def _subnet_of(network: Network, address: str) -> Subnet | None:
    if not address:
        return None
    wanted = ip_address(address)
    return next((it for it in network.subnets if wanted in ip_network(it.subnet)), None)


def _with_prefix(network: Network, address: str) -> str:
    subnet = _subnet_of(network, address)
    return f"{address}/{subnet.subnet.partition('/')[2]}" if subnet else ""


def shown(store: Store, mount: Mount) -> dict[str, Any]:
    """Return the member `NetworkSettings` of an inspected container."""
    running = {it.network: it for it in store.networks.endpoints(mount=mount.id)}
    settings: dict[str, Any] = {}
    first: dict[str, Any] = {}
    for name, given in _wanted(mount).items():
        network = store.networks.look(name)
        said = _endpoint_shape(mount, given or {}, network, running.get(network.id) if network else None)
        settings[network.name if network else name] = said
        if network is not None and network.name == "bridge":
            first = said
    legacy = ("EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress")
    path = networks.namespace_of(mount.id) if running else ""
    return {
        "Bridge": "",
        "SandboxID": mount.id if running else "",
        "SandboxKey": path,
        "Ports": ports_shown(store, mount) if running else {},
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        **{member: first.get(member, "") for member in (*legacy, "IPv6Gateway", "MacAddress")},
        "IPPrefixLen": first.get("IPPrefixLen", 0),
        "GlobalIPv6PrefixLen": first.get("GlobalIPv6PrefixLen", 0),
        "Networks": settings,
    }


def _wanted(mount: Mount) -> dict[str, Any]:
    if not mount.container:
        return {}
    mode = network_mode(mount.container)
    return endpoints_in(mount.container) or ({mode: {}} if mode in ("host", "none") else {})


def _endpoint_shape(
    mount: Mount, given: Mapping[str, Any], network: Network | None, endpoint: Endpoint | None
) -> dict[str, Any]:
    subnet = subnet6 = None
    if network is not None and endpoint is not None:
        subnet, subnet6 = (_subnet_of(network, text) for text in (endpoint.address, endpoint.address6))
    has_names = network is not None and networks.has_names(network)
    return {
        "IPAMConfig": given.get("IPAMConfig"),
        "Links": given.get("Links"),
        "Aliases": given.get("Aliases"),
        "MacAddress": endpoint.mac if endpoint else given.get("MacAddress") or "",
        "DriverOpts": given.get("DriverOpts"),
        "GwPriority": given.get("GwPriority", 0),
        "NetworkID": network.id if network else "",
        "EndpointID": endpoint.id if endpoint else "",
        "Gateway": subnet.gateway if subnet else "",
        "IPAddress": endpoint.address if endpoint else "",
        "IPPrefixLen": int(subnet.subnet.partition("/")[2]) if subnet else 0,
        "IPv6Gateway": subnet6.gateway if subnet6 else "",
        "GlobalIPv6Address": endpoint.address6 if endpoint else "",
        "GlobalIPv6PrefixLen": int(subnet6.subnet.partition("/")[2]) if subnet6 else 0,
        "DNSNames": [mount.name, *aliases.of(mount, given)] if has_names else None,
    }


def ports_shown(store: Store, mount: Mount) -> dict[str, Any]:
    """Return the member `Ports`: those that the image exposes, and for each where it is published."""
    found: dict[str, Any] = {}
    for spec in mount.config.get("ExposedPorts") or ():
        found[spec if "/" in spec else f"{spec}/tcp"] = None
    for port in store.networks.ports(mount.id):
        key = f"{port.container_port}/{port.protocol}"
        binding = {"HostIp": port.host_ip, "HostPort": str(port.host_port)}
        found[key] = [*(found.get(key) or ()), binding]
    return found


def summary(store: Store, mount: Mount) -> dict[str, Any]:
    """Return the members `Ports` and `NetworkSettings` of a container in a list."""
    ports: list[dict[str, Any]] = []
    if store.networks.endpoints(mount=mount.id):
        for spec, bindings in ports_shown(store, mount).items():
            number, _, protocol = spec.partition("/")
            inside = {"PrivatePort": int(number), "Type": protocol or "tcp"}
            ports += [
                {"IP": it["HostIp"], **inside, "PublicPort": int(it["HostPort"])} for it in bindings or ()
            ]
            ports += [] if bindings else [inside]
    return {"Ports": ports, "NetworkSettings": {"Networks": shown(store, mount)["Networks"]}}
